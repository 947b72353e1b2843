"""A run: one directory that holds what a training read, did and found. Notebooks hand results on only through it."""

from __future__ import annotations

import csv
import datetime as dt
import io
import json
import platform
import subprocess
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pandas as pd

from fer_utils import recipe as recipes
from fer_utils.faces import Splits
from fer_utils.files import ROOT, expanded, replacing, write_json, write_text
from fer_utils.recipe import Recipe

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SCHEMA_VERSION: Final = 1
OUTPUTS: Final = ROOT / "outputs"
"""Where runs are made unless the user says otherwise."""

_PACKAGES: Final = ("torch", "torchvision", "numpy", "pandas", "pyarrow", "scikit-learn", "pillow", "fer-utils")


class RunError(RuntimeError):
    """A run cannot be used as asked; the message names the run and says what to do."""


class Run:
    """A run's directory.

    Files: ``run.json`` (schema, creation), ``recipe.yaml``, ``env.json``, ``audit.json``, ``history.csv``,
    ``last.ckpt``, ``best.ckpt``, ``metrics.json``, ``predictions.parquet``, ``figures/*.png``, and the executed
    notebooks.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r})"

    def __fspath__(self) -> str:
        return str(self.path)

    # -- finding and making -------------------------------------------------------------------------------------------

    @classmethod
    def create(cls, path: str | Path | None = None, *, label: str = "run") -> Run:
        """Make a new run at ``path``, or under ``outputs/`` with the time and ``label`` in its name.

        An existing run at ``path`` is opened and kept, so that one suite can fill it step by step.

        Raises:
            RunError: ``path`` is a file, or a directory that holds something else or cannot be made.
        """
        target = expanded(path) if path is not None else OUTPUTS / f"{dt.datetime.now():%Y%m%d-%H%M%S}-{label}"
        try:
            if path is None:
                target = _own_directory(target)
            elif (target / "run.json").is_file():
                return cls.open(target)
            else:
                cls.check_free(target)
                target.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunError(f"{target} cannot be made ({error.strerror}): name another directory for the run") from None
        run = cls(target)
        run.write_json("run.json", {"created": dt.datetime.now().astimezone().isoformat(timespec="microseconds")})
        return run

    @staticmethod
    def check_free(path: str | Path) -> None:
        """Tell whether a run can be made at ``path``, before there is anything to write to it.

        Raises:
            RunError: ``path`` is a file, or a directory that holds something other than a run.
        """
        target = expanded(path)
        if (target / "run.json").is_file():
            return
        if target.is_file() or (target.is_dir() and any(target.iterdir())):
            raise RunError(f"{target} is there already and is no run: name a new or empty directory for the run")

    @classmethod
    def open(cls, path: str | Path) -> Run:
        """Open an existing run by its path, or by its name under ``outputs/``.

        Raises:
            RunError: there is no run, or another version of the suite wrote it.
        """
        target = expanded(path)
        # A directory that merely has a run's name does not hide it.
        if not (target / "run.json").is_file() and (OUTPUTS / path).is_dir():
            target = OUTPUTS / path
        run = cls(target)
        if not target.is_dir():
            raise RunError(f"there is no run at {path}: train one with 03_train.ipynb, or name another")
        if not (target / "run.json").is_file():
            raise RunError(f"{target} is no run: it has no run.json; give the directory that 03_train.ipynb made")
        run.read_json("run.json")
        return run

    @classmethod
    def newest(cls, root: Path | None = None, *, holding: str = "run.json") -> Run | None:
        """Return the run under ``root`` (``outputs/`` by default) whose file ``holding`` is newest, or None."""
        found = sorted((root or OUTPUTS).glob(f"*/{holding}"), key=lambda file: file.stat().st_mtime_ns)
        found = [file for file in found if (file.parent / "run.json").is_file()]
        return cls.open(found[-1].parent) if found else None

    @classmethod
    def choose(cls, run: str | Path | None, *, holding: str = "best.ckpt") -> Run:
        """Return the run that a user named, or else the newest that has the file ``holding``.

        Raises:
            RunError: it does not exist or lacks the file.
        """
        if run is None:
            newest = cls.newest(holding=holding)
            if newest is None:
                raise RunError(f"no run under {OUTPUTS} has a {holding}: train one with 03_train.ipynb first")
            return newest
        opened = cls.open(run)
        if not opened.has(holding):
            raise RunError(f"{opened.path} has no {holding}: its training has not reached the end of an epoch yet")
        return opened

    @classmethod
    def waiting(cls, fingerprint: str) -> Run | None:
        """Return the newest run under ``outputs/`` if these faces were audited in it and nothing was trained yet.

        So 01, 02 and 03, run one after another without naming a run, fill one directory.
        """
        newest = cls.newest()
        if newest is None or newest.has("recipe.yaml") or not newest.has("audit.json"):
            return None
        return newest if newest.read_json("audit.json")["data"]["fingerprint"] == fingerprint else None

    @classmethod
    def prepare(cls, run: str | Path | None, out: str | Path | None, *, fingerprint: str, label: str = "run") -> Run:
        """Return the run that a notebook is to fill: ``run``, which exists; or the one to be made at ``out``.

        With neither it is the run that waits for the training of these faces (see ``waiting``), else a new one under
        ``outputs/`` with ``label`` in its name.

        Raises:
            RunError: both are given and differ, ``run`` does not exist, ``out`` holds something else, or the run was
                trained on other faces.
        """
        if run is not None and out is not None and expanded(run).resolve() != expanded(out).resolve():
            raise RunError(f"run {run} is to be filled and a new one made at {out}: give run or out, not both")
        if run is not None:
            return cls.open(run).for_faces(fingerprint)
        waiting = cls.waiting(fingerprint) if out is None else None
        return waiting or cls.create(out, label=label).for_faces(fingerprint)

    def for_faces(self, fingerprint: str) -> Run:
        """Return the run itself, where nothing was trained in it yet or on these faces alone.

        Raises:
            RunError: it was trained on other faces: what is said of these must not stand beside it.
        """
        if self.has("env.json"):
            known = self.read_json("env.json").get("data", {})
            if known.get("fingerprint") != fingerprint:
                place = f"{known.get('source')} {known.get('location')}, fingerprint {known.get('fingerprint')}"
                raise RunError(
                    f"{self.path} was trained on other faces or another cut of them ({place}; here {fingerprint}): "
                    "give the same data and cut, or another run"
                )
        return self

    # -- files --------------------------------------------------------------------------------------------------------

    def file(self, name: str) -> Path:
        """Return the path of a file of this run, whether it exists or not."""
        return self.path / name

    def has(self, name: str) -> bool:
        """Return whether the run has the file."""
        return self.file(name).is_file()

    def write_json(self, name: str, values: Mapping[str, Any]) -> None:
        """Write ``values`` with the schema's version, whole or not at all."""
        write_json(self.file(name), {"schema_version": SCHEMA_VERSION, **values})

    def read_json(self, name: str) -> dict[str, Any]:
        """Read a JSON file of this run.

        Raises:
            RunError: it is missing, unreadable, or has another schema version.
        """
        path = self.file(name)
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise RunError(f"{self.path} has no {name}") from None
        except ValueError as error:
            raise RunError(f"{path} cannot be read as JSON: {error}") from error
        version = values.get("schema_version") if isinstance(values, dict) else None
        if version != SCHEMA_VERSION:
            raise RunError(
                f"{path} has schema version {version}, this suite reads {SCHEMA_VERSION}: use the version of the suite "
                "that wrote it, or train again"
            )
        result: dict[str, Any] = values
        return result

    @property
    def recipe(self) -> Recipe:
        """The recipe as it was trained, overrides included."""
        if not self.has("recipe.yaml"):
            raise RunError(f"{self.path} has no recipe.yaml: nothing was trained in it yet")
        try:
            text = self.file("recipe.yaml").read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise RunError(f"{self.file('recipe.yaml')} is damaged: it is no text ({error})") from error
        return recipes.parse(text, str(self.file("recipe.yaml")))

    def write_recipe(self, recipe: Recipe) -> None:
        """Store the recipe."""
        write_text(self.file("recipe.yaml"), recipe.dump())

    def append_history(self, row: Mapping[str, Any]) -> None:
        """Add one epoch to ``history.csv``; an epoch that is there already is replaced with what follows it."""
        rows = [old for old in self._history_rows() if int(old["epoch"]) < int(row["epoch"])]
        text = io.StringIO()
        writer = csv.DictWriter(text, fieldnames=list(row), lineterminator="\n")
        writer.writeheader()
        for item in (*rows, row):
            writer.writerow({key: "" if item.get(key) is None else item[key] for key in row})
        write_text(self.file("history.csv"), text.getvalue())

    def _history_rows(self) -> list[dict[str, str]]:
        if not self.has("history.csv"):
            return []
        # A spreadsheet puts a mark before the first column's name, which pandas leaves out too.
        with self.file("history.csv").open(encoding="utf-8-sig", newline="") as file:
            return list(csv.DictReader(file))

    def history(self) -> pd.DataFrame:
        """Return a row per finished epoch; empty before the first.

        Raises:
            RunError: ``history.csv`` is no table of epochs.
        """
        if not self.has("history.csv"):
            return pd.DataFrame({"epoch": pd.Series(dtype=int)})
        try:
            table = pd.read_csv(self.file("history.csv"))
        except (ValueError, UnicodeDecodeError) as error:  # pandas' own are of the first kind
            raise RunError(f"{self.file('history.csv')} is damaged: it is no table ({error})") from error
        # A spreadsheet saves semicolons, or 1.0 for 1.
        if "epoch" not in table or not pd.api.types.is_integer_dtype(table["epoch"]):
            raise RunError(
                f"{self.file('history.csv')} is damaged: expected commas between columns, and whole numbers in one "
                f"called epoch, got {', '.join(map(str, table.columns[:3]))} ...; give back the file as it was written"
            )
        return table

    def save_figure(self, name: str, figure: Figure, dpi: int = 150) -> Path:
        """Save ``figure`` as ``figures/NAME.png`` and return its path."""
        path = self.path / "figures" / f"{name}.png"
        with replacing(path) as aside:
            figure.savefig(aside, dpi=dpi, bbox_inches="tight")
        return path

    def write_environment(self, splits: Splits, device: str, precision: str, threads: int) -> None:
        """Store what the training ran on: commit, versions, machine, device, data fingerprint, skipped items."""
        self.write_json("env.json", environment(splits, device, precision, threads))


def _own_directory(wanted: Path) -> Path:
    """Make and return a directory that nobody else has: of this name, or where that is taken with a number behind."""
    wanted.parent.mkdir(parents=True, exist_ok=True)
    number = 1
    while True:
        path = wanted if number == 1 else wanted.with_name(f"{wanted.name}-{number}")
        try:
            path.mkdir()
        except FileExistsError:
            number += 1
        else:
            return path


def chosen_recipe(parameters: Mapping[str, Any]) -> Recipe:
    """Return the recipe that a notebook's checked parameters ask for, with those that are its fields put over it.

    It is the parameter ``recipe``, a name or a YAML file; without one the recipe of the run that ``run`` names, where
    something was trained in it; else ``fast``.

    Raises:
        RecipeError: the recipe or an override is wrong.
        RunError: the run named is not there.
    """
    base: str | Path = parameters.get("recipe") or "fast"
    named = parameters.get("run")
    if parameters.get("recipe") is None and named is not None and Run.open(named).has("recipe.yaml"):
        base = Run.open(named).file("recipe.yaml")
    return recipes.load(base, {name: parameters[name] for name in Recipe.model_fields if name in parameters})


def git_state(root: Path = ROOT) -> dict[str, Any]:
    """Return the commit and whether tracked files differ from it; None where this is no git checkout."""

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", *arguments], cwd=root, capture_output=True, text=True, timeout=10, check=False
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    commit = git("rev-parse", "HEAD")
    status = git("status", "--porcelain", "--untracked-files=no")
    return {"commit": commit, "dirty": None if status is None else bool(status)}


def environment(splits: Splits, device: str, precision: str, threads: int) -> dict[str, Any]:
    """Return what ``env.json`` holds."""
    versions: dict[str, str | None] = {}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = None
    return {
        "git": git_state(),
        "versions": versions,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "machine": _cpu_name(),
        "device": device,
        "gpu": _gpu_name(device),
        "precision": precision,
        "threads": threads,
        "data": describe_data(splits),
    }


def describe_data(splits: Splits) -> dict[str, Any]:
    """Return what ``env.json`` and ``audit.json`` hold about the faces under ``data``."""
    return {
        "source": splits.source,
        "location": splits.location,
        "synthetic": splits.synthetic,
        "rule": splits.rule,
        "fingerprint": splits.fingerprint(),
        "faces": {part: len(faces) for part, faces in splits},
        "converted": splits.converted,
        "skipped": [{"name": item.name, "reason": item.reason} for item in splits.skipped],
    }


def _gpu_name(device: str) -> str | None:
    if not device.startswith("cuda"):
        return None
    import torch  # a run is opened and listed without it

    return torch.cuda.get_device_name(device)


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
