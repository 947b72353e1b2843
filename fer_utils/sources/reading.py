"""What every reader gives, and how all of them treat a bad item."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from fer_utils.faces import Faces, Skipped

OnBad = Literal["raise", "skip"]
Role = Literal["all", "train", "val", "test"]
"""What a group of faces is for, as far as the source tells: ``all`` where it tells nothing. The challenge's Training,
PublicTest and PrivateTest are ``train``, ``val`` and ``test``."""

USAGES: Final[dict[str, Role]] = {"training": "train", "publictest": "val", "privatetest": "test"}
"""The challenge's names of its three parts, in lower case."""

_SHOWN: Final = 10
HIDDEN: Final = frozenset({"thumbs.db", "desktop.ini", "__macosx"})


class SourceError(ValueError):
    """Data that cannot be read as asked; the message names the place, file or row and says what to do."""


@dataclass(frozen=True)
class Contents:
    """What a reader found.

    Attributes:
        faces: the faces of each role that is there, in the canonical order; at least one role.
        told_by: what told the roles: ``file names``, ``folders``, ``Usage column`` or ``files``.
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
        more = len(self.skipped) - len(lines)
        if more:
            lines.append(f"and {more:,} more")
        count = "1 bad item" if len(self.skipped) == 1 else f"{len(self.skipped):,} bad items"
        raise SourceError(
            f"{count} in {self._location}:\n  "
            + "\n  ".join(lines)
            + '\nMend or remove what is named, or read with on_bad="skip" to go on without it.'
        )


def hidden(name: str) -> bool:
    """Tell whether a file or folder is one that operating systems leave about (``.DS_Store``, ``Thumbs.db``, any name
    that begins with a dot): such names are passed over without a word.
    """
    return name.startswith(".") or name.lower() in HIDDEN


def stamp_of(status: os.stat_result) -> tuple[int, int, int]:
    """Return (size, modification time, change time) in bytes and nanoseconds: what changes when a file does."""
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns
