"""What a training step costs, by operation, against stock modules and settings; and what `fit` adds to it.

The step of `fast` and of a full-width ResNet18 is held against the same network from stock modules, in bfloat16 and
channels_last both, and shown by operation. The training part of an epoch through `training.fit` is held against the
bare forward, backward and optimiser step on one fixed batch, both in `fast`'s settings; validation and checkpoint have
lines of their own. Then `fast`'s bare step against the best of a sweep of stock settings, in turns: batch size,
precision, memory format, threads, compiled and not. On a GPU the stock modules are what is trained, so the first part
is left out, and every step is a CUDA graph.
"""

from __future__ import annotations

import itertools
import re
import statistics
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

import bars
import torch
from torch import nn
from torch.nn import functional
from torch.nn.grad import conv2d_input, conv2d_weight
from torch.utils._python_dispatch import TorchDispatchMode

from fer_utils import checkpoint, models, recipe, sources, training
from fer_utils.convolution import SmallMapConv2d, convolve, kernel_gradient, map_gradient
from fer_utils.devices import Precision, autocast, choose_device, choose_precision, keep_freed_memory
from fer_utils.faces import Splits
from fer_utils.runs import Run

CPU = torch.device("cpu")
FACES = 3072
"""Training faces of the epochs that are measured on a CPU: 12 steps of 256. A GPU gets all."""
STEPS = 24
"""Steps that a GPU is given at once."""

SHAPES: Final = (
    *((64, 64, 16, 1), (128, 128, 8, 1), (256, 256, 6, 1), (512, 512, 5, 1), (256, 256, 4, 1), (512, 512, 4, 1)),
    *((256, 256, 3, 1), (512, 512, 3, 1), (128, 256, 16, 2), (256, 512, 10, 2), (128, 256, 8, 2), (128, 256, 6, 2)),
)
"""Channels in and out, side of the map and stride of the 3 × 3 convolutions whose parts are timed."""

RESNET18: Final = {"width": 1.0, "stem": "3x3s2", "max_pool": False, "progressive": "none"}
"""The full-width network that the fast convolution was made for: maps of half the input's side and less."""

PRECISIONS: Final[tuple[Precision, ...]] = ("float32", "bfloat16")

KINDS: Final = {
    "native_batch_norm": "batch norm, forward",
    "native_batch_norm_backward": "batch norm, backward",
    "relu_": "ReLU, forward",
    "threshold_backward": "ReLU, backward",
    "silu": "SiLU, forward",
    "silu_": "SiLU, forward",
    "silu_backward": "SiLU, backward",
    "avg_pool2d": "average pool, forward",
    "avg_pool2d_backward": "average pool, backward",
    "max_pool2d_with_indices": "max-pool, forward",
    "max_pool2d_with_indices_backward": "max-pool, backward",
    "_to_copy": "casts",
    "add": "sums of branches and their gradients",
    "add_": "sums of branches and their gradients",
}


def bare_step(
    settings: recipe.Recipe,
    batch: int,
    precision: Precision,
    *,
    channels_last: bool = True,
    compiled: bool = False,
    stock: bool = False,
    device: torch.device = CPU,
) -> Callable[[], object]:
    """Return a function that does one forward, backward and optimiser step on one fixed batch."""
    torch.manual_seed(0)
    network = models.build(settings)
    for module in network.modules() if stock else ():
        if isinstance(module, SmallMapConv2d):
            module.__class__ = nn.Conv2d  # type: ignore[assignment]
    memory = torch.channels_last if channels_last else torch.contiguous_format
    network = network.to(device, memory_format=memory)  # type: ignore[call-overload]
    optimizer = training.make_optimizer(settings, network, fused=True, precision=precision)
    inputs = torch.randn(batch, settings.channels, settings.image_size, settings.image_size)
    inputs = inputs.to(device, memory_format=memory)
    targets = torch.randint(0, 7, (batch,)).to(device)
    forward: nn.Module = network
    if compiled:
        forward.compile()

    def step() -> None:
        with autocast(device, precision):
            logits = forward(inputs)
        loss = functional.cross_entropy(logits.float(), targets, label_smoothing=settings.label_smoothing)
        torch.autograd.backward(loss)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    if device.type != "cuda":
        return step
    # As `fit` does its own: what a GPU needs for it, and not what Python does.
    training.warm_up(step, device)
    return partial(_replayed, training.capture(step, optimizer), step)


def _replayed(replay: Callable[[], None], _step: Callable[[], None]) -> None:
    """Replay a captured step, which is held here with all that it reads: a graph knows addresses alone."""
    replay()


