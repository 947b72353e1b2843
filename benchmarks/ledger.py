"""Rows of a table that several processes add to: each is whole or absent."""

from __future__ import annotations

import contextlib
import csv
import io
import os
import secrets
from collections.abc import Mapping, Sequence
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


def _create(path: Path, text: str) -> None:
    """Create a file with its content at once; FileExistsError where it is there."""
    aside = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    aside.write_text(text, encoding="utf-8")
    try:
        os.link(aside, path)
    finally:
        aside.unlink()
