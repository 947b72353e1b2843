"""Emotions of your own faces: photos, folders, tables, arrays.

    python -m fer_utils.inference PHOTO... [--json]                    what the model in the box says
    python -m fer_utils.inference FOLDER --model RUN --out DIR         another model; a table of the answers

A photo is searched for faces; a small grey picture of FER2013's kind is a face itself. Nothing here imports torch
before it is needed, so that a wrong name is told at once.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import io
import itertools
import json
import os
import sys
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
import numpy.typing as npt

from fer_utils.detection import Box, DetectorMissing, as_face, cut_out, find_faces, is_face, to_grey
from fer_utils.emotions import EMOTIONS, FROM_CHALLENGE
from fer_utils.faces import SIZE
from fer_utils.files import expanded, make_writable, replacing
from fer_utils.pictures import Input, InputError, pictures

if TYPE_CHECKING:
    import pandas as pd

    from fer_utils.export import Engine
    from fer_utils.runs import Run

Detect = bool | Literal["auto"]
Grey = npt.NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class Face:
    """One face of a picture.

    Attributes:
        box: where it is; the whole picture where that is the face.
        label: its most probable emotion.
        probabilities: by emotion, in the canonical order; they sum to 1.
        crop: what the network saw, uint8 (48, 48).
    """

    box: Box
    label: str
    probabilities: dict[str, float]
    crop: Grey


@dataclass(frozen=True, eq=False)
class Prediction:
    """The answer to one input.

    Attributes:
        source: the input's name: a path, ``table.csv[17]``, or its number.
        label: emotion of the largest face; None where there is none.
        probabilities: of that face, by emotion; None likewise.
        faces: all faces, the largest first.
        size: width and height of the upright picture; None where it could not be read.
        error: why there is no answer; None where there is one, be it that there is no face.
    """

    source: str
    label: str | None
    probabilities: dict[str, float] | None
    faces: tuple[Face, ...]
    size: tuple[int, int] | None
    error: str | None = None

    @property
    def message(self) -> str:
        """The answer in a line of text; line breaks and control characters of its name are written out."""
        if self.error is not None:
            return _in_a_line(f"{self.source}: error: {self.error}")
        if self.label is None:
            return _in_a_line(f"{self.source}: no face found")
        told = [f"{face.label} {face.probabilities[face.label]:.0%}" for face in self.faces]
        return _in_a_line(f"{self.source}: {', '.join(told)}" + (f" ({len(told)} faces)" if len(told) > 1 else ""))

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {
            "source": self.source,
            "label": self.label,
            "probabilities": self.probabilities,
            "faces": [
                {"box": face.box._asdict(), "label": face.label, "probabilities": face.probabilities}
                for face in self.faces
            ],
            "size": None if self.size is None else {"width": self.size[0], "height": self.size[1]},
            "error": self.error,
        }


def _in_a_line(text: str) -> str:
    """Write out what would break the line, or that a terminal takes for a command: a file's name may hold either."""
    return "".join(
        ascii(char)[1:-1] if unicodedata.category(char) in ("Cc", "Zl", "Zp") else char  # control, line, paragraph
        for char in text
    )


# -- the classifier ---------------------------------------------------------------------------------------------------


