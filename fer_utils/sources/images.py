"""One image file in any format that Pillow reads safely, and its way to a grey 48×48 face."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Final, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from fer_utils.faces import SIZE

FORMATS: Final = ("JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF", "PPM", "JPEG2000", "AVIF")
"""Formats that are read. Others are refused: some run another program (EPS), some are guessed from few bytes."""

MAX_PIXELS: Final = 80_000_000
"""Larger images are refused before they are unpacked: a few kilobytes can claim billions of pixels."""

MAX_BYTES: Final = 200_000_000
"""Larger files are not read into memory."""

# What Pillow's decoders raise on files that are broken in one way or another.
_BROKEN: Final = (
    OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError, OverflowError, RuntimeError,
    MemoryError, struct.error, zlib.error,
)  # fmt: skip
_ORIENTATION: Final = 0x0112


class ImageError(ValueError):
    """An image that cannot be read; the message says why, and the caller knows its name."""


def open_image(data: bytes) -> Image.Image:
    """Return the image that the bytes of a file hold, unpacked and turned upright by its EXIF orientation.

    Raises:
        ImageError: the file is empty, truncated, broken or no image, holds several frames, or claims more than
            `MAX_PIXELS`.
    """
    if not data:
        raise ImageError("the file is empty")
    if len(data) > MAX_BYTES:
        raise ImageError(f"the file has {len(data):,} bytes; more than {MAX_BYTES:,} are not read")
    try:
        image: Image.Image = Image.open(io.BytesIO(data), formats=FORMATS)
        if image.width * image.height > MAX_PIXELS:
            raise ImageError(
                f"the image claims {image.width:,} × {image.height:,} pixels; more than {MAX_PIXELS:,} are not read"
            )
        # A phone's MPO file is a photo that carries further views behind the first, no animation.
        if getattr(image, "n_frames", 1) > 1 and image.format != "MPO":
            raise ImageError("the image is animated or has several pages; one picture is expected")
        image.load()
        if image.getexif().get(_ORIENTATION, 1) != 1:
            image = ImageOps.exif_transpose(image)
    except ImageError:
        raise
    except UnidentifiedImageError:
        raise ImageError(f"not an image in a format that is read ({', '.join(FORMATS)})") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(f"the image claims too many pixels: {error}") from None
    except _BROKEN as error:
        raise ImageError(f"the image is truncated or broken ({error})") from None
    return image


def to_face(image: Image.Image) -> npt.NDArray[np.uint8]:
    """Return a picture as a face, uint8 (48, 48): grey, and resized with antialiasing where its size differs.

    What is transparent is laid on white, since the colours that a file holds there are arbitrary.

    Raises:
        ImageError: the pixels are 32-bit numbers, of which nothing tells where black and white are, or their colours
            cannot be turned into grey.
    """
    if image.mode == "I" and image.format == "PPM":
        # Pillow scales a portable map of more than 8 bits to 16.
        grey = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    elif image.mode in ("I", "F"):
        raise ImageError("the image has 32-bit pixels, whose range is not known; save it with 8 or 16 bits")
    elif image.mode.startswith("I;16"):
        grey = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    elif image.has_transparency_data:
        grey = on_white(image).convert("L")
    else:
        grey = converted(image, "L")
    if grey.size != (SIZE, SIZE):
        grey = grey.resize((SIZE, SIZE), Image.Resampling.LANCZOS)
    return np.asarray(grey)


def on_white(image: Image.Image) -> Image.Image:
    """Return a picture with transparency as RGBA without any, laid on white.

    Raises:
        ImageError: Pillow knows no way from its mode.
    """
    clear = converted(image, "RGBA")
    return Image.alpha_composite(Image.new("RGBA", clear.size, "white"), clear)


def converted(image: Image.Image, mode: Literal["L", "RGB", "RGBA"]) -> Image.Image:
    """Return a picture in another mode.

    Raises:
        ImageError: Pillow knows no way from its mode.
    """
    try:
        return image.convert(mode)
    except ValueError:
        pass
    try:
        # From LAB it knows the way to RGB alone.
        return image.convert("RGB").convert(mode)
    except ValueError:
        raise ImageError(f"the image has colours of the kind {image.mode}; save it as grey or RGB") from None


def is_face(image: Image.Image) -> bool:
    """Tell whether a picture is grey and 48×48 already, so that `to_face` changes nothing."""
    return image.mode == "L" and image.size == (SIZE, SIZE) and not image.has_transparency_data
