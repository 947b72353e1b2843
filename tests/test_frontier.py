"""The parts of benchmarks/frontier.py that are no training, one training of its own, and what all benchmarks share."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from fer_utils import models, recipe, training
from fer_utils.faces import Splits
from fer_utils.files import ROOT

BENCHMARKS = str(ROOT / "benchmarks")
sys.path.insert(0, BENCHMARKS)
bars: Any = importlib.import_module("bars")
epoch: Any = importlib.import_module("epoch")
frontier: Any = importlib.import_module("frontier")
frontier_figures: Any = importlib.import_module("frontier_figures")
ledger: Any = importlib.import_module("ledger")
sys.path.remove(BENCHMARKS)

COLUMNS = ("id", "value")


def row(name: str, seed: int = 0, **values: Any) -> dict[str, Any]:
    """A row of the table, its numbers the index of their column unless given."""
    made = {column: float(index) for index, column in enumerate(frontier.COLUMNS)}
    made |= dict.fromkeys(frontier._TEXT, "x") | {"stem": "3x3s2", "max_pool": "false", "width": 1.0}
    return made | {"id": f"{name}{seed}", "name": name, "base": "epochs=6", "differs": name, "seed": seed} | values


def test_the_frontier_is_every_network_once_and_each_can_be_a_recipe() -> None:
    found = frontier.networks()
    assert len(found) == 3 * 2 * 3 * 4
    assert len({json.dumps(fields) for fields in found.values()}) == len(found)
    assert found["3x3s2-w1-48px"] == {"stem": "3x3s2", "max_pool": False, "width": 1.0, "image_size": 48}
    assert set(frontier.SMALL) <= set(found)
    for fields in found.values():
        recipe.load("fast", fields)


def test_the_frontier_begins_with_the_cheapest_network() -> None:
    found = list(frontier.networks().values())
    cheap, dear = (frontier.arithmetic(recipe.load("fast", f), [f["image_size"]])[1] for f in (found[0], found[-1]))
    assert 50 * min(cheap.values()) < min(dear.values())


def test_each_ablation_changes_what_it_says_and_nothing_else() -> None:
    stock = {"optimizer": "adamw", "lr": 0.01, "weight_decay": 0.05, "clip_norm": 1, "progressive": 32}
    base = frontier.base_recipe(stock)
    found = {name: frontier._changed(base, change) for name, change in frontier.ablations(base).items()}
    told = {name: frontier.difference(changed, base) for name, changed in found.items()}
    assert told.pop("base") == ""
    assert told["no EMA"] == "ema=0.0"
    assert told["erasing 0.25"] == "augment.erasing.p=0.25"
    assert told["one size"] == "progressive=null"
    assert told["SGD"] == "optimizer=sgd lr=0.1 weight_decay=0.0005"
    assert told["Muon"] == "optimizer=muon lr=0.003 momentum=0.95"
    assert told["AdamW"] == "lr=0.003"
    assert told["no clipping"] == "clip_norm=null"
    assert found["three times the weight decay"].weight_decay == pytest.approx(3 * base.weight_decay)
    assert told["stronger augmentation"].count("=") == 5
    assert found["stronger augmentation"].augment.flip == base.augment.flip
    assert all(told.values())
    assert len(set(told.values())) == len(told)


def test_each_ablation_has_a_name_that_a_run_can_have() -> None:
    base = frontier.base_recipe({})
    for name in frontier.ablations(base):
        assert frontier._changed(base, {"name": name.replace(" ", "-")}).name


def test_an_ablation_that_the_base_has_already_is_left_out() -> None:
    base = frontier.base_recipe({"progressive": "none", "ema": 0.0})
    assert "progressive 32" in frontier.ablations(base)
    assert not {"one size", "no EMA"} & set(frontier.ablations(base))


def test_growing_sizes_begin_below_the_size_that_they_grow_to() -> None:
    small = frontier.ablations(recipe.load("fast", {"image_size": 32}))
    assert {name for name in small if name.startswith("progressive")} == {"progressive 24"}
    assert {"progressive 24", "progressive 32"} < set(frontier.ablations(recipe.load("fast")))


def test_a_configuration_goes_by_all_that_it_is_trained_with() -> None:
    def ids(data: str = "a", **overrides: Any) -> list[str]:
        return [one.id for one in frontier.configurations("frontier", overrides, [0, 1], data, ["3x3s2-w1-48px"])]

    assert ids() == ids()
    every = [*ids(), *ids("b"), *ids(epochs=3), *ids(train_faces=200), *ids(ema="0")]
    assert len(set(every)) == len(every)


def test_only_takes_patterns_and_tells_what_there_is_not() -> None:
    found = frontier.configurations("frontier", {}, [0, 1], "", ["3x3s2-w*-48px", "imagenet-w1-32px"])
    assert [one.recipe.seed for one in found] == [0] * 4 + [1] * 4
    assert len({one.name for one in found}) == 4
    with pytest.raises(SystemExit, match="--only 4x4"):
        frontier.configurations("frontier", {}, [0], "", ["4x4"])


def test_a_network_name_does_not_change_its_recipe_nor_a_set_field_its_network() -> None:
    (one,) = frontier.configurations("frontier", {"image_size": "64", "mixup": "0.2"}, [0], "", ["3x3s2-w0.5-40px"])
    assert (one.recipe.image_size, one.recipe.width, one.recipe.mixup) == (40, 0.5, 0.2)


def test_arithmetic_is_six_operations_for_each_multiply_add_at_the_size_of_its_epoch() -> None:
    settings = recipe.load("fast", {"epochs": 3, "width": 0.25, "image_size": 40, "progressive": 32})
    model = models.build(settings)
    sizes = training.image_sizes(settings)
    parameters, macs = frontier.arithmetic(settings, sizes)
    assert parameters == models.count_parameters(model)
    assert macs == {size: models.multiply_adds(model, 1, size) for size in (32, 36, 40)}
    assert frontier.pflop({32: 10, 40: 20}, [32, 40, 40], 7) == pytest.approx(6 * 7 * 50 / 1e15)


def test_the_front_is_what_nothing_beats() -> None:
    assert frontier.pareto([1, 2, 3, 4], [0.5, 0.4, 0.6, 0.6]) == [True, False, True, False]
    assert frontier.pareto([1, 1], [0.5, 0.5]) == [True, True]
    assert frontier.pareto([1, 1], [0.5, 0.6]) == [False, True]


def test_seeds_are_averaged_before_the_fronts_are_found() -> None:
    rows = pd.DataFrame(
        [
            row("small", 0, pflop=1, minutes=3, val_accuracy=0.5),
            row("small", 1, pflop=1, minutes=5, val_accuracy=0.7),
            row("large", 0, pflop=2, minutes=3, val_accuracy=0.65),
            row("worse", 0, pflop=2, minutes=5, val_accuracy=0.55),
        ]
    )
    found = frontier.over_seeds(rows).set_index("name")
    assert found["seeds"].to_dict() == {"small": 2, "large": 1, "worse": 1}
    assert found.loc["small", "val_accuracy"] == pytest.approx(0.6)
    assert found["front_pflop"].to_dict() == {"small": True, "large": True, "worse": False}
    assert found["front_minutes"].to_dict() == {"small": False, "large": True, "worse": False}


def test_differences_are_paired_by_seed_and_by_base() -> None:
    scores = {"val_macro_f1": 0.5, "flip_val_macro_f1": 0.5, "flip_val_accuracy": 0.6}
    rows = pd.DataFrame(
        [
            row("base", 0, val_accuracy=0.50, minutes=2, **scores),
            row("base", 1, val_accuracy=0.60, minutes=2, **scores),
            row("mixup", 0, val_accuracy=0.53, minutes=3, **scores | {"val_macro_f1": 0.52}),
            row("mixup", 1, val_accuracy=0.61, minutes=3, **scores),
            row("mixup", 2, val_accuracy=0.99, minutes=9, **scores),  # no base of that seed
            row("ema", 0, val_accuracy=0.99, minutes=9, **scores | {"base": "epochs=9"}),  # no such base
        ]
    )
    found = frontier.differences(rows).set_index("name")
    assert list(found.index) == ["flip views", "mixup"]
    mixup = found.loc["mixup"]
    assert mixup["seeds"] == 2
    assert mixup["accuracy"] == pytest.approx(2.0)
    assert mixup["accuracy_std"] == pytest.approx(np.std([3, 1], ddof=1))
    assert mixup["macro_f1"] == pytest.approx(1.0)
    assert mixup["ratio"] == pytest.approx(1.5)
    assert found.loc["flip views", "accuracy"] == pytest.approx(5.0)


def test_one_seed_has_no_spread() -> None:
    found = frontier.differences(pd.DataFrame([row("base"), row("mixup")]))
    assert found["accuracy_std"].isna().all()
    _, ((_, _, _, _, accuracy, *_), *_) = frontier.ablation_table(found)
    assert "±" not in accuracy


APPEND = """
import sys, pathlib, ledger
for index in range(int(sys.argv[2]), int(sys.argv[2]) + 50):
    ledger.append_row(pathlib.Path(sys.argv[1]), ("id", "value"), {"id": index, "value": "x" * 200})
"""


def test_rows_of_several_processes_are_all_there_under_one_header(tmp_path: Path) -> None:
    path = tmp_path / "new" / "rows.csv"
    commands = [[sys.executable, "-c", APPEND, str(path), str(50 * number)] for number in range(3)]
    writers = [subprocess.Popen(command, env={**os.environ, "PYTHONPATH": BENCHMARKS}) for command in commands]
    assert [writer.wait() for writer in writers] == [0, 0, 0]
    rows = ledger.read_rows(path, COLUMNS)
    assert sorted(int(held["id"]) for held in rows) == list(range(150))
    assert {held["value"] for held in rows} == {"x" * 200}
    assert [file.name for file in path.parent.iterdir()] == ["rows.csv"]


def test_a_table_with_other_columns_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    assert ledger.read_rows(path, COLUMNS) == []
    path.write_text("id,other\n1,2\n")
    with pytest.raises(SystemExit, match="other columns"):
        ledger.read_rows(path, COLUMNS)


@pytest.mark.parametrize(
    "given",
    [
        *(["--set", "ema"], ["--set", "epochs=3"], ["--set", "seed=3"], ["--sweep", "other"]),
        *(["--epochs", "x"], ["--epochs", "0"], ["--train-faces", "0"], ["--threads", "-1"]),
    ],
)
def test_wrong_arguments_are_told(given: list[str]) -> None:
    with pytest.raises(SystemExit) as told:
        frontier.arguments_of(given)
    assert told.value.code == 2


def test_without_arguments_it_is_the_small_sweep() -> None:
    small, whole = frontier.arguments_of([]), frontier.arguments_of(["--sweep", "frontier"])
    assert (small.only, small.epochs, small.train_faces) == (list(frontier.SMALL), 1, 1500)
    assert (whole.only, whole.epochs, whole.train_faces) == ([], frontier.EPOCHS, None)


def test_a_seed_that_is_named_twice_is_one_training() -> None:
    assert frontier.arguments_of(["--seeds", "1", "0", "1"]).seeds == [1, 0]


def test_what_all_trainings_have_in_common_is_told_once(capsys: pytest.CaptureFixture[str]) -> None:
    told = frontier.sweep_told_once(["name", "sweep", "n"], [["x", "epochs=6", 1], ["y", "epochs=6", 2]])
    assert told == (["name", "n"], [["x", 1], ["y", 2]])
    assert "epochs=6" in capsys.readouterr().out
    rows = [["x", "epochs=6", 1], ["y", "epochs=7", 2]]
    assert frontier.sweep_told_once(["name", "sweep", "n"], rows) == (["name", "sweep", "n"], rows)
    assert capsys.readouterr().out == ""


def test_markdown_is_a_table_with_numbers_right(capsys: pytest.CaptureFixture[str]) -> None:
    frontier.show(["a", "b"], [["x", 1.0], ["y", 22.0]], markdown=True)
    assert capsys.readouterr().out.splitlines() == ["| a | b |", "|---|---:|", "| x | 1 |", "| y | 22 |"]


def test_labels_of_the_front_lie_inside_and_apart() -> None:
    rows = [
        row(f"n{i}", pflop=0.01 * 1.15**i, minutes=1, val_accuracy=0.5 + 0.002 * i, image_size=48, epochs=6)
        for i in range(10)
    ]
    figure = frontier_figures.frontier_figure(frontier.over_seeds(pd.DataFrame(rows)))
    (axes,) = figure.axes
    figure.draw_without_rendering()
    boxes = [super(type(text), text).get_window_extent() for text in axes.texts]
    assert len(boxes) == 10
    assert not any(one.overlaps(other) for i, one in enumerate(boxes) for other in boxes[i + 1 :])
    inside = axes.get_window_extent()
    assert all(inside.containsx(box.x0) and inside.containsx(box.x1) and inside.containsy(box.y1) for box in boxes)


def test_a_bar_of_the_ablation_is_as_long_as_its_difference() -> None:
    rows = pd.DataFrame(
        [
            row("base", val_accuracy=0.5, flip_val_accuracy=0.51),
            row("mixup", val_accuracy=0.48),
        ]
    )
    figure = frontier_figures.ablation_figure(frontier.differences(rows), rows)
    (axes,) = figure.axes
    assert [bar.get_width() for bar in axes.patches] == pytest.approx([-2, 1])
    assert [label.get_text() for label in axes.get_yticklabels()] == ["mixup", "flip views"]


def test_a_long_list_of_settings_stays_inside_the_picture() -> None:
    base = " ".join(f"wwww={i}" for i in range(60))
    rows = pd.DataFrame([row("base", base=base), row("mixup", base=base, val_accuracy=0.5)])
    figure = frontier_figures.ablation_figure(frontier.differences(rows), rows)
    figure.draw_without_rendering()
    inside = figure.bbox
    for text in (*figure.texts, figure.axes[0].xaxis.label, figure.axes[0].title):
        box = text.get_window_extent()
        assert inside.x0 <= box.x0
        assert box.x1 <= inside.x1
        assert inside.y0 <= box.y0


def test_an_interrupted_training_goes_on_and_a_measured_one_is_left_alone(
    tmp_path: Path, synthetic_splits: Splits
) -> None:
    overrides = {"epochs": 2, "train_faces": 64, "width": 0.125, "progressive": 32, "image_size": 40}
    (one,) = frontier.configurations("ablation", overrides, [3], "synthetic", ["base"])
    table = tmp_path / "ablation.csv"
    folder = tmp_path / "runs" / one.folder
    run = frontier.runs.Run.create(folder)
    training.fit(one.recipe, synthetic_splits, run, device="cpu", log=lambda _: None, stop_after=1)
    before = run.history().iloc[0]

    assert frontier.sweep_all([one], synthetic_splits, tmp_path, table, "cpu") == (0, 0)
    (row,) = frontier.read(table).to_dict("records")
    history = run.history()
    assert len(history) == 2
    assert history.iloc[0].equals(before)
    assert not list(folder.glob("*.ckpt"))
    assert (row["id"], row["name"], row["seed"], row["epochs"]) == (one.id, "base", 3, 2)
    assert row["differs"] == ""
    assert "width=0.125" in row["base"]
    assert row["val_accuracy"] == history["val_accuracy"].iloc[1]
    assert row["best_val_accuracy"] == history["val_accuracy"].max()
    assert row["minutes"] == pytest.approx(history["train_seconds"].sum() / 60)
    assert 0 <= row["flip_val_accuracy"] <= 1
    macs = frontier.arithmetic(one.recipe, [32, 40])[1]
    assert row["pflop"] == pytest.approx(6 * row["train_faces"] * (macs[32] + macs[40]) / 1e15)

    held = (folder / "history.csv").stat().st_mtime_ns
    assert frontier.sweep_all([one], synthetic_splits, tmp_path, table, "cpu") == (0, 0)
    assert (folder / "history.csv").stat().st_mtime_ns == held
    assert len(frontier.read(table)) == 1


def test_every_benchmark_tells_what_is_wrong_with_its_arguments() -> None:
    ends = [path.read_text(encoding="utf-8").partition("\nif __name__")[2] for path in Path(BENCHMARKS).glob("*.py")]
    assert {end.strip() for end in ends if end} == {'== "__main__":\n    sys.exit(bars.run(main))'}


# Both ask for the faces in a way of their own: after steps, and in another process.
@pytest.mark.parametrize("name", ["step", "memory"])
def test_a_benchmark_tells_of_faces_that_are_not_there(name: str, tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / f"{name}.py"), "--data", str(tmp_path / "nosuch")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "nosuch is not there" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_error_that_no_argument_is_to_blame_for_is_not_hidden() -> None:
    def main() -> int:
        raise ValueError("a mistake of the program")

    with pytest.raises(ValueError, match="a mistake of the program"):
        bars.run(main)


@pytest.mark.parametrize("text", ["0", "-3", "2.5", "x", ""])
def test_a_count_below_one_is_told(text: str) -> None:
    parser = bars.parser("x")
    parser.add_argument("--repeats", type=bars.positive)
    assert parser.parse_args(["--repeats", "3"]).repeats == 3
    with pytest.raises(SystemExit):
        parser.parse_args([f"--repeats={text}"])


@pytest.mark.parametrize(
    ("value", "text"), [(0.0, "0"), (0.04449, "0.0445"), (999.4, "999"), (999.6, "1,000"), (-999.6, "-1,000")]
)
def test_a_number_is_written_without_powers_of_ten(value: float, text: str) -> None:
    assert bars.number(value) == text


def test_a_rate_counts_the_faces_that_there_are(
    synthetic_splits: Splits, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    few = Splits(synthetic_splits.train.select(slice(0, 3)), synthetic_splits.val, synthetic_splits.test, "synthetic")
    monkeypatch.setattr(epoch.sources, "load", lambda _data: few)
    monkeypatch.setattr(epoch, "EARLIER", ("one_cycle",))
    monkeypatch.setattr(epoch, "BARS", {})
    monkeypatch.setattr(epoch.bars, "medians", lambda steps, _repeats: dict.fromkeys(steps, 1.0))
    monkeypatch.setattr(sys, "argv", ["epoch.py", "--device", "cpu"])
    assert epoch.main() == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert {line[0]: (line[3], line[5]) for line in rows if line and line[0] in ("fast", "one_cycle")} == {
        "fast": ("3", "3"),
        "one_cycle": ("3", "3"),
    }


def test_the_rate_of_sizes_that_grow_is_of_all_epochs(
    synthetic_splits: Splits, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    few = Splits(synthetic_splits.train.select(slice(0, 3)), synthetic_splits.val, synthetic_splits.test, "synthetic")
    growing = recipe.load("fast", {"epochs": 3, "image_size": 64, "progressive": 32, "width": 0.125})
    assert training.image_sizes(growing) == [32, 48, 64]
    monkeypatch.setattr(epoch.sources, "load", lambda _data: few)
    monkeypatch.setattr(epoch.recipe, "load", lambda _name, _changes=None: growing)
    monkeypatch.setattr(epoch, "EARLIER", ())
    monkeypatch.setattr(epoch, "BARS", {})
    seconds = {32: 1.0, 48: 2.0, 64: 6.0}
    monkeypatch.setattr(epoch.bars, "medians", lambda steps, _repeats: {step: seconds[step[1]] for step in steps})
    monkeypatch.setattr(sys, "argv", ["epoch.py", "--device", "cpu"])
    assert epoch.main() == 0
    (row,) = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("fast ")]
    macs = [models.multiply_adds(models.build(growing), 1, size) / 1e9 for size in (32, 48, 64)]
    assert (row[1], row[4], row[5]) == ("32-64", bars.number(sum(macs) / 3), "1")
