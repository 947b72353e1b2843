"""Reads the challenge's tables: ``fer2013.csv``, ``icml_face_data.csv``, and Kaggle's ``train.csv`` and ``test.csv``.

Columns are found by name, whatever their order and the spaces about them: ``pixels`` (2,304 numbers 0 to 255, row by
row of the image), ``emotion`` (the challenge's 0 to 6; absent or -1 where unlabelled) and ``Usage`` (Training,
PublicTest, PrivateTest; absent where the whole file is one part). Faces are called ``fer2013[123]``: the file and the
row, counted from 0 without the header, as pandas counts.

The numbers of many rows are parsed at once (`fer_utils.sources.numbers`); a row in which anything looks odd is parsed
again alone, which finds what is wrong with it, if anything.
"""

from __future__ import annotations

import csv
import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from fer_utils.faces import SIZE, Digests, Images, digests
from fer_utils.files import printable
from fer_utils.sources.numbers import NumberParser
from fer_utils.sources.reading import (
    PIXELS,
    ROLES,
    USAGES,
    BadItems,
    Contents,
    OnBad,
    Pile,
    Role,
    SourceError,
    label_target,
    of_rows,
    wrong_count,
    wrong_pixel,
)

Bytes = npt.NDArray[np.uint8]

BLOCK: Final = 3_200_000
"""Bytes that are parsed at a time."""
THREADS: Final = 2
"""Threads that read and parse. More wait for each other: each step of the parser takes Python's lock when it ends."""
LINE: Final = 20_000
"""Bytes that are read beyond a block for the end of its last line, again and again up to `LONGEST_LINE`."""
LONGEST_LINE: Final = 1_000_000

_RETURN, _QUOTE = ord("\r"), ord('"')


class Columns(NamedTuple):
    """Where each column stands, counted from 0; None where it is absent."""

    pixels: int
    emotion: int | None
    usage: int | None
    total: int


class Rows(NamedTuple):
    """The rows of a block, counted from its first.

    Attributes:
        images, targets, roles: those of the good rows.
        good: which rows those are.
        bad: the other rows, and what is wrong with each.
        total: how many rows there are.
    """

    images: Images
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
    if "\r" in text and "\0" not in text:  # UTF-16 has a zero between \r and \n
        raise SourceError(
            f"{path} has lines that end in a carriage return alone; save it with \\n or \\r\\n at their ends"
        )
    names = [name.strip().strip('"').strip().lower() for name in text.split(",")]
    known = [name for name in names if name in ("pixels", "emotion", "usage")]
    if "pixels" not in known or len(set(known)) != len(known):
        begins = f"begins with {text[:80]!r}" if text else "is empty"
        raise SourceError(
            f"{path} {begins}; expected a line of column names in UTF-8 with commas between: pixels and, where known, "
            "emotion and Usage. "
            "Is it one of fer2013.csv, icml_face_data.csv, train.csv and test.csv?"
        )
    where = {name: names.index(name) for name in known}
    return Columns(where["pixels"], where.get("emotion"), where.get("usage"), len(names))


