"""Figures of where a network looks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from fer_utils.emotions import EMOTIONS
from fer_utils.faces import SIZE, Images
from fer_utils.plots.style import WIDTH, figure, mark, mark_color, styled

_MAP = "inferno"


@styled
def attention(
    images: Images,
    maps: Mapping[str, npt.NDArray[np.float32]],
    targets: npt.NDArray[np.int64],
    probabilities: npt.NDArray[np.float64],
    note: str = "",
    across: int = 2,
    places: Sequence[int] | None = None,
) -> Figure:
    """Return faces with what explains their prediction laid over them: the face, then a column for each kind of map.

    Bright is where the predicted emotion comes from; each map has its own scale, from 0 to its highest value.

    Args:
        images: uint8 (N, 48, 48).
        maps: by name (``Grad-CAM``), float32 (N, 48, 48).
        targets: int64 (N,), labels; -1 where there is none.
        probabilities: float64 (N, 7).
        note: what the title ends with.
        across: faces in a row.
        places: where each face stands, counted row by row; None is one after the other.
    """
    cells = list(range(len(images))) if places is None else list(places)
    columns = (1 + len(maps)) * across
    rows = max(cells, default=0) // across + 1
    side = min(1.1, WIDTH / columns - 0.15)
    result = figure(f"Where the network looks for its prediction{note}", rows * (side + 0.38) + 0.65)
    axes = result.subplots(rows, columns, squeeze=False)
    for cell in axes.flat:
        cell.set_axis_off()
    predicted = probabilities.argmax(axis=1)
    for column, name in enumerate(["face", *maps] * across):
        axes[0, column].set_title(name, fontsize=9)
    for index, place in enumerate(cells):
        row, first = place // across, place % across * (1 + len(maps))
        right = bool(predicted[index] == targets[index])
        known = targets[index] >= 0
        told = f"{EMOTIONS[predicted[index]]} {probabilities[index].max():.0%}"
        if known:
            told = f"{mark(right)} {told}" + ("" if right else f"\nlabel: {EMOTIONS[targets[index]]}")
        for column in range(1 + len(maps)):
            cell = axes[row, first + column]
            cell.imshow(images[index], cmap="gray", vmin=0, vmax=255, interpolation="bilinear")
        axes[row, first].text(
            *(SIZE / 2, SIZE + 1),
            told,
            color=mark_color(right) if known else None,
            ha="center",
            va="top",
            fontsize=8.5,
        )
        for column, values in enumerate(maps.values(), start=1):
            shown = np.clip(values[index], 0, None)
            # What does not matter leaves the face to be seen.
            share = shown / max(float(shown.max()), 1e-9)
            axes[row, first + column].imshow(shown, cmap=_MAP, alpha=0.65 * share, norm=Normalize(0, shown.max() or 1))
    return result


@styled
def sanity(
    images: Images,
    trained: npt.NDArray[np.float32],
    untrained: npt.NDArray[np.float32],
    alike: Sequence[float],
    note: str = "",
) -> Figure:
    """Return the maps of a trained network over those of one with random weights, a column for each face.

    Args:
        images: uint8 (N, 48, 48).
        trained: maps of the one, float32 (N, 48, 48).
        untrained: maps of the other.
        alike: rank correlation of the two maps of each face.
        note: what the title ends with.
    """
    columns = max(1, len(images))
    side = min(1.1, WIDTH / columns - 0.1)
    result = figure(f"Maps of the trained network and of one with random weights{note}", 2 * side + 1.0)
    axes = result.subplots(2, columns, squeeze=False)
    for row, (name, maps) in enumerate((("trained", trained), ("random", untrained))):
        for column in range(len(images)):
            cell = axes[row, column]
            cell.imshow(images[column], cmap="gray", vmin=0, vmax=255)
            cell.imshow(maps[column], cmap=_MAP, alpha=0.55)
            cell.set_xticks([])
            cell.set_yticks([])
            if column == 0:
                cell.set_ylabel(name)
            if row == 1:
                told = "no map" if np.isnan(alike[column]) else f"alike {alike[column]:.2f}"
                cell.set_xlabel(told, fontsize=8.5)
    return result
