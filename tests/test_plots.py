"""Figures of data and training: they show the numbers they are given, readably, and leave nothing behind."""

import itertools
from collections.abc import Callable

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from matplotlib import _pylab_helpers
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image
from test_plots_evaluation import texts as visible

from fer_utils.detection import Box
from fer_utils.emotions import EMOTIONS
from fer_utils.faces import Faces, Splits
from fer_utils.inference import Face, Prediction
from fer_utils.plots import data, inference, style, training

NOTE = " (synthetic faces)"


def history(epochs: int, validation: bool = True) -> pd.DataFrame:
    share = np.arange(1, epochs + 1) / epochs
    columns = {
        "epoch": np.arange(1, epochs + 1),
        "train_loss": 2 - share,
        "train_accuracy": 0.2 + 0.6 * share,
        # Lowest two thirds of the way: the network overfits after that.
        "val_loss": 1.2 + (share - 2 / 3) ** 2 if validation else np.nan,
        "val_accuracy": 0.6 - (share - 2 / 3) ** 2 if validation else np.nan,
        "lr": 3e-3 * np.sin(np.pi * share),
    }
    return pd.DataFrame(columns)


def shown(figure: Figure) -> list[Text]:
    """The visible texts of a figure, drawn so that each has its place."""
    FigureCanvasAgg(figure).draw()
    return visible(figure)


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for text in shown(figure)]


def overlapping(figure: Figure) -> list[tuple[str, str]]:
    boxes = [(text.get_text(), text.get_window_extent()) for text in shown(figure)]
    # Touching by less than a pixel is no overlap.
    return [
        (one, other)
        for (one, a), (other, b) in itertools.combinations(boxes, 2)
        if min(a.x1, b.x1) - max(a.x0, b.x0) > 1 and min(a.y1, b.y1) - max(a.y0, b.y0) > 1
    ]


def some_copies(splits: Splits) -> Figure:
    groups = [splits.train.select(slice(start, start + n)) for start, n in ((0, 2), (10, 3), (20, 2), (30, 12))]
    return data.copies(groups, [["train", "val", "test"] * 4] * 4, f"Copies{NOTE}")


FIGURES: dict[str, Callable[[Splits], Figure]] = {
    "class_distribution": lambda splits: data.class_distribution(splits.train, "train", NOTE),
    "class_distributions": data.class_distributions,
    "sample_faces": lambda splits: data.sample_faces(splits.train, NOTE),
    "mean_faces": lambda splits: data.mean_faces(splits.train, NOTE),
    "pixel_statistics": data.pixel_statistics,
    "leakage": lambda _: data.leakage(
        {"exact copies": np.full((3, 3), 12345), "near copies too": np.full((3, 3), 12345)}, [28709, 28709, 28709], NOTE
    ),
    "one table of leakage": lambda _: data.leakage({"exact copies": np.zeros((3, 3), np.int64)}, [9, 0, 9], NOTE),
    "copies": some_copies,
    "named_faces": lambda splits: data.named_faces(splits.val, ["val"] * len(splits.val), f"Faces{NOTE}"),
    "augmentation": lambda splits: data.augmentation(
        splits.val.images[:7], {"rotation": splits.val.images[:7] / np.float32(255)}, f"Rotation{NOTE}", EMOTIONS
    ),
    "loss_curve": lambda _: training.loss_curve(history(24), NOTE),
    "accuracy_curve": lambda _: training.accuracy_curve(history(24), NOTE),
    "learning_rate": lambda _: training.learning_rate(history(24), NOTE, np.linspace(0, 3e-3, 100)),
    "live": lambda _: training.live(history(24), 200, NOTE),
    "first epoch": lambda _: training.live(history(1), 3, NOTE),
    "before the first epoch": lambda _: training.live(history(1).head(0), 3, NOTE),
    "one epoch": lambda _: training.loss_curve(history(1), NOTE),
    "many epochs": lambda _: training.accuracy_curve(history(250), NOTE),
    "no validation part": lambda _: training.accuracy_curve(history(24, validation=False), NOTE),
    "one face": lambda splits: data.named_faces(
        splits.val.select(slice(1)), ["val"], f"Images of a single grey value or nearly so{NOTE}"
    ),
    "first_filters": lambda _: training.first_filters(np.ones((64, 1, 7, 7), np.float32), NOTE),
}


@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_is_titled_readable_and_leaves_nothing_behind(name: str, synthetic_splits: Splits) -> None:
    before = dict(mpl.rcParams)
    figure = FIGURES[name](synthetic_splits)
    assert isinstance(figure, Figure)
    assert figure.get_suptitle().endswith("(synthetic faces)")
    assert overlapping(figure) == []
    page = figure.bbox
    for text in shown(figure):
        box = text.get_window_extent()
        assert page.x0 <= box.x0 + 1, text
        assert box.x1 - 1 <= page.x1, text
        assert page.y0 <= box.y0 + 1, text
        assert box.y1 - 1 <= page.y1, text
    assert dict(mpl.rcParams) == before
    assert not _pylab_helpers.Gcf.figs, "pyplot keeps a figure, and would show it"


def test_the_overlap_check_sees_an_overlap() -> None:
    figure = Figure()
    figure.text(0.5, 0.5, "one")
    figure.text(0.51, 0.5, "other")
    assert overlapping(figure) == [("one", "other")]


def test_a_picture_of_16_bits_is_drawn_in_its_greys() -> None:
    greys = np.linspace(0, 255, 80 * 100).astype(np.uint8).reshape(80, 100)
    answer = Prediction("scan.png", None, None, (), (100, 80))
    drawn = []
    for picture in (Image.fromarray(greys), Image.fromarray(greys.astype(np.uint16) * 256 + 200)):
        figure = inference.answer(picture, answer)
        (image,) = (image for part in figure.subfigs for axes in part.axes for image in axes.images)
        drawn.append(np.asarray(image.get_array()))
    eight, sixteen = drawn
    assert np.array_equal(sixteen, eight)
    assert np.array_equal(eight[..., 0], greys)


@pytest.mark.parametrize("size", [(2400, 300), (600, 900)])
def test_labels_at_a_pictures_edges_are_not_cut_off(size: tuple[int, int]) -> None:
    boxes = [Box(0, 0, 200, 200), Box(size[0] - 200, 10, size[0], 210)]
    sure = dict.fromkeys(EMOTIONS, 0.0) | {"surprise": 1.0}
    faces = tuple(Face(box, "surprise", sure, np.zeros((48, 48), np.uint8)) for box in boxes)
    figure = inference.answer(Image.new("RGB", size), Prediction("wide.png", None, None, faces, size))
    figure.draw_without_rendering()
    (axes,) = figure.subfigs[0].axes
    for text in axes.texts:
        box = text.get_window_extent()
        assert axes.bbox.x0 <= box.x0 + 1, text
        assert box.x1 - 1 <= axes.bbox.x1, text
        assert box.y1 - 1 <= axes.bbox.y1, text


def test_curves_and_bars_have_labelled_axes(synthetic_splits: Splits) -> None:
    for name in ("class_distribution", "pixel_statistics", "leakage", "loss_curve", "accuracy_curve", "live"):
        for axes in FIGURES[name](synthetic_splits).axes:
            assert axes.get_xlabel(), name
            assert axes.get_ylabel(), name


def test_class_distribution_shows_counts_and_shares() -> None:
    targets = np.repeat(np.arange(7), [1, 2, 3, 4, 5, 6, 79]).astype(np.int64)
    faces = Faces(np.zeros((100, 48, 48), np.uint8), targets, np.array([f"{i}" for i in range(100)]))
    figure = data.class_distribution(faces, "train")
    assert [bar.get_height() for bar in figure.axes[0].patches] == [1, 2, 3, 4, 5, 6, 79]
    assert {"1\n1.0%", "79\n79.0%", *EMOTIONS} <= set(texts(figure))


