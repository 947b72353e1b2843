"""Exports compute what the network does, say what they are, and are refused when anything about them is wrong."""

import errno
import json
import logging
import os
import re
import shutil
import struct
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from fer_utils import box, checkpoint, comparison, evaluation, export, metrics, models, report, sources, training
from fer_utils.checkpoint import CheckpointError
from fer_utils.devices import DeviceError
from fer_utils.emotions import EMOTIONS
from fer_utils.export import ExportError
from fer_utils.faces import Splits
from fer_utils.files import sha256
from fer_utils.inference import Classifier
from fer_utils.preprocessing import Preprocessing
from fer_utils.recipe import Recipe
from fer_utils.runs import Run, RunError


@pytest.fixture(scope="module")
def run(tiny_recipe: Recipe, synthetic_splits: Splits, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run whose network has logits of some size, evaluated at a temperature of 1.7."""
    made = Run.create(tmp_path_factory.mktemp("runs") / "tiny")
    torch.manual_seed(0)
    model = models.build(tiny_recipe)
    preprocessing = Preprocessing.of(tiny_recipe, synthetic_splits.train)
    with torch.no_grad():
        # Batch norm with the statistics of faces, and a head that tells them apart.
        model(preprocessing(torch.from_numpy(synthetic_splits.train.images[:200])))
        models.set_training_mode(model, tiny_recipe)
        for _ in range(20):
            model(preprocessing(torch.from_numpy(synthetic_splits.train.images[:200])))
        model.fc[1].weight.mul_(40)
        # Untrained, it tells faces apart by less than it is biased.
        faces = preprocessing(torch.from_numpy(synthetic_splits.train.images[:200]))
        model.fc[1].bias.sub_(model.eval()(faces).mean(0))
    made.write_recipe(tiny_recipe)
    made.write_environment(synthetic_splits, "cpu", "float32", 1)
    checkpoint.save(made.file("best.ckpt"), checkpoint.model_state(model, preprocessing, tiny_recipe, 3))
    evaluated_with(made, epoch=3, temperature=1.7)
    return made


def evaluated_with(run: Run, epoch: int, temperature: float) -> None:
    """Leave of an evaluation of the run's network what tells its temperature."""
    network = {"epoch": epoch, "sha256": sha256(run.file("best.ckpt"))}
    values = {"checkpoint": network, "data": {"of_the_training": True}, "temperature": {"none": temperature}}
    run.write_json("metrics.json", values)


@pytest.fixture(scope="module")
def folder(run: Run, synthetic_splits: Splits) -> Path:
    """All formats of the run."""
    export.export(run, synthetic_splits)
    return run.file("export")


def expected(run: Run, faces: np.ndarray) -> np.ndarray:
    """What the run's network says, computed apart from the code under test."""
    loaded = checkpoint.load_model(run)
    with torch.no_grad():
        logits = loaded.model(loaded.preprocessing(torch.from_numpy(faces.copy()))).double()
    return torch.softmax(logits / 1.7, 1).numpy()


def test_what_a_network_was_trained_on_is_told(run: Run, synthetic_splits: Splits, tmp_path: Path) -> None:
    faces = f"{len(synthetic_splits.train):,} faces (synthetic, {synthetic_splits.fingerprint()})"
    found = export.of_run(run).description
    for train_faces, told in ((None, faces), (100, f"about 100 of {faces}"), (10**6, faces)):
        recipe = found.recipe.model_copy(update={"train_faces": train_faces})
        assert replace(found, recipe=recipe).trained_on() == told
    alone = Run.create(tmp_path / "alone")
    for name in ("recipe.yaml", "best.ckpt"):
        alone.file(name).write_bytes(run.file(name).read_bytes())
    assert export.of_run(alone).description.trained_on() == "unknown"


# -- what they compute --


@pytest.mark.parametrize("name", ["model.safetensors", "model.onnx"])
def test_files_compute_what_the_network_does(name: str, folder: Path, run: Run, synthetic_splits: Splits) -> None:
    faces = synthetic_splits.train.images
    wanted = expected(run, faces)
    assert len(np.unique(wanted.argmax(1))) > 2, "a network that always says the same proves nothing"
    classifier = Classifier.from_file(folder / name)
    for count in (1, 5, 300):
        found = classifier.probabilities(faces[:count])
        assert np.abs(found - wanted[:count]).max() < 1e-5
    assert classifier.engine.description.temperature == 1.7
    assert classifier.engine.description.epoch == 3
    assert classifier.engine.description.recipe == run.recipe


def test_members_are_one_network_in_every_format(run: Run, synthetic_splits: Splits, tmp_path: Path) -> None:
    part = checkpoint.load_model(run)
    recipe = part.recipe.model_copy(update={"members": 2})
    made = Run.create(tmp_path / "members")
    torch.manual_seed(1)
    other = models.build(part.recipe).eval()
    for name in ("recipe.yaml", "env.json"):
        made.file(name).write_bytes(run.file(name).read_bytes())
    made.write_recipe(recipe)
    both = models.Members([part.model, other])
    checkpoint.save(made.file("best.ckpt"), checkpoint.model_state(both, part.preprocessing, recipe, 3))
    evaluated_with(made, epoch=3, temperature=1.7)
    faces = synthetic_splits.test.images[:20]
    with torch.no_grad():
        shown = part.preprocessing(torch.from_numpy(faces.copy()))
        wanted = torch.softmax((part.model(shown) + other(shown)).double() / 2 / 1.7, 1).numpy()
    assert np.abs(wanted - expected(run, faces)).max() > 0.01
    export.export(made, synthetic_splits, formats=["safetensors", "onnx", "pt2"])
    for name in ("model.safetensors", "model.onnx"):
        found = Classifier.from_file(made.file("export") / name).probabilities(faces)
        assert np.abs(found - wanted).max() < 1e-5
    program = torch.export.load(made.file("export") / "model.pt2").module()
    assert np.abs(program(torch.from_numpy(faces.copy())).numpy() - wanted).max() < 1e-5


def test_onnx_alone_takes_bytes_and_gives_probabilities(folder: Path, run: Run, synthetic_splits: Splits) -> None:
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    (taken,), (given,) = session.get_inputs(), session.get_outputs()
    assert (taken.name, taken.type, taken.shape[1:]) == ("faces", "tensor(uint8)", [48, 48])
    assert isinstance(taken.shape[0], str), "the number of faces is free"
    assert (given.name, given.type, given.shape[1]) == ("probabilities", "tensor(float)", 7)
    faces = synthetic_splits.test.images[:3]
    assert np.allclose(session.run(None, {"faces": faces})[0], expected(run, faces), atol=1e-5)
    told = json.loads(session.get_modelmeta().custom_metadata_map["fer_utils"])
    assert told["emotions"] == list(EMOTIONS)


def test_int8_is_smaller_and_its_loss_is_written(folder: Path, run: Run, synthetic_splits: Splits) -> None:
    proto = onnx.load(folder / "model.int8.onnx")
    kinds = [tensor.data_type for tensor in proto.graph.initializer]
    assert onnx.TensorProto.INT8 in kinds
    faces = synthetic_splits.test
    exact, quantised = (
        Classifier.from_file(folder / name).probabilities(faces.images) for name in ("model.onnx", "model.int8.onnx")
    )
    assert 1e-4 < np.abs(exact - quantised).mean() < 0.1
    told = json.loads((folder / "model.int8.json").read_text())
    assert told["accuracy_float32"] == metrics.accuracy(exact, faces.targets)
    assert told["accuracy_int8"] == metrics.accuracy(quantised, faces.targets)
    assert told["difference"] == pytest.approx(told["accuracy_int8"] - told["accuracy_float32"])
    assert told["faces"] == len(faces)
    assert told["synthetic"]


def test_torch_export_computes_the_same_elsewhere(folder: Path, run: Run, synthetic_splits: Splits) -> None:
    # As another program would read it; this suite does not.
    program = torch.export.load(folder / "model.pt2").module()
    faces = synthetic_splits.test.images[:5]
    assert np.allclose(program(torch.from_numpy(faces.copy())).numpy(), expected(run, faces), atol=1e-5)


def test_an_export_tells_whether_a_temperature_was_fitted(run: Run, synthetic_splits: Splits, tmp_path: Path) -> None:
    other = Run.create(tmp_path / "not evaluated")
    for name in ("best.ckpt", "recipe.yaml", "env.json"):
        shutil.copy(run.file(name), other.path)
    for each, told in ((run, "temperature 1.700, fitted on validation faces"), (other, "temperature 1.000: none was")):
        lines: list[str] = []
        export.export(each, synthetic_splits, tmp_path / "out", formats=["safetensors"], log=lines.append)
        assert lines[0].startswith(told)


def test_help_tells_the_default(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        export.main(["--help"])
    assert "what to write; by default all" in " ".join(capsys.readouterr().out.split())


def test_what_was_written_is_listed(folder: Path) -> None:
    listed = json.loads((folder / "exports.json").read_text())["files"]
    assert [item["file"] for item in listed] == list(export.FILES.values())
    for item in listed:
        path = folder / item["file"]
        assert item["bytes"] == path.stat().st_size
        assert item["sha256"] == sha256(path)
    by_format = {item["format"]: item for item in listed}
    assert by_format["onnx"]["agreement"]["difference"] < 1e-5
    assert by_format["pt2"]["agreement"] is None


def test_a_network_of_another_size_and_with_colour_is_exported_too(
    tiny_recipe: Recipe, synthetic_splits: Splits, tmp_path: Path
) -> None:
    recipe = tiny_recipe.model_copy(update={"image_size": 64, "channels": 3, "normalize": "imagenet"})
    model = models.build(recipe).eval()
    description = export.Description(recipe, Preprocessing.of(recipe, synthetic_splits.train), 1.0, 1, {})
    engine = export.TorchEngine(model, description)
    found = export.write_onnx(tmp_path / "model.onnx", engine, synthetic_splits.test.images[:20])
    assert found.faces == 20
    assert found.difference < 1e-5


def test_agreement_counts_labels_that_were_told_apart() -> None:
    a = np.array([[0.6, 0.4], [0.50004, 0.49996], [0.2, 0.8]])
    b = np.array([[0.4, 0.6], [0.49996, 0.50004], [0.2, 0.8]])
    assert export.agreement(a, b) == export.Agreement(3, pytest.approx(0.2), 1)  # type: ignore[arg-type]


# -- what is refused --


def altered(path: Path, target: Path, name: str) -> Path:
    """A copy with one weight changed by a bit."""
    content = bytearray(path.read_bytes())
    content[len(content) * 2 // 3] ^= 1
    made = target / name
    made.write_bytes(content)
    return made


@pytest.mark.parametrize("name", ["model.safetensors", "model.onnx", "model.int8.onnx"])
def test_altered_and_truncated_files_are_refused(name: str, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"altered|damaged"):
        export.open_file(altered(folder / name, tmp_path, name))
    whole = (folder / name).read_bytes()
    for size in (0, 5, 100, len(whole) // 2, len(whole) - 1):
        (tmp_path / name).write_bytes(whole[:size])
        with pytest.raises(ExportError, match=str(tmp_path / name)):
            export.open_file(tmp_path / name)


def described(path: Path, change: dict[str, Any], target: Path) -> Path:
    """A copy of a safetensors file whose description is another, in a form that is right."""
    content = path.read_bytes()
    (size,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + size])
    header["__metadata__"]["fer_utils"] = json.dumps(json.loads(header["__metadata__"]["fer_utils"]) | change)
    encoded = json.dumps(header).encode()
    made = target / path.name
    made.write_bytes(struct.pack("<Q", len(encoded)) + encoded + content[8 + size :])
    return made


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"emotions": ["angry", "happy", "disgust", "fear", "neutral", "sad", "surprise"]}, "label order"),
        ({"format_version": 99}, "format version 99"),
        ({"temperature": 0.0}, "temperature"),
        ({"temperature": 1.0}, "does not match its digest"),
        ({"recipe": "backbone: resnet18"}, "cannot be used"),
        ({"preprocessing": {}}, "incomplete"),
    ],
)
def test_another_description_is_refused(change: dict[str, Any], told: str, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=told):
        export.open_file(described(folder / "model.safetensors", change, tmp_path))


