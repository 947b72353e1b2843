"""Drawn 48×48 faces: something to run the whole suite on where no data is at hand. They measure nothing.

Every face is a few dozen soft-edged shapes (head, hair, eyes, brows, nose, mouth) in numpy, whose positions and
curvatures follow the emotion: raised brows and round eyes for surprise, slanted brows for anger, and so on, in the
spirit of the action units of Ekman and Friesen's Facial Action Coding System (1978). Expressions differ in strength,
mix with others and carry a share of wrong labels, so that no classifier can be perfect. Pose, light, blur, noise,
glasses, beards and occlusions vary. Like FER2013 the set is imbalanced and carries copies, here in known numbers: see
`planted`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from fer_utils.emotions import EMOTIONS, NUM_EMOTIONS
from fer_utils.faces import SIZE, Faces, Images, Splits

Floats = npt.NDArray[np.floating[Any]]

TRAIN_COUNTS: Final = (3995, 436, 4097, 7215, 4965, 4830, 3171)
"""Faces per emotion, canonical order, in FER2013's Training part: the imbalance that is imitated."""

VAL_SHARE: Final = 0.15
TEST_SHARE: Final = 0.15
LABEL_NOISE: Final = 0.08
"""Share of faces that are drawn with another emotion than their label says."""
SMALLEST: Final = 100
"""Below so many faces not every emotion and every planted kind would be there."""

_TRAITS: Final = (
    "corner",  # mouth corners, up is positive
    "open",  # mouth opening
    "width",  # mouth width
    "teeth",  # how much of the opening is teeth
    "brow",  # brows raised
    "slant",  # inner ends of the brows, up is positive
    "eye",  # upper lids raised
    "squint",  # lower lids raised
    "fold",  # folds from nose to mouth, and wrinkles on the nose
    "lip",  # upper lip raised
)
_MEANS: Final = np.array(
    # corner  open  width  teeth  brow  slant   eye  squint  fold   lip
    [
        [-0.45, 0.20, 0.05, 0.45, -0.65, -1.10, 0.10, 0.45, 0.35, 0.10],  # angry
        [-0.50, 0.25, -0.05, 0.45, -0.45, -0.50, -0.60, 0.75, 1.10, 1.00],  # disgust
        [-0.25, 0.45, 0.30, 0.55, 0.70, 0.85, 0.80, 0.05, 0.05, 0.05],  # fear
        [1.05, 0.45, 0.65, 1.00, 0.05, 0.00, -0.25, 0.60, 0.80, 0.05],  # happy
        [0.00, 0.00, 0.00, 0.00, 0.00, 0.00, 0.00, 0.00, 0.00, 0.00],  # neutral
        [-0.85, 0.00, -0.15, 0.00, -0.05, 1.00, -0.50, 0.15, 0.20, -0.05],  # sad
        [0.00, 1.10, -0.45, 0.20, 1.10, 0.10, 1.05, -0.05, 0.00, 0.00],  # surprise
    ],
    dtype=np.float32,
)
_SPREAD: Final = np.array([0.16, 0.14, 0.16, 0.20, 0.16, 0.18, 0.16, 0.12, 0.15, 0.10], dtype=np.float32)

# Which emotion a wrongly labelled face shows instead: the confusions that people make on FER2013, rows by label.
_CONFUSED: Final = np.array(
    # angry disgust fear happy neutral sad surprise
    [
        [0, 2, 2, 0, 3, 3, 0],
        [5, 0, 1, 0, 1, 3, 0],
        [2, 0, 0, 0, 2, 3, 3],
        [0, 0, 0, 0, 7, 1, 2],
        [2, 0, 1, 2, 0, 5, 0],
        [2, 0, 3, 0, 5, 0, 0],
        [0, 0, 5, 3, 2, 0, 0],
    ],
    dtype=np.float64,
)


