"""A trained network as a file: safetensors for this suite, ONNX and torch.export for others.

    python -m fer_utils.export RUN [--out DIR] [--formats safetensors onnx int8 pt2] [--data DATA]

``model.safetensors``
    Weights in float32; recipe, preprocessing and label order as JSON text in its metadata.
``model.onnx``
    Faces uint8 (N, 48, 48) in, probabilities float32 (N, 7) out: preprocessing and temperature are inside.
``model.int8.onnx``
    The same, quantised with calibration faces from training; ``model.int8.json`` says what that costs.
``model.pt2``
    A torch.export program of the same signature, for other programs: it is never read here.

A file that is read (safetensors, ONNX) carries a digest of all it holds, so an altered one is refused.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import json
import logging
import math
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol, get_args

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

import fer_utils
from fer_utils import models
from fer_utils import recipe as recipes
from fer_utils.devices import DeviceError, choose_device
from fer_utils.emotions import EMOTIONS
from fer_utils.faces import SIZE, Splits
from fer_utils.files import expanded, make_writable, refusal, replacing, sha256, write_json
from fer_utils.prediction import predict
from fer_utils.preprocessing import Preprocessing
from fer_utils.recipe import Recipe, RecipeError

if TYPE_CHECKING:
    from fer_utils.runs import Run

Format = Literal["safetensors", "onnx", "int8", "pt2"]
Probabilities = npt.NDArray[np.float64]

FORMATS: Final[tuple[Format, ...]] = get_args(Format)
FILES: Final[dict[Format, str]] = {
    "safetensors": "model.safetensors",
    "onnx": "model.onnx",
    "int8": "model.int8.onnx",
    "pt2": "model.pt2",
}
TOLERANCE: Final = 1e-4
"""Largest difference of a probability between ONNX and PyTorch."""
CHECKED: Final = 1000
"""Faces on which an ONNX file is compared with PyTorch before it is kept."""
CALIBRATION: Final = 512
"""Training faces that the ranges of the int8 network are measured on."""

_VERSION: Final = 1
_KEY: Final = "fer_utils"
_INPUT, _OUTPUT = "faces", "probabilities"


class ExportError(RuntimeError):
    """A file cannot be written or read as a model; the message names it and says what to do."""


@dataclass(frozen=True)
class Description:
    """What travels with a model, whatever the format.

    Attributes:
        recipe: what it was trained with.
        preprocessing: what turns faces into its input, label order included.
        temperature: its logits are divided by it (Guo et al. 2017, arXiv:1706.04599); 1 where none was fitted.
        epoch: the epoch that its weights are of.
        data: source and fingerprint of the faces it was trained on.
    """

    recipe: Recipe
    preprocessing: Preprocessing
    temperature: float
    epoch: int
    data: dict[str, Any]

    def trained_on(self) -> str:
        """Return how many faces it was trained on and where they are from, in words; a run may lack its env.json."""
        if not self.data.get("faces"):
            return "unknown"
        held = self.data["faces"]["train"]
        drawn = recipes.drawn(self.recipe.train_faces, held)
        some = f"about {drawn:,} of " if drawn else ""
        return f"{some}{held:,} faces ({self.data['source']}, {self.data['fingerprint']})"

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {
            "format_version": _VERSION,
            "fer_utils": fer_utils.__version__,
            "emotions": list(EMOTIONS),
            "preprocessing": self.preprocessing.to_dict(),
            "temperature": self.temperature,
            "epoch": self.epoch,
            "data": self.data,
            "recipe": self.recipe.dump(),
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Description:
        """Read what ``to_dict`` wrote.

        Raises:
            ValueError: another version or label order, or a field is missing or wrong.
        """
        if values.get("format_version") != _VERSION:
            raise ValueError(f"has format version {values.get('format_version')}, this suite reads {_VERSION}")
        if values.get("emotions") != list(EMOTIONS):
            raise ValueError(f"label order {values.get('emotions')} is not this suite's {list(EMOTIONS)}")
        try:
            made = cls(
                recipes.parse(values["recipe"]),
                Preprocessing.from_dict(values["preprocessing"]),
                float(values["temperature"]),
                int(values["epoch"]),
                dict(values["data"]),
            )
        except (KeyError, TypeError) as error:
            raise ValueError(f"its description is incomplete: {error}") from error
        if not (math.isfinite(made.temperature) and made.temperature > 0):
            raise ValueError(f"temperature {made.temperature} is not above 0")
        return made


class Engine(Protocol):
    """Something that gives probabilities for faces."""

    description: Description

    def __call__(self, images: npt.NDArray[np.uint8]) -> Probabilities:
        """Return float64 (N, 7) with rows that sum to 1 for faces uint8 (N, 48, 48)."""


class Tempered(nn.Module):
    """A network whose logits are divided by a temperature."""

    def __init__(self, model: nn.Module, temperature: float) -> None:
        super().__init__()
        self.model = model
        self.temperature = temperature

    def forward(self, inputs: Tensor) -> Tensor:
        """Return logits (B, 7)."""
        logits: Tensor = self.model(inputs)
        return logits / self.temperature


class Deployed(nn.Module):
    """Everything from a face's bytes to its probabilities, as ONNX and torch.export hold it."""

    def __init__(self, model: nn.Module, description: Description) -> None:
        super().__init__()
        # A copy, since whoever runs it elsewhere wants no gradients.
        self.model = Tempered(copy.deepcopy(model), description.temperature).requires_grad_(False).eval()
        self.preprocessing = description.preprocessing

    def forward(self, faces: Tensor) -> Tensor:
        """Return probabilities float32 (N, 7) of faces uint8 (N, 48, 48)."""
        return torch.softmax(self.model(self.preprocessing(faces)), dim=1)


