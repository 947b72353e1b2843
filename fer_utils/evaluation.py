"""A run and faces to a table of predictions and everything that can be said of it.

``evaluate`` lets the network of a run's best epoch see every validation and test face once and writes two files:

``predictions.parquet``
    A row per face: name, digest (of the pixels), split (``val`` or ``test``), target (-1 where unlabelled), clean,
    clean_near, where the test part holds both of the challenge's halves the half (``PublicTest``, ``PrivateTest``,
    nothing for validation faces), and a probability per emotion and view: ``p_angry`` ... for the face as it is,
    ``p_flip_angry`` ... and ``p_ten_crop_angry`` ... with test-time augmentation. Anything else can be recomputed.
``metrics.json``
    Scores with their intervals (``fer_utils.metrics``) under ``scores``, by set of faces and by view. The sets are the
    whole ``val`` and ``test``, their ``_clean`` faces without an exact copy among those that the training saw or chose
    by, and ``_clean_near`` without a near copy either; where there are both halves, those of each too.

Whatever is chosen, is chosen on validation faces: the epoch, unless ``keep_epoch`` settles it, and the temperature that
scales the probabilities of test faces. Test scores are reported and choose nothing.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, get_args

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from fer_utils import metrics, sources
from fer_utils.audit import Audit, audit
from fer_utils.checkpoint import load_model
from fer_utils.devices import choose_device, choose_precision
from fer_utils.emotions import EMOTIONS, UNLABELLED
from fer_utils.faces import HALVES, Faces, Images, Part, Splits
from fer_utils.files import replacing, sha256
from fer_utils.metrics import Comparison, Interval, Measured
from fer_utils.prediction import TTA, predict
from fer_utils.runs import SCHEMA_VERSION, Run, RunError, describe_data
from fer_utils.sources.reading import OnBad

_PLACES: Final = {"test": "test", "val": "validation", "public": HALVES[0], "private": HALVES[1]}
_FLAGS: Final = {"": "all", "clean": "clean", "clean_near": "no near copies"}
SETS: Final = tuple(f"{part}_{flag}".rstrip("_") for part in ("test", "val") for flag in _FLAGS)
HALF_SETS: Final = tuple(f"{half}_{flag}".rstrip("_") for half in ("public", "private") for flag in _FLAGS)
"""What there is besides where the test part holds both of the challenge's halves."""
_WITH_HALVES: Final = (*SETS[:3], *HALF_SETS, *SETS[3:])
SET_TITLES: Final = {
    name: f"{_PLACES[name.partition('_')[0]]}, {_FLAGS[name.partition('_')[2]]}" for name in _WITH_HALVES
}
VIEW_TITLES: Final[dict[TTA, str]] = {"none": "single view", "flip": "with its mirror image", "ten_crop": "ten crops"}

_PARTS: Final[tuple[Part, ...]] = ("val", "test")
_ABOUT: Final = ("name", "digest", "split", "target", "clean", "clean_near")


class EvaluationError(RuntimeError):
    """A run cannot be evaluated, or what is stored of its evaluation does not fit; the message says why."""


def columns(view: TTA = "none") -> list[str]:
    """Return the names of a view's seven columns of probabilities in ``predictions.parquet``."""
    return [f"p_{'' if view == 'none' else view + '_'}{emotion}" for emotion in EMOTIONS]


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What ``evaluate`` found.

    Attributes:
        predictions: the table of ``predictions.parquet``, in the order of the splits, validation first.
        metrics: what ``metrics.json`` holds.
    """

    predictions: pd.DataFrame
    metrics: dict[str, Any]

    @property
    def part(self) -> Part:
        """The part that scores are reported on: ``test``, or ``val`` where the test faces are unlabelled."""
        part: Part = self.metrics["part"]
        return part

    @property
    def headline_set(self) -> str | None:
        """The set of the one score to quote: the reported part's clean faces; None where nothing has a label."""
        name: str | None = self.metrics["headline"]["set"]
        return name

    @property
    def views(self) -> list[TTA]:
        """The views that were predicted, the single one first."""
        return list(self.metrics["views"])

    @property
    def note(self) -> str:
        """What a figure's title ends with: a warning on synthetic faces, nothing on real ones."""
        return " (synthetic faces)" if self.metrics["data"]["synthetic"] else ""

    def rows(self, name: str) -> pd.DataFrame:
        """Return the rows of a set, one of ``SETS`` or ``HALF_SETS``."""
        return _rows(self.predictions, name)

    def targets(self, name: str) -> npt.NDArray[np.int64]:
        """Return the targets of a set, int64 (N,)."""
        targets: npt.NDArray[np.int64] = self.rows(name)["target"].to_numpy(dtype=np.int64)
        return targets

    def probabilities(self, name: str, view: TTA = "none", *, scaled: bool = False) -> npt.NDArray[np.float64]:
        """Return the probabilities of a set, float64 (N, 7).

        Args:
            name: one of ``SETS`` or ``HALF_SETS``.
            view: which view.
            scaled: apply the temperature that was fitted on validation faces.

        Raises:
            EvaluationError: the view was not predicted, or there is no temperature.
        """
        if view not in self.views:
            raise EvaluationError(f"view {view!r} was not predicted, only {', '.join(self.views)}: evaluate with it")
        probabilities: npt.NDArray[np.float64] = self.rows(name)[columns(view)].to_numpy(dtype=np.float64)
        if not scaled:
            return probabilities
        temperature = self.metrics["temperature"].get(view)
        if temperature is None:
            raise EvaluationError(f"there is no temperature: {self.metrics['temperature_note']}")
        return metrics.scale(probabilities, temperature)

    def measured(self, name: str, view: TTA = "none") -> Measured:
        """Return the stored scores of a set, with their intervals."""
        held = self.metrics["scores"][name][view]
        return Measured(
            held["faces"],
            {score: _interval(held[score]) for score in metrics.SCORES},
            {
                emotion: {rate: _interval(held["per_class"][emotion][rate]) for rate in metrics.RATES}
                for emotion in EMOTIONS
            },
            {emotion: held["per_class"][emotion]["support"] for emotion in EMOTIONS},
            held["ece_if_calibrated"],
        )

    def faces(self, splits: Splits, name: str) -> Faces:
        """Return the faces of a set, in the order of its rows.

        Raises:
            EvaluationError: the predictions are not of these faces.
        """
        _check_faces(self.predictions, splits)
        part = _part(name)
        return splits[part].select(_chosen(self.rows(part), name))

    def table(self, name: str) -> pd.DataFrame:
        """Return a set's scores in words: a row per score, a column per view, each with its interval."""
        table = {}
        for view in self.views:
            held = self.metrics["scores"][name][view]
            scores = {score: _interval(held[score]) for score in metrics.SCORES}
            column = {
                "accuracy": scores["accuracy"].percent(2),
                "balanced accuracy": scores["balanced_accuracy"].percent(2),
                "macro-F1": scores["macro_f1"].number(),
                "loss (negative log-likelihood)": scores["nll"].number(),
                "Brier score": scores["brier"].number(),
                "calibration error (ECE)": scores["ece"].number(),
            }
            if held["scaled"] is not None:
                scaled = {score: _interval(held["scaled"][score]) for score in ("nll", "brier", "ece")}
                column["temperature"] = f"{self.metrics['temperature'][view]:.3f}"
                column["loss at that temperature"] = scaled["nll"].number()
                column["Brier score at that temperature"] = scaled["brier"].number()
                column["calibration error at that temperature"] = scaled["ece"].number()
            table[VIEW_TITLES[view]] = column
        return pd.DataFrame(table).rename_axis(f"{SET_TITLES[name]}: {self.metrics['faces'][name]:,} faces")

    def class_table(self, name: str, view: TTA = "none") -> pd.DataFrame:
        """Return the classification report in words: precision, recall, F1 with intervals, and faces per emotion."""
        measured = self.measured(name, view)
        rows = {
            emotion: {rate: measured.per_class[emotion][rate].percent() for rate in metrics.RATES}
            | {"faces": f"{measured.support[emotion]:,}"}
            for emotion in EMOTIONS
        }
        return pd.DataFrame.from_dict(rows, orient="index").rename(columns={"f1": "F1"}).rename_axis("emotion")

    def accuracies(self) -> dict[str, dict[str, Interval]]:
        """Return accuracy with its interval by titles of set and view, for ``plots.evaluation.accuracies``.

        A clean set that is the whole part over again is left out.
        """
        faces = self.metrics["faces"]
        return {
            SET_TITLES[name]: {VIEW_TITLES[view]: _interval(held["accuracy"]) for view, held in views.items()}
            for name, views in self.metrics["scores"].items()
            if name in _PLACES or faces[name] < faces[name.partition("_")[0]]
        }


