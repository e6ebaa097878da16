"""Plain fine-tuning, against which every other method is measured."""

from __future__ import annotations

from jcl.chain import chain
from jcl.method import Method


def naive() -> Method:
    """Plain fine-tuning on one stage after another: the chain of no methods."""
    return chain()
