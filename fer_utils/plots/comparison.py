"""Figures of several systems side by side: learning curves, recall by emotion, faces on which two disagree."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fer_utils.emotions import COLORS, EMOTIONS
from fer_utils.faces import Images
from fer_utils.plots.style import RIGHT, WRONG, face_grid, figure, grid_lines, heat_map, mark, styled

__all__ = ["disagreement", "learning_curves", "recall_table"]

_LINES: Final = ("-", "--", ":", "-.")


@styled
def learning_curves(histories: Mapping[str, Sequence[pd.DataFrame]], note: str = "") -> Figure:
    """Return validation accuracy by epoch and by minute: a line for each run, a colour and line style for each system.

    Args:
        histories: a system's label to the histories of its runs.
        note: what the title ends with.
    """
    wrapped = {label: textwrap.fill(label, 100) for label in histories}
    lines = sum(1 + text.count("\n") for text in wrapped.values())
    result = figure(f"Validation accuracy of each recipe{note}", 3.6 + 0.2 * lines)
    by_epoch, by_minute = result.subplots(1, 2, sharey=True)
    for index, (label, runs) in enumerate(histories.items()):
        look = {"color": COLORS[index % len(COLORS)], "linestyle": _LINES[index // len(COLORS) % len(_LINES)]}
        for number, history in enumerate(runs):
            told = wrapped[label] if number == 0 else None
            by_epoch.plot(history["epoch"], 100 * history["val_accuracy"], marker="o", markersize=3, label=told, **look)
            minutes = history["total_seconds"] / 60
            by_minute.plot(minutes, 100 * history["val_accuracy"], marker="o", markersize=3, **look)
    by_epoch.set_xlabel("epoch")
    by_minute.set_xlabel("minutes of training and validation")
    by_epoch.set_ylabel("accuracy (%)")
    by_epoch.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))  # of a single epoch no fractions
    by_minute.xaxis.set_major_locator(MaxNLocator(5))
    for axes in (by_epoch, by_minute):
        grid_lines(axes)
    # Below the axes: labels tell what was changed in a recipe and can be long.
    result.legend(loc="outside lower left", ncols=1)
    return result


@styled
def recall_table(recalls: pd.DataFrame, note: str = "") -> Figure:
    """Return recall in percent by system (rows) and emotion (columns) as a coloured table.

    Args:
        recalls: as ``comparison.recalls`` gives them, 0 to 1.
        note: what the title ends with.
    """
    # A label tells what was changed in a recipe and can be long; the emotions need their room.
    labels = [textwrap.fill(str(label), 30) for label in recalls.index]
    lines = max((1 + label.count("\n") for label in labels), default=1)
    result = figure(f"Recall of each emotion (%){note}", 1.2 + max(0.45, 0.18 * lines + 0.1) * len(recalls))
    axes = result.add_subplot()
    shares = recalls[list(EMOTIONS)].to_numpy(dtype=np.float64)
    texts = [["–" if np.isnan(share) else f"{100 * share:.0f}" for share in row] for row in shares]
    heat_map(axes, shares, texts, labels, EMOTIONS, square=False)
    axes.set_xlabel("emotion")
    axes.set_ylabel("recipe")
    return result


@styled
def disagreement(
    images: Images,
    targets: npt.NDArray[np.int64],
    first: npt.NDArray[np.int64],
    second: npt.NDArray[np.int64],
    names: tuple[str, str],
    note: str = "",
) -> Figure:
    """Return faces with their label and what each of two systems says, each prediction with its mark.

    Args:
        images: uint8 (N, 48, 48).
        targets: int64 (N,), the labels.
        first: int64 (N,), predictions of the first system.
        second: int64 (N,), predictions of the second.
        names: the two systems, which the title tells.
        note: what the title ends with.
    """
    captions = []
    for target, said in zip(targets, zip(first, second, strict=True), strict=True):
        # Letters for the systems: their names would run into those of the next face.
        answers = [f"{letter} {mark(it == target)} {EMOTIONS[it]}" for letter, it in zip("AB", said, strict=True)]
        captions.append("\n".join([f"label {EMOTIONS[target]}", *answers]))
    # In full: shortened, two variants of a recipe would have the same name.
    told = [textwrap.fill(f"{letter}: {name}", 75) for letter, name in zip("AB", names, strict=True)]
    title = "\n".join([f"One right, one wrong{note}", *told])
    colors = [RIGHT if a == target else WRONG for target, a in zip(targets, first, strict=True)]
    return face_grid(images, title=title, captions=captions, colors=colors, framed=True, columns=7, fontsize=8)
