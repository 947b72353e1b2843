"""Figures of predictions: how good they are, how sure one may be of it, and what goes wrong.

Wherever a face's prediction is shown, ``✓`` and green are right, ``✗`` and red are wrong, and the number is the
network's probability. ``note`` is what the title ends with (``splits.title_note``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from fer_utils.emotions import EMOTIONS
from fer_utils.faces import Images
from fer_utils.metrics import Curve, Interval, Measured
from fer_utils.plots.style import (
    BAR,
    EMOTION_COLORS,
    INK,
    MUTED,
    face_grid,
    figure,
    grid_lines,
    heat_map,
    mark,
    mark_color,
    styled,
)

RATE_COLORS: Final = {"precision": "#56B4E9", "recall": "#0072B2", "f1": "#E69F00"}
RATE_TITLES: Final = {"precision": "precision", "recall": "recall", "f1": "F1"}
HUMAN: Final = (0.60, 0.70)
"""People's accuracy on FER2013's labels, 65 ± 5% (Goodfellow et al. 2013, arXiv:1307.0414)."""

_DASHES: Final = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)))


@styled
def accuracies(scores: Mapping[str, Mapping[str, Interval]], note: str = "", people: bool = True) -> Figure:
    """Return accuracy with its interval: a row for each set of faces, a mark for each view of them.

    Args:
        scores: by set of faces (``test, clean``), then by view (``single view``).
        note: see the module.
        people: draw the band of people's accuracy on FER2013; leave it out on other faces.
    """
    views = list(dict.fromkeys(view for row in scores.values() for view in row))
    result = figure(f"Accuracy with its 95% interval{note}", 1.3 + 0.28 * len(scores) * max(1, len(views)))
    axes = result.add_subplot()
    if people:
        axes.axvspan(*HUMAN, color="#F1E7C8", label="people, 65 ± 5%", zorder=0)
    markers, colors = "osD^v", ("#0072B2", "#D55E00", "#009E73", "#CC79A7", INK)
    for row, by_view in enumerate(scores.values()):
        for index, view in enumerate(views):
            if view not in by_view:
                continue
            value, low, high = by_view[view]
            y = row + (index - (len(views) - 1) / 2) * 0.26
            axes.errorbar(
                value,
                y,
                xerr=[[value - low], [high - value]],
                marker=markers[index % 5],
                color=colors[index % 5],
                capsize=3,
                linestyle="none",
                label=view if row == 0 else None,
            )
            axes.annotate(
                f"{value:.2%}", (high, y), xytext=(5, 0), textcoords="offset points", va="center", fontsize=8.5
            )
    axes.set_yticks(range(len(scores)), list(scores))
    axes.set_ylim(len(scores) - 0.4, -0.6)
    axes.margins(x=0.18)
    axes.set_xlabel("accuracy")
    # Ticks at whole numbers: 57.5% would be written as 58%.
    axes.xaxis.set_major_locator(MaxNLocator(steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_formatter(PercentFormatter(1))
    grid_lines(axes, "x")
    result.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=len(views) + 1)
    return result


@styled
def confusion(matrix: npt.NDArray[np.int64], note: str = "") -> Figure:
    """Return the confusion matrix twice: counts of faces, and shares of each row.

    Args:
        matrix: (7, 7), a row for each target, a column for each prediction.
        note: see the module.
    """
    result = figure(f"Confusion matrix: what each emotion is taken for{note}", 4.5)
    left, right = result.subplots(1, 2)
    rows = matrix.sum(axis=1, keepdims=True)
    shares = matrix / np.maximum(rows, 1)
    # Both are coloured by share: the colours then say the same, and a rare emotion is not pale for being rare.
    _table(left, shares, [[f"{count:,}" for count in row] for row in matrix])
    _table(right, shares, [[f"{share:.0%}".rstrip("%") for share in row] for row in shares])
    left.set_title("faces")
    right.set_title("% of the row's faces")
    left.set_ylabel("label")
    right.set_yticks([])
    return result


def _table(axes: Axes, shares: npt.NDArray[np.float64], texts: Sequence[Sequence[str]]) -> None:
    heat_map(axes, shares, texts, EMOTIONS, EMOTIONS)
    for right in axes.texts[:: len(EMOTIONS) + 1]:  # the diagonal
        right.set_fontweight("bold")
    axes.set_xticks(axes.get_xticks(), EMOTIONS, rotation=40, ha="right", rotation_mode="anchor")
    axes.set_xlabel("prediction")


@styled
def per_class(measured: Measured, note: str = "") -> Figure:
    """Return bars of precision, recall and F1 of each emotion, with intervals and the number of faces."""
    result = figure(f"Precision, recall and F1 of each emotion, with 95% intervals{note}", 3.9)
    axes = result.add_subplot()
    width = 0.27
    for index, (rate, color) in enumerate(RATE_COLORS.items()):
        rows = np.array([measured.per_class[emotion][rate] for emotion in EMOTIONS])
        value, low, high = rows.T
        axes.bar(
            np.arange(len(EMOTIONS)) + (index - 1) * width,
            value,
            width,
            yerr=[value - low, high - value],
            color=color,
            label=RATE_TITLES[rate],
            error_kw={"ecolor": INK, "elinewidth": 1.1, "capsize": 2.5},
        )
    axes.set_xticks(range(len(EMOTIONS)), [f"{emotion}\n{measured.support[emotion]:,} faces" for emotion in EMOTIONS])
    axes.set_ylim(0, 1)
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.set_ylabel("share of faces (F1: harmonic mean)")
    axes.set_xlabel("emotion")
    grid_lines(axes)
    result.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return result


@styled
def reliability(tables: Mapping[str, pd.DataFrame], note: str = "") -> Figure:
    """Return reliability diagrams side by side, for instance before and after temperature scaling.

    A point is a bin of equally many faces; its bar is the 95% range that chance gives a bin of so many faces if its
    confidence is right. Points below the diagonal are too sure.

    Args:
        tables: by the panel's title, what ``metrics.reliability`` gives.
        note: see the module.
    """
    result = figure(f"Calibration: is the network right as often as it is sure?{note}", 4.3)
    panels = result.subplots(1, len(tables), sharey=True, squeeze=False)[0]
    for axes, (title, table) in zip(panels, tables.items(), strict=True):
        confidence = table["confidence"].to_numpy(dtype=np.float64)
        spread = 1.96 * np.sqrt(confidence * (1 - confidence) / table["faces"].to_numpy(dtype=np.float64))
        axes.plot([0, 1], [0, 1], color=MUTED, linewidth=1, linestyle="--", label="perfect calibration")
        axes.vlines(
            confidence,
            np.maximum(confidence - spread, 0),
            np.minimum(confidence + spread, 1),
            color="#B8BCC2",
            linewidth=5,
            label="chance, 95%",
        )
        axes.plot(confidence, table["accuracy"], "o-", color=BAR, markersize=5, label="measured")
        axes.set_title(title)
        axes.set_xlabel("confidence (probability of the prediction)")
        axes.set_xlim(0, 1.02)
        axes.set_ylim(0, 1.02)
        axes.set_aspect("equal")
        grid_lines(axes, "both")
    panels[0].set_ylabel("accuracy")
    panels[0].legend(loc="upper left")
    return result


@styled
def precision_recall(curves: Mapping[str, Curve], note: str = "") -> Figure:
    """Return the precision-recall curve of each emotion against all others, with its average precision (AP)."""
    result = figure(f"Precision against recall of each emotion{note}", 4.2)
    axes = result.add_subplot()
    for index, emotion in enumerate(EMOTIONS):
        if emotion in curves:
            curve = curves[emotion]
            axes.plot(
                curve.recall,
                curve.precision,
                color=EMOTION_COLORS[emotion],
                linestyle=_DASHES[index],
                label=f"{emotion}, AP {curve.average_precision:.2f}",
            )
    for setter in (axes.set_xlim, axes.set_ylim):
        setter(0, 1.02)
    axes.set_xlabel("recall: share of the emotion's faces that are found")
    axes.set_ylabel("precision: share of those found that are right")
    axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    grid_lines(axes, "both")
    result.legend(*axes.get_legend_handles_labels(), loc="outside right center", handlelength=3)
    return result


@styled
def coverage(tables: Mapping[str, pd.DataFrame], note: str = "") -> Figure:
    """Return accuracy against the share of faces that are kept when the least confident are set aside.

    Args:
        tables: by name, what ``metrics.coverage`` gives; the first carries numbers at 50%, 80% and 100%.
        note: see the module.
    """
    result = figure(f"Accuracy when the least confident faces are set aside{note}", 3.6)
    axes = result.add_subplot()
    for index, (name, table) in enumerate(tables.items()):
        # The first few faces jump between 0 and 100%: they say nothing.
        steady = table[table["faces"] >= min(30, table["faces"].max())]
        axes.plot(
            steady["coverage"],
            steady["accuracy"],
            linestyle=_DASHES[index],
            color=("#0072B2", "#D55E00", "#009E73", INK)[index % 4],
            label=name,
        )
        if index == 0:
            # Below the curve, which falls; there is no room where hardly any face is right.
            above = table["accuracy"].iloc[-1] < 0.2
            for share in (0.5, 0.8, 1.0):
                row = table.iloc[int(np.abs(table["coverage"] - share).to_numpy().argmin())]
                axes.plot(row["coverage"], row["accuracy"], "o", color="#0072B2")
                axes.annotate(
                    f"{row['accuracy']:.1%}\nat least {row['threshold']:.0%} sure"
                    if share < 1
                    else f"{row['accuracy']:.1%}",
                    (row["coverage"], row["accuracy"]),
                    xytext=(0, 8 if above else -8),
                    textcoords="offset points",
                    ha="right" if share == 1 else "center",
                    va="bottom" if above else "top",
                    fontsize=9,
                )
    axes.set_xlim(0, 1.01)
    low, _ = axes.get_ylim()
    axes.set_ylim(max(0.0, low - 0.08), 1.005)
    axes.set_xlabel("coverage: share of faces kept, the most confident first")
    axes.set_ylabel("accuracy on the faces kept")
    axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    grid_lines(axes, "both")
    if len(tables) > 1:
        axes.legend(loc="lower left")
    return result


@styled
def predictions(
    images: Images,
    probabilities: npt.NDArray[np.float64],
    targets: npt.NDArray[np.int64],
    note: str = "",
    title: str = "Randomly drawn predictions: ✓ right, ✗ wrong, with the label below",
    columns: int = 8,
) -> Figure:
    """Return a grid of faces framed in green and ``✓`` where the prediction is right, in red and ``✗`` where not.

    Args:
        images: uint8 (N, 48, 48).
        probabilities: (N, 7).
        targets: (N,), 0 to 6.
        note: see the module.
        title: what the faces are.
        columns: faces in a row.
    """
    predicted = probabilities.argmax(axis=1)
    right = predicted == targets
    captions = [
        f"{mark(good)} {EMOTIONS[guess]} {_share(row[guess])}\n{'' if good else 'is ' + EMOTIONS[target]}"
        for row, guess, target, good in zip(probabilities, predicted, targets, right, strict=True)
    ]
    return face_grid(
        images,
        title=title + note,
        captions=captions,
        colors=[mark_color(bool(good)) for good in right],
        framed=True,
        columns=columns,
    )


@styled
def confused_pairs(
    pairs: pd.DataFrame, images: Sequence[Images], confidences: Sequence[npt.NDArray[np.float64]], note: str = ""
) -> Figure:
    """Return faces of the most frequent kinds of mistake, a row for each kind.

    Args:
        pairs: rows of ``metrics.confused_pairs``.
        images: for each row, uint8 (n, 48, 48).
        confidences: for each row, the (n,) probabilities of the wrong prediction.
        note: see the module.
    """
    columns = max((len(faces) for faces in images), default=1)
    cells: list[npt.NDArray[np.uint8] | npt.NDArray[np.float64]] = []
    captions: list[str] = []
    for faces, sure in zip(images, confidences, strict=True):
        room = columns - len(faces)
        cells += [*faces, *[np.ones((1, 1))] * room]
        captions += [f"{mark(False)} {_share(value)}" for value in sure] + [""] * room
    labels = [
        f"{row.target}\ntaken for {row.predicted}:\n{row.faces:,} faces, {row.share:.0%}" for row in pairs.itertuples()
    ]
    return face_grid(
        cells,
        title=f"The most frequent confusions, the most confident of each{note}",
        captions=captions,
        colors=[mark_color(False)] * len(cells),
        columns=columns,
        row_labels=labels,
        fontsize=9,
    )


@styled
def mistakes_and_neighbours(
    images: Images,
    probabilities: npt.NDArray[np.float64],
    targets: npt.NDArray[np.int64],
    neighbours: Images,
    neighbour_targets: npt.NDArray[np.int64],
    similarity: npt.NDArray[np.float64],
    note: str = "",
    columns: int = 7,
) -> Figure:
    """Return wrong predictions, each above the training face whose pixels correlate with it most.

    Args:
        images: uint8 (N, 48, 48), the faces predicted wrongly.
        probabilities: their (N, 7).
        targets: their labels (N,).
        neighbours: uint8 (N, 48, 48), the nearest training face of each.
        neighbour_targets: the labels of those (N,).
        similarity: (N,) correlation of the pixels of both, -1 to 1.
        note: see the module.
        columns: faces in a row.
    """
    predicted = probabilities.argmax(axis=1)
    cells: list[npt.NDArray[np.uint8] | npt.NDArray[np.float64]] = []
    captions: list[str] = []
    colors: list[str] = []
    labels: list[str] = []
    for start in range(0, len(images), columns):
        rows = range(start, min(start + columns, len(images)))
        blanks = columns - len(rows)
        cells += [images[i] for i in rows] + [np.ones((1, 1))] * blanks
        guesses = [f"{EMOTIONS[predicted[i]]} {_share(probabilities[i, predicted[i]])}" for i in rows]
        captions += [
            f"{mark(False)} {guess}\nis {EMOTIONS[targets[i]]}" for i, guess in zip(rows, guesses, strict=True)
        ]
        captions += [""] * blanks
        cells += [neighbours[i] for i in rows] + [np.ones((1, 1))] * blanks
        captions += [f"{EMOTIONS[neighbour_targets[i]]}\nr = {similarity[i]:.2f}" for i in rows] + [""] * blanks
        colors += [mark_color(False)] * columns + [INK] * columns
        labels += ["mistake", "nearest by\ncorrelation\nof pixels"]
    return face_grid(
        cells,
        title=f"The most confident mistakes above their nearest training faces{note}",
        captions=captions,
        colors=colors,
        columns=columns,
        row_labels=labels,
    )


@styled
def suspect_labels(
    images: Images,
    probabilities: npt.NDArray[np.float64],
    targets: npt.NDArray[np.int64],
    note: str = "",
    columns: int = 8,
) -> Figure:
    """Return faces whose label is probably wrong, with label and prediction and the probability of each."""
    predicted = probabilities.argmax(axis=1)
    captions = [
        f"{EMOTIONS[target]} {_share(row[target])}\n{EMOTIONS[guess]} {_share(row[guess])}?"
        for row, target, guess in zip(probabilities, targets, predicted, strict=True)
    ]
    return face_grid(
        images,
        title=f"Labels that are probably wrong, above what the network sees{note}",
        captions=captions,
        columns=columns,
    )


def _share(probability: float) -> str:
    """Return a probability as a whole percentage; only certainty itself reads 0% or 100%."""
    if 0 < probability < 0.005:
        return "<1%"
    return ">99%" if 0.995 <= probability < 1 else f"{probability:.0%}"