def _spreading(spots: int) -> Floats:
    """Return the matrix that interpolates ``spots`` values over a picture's pixels, (48, spots)."""
    place = (np.arange(SIZE, dtype=np.float32) + 0.5) / SIZE * (spots - 1)
    spread: Floats = np.maximum(0, 1 - np.abs(place[:, None] - np.arange(spots, dtype=np.float32)))
    return spread


_SPREADING: Final = {spots: _spreading(spots) for spots in (6, 13, 25)}


@dataclass(frozen=True)
class Planted:
    """How many faces of each planted kind a set has. Each copies another face, so the kinds do not meet.

    Attributes:
        train_copies: train faces that are exact copies of another train face, labels equal.
        val_copies: val faces that are exact copies of a train face, labels equal.
        test_copies: test faces that are exact copies of a train face, labels equal.
        train_conflicts: train faces that are exact copies of another train face with another label.
        test_conflicts: test faces that are exact copies of a train face with another label.
        train_mirrored: train faces that mirror another train face, labels equal.
        test_mirrored: test faces that mirror a train face, labels equal.
        train_near: train faces that differ from another train face by slight noise and a shade, labels equal.
        test_near: test faces that differ so from a train face, labels equal.
        constant: train images of one shade each, all of different shades.
        nearly_blank: train images with a few lines of something like text on one shade, as FER2013 has them where a
            web site said that the photograph was removed.
    """

    train_copies: int
    val_copies: int
    test_copies: int
    train_conflicts: int
    test_conflicts: int
    train_mirrored: int
    test_mirrored: int
    train_near: int
    test_near: int
    constant: int
    nearly_blank: int

    @property
    def exact(self) -> int:
        """Extra exact copies in all, which is how many faces more there are than different images."""
        return self.train_copies + self.val_copies + self.test_copies + self.conflicting

    @property
    def conflicting(self) -> int:
        """Groups of exact copies with more than one label."""
        return self.train_conflicts + self.test_conflicts

    @property
    def test_in_train(self) -> int:
        """Test faces that have an exact copy in train."""
        return self.test_copies + self.test_conflicts

    @property
    def near(self) -> int:
        """Faces that are a near copy, mirrored or not, of a train face, and no exact one."""
        return self.train_mirrored + self.test_mirrored + self.train_near + self.test_near


def planted(n: int = 6000) -> Planted:
    """Return what `generate` plants among ``n`` faces: FER2013's shares, roughly, and never none."""

    def share(rate: float) -> int:
        return max(1, round(rate * n))

    return Planted(
        train_copies=share(0.020),
        val_copies=share(0.15 * 0.04),
        test_copies=share(0.15 * 0.07),
        train_conflicts=share(0.001),
        test_conflicts=share(0.001),
        train_mirrored=share(0.002),
        test_mirrored=share(0.002),
        train_near=share(0.003),
        test_near=share(0.003),
        constant=min(share(0.001), 200),
        nearly_blank=share(0.0005),
    )