class Classifier:
    """A trained network with everything that it takes to ask it about pictures.

    Make one with ``pretrained``, ``from_run``, ``from_file`` or ``named``.

    Attributes:
        engine: gives probabilities for faces; its ``description`` holds recipe, preprocessing and temperature.
        name: what it was made from.
        run: directory of the run that it was made from; None for a file or a model in the box.
        note: where its name in ``named`` means a run and a model in the box, which one this is and how to give the
            other; empty otherwise.
    """

    def __init__(self, engine: Engine, name: str, run: Path | None = None) -> None:
        self.engine = engine
        self.name = name
        self.run = run
        self.note = ""

    @classmethod
    def pretrained(cls, name: str | None = None, device: str | None = "cpu") -> Classifier:
        """Return a model from the box, by default its first; its SHA-256 is checked.

        Raises:
            ExportError: the box is empty or has no such model, or its file is missing or was altered.
            DeviceError: the device is not there.
        """
        from fer_utils import box

        chosen, _ = box.entry(name)
        return cls(box.open_model(chosen, device), chosen)

    @classmethod
    def from_run(
        cls, run: Run | str | Path, which: Literal["best", "last"] = "best", device: str | None = "cpu"
    ) -> Classifier:
        """Return a run's network, with the temperature that its evaluation fitted.

        Raises:
            RunError: there is no such run.
            CheckpointError: its checkpoint is missing, damaged, or of another schema or label order.
            DeviceError: the device is not there.
        """
        from fer_utils import export
        from fer_utils.devices import choose_device
        from fer_utils.runs import Run

        opened = run if isinstance(run, Run) else Run.open(run)
        return cls(export.of_run(opened, which, choose_device(device)), opened.path.name, opened.path)

    @classmethod
    def from_file(cls, path: str | Path, device: str | None = "cpu") -> Classifier:
        """Return the network in a safetensors or ONNX file that ``fer_utils.export`` made.

        Raises:
            ExportError: there is no such file, or it is of another kind, version or label order, damaged or altered.
            DeviceError: the device is not there.
        """
        from fer_utils import export

        return cls(export.open_file(path, device), Path(path).name)

    @classmethod
    def named(
        cls, name: str | None = None, device: str | None = "cpu", *, prefer: Literal["box", "run"] = "box"
    ) -> Classifier:
        """Return the model that a user means: one of the box by name, a run, or an exported file.

        A name that is the path of a file or of a run's directory means that. Where there is both a model of that name
        in the box and a run under ``outputs/``, it is the one that is preferred, and ``note`` says so; the path
        ``outputs/NAME`` always means the run. Without a name it is the box's first or the newest run: the one that is
        preferred, or else the other.

        Raises:
            ExportError, RunError, CheckpointError, DeviceError: as the others; the message says what there is.
        """
        from fer_utils import box

        filled = (box.WEIGHTS / "box.json").is_file()
        if name is not None and Path(name).is_file():
            return cls.from_file(name, device)
        if filled and name is None and prefer == "box":
            return cls.pretrained(device=device)
        from fer_utils import runs
        from fer_utils.runs import Run, RunError

        boxed = box.listed().get(name) if filled and name is not None else None
        if name is not None and boxed is not None and not (Path(name) / "run.json").is_file():
            own = runs.OUTPUTS / name
            is_run = (own / "run.json").is_file()
            if not is_run or prefer == "box":
                made = cls.pretrained(name, device)
                if is_run:
                    made.note = f"{name!r} is the model in the box; for the run of that name give its path, {own}"
                return made
        try:
            run = Run.newest(holding="best.ckpt") if name is None else Run.open(name)
        except RunError as error:
            there = f"; the box has {', '.join(box.listed())}" if filled else ""
            raise RunError(f"{error}{there}") from None
        if run is None:
            return cls.pretrained(device=device)
        made = cls.from_run(run, device=device)
        if boxed is not None:
            file = box.WEIGHTS / boxed.file
            made.note = f"{name!r} is the run {run.path}; for the model of that name in the box give its file, {file}"
        return made

    def probabilities(self, faces: Grey) -> npt.NDArray[np.float64]:
        """Return float64 (N, 7), rows summing to 1, for faces uint8 (N, 48, 48).

        They are calibrated where a temperature was fitted: of a run, by its evaluation.

        Raises:
            InputError: another type or shape.
            ExportError: an answer is not finite.
        """
        if faces.dtype != np.uint8 or faces.shape[1:] != (SIZE, SIZE):
            raise InputError(f"faces must be uint8 (N, {SIZE}, {SIZE}), not {faces.dtype} {faces.shape}")
        found = self.engine(faces)
        if not np.isfinite(found).all():
            from fer_utils.export import ExportError

            raise ExportError(
                f"{self.name} gives probabilities that are not finite: its weights are, or its training diverged; use "
                "another model, or train it again"
            )
        return found

    def predict(self, images: Input, *, detect: Detect = "auto", batch_size: int = 256) -> Iterator[Prediction]:
        """Answer each picture in turn; one that cannot be read gets an ``error`` and the others their answers.

        Memory is bounded by a batch, whatever the number of inputs: paths and generators are read as they are needed. A
        table alone is read whole.

        Args:
            images: files, folders (all pictures in them, sorted), tables (a face in each row), PIL images, arrays and
                tensors, or an iterable of these. An array is one picture (H, W) or (H, W, 1 to 4), or several (N, H, W)
                or (N, H, W, 1 to 4), with 2 for grey and 4 for RGB with transparency, which is laid on white; a tensor
                has its channels first: (H, W), (N, H, W) or (N, 1 to 4, H, W). Values are uint8, or float in [0, 1].
            detect: True searches pictures for faces, False takes each for a face, ``auto`` takes a small and nearly
                square picture, or a larger square grey one, for a face and searches the others.
            batch_size: faces that the network sees at once.

        Yields:
            One Prediction for each picture, in order.

        Raises:
            InputError: ``detect`` or ``batch_size`` is wrong; told at once.
            ExportError: the network's answers are not finite.
            DetectorMissing: OpenCV has no detector with it.
        """
        if detect not in (True, False, "auto"):
            raise InputError(f"detect must be True, False or 'auto', not {detect!r}")
        if batch_size < 1:
            raise InputError(f"batch_size must be at least 1, not {batch_size}")
        return self.answer(located(images, detect=detect), batch_size)

    def answer(self, pictures: Iterable[Located], batch_size: int = 256) -> Iterator[Prediction]:
        """Answer pictures in which the faces have been found already, in turn."""
        waiting: list[Located] = []
        faces = 0
        for picture in pictures:
            waiting.append(picture)
            faces += len(picture.boxes)
            # Pictures without a face must not pile up either.
            if faces >= batch_size or len(waiting) >= 4 * batch_size:
                yield from self._answer(waiting)
                waiting, faces = [], 0
        yield from self._answer(waiting)

    def _answer(self, pictures: Sequence[Located]) -> Iterator[Prediction]:
        crops = [crop for picture in pictures for crop in picture.crops]
        rows = iter(self.probabilities(np.stack(crops)) if crops else np.empty((0, len(EMOTIONS))))
        for picture in pictures:
            faces = []
            for box, crop in zip(picture.boxes, picture.crops, strict=True):
                row = next(rows)
                probabilities = dict(zip(EMOTIONS, row.tolist(), strict=True))
                faces.append(Face(box, EMOTIONS[int(row.argmax())], probabilities, crop))
            first = faces[0] if faces else None
            yield Prediction(
                picture.source,
                first.label if first else None,
                first.probabilities if first else None,
                tuple(faces),
                picture.size,
                picture.error,
            )


