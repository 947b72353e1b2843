"""The two pictures of ``frontier.py``: accuracy against arithmetic, and what each change to its base gave."""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Annotation, Text
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from matplotlib.transforms import Bbox

from fer_utils.plots import style

STEM_COLORS: Final = {"imagenet": "#0072B2", "3x3s2": "#D55E00", "3x3s1": "#009E73"}
WIDTH_MARKERS: Final = {0.5: "^", 0.75: "s", 1.0: "o"}
GAIN: Final = style.BAR
LOSS: Final = "#E69F00"


@style.styled
def frontier_figure(found: pd.DataFrame) -> Figure:
    """Draw validation accuracy against arithmetic, a mark per configuration of ``over_seeds``, the front as a line."""
    figure = style.figure(f"Validation accuracy against the arithmetic of training{_note(found)}", 5.2)
    axes = figure.add_subplot()
    style.grid_lines(axes, "both")
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    x, y = found["pflop"].to_numpy(float), 100 * found["val_accuracy"].to_numpy(float)
    front = found[found["front_pflop"]].sort_values("pflop")
    axes.plot(front["pflop"], 100 * front["val_accuracy"], color=style.MUTED, linewidth=1.2, zorder=1)
    for row, across, up in zip(found.itertuples(), x, y, strict=True):
        color = STEM_COLORS[row.stem]
        axes.plot(
            across,
            up,
            WIDTH_MARKERS.get(row.width, "D"),
            color=color,
            markerfacecolor=color if row.max_pool == "true" else "white",
            markersize=_marker(row.image_size),
            markeredgewidth=1.3,
        )
    several = len(set(found["epochs"])) > 1
    labels = [
        f"{row.image_size:g} px ×{row.width:g}" + (f", {row.epochs:g} ep" if several else "")
        for row in front.itertuples()
    ]
    axes.set_xlabel("arithmetic of the training, PFLOP")
    axes.set_ylabel("validation accuracy after the last epoch, %")
    axes.margins(0.08, 0.1)
    handles = [Line2D([], [], linestyle="", marker="o", color=c, label=f"stem {s}") for s, c in STEM_COLORS.items()]
    ink: dict[str, Any] = {"linestyle": "", "color": style.INK}
    handles += [Line2D([], [], marker=m, label=f"width {w:g}", **ink) for w, m in WIDTH_MARKERS.items()]
    if not found["width"].isin(list(WIDTH_MARKERS)).all():
        handles.append(Line2D([], [], marker="D", label="other width", **ink))
    handles += [
        Line2D([], [], marker="o", label="max-pool", **ink),
        Line2D([], [], marker="o", markerfacecolor="white", label="no max-pool", **ink),
    ]
    sizes = sorted({int(size) for size in found["image_size"]})
    handles += [Line2D([], [], marker="o", markersize=_marker(s), label=f"{s} px", **ink) for s in sizes]
    handles.append(Line2D([], [], color=style.MUTED, linewidth=1.2, label="front"))
    figure.legend(handles=handles, loc="outside right center")
    _label(axes, labels, front["pflop"].to_numpy(float), 100 * front["val_accuracy"].to_numpy(float), x, y)
    return figure


def _marker(size: float) -> float:
    return 3 + size / 10


def _note(found: pd.DataFrame) -> str:
    return " (synthetic faces)" if found["data"].str.startswith("synthetic").any() else ""


def _label(
    axes: Axes, labels: Sequence[str], x: np.ndarray[Any, Any], y: np.ndarray[Any, Any], *marks: np.ndarray[Any, Any]
) -> None:
    """Label the points of a line, each at the place near it that lies on fewest marks, labels and parts of the line."""
    figure = axes.figure
    assert isinstance(figure, Figure)
    figure.draw_without_rendering()  # places are in pixels: the layout has to be known
    figure.set_layout_engine("none")
    inside = axes.get_window_extent()
    corners = axes.transData.transform(np.column_stack([x, y]))
    along = [np.linspace(start, end, 60) for start, end in itertools.pairwise(corners)]
    points = np.concatenate([axes.transData.transform(np.column_stack(marks)), *along])
    taken: list[Bbox] = []
    for text, across, up, corner in zip(labels, x, y, corners, strict=True):
        tried: list[tuple[int, Annotation]] = []
        for far, (dx, dy) in itertools.product((5, 16, 28, 42), ((-1, 1), (0, 1), (1, -1), (1, 1), (-1, -1), (0, -1))):
            written = axes.annotate(
                text,
                (across, up),
                (dx * far, dy * far * (1 if dx else 1.6)),
                textcoords="offset points",
                fontsize=8,
                ha={-1: "right", 0: "center", 1: "left"}[dx],
                va="bottom" if dy > 0 else "top",
                arrowprops={"arrowstyle": "-", "color": style.MUTED, "linewidth": 0.6} if far > 5 else None,
            )
            written.get_window_extent()  # moves it to its place; the box is that of the text without its leader
            box = Text.get_window_extent(written)
            outside = not (inside.x0 <= box.x0 and box.x1 <= inside.x1 and inside.y0 <= box.y0 and box.y1 <= inside.y1)
            clashes = box.padded(5).count_contains(points) + 20 * box.padded(2).count_overlaps(taken) + 100 * outside
            leader = np.linspace(corner, [(box.x0 + box.x1) / 2, (box.y0 + box.y1) / 2], 30)
            clashes += 20 * sum(other.count_contains(leader) > 0 for other in taken)
            tried.append((clashes, written))
            if not clashes:
                break
        _, chosen = min(tried, key=lambda item: item[0])
        for _, written in tried:
            if written is not chosen:
                written.remove()
        taken.append(Text.get_window_extent(chosen))


@style.styled
def ablation_figure(found: pd.DataFrame, rows: pd.DataFrame) -> Figure:
    """Draw the accuracy that each change gave, in points, with its spread over seeds; the base with most changes."""
    base = found["base"].value_counts().index[0]
    chosen = found[found["base"] == base].iloc[::-1]
    stock = rows[(rows["base"] == base) & (rows["name"] == "base")]
    told = f"{100 * stock['val_accuracy'].mean():.1f}%"
    # What the whole sweep was trained with may be long: it stands below, in as many lines as it takes.
    common = textwrap.wrap(f"fast as it was before, with {base}" if base else "fast as it was before", 66)
    height = 1.6 + 0.3 * len(chosen) + 0.2 * len(common)
    figure = style.figure(f"One change at a time to what fast was before{_note(rows)}", height)
    axes = figure.add_subplot()
    style.grid_lines(axes, "x")
    places = np.arange(len(chosen))
    points, deviations = chosen["accuracy"].to_numpy(float), chosen["accuracy_std"].to_numpy(float)
    spread = np.nan_to_num(deviations)
    colors = [GAIN if value >= 0 else LOSS for value in points]
    # One seed has no deviation: it is NaN, and nothing is drawn.
    axes.barh(places, points, xerr=deviations, color=colors, ecolor=style.INK, capsize=2.5)
    axes.axvline(0, color=style.INK, linewidth=0.8)
    axes.set_yticks(places, chosen["name"])
    axes.tick_params(axis="y", length=0)
    for place, value, wide in zip(places, points, spread, strict=True):
        axes.annotate(
            f"{value:+.1f}",
            (value + np.copysign(wide, value), place),
            (4 if value >= 0 else -4, 0),
            textcoords="offset points",
            fontsize=8,
            ha="left" if value >= 0 else "right",
            va="center",
        )
    axes.margins(0.1, 0.02)
    fewest, most = int(chosen["seeds"].min()), int(chosen["seeds"].max())
    seeds = f"{most}" if fewest == most else f"{fewest} to {most}"
    spread_told = f"mean and standard deviation over {seeds} seeds" if most > 1 else "one seed"
    label = f"points of validation accuracy against the base's {told}"
    axes.set_xlabel("\n".join([label, spread_told, *common]))
    return figure
