"""Training: one readable loop, on one device or on many under torchrun.

    python -m fer_utils.training --recipe fast --data DATA --out DIR
    torchrun --nproc-per-node 2 -m fer_utils.training --recipe fast --data DATA --out DIR

The faces stay on the device as uint8. An epoch's order and every augmentation parameter are a function of (seed, epoch,
index), and torch's own generator (dropout) is reseeded each step from (seed, epoch, step, rank): a resume restores
weights, optimiser and sums and needs no generator's state, and the result is the same bytes.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import math
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.elastic.multiprocessing.errors import record
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from fer_utils import audit, checkpoint, metrics, models, sources
from fer_utils import recipe as recipes
from fer_utils.augment import Draws, MixDraws, augment, draw, epoch_order, mix, mix_draw, mix_shares
from fer_utils.devices import DeviceError, Precision, autocast, choose_device, choose_precision, keep_freed_memory
from fer_utils.emotions import NUM_EMOTIONS
from fer_utils.faces import Faces, Splits, cut
from fer_utils.files import expanded, held_alone, refusal, sha256
from fer_utils.muon import Muon
from fer_utils.prediction import TTA, predict
from fer_utils.preprocessing import Preprocessing
from fer_utils.recipe import Recipe, RecipeError
from fer_utils.runs import Run, RunError
from fer_utils.sources import SourceError

Row = dict[str, Any]
"""One epoch, as in ``history.csv``."""

COLUMNS: Final = (
    "epoch",
    "train_loss",
    "train_accuracy",
    "val_loss",
    "val_accuracy",
    "val_macro_f1",
    "lr",
    "image_size",
    "images_per_second",
    "train_seconds",
    "val_seconds",
    "total_seconds",
)
TIMING_COLUMNS: Final = ("images_per_second", "train_seconds", "val_seconds", "total_seconds")
"""What differs between two runs of the same recipe, seed and data on the same machine."""

SAVE_EVERY: Final = 600.0
"""Seconds between checkpoints inside a long epoch."""

TELL_EVERY: Final = 60.0
"""Seconds between log lines inside a long epoch."""

_TTA_OF_VIEWS: Final[dict[str, TTA]] = {"one": "none", "flip": "flip", "ten_crop": "ten_crop"}
"""Of ``recipe.teacher_views``; a recipe's ``none`` would be no value at all, so one view is called ``one`` there."""

_NETWORK: Final = ("backbone", "stem", "max_pool", "width", "activation", "shortcut", "channels", "head", "normalize")
"""Fields that a recipe has in common with the run that it starts from: weights mean something in that network only."""

_MOST_TOLD: Final = 8
"""Fields that a message names of those in which two recipes differ."""


class TrainingError(RuntimeError):
    """A training cannot start or go on; the message says why and what to do."""


# -- schedules: pure functions of the step ----------------------------------------------------------------------------


def schedule_factor(recipe: Recipe, step: int, steps: int) -> float:
    """Return the factor on the recipe's ``lr`` at ``step`` of ``steps``, both counted over the whole training.

    ``one_cycle`` rises on a cosine from 1/25 to 1 during the warm-up and falls on a cosine to 1/250,000, as torch's
    OneCycleLR does (Smith and Topin 2018, arXiv:1708.07120); without a step to rise in it begins at 1. ``cosine`` rises
    linearly and falls to 0 (Loshchilov and Hutter 2017, arXiv:1608.03983). ``constant`` and ``plateau`` are 1; the
    latter's drops come from validation.
    """
    if recipe.schedule in ("constant", "plateau"):
        return 1.0
    last = max(steps - 1, 1)
    if recipe.schedule == "one_cycle":
        peak = max(recipe.warmup * steps - 1, 0.0)
        if step <= peak and peak > 0:
            return _cosine(1 / 25, 1.0, step / peak)
        return _cosine(1.0, 1 / 25e4, (step - peak) / max(last - peak, 1))
    rise = recipe.warmup * steps
    if step < rise:
        return (step + 1) / (rise + 1)
    return _cosine(1.0, 0.0, (step - rise) / max(steps - rise, 1))


def _cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) / 2 * (1 + math.cos(math.pi * min(share, 1.0)))


def learning_rates(recipe: Recipe, steps_per_epoch: int) -> npt.NDArray[np.float64]:
    """Return the planned learning rate of every step, float64 (epochs × steps_per_epoch,), before layer factors."""
    steps = recipe.epochs * steps_per_epoch
    return recipe.lr * np.array([schedule_factor(recipe, step, steps) for step in range(steps)])


def image_sizes(recipe: Recipe) -> list[int]:
    """Return the input size of each epoch that is trained: ``image_size``, or rising to it where ``progressive``.

    It rises in steps of 4; the last epoch has ``image_size`` itself, at which the network is evaluated.
    """
    if recipe.progressive is None:
        return [recipe.image_size] * recipe.trained_epochs
    low, high = min(recipe.progressive, recipe.image_size), recipe.image_size
    share = np.linspace(0, 1, recipe.trained_epochs) if recipe.trained_epochs > 1 else np.ones(recipe.trained_epochs)
    rising = [min(high, low + 4 * round((high - low) * float(part) / 4)) for part in share]
    return [*rising[:-1], high] if rising else []


def batch_bounds(n: int, batch_size: int, world: int = 1) -> list[tuple[int, int]]:
    """Return (start, end) of each global batch of an epoch of ``n`` faces; every face is seen once.

    A last batch too small for batch norm, fewer than two faces a rank, joins the one before it.

    Raises:
        TrainingError: there are fewer faces than that in all.
    """
    if n < 2 * world:
        raise TrainingError(f"{n} training faces are too few for {world} process(es): at least two faces each")
    starts = list(range(0, n, batch_size))
    if len(starts) > 1 and n - starts[-1] < 2 * world:
        starts.pop()
    return list(zip(starts, [*starts[1:], n], strict=True))


# -- the parts of a training ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ranks:
    """Which process this is of how many."""

    rank: int = 0
    world: int = 1

    @classmethod
    def current(cls) -> Ranks:
        """Return this process's place; (0, 1) outside torchrun."""
        if dist.is_available() and dist.is_initialized():
            return cls(dist.get_rank(), dist.get_world_size())
        return cls()

    def sum(self, values: Tensor) -> Tensor:
        """Return ``values`` summed over all processes."""
        if self.world > 1:
            dist.all_reduce(values)
        return values


@dataclass
class State:
    """Everything that a resume restores, and what it is computed with."""

    recipe: Recipe
    model: nn.Module
    optimizer: torch.optim.Optimizer
    base_lrs: list[float]
    averaged: nn.Module | None
    scaler: torch.amp.GradScaler
    epoch: int = 0
    """Finished epochs."""
    step: int = 0
    """Finished steps of the epoch under way."""
    updates: int = 0
    teacher: Teacher | None = None
    """Gives the probabilities (B, 7) that are part of the targets; not trained, and not kept in a checkpoint."""
    answers: Tensor | None = None
    """What the teacher said of each training face, float32 (N, 7), where it is asked once and not in every step."""
    teacher_sha256: str | None = None
    """Of the teachers' files, with commas between, so that a resume cannot go on with another."""
    sums: Tensor = field(default_factory=lambda: torch.zeros(3, dtype=torch.float64))
    """Running loss, weight and correct faces of the epoch under way."""
    plateau: dict[str, float] = field(default_factory=lambda: {"factor": 1.0, "best": math.inf, "waited": 0.0})
    best_accuracy: float = -1.0
    best_epoch: int = 0
    seconds: float = 0.0
    """Time spent on finished epochs, over all sessions."""
    spent: float = 0.0
    """Seconds spent so far on the epoch under way, over all sessions."""

    @property
    def evaluated(self) -> nn.Module:
        """The network that is scored and saved: the averaged one where there is one."""
        return self.averaged if self.averaged is not None else self.model

    def dump(self) -> dict[str, Any]:
        """Return tensors and plain values for a checkpoint."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "averaged": None if self.averaged is None else self.averaged.state_dict(),
            "scaler": self.scaler.state_dict(),
            "epoch": self.epoch,
            "step": self.step,
            "updates": self.updates,
            "teacher_sha256": self.teacher_sha256,
            "answers": self.answers,
            "sums": self.sums,
            "plateau": dict(self.plateau),
            "best_accuracy": self.best_accuracy,
            "best_epoch": self.best_epoch,
            "seconds": self.seconds,
            "spent": self.spent,
        }

    def restore(self, held: dict[str, Any]) -> None:
        """Take back what ``dump`` gave."""
        self.model.load_state_dict(held["model"])
        self.optimizer.load_state_dict(held["optimizer"])
        if self.averaged is not None:
            self.averaged.load_state_dict(held["averaged"])
        self.scaler.load_state_dict(held["scaler"])
        self.epoch, self.step, self.updates = held["epoch"], held["step"], held["updates"]
        self.sums = held["sums"].to(self.sums.device)
        answers = held.get("answers")
        self.answers = None if answers is None else answers.to(self.sums.device)
        self.plateau = dict(held["plateau"])
        self.best_accuracy, self.best_epoch = held["best_accuracy"], held["best_epoch"]
        self.seconds, self.spent = held["seconds"], held.get("spent", 0.0)


def make_optimizer(recipe: Recipe, model: nn.Module, *, fused: bool, precision: Precision) -> torch.optim.Optimizer:
    """Return the recipe's optimiser over ``model``'s parameters, in the groups of ``models.parameter_groups``.

    Args:
        recipe: names it, and its rates and decays.
        model: whose parameters that are not frozen it moves.
        fused: whether PyTorch's fused steps are there.
        precision: of the training; Muon's products have it, but for float16, whose range is too small for them.
    """
    groups = models.parameter_groups(model, recipe)
    if recipe.optimizer == "muon":
        return Muon(
            *(groups, recipe.lr),
            betas=recipe.betas,
            momentum=recipe.momentum,
            nesterov=recipe.nesterov,
            precision=torch.float32 if precision == "float16" else getattr(torch, precision),
            fused=fused,
        )
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(
            groups,
            lr=recipe.lr,
            momentum=recipe.momentum,
            nesterov=recipe.nesterov and recipe.momentum > 0,
            fused=fused,
        )
    if recipe.optimizer == "adam":
        return torch.optim.Adam(groups, lr=recipe.lr, betas=recipe.betas, fused=fused)
    return torch.optim.AdamW(groups, lr=recipe.lr, betas=recipe.betas, fused=fused)


def make_state(recipe: Recipe, device: torch.device, precision: Precision, *, pretrained: bool = True) -> State:
    """Build the network, its optimiser and its average, all a function of the recipe alone.

    Args:
        recipe: what to train.
        device: where.
        precision: float64 is that of the weights too.
        pretrained: False leaves ImageNet weights out, for whoever restores a checkpoint next.
    """
    torch.manual_seed(recipe.seed)
    model = models.build(recipe, pretrained=pretrained)
    model = model.to(device=device, dtype=torch.float64 if precision == "float64" else torch.float32)
    model = _channels_last(model, device)
    fused = device.type in ("cpu", "cuda") and precision != "float64"
    optimizer = make_optimizer(recipe, model, fused=fused, precision=precision)
    averaged = None
    if recipe.ema > 0:
        averaged = copy.deepcopy(model).eval().requires_grad_(False)
    scaler = torch.amp.GradScaler(device.type, enabled=precision == "float16")
    state = State(recipe, model, optimizer, [float(group["lr"]) for group in optimizer.param_groups], averaged, scaler)
    state.sums = torch.zeros(3, dtype=torch.float32 if device.type == "mps" else torch.float64, device=device)
    return state


def _channels_last(model: nn.Module, device: torch.device) -> nn.Module:
    return model if device.type == "mps" else model.to(memory_format=torch.channels_last)


def average_weight(decay: float, updates: int) -> float:
    """Return the weight of the network's weights in their average after so many updates, this one counted.

    The decay is lower in the first steps, (1 + t) / (10 + t), or the random start would stay in the average for
    hundreds of steps.
    """
    return 1 - min(decay, (1 + updates) / (10 + updates))


@torch.no_grad()
def update_average(averaged: nn.Module, model: nn.Module, weight: float | Tensor) -> None:
    """Move the average by ``weight`` towards the weights, batch-norm statistics too: it can be evaluated as it is.

    A ``weight`` that is a tensor on the networks' device is read there, so that a CUDA graph can be given another one
    for each step.
    """
    target = [*averaged.parameters(), *averaged.buffers()]
    source = [*model.parameters(), *model.buffers()]
    floating = [(a, b) for a, b in zip(target, source, strict=True) if a.is_floating_point()]
    moved, towards = [a for a, _ in floating], [b for _, b in floating]
    if isinstance(weight, Tensor):
        ways = torch._foreach_sub(towards, moved)
        torch._foreach_mul_(ways, weight)
        torch._foreach_add_(moved, ways)
    else:
        torch._foreach_lerp_(moved, towards, weight)
    for a, b in zip(target, source, strict=True):
        if not a.is_floating_point():
            a.copy_(b)


def class_weights(recipe: Recipe, targets: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Return the loss weight of each emotion, float64 (7,): 1, or N / (7 n_c) where the recipe balances the loss."""
    if recipe.balance != "loss":
        return np.ones(NUM_EMOTIONS)
    counts = np.bincount(targets, minlength=NUM_EMOTIONS)
    return np.where(counts > 0, len(targets) / (NUM_EMOTIONS * np.maximum(counts, 1)), 0.0)


@dataclass(frozen=True)
class Epoch:
    """The plan of one epoch: what is seen when, and how it is changed; the same for every number of processes."""

    order: Tensor
    draws: Draws
    partner: MixDraws | None
    size: int

    @classmethod
    def plan(cls, recipe: Recipe, targets: Tensor, epoch: int) -> Epoch:
        """Draw epoch ``epoch`` (from 0) at once, on the CPU; ``targets`` (N,) are there too."""
        n = len(targets)
        balanced = targets if recipe.balance == "sampling" else None
        order = epoch_order(n, seed=recipe.seed, epoch=epoch, targets=balanced)
        draws = draw(recipe.augment, n, seed=recipe.seed, epoch=epoch)
        mixing = None
        if recipe.mixup > 0 or recipe.cutmix > 0:
            mixing = mix_draw(n, mixup=recipe.mixup, cutmix=recipe.cutmix, seed=recipe.seed, epoch=epoch)
        return cls(order, draws, mixing, image_sizes(recipe)[epoch])

    def to(self, device: torch.device) -> Epoch:
        """Return the plan on a device."""
        partner = None if self.partner is None else self.partner.to(device)
        return Epoch(self.order.to(device), self.draws.to(device), partner, self.size)

    def tensors(self) -> dict[str, Tensor]:
        """Return all that was drawn, by name."""
        mixed = {} if self.partner is None else vars(self.partner)
        held = {"order": self.order, **vars(self.draws), **{f"partner.{name}": value for name, value in mixed.items()}}
        return {name: value for name, value in held.items() if isinstance(value, Tensor)}


@dataclass(frozen=True)
class Batch:
    """What one step of one rank sees.

    Attributes:
        inputs: network input (B, C, S, S).
        faces: int64 (B,), which of the training faces they are.
        targets, others: int64 (B,), own target and that of the face mixed in.
        share: (B,) share of the own target, or None without mixing.
        total_weight: summed loss weight of the global batch, a scalar.
    """

    inputs: Tensor
    faces: Tensor
    targets: Tensor
    others: Tensor | None
    share: Tensor | None
    total_weight: Tensor


def make_batch(
    plan: Epoch,
    bounds: tuple[int, int],
    images: Tensor,
    targets: Tensor,
    weights: Tensor,
    preprocessing: Preprocessing,
    ranks: Ranks,
) -> Batch:
    """Return this rank's share of the global batch at ``bounds``: every ``world``-th face of it, augmented."""
    whole = torch.arange(*bounds, device=images.device)
    return _batch_of(plan, whole[ranks.rank :: ranks.world], whole, images, targets, weights, preprocessing)