# -- finding faces ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Located:
    """A picture in which the faces have been found: their squares, largest first, and crops uint8 (48, 48)."""

    source: str
    size: tuple[int, int] | None
    boxes: tuple[Box, ...]
    crops: tuple[Grey, ...]
    error: str | None = None


def located(images: Input, *, detect: Detect = "auto") -> Iterator[Located]:
    """Find the faces of each picture in turn; see ``Classifier.predict``.

    Raises:
        DetectorMissing: OpenCV has no detector with it.
    """
    for item in pictures(images):
        if isinstance(item.picture, InputError):
            yield Located(item.source, None, (), (), str(item.picture))
            continue
        image = item.picture
        if not detect or (detect == "auto" and is_face(image)):
            yield Located(item.source, image.size, (Box(0, 0, *image.size),), (as_face(image),))
            continue
        grey = to_grey(image)
        boxes = tuple(find_faces(grey))
        yield Located(item.source, image.size, boxes, tuple(cut_out(grey, box) for box in boxes))


# -- answers as a table -----------------------------------------------------------------------------------------------


def to_table(predictions: Iterable[Prediction]) -> pd.DataFrame:
    """Return a row per face, and one for each input without any, in order.

    Columns: source; face (0 is the largest, missing where there is none); left, top, right, bottom (pixels); label;
    p_angry ... p_surprise; error (text, empty where there is an answer).
    """
    import pandas as pd

    rows: list[dict[str, Any]] = []
    for prediction in predictions:
        for index, face in enumerate(prediction.faces):
            probabilities = {f"p_{emotion}": value for emotion, value in face.probabilities.items()}
            rows.append(
                {"source": prediction.source, "face": index, **face.box._asdict(), "label": face.label, **probabilities}
            )
        if not prediction.faces:
            rows.append({"source": prediction.source, "error": prediction.error or ""})
    numbers = dict.fromkeys(("face", *Box._fields), "Int64")
    scores = {f"p_{emotion}": "float64" for emotion in EMOTIONS}
    frame = pd.DataFrame(rows, columns=["source", "face", *Box._fields, "label", *scores, "error"])
    # Where there is no error at all, pandas takes the column for one of numbers.
    frame["error"] = frame["error"].astype(object).fillna("")
    # "string" keeps a missing label missing in every version of pandas.
    return frame.astype({"source": "str", **numbers, "label": "string", **scores, "error": "str"})


