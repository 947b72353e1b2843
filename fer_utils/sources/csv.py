"""Reads the challenge's tables: ``fer2013.csv``, ``icml_face_data.csv``, and Kaggle's ``train.csv`` and ``test.csv``.

Columns are found by name, whatever their order and the spaces about them: ``pixels`` (2,304 numbers 0 to 255, row by
row of the image), ``emotion`` (the challenge's 0 to 6; absent or -1 where unlabelled) and ``Usage`` (Training,
PublicTest, PrivateTest; absent where the whole file is one part). Faces are called ``fer2013[123]``: the file and the
row, counted from 0 without the header, as pandas counts.

A general CSV parser makes a string of each row's pixels and leaves 74 million numbers to be parsed out of them. Here
all numbers of some rows are parsed at once, by arithmetic on the bytes; rows in which anything looks odd are parsed
again one by one, which finds what is wrong with them, if anything.
"""

from __future__ import annotations

import csv
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from io import BufferedReader
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from fer_utils.faces import SIZE, Digests, Faces, Images, digests
from fer_utils.sources.reading import (
    PIXELS,
    ROLES,
    USAGES,
    BadItems,
    Contents,
    OnBad,
    Role,
    SourceError,
    arrange,
    label_target,
    wrong_count,
    wrong_pixel,
)

Bytes = npt.NDArray[np.uint8]
Positions = npt.NDArray[np.int64]

NONE: Final[Digests] = np.zeros(0, "S32")
THREADS: Final = 2
BLOCK: Final = 4_000_000
"""Bytes that are read at a time."""
ROWS_AT_ONCE: Final = 16
"""Rows whose pixels are parsed at once: about 128 kB, so that all intermediate arrays stay in the processor's cache."""
PAD: Final = 4
"""Spaces before the first row of a block, so that a number's three bytes can always be looked back at."""

_SPACE, _NEWLINE, _RETURN, _COMMA, _QUOTE, _ZERO, _NINE = (ord(c) for c in ' \n\r,"09')


class Columns(NamedTuple):
    """Where each column stands, counted from 0; None where it is absent."""

    pixels: int
    emotion: int | None
    usage: int | None
    total: int


class Rows(NamedTuple):
    """The rows of a block, counted from its first.

    Attributes:
        images, digests, targets, roles: those of the good rows.
        good: which rows those are.
        bad: the other rows, and what is wrong with each.
        total: how many rows there are.
    """

    images: Images
    digests: Digests
    targets: list[int]
    roles: list[Role]
    good: list[int]
    bad: list[tuple[int, str]]
    total: int


def read_header(path: Path, line: bytes) -> Columns:
    """Return where the columns stand.

    Raises:
        SourceError: ``pixels`` is not among the names, or a name is there twice.
    """
    text = line.decode("utf-8-sig", "replace").strip()
    names = [name.strip().strip('"').strip().lower() for name in text.split(",")]
    known = [name for name in names if name in ("pixels", "emotion", "usage")]
    if "pixels" not in known or len(set(known)) != len(known):
        begins = f"begins with {text[:80]!r}" if text else "is empty"
        raise SourceError(
            f"{path} {begins}; expected a line of column names: pixels and, where known, emotion and Usage. "
            "Is it one of fer2013.csv, icml_face_data.csv, train.csv and test.csv?"
        )
    where = {name: names.index(name) for name in known}
    return Columns(where["pixels"], where.get("emotion"), where.get("usage"), len(names))


def read(files: dict[Role, Path], on_bad: OnBad, location: Path) -> Contents:
    """Read CSV files, each of one role; ``all`` for a file whose Usage column, if it has one, tells the roles.

    Raises:
        SourceError: a file without the column ``pixels``; a bad row under ``on_bad="raise"``; no face at all.
    """
    bad = BadItems(on_bad, location)
    faces: dict[Role, Faces] = {}
    for role, path in files.items():
        faces |= _read_one(path, role, bad)
    bad.check()
    if not faces:
        raise bad.nothing_left()
    return Contents(faces, "files" if len(files) > 1 else "Usage column", tuple(bad.skipped))