class Timer(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Seconds and floating-point operations of the step by kind of operation, timed where torch dispatches each.

    torch's profiler slows the small operations down many times. What the library brackets as one operation for a
    profiler (its own convolution, the optimiser) is one here too, the few microseconds for each part of it included.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.flops: Counter[str] = Counter()
        self._open: list[tuple[str, float, int]] = []
        self._products = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = func.name().split("::")[1].split(".")[0]
        if name == "_record_function_enter_new":
            self._open.append((args[0], time.perf_counter(), self._products))
            return func(*args, **(kwargs or {}))
        started = time.perf_counter()
        result = func(*args, **(kwargs or {}))
        ended = time.perf_counter()
        if name == "_record_function_exit":
            what, started, products = self._open.pop()
            if not self._open:
                self._note(_bracketed(what), ended - started, self._products - products)
        elif name in ("mm", "addmm"):
            left, right = args[-2:]
            flops = 2 * left.shape[0] * left.shape[1] * right.shape[1]
            self._products += flops
            if not self._open:
                self._note("linear", ended - started, flops)
        elif not self._open:
            if name in ("convolution", "convolution_backward"):
                backward = name == "convolution_backward"
                maps, weight = args[1:3] if backward else args[:2]
                made = args[0] if backward else result
                products = sum(args[-1][:2]) if backward else 1
                flops = 2 * products * weight.numel() * made.shape[0] * made.shape[2] * made.shape[3]
                part = "forward"
                if backward:
                    part = "gradient of maps" if products == 1 else "backward"
                self._note(_convolution("stock", list(maps.shape), list(weight.shape), part), ended - started, flops)
            else:
                self._note(KINDS.get(name, "everything else"), ended - started, 0)
        return result

    def _note(self, kind: str, seconds: float, flops: int) -> None:
        self.seconds[kind] += seconds
        self.flops[kind] += flops


def _bracketed(what: str) -> str:
    if what.startswith("Optimizer"):
        return "optimiser"
    held = re.fullmatch(r"(forward|gradient of maps|gradient of kernels) \[(.*)\] \[(.*)\]", what)
    if held is None:
        return what
    maps, weight = ([int(number) for number in group.split(",")] for group in held.groups()[1:])
    return _convolution("our", maps, weight, held[1])


def _convolution(whose: str, maps: list[int], weight: list[int], part: str) -> str:
    shape = f"{weight[2]} × {weight[3]}, {weight[1]} to {weight[0]} channels, {maps[2]} × {maps[3]} maps"
    return f"{whose} convolution, {shape}, {part}"


def by_operation(title: str, step: Callable[[], object], repeats: int) -> None:
    """Print milliseconds, share and TFLOP/s of each kind of operation in the step: medians over ``repeats`` steps."""
    timers = []
    for _ in range(repeats):
        with Timer() as timer:
            step()
        timers.append(timer)
    flops = timers[0].flops
    seconds = {kind: statistics.median(timer.seconds[kind] for timer in timers) for kind in timers[0].seconds}
    total = sum(seconds.values())
    print(
        f"\n{title}, by operation (arithmetic on padding, which ours leaves out, is counted with stock convolutions)\n"
    )
    rows = [
        [
            kind,
            f"{1000 * spent:.1f}",
            f"{spent / total:.1%}",
            f"{flops[kind] / spent / 1e12:.2f}" if flops[kind] else "",
        ]
        for kind, spent in sorted(seconds.items(), key=lambda item: -item[1])
    ]
    bars.table(["operation", "ms", "share", "TFLOP/s"], [*rows, ["all", f"{1000 * total:.1f}", "", ""]])


def parts_of_convolutions(repeats: int, batch: int = 128) -> None:
    """Print milliseconds of the parts of convolutions, stock and ours, in turns: medians over ``repeats``."""
    keep_freed_memory()
    rows: list[list[object]] = []
    for inputs, outputs, side, stride in SHAPES:
        maps = torch.randn(batch, inputs, side, side).bfloat16().contiguous(memory_format=torch.channels_last)
        kernels = torch.randn(outputs, inputs, 3, 3).bfloat16().contiguous(memory_format=torch.channels_last)
        made = functional.conv2d(maps, kernels, None, stride, 1)
        gradient = torch.randn_like(made)
        inner, outer = maps.permute(0, 2, 3, 1), gradient.permute(0, 2, 3, 1)
        timed: dict[str, Callable[[], object]] = {
            "forward": partial(functional.conv2d, maps, kernels, None, stride, 1),
            "forward, ours": partial(convolve, inner, kernels, stride),
            "of maps": partial(conv2d_input, maps.shape, kernels, gradient, stride, 1),
            "of maps, ours": partial(map_gradient, (side, side), kernels, outer, stride),
            "of kernels": partial(conv2d_weight, maps, kernels.shape, gradient, stride, 1),
            "of kernels, ours": partial(kernel_gradient, inner, outer, 3, stride),
        }
        for run in timed.values():
            run()
        seconds = bars.medians(timed, repeats)
        rows.append([inputs, outputs, side, stride, *(1000 * seconds[part] for part in timed)])
    print(f"\n3 × 3 convolutions by part, bfloat16, batch {batch}, ms\n")
    gradients = ["gradient of maps", "of maps, ours", "of kernels", "of kernels, ours"]
    bars.table(["channels in", "out", "map", "stride", "forward", "forward, ours", *gradients], rows)


def against_stock(settings: dict[str, recipe.Recipe], repeats: int) -> list[bars.Bar]:
    """Measure each network's step from stock modules, before and after glibc is told to keep memory, and ours."""
    measured: list[bars.Bar] = []
    rows: list[list[object]] = []
    steps = {
        (name, stock): bare_step(one, one.batch_size, "bfloat16", stock=stock)
        for name, one in settings.items()
        for stock in (True, False)
    }
    for step in steps.values():
        step()
    # In a process there is no way back, so these cannot take turns with the others.
    before = bars.medians({name: steps[name, True] for name in settings}, repeats)
    kept = keep_freed_memory()
    for name, one in settings.items():
        turns = {"stock": steps[name, True], "fast": steps[name, False]}
        for step in turns.values():
            step()
        after = bars.medians(turns, repeats)
        batch = one.batch_size
        rows += [
            [f"{name}: stock modules", batch / before[name]],
            [f"{name}: stock modules, {'freed memory kept' if kept else 'again'}", batch / after["stock"]],
            [f"{name}: as trained here", batch / after["fast"]],
        ]
        measured += [
            bars.at_least(f"{name}: the step over stock modules, in turns", after["stock"] / after["fast"], 1.0),
            bars.at_least(f"{name}: the step over stock modules and memory", before[name] / after["fast"], 1.5),
        ]
    print("\nbfloat16, channels_last, bare step\n")
    bars.table(["network", "images/s"], rows)
    for name in settings:
        by_operation(f"{name} from stock modules", steps[name, True], repeats)
        by_operation(f"{name} as trained here", steps[name, False], repeats)
    return measured


def of_fit(
    splits: Splits, settings: recipe.Recipe, repeats: int, device: torch.device
) -> tuple[float, float, float, float, int]:
    """Return seconds per face of an epoch through fit and of the bare step, and of validation and a checkpoint.

    The last number is how many faces an epoch had.
    """
    many = len(splits.train) if device.type == "cuda" else FACES
    few = Splits(splits.train.select(slice(0, many)), splits.val.select(slice(0, 500)), splits.test, splits.source)
    step = bare_step(settings, settings.batch_size, choose_precision(settings.precision, device), device=device)
    bars.waiting(step, device)()
    steps = len(training.batch_bounds(len(few.train), settings.batch_size))
    bare: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        run = Run.create(Path(folder) / "run")

        def after(_: training.Row) -> None:
            # The bare steps take their turn after each epoch, in the same process.
            started = time.perf_counter()
            bars.waiting(step, device, steps)()
            bare.append((time.perf_counter() - started) / steps / settings.batch_size)

        longer = settings.model_copy(update={"epochs": repeats + 1})
        training.fit(longer, few, run, device=str(device), on_epoch=after, log=lambda _line: None)
        history = run.history().iloc[1:]  # the first epoch warms up
        last = checkpoint.load(run.file("last.ckpt"))
        started = time.perf_counter()
        checkpoint.save(run.file("copy.ckpt"), last)
        saved = time.perf_counter() - started
    fit_seconds = float(history["train_seconds"].median()) / len(few.train)
    return fit_seconds, statistics.median(bare[1:]), float(history["val_seconds"].median()), saved, len(few.train)


class Setting(NamedTuple):
    """A way to train a stock network."""

    batch: int
    precision: Precision
    channels_last: bool
    threads: int
    compiled: bool


def timed_step(
    settings: recipe.Recipe, setting: Setting, device: torch.device, *, stock: bool = True
) -> tuple[Callable[[], object], int]:
    """Return a function that does bare steps in a setting, which has done it once, and how many images it takes."""
    step = bare_step(
        settings,
        setting.batch,
        setting.precision,
        channels_last=setting.channels_last,
        compiled=setting.compiled,
        stock=stock,
        device=device,
    )
    together = STEPS if device.type == "cuda" else 1
    steps = bars.waiting(step, device, together)

    def run() -> None:
        torch.set_num_threads(setting.threads)
        steps()

    run()
    return run, together * setting.batch


def stock_rate(settings: recipe.Recipe, setting: Setting, device: torch.device) -> float:
    """Return the images/s of the bare step of stock modules: the median of three rounds."""
    run, images = timed_step(settings, setting, device)
    return images / bars.medians({"step": run}, 3)["step"]


def over_stock(
    settings: recipe.Recipe, ours: Setting, theirs: Setting, device: torch.device, repeats: int
) -> tuple[float, float]:
    """Return the images/s of the bare step as trained here and of stock modules in another setting, in turns."""
    steps = {"ours": timed_step(settings, ours, device, stock=False), "theirs": timed_step(settings, theirs, device)}
    seconds = bars.medians({whose: run for whose, (run, _) in steps.items()}, repeats)
    return steps["ours"][1] / seconds["ours"], steps["theirs"][1] / seconds["theirs"]


def main() -> int:
    """Measure, print, judge."""
    parser = bars.parser(__doc__)
    parser.add_argument("--repeats", type=bars.positive, default=5, help="epochs and rounds that medians are taken of")
    parser.add_argument("--sweep", action="store_true", help="the whole sweep of stock settings (some minutes)")
    parser.add_argument("--steps-only", action="store_true", help="leave out what fit adds and the sweep")
    parser.add_argument("--parts", action="store_true", help="time the parts of convolutions on a CPU, nothing else")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--image-size", type=bars.positive, help="side of the input in place of the recipe's")
    arguments = parser.parse_args()
    device = choose_device(arguments.device)
    print(bars.machine(device))
    if arguments.parts:
        parts_of_convolutions(max(5, arguments.repeats))
        return 0
    size = {"image_size": arguments.image_size}
    settings = recipe.load("fast", {"progressive": "none", **size})
    networks = {"fast": settings, "ResNet18": recipe.load("fast", {**RESNET18, **size})}
    # Before minutes of steps: it may not be there.
    splits = None if arguments.steps_only else sources.load(arguments.data)
    measured = against_stock(networks, max(5, arguments.repeats)) if device.type == "cpu" else []
    if splits is None:
        return bars.judge(measured)
    fitted, bare, validation, saving, faces = of_fit(splits, settings, arguments.repeats, device)
    precision = choose_precision("auto", device)
    print(f"\nfast at {settings.image_size} px, {precision}, batch {settings.batch_size}, {faces} faces an epoch\n")
    bars.table(
        ["part", "seconds", "images/s"],
        [
            ["bare step, one epoch's worth", bare * faces, 1 / bare],
            ["training part of fit", fitted * faces, 1 / fitted],
            ["validation of 500 faces", validation, 500 / validation],
            ["checkpoint: writing last.ckpt", saving, float("nan")],
        ],
    )
    threads = torch.get_num_threads()
    batches = (64, 128, 256, 512) if arguments.sweep else (settings.batch_size,)
    swept: dict[Setting, float] = {}
    counts = (1, 2) if device.type == "cpu" else (threads,)
    for batch, arithmetic, last, count in itertools.product(batches, PRECISIONS, (False, True), counts):
        setting = Setting(batch, arithmetic, last, count, compiled=False)
        swept[setting] = stock_rate(settings, setting, device)
    for arithmetic in PRECISIONS if arguments.sweep else ():
        # Compiling takes a minute and more, so only the best of each precision.
        quickest = max((one for one in swept if one.precision == arithmetic), key=swept.__getitem__)
        swept[quickest._replace(compiled=True)] = stock_rate(settings, quickest._replace(compiled=True), device)
    # A machine's speed moves more from one minute to another than the best settings differ.
    best = max(swept, key=swept.__getitem__)
    as_trained = Setting(settings.batch_size, precision, channels_last=True, threads=threads, compiled=False)
    ours, theirs = over_stock(settings, as_trained, best, device, max(9, arguments.repeats))
    torch.set_num_threads(threads)
    print()
    bars.table(
        ["batch", "precision", "memory", "threads", "compiled", "images/s"],
        [
            [
                setting.batch,
                setting.precision,
                "channels_last" if setting.channels_last else "contiguous",
                setting.threads,
                "yes" if setting.compiled else "no",
                rate,
            ]
            for setting, rate in swept.items()
        ],
    )
    print(f"\nin turns: the best of these {theirs:.0f} images/s, as trained here {ours:.0f}")
    return bars.judge(
        [
            *measured,
            bars.at_most("training part of fit over the bare step", fitted / bare, 1.04),
            bars.at_least("fast's bare step over the best stock setting swept, in turns", ours / theirs, 1.0),
        ]
    )


if __name__ == "__main__":
    sys.exit(bars.run(main))
