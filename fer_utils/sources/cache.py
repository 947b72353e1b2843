"""What was read, kept in the user's cache directory, so that a second load takes a fraction of the first.

An entry is one file: a header in JSON, the arrays as they lie in memory, a checksum. Whoever loads compares the stamp
in it with the source's. A cache is never in the way: an entry that is damaged, out of date or cannot be written is as
good as none. ``$FER_CACHE`` names another directory.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import zlib
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import PIL
import platformdirs

from fer_utils import __version__
from fer_utils.faces import Faces, Skipped, Splits
from fer_utils.files import replacing

SCHEMA: Final = f"2 {__version__} {PIL.__version__}"
"""Entries of another format, or read by another version, are not found."""

ENTRIES: Final = 8
"""How many sources are kept, the newest; FER2013 takes 80 MB."""

_ALIGNMENT: Final = 64
_NUMBER: Final = 8  # bytes of the header's length and of the checksum
_ARRAYS: Final = ("images", "targets", "names", "digests")


def directory() -> Path:
    """Return the directory of the cache, which may not be there yet."""
    named = os.environ.get("FER_CACHE")
    return Path(named) if named else platformdirs.user_cache_path("fer_utils")


def entry(key: str) -> Path:
    """Return the file of the source that ``key`` names."""
    name = hashlib.blake2b(f"{SCHEMA}\n{key}".encode("utf-8", "surrogateescape"), digest_size=16).hexdigest()
    return directory() / f"{name}.faces"


def load(key: str) -> tuple[str, Splits] | None:
    """Return the stamp and the splits stored under ``key``, None where there are none or they are damaged.

    The arrays are a private view of the file: what is written to them does not reach it.
    """
    try:
        data = np.asarray(np.memmap(entry(key), np.uint8, "c"))
    except (OSError, ValueError):  # not there, or empty
        return None
    if len(data) < 2 * _NUMBER:
        return None
    checksum = int.from_bytes(data[-_NUMBER:].tobytes(), "little")
    if zlib.crc32(data[:-_NUMBER].data) != checksum:
        return None
    # From here on the bytes are those that `store` wrote.
    length = int.from_bytes(data[:_NUMBER].tobytes(), "little")
    header: dict[str, Any] = json.loads(data[_NUMBER : _NUMBER + length].tobytes())
    parts: list[Faces] = []
    at = _aligned(_NUMBER + length)
    for shapes in header["parts"]:
        arrays: dict[str, npt.NDArray[Any]] = {}
        for name, (kind, shape) in zip(_ARRAYS, shapes, strict=True):
            size = math.prod(shape) * np.dtype(kind).itemsize
            arrays[name] = data[at : at + size].view(kind).reshape(shape)
            at = _aligned(at + size)
        parts.append(Faces(**arrays))
    skipped = tuple(Skipped(name, reason) for name, reason in header["skipped"])
    splits = Splits(
        parts[0],
        parts[1],
        parts[2],
        header["source"],
        header["location"],
        header["rule"],
        skipped,
        header["converted"],
    )
    return header["stamp"], splits


def store(key: str, stamp: str, splits: Splits) -> None:
    """Keep ``splits`` under ``key``, whole or not at all; the oldest entries beyond `ENTRIES` are removed."""
    parts = [[np.ascontiguousarray(getattr(faces, name)) for name in _ARRAYS] for _, faces in splits]
    header = {
        "stamp": stamp,
        "source": splits.source,
        "location": splits.location,
        "rule": splits.rule,
        "skipped": [(item.name, item.reason) for item in splits.skipped],
        "converted": splits.converted,
        "parts": [[(array.dtype.str, array.shape) for array in arrays] for arrays in parts],
    }
    text = json.dumps(header).encode("ascii")
    pieces: list[Any] = [len(text).to_bytes(_NUMBER, "little") + text]
    pieces += [array.reshape(-1).view(np.uint8) for arrays in parts for array in arrays]
    path = entry(key)
    try:
        with replacing(path) as aside, aside.open("wb") as file:
            checksum = 0
            for piece in pieces:
                for block in (piece, bytes(_aligned(len(piece)) - len(piece))):
                    checksum = zlib.crc32(block, checksum)
                    file.write(block)
            file.write(checksum.to_bytes(_NUMBER, "little"))
        entries = sorted(path.parent.glob("*.faces"), key=lambda one: one.stat().st_mtime_ns)
        for old in entries[:-ENTRIES]:
            old.unlink()
    except OSError:
        # A full disk, or a directory that may not be written: the next load reads the source again.
        return


def _aligned(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT
