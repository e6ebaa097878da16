"""Knowledge editing: facts written into a trained model, one a file."""

from jcl.editing.editor import Editor, Facts
from jcl.editing.requests import CONTEXTS, encode, pad

__all__ = ["CONTEXTS", "Editor", "Facts", "encode", "pad"]