def to_challenge_numbers(table: pd.DataFrame) -> npt.NDArray[np.int64]:
    """Return one number for each input of a table of answers, as the challenge and the published tables do.

    0 anger, 1 disgust, 2 fear, 3 happiness, 4 sadness, 5 surprise, 6 neutral; -1 where there is no face.
    """
    number = {EMOTIONS[target]: index for index, target in enumerate(FROM_CHALLENGE)}
    first = table.loc[table["face"].fillna(0) == 0, "label"]
    numbers: npt.NDArray[np.int64] = first.map(number).fillna(-1).to_numpy(dtype=np.int64)
    return numbers


def write_answers(table: pd.DataFrame, folder: Path) -> None:
    """Write a table of answers as ``predictions.parquet`` and ``predictions.csv``, and ``test_prediction.npy``.

    The last holds ``to_challenge_numbers``: one number for each input, a table's in the order of its rows. Each file is
    written whole or not at all.
    """
    with replacing(folder / "predictions.parquet") as aside:
        table.to_parquet(aside, index=False)
    # Python quotes a text with the line's end that it writes, "\n"; readers take "\r" for one as well.
    returns = table[["source", "error"]].apply(lambda texts: texts.str.contains("\r", regex=False)).any(axis=None)
    with replacing(folder / "predictions.csv") as aside:
        table.to_csv(aside, index=False, quoting=csv.QUOTE_NONNUMERIC if returns else csv.QUOTE_MINIMAL)
    with replacing(folder / "test_prediction.npy") as aside:
        np.save(aside, to_challenge_numbers(table))


# -- command line -----------------------------------------------------------------------------------------------------

_DETECT: Final[dict[str, Detect]] = {"auto": "auto", "yes": True, "no": False}


