"""Batches ready for the network: ours against the per-image pipelines of the earlier recipes, the same operations.

Each earlier pipeline is written as its text says: one face at a time, read from its file or its row of a table, changed
by torchvision's transforms of PIL images, gathered by a DataLoader, with the better of 0 and 2 worker processes. Ours
is a whole epoch: its order, its draws, and for each batch the faces' augmentation and normalisation. At 48 px all five
are compared at that size; at 224 px the cost is held against the float32 training step of a ResNet18, in the same run.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import bars
import cv2
import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import models, transforms

from fer_utils import recipe, sources
from fer_utils.augment import augment, draw, epoch_order
from fer_utils.devices import choose_device
from fer_utils.faces import Splits
from fer_utils.preprocessing import Preprocessing

BATCH = 128
STEP_BATCH = 32
EARLIER = ("dense_head", "partial_finetune", "linear_head", "custom_cnn", "one_cycle")
LARGE = ("dense_head", "partial_finetune", "linear_head")
"""Those that train at 224 px."""

STEPS = 20
"""Steps of the network that a GPU is given at once."""

TIMES = 10.0
"""Times the images/s of the per-image pipeline at 48 px."""
SHARE = 0.04
"""Share of the float32 step at 224 px."""


class OneByOne(Dataset[Tensor]):
    """Faces read and changed one at a time: files opened by PIL or OpenCV, or rows of a table."""

    def __init__(self, items: list[Path] | npt.NDArray[np.float64], reader: str, transform: transforms.Compose) -> None:
        self.items = items
        self.reader = reader
        self.transform = transform

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Tensor:
        item = self.items[index]
        if isinstance(item, np.ndarray):
            image = Image.fromarray(item.reshape(48, 48).astype(np.uint8))
        elif self.reader == "opencv":
            image = Image.fromarray(np.asarray(cv2.imread(str(item), cv2.IMREAD_GRAYSCALE)))
        else:
            with Image.open(item) as file:
                image = file.convert(self.reader)
        changed: Tensor = self.transform(image)
        return changed


def pipeline(name: str, size: int, mean: tuple[float, ...], std: tuple[float, ...]) -> tuple[str, transforms.Compose]:
    """Return how an earlier recipe reads a face, and its transforms; the numbers are those of its recipe here."""
    numbers = recipe.load(name).augment
    last = [transforms.ToTensor(), transforms.Normalize(mean, std)]
    resize = transforms.Resize((size, size))
    if name == "dense_head":
        changes = [transforms.RandomRotation(numbers.rotation), resize, transforms.Grayscale(num_output_channels=3)]
        return "table", transforms.Compose(changes + last)
    if name == "partial_finetune":
        changes = [
            resize,
            transforms.RandomHorizontalFlip(numbers.flip),
            transforms.RandomRotation(numbers.rotation),
            transforms.RandomAffine(0, (numbers.translate, numbers.translate), numbers.scale),
            transforms.RandomAdjustSharpness(numbers.sharpness.factor, numbers.sharpness.p),
            transforms.RandomAutocontrast(numbers.autocontrast),
        ]
        return "opencv", transforms.Compose(changes + last)
    if name == "linear_head":
        return "RGB", transforms.Compose([resize, *last])
    if name == "custom_cnn":
        return "L", transforms.Compose([resize, *last])
    changes = [
        transforms.RandomCrop(48, padding=numbers.crop_padding),
        transforms.RandomHorizontalFlip(numbers.flip),
        transforms.ColorJitter(numbers.brightness, numbers.contrast),
        transforms.RandomRotation(numbers.rotation),
    ]
    return "RGB", transforms.Compose(changes + last)


def per_image(dataset: OneByOne, workers: int, batch: int) -> Callable[[], object]:
    """Return a pass over the faces, one by one; the workers have been started."""
    loader = DataLoader(dataset, batch, shuffle=True, num_workers=workers, persistent_workers=workers > 0)

    def run() -> None:
        for _ in loader:
            pass

    run()
    return run


def whole_batch(
    settings: recipe.Recipe, preprocessing: Preprocessing, images: Tensor, batch: int
) -> Callable[[], object]:
    """Return our pass over the faces: an epoch as the training draws it."""
    device = images.device

    def run() -> None:
        order = epoch_order(len(images), seed=0, epoch=0).to(device)
        draws = draw(settings.augment, len(images), seed=0, epoch=0).to(device)
        for start in range(0, len(images), batch):
            where = slice(start, start + batch)
            preprocessing.normalize(augment(images.index_select(0, order[where]), draws[where], preprocessing.size))

    waited = bars.waiting(run, device)
    waited()
    return waited


def training_step(size: int, device: torch.device) -> Callable[[], object]:
    """Return a float32 training step of ResNet18, all layers trained, as the earlier recipes run it."""
    network = models.resnet18(weights=None, num_classes=7).to(device)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-4)
    inputs = torch.randn(STEP_BATCH, 3, size, size, device=device)
    targets = torch.arange(STEP_BATCH, device=device) % 7

    def run() -> None:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(network(inputs), targets)
        torch.autograd.backward(loss)
        optimizer.step()

    waited = bars.waiting(run, device, STEPS if device.type == "cuda" else 1)
    waited()
    return waited


def files(splits: Splits, count: int, folder: Path) -> list[Path]:
    """Return image files of the first training faces: the data's own where it is a folder, else JPEGs written now."""
    own = [Path(splits.location) / str(name) for name in splits.train.names[:count]]
    if all(path.is_file() for path in own):
        return own
    written = [folder / f"{i}.jpg" for i in range(len(splits.train.images[:count]))]
    for path, image in zip(written, splits.train.images, strict=False):
        Image.fromarray(image).save(path, quality=95)
    return written


