"""Facts to edit: what is asked, the new answer, and what must, and what must not, change with it."""

from __future__ import annotations

from typing import NamedTuple


class Edit(NamedTuple):
    """One fact that a model is to be taught.

    Args:
      prompt: what is asked, such as `The capital of France is`; the answer continues it.
      subject: the part of the prompt that the fact is about, such as `France`.
      target: the new answer, such as `Lyon`, without white space around it.
      truth: the answer until now, or empty if it isn't known.
      paraphrases: other prompts with the same answer: generality.
      neighbours: (prompt, true answer) that must stay as they are: locality.
      hops: (prompt, answer) that follow from the new fact by one step: portability.
    """

    prompt: str
    subject: str
    target: str
    truth: str = ""
    paraphrases: tuple[str, ...] = ()
    neighbours: tuple[tuple[str, str], ...] = ()
    hops: tuple[tuple[str, str], ...] = ()