# -- evaluating -------------------------------------------------------------------------------------------------------


def evaluate(
    run: Run,
    splits: Splits,
    *,
    part: Part | None = None,
    tta: Sequence[TTA] = ("none",),
    device: str = "auto",
    precision: str | None = None,
    draws: int = metrics.DRAWS,
    seed: int = 0,
    batch_size: int = 256,
    other_data: bool = False,
    audited: Audit | None = None,
) -> Evaluation:
    """Predict all validation and test faces with the network of the run's best epoch, score them, and store both.

    Args:
        run: with a ``best.ckpt``.
        splits: the faces, cut as they were for the training.
        part: ``test`` or ``val``, what scores are reported on; None is ``test``, or ``val`` where test is unlabelled.
        tta: views besides the single one, which is always there.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.
        precision: arithmetic of the network; None is the recipe's.
        draws: resampled data sets of the intervals.
        seed: seed of the resampling.
        batch_size: faces at once.
        other_data: evaluate on faces that the run was not trained on. What is clean then refers to the training part
            of ``splits``; copies of what the run saw are not known.
        audited: ``audit(splits)``, to spare its time where several runs are evaluated on the same faces.

    Raises:
        RunError: the run lacks a file or cannot be written to, or another version of the suite wrote it.
        CheckpointError: the checkpoint is missing, damaged, or of another schema or label order.
        EvaluationError: the faces are not those of the training, there are none, or a prediction is not finite.
    """
    views: list[TTA] = ["none", *(view for view in dict.fromkeys(tta) if view != "none")]
    for view in views:
        if view not in get_args(TTA):
            raise EvaluationError(f"view {view!r} is unknown; use {', '.join(get_args(TTA))}")
    if part is not None and part not in _PARTS:
        raise EvaluationError(f"part {part!r}: scores are reported on test or val; training faces are known by heart")
    if not os.access(run.path, os.W_OK):
        raise RunError(
            f"{run.path} cannot be written to, where the predictions are to be: copy the run, or change that"
        )
    same_data = _check_data(run, splits, other_data)
    parts = {name: splits[name] for name in _PARTS if len(splits[name])}
    if not parts or (part is not None and part not in parts):
        raise EvaluationError(
            f"there are no {part or 'validation or test'} faces in {splits.location or splits.source}"
        )

    where = choose_device(device)
    # Before it is read: what a training puts there meanwhile is another network.
    known = sha256(run.file("best.ckpt")) if run.has("best.ckpt") else None
    loaded = load_model(run, device=where)
    arithmetic = choose_precision(precision or loaded.recipe.precision, where)
    found = audited or audit(splits)
    tables = []
    for name, faces in parts.items():
        table = about_faces(splits, name, found)
        for view in views:
            probabilities = predict(
                loaded.model,
                loaded.preprocessing,
                faces.images,
                device=where,
                precision=arithmetic,
                batch_size=batch_size,
                tta=view,
            )
            if not np.isfinite(probabilities).all():
                raise EvaluationError(f"{run.path}: predictions are not finite in {arithmetic}; use precision float32")
            table[columns(view)] = probabilities
        tables.append(table)
    predictions = pd.concat(tables, ignore_index=True)
    _check_faces(predictions, splits)
    chosen = loaded.recipe.keep_epoch is None and loaded.recipe.epochs > 0
    values = {
        "run": run.path.resolve().name,
        "recipe": loaded.recipe.name,
        "checkpoint": {"file": "best.ckpt", "epoch": loaded.epoch, "sha256": known},
        "device": str(where),
        "precision": arithmetic,
        "data": {**describe_data(splits), "of_the_training": same_data},
        **measure(predictions, part, draws=draws, seed=seed, chosen=chosen),
    }
    _write_predictions(run, predictions, splits.fingerprint())
    run.write_json("metrics.json", {**values, "predictions_sha256": sha256(run.file("predictions.parquet"))})
    return Evaluation(predictions, run.read_json("metrics.json"))


