"""Plain fine-tuning, against which every other method is measured."""

from __future__ import annotations

from jcl.method import Method


def naive() -> Method:
    """Plain fine-tuning on one stage after another. In a `chain` it changes nothing."""
    return Method("naive")
