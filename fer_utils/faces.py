"""Faces in memory, the digest of a face's pixels, and cuts that keep copies of a face on one side."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

from fer_utils.emotions import NUM_EMOTIONS, UNLABELLED

SIZE: Final = 48
"""Height and width of a face in pixels."""

Images = npt.NDArray[np.uint8]
Targets = npt.NDArray[np.int64]
Names = npt.NDArray[np.str_] | npt.NDArray[np.object_]
Digests = npt.NDArray[np.bytes_]
Part = Literal["train", "val", "test"]
PARTS: Final[tuple[Part, ...]] = ("train", "val", "test")
Halves = npt.NDArray[np.str_]
HALVES: Final = ("PublicTest", "PrivateTest")
"""The challenge's two test sets, under its own names; published scores are of one or the other."""


def digests(images: Images) -> Digests:
    """Return the 16-byte BLAKE2b digest of each image's pixels, (N,) of dtype ``S32`` in hexadecimal.

    Two faces are exact copies when their digests are equal, whatever file, name or format they came in.
    """
    flat = np.ascontiguousarray(images).reshape(-1).data  # whose slices cost less than an array's rows
    size = math.prod(images.shape[1:])
    rows = [flat[start : start + size] for start in range(0, len(images) * size, size)]
    hexadecimal = b"".join([hashlib.blake2b(row, digest_size=16).digest() for row in rows]).hex()
    return np.frombuffer(hexadecimal.encode("ascii"), dtype="S32")


@dataclass(frozen=True, eq=False)
class Faces:
    """Faces of one part.

    Attributes:
        images: uint8 (N, 48, 48), grey, 0 to 255.
        targets: int64 (N,), 0 to 6 in the canonical order, -1 where unlabelled.
        names: (N,) what the source calls each face: a relative file name, or a table's part and row.
        digests: (N,) of ``S32``, one per image; computed when not given.
    """

    images: Images
    targets: Targets
    names: Names
    digests: Digests = field(default=None)  # type: ignore[arg-type]

    def __post_init__(self) -> None:
        n = len(self.images)
        if self.images.dtype != np.uint8 or self.images.shape != (n, SIZE, SIZE):
            raise ValueError(f"images must be uint8 (N, {SIZE}, {SIZE}), not {self.images.dtype} {self.images.shape}")
        if self.targets.dtype != np.int64 or self.targets.shape != (n,):
            raise ValueError(f"targets must be int64 ({n},), not {self.targets.dtype} {self.targets.shape}")
        if n and not (self.targets.min() >= UNLABELLED and self.targets.max() < NUM_EMOTIONS):
            raise ValueError(f"targets must be {UNLABELLED} to {NUM_EMOTIONS - 1}")
        if self.names.shape != (n,):
            raise ValueError(f"names must be ({n},), not {self.names.shape}")
        if self.digests is None:
            object.__setattr__(self, "digests", digests(self.images))
        elif self.digests.shape != (n,):
            raise ValueError(f"digests must be ({n},), not {self.digests.shape}")

    def __len__(self) -> int:
        return len(self.images)

    @property
    def labelled(self) -> bool:
        """True when there are faces and each has a target."""
        return len(self) > 0 and bool((self.targets != UNLABELLED).all())

    def counts(self) -> npt.NDArray[np.int64]:
        """Return how many faces each emotion has, int64 (7,); unlabelled faces are not counted."""
        return np.bincount(self.targets[self.targets >= 0], minlength=NUM_EMOTIONS).astype(np.int64)

    def select(self, index: npt.NDArray[np.int64] | npt.NDArray[np.bool_] | slice) -> Faces:
        """Return the faces at ``index`` (integers, a mask or a slice), in its order."""
        return Faces(self.images[index], self.targets[index], self.names[index], self.digests[index])

    def sorted(self) -> Faces:
        """Return the faces ordered by (pixel digest, target), the order that every layout of the same faces gives."""
        return self.select(np.lexsort((self.targets, self.digests)))

    @staticmethod
    def empty() -> Faces:
        """Return no faces."""
        return Faces(
            np.zeros((0, SIZE, SIZE), np.uint8), np.zeros(0, np.int64), np.zeros(0, np.str_), np.zeros(0, "S32")
        )

    @staticmethod
    def concatenate(parts: list[Faces]) -> Faces:
        """Return the faces of all ``parts``, in order."""
        if not parts:
            return Faces.empty()
        return Faces(
            np.concatenate([part.images for part in parts]),
            np.concatenate([part.targets for part in parts]),
            np.concatenate([part.names.astype(object) for part in parts]),
            np.concatenate([part.digests for part in parts]),
        )


@dataclass(frozen=True)
class Skipped:
    """An item of the source that was passed over under ``on_bad="skip"``: what it is called, and why."""

    name: str
    reason: str


