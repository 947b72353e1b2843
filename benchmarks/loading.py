"""How long each layout of the faces takes to load, against reading its bytes alone.

The reference of a folder is to read and decode its files with the fastest decoder that is installed; of the CSV,
``pandas.read_csv``; of the parquet pair, ``pyarrow.parquet.read_table``. A first load fills the cache, a second finds
it. The layout that ``--data`` has is read where it lies, the others are written to a temporary folder. Fewer faces than
FER2013's are repeated to its number, so that the fixed cost of a call does not decide. Memory is the highest resident
size of a process of its own that does nothing but load.
"""

from __future__ import annotations

import gc
import io
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

import bars
import cv2
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from torchvision.io import ImageReadMode, decode_jpeg

from fer_utils import sources
from fer_utils.emotions import EMOTIONS, FROM_CHALLENGE
from fer_utils.faces import Faces, Images, Splits
from fer_utils.sources.numbers import COMPILED

FACES: Final = 32_298
"""Training and PublicTest faces of FER2013."""

_PEAK: Final = """
import pathlib, resource, sys
from fer_utils import sources
sources.load(sys.argv[1], cache=False)
status = pathlib.Path("/proc/self/status")
if status.is_file():  # Linux, where ru_maxrss would count the program that started this one
    print(1024 * int(status.read_text().partition("VmHWM:")[2].split()[0]))
else:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(peak if sys.platform == "darwin" else peak * 1024)
"""


def main() -> int:
    """Measure, print the table and the bars, return the exit status."""
    parser = bars.parser(__doc__)
    parser.add_argument("--repeats", type=bars.positive, default=5, help="medians are over so many turns")
    arguments = parser.parse_args()
    print(bars.machine())
    splits = sources.load(arguments.data, val_fraction=0)
    print(f"{splits.source} {splits.location}: {len(splits.train) + len(splits.test):,} faces")
    print(f"a CSV's numbers: {'compiled parser' if COMPILED else 'numpy, as no compiler was there at installation'}")
    with tempfile.TemporaryDirectory() as folder:
        places = _layouts(splits, Path(folder))
        measured = _measure(places, Path(folder) / "caches", arguments.repeats)
        peaks = {layout: _peak_gigabytes(place) for layout, place in places.items()}
    limits = {"folder": 1.5, "csv": 2.0, "parquet": 1.5}
    bars.table(
        ["layout", "reference", "reference, s", "first load, s", "second load, s", "peak, GB"],
        [
            [layout, what, alone, first, second, peaks[layout]]
            for layout, (what, alone, first, second) in measured.items()
        ],
    )
    judged = []
    for layout, (what, alone, first, second) in measured.items():
        if layout in limits:
            judged.append(bars.at_most(f"{layout}, first load / {what}", first / alone, limits[layout]))
        judged.append(bars.at_most(f"{layout}, second load / first", second / first, 0.2))
    judged.append(bars.at_most("highest peak, GB", max(peaks.values()), 1.5))
    return bars.judge(judged)


def _layouts(splits: Splits, folder: Path) -> dict[str, str]:
    """Return a place for each layout: the one that was read where it lies, the others written below ``folder``."""
    train, test = _repeated(splits.train, FACES - len(splits.test)), splits.test
    places = {"folder": folder / "tree", "csv": folder / "csv", "parquet": folder / "parquet"}
    for layout, place in places.items():
        if layout == splits.source and len(splits.train) + len(test) >= FACES:
            places[layout] = Path(splits.location)
        else:
            place.mkdir()
            _WRITERS[layout](train, test, place)
    return {layout: str(place) for layout, place in places.items()} | {"synthetic": "synthetic"}


def _repeated(faces: Faces, count: int) -> Faces:
    return faces if len(faces) >= count else faces.select(np.arange(count) % len(faces))


def _write_tree(train: Faces, test: Faces, place: Path) -> None:
    for part, faces in (("train", train), ("test", test)):
        for emotion in EMOTIONS:
            (place / part / emotion).mkdir(parents=True)
        for i, (image, target) in enumerate(zip(faces.images, faces.targets, strict=True)):
            # An unlabelled test part has to lie somewhere for its files to be read.
            Image.fromarray(image).save(place / part / EMOTIONS[max(int(target), 0)] / f"{i}.jpg", quality=92)


def _write_csv(train: Faces, test: Faces, place: Path) -> None:
    text = [str(i) for i in range(256)]
    with (place / "fer2013.csv").open("w") as file:
        file.write("emotion,pixels,Usage\n")
        for usage, faces in (("Training", train), ("PublicTest", test)):
            for image, target in zip(faces.images.reshape(len(faces), -1), faces.targets, strict=True):
                label = FROM_CHALLENGE.index(int(target)) if target >= 0 else -1
                file.write(f"{label},{' '.join([text[value] for value in image.tolist()])},{usage}\n")