def read(files: dict[Role, Path], on_bad: OnBad, location: Path, *, labels: bool = True) -> Contents:
    """Read CSV files, each of one role; ``all`` for a file whose Usage column, if it has one, tells the roles.

    Args:
        files: by role.
        on_bad: ``raise`` or ``skip``.
        location: what to call the place in messages.
        labels: False takes all faces for unlabelled and of their file's role, whatever stands beside the pixels.

    Raises:
        SourceError: a file without the column ``pixels``; a bad row under ``on_bad="raise"``; no face at all.
    """
    bad = BadItems(on_bad, location)
    # A pixel takes two bytes at least.
    pile = Pile(sum(path.stat().st_size for path in files.values()) // (2 * PIXELS))
    targets: list[int] = []
    roles: list[int] = []
    names: list[str] = []
    every_usage = True
    for role, path in files.items():
        before, bad_before = len(targets), len(bad.skipped)
        stem = printable(path.stem)
        row = 0
        columns, begin = _head(path, labels)
        every_usage &= columns.usage is not None
        for found, their_digests in _read_one(path, columns, begin, role):
            pile.add(found.images, their_digests)
            targets += found.targets
            roles += [ROLES.index(its_role) for its_role in found.roles]
            names += [f"{stem}[{row + i}]" for i in found.good]
            for i, reason in found.bad:
                bad.add(f"{path.name} row {row + i}", reason)
            row += found.total
        if len(targets) == before and len(bad.skipped) == bad_before:
            bad.add(path.name, "an empty split: there is no face in it")
    return of_rows(pile, targets, roles, names, "Usage column" if every_usage else "files", bad)


def _head(path: Path, labels: bool) -> tuple[Columns, int]:
    """Return where a file's columns stand, and the byte at which its rows begin."""
    with path.open("rb") as file:
        while (line := file.readline(LONGEST_LINE)) and not line.strip():
            pass
        columns = read_header(path, line)
        return columns if labels else columns._replace(emotion=None, usage=None), file.tell()


def _read_one(path: Path, columns: Columns, begin: int, role: Role) -> Iterator[tuple[Rows, Digests]]:
    """Give the rows of a file, a block at a time, and the digests of their images."""
    size = path.stat().st_size
    mine = _Mine()

    def parse(start: int) -> tuple[Rows, Digests]:
        lines = _lines(*_whole_lines(path, start, min(start + BLOCK, size), begin), columns, role)
        images = np.empty((len(lines.lines), PIXELS), np.uint8)
        right = mine.parser.parse(lines.data, lines.begins, lines.ends, images)
        rows = _rows(lines, images, right, columns, role)
        return rows, digests(rows.images)

    with ThreadPoolExecutor(THREADS) as pool:
        # A few blocks ahead keep the threads busy, and take little memory.
        starts = iter(range(begin, size, BLOCK))
        ahead = deque(pool.submit(parse, start) for start in islice(starts, 2 * THREADS))
        while ahead:
            done = ahead.popleft().result()
            ahead.extend(pool.submit(parse, start) for start in islice(starts, 1))
            yield done


class _Mine(threading.local):
    """What each thread has of its own."""

    def __init__(self) -> None:
        self.parser = NumberParser()


class _Lines(NamedTuple):
    """The lines of a block.

    Attributes:
        data: the bytes that they lie in.
        lines: begin and end of each.
        begins, ends: begin and end of each one's pixels; nothing where they are not where they should be.
        meant: target and role of each, None where they are wrong or the pixels not in their place.
    """

    data: bytes
    lines: list[tuple[int, int]]
    begins: list[int]
    ends: list[int]
    meant: list[tuple[int, Role] | None]


def _whole_lines(path: Path, start: int, stop: int, begin: int) -> tuple[bytes, int, int]:
    """Return bytes of a file, and where in them the lines lie that begin in its bytes ``start`` to ``stop``.

    ``begin`` is where the file's first line begins. The last line ends with a newline.
    """
    # From one byte before, to see whether a line begins at the start.
    back = min(1, start - begin)
    inside = back + stop - start
    with path.open("rb", buffering=0) as file:
        file.seek(start - back)
        data = file.read(inside + LINE)
        first = data.find(b"\n", 0, inside - 1) + 1 if back else 0
        if back and not first:
            return b"", 0, 0
        while not (end := data.find(b"\n", inside - 1) + 1):
            more = file.read(LINE) if len(data) - inside < LONGEST_LINE else b""
            data += more or b"\n"
    return data, first, end


def _lines(data: bytes, first: int, stop: int, columns: Columns, role: Role) -> _Lines:
    """Find the lines in ``data[first:stop]`` and the pixels in each, and understand what stands about them."""
    lines: list[tuple[int, int]] = []
    begins: list[int] = []
    ends: list[int] = []
    # What stands about the pixels is the same few texts over and over, so each is understood once.
    meanings: dict[tuple[bytes, bytes], tuple[int, Role] | None] = {}
    meant: list[tuple[int, Role] | None] = []
    before, behind = range(columns.pixels), range(columns.pixels + 1, columns.total)
    while first < stop:
        last = data.find(b"\n", first)
        begin, end = first, last
        for _ in before:
            begin = data.find(b",", begin, last) + 1
        for _ in behind:
            end = data.rfind(b",", begin, end)
        meaning = None
        if first <= begin < end:
            end -= data[end - 1] == _RETURN
            if data[begin] == _QUOTE == data[end - 1] and end - begin > 1:
                begin, end = begin + 1, end - 1
            about = data[first:begin], data[end:last]
            if about not in meanings:
                meanings[about] = _meaning(about, columns, role)
            meaning = meanings[about]
        else:
            begin = end = first
        lines.append((first, last))
        begins.append(begin)
        ends.append(end)
        meant.append(meaning)
        first = last + 1
    return _Lines(data, lines, begins, ends, meant)


def _rows(block: _Lines, images: Images, right: list[bool], columns: Columns, role: Role) -> Rows:
    """Put together what was parsed at once, and parse the rows that look odd one by one into ``images``."""
    data, lines, meant = block.data, block.lines, list(block.meant)
    good: list[int] = []
    bad: list[tuple[int, str]] = []
    blank: list[int] = []
    for i, line in enumerate(lines):
        if right[i] and meant[i] is not None:
            good.append(i)
            continue
        text = data[line[0] : line[1]]
        if not text.strip():
            blank.append(i)
            continue
        try:
            images[i], meant[i] = _parse_line(text, columns, role)
            good.append(i)
        except ValueError as error:
            bad.append((i, str(error)))
    known = [meaning for i in good if (meaning := meant[i]) is not None]
    faces = (images if len(good) == len(images) else images[good]).reshape(-1, SIZE, SIZE)
    if blank:
        # A blank line is no row and has no number.
        number = np.cumsum(~np.isin(np.arange(len(lines)), blank)) - 1
        good = number[good].tolist()
        bad = [(int(number[i]), reason) for i, reason in bad]
    targets, roles = [target for target, _ in known], [its_role for _, its_role in known]
    return Rows(faces, targets, roles, good, bad, len(lines) - len(blank))


def _meaning(about: tuple[bytes, bytes], columns: Columns, role: Role) -> tuple[int, Role] | None:
    """Return target and role of a row by what stands before and behind its pixels, None where that is wrong."""
    try:
        return _label_and_role(_fields(b"".join(about), columns), columns, role)
    except ValueError:
        return None


def _parse_line(line: bytes, columns: Columns, role: Role) -> tuple[Bytes, tuple[int, Role]]:
    """Return pixels, target and role of one row.

    Raises:
        ValueError: says what is wrong with the row.
    """
    fields = _fields(line, columns)
    meaning = _label_and_role(fields, columns, role)
    return parse_pixels(fields[columns.pixels].encode()), meaning


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