@dataclass(frozen=True, eq=False)
class Splits:
    """Training, validation and test faces, and where they came from.

    Attributes:
        train, val, test: the parts; ``test`` may be unlabelled or empty.
        source: the layout read: ``folder``, ``csv``, ``parquet``, ``kaggle`` or ``synthetic``.
        location: path or handle that was read, as text.
        rule: one sentence that says how the parts were made.
        skipped: items passed over.
        converted: how many images came in another size or mode and were turned into grey 48×48.
        halves: which of the challenge's test halves each test face is of, (N,) of ``HALVES``; None where the test part
            does not hold both, or the source does not tell them apart.
    """

    train: Faces
    val: Faces
    test: Faces
    source: str
    location: str = ""
    rule: str = ""
    skipped: tuple[Skipped, ...] = ()
    converted: int = 0
    halves: Halves | None = None

    def __post_init__(self) -> None:
        if self.halves is not None:
            if self.halves.shape != self.test.targets.shape:
                raise ValueError(f"halves must be ({len(self.test)},), not {self.halves.shape}")
            if not np.isin(self.halves, HALVES).all():
                raise ValueError(f"halves must be {' or '.join(HALVES)}")

    def __iter__(self) -> Iterator[tuple[Part, Faces]]:
        for part in PARTS:
            yield part, self[part]

    def __getitem__(self, part: str) -> Faces:
        if part not in PARTS:
            raise KeyError(f"part {part!r} is none of {', '.join(PARTS)}")
        faces: Faces = getattr(self, part)
        return faces

    @property
    def synthetic(self) -> bool:
        """True when the faces are drawn by the generator: no measure of anything."""
        return self.source == "synthetic"

    @property
    def title_note(self) -> str:
        """What every figure title carries: a warning on synthetic faces, nothing on real ones."""
        return " (synthetic faces)" if self.synthetic else ""

    @property
    def banner(self) -> str:
        """Markdown for the top of a notebook: a warning on synthetic faces, nothing on real ones."""
        if not self.synthetic:
            return ""
        return (
            "> **Synthetic faces.** A generator drew them, so that everything can be tried without data: no number "
            "below says anything about real faces. For FER2013 give its path as the parameter `data`, or set "
            "`FER_DATA`."
        )

    def fingerprint(self) -> str:
        """Return 16 hexadecimal digits that identify the labelled training and validation faces, in order.

        Names and the test part stay out, so that a table whose test part is unlabelled has the fingerprint of the
        folder that holds the same faces.
        """
        hasher = hashlib.blake2b(digest_size=8)
        for faces in (self.train, self.val):
            hasher.update(len(faces).to_bytes(8, "little"))
            hasher.update(faces.digests.tobytes())
            hasher.update(faces.targets.astype("<i8").tobytes())
        return hasher.hexdigest()

    def evaluation_part(self) -> Part:
        """Return the part that scores are reported on: ``test``, or ``val`` where the test part has no labels."""
        return "test" if self.test.labelled else "val"


def cut(faces: Faces, fraction: float, seed: int) -> tuple[Faces, Faces]:
    """Split ``faces`` into (rest, part), stratified by target, equal digests on one side, seeded: see `cut_mask`.

    Args:
        faces: labelled faces, in the canonical order.
        fraction: share of the faces to put into the part, 0 to below 1. With 0 the part is empty.
        seed: seed of the shuffle.

    Raises:
        ValueError: ``fraction`` is out of range, or a face is unlabelled.
    """
    mask = cut_mask(faces.digests, faces.targets, fraction, seed)
    return faces.select(~mask), faces.select(mask)


def cut_mask(digests: Digests, targets: Targets, fraction: float, seed: int) -> npt.NDArray[np.bool_]:
    """Return which faces a cut puts into the part, (N,).

    Groups of equal digests are shuffled and dealt within each target (a group with conflicting labels counts for the
    label of its first face), so the part's share of each emotion is ``fraction`` to within one group.

    Args:
        digests: (N,) of labelled faces in the canonical order.
        targets: int64 (N,), 0 to 6.
        fraction: share of the faces to put into the part, 0 to below 1.
        seed: seed of the shuffle.

    Raises:
        ValueError: ``fraction`` is out of range, or a face is unlabelled.
    """
    if not 0 <= fraction < 1:
        raise ValueError(f"fraction must be at least 0 and below 1, not {fraction}")
    if (targets == UNLABELLED).any():
        raise ValueError("only labelled faces can be cut: stratification needs their targets")
    _, first, group = np.unique(digests, return_index=True, return_inverse=True)
    sizes = np.bincount(group, minlength=len(first))
    group_target = targets[first]
    rng = np.random.Generator(np.random.PCG64(seed))
    chosen = np.zeros(len(sizes), dtype=bool)
    for target in range(NUM_EMOTIONS):
        members = rng.permutation(np.flatnonzero(group_target == target))
        wanted = round(fraction * int(sizes[members].sum()))
        # Take groups while they fit, so that a large group of copies near the end cannot overshoot the share.
        taken = 0
        for index in members:
            if taken + sizes[index] <= wanted:
                chosen[index] = True
                taken += int(sizes[index])
            if taken == wanted:
                break
    mask: npt.NDArray[np.bool_] = chosen[group]
    return mask


def describe(splits: Splits) -> str:
    """Return one line such as ``folder: 25,838 train, 2,871 val, 3,589 test, 7 emotions``: those that occur."""
    parts = ", ".join(f"{len(faces):,} {part}" for part, faces in splits)
    lacking = int((splits.test.targets == UNLABELLED).sum())
    unlabelled = " (test part unlabelled)" if lacking == len(splits.test) else f" ({lacking:,} of test unlabelled)"
    unlabelled = unlabelled if lacking else ""
    emotions = np.count_nonzero(sum(faces.counts() for _, faces in splits))
    return f"{splits.source}: {parts}{unlabelled}, {emotions} emotion{'' if emotions == 1 else 's'}"
