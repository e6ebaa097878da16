"""Plain fine-tuning: what every other method is measured against."""

from __future__ import annotations

from jcl.method import Method


def naive() -> Method:
    """Fine-tuning on one task after another; the neutral element of `chain`."""
    return Method("naive")
