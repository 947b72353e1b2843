"""One look for every figure: colours, sizes, and grids of faces.

Figures are ``matplotlib.figure.Figure`` objects made without pyplot, so a function of this package leaves no state
behind, opens no window and leaks nothing when it is called a thousand times. A notebook shows one with
``display(figure)`` after ``%matplotlib inline``, which teaches IPython to draw any Figure; a run keeps one with
``run.save_figure``.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, Final, Literal, ParamSpec, TypeVar

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
import seaborn
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from fer_utils.emotions import COLORS, EMOTIONS
from fer_utils.faces import Part

EMOTION_COLORS: Final = dict(zip(EMOTIONS, COLORS, strict=True))

RIGHT: Final = "#00795A"
WRONG: Final = "#B01E14"
"""Green for right and red for wrong: they differ in lightness too, and always come with a mark as well."""
RIGHT_MARK: Final = "✓"
WRONG_MARK: Final = "✗"

PART_COLORS: Final[dict[Part, str]] = {"train": "#0072B2", "val": "#D55E00", "test": "#009E73"}
"""One colour per part, used wherever parts stand side by side."""
LINE_STYLES: Final[dict[Part, str]] = {"train": "-", "val": "--", "test": ":"}
"""A line style per part, so that curves are told apart without colour."""

INK: Final = "#222222"
MUTED: Final = "#5F6368"
GRID: Final = "#DADCE0"
BAR: Final = "#4C78A8"
SEQUENTIAL: Final = "Blues"
"""Colour map of tables of counts and shares; dark is much."""

WIDTH: Final = 8.4
"""Inches: the width of a notebook's text."""

RC: Final[Any] = {
    "figure.dpi": 110,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.labelsize": 10,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "legend.fontsize": 9,
    "figure.titlesize": 12,
    "figure.titleweight": "bold",
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": False,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
}

P = ParamSpec("P")
R = TypeVar("R")


def styled(function: Callable[P, R]) -> Callable[P, R]:
    """Run a figure function in this package's style; the caller's rcParams are as before when it returns."""

    @functools.wraps(function)
    def inside(*args: P.args, **kwargs: P.kwargs) -> R:
        with mpl.rc_context(RC):
            return function(*args, **kwargs)

    return inside


@styled
def figure(title: str = "", height: float = 3.6, width: float = WIDTH) -> Figure:
    """Return an empty figure, sizes in inches, with its title; a ``styled`` function adds axes to it."""
    result = Figure(figsize=(width, height), layout="constrained")
    if title:
        # A file's name may hold dollar signs, which would be taken for formulas.
        result.suptitle(title, parse_math=False)
    return result


def grid_lines(axes: Axes, axis: Literal["both", "x", "y"] = "y") -> None:
    """Draw light lines behind the data along ``axis`` (``x``, ``y`` or ``both``)."""
    axes.grid(True, axis=axis)


def mark(right: bool) -> str:
    """Return the mark of a right or a wrong prediction."""
    return RIGHT_MARK if right else WRONG_MARK


def mark_color(right: bool) -> str:
    """Return the colour of a right or a wrong prediction."""
    return RIGHT if right else WRONG


def heat_map(
    axes: Axes,
    shares: npt.NDArray[np.float64],
    texts: Sequence[Sequence[str]] | npt.NDArray[np.str_],
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    top: float = 1.0,
    square: bool = True,
) -> None:
    """Draw a table whose cells are coloured by share, 0 to ``top``, with a text in each that can be read on its colour.

    Args:
        axes: where.
        shares: (rows, columns); NaN is drawn as 0.
        texts: what stands in each cell.
        rows: the label of each row.
        columns: the label of each column.
        top: the share of the darkest colour.
        square: whether cells are, or fill the axes.
    """
    seaborn.heatmap(
        np.nan_to_num(shares),
        ax=axes,
        annot=np.asarray(texts),
        fmt="",
        cmap=SEQUENTIAL,
        vmin=0,
        vmax=top,
        cbar=False,
        square=square,
        xticklabels=columns,
        yticklabels=rows,
        annot_kws={"fontsize": 9},
    )
    axes.tick_params(length=0, rotation=0)


