"""Where a network looks: Grad-CAM, and occlusion as a second opinion.

Grad-CAM (Selvaraju et al. 2017, arXiv:1610.02391) is computed by the ``grad-cam`` package. It weighs the maps of the
last convolutional stage by how much each raises the logit in question; that stage has 2 or 3 cells a side for a face of
48 pixels, so it points at a region, not at a wrinkle. Occlusion (Zeiler and Fergus 2014, arXiv:1311.2901) covers a part
of the face and watches the probability fall; it asks the network nothing but predictions, and is finer and slower.

A map explains a prediction only as far as it depends on what was learned: ``randomized`` gives the network to compare
with (Adebayo et al. 2018, arXiv:1810.03292).
"""

from __future__ import annotations

import contextlib
import copy
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from pytorch_grad_cam import GradCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import nn

from fer_utils import models
from fer_utils.emotions import NUM_EMOTIONS
from fer_utils.faces import SIZE, Images
from fer_utils.prediction import predict
from fer_utils.preprocessing import Preprocessing

Maps = npt.NDArray[np.float32]
Targets = npt.NDArray[np.int64]

PATCH: Final = 12
"""Side of the square that occlusion covers, in pixels of a 48×48 face: an eye, half a mouth."""
STRIDE: Final = 4
"""Pixels from one covered square to the next."""


def grad_cam(
    model: nn.Module,
    preprocessing: Preprocessing,
    images: Images,
    targets: Targets | None = None,
    *,
    layer: nn.Module | None = None,
    batch_size: int = 64,
) -> Maps:
    """Return where the logit of an emotion comes from, float32 (N, 48, 48) from 0 to 1 in each face.

    A map that is 0 throughout says that nothing in that stage speaks for the emotion.

    Args:
        model: gives logits (B, 7); left as it was, without gradients.
        preprocessing: what turns faces into its input.
        images: uint8 (N, 48, 48).
        targets: int64 (N,), the emotion asked about; None is the most probable one.
        layer: whose output (B, C, H, W) is read; None is the last convolutional stage, of several members the mean of
            what their last stages say.
        batch_size: faces at once.

    Raises:
        ModelError: the network has no convolutional stage.
        ValueError: targets of another number or out of range.
    """
    wanted = _targets(targets, len(images))
    stages = [models.target_layer(each) for each in models.networks(model)] if layer is None else [layer]
    device = next(model.parameters()).device
    modes = [(module, module.training) for module in model.modules()]
    maps = [np.empty((0, SIZE, SIZE), np.float32)]
    cam = GradCAM(model=model.eval(), target_layers=stages)
    try:
        for start in range(0, len(images), batch_size):
            faces = torch.from_numpy(np.ascontiguousarray(images[start : start + batch_size])).to(device)
            asked = None
            if wanted is not None:
                asked = [ClassifierOutputTarget(target) for target in wanted[start : start + batch_size].tolist()]
            # A gradient of the input is asked for, so that it flows through frozen layers too.
            found = cam(input_tensor=preprocessing(faces).requires_grad_(), targets=asked)
            maps.append(_to_face_size(found))
    finally:
        cam.activations_and_grads.release()
        model.zero_grad(set_to_none=True)
        for module, training in modes:
            module.training = training
    return np.concatenate(maps)


def occlusion(
    model: nn.Module,
    preprocessing: Preprocessing,
    images: Images,
    targets: Targets | None = None,
    *,
    patch: int = PATCH,
    stride: int = STRIDE,
    batch_size: int = 256,
) -> Maps:
    """Return by how much the probability of an emotion falls where the face is covered, float32 (N, 48, 48).

    A square of the face's mean grey is moved over it; a pixel gets the mean fall over all squares that cover it. Below
    0 the emotion becomes more probable without that part.

    Args:
        model: gives logits (B, 7).
        preprocessing: what turns faces into its input.
        images: uint8 (N, 48, 48).
        targets: int64 (N,), the emotion asked about; None is the most probable one.
        patch: side of the square, 1 to 48 pixels.
        stride: pixels from one square to the next, at most ``patch``, so that every pixel is covered.
        batch_size: faces at once.

    Raises:
        ValueError: targets of another number or out of range, or an impossible patch or stride.
    """
    if not (1 <= stride <= patch <= SIZE):
        raise ValueError(f"patch must be 1 to {SIZE} and stride 1 to patch, not {patch} and {stride}")
    wanted = _targets(targets, len(images))
    device = next(model.parameters()).device
    # The last square ends at the edge, whatever the stride.
    starts = sorted({*range(0, SIZE - patch, stride), SIZE - patch})
    squares = [(top, left) for top in starts for left in starts]
    covers = np.zeros((len(squares), SIZE, SIZE), bool)
    for cover, (top, left) in zip(covers, squares, strict=True):
        cover[top : top + patch, left : left + patch] = True
    plain = predict(model, preprocessing, images, device=device, batch_size=batch_size)
    asked = plain.argmax(axis=1) if wanted is None else wanted
    maps = np.empty((len(images), SIZE, SIZE), np.float32)
    for index, (image, target) in enumerate(zip(images, asked, strict=True)):
        covered = np.where(covers, np.uint8(round(float(image.mean()))), image)
        found = predict(model, preprocessing, covered, device=device, batch_size=batch_size)
        falls = plain[index, target] - found[:, target]
        maps[index] = np.tensordot(falls, covers, axes=1) / covers.sum(axis=0)
    return maps


