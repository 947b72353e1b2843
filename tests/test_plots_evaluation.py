"""Figures of predictions: they show the numbers they are given, nothing overlaps, and nothing is left behind."""

from collections.abc import Callable, Iterator

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cbook import is_math_text
from matplotlib.figure import Figure
from matplotlib.text import Text

from fer_utils import metrics
from fer_utils.emotions import EMOTIONS
from fer_utils.inference import Prediction
from fer_utils.plots import evaluation as figures
from fer_utils.plots import inference
from fer_utils.plots.style import RIGHT, WRONG

NOTE = " (synthetic faces)"


def made(n: int = 900) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    targets = rng.choice(7, n, p=[0.13, 0.015, 0.14, 0.25, 0.17, 0.18, 0.115])
    logits = rng.normal(size=(n, 7)) * 1.7
    logits[np.arange(n), targets] += 3
    odds = np.exp(logits)
    return odds / odds.sum(axis=1, keepdims=True), targets


@pytest.fixture(scope="module")
def data() -> tuple[np.ndarray, np.ndarray]:
    return made()


@pytest.fixture(scope="module")
def faces() -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (900, 48, 48), dtype=np.uint8)


def texts(figure: Figure) -> list[Text]:
    """The texts that are drawn: an axis also holds labels of ticks beyond its ends."""
    beyond = set()
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            outside = [tick for tick in axis.get_major_ticks() if not low <= tick.get_loc() <= high]
            beyond |= {label for tick in outside for label in (tick.label1, tick.label2)}
    found = figure.findobj(Text)
    return [text for text in found if text.get_text().strip() and text.get_visible() and text not in beyond]


def words(figure: Figure) -> str:
    return "\n".join(text.get_text() for text in texts(figure))


def pairs(
    data: tuple[np.ndarray, np.ndarray], faces: np.ndarray
) -> tuple[pd.DataFrame, list[np.ndarray], list[np.ndarray]]:
    probabilities, targets = data
    predicted = probabilities.argmax(axis=1)
    rows = metrics.confused_pairs(metrics.confusion_matrix(*data)).head(3)
    images, sure = [], []
    for row in rows.itertuples():
        wrong = (targets == EMOTIONS.index(row.target)) & (predicted == EMOTIONS.index(row.predicted))
        chosen = np.flatnonzero(wrong)[:6]
        images.append(faces[chosen])
        sure.append(probabilities[chosen].max(axis=1))
    images[-1], sure[-1] = images[-1][:2], sure[-1][:2]  # a rare kind has fewer faces
    return rows, images, sure


def all_figures(data: tuple[np.ndarray, np.ndarray], faces: np.ndarray) -> Iterator[tuple[str, Callable[[], Figure]]]:
    probabilities, targets = data
    measured = metrics.bootstrap(probabilities, targets, draws=50)
    accuracy = measured.scores["accuracy"]
    table = metrics.reliability(probabilities, targets)
    yield "accuracies", lambda: figures.accuracies({"test": {"single view": accuracy, "flip": accuracy}}, NOTE)
    yield "confusion", lambda: figures.confusion(metrics.confusion_matrix(probabilities, targets), NOTE)
    yield "per_class", lambda: figures.per_class(measured, NOTE)
    yield "reliability", lambda: figures.reliability({"before: ECE 0.05": table, "after: ECE 0.01": table}, NOTE)
    curves = metrics.precision_recall(probabilities, targets)
    yield "precision_recall", lambda: figures.precision_recall(curves, NOTE)
    kept = metrics.coverage(probabilities, targets)
    yield "coverage", lambda: figures.coverage({"single view": kept, "scaled": kept}, NOTE)
    yield "predictions", lambda: figures.predictions(faces[:12], probabilities[:12], targets[:12], NOTE)
    yield "confused_pairs", lambda: figures.confused_pairs(*pairs(data, faces), NOTE)
    wrong = metrics.confident_mistakes(probabilities, targets)[:9]
    yield (
        "mistakes_and_neighbours",
        lambda: figures.mistakes_and_neighbours(
            faces[wrong], probabilities[wrong], targets[wrong], faces[:9], targets[:9], np.full(9, 0.4), NOTE
        ),
    )
    yield "suspect_labels", lambda: figures.suspect_labels(faces[wrong], probabilities[wrong], targets[wrong], NOTE)


NAMES = (
    "accuracies confusion per_class reliability precision_recall coverage predictions confused_pairs "
    "mistakes_and_neighbours suspect_labels"
).split()


@pytest.mark.parametrize("name", NAMES)
def test_figures_carry_the_note_and_no_two_texts_overlap(
    name: str, data: tuple[np.ndarray, np.ndarray], faces: np.ndarray
) -> None:
    before = dict(mpl.rcParams)
    figure = dict(all_figures(data, faces))[name]()
    assert dict(mpl.rcParams) == before
    assert not plt.get_fignums()
    assert NOTE in figure._suptitle.get_text()  # matplotlib has no public name for it
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    page = figure.bbox.padded(2)
    boxes = [(text.get_text(), text.get_window_extent(canvas.get_renderer())) for text in texts(figure)]
    assert len(boxes) > 5
    for index, (text, box) in enumerate(boxes):
        assert page.containsx(box.x0), text
        assert page.containsx(box.x1), text
        assert page.containsy(box.y0), text
        assert page.containsy(box.y1), text
        for other, another in boxes[index + 1 :]:
            slanted = name == "confusion" and text in EMOTIONS and other in EMOTIONS
            # Slanted tick labels have boxes that overlap, though their letters do not.
            assert slanted or not box.overlaps(another), (text, other)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("predictions", "confused_pairs")])