@styled
def face_grid(
    images: Sequence[npt.NDArray[Any]] | npt.NDArray[Any],
    *,
    title: str = "",
    captions: Sequence[str] | None = None,
    colors: Sequence[str] | None = None,
    framed: bool = False,
    columns: int = 8,
    row_labels: Sequence[str] | None = None,
    column_labels: Sequence[str] | None = None,
    cell: float | None = None,
    fontsize: float = 8.5,
) -> Figure:
    """Return a grid of faces, filled row by row.

    Args:
        images: N pictures: grey (H, W) or colour (H, W, 3), uint8 in 0 to 255 or float in [0, 1]. Every picture is
            drawn on the full grey range, so that brightness can be compared.
        title: what the grid shows, in one or more lines.
        captions: N texts under the faces, one or more lines each.
        colors: N colours of the captions, and of the frames where ``framed``.
        framed: draw a frame in the caption's colour round each face.
        columns: faces in a row.
        row_labels: a text at the left of each row.
        column_labels: a text above each column.
        cell: side of a face in inches; by default the grid fills the page's width, with faces of at most 1.1 inches.
        fontsize: points of captions and labels.
    """
    count = len(images)
    rows = max(1, -(-count // columns))
    lines = max((text.count("\n") + 1 for text in captions), default=0) if captions else 0
    # Everything is laid out in inches on one axes: hundreds of axes would take seconds, and text keeps its distance.
    line_height = fontsize * 1.3 / 72
    label_width = (
        max((len(line) for text in row_labels for line in text.split("\n")), default=0) * fontsize * 0.62 / 72 + 0.1
        if row_labels
        else 0.0
    )
    gap = 0.06 if not captions else 0.12
    side = cell or min(1.1, (WIDTH - 0.2 - label_width) / columns - gap)
    across, down = side + gap, side + gap + lines * line_height
    top = (
        max((text.count("\n") + 1 for text in column_labels), default=0) * line_height + 0.05 if column_labels else 0.0
    )
    # A title stays inside: its letters are bold and about a tenth of an inch wide.
    told = title.split("\n")
    width = max(label_width + columns * across, 0.11 * max(map(len, told)))
    height = top + rows * down
    result = figure(title, height + 0.15 + (0.15 + 0.2 * len(told) if title else 0.0), width + 0.15)
    axes = result.add_subplot()
    axes.set_axis_off()
    for index in range(count):
        picture = np.asarray(images[index])
        x, y = label_width + (index % columns) * across, top + (index // columns) * down
        axes.imshow(
            picture,
            cmap="gray",
            vmin=0,
            vmax=255 if picture.dtype == np.uint8 else 1,
            extent=(x, x + side, y + side, y),
            interpolation="nearest",
        )
        color = colors[index] if colors else INK
        if framed:
            # Half of the line lies outside, also outside the axes for the first column and row.
            axes.add_patch(Rectangle((x, y), side, side, fill=False, edgecolor=color, linewidth=2.5, clip_on=False))
        if captions:
            axes.text(
                x + side / 2, y + side + 0.03, captions[index], color=color, fontsize=fontsize, ha="center", va="top"
            )
    for row, text in enumerate(row_labels or ()):
        y = top + row * down + side / 2
        axes.text(label_width - 0.08, y, text, fontsize=fontsize, ha="right", va="center")
    for column, text in enumerate(column_labels or ()):
        x = label_width + column * across + side / 2
        axes.text(x, top - 0.05, text, fontsize=fontsize, ha="center", va="bottom")
    axes.set_xlim(0, width)
    axes.set_ylim(height, 0)
    axes.set_aspect("equal")
    return result
