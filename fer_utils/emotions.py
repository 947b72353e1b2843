"""The seven emotions of FER2013: one canonical order, every published spelling, every published numbering.

The order is alphabetical by folder name, as torchvision's ``ImageFolder`` numbers Kaggle's tree. The challenge's CSV
and the parquet tables number the same emotions differently, so a reader maps by name and never trusts a bare number.
"""

from __future__ import annotations

from typing import Final

EMOTIONS: Final = ("angry", "disgust", "fear", "happy", "neutral", "sad", "surprise")
"""Canonical names; an emotion's target is its index here."""

NUM_EMOTIONS: Final = len(EMOTIONS)

UNLABELLED: Final = -1
"""Target of a face whose emotion is not known."""

CHALLENGE_ORDER: Final = ("angry", "disgust", "fear", "happy", "sad", "surprise", "neutral")
"""What 0 to 6 mean in ``fer2013.csv``, ``icml_face_data.csv``, ``train.csv`` and the parquet tables (Goodfellow et al.
2013, arXiv:1307.0414)."""

FROM_CHALLENGE: Final = tuple(EMOTIONS.index(name) for name in CHALLENGE_ORDER)
"""``FROM_CHALLENGE[i]`` is the canonical target of the challenge's label ``i``."""

COLORS: Final = ("#D55E00", "#009E73", "#CC79A7", "#E69F00", "#7F7F7F", "#0072B2", "#56B4E9")
"""One colour per emotion, after Okabe and Ito (2008), which colour-blind readers can tell apart."""

_SPELLINGS: Final = {
    "angry": ("anger",),
    "disgust": ("disgusted",),
    "fear": ("fearful", "afraid"),
    "happy": ("happiness",),
    "neutral": (),
    "sad": ("sadness",),
    "surprise": ("surprised",),
}
_TARGET_OF: Final = {
    spelling: EMOTIONS.index(name) for name, others in _SPELLINGS.items() for spelling in (name, *others)
}


def target_of(spelling: str) -> int:
    """Return the canonical target, 0 to 6, of an emotion's name in any published spelling and case.

    Raises:
        ValueError: the name is none of the seven emotions (``contempt``, say); the message lists the names known.
    """
    target = _TARGET_OF.get(spelling.strip().lower())
    if target is None:
        raise ValueError(f"{spelling!r} is not one of the seven emotions; known names: {', '.join(sorted(_TARGET_OF))}")
    return target
