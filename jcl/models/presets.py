"""Shapes of well-known decoders by name, for plans and tables that need no weights."""

from __future__ import annotations

from jcl.models.decoder import Config
from jcl.models.rope import Rope

PRESETS: dict[str, Config] = {
    "tiny": Config(vocabulary=512, layers=2, width=128, heads=4, kv_heads=2, hidden=256),
    # Grattafiori et al., arXiv 2407.21783, table 3; the 1B from meta-llama/Llama-3.2-1B's config
    "llama-1b": Config(
        vocabulary=128_256,
        layers=16,
        width=2048,
        heads=32,
        kv_heads=8,
        hidden=8192,
        rope=Rope(500_000.0),
    ),
    "llama-8b": Config(
        vocabulary=128_256,
        layers=32,
        width=4096,
        heads=32,
        kv_heads=8,
        hidden=14_336,
        rope=Rope(500_000.0),
        tied=False,
    ),
    "llama-70b": Config(
        vocabulary=128_256,
        layers=80,
        width=8192,
        heads=64,
        kv_heads=8,
        hidden=28_672,
        rope=Rope(500_000.0),
        tied=False,
    ),
}
"""Without the long-context scaling of rotary angles, which changes no shape."""
