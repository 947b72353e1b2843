"""What a set of predictions is worth: scores, their uncertainty, calibration and comparison.

Pure functions of ``probabilities``, float64 (N, 7) with rows that sum to 1, and ``targets``, int64 (N,) from 0 to 6 in
the canonical order. They raise ValueError when either is anything else, unlabelled faces included. Scores are shares in
[0, 1] unless their docstring says otherwise.

Scores and their bootstrap are one piece of code: a score is a function of sums over faces (a confusion matrix, sums of
losses, gaps per confidence bin), so a resampled data set is one row of face counts and 2,000 of them are a matrix
product.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.optimize import minimize_scalar
from scipy.stats import binom, binomtest
from sklearn.metrics import average_precision_score, precision_recall_curve

from fer_utils.emotions import EMOTIONS, NUM_EMOTIONS

Probabilities = npt.NDArray[np.float64]
Targets = npt.NDArray[np.int64]
Binning = Literal["mass", "width"]

SCORES: Final = ("accuracy", "balanced_accuracy", "macro_f1", "nll", "brier", "ece")
RATES: Final = ("precision", "recall", "f1")
BINS: Final = 15
DRAWS: Final = 2000
LEVEL: Final = 0.95

_EPSILON: Final = float(np.finfo(np.float64).eps)
_CHUNK: Final = 250
"""Resampled data sets held at a time: 250 rows of 7,178 faces are 14 MB."""


class Interval(NamedTuple):
    """A score with the ends of its confidence interval."""

    value: float
    low: float
    high: float

    def percent(self, digits: int = 1) -> str:
        """Return for instance ``63.2% (61.6 to 64.8)``, or ``none`` where the score is undefined."""
        if math.isnan(self.value):
            return "none"
        return f"{self.value:.{digits}%} ({100 * self.low:.{digits}f} to {100 * self.high:.{digits}f})"

    def number(self, digits: int = 3) -> str:
        """Return for instance ``0.982 (0.951 to 1.013)``, or ``none`` where the score is undefined."""
        if math.isnan(self.value):
            return "none"
        return f"{self.value:.{digits}f} ({self.low:.{digits}f} to {self.high:.{digits}f})"


class MeanStd(NamedTuple):
    """Mean and sample standard deviation (n - 1; NaN for one run) over ``runs`` runs."""

    mean: float
    std: float
    runs: int


@dataclass(frozen=True)
class Measured:
    """Every score of one set of predictions, each with its interval.

    Attributes:
        faces: how many.
        scores: by the names in ``SCORES``.
        per_class: emotion to rate (``RATES``) to interval; NaN where the emotion has no faces.
        support: emotion to number of faces.
        ece_if_calibrated: the ``ece`` to be expected on so many faces if every confidence were exactly right.
    """

    faces: int
    scores: dict[str, Interval]
    per_class: dict[str, dict[str, Interval]]
    support: dict[str, int]
    ece_if_calibrated: float


@dataclass(frozen=True)
class Comparison:
    """Two runs on the same faces.

    Attributes:
        faces: how many.
        accuracy_a, accuracy_b: of either run.
        difference: ``accuracy_a - accuracy_b`` with its paired bootstrap interval.
        only_a, only_b: faces that one run alone gets right.
        p_exact: McNemar's exact two-sided test of equal accuracies (conservative).
        p_mid: its mid-p variant, which keeps the level and has more power (Fagerland et al. 2013, BMC Med Res Methodol
            13:91).
    """

    faces: int
    accuracy_a: float
    accuracy_b: float
    difference: Interval
    only_a: int
    only_b: int
    p_exact: float
    p_mid: float


def check(probabilities: Probabilities, targets: Targets) -> None:
    """Check the input of this module's functions.

    Raises:
        ValueError: a wrong shape, no faces, a probability outside [0, 1], a row that does not sum to 1, a target
            outside 0 to 6. The message names the first row that is wrong.
    """
    n = len(targets)
    if probabilities.shape != (n, NUM_EMOTIONS) or targets.ndim != 1:
        raise ValueError(
            f"probabilities must be (N, {NUM_EMOTIONS}) and targets (N,), not {probabilities.shape} and {targets.shape}"
        )
    if not n:
        raise ValueError("there are no faces to score")
    if not np.issubdtype(targets.dtype, np.integer):
        raise ValueError(f"targets must be integers, not {targets.dtype}")
    wrong = np.flatnonzero((targets < 0) | (targets >= NUM_EMOTIONS))
    if wrong.size:
        raise ValueError(
            f"target of row {wrong[0]} is {targets[wrong[0]]}, not 0 to {NUM_EMOTIONS - 1}: score labelled faces only"
        )
    # Written so that NaN counts as wrong.
    inside = ((probabilities >= 0) & (probabilities <= 1 + 1e-9)).all(axis=1)
    wrong = np.flatnonzero(~(inside & (np.abs(probabilities.sum(axis=1) - 1) < 1e-5)))
    if wrong.size:
        row = probabilities[wrong[0]].tolist()
        raise ValueError(f"row {wrong[0]} is no distribution: {row} must be at least 0 and sum to 1")


# -- scores -----------------------------------------------------------------------------------------------------------


def accuracy(probabilities: Probabilities, targets: Targets) -> float:
    """Return the share of faces whose most probable emotion is their target."""
    return score(probabilities, targets)["accuracy"]


def balanced_accuracy(probabilities: Probabilities, targets: Targets) -> float:
    """Return the mean recall of the emotions that have faces."""
    return score(probabilities, targets)["balanced_accuracy"]


def macro_f1(probabilities: Probabilities, targets: Targets) -> float:
    """Return the mean F1 of the emotions that have faces; one that is never predicted has F1 0."""
    return score(probabilities, targets)["macro_f1"]


def nll(probabilities: Probabilities, targets: Targets) -> float:
    """Return the mean negative log-likelihood in nats, at least 0: cross-entropy without label smoothing.

    A probability of 0 counts as 2.2e-16, as in ``sklearn.metrics.log_loss``.
    """
    return score(probabilities, targets)["nll"]


def brier(probabilities: Probabilities, targets: Targets) -> float:
    """Return the Brier score, the mean of the squared error summed over the emotions, 0 to 2 (Brier 1950)."""
    return score(probabilities, targets)["brier"]


def ece(probabilities: Probabilities, targets: Targets, *, bins: int = BINS, binning: Binning = "mass") -> float:
    """Return the expected calibration error of the top prediction (Guo et al. 2017, arXiv:1706.04599).

    It is the mean over bins of confidence, weighted by their faces, of |accuracy - mean confidence|.

    Args:
        probabilities: see the module.
        targets: see the module.
        bins: number of bins.
        binning: ``mass``: bins of equally many faces, faces of equal confidence together (Nixon et al. 2019,
            arXiv:1904.01685); ``width``: bins of equal width over [0, 1].
    """
    check(probabilities, targets)
    return float(np.abs(_gaps(probabilities, targets, bins, binning).sum(axis=0)).sum() / len(targets))


def ece_if_calibrated(probabilities: Probabilities, *, bins: int = BINS, binning: Binning = "mass") -> float:
    """Return the ``ece`` to be expected if each face were right with exactly the probability of its top emotion.

    A bin of finitely many faces is off by chance, so ``ece`` is never 0. In a bin the number of right faces is then
    nearly normal with variance Σ c(1 - c) over its confidences c, and the mean absolute value of a normal variable
    is sqrt(2/π) of its standard deviation. A measured error of this size is no evidence of miscalibration.
    """
    confidence = probabilities.max(axis=1)
    index = _bin_index(confidence, bins, binning)
    variance = np.bincount(index, weights=confidence * (1 - confidence), minlength=bins)
    return float(np.sqrt(2 / np.pi) * np.sqrt(variance).sum() / len(confidence))


def confusion_matrix(probabilities: Probabilities, targets: Targets) -> npt.NDArray[np.int64]:
    """Return int64 (7, 7): how many faces of the row's emotion were taken for the column's."""
    check(probabilities, targets)
    cells = targets * NUM_EMOTIONS + probabilities.argmax(axis=1)
    counts = np.bincount(cells, minlength=NUM_EMOTIONS**2).reshape(NUM_EMOTIONS, NUM_EMOTIONS)
    return counts.astype(np.int64)


def score(probabilities: Probabilities, targets: Targets, *, bins: int = BINS) -> dict[str, float]:
    """Return every score of ``SCORES`` by name; ``ece`` with ``bins`` bins of equal mass."""
    table = _sums_table(probabilities, targets, bins)
    everything = _scores(table.sum(axis=0, keepdims=True), np.full(1, len(targets)))
    return {name: float(everything[name][0]) for name in SCORES}


def per_class(probabilities: Probabilities, targets: Targets) -> pd.DataFrame:
    """Return a row per emotion: precision, recall, f1 and support (faces).

    An emotion that is never predicted has precision 0 and F1 0; one without faces has recall and F1 NaN.
    """
    confusion = confusion_matrix(probabilities, targets)
    rates = _rates(confusion[None].astype(np.float64))
    table = pd.DataFrame({name: rates[name][0] for name in RATES}, index=pd.Index(EMOTIONS, name="emotion"))
    table["support"] = confusion.sum(axis=1)
    return table


# -- calibration ------------------------------------------------------------------------------------------------------


def reliability(
    probabilities: Probabilities, targets: Targets, *, bins: int = BINS, binning: Binning = "mass"
) -> pd.DataFrame:
    """Return a row per bin that has faces: low, high (its confidences), confidence (mean), accuracy and faces."""
    check(probabilities, targets)
    confidence = probabilities.max(axis=1)
    table = pd.DataFrame(
        {
            "bin": _bin_index(confidence, bins, binning),
            "confidence": confidence,
            "right": probabilities.argmax(axis=1) == targets,
        }
    )
    grouped = table.groupby("bin").agg(
        low=("confidence", "min"),
        high=("confidence", "max"),
        confidence=("confidence", "mean"),
        accuracy=("right", "mean"),
        faces=("right", "size"),
    )
    return grouped.reset_index(drop=True)


def fit_temperature(probabilities: Probabilities, targets: Targets) -> float:
    """Return the temperature above 0 that minimises the NLL of ``scale(probabilities, temperature)``.

    Fit it on validation faces only (Guo et al. 2017, arXiv:1706.04599). Above 1 the network was too sure, below 1 not
    sure enough. Log-probabilities stand for logits: they differ by a constant per face, which the softmax cancels. The
    search is bounded to 0.05 to 20. Predictions without a single mistake have no optimum, and theirs is 1: nothing
    tells how sure they may be.
    """
    check(probabilities, targets)
    if (probabilities.argmax(axis=1) == targets).all():
        return 1.0
    rows = np.arange(len(targets))
    logs = _logs(probabilities)

    def loss(log_temperature: float) -> float:
        return -float(_log_softmax(logs / math.exp(log_temperature))[rows, targets].mean())

    found = minimize_scalar(loss, bounds=(math.log(0.05), math.log(20)), method="bounded", options={"xatol": 1e-6})
    return float(math.exp(found.x))


def scale(probabilities: Probabilities, temperature: float) -> Probabilities:
    """Return softmax(log-probabilities / temperature): the most probable emotion stays, its confidence changes.

    Raises:
        ValueError: ``temperature`` is not above 0.
    """
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0, not {temperature}")
    scaled: Probabilities = np.exp(_log_softmax(_logs(probabilities) / temperature))
    return scaled


def coverage(probabilities: Probabilities, targets: Targets) -> pd.DataFrame:
    """Return accuracy against coverage: a row per distinct confidence, from the most confident faces to all of them.

    Columns: threshold (faces at least this confident are kept), coverage (their share), accuracy (among them), faces.
    """
    check(probabilities, targets)
    confidence = probabilities.max(axis=1)
    order = np.argsort(-confidence, kind="stable")
    right = np.cumsum((probabilities.argmax(axis=1) == targets)[order])
    ranked = confidence[order]
    last = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True))
    kept = last + 1
    return pd.DataFrame(
        {"threshold": ranked[last], "coverage": kept / len(targets), "accuracy": right[last] / kept, "faces": kept}
    )


class Curve(NamedTuple):
    """A precision-recall curve, recall falling, with its average precision."""

    precision: npt.NDArray[np.float64]
    recall: npt.NDArray[np.float64]
    average_precision: float


def precision_recall(probabilities: Probabilities, targets: Targets) -> dict[str, Curve]:
    """Return the precision-recall curve of each emotion that has faces, that emotion against all others."""
    check(probabilities, targets)
    curves = {}
    for target, emotion in enumerate(EMOTIONS):
        wanted = targets == target
        if wanted.any():
            precision, recall, _ = precision_recall_curve(wanted, probabilities[:, target])
            average = float(average_precision_score(wanted, probabilities[:, target]))
            curves[emotion] = Curve(precision, recall, average)
    return curves


# -- uncertainty ------------------------------------------------------------------------------------------------------


def bootstrap(
    probabilities: Probabilities,
    targets: Targets,
    *,
    draws: int = DRAWS,
    seed: int = 0,
    bins: int = BINS,
    level: float = LEVEL,
) -> Measured:
    """Return every score with its bootstrap interval (Efron and Tibshirani 1993): faces are resampled with replacement.

    Intervals are percentiles of the resampled scores, but for ``ece``. A resampled face comes with copies of itself, so
    resampled calibration errors carry the chance error of finite bins twice and would lie above the measured one; their
    percentiles are therefore shifted by (measured - mean of the resampled), and cut off at 0. That interval is for the
    mean ``ece`` of test sets of this size; ``ece_if_calibrated`` is what remains of it without any miscalibration.
    Its bins are those of the measured data and stay fixed: cutting them anew for every draw gives nearly the same.

    Where all faces that count for accuracy or a rate are right, or none is, every resampled score is the same, which
    would be an interval of no width, however few they are. It is the exact one of Clopper and Pearson (1934) then.

    The faces of this data set are the only source of variation: a training with another seed varies more. Copies among
    the faces make intervals a little too narrow.

    Args:
        probabilities: see the module.
        targets: see the module.
        draws: resampled data sets.
        seed: the same seed and number of faces resample the same faces.
        bins: bins of equal mass of ``ece``.
        level: share of the resampled scores inside an interval.

    Raises:
        ValueError: ``draws`` or ``level`` is out of range.
    """
    if draws < 1 or not 0 < level < 1:
        raise ValueError(f"draws must be at least 1 and level inside (0, 1), not {draws} and {level}")
    table = _sums_table(probabilities, targets, bins)
    n = len(targets)
    rng = np.random.Generator(np.random.PCG64(seed))
    sums = np.empty((draws, table.shape[1]))
    for start in range(0, draws, _CHUNK):
        rows = min(_CHUNK, draws - start)
        picked = rng.integers(0, n, (rows, n))
        # Row r's faces are counted in the range r·n to (r + 1)·n: one bincount for the whole chunk.
        picked += np.arange(rows)[:, None] * n
        counts = np.bincount(picked.reshape(-1), minlength=rows * n).reshape(rows, n)
        sums[start : start + rows] = counts.astype(np.float64) @ table
    drawn = _scores(sums, np.full(draws, n))
    measured = _scores(table.sum(axis=0, keepdims=True), np.full(1, n))
    drawn["ece"] = np.maximum(drawn["ece"] + (measured["ece"][0] - drawn["ece"].mean()), 0)

    ends = ((1 - level) / 2, (1 + level) / 2)
    scores = {name: Interval(float(measured[name][0]), *_quantiles(drawn[name], ends)) for name in SCORES}
    scores["accuracy"] = _not_too_sure(scores["accuracy"], n, level)
    rates: dict[str, dict[str, Interval]] = {}
    confusion = confusion_matrix(probabilities, targets)
    for index, emotion in enumerate(EMOTIONS):
        faces, predicted = int(confusion[index].sum()), int(confusion[:, index].sum())
        # F1 = 2 J / (1 + J) with J, the share of right ones among the faces that are of the emotion or called so.
        of = {"precision": predicted, "recall": faces, "f1": faces + predicted - int(confusion[index, index])}
        rates[emotion] = {}
        for name in RATES:
            found = Interval(float(measured[name][0, index]), *_quantiles(drawn[name][:, index], ends))
            wider = _not_too_sure(found, of[name], level)
            if name == "f1" and wider != found:
                wider = Interval(wider.value, *(2 * share / (1 + share) for share in (wider.low, wider.high)))
            rates[emotion][name] = wider
    support = dict(zip(EMOTIONS, np.bincount(targets, minlength=NUM_EMOTIONS).tolist(), strict=True))
    return Measured(n, scores, rates, support, ece_if_calibrated(probabilities, bins=bins))


def compare(
    probabilities_a: Probabilities,
    probabilities_b: Probabilities,
    targets: Targets,
    *,
    draws: int = DRAWS,
    seed: int = 0,
    level: float = LEVEL,
) -> Comparison:
    """Compare two runs' predictions for the same faces, in the same order.

    A face is won, lost or neither, so resampling faces draws the number of each from a multinomial distribution: the
    paired bootstrap needs no loop. McNemar's test (1947) asks how often as unequal a division of the faces that one run
    alone gets right would come from a fair coin.
    """
    check(probabilities_a, targets)
    check(probabilities_b, targets)
    right_a, right_b = (p.argmax(axis=1) == targets for p in (probabilities_a, probabilities_b))
    n = len(targets)
    only_a, only_b = int((right_a & ~right_b).sum()), int((right_b & ~right_a).sum())
    rng = np.random.Generator(np.random.PCG64(seed))
    drawn = rng.multinomial(n, np.array([only_a, only_b, n - only_a - only_b]) / n, size=draws)
    low, high = _quantiles((drawn[:, 0] - drawn[:, 1]) / n, ((1 - level) / 2, (1 + level) / 2))
    either = only_a + only_b
    p_exact = float(binomtest(only_a, either).pvalue) if either else 1.0
    # The observed division counts half. At an equal one both tails hold it, but p_exact, cut off at 1, holds it once.
    p_mid = p_exact - float(binom.pmf(only_a, either, 0.5)) * (1 if only_a != only_b else 0.5) if either else 1.0
    return Comparison(
        n,
        float(right_a.mean()),
        float(right_b.mean()),
        Interval((only_a - only_b) / n, low, high),
        only_a,
        only_b,
        p_exact,
        p_mid,
    )


def holm(p_values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return p-values, (n,), adjusted for their number: the probability that any of n null hypotheses is rejected stays
    below the level that they are held against (Holm 1979, Scandinavian Journal of Statistics 6).
    """
    order = np.argsort(p_values, kind="stable")
    times = np.arange(len(p_values), 0, -1)
    adjusted = np.empty_like(p_values)
    adjusted[order] = np.minimum(1, np.maximum.accumulate(times * p_values[order]))
    return adjusted


