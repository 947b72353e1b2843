"""Checkpoints: atomic, checksummed, exact. Tensors and plain values only; no pickle is ever executed."""

from __future__ import annotations

import hashlib
import pickle
import zipfile
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import torch
from torch import Tensor, nn

from fer_utils import models
from fer_utils import recipe as recipes
from fer_utils.files import replacing
from fer_utils.preprocessing import Preprocessing
from fer_utils.recipe import Recipe, RecipeError
from fer_utils.runs import Run

SCHEMA_VERSION: Final = 1


class CheckpointError(RuntimeError):
    """A checkpoint cannot be read or does not fit; the message names the file and says what to do."""


def save(path: Path, state: dict[str, Any]) -> None:
    """Write ``state`` (nested dicts and lists of tensors and plain values), whole or not at all, with its checksum."""
    # Tensors go to the CPU first, so that a checkpoint written on a GPU loads and hashes the same anywhere.
    _write(path, _to_cpu(state))


class Saver:
    """Writes checkpoints, whole or not at all, while a training goes on: one after the other, in their order.

    Hashing and writing 180 MB takes half a second, in which a GPU trains half an epoch. Leaving the ``with`` block
    waits for the last of them, after an error too.
    """

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1)
        self._waiting: list[Future[None]] = []

    def __enter__(self) -> Saver:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown()
        self.wait()

    def save(self, *files: tuple[Path, dict[str, Any]]) -> None:
        """Copy each file's ``state`` now, and write it later.

        Raises:
            OSError: what was to be written before could not be.
        """
        self.wait()
        self._waiting = [self._pool.submit(_write, path, _to_cpu(state, copy=True)) for path, state in files]

    def wait(self) -> None:
        """Return when all is written.

        Raises:
            OSError: it could not be.
        """
        waiting, self._waiting = self._waiting, []
        for each in waiting:
            each.result()


def _write(path: Path, plain: dict[str, Any]) -> None:
    # Into an open file: by a path torch names the archive inside after it, and the path aside differs each time.
    with replacing(path) as aside, aside.open("wb") as file:
        try:
            torch.save({"schema_version": SCHEMA_VERSION, "sha256": _digest(plain), "state": plain}, file)
        except RuntimeError as error:
            # Of a disk that fills torch tells only where it stands in the file; why is the error before it.
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise


def remove_leftovers(run: Run) -> None:
    """Remove what processes that were killed while they wrote checkpoints left of them; nobody else may write now."""
    for name in ("best", "last"):
        for path in run.path.glob(f".{name}.{'[0-9a-f]' * 8}.ckpt"):
            path.unlink()


# What torch makes of a file in which some bytes are others.
_DAMAGED: Final = (
    RuntimeError, EOFError, OSError, ValueError, KeyError, IndexError, TypeError, AttributeError, AssertionError,
    zipfile.BadZipFile,
)  # fmt: skip


def load(path: Path) -> dict[str, Any]:
    """Read what ``save`` wrote; every tensor is on the CPU.

    Raises:
        CheckpointError: the file is missing, is no checkpoint, holds other than tensors and plain values, has another
            schema version, or its content does not match its checksum.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: there is no such checkpoint; train first, or name another run")
    try:
        whole = zipfile.is_zipfile(path)
    except zipfile.BadZipFile:
        whole = False
    if not whole:
        size = path.stat().st_size
        raise CheckpointError(
            f"{path}: is damaged or no checkpoint ({size:,} bytes that are no zip archive): copy it again, "
            "train again, or name another run"
        )
    try:
        held = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # torch's own message ends with how to load such a file all the same, which nobody should.
        raise CheckpointError(
            f"{path}: refused, since it is damaged or holds more than tensors and plain values"
        ) from error
    except _DAMAGED as error:
        raise CheckpointError(f"{path}: cannot be read, it is damaged or no checkpoint: {error}") from error
    if not isinstance(held, dict) or "state" not in held or "sha256" not in held:
        raise CheckpointError(f"{path}: is no checkpoint of this suite")
    if held.get("schema_version") != SCHEMA_VERSION:
        raise CheckpointError(
            f"{path}: has schema version {held.get('schema_version')}, this suite reads {SCHEMA_VERSION}; train again, "
            "or use the version of the suite that wrote it"
        )
    state: dict[str, Any] = held["state"]
    try:
        digest = _digest(state)
    except _DAMAGED as error:
        raise CheckpointError(f"{path}: cannot be read, it is damaged: {error}") from error
    if digest != held["sha256"]:
        raise CheckpointError(f"{path}: its content does not match its checksum: the file is damaged, train again")
    return state


def _to_cpu(value: Any, *, copy: bool = False) -> Any:
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=copy)
    if isinstance(value, dict):
        return {key: _to_cpu(item, copy=copy) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_to_cpu(item, copy=copy) for item in value]
    return value


def _digest(state: Any) -> str:
    hasher = hashlib.sha256()

    def visit(value: Any, path: str) -> None:
        if isinstance(value, Tensor):
            hasher.update(f"{path}:{value.dtype}:{tuple(value.shape)}:".encode())
            hasher.update(value.contiguous().reshape(-1).view(torch.uint8).numpy().data)
        elif isinstance(value, dict):
            for key, item in value.items():
                visit(item, f"{path}/{key!r}")
        elif isinstance(value, list):
            for index, item in enumerate(value):
                visit(item, f"{path}/{index}")
        else:
            hasher.update(f"{path}={value!r};".encode())

    visit(state, "")
    return hasher.hexdigest()


@dataclass(frozen=True)
class LoadedModel:
    """A trained network ready for evaluation.

    Attributes:
        model: in evaluation mode, float32, on the device asked for.
        preprocessing: what turns faces into its input.
        recipe: what it was trained with.
        epoch: the epoch its weights are of, counted from 1.
    """

    model: nn.Module
    preprocessing: Preprocessing
    recipe: Recipe
    epoch: int


def model_state(model: nn.Module, preprocessing: Preprocessing, recipe: Recipe, epoch: int) -> dict[str, Any]:
    """Return what ``best.ckpt`` holds: weights, preprocessing, recipe and epoch."""
    return {
        "kind": "model",
        "model": model.state_dict(),
        "preprocessing": preprocessing.to_dict(),
        "recipe": recipe.dump(),
        "epoch": epoch,
    }


def load_model(run: Run, which: Literal["best", "last"] = "best", device: torch.device | None = None) -> LoadedModel:
    """Load a run's network: of its best epoch, by validation accuracy or by ``keep_epoch``, or of its last.

    Where the recipe keeps a moving average of the weights, that is what is loaded.

    Raises:
        CheckpointError: the checkpoint is missing, damaged, of another schema or label order, or does not fit its
            recipe.
    """
    path = run.file(f"{which}.ckpt")
    state = load(path)
    if which == "last":
        if "evaluated" not in state:
            raise CheckpointError(f"{path}: its training has not reached the end of an epoch yet; resume it first")
        state = state["evaluated"]
    try:
        recipe = recipes.parse(state["recipe"])
        preprocessing = Preprocessing.from_dict(state["preprocessing"])
        model = models.build(recipe, pretrained=False)
        model.load_state_dict(state["model"])
    except KeyError as error:
        raise CheckpointError(f"{path}: holds no {error}; it is no model of this suite") from error
    except (RecipeError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{path}: cannot be used: {error}") from error
    target = device or torch.device("cpu")
    return LoadedModel(model.to(target).eval(), preprocessing, recipe, int(state["epoch"]))
