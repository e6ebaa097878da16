"""Readers over tiny folders in the layouts of the packages, and the counts of the real ones."""

import json
import re

import pytest

from jcl.data import corpora
from jcl.data.corpora import Address, Labelled


@pytest.mark.quick
def test_addresses_come_in_order_and_by_eras(tmp_path):
    for year, name in ((1961, "john_f"), (1790, "george_w"), (1953, "harry"), (1953, "dwight")):
        facts = {"year": year, "name": name, "party": "none", "text": f"of {year}"}
        (tmp_path / f"{year}_{name}_n.json").write_text(json.dumps(facts))
    (tmp_path / "fetched.json").write_text("{}")
    found = corpora.state_of_the_union(tmp_path)
    assert [a.president for a in found] == ["george_w", "dwight", "harry", "john_f"]
    assert found[0] == Address(1790, "george_w", "none", "of 1790")
    eras = corpora.eras(found, [(1790, 1952), (1953, 1961)])
    assert {k: len(v) for k, v in eras.items()} == {"1790-1952": 1, "1953-1961": 3}
    with pytest.raises(ValueError, match=r"years is \(1800, 1900\), but must be a range with"):
        corpora.eras(found, [(1800, 1900)])


@pytest.mark.quick
@pytest.mark.parametrize(
    ("read", "stem"), [(corpora.newsgroups, "20newsgroups"), (corpora.r8, "reuters-r8")]
)
def test_tab_files_have_three_lines_of_header(tmp_path, read, stem):
    text = 'Category\tText\nd\tstring\nclass\t\n\nearn\tprofit "up\tagain\nacq\tit\u2028buys\n'
    (tmp_path / f"{stem}-train.tab").write_text(text)
    rows = read("train", tmp_path)
    assert rows == [Labelled('profit "up\tagain', "earn"), Labelled("it\u2028buys", "acq")]
    with pytest.raises(ValueError, match="split is 'dev', but must be 'train' or 'test'"):
        read("dev", tmp_path)


@pytest.mark.quick
def test_mails_are_decoded_and_without_headers(tmp_path):
    mails = {
        "spam-1/a": "From x@y\nSubject: Win\nContent-Transfer-Encoding: quoted-printable\n"
        "Content-Type: text/plain; charset=utf-8\n\ncaf=C3=A9 =3D=\n cheap",
        "easy-ham-1/b": "Subject: Re: hello\nX-Server: secret\n\nplain = as it is\n",
        "spam-2/c": 'Subject: two\nContent-Type: multipart/mixed; boundary="B"\n\n--B\n'
        "Content-Type: image/png\n\nxxxx\n--B\nContent-Type: text/html; charset=nonsense\n"
        "Content-Transfer-Encoding: base64\n\nPGI+aGk8L2I+\n--B--\n",
    }
    for name, text in mails.items():
        (tmp_path / name).parent.mkdir()
        (tmp_path / f"{name}.json").write_text(json.dumps({"text": text}))
    assert corpora.spam_assassin(tmp_path) == [
        Labelled("Re: hello\n\nplain = as it is", "ham"),
        Labelled("Win\n\ncafé = cheap", "spam"),
        Labelled("two\n\n<b>hi</b>", "spam"),
    ]


@pytest.mark.quick
def test_ratings_are_signs(tmp_path):
    lines = "1\t2.5\tI love\tit\r\n2\t-0.1\tmeh\r\n3\t0.0\tfacts\r\n"
    (tmp_path / "tweets_GroundTruth.txt").write_bytes(lines.encode())
    rows = corpora.sentiment("tweets", tmp_path)
    assert rows == [Labelled("I love\tit", "positive"), Labelled("meh", "negative")]
    with pytest.raises(ValueError, match="domain is 'blogs', but must be one of"):
        corpora.sentiment("blogs", tmp_path)


@pytest.mark.quick
def test_countries_may_lack_facts(tmp_path):
    facts = {"name": "France", "capital": "Paris", "region": "Europe", "subregion": "West",
             "demonym": "French", "currencies": ["EUR"], "languages": ["fr"]}  # fmt: skip
    (tmp_path / "b.json").write_text(json.dumps(facts))
    bare = {"name": "Antarctica", "capital": "", "region": "", "subregion": "", "languages": None}
    (tmp_path / "a.json").write_text(json.dumps(bare))
    (tmp_path / "fetched.json").write_text('{"name": "countries"}')
    first, second = corpora.countries(tmp_path)
    assert first == corpora.Country("Antarctica", "", "", "", "", (), ())
    assert second == corpora.Country(
        "France", "Paris", "Europe", "West", "French", ("EUR",), ("fr",)
    )


