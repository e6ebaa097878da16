"""The module paths of version 0.1, which name the same objects until the next release.

`from jcl.fit import Result` still works and warns: `Result` is that of `jcl.training.fit`. Nothing
is imported before an old path's contents are asked for. What `jcl` offers by its short name, such
as `jcl.metrics`, is no old path: it stays importable by it, and doesn't warn.
"""

from __future__ import annotations

import importlib
import sys
import warnings
from types import ModuleType
from typing import Any

MOVES = (
    ("", "mechanisms", "adapters growth importance merging preference"),
    ("", "parallel", "mesh rows processes storage"),
    ("", "training", "fit feed checkpoint drift"),
    ("", "measures", "metrics evaluation probes scoring answers harness landscape flops budget"),
    (
        "",
        "runs",
        "experiment expression flags plan launch pipeline nodes:pipeline_report "
        "export edit shardings recycle",
    ),
    ("", "report", "page figures screen"),
    ("", "data", "rehearsal"),
    ("models", "models", "folder:pretrained families:decoder_families"),
    ("data", "data", "text:byte_stream packed:packed_stream"),
    ("data", "data.registry", "fetch archives unpack caches glassllm"),
    ("editing", "editing.editors", "rome memit alphaedit ft_l grace wise"),
    ("methods", "methods.baselines", "naive reference:from_scratch"),
    ("methods", "methods.anchors", "ewc si mas rwalk l2sp recadam"),
    ("methods", "methods.replay", "er der"),
    ("methods", "methods.projections", "agem gem ogd gpm"),
    ("methods", "methods.masks", "packnet hat mofo migu soft_mask seq llama_pro"),
    (
        "methods",
        "methods.adapters",
        "lora olora moelora ia3 bottleneck prompt_tuning progressive_prompts prefix_tuning eproj",
    ),
    ("methods", "methods.teachers", "lwf distil kl_to_reference"),
    ("methods", "methods.alignment", "dpo copr"),
    ("methods", "methods.merges", "ema wise_ft task_arithmetic ties online_merging hma"),
    ("methods", "methods.schedules", "schedule"),
    ("methods", "methods.weighting", "rho ir_dro"),
    ("methods", "methods.routing", "infer_task"),
)
"""Rows of old folder, new folder and modules; `old:new` where a module's name has changed too."""


class _Old(ModuleType):
    """Stands at an old path and hands on what is asked of it.

    It is in `sys.modules` from the start, for a module that is found by the import system would
    take the place of the function of its name: `jcl.fit`, or `jcl.methods.ewc`.
    """

    def __init__(self, old: str, new: str):
        super().__init__(old, f"Moved to `{new}`.")
        self._new = new

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name != "__all__":  # what Python's own tools try on modules
            raise AttributeError(name)
        new = self.__dict__["_new"]
        message = f"{self.__name__} is now {new}; the old path goes with the next release"
        warnings.warn(message, DeprecationWarning, stacklevel=2)
        return getattr(importlib.import_module(new), name)


def paths() -> dict[str, str]:
    """Every old module path and the new one."""
    found = {}
    for old, new, names in MOVES:
        for name in names.split():
            before, _, after = name.partition(":")
            parts = ("jcl", old, before), ("jcl", new, after or before)
            was, now = (".".join(part for part in one if part) for one in parts)
            found[was] = now
    return found


def install() -> None:
    """Makes the old paths importable; of those that `jcl` offers by name, without a warning."""
    package = sys.modules["jcl"]
    for old, new in paths().items():
        offered = getattr(package, old.removeprefix("jcl."), None)
        module = offered if isinstance(offered, ModuleType) else _Old(old, new)
        sys.modules.setdefault(old, module)
