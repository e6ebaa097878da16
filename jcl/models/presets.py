"""Shapes of well-known decoders by name, for plans and tables that need no weights."""

from __future__ import annotations

from dataclasses import replace

from jcl.models.decoder import Config
from jcl.models.rope import Rope

_ROPE = Rope(500_000.0)
"""Rotary positions without the scaling for long contexts, which changes no shape."""
_8B = Config(
    vocabulary=128_256, layers=32, width=4096, heads=32, kv_heads=8, hidden=14_336, rope=_ROPE,
    tied=False,
)  # fmt: skip

PRESETS: dict[str, Config] = {
    "tiny": Config(vocabulary=512, layers=2, width=128, heads=4, kv_heads=2, hidden=256),
    # Grattafiori et al., arXiv 2407.21783, table 3; the 1B from meta-llama/Llama-3.2-1B's config
    "llama-1b": replace(_8B, layers=16, width=2048, head_width=64, hidden=8192, tied=True),
    "llama-8b": _8B,
    "llama-70b": replace(_8B, layers=80, width=8192, heads=64, hidden=28_672),
}
"""Configurations by name; the Llamas are those of versions 3.1 and 3.2."""
