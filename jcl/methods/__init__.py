"""Continual-learning methods, one a file; each factory returns a `jcl.Method`."""

from jcl.methods.agem import agem
from jcl.methods.bottleneck import bottleneck
from jcl.methods.copr import copr
from jcl.methods.der import der, derpp
from jcl.methods.distil import distil
from jcl.methods.dpo import dpo
from jcl.methods.ema import ema
from jcl.methods.eproj import eproj
from jcl.methods.er import er
from jcl.methods.ewc import ewc, online_ewc
from jcl.methods.gem import gem
from jcl.methods.gpm import gpm
from jcl.methods.hat import hat
from jcl.methods.hma import hma
from jcl.methods.ia3 import ia3
from jcl.methods.infer_task import infer_task
from jcl.methods.ir_dro import ir_dro
from jcl.methods.kl_to_reference import kl_to_reference
from jcl.methods.l2sp import l2sp
from jcl.methods.llama_pro import llama_pro
from jcl.methods.lora import lora
from jcl.methods.lwf import lwf
from jcl.methods.mas import mas
from jcl.methods.migu import migu
from jcl.methods.moelora import moelora
from jcl.methods.mofo import mofo
from jcl.methods.naive import naive
from jcl.methods.ogd import ogd
from jcl.methods.olora import inclora, olora
from jcl.methods.online_merging import online_merging
from jcl.methods.packnet import packnet
from jcl.methods.prefix_tuning import prefix_tuning
from jcl.methods.progressive_prompts import progressive_prompts
from jcl.methods.prompt_tuning import prompt_tuning
from jcl.methods.recadam import recadam
from jcl.methods.reference import from_scratch
from jcl.methods.rho import rho
from jcl.methods.rwalk import rwalk
from jcl.methods.schedule import constant, infinite, rewarm
from jcl.methods.seq import seq
from jcl.methods.si import si
from jcl.methods.soft_mask import soft_mask
from jcl.methods.task_arithmetic import task_arithmetic
from jcl.methods.ties import ties
from jcl.methods.wise_ft import wise_ft

__all__ = [
    "agem",
    "bottleneck",
    "constant",
    "copr",
    "der",
    "derpp",
    "distil",
    "dpo",
    "ema",
    "eproj",
    "er",
    "ewc",
    "from_scratch",
    "gem",
    "gpm",
    "hat",
    "hma",
    "ia3",
    "inclora",
    "infer_task",
    "infinite",
    "ir_dro",
    "kl_to_reference",
    "l2sp",
    "llama_pro",
    "lora",
    "lwf",
    "mas",
    "migu",
    "moelora",
    "mofo",
    "naive",
    "ogd",
    "olora",
    "online_ewc",
    "online_merging",
    "packnet",
    "prefix_tuning",
    "progressive_prompts",
    "prompt_tuning",
    "recadam",
    "rewarm",
    "rho",
    "rwalk",
    "seq",
    "si",
    "soft_mask",
    "task_arithmetic",
    "ties",
    "wise_ft",
]