def over_runs(scores: Sequence[Mapping[str, float]]) -> dict[str, MeanStd]:
    """Return mean and standard deviation over runs of every score that all of them have.

    Raises:
        ValueError: there are no runs.
    """
    if not scores:
        raise ValueError("there are no runs to average")
    shared = [name for name in scores[0] if all(name in other for other in scores)]
    result = {}
    for name in shared:
        values = np.array([float(other[name]) for other in scores])
        std = float(values.std(ddof=1)) if len(values) > 1 else math.nan
        result[name] = MeanStd(float(values.mean()), std, len(values))
    return result


# -- mistakes and labels ----------------------------------------------------------------------------------------------


def confused_pairs(confusion: npt.NDArray[np.int64]) -> pd.DataFrame:
    """Return target, predicted, faces and share (of the target's faces) of each kind of mistake, most faces first."""
    rows = [
        (EMOTIONS[i], EMOTIONS[j], int(confusion[i, j]), float(confusion[i, j] / confusion[i].sum()))
        for i in range(NUM_EMOTIONS)
        for j in range(NUM_EMOTIONS)
        if i != j and confusion[i, j]
    ]
    table = pd.DataFrame(rows, columns=["target", "predicted", "faces", "share"])
    return table.sort_values(["faces", "share"], ascending=False, kind="stable", ignore_index=True)


def confident_mistakes(probabilities: Probabilities, targets: Targets) -> npt.NDArray[np.int64]:
    """Return the rows of all wrong predictions, int64, the most confident first."""
    check(probabilities, targets)
    wrong = np.flatnonzero(probabilities.argmax(axis=1) != targets)
    return wrong[np.argsort(-probabilities[wrong].max(axis=1), kind="stable")].astype(np.int64)


def suspect_labels(probabilities: Probabilities, targets: Targets) -> npt.NDArray[np.int64]:
    """Return the rows whose label is probably wrong, int64, the most suspect first: confident learning.

    Northcutt et al. 2021 (J. Artif. Intell. Res. 70, arXiv:1911.00068). An emotion's threshold is its mean probability
    over the faces labelled with it. A face counts as every emotion whose threshold its probability reaches, the most
    probable of them if several. Faces that so count as another emotion than their label, and that the network also
    takes for another, are suspect; they are ranked by the probability of their label, lowest first.

    The probabilities must come from a network that was not trained on these faces: validation or test faces do.
    """
    check(probabilities, targets)
    own = probabilities[np.arange(len(targets)), targets]
    faces = np.bincount(targets, minlength=NUM_EMOTIONS)
    thresholds = np.full(NUM_EMOTIONS, np.inf)
    thresholds[faces > 0] = (np.bincount(targets, own, NUM_EMOTIONS) / np.maximum(faces, 1))[faces > 0]
    # Means of equal numbers may exceed them in the last digit; such a face does reach its threshold.
    reached = np.where(probabilities >= thresholds - 1e-6, probabilities, -1)
    counted_as = np.where(reached.max(axis=1) >= 0, reached.argmax(axis=1), targets)
    suspect = np.flatnonzero((counted_as != targets) & (probabilities.argmax(axis=1) != targets))
    return suspect[np.argsort(own[suspect], kind="stable")].astype(np.int64)