def test_a_checkpoint_of_another_label_order_is_refused(run: Run, tmp_path: Path) -> None:
    other = Run.create(tmp_path / "other")
    state = checkpoint.load(run.file("best.ckpt"))
    state["preprocessing"]["emotions"] = list(EMOTIONS[::-1])
    checkpoint.save(other.file("best.ckpt"), state)
    with pytest.raises(CheckpointError, match="label order"):
        Classifier.from_run(other)


def test_a_file_whose_header_has_the_length_of_a_pickle_s_first_byte_is_read(run: Run, tmp_path: Path) -> None:
    engine, file = export.of_run(run), tmp_path / "model.safetensors"
    for longer in range(256):
        recipe = engine.description.recipe.model_copy(update={"description": "x" * longer})
        export.write_safetensors(file, engine.model, replace(engine.description, recipe=recipe), torch.float32)
        if file.read_bytes()[:1] == b"\x80":
            break
    assert file.read_bytes()[:1] == b"\x80"
    assert export.open_file(file).description.recipe == recipe


def test_files_that_are_no_export_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="there is no such file"):
        export.open_file(tmp_path / "absent.onnx")
    with pytest.raises(ExportError, match=r"is a pickle, checkpoint or torch\.export archive"):
        export.open_file(folder / "model.pt2")
    (tmp_path / "text.onnx").write_text("no network")
    with pytest.raises(ExportError, match="no ONNX file"):
        export.open_file(tmp_path / "text.onnx")
    # Another program's network, with nothing in it that says what its numbers mean.
    proto = onnx.load(folder / "model.onnx")
    del proto.metadata_props[:]
    onnx.save(proto, tmp_path / "other.onnx")
    with pytest.raises(ExportError, match="not one of this suite's exports"):
        export.open_file(tmp_path / "other.onnx")
    with pytest.raises(DeviceError, match="cuda"):
        export.open_file(folder / "model.onnx", "cuda")


