"""Archives of a few files, and what a folder holds, which the tests of the registry share."""

import gzip
import io
import tarfile

import numpy as np


def tar(path, files):
    with tarfile.open(path, "w:gz") as t:
        for inside, text in files.items():
            info = tarfile.TarInfo(inside)
            info.size = len(text.encode())
            t.addfile(info, io.BytesIO(text.encode()))
    return path


def contents(folder):
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}


def idx(array):
    """The bytes of a gzipped file in idx format, of an array of uint8."""
    head = b"\0\0\x08" + bytes([array.ndim]) + np.array(array.shape, ">i4").tobytes()
    return gzip.compress(head + array.tobytes())
