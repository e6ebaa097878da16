"""The host loop against the scan, and against everything that may interrupt it."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import random
import resource
import shutil
import signal
import time
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jcl
from jcl import data, losses, mesh, methods, models
from jcl.measures.evaluation import accuracy, evaluator
from jcl.parallel import signals
from jcl.training.fit import chunk_size

loop = importlib.import_module("jcl.training.fit")  # the name in the package is the function's
SIZES = (12, 16, 4)


def tasks(rows: tuple[int, ...] = (40, 40, 40)) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(0)
    teacher = rng.standard_normal((len(rows), SIZES[0], SIZES[-1]))
    x = [rng.standard_normal((n, SIZES[0])).astype(np.float32) for n in rows]
    return [{"x": a, "y": np.argmax(a @ w, -1)} for a, w in zip(x, teacher, strict=True)]


def stream(rows: tuple[int, ...] = (40, 40, 40), **options: Any) -> data.Stream:
    options = options or {"epochs": 3}
    return data.from_arrays(tasks(rows), tasks(rows), 8, **options)


def program(tx: Any = None, **options: Any) -> jcl.Program:
    method = jcl.chain(methods.er(capacity=20, rows=4), methods.ewc(strength=1.0))
    tx = tx or optax.adam(1e-2)
    return jcl.make(method, models.mlp.apply, losses.cross_entropy(), tx, **options)


PARAMS = models.mlp.init(jax.random.key(0), SIZES)
fit = partial(jcl.fit, params=PARAMS, key=jax.random.key(1))


def identical(a: Any, b: Any) -> bool:
    return all(
        np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


@pytest.fixture(scope="module")
def whole() -> jcl.Result:
    given = stream()
    return fit(program(), stream=given, evaluate=evaluator(given.test, accuracy()), chunk=4)


def test_it_agrees_with_run_on_the_same_leaves() -> None:
    given = stream()
    fetch = partial(given.fetch, jax.tree.map(jnp.asarray, given.source))
    leaves = jax.vmap(jax.vmap(fetch))(data.stack(given))
    score = evaluator(given.test, accuracy())
    once = jax.jit(lambda s: jcl.run(program(), PARAMS, jax.random.key(1), s, evaluate=score))
    state, aux = once(leaves)
    result = fit(program(), stream=leaves, evaluate=score, chunk=4)
    for a, b in zip(
        jax.tree.leaves(state.params), jax.tree.leaves(result.state.params), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(aux["scores"], result.scores, atol=0.03)


def test_scores_history_and_counts(whole: jcl.Result) -> None:
    assert whole.scores is not None and whole.scores.shape == (4, 3)
    assert np.isfinite(whole.scores).all()
    assert whole.scores[-1].mean() > whole.scores[0].mean() + 0.2
    assert whole.step_traces == 1
    assert [line["step"] for line in whole.history][-1] == 45
    assert int(whole.state.stage) == 3 and int(whole.state.step) == 45


def test_chunks_do_not_change_the_result(whole: jcl.Result) -> None:
    single = fit(program(), stream=stream(), chunk=1)
    for a, b in zip(
        jax.tree.leaves(single.state.params), jax.tree.leaves(whole.state.params), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def close(a: Any, b: Any) -> None:
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-5)


def test_over_a_mesh_it_is_the_same(whole: jcl.Result, tmp_path: Path) -> None:
    given = stream()
    options = {"stream": given, "evaluate": evaluator(given.test, accuracy()), "chunk": 4}
    spread = program(mesh=mesh.make(data=2, fsdp=2, tensor=2))
    with pytest.raises(Stop):
        fit(spread, out=tmp_path / "cut", on_event=stop_after(6), **options)
    result = fit(spread, **options)
    close(result.state.params, whole.state.params)
    close(result.state.methods, whole.state.methods)
    np.testing.assert_allclose(result.scores, whole.scores, atol=0.03)
    assert result.step_traces == 1
    kernel = result.state.params["dense_0"]["kernel"]
    assert kernel.addressable_shards[0].data.size * 4 == kernel.size
    # begun on eight devices it goes on on one, and on four
    for name, other in (("one", program()), ("four", program(mesh=mesh.make(fsdp=4)))):
        shutil.copytree(tmp_path / "cut", tmp_path / name)
        again = fit(other, out=tmp_path / name, resume=True, **options)
        close(again.state.params, whole.state.params)
        assert [line["step"] for line in again.history][-1] == 45


@pytest.mark.quick
def test_members_over_a_mesh_are_refused() -> None:
    with pytest.raises(ValueError, match=r"mesh is .*'fsdp': 4.* but must be None"):
        jcl.replicate(lambda seed: program(mesh=mesh.make(fsdp=4)), jnp.arange(2))


def test_tasks_of_different_length_need_one_trace() -> None:
    result = fit(program(), stream=stream((40, 23, 9), epochs=2), chunk=4)
    assert result.step_traces == 1
    assert int(result.state.step) == sum(stream((40, 23, 9), epochs=2).steps)


@pytest.mark.parametrize(
    "steps, limit, size",
    [((300, 200), 64, 50), ((7, 11), 4, 4), ((6,), 100, 6), ((97, 97), 50, 50)],
)
def test_chunk_size(steps: tuple[int, ...], limit: int, size: int) -> None:
    assert chunk_size(steps, limit) == size


class Stop(Exception):
    """What ends a run from inside."""


def stop_after(count: int) -> Any:
    seen = []

    def on_event(event: dict[str, Any]) -> None:
        seen.append(event)
        if len(seen) == count:
            raise Stop

    return on_event


@pytest.mark.parametrize("events", [1, 3, 6, 11])
def test_resumed_it_ends_identically(whole: jcl.Result, tmp_path: Path, events: int) -> None:
    given = stream()
    score = evaluator(given.test, accuracy())
    options = {"stream": given, "evaluate": score, "out": tmp_path, "chunk": 4}
    with pytest.raises(Stop):
        fit(program(), on_event=stop_after(events), checkpoint_every=8, **options)
    result = fit(program(), resume=True, **options)
    assert identical(result.state.params, whole.state.params)
    assert identical(result.state.methods, whole.state.methods)
    np.testing.assert_array_equal(result.scores, whole.scores)
    steps = [line["step"] for line in result.history]
    assert steps == sorted(set(steps)) and steps[-1] == 45


def test_ctrl_c_saves_first(whole: jcl.Result, tmp_path: Path) -> None:
    def press(event: dict[str, Any]) -> None:
        if event["kind"] == "progress" and event["step"] > 20:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        fit(program(), stream=stream(), out=tmp_path, chunk=4, on_event=press)
    assert (tmp_path / "checkpoints" / "step_000000021.json").exists()
    result = fit(program(), stream=stream(), out=tmp_path, chunk=4, resume=True)
    assert identical(result.state.params, whole.state.params)


@pytest.mark.parametrize("step", [15, 45])
@pytest.mark.parametrize("where", ["before", "after"])
def test_told_to_stop_at_a_boundary_it_ends_in_the_same_state(
    whole: jcl.Result,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    step: int,
    where: str,
) -> None:
    """The checkpoints before and after a boundary are of one step, and the later one counts."""

    def press(event: dict[str, Any]) -> None:
        if where == "before" and event.get("step") == step:
            os.kill(os.getpid(), signal.SIGTERM)

    def consolidate(run: Any, stage: int) -> None:
        given(run, stage)
        if run.done == step:
            os.kill(os.getpid(), signal.SIGTERM)

    options = {
        "stream": stream(),
        "evaluate": evaluator(stream().test, accuracy()),
        "out": tmp_path,
        "chunk": 4,
    }
    given = loop._Run.consolidate
    with monkeypatch.context() as patch, pytest.raises(signals.Preempted):
        if where == "after":
            patch.setattr(loop._Run, "consolidate", consolidate)
        fit(program(), on_event=press, **options)
    result = fit(program(), resume=True, **options)
    again = fit(program(), resume=True, **options)
    rest = {k: v for k, v in options.items() if k != "chunk"}
    last = loop.last_state(program(), PARAMS, jax.random.key(1), **rest)
    for state in (result.state, again.state, last):
        assert identical(state.params, whole.state.params)
        assert identical(state.methods, whole.state.methods)
        assert int(state.stage) == 3
    for found in (result, again):
        np.testing.assert_array_equal(found.scores, whole.scores)


@pytest.mark.parametrize("harm", ["truncated", "flipped", "missing"])
def test_a_broken_checkpoint_falls_back(whole: jcl.Result, tmp_path: Path, harm: str) -> None:
    with pytest.raises(Stop):
        fit(program(), stream=stream(), out=tmp_path, chunk=4, on_event=stop_after(10))
    newest = sorted((tmp_path / "checkpoints").glob("step_*.json"))[-1].with_suffix("")
    victim = max((p for p in newest.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    content = victim.read_bytes()
    if harm == "missing":
        victim.unlink()
    elif harm == "truncated":
        victim.write_bytes(content[: len(content) // 2])
    else:
        middle = len(content) // 2
        victim.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
    with pytest.warns(UserWarning, match="broken, falling back"):
        result = fit(program(), stream=stream(), out=tmp_path, chunk=4, resume=True)
    assert identical(result.state.params, whole.state.params)


def test_divergence_names_task_step_and_checkpoint(tmp_path: Path) -> None:
    wild = program(optax.sgd(optax.piecewise_constant_schedule(1e-3, {20: 1e30})))
    with pytest.raises(jcl.Diverged, match=r"stage 1 \('task 1'\) at step 2\d; .*: step 15"):
        fit(wild, stream=stream(), out=tmp_path, chunk=4)
    assert [p.stem for p in (tmp_path / "checkpoints").glob("*.json")] == ["step_000000015"]


def test_a_member_that_diverges_takes_no_other_along(tmp_path: Path) -> None:
    """The others are as in a run without it, and the log says who it was, when, also afterwards."""
    rates = jnp.asarray([1e-2, 1e30, 2e-2])

    def members(which: list[int]) -> tuple[Any, dict[str, Any]]:
        made = jcl.replicate(lambda rate: program(optax.sgd(rate)), rates[jnp.array(which)], "map")
        one = stream()
        many = {
            "params": jax.tree.map(lambda x: jnp.stack([x] * len(which)), PARAMS),
            "key": jnp.stack([jax.random.key(1)] * len(which)),
            "stream": data.members([one] * len(which)),
            "evaluate": evaluator(one.test, accuracy()),
        }
        return made, many

    made, many = members([0, 1, 2])
    events: list[dict[str, Any]] = []
    found = jcl.fit(made, **many, out=tmp_path, chunk=4, on_event=events.append)
    other, two = members([0, 2])
    wanted = jcl.fit(other, **two, chunk=4)
    kept = jax.tree.map(lambda x: x[jnp.array([0, 2])], found.state.params)
    assert identical(kept, wanted.state.params)
    assert found.scores is not None and wanted.scores is not None
    np.testing.assert_array_equal(found.scores[[0, 2]], wanted.scores)
    assert np.isnan(found.scores[1, 1:]).all() and np.isfinite(found.scores[1, 0]).all()
    assert list(found.diverged) == [1] and 1 <= found.diverged[1] <= 4
    told = [event for event in events if event["kind"] == "diverged"]
    assert told == [{"kind": "diverged", "member": 1, "step": found.diverged[1]}]
    assert all(line["losses"][1] is None and np.isfinite(line["loss"]) for line in found.history)
    again = jcl.fit(made, **many, out=tmp_path, chunk=4, resume=True)
    assert again.diverged == found.diverged
    np.testing.assert_array_equal(again.scores, found.scores)


def test_if_all_members_diverge_the_run_does() -> None:
    made = jcl.replicate(lambda rate: program(optax.sgd(rate)), jnp.asarray([1e30, 2e30]), "map")
    params = jax.tree.map(lambda x: jnp.stack([x, x]), PARAMS)
    keys = jnp.stack([jax.random.key(1)] * 2)
    with pytest.raises(jcl.Diverged, match=r"stage 0 .* last good checkpoint: there is none"):
        jcl.fit(made, params, keys, data.members([stream()] * 2), chunk=4)


def test_a_full_disk_is_one_sentence_and_keeps_what_was_there(tmp_path: Path) -> None:
    def fill(event: dict[str, Any]) -> None:
        if event["kind"] == "progress" and event["step"] > 20:
            while not whole.exists():  # it is written while training goes on
                time.sleep(0.01)
            resource.setrlimit(resource.RLIMIT_FSIZE, (200, resource.RLIM_INFINITY))

    whole = tmp_path / "checkpoints" / "step_000000015.json"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        with pytest.raises(OSError, match="can't"):
            fit(program(), stream=stream(), out=tmp_path, chunk=4, on_event=fill)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert whole.exists()


@pytest.mark.quick
def test_bad_input_is_refused_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"out": tmp_path / "file"}, "is a file"),
        ({"out": tmp_path / "run"}, "holds a run already"),
        ({"out": Path("/proc/nothing")}, "can't be written"),
        ({"resume": True}, "out must name"),
        ({"chunk": 0}, "chunk is 0"),
        ({"checkpoint_every": 0}, "checkpoint_every is 0"),
        ({"stream": stream()._replace(members=3)}, "3 members"),
    ]
    for options, sentence in wrong:
        with pytest.raises(ValueError, match=sentence):
            fit(program(), **{"stream": stream(), **options})


def test_another_methods_checkpoint_is_refused(tmp_path: Path) -> None:
    fit(program(), stream=stream(), out=tmp_path, chunk=4)
    other = jcl.make(methods.si(), models.mlp.apply, losses.cross_entropy(), optax.adam(1e-2))
    with pytest.raises(ValueError, match="of another method or model"):
        fit(other, stream=stream(), out=tmp_path, chunk=4, resume=True)


def go_on(folder: Path) -> None:
    """A long run, from where it stands; in a process of its own."""
    jax.config.update("jax_compilation_cache_dir", str(folder.parent / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    result = fit(
        program(), stream=stream(steps=600), out=folder, resume=True, chunk=10, checkpoint_every=20
    )
    np.savez(folder / "params.npz", *jax.tree.leaves(result.state.params))


def test_parameters_that_lie_on_a_mesh_stay_there(whole: jcl.Result, tmp_path: Path) -> None:
    """Also where the program has none."""
    layout = mesh.Layout(mesh.make(fsdp=4))
    spread = jax.device_put(PARAMS, mesh.of_params(PARAMS, layout))
    for resume in (False, True):
        found = fit(program(), params=spread, stream=stream(), chunk=4, out=tmp_path, resume=resume)
        close(found.state.params, whole.state.params)
        for before, after in zip(*map(jax.tree.leaves, (spread, found.state.params)), strict=True):
            assert after.sharding.is_equivalent_to(before.sharding, before.ndim)


def test_what_was_put_nowhere_may_go_anywhere(whole: jcl.Result) -> None:
    """Such as among the members of other runs, on several devices."""
    assert not any(leaf.committed for leaf in jax.tree.leaves(whole.state))


@pytest.mark.slow
@pytest.mark.xdist_group("kill")
def test_killed_eight_times_it_ends_identically(tmp_path: Path) -> None:
    one, two = tmp_path / "whole", tmp_path / "killed"
    forks = multiprocessing.get_context("forkserver")  # which has imported the library already
    forks.set_forkserver_preload(["jcl", "orbax.checkpoint"])

    def start(folder: Path) -> Any:
        process = forks.Process(target=go_on, args=(folder,))
        process.start()
        return process

    def finish(folder: Path) -> list[np.ndarray]:
        process = start(folder)
        process.join()
        assert process.exitcode == 0
        saved = np.load(folder / "params.npz")
        return [saved[name] for name in saved.files]

    def logged() -> int:
        log = two / "metrics.jsonl"
        return log.stat().st_size if log.exists() else 0

    chance = random.Random(0)
    for _ in range(8):
        before, process = logged(), start(two)
        while logged() == before and process.is_alive():
            time.sleep(0.002)  # until it trains, or has cut its log back to the last checkpoint
        time.sleep(chance.uniform(0.0, 0.25))
        assert process.is_alive(), "the run ended before it had been killed"
        process.kill()
        process.join()
    assert identical(finish(one), finish(two))


def parts(whole: data.Stream, stages: slice) -> data.Stream:
    """Some of a stream's stages, as a stream."""
    first = stages.start or 0
    return whole._replace(
        names=whole.names[stages],
        tasks=whole.tasks[stages],
        steps=whole.steps[stages],
        chunk=lambda stage, start, stop: whole.chunk(first + stage, start, stop),
        boundary=lambda stage: whole.boundary(first + stage),
    )


