"""Continual-learning methods, one to a file. Each factory here returns a `jcl.Method`."""

from jcl.methods.adapters.bottleneck import bottleneck
from jcl.methods.adapters.eproj import eproj
from jcl.methods.adapters.ia3 import ia3
from jcl.methods.adapters.lora import lora
from jcl.methods.adapters.moelora import moelora
from jcl.methods.adapters.olora import inclora, olora
from jcl.methods.adapters.oplora import oplora
from jcl.methods.adapters.osf import osf
from jcl.methods.adapters.prefix_tuning import prefix_tuning
from jcl.methods.adapters.progressive_prompts import progressive_prompts
from jcl.methods.adapters.prompt_tuning import prompt_tuning
from jcl.methods.adapters.svd_lora import svd_lora
from jcl.methods.alignment.copr import copr
from jcl.methods.alignment.dpo import dpo
from jcl.methods.anchors.ewc import ewc, online_ewc
from jcl.methods.anchors.l2sp import l2sp
from jcl.methods.anchors.mas import mas
from jcl.methods.anchors.recadam import recadam
from jcl.methods.anchors.rwalk import rwalk
from jcl.methods.anchors.si import si
from jcl.methods.baselines.from_scratch import from_scratch
from jcl.methods.baselines.naive import naive
from jcl.methods.masks.hat import hat
from jcl.methods.masks.llama_pro import llama_pro
from jcl.methods.masks.migu import migu
from jcl.methods.masks.mofo import mofo
from jcl.methods.masks.packnet import packnet
from jcl.methods.masks.seq import seq
from jcl.methods.masks.soft_mask import soft_mask
from jcl.methods.merges.ema import ema
from jcl.methods.merges.hma import hma
from jcl.methods.merges.magmax import magmax
from jcl.methods.merges.online_merging import online_merging
from jcl.methods.merges.opcm import opcm
from jcl.methods.merges.task_arithmetic import task_arithmetic
from jcl.methods.merges.ties import ties
from jcl.methods.merges.wise_ft import wise_ft
from jcl.methods.plasticity.continual_backprop import continual_backprop
from jcl.methods.plasticity.redo import redo
from jcl.methods.plasticity.shrink_and_perturb import shrink_and_perturb
from jcl.methods.projections.agem import agem
from jcl.methods.projections.gem import gem
from jcl.methods.projections.gpm import gpm
from jcl.methods.projections.ogd import ogd
from jcl.methods.replay.der import der, derpp
from jcl.methods.replay.er import er
from jcl.methods.routing.infer_task import infer_task
from jcl.methods.schedules.schedule import constant, infinite, rewarm
from jcl.methods.teachers.distil import distil
from jcl.methods.teachers.kl_to_reference import kl_to_reference
from jcl.methods.teachers.lwf import lwf
from jcl.methods.weighting.ir_dro import ir_dro
from jcl.methods.weighting.rho import rho

__all__ = [
    "agem",
    "bottleneck",
    "constant",
    "continual_backprop",
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
    "magmax",
    "mas",
    "migu",
    "moelora",
    "mofo",
    "naive",
    "ogd",
    "olora",
    "online_ewc",
    "online_merging",
    "opcm",
    "oplora",
    "osf",
    "packnet",
    "prefix_tuning",
    "progressive_prompts",
    "prompt_tuning",
    "recadam",
    "redo",
    "rewarm",
    "rho",
    "rwalk",
    "seq",
    "shrink_and_perturb",
    "si",
    "soft_mask",
    "svd_lora",
    "task_arithmetic",
    "ties",
    "wise_ft",
]
