"""Runs: how they are made and found, and that what they hold is whole, versioned and refused where it does not fit."""

import json
import time
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

from fer_utils import runs
from fer_utils.faces import Skipped, Splits
from fer_utils.recipe import RecipeError, load
from fer_utils.runs import Run, RunError, chosen_recipe, describe_data, environment


@pytest.fixture
def outputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "outputs"
    path.mkdir()
    monkeypatch.setattr(runs, "OUTPUTS", path)
    return path


def row(epoch: int, **values: Any) -> dict[str, Any]:
    return {"epoch": epoch, "train_loss": 2 / epoch, "val_loss": None, **values}


# -- making and finding --


def test_runs_made_in_the_same_second_have_their_own_directories(outputs: Path) -> None:
    made = [Run.create(label="fast") for _ in range(3)]
    assert len({run.path for run in made}) == 3
    assert all(run.path.parent == outputs and "-fast" in run.path.name for run in made)


def test_creating_where_a_run_is_opens_it(tmp_path: Path) -> None:
    first = Run.create(tmp_path / "run")
    created = first.read_json("run.json")["created"]
    assert Run.create(tmp_path / "run").read_json("run.json")["created"] == created


def test_a_directory_that_holds_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "photo.png").touch()
    with pytest.raises(RunError, match="is no run"):
        Run.create(tmp_path)
    with pytest.raises(RunError, match=r"photo\.png is there already"):
        Run.create(tmp_path / "photo.png")
    assert [path.name for path in tmp_path.iterdir()] == ["photo.png"]


def test_a_run_is_opened_by_path_or_by_its_name_under_outputs(outputs: Path) -> None:
    run = Run.create(label="fast")
    assert Run.open(run.path).path == run.path
    assert Run.open(run.path.name).path == run.path


def test_what_is_no_run_is_refused_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"no run at .*nowhere: train one with 03_train"):
        Run.open(tmp_path / "nowhere")
    with pytest.raises(RunError, match=r"has no run\.json"):
        Run.open(tmp_path)


def test_the_newest_run_is_the_one_whose_file_is_newest(outputs: Path) -> None:
    assert Run.newest() is None
    old, new = Run.create(label="a"), Run.create(label="b")
    new.write_recipe(load("fast"))
    time.sleep(0.02)
    old.write_json("metrics.json", {})
    newest = Run.newest()
    assert newest is not None
    assert newest.path == new.path
    assert Run.choose(None, holding="metrics.json").path == old.path
    with pytest.raises(RunError, match=r"no run under .* has a best\.ckpt"):
        Run.choose(None)
    with pytest.raises(RunError, match=r"has no best\.ckpt"):
        Run.choose(old.path)


# -- the run that a notebook fills --


def test_01_to_03_fill_one_run_without_naming_it(outputs: Path, synthetic_splits: Splits) -> None:
    fingerprint = synthetic_splits.fingerprint()
    explored = Run.prepare(None, None, fingerprint=fingerprint, label="explore")
    assert Run.waiting(fingerprint) is None, "nothing says yet which faces the run is for"
    explored.write_json("audit.json", {"data": describe_data(synthetic_splits)})
    assert Run.prepare(None, None, fingerprint=fingerprint).path == explored.path
    assert Run.prepare(None, None, fingerprint="other faces").path != explored.path


def test_a_run_that_was_trained_waits_no_more(outputs: Path, synthetic_splits: Splits) -> None:
    run = Run.create(label="explore")
    run.write_json("audit.json", {"data": describe_data(synthetic_splits)})
    run.write_recipe(load("fast"))
    assert Run.waiting(synthetic_splits.fingerprint()) is None


def test_a_named_run_must_be_there_and_a_new_one_is_made_where_it_is_asked_for(outputs: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="there is no run"):
        Run.prepare(tmp_path / "nowhere", None, fingerprint="")
    made = Run.prepare(None, tmp_path / "mine", fingerprint="")
    assert made.path == tmp_path / "mine"
    assert Run.prepare(made.path, None, fingerprint="").path == made.path
    assert Run.prepare(made.path, made.path, fingerprint="").path == made.path
    with pytest.raises(RunError, match="not both"):
        Run.prepare(made.path, tmp_path / "other", fingerprint="")
    assert not list(outputs.iterdir())


