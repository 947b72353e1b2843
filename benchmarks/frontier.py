"""Which network learns most for its arithmetic and minutes, and what each setting gives: on validation alone.

    python benchmarks/frontier.py                                    four networks, briefly
    python benchmarks/frontier.py --sweep frontier --list            what the sweep holds, cheapest first
    python benchmarks/frontier.py --sweep frontier --epochs 6        stems x widths x input sizes
    python benchmarks/frontier.py --sweep ablation --seeds 0 1 2     one change to ``BASE`` at a time
    python benchmarks/frontier.py --sweep frontier --table           what was measured, training nothing

A sweep fills a directory: a row of ``frontier.csv`` or ``ablation.csv`` per trained configuration, ``runs/`` with their
histories, a picture. A configuration that has its row is not trained again and one that was interrupted is resumed, so
a sweep goes on where it stopped; several processes may work through one list, each with ``--threads 1``, say.
Test faces are never looked at.
"""

from __future__ import annotations

import argparse
import fnmatch
import hashlib
import itertools
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import bars
import ledger
import numpy as np
import pandas as pd
import torch
from frontier_figures import ablation_figure, frontier_figure

from fer_utils import checkpoint, metrics, models, recipe, runs, sources, training
from fer_utils.devices import choose_device, choose_precision
from fer_utils.faces import Splits
from fer_utils.files import held_alone, replacing
from fer_utils.prediction import predict
from fer_utils.recipe import Recipe

SMALL: Final = ("imagenet-pool-w1-48px", "3x3s2-w0.5-40px", "3x3s1-pool-w0.5-32px", "3x3s2-w1-48px")
"""What is trained without arguments, one epoch of 1,500 faces."""
EPOCHS: Final = 6
COLUMNS: Final = (
    *("id", "name", "base", "differs", "seed", "epochs", "train_faces", "stem", "max_pool", "width", "image_size"),
    *("parameters", "gmac", "pflop", "minutes", "images_per_second", "best_val_accuracy", "val_accuracy"),
    *("val_macro_f1", "flip_val_accuracy", "flip_val_macro_f1", "date", "threads", "device", "data"),
)
_TEXT: Final = ("id", "name", "base", "differs", "stem", "max_pool", "date", "device", "data")
_NUMBERS: Final = [column for column in COLUMNS if column not in _TEXT]
_ONE: Final = ["name", "base", "differs", "seed", "data"]
_NOT_COMPARED: Final = {"name", "description", "seed"}

BASE: Final = {
    "shortcut": "strided",
    "activation": "relu",
    "image_size": 48,
    "progressive": "none",
    "optimizer": "adamw",
    "momentum": 0.9,
    "lr": 3e-3,
    "weight_decay": 0.05,
    "ema": 0.998,
    "epochs": 36,
    "batch_size": 128,
    "augment": {
        **{"flip": 0.5, "rotation": 10, "translate": 0.08, "scale": [0.9, 1.1], "brightness": 0.15, "contrast": 0.15},
        "fill": "zeros",
    },
}
"""What makes `fast` what it was before the sweeps: their tables stay what they were, and `fast` has what they found."""

STRIDES: Final = {"imagenet": 2, "3x3s2": 2, "3x3s1": 1}
"""The stems, and by how much each makes its maps smaller than the face; a max-pool halves them again."""


# -- what is trained --------------------------------------------------------------------------------------------------


def base_recipe(overrides: Mapping[str, Any]) -> Recipe:
    """Return what a sweep changes: `fast` as of ``BASE``, with ``overrides`` as ``recipe.load`` takes them."""
    return recipe.load("fast", {**BASE, **overrides})


def networks() -> dict[str, dict[str, Any]]:
    """Return the fields of the recipe that make each network of the frontier, by its name, roughly cheapest first."""

    def cost(stem: str, pool: bool, width: float, size: int) -> float:
        # All but the stem is proportional to it.
        return (width * size / STRIDES[stem] / (2 if pool else 1)) ** 2

    grid = itertools.product(STRIDES, (True, False), (0.5, 0.75, 1.0), (32, 40, 48, 64))
    return {
        f"{stem}{'-pool' * pool}-w{width:g}-{size}px": {
            "stem": stem,
            "max_pool": pool,
            "width": width,
            "image_size": size,
        }
        for stem, pool, width, size in sorted(grid, key=lambda network: cost(*network))
    }


