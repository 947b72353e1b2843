"""What every test file shares: drawn faces, the real faces where they are, a recipe that trains in seconds."""

import os
import shutil
import tempfile
from pathlib import Path

import pytest

from fer_utils.faces import Splits
from fer_utils.recipe import Recipe, load

# Before anything reads them: tests leave the user's caches, settings and credentials alone, and start without any.
_HOME = tempfile.mkdtemp(prefix="fer-tests-")
for _name in ("XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_STATE_HOME"):
    os.environ.pop(_name, None)
for _name in ("TORCH_HOME", "KAGGLEHUB_CACHE", "IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR"):
    os.environ.pop(_name, None)
os.environ["HOME"] = os.environ["USERPROFILE"] = os.environ["LOCALAPPDATA"] = _HOME
# One thread each: torch's backward pass crashed in test_models with two, after the tests of the exports had loaded
# onnxruntime into the same process. Tiny networks lose nothing by it, and child processes inherit it.
for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[_name] = "1"
# Figures are drawn, never shown.
os.environ["MPLBACKEND"] = "agg"


_LONGEST = ("test_notebooks", "test_training", "test_export", "test_models", "test_sources", "test_inference")
"""Files that take longest. They go first: one that is begun last leaves the other workers with nothing to do."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: _LONGEST.index(item.path.stem) if item.path.stem in _LONGEST else len(_LONGEST))


def pytest_unconfigure() -> None:
    shutil.rmtree(_HOME, ignore_errors=True)


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("real") and not os.environ.get("FER_DATA"):
        pytest.skip(_NO_REAL_DATA)
    if item.get_closest_marker("gpu"):
        import torch

        if not torch.cuda.is_available():
            pytest.skip("there is no CUDA device")


_NO_REAL_DATA = "FER_DATA is not set: it names FER2013's folder, with train/ and test/ in it"


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def synthetic_splits() -> Splits:
    """A few hundred drawn faces."""
    from fer_utils.sources import synthetic

    return synthetic.generate(600, seed=0)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Path of the real faces' folder layout; the test is skipped where there are none."""
    path = os.environ.get("FER_DATA")
    if not path:
        pytest.skip(_NO_REAL_DATA)
    return Path(path)


@pytest.fixture(scope="session")
def tiny_recipe() -> Recipe:
    """A recipe that trains on the drawn faces in seconds; ``model_copy(update=...)`` changes a field."""
    return load("fast", {"image_size": 48, "width": 0.125, "epochs": 1, "batch_size": 64})
