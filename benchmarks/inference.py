"""How long an answer takes: from the command line, in a program, for a folder, and from each exported file.

Without ``--run`` the model in the box is measured, or where the box is empty an untrained `fast` network: it takes the
same time. The exports are made anew, so this needs the extra ``onnx``.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import bars
import numpy as np
import skimage.data
import torch
from PIL import Image

from fer_utils import box, checkpoint, detection, export, models, recipe, sources
from fer_utils.export import TorchEngine
from fer_utils.faces import Splits
from fer_utils.inference import Classifier
from fer_utils.preprocessing import Preprocessing
from fer_utils.runs import Run

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

PACKAGED: Any = skimage.data
PHOTO = Path(PACKAGED.__file__).parent / "astronaut.png"
FILES = 2000
"""Faces in the folder that is answered."""


def the_run(given: str | None, splits: Splits, folder: Path) -> Run:
    """Return the run that was named, or one that holds the box's network, or an untrained `fast`."""
    if given:
        return Run.open(given)
    run = Run.create(folder / "run")
    if (box.WEIGHTS / "box.json").is_file():
        engine = box.open_model()
        assert isinstance(engine, TorchEngine)
        settings, preprocessing, model = engine.description.recipe, engine.description.preprocessing, engine.model
    else:
        settings = recipe.load("fast")
        preprocessing, model = Preprocessing.of(settings, splits.train), models.build(settings)
    run.write_recipe(settings)
    run.write_environment(splits, "cpu", "float32", torch.get_num_threads())
    checkpoint.save(run.file("best.ckpt"), checkpoint.model_state(model, preprocessing, settings, 1))
    return run


def seconds_of_the_command(model: Path, repeats: int) -> float:
    """Return the median seconds of `python -m fer_utils.inference PHOTO`, start-up included."""
    taken = []
    for _ in range(repeats):
        start = time.perf_counter()
        subprocess.run(
            [sys.executable, "-m", "fer_utils.inference", str(PHOTO), "--model", str(model), "--json"],
            check=True,
            capture_output=True,
        )
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


def of_a_folder(classifier: Classifier, faces: np.ndarray, folder: Path) -> tuple[float, float]:
    """Return files a second, and by how many MB the process grew over the second half of them."""
    folder.mkdir()
    for number in range(FILES):
        Image.fromarray(faces[number % len(faces)]).save(folder / f"{number:05}.png")
    start, middle = time.perf_counter(), 0
    for number, _ in enumerate(classifier.predict(folder)):
        if number == FILES // 2:
            middle = _peak()
    return FILES / (time.perf_counter() - start), (_peak() - middle) / 1e6


def _peak() -> int:
    if resource is None:
        return 0
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def main() -> int:
    """Measure, print, judge."""
    parser = bars.parser(__doc__)
    parser.add_argument("--run", help="a run to measure")
    parser.add_argument("--repeats", type=int, default=3, help="times that the command is run")
    arguments = parser.parse_args()
    print(f"{bars.machine()}, {torch.get_num_threads()} threads")
    splits = sources.load(arguments.data)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        run = the_run(arguments.run, splits, folder)
        made = export.export(run, splits, folder / "export")
        print(f"\n{run.recipe.name}, exported:\n\n{export.table(made)}\n")
        weights = folder / "export" / export.FILES["safetensors"]
        start = time.perf_counter()
        classifier = Classifier.from_file(weights)
        loading = time.perf_counter() - start
        photo = detection.to_grey(Image.open(PHOTO))
        detection.find_faces(photo)
        searching = bars.medians({"search": lambda: detection.find_faces(photo)}, 10)["search"]
        rate, growth = of_a_folder(classifier, splits.train.images, folder / "files")
        command = seconds_of_the_command(weights, arguments.repeats)
    bars.table(
        ["what", "value"],
        [
            ["the command on a photo, start-up included, s", command],
            ["loading the model, s", loading],
            ["searching a photo of 512 × 512, s", searching],
            ["files of a folder, a second", rate],
            ["memory that a thousand more files take, MB", growth],
        ],
    )
    by_format = {item.format: item for item in made}
    plain, quantised = by_format["safetensors"].throughput, by_format["int8"].throughput
    assert plain is not None
    assert quantised is not None
    return bars.judge(
        [
            bars.at_most("the command on a photo, start-up included, s", command, 5.0),
            bars.at_most("loading the model, s", loading, 1.0),
            bars.at_most("memory that a thousand more files take, MB", growth, 20.0),
            bars.at_least("int8 over PyTorch, faces a second", quantised / plain, 1.0),
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