def test_class_distributions_show_every_part_and_say_where_labels_are_missing(synthetic_splits: Splits) -> None:
    hidden = Faces(
        synthetic_splits.test.images, np.full(len(synthetic_splits.test), -1, np.int64), synthetic_splits.test.names
    )
    splits = Splits(synthetic_splits.train, synthetic_splits.val, hidden, "parquet")
    figure = data.class_distributions(splits)
    train, val, test = figure.axes
    assert [bar.get_width() for bar in train.patches] == list(splits.train.counts())
    assert [bar.get_width() for bar in val.patches] == list(splits.val.counts())
    assert not test.patches
    assert "no labels" in texts(figure)
    assert not len(test.get_xticks()), "numbers would measure nothing"
    assert "synthetic" not in figure.get_suptitle()


def test_sample_faces_are_drawn_from_their_emotion_and_by_seed(synthetic_splits: Splits) -> None:
    faces = synthetic_splits.train
    pictures = [image.get_array() for image in data.sample_faces(faces, per_emotion=4).axes[0].images]
    assert len(pictures) == 28
    for target, row in enumerate([pictures[start : start + 4] for start in range(0, 28, 4)]):
        members = faces.images[faces.targets == target]
        for picture in row:
            if picture.shape == (48, 48):
                assert (members == np.asarray(picture)).all((1, 2)).any()
    other = [image.get_array() for image in data.sample_faces(faces, per_emotion=4, seed=1).axes[0].images]
    assert any(not np.array_equal(a, b) for a, b in zip(pictures, other, strict=True))


def test_mean_faces_are_means_and_their_differences_colour(synthetic_splits: Splits) -> None:
    faces = synthetic_splits.train
    pictures = [np.asarray(image.get_array()) for image in data.mean_faces(faces).axes[0].images]
    happy = EMOTIONS.index("happy")
    np.testing.assert_allclose(pictures[happy] * 255, faces.images[faces.targets == happy].mean(0))
    np.testing.assert_allclose(pictures[7] * 255, faces.images.mean(0))
    brighter = faces.images[faces.targets == happy].mean(0) > faces.images.mean(0)
    red_over_blue = pictures[8 + happy][..., 0] > pictures[8 + happy][..., 2]
    strong = np.abs(faces.images[faces.targets == happy].mean(0) - faces.images.mean(0)) > 3
    assert (red_over_blue == brighter)[strong].all()


def test_brightness_and_contrast_are_mean_and_deviation(synthetic_splits: Splits) -> None:
    images = synthetic_splits.val.images
    brightness, contrast = data.brightness_and_contrast(images)
    np.testing.assert_allclose(brightness, images.mean((1, 2)))
    np.testing.assert_allclose(contrast, images.std((1, 2)), atol=1e-9)
    assert data.brightness_and_contrast(np.full((1, 48, 48), 255, np.uint8))[1][0] == 0


def test_greys_off_the_scale_are_told_for_every_part() -> None:
    rng = np.random.default_rng(0)

    def faces(white: float) -> Faces:
        images = rng.integers(0, 255, (20, 48, 48), dtype=np.uint8)
        images.reshape(-1)[: round(white * images.size)] = 255
        return Faces(images, np.zeros(20, np.int64), np.array([str(i) for i in range(20)]))

    def told(train: float, test: float) -> list[str]:
        figure = data.pixel_statistics(Splits(faces(train), Faces.empty(), faces(test), "folder"))
        return [text for text in texts(figure) if text.startswith("off the scale")]

    assert told(0.05, 0.05) == ["off the scale:\ngrey 255: 5.0%"]
    assert told(0, 0.2) == ["off the scale:\ngrey 255: 0.0 to 20.0%"]


def test_pictures_of_two_greys_have_a_scale(recwarn: pytest.WarningsRecorder) -> None:
    images = np.zeros((4, 48, 48), np.uint8)
    images[:, :12] = 255
    faces = Faces(images, np.zeros(4, np.int64), np.array(list("abcd")))
    axes = data.pixel_statistics(Splits(faces, Faces.empty(), Faces.empty(), "folder")).axes[0]
    assert axes.get_ylim()[1] > 75
    assert not recwarn.list


