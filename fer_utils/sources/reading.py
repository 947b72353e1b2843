"""What every reader gives, and how all of them treat a bad item."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
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
    """What a reader found.

    Attributes:
        faces: the faces of each role that is there, in the canonical order; at least one role.
        told_by: what told the roles: ``file names``, ``folders``, ``Usage column``, ``files`` or ``generator``.
        skipped: items passed over under ``on_bad="skip"``.
        converted: how many images came in another size or mode and were turned into grey 48×48.
    """

    faces: Mapping[Role, Faces]
    told_by: str
    skipped: tuple[Skipped, ...] = ()
    converted: int = 0


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


def arrange(
    chunks: list[tuple[Images, Digests]], targets: Targets, roles: npt.NDArray[np.int8], names: Names
) -> dict[Role, Faces]:
    """Return the faces of each role in the canonical order; ``chunks`` is emptied on the way to save memory.

    Args:
        chunks: images uint8 (n, 48, 48) and their digests, N together.
        targets: int64 (N,).
        roles: int8 (N,), indices into `ROLES`.
        names: (N,).
    """
    digest = np.concatenate([chunk[1] for chunk in chunks]) if chunks else np.zeros(0, "S32")
    order = np.lexsort((targets, digest, roles))
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    images = np.empty((len(order), SIZE, SIZE), np.uint8)
    start = 0
    chunks.reverse()
    while chunks:
        chunk, _ = chunks.pop()
        images[rank[start : start + len(chunk)]] = chunk
        start += len(chunk)
    bounds = np.searchsorted(roles[order], np.arange(len(ROLES) + 1))
    everything = Faces(images, targets[order], names[order], digest[order])
    return {
        role: everything.select(slice(first, last))
        for role, first, last in zip(ROLES, bounds[:-1], bounds[1:], strict=True)
        if first < last
    }


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