def _batch_of(
    plan: Epoch,
    places: Tensor,
    everyone: Tensor,
    images: Tensor,
    targets: Tensor,
    weights: Tensor,
    preprocessing: Preprocessing,
) -> Batch:
    """Return the faces at ``places`` of the epoch's order, a part of the global batch, which is at ``everyone``'s."""
    faces, whole = plan.order[places], plan.order[everyone]
    inputs = augment(images.index_select(0, faces), plan.draws[places], plan.size)
    if plan.partner is None:
        total = weights[targets[whole]].sum()
        return Batch(preprocessing.normalize(inputs), faces, targets[faces], None, None, total)
    mine, all_ = plan.partner[places], plan.partner[everyone]
    partners = plan.order[mine.partner]
    inputs, share = mix(inputs, augment(images.index_select(0, partners), plan.draws[mine.partner], plan.size), mine)
    others = plan.order[all_.partner]
    # Shares of pixels, as the loss weighs by them: rounding a box to whole pixels changes what was drawn.
    shares = mix_shares(all_, plan.size).to(inputs.dtype)
    total = (shares * weights[targets[whole]] + (1 - shares) * weights[targets[others]]).sum()
    return Batch(preprocessing.normalize(inputs), faces, targets[faces], targets[partners], share, total)


def loss_sum(logits: Tensor, batch: Batch, weights: Tensor, smoothing: float, taught: Tensor | None = None) -> Tensor:
    """Return the cross-entropy summed over the rank's faces, class weights and mixing included.

    Of several members' logits (B, M, 7) it is the sum over the members, so that the gradient of one is what it would be
    without the others. ``taught`` are targets (B, 7) in place of the labels, smoothed already; a face still weighs what
    its label does.
    """
    if logits.ndim == 3:
        return torch.stack([loss_sum(each, batch, weights, smoothing, taught) for each in logits.unbind(1)]).sum()
    if taught is not None:
        per_face = functional.cross_entropy(logits, taught.to(logits.dtype), reduction="none")
        return (weights.to(logits.dtype)[batch.targets] * per_face).sum()

    def against(targets: Tensor) -> Tensor:
        return functional.cross_entropy(
            logits, targets, weight=weights.to(logits.dtype), reduction="none", label_smoothing=smoothing
        )

    if batch.others is None or batch.share is None:
        return against(batch.targets).sum()
    return (batch.share * against(batch.targets) + (1 - batch.share) * against(batch.others)).sum()


def taught_targets(
    state: State, batch: Batch, inputs: Tensor, device: torch.device, precision: Precision
) -> Tensor | None:
    """Return targets (B, 7) that are part smoothed label and part the teacher's answer; None without a teacher.

    The teacher sees the very ``inputs`` that the network sees (Beyer et al. 2022, arXiv:2106.05237), unless it was
    asked before training.
    """
    if state.answers is not None:
        answers = state.answers[batch.faces]
    elif state.teacher is not None:
        with torch.no_grad(), autocast(device, precision):
            answers = state.teacher(inputs.float())
    else:
        return None
    # A teacher's answer is as soft as it should be: label smoothing is the label's alone.
    smoothing = state.recipe.label_smoothing
    labels = functional.one_hot(batch.targets, NUM_EMOTIONS).float() * (1 - smoothing) + smoothing / NUM_EMOTIONS
    return torch.lerp(labels, answers, state.recipe.teacher_share)


@contextlib.contextmanager
def uphill(model: nn.Module, radius: float) -> Iterator[None]:
    """Move the weights by ``radius`` along their gradient, and afterwards back; batch norm's statistics too.

    A step along the gradient found there is one of sharpness-aware minimisation (Foret et al. 2021, arXiv:2010.01412).
    """
    moved: list[Tensor] = [parameter for parameter in model.parameters() if parameter.grad is not None]
    gradients = [tensor.grad for tensor in moved if tensor.grad is not None]
    kept = [*moved, *model.buffers()]
    held = [tensor.detach().clone() for tensor in kept]
    with torch.no_grad():
        norm = nn.utils.get_total_norm(gradients)
        torch._foreach_add_(moved, torch._foreach_mul(gradients, radius / (norm + 1e-12)))
    yield
    with torch.no_grad():
        torch._foreach_copy_(kept, held)


def train_step(
    state: State,
    forward: nn.Module | Callable[[Tensor], Tensor],
    batch: Batch,
    weights: Tensor,
    lr_factor: float | Tensor,
    device: torch.device,
    precision: Precision,
    ranks: Ranks,
    weight: Tensor | None = None,
) -> None:
    """Do one optimiser step, and add to the epoch's running sums. No host synchronisation.

    A CUDA graph gives ``lr_factor`` and the average's ``weight`` as tensors, and counts the updates itself.
    """
    recipe = state.recipe
    for group, base in zip(state.optimizer.param_groups, state.base_lrs, strict=True):
        group["lr"] = base * lr_factor
    inputs = batch.inputs.to(next(state.model.parameters()).dtype).contiguous(memory_format=torch.channels_last)
    taught = taught_targets(state, batch, inputs, device, precision)

    def backward() -> tuple[Tensor, Tensor]:
        with autocast(device, precision):
            logits = forward(inputs)
        logits = logits if precision == "float64" else logits.float()
        total = loss_sum(logits, batch, weights, recipe.label_smoothing, taught)
        # DDP averages gradients over ranks; times world, the sum over all faces is divided by the global weight.
        scaled: Tensor = state.scaler.scale(total / batch.total_weight * ranks.world)
        torch.autograd.backward(scaled)
        return logits, total

    logits, total = backward()
    if recipe.sam:
        with uphill(state.model, recipe.sam):
            state.optimizer.zero_grad(set_to_none=True)
            backward()
    if recipe.clip_norm or recipe.clip_value:
        state.scaler.unscale_(state.optimizer)
        parameters = [p for group in state.optimizer.param_groups for p in group["params"]]
        if recipe.clip_value:
            nn.utils.clip_grad_value_(parameters, recipe.clip_value)
        if recipe.clip_norm:
            nn.utils.clip_grad_norm_(parameters, recipe.clip_norm)
    state.scaler.step(state.optimizer)
    state.scaler.update()
    state.optimizer.zero_grad(set_to_none=True)
    if weight is None:
        state.updates += 1
    if state.averaged is not None:
        update_average(
            state.averaged, state.model, average_weight(recipe.ema, state.updates) if weight is None else weight
        )
    with torch.no_grad():
        together = logits.mean(1) if logits.ndim == 3 else logits
        correct = (together.argmax(1) == batch.targets).sum()
        # The global weight is known to every rank; a world-th of it each, so that sums over ranks come out right.
        state.sums += torch.stack(
            [
                total.detach().to(state.sums.dtype) / recipe.members,
                (batch.total_weight / ranks.world).to(state.sums.dtype),
                correct.to(state.sums.dtype),
            ]
        )


class StepGraph:
    """The step of a full batch as one CUDA graph: one launch in place of some thousand.

    Of a network this small a GPU computes each kernel before Python has launched the next one. What differs from step
    to step lies in tensors, which the graph reads: the place in the epoch, the factor on the learning rate, the weight
    of the average. An epoch's plan is copied over the plan that was captured. Dropout draws what it would without a
    graph, from the seed of the step. (PyTorch's notes on CUDA semantics, "CUDA Graphs".)

    Args:
        steps: what a step is done with.
        plan: an epoch's plan, kept and written over.
        size: faces of a batch.
    """

    def __init__(self, steps: Steps, plan: Epoch, size: int) -> None:
        device = steps.images.device
        self._steps, self._plan = steps, plan
        self._tensors = plan.tensors()
        self._start = torch.zeros((), dtype=torch.int64, device=device)
        self._factor, self._weight = torch.zeros((), device=device), torch.ones((), device=device)
        self._places = torch.arange(size, device=device)
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            self._replay = self._captured(device)

    def fits(self, plan: Epoch) -> bool:
        """Return whether ``plan`` changes the same faces by the same operations, to the same size."""
        shapes, captured = (
            {name: t.shape for name, t in tensors.items()} for tensors in (plan.tensors(), self._tensors)
        )
        return plan.size == self._plan.size and shapes == captured

    def take(self, plan: Epoch) -> None:
        """Copy an epoch's plan over the captured one."""
        for name, tensor in plan.tensors().items():
            self._tensors[name].copy_(tensor)

    def __call__(self, start: int, lr_factor: float) -> None:
        """Do the step of the batch at ``start``."""
        state = self._steps.state
        state.updates += 1
        self._start.fill_(start)
        self._factor.fill_(lr_factor)
        self._weight.fill_(average_weight(state.recipe.ema, state.updates))
        self._replay()

    def _step(self) -> None:
        steps = self._steps
        places = self._start + self._places
        batch = _batch_of(self._plan, places, places, steps.images, steps.targets, steps.weights, steps.preprocessing)
        train_step(
            *(steps.state, steps.forward, batch, steps.weights, self._factor),
            *(self._start.device, steps.precision, steps.ranks, self._weight),
        )

    def _captured(self, device: torch.device) -> Callable[[], None]:
        state = self._steps.state
        with _undone(state):
            warm_up(self._step, device)
        try:
            return capture(self._step, state.optimizer)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise TrainingError(
                f"a step of this recipe cannot be captured as a CUDA graph ({error}): set cuda_graph to false"
            ) from error


