"""How long an answer takes: from the command line, in a program, for a folder, and from each exported file.

Without ``--run`` the model in the box is measured, or where the box is empty an untrained `fast` network: it takes the
same time. The exports are made anew, so this needs the extra ``onnx``.

The pip package `fer` is set beside them on the same faces, where it is installed. It wants another torch than this
suite, so ``--fer`` names the Python of an environment of its own; ``others/fer_package.py`` runs there. Ours and its
networks are timed from the bytes of a face to probabilities, one program after the other.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import bars
import numpy as np
import skimage.data
import torch
from PIL import Image

from fer_utils import box, checkpoint, detection, evaluation, export, metrics, models, recipe, sources
from fer_utils.audit import audit
from fer_utils.emotions import EMOTIONS, FROM_CHALLENGE
from fer_utils.export import Format, OnnxEngine, Probabilities, TorchEngine
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

GET_FER: Final = (
    "python -m venv fer-venv && fer-venv/bin/pip install tensorflow opencv-python-headless && "
    "fer-venv/bin/pip install --no-deps fer==25.10.3, then --fer fer-venv/bin/python"
)
OURS: Final[dict[Format, str]] = {"safetensors": "ours, PyTorch", "onnx": "ours, ONNX", "int8": "ours, ONNX int8"}
THEIRS: Final = {"keras": "fer, Keras", "tflite": "fer, TFLite (its default)"}
TIMED: Final = 256
"""Faces of a measured pass; a multiple of each of ``BATCHES``."""
BATCHES: Final = (1, 32, 128, 256)
PASSES: Final = 3
SINGLE: Final = 50
"""Times that one face is answered."""


@dataclass(frozen=True)
class Measured:
    """One network: how many parameters, its file in bytes, median seconds for a face, faces a second by batch size."""

    name: str
    parameters: int
    bytes: int
    latency: float
    rates: dict[int, float]
    probabilities: Probabilities

    @property
    def best(self) -> int:
        """The batch size with the highest rate."""
        return max(self.rates, key=lambda batch: self.rates[batch])


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
        done = subprocess.run(
            [sys.executable, "-m", "fer_utils.inference", str(PHOTO), "--model", str(model), "--json"],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise SystemExit(f"the command failed:\n{done.stderr[-2000:]}")
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


def python_with_fer(given: str | None) -> str | None:
    """Return the Python that has `fer`: the one given, else this one if it has; None where neither."""
    if given is not None:
        return given
    here = all(importlib.util.find_spec(name) is not None for name in ("fer", "tensorflow"))
    return sys.executable if here else None


def ours(files: Path, made: list[export.Exported], faces: np.ndarray) -> list[Measured]:
    """Measure the exported files on faces uint8 (N, 48, 48)."""
    engines = {}
    for name in OURS:
        engine = export.open_file(files / export.FILES[name])
        assert isinstance(engine, TorchEngine | OnnxEngine)
        engines[name] = engine
    assert isinstance(engines["safetensors"], TorchEngine)
    parameters = sum(parameter.numel() for parameter in engines["safetensors"].model.parameters())
    timed = faces[np.arange(TIMED) % len(faces)]

    def in_batches(engine: TorchEngine | OnnxEngine, batch: int) -> None:
        engine.batch_size = batch
        engine(timed)

    probabilities = {name: engine(faces) for name, engine in engines.items()}
    # Each by itself: onnxruntime's threads spin on after an answer, on cores that torch wants.
    single, passes = {}, {}
    for name, engine in engines.items():
        single[name] = bars.medians({"one": partial(engine, timed[:1])}, SINGLE)["one"]
        passes[name] = bars.medians(
            {str(batch): partial(in_batches, engine, batch) for batch in BATCHES},
            PASSES,
        )
    sizes = {item.format: item.bytes for item in made}
    return [
        Measured(
            title,
            parameters,
            sizes[name],
            single[name],
            {batch: TIMED / passes[name][str(batch)] for batch in BATCHES},
            probabilities[name],
        )
        for name, title in OURS.items()
    ]


def theirs(python: str, faces: np.ndarray, folder: Path) -> tuple[list[Measured], str]:
    """Measure the networks of `fer` on the same faces in another Python; return them and the versions there."""
    folder.mkdir()
    np.save(folder / "faces.npy", faces)
    program = Path(__file__).parent / "others" / "fer_package.py"
    sizes = [str(batch) for batch in BATCHES]
    command = [python, str(program), str(folder / "faces.npy"), str(folder), "--timed", str(TIMED)]
    command += ["--repeats", str(PASSES), "--batches", *sizes]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{python} cannot run the networks of fer:\n{done.stderr[-2000:]}")
    values = json.loads((folder / "fer.json").read_text(encoding="utf-8"))
    measured = []
    for name, title in THEIRS.items():
        known = values["networks"][name]
        # The package numbers the emotions as the challenge does.
        answered = np.load(folder / f"{name}.npy").astype(np.float64)
        probabilities = np.empty((len(faces), len(EMOTIONS)))
        probabilities[:, list(FROM_CHALLENGE)] = answered / answered.sum(axis=1, keepdims=True)
        rates = {int(batch): rate for batch, rate in known["rates"].items()}
        measured.append(Measured(title, values["parameters"], known["bytes"], known["latency"], rates, probabilities))
    return measured, ", ".join(f"{name} {version}" for name, version in values["versions"].items())


def against_fer(python: str, splits: Splits, files: Path, made: list[export.Exported], folder: Path) -> list[bars.Bar]:
    """Print ours and the networks of `fer` side by side; return what is held against a bar.

    Held against `fer` is the accuracy of our least accurate file, against its most accurate one. Speeds are shown and
    have no bar: its network has a fiftieth of our parameters and less.
    """
    part = splits.evaluation_part()
    faces = splits[part]
    clean = audit(splits, near=False).clean[part]
    mine = ours(files, made, faces.images)
    other, versions = theirs(python, faces.images, folder)
    right = {item.name: item.probabilities.argmax(axis=1) == faces.targets for item in (*mine, *other)}
    print(f"{versions}\n{part} faces of {splits.source} {splits.location}, accuracy in percent:\n")
    header = ["network", "parameters", "MB", "one face, ms", "faces/s by 128", "faces/s", "by"]
    rows: list[list[object]] = []
    for item in (*mine, *other):
        times = [item.latency * 1e3, item.rates[128], item.rates[item.best], item.best]
        shares = [f"{100 * right[item.name][chosen].mean():.2f}" for chosen in (slice(None), clean)]
        rows.append([item.name, f"{item.parameters:,}", item.bytes / 1e6, *times, *shares])
    bars.table([*header, f"all {len(faces):,}", f"clean {clean.sum():,}"], rows)
    print()
    least = min(mine, key=lambda item: right[item.name].sum())
    accurate = max(other, key=lambda item: right[item.name].sum())
    for title, chosen in (("all", np.ones_like(clean)), ("clean", clean)):
        found = metrics.compare(
            least.probabilities[chosen], accurate.probabilities[chosen], faces.targets[chosen]
        ).difference
        print(f"{least.name} over {accurate.name}, {title} faces, paired 95%: {found.percent(2)}")
    if splits.synthetic:
        return []  # neither network was trained on drawn faces
    gained = 100 * float(right[least.name].mean() - right[accurate.name].mean())
    return [bars.at_least("accuracy over fer's, points", gained, 0.0)]


def main() -> int:
    """Measure, print, judge."""
    parser = bars.parser(__doc__)
    parser.add_argument("--run", help="a run to measure")
    parser.add_argument("--repeats", type=bars.positive, default=3, help="times that the command is run")
    parser.add_argument("--fer", metavar="PYTHON", help="a Python that has the packages fer and tensorflow")
    arguments = parser.parse_args()
    other = python_with_fer(arguments.fer)
    if other is not None and shutil.which(other) is None:
        parser.error(f"--fer {other}: there is no such program")
    print(f"{bars.machine()}, {torch.get_num_threads()} threads")
    if arguments.run:
        # An export is made of the faces of the training; a run knows them where no others are named.
        named = None if arguments.data == "synthetic" else arguments.data
        splits = evaluation.faces_of(Run.open(arguments.run), named)
    else:
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
        if other is not None:
            compared = against_fer(other, splits, folder / "export", made, folder / "fer")
            print()
        else:
            compared = []
            print(f"The pip package fer is not set beside them: {GET_FER}\n")
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
            *compared,
        ]
    )


if __name__ == "__main__":
    sys.exit(bars.run(main))