def generate(n: int = 6000, seed: int = 0) -> Splits:
    """Draw ``n`` faces with labels, split 70/15/15 into train, val and test, the copies of `planted` among them.

    Equal ``(n, seed)`` give equal faces. 6,000 take about two seconds.

    Args:
        n: faces in all, copies included, at least 100.
        seed: seed of everything that varies.

    Raises:
        ValueError: ``n`` is below 100 or ``seed`` below 0.
    """
    if n < SMALLEST:
        raise ValueError(f"n must be at least {SMALLEST} synthetic faces, for every emotion to be there; not {n}")
    if seed < 0:
        raise ValueError(f"seed must be at least 0, not {seed}")
    rng = np.random.Generator(np.random.PCG64(seed))
    plants = planted(n)
    val_size, test_size = round(VAL_SHARE * n), round(TEST_SHARE * n)
    extra_train = plants.train_copies + plants.train_conflicts + plants.train_mirrored + plants.train_near
    extra_train += plants.constant + plants.nearly_blank
    extra_test = plants.test_copies + plants.test_conflicts + plants.test_mirrored + plants.test_near
    fresh = (n - val_size - test_size - extra_train, val_size - plants.val_copies, test_size - extra_test)
    targets = [_targets(count, rng) for count in fresh]
    images = _draw(_shown(np.concatenate(targets), rng), rng)
    train, val, test = np.split(images, np.cumsum(fresh)[:2])

    disgust = EMOTIONS.index("disgust")
    # Each original is copied once at most, so the counts can be told apart. Disgust stays out: it has so few faces that
    # a few copies would change its share.
    originals = iter(rng.permutation(np.flatnonzero(targets[0] != disgust)))

    def take(count: int) -> tuple[Images, npt.NDArray[np.int64]]:
        index = np.array([next(originals) for _ in range(count)])
        return train[index].copy(), targets[0][index]

    def relabelled(count: int) -> tuple[Images, npt.NDArray[np.int64]]:
        copies, old = take(count)
        return copies, _confuse(old, rng)

    def mirrored(count: int) -> tuple[Images, npt.NDArray[np.int64]]:
        copies, same = take(count)
        return copies[:, :, ::-1], same

    def altered(count: int) -> tuple[Images, npt.NDArray[np.int64]]:
        copies, same = take(count)
        shade = rng.integers(1, 4, (count, 1, 1)) * rng.choice([-1, 1], (count, 1, 1))
        noisy = copies + shade + rng.normal(0, 1.2, copies.shape)
        return np.clip(np.rint(noisy), 0, 255).astype(np.uint8), same

    def blank(images: Images) -> tuple[Images, npt.NDArray[np.int64]]:
        return images, rng.choice(np.flatnonzero(np.arange(NUM_EMOTIONS) != disgust), len(images))

    shades = rng.choice(256, plants.constant, replace=False).astype(np.uint8)
    parts = {
        "train": (
            (train, targets[0]),
            take(plants.train_copies),
            relabelled(plants.train_conflicts),
            mirrored(plants.train_mirrored),
            altered(plants.train_near),
            blank(np.broadcast_to(shades[:, None, None], (plants.constant, SIZE, SIZE))),
            blank(_placeholders(plants.nearly_blank, rng)),
        ),
        "val": ((val, targets[1]), take(plants.val_copies)),
        "test": (
            (test, targets[2]),
            take(plants.test_copies),
            relabelled(plants.test_conflicts),
            mirrored(plants.test_mirrored),
            altered(plants.test_near),
        ),
    }
    faces = {}
    for part, pieces in parts.items():
        count = sum(len(piece) for piece, _ in pieces)
        order = rng.permutation(count)
        names = np.array([f"{part}/{number:05d}" for number in range(count)])
        faces[part] = Faces(
            np.ascontiguousarray(np.concatenate([piece for piece, _ in pieces])[order]),
            np.concatenate([labels for _, labels in pieces]).astype(np.int64)[order],
            names,
        ).sorted()
    return Splits(
        faces["train"],
        faces["val"],
        faces["test"],
        source="synthetic",
        location=f"synthetic, n={n}, seed={seed}",
        rule="Synthetic faces, drawn by this suite, split 70/15/15 with copies planted between the parts.",
    )


