"""Scenarios, against what each promises about which rows come when."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import ndimage

import jcl
from jcl import data, evaluation, losses, methods

RNG = np.random.default_rng(0)


def labelled(per_class=6, classes=6):
    y = np.tile(np.arange(classes), per_class)
    return {"x": np.arange(len(y), dtype=np.float32)[:, None] + np.zeros(4), "y": y}


def batches(scenario, stage=0, **given):
    """All real rows of a stage in the order in which they come."""
    given = {"batch": 5, "epochs": 1, **given}
    s = data.from_scenario(scenario, **given)
    got = s.fetch(s.source, s.chunk(stage, 0, s.steps[stage]))
    real = np.asarray(got["weight"]).reshape(-1) > 0
    return {k: np.asarray(v).reshape(-1, *v.shape[2:])[real] for k, v in got.items()}


def test_split_by_class():
    split = data.split(labelled(), labelled(3), tasks=3)
    assert split.names == ("0/1", "2/3", "4/5")
    assert split.classes is not None
    np.testing.assert_array_equal(split.classes, np.repeat(np.eye(3, dtype=bool), 2, axis=1))
    for stage in range(3):
        rows = batches(split, stage)
        assert set(rows["y"]) == {2 * stage, 2 * stage + 1}
        assert (rows["task"] == stage).all() and len(rows["y"]) == 12
        assert set(split.test[stage]["y"]) == {2 * stage, 2 * stage + 1}


@pytest.mark.quick
def test_split_with_a_label_within_the_task():
    split = data.split(labelled(), labelled(), tasks=[[5, 1], [0, 3]], view="domain")
    rows = batches(split, 0)
    original = labelled()["y"][rows["x"][:, 0].astype(int)]
    np.testing.assert_array_equal(rows["y"], np.where(original == 5, 0, 1))
    assert split.classes is not None and split.classes.shape == (2, 2) and split.classes.all()


@pytest.mark.quick
def test_uneven_groups_and_one_class_a_task():
    split = data.split(labelled(), labelled(), tasks=[[0], [1, 2, 3]])
    assert [len(s) for s in split.stages] == [6, 18]
    assert split.classes is not None and split.classes.shape == (2, 4)


def test_by_domain():
    given = {**labelled(), "domain": np.tile([7, 3], 18)}
    scenario = data.by_domain(given, given)
    assert scenario.names == ("3", "7")
    assert set(scenario.rows) == {"x", "y", "task"}
    assert (batches(scenario, 0)["x"][:, 0] % 2 == 1).all()


def test_permuted_tasks_are_permutations_of_one_copy():
    given = {"x": RNG.normal(size=(20, 2, 3)).astype(np.float32), "y": np.arange(20) % 2}
    scenario = data.permuted(given, given, tasks=5, seed=1)
    assert scenario.rows["x"].shape == (20, 2, 3) and len(scenario.rows["task"]) == 100
    orders = scenario.tables["source"][..., 0]
    np.testing.assert_array_equal(orders[0], np.arange(6))
    assert len({tuple(o) for o in orders}) == 5
    by_pixels = {tuple(np.sort(x.ravel())): x.ravel() for x in given["x"]}
    for stage in range(5):
        rows = batches(scenario, stage)
        assert (rows["task"] == stage).all() and len(rows["x"]) == 20
        for x in rows["x"]:
            np.testing.assert_array_equal(
                x.ravel(), by_pixels[tuple(np.sort(x.ravel()))][orders[stage]]
            )
        flat = given["x"].reshape(20, 6)[:, orders[stage]].reshape(20, 2, 3)
        np.testing.assert_array_equal(scenario.test[stage]["x"], flat)


@pytest.mark.quick
@pytest.mark.parametrize("degrees", [0, 30, 45, 90, 180, 270, 12.5, -60])
def test_rotation_is_scipy_s_bilinear_one(degrees):
    image = RNG.normal(size=(9, 9))
    source, weight = data.rotation(9, degrees)
    mine = (image.ravel()[source] * weight).sum(-1).reshape(9, 9)
    # grid-constant interpolates with the zeros outside, as ours does
    theirs = ndimage.rotate(image, degrees, reshape=False, order=1, mode="grid-constant")
    np.testing.assert_allclose(mine, theirs, atol=1e-5)


def test_rotated_images_are_the_same_in_training_and_test():
    given = {"x": RNG.uniform(size=(10, 16)).astype(np.float32), "y": np.arange(10)}
    scenario = data.rotated(given, given, angles=(0, 90, 33))
    for stage in range(3):
        rows = batches(scenario, stage)
        order = np.argsort(rows["y"])
        np.testing.assert_allclose(rows["x"][order], scenario.test[stage]["x"], atol=1e-6)
    np.testing.assert_allclose(
        scenario.test[1]["x"].reshape(-1, 4, 4), np.rot90(given["x"].reshape(-1, 4, 4), axes=(1, 2))
    )
    with pytest.raises(ValueError, match="pixels of x is 15, but must be a square number"):
        data.rotated({"x": np.ones((4, 15))}, {"x": np.ones((4, 15))})


def test_pixels_that_are_integers_are_rounded_as_they_turn():
    x = RNG.integers(0, 256, (10, 16)).astype(np.uint8)
    given = {"x": x, "y": np.arange(10)}
    whole = data.rotated({**given, "x": x.astype(np.float32)}, given, angles=(33,))
    ours = data.rotated(given, given, angles=(33,))
    wanted = batches(whole, 0)
    wanted = np.rint(np.asarray(wanted["x"])[np.argsort(wanted["y"])])
    rows = batches(ours, 0)
    found = np.asarray(rows["x"])[np.argsort(rows["y"])]
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, wanted)  # cut off, half of them would be 1 too low
    np.testing.assert_array_equal(ours.test[0]["x"], wanted)


@pytest.mark.quick
def test_blurry_keeps_every_row_once_and_deals_out_the_share():
    split = data.split(labelled(20), labelled(), tasks=3)
    blurred = data.blurry(split, share=0.25, seed=2)
    together = np.sort(np.concatenate(blurred.stages))
    np.testing.assert_array_equal(together, np.arange(120))
    for stage, rows in enumerate(blurred.stages):
        counts = np.bincount(split.rows["task"][rows], minlength=3)
        assert counts[stage] == 30 and (np.delete(counts, stage) == 5).all()
    same = data.blurry(split, share=0.0)
    for a, b in zip(same.stages, split.stages, strict=True):
        np.testing.assert_array_equal(np.sort(a), b)


def shares_over_time(rows, parts, tasks):
    slices = np.array_split(rows["task"], parts)
    return np.stack([np.bincount(s, minlength=tasks) / len(s) for s in slices])


def test_online_goes_through_the_tasks_in_order_once():
    rows = batches(data.online(data.split(labelled(20), labelled(), tasks=3)))
    np.testing.assert_array_equal(rows["task"], np.repeat(np.arange(3), 40))
    assert len(set(rows["x"][:, 0])) == 120
    assert not (np.diff(rows["x"][:40, 0]) > 0).all()  # shuffled within a task


@pytest.mark.parametrize(
    ("width", "epochs", "steps"), [(1.0, 1, None), (0.5, 2, None), (1.0, None, 3000)]
)
def test_gradual_drift_is_linear(width, epochs, steps):
    given = labelled(40_000, 3)
    scenario = data.gradual(data.split(given, labelled(3, 3), tasks=3), width)
    rows = batches(scenario, batch=20, epochs=epochs, steps=steps)
    parts = 60
    # within the sequence rows are equally dense in time, so that their numbers are a clock
    measured = shares_over_time(rows, parts, 3)
    times = np.linspace(-0.5, 2.5, parts + 1)
    times = (times[1:] + times[:-1]) / 2
    middle = np.abs(times - 1) < 1  # at the ends the clock of the first and last task is warped
    ramp = np.clip((times - 0.5) / width + 0.5, 0, 1)
    # 1,000 to 4,000 rows a part: three standard deviations or more
    np.testing.assert_allclose(measured[middle][:, 0], 1 - ramp[middle], atol=0.05)
    draws = 20 * steps if steps else 120_000 * epochs
    assert len(rows["task"]) == draws
    counts = np.unique(rows["x"][:, 0], return_counts=True)[1]
    assert counts.max() - counts.min() <= (0 if epochs else 1)


@pytest.mark.quick
def test_recurring_repeats_the_rows_in_another_order():
    cyclic = data.recurring(data.split(labelled(), labelled(), tasks=2), cycles=3)
    assert cyclic.tasks == (0, 1, 0, 1, 0, 1)
    assert cyclic.names[2] == "0/1/2 (2)" and len(cyclic.tests) == 2
    first, again = batches(cyclic, 0), batches(cyclic, 2)
    np.testing.assert_array_equal(np.sort(first["x"][:, 0]), np.sort(again["x"][:, 0]))
    assert not np.array_equal(first["x"], again["x"])
    # without boundaries, a b a b: the second a comes after the first b
    rows = batches(data.online(cyclic))
    np.testing.assert_array_equal(rows["task"], np.tile(np.repeat([0, 1], 18), 3))


def test_joint_has_all_rows_and_cumulative_grows():
    split = data.split(labelled(), labelled(), tasks=3)
    all_at_once = data.joint(split)
    assert all_at_once.tasks == (-1,)
    rows = batches(all_at_once)
    assert len(rows["y"]) == 36
    assert len(set(rows["task"][:12])) > 1  # mixed, not one after another
    assert [len(s) for s in data.joint(split, cumulative=True).stages] == [12, 24, 36]


def test_a_hundred_tasks_in_one_scan():
    x = RNG.normal(size=(64, 8)).astype(np.float32)
    given = {"x": x, "y": (x @ RNG.normal(size=8) > 0).astype(np.int32)}
    s = data.from_scenario(data.permuted(given, given, tasks=120), batch=16, steps=8)
    traces = []

    def apply(params, batch):
        traces.append(1)
        return batch["x"] @ params["w"]

    program = jcl.make(methods.ewc(strength=0.01), apply, losses.cross_entropy(), optax.sgd(0.3))
    run = jax.jit(
        lambda stream, source: jcl.run(
            program, {"w": jnp.zeros((8, 2))}, jax.random.key(0), stream,
            fetch=partial(s.fetch, source),
            evaluate=evaluation.evaluator(s.test, evaluation.accuracy()),
        )
    )  # fmt: skip
    state, aux = run(data.stack(s), s.source)
    assert aux["scores"].shape == (121, 120)
    assert int(state.stage) == 120 and len(traces) < 20
    own = np.asarray(aux["scores"])[np.arange(120) + 1, np.arange(120)]
    assert own.mean() > np.asarray(aux["scores"])[0].mean() + 0.1


ONE = {"x": np.ones((4, 2)), "y": np.ones(4, int)}
TWO = labelled(2, 2)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: data.split(ONE, ONE), "number of classes in train is 1, but must be at least 2"),
        (lambda: data.split(labelled(), labelled(), 4), "tasks is 4, but must be a divisor of 6"),
        (lambda: data.split(labelled(), labelled(), [[0, 9]]), "class is 9, but must be one of"),
        (lambda: data.split(labelled(), labelled(), [[0, 1], [1]]), "share none"),
        (lambda: data.split(TWO, labelled(), 1), r"labels of test is \[2, 3, 4, 5\]"),
        (
            lambda: data.split(TWO, TWO, 2, view="task"),
            "classes a task is 1, but must be at least 2",
        ),
        (lambda: data.split(TWO, TWO, 1, view="time"), "view is 'time'"),
        (lambda: data.split({"x": np.ones(3)}, TWO, 1), "keys of train is"),
        (lambda: data.split({**TWO, "y": -TWO["y"]}, TWO, 1), "smallest label of train is -1"),
        (lambda: data.split({**TWO, "y": TWO["y"] / 2}, TWO, 1), "y of train is dtype"),
        (lambda: data.by_domain(TWO, TWO), "to have 'domain' among them"),
        (lambda: data.permuted(TWO, TWO, tasks=0), "tasks is 0, but must be at least 1"),
        (lambda: data.blurry(data.split(TWO, TWO, 2), 1.5), "share is 1.5"),
        (lambda: data.blurry(data.scenario([TWO], [TWO])), "number of stages is 1"),
        (lambda: data.recurring(data.split(TWO, TWO, 2), 0), "cycles is 0"),
        (lambda: data.gradual(data.split(TWO, TWO, 2), 2.0), "width is 2.0"),
    ],
)
def test_bad_input_is_refused_with_a_sentence(call, sentence):
    with pytest.raises(ValueError, match=sentence):
        call()


def test_reordered_tasks_keep_their_own_permutations():
    given = {"x": RNG.normal(size=(12, 6)).astype(np.float32), "y": np.arange(12)}
    order = (2, 0, 1)
    straight = data.permuted(given, given, tasks=3)
    moved = data.reorder(straight, order)
    through_stream = data.reorder(data.from_scenario(straight, 12, epochs=1), order)
    for stage, old in enumerate(order):
        expected = straight.test[old]["x"]
        rows = batches(moved, stage)
        np.testing.assert_array_equal(rows["x"][np.argsort(rows["y"])], expected)
        got = through_stream.fetch(through_stream.source, through_stream.chunk(stage, 0, 1))
        np.testing.assert_array_equal(got["x"][0][np.argsort(got["y"][0])], expected)
        assert (got["task"] == stage).all() and (rows["task"] == stage).all()
        np.testing.assert_array_equal(moved.test[stage]["x"], expected)


@pytest.mark.parametrize("kind", ["split", "permuted", "gradual"])
def test_held_out_rows_are_in_no_stage_and_are_what_a_batch_would_have(kind):
    given = {"x": RNG.normal(size=(40, 6)).astype(np.float32), "y": np.arange(40) % 4}
    made = {
        "split": lambda: data.split(given, given, tasks=2),
        "permuted": lambda: data.permuted(given, given, tasks=3),
        "gradual": lambda: data.gradual(data.split(given, given, tasks=2)),
    }[kind]()
    train, validate = data.hold_out(made, 0.25, seed=1)
    assert validate.stages is train.stages and train.test == made.test
    assert all(len(a) < len(b) for a, b in zip(train.stages, made.stages, strict=True))
    whole = data.from_scenario(made, 8, epochs=1)
    seen = np.concatenate(train.stages)
    for task, held in enumerate(validate.test):
        mine = np.flatnonzero(made.rows["task"] == task)
        left = np.setdiff1d(mine, seen)  # the rows of the task that are in no stage any more
        assert len(left) == round(0.25 * len(mine)) == len(held["x"])
        rows = {"row": left, "weight": np.ones(len(left), np.float32)}
        batch = whole.fetch(whole.source, rows)
        for key in ("x", "y", "task"):
            np.testing.assert_array_equal(held[key], batch[key])
    stream = data.from_scenario(train, 4, epochs=1)  # times, if there are any, fit the rows
    assert stream.chunk(0, 0, 2)["row"].shape == (2, 4)
