"""Figures of a training: curves of loss, accuracy and learning rate, the live figure, and learned filters."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fer_utils.faces import Part
from fer_utils.plots.style import INK, LINE_STYLES, MUTED, PART_COLORS, face_grid, figure, grid_lines, styled

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["accuracy_curve", "first_filters", "learning_rate", "live", "loss_curve"]


@styled
def loss_curve(history: pd.DataFrame, note: str = "") -> Figure:
    """Return training and validation loss by epoch, the lowest validation loss marked.

    Args:
        history: ``run.history()``: columns ``epoch``, ``train_loss`` and, with a validation part, ``val_loss``.
        note: what the title ends with (``splits.title_note``).
    """
    return _one(f"Loss by epoch{note}", history, "loss")


@styled
def accuracy_curve(history: pd.DataFrame, note: str = "") -> Figure:
    """Return training and validation accuracy in percent by epoch, the highest validation accuracy marked."""
    return _one(f"Accuracy by epoch{note}", history, "accuracy")


@styled
def learning_rate(history: pd.DataFrame, note: str = "", schedule: npt.NDArray[np.float64] | None = None) -> Figure:
    """Return the learning rate by epoch.

    Args:
        history: ``run.history()``, with columns ``epoch`` and ``lr``.
        note: what the title ends with.
        schedule: rates planned for every step of the whole training, evenly spread over its epochs, drawn as a line
            behind the points; without it the points are joined.
    """
    result = figure(f"Learning rate by epoch{note}", 3.2 if schedule is None else 3.5)
    axes = result.add_subplot()
    _rates(axes, history, schedule)
    if schedule is not None:
        _legend_below(result, axes)
    return result


@styled
def live(history: pd.DataFrame, epochs: int, note: str = "") -> Figure:
    """Return loss, accuracy and learning rate side by side, on axes as long as the training will be.

    Args:
        history: the epochs so far, as ``run.history()`` gives them.
        epochs: how many there will be.
        note: what the title ends with.
    """
    done = int(history["epoch"].max()) if len(history) else 0
    result = figure(f"Epoch {done} of {epochs}{note}", 3.2)
    loss, accuracy, rate = result.subplots(1, 3)
    _curves(loss, history, "loss", brief=True)
    _curves(accuracy, history, "accuracy", brief=True)
    _rates(rate, history, None)
    for axes in (loss, accuracy, rate):
        axes.set_xlim(0.5, max(epochs, done, 1) + 0.5)
    _legend_below(result, loss)
    return result


def _one(title: str, history: pd.DataFrame, measure: Literal["loss", "accuracy"]) -> Figure:
    result = figure(title, 4.1)
    axes = result.add_subplot()
    _curves(axes, history, measure)
    _legend_below(result, axes)
    return result


def _legend_below(result: Figure, axes: Axes) -> None:
    """Name the curves of ``axes`` outside of it: within, a legend covers whatever a curve does next."""
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        result.legend(handles, labels, loc="outside lower center", ncols=2)


def _curves(axes: Axes, history: pd.DataFrame, measure: Literal["loss", "accuracy"], brief: bool = False) -> None:
    """Draw the training and validation columns of a measure."""
    percent = measure == "accuracy"
    words: dict[Part, str] = {"train": "training", "val": "validation"}
    for part, label in words.items():
        column = f"{part}_{measure}"
        if column not in history or history[column].isna().all():
            continue
        values = history[column] * (100 if percent else 1)
        if part == "val" and not brief:
            best = values.idxmax() if percent else values.idxmin()
            epoch, value = int(history["epoch"][best]), float(values[best])
            color = PART_COLORS[part]
            axes.plot([epoch], [value], marker="*", markersize=15, color=color, markeredgecolor="white", zorder=3)
            # In the legend, where it can never lie over a curve.
            label += f"; best {value:.1f}% in epoch {epoch}" if percent else f"; lowest {value:.3f} in epoch {epoch}"
        axes.plot(
            history["epoch"],
            values,
            color=PART_COLORS[part],
            linestyle=LINE_STYLES[part],
            marker="o" if part == "train" else "s",
            markersize=_marker_size(history),
            label=label,
        )
    axes.set_ylabel("accuracy (%)" if percent else "cross-entropy loss")
    axes.margins(y=0.1)
    _epoch_axis(axes, history)


def _rates(axes: Axes, history: pd.DataFrame, schedule: npt.NDArray[np.float64] | None) -> None:
    if schedule is not None:
        # Each rate at the end of its step, as the points stand at the ends of their epochs.
        ends = np.arange(1, len(schedule) + 1) * (int(history["epoch"].max()) / max(1, len(schedule)))
        axes.plot(ends, schedule, color=MUTED, linewidth=1.2, label="planned, every step")
    if len(history):
        axes.plot(
            history["epoch"],
            history["lr"],
            color=INK,
            marker="o",
            # Without a line to join them, points must show in a long training too.
            markersize=_marker_size(history) or (0 if schedule is None else 2),
            linestyle="-" if schedule is None else "none",
            label="at the end of an epoch",
        )
    axes.set_ylabel("learning rate")
    axes.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3), useMathText=True)
    axes.set_ylim(bottom=0)
    _epoch_axis(axes, history)


def _marker_size(history: pd.DataFrame) -> int:
    """Return 4 points, or 0 in a long training, where markers would melt into a band."""
    return 4 if len(history) <= 40 else 0


def _epoch_axis(axes: Axes, history: pd.DataFrame) -> None:
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True, min_n_ticks=1))
    if len(history) == 1:
        axes.set_xlim(history["epoch"].iloc[0] - 0.5, history["epoch"].iloc[0] + 0.5)
    grid_lines(axes)


@styled
def first_filters(weights: Tensor | npt.NDArray[np.float32], note: str = "", columns: int = 16) -> Figure:
    """Return the kernels of the network's first convolution as pictures: dark is negative, mid grey 0, light positive.

    Args:
        weights: (out, in, k, k), as ``models.first_filters`` gives them; with three input channels a filter is drawn in
            colour. Each filter is scaled by its own largest weight, since a trained network's differ a hundredfold.
        note: what the title ends with.
        columns: filters in a row.
    """
    kernels = np.asarray(weights, dtype=np.float32)
    scale = np.abs(kernels).max(axis=(1, 2, 3), keepdims=True)
    shown = 0.5 + kernels / (2 * np.where(scale > 0, scale, 1.0))
    pictures = [np.moveaxis(one, 0, -1) if len(one) == 3 else one.mean(axis=0) for one in shown]
    size = f"{kernels.shape[2]}×{kernels.shape[3]}"
    return face_grid(
        pictures, title=f"{len(pictures)} filters of the first convolution, {size} pixels{note}", columns=columns
    )
