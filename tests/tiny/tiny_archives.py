"""Archives of a few files, and what a folder holds, which the tests of the registry share."""

import io
import tarfile


def tar(path, files):
    with tarfile.open(path, "w:gz") as t:
        for inside, text in files.items():
            info = tarfile.TarInfo(inside)
            info.size = len(text.encode())
            t.addfile(info, io.BytesIO(text.encode()))
    return path


def contents(folder):
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
