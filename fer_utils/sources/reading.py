"""What every reader gives, and how all of them treat a bad item."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

from fer_utils.emotions import CHALLENGE_ORDER, FROM_CHALLENGE, UNLABELLED
from fer_utils.faces import SIZE, Digests, Faces, Images, Names, Skipped, Targets

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
    """Data that cannot be read as asked; the message names the place, file or row and says what to do."""


@dataclass(frozen=True)
class Contents:
    """What a reader found: N faces in the order of the source.

    Attributes:
        chunks: the images, some at a time: uint8 (n, 48, 48) each, N together.
        digests: (N,) of ``S32``.
        targets: int64 (N,), -1 where unlabelled.
        roles: int8 (N,), indices into `ROLES`.
        names: (N,) what the source calls each face.
        told_by: what told the roles: ``file names``, ``folders``, ``Usage column``, ``files`` or ``generator``.
        skipped: items passed over under ``on_bad="skip"``.
        converted: how many images came in another size or mode and were turned into grey 48×48.
    """

    chunks: list[Images]
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

    def take(self, *parts: npt.NDArray[np.int64]) -> list[Faces]:
        """Return the faces at each of some index arrays; ``chunks`` is emptied on the way, to save memory.

        All images lie in one array, in which those of each part are a slice.
        """
        index = np.concatenate(parts)
        rank = np.full(len(self.targets), -1)
        rank[index] = np.arange(len(index))
        images = np.empty((len(index), SIZE, SIZE), np.uint8)
        start = 0
        self.chunks.reverse()
        while self.chunks:
            chunk = self.chunks.pop()
            to = rank[start : start + len(chunk)]
            images[to[to >= 0]] = chunk if (to >= 0).all() else chunk[to >= 0]
            start += len(chunk)
        stops = np.cumsum([len(part) for part in parts]).tolist()
        return [
            Faces(images[stop - len(part) : stop], self.targets[part], self.names[part], self.digests[part])
            for part, stop in zip(parts, stops, strict=True)
        ]


class BadItems:
    """Gathers bad items; raises under ``on_bad="raise"``, keeps them for the record under ``"skip"``."""

    def __init__(self, on_bad: OnBad, location: Path) -> None:
        self.skipped: list[Skipped] = []
        self._on_bad = on_bad
        self._location = location

    def add(self, name: str, reason: str) -> None:
        """Note that the item called ``name`` cannot be used, and why."""
        self.skipped.append(Skipped(name, reason))

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
        return SourceError(f"{self._location} holds no face that can be read{':' if reasons else '.'}{reasons}")


def label_target(label: str, role: Role) -> int:
    """Return the canonical target of a label as the challenge numbers it; nothing and -1 mean unlabelled.

    Raises:
        ValueError: the label is none of 0 to 6, or a training face has none.
    """
    if label in ("", "-1"):
        if role in ("all", "train"):
            raise ValueError(f"has no emotion, and a training face needs one: {LABELS}")
        return UNLABELLED
    if label not in ("0", "1", "2", "3", "4", "5", "6"):
        raise ValueError(f"emotion is {label}; expected {LABELS}, or -1 where unlabelled")
    return FROM_CHALLENGE[int(label)]


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
