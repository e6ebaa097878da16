"""Knowledge editing: facts written into a trained model, one a file."""

from jcl.editing.alphaedit import alphaedit
from jcl.editing.editor import Editor, Facts
from jcl.editing.ft_l import ft_l
from jcl.editing.grace import grace, remove_edit
from jcl.editing.memit import memit
from jcl.editing.requests import CONTEXTS, encode, pad
from jcl.editing.rome import rome
from jcl.editing.statistics import second_moment
from jcl.editing.undo import Past, recorded, undo
from jcl.editing.wise import wise

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
