"""What the face detector finds, misses and takes for a face, held against scikit-image's cascade.

Three kinds of picture, all of which come with installed packages: photographs with a face, photographs without any, and
scenes in which real face crops (100 of scikit-image's ``lfw_subset``) lie on the latter. Where ``--data`` names real
faces, up to 120 of its test faces make further scenes, and the margin is measured: how much larger FER2013's crops are
than the detector's boxes. A face counts as found where a box overlaps its square by more than 0.3 (intersection over
union).
"""

from __future__ import annotations

import functools
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import bars
import matplotlib
import numpy as np
import numpy.typing as npt
import skimage.data
import sklearn.datasets
from PIL import Image

from fer_utils import detection, sources
from fer_utils.detection import Box

Grey = npt.NDArray[np.uint8]
Detector = Callable[[Grey], list[Box]]

PACKAGED: Any = skimage.data  # comes without types
SKIMAGE = Path(PACKAGED.__file__).parent
HOPPER = Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg"
# Squares marked by eye.
WITH_FACES = {
    SKIMAGE / "astronaut.png": [Box(174, 63, 277, 166)],
    HOPPER: [Box(141, 95, 384, 338)],
}
WITHOUT_FACES = [
    *(SKIMAGE / f"{name}.png" for name in "brick chelsea coffee coins grass gravel motorcycle_left moon page".split()),
    *(SKIMAGE / name for name in ("clock_motion.png", "hubble_deep_field.jpg", "ihc.png", "retina.jpg", "rocket.jpg")),
    *(Path(sklearn.datasets.__file__).parent / "images" / name for name in ("china.jpg", "flower.jpg")),
]
SCENE = (480, 640)
FACES_A_SCENE = 4


@dataclass(frozen=True)
class Picture:
    """A grey picture and the squares of its faces."""

    grey: Grey
    faces: Sequence[Box]


def overlap(a: Box, b: Box) -> float:
    """Return intersection over union of two boxes."""
    width = min(a.right, b.right) - max(a.left, b.left)
    height = min(a.bottom, b.bottom) - max(a.top, b.top)
    both = max(0, width) * max(0, height)
    areas = sum((box.right - box.left) * (box.bottom - box.top) for box in (a, b))
    return both / (areas - both)


def load(path: Path) -> Grey:
    """Return a picture as uint8 (H, W)."""
    with Image.open(path) as image:
        return detection.to_grey(image)


def scenes(faces: Sequence[Grey], rng: np.random.Generator) -> list[Picture]:
    """Lay faces on photographs without any: four in each, 50 to 180 pixels large, soft at the edges, side by side."""
    height, width = SCENE
    made = []
    for number, start in enumerate(range(0, len(faces), FACES_A_SCENE)):
        photo = Image.open(WITHOUT_FACES[number % len(WITHOUT_FACES)]).convert("L").resize((width, height))
        ground = np.asarray(photo).astype(np.float64)
        placed: list[Box] = []
        for face in faces[start : start + FACES_A_SCENE]:
            side = int(rng.integers(50, 180))
            while True:
                left, top = int(rng.integers(0, width - side)), int(rng.integers(0, height - side))
                box = Box(left, top, left + side, top + side)
                if all(overlap(box, other) == 0 for other in placed):
                    break
            ramp = np.minimum(1, (1 + np.minimum(np.arange(side), np.arange(side)[::-1])) / (side / 12))
            weight = np.outer(ramp, ramp)
            large = np.asarray(Image.fromarray(face).resize((side, side), Image.Resampling.BICUBIC))
            region = ground[box.top : box.bottom, box.left : box.right]
            region[:] = weight * large + (1 - weight) * region
            placed.append(box)
        made.append(Picture(ground.astype(np.uint8), placed))
    return made


@functools.cache
def _lbp() -> Any:
    from skimage.feature import Cascade

    return Cascade(PACKAGED.lbp_frontal_face_cascade_filename())


