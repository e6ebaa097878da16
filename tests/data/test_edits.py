"""Readers of zsRE and CounterFact over tiny files, and edits made of hand-made countries."""

import json

import pytest

from jcl.data import edits
from jcl.data.corpora import Country
from jcl.data.edits import Edit

ZSRE = {
    "subject": "Lima",
    "src": "What is the twin city of Lima?",
    "pred": "Tokyo",
    "rephrase": "Which is Lima's twin city?",
    "alt": "Bonn",
    "answers": ["Austin", "Beijing"],
    "loc": "nq question: who sang it",
    "loc_ans": "Ann",
    "cond": "Tokyo >> Bonn || What is the twin city of Lima?",
}
COUNTERFACT = {
    "case_id": 0,
    "requested_rewrite": {
        "prompt": "The mother tongue of {} is",
        "relation_id": "P103",
        "target_new": {"str": "English", "id": "Q1860"},
        "target_true": {"str": "French", "id": "Q150"},
        "subject": "Danielle Darrieux",
    },
    "paraphrase_prompts": ["Shayna. Danielle Darrieux, a native", "Danielle Darrieux spoke"],
    "neighborhood_prompts": ["The mother tongue of Léon Blum is"],
    "attribute_prompts": ["Ann spoke"],
    "generation_prompts": ["Danielle Darrieux was born in"],
}


def written(folder, entries):
    path = folder / "edits.json"
    path.write_text(json.dumps(entries))
    return path


@pytest.mark.quick
def test_zsre(tmp_path):
    hop = {"portability": {"New Question": "Who rules Lima's twin city?", "New Answer": "Eva"}}
    path = written(tmp_path, [ZSRE, {**ZSRE, "alt": ""}, {**ZSRE, **hop}])
    first, second = edits.read_zsre(path)
    assert first == Edit(
        prompt="What is the twin city of Lima?",
        subject="Lima",
        target="Bonn",
        truth="Austin",
        paraphrases=("Which is Lima's twin city?",),
        neighbours=(("nq question: who sang it", "Ann"),),
    )
    assert second == first._replace(hops=(("Who rules Lima's twin city?", "Eva"),))
    taught = edits.read_zsre(path, new="answers")  # the true answer, which an empty alt leaves
    assert [(e.target, e.truth) for e in taught] == [("Austin", "")] * 3


@pytest.mark.quick
def test_counterfact(tmp_path):
    assert edits.read_counterfact(written(tmp_path, [COUNTERFACT])) == [
        Edit(
            prompt="The mother tongue of Danielle Darrieux is",
            subject="Danielle Darrieux",
            target="English",
            truth="French",
            paraphrases=("Shayna. Danielle Darrieux, a native", "Danielle Darrieux spoke"),
            neighbours=(("The mother tongue of Léon Blum is", "French"),),
        )
    ]


def without(entry, *keys):
    entry = json.loads(json.dumps(entry))
    inner = entry
    for key in keys[:-1]:
        inner = inner[key]
    del inner[keys[-1]]
    return entry


def changed(entry, value, *keys):
    entry = json.loads(json.dumps(entry))
    inner = entry
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = value
    return entry


@pytest.mark.quick
@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (without(ZSRE, "loc_ans"), "loc_ans is missing, but must be there"),
        (changed(ZSRE, [], "answers"), "answers.0 is missing, but must be there"),
        (changed(ZSRE, 3, "rephrase"), "rephrase is 3, but must be a text"),
        (changed(ZSRE, "Oslo", "subject"), "subject is 'Oslo', but must be a part of 'What is the"),
        (changed(ZSRE, {}, "portability"), "portability.New Question is missing"),
        ("Lima", 'it is "Lima", but must be an object'),
    ],
)
def test_a_bad_entry_of_zsre_is_named(tmp_path, bad, message):
    path = written(tmp_path, [ZSRE, bad])
    with pytest.raises(ValueError, match="entry 1") as error:
        edits.read_zsre(path)
    assert str(path) in str(error.value) and message in str(error.value)


@pytest.mark.quick
@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (
            without(COUNTERFACT, "requested_rewrite", "target_new", "str"),
            "requested_rewrite.target_new.str is missing, but must be there",
        ),
        (
            changed(COUNTERFACT, "He is", "requested_rewrite", "prompt"),
            "requested_rewrite.prompt is 'He is', but must be a text with one {}",
        ),
        (changed(COUNTERFACT, ["a", ""], "paraphrase_prompts"), 'paraphrase_prompts.1 is ""'),
        (
            changed(COUNTERFACT, "a", "neighborhood_prompts"),
            'neighborhood_prompts is "a", but must be a list of texts',
        ),
        (
            changed(COUNTERFACT, "a", "requested_rewrite"),
            'requested_rewrite is "a", but must be an object',
        ),
    ],
)
def test_a_bad_entry_of_counterfact_is_named(tmp_path, bad, message):
    path = written(tmp_path, [bad])
    with pytest.raises(ValueError, match="entry 0") as error:
        edits.read_counterfact(path)
    assert str(path) in str(error.value) and message in str(error.value)


