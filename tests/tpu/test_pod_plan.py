"""tpu/plan.py: what the TPU's compiler makes of a step, against what theory says of it.

Over fsdp alone, on N chips, with B bytes for the kernels of all blocks in the dtype of products, H
for the head in it, and blocks rematerialised, a step sends from each chip

- (2 B + H) (N - 1) / N to gather a block's kernels forward and once more backward, and the head;
- (B + H) (N - 1) / N to scatter the gradients' sums.

The compiler gathers and scatters by collectives of that name, by permutations around a ring beside
the products that they are for, or by all-reduces, which take twice the bytes of a scatter. What is
left are all-to-alls of embeddings and all-reduces of norms' gradients and scalars, which are small.

(Rajbhandari et al., arXiv 1910.02054, section 7.2.2: parameters twice, gradients once.)
"""

from __future__ import annotations

import importlib
import json
import re
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from jcl.models.presets import PRESETS

FOLDER = Path(__file__).parents[2] / "tpu"
CHIPS = 16
MODEL = PRESETS["llama-1b"]
HEAD = 2 * MODEL.vocabulary * MODEL.width
KERNELS = 2 * MODEL.layers * MODEL.width * (2 * MODEL.width + 2 * 512 + 3 * MODEL.hidden)
SHARE = (CHIPS - 1) / CHIPS
RING = ("all-gather", "reduce-scatter", "collective-permute")


def needed(sent: dict[str, float]) -> float:
    """Bytes, as if what goes by all-reduce had been scattered."""
    return sum(sent.get(kind, 0) for kind in RING) + sent["all-reduce"] / 2


def module(name: str) -> Any:
    sys.path.insert(0, str(FOLDER))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(FOLDER))


@pytest.fixture(scope="module")
def plan() -> Any:
    pytest.importorskip("libtpu")
    return module("plan")


@pytest.fixture(scope="module")
def step(plan: Any) -> Callable[[str], Any]:
    """A step of llama-1b under a method, as the compiler leaves it."""

    @cache
    def drafted(method: str) -> Any:
        request = plan.Request("v5e:4x4", "llama-1b", method, batch=64, length=1024)
        return plan.plan(request, ("step",), drafts=True).functions["step"]

    return drafted


slow = pytest.mark.slow
one_compiler = pytest.mark.xdist_group("pod-plan")


@slow
@one_compiler
def test_fsdp_sends_what_theory_says(step: Callable[[str], Any]) -> None:
    sent = step("").moved.wires
    assert set(sent) <= {*RING, "all-reduce", "all-to-all"}
    assert needed(sent) == pytest.approx((3 * KERNELS + 2 * HEAD) * SHARE, rel=0.1)
    assert sent["all-to-all"] < 0.02 * needed(sent)


@slow
@one_compiler
def test_ewc_and_replay_send_nothing_more(step: Callable[[str], Any]) -> None:
    """But the scalars that they report, and replayed rows from where they are stored."""
    plain, ewc = step("").moved, step("ewc(strength=1.)").moved
    for kind, size in plain.wires.items():
        assert ewc.wires[kind] == pytest.approx(size, abs=1000)
        assert ewc.calls[kind] - plain.calls[kind] in (0, 1)
    er = step("er(capacity=256, rows=16)").moved
    rows = 16 * 1024 * 12  # bytes of 16 rows' tokens, segments and mask
    more = {k: er.wires[k] - plain.wires.get(k, 0) for k in er.wires}
    # activations of the rows themselves, a quarter more than without them, go through all-to-alls
    more["all-to-all"] -= plain.wires["all-to-all"] / 4
    assert sum(more.values()) < 20 * rows


@slow
@one_compiler
def test_ewc_has_two_trees_more_in_use_at_once(step: Callable[[str], Any]) -> None:
    plain, ewc = step("").memory, step("ewc(strength=1.)").memory
    trees = 2 * 4 * (KERNELS + HEAD) / 2 / CHIPS
    assert plain.live < plain.peak
    assert ewc.live - plain.live == pytest.approx(trees, rel=0.01)


@slow
@one_compiler
def test_agem_sends_one_more_gradient_and_a_scalar(step: Callable[[str], Any]) -> None:
    """That of the memory; and of two dots the partial sums, which are scalars."""
    plain, agem = step("").moved, step("agem(capacity=256, rows=64)").moved
    assert needed(agem.wires) == pytest.approx(2 * needed(plain.wires), rel=0.05)
    rows = 64 * 1024 * 12  # bytes of the memory's tokens, segments and mask, which come as a sum
    more = agem.wires["all-reduce"] - 2 * plain.wires["all-reduce"]
    assert more < 2 * rows  # and scalars
    assert agem.calls["all-reduce"] - 2 * plain.calls["all-reduce"] in (1, 2, 3)


