"""Knowledge editing: facts are written into a trained model, by one editor a file."""

from jcl.editing.editor import Editor, Facts
from jcl.editing.editors.alphaedit import alphaedit
from jcl.editing.editors.ft_l import ft_l
from jcl.editing.editors.grace import grace, remove_edit
from jcl.editing.editors.memit import memit
from jcl.editing.editors.rome import rome
from jcl.editing.editors.wise import wise
from jcl.editing.requests import CONTEXTS, encode, pad
from jcl.editing.statistics import second_moment
from jcl.editing.undo import Past, recorded, undo

__all__ = [
    "CONTEXTS",
    "Editor",
    "Facts",
    "Past",
    "alphaedit",
    "encode",
    "ft_l",
    "grace",
    "memit",
    "pad",
    "recorded",
    "remove_edit",
    "rome",
    "second_moment",
    "undo",
    "wise",
]
