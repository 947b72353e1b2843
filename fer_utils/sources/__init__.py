"""Faces from every published layout of FER2013: a folder tree, CSV, parquet, Kaggle, or drawn ones.

`load` finds the layout by what is there and gives the same splits, in the same order, for the same faces.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

from fer_utils.emotions import UNLABELLED
from fer_utils.faces import HALVES, PARTS, Faces, Halves, Names, Splits, cut_mask
from fer_utils.files import ROOT, printable
from fer_utils.sources.reading import ROLES, Contents, Facts, OnBad, Parts, Role, SourceError, hidden

__all__ = ["SourceError", "load", "row_numbers"]

VAL_FRACTION: Final = 0.1
TEST_FRACTION: Final = 0.1

Layout = Literal["folder", "csv", "parquet"]

_TABLES: Final[dict[str, tuple[Layout, Role]]] = {
    "fer2013.csv": ("csv", "all"),
    "icml_face_data.csv": ("csv", "all"),
    "train.csv": ("csv", "train"),
    "test.csv": ("csv", "test"),
    "df_train.parquet.gzip": ("parquet", "train"),
    "df_test.parquet.gzip": ("parquet", "test"),
    "df_train.parquet": ("parquet", "train"),
    "df_test.parquet": ("parquet", "test"),
}
"""Names of published tables, and what each holds."""

_LOOKED_FOR: Final = (
    "folders train, validation and test with a folder for each emotion in them (train/angry/...), or emotion folders "
    "alone; fer2013.csv; icml_face_data.csv; train.csv and test.csv; df_train.parquet.gzip and df_test.parquet.gzip; "
    "or one folder that holds one of these"
)
_DEPTH: Final = 3
"""How many folders that hold one folder each are gone into."""


@dataclass(frozen=True)
class _Place:
    """A layout that was found: a folder's tree at ``path``, or the tables of ``files``."""

    layout: Layout
    path: Path
    files: dict[Role, Path]


def load(
    data: str | Path = "auto",
    *,
    val_fraction: float | None = None,
    split_seed: int = 0,
    on_bad: OnBad = "raise",
    cache: bool = True,
) -> Splits:
    """Return the training, validation and test faces of ``data``.

    The parts are made by the first of these rules that fits; ``Splits.rule`` says which did. Training, PublicTest and
    PrivateTest become train, val and test where file names or the Usage column tell all three. The folders train,
    validation and test are taken as they are. With training faces and one other part, that part is the test set and a
    tenth of the training faces is cut off for validation. With no parts, a tenth is cut off for test and a tenth for
    validation. Cuts are stratified and keep exact copies on one side.

    Faces come ordered by (part, pixel digest, target), so that every layout of the same faces gives the same splits
    and the same fingerprint. Names are file names below the folder, or a table's name and row, counted from 0:
    ``test[17]``. Where the test part is PublicTest and PrivateTest together, ``Splits.halves`` tells them apart, since
    published scores are of one or the other.

    Args:
        data: ``auto``, ``synthetic``, ``synthetic:N`` (N drawn faces), ``kaggle``, or a path: a folder in any published
            layout, a folder that holds one such folder, or a CSV or parquet file. ``auto`` takes the first of
            ``$FER_DATA`` (a path, ``synthetic`` or ``synthetic:N``), ``data/`` at the repository's root, Kaggle's local
            cache, and synthetic faces; it never touches the network. A relative path starts at the working directory;
            ``Splits.location`` is the absolute one.
        val_fraction: share of the training faces to cut off for validation, 0 to below 1; all other labelled parts
            then make up the test set. None: as the source tells, and 0.1 where it tells no validation part.
        split_seed: seed of the cuts.
        on_bad: ``raise`` an error that lists the bad items, or ``skip`` them and list them in ``Splits.skipped``.
        cache: keep what was read in the user's cache directory (`fer_utils.sources.cache`), and take it from there
            while the source's names, sizes and times are unchanged.

    Raises:
        SourceError: the data is not there, has no layout that is known or more than one, or holds bad items; or an
            argument is out of range. Names the place, file or row, and what to do.
    """
    if val_fraction is not None and not 0 <= val_fraction < 1:
        raise SourceError(f"val_fraction is {val_fraction}; expected at least 0 and below 1, or None")
    if on_bad not in ("raise", "skip"):
        raise SourceError(f"on_bad is {on_bad!r}; expected raise or skip")
    if split_seed < 0:
        raise SourceError(f"split_seed is {split_seed}; expected at least 0")
    data, note = _named(data)
    cut = _Cut(val_fraction, split_seed, str(data))
    with _readable(data):
        if _is_drawn(data):
            splits = _synthetic(str(data), cut, cache)
        elif data == "kaggle":
            from fer_utils.sources import kaggle

            cut = replace(cut, location=kaggle.HANDLE)
            splits = replace(_read(_find(kaggle.cached() or kaggle.download()), cut, on_bad, cache), source="kaggle")
        else:
            path = _path(data)
            # Absolute, since whoever reads a run's faces again may do so in another directory. Links keep their names,
            # but where ".." leads is known to the file system alone.
            cut = replace(cut, location=printable(str(path.resolve() if ".." in path.parts else path.absolute())))
            splits = _read(_find(path), cut, on_bad, cache)
    return replace(splits, location=cut.location, rule=note + splits.rule)