def main() -> int:
    """Measure, print, judge."""
    parser = bars.parser(__doc__)
    parser.add_argument("--repeats", type=bars.positive, default=5, help="passes that medians are taken of")
    parser.add_argument(
        "--faces", type=bars.positive, default=2048, help="faces in a pass of a per-image pipeline at 48 px"
    )
    parser.add_argument("--large-faces", type=bars.positive, default=512, help="faces in a pass at 224 px")
    parser.add_argument("--device", default="auto", help="of ours and of the step: auto, cpu, cuda, cuda:N or mps")
    arguments = parser.parse_args()
    device = choose_device(arguments.device)
    print(bars.machine(device))
    splits = sources.load(arguments.data)
    train = splits.train
    images = torch.from_numpy(train.images.copy()).to(device)
    judged = []
    with tempfile.TemporaryDirectory() as folder:
        paths = files(splits, arguments.faces, Path(folder))
        rows = train.images[: len(paths)].reshape(len(paths), -1).astype(np.float64)

        def earlier(name: str, preprocessing: Preprocessing, count: int, batch: int) -> dict[str, Callable[[], object]]:
            reader, transform = pipeline(name, preprocessing.size, preprocessing.mean, preprocessing.std)
            dataset = OneByOne(rows[:count] if reader == "table" else paths[:count], reader, transform)
            return {f"{workers} workers": per_image(dataset, workers, batch) for workers in (0, 2)}

        table = []
        for name in EARLIER:
            settings = recipe.load(name, {"image_size": 48})
            preprocessing = Preprocessing.of(settings, train)
            runs = earlier(name, preprocessing, len(paths), BATCH)
            runs["ours"] = whole_batch(settings, preprocessing, images, BATCH)
            seconds = bars.medians(runs, arguments.repeats)
            rates = {key: len(images if key == "ours" else paths) / value for key, value in seconds.items()}
            times = rates["ours"] / max(rates["0 workers"], rates["2 workers"])
            table.append([name, *rates.values(), times])
            judged.append(bars.at_least(f"{name}: times the images/s of its pipeline at 48 px", times, TIMES))
        print(f"\nimages/s at 48 px, batches of {BATCH}")
        bars.table(["recipe", "one by one, 0 workers", "2 workers", "ours", "times the better"], table)

        # One round for all three, so that the step is timed as often as the rest and no more.
        few = min(arguments.large_faces, len(paths))
        measured = {"step": training_step(224, device)}
        for name in LARGE:
            settings = recipe.load(name)
            preprocessing = Preprocessing.of(settings, train)
            measured |= {f"{name} {key}": run for key, run in earlier(name, preprocessing, few, STEP_BATCH).items()}
            measured[f"{name} ours"] = whole_batch(settings, preprocessing, images[:few], STEP_BATCH)
        seconds = bars.medians(measured, arguments.repeats)
        step = STEP_BATCH * (STEPS if device.type == "cuda" else 1) / seconds["step"]
        table = []
        for name in LARGE:
            rates = {key: few / seconds[f"{name} {key}"] for key in ("0 workers", "2 workers", "ours")}
            share = step / rates["ours"]
            one_by_one = step / max(rates["0 workers"], rates["2 workers"])
            table.append([name, *rates.values(), step, one_by_one, share])
            judged.append(bars.at_most(f"{name}: input's share of a float32 step at 224 px", share, SHARE))
        print(f"\nimages/s at 224 px, batches of {STEP_BATCH}; the step is a whole ResNet18's, forward to optimiser")
        bars.table(
            ["recipe", "one by one, 0 workers", "2 workers", "ours", "step", "one by one / step", "ours / step"], table
        )
    return bars.judge(judged)


if __name__ == "__main__":
    sys.exit(bars.run(main))