@pytest.mark.parametrize("device", [None, "auto"])
def test_an_onnx_file_runs_on_the_cpu_where_there_is_a_gpu(
    folder: Path, monkeypatch: pytest.MonkeyPatch, device: str | None
) -> None:
    monkeypatch.setattr(export, "choose_device", lambda _: torch.device("cuda"))
    assert export.open_file(folder / "model.onnx", device).description.recipe.name


def test_a_weight_that_float16_cannot_hold_is_told(run: Run, tmp_path: Path) -> None:
    engine = export.of_run(run)
    with torch.no_grad():
        engine.model.fc[1].bias[0] = 1e6
    with pytest.raises(ExportError, match=r"weight fc\.1\.bias is not finite"):
        export.write_safetensors(tmp_path / "x.safetensors", engine.model, engine.description, torch.float16)
    assert not list(tmp_path.iterdir()), "nothing half-written is left"


def test_an_onnx_file_that_computes_something_else_is_not_kept(
    run: Run, synthetic_splits: Splits, tmp_path: Path
) -> None:
    engine = export.of_run(run)
    # The engine is asked through another temperature than the file gets.
    engine._tempered.temperature = 1.8
    with pytest.raises(ExportError, match="differ from PyTorch's"):
        export.write_onnx(tmp_path / "model.onnx", engine, synthetic_splits.test.images[:20])
    assert not list(tmp_path.iterdir())


def test_unknown_formats_are_refused(run: Run, synthetic_splits: Splits) -> None:
    with pytest.raises(ExportError, match="unknown format 'pickle'; use safetensors, onnx"):
        export.export(run, synthetic_splits, formats=["pickle"])


def test_other_faces_or_another_cut_are_refused(run: Run, synthetic_splits: Splits, tmp_path: Path) -> None:
    # The same faces, validation and test exchanged.
    swapped = Splits(synthetic_splits.train, synthetic_splits.test, synthetic_splits.val, "synthetic")
    with pytest.raises(ExportError, match=r"was trained on other faces or another cut .* with --data, or as "):
        export.export(run, swapped, tmp_path / "out", formats=["safetensors"])
    assert not list(tmp_path.iterdir())


