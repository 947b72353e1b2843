"""A run's directory: made, found, refused, filled; whole files only, with a schema that is checked."""

import json
import os
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd
import pytest
from matplotlib.figure import Figure

from fer_utils import recipe as recipes
from fer_utils import runs
from fer_utils.faces import Faces, Skipped, Splits
from fer_utils.runs import Run, RunError


@pytest.fixture(autouse=True)
def outputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory of runs made without a path."""
    monkeypatch.setattr(runs, "OUTPUTS", tmp_path / "outputs")
    return tmp_path / "outputs"


def age(run: Run, file: str, seconds: int) -> None:
    """Make a run's file so many seconds older than it is."""
    now = run.file(file).stat().st_mtime
    os.utime(run.file(file), (now - seconds, now - seconds))


# -- making -----------------------------------------------------------------------------------------------------------


def test_a_run_is_made_where_it_is_told(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "mine" / "first")
    assert run.path == tmp_path / "mine" / "first"
    assert set(run.read_json("run.json")) == {"schema_version", "created"}
    assert Run.open(run.path).path == run.path
    assert Path(run) == run.path


def test_runs_without_a_path_get_names_of_their_own(outputs: Path) -> None:
    made = {Run.create(label="fast").path for _ in range(3)}
    assert len(made) == 3
    assert all(path.parent == outputs and "fast" in path.name for path in made)


def test_a_run_that_is_there_is_opened_and_kept(tmp_path: Path) -> None:
    first = Run.create(tmp_path / "a")
    first.write_json("audit.json", {"counts": {}})
    created = first.read_json("run.json")
    again = Run.create(tmp_path / "a")
    assert again.read_json("run.json") == created
    assert again.has("audit.json")