def test_carried_states_go_on_as_if_it_were_one_stream(tmp_path: Path) -> None:
    given, method = stream(), program().method
    reset = jcl.make(
        method, models.mlp.apply, losses.cross_entropy(), optax.adam(1e-2), boundary="reset"
    )
    expected = fit(reset, stream=given, chunk=4)
    first = fit(reset, stream=parts(given, slice(0, 2)), chunk=4)
    rest = partial(
        jcl.fit, reset, first.state.params, jax.random.key(1), parts(given, slice(2, 3)),
        carried=first.state, chunk=4, out=tmp_path, checkpoint_every=4,
    )  # fmt: skip
    second = rest()
    assert identical(second.state._replace(key=()), expected.state._replace(key=()))
    assert [line["step"] for line in second.history][-1] == given.steps[2]
    # from a checkpoint in mid-stage too
    newest = max((tmp_path / "checkpoints").glob("step_*.json"))
    newest.unlink()
    assert identical(rest(resume=True).state._replace(key=()), expected.state._replace(key=()))


def test_states_of_other_methods_are_not_carried() -> None:
    other = jcl.make(methods.ewc(), models.mlp.apply, losses.cross_entropy(), optax.sgd(0.1))
    done = fit(other, stream=parts(stream(), slice(0, 1)))
    with pytest.raises(ValueError, match="carried has None at 'er/buffer"):
        fit(program(), stream=stream(), carried=done.state._replace(params=PARAMS))
    with pytest.raises(ValueError, match="params at 'dense_0/bias' are not those of carried"):
        fit(other, stream=stream(), carried=done.state)
