"""Facial emotion recognition on FER2013, from raw faces to a model that can be trusted and used.

Importing the package is cheap: it pulls in neither torch nor any data, so that a notebook can check its parameters
before it pays for either.
"""

import itertools
import sys
from types import TracebackType

__version__ = "0.1.0"


def _tell(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        print("interrupted", file=sys.stderr)  # noqa: T201 - a command line's own output
    else:
        sys.__excepthook__(kind, error, trace)


# A command that is interrupted while its modules are imported, which with torch takes seconds, has no main() yet.
if any(pair[0] == "-m" and pair[1].startswith("fer_utils.") for pair in itertools.pairwise(sys.orig_argv)):
    sys.excepthook = _tell
