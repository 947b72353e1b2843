"""Rows of whole numbers from 0 to 255, parsed many at once.

Where there was a C compiler when the package was installed, ``_numbers.c`` goes from number to number. Elsewhere numpy
parses them, to the same result in more time: each step is one operation on all bytes of some rows, whether they end a
number or not.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

try:
    from fer_utils.sources import _numbers  # which setup.py builds where it can
except ImportError:
    COMPILED = False
else:
    COMPILED = True

Bytes = npt.NDArray[np.uint8]

ROWS_AT_ONCE: Final = 96
"""FER2013's rows are 8 kB long. Fewer would stay in a processor's second-level cache, but two threads that parse would
wait for each other more often."""

_PAD: Final = 4  # spaces before the first row, so that a number's three bytes can always be looked back at
_SPACE, _ZERO = ord(" "), ord("0")


class NumberParser:
    """Parses rows; keeps its working memory from call to call."""

    def __init__(self, compiled: bool = COMPILED) -> None:
        """Parse by what was compiled, or by numpy."""
        self._compiled = compiled
        self._grow(0 if compiled else ROWS_AT_ONCE * 9_000)

    def _grow(self, size: int) -> None:
        self._text, self._value, self._hundreds, self._number = (np.empty(size, np.uint8) for _ in range(4))
        self._digit, self._two, self._flag = (np.empty(size, np.bool_) for _ in range(3))

    def parse(self, data: bytes, begins: list[int], ends: list[int], out: Bytes) -> list[bool]:
        """Parse ``data[begin:end]`` for each row into ``out``, uint8 (rows, numbers in a row).

        Returns:
            for each row True if it holds as many numbers as ``out`` has columns, of one to three digits, up to 255,
            with nothing but spaces between. Where False, it may do so all the same, but `out` does not have them.
        """
        if self._compiled:
            flags = _numbers.parse(data, np.array(begins, np.int64), np.array(ends, np.int64), out)
            return [flag == 1 for flag in flags]
        right: list[bool] = []
        for first in range(0, len(begins), ROWS_AT_ONCE):
            rows = slice(first, first + ROWS_AT_ONCE)
            right += self._parse_some(np.frombuffer(data, np.uint8), begins[rows], ends[rows], out[rows])
        return right

    def _parse_some(self, data: Bytes, begins: list[int], ends: list[int], out: Bytes) -> list[bool]:
        # A copy of the rows, with spaces for all that is not theirs; of odd size, so that pairs come out even below.
        shift = _PAD - begins[0]
        size = (ends[-1] + shift + 2) // 2 * 2 + 1
        if size > len(self._text):
            self._grow(size)
        text = self._text[:size]
        text[:_PAD] = _SPACE
        text[_PAD : ends[-1] + shift] = data[begins[0] : ends[-1]]
        for stop, start in zip(ends, [*begins[1:], size - shift], strict=True):
            text[stop + shift : start + shift] = _SPACE

        # With these bits turned, digits are their value and a space is 16; then a space is made 0.
        np.bitwise_xor(text, _ZERO, out=text)
        digit = np.less(text, 10, out=self._digit[:size])
        value = np.bitwise_and(text, 15, out=self._value[:size])
        if text.max() > (_SPACE ^ _ZERO) or value.max() > 9:
            return [False] * len(begins)
        # A number ends at each digit that no digit follows. Its ones, tens and hundreds are the digits there and one
        # and two bytes before, as far as there is no gap.
        two = np.logical_and(digit[1:-1], digit[2:], out=self._two[: size - 2])
        hundreds = np.multiply(value[:-2], two.view(np.uint8), out=self._hundreds[: size - 2])
        number = np.multiply(value[1:-1], 10, out=self._number[: size - 2])
        np.add(number, value[2:], out=number)
        # 100 h + r exceeds 255 exactly if 25 h + r // 4 exceeds 63, and that fits into a byte.
        np.multiply(hundreds, 25, out=hundreds)
        quarter = np.right_shift(number, 2, out=value[2:])
        np.add(quarter, hundreds, out=quarter)
        four = np.logical_and(two[2:], two[:-2], out=self._flag[: size - 4])
        if quarter.max() > 63 or four.any():
            return [False] * len(begins)
        np.multiply(hundreds, 4, out=hundreds)
        np.add(number, hundreds, out=number)
        last = np.greater(digit[2:-1], digit[3:], out=self._flag[: size - 3])
        # No two bytes in a row end a number: of each pair at most one counts, which leaves half as many to choose from.
        number = number[:-1]
        np.multiply(number, last.view(np.uint8), out=number)
        pairs = number.view(np.uint16)
        either = np.right_shift(pairs, 8, out=self._value[: size - 3].view(np.uint16))
        np.bitwise_or(pairs, either, out=either)
        where = np.flatnonzero(last.view(np.uint16) != 0)
        numbers = either.take(where)

        # A number that ends before byte b of the text is in a pair before (b - 2) / 2, rounded up.
        bounds = [(bound + shift - 1) // 2 for bound in (begins[0], *ends)]
        counts = np.diff(np.searchsorted(where, bounds)).tolist()
        columns = out.shape[1]
        if all(count == columns for count in counts):
            out[:] = numbers.reshape(-1, columns)
        else:
            at = 0
            for row, count in enumerate(counts):
                if count == columns:
                    out[row] = numbers[at : at + count]
                at += count
        return [count == columns for count in counts]
