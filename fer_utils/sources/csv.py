"""Reads the challenge's tables: ``fer2013.csv``, ``icml_face_data.csv``, and Kaggle's ``train.csv`` and ``test.csv``.

Columns are found by name, whatever their order and the spaces about them: ``pixels`` (2,304 numbers 0 to 255, row by row
of the image), ``emotion`` (the challenge's 0 to 6; absent where unlabelled) and ``Usage`` (Training, PublicTest,
PrivateTest; absent where the file is one part).
"""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from fer_utils.emotions import FROM_CHALLENGE, UNLABELLED
from fer_utils.faces import SIZE, Faces
from fer_utils.sources.reading import USAGES, BadItems, Contents, OnBad, Role, SourceError

PIXELS: Final = SIZE * SIZE


class Columns(NamedTuple):
    """Where each column stands, counted from 0; None where it is absent."""

    pixels: int
    emotion: int | None
    usage: int | None
    count: int


def read_header(path: Path, line: bytes) -> Columns:
    """Return where the columns stand.

    Raises:
        SourceError: ``pixels`` is not among the names, or a name is there twice.
    """
    try:
        text = line.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = ""
    names = [name.strip().strip('"').strip().lower() for name in text.strip().split(",")]
    known = [name for name in names if name in ("pixels", "emotion", "usage")]
    if "pixels" not in known or len(set(known)) != len(known):
        raise SourceError(
            f"{path} begins with {text.strip()[:80]!r}; expected the column names pixels and, where known, emotion and Usage"
        )
    where = {name: names.index(name) for name in known}
    return Columns(where["pixels"], where.get("emotion"), where.get("usage"), len(names))


def read(files: dict[Role, Path], on_bad: OnBad, location: Path) -> Contents:
    """Read CSV files, each of one role; ``all`` for a file whose Usage column, if any, tells the roles.

    Raises:
        SourceError: a file without the column ``pixels``; a bad row under ``on_bad="raise"``; no face at all.
    """
    bad = BadItems(on_bad, location)
    tables = [_read_one(path, role, bad) for role, path in files.items()]
    bad.check()
    faces: dict[Role, Faces] = {}
    for table in tables:
        faces |= table
    told_by = "files" if len(files) > 1 else "Usage column"
    return Contents(faces, told_by, tuple(bad.skipped))


def _read_one(path: Path, role: Role, bad: BadItems) -> dict[Role, Faces]:
    images: list[npt.NDArray[np.uint8]] = []
    targets: list[int] = []
    roles: list[Role] = []
    rows: list[int] = []
    with path.open("rb") as file:
        columns = read_header(path, file.readline())
        for row, line in enumerate(line for line in file if line.strip()):
            try:
                fields = next(csv.reader(io.StringIO(line.decode("ascii", "replace"))))
                pixels, target, its_role = parse_row(fields, columns, role)
            except ValueError as error:
                bad.add(f"{path.name} row {row}", str(error))
                continue
            images.append(pixels)
            targets.append(target)
            roles.append(its_role)
            rows.append(row)
    if not images:
        bad.add(path.name, "an empty split: there is no face in it")
        return {}
    everything = Faces(
        np.stack(images), np.array(targets, np.int64), np.array([f"{path.stem}[{row}]" for row in rows], dtype=np.str_)
    )
    index = np.array(roles)
    return {r: everything.select(np.flatnonzero(index == r)).sorted() for r in dict.fromkeys(roles)}


def parse_row(fields: list[str], columns: Columns, role: Role) -> tuple[npt.NDArray[np.uint8], int, Role]:
    """Return pixels (48, 48), target and role of one row.

    Raises:
        ValueError: says what is wrong with the row.
    """
    if len(fields) != columns.count:
        raise ValueError(f"has {len(fields)} fields, the header has {columns.count}")
    if columns.usage is not None:
        usage = fields[columns.usage].strip()
        if usage.lower() not in USAGES:
            raise ValueError(f"Usage is {usage!r}; expected Training, PublicTest or PrivateTest")
        role = USAGES[usage.lower()]
    target = UNLABELLED if columns.emotion is None else parse_label(fields[columns.emotion])
    if target == UNLABELLED and role in ("all", "train"):
        raise ValueError("has no label; training faces need one")
    return parse_pixels(fields[columns.pixels]), target, role


def parse_label(text: str) -> int:
    """Return the canonical target of a label as the challenge numbers it; nothing and -1 mean unlabelled.

    Raises:
        ValueError: it is none of 0 to 6.
    """
    text = text.strip()
    if text in ("", "-1"):
        return UNLABELLED
    if text not in ("0", "1", "2", "3", "4", "5", "6"):
        raise ValueError(f"emotion is {text!r}; expected 0 to 6, or -1 where unlabelled")
    return FROM_CHALLENGE[int(text)]


def parse_pixels(text: str) -> npt.NDArray[np.uint8]:
    """Return the pixels, uint8 (48, 48), of numbers between spaces.

    Raises:
        ValueError: there are not 2,304, or one is no whole number from 0 to 255.
    """
    words = text.split()
    if len(words) != PIXELS:
        raise ValueError(f"has {len(words):,} pixels; expected {PIXELS:,}, {SIZE} × {SIZE}")
    try:
        values = np.array(words, dtype=np.float64)
    except ValueError:
        values = np.array([float("nan")])
    if not (values == values.astype(np.uint8)).all():
        for i, word in enumerate(words):
            if not (word.isascii() and word.isdigit() and int(word) <= 255):
                raise ValueError(f"pixel {i} is {word!r}; expected a whole number from 0 to 255")
    return values.astype(np.uint8).reshape(SIZE, SIZE)
