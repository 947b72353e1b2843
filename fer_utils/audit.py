"""What is wrong with the data: copies, leakage between the parts, conflicting labels, pictures without a face.

    python -m fer_utils.audit DATA --json

FER2013 was collected by image search, and the same photograph was found more than once. A face of the test part that
was also trained on is remembered rather than recognised, so scores are reported for all faces and for those without a
copy.

**Exact copies** have equal pixels, by the digest of `fer_utils.faces.digests`. **Near copies** show the same photograph
with other pixels: another crop, a size that differs by a few percent, a watermark, other contrast, or mirrored. They
are found in two steps, `_candidates` and `_Details`; the thresholds and what was seen at each are at the constants
below.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, Literal, get_args

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import fft
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from fer_utils import sources
from fer_utils.emotions import EMOTIONS, UNLABELLED
from fer_utils.faces import PARTS, SIZE, Faces, Images, Part, Splits, describe

Kind = Literal["exact", "near"]
"""Which copies count: those with equal pixels, or those and the near ones too."""

Mask = npt.NDArray[np.bool_]
Indexes = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]

HASH_SIZE: Final = 9
"""The perceptual hash is made of this many of the lowest frequencies of the cosine transform along each axis."""

HASH_CORRELATION: Final = 0.50
"""Pairs whose hashes correlate more are verified.

At 0.60 they are 47,000 of 946 million and 3,365 prove to be near copies, at 0.50 460,000 and 3,501, at 0.45 50 more for
another third of the time. What is missed are crops three pixels apart along both axes.
"""

VERIFY_ALL_BELOW: Final = 128
"""Among fewer different images every pair is verified: too few to scale the hash by."""

DETAIL_SIGMA: Final = 3.0
"""Detail is what a Gaussian of this standard deviation, in pixels, takes away."""

MAX_SHIFT: Final = 3
"""Crops that differ by up to so many pixels along an axis are aligned.

Sizes are not: of 300 faces of FER2013 that were enlarged by 3% all were found, by 5% 253, by 7% 64, by 10% 2.
"""

DETAIL_CORRELATION: Final = 0.70
"""Pairs whose details correlate at least so much are near copies.

Pairs among the 30,766 different pictures of FER2013's Training and PublicTest parts, and how many of those that were
drawn at random and looked at showed the same photograph:

    ===========  =====  ==========  ========  ==========
    correlation  as is  the same    mirrored  the same
    ===========  =====  ==========  ========  ==========
    0.50–0.55    5,233   5 of 40       4,413
    0.55–0.60    1,636   8 of 40       1,270
    0.60–0.65      587  21 of 40         202   2 of 40
    0.65–0.70      404  40 of 40          37   9 of 37
    0.70–0.75      438  69 of 69           6   6 of 6
    0.75–0.80      584  49 of 49           7   7 of 7
    0.80–1       2,422  29 of 29          44  44 of 44
    ===========  =====  ==========  ========  ==========

The others are frontal faces of different people. They match mirrored as often as they do as they are, so the mirrored
column bounds them; above 0.70 none was found. The copies differ by a watermark, by a few pixels of crop, by contrast.
The correlation of the pixels themselves does not tell copies apart: at 0.87, two calm faces in the same light are as
near to each other as two crops of one photograph.
"""

NEARLY_BLANK_SHARE: Final = 0.70
"""An image is nearly blank when one grey level covers at least this share of it.

In FER2013's Training and PublicTest parts these are, but for 12 constant images, 21: lines of text such as "this person
moved or deleted this image", and warning signs. The first faces, a few dark strokes on white, come at 0.69; the next
hundred below are such faces with some of the same placeholders between them.
"""

NEARLY_BLANK_DEVIATION: Final = 2.0
"""An image is nearly blank, too, when its grey levels' standard deviation is below this.

Two levels are what compression leaves of a uniform picture. FER2013 has none but the constant ones (the next is at 42).
"""

_BLOCK: Final = 1024


@dataclass(frozen=True, eq=False)
class NearCopies:
    """Pairs of different images that show the same photograph, each pair once.

    Attributes:
        left, right: int64 (P,), indexes of the images, left below right.
        correlation: float32 (P,), of their details once aligned, `DETAIL_CORRELATION` to 1.
        mirrored: bool (P,), whether right had to be mirrored.
        shift: int64 (P, 2), how many pixels further (down, right) things lie in left than in right, which is mirrored
            first where it has to be; each within ±`MAX_SHIFT`.
    """

    left: Indexes
    right: Indexes
    correlation: Floats
    mirrored: Mask
    shift: Indexes

    def __len__(self) -> int:
        return len(self.left)


def near_copies(images: Images, threshold: float = DETAIL_CORRELATION) -> NearCopies:
    """Find the pairs of images that show the same photograph, mirrored or not.

    Args:
        images: uint8 (N, 48, 48), all different. Constant ones have no detail and are in no pair.
        threshold: least correlation of details.
    """
    found: list[tuple[npt.NDArray[Any], ...]] = []
    details = _Details(images)
    for left, right, mirrored in _candidates(images):
        correlation, shift = details.match(left, right, mirrored)
        copies = correlation >= threshold
        found.append((left[copies], right[copies], correlation[copies], mirrored[copies], shift[copies]))
    if not found:
        none = np.zeros(0, np.int64)
        return NearCopies(none, none, np.zeros(0, np.float32), np.zeros(0, bool), np.zeros((0, 2), np.int64))
    left, right, correlation, mirrors, shift = (np.concatenate(column) for column in zip(*found, strict=True))
    # A symmetric face may match both ways: the better match stays.
    order = np.lexsort((-correlation, right, left))
    first = np.ones(len(order), bool)
    first[1:] = (np.diff(left[order]) != 0) | (np.diff(right[order]) != 0)
    best = order[first]
    return NearCopies(left[best], right[best], correlation[best], mirrors[best], shift[best])


def _candidates(images: Images) -> Iterator[tuple[Indexes, Indexes, Mask]]:
    """Yield pairs worth a look, a block at a time: (left, right, whether right is mirrored), left below right.

    The hash is the perceptual hash of Zauner (2010, "Implementation and benchmarking of perceptual image hash
    functions") without its last step: the low frequencies of the cosine transform, each centred and scaled by its
    standard deviation over the images, compared by correlation rather than turned into bits. Mirroring an image turns
    the sign of its odd horizontal frequencies, so a mirrored face needs no hash of its own. All pairs are compared, as
    matrix products.
    """
    hashes = _hashes(images)
    proper = np.flatnonzero(np.abs(hashes).max(axis=1, initial=0) > 1e-3)
    hashes = hashes[proper]
    odd = np.tile(np.arange(HASH_SIZE) % 2 == 1, HASH_SIZE)[1:]
    if len(proper) < VERIFY_ALL_BELOW:
        hashes[:] = 1
        odd[:] = False
    else:
        # The mean face is symmetric: its odd frequencies are zero but for chance, and centring would break the mirror.
        hashes -= np.where(odd, 0, hashes.mean(axis=0))
        hashes /= np.sqrt((hashes**2).mean(axis=0)) + 1e-6
    hashes /= np.linalg.norm(hashes, axis=1, keepdims=True) + 1e-6
    both = (hashes, np.where(odd, -hashes, hashes))
    for start in range(0, len(hashes), _BLOCK):
        pairs = []
        for others in both:
            correlation = hashes[start : start + _BLOCK] @ others[start:].T
            left, right = np.divmod(np.flatnonzero(correlation > HASH_CORRELATION), correlation.shape[1])
            pairs.append(np.stack([left, right])[:, left < right])
        left, right = proper[start + np.concatenate(pairs, axis=1)]
        yield left, right, np.repeat([False, True], [pair.shape[1] for pair in pairs])


def _hashes(images: Images) -> Floats:
    """Return the lowest cosine frequencies of each image but its brightness, float32 (N, HASH_SIZE² - 1)."""
    hashes = np.empty((len(images), HASH_SIZE * HASH_SIZE - 1), np.float32)
    for start in range(0, len(images), _BLOCK):
        frequencies = fft.dctn(images[start : start + _BLOCK].astype(np.float32), axes=(1, 2), norm="ortho")
        low = frequencies[:, :HASH_SIZE, :HASH_SIZE]
        hashes[start : start + _BLOCK] = low.reshape(len(low), -1)[:, 1:]
    return hashes


def _detail(images: Images) -> Floats:
    """Return the images less their blurred selves, float32 (N, 48, 48)."""
    blur = np.exp(-0.5 * (DETAIL_SIGMA * np.pi / SIZE * np.arange(SIZE, dtype=np.float32)) ** 2)
    frequencies = fft.dctn(images.astype(np.float32), axes=(1, 2), norm="ortho")
    frequencies *= 1 - blur[:, None] * blur
    detail: Floats = fft.idctn(frequencies, axes=(1, 2), norm="ortho", overwrite_x=True)
    return detail


class _Details:
    """The details of all images, ready to be laid on each other.

    The centre of one, 42 pixels wide, is laid on another at all 49 shifts of up to 3 pixels. With both standardised
    their mean squared difference is ``2 - 2 × correlation``: the pixel distance once light, contrast and crop are taken
    out.
    By the correlation theorem all shifts come from one product of spectra, of which only the 49 values are transformed
    back.
    """

    _INNER: Final = SIZE - 2 * MAX_SHIFT
    _PLACES: Final = 2 * MAX_SHIFT + 1

    def __init__(self, images: Images) -> None:
        self.images = images
        self.spectra = np.empty((len(images), SIZE, SIZE // 2 + 1), np.complex64)
        self.scales = np.empty(len(images), np.float32)
        for start in range(0, len(images), _BLOCK):
            these = slice(start, start + _BLOCK)
            centre = _detail(images[these])[:, MAX_SHIFT:-MAX_SHIFT, MAX_SHIFT:-MAX_SHIFT]
            centre = centre - centre.mean(axis=(1, 2), keepdims=True)
            self.scales[these] = np.sqrt((centre**2).sum(axis=(1, 2)))
            self.spectra[these] = np.conj(fft.rfft2(centre, s=(SIZE, SIZE)))
        turns = np.exp(2j * np.pi / SIZE * np.outer(np.arange(self._PLACES), np.arange(SIZE))).astype(np.complex64)
        self._down = turns / SIZE
        # A real picture's spectrum is half redundant: the frequencies kept, but the first and last, count twice.
        twice = np.full(SIZE // 2 + 1, 2 / SIZE, np.float32)
        twice[[0, -1]] = 1 / SIZE
        self._across = turns[:, : SIZE // 2 + 1].T * twice[:, None]
        # Sums over every window of 42 pixels, as two matrix products.
        offset = np.arange(SIZE)[:, None] - np.arange(self._PLACES)
        self._window = ((offset >= 0) & (offset < self._INNER)).astype(np.float32)

    def match(self, left: Indexes, right: Indexes, mirrored: Mask) -> tuple[Floats, Indexes]:
        """Return the correlation of each pair at its best shift, (P,), and that shift (down, right), (P, 2)."""
        correlations, shifts = np.empty(len(left), np.float32), np.empty((len(left), 2), np.int64)
        for mirror in (False, True):
            chosen = np.flatnonzero(mirrored == mirror)
            used, place = np.unique(left[chosen], return_inverse=True)
            # Mirroring the left one instead is the same but for the sign of the shift to the right.
            field = _detail(self.images[used])[:, :, :: -1 if mirror else 1]
            spectra = fft.rfft2(field)
            sums = self._window.T @ field @ self._window
            squares = self._window.T @ field**2 @ self._window
            scales = np.sqrt(np.maximum(squares - sums**2 / self._INNER**2, 0))
            for start in range(0, len(chosen), _BLOCK):
                these, at = chosen[start : start + _BLOCK], place[start : start + _BLOCK]
                products = (self._down @ (spectra[at] * self.spectra[right[these]] @ self._across)).real
                product_of_scales = scales[at] * self.scales[right[these], None, None]
                # What has less detail than one grey level is like nothing.
                enough = product_of_scales > self._INNER**2
                quotient = np.where(enough, products / np.maximum(product_of_scales, 1), 0).reshape(len(these), -1)
                best = quotient.argmax(axis=1)
                correlations[these] = np.minimum(quotient[np.arange(len(best)), best], 1)
                shifts[these] = np.stack(np.divmod(best, self._PLACES), axis=1) - MAX_SHIFT
                shifts[these, 1] *= -1 if mirror else 1
        return correlations, shifts


def constant(images: Images) -> Mask:
    """Return which images have one grey level only, bool (N,)."""
    flat = images.reshape(len(images), SIZE * SIZE)
    same: Mask = (flat == flat[:, :1]).all(axis=1)
    return same


def nearly_blank(images: Images) -> Mask:
    """Return which images show next to nothing without being constant, bool (N,).

    See `NEARLY_BLANK_SHARE` and `NEARLY_BLANK_DEVIATION`.
    """
    flat = images.reshape(len(images), SIZE * SIZE)
    found = np.zeros(len(flat), bool)
    for start in range(0, len(flat), _BLOCK):
        block = flat[start : start + _BLOCK]
        counts = np.zeros((len(block), 256), np.int64)
        np.add.at(counts, (np.arange(len(block))[:, None], block), 1)
        found[start : start + _BLOCK] = (counts.max(axis=1) >= NEARLY_BLANK_SHARE * flat.shape[1]) | (
            block.std(axis=1) < NEARLY_BLANK_DEVIATION
        )
    return found & ~constant(images)


@dataclass(frozen=True, eq=False)
class Audit:
    """What was found. Arrays are by face, train, val and test one after the other.

    Attributes:
        splits: the faces that were looked at.
        part: (N,) of text, the face's part.
        index: int64 (N,), its place in its part.
        target: int64 (N,), its target.
        image: int64 (N,), number of its picture: exact copies share it.
        constant, blank: bool (N,), one grey level; nearly so.
        near: pairs of pictures that are near copies, by number; None where they were not looked for.
    """

    splits: Splits
    part: npt.NDArray[np.object_]
    index: Indexes
    target: Indexes
    image: Indexes
    constant: Mask
    blank: Mask
    near: NearCopies | None

    # -- counts --------------------------------------------------------------------------------------------------------

    @property
    def faces(self) -> int:
        """Faces in all parts."""
        return len(self.image)

    @cached_property
    def unique(self) -> int:
        """Different pictures among them."""
        return int(self.image.max(initial=-1)) + 1

    @property
    def extra_copies(self) -> int:
        """Faces that could go without a picture being lost."""
        return self.faces - self.unique

    def copies(self, part: Part, of: Part, kind: Kind = "exact") -> int:
        """Return how many faces of ``part`` have a copy in the part ``of``; where both are one part, another face."""
        return int(self._copied(of, kind)[self.part == part].sum())

    def leakage(self, kind: Kind = "exact") -> pd.DataFrame:
        """Return `copies` for each part (rows) and the part that it is looked for in (columns)."""
        table = [[self.copies(part, of, kind) for of in PARTS] for part in PARTS]
        return pd.DataFrame(table, index=pd.Index(PARTS, name="faces of"), columns=pd.Index(PARTS, name="copy in"))

    def counts(self) -> dict[str, int]:
        """Return the numbers that tell the whole, those of near copies only where they were looked for.

        The groups of near copies, and the faces that have one, count the exact copies in; the pairs do not.
        """
        counts = {
            "faces": self.faces,
            "unique": self.unique,
            "extra_copies": self.extra_copies,
            "test_in_train": self.copies("test", "train"),
            "test_in_val": self.copies("test", "val"),
            "val_in_train": self.copies("val", "train"),
            "conflicting_groups": len(self.conflicts("exact")),
            "constant": int(self.constant.sum()),
            "nearly_blank": int(self.blank.sum()),
        }
        if self.near is not None:
            counts |= {
                "near_pairs": len(self.near),
                "near_mirrored_pairs": int(self.near.mirrored.sum()),
                "near_groups": int(self.groups("near")["group"].nunique()),
                "near_conflicting_groups": len(self.conflicts("near")),
                "test_in_train_near": self.copies("test", "train", "near"),
                "test_in_val_near": self.copies("test", "val", "near"),
                "val_in_train_near": self.copies("val", "train", "near"),
            }
        return counts

    # -- masks ---------------------------------------------------------------------------------------------------------

    @cached_property
    def clean(self) -> dict[Part, Mask]:
        """Mask of each part: test faces without an exact copy in train or val, val faces without one in train.

        Train faces, which the others are held against, are all True.
        """
        return self._clean("exact")

    @cached_property
    def clean_near(self) -> dict[Part, Mask]:
        """As `clean`, without near copies too.

        Raises:
            ValueError: near copies were not looked for.
        """
        return self._clean("near")

    def _clean(self, kind: Kind) -> dict[Part, Mask]:
        in_train = self._copied("train", kind)
        leaked: dict[Part, Mask] = {
            "train": np.zeros(self.faces, bool),
            "val": in_train,
            "test": in_train | self._copied("val", kind),
        }
        return {part: ~leaked[part][self.part == part] for part in PARTS}

    def _copied(self, of: Part, kind: Kind) -> Mask:
        """Return which faces have a copy among the other faces of the part ``of``, bool (N,)."""
        there = np.bincount(self.image[self.part == of], minlength=self.unique)
        copied: Mask = there[self.image] - (self.part == of) > 0
        if kind == "near":
            near = self._near()
            beside = np.zeros(self.unique, bool)
            beside[near.left[there[near.right] > 0]] = True
            beside[near.right[there[near.left] > 0]] = True
            copied |= beside[self.image]
        return copied

    def _near(self) -> NearCopies:
        if self.near is None:
            raise ValueError("near copies were not looked for: call audit with near=True")
        return self.near

    # -- tables --------------------------------------------------------------------------------------------------------

    @cached_property
    def table(self) -> pd.DataFrame:
        """A row per face: part, index, name, digest, target, emotion, constant, blank, clean; clean_near if known."""
        parts = [faces for _, faces in self.splits]
        table = pd.DataFrame(
            {
                "part": self.part,
                "index": self.index,
                "name": np.concatenate([faces.names.astype(object) for faces in parts]),
                "digest": np.concatenate([faces.digests for faces in parts]).astype(str),
                "target": self.target,
                "emotion": _emotion(self.target),
                "constant": self.constant,
                "blank": self.blank,
                "clean": np.concatenate([self.clean[part] for part in PARTS]),
            }
        )
        if self.near is not None:
            table["clean_near"] = np.concatenate([self.clean_near[part] for part in PARTS])
        return table

    def groups(self, kind: Kind = "exact") -> pd.DataFrame:
        """Return a row per face that has a copy: group, part, index, name, target, emotion, conflicting.

        Near copies are put in one group when a chain of pairs leads from one to the other. ``conflicting`` says that
        the group has more than one label; faces without a label agree with all. Groups are in the order of their first
        face.
        """
        group = _group(self.image, self._near() if kind == "near" else None)
        table = self.table[["part", "index", "name", "target", "emotion"]].copy()
        table.insert(0, "group", group)
        table["conflicting"] = _conflicting(group, self.target)[group]
        table = table[np.bincount(group)[group] > 1] if len(group) else table
        table["group"] = pd.factorize(table["group"])[0]
        return table.sort_values("group", kind="stable").reset_index(drop=True)

    def pairs(self) -> pd.DataFrame:
        """Return a row per pair of near copies, best first: part, index, name, target of both, and how they match.

        A picture that is there more than once is told by its first face, and left is the one that comes first.
        """
        near = self._near()
        _, first = np.unique(self.image, return_index=True)
        left, right, shift = first[near.left], first[near.right], near.shift.copy()
        swapped = left > right
        left, right = np.where(swapped, right, left), np.where(swapped, left, right)
        # Seen from the other one a shift is its opposite, but a mirror turns its direction to the right once more.
        shift[swapped, 0] *= -1
        shift[swapped & ~near.mirrored, 1] *= -1
        columns: dict[str, npt.NDArray[Any]] = {}
        for side, faces in (("left", left), ("right", right)):
            rows = self.table[["part", "index", "name", "target", "emotion"]].iloc[faces]
            columns |= {f"{column}_{side}": rows[column].to_numpy() for column in rows}
        table = pd.DataFrame(columns).assign(
            correlation=near.correlation, mirrored=near.mirrored, shift_down=shift[:, 0], shift_right=shift[:, 1]
        )
        return table.sort_values("correlation", ascending=False, kind="stable", ignore_index=True)

    def conflicts(self, kind: Kind = "exact") -> list[Faces]:
        """Return the groups of copies with more than one label, each as its faces, the largest first."""
        rows = self.groups(kind)
        rows = rows[rows["conflicting"]]
        found = [self.select(group) for _, group in rows.groupby("group")]
        return sorted(found, key=len, reverse=True)

    def select(self, rows: pd.DataFrame) -> Faces:
        """Return the faces that the ``part`` and ``index`` of some rows of a table name, in the rows' order."""
        return Faces.concatenate(
            [
                self.splits[part].select(np.array([index], np.int64))
                for part, index in zip(rows["part"], rows["index"], strict=True)
            ]
        )

    def to_dict(self) -> dict[str, Any]:
        """Return all for ``audit.json``: counts, leakage, names of faces in conflict or blank, unclean digests."""
        kinds: list[Kind] = ["exact"] if self.near is None else ["exact", "near"]
        clean = {"exact": self.clean} | ({} if self.near is None else {"near": self.clean_near})
        constant, blank = self.table[self.constant], self.table[self.blank]
        return {
            "counts": self.counts(),
            "leakage": {kind: self.leakage(kind).to_dict(orient="index") for kind in kinds},
            "conflicts": {
                kind: [
                    [
                        {"name": str(name), "emotion": emotion}
                        for name, emotion in zip(f.names, _emotion(f.targets), strict=True)
                    ]
                    for f in self.conflicts(kind)
                ]
                for kind in kinds
            },
            "constant": [f"{part}: {name}" for part, name in zip(constant["part"], constant["name"], strict=True)],
            "nearly_blank": [f"{part}: {name}" for part, name in zip(blank["part"], blank["name"], strict=True)],
            "unclean": {
                kind: {
                    part: sorted({str(d, "ascii") for d in self.splits[part].digests[~clean[kind][part]]})
                    for part in ("val", "test")
                }
                for kind in kinds
            },
            "thresholds": {
                "hash_correlation": HASH_CORRELATION,
                "detail_correlation": DETAIL_CORRELATION,
                "max_shift": MAX_SHIFT,
                "nearly_blank_share": NEARLY_BLANK_SHARE,
                "nearly_blank_deviation": NEARLY_BLANK_DEVIATION,
            },
        }


def audit(splits: Splits, *, near: bool = True) -> Audit:
    """Look for copies, conflicting labels and blank images in all parts.

    Args:
        splits: the faces; parts may be empty or unlabelled.
        near: look for near copies too, which takes most of the time.
    """
    parts = [faces for _, faces in splits]
    images = np.concatenate([faces.images for faces in parts])
    # Numbered by digest, so that the near copies found do not depend on how the faces are dealt to the parts.
    _, first, image = np.unique(
        np.concatenate([faces.digests for faces in parts]), return_index=True, return_inverse=True
    )
    return Audit(
        splits=splits,
        part=np.concatenate([np.full(len(faces), part, object) for part, faces in splits]),
        index=np.concatenate([np.arange(len(faces)) for faces in parts]),
        target=np.concatenate([faces.targets for faces in parts]),
        image=image,
        constant=constant(images),
        blank=nearly_blank(images),
        near=near_copies(images[first]) if near else None,
    )


def deduplicate(faces: Faces, how: Literal["exact", "near", "none"]) -> Faces:
    """Return ``faces`` with one face of each group of copies, in their order.

    Of a group whose labels conflict none is kept, since nothing tells which label is right; of any other the first.
    With ``near`` a group holds near copies too, as `Audit.groups` makes them; constant images are copies only of their
    like.

    Raises:
        ValueError: ``how`` is none of the three.
    """
    if how == "none":
        return faces
    if how not in get_args(Kind):
        raise ValueError(f"copies can be left out by 'exact', 'near' or 'none', not by {how!r}")
    _, first, image = np.unique(faces.digests, return_index=True, return_inverse=True)
    group = _group(image, near_copies(faces.images[first]) if how == "near" else None)
    _, kept = np.unique(group, return_index=True)
    kept = kept[~_conflicting(group, faces.targets)]
    return faces.select(np.sort(kept))


def _group(image: Indexes, near: NearCopies | None) -> Indexes:
    """Return the number of each face's group, 0 to the last, from the number of its picture and pairs of pictures."""
    if near is None or not len(image):
        return image
    size = int(image.max()) + 1
    graph = coo_matrix((np.ones(len(near), bool), (near.left, near.right)), shape=(size, size))
    joined: Indexes = connected_components(graph, directed=False)[1].astype(np.int64)
    return joined[image]


def _conflicting(group: Indexes, targets: Indexes) -> Mask:
    """Return which groups hold more than one label, bool (groups,)."""
    size = int(group.max(initial=-1)) + 1
    labelled = targets != UNLABELLED
    different = np.unique(np.stack([group[labelled], targets[labelled]]), axis=1)
    return np.bincount(different[0], minlength=size) > 1


def _emotion(targets: Indexes) -> list[str]:
    return [EMOTIONS[target] if target != UNLABELLED else "" for target in targets]


def main(arguments: list[str] | None = None) -> int:
    """Print what is found in some data. The parts are as published: no face is cut off for validation.

    Returns:
        0, or 2 where the data cannot be read.
    """
    parser = argparse.ArgumentParser(
        prog="python -m fer_utils.audit",
        description="Print what is found in some data. The parts are as published: no face is cut off for validation.",
    )
    parser.add_argument("data", nargs="?", default="auto", help="auto, synthetic, kaggle or a path (default: auto)")
    parser.add_argument("--json", action="store_true", help="print the counts as one JSON object")
    parser.add_argument("--exact-only", action="store_true", help="do not look for near copies")
    parser.add_argument(
        "--val-fraction",
        type=float,
        default=0.0,
        help="share of the training faces to set apart for validation; 0, the default, holds all that is not training "
        "against all that is",
    )
    parser.add_argument("--on-bad", choices=("raise", "skip"), default="raise", help="what to do with unreadable faces")
    chosen = parser.parse_args(arguments)
    try:
        splits = sources.load(chosen.data, val_fraction=chosen.val_fraction, on_bad=chosen.on_bad)
    except sources.SourceError as error:
        print(error, file=sys.stderr)
        return 2
    counts = audit(splits, near=not chosen.exact_only).counts()
    if chosen.json:
        print(json.dumps(counts, indent=2))
        return 0
    print(describe(splits))
    for item in splits.skipped:
        print(f"passed over {item.name}: {item.reason}")
    for name, count in counts.items():
        print(f"{name.replace('_', ' '):>26}  {count:,}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
