"""Many small JPEG files unpacked as one.

Unpacking a 48×48 JPEG file alone costs more for setting up the decoder than for the pixels. But files that one program
wrote share their headers byte for byte (all of Kaggle's FER2013 do), and the data of a grey image are its 8×8 blocks
row by row. So the data of many such files, with restart markers between, are one valid picture of the files below each
other (ITU-T T.81, E.2.4: the decoder starts anew after each marker). The pixels are the same.
"""

from __future__ import annotations

import io
from typing import Final

import numpy as np
from PIL import Image

from fer_utils.faces import SIZE, Images

END: Final = b"\xff\xd9"
"""The marker that ends a JPEG file."""

_START: Final = b"\xff\xd8"
_RESTARTS: Final = [bytes([0xFF, 0xD0 + i]) for i in range(8)]
_FRAME, _SCAN = 0xC0, 0xDA
# Nothing but these may stand before the data: JFIF's header, comments, quantisation and Huffman tables, baseline frame.
_PLAIN: Final = frozenset({0xE0, 0xFE, 0xDB, 0xC4, _FRAME})
_GREY_FACE: Final = bytes([8, 0, SIZE, 0, SIZE, 1])  # bits, height, width, components
_HEIGHT_OFFSET: Final = 5  # from a frame's marker to its height
_BLOCKS: Final = (SIZE // 8) ** 2

MOST: Final = 65_500 // SIZE
"""Faces that can be stacked: libjpeg reads no picture of more rows than 65,500."""


def header_length(data: bytes) -> int:
    """Return how many bytes stand before the image data, or 0 where the file is no plain grey 48×48 baseline JPEG."""
    if not data.startswith(_START):
        return 0
    at = 2
    seen_frame = False
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker, length = data[at + 1], int.from_bytes(data[at + 2 : at + 4], "big")
        if marker == _SCAN:
            return at + 2 + length if seen_frame else 0
        if marker not in _PLAIN:
            return 0
        if marker == _FRAME:
            if seen_frame or data[at + 4 : at + 10] != _GREY_FACE:
                return 0
            seen_frame = True
        at += 2 + length
    return 0


def unpack(header: bytes, pieces: list[bytes]) -> Images | None:
    """Return the images of files that begin with ``header``, uint8 (N, 48, 48).

    Args:
        header: what stands before the image data, `header_length` bytes of one of the files.
        pieces: what stands between the header and `END` in each file; at most `MOST`.

    Returns:
        None where a file's image data is not one plain piece or the decoder refuses: each file alone tells more.
    """
    at = 2
    while header[at + 1] != _FRAME:
        at += 2 + int.from_bytes(header[at + 2 : at + 4], "big")
    height = at + _HEIGHT_OFFSET
    scan = header.rindex(bytes([0xFF, _SCAN]))
    restart = b"\xff\xdd\x00\x04" + _BLOCKS.to_bytes(2, "big")
    start = b"".join(
        (header[:height], (SIZE * len(pieces)).to_bytes(2, "big"), header[height + 2 : scan], restart, header[scan:])
    )
    parts = [start]
    for i, piece in enumerate(pieces):
        parts += (piece, _RESTARTS[i % 8])
    parts[-1] = END
    stack = b"".join(parts)
    # In image data each byte FF is followed by 00. One that is not is a marker, of which there must be ours alone.
    data = np.frombuffer(stack, np.uint8, offset=len(start))
    markers = np.count_nonzero((data[:-1] == 0xFF) & (data[1:] != 0))
    if markers != len(pieces) or b"" in pieces:
        return None
    try:
        with Image.open(io.BytesIO(stack), formats=("JPEG",)) as image:
            return np.asarray(image).reshape(-1, SIZE, SIZE)
    except OSError:
        return None