def check(data: str | Path) -> None:
    """Tell where ``load`` would find nothing, before anything else is done; nothing is read or fetched.

    Raises:
        SourceError: nothing is there, nothing that is known, or more than one layout; or no number of faces to draw.
    """
    data, _ = _named(data)
    if _is_drawn(data):
        _drawn_count(str(data))
    elif data != "kaggle":
        with _readable(data):
            _find(_path(data))


def row_numbers(names: Names) -> npt.NDArray[np.int64]:
    """Return the row of each face of a table, int64 (N,), by which its predictions can be put back in order.

    Args:
        names: names as a table's faces have them, such as ``test[17]``.

    Raises:
        ValueError: a name is none of a table's row.
    """
    texts = [str(name) for name in names]
    for text in texts:
        number = text.rpartition("[")[2][:-1]
        if not (text.endswith("]") and number.isascii() and number.isdigit()):
            raise ValueError(f"{text!r} names no row of a table; expected a name such as test[17]")
    return np.array([int(text.rpartition("[")[2][:-1]) for text in texts], np.int64)


def _named(data: str | Path) -> tuple[str | Path, str]:
    """Return what ``data`` names where that is ``auto``, and a note for whoever gets drawn faces by it.

    Raises:
        SourceError: it is empty, or for ``auto`` a place cannot be looked at or ``$FER_DATA`` names none that is there.
    """
    if not str(data).strip():
        raise SourceError(
            "data is empty; expected auto, synthetic, synthetic:N, kaggle, or the path of a folder or file"
        )
    with _readable(data):
        return _auto() if data == "auto" else (data, "")


def _is_drawn(data: str | Path) -> bool:
    return isinstance(data, str) and (data == "synthetic" or data.startswith("synthetic:"))


def _drawn_count(data: str) -> int | None:
    """Return the number of ``synthetic:N``, None where there is none.

    Raises:
        SourceError: it is no number, or too few.
    """
    from fer_utils.sources.synthetic import SMALLEST

    _, colon, count = data.partition(":")
    if not colon:
        return None
    if not (count.isascii() and count.isdigit()):
        raise SourceError(f"data is {data!r}; expected synthetic:N with a number N of faces")
    if int(count) < SMALLEST:
        raise SourceError(f"data is {data!r}; expected at least {SMALLEST} faces, for every emotion to be there")
    return int(count)


def _path(data: str | Path) -> Path:
    try:
        return Path(data).expanduser()
    except RuntimeError as error:
        named = " ($FER_DATA names it)" if str(data) == os.environ.get("FER_DATA") else ""
        raise SourceError(f"{data}{named} cannot be found: {error}") from None


@contextmanager
def _readable(data: str | Path) -> Iterator[None]:
    """Turn what the system refuses, such as a folder without permission, into an error that names it."""
    try:
        yield
    except OSError as error:
        raise SourceError(f"{error.filename or data} cannot be read ({error.strerror or error})") from error


def _auto() -> tuple[str | Path, str]:
    """Return the data that ``auto`` means and, for synthetic faces, why.

    Raises:
        SourceError: ``$FER_DATA`` names a path that is not there.
    """
    named = os.environ.get("FER_DATA")
    if named == "synthetic" or (named and named.startswith("synthetic:")):
        return named, ""
    if named:
        path = _path(named)
        if not path.exists():
            raise SourceError(
                f"$FER_DATA is {named}, and {path.absolute()} is not there. It takes the path of a folder or file, "
                "synthetic or synthetic:N. Kaggle's copy may need the network, which auto never uses: give kaggle as "
                "data instead (--data kaggle)"
            )
        return path, ""
    place = ROOT / "data"
    if place.is_dir() and any(not hidden(name) for name in os.listdir(place)):
        return place, ""
    from fer_utils.sources import kaggle

    if kaggle.cached() is not None:
        return "kaggle", ""
    nothing = "FER_DATA is not set, data/ is empty and Kaggle's local cache has no copy"
    return "synthetic", f"No faces were found ({nothing}), so a generator drew some. "


