"""Rows of a table and claims on work that several processes share: each is whole or absent, and one process wins."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import platform
import secrets
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any


def append_row(path: Path, columns: Sequence[str], row: Mapping[str, Any]) -> None:
    """Add a row to a CSV file in one write, its header before it where the file is new."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        with contextlib.suppress(FileExistsError):  # another process was first
            _create(path, ",".join(columns) + "\n")
    line = io.StringIO()
    csv.DictWriter(line, columns, lineterminator="\n").writerow(row)
    file = os.open(path, os.O_WRONLY | os.O_APPEND)
    try:
        os.write(file, line.getvalue().encode())
    finally:
        os.close(file)


def read_rows(path: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    """Return the rows of a CSV file as text by column; none where there is no file.

    Raises:
        SystemExit: the file has other columns.
    """
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        if list(reader.fieldnames or ()) != list(columns):
            raise SystemExit(f"{path} has other columns than this program writes: name another directory with --out")
        return list(reader)


@contextlib.contextmanager
def claim(folder: Path, name: str) -> Iterator[bool]:
    """Give True where this process alone may train ``name`` inside the block, False where another is at it.

    A claim is a file ``NAME.N.lock``, created exclusively. That of a dead process on this machine is taken over by
    creating number N + 1, so that of several processes that find it dead one wins.
    """
    folder.mkdir(parents=True, exist_ok=True)
    held = sorted(_claims(folder, name))
    number = held[-1] + 1 if held else 0
    mine = folder / f"{name}.{number}.lock"
    owner = {"host": platform.node(), "pid": os.getpid(), "started": _started(os.getpid())}
    if held and _alive(folder / f"{name}.{held[-1]}.lock"):
        yield False
        return
    try:
        _create(mine, json.dumps(owner))
    except FileExistsError:
        yield False
        return
    try:
        yield True
    finally:
        for older in sorted(_claims(folder, name)):  # the live one goes last
            (folder / f"{name}.{older}.lock").unlink(missing_ok=True)


def _claims(folder: Path, name: str) -> list[int]:
    return [int(path.name.split(".")[-2]) for path in folder.glob(f"{name}.*.lock")]


def _create(path: Path, text: str) -> None:
    """Create a file with its content at once; FileExistsError where it is there."""
    aside = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    aside.write_text(text, encoding="utf-8")
    try:
        os.link(aside, path)
    finally:
        aside.unlink()


def _alive(lock: Path) -> bool:
    """Return whether the process that holds a claim runs; True where that cannot be known."""
    try:
        owner = json.loads(lock.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return True  # given back this moment, so it was alive
    if owner["host"] != platform.node() or os.name == "nt":
        return True
    try:
        os.kill(owner["pid"], 0)  # signal 0 only asks
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return bool(owner["started"] == _started(owner["pid"]))


def _started(pid: int) -> str | None:
    """When a process began, in ticks since the machine did: its number alone may be another's by now."""
    stat = Path(f"/proc/{pid}/stat")
    if not stat.is_file():
        return None
    fields = stat.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    return "ended" if fields[0] == "Z" else fields[19]