def test_the_recipe_is_the_one_asked_for_or_the_runs_own_or_fast(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run")
    assert chosen_recipe({"recipe": None, "run": None}).name == "fast"
    assert chosen_recipe({"recipe": None, "run": run.path, "lr": 0.5}).lr == 0.5
    run.write_recipe(load("custom_cnn", {"epochs": 7}))
    own = chosen_recipe({"recipe": None, "run": run.path, "epochs": None, "data": "auto"})
    assert (own.name, own.epochs) == ("custom_cnn", 7)
    assert chosen_recipe({"recipe": "fast", "run": run.path}).name == "fast"
    assert chosen_recipe({"run": run.path, "epochs": "8"}).epochs == 8
    with pytest.raises(RecipeError, match="dropout"):
        chosen_recipe({"recipe": "fast", "dropout": 2.0})


# -- files --


def test_json_comes_back_with_its_schema_and_another_schema_is_refused(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run")
    run.write_json("metrics.json", {"accuracy": 0.5})
    assert run.read_json("metrics.json") == {"schema_version": runs.SCHEMA_VERSION, "accuracy": 0.5}
    run.file("metrics.json").write_text(json.dumps({"schema_version": 99}))
    with pytest.raises(RunError, match="schema version 99"):
        run.read_json("metrics.json")
    run.file("metrics.json").write_text("{")
    with pytest.raises(RunError, match="cannot be read as JSON"):
        run.read_json("metrics.json")
    with pytest.raises(RunError, match=r"has no predictions\.json"):
        run.read_json("predictions.json")


def test_json_without_an_answer_is_refused_and_leaves_the_old_file(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run")
    run.write_json("metrics.json", {"accuracy": 0.5})
    with pytest.raises(ValueError, match="not JSON compliant"):
        run.write_json("metrics.json", {"accuracy": float("nan")})
    assert run.read_json("metrics.json")["accuracy"] == 0.5
    assert sorted(path.name for path in run.path.iterdir()) == ["metrics.json", "run.json"]


def test_the_recipe_comes_back_as_it_was_trained(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run")
    with pytest.raises(RunError, match="nothing was trained"):
        _ = run.recipe
    recipe = load("partial_finetune", {"epochs": 3, "lr": 1e-5})
    run.write_recipe(recipe)
    assert run.recipe == recipe


def test_history_grows_by_an_epoch_and_a_repeated_epoch_replaces_what_follows(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run")
    assert run.history().empty
    for epoch in (1, 2, 3):
        run.append_history(row(epoch))
    # A resume from the end of epoch 1 trains epochs 2 and 3 anew.
    run.append_history(row(2, train_loss=0.25))
    history = run.history()
    assert list(history["epoch"]) == [1, 2]
    assert list(history["train_loss"]) == [2, 0.25]
    assert history["val_loss"].isna().all()


def test_figures_are_saved_under_their_names(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run")
    figure = Figure(figsize=(1, 1))
    figure.add_subplot().plot([0, 1])
    path = run.save_figure("loss_curve", figure)
    assert path == tmp_path / "run" / "figures" / "loss_curve.png"
    assert path.read_bytes().startswith(b"\x89PNG")
    assert list(path.parent.iterdir()) == [path]


def test_the_environment_tells_data_versions_and_skipped_items(synthetic_splits: Splits) -> None:
    s = synthetic_splits
    splits = Splits(s.train, s.val, s.test, "folder", "/faces", "cut", (Skipped("a.png", "truncated"),), 3)
    told = environment(splits, "cpu", "float32", 2)
    assert told["data"]["skipped"] == [{"name": "a.png", "reason": "truncated"}]
    assert told["data"]["converted"] == 3
    assert told["data"]["fingerprint"] == splits.fingerprint()
    assert told["data"]["faces"] == {part: len(faces) for part, faces in splits}
    assert not told["data"]["synthetic"]
    assert told["versions"]["torch"]
    json.dumps(told)


def test_only_synthetic_faces_carry_a_banner(synthetic_splits: Splits) -> None:
    s = synthetic_splits
    assert s.synthetic
    assert "Synthetic faces" in s.banner
    assert Splits(s.train, s.val, s.test, "folder").banner == ""
