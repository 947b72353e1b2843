"""Faces from every published layout of FER2013: a folder tree, CSV, parquet, Kaggle, or drawn ones.

`load` finds the layout by what is there and gives the same splits, in the same order, for the same faces.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final, Literal

import numpy as np

from fer_utils.faces import Faces, Splits, cut
from fer_utils.files import ROOT
from fer_utils.sources.reading import Contents, OnBad, Role, SourceError, hidden

__all__ = ["SourceError", "load"]

VAL_FRACTION: Final = 0.1
TEST_FRACTION: Final = 0.1
_TABLES: Final = ("fer2013.csv", "icml_face_data.csv", "train.csv")


def load(
    data: str | Path = "auto",
    *,
    val_fraction: float | None = None,
    split_seed: int = 0,
    on_bad: Literal["raise", "skip"] = "raise",
    cache: bool = True,
) -> Splits:
    """Return the training, validation and test faces of ``data``.

    Args:
        data: ``auto``, ``synthetic``, ``synthetic:N``, ``kaggle``, or the path of a folder or file.
        val_fraction: share of the training faces cut off for validation, 0 to below 1; all else is the test set.
            None: the parts that the source tells, and a tenth of the training faces where it tells no validation part.
        split_seed: seed of the cuts.
        on_bad: ``raise`` an error on a bad item, or ``skip`` it and list it in ``Splits.skipped``.
        cache: keep what was read in the user's cache directory, and use it while the source is unchanged.

    Raises:
        SourceError: the data is not there or cannot be read; names the file or row and what to do.
    """
    if val_fraction is not None and not 0 <= val_fraction < 1:
        raise SourceError(f"val_fraction must be at least 0 and below 1, not {val_fraction}")
    if on_bad not in ("raise", "skip"):
        raise SourceError(f"on_bad must be raise or skip, not {on_bad!r}")
    text = str(data)
    note = ""
    if text == "auto":
        text, note = _auto()
    if text == "synthetic" or text.startswith("synthetic:"):
        contents, source, location = _synthetic(text), "synthetic", text
    elif text == "kaggle":
        from fer_utils.sources import kaggle

        path = kaggle.cached() or kaggle.download()
        contents, _ = _read(path, on_bad)
        source, location = "kaggle", kaggle.HANDLE
    else:
        path = Path(text).expanduser()
        contents, source = _read(path, on_bad)
        location = text
    train, val, test, rule = _split(contents, val_fraction, split_seed, location)
    return Splits(train, val, test, source, location, note + rule, contents.skipped, contents.converted)


def _auto() -> tuple[str, str]:
    """Return the data that ``auto`` means and, for synthetic faces, why; never asks the network."""
    named = os.environ.get("FER_DATA")
    if named:
        return named, ""
    place = ROOT / "data"
    if place.is_dir() and any(not hidden(entry.name) for entry in place.iterdir()):
        return str(place), ""
    from fer_utils.sources import kaggle

    if kaggle.cached() is not None:
        return "kaggle", ""
    return "synthetic", (
        f"No faces were found ($FER_DATA is not set, {place} is empty, Kaggle's cache has none), so these are drawn. "
    )


def _synthetic(text: str) -> Contents:
    from fer_utils.sources import synthetic

    splits = synthetic.generate(int(text.partition(":")[2])) if ":" in text else synthetic.generate()
    return Contents({part: faces.sorted() for part, faces in splits if len(faces)}, "generator")


def _read(path: Path, on_bad: OnBad) -> tuple[Contents, str]:
    """Find the layout at ``path`` and read it; return the contents and the layout's name."""
    from fer_utils.sources import csv, folder, parquet

    if not path.exists():
        raise SourceError(f"{path} is not there (looked for {path.resolve()})")
    if path.is_file():
        if path.suffix.lower() == ".csv":
            return csv.read({"all": path}, on_bad, path), "csv"
        return parquet.read({"all": path}, on_bad, path), "parquet"
    entries = {entry.name: entry for entry in path.iterdir() if not hidden(entry.name)}
    folders = [name for name, entry in entries.items() if entry.is_dir()]
    found: dict[str, dict[Role, Path]] = {}
    if any(folder.is_part(name) or folder.is_emotion(name) for name in folders):
        found["folder"] = {}
    for name in _TABLES:
        if name in entries:
            found[name] = {"all": entries[name]}
    if "train.csv" in entries and "test.csv" in entries:
        found["train.csv"] = {"train": entries["train.csv"], "test": entries["test.csv"]}
    for suffix in (".parquet.gzip", ".parquet"):
        if f"df_train{suffix}" in entries:
            pair: dict[Role, Path] = {"train": entries[f"df_train{suffix}"]}
            if f"df_test{suffix}" in entries:
                pair["test"] = entries[f"df_test{suffix}"]
            found[f"df_train{suffix}"] = pair
    if not found and len(folders) == 1:
        return _read(entries[folders[0]], on_bad)
    if len(found) != 1:
        raise SourceError(f"{path} holds {'no layout that is known' if not found else ' and '.join(found)}")
    layout, files = next(iter(found.items()))
    if layout == "folder":
        return folder.read(folder.scan(path, on_bad)), "folder"
    if layout.endswith(".csv"):
        return csv.read(files, on_bad, path), "csv"
    return parquet.read(files, on_bad, path), "parquet"


def _split(contents: Contents, val_fraction: float | None, seed: int, location: str) -> tuple[Faces, Faces, Faces, str]:
    """Return train, val and test, each in the canonical order, and a sentence that says how they were made."""
    faces = contents.faces
    share = VAL_FRACTION if val_fraction is None else val_fraction
    if "all" in faces:
        rest, test = cut(faces["all"], TEST_FRACTION, seed)
        train, val = cut(rest, share / (1 - TEST_FRACTION) if val_fraction is None else share, seed)
        return train, val, test, f"no split is told, so 10% were cut off for test and {share:.0%} for validation"
    if "train" not in faces:
        raise SourceError(f"{location} has no training faces, only {', '.join(faces)}")
    train = faces["train"]
    others = [faces[role] for role in ("val", "test") if role in faces]
    if val_fraction is None and len(others) == 2:
        val, test = others
        return train, val, test, f"train, validation and test as the {contents.told_by} tell"
    test = Faces.concatenate(others).sorted()
    train, val = cut(train, share, seed)
    return train, val, test, f"{share:.0%} of the training part were cut off for validation (seed {seed})"


def row_numbers(names: np.ndarray) -> np.ndarray:
    """Return the row of each face of a table, int64 (N,), from names such as ``test[17]``."""
    return np.array([int(str(name).rpartition("[")[2].removesuffix("]")) for name in names], np.int64)
