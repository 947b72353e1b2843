"""Files that are whole or absent, written aside and renamed into place; their digests; locks for one process alone."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

_PARENT = Path(__file__).resolve().parent.parent
ROOT = _PARENT if (_PARENT / "pyproject.toml").is_file() else Path.cwd()
"""The repository's root, where the default ``data/`` and ``outputs/`` lie; the working directory where the package was
installed without its repository."""


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary path beside ``path`` and rename it over ``path`` when the block ends without an error.

    A reader sees the old file or the new one, never half of one; after an error the old file is untouched and the
    temporary one is gone. The suffix is kept, since many writers choose the format by it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.stem}.{secrets.token_hex(4)}{path.suffix}")
    try:
        yield aside
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def refusal(error: OSError) -> str:
    """Return what to tell a person of a file that the system did not let be read or written, as on a full disk."""
    return f"a file cannot be read or written ({error}): make room or mend that"


def make_writable(folder: Path) -> None:
    """Make a folder where there is none, and see that files can be written there: before minutes of work are lost.

    Raises:
        OSError: it cannot be made or written to.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder):
        pass


def write_text(path: Path, text: str) -> None:
    """Write ``text`` as UTF-8, whole or not at all."""
    with replacing(path) as aside:
        aside.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON, whole or not at all. NaN is refused: JSON has none."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def expanded(path: str | Path) -> Path:
    """Return a path with ``~`` put in full, as a shell does before a program sees it, and a notebook's cell does not.

    Where no such user is known it stays as it is, as in a shell.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


def printable(text: str) -> str:
    """Return text in which what UTF-8 cannot hold is written out: bytes of a file name in another encoding."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file's bytes in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def held_alone(path: Path) -> Iterator[bool]:
    """Give True where nobody else holds the lock file ``path`` inside such a block, of this process or another.

    The system gives the lock back when a process ends, however it does. The empty file stays.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()