@pytest.mark.whole
@one_compiler
def test_ewc_holds_two_trees_more_and_nothing_for_a_while(
    plan: Any, step: Callable[[str], Any]
) -> None:
    """Compiled to the end, for a draft's temporaries are only a lower bound."""
    whole = []
    for method in ("", "ewc(strength=1.)"):
        request = plan.Request("v5e:4x4", "llama-1b", method, batch=64, length=1024)
        found, draft = plan.plan(request, ("step",)).functions["step"], step(method)
        assert found.moved.wires == draft.moved.wires
        assert found.memory.arguments == pytest.approx(draft.memory.arguments, rel=0.001)
        assert 0.7 * found.memory.temporaries < draft.memory.temporaries <= found.memory.temporaries
        whole.append(found.memory)
    plain, ewc = whole
    tree = 4 * (KERNELS + HEAD) / 2 / CHIPS
    assert ewc.arguments - plain.arguments == pytest.approx(2 * tree, rel=0.01)
    assert ewc.temporaries - plain.temporaries < 0.01 * tree


@one_compiler
def test_what_does_not_fit_is_said_in_a_sentence(plan: Any, capsys: Any) -> None:
    call = ["--topology", "v5e:2x2", "--model", "llama-8b", "--functions", "step", "--draft"]
    assert plan.main(call) == 2
    said = capsys.readouterr().err
    assert "llama-8b with no method does not fit v5e:2x2: step needs" in said
    assert "too much" in said and "--params bfloat16" in said
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    "wrong, said",
    [
        (["--topology", "v9:2x2"], "topology is 'v9:2x2', but must be like v5e:4x4"),
        (["--topology", "v5e:3x5"], "which the compiler refuses"),
        (["--model", "gpt"], "model is 'gpt', but must be one of"),
        (["--mesh", "fsdp=8"], "is 8, but must be at most 4"),
        (["--mesh", "fsdp=2"], "makes up 4 devices"),
        (["--method", "ewk()"], "did you mean ewc?"),
        (["--functions", "walk"], "functions is ['walk']"),
    ],
)
def test_wrong_input_is_named(plan: Any, wrong: list[str], said: str, capsys: Any) -> None:
    given = {"--topology": "v5e:2x2", "--model": "tiny", wrong[0]: wrong[1]}
    assert plan.main([x for pair in given.items() for x in pair]) == 2
    assert said in capsys.readouterr().err


