"""Recipes and runs side by side: trained on the same faces, scored on the same faces, told apart honestly."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd

from fer_utils import evaluation, metrics, models
from fer_utils import recipe as recipes
from fer_utils.audit import audit
from fer_utils.evaluation import Evaluation, EvaluationError
from fer_utils.faces import Splits
from fer_utils.metrics import Comparison, MeanStd
from fer_utils.recipe import Recipe, RecipeError
from fer_utils.runs import Run
from fer_utils.training import TrainingError, check, fit

TARGET_ACCURACY: Final = 0.6
"""Validation accuracy of the column "minutes to 60%"."""

_HOW_IT_RAN: Final = ("name", "description", "seed", "compile", "val_fraction", "split_seed")
"""Fields of a recipe that do not tell one system from another; runs with another cut are not compared at all."""


@dataclass(frozen=True)
class Entry:
    """One system: runs of the same recipe that differ in their seed alone.

    Attributes:
        label: the recipe's name, with what was changed against its file.
        recipe: of the first run.
        runs, evaluations: one per seed.
        without_weights: its file asks for ImageNet weights, and it was trained from scratch in their place.
    """

    label: str
    recipe: Recipe
    runs: tuple[Run, ...]
    evaluations: tuple[Evaluation, ...]
    without_weights: bool

    @property
    def ranked(self) -> bool:
        """False where the recipe lacks the weights that it is about, or there was no validation part to rank it by."""
        return not self.without_weights and bool(np.isfinite(_validation_accuracy(self)))

    def over_seeds(self, name: str) -> dict[str, MeanStd]:
        """Return every score of a set of faces, single view, as mean and standard deviation over the seeds."""
        held = [
            {score: interval.value for score, interval in one.measured(name).scores.items()} for one in self.evaluations
        ]
        return metrics.over_runs(held)

    def histories(self) -> list[pd.DataFrame]:
        """Return the history of each run."""
        return [run.history() for run in self.runs]


def plan(
    names: str,
    seeds: str,
    *,
    overrides: Mapping[str, Any] | None = None,
    val_fraction: float | None = None,
    split_seed: int = 0,
    device: str | None = "auto",
    out: Path | None = None,
) -> list[Recipe]:
    """Return every recipe with every seed, to be trained; no face is read for it.

    Args:
        names: recipes, by name or path, with commas between.
        seeds: seeds of the trainings, whole numbers with commas between; the cut of the data is the same for all.
        overrides: fields that are put over every recipe (epochs, weights, train_faces ...).
        val_fraction: what the faces will be cut with, None where they come with their cut. It takes the place of a
            recipe's own, so that a run tells how to get its faces again.
        split_seed: of that cut.
        device: as ``training.fit`` takes it.
        out: directory of the runs; of a run that is there already it is told whether it holds another training.

    Raises:
        RecipeError: a recipe, a seed or an override is wrong, or two would be trained into one run.
        DeviceError, ModelError, RunError, TrainingError: as ``training.check`` tells them.
    """
    cut = {"val_fraction": "none" if val_fraction is None else val_fraction, "split_seed": split_seed}
    listed = [[part.strip() for part in text.split(",") if part.strip()] for text in (names, seeds)]
    wrong = [seed for seed in listed[1] if not seed.isdecimal()]
    if wrong:
        raise RecipeError(f"parameter seeds: expected whole numbers with commas between, as 0,1,2, not {wrong[0]!r}")
    wanted = [
        recipes.load(name, {**(overrides or {}), **cut, "seed": int(seed)}) for name in listed[0] for seed in listed[1]
    ]
    if not wanted:
        raise RecipeError("there is nothing to train: name at least one recipe and one seed")
    twice = [key for key, times in Counter((recipe.name, recipe.seed) for recipe in wanted).items() if times > 1]
    if twice:
        name, seed = twice[0]
        raise RecipeError(
            f"recipe {name} with seed {seed} is to be trained twice, into one run: name it once, or give recipes of "
            "different files different names"
        )
    for recipe in wanted:
        if recipe.epochs < 1:
            raise RecipeError(f"recipe {recipe.name} has epochs {recipe.epochs}: expected at least 1, to be compared")
        check(recipe, device=device, out=None if out is None else run_of(recipe, out))
    return wanted


def run_of(recipe: Recipe, out: Path) -> Path:
    """Return the directory in ``out`` that ``train`` trains a recipe in."""
    return out / f"{recipe.name}-seed{recipe.seed}"


def train(
    wanted: Sequence[Recipe], splits: Splits, out: Path, *, device: str = "auto", log: Callable[[str], None] = print
) -> list[Run]:
    """Train and evaluate every recipe, each into ``out/NAME-seedN``.

    A run that is there already is continued where it stood, or taken as it is when it is complete.

    Args:
        wanted: as ``plan`` gives them.
        splits: the faces, cut as was told there.
        out: directory of the runs.
        device: as ``training.fit`` takes it.
        log: takes lines of text for a person.

    Raises:
        MissingWeights: a recipe asks for ImageNet weights that cannot be had.
        RunError: a run in ``out`` is of another training.
        TrainingError: a training cannot go on, as when its loss is not finite; the message begins with whose it is.
    """
    done, audited = [], None
    for number, recipe in enumerate(wanted, start=1):
        run = Run.create(run_of(recipe, out))
        log(f"[{number}/{len(wanted)}] {recipe.name}, seed {recipe.seed}: {run.path}")
        try:
            fit(recipe, splits, run, device=device, log=log)
        except TrainingError as error:
            raise TrainingError(f"{recipe.name}, seed {recipe.seed}: {error}") from error
        if not evaluation.is_current(run):
            audited = audited or audit(splits)
            evaluation.evaluate(run, splits, device=device, audited=audited)
        done.append(run)
    return done


def gather(runs: Sequence[Run], splits: Splits) -> list[Entry]:
    """Group runs into systems, best first by mean validation accuracy, those without their weights last.

    The order comes from validation: test scores are reported and choose nothing.

    Raises:
        EvaluationError: a run has no evaluation, or one of other faces, or no history of its training; or it is named
            twice, or has the seed of another run of its system: it would be counted as one more.
        RunError: a run lacks its recipe or was written by another version.
    """
    if not runs:
        raise EvaluationError("there are no runs to compare: name some, or recipes to train")
    for run in runs:
        if not run.has("history.csv"):
            raise EvaluationError(
                f"{run.path} has no history.csv, as a model from the box, or put together from trained "
                "ones: how it trained cannot be compared. Leave it out; 04 tells its scores"
            )
    groups: dict[str, list[Run]] = {}
    for run in runs:
        same = run.recipe.model_dump_json(exclude=set(_HOW_IT_RAN))
        groups.setdefault(f"{run.recipe.name} {same}", []).append(run)
    entries = []
    for members in groups.values():
        recipe = members[0].recipe
        seeds: dict[int, Run] = {}
        for run in members:
            other = seeds.setdefault(run.recipe.seed, run)
            if other is not run:
                raise EvaluationError(
                    f"{other.path} and {run.path} are runs of {recipe.name} with the same seed, {run.recipe.seed}, and "
                    "would count as two seeds: name one of them"
                )
        label, without_weights = _label(recipe, [others[0].recipe for others in groups.values()])
        held = tuple(_evaluation(run, splits) for run in members)
        entries.append(Entry(label, recipe, tuple(members), held, without_weights))
    return sorted(entries, key=lambda entry: (not entry.ranked, -np.nan_to_num(_validation_accuracy(entry), nan=-1)))


def _evaluation(run: Run, splits: Splits) -> Evaluation:
    try:
        return evaluation.load_evaluation(run, splits)
    except EvaluationError as error:
        raise EvaluationError(
            f"run {run.path}: {error}. Runs that are compared need the same faces, val_fraction and split_seed"
        ) from error


def _label(recipe: Recipe, every: Sequence[Recipe]) -> tuple[str, bool]:
    """Return a name that tells the recipe from all others, and whether it lacks the ImageNet weights of its file.

    It holds what differs from the recipe's file or, for a recipe of one's own, from others of its name.
    """
    changed = recipes.changes(recipe)
    if changed is None:
        namesakes = [other.model_dump(mode="json") for other in every if other.name == recipe.name]
        mine = recipe.model_dump(mode="json")
        changed = {name: value for name, value in mine.items() if any(other[name] != value for other in namesakes)}
        lacks_weights = False
    else:
        lacks_weights = "weights" in changed and recipe.weights == "none"
    # All of an augmentation would be a label of four hundred letters.
    told = ", ".join(
        name if name == "augment" else f"{name} {value}" for name, value in changed.items() if name not in _HOW_IT_RAN
    )
    return recipe.name + (f" ({told})" if told else ""), lacks_weights


def _validation_accuracy(entry: Entry) -> float:
    """Mean over seeds of that of the networks that were kept; NaN where there was no validation part."""
    # Where the epoch was settled beforehand, training ended with it.
    settled = entry.recipe.keep_epoch is not None
    kept = [
        history["val_accuracy"].iloc[-1] if settled else history["val_accuracy"].max() for history in entry.histories()
    ]
    return float(np.mean(kept))


def table(entries: Sequence[Entry], part: str) -> pd.DataFrame:
    """Return one row for each system: scores as ``mean ± std`` in percent, size, arithmetic, speed.

    Columns: rank (by validation accuracy; ``–`` where not ranked), recipe, seeds, epochs, validation accuracy, accuracy
    and macro-F1 of all faces of ``part`` and of its clean ones, parameters, GMAC (10⁹ multiply-adds for one face),
    images/s (training, median), minutes per epoch, minutes to 60% validation accuracy.
    """
    rows: list[dict[str, Any]] = []
    rank = 0
    for entry in entries:
        rank += entry.ranked
        whole = entry.over_seeds(part)
        clean = entry.over_seeds(f"{part}_clean") if f"{part}_clean" in entry.evaluations[0].metrics["scores"] else {}
        histories = entry.histories()
        network = models.build(entry.recipe, pretrained=False)
        every = pd.concat(histories)
        rows.append(
            {
                "rank": str(rank) if entry.ranked else "–",
                "recipe": entry.label + (" †" if entry.without_weights else ""),
                "seeds": len(entry.runs),
                "epochs": max(len(history) for history in histories),
                "val accuracy": 100 * _validation_accuracy(entry),
                "accuracy": percent(whole["accuracy"]),
                "macro-F1": percent(whole["macro_f1"]),
                "clean accuracy": percent(clean["accuracy"]) if clean else "–",
                "clean macro-F1": percent(clean["macro_f1"]) if clean else "–",
                "parameters": models.count_parameters(network),
                "GMAC": models.multiply_adds(network, entry.recipe.channels, entry.recipe.image_size) / 1e9,
                "images/s": float(every["images_per_second"].median()),
                "min/epoch": float(every["train_seconds"].median()) / 60,
                "min to 60%": float(np.mean([minutes_to(history) for history in histories])),
            }
        )
    return pd.DataFrame(rows)


def percent(score: MeanStd) -> str:
    """Return a score in percent: ``65.4 ± 0.3``, or ``65.4`` for one run."""
    spread = f" ± {100 * score.std:.1f}" if score.runs > 1 else ""
    return f"{100 * score.mean:.1f}{spread}"


def minutes_to(history: pd.DataFrame, accuracy: float = TARGET_ACCURACY) -> float:
    """Return the minutes of training and validation until validation accuracy first reached ``accuracy``; else NaN."""
    reached = history[history["val_accuracy"] >= accuracy]
    return float(reached["total_seconds"].iloc[0]) / 60 if len(reached) else float("nan")


def recalls(entries: Sequence[Entry], part: str) -> pd.DataFrame:
    """Return recall by system (rows) and emotion (columns), mean over seeds, NaN where an emotion has no faces."""
    rows = {}
    for entry in entries:
        held = [one.measured(part).per_class for one in entry.evaluations]
        rows[entry.label] = {name: float(np.mean([rates[name]["recall"].value for rates in held])) for name in held[0]}
    return pd.DataFrame.from_dict(rows, orient="index")


def paired(entries: Sequence[Entry], part: str) -> pd.DataFrame:
    """Return the first runs of each pair of systems compared on the same faces.

    Columns: the pair, the difference in accuracy in percentage points with its paired bootstrap interval, the faces
    that one alone gets right, McNemar's mid-p and exact p-values, and the mid-p as Holm (1979) adjusts it for the
    number of pairs: the more are compared, the more often one of them differs by luck.
    """
    rows = []
    for index, a in enumerate(entries):
        for b in entries[index + 1 :]:
            found: Comparison = evaluation.compare(a.evaluations[0], b.evaluations[0], part)
            low, high = 100 * found.difference.low, 100 * found.difference.high
            rows.append(
                {
                    "A": a.label,
                    "B": b.label,
                    "A - B, points": f"{100 * found.difference.value:+.1f} [{low:+.1f}, {high:+.1f}]",
                    "only A right": found.only_a,
                    "only B right": found.only_b,
                    "exact p": found.p_exact,
                    "McNemar mid-p": found.p_mid,
                }
            )
    columns = ["A", "B", "A - B, points", "only A right", "only B right", "exact p", "McNemar mid-p"]
    table = pd.DataFrame(rows, columns=columns)
    table["mid-p, all pairs"] = metrics.holm(table["McNemar mid-p"].to_numpy(np.float64))
    return table


def disagreement(a: Entry, b: Entry, part: str) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Return the rows of ``part`` that only ``a``'s first run gets right, and those that only ``b``'s does.

    Most certain first: the faces at the top are those where the two are furthest apart.
    """
    one, other = a.evaluations[0], b.evaluations[0]
    targets = one.targets(part)
    first, second = one.probabilities(part), other.probabilities(part)
    right_a, right_b = first.argmax(1) == targets, second.argmax(1) == targets
    rows = np.arange(len(targets))
    gap = np.abs(first[rows, targets] - second[rows, targets])

    def ordered(mask: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        found = np.flatnonzero(mask)
        result: np.ndarray[Any, Any] = found[np.argsort(-gap[found], kind="stable")]
        return result

    return ordered(right_a & ~right_b), ordered(right_b & ~right_a)