def about_faces(splits: Splits, part: Part, audited: Audit) -> pd.DataFrame:
    """Return what ``predictions.parquet`` says of the faces of a part, a row each, before any network has seen them."""
    faces = splits[part]
    table = pd.DataFrame(
        {
            "name": faces.names.astype(str),
            "digest": faces.digests.astype(str),
            "split": part,
            "target": faces.targets,
            "clean": audited.clean[part],
            "clean_near": audited.clean_near[part],
        }
    )
    if splits.halves is not None:
        table["half"] = splits.halves if part == "test" else ""
    return table


def measure(
    predictions: pd.DataFrame,
    part: Part | None = None,
    *,
    draws: int = metrics.DRAWS,
    seed: int = 0,
    chosen: bool = True,
) -> dict[str, Any]:
    """Return everything in ``metrics.json`` that follows from the table of predictions alone; see ``evaluate``.

    Args:
        predictions: as ``predictions.parquet`` holds them.
        part: ``test`` or ``val``, what scores are reported on; None is ``test``, or ``val`` where test is unlabelled.
        draws: resampled data sets of the intervals.
        seed: seed of the resampling.
        chosen: the network's epoch was chosen on the validation faces.
    """
    views = [view for view in get_args(TTA) if set(columns(view)) <= set(predictions)]
    labelled = [name for name in _PARTS if _labelled(_rows(predictions, name))]
    temperature, temperature_note = {}, "fitted on validation faces by their negative log-likelihood"
    if "val" in labelled:
        val = _rows(predictions, "val")
        for view in views:
            temperature[view] = metrics.fit_temperature(val[columns(view)].to_numpy(), val["target"].to_numpy())
    else:
        temperature_note = "none was fitted, since there are no labelled validation faces"
    scores: dict[str, dict[str, Any]] = {}
    for name in _sets(predictions):
        rows = _rows(predictions, name)
        if _part(name) in labelled and len(rows):
            targets = rows["target"].to_numpy(dtype=np.int64)
            scores[name] = {
                view: _scored(rows[columns(view)].to_numpy(), targets, temperature.get(view), draws, seed)
                for view in views
            }
    reported: Part = part or ("val" if "test" not in labelled and "val" in labelled else "test")
    lacking = _lacking(_rows(predictions, "test")["target"].to_numpy())
    note = {
        "test": "" if reported in labelled else f"{lacking}: there are predictions but no scores",
        "val": "scores are of validation faces"
        + (", on which the epoch was chosen: they are a little too good" if chosen else ""),
    }[reported]
    if reported == "val" and "test" not in labelled:
        note = f"{lacking}, so {note}"
    quoted = next((name for name in (f"{reported}_clean", reported) if name in scores), None)
    return {
        "emotions": list(EMOTIONS),
        "part": reported,
        "note": note,
        "views": views,
        "faces": {name: len(_rows(predictions, name)) for name in _sets(predictions)},
        "bootstrap": {"draws": draws, "seed": seed, "level": metrics.LEVEL},
        "temperature": temperature,
        "temperature_note": temperature_note,
        "headline": {
            "set": quoted,
            "view": "none",
            "accuracy": scores[quoted]["none"]["accuracy"] if quoted else None,
        },
        "scores": scores,
    }


