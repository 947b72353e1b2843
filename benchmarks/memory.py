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

_TRAINING: Final = """
import sys
from pathlib import Path
from fer_utils import recipe, sources, training
from fer_utils.runs import Run
data, out, faces = sys.argv[1], sys.argv[2], sys.argv[3]
changes = {"epochs": 1} | ({} if faces == "all" else {"train_faces": int(faces)})
training.fit(recipe.load("fast", changes), sources.load(data), Run.create(out), device="cpu", log=lambda _line: None)
"""

_STARTED: Final = "import torch, fer_utils.training"


def main() -> int:
    """Measure, print, judge."""
    parser = bars.parser(__doc__)
    parser.add_argument("--faces", type=int, default=2000, help="training faces of the measured epoch")
    parser.add_argument("--whole", action="store_true", help="an epoch of all training faces")
    arguments = parser.parse_args()
    print(bars.machine())
    faces = "all" if arguments.whole else str(arguments.faces)
    # The peak of all children is that of the largest; the one that only imports comes first.
    started = _peak_gigabytes([sys.executable, "-c", _STARTED])
    with tempfile.TemporaryDirectory() as folder:
        place = str(Path(folder) / "run")
        trained = _peak_gigabytes([sys.executable, "-c", _TRAINING, arguments.data, place, faces])
    print()
    bars.table(
        ["process", "peak, GB"],
        [["torch and the library imported", started], [f"fast, one epoch, {faces} training faces", trained]],
    )
    return bars.judge([bars.at_most("training fast, peak GB", trained, 2.5)])


def _peak_gigabytes(command: list[str]) -> float:
    """Return the highest resident size of the children so far, 10⁹ bytes, once ``command`` has run."""
    subprocess.run(command, check=True)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * unit / 1e9


if __name__ == "__main__":
    sys.exit(main())
