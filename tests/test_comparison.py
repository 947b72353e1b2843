"""Recipes side by side: grouped by what they are, ordered by validation, marked where their weights are missing."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import accuracy_score, f1_score, recall_score

from fer_utils import comparison, evaluation, models
from fer_utils import recipe as recipes
from fer_utils.comparison import Entry
from fer_utils.evaluation import Evaluation, EvaluationError
from fer_utils.faces import Splits
from fer_utils.files import ROOT
from fer_utils.models import ModelError
from fer_utils.plots import comparison as plots
from fer_utils.recipe import Recipe, RecipeError
from fer_utils.runs import Run, RunError
from fer_utils.training import TrainingError

QUICK: dict[str, Any] = {"epochs": 1, "train_faces": 120, "image_size": 32, "batch_size": 64, "weights": "none"}


def four() -> list[Recipe]:
    """Two recipes with two seeds each."""
    return comparison.plan("custom_cnn, one_cycle", "0,1", overrides=QUICK, device="cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("compare")


@pytest.fixture(scope="module")
def runs(synthetic_splits: Splits, folder: Path) -> list[Run]:
    told: list[str] = []
    done = comparison.train(four(), synthetic_splits, folder, device="cpu", log=told.append)
    assert sum(line.startswith("[") for line in told) == 4
    return done


@pytest.fixture(scope="module")
def entries(runs: list[Run], synthetic_splits: Splits) -> list[Entry]:
    return comparison.gather(runs, synthetic_splits)


def test_runs_that_differ_in_their_seed_are_one_system(entries: list[Entry]) -> None:
    assert {entry.recipe.name: len(entry.runs) for entry in entries} == {"custom_cnn": 2, "one_cycle": 2}


def test_a_run_tells_how_to_get_its_faces_again(runs: list[Run], synthetic_splits: Splits) -> None:
    # custom_cnn's own cut is another than the one that all were trained on.
    assert recipes.load("custom_cnn").val_fraction == 0.2
    for run in runs:
        again = evaluation.faces_of(run, "synthetic:600")
        assert again.fingerprint() == synthetic_splits.fingerprint() == run.read_json("env.json")["data"]["fingerprint"]


def test_no_run_counts_twice(runs: list[Run], synthetic_splits: Splits, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(runs[0].path, copy)
    for twice in ([runs[0], runs[1], Run.open(runs[0].path)], [*runs, Run.open(copy)]):
        with pytest.raises(EvaluationError, match=r"same seed, 0, and would count as two seeds"):
            comparison.gather(twice, synthetic_splits)


def test_a_recipe_without_its_imagenet_weights_is_marked_and_not_ranked(entries: list[Entry]) -> None:
    ranked = {entry.recipe.name: entry.ranked for entry in entries}
    assert recipes.load("one_cycle").weights == "imagenet"
    assert ranked == {"custom_cnn": True, "one_cycle": False}
    table = comparison.table(entries, "test").set_index("rank")
    assert table.loc["1", "recipe"].startswith("custom_cnn")
    assert table.loc["–", "recipe"].endswith("†")
    assert "weights none" in table.loc["–", "recipe"]


def test_the_table_is_what_the_stored_predictions_say(entries: list[Entry]) -> None:
    table = comparison.table(entries, "test")
    for entry, (_, row) in zip(entries, table.iterrows(), strict=True):
        scores = {"accuracy": [], "macro-F1": [], "clean accuracy": []}  # type: ignore[var-annotated]
        for run in entry.runs:
            held = pd.read_parquet(run.file("predictions.parquet"))
            held = held[held["split"] == "test"]
            said = held[[name for name in held if name.startswith("p_")]].to_numpy().argmax(1)
            clean = held["clean"].to_numpy()
            scores["accuracy"].append(accuracy_score(held["target"], said))
            scores["macro-F1"].append(f1_score(held["target"], said, average="macro", labels=range(7), zero_division=0))
            scores["clean accuracy"].append(accuracy_score(held["target"][clean], said[clean]))
        for column, values in scores.items():
            assert row[column] == f"{100 * np.mean(values):.1f} ± {100 * np.std(values, ddof=1):.1f}", column
        assert row["seeds"] == 2


def test_recalls_are_the_mean_over_seeds(entries: list[Entry]) -> None:
    found = comparison.recalls(entries, "test")
    entry = entries[0]
    expected = []
    for run in entry.runs:
        held = pd.read_parquet(run.file("predictions.parquet"))
        held = held[held["split"] == "test"]
        said = held[[name for name in held if name.startswith("p_")]].to_numpy().argmax(1)
        expected.append(recall_score(held["target"], said, average=None, labels=range(7), zero_division=0))
    np.testing.assert_allclose(found.loc[entry.label], np.mean(expected, axis=0))


def test_disagreement_lists_each_face_that_one_alone_gets_right(entries: list[Entry]) -> None:
    a, b = entries
    only_a, only_b = comparison.disagreement(a, b, "test")
    targets = a.evaluations[0].targets("test")
    right_a = a.evaluations[0].probabilities("test").argmax(1) == targets
    right_b = b.evaluations[0].probabilities("test").argmax(1) == targets
    assert set(only_a) == {i for i in range(len(targets)) if right_a[i] and not right_b[i]}
    assert set(only_b) == {i for i in range(len(targets)) if right_b[i] and not right_a[i]}
    pair = comparison.paired(entries, "test").iloc[0]
    assert (pair["only A right"], pair["only B right"]) == (len(only_a), len(only_b))
    assert pair["mid-p, all pairs"] == pair["McNemar mid-p"], "one pair needs no adjustment"


def test_more_pairs_make_each_less_certain(entries: list[Entry]) -> None:
    pairs = comparison.paired([*entries, entries[0]], "test")
    assert len(pairs) == 3
    smallest = pairs["McNemar mid-p"].idxmin()
    assert pairs["mid-p, all pairs"][smallest] == min(1, 3 * pairs["McNemar mid-p"][smallest])


def test_finished_runs_are_taken_as_they_are(runs: list[Run], synthetic_splits: Splits, folder: Path) -> None:
    before = [run.file("metrics.json").stat().st_mtime_ns for run in runs]
    again = comparison.train(four(), synthetic_splits, folder, device="cpu")
    assert [run.file("metrics.json").stat().st_mtime_ns for run in again] == before


def test_a_run_of_another_training_is_told_at_once(runs: list[Run], folder: Path) -> None:
    comparison.plan("custom_cnn", "0", overrides=QUICK, out=folder)
    with pytest.raises(RunError, match=r"another recipe \(epochs 1 there, 2 here\)"):
        comparison.plan("custom_cnn", "0", overrides={**QUICK, "epochs": 2}, out=folder)


def test_an_outdated_evaluation_is_done_again(runs: list[Run], synthetic_splits: Splits, folder: Path) -> None:
    values = runs[0].read_json("metrics.json")
    runs[0].write_json("metrics.json", {**values, "checkpoint": {**values["checkpoint"], "sha256": "0" * 64}})
    with pytest.raises(EvaluationError, match="evaluate the run again"):
        comparison.gather(runs, synthetic_splits)
    comparison.train(four(), synthetic_splits, folder, device="cpu")
    assert runs[0].read_json("metrics.json")["checkpoint"] == values["checkpoint"]


def test_minutes_to_60_percent_is_the_first_epoch_that_reaches_it() -> None:
    history = pd.DataFrame({"val_accuracy": [0.5, 0.61, 0.59, 0.7], "total_seconds": [60.0, 120.0, 180.0, 240.0]})
    assert comparison.minutes_to(history) == 2.0
    assert np.isnan(comparison.minutes_to(history.iloc[:1]))


def test_mistakes_are_told_before_anything_is_trained(synthetic_splits: Splits, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="custom_cnn"):
        comparison.plan("fast,custom_cn", "0")
    for names, seeds in (("", "0"), ("fast", " ,")):
        with pytest.raises(RecipeError, match="at least one"):
            comparison.plan(names, seeds)
    for seeds in ("0,one", "1.5", "-1"):
        with pytest.raises(RecipeError, match=r"parameter seeds: expected whole numbers .* not '(one|1\.5|-1)'"):
            comparison.plan("fast", seeds)
    with pytest.raises(ModelError, match="no layer 'layer9'"):
        comparison.plan("fast", "0", overrides={"train_layers": ["layer9"]})
    with pytest.raises(RecipeError, match="recipe fast has epochs 0"):
        comparison.plan("fast", "0", overrides={"epochs": 0})
    with pytest.raises(EvaluationError, match="no runs"):
        comparison.gather([], synthetic_splits)
    mine = tmp_path / "mine.yaml"
    mine.write_text("extends: fast\nlr: 0.01\n")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine.yaml").write_text("extends: fast\nlr: 0.02\n")
    with pytest.raises(RecipeError, match="mine with seed 0 is to be trained twice"):
        comparison.plan(f"{mine},{tmp_path / 'other' / 'mine.yaml'}", "0")


def test_namesakes_are_told_apart(synthetic_splits: Splits, tmp_path: Path) -> None:
    for name, lr in (("a", 0.01), ("b", 0.02)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine.yaml").write_text(f"extends: custom_cnn\nlr: {lr}\n")
    runs = [
        comparison.train(
            comparison.plan(str(tmp_path / name / "mine.yaml"), "0", overrides=QUICK),
            synthetic_splits,
            tmp_path / name,
            device="cpu",
        )[0]
        for name in "ab"
    ]
    entries = comparison.gather(runs, synthetic_splits)
    assert {entry.label for entry in entries} == {"mine (lr 0.01)", "mine (lr 0.02)"}
    assert len(comparison.recalls(entries, "test")) == 2


def test_what_ranks_is_the_network_that_was_kept(runs: list[Run], synthetic_splits: Splits, tmp_path: Path) -> None:
    copies = []
    for number, (accuracies, keep) in enumerate((([0.5, 0.4], None), ([0.6, 0.3], 2), (["", ""], None))):
        copy = Run.open(shutil.copytree(runs[0].path, tmp_path / str(number)))
        copy.write_recipe(copy.recipe.model_copy(update={"keep_epoch": keep, "lr": 0.001 * (1 + number)}))
        columns = "epoch,val_accuracy,images_per_second,train_seconds,total_seconds"
        rows = [f"{epoch},{value},1,1,1" for epoch, value in enumerate(accuracies, start=1)]
        copy.file("history.csv").write_text("\n".join([columns, *rows]))
        copies.append(copy)
    entries = comparison.gather(copies, synthetic_splits)
    assert [entry.runs[0].path.name for entry in entries] == ["0", "1", "2"]
    table = comparison.table(entries, "test")
    assert table["rank"].tolist() == ["1", "2", "–"]
    np.testing.assert_allclose(table["val accuracy"], [50, 30, np.nan])
    assert not table["recipe"].str.endswith("†").any(), "what is not ranked for another reason is not marked so"


def test_long_labels_leave_the_figures_their_room(entries: list[Entry]) -> None:
    found = comparison.recalls(entries, "test")
    found.index = [f"partial_finetune (weights none, train_faces 2000, epochs {n}, precision bfloat16)" for n in (2, 3)]
    recalls = plots.recall_table(found)
    recalls.draw_without_rendering()
    assert recalls.axes[0].get_position().width > 0.6
    assert [label.get_text().replace("\n", " ") for label in recalls.axes[0].get_yticklabels()] == list(found.index)
    curves = plots.learning_curves(
        {label * 3: entry.histories() for label, entry in zip(found.index, entries, strict=True)}
    )
    curves.draw_without_rendering()
    assert all(axes.get_position().height > 0.3 for axes in curves.axes)
    legend = curves.legends[0].get_window_extent()
    assert legend.width < curves.bbox.width


def test_an_augmentation_is_told_by_its_name_alone() -> None:
    recipe = recipes.load("fast", {"augment": "{flip: 0.25}", "lr": 0.01})
    assert comparison._label(recipe, [recipe])[0] == "fast (augment, lr 0.01)"


def test_figures_show_every_system(entries: list[Entry], synthetic_splits: Splits) -> None:
    curves = plots.learning_curves({entry.label: entry.histories() for entry in entries})
    assert [len(axes.lines) for axes in curves.axes] == [4, 4]
    assert [text.get_text() for text in curves.legends[0].get_texts()] == [entry.label for entry in entries]
    recalls = plots.recall_table(comparison.recalls(entries, "test"))
    assert len(recalls.axes[0].texts) == 14
    faces = synthetic_splits.test.select(slice(0, 3))
    grid = plots.disagreement(
        faces.images, faces.targets, faces.targets, (faces.targets + 1) % 7, ("a", "b"), " (drawn)"
    )
    texts = "".join(text.get_text() for text in grid.axes[0].texts)
    assert texts.count("✓") == texts.count("✗") == 3
    assert grid.get_suptitle() == "One right, one wrong (drawn)\nA: a\nB: b"
    # Variants differ at the end of a label.
    long = [f"a_name_of_somebody_s_own_that_fills_the_line (weights none, train_faces 200, epochs {n})" for n in (2, 3)]
    grid = plots.disagreement(faces.images, faces.targets, faces.targets, (faces.targets + 1) % 7, (long[0], long[1]))
    assert all(label in grid.get_suptitle().replace("\n", " ") for label in long)
    grid.draw_without_rendering()
    title = grid._suptitle.get_window_extent()  # type: ignore[attr-defined]
    assert 0 <= title.x0 <= title.x1 <= grid.bbox.width
    assert title.y0 >= grid.axes[0].get_tightbbox().y1  # type: ignore[union-attr]


def test_one_epoch_is_not_told_in_fractions(entries: list[Entry]) -> None:
    axes = plots.learning_curves({entry.label: entry.histories() for entry in entries}).axes[0]
    low, high = axes.get_xlim()
    assert [tick for tick in axes.get_xticks() if low <= tick <= high] == [1]


def test_06_says_so_where_two_systems_are_right_on_the_same_faces(
    entries: list[Entry], synthetic_splits: Splits
) -> None:
    cells = json.loads((ROOT / "notebooks" / "06_compare.ipynb").read_text(encoding="utf-8"))["cells"]
    (source,) = ["".join(cell["source"]) for cell in cells if "plots.disagreement(" in "".join(cell["source"])]
    for pair, drawn in ((entries, True), ([entries[0], entries[0]], False)):
        shown: list[Any] = []
        scope = {"entries": pair, "part": "test", "splits": synthetic_splits, "comparison": comparison, "np": np}
        scope |= {"plots": plots, "display": shown.append, "Markdown": str}
        exec(source, scope)
        assert len(shown) == 1
        assert (scope["figure_disagreement"] is not None) == drawn
        assert drawn or shown[0].endswith("are right on the same faces.")


def saying(found: Evaluation, said: np.ndarray) -> Evaluation:
    """An evaluation of the same faces whose network said this of those of the test part."""
    table = found.predictions.copy()
    table.loc[table["split"] == "test", evaluation.columns()] = np.eye(7)[said]
    return Evaluation(table, {**found.metrics, **evaluation.measure(table, draws=10)})


def test_seeds_that_differ_are_averaged_and_pairs_tested(entries: list[Entry]) -> None:
    first = entries[0].evaluations[0]
    targets = first.targets("test")
    happy, sad = 3, 5
    right, same = saying(first, targets), saying(first, np.full(len(targets), happy))
    a = dataclasses.replace(entries[0], evaluations=(right, same))
    recalls = comparison.recalls([a], "test").loc[a.label]
    assert recalls.tolist() == [1.0 if emotion == happy else 0.5 for emotion in range(7)]
    # Five faces that the other one alone gets wrong: of a fair coin, five times the same side.
    wrong = targets.copy()
    wrong[np.flatnonzero(targets == happy)[:5]] = sad
    b = dataclasses.replace(entries[1], evaluations=(saying(first, wrong),))
    pair = comparison.paired([a, b], "test").iloc[0]
    assert pair["exact p"] == pytest.approx(2 / 2**5)
    assert pair["McNemar mid-p"] == pytest.approx(1 / 2**5)


def test_the_table_sums_up_the_histories_of_all_seeds(
    runs: list[Run], synthetic_splits: Splits, tmp_path: Path
) -> None:
    told = {0: [(0.5, 60), (0.6, 60), (0.7, 600)], 1: [(0.5, 60), (0.6, 60)], 2: [(0.9, 60)]}
    copies = []
    for number, rows in told.items():
        copy = Run.open(shutil.copytree(runs[number].path, tmp_path / str(number)))
        lines = [f"{i},{value},1,{took},{60 * (number + i)}" for i, (value, took) in enumerate(rows, start=1)]
        header = "epoch,val_accuracy,images_per_second,train_seconds,total_seconds"
        copy.file("history.csv").write_text("\n".join([header, *lines]))
        copies.append(copy)
    assert [run.recipe.name for run in copies] == ["custom_cnn", "custom_cnn", "one_cycle"]
    found = comparison.gather(copies[::-1], synthetic_splits)
    # However good it is, what lacks its weights comes last.
    assert [entry.recipe.name for entry in found] == ["custom_cnn", "one_cycle"]
    row = comparison.table(found, "test").iloc[0]
    assert (row["epochs"], row["min/epoch"], row["min to 60%"]) == (3, 1, 2.5)
    recipe = found[0].recipe
    assert row["GMAC"] == models.multiply_adds(models.build(recipe), recipe.channels, 32) / 1e9


def test_a_training_that_cannot_go_on_is_told_by_its_system(synthetic_splits: Splits, tmp_path: Path) -> None:
    wanted = [recipes.load("custom_cnn", {**QUICK, "optimizer": "sgd", "lr": 1e9, "schedule": "constant"})]
    with pytest.raises(TrainingError, match=r"^custom_cnn, seed 0: .*not finite"):
        comparison.train(wanted, synthetic_splits, tmp_path, device="cpu", log=lambda _line: None)
