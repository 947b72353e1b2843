"""Figures of the data: distributions, faces, pixel statistics, copies and leakage, augmentation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, StrMethodFormatter

from fer_utils.emotions import COLORS, EMOTIONS, UNLABELLED
from fer_utils.faces import PARTS, Faces, Images, Splits
from fer_utils.plots.style import (
    INK,
    LINE_STYLES,
    MUTED,
    PART_COLORS,
    WRONG,
    face_grid,
    figure,
    grid_lines,
    heat_map,
    styled,
)

PART_TITLES = {"train": "Training", "val": "Validation", "test": "Test"}


@styled
def class_distribution(faces: Faces, part: str, note: str = "") -> Figure:
    """Return bars of how many faces of one part each emotion has, with counts and shares.

    Args:
        faces: the part's faces.
        part: its name, ``train``, ``val`` or ``test``.
        note: what the title ends with (``splits.title_note``).
    """
    result = figure(f"{PART_TITLES.get(part, part)} faces of each emotion{note}", 3.8)
    axes = result.add_subplot()
    counts = faces.counts()
    axes.bar(EMOTIONS, counts, color=COLORS, width=0.7)
    for x, (count, share) in enumerate(zip(counts, counts / max(1, counts.sum()), strict=True)):
        axes.annotate(
            f"{count:,}\n{share:.1%}", (x, count), xytext=(0, 3), textcoords="offset points", ha="center", fontsize=9
        )
    axes.set_ylim(0, max(1, counts.max()) * 1.2)
    axes.set_xlabel("emotion")
    axes.set_ylabel("faces")
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    grid_lines(axes)
    return result


@styled
def class_distributions(splits: Splits) -> Figure:
    """Return bars of counts and shares of each emotion, the parts side by side; an unlabelled part says so."""
    result = figure(f"Faces of each emotion in each part{splits.title_note}", 3.4)
    axes = result.subplots(1, 3, sharey=True)
    for panel, (part, faces) in zip(axes, splits, strict=True):
        counts = faces.counts()
        total = int(counts.sum())
        panel.set_title(f"{part}: {len(faces):,} faces")
        panel.set_xlabel("faces")
        if not total:
            panel.text(0.5, 0.5, "no labels" if len(faces) else "empty", transform=panel.transAxes, ha="center")
            panel.set_xticks([])
            continue
        panel.barh(EMOTIONS, counts, color=COLORS, height=0.7)
        for y, count in enumerate(counts):
            text = f"{count:,} · {count / total:.1%}"
            panel.annotate(text, (count, y), xytext=(3, 0), textcoords="offset points", va="center", fontsize=8.5)
        # Room for the longest label, which stands to the right of the longest bar.
        panel.set_xlim(0, counts.max() * 1.62)
        panel.xaxis.set_major_locator(MaxNLocator(3, integer=True))
        panel.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        grid_lines(panel, "x")
    axes[0].invert_yaxis()
    return result


@styled
def sample_faces(faces: Faces, note: str = "", per_emotion: int = 9, seed: int = 0) -> Figure:
    """Return a row of randomly drawn faces for each emotion; an emotion with fewer faces has a shorter row."""
    rng = np.random.default_rng(seed)
    blank = np.ones((1, 1))
    images: list[npt.NDArray[np.uint8] | npt.NDArray[np.float64]] = []
    for target in range(len(EMOTIONS)):
        members = np.flatnonzero(faces.targets == target)
        drawn = rng.choice(members, min(per_emotion, len(members)), replace=False)
        images += [faces.images[index] for index in drawn] + [blank] * (per_emotion - len(drawn))
    return face_grid(
        images,
        title=f"Randomly drawn faces of each emotion{note}",
        columns=per_emotion,
        row_labels=EMOTIONS,
        fontsize=9.5,
    )


@styled
def mean_faces(faces: Faces, note: str = "") -> Figure:
    """Return the mean face of each emotion, and where it is brighter (red) or darker (blue) than the mean of all.

    The differences share one scale, on which full colour is the largest of them.
    """
    overall = _mean(faces.images)
    present = [target for target, count in enumerate(faces.counts()) if count]
    means = {target: _mean(faces.images[faces.targets == target]) for target in present}
    spread = max((float(np.abs(mean - overall).max()) for mean in means.values()), default=0.0) or 1.0
    colors = mpl.colormaps["RdBu_r"]
    blank = np.ones((1, 1))
    upper = [means[t] / 255 if t in means else blank for t in range(len(EMOTIONS))] + [overall / 255]
    lower = [
        colors(0.5 + (means[t] - overall) / (2 * spread))[..., :3] if t in means else blank
        for t in range(len(EMOTIONS))
    ]
    return face_grid(
        [*upper, *lower, blank],
        title=f"Mean face of each emotion, and how it differs from the mean of all{note}",
        columns=len(EMOTIONS) + 1,
        row_labels=["mean", "difference:\nred is brighter,\nblue is darker"],
        column_labels=[*EMOTIONS, "all"],
        fontsize=9.5,
    )


@styled
def pixel_statistics(splits: Splits) -> Figure:
    """Return densities, a line per part, of grey values, of each face's brightness (mean) and contrast (deviation)."""
    result = figure(f"Grey values, brightness and contrast of the faces{splits.title_note}", 3.0)
    axes = result.subplots(1, 3)
    # Wider bins where a part is small, or its line would show nothing but chance.
    bins = int(np.clip(2 * np.sqrt(min((len(faces) for _, faces in splits if len(faces)), default=1)), 8, 40))
    shares: list[npt.NDArray[np.float64]] = []
    for part, faces in splits:
        if not len(faces):
            continue
        style = {"color": PART_COLORS[part], "linestyle": LINE_STYLES[part], "label": part}
        shares.append(np.bincount(faces.images.reshape(-1), minlength=256) / faces.images.size * 100)
        axes[0].plot(np.arange(256), shares[-1], linewidth=1.2, color=PART_COLORS[part], linestyle=LINE_STYLES[part])
        brightness, contrast = brightness_and_contrast(faces.images)
        for panel, values, top in ((axes[1], brightness, 256), (axes[2], contrast, 128)):
            density, edges = np.histogram(values, bins=bins, range=(0, top))
            panel.plot((edges[1:] + edges[:-1]) / 2, density / len(faces) * 100, **style)
    if shares:
        _cut_off(axes[0], np.array(shares))
    for panel, xlabel, ylabel in zip(
        axes,
        ("grey value of a pixel (0 to 255)", "mean grey value of a face", "standard deviation in a face"),
        ("% of pixels", "% of faces", "% of faces"),
        strict=True,
    ):
        panel.set_xlabel(xlabel)
        panel.set_ylabel(ylabel)
        panel.set_ylim(bottom=0)
        grid_lines(panel)
    axes[2].legend()
    return result


def _cut_off(panel: Axes, shares: npt.NDArray[np.float64]) -> None:
    """Let the many greys fill a panel where a few are far more frequent, and say of these how frequent they are.

    Where only these few are there, as in black and white pictures, the panel stays as it is.
    """
    limit = 2 * float(np.quantile(shares, 0.98))
    beyond = np.flatnonzero(shares.max(axis=0) > limit)
    if not (limit and 0 < len(beyond) <= 3):
        return
    panel.set_ylim(top=limit)
    told = ["off the scale:"]
    for grey in beyond:
        # From the part that has least of it to the one that has most: a grey may be frequent in one part alone.
        ends = (f"{share:.1f}" for share in (shares[:, grey].min(), shares[:, grey].max()))
        told.append(f"grey {grey}: {' to '.join(dict.fromkeys(ends))}%")
    panel.text(0.5, 0.97, "\n".join(told), transform=panel.transAxes, ha="center", va="top", fontsize=8)


def brightness_and_contrast(images: Images) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return mean and standard deviation of each image's grey values, two of float64 (N,) in 0 to 255."""
    flat = images.reshape(len(images), -1)
    # Sums of squares in integers: exact, and no float copy of all pixels (0.6 GB for FER2013) is made.
    total = flat.sum(axis=1, dtype=np.int64)
    squares = np.einsum("ij,ij->i", flat, flat, dtype=np.int64)
    mean = total / flat.shape[1]
    return mean, np.sqrt(np.maximum(0.0, squares / flat.shape[1] - mean**2))