def _check_data(run: Run, splits: Splits, other_data: bool) -> bool:
    known = run.read_json("env.json")["data"]
    same = bool(known["fingerprint"] == splits.fingerprint())
    if not same and not other_data:
        raise EvaluationError(
            f"{run.path} was trained on other faces or another cut of them ({known['source']} {known['location']}, "
            f"fingerprint {known['fingerprint']}; these are {splits.source} {splits.location}, "
            f"{splits.fingerprint()}): some of these may have been trained on. Load the data with the recipe's "
            "val_fraction and split_seed, or evaluate with other_data=True if you mean it"
        )
    return same


def _scored(
    probabilities: npt.NDArray[np.float64],
    targets: npt.NDArray[np.int64],
    temperature: float | None,
    draws: int,
    seed: int,
) -> dict[str, Any]:
    """Return the scores of one set in one view as plain values for JSON."""
    held = metrics.bootstrap(probabilities, targets, draws=draws, seed=seed)
    values: dict[str, Any] = {"faces": held.faces}
    values |= {name: _plain(interval) for name, interval in held.scores.items()}
    values["ece_if_calibrated"] = held.ece_if_calibrated
    values["scaled"] = None
    if temperature is not None:
        scaled = metrics.bootstrap(metrics.scale(probabilities, temperature), targets, draws=draws, seed=seed)
        # Accuracy and what else follows from the most probable emotion stays as it is.
        values["scaled"] = {name: _plain(scaled.scores[name]) for name in ("nll", "brier", "ece")}
        values["scaled"]["ece_if_calibrated"] = scaled.ece_if_calibrated
    values["per_class"] = {
        emotion: {**{rate: _plain(held.per_class[emotion][rate]) for rate in metrics.RATES}, "support": support}
        for emotion, support in held.support.items()
    }
    values["confusion"] = metrics.confusion_matrix(probabilities, targets).tolist()
    return values


def data_of(run: Run) -> str:
    """Return what ``sources.load`` takes to read the data that a run was trained on."""
    return place_of(run.read_json("env.json")["data"])


def place_of(data: Mapping[str, Any]) -> str:
    """Return what ``sources.load`` takes to read the faces that ``runs.describe_data`` told of."""
    return str(data["source"] if data["source"] == "kaggle" else data["location"])


def faces_of(
    run: Run,
    data: str | None = None,
    *,
    val_fraction: float | None = None,
    split_seed: int | None = None,
    on_bad: OnBad | None = None,
) -> Splits:
    """Return the faces of a run's training, cut as they were: from ``data``, or from where the run says they were.

    Args:
        run: a trained run.
        data: as ``sources.load`` takes it; None is where the run's faces were.
        val_fraction: another share cut off for validation than in the training.
        split_seed: another seed of that cut.
        on_bad: ``raise`` or ``skip``; None passes over unreadable items where the training did.

    Raises:
        RunError: the run does not say what it was trained on.
        SourceError: the faces cannot be read there.
    """
    recipe, known = run.recipe, run.read_json("env.json")["data"]
    return sources.load(
        data or data_of(run),
        val_fraction=recipe.val_fraction if val_fraction is None else val_fraction,
        split_seed=recipe.split_seed if split_seed is None else split_seed,
        on_bad=on_bad or ("skip" if known["skipped"] else "raise"),
    )


# -- reading back -----------------------------------------------------------------------------------------------------