def main(arguments: Sequence[str] | None = None) -> int:
    """Answer the pictures named on the command line.

    Returns:
        0 when each got an answer, be it that there is no face; 1 when one could not be read; 2 when none could be
        asked for, or the answers could not be written to the directory of ``--out``.
    """
    parser = argparse.ArgumentParser(
        prog="python -m fer_utils.inference", description="Say which emotion the faces in your pictures show."
    )
    parser.add_argument("inputs", nargs="+", metavar="PHOTO", help="photo, folder, or table (CSV, parquet) of faces")
    parser.add_argument("--json", action="store_true", help="print a line of JSON for each picture")
    parser.add_argument(
        "--model",
        help="a model in the box, a run, or a .safetensors or .onnx file; by default the box's. A name that both the "
        "box and outputs/ have means the box's: give outputs/NAME for the run",
    )
    parser.add_argument(
        "--detect",
        choices=sorted(_DETECT),
        default="auto",
        help="search pictures for faces: yes, no (each is a face), or by default auto (small square ones are faces)",
    )
    parser.add_argument("--device", default="cpu", help="auto, cpu, cuda, cuda:N or mps; by default cpu")
    parser.add_argument("--out", type=expanded, metavar="DIR", help="write the answers there as tables, too")
    given = parser.parse_args(arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):
        # Names need not fit the encoding of whatever takes the answers, as on Windows that of a file.
        sys.stdout.reconfigure(errors="backslashreplace")
    if not any(_is_there(name) for name in given.inputs):
        # Nothing to load a model for.
        for item in pictures(given.inputs):
            print(_in_a_line(f"{item.source}: error: {item.picture}"), file=sys.stderr)
        return 2
    made: list[Path] = []
    if given.out is not None:
        try:
            made = [folder for folder in (given.out, *given.out.parents) if not folder.exists()]
            make_writable(given.out)
        except OSError as error:
            print(
                f"--out {given.out}: no tables can be written there ({error.strerror}); expected a directory, new or "
                "there already: give another",
                file=sys.stderr,
            )
            return 2

    try:
        return _answer_all(given)
    except (RuntimeError, ValueError) as error:
        if not isinstance(error, _told_errors()):
            raise
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # Whoever read the answers has read enough. At exit Python would write what is left, and fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    finally:
        with contextlib.suppress(OSError):  # it has something in it
            for folder in made:
                folder.rmdir()


def _is_there(name: str) -> bool:
    try:
        return bool(name.strip()) and Path(name).expanduser().exists()
    except (OSError, RuntimeError):  # no permission, a name too long, nobody's home
        return False


def _told_errors() -> tuple[type[Exception], ...]:
    """The errors that tell a user what to do, looked up when there is one: their modules take time to import."""
    from fer_utils.checkpoint import CheckpointError
    from fer_utils.devices import DeviceError
    from fer_utils.export import ExportError
    from fer_utils.runs import RunError

    return ExportError, CheckpointError, DeviceError, RunError, DetectorMissing


def _answer_all(given: argparse.Namespace) -> int:
    from tqdm import tqdm

    failed = 0
    found = located(given.inputs, detect=_DETECT[given.detect])
    with ThreadPoolExecutor(1) as pool:
        # Importing torch takes seconds; the first picture is searched meanwhile.
        loading = pool.submit(Classifier.named, given.model, given.device)
        first = next(found, None)
        classifier = loading.result()
    if classifier.note:
        print(classifier.note, file=sys.stderr)
    answers = classifier.answer(itertools.chain([] if first is None else [first], found))

    def told() -> Iterator[Prediction]:
        nonlocal failed
        # A bar only where it takes long, on a terminal, and where the answers do not go there too.
        bar = tqdm(unit=" pictures", delay=3, disable=True if sys.stdout.isatty() else None)
        for prediction in answers:
            bar.update()
            failed += prediction.error is not None
            if given.json:
                # In ASCII: JSON's own escapes are read whatever the encoding.
                print(json.dumps(prediction.to_dict(), allow_nan=False))
            else:
                print(prediction.message, file=sys.stdout if prediction.error is None else sys.stderr)
            yield prediction
        bar.close()

    if given.out:
        # Made as the answers come, so that their crops are not kept.
        write_answers(to_table(told()), given.out)
    else:
        for _ in told():
            pass
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