class TorchEngine:
    """A PyTorch network in float32; it sees 32 faces at once on a CPU, whose caches hold no more, and else 256."""

    def __init__(
        self,
        model: nn.Module,
        description: Description,
        device: torch.device | None = None,
        batch_size: int | None = None,
    ) -> None:
        self.description = description
        self._device = device or torch.device("cpu")
        self.model = model.eval()
        if self._device.type != "mps":
            # As the inputs are: else every convolution on a CPU lays its kernels out anew, each time.
            self.model = self.model.to(memory_format=torch.channels_last)
        self.batch_size = batch_size or (32 if self._device.type == "cpu" else 256)
        self._tempered = Tempered(self.model, description.temperature).to(self._device).eval()

    def __call__(self, images: npt.NDArray[np.uint8]) -> Probabilities:
        """Return float64 (N, 7) with rows that sum to 1 for faces uint8 (N, 48, 48)."""
        return predict(
            self._tempered, self.description.preprocessing, images, device=self._device, batch_size=self.batch_size
        )


class OnnxEngine:
    """An ONNX file, run by onnxruntime on the CPU."""

    def __init__(self, content: bytes, description: Description, batch_size: int = 256) -> None:
        runtime = _import_onnx("onnxruntime")
        options = runtime.SessionOptions()
        options.log_severity_level = 3
        self.description = description
        self.batch_size = batch_size
        self._session = runtime.InferenceSession(content, options, providers=["CPUExecutionProvider"])

    def __call__(self, images: npt.NDArray[np.uint8]) -> Probabilities:
        """Return float64 (N, 7) with rows that sum to 1 for faces uint8 (N, 48, 48)."""
        parts = [
            self._session.run([_OUTPUT], {_INPUT: np.ascontiguousarray(images[start : start + self.batch_size])})[0]
            for start in range(0, len(images), self.batch_size)
        ]
        found: Probabilities = np.concatenate([np.empty((0, len(EMOTIONS))), *parts]).astype(np.float64)
        found /= found.sum(axis=1, keepdims=True)
        return found


# -- from a run -------------------------------------------------------------------------------------------------------


def of_run(run: Run, which: Literal["best", "last"] = "best", device: torch.device | None = None) -> TorchEngine:
    """Return a run's network with the temperature that its evaluation on its own faces fitted; 1 before that.

    Raises:
        CheckpointError: the checkpoint is missing, damaged, of another schema or label order.
        RunError: ``metrics.json`` or ``env.json`` is damaged.
    """
    from fer_utils.checkpoint import load_model

    loaded = load_model(run, which, device)
    environment = run.read_json("env.json") if run.has("env.json") else {}
    # A model that was unpacked from the box was evaluated before.
    temperature = float(environment.get("temperature") or 1.0)
    if run.has("metrics.json"):
        values = run.read_json("metrics.json")
        evaluated = values.get("checkpoint", {})
        # An evaluation of another network, or on faces of somebody else, says nothing about this one.
        same = evaluated.get("epoch") == loaded.epoch and run.has("best.ckpt")
        same = same and evaluated.get("sha256") == sha256(run.file("best.ckpt"))
        if same and values.get("data", {}).get("of_the_training"):
            temperature = float(values.get("temperature", {}).get("none") or 1.0)
    known = environment.get("data", {})
    data = {key: known.get(key) for key in ("source", "synthetic", "fingerprint", "faces")}
    description = Description(loaded.recipe, loaded.preprocessing, temperature, loaded.epoch, data)
    return TorchEngine(loaded.model, description, device)


