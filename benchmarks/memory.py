"""How much memory a training of `fast` takes on the CPU: the highest resident size of a process that does nothing else.

The process loads all faces of ``--data``, trains and validates as the command line does, and writes its checkpoints.
Few steps at the full input size reach the peak, so it trains on a part of the faces for one epoch, unless ``--whole``.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

import bars

_STARTED: Final = "import torch, fer_utils.training"


def main() -> int:
    """Measure, print, judge."""
    parser = bars.parser(__doc__)
    parser.add_argument("--faces", type=bars.positive, default=2000, help="training faces of the measured epoch")
    parser.add_argument("--whole", action="store_true", help="an epoch of all training faces")
    arguments = parser.parse_args()
    print(bars.machine())
    faces = "all" if arguments.whole else str(arguments.faces)
    # The peak of all children is that of the largest; the one that only imports comes first.
    started = _peak_gigabytes([sys.executable, "-c", _STARTED])
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "fer_utils.training", "--recipe", "fast", "--device", "cpu"]
        command += ["--data", arguments.data, "--out", str(Path(folder) / "run"), "--set", "epochs=1"]
        trained = _peak_gigabytes([*command, *([] if arguments.whole else [f"train_faces={faces}"])])
    print()
    bars.table(
        ["process", "peak, GB"],
        [["torch and the library imported", started], [f"fast, one epoch, {faces} training faces", trained]],
    )
    return bars.judge([bars.at_most("training fast, peak GB", trained, 2.5)])


def _peak_gigabytes(command: list[str]) -> float:
    """Return the highest resident size of the children so far, 10⁹ bytes, once ``command`` has run."""
    done = subprocess.run(command, stdout=subprocess.DEVNULL, check=False)
    if done.returncode:
        raise SystemExit(done.returncode)  # it has told why
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * unit / 1e9


if __name__ == "__main__":
    sys.exit(bars.run(main))