# -- sums over faces --------------------------------------------------------------------------------------------------


def _sums_table(probabilities: Probabilities, targets: Targets, bins: int) -> Probabilities:
    """Return (N, 49 + 2 + bins): each face's confusion cell, its NLL and squared error, its gap in its bin."""
    check(probabilities, targets)
    n = len(targets)
    rows = np.arange(n)
    table = np.zeros((n, NUM_EMOTIONS**2 + 2 + bins))
    table[rows, targets * NUM_EMOTIONS + probabilities.argmax(axis=1)] = 1
    table[:, NUM_EMOTIONS**2] = -np.log(np.clip(probabilities[rows, targets], _EPSILON, 1))
    one_hot = np.eye(NUM_EMOTIONS)[targets]
    table[:, NUM_EMOTIONS**2 + 1] = ((probabilities - one_hot) ** 2).sum(axis=1)
    table[:, NUM_EMOTIONS**2 + 2 :] = _gaps(probabilities, targets, bins, "mass")
    return table


def _scores(sums: Probabilities, faces: npt.NDArray[np.int64]) -> dict[str, Probabilities]:
    """Return each score as (D,) and each rate as (D, 7) from D rows of sums over so many ``faces``."""
    confusion = sums[:, : NUM_EMOTIONS**2].reshape(-1, NUM_EMOTIONS, NUM_EMOTIONS)
    rates = _rates(confusion)
    present = ~np.isnan(rates["recall"])
    emotions = present.sum(axis=1)
    return {
        **rates,
        "accuracy": np.trace(confusion, axis1=1, axis2=2) / faces,
        "balanced_accuracy": np.where(present, rates["recall"], 0).sum(axis=1) / emotions,
        "macro_f1": np.where(present, rates["f1"], 0).sum(axis=1) / emotions,
        "nll": sums[:, NUM_EMOTIONS**2] / faces,
        "brier": sums[:, NUM_EMOTIONS**2 + 1] / faces,
        "ece": np.abs(sums[:, NUM_EMOTIONS**2 + 2 :]).sum(axis=1) / faces,
    }


