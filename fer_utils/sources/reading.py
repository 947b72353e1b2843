"""What every reader gives, and how all of them treat a bad item."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from fer_utils.emotions import CHALLENGE_ORDER, FROM_CHALLENGE, UNLABELLED
from fer_utils.faces import SIZE, Digests, Images, Names, Skipped, Targets, digests
from fer_utils.files import printable

OnBad = Literal["raise", "skip"]
Role = Literal["all", "train", "val", "test"]
"""What a group of faces is for, as far as the source tells: ``all`` where it tells nothing. The challenge's Training,
PublicTest and PrivateTest are ``train``, ``val`` and ``test``."""

ROLES: Final[tuple[Role, ...]] = ("all", "train", "val", "test")
USAGES: Final[dict[str, Role]] = {"training": "train", "publictest": "val", "privatetest": "test"}
"""The challenge's names of its three parts, in lower case."""

PIXELS: Final = SIZE * SIZE
LABELS: Final = ", ".join(f"{i} {name}" for i, name in enumerate(CHALLENGE_ORDER))
"""How the challenge numbers the emotions, for messages."""

_HIDDEN: Final = frozenset({"thumbs.db", "desktop.ini", "__macosx"})
_SHOWN: Final = 10


class SourceError(ValueError):
    """Data that cannot be read as asked; the message names the place, file or row and says what to do.

    Attributes:
        skipped: the bad items, where there was nothing else.
    """

    skipped: tuple[Skipped, ...] = ()


class Pile:
    """Images that come some at a time, in one array: memory is touched once, however they came."""

    def __init__(self, capacity: int) -> None:
        """Make room for so many images; more may come. What is never filled takes no memory."""
        self._images = np.empty((capacity, SIZE, SIZE), np.uint8)
        self._digests: list[Digests] = []
        self._count = 0

    def add(self, images: Images, known: Digests | None = None) -> None:
        """Put images, uint8 (n, 48, 48), behind those that are there; their digests are computed unless known."""
        stop = self._count + len(images)
        if stop > len(self._images):
            larger = np.empty((2 * stop, SIZE, SIZE), np.uint8)
            larger[: self._count] = self._images[: self._count]
            self._images = larger
        self._images[self._count : stop] = images
        self._digests.append(digests(images) if known is None else known)
        self._count = stop

    def all(self) -> tuple[Images, Digests]:
        """Return the images, uint8 (N, 48, 48), and their digests."""
        return self._images[: self._count], np.concatenate([np.zeros(0, "S32"), *self._digests])


@dataclass(frozen=True)
class Contents:
    """What a reader found: N faces in the order of the source.

    Attributes:
        images: uint8 (N, 48, 48).
        digests: (N,) of ``S32``.
        targets: int64 (N,), -1 where unlabelled.
        roles: int8 (N,), indices into `ROLES`.
        names: (N,) what the source calls each face.
        told_by: what told the roles: ``file names``, ``folders``, ``Usage column``, ``files`` or ``generator``.
        skipped: items passed over under ``on_bad="skip"``.
        converted: how many images came in another size or mode and were turned into grey 48×48.
    """

    images: Images
    digests: Digests
    targets: Targets
    roles: npt.NDArray[np.int8]
    names: Names
    told_by: str
    skipped: tuple[Skipped, ...] = ()
    converted: int = 0

    def where(self, *roles: Role) -> npt.NDArray[np.int64]:
        """Return the indices of the faces of any of ``roles``, in the canonical order: by digest, then by target."""
        index = np.flatnonzero(np.isin(self.roles, [ROLES.index(role) for role in roles]))
        return index[np.lexsort((self.targets[index], self.digests[index]))]

    def sizes(self) -> dict[Role, int]:
        """Return how many faces each role has, of those that have any."""
        counts = np.bincount(self.roles, minlength=len(ROLES)).tolist()
        return {role: count for role, count in zip(ROLES, counts, strict=True) if count}


Parts = tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]]
"""Which faces are in train, val and test: indices into `Contents`."""


class Facts(NamedTuple):
    """What `Splits` say of their source."""

    source: str
    location: str
    rule: str


class BadItems:
    """Gathers bad items; raises under ``on_bad="raise"``, keeps them for the record under ``"skip"``."""

    def __init__(self, on_bad: OnBad, location: Path) -> None:
        self.skipped: list[Skipped] = []
        self._on_bad = on_bad
        self._location = location

    def add(self, name: str, reason: str) -> None:
        """Note that the item called ``name`` cannot be used, and why."""
        self.skipped.append(Skipped(printable(name), reason))

    def check(self) -> None:
        """Raise if there are bad items and none may be skipped.

        Raises:
            SourceError: names the first ten items with their reasons, and says what to do.
        """
        if not self.skipped or self._on_bad == "skip":
            return
        lines = [f"{item.name}: {item.reason}" for item in self.skipped[:_SHOWN]]
        if len(self.skipped) > _SHOWN:
            lines.append(f"and {len(self.skipped) - _SHOWN:,} more")
        count = "1 bad item" if len(self.skipped) == 1 else f"{len(self.skipped):,} bad items"
        raise SourceError(
            f"{count} in {self._location}:\n  "
            + "\n  ".join(lines)
            + '\nMend or remove what is named, or read with on_bad="skip" to go on without it.'
        )

    def nothing_left(self) -> SourceError:
        """Return the error to raise where no face is left, with the reasons that are known."""
        reasons = "".join(f"\n  {item.name}: {item.reason}" for item in self.skipped[:_SHOWN])
        error = SourceError(f"{self._location} holds no face that can be read{':' if reasons else '.'}{reasons}")
        error.skipped = tuple(self.skipped)
        return error


def of_rows(
    pile: Pile, targets: list[int], roles: list[int], names: list[str], told_by: str, bad: BadItems
) -> Contents:
    """Return what the reader of a table gathered from its good rows.

    Raises:
        SourceError: there are bad rows and none may be skipped, or no good one.
    """
    bad.check()
    if not targets:
        raise bad.nothing_left()
    return Contents(
        *pile.all(),
        np.array(targets, np.int64),
        np.array(roles, np.int8),
        np.array(names, np.str_),
        told_by,
        tuple(bad.skipped),
    )


def label_target(label: str, role: Role) -> int:
    """Return the canonical target of a label as the challenge numbers it; nothing and -1 mean unlabelled.

    A column in which a label is missing comes back from pandas as ``0.0`` and ``nan``.

    Raises:
        ValueError: the label is none of 0 to 6, or a training face has none.
    """
    number = label.lower().removesuffix(".0")
    if number in ("", "-1", "nan"):
        if role in ("all", "train"):
            raise ValueError(f"has no emotion, and a training face needs one: {LABELS}")
        return UNLABELLED
    if number not in ("0", "1", "2", "3", "4", "5", "6"):
        raise ValueError(f"emotion is {label}; expected {LABELS}, or -1 where unlabelled")
    return FROM_CHALLENGE[int(number)]


def wrong_count(count: int) -> ValueError:
    """Return the error of a row that has another number of pixels than a face."""
    return ValueError(f"has {count:,} pixels; expected {PIXELS:,} ({SIZE} × {SIZE})")


def wrong_pixel(index: int, value: object) -> ValueError:
    """Return the error of a row with a pixel that is no whole number from 0 to 255."""
    return ValueError(f"pixel {index} is {value}; expected a whole number from 0 to 255")


def hidden(name: str) -> bool:
    """Tell whether a name is one that operating systems leave about (``.DS_Store``, ``Thumbs.db``, anything that begins
    with a dot): files and folders of such names are passed over without a word.
    """
    return name.startswith(".") or name.lower() in _HIDDEN


def stamp(files: Sequence[Path]) -> str:
    """Return text that changes when a file does: names, sizes and times."""
    states = [(path.name, os.stat(path)) for path in files]
    return " ".join(f"{name!r} {s.st_size} {s.st_mtime_ns} {s.st_ctime_ns}" for name, s in states)
