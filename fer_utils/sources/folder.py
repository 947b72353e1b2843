"""Reads a tree of image files: ``train/angry/Training_3908.jpg`` and its relatives.

A tree has folders ``train``, ``validation`` and ``test`` (or ``Training``, ``val``, ``PublicTest`` ...), each with a folder
for every emotion in any published spelling; or the emotion folders alone. A ``test`` folder that holds images and no
folders is unlabelled. Kaggle's tree keeps both official test halves in ``test`` and tells them by file name.

Names that operating systems leave about (``.DS_Store``, ``Thumbs.db``, whatever begins with a dot) are passed over
silently, and so are files beside the part folders, such as a README.
"""

from __future__ import annotations

import hashlib
import os
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np

from fer_utils.emotions import EMOTIONS, UNLABELLED, target_of
from fer_utils.faces import SIZE, Faces
from fer_utils.sources.images import MAX_BYTES, ImageError, is_face, open_image, to_face
from fer_utils.sources.reading import USAGES, BadItems, Contents, OnBad, Role, SourceError, hidden, stamp_of

PARTS: Final[dict[str, Role]] = {
    "train": "train", "training": "train",
    "val": "val", "valid": "val", "validation": "val", "publictest": "val",
    "test": "test", "testing": "test", "privatetest": "test",
}  # fmt: skip
"""Names of part folders, in lower case."""


def is_part(name: str) -> bool:
    """Tell whether a folder's name is that of a part."""
    return name.lower() in PARTS


def is_emotion(name: str) -> bool:
    """Tell whether a folder's name is that of an emotion."""
    try:
        target_of(name)
    except ValueError:
        return False
    return True


@dataclass
class Tree:
    """The files of a tree, not read yet: parallel lists, sorted by name."""

    root: Path
    on_bad: OnBad
    names: list[str] = field(default_factory=list)
    targets: list[int] = field(default_factory=list)
    roles: list[Role] = field(default_factory=list)
    stamps: list[tuple[int, int, int]] = field(default_factory=list)
    bad: BadItems = field(init=False)

    def __post_init__(self) -> None:
        self.bad = BadItems(self.on_bad, self.root)

    def stamp(self) -> str:
        """Return a digest of every file's name, size and times."""
        lines = [f"{name}\0{stamp}" for name, stamp in zip(self.names, self.stamps, strict=True)]
        return hashlib.blake2b("\n".join(lines).encode("utf-8", "surrogateescape"), digest_size=16).hexdigest()


def scan(root: Path, on_bad: OnBad) -> Tree:
    """List the files of the tree at ``root`` without reading them.

    Raises:
        SourceError: under ``on_bad="raise"``, a folder that is no emotion, a missing emotion, an empty part, or a file
            where none belongs.
    """
    tree = Tree(root, on_bad)
    folders = sorted(entry.name for entry in os.scandir(root) if entry.is_dir() and not hidden(entry.name))
    if any(is_part(name) for name in folders):
        for name in folders:
            if is_part(name):
                _scan_part(tree, f"{name}/", PARTS[name.lower()])
            elif not is_emotion(name):
                tree.bad.add(name, f"a folder beside the parts that is none of them ({', '.join(PARTS)})")
            else:
                tree.bad.add(name, "an emotion's folder beside the part folders, so it belongs to no part")
    else:
        _scan_part(tree, "", "all")
    tree.bad.check()
    return tree


def _scan_part(tree: Tree, prefix: str, role: Role) -> None:
    before = len(tree.names)
    where = prefix.rstrip("/") or str(tree.root)
    entries = sorted((e for e in os.scandir(tree.root / prefix) if not hidden(e.name)), key=lambda entry: entry.name)
    folders = [entry for entry in entries if entry.is_dir()]
    files = [entry for entry in entries if not entry.is_dir()]
    if not folders and role == "test":
        _scan_files(tree, prefix, UNLABELLED, role)
    else:
        if prefix:
            for entry in files:
                tree.bad.add(prefix + entry.name, "a file that is in no emotion's folder")
        seen = set()
        for entry in folders:
            try:
                target = target_of(entry.name)
            except ValueError as error:
                tree.bad.add(prefix + entry.name, f"a folder that is no emotion: {error}")
                continue
            count = len(tree.names)
            _scan_files(tree, f"{prefix}{entry.name}/", target, role)
            if len(tree.names) > count:
                seen.add(target)
        if seen:
            for missing in sorted(set(range(len(EMOTIONS))) - seen):
                tree.bad.add(f"{prefix}{EMOTIONS[missing]}", "the emotion's folder is missing or empty")
    if len(tree.names) == before:
        tree.bad.add(where, "an empty split: there is no face in it")