def _read_one(path: Path, role: Role, bad: BadItems) -> dict[Role, Faces]:
    chunks: list[tuple[Images, Digests]] = []
    targets: list[int] = []
    roles: list[int] = []
    rows: list[int] = []
    row = 0
    with path.open("rb") as file, ThreadPoolExecutor(THREADS) as pool:
        columns = read_header(path, file.readline())
        pending: deque[Future[Rows]] = deque()
        blocks = _blocks(file)
        while True:
            # Few blocks are under way at a time, so that memory does not grow with the file.
            while len(pending) <= THREADS and (block := next(blocks, None)) is not None:
                pending.append(pool.submit(_parse_block, block, columns, role))
            if not pending:
                break
            found = pending.popleft().result()
            chunks.append((found.images, found.digests))
            targets += found.targets
            roles += [ROLES.index(its_role) for its_role in found.roles]
            rows += [row + i for i in found.good]
            for i, reason in found.bad:
                bad.add(f"{path.name} row {row + i}", reason)
            row += found.total
    if not targets:
        bad.add(path.name, "an empty split: there is no face in it")
    names = np.array([f"{path.stem}[{row}]" for row in rows], dtype=np.str_)
    return arrange(chunks, np.array(targets, np.int64), np.array(roles, np.int8), names)


def _blocks(file: BufferedReader) -> Iterator[bytearray]:
    """Give the rest of the file in blocks of whole lines, each with `PAD` spaces before and a newline at its end."""
    rest = bytearray(b" " * PAD)
    while True:
        size = len(rest)
        block = bytearray(size + BLOCK)
        block[:size] = rest
        with memoryview(block) as view:
            got = file.readinto(view[size:])
        del block[size + got :]
        end = block.rfind(b"\n", PAD) + 1
        if not got:
            if len(block) > PAD:
                yield block + b"\n"
            return
        if end:
            rest = bytearray(b" " * PAD) + block[end:]
            del block[end:]
            yield block
        else:
            rest = block


def _parse_block(block: bytearray, columns: Columns, role: Role) -> Rows:
    """Parse the lines of a block: all numbers at once, then the rows that look odd one by one."""
    data = np.frombuffer(block, np.uint8)
    edges = _edges(data, columns.total)
    if edges is None:
        return _parse_lines(bytes(block[PAD:]).split(b"\n"), columns, role)
    begin, end = edges[:, columns.pixels] + 1, edges[:, columns.pixels + 1]
    end = end - (data[end - 1] == _RETURN)
    quoted = (end - begin > 1) & (data[begin] == _QUOTE) & (data[end - 1] == _QUOTE)
    begin, end = begin + quoted, end - quoted
    # What stands about the pixels is the same few texts over and over, so each is understood once. It is then blanked.
    meanings: dict[tuple[bytes, bytes], tuple[int, Role] | str] = {}
    meant: list[tuple[int, Role] | str] = []
    blank_from = PAD
    with memoryview(block) as view:
        bounds = (edges[:, 0] + 1, begin, end, edges[:, -1])
        for first, start, stop, last in zip(*(bound.tolist() for bound in bounds), strict=True):
            about = bytes(view[first:start]), bytes(view[stop:last])
            meaning = meanings.get(about)
            if meaning is None:
                meaning = meanings[about] = _meaning(about, columns, role)
            meant.append(meaning)
            view[blank_from:start] = b" " * (start - blank_from)
            blank_from = stop
        view[blank_from:] = b" " * (len(view) - blank_from)
    images, right = _numbers(data, begin, end)
    rows = Rows(images, NONE, [], [], [], [], len(meant))
    for i, (meaning, is_right) in enumerate(zip(meant, right.tolist(), strict=True)):
        if isinstance(meaning, str):
            rows.bad.append((i, meaning))
            continue
        if not is_right:
            try:
                images[i] = parse_pixels(bytes(block[begin[i] : end[i]]))
            except ValueError as error:
                rows.bad.append((i, str(error)))
                continue
        rows.good.append(i)
        rows.targets.append(meaning[0])
        rows.roles.append(meaning[1])
    kept = images[rows.good] if rows.bad else images
    return rows._replace(images=kept.reshape(-1, SIZE, SIZE), digests=digests(kept))


def _edges(data: Bytes, columns: int) -> Positions | None:
    """Return where each row's fields lie, int64 (rows, columns + 1): field j is between edges j and j + 1, exclusive.

    None where some row has more or fewer commas than the header: a blank line, a quoted comma, a damaged row.
    """
    marks = np.flatnonzero((data == _COMMA) | (data == _NEWLINE))
    rows, left_over = divmod(len(marks), columns)
    ends = marks.reshape(rows, columns) if not left_over else marks.reshape(1, -1)
    if left_over or (data[ends[:, :-1]] == _NEWLINE).any() or (data[ends[:, -1]] == _COMMA).any():
        return None
    return np.column_stack([np.append(PAD - 1, ends[:-1, -1]), ends])