class _NothingKnownError(SourceError):
    """A folder holds no layout that is known, so that the folder around it may say so instead."""


def _find(path: Path, depth: int = 0) -> _Place:
    """Return the layout at ``path``.

    Raises:
        SourceError: nothing is there, nothing that is known (`_NothingKnownError`), or more than one layout.
    """
    from fer_utils.sources import folder

    if not path.exists():
        notes = ["$FER_DATA names it"] if str(path) == os.environ.get("FER_DATA") else []
        notes += [] if path.is_absolute() else [f"that is {path.absolute()}"]
        told = f" ({'; '.join(notes)})" if notes else ""
        raise SourceError(
            f"{path} is not there{told}. Expected the path of a folder or file, or one of auto, synthetic, "
            "synthetic:N, kaggle"
        )
    if path.is_file():
        layout: Layout | None = "parquet" if ".parquet" in path.name.lower() else None
        layout = "csv" if path.suffix.lower() == ".csv" else layout
        if layout is None:
            raise SourceError(f"{path} is a file whose name ends in neither .csv, .parquet nor .parquet.gzip")
        return _Place(layout, path, {"all": path})
    entries = sorted(entry for entry in path.iterdir() if not hidden(entry.name))
    folders = [entry for entry in entries if entry.is_dir()]
    found: dict[str, _Place] = {}
    if any(folder.is_part(entry.name) or folder.is_emotion(entry.name) for entry in folders):
        found["a folder tree"] = _Place("folder", path, {})
    for entry in entries:
        if entry.name.lower() in _TABLES and entry.is_file():
            layout, role = _TABLES[entry.name.lower()]
            if role == "all":
                found[entry.name] = _Place(layout, path, {role: entry})
            else:
                # Two tables of one kind, one for training and one for test, are one layout.
                kind = entry.name.lower().replace(role, "*")
                held = found.setdefault(kind, _Place(layout, path, {})).files
                if role in held:
                    raise SourceError(
                        f"{path} holds {held[role].name} and {entry.name}; which one is meant is not known"
                    )
                held[role] = entry
    if not found and len(folders) == 1 and depth < _DEPTH:
        try:
            return _find(folders[0], depth + 1)
        except _NothingKnownError:
            if depth:
                raise
    if len(found) == 1:
        return next(iter(found.values()))
    there = ", ".join(entry.name for entry in entries[:10]) + (" ..." if len(entries) > 10 else "")
    if found:
        tables = {kind: [held.files[role].name for role in ROLES if role in held.files] for kind, held in found.items()}
        told = "; ".join(" and ".join(names) or kind for kind, names in tables.items())
        # A tree, or two tables that are one layout, have no path of their own that could be given.
        files = [names[0] for names in tables.values() if len(names) == 1]
        name_one = f"Give the path of the one file that is meant ({' or '.join(files)}), or move" if files else "Move"
        raise SourceError(
            f"{path} holds more than one layout: {told}. {name_one} all layouts but the one that is meant out of this "
            "folder"
        )
    raise _NothingKnownError(
        f"{path} holds no layout that is known. Looked for: {_LOOKED_FOR}. Found: {there or 'nothing'}"
    )


@dataclass(frozen=True)
class _Cut:
    """How the parts are to be made, and what to call the source in messages."""

    val_fraction: float | None
    seed: int
    location: str


def _read(place: _Place, how: _Cut, on_bad: OnBad, use_cache: bool) -> Splits:
    """Read a layout, or take it from the cache."""
    from fer_utils.sources import cache, csv, folder, parquet, reading

    files = [place.path, *place.files.values()]
    key = "\n".join([place.layout, str(how.val_fraction), str(how.seed), *(str(path.resolve()) for path in files)])
    with ThreadPoolExecutor(1) as pool:
        # The entry is read while the source's files are listed: whether it is still good is known when both are there.
        fetched = pool.submit(cache.load, key) if use_cache else None
        if place.layout == "folder":
            tree = folder.scan(place.path, on_bad)
            stamp = tree.stamp()
        else:
            stamp = reading.stamp(list(place.files.values()))
        kept = fetched.result() if fetched else None
    if kept is not None and kept[0] == stamp and not (kept[1].skipped and on_bad == "raise"):
        return kept[1]
    if place.layout == "folder":
        contents = folder.read(tree)
    elif place.layout == "csv":
        contents = csv.read(place.files, on_bad, place.path)
    else:
        contents = parquet.read(place.files, on_bad, place.path)
    return _make(contents, how, place.layout, key, stamp, use_cache)


