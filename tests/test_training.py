"""The loop: exact resume, schedules, what it writes, what it refuses, and the same result on two processes."""

from __future__ import annotations

import functools
import json
import math
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pandas as pd
import pytest
import torch

from fer_utils import checkpoint, metrics, models, sources, training
from fer_utils import recipe as recipes
from fer_utils.augment import augment
from fer_utils.devices import choose_precision
from fer_utils.faces import Faces, Splits
from fer_utils.files import ROOT
from fer_utils.prediction import predict
from fer_utils.preprocessing import Preprocessing
from fer_utils.recipe import Recipe
from fer_utils.runs import Run, RunError
from fer_utils.sources import synthetic
from fer_utils.suite import NOTEBOOKS
from fer_utils.training import TIMING_COLUMNS, TrainingError, fit


@pytest.fixture(scope="module")
def splits() -> Splits:
    return synthetic.generate(400, seed=0)


def tiny(**fields: Any) -> Recipe:
    network = {"width": 0.125, "stem": "imagenet", "max_pool": True, "image_size": 48}
    learning = {"optimizer": "adamw", "lr": 3e-3, "ema": 0.998, "epochs": 3, "batch_size": 64, "progressive": "none"}
    return recipes.load("fast", {**network, **learning, **fields})


def silent(_: str) -> None:
    pass


def weights_of(run: Run) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = checkpoint.load(run.file("last.ckpt"))["model"]
    return state


def assert_same_bytes(first: Run, second: Run) -> None:
    assert first.file("best.ckpt").read_bytes() == second.file("best.ckpt").read_bytes()
    a, b = checkpoint.load(first.file("last.ckpt")), checkpoint.load(second.file("last.ckpt"))
    for part in ("model", "averaged"):
        assert (a[part] is None) == (b[part] is None)
        for name, value in (a[part] or {}).items():
            assert torch.equal(value, b[part][name]), f"{part} {name}"
    for index, held in a["optimizer"]["state"].items():
        for name, value in held.items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(b["optimizer"]["state"][index][name])), name
    histories = [run.history().drop(columns=list(TIMING_COLUMNS)) for run in (first, second)]
    assert histories[0].equals(histories[1])


@pytest.mark.parametrize(
    "fields",
    [
        {"ema": 0.99, "dropout": 0.3, "schedule": "one_cycle", "mixup": 0.2},
        {
            "ema": 0.0,
            "optimizer": "sgd",
            "schedule": "plateau",
            "plateau_patience": 0,
            "lr": 0.5,
            "balance": "sampling",
            "sam": 0.1,
        },
        {"teacher": "TRAINED", "teacher_share": 0.5},
        {"teacher": "TRAINED", "teacher_views": "flip", "balance": "sampling"},
        {"start": "TRAINED"},
        {"precision": "bfloat16", "optimizer": "adam", "schedule": "cosine", "cutmix": 1.0, "clip_norm": 1.0},
        {"precision": "bfloat16", "optimizer": "muon", "momentum": 0.95, "schedule": "one_cycle"},
    ],
    ids=[
        "ema-one_cycle-mixup",
        "sgd-plateau-sampling",
        "teacher",
        "teacher-asked-once",
        "start",
        "bfloat16-cosine-cutmix",
        "bfloat16-muon",
    ],
)
def test_a_resumed_training_is_the_uninterrupted_one_to_the_byte(
    splits: Splits, tmp_path: Path, fields: dict[str, Any]
) -> None:
    if "TRAINED" in fields.values():
        trained = fit(tiny(epochs=1), splits, Run.create(tmp_path / "trained"), device="cpu", log=silent)
        fields = {name: str(trained.path) if value == "TRAINED" else value for name, value in fields.items()}
    recipe = tiny(**fields)
    whole = fit(recipe, splits, Run.create(tmp_path / "whole"), device="cpu", log=silent)
    parts = Run.create(tmp_path / "parts")
    for stop_after in (1, 2, None):
        torch.manual_seed(123)  # what a new session's generator holds must not matter
        fit(recipe, splits, parts, device="cpu", log=silent, stop_after=stop_after)
    assert_same_bytes(whole, parts)
    assert list(whole.history()["epoch"]) == [1, 2, 3]


