"""Checkpoints are whole, exact and refused when anything about them is wrong."""

from __future__ import annotations

import contextlib
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from fer_utils import checkpoint, models
from fer_utils import recipe as recipes
from fer_utils.checkpoint import CheckpointError
from fer_utils.faces import Faces
from fer_utils.preprocessing import Preprocessing
from fer_utils.runs import Run


def state() -> dict[str, object]:
    return {
        "weights": {"a": torch.randn(3, 4), "b": torch.arange(5)},
        "half": torch.randn(2).bfloat16(),
        "rates": [1e-3, 2.5],
        "epoch": 3,
        "none": None,
        "scalar": torch.tensor(1.5, dtype=torch.float64),
    }


def test_what_is_saved_is_what_is_loaded(tmp_path: Path) -> None:
    saved = state()
    checkpoint.save(tmp_path / "a.ckpt", saved)
    loaded = checkpoint.load(tmp_path / "a.ckpt")
    assert torch.equal(loaded["weights"]["a"], saved["weights"]["a"])  # type: ignore[index]
    assert loaded["half"].dtype == torch.bfloat16
    assert torch.equal(loaded["half"], saved["half"])  # type: ignore[arg-type]
    assert (loaded["rates"], loaded["epoch"], loaded["none"]) == ([1e-3, 2.5], 3, None)
    assert loaded["scalar"].item() == 1.5
    assert [path.name for path in tmp_path.iterdir()] == ["a.ckpt"]


def test_a_changed_weight_is_found(tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    checkpoint.save(path, {"weights": torch.zeros(4096)})
    held = torch.load(path, weights_only=True)
    held["state"]["weights"][7] = 1e-6
    torch.save(held, path)
    with pytest.raises(CheckpointError, match=r"a\.ckpt.*checksum"):
        checkpoint.load(path)


def test_any_changed_byte_is_told_of_as_damage(tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    checkpoint.save(path, state())
    content = path.read_bytes()
    # Its beginning says what it holds, and is where torch stumbles over most.
    for place in range(700):
        changed = bytearray(content)
        changed[place] ^= 1
        path.write_bytes(changed)
        # Nothing depends on some bytes; any other error than this one fails the test.
        with contextlib.suppress(CheckpointError):
            assert checkpoint.load(path).keys() == state().keys()


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    checkpoint.save(path, state())
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"a\.ckpt"):
        checkpoint.load(path)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not a checkpoint at all",
        b"hello world, how are you",
        b"version https://git-lfs",
        b"PK\x03\x04 half a zip",
    ],
)
def test_other_files_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.ckpt"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"a\.ckpt: is damaged or no checkpoint") as caught:
        checkpoint.load(path)
    # torch's own advice about such files is unsafe.
    assert "weights_only" not in str(caught.value)


def test_a_zip_archive_of_other_things_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "no tensors")
    with pytest.raises(CheckpointError, match=r"a\.ckpt: cannot be read, it is damaged or no checkpoint"):
        checkpoint.load(path)


class Trap:
    """An object whose unpickling would run code."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (Path.touch, (Path("trapped"),))  # type: ignore[return-value]


def test_a_pickle_is_never_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"schema_version": 1, "sha256": "", "state": Trap()}, tmp_path / "a.ckpt")
    (tmp_path / "b.ckpt").write_bytes(pickle.dumps(Trap()))
    for name in ("a.ckpt", "b.ckpt"):
        with pytest.raises(CheckpointError, match=name):
            checkpoint.load(tmp_path / name)
    assert not (tmp_path / "trapped").exists()


def test_another_schema_is_refused_with_both_versions(tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    checkpoint.save(path, {"epoch": 1})
    held = torch.load(path, weights_only=True)
    torch.save({**held, "schema_version": 99}, path)
    with pytest.raises(CheckpointError, match=r"99.*reads 1"):
        checkpoint.load(path)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    recipe = recipes.load("fast", {"width": 0.125, "image_size": 48})
    model = models.build(recipe)
    faces = Faces(np.zeros((1, 48, 48), np.uint8), np.zeros(1, np.int64), np.array(["a"]))
    run = Run.create(tmp_path / "run")
    values = checkpoint.model_state(model, Preprocessing.of(recipe, faces), recipe, 4)
    checkpoint.save(run.file("best.ckpt"), values)
    return run


def test_a_model_comes_back_ready_for_evaluation(run: Run) -> None:
    loaded = checkpoint.load_model(run)
    assert not loaded.model.training
    assert (loaded.epoch, loaded.recipe.width, loaded.preprocessing.size) == (4, 0.125, 48)
    held = checkpoint.load(run.file("best.ckpt"))
    for name, value in loaded.model.state_dict().items():
        assert torch.equal(value, held["model"][name])


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            {"preprocessing": {"size": 48, "channels": 1, "mean": [0.5], "std": [0.5], "emotions": list("abcdefg")}},
            "order",
        ),
        ({"recipe": "name: x\nepochs: 1\nwidht: 2"}, "width"),
        ({"model": {}}, "Missing key"),
    ],
)
def test_a_model_that_does_not_fit_is_refused(run: Run, change: dict[str, object], told: str) -> None:
    path = run.file("best.ckpt")
    checkpoint.save(path, {**checkpoint.load(path), **change})
    with pytest.raises(CheckpointError, match=told):
        checkpoint.load_model(run)


def test_a_run_without_a_checkpoint_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="train first"):
        checkpoint.load_model(Run.create(tmp_path / "new"))


def test_a_saver_writes_what_was_when_it_was_told(tmp_path: Path) -> None:
    first, second = tmp_path / "first.ckpt", tmp_path / "second.ckpt"
    weights = torch.zeros(1000)
    with checkpoint.Saver() as saver:
        for step in range(5):
            weights.fill_(step)
            saver.save((first, {"step": step, "weights": weights}), (second, {"step": -step}))
            weights.fill_(99)
            if step == 3:
                saver.wait()
                assert checkpoint.load(first)["step"] == 3
    assert checkpoint.load(first)["step"] == 4
    assert torch.equal(checkpoint.load(first)["weights"], torch.full((1000,), 4.0))
    assert checkpoint.load(second) == {"step": -4}


def test_a_saver_tells_what_could_not_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no directory", encoding="utf-8")
    with pytest.raises(OSError, match="file"), checkpoint.Saver() as saver:
        saver.save((tmp_path / "file" / "a.ckpt", {"epoch": 1}))


def test_a_disk_that_is_full_is_told_by_the_system_s_own_error(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    path = tmp_path / "last.ckpt"
    checkpoint.save(path, {"epoch": 1})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            checkpoint.save(path, {"weights": torch.zeros(1_000_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert checkpoint.load(path) == {"epoch": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["last.ckpt"]


def test_an_error_waits_for_what_is_being_written(tmp_path: Path) -> None:
    def interrupted() -> None:
        with checkpoint.Saver() as saver:
            saver.save((tmp_path / "a.ckpt", {"weights": torch.zeros(3_000_000)}))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert checkpoint.load(tmp_path / "a.ckpt")["weights"].shape == (3_000_000,)
