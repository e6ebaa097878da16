"""Continual-learning methods, one a file; each factory returns a `jcl.Method`."""

from jcl.methods.ema import ema
from jcl.methods.er import er
from jcl.methods.ewc import ewc, online_ewc
from jcl.methods.hat import hat
from jcl.methods.migu import migu
from jcl.methods.mofo import mofo
from jcl.methods.naive import naive
from jcl.methods.packnet import packnet
from jcl.methods.reference import from_scratch
from jcl.methods.seq import seq
from jcl.methods.soft_mask import soft_mask
from jcl.methods.task_arithmetic import task_arithmetic
from jcl.methods.ties import ties
from jcl.methods.wise_ft import wise_ft

__all__ = [
    "ema",
    "er",
    "ewc",
    "from_scratch",
    "hat",
    "migu",
    "mofo",
    "naive",
    "online_ewc",
    "packnet",
    "seq",
    "soft_mask",
    "task_arithmetic",
    "ties",
    "wise_ft",
]
