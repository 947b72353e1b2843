"""Pictures from files, folders, tables, arrays and tensors, one at a time; what cannot be read says why."""

from __future__ import annotations

import functools
import math
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from fer_utils.files import printable
from fer_utils.sources import images as files
from fer_utils.sources.reading import SourceError, hidden

Grey = npt.NDArray[np.uint8]
Input: TypeAlias = "str | Path | Image.Image | npt.NDArray[Any] | Iterable[Input]"
"""A file, folder or table by its path, a picture, one or several in an array or tensor, or any iterable of these."""

TABLES: Final = (".csv", ".parquet", ".gzip")
PICTURES: Final = (
    *(
        ".jpg",
        ".jpeg",
        ".jfif",
        ".mpo",
        ".png",
        ".bmp",
        ".gif",
        ".webp",
        ".tif",
        ".tiff",
        ".ppm",
        ".pgm",
        ".pnm",
        ".jp2",
        ".avif",
    ),
    *(".heic", ".heif", ".mp4", ".mov", ".avi", ".mkv", ".webm"),
)
"""Suffixes of a folder's files that are looked at; those in the second line get an answer that says what to do."""
_CHANNELS: Final = (1, 2, 3, 4)
"""Sizes of an array's axis that holds grey, grey with transparency, RGB or RGBA."""


_ROUNDING: Final = 1e-5
"""How far beyond [0, 1] a float may be and still count as its end: a four-hundredth of a grey level."""


class InputError(ValueError):
    """An input that cannot be used; the message says what was expected and what to do."""


class Item(NamedTuple):
    """One picture of the input, upright and without transparency, or why it cannot be had."""

    source: str
    picture: Image.Image | InputError


def pictures(images: Input) -> Iterator[Item]:
    """Give each picture of the input in turn, one at a time in memory; what cannot be read comes as an InputError."""
    numbers = iter(range(sys.maxsize))
    yield from _pictures(images, numbers)


def _pictures(images: Any, numbers: Iterator[int]) -> Iterator[Item]:
    if isinstance(images, str | Path):
        yield from _named(images)
    elif isinstance(images, Image.Image):
        yield Item(f"image {next(numbers)}", _attempt(lambda: _flat(_upright(images))))
    elif isinstance(images, np.ndarray) or _is_tensor(images):
        try:
            arrays = _split(images)
        except InputError as error:
            yield Item(f"image {next(numbers)}", error)
            return
        for array in arrays:
            yield Item(f"image {next(numbers)}", _attempt(functools.partial(_from_array, array)))
    elif isinstance(images, Iterable) and not isinstance(images, bytes | bytearray | dict):
        for item in images:
            yield from _pictures(item, numbers)
    else:
        yield Item(
            f"image {next(numbers)}",
            InputError(f"{type(images).__name__} is no picture: give a path, a PIL image, an array or a tensor"),
        )


def _attempt(read: Callable[[], Image.Image]) -> Image.Image | InputError:
    try:
        return read()
    except InputError as error:
        return error
    except files.ImageError as error:
        return InputError(str(error))


def _named(name: str | Path) -> Iterator[Item]:
    source = printable(str(name))
    if not source.strip():
        yield Item(source, InputError("the name is empty; give the path of a picture, folder or table"))
        return
    if re.match(r"[a-z]+://", source):
        yield Item(source, InputError("addresses are not fetched: download the picture and give its path"))
        return
    try:
        path = Path(name).expanduser()
        is_folder, is_there = path.is_dir(), path.exists()
    except (OSError, RuntimeError) as error:  # no permission, a name too long, nobody's home
        yield Item(source, InputError(f"cannot be read: {getattr(error, 'strerror', None) or error}"))
        return
    if is_folder:
        found = False
        for item in _in_folder(path):
            found = True
            yield item
        if not found:
            yield Item(source, InputError("there is no picture in this folder"))
    elif not is_there:
        yield Item(source, InputError("there is no such file"))
    elif path.suffix.lower() in TABLES:
        yield from table_rows(path)
    else:
        yield Item(source, _attempt(functools.partial(read_picture, path)))


def _in_folder(folder: Path) -> Iterator[Item]:
    """A folder's pictures, sorted, those of its folders after its own; links to folders are not followed."""
    try:
        entries = sorted((entry for entry in folder.iterdir() if not hidden(entry.name)), key=lambda entry: entry.name)
        pictures = [
            entry
            for entry in entries
            # A link whose file is missing is a picture that cannot be read.
            if entry.suffix.lower() in PICTURES and (entry.is_file() or not entry.exists())
        ]
        folders = [entry for entry in entries if entry.is_dir() and not entry.is_symlink()]
    except OSError as error:
        yield Item(printable(str(folder)), InputError(f"the folder cannot be read: {error.strerror}"))
        return
    for path in pictures:
        yield Item(printable(str(path)), _attempt(functools.partial(read_picture, path)))
    for path in folders:
        yield from _in_folder(path)


def read_picture(path: str | Path) -> Image.Image:
    """Return a file's picture: upright by its EXIF orientation, transparency on white.

    Of HEIC, video and files of more than `MAX_BYTES` no more than the first bytes is read.

    Raises:
        InputError: it cannot be read; says why and, for HEIC and video, what to do.
    """
    try:
        with Path(path).open("rb") as file:
            head = file.read(16)
            _refuse(_kind(head))
            size = os.fstat(file.fileno()).st_size
            if size > files.MAX_BYTES:
                raise InputError(f"the file has {size:,} bytes; more than {files.MAX_BYTES:,} are not read")
            # A pipe tells no size: a byte too many is enough for `open_image` to refuse it.
            content = head + file.read(files.MAX_BYTES + 1 - len(head))
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}") from error
    try:
        return _flat(files.open_image(content))
    except files.ImageError as error:
        raise InputError(str(error)) from error


def _refuse(kind: str | None) -> None:
    """Raise an InputError that says what to do with a HEIC photo or a video; None is neither."""
    if kind == "HEIC":
        raise InputError(
            "this is a HEIC photo, which is not read: save it as JPEG (on a Mac `sips -s format jpeg IN --out OUT.jpg`"
            ", elsewhere `heif-convert IN OUT.jpg`), or set the phone's camera to its most compatible format"
        )
    if kind == "video":
        raise InputError(
            "this is a video: take pictures out of it (`ffmpeg -i VIDEO -vf fps=1 frames/%04d.png`) and give their "
            "folder"
        )


