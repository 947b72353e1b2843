"""Reads a tree of image files: ``train/angry/Training_3908.jpg`` and its relatives.

A tree has folders ``train``, ``validation`` and ``test`` (or ``Training``, ``val``, ``PublicTest`` ...), each with a
folder for every emotion in any published spelling; or the emotion folders alone. A ``test`` folder that holds images
and no folders is unlabelled. Kaggle's tree keeps both official test halves in ``test`` and tells them by file name.

Names that operating systems leave about (``.DS_Store``, ``Thumbs.db``, whatever begins with a dot) are passed over
silently, and so are files beside the part folders, such as a README.
"""

from __future__ import annotations

import hashlib
import os
import stat
import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from fer_utils.emotions import EMOTIONS, UNLABELLED, target_of
from fer_utils.faces import SIZE, Digests, Images, digests
from fer_utils.files import printable
from fer_utils.sources import jpeg
from fer_utils.sources.images import MAX_BYTES, ImageError, is_face, open_image, to_face
from fer_utils.sources.reading import ROLES, USAGES, BadItems, Contents, OnBad, Pile, Role, hidden

THREADS: Final = 2
AT_ONCE: Final = 512
"""Files that are read and unpacked at a time."""
PATIENCE: Final = 0.02
"""Seconds that a thread waits for its turn: several times what another one needs, where files come from memory."""
BYTES_AT_ONCE: Final = 50_000_000
"""Bytes of files that are read at a time, where they are large."""

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


class Unpacked(NamedTuple):
    """Some files: images of those that could be read, uint8 (n, 48, 48), and their digests, which files these are, what
    is wrong with the others, and how many images were converted.
    """

    images: Images
    digests: Digests
    good: list[int]
    bad: dict[int, str]
    converted: int


@dataclass
class Tree:
    """The files of a tree, not read yet: parallel lists in the order of names within a folder.

    Attributes:
        root: the folder that holds the tree.
        names: paths below ``root``, with slashes.
        targets: what the folder's name says, -1 in an unlabelled part.
        roles: what the folder's name says.
        stamps: int64 (n, 3) for each folder: size in bytes, modification time and change time in nanoseconds.
        bad: what is wrong with the tree so far.
    """

    root: Path
    bad: BadItems
    names: list[str] = field(default_factory=list)
    targets: list[int] = field(default_factory=list)
    roles: list[Role] = field(default_factory=list)
    stamps: list[npt.NDArray[np.int64]] = field(default_factory=list)

    def stamp(self) -> str:
        """Return text that changes when a file's name, size or times do, or when other things are wrong."""
        hasher = hashlib.blake2b("\n".join(self.names).encode("utf-8", "surrogateescape"), digest_size=16)
        for stamps in self.stamps:
            hasher.update(stamps.tobytes())
        hasher.update(repr(self.bad.skipped).encode("utf-8", "surrogateescape"))
        return hasher.hexdigest()


def scan(root: Path, on_bad: OnBad) -> Tree:
    """List the files of the tree at ``root`` without reading them.

    Raises:
        SourceError: under ``on_bad="raise"``, a folder that is no emotion, a missing emotion, an empty part, or a file
            where none belongs.
    """
    tree = Tree(root, BadItems(on_bad, root))
    entries = [entry for entry in os.scandir(root) if not hidden(entry.name)]
    folders = sorted(entry.name for entry in entries if entry.is_dir())
    for entry in entries:
        if entry.is_symlink() and is_part(entry.name) and not entry.is_dir():
            tree.bad.add(entry.name, "a link to a folder that is not there")
    if any(is_part(name) for name in folders):
        for name in folders:
            if is_part(name):
                _scan_part(tree, f"{name}/", PARTS[name.lower()])
            else:
                tree.bad.add(name, f"a folder beside the parts that is none of them ({', '.join(PARTS)})")
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
    names: list[str] = []
    stamps: list[int] = []
    try:
        with _entries(tree.root / prefix) as entries:
            # Tens of thousands of times, so only what must be.
            for entry in entries:
                name = entry.name
                try:
                    status = entry.stat()
                except OSError as error:
                    if not hidden(name):
                        tree.bad.add(prefix + name, f"the file cannot be read ({error.strerror})")
                    continue
                if stat.S_ISREG(status.st_mode):
                    names.append(name)
                    stamps += (status.st_size, status.st_mtime_ns, status.st_ctime_ns)
                elif not hidden(name):
                    tree.bad.add(prefix + name, "not a file; an image is expected in an emotion's folder")
    except OSError as error:
        tree.bad.add(prefix, f"the folder cannot be read ({error.strerror})")
    order = [i for i in sorted(range(len(names)), key=names.__getitem__) if not hidden(names[i])]
    tree.names += [prefix + names[i] for i in order]
    tree.stamps.append(np.array(stamps, np.int64).reshape(-1, 3)[order])
    tree.targets += [target] * len(order)
    tree.roles += [role] * len(order)