def test_a_search_goes_on_where_the_fastest_fits_only_as_a_draft(
    plan: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of four chips cut in two by `tensor`, one part is the fastest; over fsdp alone, two."""
    seconds = {(2, 1): 2.0, (2, 2): 5.0, (1, 2): 3.0}  # of what fits, by tensor and microbatches
    drafts_alone: set[tuple[int, int]] = set()
    chip = plan.chips.Chip(flops=1.0, memory=1.0, bandwidth=1.0, wires=1.0)

    def pretended(request: Any, functions: Any, drafts: bool) -> Any:
        asked = request.axes["tensor"], request.microbatches
        fits = asked in seconds and request.remat == "block"
        if not fits or (asked in drafts_alone and not drafts):
            raise plan.Unfit("too much")
        step = plan.Function(None, plan.hlo.Moved({}, {}, 0.0), seconds[asked], 0.0)
        return plan.Plan(request, chip, 4, 1, {"step": step}, 1, 1.0)

    def searched(drafts: int = 12) -> tuple[int, int]:
        said.clear()
        request = plan.Request("v5e:2x2", "llama-8b", batch=16)
        found = plan.search(request, drafts, ("step",), False, said.append).request
        return found.axes["tensor"], found.microbatches

    said: list[str] = []
    monkeypatch.setattr(plan, "plan", pretended)
    assert searched() == (2, 1)
    assert "fsdp=2, tensor=2, microbatches 1, remat block: 2.000 s a step at best" in said
    drafts_alone.add((2, 1))
    assert searched(20) == (1, 2)
    first = "fsdp=2, tensor=2, microbatches 1, remat block: does not fit when compiled to the end"
    assert said.index(first) < said.index(
        "fsdp=2, tensor=2, microbatches 2, remat block: 5.000 s a step at best"
    )
    seconds.clear()
    with pytest.raises(plan.Unfit, match="too much"):
        searched(4)
    assert len(said) == 4


@slow
@one_compiler
def test_the_command_writes_what_it_shows(tmp_path: Path) -> None:
    pytest.importorskip("libtpu")
    call = [
        sys.executable, str(FOLDER / "plan.py"), "--topology", "v5e:2x2", "--model", "tiny",
        "--search", "--compiles", "2", "--batch", "8", "--length", "256", "--draft",
        "--functions", "step,predict", "--json", str(tmp_path / "plan.json"),
    ]  # fmt: skip
    done = subprocess.run(call, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "plan.json").read_text())
    assert found["request"]["axes"] in ({"fsdp": 4, "tensor": 1}, {"fsdp": 2, "tensor": 2})
    assert set(found["functions"]) == {"step", "predict"}
    assert 0 < found["utilisation"] <= 1
    assert f"{found['chip_hours_a_billion_tokens']:.1f} chip hours" in done.stdout
    assert done.stderr.count("s a step at best") == 2


TEXT = """HloModule jit_step, is_scheduled=true

%add (x: f32[], y: f32[]) -> f32[] {
  %x = f32[] parameter(0)
  %y = f32[] parameter(1)
  ROOT %sum = f32[] add(%x, %y)
}

%start (p: bf16[1,64]) -> (bf16[1,64], bf16[4,64]) {
  %p = bf16[1,64]{1,0:T(8,128)(2,1)} parameter(0)
  %g = bf16[4,64]{1,0} all-gather(%p), replica_groups=[2,4]<=[8], x={chain_id="3"}
  ROOT %c = (bf16[1,64]{1,0}, bf16[4,64]{1,0}) custom-call(%g), x="AsyncCollectiveStart"
}

%scatter (i: f32[8,16]) -> f32[8,2] {
  %i = f32[8,16]{1,0} parameter(0)
  %r = f32[8,16]{1,0} all-reduce(%i), replica_groups={{0,1,2,3,4,5,6,7}}, to_apply=%add
  %n = u32[] partition-id()
  %z = u32[] constant(0)
  ROOT %d = f32[8,2]{1,0} dynamic-slice(%r, %z, %n), dynamic_slice_sizes={8,2}
}

%cond (t: (s32[], f32[8,16], bf16[1,64])) -> pred[] {
  %t = (s32[], f32[8,16]{1,0}, bf16[1,64]{1,0}) parameter(0)
  %k = s32[] get-tuple-element(%t), index=0
  %last = s32[] constant(5)
  ROOT %lt = pred[] compare(%k, %last), direction=LT
}

%body (t: (s32[], f32[8,16], bf16[1,64])) -> (s32[], f32[8,16], bf16[1,64]) {
  %t = (s32[], f32[8,16]{1,0}, bf16[1,64]{1,0}) parameter(0)
  %k = s32[] get-tuple-element(%t), index=0
  %a = f32[8,16]{1,0} get-tuple-element(%t), index=1
  %b = bf16[1,64]{1,0} get-tuple-element(%t), index=2
  %s1 = (bf16[1,64]{1,0}, bf16[4,64]{1,0}) fusion(%b), kind=kCustom, calls=%start
  %s2 = (bf16[1,64]{1,0}, bf16[4,64]{1,0}) fusion(%b), kind=kCustom, calls=%start
  %q = f32[8,2]{1,0} fusion(%a), kind=kCustom, calls=%scatter
  ROOT %o = (s32[], f32[8,16]{1,0}, bf16[1,64]{1,0}) tuple(%k, %a, %b)
}

ENTRY %main (a: f32[8,16], b: bf16[1,64]) -> f32[8,16] {
  %a = f32[8,16]{1,0} parameter(0)
  %b = bf16[1,64]{1,0} parameter(1)
  %zero = s32[] constant(0)
  %t0 = (s32[], f32[8,16]{1,0}, bf16[1,64]{1,0}) tuple(%zero, %a, %b)
  %w = (s32[], f32[8,16]{1,0}, bf16[1,64]{1,0}) while(%t0), condition=%cond, body=%body
  %p = f32[8,16]{1,0:S(1)} collective-permute(%a), source_target_pairs={{0,1},{1,0}}
  %m = f32[8,16]{1,0} all-reduce(%p), replica_groups=mesh['x'=2,'y'=4], d=([2]T(1,0)) {'y'}
  ROOT %out = f32[8,16]{1,0} add(%m, %m)
}
"""


def with_elements_by_number(text: str) -> str:
    """As libtpu 0.0.50 and later write it: no instruction takes a tuple apart, `%t#1` does."""
    taken = r"\n  %(\w+) = [^\n]* get-tuple-element\(%(\w+)\), index=(\d+)"

    def rewrite(computation: str) -> str:
        for name, whole, index in re.findall(taken, computation):
            computation = re.sub(rf"%{name}(?=[,)])", f"%{whole}#{index}", computation)
        return re.sub(taken, "", computation)

    return "\n}\n".join(map(rewrite, text.split("\n}\n")))


@pytest.mark.parametrize("written", [str, with_elements_by_number])
def test_a_module_s_text_is_read_by_hand_counted_bytes(written: Callable[[str], str]) -> None:
    found = module("hlo").moved(written(TEXT))
    assert found.calls == {
        "all-gather": 5, "reduce-scatter": 5, "collective-permute": 1, "all-reduce": 1
    }  # fmt: skip
    assert found.wires == {
        "all-gather": 5 * 3 * 128,  # once a round, whatever fusions it is threaded through
        "reduce-scatter": 5 * 512 * 7 / 8,
        "collective-permute": 512,
        "all-reduce": 2 * 512 * 3 / 4,
    }