@pytest.mark.quick
def test_what_is_no_list_of_entries_is_refused_by_file_and_line(tmp_path):
    path = tmp_path / "edits.json"
    path.write_text('[\n{"a": 1},\n{"b"}\n]')
    with pytest.raises(ValueError, match=r"edits.json: line 3 is no JSON"):
        edits.read_zsre(path)
    path.write_text("{}")
    with pytest.raises(ValueError, match=r"holds a dict, but must hold a list of entries"):
        edits.read_counterfact(path)
    path.write_bytes(b"[\xff]")
    with pytest.raises(ValueError, match=r"is no UTF-8: invalid start byte at byte 1"):
        edits.read_zsre(path)
    with pytest.raises(ValueError, match=r"none.json can't be read: No such file"):
        edits.read_zsre(tmp_path / "none.json")
    with pytest.raises(ValueError, match="new is 'pred', but must be 'alt' or 'answers'"):
        edits.read_zsre(path, new="pred")


def place(i: int) -> Country:
    """Capitals and demonyms of their own; one currency to two countries, one language to three."""
    codes, tongues = sorted(edits.CURRENCIES), sorted(edits.LANGUAGES)
    return Country(
        f"Land{i:02}",
        f"City{i:02}",
        "",
        f"Region{i % 5}",
        f"Landish{i:02}",
        (codes[i // 2],),
        (tongues[i // 3],),
    )


PLACES = [place(i) for i in range(90)]


def truths(relation):
    """Prompt to everything that is true."""
    asked = edits._RELATIONS[relation]
    return {asked.prompt.format(edits._subject(relation, c)): asked.answers(c) for c in PLACES}


@pytest.mark.quick
def test_countries_give_an_edit_for_each_country_that_is_dealt_to_be_edited():
    made = edits.countries(0, edits.RELATIONS, facts=PLACES)
    assert len(made) == len({e.prompt for e in made}) == 6 * (90 - 24 - 36)
    everything = {k: v for name in edits.RELATIONS for k, v in truths(name).items()}
    asked = {e.prompt for e in made}
    for edit in made:
        assert edit.subject in edit.prompt
        assert edit.truth == everything[edit.prompt][0]
        assert edit.target not in everything[edit.prompt]  # it's counterfactual
        form = edit.prompt.replace(edit.subject, "")
        assert len(edit.neighbours) == len(set(edit.neighbours)) == 2
        for prompt, answer in edit.neighbours:  # and its neighbours are true, and stay so
            assert prompt in everything and prompt not in asked and len(prompt) == len(edit.prompt)
            assert set(form.split()) <= set(prompt.split())  # the same is asked
            assert everything[prompt][0] == answer != edit.target
        assert len(edit.paraphrases) == 2 and all(edit.subject in p for p in edit.paraphrases)


@pytest.mark.quick
def test_new_answers_are_of_the_same_kind_and_hops_follow_from_them():
    owner = {f"City{i:02}": f"Land{i:02}" for i in range(90)}
    for edit in edits.countries(3, ["capital"], facts=PLACES):
        alias, inverse = edit.hops
        assert alias == (f"The {edit.subject.replace('Land', 'Landish')} capital is", edit.target)
        assert inverse == (
            f"The capital of {edit.subject} is a city in the country of",
            owner[edit.target],
        )
    for edit in edits.countries(3, ["currency"], facts=PLACES):
        assert edit.target in edits.CURRENCIES.values()
        assert len(edit.hops) == 1  # two countries pay with it, so the inverse has two answers


@pytest.mark.quick
def test_a_seed_is_a_draw_and_an_order():
    one, again, other = (edits.countries(s, facts=PLACES) for s in (1, 1, 2))
    assert one == again != other
    assert {e.prompt for e in one} != {e.prompt for e in other}


@pytest.mark.quick
def test_odd_names_are_left_out():
    odd = [
        PLACES[0]._replace(name="Virgin Islands, U.S."),
        PLACES[1]._replace(name="Land02"),  # there already
        PLACES[2]._replace(name="Nowhere", capital="", currencies=(), languages=()),
        PLACES[3]._replace(name="Vatican City State", capital=["Vatican City"]),  # as the source is
    ]
    prompts = {e.prompt for e in edits.countries(0, facts=PLACES + odd)}
    assert not [p for p in prompts if "Virgin" in p or "Nowhere" in p or "capital of Vatican" in p]


@pytest.mark.quick
def test_bad_arguments_are_refused_by_name():
    with pytest.raises(ValueError, match="relation is 'anthem', but must be one of"):
        edits.countries(0, ["anthem"], facts=PLACES)
    with pytest.raises(ValueError, match="countries is 9, but must be at least 61"):
        edits.countries(0, facts=PLACES[:9])
    with pytest.raises(ValueError, match="neighbours is -1, but must be at least 0"):
        edits.countries(0, neighbours=-1, facts=PLACES)


@pytest.mark.network
def test_the_real_countries_give_as_many_edits_as_said():
    for seed in range(3):
        assert 500 < len(edits.countries(seed)) < 560
        assert len(edits.countries(seed, edits.RELATIONS)) >= 1000