def load_evaluation(run: Run, splits: Splits | None = None) -> Evaluation:
    """Read what ``evaluate`` stored in a run, and check that it is whole and of the network that is there now.

    Args:
        run: an evaluated run.
        splits: if given, the predictions must be of exactly these validation and test faces.

    Raises:
        RunError: the run was not evaluated, or another version of the suite wrote it.
        EvaluationError: the predictions are unreadable, lack faces or hold others, or have another label order; or the
            run was trained further since.
    """
    if not run.has("metrics.json"):
        raise RunError(f"{run.path} has no metrics.json: evaluate it with 04_evaluate.ipynb")
    values = run.read_json("metrics.json")
    if values.get("emotions") != list(EMOTIONS):
        raise EvaluationError(
            f"{run.file('metrics.json')}: label order {values.get('emotions')} is not this version's {list(EMOTIONS)}"
        )
    predictions = _read_predictions(run)
    faces = {name: len(_rows(predictions, name)) for name in _sets(predictions)}
    if faces != values["faces"]:
        raise EvaluationError(
            f"{run.file('predictions.parquet')} holds {_counts(faces)} faces, but metrics.json is of "
            f"{_counts(values['faces'])}: evaluate the run again"
        )
    if reason := _outdated(run, values):
        raise EvaluationError(f"{run.path} {reason}: evaluate the run again")
    if splits is not None:
        _check_faces(predictions, splits)
    return Evaluation(predictions, values)


def is_current(run: Run) -> bool:
    """Return whether a run has an evaluation, and of the network that is its best now."""
    return run.has("metrics.json") and not _outdated(run, run.read_json("metrics.json"))


def _outdated(run: Run, values: Mapping[str, Any]) -> str:
    """Say why what is stored does not belong together; nothing where it does."""
    network, predictions = run.file("best.ckpt"), run.file("predictions.parquet")
    if not predictions.is_file() or values.get("predictions_sha256") != sha256(predictions):
        # An evaluation that was interrupted between its two files.
        return "has a metrics.json that is not of its predictions.parquet"
    # A run without its checkpoint, copied to be read, has nothing that its evaluation could contradict.
    if network.is_file() and values["checkpoint"].get("sha256") != sha256(network):
        return "has another network than when it was evaluated"
    return ""


def _write_predictions(run: Run, predictions: pd.DataFrame, fingerprint: str) -> None:
    table = pa.Table.from_pandas(predictions, preserve_index=False)
    about = {"schema_version": str(SCHEMA_VERSION), "emotions": ",".join(EMOTIONS), "fingerprint": fingerprint}
    with replacing(run.file("predictions.parquet")) as aside:
        pq.write_table(table.replace_schema_metadata({**(table.schema.metadata or {}), **about}), aside)


def _read_predictions(run: Run) -> pd.DataFrame:
    path = run.file("predictions.parquet")
    if not path.is_file():
        raise EvaluationError(f"{run.path} has no predictions.parquet: evaluate it with 04_evaluate.ipynb")
    try:
        table = pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise EvaluationError(f"{path} cannot be read as parquet: {error}") from error
    about = {key.decode(): value.decode() for key, value in (table.schema.metadata or {}).items()}
    if about.get("schema_version") != str(SCHEMA_VERSION):
        raise EvaluationError(
            f"{path} has schema version {about.get('schema_version')}, this suite reads {SCHEMA_VERSION}: evaluate the "
            "run again"
        )
    if about.get("emotions") != ",".join(EMOTIONS):
        raise EvaluationError(f"{path}: label order {about.get('emotions')} is not this version's {','.join(EMOTIONS)}")
    missing = [name for name in (*_ABOUT, *columns()) if name not in table.column_names]
    if missing:
        raise EvaluationError(f"{path} lacks the columns {', '.join(missing)}: evaluate the run again")
    predictions: pd.DataFrame = table.to_pandas()
    return predictions