def _numbers(data: Bytes, begin: Positions, end: Positions) -> tuple[Bytes, npt.NDArray[np.bool_]]:
    """Parse the numbers of each row, ``data[begin:end]``; all other bytes are spaces.

    Returns:
        uint8 (rows, 2304), and for each row whether it holds 2,304 whole numbers of one to three digits up to 255 with
        nothing but spaces between; where it does not, its numbers mean nothing.
    """
    images = np.empty((len(begin), PIXELS), np.uint8)
    right = np.zeros(len(begin), np.bool_)
    for i in range(0, len(begin), ROWS_AT_ONCE):
        rows = slice(i, i + ROWS_AT_ONCE)
        piece = data[begin[i] - PAD : end[rows][-1] + 1]
        digit = piece >= _ZERO
        if piece.max() > _NINE or np.count_nonzero(digit) + np.count_nonzero(piece == _SPACE) != len(piece):
            continue
        # At byte k ends a number if a digit is followed by none. Its ones, tens and hundreds are the digits at k, k - 1
        # and k - 2, as far as there is no gap. The low four bits of a space are 0, those of a digit its value.
        value = piece & 15
        three = (digit[2:] & digit[1:-1] & digit[:-2]).view(np.uint8)
        hundreds = value[:-2] * three
        number = value[1:-1] * np.uint8(10)
        number += value[2:]
        # 100 h + r exceeds 255 exactly if 25 h + r // 4 exceeds 63, which does not overflow in 8 bits.
        hundreds *= np.uint8(25)
        if (hundreds + (number >> 2)).max() > 63 or (three[1:] & three[:-1]).any():
            continue
        hundreds *= np.uint8(4)
        number += hundreds
        ends = np.flatnonzero(digit[2:-1] > digit[3:])
        counts = np.diff(np.searchsorted(ends + (begin[i] - PAD + 2), np.append(begin[rows], end[rows][-1])))
        if (counts == PIXELS).all():
            images[rows] = number[ends].reshape(-1, PIXELS)
            right[rows] = True
    return images, right


def _meaning(about: tuple[bytes, bytes], columns: Columns, role: Role) -> tuple[int, Role] | str:
    """Return target and role of a row, or what is wrong, by what stands before and behind its pixels."""
    try:
        fields = _fields(b"".join(about), columns)
        return _label_and_role(fields, columns, role)
    except ValueError as error:
        return str(error)


def _parse_lines(lines: list[bytes], columns: Columns, role: Role) -> Rows:
    rows = Rows(np.empty((0, SIZE, SIZE), np.uint8), NONE, [], [], [], [], 0)
    images = []
    full = [line for line in lines if line.strip()]
    for i, line in enumerate(full):
        try:
            fields = _fields(line, columns)
            target, its_role = _label_and_role(fields, columns, role)
            images.append(parse_pixels(fields[columns.pixels].encode()))
        except ValueError as error:
            rows.bad.append((i, str(error)))
        else:
            rows.good.append(i)
            rows.targets.append(target)
            rows.roles.append(its_role)
    stacked = np.array(images, np.uint8).reshape(-1, SIZE, SIZE)
    return rows._replace(images=stacked, digests=digests(stacked), total=len(full))


def _fields(line: bytes, columns: Columns) -> list[str]:
    try:
        fields = next(csv.reader([line.decode("utf-8", "replace").strip("\r\n")], strict=True), [])
    except csv.Error as error:
        raise ValueError(f"is no row of a table ({error})") from None
    if len(fields) != columns.total:
        raise ValueError(f"has {len(fields)} fields; the header has {columns.total}")
    return fields


def _label_and_role(fields: list[str], columns: Columns, role: Role) -> tuple[int, Role]:
    if columns.usage is not None:
        usage = fields[columns.usage].strip()
        if usage.lower() not in USAGES:
            raise ValueError(f"Usage is {usage!r}; expected Training, PublicTest or PrivateTest")
        role = USAGES[usage.lower()]
    return label_target("" if columns.emotion is None else fields[columns.emotion].strip(), role), role


def parse_pixels(text: bytes) -> Bytes:
    """Return the pixels, uint8 (2304,), of numbers with whitespace between.

    Raises:
        ValueError: there are not 2,304 numbers, or one is no whole number from 0 to 255.
    """
    words = text.split()
    if len(words) != PIXELS:
        raise wrong_count(len(words))
    pixels = np.empty(PIXELS, np.uint8)
    for i, word in enumerate(words):
        if not (word.isdigit() and len(word) < PIXELS and int(word) <= 255):
            raise wrong_pixel(i, word[:20].decode("utf-8", "replace"))
        pixels[i] = int(word)
    return pixels