def warm_up(step: Callable[[], None], device: torch.device) -> None:
    """Do three steps on a stream of their own: libraries set themselves up, and the optimiser makes its moments."""
    beside = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    beside.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(beside):
        for _ in range(3):
            step()
    torch.cuda.current_stream(device).wait_stream(beside)


def capture(step: Callable[[], None], optimizer: torch.optim.Optimizer) -> Callable[[], None]:
    """Return a function that replays ``step``, which was warmed up, as one CUDA graph; nothing is computed yet.

    The graph knows addresses: whoever replays it keeps the tensors that ``step`` reads and writes.

    Raises:
        RuntimeError: the step waits for the device, or does what a graph cannot hold.
    """
    graph = torch.cuda.CUDAGraph()
    kept = [dict(group) for group in optimizer.param_groups]
    for group in optimizer.param_groups:
        # Adam asks for it; its fused step is made on the device in any case.
        group |= {"capturable": True} if "capturable" in group else {}
    with torch.cuda.graph(graph):
        step()
    for group, before in zip(optimizer.param_groups, kept, strict=True):
        group |= {name: value for name, value in before.items() if name != "params"}
    return graph.replay


@contextlib.contextmanager
def _undone(state: State) -> Iterator[None]:
    """Put back, in place, what steps change: weights, buffers, averages, moments (zero where there were none), sums."""
    averaged = [] if state.averaged is None else [*state.averaged.parameters(), *state.averaged.buffers()]
    kept = [*state.model.parameters(), *state.model.buffers(), *averaged, state.sums]
    held = [tensor.detach().clone() for tensor in kept]
    moments = {
        (parameter, name): value.clone()
        for parameter, values in state.optimizer.state.items()
        for name, value in values.items()
        if isinstance(value, Tensor)
    }
    yield
    with torch.no_grad():
        for tensor, before in zip(kept, held, strict=True):
            tensor.copy_(before)
        for parameter, values in state.optimizer.state.items():
            for name, value in values.items():
                if (parameter, name) in moments:
                    value.copy_(moments[parameter, name])
                elif isinstance(value, Tensor):
                    value.zero_()


@dataclass
class Steps:
    """What the steps of a training are done with, and how: one launch after the other, or as a CUDA graph."""

    state: State
    forward: nn.Module
    images: Tensor
    targets: Tensor
    weights: Tensor
    preprocessing: Preprocessing
    precision: Precision
    ranks: Ranks
    graph: StepGraph | None = None
    labels: Tensor = field(init=False)
    """The targets on the CPU: to fetch them there later would wait for the device."""
    plan: Epoch = field(init=False)
    """Of the epoch under way; ``begin`` sets it."""
    ahead: dict[int, Epoch] = field(default_factory=dict)
    """The plan of the next epoch by its number, on the CPU, where it was drawn ahead."""

    def __post_init__(self) -> None:
        self.labels = self.targets.cpu()

    @property
    def captures(self) -> bool:
        """Whether full batches are a CUDA graph: gradient scaling and other processes ask the host in each step."""
        fused = self.precision in ("bfloat16", "float32")
        return self.images.is_cuda and self.state.recipe.cuda_graph and fused and self.ranks.world == 1

    def draw_ahead(self, epoch: int) -> None:
        """Draw the plan of epoch ``epoch`` (from 0), while a device is still at work on the steps before it."""
        recipe = self.state.recipe
        if epoch < recipe.trained_epochs:
            self.ahead = {epoch: Epoch.plan(recipe, self.labels, epoch)}

    def begin(self, epoch: int) -> None:
        """Make ready for epoch ``epoch`` (from 0)."""
        drawn = self.ahead.pop(epoch, None) or Epoch.plan(self.state.recipe, self.labels, epoch)
        self.plan = plan = drawn.to(self.images.device)
        if self.graph is not None and self.graph.fits(plan):
            self.graph.take(plan)
        else:
            self.graph = None

    def __call__(self, bounds: tuple[int, int], lr_factor: float) -> None:
        """Do the step of the global batch at ``bounds``."""
        size = self.state.recipe.batch_size
        if self.captures and bounds[1] - bounds[0] == size:
            if self.graph is None:
                self.graph = StepGraph(self, self.plan, size)
            self.graph(bounds[0], lr_factor)
            return
        batch = make_batch(self.plan, bounds, self.images, self.targets, self.weights, self.preprocessing, self.ranks)
        try:
            train_step(
                *(self.state, self.forward, batch, self.weights, lr_factor),
                *(self.images.device, self.precision, self.ranks),
            )
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            if not self.state.recipe.compile:
                raise
            raise TrainingError(
                f"a step of the compiled network failed ({str(error).strip().partition(chr(10))[0]}): set compile to "
                "false, or install what torch.compile needs here, on a CPU a C++ compiler"
            ) from error


def _step_seed(seed: int, epoch: int, step: int, rank: int) -> int:
    return int(np.random.SeedSequence([seed, epoch, step, rank]).generate_state(1, np.uint64)[0] >> np.uint64(1))


def evaluate_part(
    model: nn.Module,
    preprocessing: Preprocessing,
    faces: Faces,
    device: torch.device,
    precision: Precision,
    ranks: Ranks,
    tta: TTA = "none",
) -> npt.NDArray[np.float64]:
    """Return probabilities float64 (N, 7), each face predicted once by one of the processes."""
    if ranks.world == 1:
        return predict(model, preprocessing, faces.images, device=device, precision=precision, tta=tta)
    for buffer in model.buffers():
        # Batch-norm statistics are each rank's own; the first rank's are what is saved.
        dist.broadcast(buffer, 0)
    share = faces.images[ranks.rank :: ranks.world]
    mine = predict(model, preprocessing, share, device=device, precision=precision, tta=tta)
    whole = torch.zeros(len(faces), NUM_EMOTIONS, dtype=torch.float64, device="cpu" if device.type == "cpu" else device)
    whole[ranks.rank :: ranks.world] = torch.from_numpy(mine).to(whole.device)
    result: npt.NDArray[np.float64] = ranks.sum(whole).cpu().numpy()
    return result


# -- before the faces are read ----------------------------------------------------------------------------------------


def check(
    recipe: Recipe,
    *,
    device: str | None = "auto",
    processes: int = 1,
    resume: bool | Literal["auto"] = "auto",
    run: str | Path | None = None,
    out: str | Path | None = None,
) -> None:
    """Tell what can be known to go wrong before any face is read or a run is made.

    Args:
        recipe: what is to be trained.
        device: as ``fit`` takes it.
        processes: of one training.
        resume: as ``fit`` takes it.
        run: the run that it is to be trained in, by its path or its name under ``outputs/``; None is ``out``.
        out: directory where it is to be trained, whether there is a run or not; None is a new one.

    Raises:
        DeviceError: the device is not there, or cannot compute in the recipe's precision.
        ModelError: the recipe names layers that its network has not.
        RunError: a teacher or a start is not there or not trained, there is nothing to resume, or ``run`` holds a
            training that is not to be resumed, or of another recipe.
        TrainingError: there are no processes, a batch is too small for the network's batch norm, or ``recipe.start`` is
            another network.
    """
    _check_processes(processes)
    choose_precision(recipe.precision, choose_device(device))
    model = models.build(recipe, pretrained=False)
    models.parameter_groups(model, recipe)
    if recipe.epochs > 0 and recipe.batch_size < 2 * processes and not models.learns_from_one_face(model, recipe):
        raise TrainingError(
            f"batch_size {recipe.batch_size} leaves a process a single face in a step, and this network's batch norm, "
            f"which comes to maps of one pixel, needs two: set batch_size to at least {2 * processes}"
        )
    for role, name in _other_runs(recipe):
        try:
            Run.choose(name)
        except RunError as error:
            unpack = "python -m fer_utils.box --unpack NAME RUN"
            raise RunError(f"{role} {name}: {error}; `{unpack}` makes a run of a model in the box") from None
    _check_start(recipe)
    if out is not None:
        Run.check_free(out)
    named = run if run is not None else out
    if named is None and resume is True:
        raise RunError("resume true continues a training, and there is none: name its run")
    if run is not None or (out is not None and (expanded(out) / "run.json").is_file()):
        _check_kept(Run.open(named or ""), recipe, resume)
    elif resume is True:
        Run.choose(out, holding="last.ckpt")


