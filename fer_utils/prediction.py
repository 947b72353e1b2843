"""A model and faces to probabilities: the only forward pass that evaluation and inference use."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, Literal, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from fer_utils.devices import Precision, autocast
from fer_utils.emotions import NUM_EMOTIONS
from fer_utils.preprocessing import Preprocessing

TTA = Literal["none", "flip", "ten_crop"]
"""Test-time augmentation: one view; the face and its mirror image; or ten crops as in Krizhevsky et al. 2012."""

VIEWS: Final = {"none": 1, "flip": 2, "ten_crop": 10}

CROP: Final = 44 / 48
"""Side of a ten-crop window as a share of the face: the 44 of 48 pixels that published FER2013 scores use."""


def predict(
    model: nn.Module,
    preprocessing: Preprocessing,
    images: npt.NDArray[np.uint8],
    *,
    device: torch.device,
    precision: Precision = "float32",
    batch_size: int = 256,
    tta: TTA = "none",
) -> npt.NDArray[np.float64]:
    """Return the probabilities of the seven emotions for each face.

    With test-time augmentation the probabilities of a face's views are averaged. The model is left in the mode it was
    in; batch norm and dropout are those of evaluation.

    Args:
        model: gives logits (B, 7); on ``device``.
        preprocessing: what turns faces into the model's input.
        images: uint8 (N, 48, 48).
        device: where the model is.
        precision: arithmetic of the network.
        batch_size: faces at once; with several views, fewer.
        tta: ``none``, ``flip`` or ``ten_crop``.

    Returns:
        float64 (N, 7), rows sum to 1.

    Raises:
        ValueError: an unknown ``tta``.
    """
    if tta not in get_args(TTA):
        raise ValueError(f"tta {tta!r} is unknown; use one of {', '.join(get_args(TTA))}")
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    per_batch = max(1, batch_size // VIEWS[tta])
    # Probabilities stay on the device until the end: a copy for each batch would make a GPU wait for the host.
    batches = []
    try:
        with torch.inference_mode(), autocast(device, precision):
            for start in range(0, len(images), per_batch):
                faces = torch.from_numpy(np.ascontiguousarray(images[start : start + per_batch])).to(device)
                views = (model(_as_model(view, model)) for view in _views(faces, preprocessing, tta))
                batches.append(torch.stack([functional.softmax(logits.float(), dim=1) for logits in views]).mean(0))
    finally:
        for module, training in modes:
            module.training = training
    if not batches:
        return np.empty((0, NUM_EMOTIONS), np.float64)
    result: npt.NDArray[np.float64] = torch.cat(batches).cpu().double().numpy()
    # Averages of rows that each sum to 1 up to rounding.
    result /= result.sum(1, keepdims=True)
    return result


def _as_model(inputs: Tensor, model: nn.Module) -> Tensor:
    weight = next(model.parameters())
    return inputs.to(weight.dtype).contiguous(memory_format=torch.channels_last)


def _views(faces: Tensor, preprocessing: Preprocessing, tta: TTA) -> Iterator[Tensor]:
    if tta != "ten_crop":
        inputs = preprocessing(faces)
        yield inputs
        if tta == "flip":
            yield inputs.flip(-1)
        return
    side = faces.shape[-1]
    crop = round(side * CROP)
    middle = (side - crop) // 2
    for top, left in ((0, 0), (0, side - crop), (side - crop, 0), (side - crop, side - crop), (middle, middle)):
        inputs = preprocessing(faces[:, top : top + crop, left : left + crop])
        yield inputs
        yield inputs.flip(-1)
