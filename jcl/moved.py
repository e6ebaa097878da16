"""Lets the names of version 0.1 stand for their present ones until the next release.

`from jcl.fit import Result` still works and warns: `Result` is that of `jcl.training.fit`. Nothing
is imported before an old path's contents are asked for. What `jcl` offers by its short name, such
as `jcl.metrics`, is no old path: it stays importable by it, and doesn't warn.
"""

from __future__ import annotations

import functools
import importlib
import sys
import warnings
from collections.abc import Callable
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
        "export edit shardings recycle results",
    ),
    ("", "report", "page figures screen trackers"),
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
"""Rows of old folder, new folder and modules; `old:new` where a module's name has changed too.

`results` and `trackers` never were elsewhere: they are here to be importable by the short names by
which `jcl` offers them, as its older modules are."""


NAMES = {
    "mechanisms.adapters": "only:is_adapter node:subtree graft:with_subtree strip:without_adapters "
    "holding:paths_with weight:kernel_array fresh:init_pair renewed:redraw_pairs "
    "scaled:scale_pairs scaling:scale_hook deposit:store_pairs stacked:join_pairs "
    "taken:select_pairs",
    "measures.answers": "continued:continue_texts written:score_texts",
    "runs.experiment": "scored:evaluate_all folded:merged_params",
    "program": "complete:fill_batch",
    "training.checkpoint": "shared:is_shared",
    "training.drift": "watched:watch_drift",
    "parallel.storage": "stored:compress offloaded:offload",
    "data.questions": "labelled:from_labels",
    "data.instructions": "Asked:Instruction fitting:drop_long",
    "runs.edit": "Edited:Result",
    "training.feed": "put:place",
    "runs.flags": "resumed:check_resume",
    "memory": "finished:finite_rows absorb:insert_batches filled:count_filled shared:buffer_of",
    "mechanisms.merging": "moved:step_along share:count_of largest:_largest",
    "parallel.mesh": "fitting:dividing_axes spread:constrain_batch held:device_bytes",
    "parallel.rows": "own_rows:replica_rows",
    "runs.pipeline": "own:gauges_of",
    "mechanisms.preference": "both:pair_rows relative:implicit_rewards answered:pair_log_probs",
    "parallel.processes": "agreed:largest_of_all several:has_peers leader:is_leader "
    "of_leader:from_leader same:check_same watched:is_watched verdict:exit_if_peer_lost",
    "losses": "shifted:with_targets",
    "report": "measured:format_mean",
    "trees": "everything:every_leaf matching:match_path",
}
"""Functions by the module where they are now, each as `old:new`."""

FIELDS = {
    "method.Method": "idle:skips",
    "method.Ctx": "task:stage task_step:stage_step",
    "program.State": "opt:optimizer method:methods task:stage task_step:stage_step",
    "program.Program": "each:over_members weights:read_params",
}
"""Fields of records by their class, each as `old:new`."""

ELSEWHERE = {"jcl.parallel.processes": ("Preempted PREEMPTED", "jcl.parallel.signals")}
"""Names that went to another module than the rest of their own: by that one's present path."""

ARGUMENTS = {
    name: {"tasks": "stages"}
    for name in ("gem", "inclora", "olora", "packnet", "progressive_prompts")
}
"""Arguments of methods, old and new; those that count stretches of time are called stages now."""


def _warn(old: str, new: str, level: int) -> None:
    message = f"{old} is now {new}; the old name goes with the next release"
    warnings.warn(message, DeprecationWarning, stacklevel=level + 1)


def _field(old: str, new: str) -> property:
    """A property that reads a record's field by its old name, and warns."""

    def read(record: Any) -> Any:
        name = type(record).__name__
        _warn(f"{name}.{old}", f"{name}.{new}", 2)
        return getattr(record, new)

    return property(read, doc=f"The old name of `{new}`.")


def argument(method: str, name: str) -> str:
    """The present name of a method's argument; warns if it was given by the old one."""
    new = ARGUMENTS.get(method, {}).get(name, name)
    if new != name:
        _warn(f"{method}'s argument {name}", new, 3)
    return new


def arguments(factory: Callable[..., Any]) -> Callable[..., Any]:
    """Makes a method's factory take its arguments by their old names too."""

    @functools.wraps(factory)
    def call(*given: Any, **named: Any) -> Any:
        return factory(*given, **{argument(factory.__name__, k): v for k, v in named.items()})

    return call


def _renamed(module: str, old: str) -> Any:
    """The present name of a module's function, None if it never had another name."""
    names = NAMES.get(module.removeprefix("jcl."), "").split()
    return dict(pair.split(":") for pair in names).get(old)


def _old_name(module: ModuleType, name: str) -> Any:
    """Makes a module's `__getattr__`, which finds its functions by their old names."""
    new = _renamed(module.__name__, name)
    if new is None:
        raise AttributeError(f"module {module.__name__!r} has no attribute {name!r}")
    _warn(f"{module.__name__}.{name}", f"{module.__name__}.{new}", 3)
    return getattr(module, new)


class _Old(ModuleType):
    """A module at an old path, which takes its attributes from the new one.

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
        names, other = ELSEWHERE.get(new, ("", new))
        new = other if name in names.split() else new
        _warn(self.__name__, new, 2)
        return getattr(importlib.import_module(new), _renamed(new, name) or name)


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
    """Makes old paths and names importable, and those paths that `jcl` still offers silently."""
    package = sys.modules["jcl"]
    for old, new in paths().items():
        offered = getattr(package, old.removeprefix("jcl."), None)
        module = offered if isinstance(offered, ModuleType) else _Old(old, new)
        sys.modules.setdefault(old, module)
    for name in NAMES:
        loaded = sys.modules.get(f"jcl.{name}")
        if loaded is not None:  # others have an old path, where `_Old` knows the names
            loaded.__dict__["__getattr__"] = functools.partial(_old_name, loaded)
    for name, fields in FIELDS.items():
        place, _, record = name.rpartition(".")
        for pair in fields.split():
            old, _, new = pair.partition(":")
            setattr(getattr(sys.modules[f"jcl.{place}"], record), old, _field(old, new))