def _check_faces(predictions: pd.DataFrame, splits: Splits) -> None:
    """Hold the predictions against the faces: each exactly once, in order, with its target."""
    for name in _PARTS:
        rows, faces = _rows(predictions, name), splits[name]
        expected = faces.digests.astype(str)
        held = rows["digest"].to_numpy(dtype=str)
        if len(held) != len(expected) or (held != expected).any():
            # Copies count each for itself.
            lacking = sum((Counter(expected.tolist()) - Counter(held.tolist())).values())
            raise EvaluationError(
                f"predictions are of other {name} faces, or in another order: {len(held):,} rows for {len(faces):,} "
                f"faces, {lacking:,} of them without a prediction of their own. Evaluate the run on this data"
            )
        if (rows["target"].to_numpy(dtype=np.int64) != faces.targets).any() and faces.labelled:
            raise EvaluationError(f"predictions hold other targets for the {name} faces: evaluate the run on this data")


# -- two runs, and what a face resembles ------------------------------------------------------------------------------


def compare(a: Evaluation, b: Evaluation, name: str, view: TTA = "none", *, seed: int = 0) -> Comparison:
    """Compare two evaluations on one set of faces; see ``metrics.compare``.

    Raises:
        EvaluationError: they are not of the same faces, or these have no labels.
    """
    rows_a, rows_b = a.rows(name), b.rows(name)
    same = len(rows_a) == len(rows_b) and all(
        (rows_a[key].to_numpy() == rows_b[key].to_numpy()).all() for key in ("digest", "target")
    )
    if not same:
        raise EvaluationError(
            f"the runs were evaluated on different faces ({SET_TITLES[name]}: {len(rows_a):,} and {len(rows_b):,}): a "
            "paired comparison needs the same; evaluate both on the same data and cut"
        )
    if not _labelled(rows_a):
        raise EvaluationError(f"there are no labelled faces in the set {SET_TITLES[name]!r}: nothing can be compared")
    return metrics.compare(a.probabilities(name, view), b.probabilities(name, view), a.targets(name), seed=seed)


def compare_views(found: Evaluation, name: str, view: TTA) -> Comparison:
    """Compare a view with the single one on the same faces; the difference is what the view adds."""
    single, targets = found.probabilities(name), found.targets(name)
    return metrics.compare(found.probabilities(name, view), single, targets)