def _check_kept(run: Run, recipe: Recipe, resume: bool | Literal["auto"]) -> None:
    """Tell what is in a run that this training cannot go on with."""
    together = recipe.epochs == 0 and _untrained(run)
    if run.has("last.ckpt") or together:
        if resume is False:
            raise RunError(f"{run.path} holds a training already: resume it, or train into a new run")
        told = _differing(run.recipe, recipe, Recipe.model_fields)
        if told:
            raise RunError(
                f"{run.path} was trained with another recipe ({told}): train into a new run, or give the same"
            )
    elif resume is True:
        raise RunError(f"{run.path} has no last.ckpt to resume from: train it first, or leave resume out")
    elif _untrained(run):
        # Until the first epoch's end its weights would stand under this recipe and these faces.
        raise RunError(
            f"{run.path} holds a network that was not trained in it, as a model that was unpacked from the box or put "
            "together from trained ones: train into a new run"
        )
    elif run.has("best.ckpt") and len(run.history()) > 1:
        # One row may be there: a crash between the files of the first epoch's end.
        raise RunError(
            f"{run.path} was trained, and its last.ckpt, from which a training goes on, is gone: evaluate it, or train "
            "into a new run"
        )


def _untrained(run: Run) -> bool:
    """Whether a run holds a network that no epoch of it has made."""
    return run.has("best.ckpt") and not run.has("history.csv")


def _check_same_faces(run: Run, splits: Splits) -> None:
    known = run.read_json("env.json")["data"]["fingerprint"]
    if known != splits.fingerprint():
        raise RunError(
            f"{run.path} was trained on other faces (fingerprint {known}, here {splits.fingerprint()}): give the "
            "same data and split, or train into a new run"
        )


def check_faces(recipe: Recipe, splits: Splits) -> None:
    """Tell what faces that have been read make impossible, before a run is made for them.

    Raises:
        RunError: a teacher or the start is not there, or does not say what it was trained on.
        TrainingError: training or validation faces have no labels, or a teacher or the start was trained on other
            faces than ``splits.train``.
    """
    place = splits.location or splits.source
    if not splits.train.labelled:
        raise TrainingError(f"the training part of {place} has no labelled faces")
    if len(splits.val) and not splits.val.labelled:
        raise TrainingError(f"the validation part of {place} has faces without a label")
    for role, name in _other_runs(recipe):
        # What another network knows by heart comes with its weights, and with its answers: validation and test faces
        # would be no measure any more.
        other = Run.open(name)
        known = other.read_json("env.json")["data"]["fingerprint"]
        if known != splits.fingerprint():
            its = other.recipe
            raise TrainingError(
                f"{role} {name} was trained on other faces or another cut of them (fingerprint {known}, here "
                f"{splits.fingerprint()}): it may know this training's validation and test faces by heart. Give this "
                f"training its data and its cut (val_fraction {its.val_fraction}, split_seed {its.split_seed}), or "
                f"name a {role} of these faces"
            )


def _check_start(recipe: Recipe) -> None:
    found = [Run.open(name) for name in recipe.starts]
    there = {name: run.recipe for name, run in zip(recipe.starts, found, strict=True)}
    # What is trained further may get used to another size of input; what is kept as it is cannot.
    fields = (*_NETWORK, "image_size") if recipe.epochs == 0 else _NETWORK
    for name, its in there.items():
        told = _differing(its, recipe, fields)
        if told:
            raise TrainingError(
                f"start {name} is another network ({told}): give this recipe what it has, or start elsewhere"
            )
    if not there:
        return
    if len({run.path.resolve() for run in found}) < len(found):
        raise TrainingError(f"start {recipe.start} names a run twice: members that are the same know no more than one")
    members = sum(its.members for its in there.values())
    if members != recipe.members:
        raise TrainingError(
            f"start {recipe.start} brings {members} {'network' if members == 1 else 'networks'}, and this recipe has "
            f"members {recipe.members}: set members to {members}, or name runs that bring {recipe.members}"
        )
    with torch.device("meta"):  # shapes are enough
        network = models.build(recipe.model_copy(update={"members": 1}), pretrained=False)
        for name, its in there.items():
            part = models.build(its.model_copy(update={"members": 1}), pretrained=False)
            try:
                models.fitted(part.state_dict(), network)
            except models.ModelError as error:
                raise TrainingError(f"start {name} does not fit: {error}") from None


def _differing(there: Recipe, here: Recipe, fields: Iterable[str]) -> str:
    """Return which of the fields differ, the first of them with both values; nothing where none does."""
    its, mine = (_flat(recipe.model_dump(mode="json", include=set(fields))) for recipe in (there, here))
    told = [
        f"{name} {its.get(name)!r} there, {mine.get(name)!r} here"
        for name in dict.fromkeys((*its, *mine))
        if its.get(name) != mine.get(name) and name != "description"
    ]
    if not told and its != mine:
        told = ["its description"]
    more = [f"and {len(told) - _MOST_TOLD} more"] if len(told) > _MOST_TOLD else []
    return ", ".join([*told[:_MOST_TOLD], *more])