@styled
def leakage(counts: Mapping[str, npt.NDArray[np.int64]], sizes: Sequence[int], note: str = "") -> Figure:
    """Return tables, side by side, of how many faces of each part have a copy in each part.

    Args:
        counts: by what counts as a copy, (3, 3): faces of the row's part with a copy in the column's, in the order of
            ``PARTS``.
        sizes: faces in each part, which the shares are of.
        note: what the title ends with.
    """
    result = figure(f"Faces that have a copy, and where{note}", 3.6, max(5.2, 3.7 * len(counts)))
    whole = np.maximum(np.array(sizes)[:, None], 1)
    top = max(max(float((table / whole).max()) for table in counts.values()), 1e-9)
    for axes, (kind, table) in zip(result.subplots(1, len(counts), squeeze=False)[0], counts.items(), strict=True):
        shares = table / whole
        texts = [f"{n:,}\n{share:.1%}" for n, share in zip(table.flat, shares.flat, strict=True)]
        heat_map(axes, shares, np.reshape(texts, shares.shape), PARTS, PARTS, top=top)
        axes.set_title(kind)
        axes.set_xlabel("has a copy in")
        axes.set_ylabel("face of")
        axes.spines[:].set_visible(False)
    return result


@styled
def copies(groups: Sequence[Faces], parts: Sequence[Sequence[str]], title: str, columns: int = 8) -> Figure:
    """Return examples of copies: groups side by side with a gap between, each face with its part and label.

    A label that disagrees with its group's first is red and marked with ``≠``; unlabelled faces agree with all.

    Args:
        groups: the faces of each group.
        parts: for each group, the part of each of its faces.
        title: what the copies are.
        columns: faces in a row; a longer group is cut short, its last caption telling how many are left out.
    """
    cells: list[tuple[npt.NDArray[np.uint8] | npt.NDArray[np.float64], str, str]] = []
    blank = (np.ones((1, 1)), "", INK)
    for group, where in zip(groups, parts, strict=True):
        shown = min(columns, len(group))
        room = -len(cells) % columns
        if room < shown + 1 and room != 0:
            cells += [blank] * room
        elif cells and room:
            cells.append(blank)
        labels = group.targets[group.targets != UNLABELLED]
        for index in range(shown):
            target = int(group.targets[index])
            differs = target != UNLABELLED and target != labels[0]
            left_out = len(group) - shown if index == shown - 1 else 0
            caption = f"{where[index]}\n{'≠ ' if differs else ''}{_label(target)}"
            caption += f"\nand {left_out} more" if left_out else ""
            cells.append((group.images[index], caption, WRONG if differs else INK))
    images, captions, colors = (list(column) for column in zip(*cells, strict=True)) if cells else ([], [], [])
    return face_grid(images, title=title, captions=captions, colors=colors, columns=columns)


@styled
def named_faces(faces: Faces, parts: Sequence[str], title: str, columns: int = 8) -> Figure:
    """Return faces with their part and label below each, for instance the constant images."""
    captions = [f"{part}\n{_label(int(target))}" for part, target in zip(parts, faces.targets, strict=True)]
    return face_grid(
        faces.images,
        title=title,
        captions=captions,
        columns=min(columns, max(1, len(faces))),
        cell=0.92,
        framed=True,
        colors=[MUTED] * len(faces),
    )


@styled
def augmentation(
    before: Images, after: Mapping[str, npt.NDArray[np.float32]], title: str, labels: Sequence[str] = ()
) -> Figure:
    """Return the same faces before, and after each operation, a row for each.

    Args:
        before: uint8 (N, H, W), the faces as they are.
        after: by operation, float (N, H, W) or (N, 1, H, W) or (N, 3, H, W) in [0, 1].
        title: what was done.
        labels: N texts above the faces.
    """
    rows = [list(before)]
    for images in after.values():
        planes = images if images.ndim == 4 else images[:, None]
        rows.append([plane[0] if len(plane) == 1 else np.moveaxis(plane, 0, -1) for plane in planes.clip(0, 1)])
    return face_grid(
        [image for row in rows for image in row],
        title=title,
        columns=max(1, len(before)),
        row_labels=["before", *after],
        column_labels=labels or None,
        fontsize=9.5,
    )


def _mean(images: Images) -> npt.NDArray[np.float64]:
    mean: npt.NDArray[np.float64] = images.mean(axis=0, dtype=np.float64) if len(images) else np.zeros(images.shape[1:])
    return mean


def _label(target: int) -> str:
    return "unlabelled" if target == UNLABELLED else EMOTIONS[target]