def nearest_faces(queries: Images, gallery: Images) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Return for each query the index of the face in ``gallery`` most alike, int64 (Q,), and how much, float64 (Q,).

    Alike is the correlation of the pixels, -1 to 1, which light and contrast do not change; of the face as it is and
    its mirror image the better counts. A constant face correlates with nothing: 0.

    Args:
        queries: uint8 (Q, 48, 48).
        gallery: uint8 (N, 48, 48), at least one.
    """
    if not len(gallery):
        raise EvaluationError("there are no faces to compare with")
    wanted = np.concatenate([_standardised(queries), _standardised(queries[:, :, ::-1])])
    best = np.full(len(wanted), -math.inf, np.float32)
    where = np.zeros(len(wanted), np.int64)
    # 4,096 faces at a time are 38 MB as float32; all of FER2013's would be 260 MB.
    for start in range(0, len(gallery), 4096):
        alike = wanted @ _standardised(gallery[start : start + 4096]).T
        index = alike.argmax(axis=1)
        value = alike[np.arange(len(wanted)), index]
        better = value > best
        where[better], best[better] = start + index[better], value[better]
    mirrored = best[len(queries) :] > best[: len(queries)]
    chosen = np.arange(len(queries)) + len(queries) * mirrored
    return where[chosen], best[chosen].astype(np.float64)


def _standardised(images: Images) -> npt.NDArray[np.float32]:
    flat: npt.NDArray[np.float32] = images.reshape(len(images), -1).astype(np.float32)
    flat -= flat.mean(axis=1, keepdims=True)
    length = np.sqrt((flat * flat).sum(axis=1, keepdims=True))
    flat /= np.where(length > 1e-3, length, np.inf)
    return flat


# -- in words ---------------------------------------------------------------------------------------------------------


def headline(values: Mapping[str, Any]) -> list[str]:
    """Return what is to be known first of a ``metrics.json``, a line each: accuracy, clean and whole, calibration."""
    name, part = values["headline"]["set"], values["part"]
    if name is None:
        return [values["note"]]
    lines = list(_headline_lines(values, name, part))
    if values["data"]["synthetic"]:
        lines.append("synthetic faces: no number says anything about real ones")
    if not values["data"]["of_the_training"]:
        lines.append("these faces are not the data that the run was trained on: copies of what it saw are not known")
    return lines + ([values["note"]] if values["note"] else [])


def _headline_lines(values: Mapping[str, Any], name: str, part: str) -> Iterator[str]:
    held = values["scores"][name]["none"]
    accuracy = held["accuracy"]
    title = SET_TITLES[name]
    yield (
        f"accuracy {accuracy['value']:.2%} (95% interval {accuracy['low']:.2%} to {accuracy['high']:.2%}) on "
        f"{held['faces']:,} faces ({title})"
    )
    if name != part:
        whole = values["scores"][part]["none"]
        yield f"accuracy {whole['accuracy']['value']:.2%} on {whole['faces']:,} faces ({SET_TITLES[part]})"
    if part == "test" and HALF_SETS[0] in values["scores"]:
        halves = (values["scores"][half]["none"]["accuracy"]["value"] for half in ("public", "private"))
        yield "of them " + " and ".join(f"{value:.2%} of {half}" for half, value in zip(HALVES, halves, strict=True))
    balanced, macro_f1 = held["balanced_accuracy"]["value"], held["macro_f1"]["value"]
    yield f"balanced accuracy {balanced:.2%}, macro-F1 {macro_f1:.3f} ({title})"
    calibration, chance = f"calibration error {held['ece']['value']:.3f}", held["ece_if_calibrated"]
    if held["scaled"] is not None:
        chance = held["scaled"]["ece_if_calibrated"]
        calibration += f", {held['scaled']['ece']['value']:.3f} at temperature {values['temperature']['none']:.2f}"
    yield f"{calibration} ({title}; chance alone shows {chance:.3f})"


# -- small parts ------------------------------------------------------------------------------------------------------


def _sets(predictions: pd.DataFrame) -> tuple[str, ...]:
    """The sets that a table of predictions has, empty ones too."""
    return _WITH_HALVES if "half" in predictions else SETS


def _rows(predictions: pd.DataFrame, name: str) -> pd.DataFrame:
    if name not in (known := _sets(predictions)):
        raise KeyError(f"set {name!r} is none of {', '.join(known)}")
    return predictions[_chosen(predictions, name)]


def _chosen(rows: pd.DataFrame, name: str) -> npt.NDArray[np.bool_]:
    """Which rows a set has."""
    place, _, flag = name.partition("_")
    held = rows["split"] == place if place in _PARTS else rows["half"] == _PLACES[place]
    chosen: npt.NDArray[np.bool_] = (held & rows[flag] if flag else held).to_numpy(dtype=bool)
    return chosen


def _part(name: str) -> Part:
    """The part that a set's faces are of."""
    return "val" if name.startswith("val") else "test"


def _labelled(rows: pd.DataFrame) -> bool:
    return len(rows) > 0 and bool((rows["target"] != UNLABELLED).all())


def _lacking(targets: npt.NDArray[np.int64]) -> str:
    """Return why there are no scores of a test part with these targets, where there are none."""
    unlabelled = int((targets == UNLABELLED).sum())
    if not len(targets):
        return "there are no test faces"
    if unlabelled == len(targets):
        return "the test faces have no labels"
    return f"{unlabelled:,} of {len(targets):,} test faces have no label"


def _counts(faces: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in faces.items())


def _plain(interval: Interval) -> dict[str, float | None]:
    return {key: None if math.isnan(value) else float(value) for key, value in interval._asdict().items()}


def _interval(held: Mapping[str, float | None]) -> Interval:
    return Interval(*(math.nan if held[key] is None else float(held[key] or 0.0) for key in ("value", "low", "high")))