def test_a_run_that_does_not_say_its_faces_is_refused(run: Run, synthetic_splits: Splits, tmp_path: Path) -> None:
    other = Run.create(tmp_path / "other")
    for name in ("best.ckpt", "recipe.yaml"):
        other.file(name).write_bytes(run.file(name).read_bytes())
    with pytest.raises(RunError, match=r"has no env\.json"):
        export.export(other, synthetic_splits, formats=["safetensors"])
    assert not other.file("export").exists()


# -- the box --


@pytest.fixture(scope="module")
def filled(run: Run, synthetic_splits: Splits, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("box")
    box.put(run, synthetic_splits, "fast", made)
    return made


def test_the_box_holds_half_precision_and_computes_in_single(filled: Path, run: Run, synthetic_splits: Splits) -> None:
    name, model = box.entry(folder=filled)
    assert name == "fast"
    assert model.bytes == (filled / "fast.safetensors").stat().st_size
    assert model.bytes < 2.2 * model.parameters + 40_000
    engine = box.open_model(folder=filled)
    faces = synthetic_splits.test
    half = checkpoint.load_model(run)
    with torch.no_grad():
        rounded = half.model.half().float()
        logits = rounded(half.preprocessing(torch.from_numpy(faces.images))).double()
    wanted = torch.softmax(logits / model.temperature, 1).numpy()
    assert np.abs(engine(faces.images) - wanted).max() < 1e-5
    # What the entry says of the whole test set is so.
    right = int((wanted.argmax(1) == faces.targets).sum())
    assert (model.scores["test"]["correct"], model.scores["test"]["faces"]) == (right, len(faces))
    assert model.scores["test"]["scaled"]["nll"]["value"] == pytest.approx(metrics.nll(wanted, faces.targets), abs=1e-4)


def test_the_card_says_what_matters(filled: Path, run: Run) -> None:
    _, model = box.entry("fast", filled)
    card = (filled / "fast.md").read_text(encoding="utf-8")
    accuracy = model.scores["test_clean"]["accuracy"]
    for text in (
        model.sha256,
        f"{accuracy['value']:.2%} ({accuracy['low']:.2%} to {accuracy['high']:.2%})",
        f"{model.temperature:.4f}",
        "Seed 0",
        "papermill notebooks/03_train.ipynb out.ipynb -p data DATA -p recipe fast -p width 0.125",
        "drawn faces",
        "Limits",
        model.data["fingerprint"],
        "python -m fer_utils.box --check fast",
    ):
        assert text in card, text


def test_the_card_tells_that_only_some_of_the_training_faces_were_learned_from(filled: Path) -> None:
    _, model = box.entry("fast", filled)
    for train_faces, told in ((None, ""), (10**6, ""), (100, " It learned from about 100 of the ")):
        recipe = {**model.training["recipe"], "train_faces": train_faces}
        card = box.card("fast", replace(model, training={**model.training, "recipe": recipe}))
        assert f"`{model.data['fingerprint']}`.{told}" in card
        assert ("It learned from" in card) == bool(told)


def test_the_card_tells_what_chose_the_epoch(filled: Path) -> None:
    _, model = box.entry("fast", filled)
    assert "Epoch and temperature were chosen on validation faces" in box.card("fast", model)
    settled = {**model.training, "recipe": {**model.training["recipe"], "keep_epoch": 3}}
    card = box.card("fast", replace(model, training=settled))
    assert "The epoch was settled before training. Where that was done on faces that are validation faces here" in card
    assert "a little too good. The temperature alone was fitted on" in card
    assert "Epoch and temperature" not in card
    # Of two parts one was chosen by validation.
    recipes = (settled["recipe"], model.training["recipe"])
    parts = [{**model.training, "recipe": recipe, "run": "a"} for recipe in recipes]
    assert "Epoch and temperature" in box.card("fast", replace(model, training={**settled, "parts": parts}))


def test_the_card_is_checked_against_the_file(
    run: Run, synthetic_splits: Splits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fer_utils.sources.load", lambda *_, **__: synthetic_splits)
    box.put(run, synthetic_splits, "fast", tmp_path)
    lines: list[str] = []
    assert box.check("fast", "synthetic", tmp_path, log=lines.append)
    assert any(line.startswith("test, clean ") for line in lines)
    listing = json.loads((tmp_path / "box.json").read_text())
    listing["models"]["fast"]["scores"]["test"]["correct"] += 2
    (tmp_path / "box.json").write_text(json.dumps(listing))
    assert not box.check("fast", "synthetic", tmp_path)


def test_an_onnx_file_of_another_version_is_told(folder: Path, tmp_path: Path) -> None:
    proto = onnx.load(folder / "model.onnx")
    proto.ir_version = 999
    onnx.save(proto, tmp_path / "model.onnx")
    with pytest.raises(ExportError, match="cannot be run"):
        export.open_file(tmp_path / "model.onnx")


def test_a_model_that_was_unpacked_is_as_sure_as_in_the_box(filled: Path, tmp_path: Path) -> None:
    made = box.unpack("fast", tmp_path / "run", filled)
    told = box.listed(filled)["fast"].temperature
    assert told != 1
    assert export.of_run(made).description.temperature == told


def test_a_card_of_one_half_is_checked_on_both(
    run: Run, synthetic_splits: Splits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    halves = np.where(np.arange(len(synthetic_splits.test)) % 3 == 0, "PublicTest", "PrivateTest")
    public = replace(synthetic_splits, test=synthetic_splits.test.select(halves == "PublicTest"))
    box.put(run, public, "fast", tmp_path)
    both = replace(synthetic_splits, halves=halves)
    monkeypatch.setattr("fer_utils.sources.load", lambda *_, **__: both)
    lines: list[str] = []
    assert box.check("fast", "synthetic", tmp_path, log=lines.append)
    assert any(line.startswith("PublicTest, all ") for line in lines)
    private = next(line for line in lines if line.startswith("PrivateTest, all "))
    answers = box.open_model(folder=tmp_path)(both.test.images).argmax(1)
    right = int((answers == both.test.targets)[halves == "PrivateTest"].sum())
    assert f"not there {right:,} of {(halves == 'PrivateTest').sum():,}, " in private
    # A card of both is of both.
    box.put(run, both, "fast", tmp_path / "both")
    lines.clear()
    assert box.check("fast", "synthetic", tmp_path / "both", log=lines.append)
    assert not any("not there" in line for line in lines)
    listing = json.loads((tmp_path / "both" / "box.json").read_text())
    listing["models"]["fast"]["scores"]["test"]["correct"] += 2
    (tmp_path / "both" / "box.json").write_text(json.dumps(listing))
    assert not box.check("fast", "synthetic", tmp_path / "both")
    # Of other faces neither half is the card's.
    monkeypatch.setattr("fer_utils.sources.load", lambda *_, **__: replace(both, halves=halves[::-1]))
    assert not box.check("fast", "synthetic", tmp_path)


def test_an_altered_box_is_refused(filled: Path, tmp_path: Path) -> None:
    (tmp_path / "box.json").write_bytes((filled / "box.json").read_bytes())
    with pytest.raises(ExportError, match="is missing"):
        box.open_model(folder=tmp_path)
    altered(filled / "fast.safetensors", tmp_path, "fast.safetensors")
    with pytest.raises(ExportError, match="its SHA-256 is"):
        box.open_model(folder=tmp_path)
    with pytest.raises(ExportError, match="no model 'small' in the box; it has fast"):
        box.entry("small", filled)
    (tmp_path / "box.json").write_text('{"models": 3}')
    with pytest.raises(ExportError, match="is damaged"):
        box.entry(folder=tmp_path)


def test_an_altered_file_does_not_keep_the_others_from_being_checked(
    run: Run,
    synthetic_splits: Splits,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("fer_utils.sources.load", lambda *_, **__: synthetic_splits)
    for name in ("first", "second"):
        box.put(run, synthetic_splits, name, tmp_path)
    altered(tmp_path / "first.safetensors", tmp_path, "first.safetensors")
    assert box.main(["--check", "--box", str(tmp_path)]) == 2
    told = capsys.readouterr()
    assert "first.safetensors was altered" in told.err
    assert "the numbers of second's card are reproduced" in told.out


def test_the_first_model_stays_the_default(filled: Path, run: Run, synthetic_splits: Splits, tmp_path: Path) -> None:
    for name in ("fast", "small", "fast"):
        box.put(run, synthetic_splits, name, tmp_path)
    assert list(box.listed(tmp_path)) == ["fast", "small"]
    with pytest.raises(ExportError, match="no name for a model"):
        box.put(run, synthetic_splits, "../fast", tmp_path)


def test_a_box_that_is_no_directory_is_told_before_anything_is_scored(
    run: Run, synthetic_splits: Splits, tmp_path: Path
) -> None:
    told: list[str] = []
    (tmp_path / "file").write_text("not a box")
    with pytest.raises(ExportError, match=r"file cannot be written to \(File exists\): name another box"):
        box.put(run, synthetic_splits, "tiny", tmp_path / "file", log=told.append)
    assert not told
    with pytest.raises(ExportError, match="there is no trained model in the box"):
        box.listed(tmp_path / "file")


def test_other_faces_than_the_training_s_are_refused(run: Run, synthetic_splits: Splits, tmp_path: Path) -> None:
    fewer = Splits(synthetic_splits.train.select(slice(100)), synthetic_splits.val, synthetic_splits.test, "synthetic")
    with pytest.raises(ExportError, match="was trained on other faces"):
        box.put(run, fewer, "fast", tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_card_of_what_was_put_together_tells_how_its_parts_were_trained(
    run: Run, synthetic_splits: Splits, tmp_path: Path
) -> None:
    part = checkpoint.load_model(run)
    second = Run.create(tmp_path / "second")
    torch.manual_seed(1)
    recipe = part.recipe.model_copy(update={"seed": 7})
    for name in ("env.json", "metrics.json"):
        second.file(name).write_bytes(run.file(name).read_bytes())
    second.write_recipe(recipe)
    checkpoint.save(
        second.file("best.ckpt"), checkpoint.model_state(models.build(recipe), part.preprocessing, recipe, 5)
    )
    digest = sha256(second.file("best.ckpt"))
    start = f"{run.path},{second.path}"
    together = part.recipe.model_copy(update={"members": 2, "epochs": 0, "start": start})
    made = training.fit(together, synthetic_splits, Run.create(tmp_path / "both"), device="cpu", log=lambda _: None)
    model = box.put(made, synthetic_splits, "both", tmp_path / "box")
    assert model.parameters == 2 * models.count_parameters(part.model)
    card = (tmp_path / "box" / "both.md").read_text(encoding="utf-8")
    own = "papermill notebooks/03_train.ipynb out.ipynb -p data DATA -p recipe fast"
    for text in (
        "| network | 2 side by side, each resnet18",
        "put together from trained runs and not trained further",
        f"`{run.path}`: Seed 0, batches of",
        f"`{second.path}`: Seed 7, batches of",
        "weights of epoch 3 of the",
        "weights of epoch 5 of the",
        f" -p out {run.path}",
        f"python -m fer_utils.training --data DATA --recipe fast --set start={start} ",
    ):
        assert text in card, text
    assert re.search(f"^{own} .*-p seed 7 .*-p out {second.path}$", card, re.M)
    assert card.count(own) == 2
    # A run again, it is judged and answers as the two do.
    unpacked = box.unpack("both", tmp_path / "run", tmp_path / "box")
    evaluation.evaluate(unpacked, synthetic_splits, device="cpu", precision="float32", draws=20)
    page = report.write(unpacked).read_text(encoding="utf-8")
    assert (
        f"not trained further: {run.path} (1 epoch, seed 0; its epoch 3), {second.path} (1 epoch, seed 7; its" in page
    )
    # Its parts are told from what it holds, wherever they are.
    shutil.rmtree(second.path)
    again = box.put(unpacked, synthetic_splits, "again", tmp_path / "box")
    assert again.training["parts"] == model.training["parts"]
    assert [part["sha256"] for part in again.training["parts"]] == [sha256(run.file("best.ckpt")), digest]


def test_a_model_of_the_box_becomes_a_run_that_is_judged_and_teaches(
    filled: Path, synthetic_splits: Splits, tmp_path: Path
) -> None:
    made = box.unpack("fast", tmp_path / "run", filled)
    _, model = box.entry("fast", filled)
    # The weights are those of the box, to the last bit.
    engine, loaded = box.open_model("fast", folder=filled), checkpoint.load_model(made)
    assert isinstance(engine, export.TorchEngine)
    for name, tensor in engine.model.state_dict().items():
        assert torch.equal(tensor, loaded.model.state_dict()[name]), name
    assert (loaded.epoch, loaded.recipe) == (3, engine.description.recipe)
    # 04's work, and the page that it makes, without a history.
    found = evaluation.evaluate(made, synthetic_splits, device="cpu", precision="float32", draws=20)
    accuracy = found.measured("test").scores["accuracy"].value
    assert round(accuracy * len(synthetic_splits.test)) == model.scores["test"]["correct"]
    page = report.write(made).read_text(encoding="utf-8")
    assert "1 epoch, seed 0; the network is that of epoch 3. Trained on " in page
    assert "0 seconds" not in page
    # It knows the faces that it was trained on, as any teacher does.
    taught = made.recipe.model_copy(update={"teacher": str(made.path), "teacher_views": "one", "epochs": 1})
    student = training.fit(taught, synthetic_splits, Run.create(tmp_path / "student"), device="cpu", log=lambda _: None)
    assert student.has("best.ckpt")
    other = Splits(synthetic_splits.train.select(slice(100)), synthetic_splits.val, synthetic_splits.test, "synthetic")
    with pytest.raises(training.TrainingError, match="another cut"):
        training.fit(taught, other, Run.create(tmp_path / "other"), device="cpu", log=lambda _: None)
    with pytest.raises(evaluation.EvaluationError, match="no history"):
        comparison.gather([made], synthetic_splits)
    with pytest.raises(ExportError, match="is there already"):
        box.unpack("fast", made.path, filled)


def test_a_tilde_is_put_in_full_and_a_run_there_is_left_alone(
    filled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    there = Run.create(tmp_path / "run")
    there.write_json("env.json", {"mine": True})
    with pytest.raises(ExportError, match="is there already"):
        box.unpack("fast", "~/run", filled)
    assert there.read_json("env.json")["mine"]
    shutil.copytree(filled, tmp_path / "box")
    assert box.main(["--unpack", "fast", "~/new", "--box=~/box"]) == 0
    assert Run.open(tmp_path / "new").has("best.ckpt")


def test_a_disk_that_fills_is_a_line(
    run: Run,
    synthetic_splits: Splits,
    filled: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("fer_utils.sources.load", lambda *_, **__: synthetic_splits)
    monkeypatch.setattr(export, "write_safetensors", full)
    monkeypatch.setattr(checkpoint, "save", full)
    assert export.main([str(run.path), "--out", str(tmp_path / "out"), "--formats", "safetensors"]) == 2
    assert box.main(["--unpack", "fast", str(tmp_path / "run"), "--box", str(filled)]) == 2
    assert not (tmp_path / "run").exists(), "a half-made run would be in the way of a second try"
    told = capfd.readouterr().err.splitlines()
    assert told == ["a file cannot be read or written ([Errno 28] No space left on device): make room or mend that"] * 2


# -- the commands --


def test_the_commands(
    run: Run,
    synthetic_splits: Splits,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("fer_utils.sources.load", lambda *_, **__: synthetic_splits)
    assert export.main([str(run.path), "--out", str(tmp_path / "out"), "--formats", "safetensors"]) == 0
    assert "model.safetensors" in capsys.readouterr().out
    assert [path.name for path in sorted((tmp_path / "out").iterdir())] == ["exports.json", "model.safetensors"]
    assert box.main([str(run.path), "fast", "--box", str(tmp_path / "box")]) == 0
    assert box.main(["--check", "--box", str(tmp_path / "box")]) == 0
    assert "reproduced" in capsys.readouterr().out
    assert box.main(["--unpack", "fast", str(tmp_path / "unpacked"), "--box", str(tmp_path / "box")]) == 0
    assert Run.open(tmp_path / "unpacked").has("best.ckpt")
    # A model of the box knows its faces, as any run does.
    assert export.main([str(tmp_path / "unpacked"), "--formats", "safetensors"]) == 0
    assert box.main(["--unpack", "none", str(tmp_path / "unpacked"), "--box", str(tmp_path / "box")]) == 2
    assert "it has fast" in capsys.readouterr().err
    assert export.main([str(tmp_path / "absent")]) == 2
    assert "there is no run at" in capsys.readouterr().err
    swapped = Splits(synthetic_splits.train, synthetic_splits.test, synthetic_splits.val, "synthetic")
    with monkeypatch.context() as other:
        other.setattr("fer_utils.sources.load", lambda *_, **__: swapped)
        assert export.main([str(run.path), "--data", "other", "--out", str(tmp_path / "none")]) == 2
    assert "Give the faces of its training" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()
    assert box.main(["--check", "--box", str(tmp_path)]) == 2
    assert "no trained model in the box" in capsys.readouterr().err


@pytest.mark.real
def test_the_card_of_the_smallest_model_is_reproduced_on_the_real_faces(real_data: Path) -> None:
    smallest = min(box.listed(), key=lambda name: box.listed()[name].parameters)
    # A process of its own may use every core: see conftest.
    many = {name: value for name, value in os.environ.items() if not name.endswith("_NUM_THREADS")}
    command = [sys.executable, "-m", "fer_utils.box", "--check", smallest, "--data", str(real_data)]
    done = subprocess.run(command, env=many, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.real
def test_every_model_in_the_box_is_as_often_right_as_its_card_says(real_data: Path) -> None:
    # On some of the test faces: all of them take the largest model minutes, by `python -m fer_utils.box --check`.
    for name, model in box.listed().items():
        recipe = Recipe.model_validate_json(json.dumps(model.training["recipe"]))
        splits = sources.load(real_data, val_fraction=recipe.val_fraction, split_seed=recipe.split_seed)
        assert splits.fingerprint() == model.data["fingerprint"]
        some = splits.test.select(slice(0, None, 12))
        right = (box.open_model(name)(some.images).argmax(axis=1) == some.targets).mean()
        told = model.scores["test"]["accuracy"]["value"]
        assert abs(right - told) < 4 * (told * (1 - told) / len(some)) ** 0.5
        assert (box.WEIGHTS / f"{name}.md").read_text(encoding="utf-8") == box.card(name, model)


def test_an_export_is_for_whoever_may_read_the_run(run: Run, synthetic_splits: Splits, tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        export.export(run, synthetic_splits, tmp_path / "made", formats=["safetensors"])
    finally:
        os.umask(before)
    assert (tmp_path / "made" / "model.safetensors").stat().st_mode & 0o777 == 0o644
    (tmp_path / "file").touch()
    with pytest.raises(ExportError, match="file cannot be written to"):
        export.export(run, synthetic_splits, tmp_path / "file", formats=["safetensors"])


# -- what an export promises in small print --


def test_onnx_rows_sum_to_1_in_float64(folder: Path, synthetic_splits: Splits) -> None:
    found = export.open_file(folder / "model.onnx")(synthetic_splits.train.images[:300])
    assert found.dtype == np.float64
    assert np.abs(found.sum(axis=1) - 1).max() < 1e-12


def test_int8_weights_have_seven_bits_and_a_scale_for_each_channel(folder: Path) -> None:
    graph = onnx.load(folder / "model.int8.onnx").graph
    held = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    nodes = [node for node in graph.node if node.op_type == "DequantizeLinear" and node.input[0] in held]
    kernels = [(held[node.input[0]], held[node.input[1]]) for node in nodes if held[node.input[0]].ndim == 4]
    assert len(kernels) > 10
    for kernel, scales in kernels:
        assert kernel.dtype == np.int8
        assert 32 < np.abs(kernel.astype(int)).max() <= 64
        assert scales.shape == (len(kernel),)


def test_what_int8_changes_is_counted(folder: Path, run: Run, synthetic_splits: Splits) -> None:
    faces, told = synthetic_splits.test.images, json.loads((folder / "model.int8.json").read_text())
    answers = [
        export.open_file(folder / name)(faces).argmax(axis=1) for name in ("model.safetensors", "model.int8.onnx")
    ]
    assert told["labels_changed"] == (answers[0] != answers[1]).sum()
    assert told["calibration_faces"] == len(synthetic_splits.train) < export.CALIBRATION
    assert json.loads((folder / "exports.json").read_text())["run"] == run.path.name


def test_another_program_s_file_says_what_it_is(folder: Path, run: Run) -> None:
    extra = {"fer_utils.json": ""}
    torch.export.load(folder / "model.pt2", extra_files=extra)
    told = json.loads(extra["fer_utils.json"])
    assert (told["emotions"], told["temperature"], told["epoch"]) == (list(EMOTIONS), 1.7, 3)


def test_a_deployed_network_is_a_copy(run: Run) -> None:
    engine = export.of_run(run)
    before = [parameter.requires_grad for parameter in engine.model.parameters()]
    assert any(before)
    deployed = export.Deployed(engine.model.train(), engine.description)
    assert [parameter.requires_grad for parameter in engine.model.parameters()] == before
    assert engine.model.training
    assert not any(parameter.requires_grad for parameter in deployed.parameters())


@pytest.mark.parametrize("what", ["attribute", "inputs of a node", "kind of a node", "version", "type"])
def test_an_onnx_network_that_computes_otherwise_is_refused_though_its_weights_are_the_same(
    what: str, folder: Path, tmp_path: Path
) -> None:
    proto = onnx.load(folder / "model.onnx")
    nodes = {node.op_type: node for node in proto.graph.node}
    if what == "attribute":
        next(each for each in nodes["Softmax"].attribute if each.name == "axis").i = 0
    elif what == "inputs of a node":
        nodes["Add"].input[0], nodes["Add"].input[1] = nodes["Add"].input[1], nodes["Add"].input[0]
    elif what == "kind of a node":
        nodes["Softmax"].op_type = "LogSoftmax"
    elif what == "version":
        proto.opset_import[0].version -= 1
    else:
        proto.graph.output[0].type.tensor_type.elem_type = onnx.TensorProto.DOUBLE
    onnx.save(proto, tmp_path / "model.onnx")
    with pytest.raises(ExportError, match="does not match its digest"):
        export.open_file(tmp_path / "model.onnx")


def test_weights_that_are_read_as_other_numbers_are_refused(folder: Path, tmp_path: Path) -> None:
    content = (folder / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(content.replace(b'"F32"', b'"I32"', 1))
    with pytest.raises(ExportError, match="does not match its digest"):
        export.open_file(tmp_path / "model.safetensors")


def test_a_network_without_a_recipe_that_fits_is_told(run: Run, tmp_path: Path) -> None:
    engine = export.of_run(run)
    recipe = engine.description.recipe.model_copy(update={"width": 0.25})
    export.write_safetensors(tmp_path / "x.safetensors", engine.model, replace(engine.description, recipe=recipe))
    with pytest.raises(ExportError, match=r"x\.safetensors: its weights do not fit its recipe"):
        export.open_file(tmp_path / "x.safetensors")


def test_an_onnx_file_of_a_network_without_numbers_is_not_kept(
    run: Run, synthetic_splits: Splits, tmp_path: Path
) -> None:
    engine = export.of_run(run)
    with torch.no_grad():
        engine.model.fc[1].bias[0] = float("nan")
    with pytest.raises(ExportError, match="differ from PyTorch's by up to nan"):
        export.write_onnx(tmp_path / "model.onnx", engine, synthetic_splits.test.images[:5])
    assert not list(tmp_path.iterdir())


def test_an_onnx_file_on_a_gpu_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "choose_device", lambda _: torch.device("cuda"))
    with pytest.raises(DeviceError, match="ONNX files run on the CPU"):
        export.open_file(folder / "model.onnx", "cuda")


def test_a_missing_package_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ExportError, match=r"the package onnxruntime: pip install 'fer-utils\[onnx\]'"):
        export.open_file(folder / "model.onnx")


def test_exporters_leave_logs_and_warnings_as_they_were(run: Run, tmp_path: Path) -> None:
    before = list(warnings.filters)
    export.write_pt2(tmp_path / "model.pt2", export.of_run(run))
    assert (logging.root.manager.disable, list(warnings.filters)) == (logging.NOTSET, before)


def test_int8_brings_onnx_along_and_faces_for_training_alone_are_enough(
    folder: Path, run: Run, synthetic_splits: Splits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = replace(synthetic_splits, val=synthetic_splits.val.select([]), test=synthetic_splits.test.select([]))
    other = Run.create(tmp_path / "other")
    for name in ("best.ckpt", "recipe.yaml"):
        shutil.copy(run.file(name), other.path)
    other.write_environment(alone, "cpu", "float32", 1)
    # Written above, by what takes seconds.
    monkeypatch.setattr(export, "write_onnx", lambda path, *_: shutil.copy(folder / path.name, path))
    monkeypatch.setattr(export, "write_int8", lambda path, *_: shutil.copy(folder / path.name, path))
    made = export.export(other, alone, formats=["int8"])
    assert [item.format for item in made] == ["onnx", "int8"]
    assert [item.agreement.faces for item in made if item.agreement] == [len(alone.train)] * 2
    assert "no labelled faces" in json.loads((other.file("export") / "model.int8.json").read_text())["note"]


def test_times_are_of_one_face_and_of_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]

    class Steady:
        """Takes 2 ms, and 1 ms for each face."""

        def __call__(self, images: np.ndarray) -> np.ndarray:
            now[0] += 0.002 + 0.001 * len(images)
            return np.empty((len(images), 7))

    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    found = export.speed(Steady(), np.zeros((8, 48, 48), np.uint8))  # type: ignore[arg-type]
    assert found == pytest.approx((0.003, 800))
    agreed = export.Agreement(1000, 3e-7, 2)
    shown = export.table(
        [
            export.Exported("onnx", "model.onnx", 2_500_000, "", agreed, *found),
            export.Exported("pt2", "model.pt2", 3_000_000, "", None, None, None),
        ]
    )
    assert [line.split() for line in shown.splitlines()[1:]] == [
        "model.onnx 2.50 3.00 800 3.0e-07, 2 of 1,000".split(),
        "model.pt2 3.00 written for other programs, never read here".split(),
    ]


def test_a_difference_is_one_whichever_is_larger() -> None:
    a, b = np.array([[0.5, 0.5, 0.0]]), np.array([[0.3, 0.3, 0.4]])
    assert export.agreement(a, b).difference == export.agreement(b, a).difference == pytest.approx(0.4)


def test_an_interrupted_export_is_told(
    run: Run, synthetic_splits: Splits, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("fer_utils.sources.load", lambda *_, **__: synthetic_splits)
    monkeypatch.setattr(export, "write_safetensors", interrupted)
    assert export.main([str(run.path), "--formats", "safetensors"]) == 130
    assert "what exports.json does not list is not checked" in capsys.readouterr().err
