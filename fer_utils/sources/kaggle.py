"""Kaggle's FER2013 through kagglehub: the pinned version, from kagglehub's cache or from the network."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from fer_utils.sources.reading import SourceError

HANDLE: Final = "msambare/fer2013/versions/1"
"""Dataset and version. The version is pinned: an unpinned handle asks the network even when the data is cached."""


def cached() -> Path | None:
    """Return where kagglehub's cache (``$KAGGLEHUB_CACHE`` or its default) holds the data, None if it does not.

    Never touches the network.
    """
    from kagglehub.cache import Cache
    from kagglehub.handle import parse_dataset_handle

    path = Cache().load_from_cache(parse_dataset_handle(HANDLE))
    return None if path is None else Path(path)


def download() -> Path:
    """Return the folder of the data, downloaded where kagglehub's cache does not hold it yet."""
    import kagglehub

    try:
        return Path(kagglehub.dataset_download(HANDLE))
    except (OSError, ValueError) as error:
        raise SourceError(str(error)) from None