# -- safetensors ------------------------------------------------------------------------------------------------------


def write_safetensors(
    path: Path, model: nn.Module, description: Description, dtype: torch.dtype = torch.float32
) -> None:
    """Write weights and description, whole or not at all; floating tensors become ``dtype``.

    Raises:
        ExportError: a weight is not finite in ``dtype``.
    """
    tensors = {}
    for name, tensor in model.state_dict().items():
        held = tensor.detach().to("cpu", dtype if tensor.is_floating_point() else tensor.dtype).contiguous()
        if not bool(torch.isfinite(held).all()):
            raise ExportError(f"{path}: weight {name} is not finite in {dtype}: export in float32, or train again")
        tensors[name] = held
    values = description.to_dict()
    values["digest"] = _digest(values, _tensor_content(tensors))
    with replacing(path) as aside:
        # Not by safetensors' own file, which is for its owner's eyes alone.
        aside.write_bytes(save(tensors, {_KEY: json.dumps(values, ensure_ascii=False)}))


def _read_safetensors(path: Path, device: torch.device) -> TorchEngine:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, no mapping
    except (SafetensorError, OSError, ValueError) as error:
        raise ExportError(f"{path} is damaged or truncated ({error}): export or fetch it again") from error
    description = _described(path, metadata.get(_KEY), _tensor_content(tensors))
    state = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
    try:
        model = models.build(description.recipe, pretrained=False)
        model.load_state_dict(state)
    except (ValueError, RuntimeError) as error:
        raise ExportError(f"{path}: its weights do not fit its recipe: {error}") from error
    return TorchEngine(model.to(device), description, device)


def _tensor_content(tensors: dict[str, Tensor]) -> Iterator[bytes]:
    for name in sorted(tensors):
        tensor = tensors[name]
        yield f"{name}:{tensor.dtype}:{tuple(tensor.shape)}:".encode()
        yield tensor.reshape(-1).view(torch.uint8).numpy().tobytes()


# -- ONNX -------------------------------------------------------------------------------------------------------------


def write_onnx(path: Path, engine: TorchEngine, faces: npt.NDArray[np.uint8]) -> Agreement:
    """Write an ONNX file with preprocessing, temperature and softmax inside, and compare it with PyTorch.

    Args:
        path: the file; it appears only once the comparison has been passed.
        engine: on the CPU.
        faces: uint8 (N, 48, 48), what both are run on.

    Raises:
        ExportError: the extra ``onnx`` is not installed, the network cannot be expressed, or a probability differs by
            more than ``TOLERANCE``.
    """
    onnx = _import_onnx("onnx")
    _import_onnx("onnxscript")
    program: Any
    with _quiet():
        try:
            program = torch.onnx.export(
                Deployed(engine.model, engine.description).eval(),
                (torch.zeros(2, SIZE, SIZE, dtype=torch.uint8),),
                input_names=[_INPUT],
                output_names=[_OUTPUT],
                dynamic_shapes=({0: torch.export.Dim("faces", min=1)},),
                dynamo=True,
                optimize=True,
                verbose=False,
            )
        except torch.onnx.errors.OnnxExporterError as error:
            raise ExportError(f"{path}: this network cannot be written as ONNX: {error}") from error
    with replacing(path) as aside:
        _save_onnx(onnx, program.model_proto, aside, engine.description)
        found = agreement(engine(faces), _read_onnx(aside)(faces))
        if not found.difference <= TOLERANCE:  # NaN is not
            raise ExportError(
                f"{path}: its probabilities differ from PyTorch's by up to {found.difference:.2g} on {found.faces:,} "
                f"faces, more than {TOLERANCE:g}; nothing was written"
            )
    return found