@pytest.mark.quick
def test_documentation_is_by_path(tmp_path):
    (tmp_path / "ref").mkdir()
    (tmp_path / "ref" / "x.txt").write_text("X")
    (tmp_path / "index.txt").write_text("I")
    pages = corpora.django_docs("3.2", tmp_path)
    assert pages == [corpora.Page("index.txt", "I"), corpora.Page("ref/x.txt", "X")]


@pytest.mark.quick
def test_the_handbook_is_text_from_the_first_title_on(tmp_path):
    (tmp_path / "fr-FR").mkdir()
    html = '<head><title>t</title></head><ul>Prev</ul><div class="titlepage"><h2>3.1&#160;Où</h2>'
    (tmp_path / "fr-FR" / "p.html").write_text(f"{html}\n\t<p>Un <b>mot</b>\n\n &amp; deux</p>")
    assert corpora.handbook("fr-FR", tmp_path) == [
        corpora.Page("p.html", "3.1\xa0Où\nUn mot\n& deux")
    ]
    with pytest.raises(ValueError, match=r"language is 'xx', but must be one of \['fr-FR'\]"):
        corpora.handbook("xx", tmp_path)


@pytest.mark.quick
def test_glosses_conversations_and_questions(tmp_path):
    for name in ("data.noun", "data.verb", "data.adj", "data.adv"):
        (tmp_path / name).write_text('  1 licence\n00001740 05 n 01 cat 0 | a pet; "a | b"  \n')
    assert corpora.glosses(tmp_path)[0] == Labelled('a pet; "a | b"', "05")
    (tmp_path / "ai.yml").write_text("categories:\n- ai\nconversations:\n- - What?\n  - 42\n")
    assert corpora.conversations(tmp_path) == [corpora.Conversation("ai", ("What?", "42"))]
    (tmp_path / "NQ-open").mkdir()
    row = json.dumps({"question": "who", "answer": ["me", "I"], "def_correct_predictions": []})
    (tmp_path / "NQ-open" / "combined.jsonl").write_text(row + "\n")
    assert corpora.natural_questions(tmp_path) == [corpora.Question("who", ("me", "I"))]


@pytest.mark.quick
def test_a_rows_side_depends_on_its_text_alone():
    rows = [Labelled(f"text {i % 900}", "x") for i in range(1000)]
    train, test = corpora.held_out(rows, 0.3)
    assert sorted(train + test) == sorted(rows)
    assert not {r.text for r in train} & {r.text for r in test}
    assert 0.25 < len(test) / 1000 < 0.35
    assert corpora.held_out(rows[500:], 0.3)[1] == [r for r in rows[500:] if r in set(test)]
    with pytest.raises(ValueError, match=r"share is 1\.5"):
        corpora.held_out(rows, 1.5)


@pytest.mark.network
def test_the_real_counts():
    assert len(corpora.state_of_the_union()) == 233
    assert len(corpora.eras(corpora.state_of_the_union())) == 5
    for read, sizes, classes in (
        (corpora.newsgroups, (11293, 7528), 20), (corpora.r8, (5485, 2189), 8)
    ):  # fmt: skip
        splits = [read(split) for split in ("train", "test")]
        assert tuple(map(len, splits)) == sizes
        assert all(len({row.label for row in rows}) == classes for rows in splits)
    mails = corpora.spam_assassin()
    assert sum(m.label == "spam" for m in mails) == 1896 and len(mails) == 6046
    assert not any(re.search(r"^Received: ", m.text[:200]) for m in mails)
    sizes = {d: len(corpora.sentiment(d)) for d in corpora.SENTIMENT_DOMAINS}
    assert sizes == {"tweets": 4196, "reviews": 3610, "films": 10568, "news": 4946}
    places = {c.name: c for c in corpora.countries()}
    assert places["France"].capital == "Paris" and len(corpora.countries()) == 254
    docs = [corpora.django_docs(v) for v in ("1.11", "2.2", "3.2", "4.2")]
    assert [len(pages) for pages in docs] == [415, 474, 537, 587]
    # the archives from 2.2 on have one more .txt: a font's licence, in a folder of the theme's
    assert not any(page.path.startswith("_") for pages in docs for page in pages)
    assert len(corpora.handbook("ja-JP")) == 127
    glosses = corpora.glosses()
    assert len(glosses) == 117_791 and len({g.label for g in glosses}) == 45
    talks = corpora.conversations()
    assert len(talks) == 2026 and len({t.topic for t in talks}) == 21
    assert len(corpora.natural_questions()) == 3569
