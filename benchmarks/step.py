"""What an epoch costs beyond its arithmetic: `fit` against the bare step, and the bare step against stock settings.

The training part of an epoch through `training.fit` is held against the bare forward, backward and optimiser step on
one fixed batch, both in `fast`'s settings; validation and checkpoint have lines of their own. Then `fast`'s bare step
against a sweep of stock settings: batch size, precision, memory format, threads, compiled and not.
"""

from __future__ import annotations

import itertools
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import bars
import torch
from torch import nn
from torch.nn import functional

from fer_utils import checkpoint, models, recipe, sources, training
from fer_utils.devices import Precision, autocast, choose_precision
from fer_utils.faces import Splits
from fer_utils.preprocessing import Preprocessing
from fer_utils.runs import Run

CPU = torch.device("cpu")
FACES = 3072
"""Training faces of the measured epochs: 24 steps of 128."""


def bare_step(
    settings: recipe.Recipe, batch: int, precision: Precision, *, channels_last: bool = True, compiled: bool = False
) -> Callable[[], object]:
    """Return a function that does one forward, backward and optimiser step on one fixed batch."""
    torch.manual_seed(0)
    network = models.build(settings)
    memory = torch.channels_last if channels_last else torch.contiguous_format
    network = network.to(memory_format=memory)
    optimizer = torch.optim.AdamW(models.parameter_groups(network, settings), fused=True)
    inputs = torch.randn(batch, settings.channels, settings.image_size, settings.image_size).to(memory_format=memory)
    targets = torch.randint(0, 7, (batch,))
    forward: nn.Module = network
    if compiled:
        forward.compile()

    def step() -> None:
        with autocast(CPU, precision):
            logits = forward(inputs)
        loss = functional.cross_entropy(logits.float(), targets, label_smoothing=settings.label_smoothing)
        torch.autograd.backward(loss)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def of_fit(splits: Splits, settings: recipe.Recipe, repeats: int) -> tuple[float, float, float, float]:
    """Return seconds per face of an epoch through fit and of the bare step, and of validation and a checkpoint."""
    few = Splits(splits.train.select(slice(0, FACES)), splits.val.select(slice(0, 500)), splits.test, splits.source)
    step = bare_step(settings, settings.batch_size, choose_precision(settings.precision, CPU))
    step()
    steps = len(training.batch_bounds(len(few.train), settings.batch_size))
    bare: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        run = Run.create(Path(folder) / "run")

        def after(_: training.Row) -> None:
            # The bare steps take their turn after each epoch, in the same process.
            started = time.perf_counter()
            for _step in range(steps):
                step()
            bare.append((time.perf_counter() - started) / steps / settings.batch_size)

        longer = settings.model_copy(update={"epochs": repeats + 1})
        training.fit(longer, few, run, device="cpu", on_epoch=after, log=lambda _line: None)
        history = run.history().iloc[1:]  # the first epoch warms up
        started = time.perf_counter()
        checkpoint.save(run.file("copy.ckpt"), checkpoint.load(run.file("last.ckpt")))
        saved = (time.perf_counter() - started) / 2
    fit_seconds = float(history["train_seconds"].median()) / len(few.train)
    return fit_seconds, statistics.median(bare[1:]), float(history["val_seconds"].median()), saved


def main() -> int:
    """Measure, print, judge."""
    parser = bars.parser(__doc__)
    parser.add_argument("--repeats", type=int, default=5, help="epochs and rounds that medians are taken of")
    parser.add_argument("--sweep", action="store_true", help="the whole sweep of stock settings (about 10 minutes)")
    arguments = parser.parse_args()
    print(bars.machine())
    splits = sources.load(arguments.data)
    settings = recipe.load("fast", {"progressive": None})
    fitted, bare, validation, saving = of_fit(splits, settings, arguments.repeats)
    size = Preprocessing.of(settings, splits.train).size
    print(
        f"\nfast at {size} px, {choose_precision('auto', CPU)}, batch {settings.batch_size}, {FACES} faces an epoch\n"
    )
    bars.table(
        ["part", "seconds", "images/s"],
        [
            ["bare step, one epoch's worth", bare * FACES, 1 / bare],
            ["training part of fit", fitted * FACES, 1 / fitted],
            ["validation of 500 faces", validation, 500 / validation],
            ["checkpoint: copy of last.ckpt", saving, float("nan")],
        ],
    )
    threads = torch.get_num_threads()
    batches = (64, 128, 256, 512) if arguments.sweep else (128,)
    rows: list[list[object]] = []
    best = 0.0
    for batch, precision, last, count, compiled in itertools.product(
        batches, ("float32", "bfloat16"), (False, True), (1, 2), (False, True) if arguments.sweep else (False,)
    ):
        torch.set_num_threads(count)
        step = bare_step(settings, batch, precision, channels_last=last, compiled=compiled)  # type: ignore[arg-type]
        step()
        rate = batch / bars.medians({"step": step}, 3)["step"]
        best = max(best, rate)
        layout = "channels_last" if last else "contiguous"
        rows.append([batch, precision, layout, count, "yes" if compiled else "no", rate])
    torch.set_num_threads(threads)
    print()
    bars.table(["batch", "precision", "memory", "threads", "compiled", "images/s"], rows)
    return bars.judge(
        [
            bars.at_most("training part of fit over the bare step", fitted / bare, 1.04),
            bars.at_least("fast's bare step over the best stock setting swept", 1 / bare / best, 1.0),
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
