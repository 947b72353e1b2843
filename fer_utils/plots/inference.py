"""Figures of answers: a picture with its faces, many faces with their emotions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator, PercentFormatter
from PIL import Image

from fer_utils.detection import to_grey
from fer_utils.emotions import EMOTIONS
from fer_utils.inference import Face, Prediction
from fer_utils.plots.style import EMOTION_COLORS, INK, MUTED, WIDTH, face_grid, figure, grid_lines, styled

MOST_FACES: Final = 5
"""Faces of one picture that are shown in full, the largest first."""
_SIDE: Final = 1000
"""Pixels of a picture's longer side in a figure."""
_LABEL: Final = 0.07
"""Height of a label in a picture, as a share of the picture's longer side."""


@styled
def answer(picture: Image.Image | None, prediction: Prediction, title: str | None = None, note: str = "") -> Figure:
    """Return a picture with a square round each face, and beside it each face as the network saw it with its bars.

    Args:
        picture: the upright picture, as ``pictures.read_picture`` returns it; None shows the faces alone.
        prediction: the answer to it.
        title: what it is called; None is the file's name and the answer.
        note: what the title ends with.
    """
    faces = prediction.faces[:MOST_FACES]
    if picture is not None and [face.box for face in faces] == [(0, 0, *picture.size)]:
        picture = None  # it is the face, which is shown anyway
    rows = max(1, len(faces))
    if title is None:
        nothing = "no face" if prediction.error is None else "no answer"
        told = f"{len(prediction.faces)} faces" if len(prediction.faces) > 1 else prediction.label or nothing
        title = f"{Path(prediction.source).name}: {told}"
    title += note
    if picture is None:
        result = figure(title, 1.7 * rows + 0.5, WIDTH * 0.6)
        _faces(result, prediction, numbered=False)
        return result
    result = figure(title, max(1.35 * rows, 3.2) + 0.5)
    halves: Any = result.subfigures(1, 2, width_ratios=(1, 1.25))
    left, right = halves
    _faces(right, prediction, numbered=True)
    axes = left.add_subplot()
    axes.set_axis_off()
    # Pillow would clip 16-bit greys to white: they are drawn as they were searched.
    shown = (Image.fromarray(to_grey(picture)) if picture.mode.startswith("I;16") else picture).convert("RGB")
    shown.thumbnail((_SIDE, _SIDE))
    axes.imshow(shown, interpolation="bilinear")
    scale = shown.width / picture.width
    if any(face.box.top * scale < _LABEL * max(shown.size) for face in faces):
        axes.set_ylim(shown.height - 0.5, -_LABEL * max(shown.size))  # room for a label above the picture
    for number, face in enumerate(faces, start=1):
        box, color = face.box, EMOTION_COLORS[face.label]
        x, y, side = box.left * scale, box.top * scale, (box.right - box.left) * scale
        axes.add_patch(Rectangle((x, y), side, side, fill=False, edgecolor="white", linewidth=4))
        axes.add_patch(Rectangle((x, y), side, side, fill=False, edgecolor=color, linewidth=2))
        at_the_right = x + side / 2 > 0.75 * shown.width
        axes.text(
            *(x + side if at_the_right else x, y),
            f"{number} {face.label}",
            ha="right" if at_the_right else "left",
            color="white",
            fontsize=9,
            va="bottom",
            bbox={"facecolor": color, "edgecolor": "none", "pad": 1.5},
            clip_on=True,
        )
    return result


def _faces(place: Figure | SubFigure, prediction: Prediction, numbered: bool) -> None:
    """Draw the largest faces, one below the other, each with its bars."""
    faces = prediction.faces[:MOST_FACES]
    if not faces:
        # On axes of its own: a notebook does not show a figure without any.
        axes = place.add_subplot()
        axes.set_axis_off()
        # Dollar signs would make formulas; where text is wrapped, parse_math has no effect.
        told = (prediction.error or "no face found").replace("$", r"\$")
        axes.text(0.5, 0.5, told, ha="center", va="center", fontsize=11, wrap=True, transform=axes.transAxes)
        return
    cells = place.subplots(len(faces), 2, squeeze=False, width_ratios=(1, 2.2))
    for number, (face, (crop, bars)) in enumerate(zip(faces, cells, strict=True), start=1):
        crop.imshow(face.crop, cmap="gray", vmin=0, vmax=255)
        crop.set_axis_off()
        crop.set_title(str(number) if numbered else "", fontsize=9)
        _bars(bars, face, last=number == len(faces))
    hidden = len(prediction.faces) - len(faces)
    if hidden:
        place.text(0.99, 0.005, f"and {hidden} more", ha="right", color=MUTED, fontsize=9)


def _bars(axes: Axes, face: Face, last: bool) -> None:
    values = [face.probabilities[emotion] for emotion in EMOTIONS]
    bars = axes.barh(EMOTIONS, values, color=[EMOTION_COLORS[emotion] for emotion in EMOTIONS], height=0.75)
    axes.bar_label(bars, [f"{value:.0%}" for value in values], padding=2, fontsize=7.5)
    axes.set_xlim(0, 1.12)
    axes.invert_yaxis()
    axes.tick_params(axis="y", labelsize=7.5, length=0)
    axes.xaxis.set_major_formatter(PercentFormatter(1))
    axes.set_xticks([0, 0.5, 1])
    axes.tick_params(axis="x", labelsize=7.5, labelbottom=last)
    if last:
        axes.set_xlabel("probability", fontsize=8.5)


@styled
def gallery(predictions: Sequence[Prediction], title: str, columns: int = 8) -> Figure:
    """Return the largest face of each picture, as the network saw it, with its emotion; those without are left out."""
    faces = [prediction.faces[0] for prediction in predictions if prediction.faces]
    return face_grid(
        [face.crop for face in faces],
        title=title,
        captions=[f"{face.label} {face.probabilities[face.label]:.0%}" for face in faces],
        columns=min(columns, max(1, len(faces))),
    )


@styled
def counts(table: pd.DataFrame, title: str = "Emotions of all faces") -> Figure:
    """Return how many faces have each emotion.

    Args:
        table: what ``inference.to_table`` gives.
        title: what it is called.
    """
    found = table["label"].value_counts()
    values = [int(found.get(emotion, 0)) for emotion in EMOTIONS]
    result = figure(title, 2.8, WIDTH)
    axes = result.add_subplot()
    bars = axes.bar(EMOTIONS, values, color=[EMOTION_COLORS[emotion] for emotion in EMOTIONS])
    total = max(1, sum(values))
    axes.bar_label(bars, [f"{value:,}\n{value / total:.0%}" for value in values], fontsize=8.5, color=INK)
    axes.set_ylim(0, max(1, *values) * 1.25)
    axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.set_ylabel("faces")
    axes.set_xlabel("most probable emotion")
    grid_lines(axes)
    return result