def _write_parquet(train: Faces, test: Faces, place: Path) -> None:
    for part, faces in (("train", train), ("test", test)):
        pixels = faces.images.size // max(len(faces), 1)
        images = pa.ListArray.from_arrays(
            pa.array(np.arange(len(faces) + 1) * pixels, pa.int32()),
            pa.array(faces.images.reshape(-1).astype(np.float64)),
        )
        labels = [FROM_CHALLENGE.index(int(target)) if target >= 0 else -1 for target in faces.targets]
        table = pa.table({"image": images, "emotion_idx": pa.array(labels, pa.int64())})
        pq.write_table(table, place / f"df_{part}.parquet.gzip", compression="gzip")


_WRITERS: Final[dict[str, Callable[[Faces, Faces, Path], None]]] = {
    "folder": _write_tree,
    "csv": _write_csv,
    "parquet": _write_parquet,
}


def _measure(places: dict[str, str], caches: Path, repeats: int) -> dict[str, tuple[str, float, float, float]]:
    """Return for each layout what its reference is, and the medians in seconds of reference, first and second load."""
    # Small and large allocations come from where they would in a fresh process.
    gc.freeze()
    references: dict[str, tuple[str, Callable[[], object]]] = {
        "folder": _fastest_decoder(Path(places["folder"])),
        "csv": ("pandas.read_csv", lambda: pd.read_csv(_only(places["csv"], ".csv"))),
        "parquet": (
            "read_table",
            lambda: [pq.read_table(_only(places["parquet"], f"df_{part}.")) for part in ("train", "test")],
        ),
        "synthetic": ("none", lambda: None),
    }
    measured = {}
    for layout, place in places.items():
        what, reference = references[layout]
        turn = iter(range(repeats + 1))

        def first(place: str = place, turn: object = turn, layout: str = layout) -> None:
            os.environ["FER_CACHE"] = str(caches / f"{layout}{next(turn)}")  # type: ignore[call-overload]
            sources.load(place)

        def second(place: str = place) -> None:
            sources.load(place)

        seconds = bars.medians({"alone": reference, "first": first, "second": second}, repeats)
        measured[layout] = (what, seconds["alone"], seconds["first"], seconds["second"])
    return measured


def _only(place: str, part: str) -> Path:
    """Return the one file at a place whose name contains ``part``."""
    path = Path(place)
    return path if path.is_file() else next(file for file in path.rglob("*") if part in file.name)


def _fastest_decoder(tree: Path) -> tuple[str, Callable[[], object]]:
    """Return the fastest way to read and decode the files of a tree, and its name; all must give the same pixels."""
    files = [str(file) for file in sorted(tree.rglob("*.jpg"))]
    if not files:
        raise SystemExit(
            f"{tree}: there is no .jpg file, and only those can be decoded for comparison: name other --data"
        )
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    sample = files[:4000]
    ways: dict[str, tuple[float, Callable[[], object]]] = {}
    for name, decode in _DECODERS.items():
        for path in files[:100]:
            data = _bytes(path)
            if not np.array_equal(decode(data), _pillow(data)):
                raise SystemExit(f"{name} decodes {path} to other pixels than Pillow")
        for threads in (1, 2):

            def run(
                some: list[str] = files, threads: int = threads, decode: Callable[[bytes], object] = decode
            ) -> None:
                _decode_all(some, threads, decode)

            start = time.perf_counter()
            run(sample)
            ways[f"{name}, {threads} thread{'s' * (threads > 1)}"] = time.perf_counter() - start, run
    best = min(ways, key=lambda name: ways[name][0])
    return best, ways[best][1]


def _decode_all(files: list[str], threads: int, decode: Callable[[bytes], object]) -> None:
    def some(start: int) -> None:
        for path in files[start : start + 500]:
            decode(_bytes(path))

    if threads == 1:
        for start in range(0, len(files), 500):
            some(start)
    else:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(some, range(0, len(files), 500)))


def _bytes(path: str) -> bytes:
    file = os.open(path, os.O_RDONLY)
    try:
        return os.read(file, 1_000_000 if os.fstat(file).st_size > 10_000 else 10_000)
    finally:
        os.close(file)


def _pillow(data: bytes) -> Images:
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("L"))


_DECODERS: Final[dict[str, Callable[[bytes], Images]]] = {
    "Pillow": _pillow,
    "OpenCV": lambda data: np.asarray(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE), np.uint8),
    "torchvision": lambda data: decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8), ImageReadMode.GRAY)[
        0
    ].numpy(),
}


def _peak_gigabytes(place: str) -> float:
    done = subprocess.run([sys.executable, "-c", _PEAK, place], check=True, capture_output=True, text=True)
    return int(done.stdout) / 1e9


if __name__ == "__main__":
    sys.exit(bars.run(main))
