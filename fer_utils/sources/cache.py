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
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain, cycle
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import PIL
import platformdirs

from fer_utils import __version__
from fer_utils.faces import HALVES, Faces, Halves, Skipped, Splits
from fer_utils.files import replacing
from fer_utils.sources.reading import Contents, Facts, Parts

SCHEMA: Final = f"5 {__version__} {PIL.__version__}"
"""Entries of another format, or read by another version, are not found."""

ENTRIES: Final = 8
"""How many sources are kept, the newest; FER2013 takes 80 MB."""

_ALIGNMENT: Final = 64
_NUMBER: Final = 8  # bytes of the header's length and of the checksum
_IMAGES_AT_ONCE: Final = 512
_ARRAYS: Final = ("images", "targets", "names", "digests")


def directory() -> Path:
    """Return the directory of the cache, which may not be there yet.

    Raises:
        RuntimeError: the user has no home directory, and nothing names another.
    """
    named = os.environ.get("FER_CACHE")
    return Path(named).expanduser() if named else platformdirs.user_cache_path("fer_utils")


def entry(key: str) -> Path:
    """Return the file of the source that ``key`` names."""
    name = hashlib.blake2b(f"{SCHEMA}\n{key}".encode("utf-8", "surrogateescape"), digest_size=16).hexdigest()
    return directory() / f"{name}.faces"


def load(key: str) -> tuple[str, Splits] | None:
    """Return the stamp and the splits stored under ``key``, None where there are none or they are damaged.

    The arrays are a private view of the file: what is written to them does not reach it.
    """
    try:
        data = _map(entry(key))
    except (OSError, ValueError, RuntimeError):  # not there, or empty, or there is no directory for it
        return None
    if len(data) < 2 * _NUMBER:
        return None
    checksum = int.from_bytes(data[-_NUMBER:].tobytes(), "little")
    if zlib.crc32(data[:-_NUMBER].data) != checksum:
        return None
    return _unpack(data)


def store(
    key: str, stamp: str, contents: Contents, parts: Parts, facts: Facts, halves: Halves | None = None
) -> Splits | None:
    """Keep the splits that are ``parts`` of ``contents``, whole or not at all, and return them as `load` would.

    The images are laid out in the file alone, not in memory too. The oldest entries beyond `ENTRIES` are removed.

    Returns:
        None where the file could not be written: a full disk, a directory that may not be written, no home directory.
    """
    kinds = [(array.dtype.str, array.shape[1:]) for array in (getattr(contents, name) for name in _ARRAYS)]
    header = {
        "stamp": stamp,
        "facts": list(facts),
        "skipped": [(item.name, item.reason) for item in contents.skipped],
        "converted": contents.converted,
        "parts": [[(kind, (len(part), *shape)) for kind, shape in kinds] for part in parts],
        "halves": halves is not None,
    }
    second = [] if halves is None else [(halves == HALVES[1]).view(np.uint8)]
    text = json.dumps(header).encode("ascii")
    try:
        path = entry(key)
        with replacing(path) as aside, aside.open("wb") as file, ThreadPoolExecutor(1) as writer:
            checksum = 0
            # A piece is written while the next is gathered and summed up.
            written: Future[None] = writer.submit(file.flush)
            for piece in chain([len(text).to_bytes(_NUMBER, "little") + text], _pieces(contents, parts), second):
                blocks = (piece, bytes(-len(piece) % _ALIGNMENT))
                for block in blocks:
                    checksum = zlib.crc32(block, checksum)
                written.result()
                written = writer.submit(file.writelines, blocks)
            written.result()
            file.write(checksum.to_bytes(_NUMBER, "little"))
        entries = sorted(path.parent.glob("*.faces"), key=lambda one: one.stat().st_mtime_ns)
        for old in entries[:-ENTRIES]:
            old.unlink()
        return _unpack(_map(path))[1]
    except (OSError, RuntimeError):
        return None


def _pieces(contents: Contents, parts: Parts) -> Iterator[Any]:
    """Give the bytes of each array of each part, images some at a time; they last until the next but one."""
    # Two buffers for all images: memory that is allocated anew takes a page fault for every 4 kB.
    buffers = cycle(np.empty((2, _IMAGES_AT_ONCE, *contents.images.shape[1:]), np.uint8))
    for part in parts:
        for name in _ARRAYS:
            array = getattr(contents, name)
            if name != "images":
                yield array[part].view(np.uint8)
                continue
            for start in range(0, len(part), _IMAGES_AT_ONCE):
                index = part[start : start + _IMAGES_AT_ONCE]
                # No index is out of range, and "clip" writes to the buffer without one more of its own.
                yield np.take(array, index, axis=0, out=next(buffers)[: len(index)], mode="clip").reshape(-1)


def _map(path: Path) -> npt.NDArray[np.uint8]:
    return np.asarray(np.memmap(path, np.uint8, "c"))


def _unpack(data: npt.NDArray[np.uint8]) -> tuple[str, Splits]:
    """Return the stamp and the splits in the bytes that `store` wrote."""
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
    train, val, test = parts
    halves = np.where(data[at : at + len(test)], HALVES[1], HALVES[0]) if header["halves"] else None
    facts = Facts(*header["facts"])
    skipped = tuple(Skipped(name, reason) for name, reason in header["skipped"])
    splits = Splits(train, val, test, *facts, skipped, header["converted"], halves)
    return header["stamp"], splits


def _aligned(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT
