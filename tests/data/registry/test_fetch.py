"""Fetching from tiny archives through the real clients, without a network."""

import hashlib
import json
import stat
import subprocess
import sys
import zipfile
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
from tiny_archives import contents, tar

from jcl import cli
from jcl.data.registry import archives, fetch
from jcl.data.registry.archives import Source


def sha(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def wheel(folder, files, name="toy", version="1.0"):
    path = folder / f"{name}-{version}-py3-none-any.whl"
    info = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(path, "w") as z:
        for inside, text in files.items():
            z.writestr(inside, text)
        z.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        z.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        z.writestr(f"{info}/RECORD", "")
    return path


def source(client, package, archive, keep):
    return Source(client, package, sha(archive), archive.stat().st_size, "MIT", "a toy", keep)


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A folder that pip takes for the only index, and a cache of our own."""
    folder = tmp_path / "index"
    folder.mkdir()
    for name in ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("JCL_CACHE", str(tmp_path / "cache"))
    return folder


@pytest.fixture
def toy(index, monkeypatch):
    files = {"toy/data/a.txt": "A", "toy/data/deep/b.txt": "B", "toy/code.py": "raise SystemExit"}
    archive = wheel(index, {**files, "toy-1.0.dist-info/licenses/LICENSE": "free"})
    known = source("wheel", "toy==1.0", archive, r"toy/data/(.*\.txt)")
    monkeypatch.setitem(archives.SOURCES, "toy", known)
    return archive


@pytest.mark.quick
def test_a_wheel_is_unpacked_once(toy, monkeypatch, tmp_path):
    folder = fetch.fetch("toy")
    assert folder == tmp_path / "cache" / "fetched" / "toy"
    assert contents(folder) == {"a.txt", "deep/b.txt", "LICENSE", "fetched.json"}
    assert (folder / "deep" / "b.txt").read_text() == "B"
    facts = json.loads((folder / "fetched.json").read_text())
    assert facts["sha256"] == sha(toy) and facts["licence"] == "MIT"

    def never(*args, **named):
        raise AssertionError("a second call asks no client")

    monkeypatch.setattr(fetch.subprocess, "run", never)
    assert fetch.fetch("toy") == folder
    assert [p.name for p in folder.parent.iterdir()] == ["toy"]


def test_a_folder_of_another_version_is_replaced(toy, monkeypatch, index):
    folder = fetch.fetch("toy")
    (folder / "old").write_text("")
    later = wheel(index, {"toy/data/c.txt": "C"}, version="2.0")
    known = source("wheel", "toy==2.0", later, r"toy/data/(.*\.txt)")
    monkeypatch.setitem(archives.SOURCES, "toy", known)
    assert fetch.fetch("toy") == folder
    assert contents(folder) == {"c.txt", "fetched.json"}


def test_a_folder_of_other_files_of_the_same_archive_is_replaced(toy, monkeypatch):
    folder = fetch.fetch("toy")
    assert fetch.fetched("toy") == folder
    known = archives.SOURCES["toy"]
    monkeypatch.setitem(archives.SOURCES, "toy", known._replace(keep=r"toy/data/deep/(.*\.txt)"))
    assert fetch.fetched("toy") is None
    assert fetch.fetch("toy") == folder == fetch.fetched("toy")
    assert contents(folder) == {"b.txt", "LICENSE", "fetched.json"}
    # a folder of version 0.1, which didn't write its pattern down
    about = json.loads((folder / "fetched.json").read_text())
    del about["keep"]
    (folder / "fetched.json").write_text(json.dumps(about))
    (folder / "old").write_text("")
    assert [one.name for one in fetch.cached()] == ["toy"]
    assert fetch.fetch("toy") == folder and not (folder / "old").exists()


def test_a_chosen_folder_must_be_new_or_empty(toy, tmp_path):
    assert contents(fetch.fetch("toy", tmp_path / "new" / "place")) >= {"a.txt"}
    full = tmp_path / "full"
    full.mkdir()
    assert fetch.fetch("toy", full) == full  # empty, so far
    (full / "fetched.json").unlink()
    with pytest.raises(ValueError, match=r"to is '.*full', but must be a new or an empty folder"):
        fetch.fetch("toy", full)
    assert (full / "a.txt").exists()


def test_an_archive_with_another_hash_leaves_nothing(toy, monkeypatch, tmp_path):
    known = archives.SOURCES["toy"]
    monkeypatch.setitem(archives.SOURCES, "toy", known._replace(sha256="0" * 64))
    with pytest.raises(ValueError, match="isn't the archive whose sha256 is 0000"):
        fetch.fetch("toy")
    assert not list((tmp_path / "cache" / "fetched").iterdir())


def test_what_the_client_cannot_get_is_one_sentence(index, monkeypatch):
    known = Source("wheel", "nowhere==1.0", "0" * 64, 1, "MIT", "", "(.*)")
    monkeypatch.setitem(archives.SOURCES, "nowhere", known)
    with pytest.raises(ConnectionError, match="No matching distribution found for nowhere"):
        fetch.fetch("nowhere")
    monkeypatch.setitem(archives.SOURCES, "nowhere", known._replace(client="npm"))
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ConnectionError, match="nowhere is fetched with npm, which isn't installed"):
        fetch.fetch("nowhere")


@pytest.mark.parametrize("declared", [True, False])
def test_a_source_archive_comes_without_its_code_being_run(index, monkeypatch, tmp_path, declared):
    mark = tmp_path / "it-ran"
    files = {
        "toy-1.0/PKG-INFO": "Metadata-Version: 2.1\nName: toy\nVersion: 1.0\n",
        "toy-1.0/setup.py": f"open({str(mark)!r}, 'w')\nfrom setuptools import setup\nsetup()\n",
        "toy-1.0/docs/index.txt": "words",
    }
    if declared:
        files["toy-1.0/pyproject.toml"] = (
            '[build-system]\nrequires = ["setuptools"]\nbuild-backend = "setuptools.build_meta"\n'
        )
    archive = tar(index / "toy-1.0.tar.gz", files)
    known = source("sdist", "toy==1.0", archive, r"[^/]+/docs/(.*)")
    monkeypatch.setitem(archives.SOURCES, "toy", known)
    assert contents(fetch.fetch("toy")) == {"index.txt", "fetched.json"}
    assert not mark.exists()


@pytest.mark.quick
def test_npm_and_apt_are_asked_for_the_archive(index, monkeypatch, tmp_path):
    packed = tar(tmp_path / "toy-1.0.tgz", {"package/data/a.json": "{}", "package/LICENSE": "free"})
    tar(tmp_path / "data.tar.gz", {"./usr/share/toy/b.gz": "b"})
    (tmp_path / "debian-binary").write_text("2.0\n")
    tar(tmp_path / "control.tar.gz", {"./control": ""})
    programs = tmp_path / "bin"
    programs.mkdir()

    def program(name, body):
        (programs / name).write_text(f"#!/bin/sh\n{body}\n")
        (programs / name).chmod(stat.S_IRWXU)

    program("npm", f'[ "$4" = toy@1.0 ] && [ "$3" = --ignore-scripts ] && cp {packed} .')
    program("apt-get", f'[ "$2" = toy=1.0 ] && cp {packed} toy.deb')
    program("dpkg-deb", f"gzip -dc {tmp_path}/data.tar.gz")
    monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin")
    known = source("npm", "toy@1.0", packed, r"package/data/(.*)")
    monkeypatch.setitem(archives.SOURCES, "toy", known)
    assert contents(fetch.fetch("toy")) == {"a.json", "LICENSE", "fetched.json"}
    known = source("deb", "toy=1.0", packed, r"usr/share/toy/(.*)")
    monkeypatch.setitem(archives.SOURCES, "toy-deb", known)
    assert contents(fetch.fetch("toy-deb")) == {"b.gz", "fetched.json"}
    # an archive that the client was given in place of the one that was pinned
    monkeypatch.setitem(archives.SOURCES, "bad", known._replace(client="npm", package="toy@1.0",
                                                                sha256="1" * 64))  # fmt: skip
    with pytest.raises(ValueError, match=r"sha256 of toy-1.0.tgz is '\w+', but must be 1111"):
        fetch.fetch("bad")


@pytest.mark.quick
def test_an_inner_archive_is_opened_too(tmp_path):
    inner = {"hutto/tweets_GroundTruth.txt": "1\t2.0\tgood", "hutto/other.py": ""}
    tar(tmp_path / "hutto_ICWSM_2014.tar.gz", inner)
    assert archives.SOURCES["sentiment"].finish is not None
    archives.SOURCES["sentiment"].finish(tmp_path)
    assert contents(tmp_path) == {"tweets_GroundTruth.txt"}


@pytest.mark.quick
def test_the_table_is_well_formed():
    for known in archives.SOURCES.values():
        assert len(known.sha256) == 64 and int(known.sha256, 16) and known.size > 1e5
        separator = {"npm": "@", "deb": "="}.get(known.client, "==")
        assert known.package.rpartition(separator)[2][0].isdigit()


@pytest.mark.quick
def test_the_hub_is_asked_for_no_code(monkeypatch, tmp_path):
    import huggingface_hub

    asked = {}

    def snapshot(name, allow_patterns, local_dir):
        asked.update(name=name, patterns=allow_patterns)
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    assert fetch.fetch("org/model") == tmp_path
    kept = huggingface_hub.utils.filter_repo_objects(
        ["model.safetensors", "config.json", "tokenizer.model", "merges.txt", "a.bin", "b.pt",
         "modeling_x.py", "tokenizer.py", "c.pkl", "x/pytorch_model.bin", "chat_template.jinja"],
        allow_patterns=asked["patterns"],
    )  # fmt: skip
    assert list(kept) == [
        "model.safetensors", "config.json", "tokenizer.model", "merges.txt", "chat_template.jinja",
    ]  # fmt: skip

    def offline(*args, **named):
        raise RuntimeError("no such host\nand more lines")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(ConnectionError, match=r"from the Hugging Face hub: no such host$"):
        fetch.fetch("org/model")
    with pytest.raises(ValueError, match="a hub id such as org/model"):
        fetch.fetch("a/b/c")


def test_the_command_lists_fetches_and_refuses(toy, capsys):
    assert cli.main(["fetch"]) == 0
    said = capsys.readouterr()
    assert len(said.out.splitlines()) == len(archives.SOURCES) and "a toy; MIT" in said.out
    assert cli.main(["fetch", "toy"]) == 0
    said = capsys.readouterr()
    assert Path(said.out.strip()).is_dir() and "fetching toy" in said.err
    assert cli.main(["fetch", "toy"]) == 0
    assert capsys.readouterr().err == ""
    for name, says in (("smolm", "did you mean smollm2?"), ("x", "there are smollm2, glassllm")):
        assert cli.main(["fetch", name]) == 2
        said = capsys.readouterr()
        assert says in said.err and said.err.count("\n") == 1 and not said.out


def test_the_command_shows_what_is_cached_and_removes_it(toy, capsys, monkeypatch):
    assert cli.main(["fetch", "--list"]) == 0
    assert capsys.readouterr().out == ""
    folder = fetch.fetch("toy")
    (folder / "big").write_bytes(bytes(3_000_000))
    monkeypatch.setitem(archives.SOURCES, "other", archives.SOURCES["toy"])
    other = fetch.fetch("other")
    mine = folder.parent / "mine"  # which fetch didn't make
    mine.mkdir()
    assert cli.main(["fetch", "--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["other", "toy"]
    today = datetime.fromtimestamp((folder / "fetched.json").stat().st_mtime)
    for said in ("toy==1.0", "3.0 MB", f"{today:%Y-%m-%d %H:%M}", str(folder)):
        assert said in lines[1]
    assert cli.main(["fetch", "--remove", "toy"]) == 0
    assert capsys.readouterr().out == f"removed {folder}: 3.0 MB freed\n"
    assert not folder.exists() and other.is_dir() and mine.is_dir()
    assert {p.name for p in folder.parent.iterdir()} == {"other", "mine"}
    for name, says in (
        ("toy", "toy isn't cached; there is other"),
        ("othre", "did you mean other?"),
        ("mine", "nothing cached is called 'mine'"),
        ("../fetched/other", "nothing cached is called"),
        (".", "nothing cached is called"),
    ):
        assert cli.main(["fetch", "--remove", name]) == 2
        said = capsys.readouterr()
        assert says in said.err and said.err.count("\n") == 1 and not said.out
    assert other.is_dir() and mine.is_dir()
    assert cli.main(["fetch", "toy", "--list"]) == 2
    assert "one of NAME, --list and --remove NAME" in capsys.readouterr().err


def test_nothing_outside_the_cache_is_removed(toy, tmp_path):
    outside = tmp_path / "outside"
    (outside / "deep").mkdir(parents=True)
    (outside / "deep" / "file").write_bytes(bytes(1000))
    folder = fetch.fetch("toy")
    before = fetch.cached()[0].size
    (folder / "folder").symlink_to(outside, target_is_directory=True)
    (folder / "file").symlink_to(outside / "deep" / "file")
    assert fetch.cached()[0].size == before  # what is elsewhere isn't freed
    moved = tmp_path / "moved"
    folder.rename(moved)
    folder.symlink_to(moved, target_is_directory=True)
    assert fetch.remove("toy").size == 0  # the folder itself is a link
    assert not folder.is_symlink() and contents(moved) >= {"a.txt", "fetched.json"}
    moved.rename(folder)
    assert fetch.remove("toy").size == before
    assert not folder.exists() and (outside / "deep" / "file").stat().st_size == 1000
    assert fetch.fetch("toy") == folder and (folder / "a.txt").exists()


@pytest.mark.quick
def test_an_extra_that_is_missing_is_one_sentence(index, monkeypatch, capsys):
    archive = wheel(
        index, {"glassllm/weights/en.npz": "", "glassllm/weights/en.tokenizer.json": ""}
    )
    known = archives.SOURCES["glassllm"]
    monkeypatch.setitem(
        archives.SOURCES, "glassllm", known._replace(package="toy==1.0", sha256=sha(archive))
    )
    monkeypatch.setitem(sys.modules, "safetensors.numpy", None)
    assert cli.main(["fetch", "glassllm"]) == 2
    said = capsys.readouterr()
    assert "pip install 'jcl-kit[text]'" in said.err and said.err.count("\n") == 2  # and the first
    assert not list(fetch.cache().iterdir())


@pytest.mark.network
@pytest.mark.parametrize("name", list(archives.SOURCES))
def test_what_is_listed_can_be_fetched(name):
    """Into the user's own cache, so that it is downloaded once."""
    folder = fetch.fetch(name)
    assert len(contents(folder)) > 1


@pytest.mark.network
def test_glassllm_gives_the_logits_and_tokens_of_its_own_code(tmp_path):
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "-q", "glassllm==0.1.0"]
    subprocess.run(command, cwd=tmp_path, check=True)
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as z:
        z.extractall(tmp_path)
    script = (
        "import sys, json, numpy as np\nfrom glassllm.model import GlassLM\n"
        "from glassllm.tokenizer import Tokenizer\n"
        "tokenizer = Tokenizer.load('glassllm/weights/en.tokenizer.json')\n"
        "ids = np.random.default_rng(0).integers(4, 1024, (2, 128))\n"
        "np.savez('out', ids=ids, logits=GlassLM.load('glassllm/weights/en.npz')(ids).data)\n"
        "print(json.dumps([tokenizer.encode(text) for text in json.load(sys.stdin)]))\n"
    )
    rng = np.random.default_rng(1)
    signs = [*"abcdefghij THE.,\n\n  “”—'é漢\t", "e\u0301", " the", "🙂", "\r\n"]
    texts = ["".join(rng.choice(signs, rng.integers(0, 40))) for _ in range(1000)]
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, input=json.dumps(texts), text=True,
        capture_output=True, check=True,
    )  # fmt: skip
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    folder = fetch.fetch("glassllm")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    assert [tokenizer(t)["input_ids"] for t in texts] == json.loads(done.stdout)
    model = transformers.LlamaForCausalLM.from_pretrained(folder)
    with np.load(tmp_path / "out.npz") as out, torch.no_grad():
        logits = model(torch.tensor(out["ids"])).logits.numpy()
        assert np.abs(logits - out["logits"]).max() < 1e-5 * np.abs(logits).max()
