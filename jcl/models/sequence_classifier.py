"""Decoders with a head of classes, as transformers' `...ForSequenceClassification` stores them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from jcl.method import check
from jcl.models.layout import Layout, linear


def sequence_classifier(
    kind: str, layout: Layout, shapes: Mapping[str, tuple[int, ...]], pad: int | None,
    labels: Sequence[str] = (),
) -> tuple[Layout, dict[str, Any]]:  # fmt: skip
    """The layout with the `classifier` in the place of the language model's head.

    Args:
      kind: the `model_type`.
      layout: the decoder's.
      shapes: of all leaves by path, `classifier/kernel` [width, classes] among them.
      pad: the id of the token that rows are padded with, which isn't read; None if there is none.
      labels: the names of the classes; () numbers them.

    Returns:
      The layout, and what `config.json` says besides.

    Raises:
      ValueError: if transformers has no such class, its head has a bias, or `labels` are others
        than there are classes.
    """
    from transformers.models.auto import modeling_auto

    known = modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES
    check(kind in known, "model_type", kind, "one that transformers has with a head of classes")
    if "classifier/bias" in shapes:
        raise ValueError(
            "params has 'classifier/bias', but a classifier must be a kernel alone, for "
            f"transformers' {known[kind]} has no bias"
        )
    width, classes = shapes["classifier/kernel"]
    names = list(labels) or [f"LABEL_{i}" for i in range(classes)]
    check(len(names) == classes, "labels", names, f"{classes}, one for each class")
    body = {path: source for path, source in layout.items() if not path.startswith("head/")}
    return {**body, "classifier/kernel": linear("score", width, classes)}, {
        "architectures": [known[kind]],
        "id2label": {str(i): name for i, name in enumerate(names)},
        "label2id": {name: i for i, name in enumerate(names)},
        "pad_token_id": pad,
    }