def test_charts_label_their_axes(name: str, data: tuple[np.ndarray, np.ndarray], faces: np.ndarray) -> None:
    figure = dict(all_figures(data, faces))[name]()
    charts = [axes for axes in figure.axes if axes.axison]
    for axes in charts:
        assert axes.get_xlabel(), name
    assert not charts or charts[0].get_ylabel() or name == "accuracies"


def test_confusion_shows_every_count_and_share() -> None:
    matrix = np.arange(49).reshape(7, 7) * 41
    figure = figures.confusion(matrix)
    left, right = figure.axes
    assert [text.get_text() for text in left.texts] == [f"{count:,}" for count in matrix.ravel()]
    shares = matrix / matrix.sum(axis=1, keepdims=True)
    assert [text.get_text() for text in right.texts] == [f"{round(100 * share)}" for share in shares.ravel()]
    assert left.get_ylabel() == "label"
    assert left.get_xlabel() == "prediction"


def test_confusion_of_an_emotion_without_faces() -> None:
    matrix = np.eye(7, dtype=np.int64)
    matrix[1] = 0
    assert "nan" not in words(figures.confusion(matrix))


def test_bars_have_the_heights_and_intervals_of_the_rates(data: tuple[np.ndarray, np.ndarray]) -> None:
    measured = metrics.bootstrap(*data, draws=50)
    axes = figures.per_class(measured).axes[0]
    heights = [patch.get_height() for patch in axes.patches]
    expected = [measured.per_class[emotion][rate].value for rate in metrics.RATES for emotion in EMOTIONS]
    assert heights == pytest.approx(expected)
    assert f"disgust\n{measured.support['disgust']} faces" in words(axes.figure)


def test_per_class_of_an_emotion_without_faces() -> None:
    probabilities, targets = made(200)
    targets[targets == 1] = 3
    figure = figures.per_class(metrics.bootstrap(probabilities, targets, draws=20))
    FigureCanvasAgg(figure).draw()
    assert "disgust\n0 faces" in words(figure)


def test_right_and_wrong_differ_in_mark_and_colour(data: tuple[np.ndarray, np.ndarray], faces: np.ndarray) -> None:
    probabilities, targets = data
    right = probabilities.argmax(axis=1) == targets
    chosen = np.r_[np.flatnonzero(right)[:3], np.flatnonzero(~right)[:3]]
    figure = figures.predictions(faces[chosen], probabilities[chosen], targets[chosen])
    captions = [text for text in figure.axes[0].texts if text.get_text()[:1] in "✓✗"]
    assert [text.get_text()[0] for text in captions] == ["✓"] * 3 + ["✗"] * 3
    assert [text.get_color() for text in captions] == [RIGHT] * 3 + [WRONG] * 3
    for text, row in zip(captions[3:], chosen[3:], strict=True):
        assert EMOTIONS[probabilities[row].argmax()] in text.get_text()
        assert f"is {EMOTIONS[targets[row]]}" in text.get_text()


def test_the_band_of_people_is_left_out_on_synthetic_faces() -> None:
    scores = {"test": {"single view": metrics.Interval(0.6, 0.58, 0.62)}}
    assert "people" in words(figures.accuracies(scores))
    assert "people" not in words(figures.accuracies(scores, people=False))


@pytest.mark.parametrize(
    ("probability", "told"),
    [(0.0, "0%"), (1e-9, "<1%"), (0.004, "<1%"), (0.5, "50%"), (0.994, "99%"), (0.9999, ">99%"), (1.0, "100%")],
)
def test_only_certainty_reads_as_such(
    probability: float, told: str, data: tuple[np.ndarray, np.ndarray], faces: np.ndarray
) -> None:
    row = np.full((1, 7), (1 - probability) / 6)
    row[0, 2] = probability
    assert figures._share(row[0, 2]) == told


@pytest.mark.parametrize("accuracy", [0.03, 0.16, 0.7])
def test_the_numbers_on_the_coverage_curve_lie_inside_the_axes(accuracy: float) -> None:
    shares = np.arange(1, 401) / 400
    curve = pd.DataFrame({"coverage": shares, "faces": np.arange(1, 401), "accuracy": 1 - (1 - accuracy) * shares**2})
    if accuracy < 0.5:
        curve["accuracy"] = accuracy
    figure = figures.coverage({"single view": curve.assign(threshold=1 - shares)})
    FigureCanvasAgg(figure).draw()
    (axes,) = figure.axes
    inside = axes.get_window_extent()
    assert len(axes.texts) == 3
    for text in axes.texts:
        box = text.get_window_extent()
        assert inside.y0 < box.y0
        assert box.y1 < inside.y1


def test_what_could_not_be_read_is_shown_and_called_so() -> None:
    # A notebook shows no figure without axes.
    for error, told in (("the file is empty", "no answer"), (None, "no face")):
        shown = inference.answer(None, Prediction("folder/a.png", None, None, (), None, error))
        assert [text.get_text() for text in shown.axes[0].texts] == [error or "no face found"]
        assert shown.get_suptitle() == f"a.png: {told}"


def test_dollar_signs_in_a_name_make_no_formula() -> None:
    shown = inference.answer(None, Prediction("$\\a$.png", None, None, (), None, "cannot be read: $\\b$"))
    # What is no formula stops the drawing; what is one would lose its dollar signs.
    FigureCanvasAgg(shown).draw()
    for text in shown.findobj(Text):
        assert not text.get_parse_math() or not is_math_text(text.get_text())
