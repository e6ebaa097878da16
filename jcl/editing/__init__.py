"""Knowledge editing: facts written into a trained model, one a file."""

from jcl.editing.editor import Editor, Facts

__all__ = ["Editor", "Facts"]