def _flat(values: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """Return nested values under names with dots between: ``augment.erasing.p``."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _flat(value, f"{before}{name}.") if isinstance(value, dict) else {before + name: value}
    return flat


def _other_runs(recipe: Recipe) -> list[tuple[str, str]]:
    """Return (field, directory) of every run that a recipe's training learns from."""
    return [*(("start", name) for name in recipe.starts), *(("teacher", name) for name in recipe.teachers)]


def _check_processes(processes: int) -> None:
    if processes < 1:
        raise TrainingError(f"processes: expected at least 1, got {processes}")


# -- the loop ---------------------------------------------------------------------------------------------------------


def fit(
    recipe: Recipe,
    splits: Splits,
    run: Run,
    *,
    device: str | None = "auto",
    precision: str | None = None,
    resume: bool | Literal["auto"] = "auto",
    on_epoch: Callable[[Row], None] | None = None,
    log: Callable[[str], None] = print,
    stop_after: int | None = None,
) -> Run:
    """Train ``recipe`` on ``splits.train``, watch ``splits.val``, and write everything into ``run``.

    Args:
        recipe: what to train.
        splits: faces; the test part is not touched.
        run: where ``recipe.yaml``, ``env.json``, ``history.csv``, ``last.ckpt`` and ``best.ckpt`` go.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.
        precision: None is the recipe's.
        resume: continue from ``last.ckpt``: True demands one, ``auto`` takes it where it is, False refuses a run that
            has one.
        on_epoch: called with each epoch's row of ``history.csv``.
        log: called with lines of text for a person.
        stop_after: end after this many epochs of the recipe's, as an interruption would; for tests and short sessions.

    Returns:
        ``run``.

    Raises:
        TrainingError: the faces are unlabelled or too few, the teacher or the start does not fit or may know the
            validation faces, or loss or predictions are not finite.
        RunError: the run holds another recipe's or other data's training, another process trains in it, or it cannot be
            written, as on a disk that is full.
    """
    ranks = Ranks.current()
    try:
        with _alone(run, ranks):
            _fit(recipe, splits, run, ranks, device, precision, resume, on_epoch, log, stop_after)
    except OSError as error:
        raise RunError(
            f"{run.path}: {refusal(error)}, and the same training "
            f"{'goes on from its last checkpoint' if run.has('last.ckpt') else 'begins anew'}"
        ) from error
    return run


def _fit(
    recipe: Recipe,
    splits: Splits,
    run: Run,
    ranks: Ranks,
    device: str | None,
    precision: str | None,
    resume: bool | Literal["auto"],
    on_epoch: Callable[[Row], None] | None,
    log: Callable[[str], None],
    stop_after: int | None,
) -> None:
    where = choose_device(device)
    if where.type == "cuda" and ranks.world > 1:
        where = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    arithmetic = choose_precision(precision or recipe.precision, where)
    check_faces(recipe, splits)
    if recipe.epochs == 0 and _untrained(run):
        _check_kept(run, recipe, resume)
        _check_same_faces(run, splits)
        if ranks.rank == 0:
            log(f"{recipe.name}: {run.path} has its network already, and nothing is trained")
        return
    if where.type == "cpu":
        keep_freed_memory()
    train = training_faces(recipe, splits.train)
    preprocessing = Preprocessing.of(recipe, train)
    # What a checkpoint brings back needs no ImageNet weights first.
    state = make_state(recipe, where, arithmetic, pretrained=not run.has("last.ckpt"))
    if recipe.teachers:
        state.teacher, state.teacher_sha256 = load_teacher(recipe, preprocessing, where)
    resumed = _open_run(state, splits, run, resume, where, arithmetic, ranks)
    if not resumed:
        load_start(state, preprocessing)
    bounds = batch_bounds(len(train), recipe.batch_size, ranks.world)
    if state.step >= len(bounds):
        raise TrainingError(
            f"{run.path} was interrupted before the last faces of an epoch, and these are too few for {ranks.world} "
            "processes: resume it in one process"
        )
    images = torch.from_numpy(train.images).to(where)
    targets = torch.from_numpy(train.targets).to(where)
    weights = torch.tensor(class_weights(recipe, train.targets), device=where, dtype=torch.float32)
    forward = _forward(state, ranks, where)
    steps = Steps(state, forward, images, targets, weights, preprocessing, arithmetic, ranks)
    if ranks.rank == 0:
        how = f"resumed after epoch {state.epoch}" if resumed else f"{len(train):,} training faces"
        processes = f", {ranks.world} processes" if ranks.world > 1 else ""
        length = f"{recipes.length(recipe)}, {len(bounds)} step{'' if len(bounds) == 1 else 's'} each"
        log(f"{recipe.name}: {how}, {length}, {where}, {arithmetic}{processes}")
    if state.teacher is not None and recipe.teacher_views != "same" and state.answers is None:
        if ranks.rank == 0:
            log(f"{recipe.name}: asking the teacher about {len(train):,} faces ({recipe.teacher_views})")
        state.answers = state.teacher.answer(train, recipe.teacher_views, where, arithmetic, ranks)
    with checkpoint.Saver() as saver:
        while state.epoch < recipe.trained_epochs and not _stopped_early(state):
            if stop_after is not None and state.epoch >= stop_after:
                break
            row = _epoch(steps, splits, run, bounds, saver, log)
            if ranks.rank == 0:
                if on_epoch is not None:
                    on_epoch(row)
                log(describe_epoch(row, recipe.trained_epochs))
    if recipe.epochs == 0:
        _keep_start(steps, splits.val, run, log)
    if ranks.rank == 0 and _stopped_early(state):
        log(
            f"stopped early: no better validation accuracy for {recipes.in_epochs(recipe.early_stopping or 0)} "
            f"(best: epoch {state.best_epoch})"
        )


@contextlib.contextmanager
def _alone(run: Run, ranks: Ranks) -> Iterator[None]:
    """Keep other trainings out of a run: they would overwrite each other's checkpoints."""
    if ranks.rank != 0:
        yield
        return
    with held_alone(run.file(".training.lock")) as mine:
        if not mine:
            raise RunError(f"another training is at work in {run.path}: wait for its end, or train into a new run")
        checkpoint.remove_leftovers(run)
        yield


def training_faces(recipe: Recipe, train: Faces) -> Faces:
    """Return the faces that a recipe trains on: without copies or fewer, where it says so."""
    kept: Faces = audit.deduplicate(train, recipe.dedupe)
    if recipe.train_faces is None or recipe.train_faces >= len(kept):
        return kept
    _, drawn = cut(kept, recipe.train_faces / len(kept), recipe.split_seed)
    return drawn


class Teacher(nn.Module):
    """Trained networks that answer as one: the mean of their probabilities, (B, 7), for inputs (B, C, H, W)."""

    def __init__(self, loaded: Sequence[checkpoint.LoadedModel]) -> None:
        super().__init__()
        self.networks = nn.ModuleList(each.model for each in loaded)
        self.preprocessings = [each.preprocessing for each in loaded]

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the mean of the networks' softmax; each sees the inputs at its own size."""
        every = []
        for network, how in zip(self.networks, self.preprocessings, strict=True):
            seen = inputs
            if inputs.shape[-1] != how.size:
                seen = functional.interpolate(inputs, size=(how.size, how.size), mode="bilinear", align_corners=False)
            every.append(functional.softmax(network(seen).float(), dim=1))
        return torch.stack(every).mean(0)

    def answer(self, faces: Faces, views: str, device: torch.device, precision: Precision, ranks: Ranks) -> Tensor:
        """Return the mean of the networks' probabilities for faces as they are, float32 (N, 7).

        A network trained on answers averaged over views learns from one view what the teacher needs several for
        (Radosavovic et al. 2018, arXiv:1712.04440).

        Args:
            faces: each network prepares them in its own way.
            views: ``one``, ``flip`` or ``ten_crop``, as ``recipe.teacher_views``.
            device: where the networks are, and the answers will be.
            precision: arithmetic of the networks.
            ranks: processes that share the work.
        """
        tta = _TTA_OF_VIEWS[views]
        pairs = zip(self.networks, self.preprocessings, strict=True)
        every = [evaluate_part(network, how, faces, device, precision, ranks, tta) for network, how in pairs]
        return torch.from_numpy(np.mean(every, axis=0)).to(device=device, dtype=torch.float32)


def load_teacher(recipe: Recipe, preprocessing: Preprocessing, device: torch.device) -> tuple[Teacher, str]:
    """Return the best networks of the runs that ``recipe.teacher`` names, and the SHA-256 of their files.

    Raises:
        RunError: there is no such run.
        CheckpointError: it has no network that can be read.
        TrainingError: it is to see what the network that is to be trained sees, and wants its faces prepared in another
            way.
    """
    every: list[checkpoint.LoadedModel] = []
    digests: list[str] = []
    for name in recipe.teachers:
        run = Run.open(name)
        loaded = checkpoint.load_model(run, "best", device)
        if recipe.teacher_views == "same" and replace(loaded.preprocessing, size=preprocessing.size) != preprocessing:
            raise TrainingError(
                f"teacher {name} takes {loaded.preprocessing}, this recipe gives {preprocessing}: set channels and "
                "normalize to the teacher's, ask it before training (teacher_views: flip), or name another"
            )
        every.append(replace(loaded, model=_channels_last(loaded.model.requires_grad_(False), device)))
        digests.append(sha256(run.file("best.ckpt")))
    return Teacher(every), ",".join(digests)


def load_start(state: State, preprocessing: Preprocessing) -> None:
    """Give the network, and its average, the weights of the best network of the run that ``recipe.start`` names.

    Of several runs the networks become the members, in the order of the runs.

    Raises:
        RunError: there is no such run.
        CheckpointError: it has no network that can be read.
        TrainingError: it is another network than the recipe's, or several do not make up its members, or one is to be
            kept as it is and has its faces prepared in another way.
    """
    if not state.recipe.starts:
        return
    _check_start(state.recipe)
    found = [checkpoint.load_model(Run.open(name), "best") for name in state.recipe.starts]
    for name, each in zip(state.recipe.starts, found, strict=True):
        if state.recipe.epochs == 0 and each.preprocessing != preprocessing:
            raise TrainingError(
                f"start {name} takes {each.preprocessing}, this recipe gives {preprocessing}: what is not trained "
                "further answers as it did only if its faces are prepared as they were"
            )
    parts = [part.state_dict() for each in found for part in models.networks(each.model)]
    for whole in (state.model, state.averaged):
        if whole is not None:
            for network, part in zip(models.networks(whole), parts, strict=True):
                network.load_state_dict(models.fitted(part, network))


def _open_run(
    state: State,
    splits: Splits,
    run: Run,
    resume: bool | Literal["auto"],
    device: torch.device,
    precision: Precision,
    ranks: Ranks,
) -> bool:
    """Restore a run's training, or begin one; True where it was restored."""
    recipe = state.recipe
    _check_kept(run, recipe, resume)
    if run.has("last.ckpt"):
        _check_same_faces(run, splits)
        # A history that cannot be gone on with is told before an epoch is trained for it.
        there = run.history()["epoch"].tolist()
        saved = checkpoint.load(run.file("last.ckpt"))
        if "optimizer" not in saved:
            raise RunError(
                f"{run.file('last.ckpt')} holds a network without its training, as best.ckpt does: give back the "
                f"last.ckpt that was written there, or train the network further in a new run with start {run.path}"
            )
        # A row more may be there: a crash between the files of an epoch's end.
        if there[: saved["epoch"]] != list(range(1, saved["epoch"] + 1)):
            raise RunError(
                f"{run.file('history.csv')} does not hold the {recipes.in_epochs(saved['epoch'])} of its last.ckpt in "
                "their order: give back the file as it was written, or train the network further in a new run with "
                f"start {run.path}"
            )
        if saved.get("teacher_sha256") != state.teacher_sha256:
            raise RunError(
                f"teacher {recipe.teacher} is another network than when {run.path} was begun: give that one "
                "back, or train into a new run"
            )
        state.restore(saved)
        if ranks.rank != 0:
            # One process saved the sums of the epoch under way, and they are summed over all.
            state.sums.zero_()
        return True
    if ranks.rank == 0:
        run.write_recipe(recipe)
        run.write_environment(splits, str(device), precision, torch.get_num_threads())
        # An older history without its checkpoint would be continued by this training's rows.
        run.file("history.csv").unlink(missing_ok=True)
    return False


def _forward(state: State, ranks: Ranks, device: torch.device) -> nn.Module:
    forward: nn.Module = state.model
    if ranks.world > 1:
        ids = [device.index] if device.type == "cuda" else None
        forward = DistributedDataParallel(forward, device_ids=ids)
    if state.recipe.compile:
        forward.compile()
    return forward


def _stopped_early(state: State) -> bool:
    patience = state.recipe.early_stopping
    return patience is not None and state.best_epoch > 0 and state.epoch - state.best_epoch >= patience


def _epoch(
    steps: Steps,
    splits: Splits,
    run: Run,
    bounds: Sequence[tuple[int, int]],
    saver: checkpoint.Saver,
    log: Callable[[str], None],
) -> Row:
    state, ranks, device = steps.state, steps.ranks, steps.images.device
    recipe = state.recipe
    models.set_training_mode(state.model, recipe)
    first, started = state.step, time.perf_counter()
    steps.begin(state.epoch)
    saved = told = started
    before = state.spent
    lr_factor = 1.0
    for step in range(first, len(bounds)):
        torch.manual_seed(_step_seed(recipe.seed, state.epoch, step, ranks.rank))
        planned = schedule_factor(recipe, state.epoch * len(bounds) + step, recipe.epochs * len(bounds))
        lr_factor = planned * state.plateau["factor"]
        steps(bounds[step], lr_factor)
        state.step = step + 1
        now = time.perf_counter()
        if ranks.rank == 0 and now - told > TELL_EVERY and step + 1 < len(bounds):
            told = now
            seen = bounds[step][1] - bounds[first][0]
            log(
                f"  epoch {state.epoch + 1}: {step + 1} of {len(bounds)} steps, {seen / (now - started):.0f} images/s, "
                f"{_clock((now - started) / (step + 1 - first) * (len(bounds) - step - 1))} left in it"
            )
        if now - saved > SAVE_EVERY and ranks.world == 1 and step + 1 < len(bounds):
            saved = now
            state.spent = before + now - started
            _save_inside(state, run, saver)
    steps.draw_ahead(state.epoch + 1)
    loss, weight, correct = ranks.sum(state.sums.clone()).tolist()  # waits for the device
    train_seconds = before + time.perf_counter() - started
    _check_finite(state, loss, run)
    row: Row = dict.fromkeys(COLUMNS)
    row |= {
        "epoch": state.epoch + 1,
        "train_loss": loss / weight,
        "train_accuracy": correct / (bounds[-1][1] - bounds[0][0]),
        "lr": recipe.lr * lr_factor,
        "image_size": steps.plan.size,
    }
    checked = time.perf_counter()
    row |= _validate(state, splits.val, steps.preprocessing, run, device, steps.precision, ranks)
    val_seconds = time.perf_counter() - checked
    state.epoch, state.step, state.spent = state.epoch + 1, 0, 0.0
    state.sums.zero_()
    state.seconds += train_seconds + val_seconds
    row |= {
        "images_per_second": (bounds[-1][1] - bounds[first][0]) / (train_seconds - before),
        "train_seconds": train_seconds,
        "val_seconds": val_seconds,
        "total_seconds": state.seconds,
    }
    _after_epoch(state, row, steps.preprocessing, run, saver, ranks)
    return row


def _check_finite(state: State, loss: float, run: Run) -> None:
    """Look at the loss, and at the weights too: the last step may have spoilt them after its loss was taken."""
    tensors = [*state.model.parameters(), *state.evaluated.parameters(), *state.evaluated.buffers()]
    finite = math.isfinite(loss) and bool(torch.stack([torch.isfinite(tensor).all() for tensor in tensors]).all())
    if not finite:
        raise TrainingError(
            f"loss or weights are not finite in epoch {state.epoch + 1}: lower lr (now {state.recipe.lr}), clip with "
            f"clip_norm, or train with precision float32; {_kept(state, run)}"
        )


def _kept(state: State, run: Run) -> str:
    return f"{run.path} keeps epoch {state.epoch}" if state.epoch else "there is no good epoch before it"


def _save_inside(state: State, run: Run, saver: checkpoint.Saver) -> None:
    """Save inside an epoch, and keep what the last finished epoch left to be evaluated."""
    _check_finite(state, float(state.sums[0]), run)
    path = run.file("last.ckpt")
    saver.wait()
    evaluated = checkpoint.load(path).get("evaluated") if state.epoch else None
    saver.save((path, state.dump() | ({"evaluated": evaluated} if evaluated else {})))


def _validate(
    state: State,
    val: Faces,
    preprocessing: Preprocessing,
    run: Run,
    device: torch.device,
    precision: Precision,
    ranks: Ranks,
) -> Row:
    if not len(val):
        return {}
    probabilities = evaluate_part(state.evaluated, preprocessing, val, device, precision, ranks)
    if not np.isfinite(probabilities).all():
        if state.recipe.epochs == 0:
            raise TrainingError(f"the network's answers to validation faces are not finite in {precision}")
        raise TrainingError(
            f"the network's answers to validation faces are not finite in {precision} after epoch {state.epoch + 1}: "
            f"train with precision float32 or bfloat16, or lower lr (now {state.recipe.lr}); {_kept(state, run)}"
        )
    return {
        "val_loss": metrics.nll(probabilities, val.targets),
        "val_accuracy": metrics.accuracy(probabilities, val.targets),
        "val_macro_f1": metrics.macro_f1(probabilities, val.targets),
    }


def _after_epoch(
    state: State, row: Row, preprocessing: Preprocessing, run: Run, saver: checkpoint.Saver, ranks: Ranks
) -> None:
    """Watch validation, and write history and checkpoints. A crash between two files loses nothing: each is whole."""
    recipe = state.recipe
    if row["val_loss"] is not None:
        _watch_plateau(state, row["val_loss"])
    # Without a validation part the last epoch is the best that can be known; with keep_epoch the last one is it.
    score = row["val_accuracy"] if row["val_accuracy"] is not None else 0.0
    better = score > state.best_accuracy or row["val_accuracy"] is None or recipe.keep_epoch is not None
    if better:
        state.best_accuracy, state.best_epoch = score, state.epoch
    if ranks.rank != 0:
        return
    evaluated = checkpoint.model_state(state.evaluated, preprocessing, recipe, state.epoch)
    run.append_history(row)
    best = [(run.file("best.ckpt"), evaluated)] if better else []
    saver.save(*best, (run.file("last.ckpt"), {**state.dump(), "evaluated": evaluated}))


def _keep_start(steps: Steps, val: Faces, run: Run, log: Callable[[str], None]) -> None:
    """Of a training of no epochs: score the network as it starts on validation faces, and save it."""
    state, ranks = steps.state, steps.ranks
    row = _validate(state, val, steps.preprocessing, run, steps.images.device, steps.precision, ranks)
    if ranks.rank != 0:
        return
    run.write_json("env.json", {**run.read_json("env.json"), "parts": _parts(state.recipe)})
    checkpoint.save(
        run.file("best.ckpt"), checkpoint.model_state(state.evaluated, steps.preprocessing, state.recipe, 0)
    )
    log(f"nothing is trained  {_describe_validation(row)}")


def _parts(recipe: Recipe) -> list[dict[str, Any]]:
    """Return of each trained run that a network was put together from where it is from; of what was so itself, its."""
    parts: list[dict[str, Any]] = []
    for name in recipe.starts:
        there = Run.open(name)
        known = there.read_json("env.json")
        held = checkpoint.load_model(there, "best")
        own = {
            "run": name,
            "recipe": held.recipe.model_dump(mode="json"),
            "epoch": held.epoch,
            "sha256": sha256(there.file("best.ckpt")),
            **{key: known.get(key) for key in ("git", "versions", "machine", "gpu", "device", "precision")},
        }
        parts += known.get("parts") or [own]
    return parts


def _watch_plateau(state: State, val_loss: float) -> None:
    """Lower the rate after ``plateau_patience`` epochs without a better loss.

    The same rule as torch's ReduceLROnPlateau with its defaults (relative threshold 1e-4).
    """
    if state.recipe.schedule != "plateau":
        return
    watched = state.plateau
    if val_loss < watched["best"] * (1 - 1e-4):
        watched["best"], watched["waited"] = val_loss, 0.0
        return
    watched["waited"] += 1
    if watched["waited"] > state.recipe.plateau_patience:
        watched["factor"] *= state.recipe.plateau_factor
        watched["waited"] = 0.0


def describe_epoch(row: Row, epochs: int) -> str:
    """Return an epoch as one line for a log."""
    left = row["total_seconds"] / row["epoch"] * (epochs - row["epoch"])
    return (
        f"epoch {row['epoch']}/{epochs}  train loss {row['train_loss']:.3f} accuracy {row['train_accuracy']:.1%}  "
        f"{_describe_validation(row)}  lr {row['lr']:.2e}  {row['images_per_second']:.0f} images/s  "
        f"{_clock(row['total_seconds'])} gone, {_clock(left)} left"
    )


def _describe_validation(row: Row) -> str:
    if row.get("val_loss") is None:
        return "no validation part"
    return f"val loss {row['val_loss']:.3f} accuracy {row['val_accuracy']:.1%} macro-F1 {row['val_macro_f1']:.3f}"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


# -- several processes ------------------------------------------------------------------------------------------------


def launch(
    recipe: Recipe,
    data: str,
    run: Run,
    processes: int,
    *,
    device: str | None = "auto",
    resume: bool | Literal["auto"] = "auto",
    on_bad: str = "raise",
) -> Iterator[str]:
    """Train in ``processes`` child processes on this machine under torchrun, and yield what they print, line by line.

    Raises:
        TrainingError: there are no processes, or one failed; the message ends with what it printed last.
    """
    _check_processes(processes)
    with_recipe = run.path / "launch.yaml"
    with_recipe.write_text(recipe.dump(), encoding="utf-8")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command += ["-m", "fer_utils.training", "--recipe", str(with_recipe), "--data", data, "--out", str(run.path)]
    command += ["--device", device or "auto", "--resume", str(resume).lower(), "--on-bad", on_bad]
    threads = max(1, (os.cpu_count() or 1) // processes)
    settings = {**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(threads))}
    last: list[str] = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=settings) as child:
        try:
            for line in child.stdout or ():
                last = [*last[-30:], line.rstrip()]
                yield line.rstrip()
        finally:
            if child.poll() is None and sys.exc_info()[0] is not None:
                child.terminate()
                child.wait()
            with_recipe.unlink(missing_ok=True)
    if child.returncode:
        raise TrainingError("training in several processes failed:\n" + "\n".join(last))