def test_leakage_shows_counts_and_shares_of_the_rows_part() -> None:
    counts = np.arange(9).reshape(3, 3) * 100
    exact, near = data.leakage({"exact copies": counts, "near copies too": counts * 2}, [100000, 10000, 1000]).axes
    cells = {tuple(map(int, text.get_position())): text.get_text() for text in exact.texts}
    assert cells[(2, 0)] == "200\n0.2%"
    assert cells[(2, 1)] == "500\n5.0%"
    assert cells[(0, 2)] == "600\n60.0%"
    assert (near.get_title(), near.texts[1].get_text()) == ("near copies too", "200\n0.2%")
    assert exact.collections[0].get_clim() == near.collections[0].get_clim(), "on two scales they could not be compared"


def test_copies_mark_the_label_that_disagrees_and_keep_groups_apart(synthetic_splits: Splits) -> None:
    faces = synthetic_splits.train
    sad, happy = (np.flatnonzero(faces.targets == EMOTIONS.index(name)) for name in ("sad", "happy"))
    groups = [faces.select(np.array([sad[0], happy[0]])), faces.select(sad[1:3]), faces.select(happy[:11])]
    figure = data.copies(groups, [["train", "test"], ["val", "val"], ["train"] * 11], "Copies", columns=8)
    by_text = {text.get_text(): text for text in figure.axes[0].texts}
    assert by_text["test\n≠ happy"].get_color() == style.WRONG
    assert by_text["train\nsad"].get_color() == style.INK
    assert "train\nhappy\nand 3 more" in by_text
    # Row by row: two faces, a gap, two faces, and three empty places; then the first eight of the long group.
    empty = [image.get_array().shape == (1, 1) for image in figure.axes[0].images]
    assert empty == [False, False, True, False, False, True, True, True] + [False] * 8


def test_copies_without_a_label_disagree_with_none(synthetic_splits: Splits) -> None:
    train = synthetic_splits.train
    unlabelled = Faces(train.images[:1], np.array([-1]), np.array(["test[0]"]))
    sad, happy = (np.flatnonzero(train.targets == EMOTIONS.index(name))[:1] for name in ("sad", "happy"))
    group = Faces.concatenate([unlabelled, train.select(sad), unlabelled, train.select(happy)])
    figure = data.copies([group], [["val", "train", "test", "train"]], "Copies")
    colors = {text.get_text(): text.get_color() for text in figure.axes[0].texts}
    agreeing = dict.fromkeys(["val\nunlabelled", "train\nsad", "test\nunlabelled"], style.INK)
    assert colors == agreeing | {"train\n≠ happy": style.WRONG}


def test_a_grid_of_nothing_is_a_figure() -> None:
    assert data.copies([], [], "No copies").get_suptitle() == "No copies"


def test_face_grid_keeps_pictures_whole_and_in_order(synthetic_splits: Splits) -> None:
    images = synthetic_splits.val.images[:10]
    figure = style.face_grid(images, title="Faces", captions=[str(i) for i in range(10)], columns=4)
    drawn = figure.axes[0].images
    for image, expected in zip(drawn, images, strict=True):
        np.testing.assert_array_equal(image.get_array(), expected)
        # The full grey range everywhere: a dark face stays dark.
        assert image.get_clim() == (0, 255)
    left = [image.get_extent()[0] for image in drawn]
    assert left[:4] == sorted(left[:4])
    assert left[4:8] == left[:4]
    assert drawn[4].get_extent()[2] > drawn[0].get_extent()[2], "the second row lies below the first"


def test_frames_are_drawn_whole_at_the_edge_of_the_grid() -> None:
    white = np.full((2, 48, 48), 255, np.uint8)
    figure = style.face_grid(white, captions=["", ""], colors=["#ff0000"] * 2, framed=True, columns=2)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    red = np.asarray(canvas.buffer_rgba())[:, :, 1] < 128
    middle = red[red.any(axis=1).argmax() + 20]
    # Left and right side of both frames, in dots: a side outside the axes is as thick as one inside.
    starts, ends = (np.flatnonzero(np.diff(middle.astype(int), prepend=0, append=0) == step) for step in (1, -1))
    assert len(starts) == 4
    assert np.ptp(ends - starts) <= 1


