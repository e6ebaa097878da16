from dataclasses import dataclass

import pytest

from jcl.runs import plan


@dataclass(frozen=True)
class Config:
    batch: int = 32
    lr: float = 1e-3
    scenario: str = "class"


def plans(methods, *sweeps):
    return plan.plans(methods, sweeps, Config())


def test_without_a_sweep_a_method_is_a_run():
    (one, two) = plans(["naive()", "er() + ewc(1.0)"])
    assert one.points == two.points == [{}]
    assert (one.name, two.name) == ("naive()", "er() + ewc(strength=1.0)")
    assert plan.folders([one, two]) == ["naive", "er+ewc"]


def test_floats_are_traced_and_make_one_run():
    (one,) = plans(["ewc()"], "ewc.strength=0,1,10", "lr=1e-3,1e-2")
    assert [(p["ewc.strength"], p["lr"]) for p in one.points] == [
        (s, r) for s in (0.0, 1.0, 10.0) for r in (1e-3, 1e-2)
    ]
    assert one.outer == {} and one.config == Config()
    assert one.labels[2] == "ewc(strength=1) with lr=0.001"


def test_what_sets_a_shape_makes_runs_of_its_own():
    found = plans(["er(rows=4)"], "er.capacity=10,20", "batch=8,16")
    assert [p.outer for p in found] == [
        {"er.capacity": c, "batch": b} for c in (10, 20) for b in (8, 16)
    ]
    assert [p.config.batch for p in found] == [8, 16, 8, 16]
    assert found[2].calls[0].arguments == {"rows": 4, "capacity": 20}
    assert {p.family for p in found} == {"er(rows=4)"}
    assert len(set(plan.folders(found))) == 4
    assert found[0].name == "er(rows=4, capacity=10) with batch=8"


def test_strings_of_a_method_loop_outside():
    found = plans(["ewc()"], "ewc.labels=empirical,exact")
    assert [p.calls[0].arguments["labels"] for p in found] == ["empirical", "exact"]


def test_a_method_without_the_key_runs_once_as_a_reference():
    swept, reference = plans(["er() + ewc()", "naive()"], "ewc.strength=0,1")
    assert len(swept.points) == 2
    assert reference.points == [{}] and reference.outer == {}


def test_folders_are_distinct_even_for_equal_methods():
    names = plan.folders(plans(["ewc(1.0)", "ewc(2.0)", "ewc(1.0)"]))
    assert len(set(names)) == 3 and all("/" not in n and " " not in n for n in names)


@pytest.mark.quick
@pytest.mark.parametrize(
    ("sweep", "says"),
    [
        ("ewc.strength", "key=value"),
        ("ewc.strength=", "key=value"),
        ("ewc.strength=1,x", "strength is 'x', but must be a number"),
        ("ewc.strength=1,1", "a value twice"),
        ("ewc.strength=1,-1", "strength is -1"),
        ("ewc.lamda=1,2", "no argument 'lamda'"),
        ("ewk.strength=1,2", "did you mean ewc"),
        ("si.strength=1,2", "isn't run"),
        ("bath=1,2", "did you mean batch"),
        ("batch=1,2.5", "batch must be a whole number"),
        ("lr=a,b", "lr must be a number"),
    ],
)
def test_a_wrong_sweep_is_refused_before_anything_runs(sweep, says):
    with pytest.raises(ValueError, match=says):
        plans(["ewc()"], sweep)


@pytest.mark.quick
def test_two_sweeps_of_one_key_are_refused():
    with pytest.raises(ValueError, match="same key"):
        plans(["ewc()"], "lr=1,2", "lr=3,4")
