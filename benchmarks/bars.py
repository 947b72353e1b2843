"""What every program here has in common: its arguments, the machine it ran on, its table and its bars.

A benchmark is a script with a ``main() -> int``::

    def main() -> int:
        arguments = bars.parser(__doc__).parse_args()
        print(bars.machine())
        splits = sources.load(arguments.data)
        ...
        bars.table(["what", "images/s"], [["whole-batch augmentation", 30_000.0]])
        return bars.judge([bars.at_least("augmentation, images/s", 30_000.0, 20_000.0)])

    if __name__ == "__main__":
        sys.exit(bars.run(main))

It runs as ``python benchmarks/NAME.py``: without arguments on ``$FER_DATA``, or else on synthetic faces.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    import torch

Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True)
class Bar:
    """One measured value and the limit that it is held against."""

    name: str
    value: float
    limit: float
    lower_is_better: bool

    @property
    def met(self) -> bool:
        """True when the value is on the right side of the limit; NaN never is."""
        return self.value <= self.limit if self.lower_is_better else self.value >= self.limit

    def line(self) -> str:
        """Return ``NAME: VALUE, bar: BAR``."""
        return f"{self.name}: {number(self.value)}, bar: {'<=' if self.lower_is_better else '>='} {number(self.limit)}"


def at_most(name: str, value: float, limit: float) -> Bar:
    """Return a bar that ``value`` meets when it is ``limit`` or less: a time, a ratio of times, a size."""
    return Bar(name, value, limit, lower_is_better=True)


def at_least(name: str, value: float, limit: float) -> Bar:
    """Return a bar that ``value`` meets when it is ``limit`` or more: a rate, a score."""
    return Bar(name, value, limit, lower_is_better=False)


def judge(measured: Sequence[Bar]) -> int:
    """Print one line for each bar and return the exit status: 0 when all are met, 1 when one falls short."""
    print()
    for bar in measured:
        print(bar.line() + ("" if bar.met else "  (falls short)"))
    return 0 if all(bar.met for bar in measured) else 1


def parser(description: str | None) -> argparse.ArgumentParser:
    """Return an argument parser with ``--data``; a program adds its own arguments to it.

    Args:
        description: the program's docstring; its first paragraph heads the help text.
    """
    first = (description or "").strip().split("\n\n")[0]
    made = argparse.ArgumentParser(description=first, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    made.add_argument(
        "--data",
        default=os.environ.get("FER_DATA") or "synthetic",
        help="auto, synthetic, synthetic:N, kaggle, or the path of a folder or file; $FER_DATA where it is set",
    )
    return made


def positive(text: str) -> int:
    """Return a whole number of 1 and more, as the type of an argument."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1 on, got {text!r}")
    return int(text)


def run(main: Callable[[], int]) -> int:
    """Return the exit status of a program: ``main``'s, or 2 where an argument is wrong and the library says how."""
    try:
        return main()
    except (RuntimeError, ValueError) as error:
        if not isinstance(error, _told_errors()):
            raise
        print(error, file=sys.stderr)
        return 2


def _told_errors() -> tuple[type[Exception], ...]:
    """The errors that tell a user what to do; their modules load torch, which a program may not want before."""
    from fer_utils.checkpoint import CheckpointError
    from fer_utils.devices import DeviceError
    from fer_utils.export import ExportError
    from fer_utils.models import MissingWeights, ModelError
    from fer_utils.recipe import RecipeError
    from fer_utils.runs import RunError
    from fer_utils.sources import SourceError
    from fer_utils.training import TrainingError

    told = (CheckpointError, DeviceError, ExportError, MissingWeights, ModelError)
    return *told, RecipeError, RunError, SourceError, TrainingError


def machine(device: torch.device | None = None) -> str:
    """Return one line that says what was measured on: processor, usable cores, GPU, torch's version, the date."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    version = importlib.metadata.version("torch")
    gpu = ""
    if device is not None and device.type == "cuda":
        import torch  # where memory is measured, only what is measured is loaded

        gpu = f", {torch.cuda.get_device_name(device)}"
    return f"{_processor()}, {cores} cores{gpu}, torch {version}, {datetime.now(UTC).date().isoformat()}"


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print rows under a header, text left and numbers right, in columns just wide enough."""
    body = [list(row) for row in rows]
    texts = [[number(cell) if isinstance(cell, float) else str(cell) for cell in row] for row in body]
    widths = [max(len(text) for text in column) for column in zip(header, *texts, strict=True)]
    numeric = [all(isinstance(row[i], int | float) for row in body) for i in range(len(header))]
    for cells in (list(header), *texts):
        padded = [
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(cells, widths, numeric, strict=True)
        ]
        print("  ".join(padded).rstrip())


def number(value: float) -> str:
    """Return a number as people read it: thousands with commas, else three significant digits."""
    # From 999.5 on three digits would be 1e+03.
    return f"{value:,.0f}" if abs(value) >= 999.5 else f"{value:.3g}"


def waiting(function: Callable[[], object], device: torch.device, times: int = 1) -> Callable[[], object]:
    """Return a function that calls ``function`` so many times and waits for the device to be done with all of it."""

    def run() -> None:
        for _ in range(times):
            function()
        if device.type != "cpu":
            import torch

            torch.accelerator.synchronize(device)

    return run


def medians(measured: dict[Key, Callable[[], object]], repeats: int) -> dict[Key, float]:
    """Time each function ``repeats`` times and return its median in seconds.

    The functions take turns, so that another program's load on the machine falls on all of them alike.
    """
    seconds: dict[Key, list[float]] = {name: [] for name in measured}
    for _ in range(repeats):
        for name, function in measured.items():
            start = time.perf_counter()
            function()
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}