def scikit_image(grey: Grey) -> list[Box]:
    """Find faces with scikit-image's LBP cascade, in pictures of the same size as ours."""
    shrink = max(1.0, max(grey.shape) / detection.SEARCH_SIDE)
    size = (round(grey.shape[1] / shrink), round(grey.shape[0] / shrink))
    small = np.asarray(Image.fromarray(grey).resize(size, Image.Resampling.BOX))
    found = _lbp().detect_multi_scale(small, 1.1, 1, (24, 24), (min(small.shape),) * 2, min_neighbor_number=5)
    boxes = [(item["c"], item["r"], item["width"]) for item in found]
    return [Box(*(round(value * shrink) for value in (x, y, x + side, y + side))) for x, y, side in boxes]


@dataclass
class Tally:
    """What a detector made of some pictures."""

    faces: int = 0
    found: int = 0
    false: int = 0
    seconds: float = 0.0


def tally(detector: Detector, pictures: Sequence[Picture]) -> Tally:
    """Run a detector on pictures and count."""
    total = Tally()
    for picture in pictures:
        start = time.perf_counter()
        boxes = detector(picture.grey)
        total.seconds += time.perf_counter() - start
        total.faces += len(picture.faces)
        total.found += sum(any(overlap(box, face) > 0.3 for box in boxes) for face in picture.faces)
        total.false += sum(all(overlap(box, face) <= 0.3 for face in picture.faces) for box in boxes)
    return total


def margins(pictures: Sequence[Picture]) -> list[float]:
    """Return the side of each found face's square over that of the detector's box, its margin taken off."""
    ratios = []
    for picture in pictures:
        for box in detection.find_faces(picture.grey):
            for face in picture.faces:
                if overlap(box, face) > 0.3:
                    ratios.append((face.right - face.left) / (box.right - box.left) * (1 + detection.MARGIN))
    return ratios


def main() -> int:
    """Measure, print, judge."""
    arguments = bars.parser(__doc__).parse_args()
    print(bars.machine())
    rng = np.random.Generator(np.random.PCG64(0))
    # The subset's second half is no faces.
    crops = [np.rint(face * 255).astype(np.uint8) for face in PACKAGED.lfw_subset()[:100]]
    kinds = {
        "photographs with a face": [Picture(load(path), faces) for path, faces in WITH_FACES.items()],
        "photographs without": [Picture(load(path), []) for path in WITHOUT_FACES],
        "scenes of lfw_subset": scenes(crops, rng),
    }
    splits = sources.load(arguments.data)
    if not splits.synthetic:
        test = splits.test.images
        chosen = rng.choice(len(test), min(120, len(test)), replace=False)
        kinds["scenes of FER2013"] = scenes([test[index] for index in chosen], rng)
    detectors: dict[str, Detector] = {"OpenCV, Haar (ours)": detection.find_faces, "scikit-image, LBP": scikit_image}
    rows, ours = [], {}
    for kind, pictures in kinds.items():
        for name, detector in detectors.items():
            detector(pictures[0].grey)
            got = tally(detector, pictures)
            if detector is detection.find_faces:
                ours[kind] = got
            share = got.found / got.faces if got.faces else float("nan")
            seconds = got.seconds / len(pictures)
            rows.append(
                [kind, name, len(pictures), got.faces, got.found, got.faces - got.found, share, got.false, seconds]
            )
    header = ["pictures", "detector", "n", "faces", "found", "missed", "share found", "false", "s a picture"]
    bars.table(header, rows)
    photographs, empty, lfw = (ours[kind] for kind in list(kinds)[:3])
    judged = [
        bars.at_least("faces found in photographs, of 2", photographs.found, 2),
        bars.at_most("false faces in photographs", photographs.false + empty.false, 1),
        bars.at_least("share of lfw_subset found in scenes", lfw.found / lfw.faces, 0.9),
        bars.at_most("false faces in scenes of lfw_subset", lfw.false, 2),
    ]
    if "scenes of FER2013" in kinds:
        ratio = statistics.median(margins(kinds["scenes of FER2013"]))
        print(f"\nFER2013's crops are {ratio:.3f} times as large as the detector's boxes (median)")
        judged.append(bars.at_most("the margin is off by", abs(ratio - 1 - detection.MARGIN), 0.03))
    return bars.judge(judged)


if __name__ == "__main__":
    sys.exit(bars.run(main))