def ablations(base: Recipe) -> dict[str, dict[str, Any]]:
    """Return the fields that each change to ``base`` sets, by its name; what changes nothing is left out."""
    augment = base.augment.model_dump(mode="json")
    milder = {"rotation": 10, "translate": 0.08, "scale": [0.9, 1.1], "brightness": 0.15, "contrast": 0.15}
    stronger = {"rotation": 20, "translate": 0.15, "scale": [0.75, 1.25], "brightness": 0.4, "contrast": 0.4}
    changes: dict[str, dict[str, Any]] = {
        "no EMA": {"ema": 0.0},
        "mixup 0.2": {"mixup": 0.2},
        "CutMix 1": {"cutmix": 1.0},
        "no label smoothing": {"label_smoothing": 0.0},
        "no erasing": {"augment": augment | {"erasing": augment["erasing"] | {"p": 0.0}}},
        "erasing 0.25": {"augment": augment | {"erasing": augment["erasing"] | {"p": 0.25}}},
        "no augmentation": {"augment": {}},
        "milder augmentation": {"augment": augment | milder},
        "stronger augmentation": {"augment": augment | stronger},
        "no change of light": {"augment": augment | {"brightness": 0.0, "contrast": 0.0}},
        "edges repeated": {"augment": augment | {"fill": "border"}},
        "edges mirrored": {"augment": augment | {"fill": "reflection"}},
        "stronger with mirrored edges": {"augment": augment | stronger | {"fill": "reflection"}},
        "one size": {"progressive": "none"},
        **{f"progressive {size}": {"progressive": size} for size in (24, 32) if size < base.image_size},
        "cosine": {"schedule": "cosine"},
        "constant rate": {"schedule": "constant"},
        "AdamW": {"optimizer": "adamw", "lr": 3e-3, "weight_decay": 0.05},
        "Muon": {"optimizer": "muon", "lr": 3e-3, "momentum": 0.95},
        "SGD": {"optimizer": "sgd", "lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 5e-4},
        "SAM 0.05": {"sam": 0.05},
        "SAM 0.15": {"sam": 0.15},
        "no clipping": {"clip_norm": "none"},
        "weight decay 0": {"weight_decay": 0.0},
        "a third of the weight decay": {"weight_decay": base.weight_decay / 3},
        "three times the weight decay": {"weight_decay": base.weight_decay * 3},
        "no dropout": {"dropout": 0.0},
        "shortcuts average": {"shortcut": "average"},
        "SiLU": {"activation": "silu"},
        "shortcuts average with SiLU": {"shortcut": "average", "activation": "silu"},
        "exact copies once": {"dedupe": "exact"},
        "balanced loss": {"balance": "loss"},
        "balanced sampling": {"balance": "sampling"},
    }
    told = {name: difference(_changed(base, change), base) for name, change in changes.items()}
    return {"base": {}} | {name: changes[name] for name in changes if told[name]}


def _changed(base: Recipe, change: Mapping[str, Any]) -> Recipe:
    values = base.model_dump(mode="json") | {name: recipe.coerce(name, value) for name, value in change.items()}
    return Recipe.model_validate_json(json.dumps(values))


def difference(one: Recipe, other: Recipe) -> str:
    """Return what ``one`` has that ``other`` has not, ``field=value`` and ``augment.field=value``; seeds aside."""

    def flat(values: Mapping[str, Any], above: str = "") -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in values.items():
            found |= flat(value, f"{above}{key}.") if isinstance(value, dict) else {above + key: value}
        return found

    there = flat(other.model_dump(mode="json", exclude=_NOT_COMPARED))
    here = flat(one.model_dump(mode="json", exclude=_NOT_COMPARED))
    told = {key: value for key, value in here.items() if key not in there or there[key] != value}
    return " ".join(f"{key}={json.dumps(value).replace(' ', '').strip(chr(34))}" for key, value in told.items())


@dataclass(frozen=True)
class Configuration:
    """One training of a sweep: ``base`` is `fast` as of ``BASE`` with what holds for all, ``recipe`` changes it."""

    name: str
    recipe: Recipe
    base: Recipe
    data: str

    @property
    def id(self) -> str:
        """Ten hexadecimal digits, a function of the recipe's settings and the data."""
        settings = self.recipe.model_dump_json(exclude_defaults=True, exclude={"name", "description"})
        return hashlib.sha256(f"{settings} {self.data}".encode()).hexdigest()[:10]

    @property
    def folder(self) -> str:
        """Name of its run's directory."""
        return f"{self.recipe.name}-seed{self.recipe.seed}-{self.id}"


def configurations(
    sweep: str, overrides: Mapping[str, Any], seeds: Sequence[int], data: str, only: Sequence[str] = ()
) -> list[Configuration]:
    """Return the trainings of a sweep, seed by seed.

    Args:
        sweep: ``frontier`` or ``ablation``.
        overrides: fields of `fast` that hold for the whole sweep, as ``recipe.load`` takes them.
        seeds: seeds of the trainings.
        data: names the faces; part of each training's identity.
        only: names or patterns (``3x3s2-*``) of those that are wanted; without any, all are.

    Raises:
        RecipeError: an override is wrong.
        SystemExit: ``only`` names what there is not.
    """
    base = base_recipe(overrides)
    changes = networks() if sweep == "frontier" else ablations(base)
    for pattern in only:
        if not fnmatch.filter(changes, pattern):
            raise SystemExit(f"--only {pattern}: there is none of that name, only {', '.join(changes)}")
    wanted = [name for name in changes if not only or any(fnmatch.fnmatchcase(name, pattern) for pattern in only)]
    trained = {name: _changed(base, {**changes[name], "name": name.replace(" ", "-")}) for name in wanted}
    return [
        Configuration(name, trained[name].model_copy(update={"seed": seed}), base, data)
        for seed in seeds
        for name in wanted
    ]


def arithmetic(settings: Recipe, sizes: Sequence[int]) -> tuple[int, dict[int, int]]:
    """Return a recipe's number of parameters, and the multiply-adds of one face by its size in pixels."""
    with torch.device("meta"):  # shapes only: nothing is drawn or computed
        model = models.build(settings, pretrained=False)
    return models.count_parameters(model), {
        size: models.multiply_adds(model, settings.channels, size) for size in set(sizes)
    }


def pflop(macs: Mapping[int, int], sizes: Sequence[int], faces: int) -> float:
    """Return the arithmetic of a training in 10^15 operations.

    A multiply-add is two operations, and a backward pass costs twice its forward pass: six for each of a face.

    Args:
        macs: multiply-adds of one face, by its size.
        sizes: input size of each epoch.
        faces: faces seen in an epoch.
    """
    return 6 * faces * sum(macs[size] for size in sizes) / 1e15


# -- training ---------------------------------------------------------------------------------------------------------


def train(configuration: Configuration, splits: Splits, folder: Path, device: str) -> dict[str, Any]:
    """Train one configuration in ``folder``, or go on with it, and return its row."""
    settings = configuration.recipe
    run = runs.Run.create(folder / configuration.folder)
    training.fit(settings, splits, run, device=device, log=lambda line: print(f"  {line}", flush=True))
    history = run.history()
    faces = len(training.training_faces(settings, splits.train))
    sizes = [int(size) for size in history["image_size"]]
    parameters, macs = arithmetic(settings, [*sizes, settings.image_size])
    where = choose_device(device)
    held = checkpoint.load_model(run, "last", where)
    precision = choose_precision(settings.precision, where)
    both = predict(held.model, held.preprocessing, splits.val.images, device=where, precision=precision, tta="flip")
    return {
        "id": configuration.id,
        "name": configuration.name,
        "base": difference(configuration.base, base_recipe({})),
        "differs": difference(settings, configuration.base),
        "seed": settings.seed,
        "epochs": len(history),
        "train_faces": faces,
        "stem": settings.stem,
        "max_pool": str(settings.max_pool).lower(),
        "width": settings.width,
        "image_size": settings.image_size,
        "parameters": parameters,
        "gmac": macs[settings.image_size] / 1e9,
        "pflop": pflop(macs, sizes, faces),
        # By the rate: train_seconds of an epoch that was resumed in its middle lacks what was spent before.
        "minutes": float((faces / history["images_per_second"]).sum()) / 60,
        "images_per_second": float(history["images_per_second"].median()),
        "best_val_accuracy": float(history["val_accuracy"].max()),
        "val_accuracy": float(history["val_accuracy"].iloc[-1]),
        "val_macro_f1": float(history["val_macro_f1"].iloc[-1]),
        "flip_val_accuracy": metrics.accuracy(both, splits.val.targets),
        "flip_val_macro_f1": metrics.macro_f1(both, splits.val.targets),
        "date": datetime.now(UTC).date().isoformat(),
        "threads": torch.get_num_threads(),
        "device": where.type,
        "data": configuration.data,
    }


def sweep_all(wanted: Sequence[Configuration], splits: Splits, out: Path, table: Path, device: str) -> tuple[int, int]:
    """Train what has no row yet, and return how many are being trained elsewhere and how many failed."""
    failed = 0
    left = list(wanted)
    while left:
        elsewhere = []
        for number, configuration in enumerate(left, start=1):
            title = f"[{number}/{len(left)}] {configuration.name}, seed {configuration.recipe.seed}"
            with held_alone(out / "claims" / f"{configuration.id}.lock") as mine:
                if not mine:
                    print(f"{title}: another process trains it")
                    elsewhere.append(configuration)
                    continue
                # Read while it is held: who held it before may have just finished.
                if configuration.id not in set(read(table)["id"]):
                    print(title, flush=True)
                    try:
                        ledger.append_row(table, COLUMNS, train(configuration, splits, out / "runs", device))
                    except training.TrainingError as error:
                        print(f"  failed: {error}")
                        failed += 1
                        continue
                for name in ("last.ckpt", "best.ckpt"):  # a hundred networks would fill a disk
                    (out / "runs" / configuration.folder / name).unlink(missing_ok=True)
        if len(elsewhere) == len(left):
            break
        left = elsewhere  # its process may have finished, or died, since
    return len(left), failed


# -- what was found ---------------------------------------------------------------------------------------------------


def read(table: Path) -> pd.DataFrame:
    """Return what is measured so far, a row of ``COLUMNS`` per training; the last where `fast` itself was changed."""
    rows = ledger.read_rows(table, COLUMNS)
    frame = pd.DataFrame(rows, columns=list(COLUMNS)).drop_duplicates(_ONE, keep="last", ignore_index=True)
    return frame.assign(**{column: pd.to_numeric(frame[column]) for column in _NUMBERS})


def pareto(costs: Sequence[float], scores: Sequence[float]) -> list[bool]:
    """Return for each entry whether no other costs as little and scores as much, and is better in one of the two."""
    pairs = list(zip(costs, scores, strict=True))
    return [not any(c <= cost and s >= score and (c, s) != (cost, score) for c, s in pairs) for cost, score in pairs]


def over_seeds(rows: pd.DataFrame) -> pd.DataFrame:
    """Return a row per configuration, numbers averaged over its seeds, with how many and both fronts, by arithmetic."""
    groups = rows.groupby(["name", "base", "differs"], sort=False)
    found = (
        groups[_NUMBERS].mean().join(groups[["stem", "max_pool", "data"]].first()).join(groups.size().rename("seeds"))
    )
    found = found.reset_index().sort_values("pflop", ignore_index=True)
    for cost in ("pflop", "minutes"):
        found[f"front_{cost}"] = pareto(found[cost].tolist(), found["val_accuracy"].tolist())
    return found


def differences(rows: pd.DataFrame) -> pd.DataFrame:
    """Return what each change gave against the base trained alike and with the same seed, best first within a base.

    Columns: base, name, differs, seeds; accuracy and macro_f1 (points, mean over seeds) with accuracy_std and
    macro_f1_std (sample standard deviation, NaN for one seed); minutes, and minutes over the base's (ratio).
    """
    found = []
    scores = {"accuracy": "val_accuracy", "macro_f1": "val_macro_f1"}
    for base, group in rows.groupby("base", sort=False):
        stock = group[group["name"] == "base"]
        flipped = stock.assign(name="flip views", differs="tta=flip")
        flipped = flipped.assign(**{column: flipped[f"flip_{column}"] for column in scores.values()})
        every = pd.concat([group[group["name"] != "base"], flipped])
        told = []
        for (name, differs), changed in every.groupby(["name", "differs"], sort=False):
            paired = changed.merge(stock, on="seed", suffixes=("", "_base"))
            if not len(paired):
                continue
            entry = {"base": base, "name": name, "differs": differs, "seeds": len(paired)}
            for score, column in scores.items():
                points = 100 * (paired[column] - paired[f"{column}_base"])
                entry |= {score: float(points.mean()), f"{score}_std": float(points.std(ddof=1))}
            minutes = float(paired["minutes"].mean())
            entry |= {"minutes": minutes, "ratio": minutes / float(paired["minutes_base"].mean())}
            told.append(entry)
        found += sorted(told, key=lambda entry: -entry["accuracy"])
    names = ("base", "name", "differs", "seeds", "accuracy", "accuracy_std", "macro_f1", "macro_f1_std")
    return pd.DataFrame(found, columns=[*names, "minutes", "ratio"])


def frontier_table(found: pd.DataFrame) -> tuple[list[str], list[list[object]]]:
    """Return header and rows of the frontier's table."""
    header = "network,sweep,seeds,faces,Mparam,GMAC,PFLOP,minutes,images/s,best %,last %,macro-F1 %,flip %,front"
    rows: list[list[object]] = []
    for row in found.itertuples():
        fronts = [name for name, on in (("PFLOP", row.front_pflop), ("minutes", row.front_minutes)) if on]
        scores = (row.best_val_accuracy, row.val_accuracy, row.val_macro_f1, row.flip_val_accuracy)
        rows.append(
            [
                *(row.name, row.base, row.seeds, round(row.train_faces), row.parameters / 1e6, row.gmac, row.pflop),
                *(row.minutes, row.images_per_second, *(100 * score for score in scores), " ".join(fronts)),
            ]
        )
    return header.split(","), rows


def ablation_table(found: pd.DataFrame) -> tuple[list[str], list[list[object]]]:
    """Return header and rows of the ablation's table."""
    header = "change,what,sweep,seeds,accuracy (points),macro-F1 (points),minutes,times the base's"

    def points(mean: float, std: float) -> str:
        return f"{mean:+.2f}" + ("" if np.isnan(std) else f" ± {std:.2f}")

    return header.split(","), [
        [
            *(row.name, row.differs, row.base, row.seeds, points(row.accuracy, row.accuracy_std)),
            *(points(row.macro_f1, row.macro_f1_std), row.minutes, row.ratio),
        ]
        for row in found.itertuples()
    ]


def sweep_told_once(
    header: Sequence[str], rows: Sequence[Sequence[object]]
) -> tuple[Sequence[str], Sequence[Sequence[object]]]:
    """Print what all trainings of a table have in common, if they do, and return it without the column that says so."""
    at = header.index("sweep")
    sweeps = {str(row[at]) for row in rows}
    if len(sweeps) != 1:
        return header, rows
    print(f"Each is `fast` as it was before the sweeps, with {sweeps.pop() or 'nothing changed'}.\n")
    return [*header[:at], *header[at + 1 :]], [[*row[:at], *row[at + 1 :]] for row in rows]


def show(header: Sequence[str], rows: Sequence[Sequence[object]], *, markdown: bool) -> None:
    """Print a table, as text or as Markdown."""
    if not markdown:
        bars.table(header, rows)
        return
    right = [all(isinstance(row[i], int | float) for row in rows) for i in range(len(header))]
    print("| " + " | ".join(header) + " |")
    print("|" + "|".join("---:" if number else "---" for number in right) + "|")
    for row in rows:
        print("| " + " | ".join(bars.number(cell) if isinstance(cell, float) else str(cell) for cell in row) + " |")


# -- the command line -----------------------------------------------------------------------------------------------


def report(sweep: str, rows: pd.DataFrame, picture: Path | None, *, markdown: bool) -> None:
    """Print the table of a sweep, and draw its picture where that is to be kept."""
    if not len(rows):
        print("nothing is measured yet")
        return
    print()
    if sweep == "frontier":
        found = over_seeds(rows)
        show(*sweep_told_once(*frontier_table(found)), markdown=markdown)
        figure = frontier_figure(found)
    else:
        found = differences(rows)
        if not len(found):
            print("the base is not measured yet: nothing to compare with")
            return
        show(*sweep_told_once(*ablation_table(found)), markdown=markdown)
        figure = ablation_figure(found, rows)
    if picture is not None:
        with replacing(picture) as aside:
            figure.savefig(aside, dpi=150)
        print(f"\n{picture}")


def listing(wanted: Sequence[Configuration], splits: Splits, done: set[str]) -> list[list[object]]:
    """Return a row per configuration: name, seed, what differs, GMAC, planned PFLOP, whether it is measured."""
    rows: list[list[object]] = []
    for one in wanted:
        sizes = training.image_sizes(one.recipe)
        macs = arithmetic(one.recipe, [*sizes, one.recipe.image_size])[1]
        faces = len(training.training_faces(one.recipe, splits.train))
        cost = [macs[one.recipe.image_size] / 1e9, pflop(macs, sizes, faces)]
        changed = difference(one.recipe, one.base)
        rows.append([one.name, one.recipe.seed, changed, *cost, "measured" if one.id in done else ""])
    return rows


def arguments_of(given: Sequence[str] | None) -> argparse.Namespace:
    """Return the command line's arguments, checked, with ``small`` for the sweep that runs without any."""
    parser = bars.parser(__doc__)
    parser.add_argument("--sweep", choices=("frontier", "ablation"), help="which; without it four networks, briefly")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="names or patterns, such as '3x3s2-*'")
    parser.add_argument("--list", action="store_true", help="list what would be trained, and stop")
    parser.add_argument("--table", action="store_true", help="train nothing: print and draw what is measured")
    parser.add_argument("--markdown", action="store_true", help="print the table as Markdown")
    parser.add_argument("--epochs", type=bars.positive, help=f"epochs of each training; {EPOCHS} in a whole sweep")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="seeds of the trainings")
    parser.add_argument("--train-faces", type=bars.positive, help="about so many training faces, a stratified draw")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="fields of fast for the whole sweep")
    parser.add_argument("--out", type=Path, help="directory of the sweep (outputs/frontier or outputs/ablation)")
    parser.add_argument("--threads", type=bars.positive, help="threads of torch")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps; one for all of a directory")
    arguments = parser.parse_args(given)
    for item in arguments.set:
        key = item.partition("=")[0]
        if "=" not in item or key in ("epochs", "seed", "train_faces", "name", "description"):
            parser.error(f"--set {item}: give KEY=VALUE; --epochs, --seeds and --train-faces are arguments")
    arguments.seeds = list(dict.fromkeys(arguments.seeds))  # a seed that is named twice is one training
    asked = arguments.sweep or arguments.only or arguments.list or arguments.table
    arguments.small = not asked
    if arguments.small:
        arguments.only = list(SMALL)
        arguments.train_faces = arguments.train_faces or 1500
    arguments.epochs = arguments.epochs or (1 if arguments.small else EPOCHS)
    arguments.sweep = arguments.sweep or "frontier"
    return arguments


def main(given: Sequence[str] | None = None) -> int:
    """Train what is missing, print, draw, judge."""
    arguments = arguments_of(given)
    if not arguments.markdown:
        print(bars.machine())
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as scratch:
        out = arguments.out or (Path(scratch) if arguments.small else runs.OUTPUTS / arguments.sweep)
        table = out / f"{arguments.sweep}.csv"
        picture = None if out == Path(scratch) else table.with_suffix(".png")
        if arguments.table:
            report(arguments.sweep, read(table), picture, markdown=arguments.markdown)
            return 0
        overrides = dict(item.partition("=")[::2] for item in arguments.set)
        overrides |= {"epochs": arguments.epochs, "train_faces": arguments.train_faces}
        base = base_recipe(overrides)
        splits = sources.load(arguments.data, val_fraction=base.val_fraction, split_seed=base.split_seed)
        if not splits.val.labelled or not len(splits.val):
            raise SystemExit("there are no labelled validation faces: nothing could be scored")
        data = f"{'synthetic' if splits.synthetic else 'real'} {splits.fingerprint()[:10]}"
        wanted = configurations(arguments.sweep, overrides, arguments.seeds, data, arguments.only)
        measured = read(table)
        others = set(measured["data"]) - {data}
        if others:
            raise SystemExit(f"{table} holds rows of other faces ({', '.join(sorted(others))}): name another --out")
        if arguments.list:
            bars.table(
                ["name", "seed", "differs", "GMAC", "PFLOP", "measured"],
                listing(wanted, splits, set(measured["id"])),
            )
            return 0
        elsewhere, failed = sweep_all(wanted, splits, out, table, arguments.device)
        rows = read(table)
        report(arguments.sweep, rows, picture, markdown=arguments.markdown)
        done = len({one.id for one in wanted} & set(rows["id"]))
        expected = len(wanted) - elsewhere
        if failed:
            print(f"{failed} failed")
        return bars.judge([bars.at_least("networks measured", done, expected)])


if __name__ == "__main__":
    sys.exit(bars.run(main))