def _rates(confusion: Probabilities) -> dict[str, Probabilities]:
    """Return precision, recall and F1, each (D, 7), of D confusion matrices (D, 7, 7)."""
    hits = np.diagonal(confusion, axis1=1, axis2=2)
    faces, predicted = confusion.sum(axis=2), confusion.sum(axis=1)
    absent = np.where(faces > 0, 1.0, np.nan)
    return {
        "precision": hits / np.maximum(predicted, 1),
        "recall": hits / np.maximum(faces, 1) * absent,
        "f1": 2 * hits / np.maximum(faces + predicted, 1) * absent,
    }


def _gaps(probabilities: Probabilities, targets: Targets, bins: int, binning: Binning) -> Probabilities:
    """Return (N, bins): right (1 or 0) minus confidence in the column of each face's bin, 0 elsewhere."""
    confidence = probabilities.max(axis=1)
    gaps = np.zeros((len(targets), bins))
    right = probabilities.argmax(axis=1) == targets
    gaps[np.arange(len(targets)), _bin_index(confidence, bins, binning)] = right - confidence
    return gaps


def _bin_index(confidence: Probabilities, bins: int, binning: Binning) -> npt.NDArray[np.int64]:
    if bins < 1:
        raise ValueError(f"bins must be at least 1, not {bins}")
    inner = np.linspace(0, 1, bins + 1)[1:-1]
    if binning == "mass":
        # Edges that are confidences themselves: rounding cannot move a face to the next bin.
        inner = np.quantile(confidence, inner, method="lower")
    elif binning != "width":
        raise ValueError(f"binning must be mass or width, not {binning!r}")
    return np.searchsorted(inner, confidence).astype(np.int64)


def _not_too_sure(found: Interval, faces: int, level: float) -> Interval:
    """Return the exact interval where the resampled one has no width, because all of ``faces`` are right, or none."""
    if math.isnan(found.value) or found.value not in (0, 1):
        return found
    if not faces:
        # Nothing was called so: the precision may be anything.
        return Interval(found.value, 0.0, 1.0)
    exact = binomtest(round(found.value) * faces, faces).proportion_ci(level, method="exact")
    return Interval(found.value, float(exact.low), float(exact.high))


def _quantiles(values: Probabilities, ends: tuple[float, float]) -> tuple[float, float]:
    """Return two quantiles of the values that are numbers: a rare emotion may be missing from a draw."""
    numbers = values[~np.isnan(values)]
    if not numbers.size:
        return math.nan, math.nan
    low, high = np.quantile(numbers, ends)
    return float(low), float(high)


def _logs(probabilities: Probabilities) -> Probabilities:
    logs: Probabilities = np.log(np.clip(probabilities, np.finfo(np.float64).tiny, 1))
    return logs


def _log_softmax(logs: Probabilities) -> Probabilities:
    shifted = logs - logs.max(axis=1, keepdims=True)
    normal: Probabilities = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return normal
