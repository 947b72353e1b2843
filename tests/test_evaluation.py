"""Evaluation: every metric recomputed with scikit-learn from the stored table, and what is refused."""

import dataclasses
import hashlib
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import sklearn.metrics as reference
import torch

from fer_utils import checkpoint, evaluation, metrics, models
from fer_utils.audit import audit
from fer_utils.checkpoint import CheckpointError
from fer_utils.emotions import EMOTIONS
from fer_utils.evaluation import Evaluation, EvaluationError, columns, evaluate, load_evaluation
from fer_utils.faces import Faces, Splits
from fer_utils.files import sha256
from fer_utils.preprocessing import Preprocessing
from fer_utils.recipe import Recipe
from fer_utils.runs import Run, RunError
from fer_utils.sources import synthetic
from fer_utils.training import fit


def silent(_: str) -> None:
    pass


@pytest.fixture(scope="module")
def splits() -> Splits:
    return synthetic.generate(700, seed=3)


@pytest.fixture(scope="module")
def trained(splits: Splits, tiny_recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Run:
    run = Run.create(tmp_path_factory.mktemp("runs") / "trained")
    return fit(tiny_recipe.model_copy(update={"epochs": 2}), splits, run, device="cpu", log=silent)


@pytest.fixture(scope="module")
def found(trained: Run, splits: Splits) -> Evaluation:
    return evaluate(trained, splits, tta=("flip", "ten_crop"), device="cpu", precision="float32", draws=100)


@pytest.fixture
def run(trained: Run, splits: Splits, found: Evaluation, tmp_path: Path) -> Run:
    """A copy of the evaluated run that a test may damage."""
    copy = Run.create(tmp_path / "copy")
    for name in ("recipe.yaml", "env.json", "best.ckpt", "metrics.json", "predictions.parquet"):
        copy.file(name).write_bytes(trained.file(name).read_bytes())
    return copy


def without_labels(faces: Faces) -> Faces:
    return Faces(faces.images, np.full(len(faces), -1, np.int64), faces.names, faces.digests)


def rewrite(run: Run, change: dict[str, Any]) -> None:
    values = json.loads(run.file("metrics.json").read_text())
    run.file("metrics.json").write_text(json.dumps({**values, **change}))


def rewrite_table(run: Run, table: pd.DataFrame | None = None, **about: str) -> None:
    """Store other rows, or other metadata."""
    held = pq.read_table(run.file("predictions.parquet"))
    metadata = {**held.schema.metadata, **{key.encode(): value.encode() for key, value in about.items()}}
    if table is not None:
        held = type(held).from_pandas(table, preserve_index=False)
    pq.write_table(held.replace_schema_metadata(metadata), run.file("predictions.parquet"))


# -- both halves of the challenge ------------------------------------------------------------------------------------


def test_each_half_of_the_challenge_has_scores_of_its_own(trained: Run, splits: Splits, tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run")
    for name in ("recipe.yaml", "env.json", "best.ckpt"):
        run.file(name).write_bytes(trained.file(name).read_bytes())
    halves = np.where(np.arange(len(splits.test)) % 3 == 0, "PublicTest", "PrivateTest")
    both = dataclasses.replace(splits, halves=halves)
    found = evaluate(run, both, device="cpu", precision="float32", draws=50)
    assert list(found.metrics["scores"])[:6] == [
        "test", "test_clean", "test_clean_near", "public", "public_clean", "public_clean_near",
    ]  # fmt: skip
    assert found.headline_set == "test_clean"
    test = found.predictions[found.predictions["split"] == "test"]
    right = test[columns()].to_numpy().argmax(axis=1) == test["target"].to_numpy()
    for name, half in (("public", "PublicTest"), ("private", "PrivateTest")):
        chosen = halves == half
        assert found.metrics["faces"][name] == chosen.sum()
        assert found.measured(name).scores["accuracy"].value == pytest.approx(right[chosen].mean())
        clean = chosen & test["clean"].to_numpy()
        assert found.measured(f"{name}_clean").scores["accuracy"].value == pytest.approx(right[clean].mean())
        assert (found.faces(both, f"{name}_clean").digests == splits.test.digests[clean]).all()
        assert f"{half}, all" in found.accuracies()
        assert f"{right[chosen].mean():.2%} of {half}" in " ".join(evaluation.headline(found.metrics))
    assert (found.rows("val")["half"] == "").all()
    again = load_evaluation(run, both)
    pd.testing.assert_frame_equal(again.predictions, found.predictions)
    assert again.metrics == found.metrics


def test_a_test_part_that_is_no_two_halves_has_no_such_sets(found: Evaluation) -> None:
    assert "half" not in found.predictions
    with pytest.raises(KeyError, match="public"):
        found.rows("public")


# -- what is stored ---------------------------------------------------------------------------------------------------


def test_every_face_is_predicted_once_in_order(trained: Run, splits: Splits, found: Evaluation) -> None:
    table = pd.read_parquet(trained.file("predictions.parquet"))
    pd.testing.assert_frame_equal(table, found.predictions)
    assert list(table.columns[:6]) == ["name", "digest", "split", "target", "clean", "clean_near"]
    assert len(table) == len(splits.val) + len(splits.test)
    for part, faces in (("val", splits.val), ("test", splits.test)):
        rows = table[table["split"] == part]
        assert rows["name"].tolist() == faces.names.tolist()
        assert rows["digest"].tolist() == faces.digests.astype(str).tolist()
        assert rows["target"].tolist() == faces.targets.tolist()
    for view in ("none", "flip", "ten_crop"):
        probabilities = table[columns(view)].to_numpy()
        assert probabilities.dtype == np.float64
        np.testing.assert_allclose(probabilities.sum(axis=1), 1)
    assert not np.allclose(table[columns("none")], table[columns("flip")])


def test_clean_faces_have_no_copy_among_those_seen_before(splits: Splits, found: Evaluation) -> None:
    table = found.predictions
    for part, seen in (("test", [splits.train, splits.val]), ("val", [splits.train])):
        known = set(np.concatenate([faces.digests for faces in seen]).astype(str))
        rows = table[table["split"] == part]
        copied = rows["digest"].isin(known)
        assert (rows["clean"] == ~copied).all()
        assert (rows["clean"] | ~rows["clean_near"]).all()  # a near copy's set is the smaller one
    audited = audit(splits)
    for part in ("val", "test"):
        assert (found.rows(part)["clean_near"] == audited.clean_near[part]).all()
    assert (table["clean"] & ~table["clean_near"]).any()  # mirrored copies are planted too
    assert 0 < (~found.rows("test")["clean"]).sum() < len(splits.test) / 4  # the generator plants copies


def test_every_metric_can_be_recomputed_with_sklearn(trained: Run) -> None:
    table = pd.read_parquet(trained.file("predictions.parquet"))
    stored = trained.read_json("metrics.json")["scores"]
    assert set(stored) == set(evaluation.SETS)
    for name, views in stored.items():
        part, _, flag = name.partition("_")
        rows = table[(table["split"] == part) & (table[flag] if flag else True)]
        targets = rows["target"].to_numpy()
        present = sorted(set(targets))
        assert set(views) == {"none", "flip", "ten_crop"}
        for view, held in views.items():
            prefix = "p_" if view == "none" else f"p_{view}_"
            probabilities = rows[[prefix + emotion for emotion in EMOTIONS]].to_numpy()
            predicted = probabilities.argmax(axis=1)
            assert held["faces"] == len(rows)
            expected = {
                "accuracy": reference.accuracy_score(targets, predicted),
                "balanced_accuracy": reference.recall_score(targets, predicted, labels=present, average="macro"),
                "macro_f1": reference.f1_score(targets, predicted, labels=present, average="macro", zero_division=0),
                "nll": reference.log_loss(targets, probabilities, labels=range(7)),
                "brier": reference.brier_score_loss(targets, probabilities, labels=range(7), scale_by_half=False),
                "ece": by_hand(probabilities, targets),
            }
            for score, value in expected.items():
                assert held[score]["value"] == pytest.approx(value, abs=1e-9), (name, view, score)
                assert held[score]["low"] <= held[score]["value"] <= held[score]["high"]
            confusion = reference.confusion_matrix(targets, predicted, labels=range(7))
            assert held["confusion"] == confusion.tolist()
            rates = reference.precision_recall_fscore_support(targets, predicted, labels=range(7), zero_division=0)
            for index, emotion in enumerate(EMOTIONS):
                told = held["per_class"][emotion]
                assert told["support"] == rates[3][index]
                for rate, values in zip(("precision", "recall", "f1"), rates, strict=False):
                    if told["support"]:
                        assert told[rate]["value"] == pytest.approx(values[index], abs=1e-9)
                    elif rate != "precision":
                        assert told[rate]["value"] is None


def by_hand(probabilities: np.ndarray, targets: np.ndarray) -> float:
    """Calibration error with 15 bins of equal mass, written another way."""
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == targets
    edges = np.sort(confidence)[[int((len(confidence) - 1) * k / 15 + 1e-9) for k in range(1, 15)]]
    error = 0.0
    for low, high in zip([-1.0, *edges], [*edges, 1.0], strict=True):
        inside = (confidence > low) & (confidence <= high)
        if inside.any():
            error += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    return error


def test_the_temperature_comes_from_validation_faces_alone(found: Evaluation) -> None:
    table = found.predictions
    shuffled = table.copy()
    rows = shuffled["split"] == "test"
    shuffled.loc[rows, "target"] = np.random.default_rng(0).permutation(shuffled.loc[rows, "target"].to_numpy())
    again = evaluation.measure(shuffled, draws=10)
    assert again["temperature"] == found.metrics["temperature"]
    assert again["scores"]["test"]["none"]["accuracy"] != found.metrics["scores"]["test"]["none"]["accuracy"]
    for view in found.views:
        held = found.metrics["scores"]["val"][view]
        assert held["scaled"]["nll"]["value"] <= held["nll"]["value"]
        scaled = found.probabilities("test", view, scaled=True)
        expected = reference.log_loss(found.targets("test"), scaled, labels=range(7))
        told = found.metrics["scores"]["test"][view]["scaled"]["nll"]["value"]
        assert told == pytest.approx(expected)
        np.testing.assert_array_equal(scaled.argmax(axis=1), found.probabilities("test", view).argmax(axis=1))


def test_predictions_are_those_of_the_best_epoch(trained: Run, splits: Splits, found: Evaluation) -> None:
    loaded = checkpoint.load_model(trained)
    with torch.inference_mode():
        logits = loaded.model(loaded.preprocessing(torch.from_numpy(splits.test.images)))
    np.testing.assert_allclose(found.probabilities("test"), logits.softmax(dim=1).numpy(), atol=1e-5)
    digest = hashlib.sha256(trained.file("best.ckpt").read_bytes()).hexdigest()
    assert found.metrics["checkpoint"] == {"file": "best.ckpt", "epoch": loaded.epoch, "sha256": digest}


def test_what_is_read_back_is_what_was_found(trained: Run, splits: Splits, found: Evaluation) -> None:
    again = load_evaluation(trained, splits)
    pd.testing.assert_frame_equal(again.predictions, found.predictions)
    assert again.metrics == found.metrics
    assert (again.part, again.headline_set, again.views) == ("test", "test_clean", ["none", "flip", "ten_crop"])
    measured = again.measured("test_clean", "flip")
    direct = metrics.bootstrap(
        again.probabilities("test_clean", "flip"), again.targets("test_clean"), draws=100, seed=0
    )
    assert measured.scores == direct.scores
    assert measured.support == direct.support
    assert again.accuracies()["test, clean"]["single view"] == again.measured("test_clean").scores["accuracy"]
    assert again.note == " (synthetic faces)"
    told = again.table("test_clean")
    assert list(told.columns) == ["single view", "with its mirror image", "ten crops"]
    assert told.loc["accuracy", "single view"] == again.measured("test_clean").scores["accuracy"].percent(2)
    assert again.class_table("test").loc["happy", "faces"] == str((again.targets("test") == 3).sum())
    clean = again.faces(splits, "test_clean")
    assert (clean.targets == again.targets("test_clean")).all()
    assert (clean.digests.astype(str) == again.rows("test_clean")["digest"]).all()


def test_evaluating_again_gives_the_same(trained: Run, splits: Splits, found: Evaluation, tmp_path: Path) -> None:
    copy = Run.create(tmp_path / "again")
    for name in ("recipe.yaml", "env.json", "best.ckpt"):
        copy.file(name).write_bytes(trained.file(name).read_bytes())
    again = evaluate(copy, splits, device="cpu", precision="float32", draws=100)
    # Other batches go through the network with test-time augmentation only: the single view is the same.
    np.testing.assert_array_equal(again.probabilities("test"), found.probabilities("test"))
    assert again.metrics["scores"]["test"]["none"] == found.metrics["scores"]["test"]["none"]
    assert again.views == ["none"]
    assert not list(copy.path.glob(".*")), "nothing half-written is left"


# -- parts without labels or faces ------------------------------------------------------------------------------------


def test_unlabelled_test_faces_get_predictions_and_validation_the_scores(
    trained: Run, splits: Splits, run: Run, found: Evaluation
) -> None:
    unlabelled = dataclasses.replace(splits, test=without_labels(splits.test))
    result = evaluate(run, unlabelled, device="cpu", precision="float32", draws=20)
    np.testing.assert_array_equal(result.probabilities("test"), found.probabilities("test"))
    assert (result.rows("test")["target"] == -1).all()
    assert set(result.metrics["scores"]) == {"val", "val_clean", "val_clean_near"}
    assert (result.part, result.headline_set) == ("val", "val_clean")
    assert "no labels" in result.metrics["note"]
    assert any("no labels" in line for line in evaluation.headline(result.metrics))
    load_evaluation(run, unlabelled)

    forced = evaluate(run, unlabelled, part="test", device="cpu", precision="float32", draws=20)
    assert (forced.part, forced.headline_set) == ("test", None)
    assert forced.metrics["headline"]["accuracy"] is None
    assert evaluation.headline(forced.metrics) == ["the test faces have no labels: there are predictions but no scores"]


def test_a_few_test_faces_without_a_label_are_counted(run: Run, splits: Splits) -> None:
    targets = splits.test.targets.copy()
    targets[[2, 5]] = -1
    partly = dataclasses.replace(splits, test=dataclasses.replace(splits.test, targets=targets))
    result = evaluate(run, partly, device="cpu", precision="float32", draws=20)
    assert result.metrics["note"].startswith(f"2 of {len(targets):,} test faces have no label, so scores are of val")


def test_scores_of_validation_on_request(run: Run, splits: Splits) -> None:
    result = evaluate(run, splits, part="val", device="cpu", draws=20)
    assert (result.part, result.headline_set) == ("val", "val_clean")
    assert "too good" in result.metrics["note"]


def test_without_validation_faces_there_is_no_temperature(splits: Splits, tiny_recipe: Recipe, tmp_path: Path) -> None:
    whole = dataclasses.replace(splits, train=Faces.concatenate([splits.train, splits.val]), val=Faces.empty())
    recipe = tiny_recipe.model_copy(update={"val_fraction": 0.0})
    run = fit(recipe, whole, Run.create(tmp_path / "whole"), device="cpu", log=silent)
    result = evaluate(run, whole, device="cpu", draws=20)
    assert set(result.metrics["scores"]) == {"test", "test_clean", "test_clean_near"}
    assert result.metrics["temperature"] == {}
    assert result.metrics["scores"]["test"]["none"]["scaled"] is None
    with pytest.raises(EvaluationError, match="no labelled validation faces"):
        result.probabilities("test", scaled=True)
    assert any("calibration" in line for line in evaluation.headline(result.metrics))


def test_a_clean_set_that_is_the_whole_is_drawn_once(found: Evaluation) -> None:
    assert len(found.accuracies()) == 6
    spotless = found.predictions.assign(clean=True, clean_near=True)
    again = Evaluation(spotless, {**found.metrics, **evaluation.measure(spotless, draws=10)})
    assert list(again.accuracies()) == ["test, all", "validation, all"]
    assert again.headline_set == "test_clean"


@pytest.mark.parametrize(
    ("source", "location", "told"),
    [
        ("synthetic", "synthetic:300", "synthetic:300"),
        ("folder", "some/where", "some/where"),
        ("kaggle", "msambare/fer2013/versions/1", "kaggle"),
    ],
)
def test_the_data_of_a_run_can_be_loaded_again(tmp_path: Path, source: str, location: str, told: str) -> None:
    run = Run.create(tmp_path / "run")
    run.write_json("env.json", {"data": {"source": source, "location": location}})
    assert evaluation.data_of(run) == told


def test_an_emotion_without_faces_is_stored_as_null(found: Evaluation) -> None:
    table = found.predictions.copy()
    table.loc[table["target"] == 1, "target"] = 0
    held = evaluation.measure(table, draws=10)["scores"]["test"]["none"]["per_class"]["disgust"]
    assert held["support"] == 0
    assert held["recall"] == {"value": None, "low": None, "high": None}
    json.dumps(held, allow_nan=False)


# -- what is refused --------------------------------------------------------------------------------------------------


def test_other_faces_than_those_of_the_training_are_refused_unless_meant(run: Run, splits: Splits) -> None:
    other = synthetic.generate(400, seed=9)
    with pytest.raises(EvaluationError, match="trained on other faces or another cut"):
        evaluate(run, other, device="cpu")
    assert load_evaluation(run, splits).metrics["data"]["of_the_training"]  # the older one is untouched
    meant = evaluate(run, other, device="cpu", draws=20, other_data=True)
    assert not meant.metrics["data"]["of_the_training"]
    assert any("not the data that the run was trained on" in line for line in evaluation.headline(meant.metrics))


def test_a_run_without_a_checkpoint_is_refused(run: Run, splits: Splits) -> None:
    run.file("best.ckpt").unlink()
    with pytest.raises(CheckpointError, match=r"best\.ckpt: there is no such checkpoint"):
        evaluate(run, splits, device="cpu")


def test_a_run_without_its_environment_is_refused(run: Run, splits: Splits) -> None:
    run.file("env.json").unlink()
    with pytest.raises(RunError, match=r"has no env\.json"):
        evaluate(run, splits, device="cpu")


def test_a_network_of_another_label_order_is_refused(run: Run, splits: Splits, tiny_recipe: Recipe) -> None:
    preprocessing = Preprocessing.of(tiny_recipe, splits.train)
    state = checkpoint.model_state(models.build(tiny_recipe), preprocessing, tiny_recipe, 1)
    state["preprocessing"]["emotions"] = state["preprocessing"]["emotions"][::-1]
    checkpoint.save(run.file("best.ckpt"), state)
    with pytest.raises(CheckpointError, match="label order"):
        evaluate(run, splits, device="cpu")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [({"part": "train"}, "part 'train'"), ({"tta": ("five_crop",)}, "view 'five_crop' is unknown; use none, flip")],
)
def test_impossible_wishes_are_refused(run: Run, splits: Splits, wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(EvaluationError, match=message):
        evaluate(run, splits, device="cpu", **wrong)


def test_no_faces_to_evaluate_are_refused(run: Run, splits: Splits) -> None:
    nobody = dataclasses.replace(splits, test=Faces.empty())
    with pytest.raises(EvaluationError, match="there are no test faces"):
        evaluate(run, nobody, part="test", device="cpu")


def test_a_network_that_gives_nan_is_refused(run: Run, splits: Splits, tiny_recipe: Recipe) -> None:
    model = models.build(tiny_recipe)
    with torch.no_grad():
        next(model.parameters()).fill_(math.nan)
    preprocessing = Preprocessing.of(tiny_recipe, splits.train)
    checkpoint.save(run.file("best.ckpt"), checkpoint.model_state(model, preprocessing, tiny_recipe, 1))
    before = run.file("predictions.parquet").read_bytes()
    with pytest.raises(EvaluationError, match="not finite"):
        evaluate(run, splits, device="cpu")
    assert run.file("predictions.parquet").read_bytes() == before


def test_an_evaluation_of_another_schema_or_label_order_is_refused(run: Run) -> None:
    rewrite(run, {"schema_version": 99})
    with pytest.raises(RunError, match="schema version 99"):
        load_evaluation(run)
    rewrite(run, {"schema_version": 1, "emotions": list(EMOTIONS)[::-1]})
    with pytest.raises(EvaluationError, match="label order"):
        load_evaluation(run)


def test_predictions_of_another_schema_or_label_order_are_refused(run: Run) -> None:
    rewrite_table(run, schema_version="0")
    with pytest.raises(EvaluationError, match="schema version 0, this suite reads 1"):
        load_evaluation(run)
    rewrite_table(run, schema_version="1", emotions="sad,angry")
    with pytest.raises(EvaluationError, match="label order sad,angry"):
        load_evaluation(run)


def test_predictions_that_are_missing_or_broken_are_refused(run: Run) -> None:
    content = run.file("predictions.parquet").read_bytes()
    run.file("predictions.parquet").write_bytes(content[: len(content) // 2])
    with pytest.raises(EvaluationError, match="cannot be read as parquet"):
        load_evaluation(run)
    run.file("predictions.parquet").unlink()
    with pytest.raises(EvaluationError, match=r"has no predictions\.parquet"):
        load_evaluation(run)
    run.file("metrics.json").unlink()
    with pytest.raises(RunError, match=r"has no metrics\.json: evaluate it"):
        load_evaluation(run)


def test_predictions_that_lack_faces_or_columns_are_refused(run: Run, splits: Splits) -> None:
    table = pd.read_parquet(run.file("predictions.parquet"))
    rewrite_table(run, table.drop(columns="p_sad"))
    with pytest.raises(EvaluationError, match="lacks the columns p_sad"):
        load_evaluation(run)
    rewrite_table(run, table.iloc[:-3])
    with pytest.raises(EvaluationError, match="evaluate the run again"):
        load_evaluation(run)


def test_an_evaluation_of_another_network_is_refused(run: Run, splits: Splits, tiny_recipe: Recipe) -> None:
    assert evaluation.is_current(run)
    model = models.build(tiny_recipe)
    preprocessing = Preprocessing.of(tiny_recipe, splits.train)
    checkpoint.save(run.file("best.ckpt"), checkpoint.model_state(model, preprocessing, tiny_recipe, 3))
    assert not evaluation.is_current(run)
    with pytest.raises(EvaluationError, match="another network than when it was evaluated: evaluate the run again"):
        load_evaluation(run, splits)
    run.file("best.ckpt").unlink()
    load_evaluation(run, splits)  # a run that was copied to be read


def test_half_an_evaluation_is_refused(run: Run) -> None:
    # Interrupted between its two files: the rows are as many as before, and other numbers.
    table = pd.read_parquet(run.file("predictions.parquet"))
    table[columns()] = table[columns()].to_numpy()[:, ::-1]
    rewrite_table(run, table)
    assert not evaluation.is_current(run)
    with pytest.raises(EvaluationError, match=r"metrics\.json that is not of its predictions\.parquet"):
        load_evaluation(run)


def test_predictions_of_other_faces_or_targets_are_refused(run: Run, splits: Splits) -> None:
    table = pd.read_parquet(run.file("predictions.parquet"))
    swapped = table.copy()
    swapped.loc[swapped.index[-1], "digest"] = "0" * 32
    rewrite_table(run, swapped)
    rewrite(run, {"predictions_sha256": sha256(run.file("predictions.parquet"))})
    load_evaluation(run)  # alone it cannot be told
    with pytest.raises(EvaluationError, match=r"other test faces, .* 1 of them without"):
        load_evaluation(run, splits)
    relabelled = table.copy()
    relabelled.loc[0, "target"] = (relabelled.loc[0, "target"] + 1) % 7
    rewrite_table(run, relabelled)
    rewrite(run, {"predictions_sha256": sha256(run.file("predictions.parquet"))})
    with pytest.raises(EvaluationError, match="other targets for the val faces"):
        load_evaluation(run, splits)


# -- comparison and neighbours ----------------------------------------------------------------------------------------


def test_two_runs_are_compared_face_by_face(found: Evaluation) -> None:
    worse = found.predictions.copy()
    rows = worse.index[worse["split"] == "test"][:40]
    worse.loc[rows, columns()] = np.roll(worse.loc[rows, columns()].to_numpy(), 1, axis=1)
    other = Evaluation(worse, found.metrics)
    result = evaluation.compare(found, other, "test")
    expected = reference.accuracy_score(found.targets("test"), found.probabilities("test").argmax(axis=1))
    assert result.accuracy_a == pytest.approx(expected)
    assert result.difference.value == pytest.approx(
        expected - metrics.accuracy(other.probabilities("test"), other.targets("test"))
    )
    assert result.only_a + result.only_b <= 40


def test_a_view_is_compared_with_the_single_one(found: Evaluation) -> None:
    gain = evaluation.compare_views(found, "test", "flip")
    flipped = metrics.accuracy(found.probabilities("test", "flip"), found.targets("test"))
    assert gain.accuracy_a == pytest.approx(flipped)
    assert gain.difference.value == pytest.approx(flipped - found.measured("test").scores["accuracy"].value)


def test_runs_on_different_faces_cannot_be_compared(found: Evaluation) -> None:
    fewer = Evaluation(found.predictions.iloc[:-1], found.metrics)
    with pytest.raises(EvaluationError, match="different faces"):
        evaluation.compare(found, fewer, "test")
    blind = found.predictions.assign(target=-1)
    with pytest.raises(EvaluationError, match="no labelled faces"):
        evaluation.compare(Evaluation(blind, found.metrics), Evaluation(blind, found.metrics), "test")
    single = Evaluation(found.predictions, {**found.metrics, "views": ["none"]})
    with pytest.raises(EvaluationError, match="view 'flip' was not predicted"):
        evaluation.compare(single, single, "test", "flip")


def test_the_nearest_face_is_the_one_most_correlated(splits: Splits) -> None:
    gallery = splits.train.images[:200]
    gallery = gallery[gallery.std(axis=(1, 2)) > 0]  # a blank face correlates with nothing
    queries = np.stack(
        [gallery[17], gallery[30][:, ::-1], (gallery[5] // 2 + 60).astype(np.uint8), splits.test.images[0]]
    )
    index, alike = evaluation.nearest_faces(queries, gallery)
    # A copy, a mirror image, and a face in other light, which correlates all but perfectly.
    assert (gallery[index[0]] == queries[0]).all()
    assert (gallery[index[1]][:, ::-1] == queries[1]).all()
    assert index[2] == 5
    assert alike[:2] == pytest.approx(1, abs=1e-5)
    assert alike[2] > 0.99
    both = [
        max(np.corrcoef(view.ravel(), face.ravel())[0, 1] for view in (queries[3], queries[3][:, ::-1]))
        for face in gallery
    ]
    assert index[3] == np.argmax(both)
    assert alike[3] == pytest.approx(max(both), abs=1e-5)


def test_a_blank_face_is_like_nothing(splits: Splits) -> None:
    _, alike = evaluation.nearest_faces(np.full((1, 48, 48), 7, np.uint8), splits.train.images[:10])
    assert alike[0] == 0
    with pytest.raises(EvaluationError, match="no faces"):
        evaluation.nearest_faces(splits.train.images[:1], splits.train.images[:0])


def test_each_view_has_its_own_temperature_and_comparison(found: Evaluation) -> None:
    targets = found.targets("val")
    for view in found.views:
        expected = metrics.fit_temperature(found.probabilities("val", view), targets)
        assert found.metrics["temperature"][view] == pytest.approx(expected, rel=1e-9)
        scaled = metrics.scale(found.probabilities("test", view), expected)
        told = found.metrics["scores"]["test"][view]["scaled"]["ece_if_calibrated"]
        assert told == pytest.approx(metrics.ece_if_calibrated(scaled))
    table = found.predictions.copy()
    table[columns("flip")] = np.roll(table[columns("flip")].to_numpy(), 1, axis=1)
    other = Evaluation(table, found.metrics)
    assert evaluation.compare(found, other, "test").difference.value == 0
    result = evaluation.compare(found, other, "test", "flip")
    ours, theirs = (metrics.accuracy(one.probabilities("test", "flip"), one.targets("test")) for one in (found, other))
    assert (result.accuracy_a, result.accuracy_b) == pytest.approx((ours, theirs))


def test_the_nearest_face_may_be_far_down_a_large_gallery() -> None:
    gallery = np.random.default_rng(0).integers(0, 256, (4_100, 48, 48), dtype=np.uint8)
    queries = gallery[[4_098, 7]][:, :, ::-1]
    index, alike = evaluation.nearest_faces(queries, gallery)
    assert index.tolist() == [4_098, 7]
    assert alike == pytest.approx([1, 1], abs=1e-5)
