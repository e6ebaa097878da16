"""Unpacking: what is wanted and licences, below one folder and nowhere else."""

import tarfile
import zipfile
from pathlib import Path

import pytest
from tiny_archives import contents, tar

from jcl.data.registry.unpack import unpack

pytestmark = pytest.mark.quick


@pytest.mark.parametrize("path", ["../out.txt", "/out.txt", "a/../../out.txt", "."])
def test_paths_that_lead_out_are_refused(tmp_path, path):
    folder = tmp_path / "in"
    folder.mkdir()
    archive = tar(tmp_path / "bad.tgz", {"package/x": "", f"package/data/{path}": "evil"})
    with pytest.raises(ValueError, match=r"path in bad.tgz is .*, but must be inside the folder"):
        unpack(archive, "package/data/(.*)", folder)
    assert not list(tmp_path.rglob("out.txt")) and not Path("/out.txt").exists()


def test_links_are_left_where_they_are(tmp_path):
    with tarfile.open(tmp_path / "links.tgz", "w:gz") as t:
        for kind, name in ((tarfile.SYMTYPE, "soft"), (tarfile.LNKTYPE, "hard")):
            info = tarfile.TarInfo(f"package/{name}")
            info.type, info.linkname = kind, "/etc/passwd"
            t.addfile(info)
        t.addfile(tarfile.TarInfo("package/file"))
    folder = tmp_path / "in"
    folder.mkdir()
    unpack(tmp_path / "links.tgz", "package/(.*)", folder)
    assert contents(folder) == {"file"} and not (folder / "soft").is_symlink()
    with pytest.raises(ValueError, match=r"number of files of links\.tgz that match none is 0"):
        unpack(tmp_path / "links.tgz", "none", folder)


@pytest.mark.parametrize("kind", ["whl", "tgz"])
def test_the_group_is_the_path_and_licences_come_along(tmp_path, kind):
    files = {"toy/data/a.txt": "A", "toy/data/deep/b.txt": "B", "toy/data/c.py": "raise",
             "toy/LICENSE": "free", "toy-1.dist-info/licenses/NOTICE.md": "note"}  # fmt: skip
    archive = tmp_path / f"toy.{kind}"
    if kind == "whl":
        with zipfile.ZipFile(archive, "w") as z:
            for name, text in files.items():
                z.writestr(name, text)
    else:
        tar(archive, files)
    folder = tmp_path / "in"
    folder.mkdir()
    unpack(archive, r"toy/data/(.*\.txt)", folder)
    assert contents(folder) == {"a.txt", "deep/b.txt", "LICENSE", "NOTICE.md"}
    assert (folder / "deep" / "b.txt").read_text() == "B"
