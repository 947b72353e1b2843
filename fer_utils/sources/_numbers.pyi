import numpy as np
import numpy.typing as npt

def parse(
    data: bytes, begins: npt.NDArray[np.int64], ends: npt.NDArray[np.int64], out: npt.NDArray[np.uint8]
) -> bytes: ...