def test_an_empty_directory_becomes_a_run(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert Run.create(tmp_path / "empty").has("run.json")


def test_what_holds_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_bytes(b"")
    (tmp_path / "file").write_text("mine")
    for name in ("photos", "file"):
        with pytest.raises(RunError, match=rf"{name} is there already and is no run"):
            Run.create(tmp_path / name)
    assert [path.name for path in (tmp_path / "photos").iterdir()] == ["a.jpg"]
    assert (tmp_path / "file").read_text() == "mine"


# -- finding ----------------------------------------------------------------------------------------------------------


def test_a_run_is_opened_by_path_or_by_name(outputs: Path) -> None:
    made = Run.create(outputs / "first")
    assert Run.open(made.path).path == made.path
    assert Run.open("first").path == made.path


def test_a_directory_that_has_a_runs_name_does_not_hide_it(
    outputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Run.create(outputs / "mine")
    here = tmp_path / "elsewhere"
    (here / "mine").mkdir(parents=True)
    monkeypatch.chdir(here)
    assert Run.open("mine").path == made.path


def test_runs_that_are_made_at_once_are_not_one(outputs: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda _: Run.create().path, range(24)))
    assert len(set(made)) == 24


def test_what_is_no_text_or_table_is_told(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run")
    run.file("recipe.yaml").write_bytes(b"\xff\xfe")
    with pytest.raises(RunError, match=r"recipe\.yaml is damaged"):
        _ = run.recipe
    run.file("history.csv").touch()
    with pytest.raises(RunError, match=r"history\.csv is damaged"):
        run.history()


@pytest.mark.parametrize("text", ["epoch;lr\n1;0.5\n", "epoch,lr\n1.5,0.5\n", "lr\n0.5\n"])
def test_a_history_that_another_program_wrote_is_told(tmp_path: Path, text: str) -> None:
    run = Run.create(tmp_path / "run")
    run.file("history.csv").write_text(text, encoding="utf-8")
    with pytest.raises(RunError, match=r"history\.csv is damaged: expected commas .* called epoch"):
        run.history()


def test_a_spreadsheets_mark_before_the_history_changes_nothing(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run")
    run.file("history.csv").write_text("epoch,lr\n1,0.5\n", encoding="utf-8-sig")
    run.append_history({"epoch": 2, "lr": 0.25})
    assert run.file("history.csv").read_bytes() == b"epoch,lr\n1,0.5\n2,0.25\n"


def test_a_damaged_recipe_is_told_with_its_file(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run")
    run.file("recipe.yaml").write_text("epochs: 3\nlearning: 1\n", encoding="utf-8")
    with pytest.raises(recipes.RecipeError, match=r"run/recipe\.yaml, line 2: unknown field 'learning'"):
        _ = run.recipe


def test_what_is_no_run_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"no run at .*nowhere.*03_train"):
        Run.open(tmp_path / "nowhere")
    (tmp_path / "plain").mkdir()
    with pytest.raises(RunError, match=r"plain is no run: it has no run\.json"):
        Run.open(tmp_path / "plain")
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="no run at"):
        Run.open(tmp_path / "file")


@pytest.mark.parametrize("version", [0, 2, "1", None])
def test_another_schema_is_refused(tmp_path: Path, version: object) -> None:
    run = Run.create(tmp_path / "a")
    for file in ("run.json", "metrics.json"):
        run.file(file).write_text(json.dumps({"schema_version": version}))
        with pytest.raises(RunError, match=rf"{file} has schema version {version}.*train again"):
            run.read_json(file)
    with pytest.raises(RunError, match="schema version"):
        Run.open(run.path)


def test_a_missing_or_damaged_file_is_told(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "a")
    with pytest.raises(RunError, match=r"a has no metrics\.json"):
        run.read_json("metrics.json")
    run.file("metrics.json").write_text('{"schema_version": 1, "acc')
    with pytest.raises(RunError, match=r"metrics\.json cannot be read as JSON"):
        run.read_json("metrics.json")
    run.file("metrics.json").write_text("[1]")
    with pytest.raises(RunError, match="schema version None"):
        run.read_json("metrics.json")


def test_the_newest_run_is_the_one_whose_file_is_newest(outputs: Path) -> None:
    assert Run.newest() is None
    first, second = Run.create(outputs / "b"), Run.create(outputs / "a")
    age(first, "run.json", 60)
    assert Run.newest().path == second.path  # type: ignore[union-attr]
    first.file("best.ckpt").write_bytes(b"")
    assert Run.newest(holding="best.ckpt").path == first.path  # type: ignore[union-attr]
    (outputs / "else").mkdir()
    (outputs / "else" / "best.ckpt").write_bytes(b"")
    assert Run.newest(holding="best.ckpt").path == first.path  # type: ignore[union-attr]


def test_choosing_takes_what_is_named_or_the_newest(outputs: Path) -> None:
    with pytest.raises(RunError, match=r"no run under .* has a best\.ckpt"):
        Run.choose(None)
    trained, newer = Run.create(outputs / "trained"), Run.create(outputs / "newer")
    trained.file("best.ckpt").write_bytes(b"")
    assert Run.choose(None).path == trained.path
    assert Run.choose("trained").path == trained.path
    with pytest.raises(RunError, match=r"newer has no best\.ckpt"):
        Run.choose(newer.path)
    assert Run.choose(newer.path, holding="run.json").path == newer.path
    with pytest.raises(RunError, match="no run at"):
        Run.choose("nowhere")


def test_a_run_that_was_audited_waits_for_its_training(outputs: Path) -> None:
    assert Run.waiting("f") is None
    run = Run.create(outputs / "a")
    assert Run.waiting("f") is None
    run.write_json("audit.json", {"data": {"fingerprint": "f"}})
    assert Run.waiting("f").path == run.path  # type: ignore[union-attr]
    assert Run.waiting("of other faces") is None
    run.write_recipe(recipes.load("fast"))
    assert Run.waiting("f") is None


def test_a_notebook_fills_the_run_it_is_told(outputs: Path) -> None:
    waiting = Run.create(outputs / "waiting")
    waiting.write_json("audit.json", {"data": {"fingerprint": "f"}})
    assert Run.prepare(None, None, fingerprint="f").path == waiting.path
    assert Run.prepare("waiting", None, fingerprint="other").path == waiting.path
    assert Run.prepare(None, outputs / "new", fingerprint="f").path == outputs / "new"
    assert Run.prepare(outputs / "new", outputs / "new", fingerprint="f").path == outputs / "new"
    assert "mine" in Run.prepare(None, None, fingerprint="other", label="mine").path.name
    # What was trained on some faces is not to stand beside what is said of others.
    Run.open("new").write_json("env.json", {"data": {"fingerprint": "f", "source": "csv", "location": "there"}})
    assert Run.prepare("new", None, fingerprint="f").path == outputs / "new"
    for named, out in ((outputs / "new", None), (None, outputs / "new"), (outputs / "new", outputs / "new")):
        with pytest.raises(
            RunError, match=r"other faces or another cut of them \(csv there, fingerprint f; here other\)"
        ):
            Run.prepare(named, out, fingerprint="other")
    with pytest.raises(RunError, match="give run or out, not both"):
        Run.prepare("waiting", outputs / "new", fingerprint="f")
    with pytest.raises(RunError, match="no run at"):
        Run.prepare("nowhere", None, fingerprint="f")


# -- files ------------------------------------------------------------------------------------------------------------


def test_json_carries_the_schema_version(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "a")
    run.write_json("metrics.json", {"accuracy": 0.5})
    assert json.loads(run.file("metrics.json").read_text()) == {"schema_version": 1, "accuracy": 0.5}
    with pytest.raises(ValueError, match="JSON"):
        run.write_json("metrics.json", {"accuracy": float("nan")})
    assert run.read_json("metrics.json")["accuracy"] == 0.5


def test_a_recipe_is_read_as_it_was_written(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "a")
    with pytest.raises(RunError, match=r"no recipe\.yaml"):
        _ = run.recipe
    recipe = recipes.load("fast", {"epochs": 3, "lr": "1e-3"})
    run.write_recipe(recipe)
    assert run.recipe == recipe


def row(epoch: int, loss: float, **others: object) -> dict[str, object]:
    return {"epoch": epoch, "train_loss": loss, **others}


def test_history_is_empty_before_the_first_epoch(tmp_path: Path) -> None:
    history = Run.create(tmp_path / "a").history()
    assert len(history) == 0
    assert "epoch" in history


def test_history_grows_by_an_epoch(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "a")
    run.append_history(row(1, 0.1 + 0.2, val_loss=None))
    run.append_history(row(2, 1 / 3, val_loss=0.25))
    history = run.history()
    assert history["epoch"].tolist() == [1, 2]
    # As exact as it was, and nothing where nothing was measured.
    assert history["train_loss"].tolist() == [0.1 + 0.2, 1 / 3]
    assert pd.isna(history["val_loss"]).tolist() == [True, False]


def test_an_epoch_trained_again_replaces_itself_and_what_followed(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "a")
    for epoch in (1, 2, 3, 10):
        run.append_history(row(epoch, float(epoch)))
    run.append_history(row(3, 33.0))
    assert run.history()["epoch"].tolist() == [1, 2, 3]
    assert run.history()["train_loss"].tolist() == [1.0, 2.0, 33.0]


def test_figures_are_saved_under_their_name(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "a")
    figure = Figure(figsize=(1, 1))
    figure.subplots().plot([0, 1])
    path = run.save_figure("loss_curve", figure, dpi=50)
    assert path == run.path / "figures" / "loss_curve.png"
    assert path.read_bytes().startswith(b"\x89PNG")
    assert [file.name for file in path.parent.iterdir()] == ["loss_curve.png"]


# -- the environment --------------------------------------------------------------------------------------------------


def test_the_environment_tells_data_machine_and_versions(tmp_path: Path, synthetic_splits: Splits) -> None:
    run = Run.create(tmp_path / "a")
    splits = Splits(
        synthetic_splits.train,
        synthetic_splits.val,
        Faces.empty(),
        "folder",
        location="faces/",
        rule="as told",
        skipped=(Skipped("a.jpg", "it is empty"),),
        converted=2,
    )
    run.write_environment(splits, "cpu", "float32", 2)
    told = run.read_json("env.json")
    assert (told["device"], told["precision"], told["threads"]) == ("cpu", "float32", 2)
    assert told["data"] == {
        "source": "folder",
        "location": "faces/",
        "synthetic": False,
        "rule": "as told",
        "fingerprint": splits.fingerprint(),
        "faces": {"train": len(splits.train), "val": len(splits.val), "test": 0},
        "converted": 2,
        "skipped": [{"name": "a.jpg", "reason": "it is empty"}],
    }
    assert told["versions"]["torch"].count(".") >= 2
    assert told["machine"]


def test_the_commit_and_whether_tracked_files_differ_are_told(tmp_path: Path) -> None:
    def git(*arguments: str) -> None:
        identity = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false")
        subprocess.run(["git", *identity, *arguments], cwd=tmp_path, check=True, capture_output=True)

    assert runs.git_state(tmp_path) == {"commit": None, "dirty": None}
    git("init", "-q")
    (tmp_path / "a").write_text("1")
    git("add", "a")
    git("commit", "-q", "-m", "first")
    state = runs.git_state(tmp_path)
    assert len(state["commit"]) == 40
    assert state["dirty"] is False
    (tmp_path / "untracked").write_text("")
    assert runs.git_state(tmp_path) == state
    (tmp_path / "a").write_text("2")
    assert runs.git_state(tmp_path) == {**state, "dirty": True}


# -- the recipe that a notebook asks for ------------------------------------------------------------------------------


def test_a_notebooks_recipe_is_the_one_named_with_its_parameters_over_it() -> None:
    assert runs.chosen_recipe({}) == recipes.load("fast")
    assert runs.chosen_recipe({"recipe": "one_cycle", "epochs": 2, "data": "auto"}) == recipes.load(
        "one_cycle", {"epochs": 2}
    )
    assert runs.chosen_recipe({"recipe": None, "lr": None}) == recipes.load("fast")


def test_a_notebook_that_is_given_a_trained_run_takes_its_recipe(outputs: Path) -> None:
    run = Run.create(outputs / "a")
    assert runs.chosen_recipe({"run": "a"}) == recipes.load("fast")
    run.write_recipe(recipes.load("fast", {"epochs": 5, "width": 0.5}))
    assert runs.chosen_recipe({"run": "a", "seed": 3}) == recipes.load("fast", {"epochs": 5, "width": 0.5, "seed": 3})
    assert runs.chosen_recipe({"run": "a", "recipe": "linear_head"}) == recipes.load("linear_head")
    with pytest.raises(RunError, match="no run at"):
        runs.chosen_recipe({"run": "nowhere"})


def test_a_run_may_lie_in_the_home_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("USERPROFILE", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    assert Run.create("~/run").path == tmp_path / "home" / "run"
    assert Run.open("~/run").path == tmp_path / "home" / "run"
    assert Run.prepare("~/run", str(tmp_path / "home" / "run"), fingerprint="0" * 16).path == tmp_path / "home" / "run"
    assert not (tmp_path / "~").exists()
