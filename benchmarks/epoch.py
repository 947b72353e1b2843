"""What an epoch of `fast` costs against each earlier recipe as published: images/s of the training step, in turn.

The earlier recipes run in float32 at their own input size and batch, as their texts say; `fast` in its own settings.
Where sizes grow while a recipe trains, each is timed, and the mean is over all epochs. ImageNet weights change no
timing, so the networks start from random weights. On CUDA each step is a CUDA graph.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable

import bars
import torch

from fer_utils import models, recipe, sources, training
from fer_utils.devices import choose_device, choose_precision
from fer_utils.faces import Faces
from fer_utils.preprocessing import Preprocessing

EARLIER = ("dense_head", "partial_finetune", "linear_head", "custom_cnn", "one_cycle")
BARS = {"dense_head": 15.0, "linear_head": 15.0, "partial_finetune": 9.0}
"""Times the images/s that fast must reach: of those that train all layers at 224 px, and of the one that does not."""
STEPS = 20
"""Steps that a GPU is given at once: a training waits for it once an epoch, too."""


def training_step(
    settings: recipe.Recipe, state: training.State, faces: Faces, device: torch.device
) -> Callable[[], object]:
    """Return a function that augments, normalises and trains on one batch, as an epoch's steps do."""
    models.set_training_mode(state.model, settings)
    steps = training.Steps(
        state,
        state.model,
        torch.from_numpy(faces.images).to(device),
        torch.from_numpy(faces.targets).to(device),
        torch.ones(7, device=device),
        Preprocessing.of(settings, faces),
        choose_precision(settings.precision, device),
        training.Ranks(),
    )
    steps.begin(0)
    return lambda: steps((0, len(faces)), 1.0)


def main() -> int:
    """Measure, print, judge."""
    parser = bars.parser(__doc__)
    parser.add_argument(
        "--repeats", type=bars.positive, default=5, help="steps of each recipe that medians are taken of"
    )
    parser.add_argument("--batch", type=bars.positive, default=32, help="largest batch of the recipes at 224 px")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps")
    arguments = parser.parse_args()
    device = choose_device(arguments.device)
    together = STEPS if device.type == "cuda" else 1
    print(bars.machine(device))
    train = sources.load(arguments.data).train
    steps: dict[tuple[str, int], Callable[[], object]] = {}
    epochs: dict[str, Counter[int]] = {}
    batches: dict[str, int] = {}
    cost: dict[str, float] = {}
    for name in ("fast", *EARLIER):
        settings = recipe.load(name, {"weights": "none"})
        batches[name] = settings.batch_size if settings.image_size < 100 else min(settings.batch_size, arguments.batch)
        batches[name] = min(batches[name], len(train))
        settings = settings.model_copy(update={"batch_size": batches[name]})
        epochs[name] = Counter(training.image_sizes(settings))
        for size in epochs[name]:
            one = settings.model_copy(update={"image_size": size, "progressive": None})
            state = training.make_state(one, device, choose_precision(one.precision, device))
            step = training_step(one, state, train.select(slice(0, batches[name])), device)
            steps[name, size] = bars.waiting(step, device, together)
            steps[name, size]()
            macs = models.multiply_adds(state.model, one.channels, size) / 1e9
            cost[name] = cost.get(name, 0.0) + macs * epochs[name][size] / epochs[name].total()
    seconds = bars.medians(steps, arguments.repeats)
    rates = {
        name: together * batches[name] * counts.total() / sum(seconds[name, size] * counts[size] for size in counts)
        for name, counts in epochs.items()
    }
    print()
    bars.table(
        ["recipe", "input", "precision", "batch", "GMAC", "images/s", "fast is faster by"],
        [
            [
                name,
                "-".join(dict.fromkeys(str(size) for size in (min(epochs[name]), max(epochs[name])))),
                choose_precision(recipe.load(name).precision, device),
                batches[name],
                cost[name],
                rates[name],
                rates["fast"] / rates[name],
            ]
            for name in rates
        ],
    )
    return bars.judge(
        [bars.at_least(f"fast over {name}", rates["fast"] / rates[name], limit) for name, limit in BARS.items()]
    )


if __name__ == "__main__":
    sys.exit(bars.run(main))