def write_int8(path: Path, source: Path, calibration: npt.NDArray[np.uint8]) -> None:
    """Quantise an ONNX file of ``write_onnx`` statically to 8-bit integers.

    Weights are quantised per channel; activations to the range that they have on ``calibration``, uint8 (N, 48, 48).

    Raises:
        ExportError: the extra ``onnx`` is not installed, or the source cannot be read.
    """
    onnx = _import_onnx("onnx")
    quantization = _import_onnx("onnxruntime.quantization")
    engine = _read_onnx(source)

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            self._batches = iter(np.array_split(calibration, max(1, len(calibration) // 32)))

        def get_next(self) -> dict[str, npt.NDArray[np.uint8]] | None:
            batch = next(self._batches, None)
            return None if batch is None else {_INPUT: batch}

    with _quiet(), tempfile.TemporaryDirectory() as folder:
        prepared, quantised = Path(folder) / "prepared.onnx", Path(folder) / "int8.onnx"
        quantization.quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
        quantization.quantize_static(
            str(prepared),
            str(quantised),
            Reader(),
            quant_format=quantization.QuantFormat.QDQ,
            per_channel=True,
            # Seven bits for weights: eight overflow 16-bit sums on processors without VNNI.
            reduce_range=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            # Convolutions and matrix products hold all the work; scaling pixels and the softmax stay exact.
            op_types_to_quantize=["Conv", "Gemm", "MatMul", "Add", "Relu", "MaxPool"],
        )
        with replacing(path) as aside:
            _save_onnx(onnx, onnx.load(quantised), aside, engine.description)


def _save_onnx(onnx: Any, proto: Any, path: Path, description: Description) -> None:
    proto.producer_name, proto.producer_version = "fer-utils", fer_utils.__version__
    values = description.to_dict()
    values["digest"] = _digest(values, _onnx_content(onnx, proto))
    kept = {entry.key: entry.value for entry in proto.metadata_props if entry.key != _KEY}
    onnx.helper.set_model_props(proto, {**kept, _KEY: json.dumps(values, ensure_ascii=False)})
    onnx.checker.check_model(proto)
    onnx.save(proto, path)


def _read_onnx(path: Path) -> OnnxEngine:
    onnx = _import_onnx("onnx")
    damaged = _import_onnx("google.protobuf.message").DecodeError
    content = path.read_bytes()
    try:
        proto = onnx.load_model_from_string(content)
        listed = list(_onnx_content(onnx, proto))
    except (damaged, ValueError, TypeError, KeyError) as error:
        raise ExportError(
            f"{path} is damaged, truncated or no ONNX file ({error}): export or fetch it again"
        ) from error
    described = {entry.key: entry.value for entry in proto.metadata_props}.get(_KEY)
    description = _described(path, described, iter(listed))
    # It has a class for each kind of refusal, and none that all of them are of.
    held = vars(_import_onnx("onnxruntime.capi.onnxruntime_pybind11_state")).values()
    refusals = tuple(one for one in held if isinstance(one, type) and issubclass(one, Exception))
    try:
        return OnnxEngine(content, description)
    except refusals as error:
        # Not all of a file is under its digest: what it computes is, the version of its format is not.
        raise ExportError(
            f"{path} cannot be run, it is damaged or of another version ({error}): export it again"
        ) from error


def _onnx_content(onnx: Any, proto: Any) -> Iterator[bytes]:
    """What an ONNX file computes, in an order and form of its own: protobuf promises none from version to version."""
    graph = proto.graph
    yield repr([(entry.domain, entry.version) for entry in proto.opset_import]).encode()
    for value in (*graph.input, *graph.output):
        yield f"{value.name}:{value.type.tensor_type.elem_type}:".encode()
    for tensor in sorted(graph.initializer, key=lambda tensor: str(tensor.name)):
        yield from _onnx_tensor(onnx, tensor)
    for node in graph.node:
        yield repr((node.domain, node.op_type, list(node.input), list(node.output))).encode()
        for attribute in sorted(node.attribute, key=lambda attribute: str(attribute.name)):
            yield f"{attribute.name}:{attribute.type}:".encode()
            value = onnx.helper.get_attribute_value(attribute)
            if isinstance(value, onnx.TensorProto):
                yield from _onnx_tensor(onnx, value)
            else:
                yield repr(
                    list(value) if hasattr(value, "__iter__") and not isinstance(value, bytes) else value
                ).encode()


def _onnx_tensor(onnx: Any, tensor: Any) -> Iterator[bytes]:
    yield f"{tensor.name}:{tensor.data_type}:{list(tensor.dims)}:".encode()
    yield onnx.numpy_helper.to_array(tensor).tobytes()


def _import_onnx(name: str) -> Any:
    import importlib

    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ExportError(f"ONNX files need the package {error.name}: pip install 'fer-utils[onnx]'") from error


class _quiet:
    """Keeps the exporters' progress, advice and deprecations of their own parts away from the user."""

    def __enter__(self) -> None:
        self._warnings = warnings.catch_warnings()
        self._warnings.__enter__()
        warnings.simplefilter("ignore")
        self._disabled = logging.root.manager.disable
        logging.disable(logging.WARNING)

    def __exit__(self, *_: object) -> None:
        logging.disable(self._disabled)
        self._warnings.__exit__(None, None, None)


# -- torch.export -----------------------------------------------------------------------------------------------------


def write_pt2(path: Path, engine: TorchEngine) -> None:
    """Write a torch.export program for other programs: uint8 (N, 48, 48) to probabilities (N, 7), N free."""
    with _quiet():
        program = torch.export.export(
            Deployed(engine.model, engine.description).eval(),
            (torch.zeros(2, SIZE, SIZE, dtype=torch.uint8),),
            dynamic_shapes=({0: torch.export.Dim("faces", min=1)},),
        )
    with _quiet(), replacing(path) as aside:
        described = json.dumps(engine.description.to_dict(), ensure_ascii=False)
        torch.export.save(program, aside, extra_files={f"{_KEY}.json": described})


# -- reading ----------------------------------------------------------------------------------------------------------


def open_file(path: str | Path, device: str | None = "cpu") -> Engine:
    """Read a safetensors or ONNX file of this suite, told apart by what is in it.

    Args:
        path: the file.
        device: where a safetensors file's network runs; ONNX files run on the CPU.

    Raises:
        ExportError: there is no such file, it is of another kind, version or label order, damaged or altered.
        DeviceError: the device is not there.
    """
    file = Path(path)
    if not file.is_file():
        raise ExportError(f"{file}: there is no such file")
    where = choose_device(device)
    with file.open("rb") as opened:
        head = opened.read(16)
    # A safetensors file begins with the length of its header, whose first byte may be a pickle's.
    headed = head[8:9] == b"{"
    if head[:4] == b"PK\x03\x04" or (head[:1] == b"\x80" and not headed):
        raise ExportError(
            f"{file} is a pickle, checkpoint or torch.export archive, which can run code when it is read, and so never "
            "is. Give a .safetensors or .onnx file that `python -m fer_utils.export RUN` made, or the run itself"
        )
    if headed or file.suffix == ".safetensors":
        return _read_safetensors(file, where)
    if where.type != "cpu" and device not in (None, "auto"):
        raise DeviceError(f"device {device!r}: ONNX files run on the CPU; use cpu, or a safetensors file")
    return _read_onnx(file)


def _described(path: Path, text: str | None, content: Iterator[bytes]) -> Description:
    if text is None:
        raise ExportError(f"{path} holds no description: it is not one of this suite's exports")
    try:
        values = json.loads(text)
        told = values.pop("digest")
        description = Description.from_dict(values)
    except (ValueError, KeyError, AttributeError, TypeError, RecipeError) as error:
        raise ExportError(f"{path} cannot be used: {error}") from error
    if _digest(values, content) != told:
        raise ExportError(
            f"{path} was altered or damaged: its content does not match its digest. Export or fetch it again"
        )
    return description


def _digest(values: dict[str, Any], content: Iterator[bytes]) -> str:
    hasher = hashlib.sha256(json.dumps(values, sort_keys=True).encode())
    for piece in content:
        hasher.update(len(piece).to_bytes(8, "little"))
        hasher.update(piece)
    return hasher.hexdigest()


# -- all of it --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Agreement:
    """Two networks on the same faces: the largest difference of a probability, and how many labels differ."""

    faces: int
    difference: float
    labels: int


def agreement(a: Probabilities, b: Probabilities) -> Agreement:
    """Compare probabilities (N, 7). A label is another only where ``a``'s top two are apart by ``TOLERANCE``."""
    top = np.sort(a, axis=1)
    told_apart = top[:, -1] - top[:, -2] > TOLERANCE
    differing = (a.argmax(axis=1) != b.argmax(axis=1)) & told_apart
    return Agreement(len(a), float(np.abs(a - b).max(initial=0.0)), int(differing.sum()))


@dataclass(frozen=True)
class Exported:
    """One file that was written.

    Attributes:
        format: one of ``FORMATS``.
        file: its name.
        bytes: its size.
        sha256: of its bytes, in hexadecimal.
        agreement: with the PyTorch network; None for ``pt2``, which is never read here.
        latency: median seconds for a single face; None likewise.
        throughput: faces a second in batches; None likewise.
    """

    format: Format
    file: str
    bytes: int
    sha256: str
    agreement: Agreement | None
    latency: float | None
    throughput: float | None


def export(
    run: Run,
    splits: Splits,
    out: str | Path | None = None,
    *,
    formats: Sequence[str] = FORMATS,
    log: Callable[[str], None] = lambda line: None,
) -> list[Exported]:
    """Write a run's best network in several formats, check them, and describe them in ``exports.json``.

    Args:
        run: with a ``best.ckpt``.
        splits: the faces of the training, cut as they were for it: some calibrate the int8 network, others are what
            the files are compared on.
        out: directory of the files; None is ``export/`` in the run.
        formats: any of ``FORMATS``; ``int8`` brings ``onnx`` along, which it is made from.
        log: takes a line on the temperature, and one for each file.

    Raises:
        ExportError: an unknown format, other faces or another cut of them than the training's, a missing package, a
            network that a format cannot hold, or one that computes something else there.
        RunError: the run does not say what it was trained on.
        CheckpointError: the run's checkpoint cannot be used.
    """
    for name in formats:
        if name not in FORMATS:
            raise ExportError(f"unknown format {name!r}; use {', '.join(FORMATS)}")
    known = run.read_json("env.json")["data"]["fingerprint"]
    if known != splits.fingerprint():
        raise ExportError(
            f"{run.path} was trained on other faces or another cut of them (fingerprint {known}, these have "
            f"{splits.fingerprint()}): what int8 costs might be measured on faces that it knows by heart. Give the "
            "faces of its training: with --data, or as evaluation.faces_of(run) returns them"
        )
    wanted = [name for name in FORMATS if name in formats or (name == "onnx" and "int8" in formats)]
    target = expanded(out) if out is not None else run.file("export")
    try:
        make_writable(target)
    except OSError as error:
        raise ExportError(
            f"{target} cannot be written to ({error.strerror}): name another directory for the files"
        ) from None
    engine = of_run(run)
    temperature = engine.description.temperature
    unfitted = ": none was fitted; 04_evaluate fits one, where there are validation faces"
    log(f"temperature {temperature:.3f}{', fitted on validation faces' if temperature != 1 else unfitted}")
    held_out = splits[splits.evaluation_part()] if len(splits[splits.evaluation_part()]) else splits.train
    faces = held_out.images[_chosen(len(held_out), CHECKED)]
    made = []
    for name in wanted:
        path = target / FILES[name]
        if name == "safetensors":
            write_safetensors(path, engine.model, engine.description)
        elif name == "onnx":
            write_onnx(path, engine, faces)
        elif name == "int8":
            write_int8(path, target / FILES["onnx"], splits.train.images[_chosen(len(splits.train), CALIBRATION)])
            write_json(target / "model.int8.json", _int8_loss(engine, path, splits))
        else:
            write_pt2(path, engine)
        made.append(_measured(name, path, engine, faces))
        log(f"{path}: {made[-1].bytes / 1e6:.1f} MB")
    write_json(
        target / "exports.json",
        {
            "format_version": _VERSION,
            "run": run.path.resolve().name,
            "model": engine.description.to_dict(),
            "files": [asdict(item) for item in made],
        },
    )
    return made


def _chosen(n: int, count: int) -> npt.NDArray[np.int64]:
    """Draw up to ``count`` of ``n``, always the same ones."""
    chosen: npt.NDArray[np.int64] = np.random.Generator(np.random.PCG64(0)).permutation(n)[:count]
    return chosen


def _measured(name: Format, path: Path, engine: TorchEngine, faces: npt.NDArray[np.uint8]) -> Exported:
    size, digest = path.stat().st_size, sha256(path)
    if name == "pt2":
        return Exported(name, path.name, size, digest, None, None, None)
    opened = open_file(path)
    return Exported(name, path.name, size, digest, agreement(engine(faces), opened(faces)), *speed(opened, faces))


def speed(engine: Engine, faces: npt.NDArray[np.uint8], repeats: int = 20) -> tuple[float, float]:
    """Return the median seconds for a single face and the faces a second of one large batch."""
    engine(faces[:1])
    single = []
    for index in range(repeats):
        start = time.perf_counter()
        engine(faces[index % len(faces)][None])
        single.append(time.perf_counter() - start)
    start = time.perf_counter()
    engine(faces)
    return statistics.median(single), len(faces) / (time.perf_counter() - start)


def _int8_loss(engine: TorchEngine, path: Path, splits: Splits) -> dict[str, Any]:
    """Return what quantisation costs in accuracy, with a paired 95% interval."""
    from fer_utils import metrics

    part = splits.evaluation_part()
    faces = splits[part]
    if not faces.labelled:
        return {"part": part, "faces": 0, "note": "there are no labelled faces to measure the loss on"}
    exact, quantised = engine(faces.images), open_file(path)(faces.images)
    compared = metrics.compare(quantised, exact, faces.targets)
    return {
        "part": part,
        "faces": len(faces),
        "synthetic": splits.synthetic,
        "accuracy_float32": metrics.accuracy(exact, faces.targets),
        "accuracy_int8": metrics.accuracy(quantised, faces.targets),
        "difference": compared.difference.value,
        "difference_95": [compared.difference.low, compared.difference.high],
        "labels_changed": int((exact.argmax(axis=1) != quantised.argmax(axis=1)).sum()),
        "calibration_faces": min(CALIBRATION, len(splits.train)),
    }


# -- command line -----------------------------------------------------------------------------------------------------


def table(files: Sequence[Exported]) -> str:
    """Return files, sizes, times and agreement as a table of text."""
    lines = [f"{'file':20} {'MB':>7} {'one face, ms':>13} {'faces/s':>9}  largest difference, other labels"]
    for item in files:
        size = f"{item.file:20} {item.bytes / 1e6:7.2f} "
        if item.agreement is None or item.latency is None or item.throughput is None:
            lines.append(f"{size}{'':13} {'':9}  written for other programs, never read here")
        else:
            found = item.agreement
            lines.append(
                f"{size}{item.latency * 1e3:13.2f} {item.throughput:9,.0f}  {found.difference:.1e}, {found.labels} of "
                f"{found.faces:,}"
            )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Export a run; return the exit status: 2 where it cannot be done."""
    parser = argparse.ArgumentParser(
        prog="python -m fer_utils.export", description="Write a run's network as files for this and other programs."
    )
    parser.add_argument(
        "run", nargs="?", help="the run: its directory or its name under outputs/; by default the newest"
    )
    parser.add_argument("--out", help="directory of the files; by default export/ in the run")
    parser.add_argument(
        "--formats", nargs="+", default=list(FORMATS), choices=FORMATS, help="what to write; by default all"
    )
    parser.add_argument("--data", help="the faces of the training; by default where the run says that they were")
    given = parser.parse_args(arguments)

    from fer_utils import evaluation
    from fer_utils.checkpoint import CheckpointError
    from fer_utils.runs import Run, RunError
    from fer_utils.sources import SourceError

    try:
        run = Run.choose(given.run)
        splits = evaluation.faces_of(run, given.data)
        made = export(run, splits, given.out, formats=given.formats, log=print)
    except (ExportError, CheckpointError, RunError, SourceError, RecipeError) as error:
        print(error, file=sys.stderr)
        return 2
    except OSError as error:  # as of a disk that is full
        print(refusal(error), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted: what exports.json does not list is not checked", file=sys.stderr)
        return 130
    print(f"\n{run.path}, {torch.get_num_threads()} threads, faces from {splits.source} {splits.location}\n")
    print(table(made))
    return 0


if __name__ == "__main__":
    sys.exit(main())