def test_curves_name_the_best_epoch() -> None:
    assert "validation; lowest 1.200 in epoch 8" in texts(training.loss_curve(history(12)))
    assert "validation; best 60.0% in epoch 8" in texts(training.accuracy_curve(history(12)))


def test_curves_show_the_history_in_percent() -> None:
    lines = {str(line.get_label()).split(";")[0]: line for line in training.accuracy_curve(history(3)).axes[0].lines}
    np.testing.assert_allclose(lines["training"].get_ydata(), [40, 60, 80])
    np.testing.assert_allclose(lines["training"].get_xdata(), [1, 2, 3])


def test_the_rates_of_a_long_training_can_be_seen() -> None:
    for epochs in (3, 200):
        planned, reached = training.learning_rate(history(epochs), "", np.linspace(0, 3e-3, 999)).axes[0].lines
        assert planned.get_linestyle() == "-"
        assert reached.get_marker() == "o"
        assert reached.get_markersize() > 1


def test_no_legend_lies_over_a_curve() -> None:
    for figure in (
        training.live(history(12), 60),
        training.loss_curve(history(60)),
        training.accuracy_curve(history(5)),
        training.learning_rate(history(5), "", np.linspace(0, 3e-3, 99)),
    ):
        FigureCanvasAgg(figure).draw()
        (legend,) = figure.legends
        assert not any(axes.get_legend() for axes in figure.axes)
        assert not any(legend.get_window_extent().overlaps(axes.get_tightbbox()) for axes in figure.axes)


def test_curves_are_told_apart_without_colour() -> None:
    train, _, val = training.loss_curve(history(12)).axes[0].lines
    assert train.get_linestyle() != val.get_linestyle()
    assert train.get_marker() != val.get_marker()


def test_without_validation_only_training_is_drawn() -> None:
    labels = [line.get_label() for line in training.loss_curve(history(5, validation=False)).axes[0].lines]
    assert labels == ["training"]


def test_learning_rate_shows_every_planned_step() -> None:
    planned = np.linspace(0.1, 0.4, 40)
    figure = training.learning_rate(history(4), schedule=planned)
    steps, epochs = figure.axes[0].lines
    np.testing.assert_allclose(steps.get_ydata(), planned)
    # Ten steps an epoch: the rate of step 10 was in force when epoch 1 ended.
    assert steps.get_xdata()[9] == pytest.approx(1)
    assert steps.get_xdata()[39] == pytest.approx(4)
    np.testing.assert_allclose(epochs.get_ydata(), history(4)["lr"])


def test_the_live_figure_is_as_wide_as_the_training_will_be() -> None:
    figure = training.live(history(3), 30)
    assert figure.get_suptitle() == "Epoch 3 of 30"
    assert all(axes.get_xlim()[1] > 30 for axes in figure.axes)


def test_filters_are_scaled_by_their_own_largest_weight() -> None:
    weights = np.zeros((2, 1, 3, 3), np.float32)
    weights[0, 0, 0, 0], weights[1, 0, 1, 1] = -0.01, 5
    dark, light = (np.asarray(image.get_array()) for image in training.first_filters(weights).axes[0].images)
    assert (dark[0, 0], dark[2, 2]) == (0, 0.5)
    assert (light[1, 1], light[0, 0]) == (1, 0.5)


def test_filters_of_three_channels_are_in_colour() -> None:
    weights = np.zeros((1, 3, 3, 3), np.float32)
    weights[0, 1] = 1
    (image,) = training.first_filters(weights).axes[0].images
    np.testing.assert_allclose(image.get_array()[0, 0], [0.5, 1, 0.5])


def test_right_and_wrong_differ_by_mark_and_by_lightness() -> None:
    assert style.mark(True) != style.mark(False)
    right, wrong = (
        np.array(mpl.colors.to_rgb(style.mark_color(value))) @ [0.2126, 0.7152, 0.0722] for value in (True, False)
    )
    assert abs(right - wrong) > 0.1
