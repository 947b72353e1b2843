"""Reads parquet tables: ``df_train.parquet.gzip`` and ``df_test.parquet.gzip``, one face a row.

Columns: ``image`` (2,304 numbers 0 to 255, floats or integers, row by row of the image) and ``emotion_idx`` (the
challenge's 0 to 6; absent, null or -1 where unlabelled). Faces are called ``train[123]``: the table and the row,
counted from 0.

A table is decoded a few hundred rows at a time and kept as bytes: all of it at once, in the floats that it is published
in, takes eight times the memory of the faces.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from fer_utils.faces import SIZE, Images
from fer_utils.files import printable
from fer_utils.sources.reading import (
    PIXELS,
    ROLES,
    BadItems,
    Contents,
    OnBad,
    Pile,
    Role,
    SourceError,
    label_target,
    of_rows,
    wrong_count,
    wrong_pixel,
)

BATCH: Final = 512
"""Rows that are decoded at a time."""
IMAGE, LABEL = "image", "emotion_idx"

_BROKEN: Final = (pa.ArrowException, OSError)


class Rows(NamedTuple):
    """Some rows: images uint8 (n, 48, 48), their labels as they stand, and what is wrong with which row."""

    images: Images
    labels: list[object]
    wrong: dict[int, str]


def read(files: dict[Role, Path], on_bad: OnBad, location: Path, *, labels: bool = True) -> Contents:
    """Read parquet files, each of one role.

    Args:
        files: by role.
        on_bad: ``raise`` or ``skip``.
        location: what to call the place in messages.
        labels: False takes all faces for unlabelled, whatever stands beside the pixels.

    Raises:
        SourceError: a file that is no parquet table or has no column ``image``; a bad row under ``on_bad="raise"``; no
            face at all.
    """
    bad = BadItems(on_bad, location)
    pile = Pile(sum(_row_count(path) for path in files.values()))
    targets: list[int] = []
    roles: list[int] = []
    names: list[str] = []
    for role, path in files.items():
        before, bad_before = len(targets), len(bad.skipped)
        stem = printable(path.name.split(".")[0].removeprefix("df_"))
        row = 0
        try:
            for found in _read_one(path, labels):
                good = []
                for i, label in enumerate(found.labels):
                    try:
                        if i in found.wrong:
                            raise ValueError(found.wrong[i])
                        targets.append(label_target("" if label is None else str(label), role))
                    except ValueError as error:
                        bad.add(f"{path.name} row {row + i}", str(error))
                    else:
                        good.append(i)
                pile.add(found.images if len(good) == len(found.images) else found.images[good])
                names += [f"{stem}[{row + i}]" for i in good]
                row += len(found.labels)
        except _BROKEN as error:
            raise _broken(path, error) from None
        roles += [ROLES.index(role)] * (len(targets) - before)
        if len(targets) == before and len(bad.skipped) == bad_before:
            bad.add(path.name, "an empty split: there is no face in it")
    return of_rows(pile, targets, roles, names, "files", bad)


def _read_one(path: Path, with_labels: bool) -> Iterator[Rows]:
    # Opened by Python, since arrow takes no path whose name is not UTF-8.
    with path.open("rb") as opened, pq.ParquetFile(opened) as file, ThreadPoolExecutor(1) as pool:
        _check(path, file.schema_arrow)
        wanted = (IMAGE, LABEL) if with_labels else (IMAGE,)
        present = [name for name in wanted if name in file.schema_arrow.names]
        batches = file.iter_batches(BATCH, columns=present)
        # One batch is decoded while the one before is turned into bytes.
        ahead = pool.submit(next, batches, None)
        while (batch := ahead.result()) is not None:
            ahead = pool.submit(next, batches, None)
            labels = batch.column(LABEL).to_pylist() if LABEL in present else [None] * len(batch)
            images, wrong = _images(batch.column(IMAGE))
            yield Rows(images, labels, wrong)


def _row_count(path: Path) -> int:
    try:
        with path.open("rb") as file:
            return int(pq.read_metadata(file).num_rows)
    except _BROKEN as error:
        raise _broken(path, error) from None


def _broken(path: Path, error: Exception) -> SourceError:
    return SourceError(f"{path} cannot be read as a parquet table ({error}); get the file again")


def _check(path: Path, schema: pa.Schema) -> None:
    if IMAGE not in schema.names:
        raise SourceError(f"{path} has the columns {', '.join(schema.names)}; expected {IMAGE} and {LABEL}")
    if twice := [name for name in (IMAGE, LABEL) if schema.names.count(name) > 1]:
        raise SourceError(f"{path} has the column {twice[0]} twice; which one is meant is not known")
    kind = schema.field(IMAGE).type
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    if not is_list or not (pa.types.is_floating(kind.value_type) or pa.types.is_integer(kind.value_type)):
        raise SourceError(f"{path}: the column {IMAGE} holds {kind}; expected a list of {PIXELS:,} numbers in each row")


def _images(column: Any) -> tuple[Images, dict[int, str]]:
    """Return the images of an arrow column of lists, uint8 (rows, 48, 48), and what is wrong with which row."""
    if column.null_count == 0:
        values = column.flatten()
        lengths = column.value_lengths().to_numpy(zero_copy_only=False)
        if values.null_count == 0 and (lengths == PIXELS).all():
            numbers = values.to_numpy(zero_copy_only=False).reshape(-1, PIXELS)
            pixels, same = _bytes(numbers)
            if same.all():
                return pixels.reshape(-1, SIZE, SIZE), {}
    images = np.zeros((len(column), PIXELS), np.uint8)
    wrong: dict[int, str] = {}
    for i, value in enumerate(column):
        try:
            images[i] = _row(value)
        except ValueError as error:
            wrong[i] = str(error)
    return images.reshape(-1, SIZE, SIZE), wrong


def _row(value: Any) -> npt.NDArray[np.uint8]:
    if not value.is_valid:
        raise ValueError("has no image")
    numbers = value.values.to_numpy(zero_copy_only=False)
    if len(numbers) != PIXELS:
        raise wrong_count(len(numbers))
    pixels, same = _bytes(numbers)
    if not same.all():
        first = int(np.flatnonzero(~same)[0])
        raise wrong_pixel(first, numbers[first])
    return pixels


def _bytes(numbers: npt.NDArray[Any]) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.bool_]]:
    """Return numbers as bytes, and where that changed nothing: NaN, fractions and what is out of range do change."""
    with np.errstate(invalid="ignore"):
        pixels = numbers.astype(np.uint8)
    return pixels, pixels == numbers
