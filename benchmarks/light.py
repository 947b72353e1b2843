"""What equalising a face's histogram gives on faces in the light of photos: FER2013's own have flat histograms.

Validation faces, which the model in the box never saw in training, get the greys of real photographs (each those of one
of scikit-image's 100 LFW faces, in the same order of brightness), or a curve. The model answers them as they then are
and equalised as `Classifier` does it with what it cuts out of a photo. Drawn faces are equalised first, to be like
FER2013's.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, Final

import bars
import numpy as np
import numpy.typing as npt
import skimage.data

from fer_utils import box, sources
from fer_utils.detection import equalised
from fer_utils.inference import Classifier

Grey = npt.NDArray[np.uint8]
PACKAGED: Final[Any] = skimage.data


def with_greys_of(face: Grey, other: Grey) -> Grey:
    """Return a face with another picture's greys: the darkest for the darkest, and so on; equal greys stay equal."""
    _, place, counts = np.unique(face, return_inverse=True, return_counts=True)
    shares = (np.cumsum(counts) - counts / 2) / face.size
    found: Grey = np.rint(np.quantile(other, shares))[place].astype(np.uint8).reshape(face.shape)
    return found


def lights() -> dict[str, Callable[[Grey], Grey]]:
    """Return what is done to the faces, by name."""
    photos = np.rint(PACKAGED.lfw_subset()[:100] * 255).astype(np.uint8)
    drawn = np.random.default_rng(0)

    def curve(change: Callable[[npt.NDArray[np.float64]], npt.NDArray[np.float64]]) -> Callable[[Grey], Grey]:
        table = np.rint(255 * change(np.arange(256) / 255)).astype(np.uint8)
        return lambda face: table[face]

    return {
        "as they are": lambda face: face,
        "greys of LFW's photos": lambda face: with_greys_of(face, photos[drawn.integers(len(photos))]),
        "bright: gamma 0.5": curve(lambda x: x**0.5),
        "dark: gamma 2": curve(lambda x: x**2),
        "flat: a third of the contrast": curve(lambda x: 0.3 + 0.35 * x),
    }


def main() -> int:
    """Measure, print, judge."""
    arguments = bars.parser(__doc__).parse_args()
    print(bars.machine())
    name, held = box.entry()
    recipe = held.training["recipe"]
    splits = sources.load(arguments.data, val_fraction=recipe["val_fraction"], split_seed=recipe["split_seed"])
    faces = splits.val.images
    flat = np.stack([equalised(face) for face in faces])
    if splits.synthetic:
        faces = flat
    change = float(np.abs(faces.astype(np.int16) - flat).mean())
    print(f"{len(faces):,} validation faces of {splits.source} {splits.location}; model {name}")
    print(f"equalising changes a pixel by {change:.1f} of 255 on average")
    model = Classifier.pretrained(name)
    targets = splits.val.targets
    answers = model.probabilities(faces).argmax(1)

    rows: list[list[object]] = []
    kept: dict[str, tuple[float, float]] = {}
    for light, changed in lights().items():
        lit = np.stack([changed(face) for face in faces])
        found = [model.probabilities(images).argmax(1) for images in (lit, np.stack([equalised(face) for face in lit]))]
        same = [float((labels == answers).mean()) for labels in found]
        right = [100 * float((labels == targets).mean()) for labels in found]
        kept[light] = same[0], same[1]
        rows.append([light, right[0], right[1], same[0], same[1]])
    print()
    bars.table(["faces", "accuracy", "equalised", "same answer as before", "equalised"], rows)
    judged = [bars.at_least("same answer in photos' light, equalised", kept["greys of LFW's photos"][1], 0.85)]
    judged += [
        bars.at_least(f"{light}: equalised over as it is, share of same answers", after / before, 1.0)
        for light, (before, after) in kept.items()
        if light != "as they are"
    ]
    return bars.judge(judged)


if __name__ == "__main__":
    sys.exit(bars.run(main))