@contextmanager
def _entries(folder: Path) -> Iterator[Iterator[os.DirEntry[str]]]:
    """Give what is in a folder, where the system can by the open folder's number: that spares the way to each file."""
    if os.scandir in os.supports_fd:
        number = os.open(folder, os.O_RDONLY)
        try:
            with os.scandir(number) as entries:
                yield entries
        finally:
            os.close(number)
    else:
        with os.scandir(folder) as entries:
            yield entries


def read(tree: Tree) -> Contents:
    """Read the faces of a tree.

    Raises:
        SourceError: a bad image under ``on_bad="raise"``, or no face at all.
    """
    pile = Pile(len(tree.names))
    turn = threading.Lock()
    good: list[int] = []
    converted = 0
    with ThreadPoolExecutor(THREADS) as pool:
        # Threads read and unpack: the system's calls and the decoder let Python go on. Few files are in memory at a
        # time, however many there are.
        ahead: deque[Future[Unpacked]] = deque()
        sizes = np.concatenate(tree.stamps)[:, 0].tolist() if tree.stamps else []
        chunks = _chunks(sizes)
        while True:
            while len(ahead) <= 2 * THREADS and (chunk := next(chunks, None)) is not None:
                ahead.append(pool.submit(_read_some, tree, sizes, chunk, turn))
            if not ahead:
                break
            unpacked = ahead.popleft().result()
            for i, reason in unpacked.bad.items():
                tree.bad.add(tree.names[i], reason)
            good += unpacked.good
            converted += unpacked.converted
            pile.add(unpacked.images, unpacked.digests)
    tree.bad.check()
    if not good:
        raise tree.bad.nothing_left()
    roles, told_by = _roles(tree)
    index = np.array(good)
    # One text, since most trees have nothing that needs it and tens of thousands of names.
    names = np.array(printable("\n".join(tree.names)).split("\n"), np.str_)[index]
    targets = np.array(tree.targets, np.int64)[index]
    skipped = tuple(tree.bad.skipped)
    return Contents(*pile.all(), targets, roles[index], names, told_by, skipped, converted)


def _chunks(sizes: list[int]) -> Iterator[range]:
    """Cut files of so many bytes into pieces that are read at a time, as indices."""
    first, total = 0, 0
    for i, size in enumerate(sizes):
        if i - first == AT_ONCE or (i > first and total + size > BYTES_AT_ONCE):
            yield range(first, i)
            first, total = i, 0
        total += size
    if first < len(sizes):
        yield range(first, len(sizes))


@contextmanager
def _in_turn(turn: threading.Lock) -> Iterator[None]:
    """Do what takes Python's lock thousands of times while other threads do not: they would wake each other each time.

    Where files come slowly, threads had better wait for them at once, so none waits long for its turn.
    """
    mine = turn.acquire(timeout=PATIENCE)
    try:
        yield
    finally:
        if mine:
            turn.release()


def _read_some(tree: Tree, sizes: list[int], indices: range, turn: threading.Lock) -> Unpacked:
    """Read and unpack some files; several threads do so, and none changes the tree."""
    with _in_turn(turn):
        files, bad = _contents(tree, sizes, indices)
    unpacked = unpack(files, turn)
    return unpacked._replace(bad=dict(sorted((unpacked.bad | bad).items())))