def _targets(count: int, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """Return ``count`` shuffled targets in FER2013's shares, at least one of each emotion."""
    shares = np.array(TRAIN_COUNTS) / sum(TRAIN_COUNTS) * count
    counts = np.maximum(1, np.floor(shares)).astype(np.int64)
    counts[np.argmax(counts)] += count - counts.sum()
    return rng.permutation(np.repeat(np.arange(NUM_EMOTIONS), counts))


def _placeholders(count: int, rng: np.random.Generator) -> Images:
    """Return white images with lines of dark specks, uint8 (count, 48, 48)."""
    images = np.full((count, SIZE, SIZE), 255, np.uint8)
    lines = rng.random((count, SIZE // 4)) < 0.5
    specks = rng.random((count, SIZE // 4, SIZE)) < 0.5
    images[:, 2::4][lines[:, :, None] & specks] = 40
    return images


def _confuse(targets: npt.NDArray[np.int64], rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """Return another emotion for each target, one that people take it for."""
    bounds = np.cumsum(_CONFUSED / _CONFUSED.sum(axis=1, keepdims=True), axis=1)[targets]
    found: npt.NDArray[np.int64] = (rng.random((len(targets), 1)) > bounds).sum(axis=1).clip(max=NUM_EMOTIONS - 1)
    return found


def _shown(targets: npt.NDArray[np.int64], rng: np.random.Generator) -> Floats:
    """Return the traits of each face, (N, traits): the emotion in some strength, a bit of another one, and chance."""
    n = len(targets)
    shown = np.where(rng.random(n) < LABEL_NOISE, _confuse(targets, rng), targets)
    strength = rng.beta(6.0, 1.6, (n, 1)).astype(np.float32) * 1.3
    traits = strength * _MEANS[shown]
    mixed = rng.random((n, 1)) < 0.12
    other = _MEANS[_confuse(shown, rng)]
    weight = np.where(mixed, rng.uniform(0.1, 0.45, (n, 1)), 0).astype(np.float32)
    traits = (1 - weight) * traits + weight * other
    shaken: Floats = traits + _SPREAD * rng.standard_normal(traits.shape, dtype=np.float32)
    return shaken


def _draw(traits: Floats, rng: np.random.Generator) -> Images:
    """Draw a face per row of ``traits``, uint8 (N, 48, 48)."""
    looks = _looks(traits, rng)
    images = np.empty((len(traits), SIZE, SIZE), np.uint8)
    # A few faces at a time: their intermediate arrays then stay in the processor's cache, which halves the time.
    for start in range(0, len(traits), 16):
        block = {name: values[start : start + 16] for name, values in looks.items()}
        images[start : start + 16] = _render(block, rng)
    return images


def _looks(traits: Floats, rng: np.random.Generator) -> dict[str, Floats]:
    """Return all that a face is drawn from, each (N, 1, 1): its traits, its person, its pose and its photograph.

    Lengths are in half-widths of the picture, shades in 0 to 1.
    """
    n = len(traits)

    def normal(mean: float, sd: float) -> npt.NDArray[np.float64]:
        return rng.normal(mean, sd, n)

    def uniform(low: float, high: float) -> npt.NDArray[np.float64]:
        return rng.uniform(low, high, n)

    def sometimes(p: float) -> npt.NDArray[np.float64]:
        return (rng.random(n) < p).astype(np.float64)

    skin = uniform(0.55, 0.85)
    hair = np.minimum(np.where(rng.random(n) < 0.2, uniform(0.45, 0.75), uniform(0.04, 0.32)), skin + 0.1)
    looks = {
        **{name: traits[:, i] for i, name in enumerate(_TRAITS)},
        # the person
        "head_width": normal(0.70, 0.035),
        "head_height": normal(0.93, 0.03),
        "jaw": uniform(0.02, 0.22),
        "eye_apart": normal(0.315, 0.024),
        "eye_level": normal(-0.13, 0.03),
        "eye_width": normal(0.165, 0.012),
        "eye_height": normal(0.072, 0.008),
        "iris_size": normal(0.070, 0.005),
        "iris": uniform(0.05, 0.40),
        "gaze": normal(0.0, 0.025),
        "brow_level": normal(-0.34, 0.025),
        "brow_thick": uniform(0.030, 0.055),
        "nose_length": normal(0.27, 0.035),
        "nose_width": normal(0.125, 0.018),
        "mouth_level": normal(0.52, 0.035),
        "mouth_width": normal(0.30, 0.022),
        "lip_thick": uniform(0.03, 0.06),
        "lip_shade": uniform(0.5, 0.75),
        "skin": skin,
        "hair": hair,
        "brow_shade": np.minimum(hair, 0.55 * skin),
        "strands": np.where(hair > 0.4, 0.12, 0.3) * uniform(0.5, 1.2),
        "spots": uniform(0.04, 0.09),
        "hairline": normal(-0.64, 0.06),
        "fringe": uniform(-0.25, 0.75),
        "parting": normal(0.0, 0.15),
        "long": sometimes(0.4),
        "beard": sometimes(0.12) * uniform(0.3, 0.7),
        "glasses": sometimes(0.08),
        "wrinkles": uniform(0.3, 1.0),
        # the pose
        "shift_x": normal(0.0, 0.035),
        "shift_y": normal(-0.02, 0.035),
        "zoom": normal(1.25, 0.07),
        "tilt": np.radians(normal(0.0, 4.5)),
        "turn": normal(0.0, 0.05),
        # the photograph
        "back": uniform(0.05, 0.95),
        "back_slope": normal(0.0, 0.12),
        "back_clutter": uniform(0.05, 0.18),
        "shirt": uniform(0.05, 0.9),
        "light_x": normal(0.0, 0.12),
        "light_y": normal(-0.04, 0.06),
        "edge": uniform(0.05, 0.09),
        "blur": np.clip(normal(0.04, 0.06), 0, 0.2),
        "contrast": np.clip(normal(1.05, 0.12), 0.75, 1.35),
        "brightness": normal(0.0, 0.05),
        "noise": uniform(0.005, 0.025),
        # what hides a part: a hand, a microphone, the margin of the picture
        "hidden": sometimes(0.05),
        "hidden_x": uniform(-0.75, 0.75),
        "hidden_y": uniform(0.25, 1.0),
        "hidden_size": uniform(0.16, 0.34),
        "hidden_shade": uniform(0.1, 0.8),
    }
    return {name: values.astype(np.float32)[:, None, None] for name, values in looks.items()}


class _Canvas:
    """A window of a block of pictures, and the axes of the faces in it.

    Attributes:
        picture: float32 (N, H, W), painted in place.
        u, v: float32 (N, H, W), each pixel's place on its face's own axes, u to the right, v downwards.
        edge: (N, 1, 1), width of the soft edge of a shape.
    """

    def __init__(self, picture: Floats, u: Floats, v: Floats, edge: Floats) -> None:
        self.picture, self.u, self.v, self.edge = picture, u, v, edge

    def window(self, rows: slice, columns: slice) -> _Canvas:
        """Return a part of the picture: small features are drawn where they can be, for speed."""
        at = (slice(None), rows, columns)
        return _Canvas(self.picture[at], self.u[at], self.v[at], self.edge)

    def inside(self, distance: Floats) -> Floats:
        """Return each pixel's share inside a shape, from its distance to the outline, negative inside."""
        return np.clip(0.5 - distance / self.edge, 0, 1)

    def line(self, distance: Floats, thickness: float) -> Floats:
        """Return each pixel's share on a line, from its distance to the middle of the line."""
        return self.inside(np.abs(distance) - thickness)

    def ellipse(self, u: Floats, v: Floats, width: Floats | float, height: Floats | float) -> Floats:
        """Return each pixel's share inside an ellipse around the origin of ``u`` and ``v``."""
        r = np.sqrt((u * (1 / width)) ** 2 + (v * (1 / height)) ** 2)
        return self.inside((r - 1) * np.minimum(width, height))

    def paint(self, mask: Floats, shade: Floats | float) -> None:
        """Cover the picture with ``shade`` to the extent of ``mask``."""
        self.picture += mask * (shade - self.picture)

    def darken(self, mask: Floats) -> None:
        """Take the share ``mask`` off the picture's light."""
        self.picture *= 1 - mask


def _render(p: dict[str, Floats], rng: np.random.Generator) -> Images:
    """Draw one block of faces from their looks, back to front."""
    axis = ((np.arange(SIZE, dtype=np.float32) + 0.5) / SIZE * 2 - 1)[None]
    x, y = axis[:, None, :] - p["shift_x"], axis[:, :, None] - p["shift_y"]
    cos, sin = np.cos(p["tilt"]) / p["zoom"], np.sin(p["tilt"]) / p["zoom"]
    u, v = cos * x + sin * y, cos * y - sin * x
    waves, clutter = _clutter(len(u), rng)
    picture = p["back"] + p["back_slope"] * v + p["back_clutter"] * clutter
    _draw_head(_Canvas(picture, u, v, p["edge"]), p, waves, clutter)

    turned = _Canvas(picture, u - p["turn"] * (1 - u * u), v, p["edge"])  # a turn moves the middle of the face most
    _draw_forehead(turned.window(slice(0, 30), slice(6, 42)), p)
    for side, columns in ((-1, slice(0, 30)), (1, slice(18, 48))):
        _draw_eye(turned.window(slice(0, 36), columns), p, side)
    lower = turned.window(slice(12, 48), slice(4, 44))
    _draw_nose(lower, p)
    _draw_mouth(lower, p)
    _draw_in_front(turned, p)

    picture *= 1 + p["light_x"] * axis[:, None, :] + p["light_y"] * axis[:, :, None]
    for index in (1, 2):
        widths = [(0, 0), (0, 0), (0, 0)]
        widths[index] = (1, 1)
        padded = np.pad(picture, widths, mode="edge").swapaxes(1, index)
        beside = (padded[:, 2:] + padded[:, :-2]).swapaxes(1, index)
        picture = (1 - 2 * p["blur"]) * picture + p["blur"] * beside
    picture = 0.5 + p["contrast"] * (picture - 0.5) + p["brightness"]
    picture += p["noise"] * rng.standard_normal(picture.shape, dtype=np.float32)
    return np.rint(np.clip(picture, 0, 1) * 255).astype(np.uint8)


def _clutter(n: int, rng: np.random.Generator) -> tuple[Floats, Floats]:
    """Return fields of large soft spots and of spots of all sizes, each (n, 48, 48), of mean 0 and deviation near 1."""
    fields = [
        spread @ rng.standard_normal((n, spots, spots), dtype=np.float32) @ spread.T
        for spots, spread in _SPREADING.items()
    ]
    return 1.5 * fields[0], 0.85 * (fields[0] + fields[1] + fields[2])


def _draw_head(on: _Canvas, p: dict[str, Floats], waves: Floats, clutter: Floats) -> None:
    u, v = on.u, on.v
    hair = p["hair"] * (1 + p["strands"] * clutter)
    # Long hair falls: below the middle of the head its ellipse is drawn out.
    hanging = np.minimum(v, 0) + np.maximum(v, 0) * (1 / (1 + 0.9 * p["long"]))
    on.paint(on.ellipse(u, hanging + 0.12 + 0.1 * waves, p["head_width"] + 0.12, p["head_height"] + 0.02), hair)
    on.paint(on.inside(np.abs(u) - 0.36 - 0.2 * np.maximum(v - 0.9, 0)) * (v > 0.3), 0.8 * p["skin"])
    on.paint(on.ellipse(u, v - 1.5, 1.15, 0.46), p["shirt"] + 0.1 * clutter)
    for side in (-1, 1):
        ear = on.ellipse(u - side * p["head_width"], v + 0.05, 0.07, 0.16)
        on.paint(ear * (1 - p["long"]), 0.85 * p["skin"])
    across = u / (p["head_width"] * (1 - p["jaw"] * np.maximum(v, 0)))
    along = v / p["head_height"]
    square = across * across + along * along
    head = on.inside((np.sqrt(square) - 1) * p["head_width"])
    on.paint(head, p["skin"] * (1.06 - 0.17 * square + 0.08 * along * along + p["spots"] * clutter))
    beard = np.clip((v - 0.34 + 0.3 * across * across) * 3, 0, 1) * head
    on.paint(beard * p["beard"], hair)
    scalp = on.ellipse(u, v, p["head_width"] + 0.06, p["head_height"] + 0.06)
    hairline = p["hairline"] + p["fringe"] * (u - p["parting"]) ** 2
    on.paint(scalp * on.inside(v - hairline - 0.08 * waves), hair * (1 + 0.15 * (u - v)))


def _draw_forehead(on: _Canvas, p: dict[str, Floats]) -> None:
    """Lines of raised brows above them, lines of a frown between them."""
    middle, above = np.abs(on.u), on.v - p["brow_level"]
    raised = 0.22 * np.clip(p["brow"] - 0.25, 0, 1) * p["wrinkles"]
    for level in (0.13, 0.21):
        line = on.line(above + level + 0.12 * p["brow"] - 0.12 * middle * middle, 0.012)
        on.darken(raised * line * (middle < 0.36))
    frown = 0.35 * np.clip(-p["slant"] - 0.2, 0, 1) * p["wrinkles"]
    on.darken(frown * on.line(middle - 0.055, 0.012) * (np.abs(above - 0.03) < 0.09))


def _draw_eye(on: _Canvas, p: dict[str, Floats], side: int) -> None:
    u = (on.u - side * p["eye_apart"]) * side  # positive towards the temple
    v = on.v - p["eye_level"]
    reach = (u / p["eye_width"]) ** 2
    within = reach < 1
    arch = np.maximum(1 - reach, 0)
    above = v + arch * (1.25 * p["eye_height"] * np.clip(1 + 0.62 * p["eye"], 0.12, 2.2))
    below = v - arch * (0.95 * p["eye_height"] * np.clip(1 - 0.55 * p["squint"], 0.2, 1.2))
    on.darken(0.16 * on.ellipse(u, v + 0.03, p["eye_width"] * 1.25, p["eye_height"] * 2.6))
    eye = on.inside(np.maximum(-above, below)) * within
    on.paint(eye, 0.35 + 0.7 * p["skin"])
    iris_u, iris_v = u - p["gaze"] * side, v + 0.012
    on.paint(eye * on.ellipse(iris_u, iris_v, p["iris_size"], p["iris_size"]), p["iris"])
    on.paint(eye * on.ellipse(iris_u + 0.02, iris_v + 0.03, 0.022, 0.022), 0.95)
    on.darken(0.75 * on.line(above, 0.016) * (reach < 1.15))
    on.darken(0.25 * on.line(below, 0.006) * within)
    on.darken(0.25 * np.clip(p["squint"], 0, 1) * on.line(v - 0.11 + 0.8 * u * u, 0.01) * within)

    span = u / 0.21
    brow = on.v - p["brow_level"] + 0.12 * p["brow"] - 0.09 * p["slant"] * span
    brow += (0.035 + 0.02 * p["brow"]) * (1 - span * span) - 0.02
    thick = p["brow_thick"] * (1.15 - 0.45 * span)
    on.paint(0.85 * on.inside(np.maximum(np.abs(brow) - thick, np.abs(u - 0.01) - 0.205)), p["brow_shade"])


def _draw_nose(on: _Canvas, p: dict[str, Floats]) -> None:
    middle = np.abs(on.u)
    tip = p["eye_level"] + 0.06 + p["nose_length"]
    v = on.v - tip
    bridge = on.line(middle - 0.06 - 0.1 * np.maximum(v + 0.15, 0), 0.012)
    on.darken(0.13 * bridge * (on.v > p["eye_level"] - 0.06) * (v < 0))
    wings = p["nose_width"] * (1 + 0.12 * p["fold"])
    on.darken(0.42 * on.ellipse(middle - 0.062, v - 0.05, 0.038, 0.022))
    on.darken(0.28 * on.line(v - 0.085 + 2.2 * middle * middle, 0.012) * (middle < wings))
    on.darken(0.30 * on.line(middle - wings, 0.01) * (np.abs(v - 0.02) < 0.06))
    on.paint(0.35 * on.ellipse(middle, v + 0.03, 0.05, 0.06), np.minimum(p["skin"] * 1.25, 1))
    wrinkled = 0.4 * np.clip(p["fold"] - 0.45, 0, 1) * np.clip(p["lip"] + 0.3, 0, 1)
    on.darken(wrinkled * on.line(on.v - p["eye_level"] - 0.06 - 0.8 * middle, 0.014) * (middle < 0.11))
    fold = on.line(middle - wings - 0.05 - 0.42 * np.maximum(v, 0), 0.014)
    on.darken(0.34 * np.clip(p["fold"], 0, 1.3) * fold * (v > -0.01) * (on.v < p["mouth_level"] + 0.02))


def _draw_mouth(on: _Canvas, p: dict[str, Floats]) -> None:
    """Two curves through the corners: between them the opening with its teeth, around it the lips."""
    half = p["mouth_width"] * np.clip(1 + 0.34 * p["width"], 0.45, 1.6)
    reach = (on.u / half) ** 2
    within = reach < 1
    bow = np.maximum(1 - reach, 0)
    round_bow = np.sqrt(bow)
    opening = np.clip(p["open"], 0, 1.3)
    v = on.v - (p["mouth_level"] - 0.105 * p["corner"])
    hang = 0.17 * p["corner"]  # how far the middle hangs below the corners
    top = (0.75 * hang - 0.075 * p["lip"]) * bow - 0.07 * opening * round_bow
    bottom = (1.05 * hang + 0.02 * np.clip(p["lip"], 0, 1)) * bow + 0.27 * opening * round_bow
    upper_lip = np.maximum(top - p["lip_thick"] * (0.35 + 0.9 * bow) - v, v - bottom)
    lower_lip = np.maximum(top - v, v - bottom - p["lip_thick"] * (0.2 + 1.3 * bow))
    on.darken((1 - p["lip_shade"]) * on.inside(np.minimum(upper_lip, lower_lip)) * (reach < 1.05))
    gap = bottom - top
    visible = np.clip(gap * 18, 0, 1) * within
    on.paint(on.inside(np.maximum(top - v, v - bottom)) * visible, 0.08)
    teeth = on.inside(np.maximum(top + 0.012 - v, v - top - 0.01 - np.minimum(0.1, 0.8 * gap)))
    on.paint(teeth * visible * np.clip(p["teeth"], 0, 1) * (reach < 0.8), 0.93)
    on.darken(0.55 * on.line(v - top, 0.008) * within)
    on.darken(0.4 * on.ellipse(np.abs(on.u) - half, v, 0.03, 0.025))
    on.darken(0.14 * on.ellipse(on.u, v - bottom - p["lip_thick"] - 0.075, half * 0.55, 0.03))


def _draw_in_front(on: _Canvas, p: dict[str, Floats]) -> None:
    """Glasses, and what hides a part of the face; most faces of a block have neither."""
    worn = np.flatnonzero(p["glasses"])
    if len(worn):
        some = _Canvas(on.picture[worn], on.u[worn], on.v[worn], on.edge[worn])
        middle, v = np.abs(some.u), some.v - p["eye_level"][worn] - 0.02
        radius = np.sqrt(((middle - p["eye_apart"][worn]) / 0.22) ** 2 + (v / 0.18) ** 2)
        nose_piece = np.maximum(np.abs(v + 0.04) - 0.014, middle - 0.11)
        some.paint(0.9 * some.inside(np.minimum(np.abs(radius - 1) * 0.19 - 0.016, nose_piece)), 0.07)
        on.picture[worn] = some.picture
    behind = np.flatnonzero(p["hidden"])
    if len(behind):
        some = _Canvas(on.picture[behind], on.u[behind], on.v[behind], on.edge[behind])
        u, v, size = some.u - p["hidden_x"][behind], some.v - p["hidden_y"][behind], p["hidden_size"][behind]
        some.paint(some.ellipse(u, v, size, size * 1.2), p["hidden_shade"][behind] * (1.1 - 0.3 * some.v))
        on.picture[behind] = some.picture
