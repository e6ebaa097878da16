"""The decoder that tests of files store and change."""

from __future__ import annotations

from jcl.models import decoder

SMALL = decoder.Config(vocabulary=61, layers=2, width=32, heads=4, kv_heads=2, hidden=48)
