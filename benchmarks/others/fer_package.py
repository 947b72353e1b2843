"""The networks of the pip package `fer` on faces, in the Python that has them: what `benchmarks/inference.py` starts.

    PYTHON fer_package.py FACES OUT --timed 256 --repeats 3 --batches 1 32 128 256

FACES is an array file, uint8 (N, 48, 48). OUT, a folder, gets the probabilities float32 (N, 7) of each network in the
package's order of emotions, ``keras.npy`` and ``tflite.npy``, and ``fer.json``: versions, sizes and times.

The preprocessing is that of `FER.detect_emotions` in `fer/fer.py` 25.10.3, from where it has cut a face out: resized by
OpenCV to the network's input, bytes scaled to -1 … 1. The package ships one network twice. By default it runs the
TensorFlow Lite file, a face at a time; with ``use_tflite=False`` the Keras file, all faces at once. Here both take
batches of any size, and Keras its compiled call, which is faster than the package's own. Threads are as the package
leaves them. Nothing here is of this suite, which that Python does not have.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import importlib.util
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

Network = Callable[[npt.NDArray[np.float32]], npt.NDArray[np.float32]]

SINGLE = 50
"""Times that one face is answered; the latency is the median."""


def prepared(faces: npt.NDArray[np.uint8], size: tuple[int, int]) -> npt.NDArray[np.float32]:
    """Return faces uint8 (N, H, W) as the networks take them: float32 (N, *size, 1), -1 … 1."""
    resized = np.stack([cv2.resize(face, size[::-1]) for face in faces]).astype(np.float32)
    return (resized[..., None] / np.float32(255) - np.float32(0.5)) * np.float32(2)


def lite(tensorflow: Any, path: Path, size: tuple[int, int], batch: int) -> Network:
    """Return a TensorFlow Lite network for batches of so many faces."""
    interpreter = tensorflow.lite.Interpreter(model_path=str(path))
    taken, given = interpreter.get_input_details()[0]["index"], interpreter.get_output_details()[0]["index"]
    interpreter.resize_tensor_input(taken, [batch, *size, 1])
    interpreter.allocate_tensors()

    def run(inputs: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        interpreter.set_tensor(taken, inputs)
        interpreter.invoke()
        found: npt.NDArray[np.float32] = interpreter.get_tensor(given)
        return found

    return run


def answers(
    network: Network, faces: npt.NDArray[np.uint8], size: tuple[int, int], batch: int
) -> npt.NDArray[np.float32]:
    """Return probabilities float32 (N, 7), N a multiple of ``batch``."""
    starts = range(0, len(faces), batch)
    return np.concatenate([network(prepared(faces[start : start + batch], size)) for start in starts])


def seconds(function: Callable[[], object]) -> float:
    """Return how long a call takes."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def main() -> int:
    """Answer all faces, time some of them, write both."""
    parser = argparse.ArgumentParser(description="Run the networks of the package fer; see benchmarks/inference.py.")
    parser.add_argument("faces", type=Path, help="array file, uint8 (N, 48, 48)")
    parser.add_argument("out", type=Path, help="folder of the answers")
    parser.add_argument("--timed", type=int, default=256, help="faces of a measured pass, a multiple of each batch")
    parser.add_argument("--repeats", type=int, default=3, help="measured passes")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 32, 128, 256], help="faces at once")
    arguments = parser.parse_args()
    # Its advice would hide an error's message.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    # Found, not imported: the package would ask for its face detectors, which are not measured.
    found = importlib.util.find_spec("fer")
    if found is None or found.origin is None:
        print(f"{sys.executable} has no package fer", file=sys.stderr)
        return 2
    data = Path(found.origin).parent / "data"
    tensorflow = importlib.import_module("tensorflow")

    model = tensorflow.keras.models.load_model(data / "emotion_model.hdf5", compile=False)
    size: tuple[int, int] = tuple(model.input_shape[1:3])
    smaller = data / "emotion_model_quantized.tflite"
    networks: dict[str, dict[int, Network]] = {
        "keras": dict.fromkeys([1, *arguments.batches], model.predict_on_batch),
        "tflite": {batch: lite(tensorflow, smaller, size, batch) for batch in {1, *arguments.batches}},
    }
    faces = np.load(arguments.faces)
    timed = faces[np.arange(arguments.timed) % len(faces)]
    passes: dict[tuple[str, int], list[float]] = {}
    single: dict[str, list[float]] = {}
    for name, by_batch in networks.items():
        np.save(arguments.out / f"{name}.npy", answers(by_batch[1], faces, size, 1))
        for batch in arguments.batches:
            answers(by_batch[batch], timed[:batch], size, batch)  # what is compiled or allocated at the first call
            passes[name, batch] = []
        single[name] = [
            seconds(partial(answers, by_batch[1], timed[i : i + 1], size, 1)) for i in range(min(SINGLE, len(timed)))
        ]
    # They take turns, so that another program's load on the machine falls on all alike.
    for _ in range(arguments.repeats):
        for (name, batch), taken in passes.items():
            taken.append(seconds(partial(answers, networks[name][batch], timed, size, batch)))
    files = {"keras": data / "emotion_model.hdf5", "tflite": smaller}
    values = {
        "versions": {name: importlib.metadata.version(name) for name in ("fer", "keras")}
        | {"tensorflow": tensorflow.__version__},
        "parameters": model.count_params(),
        "networks": {
            name: {
                "bytes": files[name].stat().st_size,
                "latency": statistics.median(single[name]),
                "rates": {
                    batch: arguments.timed / statistics.median(passes[name, batch]) for batch in arguments.batches
                },
            }
            for name in networks
        },
    }
    (arguments.out / "fer.json").write_text(json.dumps(values), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