def maps(model: nn.Module, preprocessing: Preprocessing, images: Images, *, stride: int = STRIDE) -> dict[str, Maps]:
    """Return the maps of each face's most probable emotion by name: ``Grad-CAM``, then ``occlusion``.

    Grad-CAM is left out where the network has no convolutional stage (vision transformers).
    """
    found = {}
    with contextlib.suppress(models.ModelError):
        found["Grad-CAM"] = grad_cam(model, preprocessing, images)
    return {**found, "occlusion": occlusion(model, preprocessing, images, stride=stride)}


def randomized(model: nn.Module, seed: int = 0) -> nn.Module:
    """Return a copy of a network with weights drawn anew, which knows nothing; torch's generator is left alone."""
    device = next(model.parameters()).device
    made = copy.deepcopy(model).cpu()
    with torch.random.fork_rng(devices=[]):
        # torch.manual_seed would seed the generators of GPUs as well, for good.
        torch.default_generator.manual_seed(seed)
        for module in made.modules():
            reset = getattr(module, "reset_parameters", None)
            if callable(reset):
                reset()
    return made.to(device)


def similarity(a: Maps, b: Maps) -> npt.NDArray[np.float64]:
    """Return Spearman's rank correlation of two maps of each face, float64 (N,); NaN where a map is constant."""
    from scipy.stats import rankdata

    ranks = [rankdata(maps.reshape(len(maps), -1), axis=1) for maps in (a, b)]
    centred = [rank - rank.mean(axis=1, keepdims=True) for rank in ranks]
    norms = [np.sqrt((rank**2).sum(axis=1)) for rank in centred]
    with np.errstate(invalid="ignore", divide="ignore"):
        found: npt.NDArray[np.float64] = (centred[0] * centred[1]).sum(axis=1) / (norms[0] * norms[1])
    return found


def examples(probabilities: npt.NDArray[np.float64], targets: Targets) -> list[tuple[int | None, int | None]]:
    """Return for each emotion the face that the network is most sure of and right, and the one that it is and wrong.

    Args:
        probabilities: float64 (N, 7).
        targets: int64 (N,).

    Returns:
        A pair of indices for each of the seven emotions as the label; None where there is no such face.
    """
    predicted, confidence = probabilities.argmax(axis=1), probabilities.max(axis=1)

    def surest(mask: npt.NDArray[np.bool_]) -> int | None:
        found = np.flatnonzero(mask)
        return int(found[confidence[found].argmax()]) if len(found) else None

    return [
        (
            surest((targets == emotion) & (predicted == emotion)),
            surest((targets == emotion) & (predicted != emotion)),
        )
        for emotion in range(NUM_EMOTIONS)
    ]


def _targets(targets: Targets | None, n: int) -> Targets | None:
    if targets is None:
        return None
    if targets.shape != (n,) or not ((targets >= 0) & (targets < NUM_EMOTIONS)).all():
        raise ValueError(f"targets must be {n} numbers from 0 to {NUM_EMOTIONS - 1}")
    return targets


def _to_face_size(maps: npt.NDArray[np.float32]) -> Maps:
    """Maps of the network's input size at the face's."""
    if maps.shape[1:] == (SIZE, SIZE):
        return maps.astype(np.float32)
    resized = nn.functional.interpolate(torch.from_numpy(maps)[:, None], (SIZE, SIZE), mode="bilinear", antialias=True)
    result: Maps = resized[:, 0].numpy()
    return result