def _scan_files(tree: Tree, prefix: str, target: int, role: Role) -> None:
    found: list[tuple[str, tuple[int, int, int]]] = []
    with os.scandir(tree.root / prefix) as entries:
        for entry in entries:
            if hidden(entry.name):
                continue
            try:
                status = entry.stat()
            except OSError as error:
                tree.bad.add(prefix + entry.name, f"the file cannot be read ({error.strerror})")
                continue
            if stat.S_ISREG(status.st_mode):
                found.append((prefix + entry.name, stamp_of(status)))
            else:
                tree.bad.add(prefix + entry.name, "not a file; an image is expected in an emotion's folder")
    found.sort()
    tree.names += [name for name, _ in found]
    tree.stamps += [stamp for _, stamp in found]
    tree.targets += [target] * len(found)
    tree.roles += [role] * len(found)


def read(tree: Tree) -> Contents:
    """Read the faces of a tree.

    Raises:
        SourceError: a bad image under ``on_bad="raise"``, or no face at all.
    """
    n = len(tree.names)
    images = np.zeros((n, SIZE, SIZE), np.uint8)
    bad: dict[int, str] = {}
    converted = np.zeros(n, bool)
    root = str(tree.root)

    def read_some(start: int, stop: int) -> None:
        for i in range(start, stop):
            try:
                if tree.stamps[i][0] > MAX_BYTES:
                    raise ImageError(
                        f"the file has {tree.stamps[i][0]:,} bytes, more than the {MAX_BYTES:,} that are read"
                    )
                with open(f"{root}/{tree.names[i]}", "rb", buffering=0) as file:
                    data = file.read()
                image = open_image(data)
                images[i] = to_face(image)
                converted[i] = not is_face(image)
            except OSError as error:
                bad[i] = f"the file cannot be read ({error.strerror})"
            except ImageError as error:
                bad[i] = str(error)

    read_some(0, n)
    for i in sorted(bad):
        tree.bad.add(tree.names[i], bad[i])
    tree.bad.check()
    good = np.ones(n, bool)
    good[list(bad)] = False
    if not good.any():
        raise SourceError(f"{tree.root} holds no readable face")
    roles, told_by = _roles(tree)
    everything = Faces(images, np.array(tree.targets, np.int64), np.array(tree.names, dtype=np.str_))
    faces = {
        role: everything.select(np.flatnonzero((roles == role) & good)).sorted()
        for role in ("all", "train", "val", "test")
        if ((roles == role) & good).any()
    }
    return Contents(faces, told_by, tuple(tree.bad.skipped), int((converted & good).sum()))


def _roles(tree: Tree) -> tuple[np.ndarray, str]:
    """Return each file's role and what told it: the official names where they tell all three parts and contradict no
    folder, else the folders.
    """
    by_name: list[Role | None] = [USAGES.get(name.rpartition("/")[2].partition("_")[0].lower()) for name in tree.names]
    folder = tree.roles
    told = [named or ("train" if role == "train" else None) for named, role in zip(by_name, folder, strict=True)]
    # Kaggle's tree keeps PublicTest in its test folder: there a name says more than the folder, elsewhere they must agree.
    agree = all(
        named is not None and (role in ("all", named) or (role == "test" and named == "val"))
        for named, role in zip(told, folder, strict=True)
    )
    if agree and {"train", "val", "test"} <= set(told):
        return np.array(told), "file names"
    return np.array(folder), "folders"