def _arguments(given: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m fer_utils.training", description="Train a recipe.")
    parser.add_argument("--recipe", default="fast", help="name of a recipe, or path of a YAML file (default: fast)")
    parser.add_argument("--data", default="auto", help="auto, synthetic, kaggle, or a path (default: auto)")
    parser.add_argument(
        "--out", help="directory of the run; one that holds a training is resumed (default: under outputs/)"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps (default: auto)")
    parser.add_argument(
        "--resume",
        choices=("auto", "true", "false"),
        default="auto",
        help="continue from last.ckpt: auto where there is one, true demands one, false refuses one (default: auto)",
    )
    parser.add_argument(
        "--on-bad",
        choices=("raise", "skip"),
        default="raise",
        help="what to do with unreadable faces: raise an error, or skip and list them (default: raise)",
    )
    parser.add_argument(
        "--set", nargs="+", action="extend", default=[], metavar="FIELD=VALUE", help="override fields of the recipe"
    )
    arguments = parser.parse_args(given)
    for item in arguments.set:
        if "=" not in item:
            parser.error(f"--set takes FIELD=VALUE, not {item!r}")
    return arguments


@record
def main(given: Sequence[str] | None = None) -> int:
    """Train from the command line, alone or as one of torchrun's processes; return 2 where it cannot be done."""
    arguments = _arguments(given)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        # torchrun tells of a process that fails, and needs its exception for that.
        return _train_or_tell(arguments)
    try:
        return _train_or_tell(arguments)
    except (
        *(RecipeError, RunError, TrainingError, DeviceError, SourceError),
        *(checkpoint.CheckpointError, models.ModelError, models.MissingWeights),
    ) as error:
        print(error, file=sys.stderr)  # noqa: T201 - the command line's own output
        return 2


def _train_or_tell(arguments: argparse.Namespace) -> int:
    """Train; return 130 where that was interrupted, once it is told what there is to go on with."""
    try:
        _train(arguments)
    except KeyboardInterrupt:
        told = "nothing is trained and kept yet, so the same command begins anew"
        run = Run(expanded(arguments.out)) if arguments.out is not None else None
        if run is not None and run.has("last.ckpt"):
            done = len(run.history())
            told = (
                f"{recipes.in_epochs(done)} {'is' if done == 1 else 'are'} trained, and the same command with --out "
                f"{shlex.quote(str(run.path))} goes on from its last checkpoint"
            )
        print(f"interrupted: {told}", file=sys.stderr)  # noqa: T201 - the command line's own output
        return 130
    return 0


def _train(arguments: argparse.Namespace) -> None:
    overrides = dict(item.partition("=")[::2] for item in arguments.set)
    recipe = recipes.load(arguments.recipe, overrides)
    resume: bool | Literal["auto"] = "auto" if arguments.resume == "auto" else arguments.resume == "true"
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    check(recipe, device=arguments.device, processes=processes, resume=resume, out=arguments.out)
    device = choose_device(arguments.device)
    distributed = processes > 1
    if distributed:
        if device.type == "cuda":
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
        if not arguments.out:
            raise RecipeError("several processes need --out: they must agree on the run's directory")
    try:
        ranks = Ranks.current()
        splits = sources.load(
            arguments.data,
            val_fraction=recipe.val_fraction,
            split_seed=recipe.split_seed,
            on_bad=arguments.on_bad,
        )
        check_faces(recipe, splits)
        if ranks.rank == 0:
            run = Run.create(arguments.out, label=recipe.name)
            arguments.out = str(run.path)
        if distributed:
            dist.barrier()
        if ranks.rank != 0:
            run = Run.open(arguments.out)

        def tell(line: str) -> None:
            print(line, flush=True)  # noqa: T201 - the command line's own output

        fit(recipe, splits, run, device=arguments.device, resume=resume, log=tell)
        if ranks.rank == 0:
            tell(f"run: {Path(run.path).resolve()}")
    finally:
        if distributed:
            dist.destroy_process_group()


if __name__ == "__main__":
    sys.exit(main())
