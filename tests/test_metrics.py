"""Metrics against scikit-learn, hand-made examples, and simulations whose truth is known."""

import math

import numpy as np
import pandas as pd
import pytest
import sklearn.metrics as reference
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.calibration import calibration_curve

from fer_utils import metrics
from fer_utils.emotions import EMOTIONS

LABELS = list(range(7))


def made(n: int, seed: int = 0, skill: float = 1.9, sure: float = 1.7) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities of a mediocre network and targets as unequal as FER2013's."""
    rng = np.random.default_rng(seed)
    share = np.array([0.13, 0.015, 0.14, 0.25, 0.17, 0.18, 0.115])
    targets = rng.choice(7, n, p=share / share.sum())
    logits = rng.normal(size=(n, 7))
    logits[np.arange(n), targets] += skill
    return softmax(logits * sure), targets


def softmax(logits: np.ndarray) -> np.ndarray:
    odds = np.exp(logits - logits.max(axis=1, keepdims=True))
    return odds / odds.sum(axis=1, keepdims=True)


def calibrated(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities that are exactly right: each target is drawn from its own row."""
    rng = np.random.default_rng(seed)
    probabilities = softmax(rng.normal(size=(n, 7)) * 1.8)
    return probabilities, (rng.random(n)[:, None] > probabilities.cumsum(axis=1)).sum(axis=1)


def by_sklearn(probabilities: np.ndarray, targets: np.ndarray) -> dict[str, float]:
    predicted = probabilities.argmax(axis=1)
    present = sorted(set(targets.tolist()))
    return {
        "accuracy": reference.accuracy_score(targets, predicted),
        # Recall averaged over the emotions with faces: what balanced_accuracy_score does, without its warning.
        "balanced_accuracy": reference.recall_score(targets, predicted, labels=present, average="macro"),
        "macro_f1": reference.f1_score(targets, predicted, labels=present, average="macro", zero_division=0),
        "nll": reference.log_loss(targets, probabilities, labels=LABELS),
        "brier": reference.brier_score_loss(targets, probabilities, labels=LABELS, scale_by_half=False),
    }


@pytest.mark.parametrize(("n", "seed"), [(1, 0), (2, 1), (40, 2), (500, 3), (3589, 4)])
def test_scores_agree_with_sklearn(n: int, seed: int) -> None:
    probabilities, targets = made(n, seed)
    ours = metrics.score(probabilities, targets)
    for name, value in by_sklearn(probabilities, targets).items():
        assert ours[name] == pytest.approx(value, abs=1e-12), name
        assert getattr(metrics, name)(probabilities, targets) == ours[name]
    assert ours["ece"] == metrics.ece(probabilities, targets)
    np.testing.assert_array_equal(
        metrics.confusion_matrix(probabilities, targets),
        reference.confusion_matrix(targets, probabilities.argmax(axis=1), labels=LABELS),
    )


def test_balanced_accuracy_is_sklearns_own_where_it_is_defined() -> None:
    probabilities, targets = made(2000)
    expected = reference.balanced_accuracy_score(targets, probabilities.argmax(axis=1))
    assert metrics.balanced_accuracy(probabilities, targets) == pytest.approx(expected)


def test_rates_agree_with_sklearn_and_mark_what_is_undefined() -> None:
    probabilities, targets = made(300)
    probabilities[:, 2] = 0  # fear is never predicted,
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    targets[targets == 1] = 0  # and no face shows disgust
    table = metrics.per_class(probabilities, targets)
    expected = reference.precision_recall_fscore_support(
        targets, probabilities.argmax(axis=1), labels=LABELS, zero_division=0
    )
    assert list(table.index) == list(EMOTIONS)
    labelled = [emotion for emotion in EMOTIONS if emotion != "disgust"]
    for column, values in zip(["precision", "recall", "f1", "support"], expected, strict=True):
        wanted = pd.Series(values, index=list(EMOTIONS))
        np.testing.assert_allclose(table.loc[labelled, column], wanted[labelled])
    assert table.loc["disgust", "support"] == 0
    assert table.loc["disgust", ["recall", "f1"]].isna().all()
    assert table.loc["fear", "precision"] == table.loc["fear", "f1"] == 0
    assert math.isfinite(metrics.macro_f1(probabilities, targets))


def test_probability_zero_costs_what_sklearn_charges() -> None:
    probabilities = np.zeros((2, 7))
    probabilities[:, 3] = 1
    targets = np.array([3, 4])
    assert metrics.nll(probabilities, targets) == pytest.approx(
        reference.log_loss(targets, probabilities, labels=LABELS), abs=1e-12
    )


# -- calibration ------------------------------------------------------------------------------------------------------


def ladder(confidences: list[float]) -> np.ndarray:
    """Rows whose top emotion is the first, with the given confidence."""
    return np.array([[c] + [(1 - c) / 6] * 6 for c in confidences])


def test_ece_by_hand() -> None:
    probabilities = ladder([0.5, 0.6, 0.8, 0.9])
    targets = np.array([0, 1, 0, 0])
    # Two bins of two: accuracies 0.5 and 1, mean confidences 0.55 and 0.85.
    assert metrics.ece(probabilities, targets, bins=2) == pytest.approx((0.05 + 0.15) / 2)
    # Two bins of equal width: only the first face, at 0.5, is in the lower one.
    expected = 0.25 * abs(1 - 0.5) + 0.75 * abs(2 / 3 - (0.6 + 0.8 + 0.9) / 3)
    assert metrics.ece(probabilities, targets, bins=2, binning="width") == pytest.approx(expected)


@pytest.mark.parametrize(("binning", "strategy"), [("mass", "quantile"), ("width", "uniform")])
def test_reliability_agrees_with_sklearn(binning: metrics.Binning, strategy: str) -> None:
    probabilities, targets = made(1004)
    table = metrics.reliability(probabilities, targets, binning=binning)
    right = probabilities.argmax(axis=1) == targets
    accuracy, confidence = calibration_curve(right, probabilities.max(axis=1), n_bins=15, strategy=strategy)
    np.testing.assert_allclose(table["accuracy"], accuracy)
    np.testing.assert_allclose(table["confidence"], confidence)
    assert table["faces"].sum() == 1004
    error = np.average((table["accuracy"] - table["confidence"]).abs(), weights=table["faces"])
    assert metrics.ece(probabilities, targets, binning=binning) == pytest.approx(error)
    if binning == "mass":
        assert table["faces"].max() - table["faces"].min() <= 1


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 60), st.integers(0, 1000), st.sampled_from([0.5, 0.25]))
def test_the_order_of_faces_does_not_matter(n: int, seed: int, step: float) -> None:
    probabilities, targets = made(n, seed)
    # Coarse steps make many faces equally confident.
    confidence = np.clip(np.round(probabilities.max(axis=1) / step) * step, step, 1)
    probabilities = ladder(confidence.tolist())
    order = np.random.default_rng(seed).permutation(n)
    assert metrics.ece(probabilities[order], targets[order]) == pytest.approx(metrics.ece(probabilities, targets))
    pd.testing.assert_frame_equal(
        metrics.coverage(probabilities[order], targets[order]), metrics.coverage(probabilities, targets)
    )


def test_ece_of_perfect_calibration_is_as_foretold() -> None:
    measured, foretold = [], []
    for seed in range(60):
        probabilities, targets = calibrated(1500, seed)
        measured.append(metrics.ece(probabilities, targets))
        foretold.append(metrics.ece_if_calibrated(probabilities))
    assert np.mean(measured) == pytest.approx(np.mean(foretold), rel=0.06)
    assert np.mean(foretold) > 0.02  # chance alone shows that much


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.5])
def test_temperature_is_recovered(temperature: float) -> None:
    probabilities, targets = calibrated(20_000, 1)
    distorted = metrics.scale(probabilities, 1 / temperature)
    fitted = metrics.fit_temperature(distorted, targets)
    assert fitted == pytest.approx(temperature, rel=0.03)
    scaled = metrics.scale(distorted, fitted)
    best = metrics.nll(scaled, targets)
    assert all(metrics.nll(metrics.scale(distorted, fitted * factor), targets) > best for factor in (0.9, 1.1))
    np.testing.assert_array_equal(scaled.argmax(axis=1), probabilities.argmax(axis=1))


def test_scaling_is_a_power() -> None:
    probabilities, _ = made(50)
    np.testing.assert_allclose(metrics.scale(probabilities, 1), probabilities)
    np.testing.assert_allclose(
        metrics.scale(probabilities, 2), np.sqrt(probabilities) / np.sqrt(probabilities).sum(axis=1, keepdims=True)
    )
    np.testing.assert_allclose(metrics.scale(metrics.scale(probabilities, 2), 3), metrics.scale(probabilities, 6))
    with pytest.raises(ValueError, match="temperature must be above 0, not 0"):
        metrics.scale(probabilities, 0)


def test_temperature_of_sure_predictions_is_finite() -> None:
    probabilities = np.eye(7)[[0, 1, 2, 3]]
    assert metrics.fit_temperature(probabilities, np.array([0, 1, 2, 3])) == 1.0, "nothing tells how sure it may be"
    # One sure mistake: the temperature rises, and nothing overflows.
    assert metrics.fit_temperature(probabilities, np.array([0, 1, 2, 4])) > 5


def test_coverage_by_hand() -> None:
    table = metrics.coverage(ladder([0.5, 0.9, 0.7, 0.7]), np.array([1, 0, 0, 1]))
    assert table["threshold"].tolist() == [0.9, 0.7, 0.5]
    assert table["faces"].tolist() == [1, 3, 4]
    np.testing.assert_allclose(table["coverage"], [0.25, 0.75, 1])
    np.testing.assert_allclose(table["accuracy"], [1, 2 / 3, 0.5])


def test_precision_recall_leaves_out_emotions_without_faces() -> None:
    probabilities, targets = made(400)
    targets[targets == 1] = 3
    curves = metrics.precision_recall(probabilities, targets)
    assert set(curves) == set(EMOTIONS) - {"disgust"}
    share = (targets == 3).mean()
    # At recall 1 every face may be called happy; the average precision beats that of a coin.
    assert curves["happy"].recall[0] == 1
    assert share < curves["happy"].average_precision < 1


# -- uncertainty ------------------------------------------------------------------------------------------------------


def test_bootstrap_agrees_with_sklearn_on_every_resampled_set() -> None:
    probabilities, targets = made(150)
    result = metrics.bootstrap(probabilities, targets, draws=40, seed=5)
    picked = np.random.Generator(np.random.PCG64(5)).integers(0, 150, (40, 150))
    drawn = pd.DataFrame([by_sklearn(probabilities[rows], targets[rows]) for rows in picked])
    measured = by_sklearn(probabilities, targets)
    for name in drawn:
        low, high = np.quantile(drawn[name], [0.025, 0.975])
        assert result.scores[name] == pytest.approx((measured[name], low, high), abs=1e-12), name
    happy = [reference.recall_score(targets[r] == 3, probabilities[r].argmax(axis=1) == 3) for r in picked]
    assert result.per_class["happy"]["recall"][1:] == pytest.approx(np.quantile(happy, [0.025, 0.975]))
    assert result.support == dict(zip(EMOTIONS, np.bincount(targets, minlength=7).tolist(), strict=True))


def test_bootstrap_is_seeded(monkeypatch: pytest.MonkeyPatch) -> None:
    probabilities, targets = made(201)
    first = metrics.bootstrap(probabilities, targets, draws=50, seed=1)
    assert first == metrics.bootstrap(probabilities, targets, draws=50, seed=1)
    assert first.scores != metrics.bootstrap(probabilities, targets, draws=50, seed=2).scores
    # How many resampled sets are held at a time changes nothing.
    monkeypatch.setattr(metrics, "_CHUNK", 7)
    chunked = metrics.bootstrap(probabilities, targets, draws=50, seed=1).scores
    assert all(chunked[name] == pytest.approx(first.scores[name]) for name in metrics.SCORES)


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    big = made(200_000, 99)
    truth = metrics.score(*big)
    names = ("accuracy", "nll", "brier", "balanced_accuracy")
    held = dict.fromkeys(names, 0)
    for seed in range(150):
        scores = metrics.bootstrap(*made(400, seed), draws=200).scores
        for name in names:
            held[name] += scores[name].low <= truth[name] <= scores[name].high
    for name in names:
        assert 0.88 <= held[name] / 150 <= 0.995, held


def test_ece_intervals_hold_what_other_test_sets_show() -> None:
    everyone = [metrics.ece(*calibrated(400, 1000 + seed)) for seed in range(150)]
    held = 0
    for seed in range(150):
        interval = metrics.bootstrap(*calibrated(400, seed), draws=200).scores["ece"]
        assert 0 <= interval.low <= interval.value <= interval.high
        held += interval.low <= np.mean(everyone) <= interval.high
    assert held / 150 >= 0.88


def test_fixed_bins_resample_like_bins_cut_anew() -> None:
    probabilities, targets = made(600)
    interval = metrics.bootstrap(probabilities, targets, draws=300).scores["ece"]
    rng = np.random.default_rng(0)
    anew = [metrics.ece(probabilities[rows], targets[rows]) for rows in rng.integers(0, 600, (300, 600))]
    shifted = np.quantile(anew, [0.025, 0.975]) + interval.value - np.mean(anew)
    assert interval[1:] == pytest.approx(np.maximum(shifted, 0), abs=0.008)


def test_rates_of_none_and_of_all_keep_their_doubt() -> None:
    # Twelve disgusted faces, none found; four surprised ones, all found and nothing else called so.
    targets = np.array(
        [EMOTIONS.index("disgust")] * 12 + [EMOTIONS.index("surprise")] * 4 + [EMOTIONS.index("sad")] * 4
    )
    called = np.where(targets == EMOTIONS.index("surprise"), targets, EMOTIONS.index("happy"))
    result = metrics.bootstrap(np.eye(7)[called] * 0.9 + 0.1 / 7, targets, draws=100)
    disgust, surprise = result.per_class["disgust"], result.per_class["surprise"]
    # By the closed form of Clopper and Pearson's interval at its ends: 1 - 0.025^(1/n) and 0.025^(1/n).
    assert disgust["recall"] == pytest.approx((0, 0, 1 - 0.025 ** (1 / 12)))
    assert disgust["precision"] == (0, 0, 1)  # never called so
    share = 1 - 0.025 ** (1 / 12)
    assert disgust["f1"] == pytest.approx((0, 0, 2 * share / (1 + share)))
    assert surprise["recall"] == pytest.approx((1, 0.025 ** (1 / 4), 1))
    assert surprise["precision"] == pytest.approx((1, 0.025 ** (1 / 4), 1))
    everything = metrics.bootstrap(np.eye(7)[targets] * 0.9 + 0.1 / 7, targets, draws=100).scores["accuracy"]
    assert everything == pytest.approx((1, 0.025 ** (1 / 20), 1))


def test_bootstrap_survives_draws_without_an_emotion() -> None:
    probabilities, targets = made(60)
    targets[:] = 3
    targets[0] = 1
    result = metrics.bootstrap(probabilities, targets, draws=100)
    assert all(math.isfinite(end) for interval in result.scores.values() for end in interval)
    assert math.isnan(result.per_class["sad"]["recall"].low)
    assert result.per_class["disgust"]["recall"].low == result.per_class["disgust"]["recall"].value


@pytest.mark.parametrize("wrong", [{"draws": 0}, {"level": 1.0}, {"bins": 0}])
def test_bootstrap_refuses_impossible_settings(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        metrics.bootstrap(*made(10), **wrong)


# -- two runs ---------------------------------------------------------------------------------------------------------


def pair(both: int, only_a: int, only_b: int, neither: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    n = both + only_a + only_b + neither
    right_a = np.repeat([1, 1, 0, 0], [both, only_a, only_b, neither])
    right_b = np.repeat([1, 0, 1, 0], [both, only_a, only_b, neither])
    # The target is 0 everywhere; a wrong face is taken for emotion 1.
    right, wrong = np.eye(7)[0], np.eye(7)[1]
    a, b = np.where(right_a[:, None], right, wrong), np.where(right_b[:, None], right, wrong)
    return a, b, np.zeros(n, np.int64)


def test_mcnemar_by_hand() -> None:
    # 5 against 15 of 20 tosses: P(X <= 5) = 21700 / 2**20, and P(X = 5) = 15504 / 2**20.
    result = metrics.compare(*pair(60, 15, 5, 20))
    assert (result.only_a, result.only_b, result.faces) == (15, 5, 100)
    assert result.p_exact == pytest.approx(2 * 21700 / 2**20)
    assert result.p_mid == pytest.approx((2 * 21700 - 15504) / 2**20)
    assert result.difference.value == pytest.approx(0.10)
    assert result.accuracy_a - result.accuracy_b == pytest.approx(0.10)


def test_mcnemar_of_equal_runs() -> None:
    even = metrics.compare(*pair(50, 4, 4, 10))
    # 70 of 256 ways are an equal division: both tails hold it, so it counts half in the mid-p of 1 - 70/512.
    assert even.p_exact == pytest.approx(1)
    assert even.p_mid == pytest.approx(1 - 70 / 512)
    same = metrics.compare(*pair(50, 0, 0, 10))
    assert (same.p_exact, same.p_mid, same.difference) == (1, 1, (0, 0, 0))


def test_p_values_of_many_pairs_are_adjusted_by_holm() -> None:
    # By hand: 0.01 x 4, 0.02 x 3, then 0.03 x 2 and 0.04 x 1, which may not be below the one before.
    np.testing.assert_allclose(metrics.holm(np.array([0.04, 0.01, 0.03, 0.02])), [0.06, 0.04, 0.06, 0.06])
    np.testing.assert_allclose(metrics.holm(np.array([0.9, 0.6])), [1, 1])
    np.testing.assert_allclose(metrics.holm(np.array([0.2])), [0.2])
    assert len(metrics.holm(np.array([]))) == 0


def test_paired_interval_agrees_with_resampled_faces() -> None:
    a, b, targets = pair(300, 60, 30, 110)
    result = metrics.compare(a, b, targets, seed=3)
    rng = np.random.default_rng(0)
    naive = [
        metrics.accuracy(a[rows], targets[rows]) - metrics.accuracy(b[rows], targets[rows])
        for rows in rng.integers(0, 500, (600, 500))
    ]
    assert result.difference[1:] == pytest.approx(np.quantile(naive, [0.025, 0.975]), abs=0.008)
    turned = metrics.compare(b, a, targets, seed=3)
    assert turned.difference.value == -result.difference.value
    assert turned.p_exact == pytest.approx(result.p_exact)


def test_mean_and_deviation_over_runs() -> None:
    result = metrics.over_runs([{"accuracy": 0.6, "nll": 1.0}, {"accuracy": 0.7}, {"accuracy": 0.8}])
    assert set(result) == {"accuracy"}
    assert result["accuracy"] == pytest.approx((0.7, 0.1, 3))
    assert math.isnan(metrics.over_runs([{"accuracy": 0.6}])["accuracy"].std)
    with pytest.raises(ValueError, match="no runs"):
        metrics.over_runs([])


# -- mistakes and labels ----------------------------------------------------------------------------------------------


def test_confused_pairs_by_hand() -> None:
    confusion = np.zeros((7, 7), np.int64)
    confusion[2, 2], confusion[2, 5], confusion[5, 2], confusion[5, 5], confusion[3, 3] = 5, 5, 5, 15, 9
    table = metrics.confused_pairs(confusion)
    # Equally many faces, but a larger share of the faces of fear.
    assert table[["target", "predicted"]].to_numpy().tolist() == [["fear", "sad"], ["sad", "fear"]]
    assert table["share"].tolist() == [0.5, 0.25]


def test_confident_mistakes_are_wrong_and_ranked() -> None:
    probabilities, targets = made(300)
    rows = metrics.confident_mistakes(probabilities, targets)
    assert len(rows) == round(300 * (1 - metrics.accuracy(probabilities, targets)))
    assert (probabilities.argmax(axis=1)[rows] != targets[rows]).all()
    assert (np.diff(probabilities.max(axis=1)[rows]) <= 0).all()


def test_planted_wrong_labels_are_found() -> None:
    probabilities, targets = made(2000, skill=5.0)
    rng = np.random.default_rng(0)
    planted = rng.choice(2000, 60, replace=False)
    noisy = targets.copy()
    noisy[planted] = (noisy[planted] + rng.integers(1, 7, 60)) % 7
    found = metrics.suspect_labels(probabilities, noisy)
    assert len(set(planted) & set(found)) >= 50
    assert len(set(planted) & set(found[:40])) >= 38  # the first are the surest


def test_suspect_labels_agree_with_cleanlab() -> None:
    probabilities, targets = made(80, seed=7, skill=1.5)
    # cleanlab 2.9.0: find_label_issues(targets, probabilities, filter_by="confident_learning",
    # return_indices_ranked_by="self_confidence")
    expected = [70, 24, 7, 2, 18, 36, 38, 55, 32, 78, 62, 3, 35, 42, 0]
    assert metrics.suspect_labels(probabilities, targets).tolist() == expected


# -- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p, t: (p[:, :6], t), r"\(N, 7\)"),
        (lambda p, t: (p[:3], t), r"\(N, 7\)"),
        (lambda p, t: (p[:0], t[:0]), "no faces"),
        (lambda p, t: (p, t.astype(float)), "integers"),
        (lambda p, t: (p, np.where(np.arange(len(t)) == 4, -1, t)), "target of row 4 is -1"),
        (lambda p, t: (p, np.where(np.arange(len(t)) == 2, 7, t)), "target of row 2 is 7"),
        (lambda p, t: (np.where(np.arange(len(t))[:, None] == 3, np.nan, p), t), "row 3 is no distribution"),
        (lambda p, t: (p * 2, t), "row 0 is no distribution"),
        (lambda p, t: (p * 0.999, t), "row 0 is no distribution"),
        (lambda p, t: (p - 1, t), "row 0 is no distribution"),
    ],
)
def test_bad_input_is_refused(change, message: str) -> None:
    probabilities, targets = change(*made(8))
    for function in (metrics.score, metrics.bootstrap, metrics.ece, metrics.fit_temperature, metrics.suspect_labels):
        with pytest.raises(ValueError, match=message):
            function(probabilities, targets)


# -- ends and ties ----------------------------------------------------------------------------------------------------


def test_an_interval_of_the_calibration_error_ends_at_0() -> None:
    # The measured error is 0, and the resampled ones lie on both sides of it once they are moved there.
    probabilities = np.tile([0.75, 0.25, 0, 0, 0, 0, 0], (40, 1))
    interval = metrics.bootstrap(probabilities, np.repeat([0, 1], [30, 10]), draws=200).scores["ece"]
    assert (interval.low, interval.value) == (0, pytest.approx(0, abs=1e-12))
    assert interval.high > 0.05


def test_a_perfect_f1_has_the_doubt_of_its_faces() -> None:
    targets = np.array([EMOTIONS.index("surprise")] * 4 + [EMOTIONS.index("sad")] * 4)
    called = np.where(targets == EMOTIONS.index("surprise"), targets, EMOTIONS.index("happy"))
    found = metrics.bootstrap(np.eye(7)[called] * 0.9 + 0.1 / 7, targets, draws=20).per_class["surprise"]["f1"]
    # F1 = 2 J / (1 + J), and J is of four faces: each right one is of the emotion and called so, and counts once.
    share = 0.025 ** (1 / 4)
    assert found == pytest.approx((1, 2 * share / (1 + share), 1))


def test_bins_tell_their_lowest_and_highest_confidence() -> None:
    confidence = np.array([0.9, 0.4, 0.6, 0.5])
    probabilities = np.column_stack([confidence, *[(1 - confidence) / 6] * 6])
    table = metrics.reliability(probabilities, np.zeros(4, int), bins=2)
    assert table[["low", "high"]].to_numpy().tolist() == [[0.4, 0.5], [0.6, 0.9]]


def test_a_face_that_is_as_probable_as_all_of_an_emotion_reaches_its_threshold() -> None:
    targets = np.array([0, 1, 1, 1])
    probabilities = np.tile([0.2, 0.8, 0, 0, 0, 0, 0], (4, 1))
    assert probabilities[1:, 1].sum() / 3 > 0.8  # by rounding alone
    assert metrics.suspect_labels(probabilities, targets).tolist() == [0]
