"""Finds the faces in a photo and cuts them out as FER2013's are.

The detector is OpenCV's alternate frontal Haar cascade (Viola and Jones 2001; Lienhart and Maydt 2002), whose model
comes with the package. ``benchmarks/detection.py`` measures what it finds, misses and takes for a face.
"""

from __future__ import annotations

import functools
import threading
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from fer_utils.faces import SIZE
from fer_utils.sources.images import to_face

Grey = npt.NDArray[np.uint8]

FACE_SIDE: Final = 64
"""A picture of at most this side, and nearly square, is a face itself under ``detect="auto"``."""
GREY_FACE_SIDE: Final = 128
"""So is a square grey picture of at most this side."""
SEARCH_SIDE: Final = 800
"""A photo's longer side while it is searched: smaller faces than a fortieth of it are not looked for."""
SMALLEST: Final = 20
"""Pixels of the smallest face that is looked for, in the photo as it is searched."""
NEIGHBOURS: Final = 5
"""So many windows must agree on a face. 4 finds one face more in a hundred and takes an emblem for one, too."""
MARGIN: Final = 0.05
"""A crop's side is so much larger than the detector's box: FER2013's faces are its boxes and a median of 5% more."""


_ONE_AT_A_TIME: Final = threading.Lock()
"""The cascade keeps the picture that it searches: threads that shared it would get each other's faces, or crash."""


class DetectorMissing(RuntimeError):
    """OpenCV has no face detector with it; the message says what to install."""


class Box(NamedTuple):
    """A square in pixels of the upright picture, inside it; right and bottom are exclusive."""

    left: int
    top: int
    right: int
    bottom: int


def is_face(image: Image.Image) -> bool:
    """Tell whether ``detect="auto"`` takes a picture for a face: small and nearly square, or grey and square."""
    short, long = sorted(image.size)
    if long <= FACE_SIDE:
        return short >= 0.8 * long
    return long <= GREY_FACE_SIDE and short == long and (image.mode in ("L", "1") or image.mode.startswith("I;16"))


def to_grey(image: Image.Image) -> Grey:
    """Return a picture as uint8 (H, W)."""
    if image.mode.startswith("I;16"):
        # All 16 bits count: the upper eight are what an 8-bit picture would have.
        return (np.asarray(image) >> 8).astype(np.uint8)
    return np.asarray(image.convert("L"))


def find_faces(grey: Grey) -> list[Box]:
    """Return the squares of the faces in a picture uint8 (H, W), with FER2013's margin, the largest first.

    Frontal and upright faces are found, of at least a fortieth of the longer side.

    Raises:
        DetectorMissing: OpenCV has no detector with it.
    """
    cv2, cascade = _cascade()
    height, width = grey.shape
    shrink = max(1.0, max(height, width) / SEARCH_SIDE)
    small = grey
    if shrink > 1:
        size = (max(1, round(width / shrink)), max(1, round(height / shrink)))
        small = cv2.resize(grey, size, interpolation=cv2.INTER_AREA)
    if min(small.shape) < SMALLEST:
        return []

    def search(picture: Grey, border: int) -> list[tuple[float, float, float]]:
        with _ONE_AT_A_TIME:
            found = cascade.detectMultiScale(picture, 1.1, NEIGHBOURS, minSize=(SMALLEST, SMALLEST))
        return [((x + w / 2 - border) * shrink, (y + h / 2 - border) * shrink, w * shrink) for x, y, w, h in found]

    squares = search(small, 0)
    if not squares:
        # A face that fills the picture lacks the surroundings that the cascade wants: its edge is drawn out.
        border = round(0.1 * min(small.shape))
        squares = search(cv2.copyMakeBorder(small, border, border, border, border, cv2.BORDER_REPLICATE), border)
    kept: list[tuple[float, float, float]] = []
    for x, y, side in sorted(squares, key=lambda square: -square[2]):
        # What lies within a larger face is a part of it.
        if not any(max(abs(x - X), abs(y - Y)) < S / 2 for X, Y, S in kept):
            kept.append((x, y, side))
    return [_square(x, y, side * (1 + MARGIN), width, height) for x, y, side in kept]


def _square(x: float, y: float, side: float, width: int, height: int) -> Box:
    """A square about a centre, moved into the picture where it stands out, and no larger than it."""
    side = min(side, width, height)
    pixels = max(1, round(side))
    left = min(max(round(x - side / 2), 0), width - pixels)
    top = min(max(round(y - side / 2), 0), height - pixels)
    return Box(left, top, left + pixels, top + pixels)


def cut_out(grey: Grey, box: Box) -> Grey:
    """Return the face in ``box`` of a picture uint8 (H, W) as the network wants it: uint8 (48, 48), equalised."""
    return equalised(to_face(Image.fromarray(np.ascontiguousarray(grey[box.top : box.bottom, box.left : box.right]))))


def as_face(image: Image.Image) -> Grey:
    """Return a picture of one face as the network wants it: uint8 (48, 48), equalised unless it has that size already.

    A picture of 48×48 pixels is taken for one of FER2013's and left as it is.

    Raises:
        ImageError: the pixels are 32-bit numbers, of which nothing tells where black and white are.
    """
    face = to_face(image)
    return face if image.size == (SIZE, SIZE) else equalised(face)


def equalised(face: Grey) -> Grey:
    """Return a face uint8 (48, 48) with every grey about equally often, as in FER2013's faces.

    OpenCV's ``equalizeHist`` hardly changes those, and a network that saw no others takes a photo's light for
    expression. ``benchmarks/light.py`` measures what it gives.
    """
    import cv2

    return np.asarray(cv2.equalizeHist(face), np.uint8)


@functools.cache
def _cascade() -> tuple[Any, Any]:
    import cv2

    path = Path(getattr(getattr(cv2, "data", None), "haarcascades", "")) / "haarcascade_frontalface_alt.xml"
    if not hasattr(cv2, "CascadeClassifier") or not path.is_file():
        raise DetectorMissing(
            f"OpenCV {cv2.__version__} comes without its face detector: pip install 'opencv-python-headless>=4.10,<5', "
            "or give pictures of single faces with detect=False (--detect no)"
        )
    return cv2, cv2.CascadeClassifier(str(path))