def _synthetic(data: str, how: _Cut, use_cache: bool) -> Splits:
    """Draw faces, or take them from the cache: the same as long as the generator is."""
    from fer_utils.sources import cache, synthetic

    count = _drawn_count(data)
    generator = Path(synthetic.__file__).read_bytes()
    stamp = f"{hashlib.blake2b(generator, digest_size=16).hexdigest()} numpy {np.__version__}"
    key = f"{data}\n{how.val_fraction}\n{how.seed}"
    kept = cache.load(key) if use_cache else None
    if kept is not None and kept[0] == stamp:
        return kept[1]
    drawn = synthetic.generate() if count is None else synthetic.generate(count)
    parts = dict(drawn)
    everything = Faces.concatenate(list(parts.values()))
    roles = np.repeat([ROLES.index(part) for part in parts], [len(faces) for faces in parts.values()]).astype(np.int8)
    names = everything.names.astype(np.str_)
    contents = Contents(everything.images, everything.digests, everything.targets, roles, names, told_by="generator")
    return _make(contents, how, "synthetic", key, stamp, use_cache)


def _make(contents: Contents, how: _Cut, source: str, key: str, stamp: str, use_cache: bool) -> Splits:
    """Make the parts of what was read, and keep them."""
    from fer_utils.sources import cache

    parts, rule = _split(contents, how)
    halves = _halves(contents, parts[2])
    if use_cache:
        kept = cache.store(key, stamp, contents, parts, Facts(source, how.location, rule), halves)
        if kept is not None:
            return kept
    train, val, test = (
        Faces(contents.images[part], contents.targets[part], contents.names[part], contents.digests[part])
        for part in parts
    )
    return Splits(train, val, test, source, how.location, rule, contents.skipped, contents.converted, halves)


def _halves(contents: Contents, test: npt.NDArray[np.int64]) -> Halves | None:
    """Return which of the challenge's halves each test face is of, where the source tells that the test part has both.

    Folders called validation and test are somebody's own parts, whatever they hold.
    """
    roles, both = contents.roles[test], [ROLES.index("val"), ROLES.index("test")]
    if contents.told_by not in ("file names", "Usage column") or not np.array_equal(np.unique(roles), both):
        return None
    return np.where(roles == both[0], *HALVES)


def _split(contents: Contents, how: _Cut) -> tuple[Parts, str]:
    """Return which faces are in train, val and test, each in the canonical order, and a sentence that says why."""
    share = VAL_FRACTION if how.val_fraction is None else how.val_fraction

    def cut(index: npt.NDArray[np.int64], fraction: float) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        mask = cut_mask(contents.digests[index], contents.targets[index], fraction, how.seed)
        return index[~mask], index[mask]

    def cut_val(index: npt.NDArray[np.int64], fraction: float) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        train, val = cut(index, fraction)
        if not len(train):
            raise SourceError(f"{how.location}: val_fraction {share:g} leaves no training faces of {len(val):,}")
        return train, val

    sizes = contents.sizes()
    if set(sizes) <= {"all", "train"}:
        everything = contents.where("all", "train")
        rest, test = cut(everything, TEST_FRACTION)
        # By default a tenth of all faces; a share that is asked for is one of the faces left for training.
        train, val = cut_val(rest, share / (1 - TEST_FRACTION) if how.val_fraction is None else share)
        rule = (
            f"The source tells no parts: {len(test) / len(everything):.0%} of its faces were cut off for test and "
            f"{len(val) / len(everything):.0%} for validation (seed {how.seed})."
        )
        return (train, val, test), rule
    if "train" not in sizes:
        there = " and ".join(f"{size:,} {role}" for role, size in sizes.items())
        raise SourceError(f"{how.location} has no training faces, only {there} faces; give them together")
    if how.val_fraction is None and len(sizes) == 3:
        train, val, test = (contents.where(part) for part in PARTS)
        unlabelled = val[contents.targets[val] == UNLABELLED]
        if len(unlabelled):
            name = contents.names[unlabelled[0]]
            raise SourceError(f"{how.location}: {name} is a validation face without an emotion; every one needs it")
        return (train, val, test), f"Train, validation and test as told by the {contents.told_by}."
    train, val = cut_val(contents.where("train"), share)
    test = contents.where("val", "test")
    others = "the other part is" if len(sizes) == 2 else "both other parts together are"
    labelled = contents.targets[test] != UNLABELLED
    if len(sizes) == 3 and labelled.any() and not labelled.all():
        # Together with faces that have no label, those that have one could not be scored.
        others = f"the labelled faces of both other parts are ({np.count_nonzero(~labelled):,} have no label)"
        test = test[labelled]
    cut_off = len(val) / (len(train) + len(val))
    rule = (
        f"Training faces as told by the {contents.told_by}, {cut_off:.0%} of them cut off for validation (seed "
        f"{how.seed}); {others} the test set."
    )
    return (train, val, test), rule
