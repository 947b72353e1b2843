"""Reads parquet tables: ``df_train.parquet.gzip`` and ``df_test.parquet.gzip``, one face a row.

Columns: ``image`` (2,304 numbers 0 to 255, floats or integers) and ``emotion_idx`` (the challenge's 0 to 6; absent or
-1 where unlabelled).
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from fer_utils.emotions import FROM_CHALLENGE, UNLABELLED
from fer_utils.faces import SIZE, Faces
from fer_utils.sources.reading import BadItems, Contents, OnBad, Role, SourceError

PIXELS: Final = SIZE * SIZE
BATCH: Final = 512


def read(files: dict[Role, Path], on_bad: OnBad, location: Path) -> Contents:
    """Read parquet files, each of one role.

    Raises:
        SourceError: a file that is no parquet table or lacks ``image``; a bad row under ``on_bad="raise"``.
    """
    bad = BadItems(on_bad, location)
    faces: dict[Role, Faces] = {}
    for role, path in files.items():
        read_faces = _read_one(path, role, bad)
        if len(read_faces):
            faces[role] = read_faces
        else:
            bad.add(path.name, "an empty split: there is no face in it")
    bad.check()
    return Contents(faces, "files", tuple(bad.skipped))


def _read_one(path: Path, role: Role, bad: BadItems) -> Faces:
    images, targets, names = [], [], []
    stem = path.name.split(".")[0].removeprefix("df_")
    try:
        with pq.ParquetFile(path) as file:
            present = file.schema_arrow.names
            if "image" not in present:
                raise SourceError(f"{path} has the columns {', '.join(present)}; expected image and emotion_idx")
            row = 0
            for batch in file.iter_batches(BATCH, columns=[c for c in ("image", "emotion_idx") if c in present]):
                labels = batch.column("emotion_idx").to_pylist() if "emotion_idx" in present else [-1] * len(batch)
                for value, label in zip(batch.column("image"), labels, strict=True):
                    name = f"{path.name} row {row}"
                    row += 1
                    try:
                        pixels = _pixels(value)
                        target = _target(label, role)
                    except ValueError as error:
                        bad.add(name, str(error))
                        continue
                    images.append(pixels)
                    targets.append(target)
                    names.append(f"{stem}[{row - 1}]")
    except (pa.ArrowException, OSError) as error:
        raise SourceError(f"{path} cannot be read as a parquet table: {error}") from None
    if not images:
        return Faces.empty()
    return Faces(np.stack(images), np.array(targets, np.int64), np.array(names, dtype=np.str_)).sorted()


def _pixels(value: pa.Scalar) -> np.ndarray:
    numbers = np.asarray(value.values.to_numpy(zero_copy_only=False)) if value.is_valid else np.zeros(0)
    if len(numbers) != PIXELS:
        raise ValueError(f"has {len(numbers):,} pixels; expected {PIXELS:,}, {SIZE} × {SIZE}")
    wrong = np.flatnonzero(~((numbers >= 0) & (numbers <= 255) & (numbers == np.floor(numbers))))
    if len(wrong):
        raise ValueError(f"pixel {wrong[0]} is {numbers[wrong[0]]}; expected a whole number from 0 to 255")
    return numbers.astype(np.uint8).reshape(SIZE, SIZE)


def _target(label: object, role: Role) -> int:
    if label is None or label == -1:
        if role in ("all", "train"):
            raise ValueError("has no label; training faces need one")
        return UNLABELLED
    if label not in range(7):
        raise ValueError(f"emotion_idx is {label!r}; expected 0 to 6, or -1 where unlabelled")
    return FROM_CHALLENGE[int(label)]  # type: ignore[call-overload, no-any-return]
