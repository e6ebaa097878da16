"""Self-synthesised rehearsal with scripted models, and k-means against scikit-learn's."""

import numpy as np
import pytest

from jcl.data.rehearsal import representative, synthesise

pytestmark = pytest.mark.quick

DEMONSTRATIONS = [(f"Add. {i}+1\nSum:", f" {i + 1}") for i in range(6)]


def features(texts):
    return np.array([[len(t), t.count("7"), 1.0] for t in texts])


def run(seed=0, writes=lambda i: f"{i}+2\nSum: 9\n\nAdd. 3", **options):
    seen = {"contexts": [], "asked": []}

    def write(contexts):
        seen["contexts"] += contexts
        return [writes(i) for i in range(len(contexts))]

    def answer(prompts):
        seen["asked"] += prompts
        return [f" {p}!" for p in prompts]

    options = {"number": 4, "start": "Add. ", "cue": "\nSum:", "clusters": 2} | options
    return synthesise(write, answer, DEMONSTRATIONS, features, seed=seed, **options), seen


def test_what_is_written_up_to_the_cue_is_answered_by_the_latest() -> None:
    found, seen = run(number=16, tries=10)
    assert found.documents == [
        (f"Add. {i}+2\nSum:", f" Add. {i}+2\nSum:!") for i in range(10)
    ]  # not the base model's own answer, 9, nor what it wrote after that
    assert (found.tried, found.usable) == (10, 10) and len(seen["asked"]) == 10


def test_contexts_are_two_distinct_demonstrations_and_a_beginning() -> None:
    _, seen = run(tries=50)
    pieces = [context.split("\n\n") for context in seen["contexts"]]
    known = {"".join(d) for d in DEMONSTRATIONS}
    assert all(len(p) == 3 and p[2] == "Add. " and p[0] != p[1] for p in pieces)
    assert {p[0] for p in pieces} == known and {p[1] for p in pieces} == known


def test_what_is_no_new_instruction_is_dropped() -> None:
    script = ["7+7", "3+1\nSum: 4", "  \nSum:", "8+8\nSum:", "8+8\nSum: 1", "9+9\nSum:"]
    found, _ = run(writes=lambda i: script[i], tries=6)
    assert [p for p, _ in found.documents] == ["Add. 8+8\nSum:", "Add. 9+9\nSum:"]
    assert (found.tried, found.usable) == (6, 2)
    none, seen = run(writes=lambda i: "nothing")
    assert none == ([], 16, 0) and not seen["asked"]


def test_a_seed_decides() -> None:
    one, again, other = run(0)[1], run(0)[1], run(1)[1]
    assert one == again and one["contexts"] != other["contexts"]


def test_each_cluster_gives_its_share_of_what_is_nearest_its_centre() -> None:
    rng = np.random.default_rng(0)
    angle = np.concatenate([rng.normal(0.0, 0.05, 30), rng.normal(1.5, 0.05, 10)])
    scale = rng.uniform(1, 9, 40)  # which scaling to length 1 undoes
    x = np.stack([np.cos(angle), np.sin(angle)], axis=1) * scale[:, None]
    chosen = representative(x, 8, 2)
    assert (chosen < 30).sum() == 6 and (chosen >= 30).sum() == 2
    from sklearn.cluster import KMeans

    unit = x / scale[:, None]
    model = KMeans(2, n_init=5, random_state=0).fit(unit)
    near = np.linalg.norm(unit - model.cluster_centers_[model.labels_], axis=1)
    best = [*np.argsort(near[:30])[:6], *(30 + np.argsort(near[30:])[:2])]
    assert sorted(best) == chosen.tolist()


def test_few_or_equal_rows_are_no_trouble() -> None:
    assert representative(np.ones((3, 2)), 5, 20).tolist() == [0, 1, 2]
    assert len(representative(np.ones((9, 2)), 4, 3)) == 4


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"shots": 7}, "shots is 7"),
        ({"number": 0}, "number is 0"),
        ({"start": "Subtract. "}, "demonstration is 'Add"),
        ({"cue": "\nAnswer:"}, "demonstration is 'Add"),
        ({"clusters": 0}, "clusters is 0"),
    ],
)
def test_bad_arguments_are_named(change, words) -> None:
    with pytest.raises(ValueError, match=words):
        run(**change)