def _contents(tree: Tree, sizes: list[int], indices: range) -> tuple[dict[int, bytes], dict[int, str]]:
    """Return what is in some files, and what is wrong with the others."""
    root = f"{tree.root}{os.sep}"
    flags = os.O_RDONLY | getattr(os, "O_BINARY", 0)
    files: dict[int, bytes] = {}
    bad: dict[int, str] = {}
    for i in indices:
        if sizes[i] > MAX_BYTES:
            bad[i] = f"the file has {sizes[i]:,} bytes; more than {MAX_BYTES:,} are not read"
            continue
        try:
            # Half the time of open(), which matters for so many files so small.
            file = os.open(root + tree.names[i], flags)
            try:
                files[i] = os.read(file, sizes[i] + 1)
            finally:
                os.close(file)
        except OSError as error:
            bad[i] = f"the file cannot be read ({error.strerror})"
    return files, bad


def unpack(files: dict[int, bytes], turn: threading.Lock) -> Unpacked:
    """Unpack files by their index: those that share a plain JPEG header as one, the others one by one."""
    stacks: dict[bytes, tuple[list[int], list[bytes]]] = {}
    alone: list[int] = []
    header = b""
    for i, data in files.items():
        if not header or not data.startswith(header):
            header = data[: jpeg.header_length(data)]
        if header and data.endswith(jpeg.END):
            indices, pieces = stacks.setdefault(header, ([], []))
            indices.append(i)
            pieces.append(data[len(header) : -len(jpeg.END)])
        else:
            alone.append(i)
    done = [_unpack_alone(files, alone)]
    for header, (indices, pieces) in stacks.items():
        images = jpeg.unpack(header, pieces)
        if images is None:
            done.append(_unpack_alone(files, indices))
        else:
            with _in_turn(turn):
                known = digests(images)
            done.append(Unpacked(images, known, indices, {}, 0))
    done = [one for one in done if one.good or one.bad] or done[:1]
    if len(done) == 1:
        return done[0]
    bad = {i: reason for one in done for i, reason in one.bad.items()}
    return Unpacked(
        np.concatenate([one.images for one in done]),
        np.concatenate([one.digests for one in done]),
        [i for one in done for i in one.good],
        dict(sorted(bad.items())),
        sum(one.converted for one in done),
    )


def _unpack_alone(files: dict[int, bytes], indices: list[int]) -> Unpacked:
    images: list[Images] = []
    good: list[int] = []
    bad: dict[int, str] = {}
    converted = 0
    for i in indices:
        try:
            image = open_image(files[i])
            images.append(to_face(image))
        except ImageError as error:
            bad[i] = str(error)
        else:
            good.append(i)
            converted += not is_face(image)
    faces = np.array(images, np.uint8).reshape(-1, SIZE, SIZE)
    return Unpacked(faces, digests(faces), good, bad, converted)


def _roles(tree: Tree) -> tuple[npt.NDArray[np.int8], str]:
    """Return each file's role, as an index into `ROLES`, and what told it.

    The official names tell where they name all three parts and contradict no folder but ``test``, in which Kaggle keeps
    PublicTest too; a file in ``train`` needs no such name. Otherwise the folders tell.
    """
    told: list[Role] = []
    for name, folder, target in zip(tree.names, tree.roles, tree.targets, strict=True):
        named = USAGES.get(name.rpartition("/")[2].partition("_")[0].lower())
        if named is None and folder == "train":
            named = "train"
        if named is None or not (folder in ("all", named) or (folder == "test" and named == "val")):
            break
        if named == "val" and target == UNLABELLED:
            # Nothing can be chosen by a face without an emotion.
            break
        told.append(named)
    official = len(told) == len(tree.names) and {"train", "val", "test"} <= set(told)
    roles = told if official else tree.roles
    number = {role: i for i, role in enumerate(ROLES)}
    return np.array([number[role] for role in roles], np.int8), "file names" if official else "folders"
