"""Kaggle's FER2013 through kagglehub: the pinned version, from kagglehub's cache or from the network."""

from __future__ import annotations

import os
import tarfile
import zipfile
from pathlib import Path
from typing import Final

from fer_utils.sources.reading import SourceError

DATASET: Final = "msambare/fer2013"
VERSION: Final = "1"
HANDLE: Final = f"{DATASET}/versions/{VERSION}"
"""Dataset and version. The version is pinned: an unpinned handle asks the network even when the data is cached."""


def cached() -> Path | None:
    """Return where kagglehub's cache (``$KAGGLEHUB_CACHE`` or its default) holds the data, None if it does not.

    Never touches the network. Looks where kagglehub would, without the second that importing kagglehub takes.
    """
    named = os.environ.get("KAGGLEHUB_CACHE")
    try:
        root = Path(named) if named else Path.home() / ".cache" / "kagglehub"
    except RuntimeError:  # a user without a home has no cache
        return None
    dataset = root / "datasets" / DATASET
    path = dataset / "versions" / VERSION
    return path if (dataset / f"{VERSION}.complete").exists() and path.is_dir() else None


def download() -> Path:
    """Return the folder of the data, downloaded where kagglehub's cache does not hold it yet.

    Raises:
        SourceError: it could not be downloaded; says how to get the data by hand.
    """
    import kagglehub
    from kagglehub import exceptions

    refusals = (
        exceptions.BackendError,
        exceptions.CredentialError,
        exceptions.DataCorruptionError,
        exceptions.KaggleEnvironmentError,
        exceptions.NotFoundError,
        exceptions.UnauthenticatedError,
    )
    try:
        return Path(kagglehub.dataset_download(HANDLE))
    except (OSError, ValueError, tarfile.TarError, zipfile.BadZipFile, *refusals) as error:
        raise SourceError(
            f"Kaggle's {HANDLE} could not be downloaded ({type(error).__name__}: {str(error).strip()[:300]}). "
            f"By hand: download https://www.kaggle.com/datasets/{DATASET} in a browser, unpack it, and give the folder "
            "that holds train and test as data (or set FER_DATA to it)."
        ) from error