def _kind(head: bytes) -> str | None:
    """HEIC, video or None, by a file's first bytes."""
    if head[4:8] == b"ftyp":
        brand = head[8:12]
        if brand in (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1"):
            return "HEIC"
        return None if brand in (b"avif", b"avis", b"jp2 ", b"jpx ") else "video"
    if head[:4] in (b"\x1aE\xdf\xa3", b"FLV\x01", b"\x00\x00\x01\xba") or head[:4] + head[8:12] == b"RIFFAVI ":
        return "video"
    return None


def _upright(image: Image.Image) -> Image.Image:
    """An image object turned upright by its EXIF orientation, as ``open_image`` does for a file."""
    try:
        return ImageOps.exif_transpose(image)
    except (OSError, ValueError, SyntaxError) as error:
        raise InputError(f"the image is truncated or broken ({error})") from error


def _flat(image: Image.Image) -> Image.Image:
    """A picture of any mode as L, I;16 or RGB: transparency on white, floats in [0, 1] as bytes."""
    if 0 in image.size:
        raise InputError("the picture holds no pixel")
    if image.mode in ("L", "RGB", "1") and not image.has_transparency_data:
        return image
    if image.mode.startswith("I;16"):
        return image
    if image.mode == "I":
        values = np.asarray(image)
        # 16-bit pictures come like this from some files; up to 255 nothing tells whether it is one, and black.
        if values.min() < 0 or values.max() > 65535 or values.max() <= 255:
            raise InputError(f"32-bit values from {values.min()} to {values.max()}: save the picture with 8 or 16 bits")
        return Image.fromarray((values >> 8).astype(np.uint8))
    if image.mode == "F":
        return Image.fromarray(_to_bytes(np.asarray(image)))
    try:
        return files.on_white(image).convert("RGB") if image.has_transparency_data else files.converted(image, "RGB")
    except files.ImageError as error:
        raise InputError(str(error)) from None


def _is_tensor(value: Any) -> bool:
    # Without importing torch: nobody has a tensor who has not. The command searches its first picture while another
    # thread imports torch, and until that is done the module is there and its Tensor is not.
    tensor = getattr(sys.modules.get("torch"), "Tensor", None)
    return tensor is not None and isinstance(value, tensor)


def _split(images: Any) -> Iterator[npt.NDArray[Any]]:
    """Split an array or tensor into pictures (H, W) or (H, W, 1 to 4).

    Raises:
        InputError: another shape, or one that may mean two things.
    """
    tensor = _is_tensor(images)
    shape = tuple(images.shape)
    if tensor and len(shape) == 3 and shape[0] in (3, 4):
        one, several = {3: ("colour picture", "three"), 4: ("RGBA picture", "four")}[shape[0]]
        raise InputError(
            f"a tensor {shape} may be one {one} or {several} grey ones: "
            f"give (1, {shape[0]}, H, W) or ({shape[0]}, 1, H, W)"
        )
    if tensor:
        # numpy has no bfloat16.
        images = (images.detach().float() if images.is_floating_point() else images.detach()).cpu().numpy()
    array: npt.NDArray[Any] = images
    if array.ndim == 4 and array.shape[1] in _CHANNELS and (tensor or array.shape[-1] not in _CHANNELS):
        array = np.moveaxis(array, 1, -1)
    if 0 in array.shape:
        raise InputError(f"an array of shape {shape} holds no pixel")
    if array.ndim == 2 or (array.ndim == 3 and array.shape[-1] in _CHANNELS and not tensor):
        return iter((array,))
    if array.ndim == 3 or (array.ndim == 4 and array.shape[-1] in _CHANNELS):
        return iter(array)
    expected = (
        "(H, W), (N, H, W) or (N, 1 to 4, H, W)" if tensor else "(H, W), (H, W, 1 to 4), (N, H, W) or (N, H, W, 1 to 4)"
    )
    raise InputError(f"an array of shape {shape} is no picture; expected {expected}")


def _from_array(array: npt.NDArray[Any]) -> Image.Image:
    """A picture (H, W) or (H, W, 1 to 4) as L or RGB: transparency on white."""
    values = _to_bytes(array)
    values = values[..., 0] if values.shape[-1] == 1 and values.ndim == 3 else values
    return _flat(Image.fromarray(np.ascontiguousarray(values)))


def _to_bytes(array: npt.NDArray[Any]) -> Grey:
    if array.dtype == np.uint8:
        return array
    if not np.issubdtype(array.dtype, np.floating):
        raise InputError(f"an array of {array.dtype}; expected uint8 from 0 to 255, or float in [0, 1]")
    low, high = float(array.min()), float(array.max())
    if not (math.isfinite(low) and math.isfinite(high)):
        raise InputError("the array holds NaN or infinity; expected float in [0, 1]")
    # Resizing and rounding may end a hair beyond.
    if low < -_ROUNDING or high > 1 + _ROUNDING:
        hint = ": divide by 255, or give uint8" if low >= 0 and high <= 255 else ": undo its normalisation"
        raise InputError(f"float values from {low:.3g} to {high:.3g}; expected [0, 1]{hint}")
    scaled: Grey = np.rint(np.clip(array, 0, 1) * 255).astype(np.uint8)
    return scaled


def table_rows(path: str | Path) -> Iterator[Item]:
    """Give the faces of a CSV or parquet table in the order of its rows, labelled or not; a bad row is an InputError.

    Columns as FER2013 is published: ``pixels`` (CSV) or ``image`` (parquet), 2,304 numbers from 0 to 255. What else a
    row holds is not looked at: a label may be any or none.
    """
    from fer_utils.sources import csv, parquet, row_numbers

    file = Path(path)
    reader = csv.read if file.suffix.lower() == ".csv" else parquet.read
    try:
        contents = reader({"test": file}, "skip", file, labels=False)
        skipped = contents.skipped
        rows: dict[int, Grey | InputError] = dict(
            zip(row_numbers(contents.names).tolist(), contents.images, strict=True)
        )
    except SourceError as error:
        if not error.skipped:
            yield Item(printable(str(path)), InputError(str(error)))
            return
        # Not one row is good, and each says why.
        rows, skipped = {}, error.skipped
    for item in skipped:
        found = re.search(r" row (\d+)$", item.name)
        if found:
            rows[int(found.group(1))] = InputError(item.reason)
    if not rows:
        yield Item(printable(str(path)), InputError("there is no row in this table"))
    for row in sorted(rows):
        value = rows[row]
        yield Item(printable(f"{path}[{row}]"), value if isinstance(value, InputError) else Image.fromarray(value))