def test_a_trained_run_whose_last_checkpoint_is_gone_is_not_trained_anew(
    splits: Splits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = fit(tiny(epochs=2), splits, Run.create(tmp_path / "run"), device="cpu", log=silent)
    kept = {name: run.file(name).read_bytes() for name in ("best.ckpt", "history.csv", "recipe.yaml")}
    run.file("last.ckpt").unlink()
    for resume in ("auto", False):
        with pytest.raises(RunError, match=r"its last\.ckpt, from which a training goes on, is gone"):
            fit(tiny(epochs=2), splits, run, device="cpu", log=silent, resume=resume)
        with pytest.raises(RunError, match="is gone"):
            training.check(tiny(epochs=2), run=run.path, resume=resume)
        monkeypatch.setenv("HOME", str(tmp_path))
        with pytest.raises(RunError, match="is gone"):
            training.check(tiny(epochs=2), out="~/run", resume=resume)
    assert {name: run.file(name).read_bytes() for name in kept} == kept


def test_a_directory_of_something_else_is_refused_before_faces_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def read(*_: object, **__: object) -> None:
        pytest.fail("faces were read")

    monkeypatch.setattr(sources, "load", read)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").touch()
    assert training.main(["--data", "synthetic", "--out", str(tmp_path / "mine")]) == 2
    assert "mine is there already and is no run" in capsys.readouterr().err


def test_a_training_that_ended_between_the_files_of_its_first_epoch_begins_anew(splits: Splits, tmp_path: Path) -> None:
    run = fit(tiny(epochs=2), splits, Run.create(tmp_path / "run"), device="cpu", log=silent, stop_after=1)
    run.file("last.ckpt").unlink()
    fit(tiny(epochs=2), splits, run, device="cpu", log=silent)
    whole = fit(tiny(epochs=2), splits, Run.create(tmp_path / "whole"), device="cpu", log=silent)
    assert_same_bytes(run, whole)


def test_what_a_killed_process_left_of_a_checkpoint_is_removed(splits: Splits, tmp_path: Path) -> None:
    run = fit(tiny(epochs=2), splits, Run.create(tmp_path / "run"), device="cpu", log=silent, stop_after=1)
    for name in (".last.0123abcd.ckpt", ".best.89ef4567.ckpt", ".last.mine.ckpt"):
        run.file(name).write_bytes(b"half")
    fit(tiny(epochs=2), splits, run, device="cpu", log=silent)
    assert sorted(path.name for path in run.path.glob(".*.ckpt")) == [".last.mine.ckpt"]


def test_a_disk_that_fills_is_told_and_the_training_goes_on_later(splits: Splits, tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    recipe, run = tiny(epochs=2), Run.create(tmp_path / "run")
    fit(recipe, splits, run, device="cpu", log=silent, stop_after=1)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(RunError, match=r"run: a file cannot be read or written .*File too large.* goes on"):
            fit(recipe, splits, run, device="cpu", log=silent)
        with pytest.raises(RunError, match=r"new: a file .*, and the same training begins anew"):
            fit(recipe, splits, Run.create(tmp_path / "new"), device="cpu", log=silent)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    fit(recipe, splits, run, device="cpu", log=silent)
    assert_same_bytes(run, fit(recipe, splits, Run.create(tmp_path / "whole"), device="cpu", log=silent))


def test_what_cannot_be_gone_on_with_is_told_before_an_epoch(splits: Splits, tmp_path: Path) -> None:
    run = fit(tiny(epochs=2), splits, Run.create(tmp_path / "run"), device="cpu", log=silent, stop_after=1)
    kept = run.file("history.csv").read_text(encoding="utf-8")
    run.file("history.csv").write_text(kept.replace(",", ";"), encoding="utf-8")
    lines: list[str] = []
    with pytest.raises(RunError, match=r"history\.csv is damaged"):
        fit(tiny(epochs=2), splits, run, device="cpu", log=lines.append)
    run.file("history.csv").write_text(kept, encoding="utf-8")
    run.file("last.ckpt").write_bytes(run.file("best.ckpt").read_bytes())
    with pytest.raises(RunError, match=r"last\.ckpt holds a network without its training.* start "):
        fit(tiny(epochs=2), splits, run, device="cpu", log=lines.append)
    assert lines == []


def test_a_history_that_lost_epochs_is_not_gone_on_with(splits: Splits, tmp_path: Path) -> None:
    run = fit(tiny(epochs=3), splits, Run.create(tmp_path / "run"), device="cpu", log=silent, stop_after=2)
    heading, *rows = run.file("history.csv").read_text(encoding="utf-8").splitlines(keepends=True)
    for kept in (None, rows[1:], rows[:1], rows[::-1]):
        run.file("history.csv").unlink(missing_ok=True)
        if kept is not None:
            run.file("history.csv").write_text("".join([heading, *kept]), encoding="utf-8")
        with pytest.raises(RunError, match=r"history\.csv does not hold the 2 epochs of its last\.ckpt.* start "):
            fit(tiny(epochs=3), splits, run, device="cpu", log=silent)


def test_03_counts_the_epochs_that_it_trains_itself(splits: Splits, tmp_path: Path) -> None:
    recipe = tiny(epochs=2)
    whole = fit(recipe, splits, Run.create(tmp_path / "whole"), device="cpu", log=silent)
    run = fit(recipe, splits, Run.create(tmp_path / "run"), device="cpu", log=silent, stop_after=1)
    # A process that is killed between the files of an epoch's end leaves its row.
    run.file("history.csv").write_bytes(whole.file("history.csv").read_bytes())
    code = [cell.source for cell in nbformat.read(NOTEBOOKS / "03_train.ipynb", 4).cells if cell.cell_type == "code"]
    at = next(index for index, source in enumerate(code) if "before = " in source)
    told: list[str] = []
    names = {
        **{"P": {"processes": 1, "device": "cpu", "resume": "auto"}, "config": recipe, "splits": splits},
        **{"checkpoint": checkpoint, "fit": functools.partial(fit, log=silent), "in_epochs": recipes.in_epochs},
        **{"this_run": run, "Markdown": str, "display": told.append, "show": lambda *_, **__: None},
    }
    for _ in range(2):
        for source in code[at : at + 2]:
            exec(compile(source, "03_train.ipynb", "exec"), names)
    assert re.fullmatch(r"Trained: 1 epoch, .* images/s\. The run had 1 epoch before, which it keeps\.", told[0])
    assert told[1] == "**This run was trained already**, with 2 epochs: what it holds is shown."


def test_03_tells_how_validation_went_from_the_first_epoch_to_the_best(splits: Splits) -> None:
    cells = nbformat.read(NOTEBOOKS / "03_train.ipynb", 4).cells
    (source,) = (cell.source for cell in cells if "Guessing the most frequent emotion" in cell.source)
    told: list[str] = []
    for accuracies, start in (
        ([0.15, 0.5, 0.4], "went from 15.0% in the first epoch to **50.0%** in epoch 2, with 60.0%"),
        ([0.15, 0.15], "was **15.0%** in the first epoch and no higher later, with 50.0%"),
        ([0.15], "was **15.0%** in the first epoch, with 50.0%"),
    ):
        epochs = range(1, len(accuracies) + 1)
        history = pd.DataFrame(
            {"epoch": epochs, "val_accuracy": accuracies, "train_accuracy": [0.4 + 0.1 * epoch for epoch in epochs]}
        )
        exec(source, {"history": history, "splits": splits, "Markdown": str, "display": told.append})
        assert told[-1].startswith(
            f"Validation accuracy {start} in training. Guessing the most frequent emotion would score "
        )


def test_a_resumed_training_needs_no_imagenet_weights(
    splits: Splits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipes.load("one_cycle", {"epochs": 2, "train_faces": 80, "image_size": 32})
    monkeypatch.setattr(models, "_load_imagenet", lambda *_: None)
    run = fit(recipe, splits, Run.create(tmp_path / "run"), device="cpu", log=silent, stop_after=1)

    def missing(*_: object) -> None:
        raise models.MissingWeights("there are none")

    monkeypatch.setattr(models, "_load_imagenet", missing)
    assert len(fit(recipe, splits, run, device="cpu", log=silent).history()) == 2
    with pytest.raises(models.MissingWeights):
        fit(recipe, splits, Run.create(tmp_path / "other"), device="cpu", log=silent)


def test_a_training_resumed_inside_an_epoch_is_the_same_to_the_byte(
    splits: Splits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tiny(epochs=2)
    whole = fit(recipe, splits, Run.create(tmp_path / "whole"), device="cpu", log=silent)
    parts = Run.create(tmp_path / "parts")
    monkeypatch.setattr(training, "SAVE_EVERY", 0.0)
    taken = 0
    step = training.train_step

    def interrupted(*arguments: Any) -> None:
        nonlocal taken
        taken += 1
        if taken == 7:
            raise KeyboardInterrupt
        step(*arguments)

    monkeypatch.setattr(training, "train_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fit(recipe, splits, parts, device="cpu", log=silent)
    held = checkpoint.load(parts.file("last.ckpt"))
    assert (held["epoch"], held["step"]) == (1, 1)
    # The finished epoch can be evaluated all the same, and the time of the one under way is counted.
    assert checkpoint.load_model(parts, "last").epoch == 1
    assert held["spent"] > 0
    monkeypatch.setattr(training, "train_step", step)
    fit(recipe, splits, parts, device="cpu", log=silent)
    assert_same_bytes(whole, parts)
    assert parts.history()["train_seconds"].iloc[1] > held["spent"]


def interrupted_inside(recipe: Recipe, splits: Splits, run: Run, steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Train until ``steps`` steps are done and saved."""
    taken = 0
    step = training.train_step

    def counted(*arguments: Any) -> None:
        nonlocal taken
        if taken == steps:
            raise KeyboardInterrupt
        taken += 1
        step(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(training, "SAVE_EVERY", -1.0)
        patched.setattr(training, "train_step", counted)
        with pytest.raises(KeyboardInterrupt):
            fit(recipe, splits, run, device="cpu", log=silent)
    held = checkpoint.load(run.file("last.ckpt"))
    assert (held["epoch"], held["step"]) == (0, steps)


def test_before_the_first_epochs_end_there_is_no_last_network(
    splits: Splits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run.create(tmp_path / "run")
    interrupted_inside(tiny(), splits, run, 2, monkeypatch)
    with pytest.raises(checkpoint.CheckpointError, match="has not reached the end of an epoch"):
        checkpoint.load_model(run, "last")


def test_what_is_not_finite_is_not_saved_inside_an_epoch(
    splits: Splits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "SAVE_EVERY", -1.0)
    run = Run.create(tmp_path / "run")
    recipe = tiny(optimizer="sgd", lr=1e30, schedule="constant", precision="float32", ema=0.0)
    with pytest.raises(TrainingError, match=r"not finite in epoch 1.*there is no good epoch"):
        fit(recipe, splits, run, device="cpu", log=silent)
    held = checkpoint.load(run.file("last.ckpt"))["model"] if run.has("last.ckpt") else {}
    assert all(torch.isfinite(value).all() for value in held.values())


def test_weights_that_the_last_step_spoils_are_told(splits: Splits, tmp_path: Path) -> None:
    # One step an epoch: its loss is finite, and what it leaves is not.
    recipe = tiny(
        optimizer="sgd", lr=1e38, momentum=0.0, schedule="constant", precision="float32", ema=0.0, batch_size=400
    )
    run = Run.create(tmp_path / "run")
    with pytest.raises(TrainingError, match=r"not finite .*lower lr"):
        fit(recipe, splits, run, device="cpu", log=silent)
    assert not run.has("best.ckpt")


def test_seeds_make_different_trainings_and_the_same_seed_the_same(splits: Splits, tmp_path: Path) -> None:
    runs = [
        fit(tiny(epochs=1, seed=seed), splits, Run.create(tmp_path / name), device="cpu", log=silent)
        for name, seed in (("a", 0), ("b", 0), ("c", 1))
    ]
    assert_same_bytes(runs[0], runs[1])
    assert not torch.equal(
        weights_of(runs[0])["fc.weight" if "fc.weight" in weights_of(runs[0]) else "fc.1.weight"],
        weights_of(runs[2])["fc.weight" if "fc.weight" in weights_of(runs[2]) else "fc.1.weight"],
    )


def test_it_learns_the_synthetic_faces(tmp_path: Path) -> None:
    splits = synthetic.generate(2000, seed=1)
    rows: list[dict[str, Any]] = []
    lines: list[str] = []
    recipe = tiny(epochs=4, width=0.25, dropout=0.0, ema=0.9)
    run = fit(recipe, splits, Run.create(tmp_path / "run"), device="cpu", on_epoch=rows.append, log=lines.append)
    # Always saying "happy" would score 25%.
    assert rows[-1]["val_accuracy"] > 0.4
    assert rows[-1]["train_loss"] < rows[0]["train_loss"]
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4]
    history = run.history()
    assert tuple(history.columns) == training.COLUMNS
    assert history["val_accuracy"].tolist() == pytest.approx([row["val_accuracy"] for row in rows])
    best = checkpoint.load_model(run)
    assert best.epoch == int(history["epoch"][history["val_accuracy"].idxmax()])
    assert checkpoint.load_model(run, "last").epoch == 4
    told = "\n".join(lines)
    assert all(word in told for word in ("epoch 4/4", "train loss", "val loss", "images/s", "left", "lr"))
    environment = json.loads(run.file("env.json").read_text())
    assert environment["data"]["fingerprint"] == splits.fingerprint()
    assert environment["data"]["synthetic"] is True
    assert run.recipe == recipe


def test_the_saved_best_is_what_was_scored(splits: Splits, tmp_path: Path) -> None:
    from fer_utils import metrics
    from fer_utils.prediction import predict

    run = fit(tiny(ema=0.9), splits, Run.create(tmp_path / "run"), device="cpu", precision="float32", log=silent)
    loaded = checkpoint.load_model(run)
    probabilities = predict(loaded.model, loaded.preprocessing, splits.val.images, device=torch.device("cpu"))
    best = run.history()["val_accuracy"].max()
    assert metrics.accuracy(probabilities, splits.val.targets) == pytest.approx(best, abs=1e-9)


# -- schedules --------------------------------------------------------------------------------------------------------


def test_one_cycle_is_torchs_own() -> None:
    recipe = tiny(epochs=4, lr=0.1, schedule="one_cycle", warmup=0.3)
    ours = training.learning_rates(recipe, 25)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    theirs = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=100, pct_start=0.3, cycle_momentum=False)
    expected = []
    for _ in range(100):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        theirs.step()
    np.testing.assert_allclose(ours, expected, rtol=1e-9)


def test_cosine_warms_up_and_ends_near_zero() -> None:
    rates = training.learning_rates(tiny(epochs=5, lr=1.0, schedule="cosine", warmup=0.2), 20)
    assert rates.argmax() == 20
    assert rates.max() == pytest.approx(1.0, abs=1e-3)
    assert np.all(np.diff(rates[:20]) > 0)
    assert np.all(np.diff(rates[20:]) < 0)
    assert rates[-1] < 1e-3
    assert rates[60] == pytest.approx(0.5, abs=1e-9)


def test_plateau_is_torchs_own(splits: Splits, tmp_path: Path) -> None:
    run = fit(
        tiny(epochs=6, schedule="plateau", plateau_patience=1, plateau_factor=0.3, lr=0.02, optimizer="sgd"),
        splits,
        Run.create(tmp_path / "run"),
        device="cpu",
        log=silent,
    )
    history = run.history()
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.02)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.3, patience=1)
    expected = []
    for loss in history["val_loss"]:
        expected.append(optimizer.param_groups[0]["lr"])
        scheduler.step(loss)
    np.testing.assert_allclose(history["lr"], expected, rtol=1e-9)


def test_progressive_sizes_rise_in_steps_of_four_to_the_last() -> None:
    sizes = training.image_sizes(tiny(progressive=32, epochs=9))
    assert (sizes[0], sizes[-1], len(sizes)) == (32, 48, 9)
    assert sizes == sorted(sizes)
    assert {size % 4 for size in sizes} == {0}
    # Steps of four from 24 do not meet 50, at which the network is evaluated.
    assert training.image_sizes(tiny(progressive=24, image_size=50, epochs=4))[-1] == 50
    assert training.image_sizes(tiny(progressive=24, epochs=0)) == []


def test_every_face_is_in_one_batch() -> None:
    for n, size, world in ((400, 64, 1), (129, 64, 1), (65, 64, 1), (67, 64, 2), (5, 64, 2)):
        bounds = training.batch_bounds(n, size, world)
        covered = [i for start, end in bounds for i in range(start, end)]
        assert covered == list(range(n))
        assert min(end - start for start, end in bounds) >= 2 * world
    with pytest.raises(TrainingError, match="too few"):
        training.batch_bounds(3, 64, 2)


# -- options ----------------------------------------------------------------------------------------------------------


def test_early_stopping_ends_after_the_epochs_without_a_better_accuracy(splits: Splits, tmp_path: Path) -> None:
    lines: list[str] = []
    # A rate too small to change any prediction: the first epoch stays the best.
    recipe = tiny(epochs=9, lr=1e-12, early_stopping=2, ema=0.0, schedule="constant", freeze_batch_norm=False)
    run = fit(recipe, splits, Run.create(tmp_path / "run"), device="cpu", log=lines.append)
    history = run.history()
    best = int(history["epoch"][history["val_accuracy"].idxmax()])
    assert len(history) == best + 2 < 9
    assert "stopped early" in lines[-1]


def test_keep_epoch_ends_there_and_keeps_it_whatever_validation_says(splits: Splits, tmp_path: Path) -> None:
    lines: list[str] = []
    # A rate too small to change any prediction: by validation the first epoch would be kept.
    recipe = tiny(epochs=4, keep_epoch=3, lr=1e-12, ema=0.0, schedule="constant", freeze_batch_norm=False)
    run = fit(recipe, splits, Run.create(tmp_path / "run"), device="cpu", log=lines.append)
    assert run.history()["epoch"].tolist() == [1, 2, 3]
    assert checkpoint.load_model(run).epoch == 3
    assert "3 of 4 epochs" in lines[0]
    assert "epoch 3/3" in lines[-1]


def test_keep_epoch_is_a_training_of_all_epochs_until_then(splits: Splits, tmp_path: Path) -> None:
    whole = fit(tiny(epochs=4), splits, Run.create(tmp_path / "whole"), device="cpu", log=silent, stop_after=2)
    ended = fit(tiny(epochs=4, keep_epoch=2), splits, Run.create(tmp_path / "ended"), device="cpu", log=silent)
    columns = [name for name in training.COLUMNS if name not in TIMING_COLUMNS]
    assert whole.history()[columns].equals(ended.history()[columns])
    last, kept = checkpoint.load_model(whole, "last"), checkpoint.load_model(ended, "best")
    assert kept.epoch == 2
    for name, value in last.model.state_dict().items():
        assert torch.equal(value, kept.model.state_dict()[name]), name


def test_keep_epoch_beyond_the_epochs_is_the_last(splits: Splits, tmp_path: Path) -> None:
    run = fit(tiny(epochs=1, keep_epoch=9), splits, Run.create(tmp_path / "run"), device="cpu", log=silent)
    assert checkpoint.load_model(run).epoch == len(run.history()) == 1


def test_growing_sizes_end_at_the_whole_size_in_the_epoch_that_is_kept() -> None:
    sizes = training.image_sizes(tiny(epochs=9, keep_epoch=3, image_size=48, progressive=32))
    assert sizes == [32, 40, 48]


def test_class_weights_are_inverse_frequencies() -> None:
    targets = np.array([0] * 6 + [3] * 2, dtype=np.int64)
    weights = training.class_weights(tiny(balance="loss"), targets)
    assert weights[0] * 6 == pytest.approx(weights[3] * 2) == pytest.approx(8 / 7)
    assert training.class_weights(tiny(), targets).tolist() == [1.0] * 7


def test_the_weighted_loss_of_cut_and_mixed_faces_is_their_mean(splits: Splits, tmp_path: Path) -> None:
    recipe = tiny(epochs=1, batch_size=1000, balance="loss", cutmix=1.0, precision="float64", dropout=0.0, ema=0.0)
    run = fit(recipe, splits, Run.create(tmp_path / "run"), device="cpu", log=silent)
    state = training.make_state(recipe, torch.device("cpu"), "float64")
    train = splits.train
    targets, images = torch.from_numpy(train.targets), torch.from_numpy(train.images)
    weights = torch.tensor(training.class_weights(recipe, train.targets))
    how, plan = Preprocessing.of(recipe, train), training.Epoch.plan(recipe, targets, 0)
    seen = training.make_batch(plan, (0, len(train)), images, targets, weights.float(), how, training.Ranks())
    assert seen.others is not None
    assert seen.share is not None
    with torch.no_grad():
        told = torch.log_softmax(state.model(seen.inputs.double()), 1)
    # By the definition of a weighted mean: a face is so much of the one emotion and so much of the other.
    loss, weight, smoothing = 0.0, 0.0, recipe.label_smoothing
    for row, *emotions, share in zip(told, seen.targets, seen.others, seen.share.double(), strict=True):
        for emotion, part in zip(emotions, (share, 1 - share), strict=True):
            smooth = -(row * weights).mean()
            loss += float(part * ((1 - smoothing) * weights[emotion] * -row[emotion] + smoothing * smooth))
            weight += float(part * weights[emotion])
    assert run.history()["train_loss"][0] == pytest.approx(loss / weight, rel=1e-6)


def test_sam_steps_along_the_gradient_uphill(splits: Splits, tmp_path: Path) -> None:
    # One step of plain SGD over all faces, in float64: from the weights before and after follows its gradient.
    plain = {"optimizer": "sgd", "momentum": 0.0, "nesterov": False, "weight_decay": 0.0, "schedule": "constant"}
    plain |= {"lr": 0.1, "ema": 0.0, "dropout": 0.0, "augment": {}, "label_smoothing": 0.0, "precision": "float64"}
    plain |= {"batch_size": 1000, "epochs": 1}
    model = models.build(tiny(**plain)).double()
    names = [name for name, _ in model.named_parameters()]

    def stepped(sam: float) -> dict[str, torch.Tensor]:
        run = fit(tiny(**plain, sam=sam), splits, Run.create(tmp_path / f"sam {sam}"), device="cpu", log=silent)
        return weights_of(run)

    def gradient(at: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        model.load_state_dict(at)
        model.train()
        inputs = preprocessing(torch.from_numpy(splits.train.images)).double()
        loss = torch.nn.functional.cross_entropy(model(inputs), torch.from_numpy(splits.train.targets))
        return dict(zip(names, torch.autograd.grad(loss, list(model.parameters())), strict=True))

    preprocessing = Preprocessing.of(tiny(**plain), splits.train)
    without, with_sam = stepped(0.0), stepped(0.3)
    state = training.make_state(tiny(**plain), torch.device("cpu"), "float64")
    start = {name: value.clone() for name, value in state.model.state_dict().items()}
    here = gradient(start)
    for name in names:
        torch.testing.assert_close(without[name], start[name] - 0.1 * here[name], rtol=1e-6, atol=1e-9)
    norm = torch.sqrt(sum((value**2).sum() for value in here.values()))
    up = {name: value + 0.3 * here[name] / norm if name in here else value for name, value in start.items()}
    there = gradient(up)
    for name in names:
        torch.testing.assert_close(with_sam[name], start[name] - 0.1 * there[name], rtol=1e-6, atol=1e-9)
    # Batch norm has seen the faces once, at the weights themselves.
    for name in set(start) - set(names):
        torch.testing.assert_close(with_sam[name], without[name], rtol=1e-9, atol=1e-12)


def test_a_student_is_taught_by_its_teachers_answers(splits: Splits, tmp_path: Path) -> None:
    from fer_utils.prediction import predict

    teacher = fit(tiny(seed=5, epochs=1), splits, Run.create(tmp_path / "teacher"), device="cpu", log=silent)
    still = {"lr": 1e-12, "ema": 0.0, "dropout": 0.0, "augment": {}, "weight_decay": 0.0, "schedule": "constant"}
    still |= {
        "batch_size": 1000,
        "label_smoothing": 0.1,
        "epochs": 1,
        "precision": "float32",
        "freeze_batch_norm": True,
    }
    recipe = tiny(**still, train_layers=["fc"], teacher=str(teacher.path), teacher_share=0.75)
    run = fit(recipe, splits, Run.create(tmp_path / "student"), device="cpu", log=silent)

    def answers(of: Run, tta: Any = "none") -> np.ndarray[Any, Any]:
        held = checkpoint.load_model(of)
        return predict(held.model, held.preprocessing, splits.train.images, device=torch.device("cpu"), tta=tta)

    labels = 0.9 * np.eye(7)[splits.train.targets] + 0.1 / 7
    taught = 0.25 * labels + 0.75 * answers(teacher)
    expected = -(taught * np.log(answers(run))).sum(1).mean()
    assert run.history()["train_loss"].iloc[0] == pytest.approx(expected, rel=1e-4)

    # Two teachers answer as one, by the mean of their probabilities.
    second = fit(tiny(seed=6, epochs=1, width=0.25), splits, Run.create(tmp_path / "second"), device="cpu", log=silent)
    recipe = recipe.model_copy(update={"teacher": f"{teacher.path}, {second.path}"})
    run = fit(recipe, splits, Run.create(tmp_path / "of two"), device="cpu", log=silent)
    taught = 0.25 * labels + 0.75 * (answers(teacher) + answers(second)) / 2
    expected = -(taught * np.log(answers(run))).sum(1).mean()
    assert run.history()["train_loss"].iloc[0] == pytest.approx(expected, rel=1e-4)

    # Asked once before training, they may be of another input size, and answer by the mean of ten crops.
    third = fit(tiny(seed=7, epochs=1, image_size=32), splits, Run.create(tmp_path / "third"), device="cpu", log=silent)
    recipe = recipe.model_copy(
        update={"teacher": f"{teacher.path},{third.path}", "teacher_views": "ten_crop", "batch_size": 50}
    )
    run = fit(recipe, splits, Run.create(tmp_path / "of ten crops"), device="cpu", log=silent)
    taught = 0.25 * labels + 0.75 * (answers(teacher, "ten_crop") + answers(third, "ten_crop")) / 2
    expected = -(taught * np.log(answers(run))).sum(1).mean()
    assert run.history()["train_loss"].iloc[0] == pytest.approx(expected, rel=1e-4)


def test_a_teacher_sees_what_its_student_sees_at_its_own_size(splits: Splits, tmp_path: Path) -> None:
    class Seen(torch.nn.Module):
        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            seen.append(inputs)
            return torch.zeros(len(inputs), 7)

    seen: list[torch.Tensor] = []
    smaller, equal = (
        fit(tiny(epochs=1, image_size=size), splits, Run.create(tmp_path / str(size)), device="cpu", log=silent)
        for size in (32, 48)
    )
    teacher = training.Teacher([replace(checkpoint.load_model(run), model=Seen()) for run in (smaller, equal)])
    columns = torch.linspace(-1, 1, 48).expand(2, 1, 48, 48)
    assert torch.equal(teacher(columns), torch.full((2, 7), 1 / 7))
    assert [tuple(each.shape) for each in seen] == [(2, 1, 32, 32), (2, 1, 48, 48)]
    assert torch.equal(seen[1], columns)
    torch.testing.assert_close(seen[0][0, 0, 5, 4:-4], torch.linspace(-1, 1, 32)[4:-4], rtol=0, atol=0.03)
    recipe = tiny(epochs=1, teacher=f"{smaller.path},{equal.path}", teacher_views="same")
    run = fit(recipe, splits, Run.create(tmp_path / "student"), device="cpu", log=silent)
    assert np.isfinite(run.history()["train_loss"].iloc[0])


STILL: dict[str, Any] = {
    **{"lr": 1e-12, "weight_decay": 0.0, "schedule": "constant", "freeze_batch_norm": True},
    "train_layers": ["fc"],
}
"""A training that leaves a network as it began."""


def two_trained(splits: Splits, folder: Path) -> tuple[list[Run], str]:
    """Two runs of different seeds, and what `start` takes to name both."""
    runs = [
        fit(tiny(seed=seed, epochs=1), splits, Run.create(folder / str(seed)), device="cpu", log=silent)
        for seed in (5, 6)
    ]
    return runs, ",".join(str(run.path) for run in runs)


def test_a_training_starts_from_a_trained_network(splits: Splits, tmp_path: Path) -> None:
    first = fit(tiny(seed=5, epochs=2), splits, Run.create(tmp_path / "first"), device="cpu", log=silent)
    recipe = tiny(**STILL, epochs=1, ema=0.9, start=str(first.path))
    further = fit(recipe, splits, Run.create(tmp_path / "further"), device="cpu", log=silent)
    there, here = (checkpoint.load_model(run).model.state_dict() for run in (first, further))
    for name, value in there.items():
        torch.testing.assert_close(here[name], value, rtol=1e-6, atol=1e-6)


def test_trained_networks_are_put_together_without_more_training(splits: Splits, tmp_path: Path) -> None:
    halves, both = two_trained(splits, tmp_path)
    # Their dropout may differ from this recipe's: it has no weights.
    recipe = tiny(members=2, epochs=0, dropout=0.0, start=both, precision="float32")
    training.check(recipe)
    told: list[str] = []
    together = fit(recipe, splits, Run.create(tmp_path / "together"), device="cpu", log=told.append)
    faces = torch.rand(7, 1, 48, 48)
    held = checkpoint.load_model(together)
    with torch.no_grad():
        first, second, whole = (checkpoint.load_model(run).model(faces) for run in (*halves, together))
    assert (first - second).abs().max() > 0.01
    torch.testing.assert_close(whole, (first + second) / 2, rtol=1e-5, atol=1e-6)
    assert held.epoch == 0
    assert not together.has("history.csv")
    answers = predict(
        held.model, held.preprocessing, splits.val.images, device=torch.device("cpu"), precision="float32"
    )
    loss, right = metrics.nll(answers, splits.val.targets), (answers.argmax(1) == splits.val.targets).mean()
    assert f"nothing is trained  val loss {loss:.3f} accuracy {right:.1%}" in told[-1]
    # Again it is there already, and of another recipe it is refused.
    before = together.file("best.ckpt").read_bytes()
    for resume in ("auto", True):
        fit(recipe, splits, together, device="cpu", resume=resume, log=told.append)
        assert "has its network already" in told[-1]
    with pytest.raises(RunError, match=r"holds a training already"):
        training.check(recipe, resume=False, out=together.path)
    with pytest.raises(RunError, match=r"another recipe \(seed 0 there, 9 here\)"):
        training.check(recipe.model_copy(update={"seed": 9}), run=together.path)
    with pytest.raises(RunError, match=r"put together from trained ones: train into a new run"):
        training.check(recipe.model_copy(update={"epochs": 1}), out=together.path)
    assert together.file("best.ckpt").read_bytes() == before
    # Their run can be a start itself, with a third.
    more = tiny(members=3, epochs=0, start=f"{together.path},{halves[0].path}")
    three = fit(more, splits, Run.create(tmp_path / "three"), device="cpu", log=silent)
    with torch.no_grad():
        torch.testing.assert_close(
            checkpoint.load_model(three).model(faces), (2 * first + second) / 3, rtol=1e-5, atol=1e-6
        )
    named = [str(run.path) for run in (*halves, halves[0])]
    assert [part["run"] for part in three.read_json("env.json")["parts"]] == named


def test_what_is_kept_as_it_is_sees_faces_as_it_did(splits: Splits, tmp_path: Path) -> None:
    _, both = two_trained(splits, tmp_path)
    with pytest.raises(TrainingError, match=r"another network \(image_size 48 there, 40 here\)"):
        training.check(tiny(members=2, epochs=0, image_size=40, start=both))
    training.check(tiny(members=2, epochs=1, image_size=40, start=both))
    fewer = fit(tiny(epochs=1, normalize="dataset", train_faces=60), splits, Run.create(tmp_path / "few"), log=silent)
    kept = tiny(epochs=0, normalize="dataset", start=str(fewer.path))
    with pytest.raises(TrainingError, match="only if its faces are prepared as they were"):
        fit(kept, splits, Run.create(tmp_path / "kept"), device="cpu", log=silent)


@pytest.mark.parametrize(
    "fields",
    [
        {"optimizer": "sgd", "lr": 0.05, "weight_decay": 0.01, "mixup": 0.4},
        {"lr": 1e-3, "balance": "loss", "ema": 0.9, "clip_value": 0.01},
        {"lr": 1e-3, "optimizer": "muon", "weight_decay": 0.01},
    ],
)
def test_a_member_learns_what_it_would_alone(fields: dict[str, Any], splits: Splits, tmp_path: Path) -> None:
    halves, both = two_trained(splits, tmp_path)
    # Dropout draws anew for each member; all else is the same for one and for several.
    common = {"epochs": 2, "dropout": 0.0, "precision": "float64", "seed": 3, "schedule": "constant", **fields}
    together = fit(
        tiny(**common, members=2, start=both), splits, Run.create(tmp_path / "together"), device="cpu", log=silent
    )
    alone = [
        fit(tiny(**common, start=str(run.path)), splits, Run.create(tmp_path / f"alone-{i}"), device="cpu", log=silent)
        for i, run in enumerate(halves)
    ]
    kept = weights_of(together)
    for i, run in enumerate(alone):
        for name, value in weights_of(run).items():
            torch.testing.assert_close(kept[f"members.{i}.{name}"], value, rtol=1e-9, atol=1e-12)
    losses = [run.history()["train_loss"] for run in alone]
    assert abs(losses[0] - losses[1]).max() > 1e-3
    np.testing.assert_allclose(together.history()["train_loss"], np.mean(losses, axis=0), rtol=1e-9)


def test_members_resume_to_the_same_bytes(splits: Splits, tmp_path: Path) -> None:
    recipe = tiny(members=2, epochs=2)
    whole = fit(recipe, splits, Run.create(tmp_path / "whole"), device="cpu", log=silent)
    broken = fit(recipe, splits, Run.create(tmp_path / "broken"), device="cpu", log=silent, stop_after=1)
    fit(recipe, splits, broken, device="cpu", log=silent)
    assert_same_bytes(whole, broken)


def test_a_start_of_another_shape_is_told(splits: Splits, tmp_path: Path) -> None:
    run = Run.create(tmp_path / "vit")
    small = {"backbone": "vit_b_16", "channels": 1, "train_faces": None, "epochs": 1}
    run.write_recipe(recipes.load("one_cycle", {**small, "weights": "none", "image_size": 32}))
    run.write_environment(splits, "cpu", "float32", 1)
    run.file("best.ckpt").touch()
    asked = recipes.load("one_cycle", {**small, "weights": "none", "image_size": 48, "start": str(run.path)})
    with pytest.raises(TrainingError, match=r"pos_embedding is .* built for one size of input"):
        training.check(asked)


def test_a_network_that_was_not_trained_here_keeps_its_identity(splits: Splits, tmp_path: Path) -> None:
    first = fit(tiny(epochs=1), splits, Run.create(tmp_path / "first"), device="cpu", log=silent)
    unpacked = Run.create(tmp_path / "unpacked")
    for name in ("best.ckpt", "recipe.yaml", "env.json"):
        unpacked.file(name).write_bytes(first.file(name).read_bytes())
    other = sources.load("synthetic:300", cache=False)
    for resume in (False, "auto"):
        with pytest.raises(RunError, match=r"was not trained in it.*new run"):
            fit(tiny(seed=3), other, unpacked, device="cpu", resume=resume, log=silent)
    for name in ("best.ckpt", "recipe.yaml", "env.json"):
        assert unpacked.file(name).read_bytes() == first.file(name).read_bytes()


def test_networks_that_are_not_the_members_are_refused_before_faces_are_read(splits: Splits, tmp_path: Path) -> None:
    halves, both = two_trained(splits, tmp_path)
    with pytest.raises(TrainingError, match=r"brings 2 networks, and this recipe has members 3: set members to 2"):
        training.check(tiny(members=3, start=both))
    with pytest.raises(TrainingError, match=r"brings 1 network, and this recipe has members 2"):
        training.check(tiny(members=2, start=str(halves[0].path)))
    with pytest.raises(TrainingError, match=r"another network \(activation 'silu' there, 'relu' here\)"):
        training.check(tiny(members=2, activation="relu", start=both))
    with pytest.raises(TrainingError, match=r"another network \(width 0\.125 there, 0\.25 here\)"):
        training.check(tiny(members=2, width=0.25, start=both))
    again = f"{halves[0].path},{tmp_path / 'a' / '..' / halves[0].path.name}"
    (tmp_path / "a").mkdir()
    with pytest.raises(TrainingError, match="names a run twice"):
        training.check(tiny(members=2, start=again))


def test_a_start_that_does_not_fit_is_refused(splits: Splits, tmp_path: Path) -> None:
    first = fit(tiny(epochs=1), splits, Run.create(tmp_path / "first"), device="cpu", log=silent)
    other = tiny(activation="relu", start=str(first.path))
    told = r"another network \(activation 'silu' there, 'relu' here\)"
    with pytest.raises(TrainingError, match=told):
        training.check(other)
    with pytest.raises(TrainingError, match=told):
        fit(other, splits, Run.create(tmp_path / "other"), device="cpu", log=silent)
    with pytest.raises(RunError, match=r"start .*nowhere"):
        training.check(tiny(start=str(tmp_path / "nowhere")))
    recut = sources.load("synthetic:400", val_fraction=0.3, cache=False)
    with pytest.raises(TrainingError, match=r"start .* was trained on other faces or another cut"):
        fit(tiny(start=str(first.path)), recut, Run.create(tmp_path / "recut"), device="cpu", log=silent)


def test_a_teacher_that_changed_or_does_not_fit_is_refused(splits: Splits, tmp_path: Path) -> None:
    teacher = fit(tiny(epochs=1), splits, Run.create(tmp_path / "teacher"), device="cpu", log=silent)
    recipe = tiny(epochs=2, teacher=str(teacher.path))
    run = fit(recipe, splits, Run.create(tmp_path / "student"), device="cpu", log=silent, stop_after=1)
    with pytest.raises(TrainingError, match="channels"):
        fit(tiny(channels=3, teacher=str(teacher.path)), splits, Run.create(tmp_path / "other"), log=silent)
    with pytest.raises(RunError, match="nowhere"):
        fit(
            tiny(teacher=f"{teacher.path},{tmp_path / 'nowhere'}"), splits, Run.create(tmp_path / "another"), log=silent
        )
    recut = sources.load("synthetic:400", val_fraction=0.3, cache=False)
    with pytest.raises(TrainingError, match=r"other faces or another cut.*val_fraction None, split_seed 0"):
        fit(recipe, recut, Run.create(tmp_path / "recut"), device="cpu", log=silent)
    other = fit(tiny(epochs=1, seed=1), splits, Run.create(tmp_path / "second"), device="cpu", log=silent)
    teacher.file("best.ckpt").write_bytes(other.file("best.ckpt").read_bytes())
    with pytest.raises(RunError, match="another network"):
        fit(recipe, splits, run, device="cpu", log=silent)


def test_another_recipe_is_told_by_what_differs(splits: Splits, tmp_path: Path) -> None:
    run = fit(tiny(epochs=1), splits, Run.create(tmp_path / "run"), device="cpu", log=silent)
    other = recipes.load("narrow", {"width": 0.125, "epochs": 1, "image_size": 48})
    with pytest.raises(RunError) as caught:
        fit(other, splits, run, device="cpu", log=silent)
    told = str(caught.value)
    assert "augment.translate 0.12 there, 0.1 here" in told
    assert "description" not in told
    assert "Augment(" not in told
    assert re.search(r"and \d+ more\): train into a new run", told)
    assert len(told) < 500


def test_ctrl_c_says_how_to_go_on(tmp_path: Path) -> None:
    words = ["--data", "synthetic:400", "--device", "cpu", "--out", str(tmp_path / "run")]
    words += ["--set", "width=0.125", "image_size=24", "epochs=500"]
    command = [sys.executable, "-m", "fer_utils.training", *words]
    child = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # What is started in the background ignores the signal, and so would what it starts.
        preexec_fn=functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )
    assert child.stdout is not None
    for line in child.stdout:
        if line.startswith("epoch 1/"):
            child.send_signal(signal.SIGINT)
            break
    _, told = child.communicate(timeout=120)
    assert child.returncode == 130
    assert f"--out {tmp_path / 'run'} goes on from its last checkpoint" in told
    assert "Traceback" not in told
    assert Run.open(tmp_path / "run").has("last.ckpt")


def test_ctrl_c_says_what_is_kept(
    splits: Splits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object, **__: object) -> Splits:
        raise KeyboardInterrupt

    run = tmp_path / "run"
    command = ["--data", "synthetic:400", "--device", "cpu", "--out", str(run)]
    command += ["--set", "width=0.125", "image_size=24", "epochs=2"]
    anew = "interrupted: nothing is trained and kept yet, so the same command begins anew\n"
    with monkeypatch.context() as patch:
        patch.setattr(training.sources, "load", interrupted)
        assert training.main(command) == 130
        assert capfd.readouterr().err == anew
        assert not run.exists()
    monkeypatch.setattr(training.sources, "load", lambda *_, **__: splits)
    with monkeypatch.context() as patch:
        patch.setattr(training, "train_step", interrupted)
        assert training.main(command) == 130
        assert capfd.readouterr().err == anew, "the first epoch was not finished"
    with monkeypatch.context() as patch:
        patch.setattr(training, "fit", functools.partial(fit, stop_after=1))
        assert training.main(command) == 0
    monkeypatch.setattr(training.sources, "load", interrupted)
    assert training.main(command) == 130
    told = f"interrupted: 1 epoch is trained, and the same command with --out {run} goes on from its last checkpoint\n"
    assert capfd.readouterr().err == told
    # What cannot be gone on with is not said to be.
    Run.open(run).file("history.csv").write_text("a;b\n")
    assert training.main(command) == 2
    assert "history.csv is damaged" in capfd.readouterr().err


@pytest.mark.parametrize("name", ["training", "export", "box", "suite"])
def test_ctrl_c_while_torch_is_imported_is_a_line(name: str, tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise KeyboardInterrupt")
    command = [sys.executable, "-m", f"fer_utils.{name}", "run", "name"]
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    done = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.stderr == "interrupted\n"
    assert done.returncode in (130, -signal.SIGINT)


def test_a_run_below_a_file_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match=r"cannot be made \(Not a directory\): name another directory"):
        Run.create(tmp_path / "file" / "run")


def test_a_teacher_of_another_cut_is_told_before_a_run_is_made(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    words = ["--data", "synthetic:200", "--device", "cpu", "--set", "width=0.125", "image_size=24", "epochs=1"]
    assert training.main([*words, "--out", str(tmp_path / "teacher")]) == 0
    taught = [*words, f"teacher={tmp_path / 'teacher'}", "val_fraction=0.3", "--out", str(tmp_path / "student")]
    assert training.main(taught) == 2
    assert "another cut" in capfd.readouterr().err
    assert not (tmp_path / "student").exists()


def test_the_average_follows_the_weights_and_their_statistics() -> None:
    torch.manual_seed(0)
    model = models.build(tiny())
    averaged = models.build(tiny())
    expected = {name: value.clone() for name, value in averaged.state_dict().items()}
    for updates in (1, 2, 500):
        training.update_average(averaged, model, training.average_weight(0.9, updates))
        weight = 1 - min(0.9, (1 + updates) / (10 + updates))
        for name, value in model.state_dict().items():
            if value.is_floating_point():
                expected[name] += weight * (value - expected[name])
    for name, value in averaged.state_dict().items():
        torch.testing.assert_close(value, expected[name] if value.is_floating_point() else model.state_dict()[name])


def test_frozen_layers_stay_as_they_were(splits: Splits, tmp_path: Path) -> None:
    recipe = tiny(train_layers=["layer4", "fc"], freeze_batch_norm=True, epochs=1, ema=0.0, weight_decay=0.1)
    torch.manual_seed(recipe.seed)
    before = models.build(recipe).state_dict()
    after = weights_of(fit(recipe, splits, Run.create(tmp_path / "run"), device="cpu", log=silent))
    for name, value in after.items():
        trained = name.startswith(("layer4", "fc"))
        assert torch.equal(value, before[name]) != trained or not value.is_floating_point(), name


def test_without_a_validation_part_the_last_epoch_is_kept(splits: Splits, tmp_path: Path) -> None:
    whole = Splits(Faces.concatenate([splits.train, splits.val]), Faces.empty(), splits.test, "synthetic")
    run = fit(tiny(val_fraction=0.0, epochs=2), whole, Run.create(tmp_path / "run"), device="cpu", log=silent)
    assert checkpoint.load_model(run).epoch == 2
    assert run.history()["val_accuracy"].isna().all()


# -- what is refused --------------------------------------------------------------------------------------------------


def test_a_run_of_another_recipe_or_other_faces_is_not_continued(splits: Splits, tmp_path: Path) -> None:
    run = fit(tiny(epochs=1), splits, Run.create(tmp_path / "run"), device="cpu", log=silent)
    with pytest.raises(RunError, match=r"lr .* there, 0\.5 here"):
        fit(tiny(epochs=1, lr=0.5), splits, run, device="cpu", log=silent)
    with pytest.raises(RunError, match="other faces"):
        fit(tiny(epochs=1), synthetic.generate(400, seed=9), run, device="cpu", log=silent)
    with pytest.raises(RunError, match="holds a training already"):
        fit(tiny(epochs=1), splits, run, device="cpu", resume=False, log=silent)
    with pytest.raises(RunError, match=r"no last\.ckpt"):
        fit(tiny(epochs=1), splits, Run.create(tmp_path / "new"), device="cpu", resume=True, log=silent)
    before = run.file("last.ckpt").stat().st_mtime_ns
    fit(tiny(epochs=1), splits, run, device="cpu", log=silent)
    assert run.file("last.ckpt").stat().st_mtime_ns == before


def test_a_second_training_in_the_same_run_is_refused(splits: Splits, tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run")
    refused = []

    def another(_: Any) -> None:
        with pytest.raises(RunError, match="another training is at work"):
            fit(tiny(epochs=1), splits, run, device="cpu", log=silent)
        refused.append(True)

    fit(tiny(epochs=1), splits, run, device="cpu", log=silent, on_epoch=another)
    assert refused


def test_a_loss_that_explodes_is_told_and_the_last_good_epoch_kept(splits: Splits, tmp_path: Path) -> None:
    recipe = tiny(optimizer="sgd", lr=1e30, schedule="constant", precision="float32", ema=0.0)
    run = Run.create(tmp_path / "run")
    with pytest.raises(TrainingError, match=r"lower lr .*1e\+30"):
        fit(recipe, splits, run, device="cpu", log=silent)
    assert not run.has("best.ckpt")


def test_unlabelled_training_faces_are_refused(splits: Splits, tmp_path: Path) -> None:
    bare = Faces(splits.train.images, np.full(len(splits.train), -1, np.int64), splits.train.names)
    with pytest.raises(TrainingError, match="no labelled faces"):
        fit(tiny(), Splits(bare, splits.val, splits.test, "synthetic"), Run.create(tmp_path / "run"), log=silent)


# -- what is told before any face is read --


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--recipe", "fats"], "unknown recipe 'fats', did you mean fast?"),
        (["--data", "/no/such/faces"], "/no/such/faces is not there"),
        (["--set", "epoch=3"], "unknown field 'epoch'"),
        (["--set", "epochs=three"], "epochs: expected a whole number"),
        (["--set", "lr"], "--set takes FIELD=VALUE, not 'lr'"),
        (["--set", "epochs=1", "precision=float16"], "precision float16 needs a GPU"),
        (["--device", "cuda:99"], "device 'cuda:99' is not there"),
        (["--set", "train_layers=layer9"], "layer9"),
        (["--set", "teacher=no_such_run"], "no run at no_such_run"),
        (["--set", "teacher=accurate"], "--unpack NAME RUN` makes a run of a model in the box"),
        (["--resume", "true", "--out", "RUN"], "no run at"),
        (["--resume", "true"], "name its run"),
        (["--set", "width=0.125", "stem=imagenet", "image_size=32", "batch_size=1"], "set batch_size to at least 2"),
    ],
)
def test_the_command_line_tells_mistakes_with_code_2_and_makes_no_run(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "run"
    monkeypatch.setattr("fer_utils.runs.OUTPUTS", tmp_path / "outputs")
    words = ["--data", "synthetic:200", "--device", "cpu", *(str(out) if word == "RUN" else word for word in arguments)]
    try:
        code = training.main(words)
    except SystemExit as exit:
        code = exit.code  # type: ignore[assignment]
    assert code == 2
    told = capfd.readouterr().err
    assert message in told
    assert "Traceback" not in told
    assert list(tmp_path.iterdir()) == []


def test_the_help_tells_every_default(capfd: pytest.CaptureFixture[str]) -> None:
    training.main(["--help"])
    options = [option.split() for option in capfd.readouterr().out.split("\n  --")[1:]]
    assert {"device", "resume", "on-bad"} < {option[0] for option in options}
    assert all("(default:" in option for option in options if option[0] != "set")


def test_no_processes_are_refused(tmp_path: Path) -> None:
    for processes in (0, -1):
        with pytest.raises(TrainingError, match=f"expected at least 1, got {processes}"):
            training.check(tiny(), device="cpu", processes=processes)
        with pytest.raises(TrainingError, match=f"expected at least 1, got {processes}"):
            next(training.launch(tiny(), "synthetic:200", Run.create(tmp_path / "run"), processes))


def test_a_batch_too_small_for_batch_norm_is_told(tmp_path: Path) -> None:
    small, large = tiny(image_size=32, batch_size=1), tiny(image_size=48, batch_size=1)
    for recipe, processes in (
        (small, 1),
        (large.model_copy(update={"progressive": 32}), 1),
        (tiny(image_size=32, batch_size=3), 2),
    ):
        with pytest.raises(TrainingError, match=f"batch_size {recipe.batch_size} .* at least {2 * processes}$"):
            training.check(recipe, device="cpu", processes=processes)
    # Others can.
    frozen = {"train_layers": ["fc"], "freeze_batch_norm": True}
    for recipe in (large, tiny(image_size=32, batch_size=2), tiny(image_size=32, batch_size=1, **frozen)):
        training.check(recipe, device="cpu")
    fit(
        large.model_copy(update={"epochs": 1}),
        synthetic.generate(100),
        Run.create(tmp_path / "run"),
        device="cpu",
        log=silent,
    )


def test_a_network_that_cannot_be_compiled_is_told(
    splits: Splits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def compiled(network: torch.nn.Module) -> None:
        def fails(_: torch.Tensor) -> None:
            raise RuntimeError("InvalidCxxCompiler: No working C++ compiler found\n\nSet TORCHDYNAMO_VERBOSE=1")

        network.forward = fails

    monkeypatch.setattr(torch.nn.Module, "compile", compiled)
    with pytest.raises(TrainingError, match=r"failed \(InvalidCxx.* found\): set compile to false, or install what"):
        fit(tiny(compile=True), splits, Run.create(tmp_path / "run"), device="cpu", log=silent)


# -- several processes ------------------------------------------------------------------------------------------------

EXACT: dict[str, Any] = {
    # Batch-norm statistics frozen, so that a rank's share of a batch does not matter; float64, so that sums agree.
    "train_layers": ["conv1", "layer1.0.conv1", "layer2.0.conv1", "layer3.0.conv2", "layer4.1.conv2", "fc"],
    "freeze_batch_norm": True,
    "precision": "float64",
    "optimizer": "sgd",
    "lr": 0.05,
    "dropout": 0.0,
    "ema": 0.5,
    "balance": "loss",
    "batch_size": 51,
    "epochs": 2,
    "mixup": 0.3,
    "sam": 0.2,
}


def test_two_processes_train_the_same_weights_as_one(tmp_path: Path) -> None:
    recipe = tiny(**EXACT)
    (tmp_path / "recipe.yaml").write_text(recipe.dump())
    data = "synthetic:400"
    single = [sys.executable, "-m", "fer_utils.training"]
    double = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    double += ["-m", "fer_utils.training"]
    runs = []
    for name, command in (("one", single), ("two", double)):
        out = tmp_path / name
        done = subprocess.run(
            [*command, "--recipe", str(tmp_path / "recipe.yaml"), "--data", data, "--out", str(out), "--device", "cpu"],
            capture_output=True,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            check=False,
        )
        assert done.returncode == 0, done.stderr[-2000:]
        assert done.stdout.count("epoch 2/2") == 1
        runs.append(Run.open(out))
    n = len(synthetic.generate(400).train)
    assert n % 51 % 2 == 1, "the last batch must be uneven for this test to mean anything"
    one, two = (weights_of(run) for run in runs)
    assert list(one) == list(two)
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=0, atol=1e-10)
    histories = [run.history().drop(columns=list(TIMING_COLUMNS)) for run in runs]
    for column in histories[0]:
        np.testing.assert_allclose(histories[0][column], histories[1][column], rtol=1e-9)
    assert {path.name for path in runs[0].path.iterdir()} == {path.name for path in runs[1].path.iterdir()}


def test_two_processes_finish_an_epoch_that_one_began(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = tiny(**EXACT | {"epochs": 1})
    splits = synthetic.generate(400)
    whole = fit(recipe, splits, Run.create(tmp_path / "whole"), device="cpu", log=silent)
    begun = Run.create(tmp_path / "begun")
    interrupted_inside(recipe, splits, begun, 3, monkeypatch)
    for _ in training.launch(recipe, "synthetic:400", begun, 2, device="cpu"):
        pass
    # No face is counted twice.
    for column in ("train_loss", "train_accuracy", "val_loss"):
        np.testing.assert_allclose(begun.history()[column], whole.history()[column], rtol=1e-9)


def test_a_failing_process_stops_all_with_its_own_message(tmp_path: Path) -> None:
    recipe = tiny(optimizer="sgd", lr=1e30, schedule="constant", precision="float32", ema=0.0, epochs=1)
    run = Run.create(tmp_path / "run")
    with pytest.raises(TrainingError, match="loss or weights are not finite"):
        for _ in training.launch(recipe, "synthetic:200", run, 2, device="cpu"):
            pass
    assert not run.has("launch.yaml")


@pytest.mark.gpu
@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"optimizer": "sgd", "lr": 0.1, "clip_norm": 1.0, "mixup": 0.2},
        {"cutmix": 1.0, "sam": 0.05, "balance": "loss"},
        {"precision": "float16"},
        {"members": 2},
        {"optimizer": "muon"},
    ],
    ids=["bfloat16", "sgd-clipped-mixup", "cutmix-sam", "float16", "members", "muon"],
)
def test_cuda_steps_do_not_wait_for_the_host(fields: dict[str, Any], splits: Splits) -> None:
    device, recipe = torch.device("cuda"), tiny(**fields)
    precision = choose_precision(recipe.precision, device)
    state = training.make_state(recipe, device, precision)
    preprocessing = Preprocessing.of(recipe, splits.train)
    images = torch.from_numpy(splits.train.images).to(device)
    targets = torch.from_numpy(splits.train.targets).to(device)
    weights = torch.tensor(training.class_weights(recipe, splits.train.targets), device=device, dtype=torch.float32)
    plan = training.Epoch.plan(recipe, targets.cpu(), 0).to(device)
    models.set_training_mode(state.model, recipe)

    def step(bounds: tuple[int, int]) -> None:
        batch = training.make_batch(plan, bounds, images, targets, weights, preprocessing, training.Ranks())
        training.train_step(state, state.model, batch, weights, 1.0, device, precision, training.Ranks())

    step((0, 64))  # the first allocates, and may wait
    torch.cuda.set_sync_debug_mode("error")
    try:
        for start in (64, 128, 192):
            step((start, start + 64))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert bool(torch.isfinite(state.sums).all())
    assert state.sums[1] > 0


def without_a_gpu(graph: training.StepGraph, device: torch.device) -> Callable[[], None]:
    """Warm up, and launch one operation after the other where a GPU would replay them."""
    with training._undone(graph._steps.state):
        for _ in range(3):
            graph._step()
    return graph._step


@pytest.mark.parametrize(
    "fields",
    [
        {"optimizer": "sgd", "lr": 0.01, "clip_norm": 1.0},
        {"mixup": 0.2, "cutmix": 1.0, "progressive": 24, "image_size": 32},
        {"schedule": "plateau", "plateau_patience": 0, "balance": "sampling", "ema": 0.0},
    ],
    ids=["sgd-clipped", "mixed-growing", "plateau-balanced"],
)
def test_a_captured_step_is_the_step(
    fields: dict[str, Any], splits: Splits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tiny(precision="float64", epochs=2, dropout=0.2, **fields)
    launched = fit(recipe, splits, Run.create(tmp_path / "launched"), device="cpu", log=silent)
    monkeypatch.setattr(training.Steps, "captures", True)
    monkeypatch.setattr(training.StepGraph, "_captured", without_a_gpu)
    captured = Run.create(tmp_path / "captured")
    for stop_after in (1, None):
        fit(recipe, splits, captured, device="cpu", log=silent, stop_after=stop_after)
    found = weights_of(captured)
    for name, value in weights_of(launched).items():
        # The factor on the learning rate is a float32 there.
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-6)


def apart(found: Run, expected: Run) -> float:
    """Return how far apart two runs' weights are, as a share of the way that training took them."""
    recipe = expected.recipe
    torch.manual_seed(recipe.seed)
    start = dict(models.build(recipe).named_parameters())
    a, b = weights_of(found), weights_of(expected)
    off = sum(float((a[name] - b[name]).double().square().sum()) for name in start)
    way = sum(float((b[name] - value.detach()).double().square().sum()) for name, value in start.items())
    return math.sqrt(off / way)


GENTLE: dict[str, Any] = {"optimizer": "sgd", "lr": 1e-3, "schedule": "constant", "clip_norm": 1.0, "epochs": 1}
"""A training in which a difference of 1e-6 in the faces is one of 1% in the weights, and not one of 100%."""


@pytest.mark.gpu
@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"mixup": 0.2},
        {"balance": "loss", "dropout": 0.2},
        {"ema": 0.9},
        {"members": 2, "clip_norm": None},
        {"optimizer": "muon", "lr": 1e-3},
    ],
    ids=["plain", "mixup", "balanced-dropout", "ema", "members", "muon"],
)
def test_a_cuda_graph_trains_what_launches_train(fields: dict[str, Any], splits: Splits, tmp_path: Path) -> None:
    runs = []
    for graph in (False, True):
        recipe = tiny(precision="float32", cuda_graph=graph, **{**GENTLE, "dropout": 0.0, **fields})
        runs.append(fit(recipe, splits, Run.create(tmp_path / str(graph)), device="cuda", log=silent))
    assert apart(runs[1], runs[0]) < 0.02


@pytest.mark.gpu
@pytest.mark.parametrize(
    "fields",
    [{}, {"stem": "3x3s1", "optimizer": "sgd", "lr": 0.05}, {"optimizer": "muon"}],
    ids=["adamw", "sgd-3x3s1", "muon"],
)
def test_cuda_resumes_to_the_byte(splits: Splits, tmp_path: Path, fields: dict[str, Any]) -> None:
    recipe = tiny(**fields)
    whole = fit(recipe, splits, Run.create(tmp_path / "whole"), device="cuda", log=silent)
    parts = Run.create(tmp_path / "parts")
    for stop_after in (1, 2, None):
        torch.manual_seed(123)
        fit(recipe, splits, parts, device="cuda", log=silent, stop_after=stop_after)
    assert_same_bytes(whole, parts)


@pytest.mark.gpu
def test_cuda_trains_the_weights_that_a_cpu_trains(splits: Splits, tmp_path: Path) -> None:
    recipe = tiny(precision="float64", **GENTLE, dropout=0.0, ema=0.0)
    cpu, cuda = (fit(recipe, splits, Run.create(tmp_path / name), device=name, log=silent) for name in ("cpu", "cuda"))
    # Faces are augmented in float32 on either device.
    assert apart(cuda, cpu) < 0.02
    assert cuda.read_json("env.json")["device"] == "cuda"


@pytest.mark.gpu
def test_cuda_takes_a_teacher_from_a_cpu(splits: Splits, tmp_path: Path) -> None:
    teacher = fit(tiny(epochs=1), splits, Run.create(tmp_path / "teacher"), device="cpu", log=silent)
    for views in ("same", "ten_crop"):
        # It takes faces of another size than the network, which starts from it.
        recipe = tiny(epochs=1, image_size=40, start=str(teacher.path), teacher=str(teacher.path), teacher_views=views)
        run = fit(recipe, splits, Run.create(tmp_path / views), device="cuda", log=silent)
        assert math.isfinite(run.history()["train_loss"].iloc[-1])
        # What was trained on CUDA opens on a CPU.
        assert checkpoint.load_model(run, "best", torch.device("cpu")).model is not None


# -- what a step and an epoch are made of -----------------------------------------------------------------------------

PLAIN: dict[str, Any] = {"optimizer": "sgd", "momentum": 0.0, "nesterov": False, "weight_decay": 0.0, "ema": 0.0}
PLAIN |= {"schedule": "constant", "dropout": 0.0, "augment": {}, "label_smoothing": 0.0, "precision": "float64"}
PLAIN |= {"clip_norm": "none", "epochs": 1}


def test_gradients_are_clipped_and_layers_have_their_own_rates(splits: Splits, tmp_path: Path) -> None:
    def change(**fields: Any) -> dict[str, torch.Tensor]:
        """By how much one step over all faces changes each parameter: minus its gradient, at a rate of 1."""
        recipe = tiny(**PLAIN | fields, lr=1.0, batch_size=1000)
        before = training.make_state(recipe, torch.device("cpu"), "float64").model.named_parameters()
        run = fit(recipe, splits, Run.create(tmp_path / str(fields)), device="cpu", log=silent)
        after = weights_of(run)
        return {name: after[name] - value.detach() for name, value in before}

    free = change()
    norm = float(torch.cat([value.flatten() for value in free.values()]).norm())
    largest = max(float(value.abs().max()) for value in free.values())
    by_norm, by_value = change(clip_norm=norm / 4), change(clip_value=largest / 4)
    slower = change(layer_lr={"fc": 0.5})
    for name, value in free.items():
        torch.testing.assert_close(by_norm[name], value / 4, rtol=1e-4, atol=1e-9)
        torch.testing.assert_close(by_value[name], value.clamp(-largest / 4, largest / 4), rtol=1e-6, atol=1e-9)
        torch.testing.assert_close(slower[name], value * (0.5 if name.startswith("fc") else 1), rtol=1e-6, atol=1e-9)


def test_the_history_is_of_all_faces_of_an_epoch(splits: Splits, tmp_path: Path) -> None:
    # A rate too small to change the weights, and a last batch that is smaller than the first.
    recipe = tiny(**PLAIN | {"balance": "loss"}, lr=1e-12, batch_size=200)
    run = fit(recipe, splits, Run.create(tmp_path / "run"), device="cpu", log=silent)
    train = splits.train
    targets, weights = torch.from_numpy(train.targets), torch.tensor(training.class_weights(recipe, train.targets))
    inputs = Preprocessing.of(recipe, train)(torch.from_numpy(train.images)).double()
    model = training.make_state(recipe, torch.device("cpu"), "float64").model.train()
    order = training.Epoch.plan(recipe, targets, 0).order
    with torch.no_grad():
        logits = torch.cat([model(inputs[order[:200]]), model(inputs[order[200:]])])
    loss = torch.nn.functional.cross_entropy(logits, targets[order], weight=weights.double())
    row = run.history().iloc[0]
    assert row["train_loss"] == pytest.approx(float(loss), rel=1e-6)
    assert row["train_accuracy"] == pytest.approx(float((logits.argmax(1) == targets[order]).double().mean()))


def test_the_average_is_what_is_scored_and_kept(splits: Splits, tmp_path: Path) -> None:
    recipe = tiny(epochs=1, ema=0.9, precision="float32")
    run = fit(recipe, splits, Run.create(tmp_path / "run"), device="cpu", log=silent)
    best, last = checkpoint.load_model(run), checkpoint.load(run.file("last.ckpt"))
    for name, value in best.model.state_dict().items():
        assert torch.equal(value, last["averaged"][name]), name
    assert not torch.equal(last["averaged"]["fc.1.weight"], last["model"]["fc.1.weight"])
    answers = predict(best.model, best.preprocessing, splits.val.images, device=torch.device("cpu"))
    assert run.history()["val_loss"][0] == pytest.approx(metrics.nll(answers, splits.val.targets), rel=1e-5)


def test_a_face_and_its_partner_are_changed_each_by_its_own_draw(splits: Splits) -> None:
    recipe = tiny(mixup=0.4, augment={"rotation": 20})
    images, targets = torch.from_numpy(splits.train.images), torch.from_numpy(splits.train.targets)
    plan, how = training.Epoch.plan(recipe, targets, 0), Preprocessing(48, 1, (0.5,), (0.5,))
    assert plan.partner is not None
    batch = training.make_batch(plan, (10, 30), images, targets, torch.ones(7), how, training.Ranks(1, 2))
    changed = how.normalize(augment(images[plan.order], plan.draws, 48))
    mine = torch.arange(11, 30, 2)
    partners, share = plan.partner.partner[mine], plan.partner.lam[mine]
    assert torch.equal(batch.faces, plan.order[mine])
    assert torch.equal(batch.targets, targets[plan.order[mine]])
    assert batch.others is not None
    assert torch.equal(batch.others, targets[plan.order[partners]])
    torch.testing.assert_close(batch.share, share)
    torch.testing.assert_close(batch.inputs, torch.lerp(changed[partners], changed[mine], share[:, None, None, None]))
    assert float(batch.total_weight) == pytest.approx(20)  # of both processes' faces


def test_balanced_sampling_shows_every_emotion_equally_often(splits: Splits) -> None:
    targets = torch.from_numpy(splits.train.targets)
    seen = targets[training.Epoch.plan(tiny(balance="sampling"), targets, 0).order].bincount(minlength=7)
    assert int(seen.max() - seen.min()) <= 1
    assert sorted(training.Epoch.plan(tiny(), targets, 0).order.tolist()) == list(range(len(targets)))


def test_copies_are_left_out_before_fewer_faces_are_drawn(splits: Splits) -> None:
    twice = Faces.concatenate([splits.train, splits.train]).sorted()
    kept = training.training_faces(tiny(dedupe="exact"), twice)
    assert sorted(set(kept.digests)) == kept.digests.tolist()
    assert len(training.training_faces(tiny(), twice)) == len(twice)
    fewer = training.training_faces(tiny(dedupe="exact", train_faces=60), twice)
    assert abs(len(fewer) - 60) <= 3  # half a face of each emotion
    assert set(fewer.digests) < set(kept.digests)


def test_cosine_rises_in_equal_steps_from_the_first() -> None:
    rates = training.learning_rates(tiny(epochs=5, lr=1.0, schedule="cosine", warmup=0.2), 20)
    np.testing.assert_allclose(rates[:21], np.arange(1, 22) / 21)
