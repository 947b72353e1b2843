"""Whole batches of training faces changed on the device, each face with its own draw.

What is random is a pure function of (seed, epoch, index in the epoch): ``draw`` makes the parameters of a whole epoch
at once on the CPU, and ``augment`` applies a slice of them to a batch, without a decision that depends on data. So
every device and every number of ranks sees the same faces. Each operation draws from a stream of its own, a Philox
generator (Salmon et al. 2011) keyed by (stream, seed, epoch): turning one operation on changes the draws of no other,
and the first m of n draws are the m draws.

The order of operations, each with torchvision's meaning of its parameters:

1. Geometry: crop with padding, resized crop, flip, then rotation, shear, scale and translation as one ``affine``, then
   the resize to the input size. All of it is one affine map from output to face and one bilinear sample, so a face is
   blurred once, and what one step moves out of sight another may bring back.
2. Photometry, on values in [0, 1], clamped after each: brightness, contrast, saturation, sharpness, auto-contrast.
3. Erasing, with mid grey (0.5).

The order of an epoch and the mixing of faces (mixup, CutMix) are here as well.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Final, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from fer_utils.emotions import NUM_EMOTIONS
from fer_utils.faces import SIZE
from fer_utils.recipe import Augment

Fill = Literal["zeros", "border", "reflection"]

ERASED: Final = 0.5
"""Value of an erased pixel in [0, 1]: mid grey, which ``normalize: half`` turns into 0."""

LUMA: Final = (0.2989, 0.587, 0.114)
"""Weights of red, green and blue in grey, as torchvision rounds those of ITU-R BT.601."""

# One stream of random numbers per use. A number is never given to another use: old runs must stay reproducible.
_STREAMS: Final = {
    "order": 0,
    "balance": 1,
    "flip": 2,
    "rotation": 3,
    "translate": 4,
    "scale": 5,
    "shear": 6,
    "crop_padding": 7,
    "resized_crop": 8,
    "brightness": 9,
    "contrast": 10,
    "saturation": 11,
    "sharpness": 12,
    "autocontrast": 13,
    "erasing": 14,
    "partner": 15,
    "mixing": 16,
    "mixup": 17,
    "cutmix": 18,
    "box": 19,
}

Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Draws:
    """Parameters of ``n`` faces, each operation's under the name of its field in ``recipe.Augment``.

    None is an operation that is off: it costs nothing. A slice of draws are the draws of that slice of faces.

    Attributes:
        n: number of faces.
        fill: what lies outside the face once it is moved.
        flip: bool (n,), True for a mirror image.
        rotation: degrees (n,), clockwise as in torchvision's ``affine``.
        translate: shares of the face (n, 2), x to the right and y down.
        scale: zoom (n,), above 1 enlarges.
        shear: degrees (n,), horizontal, as the first shear of torchvision's ``affine``.
        crop_padding: pixels of a 48-pixel face (n, 2): top and left of the crop, 0 for the face as it was.
        resized_crop: shares of the face (n, 4): top, left, height and width of the crop.
        brightness, contrast, saturation, sharpness: factors (n,), 1 for no change.
        autocontrast: bool (n,).
        erasing: shares of the face (n, 4): top, left, height and width of the rectangle; height 0 for none.
        affine: all of the geometry, (n, 2, 3): the map from output to face, in coordinates from -1 to 1 over the face.
        still: bool (n,), True where ``affine`` is exactly the identity; None where no face is.
    """

    n: int
    fill: Fill = "zeros"
    flip: Tensor | None = None
    rotation: Tensor | None = None
    translate: Tensor | None = None
    scale: Tensor | None = None
    shear: Tensor | None = None
    crop_padding: Tensor | None = None
    resized_crop: Tensor | None = None
    brightness: Tensor | None = None
    contrast: Tensor | None = None
    saturation: Tensor | None = None
    sharpness: Tensor | None = None
    autocontrast: Tensor | None = None
    erasing: Tensor | None = None
    affine: Tensor | None = field(init=False, default=None)
    still: Tensor | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        for name, value in self._tensors():
            wanted = (self.n, *_SHAPES.get(name, ()))
            if tuple(value.shape) != wanted:
                raise ValueError(f"draws of {name} must have shape {wanted}, not {tuple(value.shape)}")
        affine = _compose(self)
        if affine is not None:
            still = (affine == torch.eye(2, 3)).all(2).all(1)
            object.__setattr__(self, "affine", affine)
            object.__setattr__(self, "still", still if bool(still.any()) else None)

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index: slice | Tensor) -> Draws:
        """Return the draws of the faces at ``index``: a slice, or int64 positions."""
        n = len(range(*index.indices(self.n))) if isinstance(index, slice) else len(index)
        return self._map(lambda value: value[index], n)

    def to(self, device: torch.device | str) -> Draws:
        """Return the draws on ``device``."""
        return self._map(lambda value: value.to(device), self.n)

    def _tensors(self) -> list[tuple[str, Tensor]]:
        values = ((item.name, getattr(self, item.name)) for item in fields(self))
        return [(name, value) for name, value in values if isinstance(value, Tensor)]

    def _map(self, change: Callable[[Tensor], Tensor], n: int) -> Draws:
        # A copy, so that the composed geometry is taken along and not composed again for each batch.
        result = copy.copy(self)
        object.__setattr__(result, "n", n)
        for name, value in self._tensors():
            object.__setattr__(result, name, change(value))
        return result


_SHAPES: Final = {"translate": (2,), "crop_padding": (2,), "resized_crop": (4,), "erasing": (4,)}


def draw(config: Augment, n: int, *, seed: int, epoch: int) -> Draws:
    """Return the parameters of an epoch's ``n`` faces, on the CPU.

    A pure function: face i of an epoch has the same draw whatever ``n`` is and whatever other operations are on.

    Raises:
        ValueError: ``seed`` or ``epoch`` is negative or beyond 64 or 32 bits, or ``n`` is negative.
    """

    def uniform(name: str, columns: int = 1) -> Doubles:
        return _uniform(name, seed, epoch, n, columns)

    def within(name: str, reach: float) -> Tensor | None:
        return _tensor(_between(uniform(name)[:, 0], -reach, reach)) if reach else None

    def factor(name: str, reach: float) -> Tensor | None:
        return _tensor(np.maximum(_between(uniform(name)[:, 0], 1 - reach, 1 + reach), 0)) if reach else None

    _check(n, seed, epoch)
    translate = crop = resized = sharpness = erasing = None
    if config.translate:
        translate = _tensor(_between(uniform("translate", 2), -config.translate, config.translate))
    if config.crop_padding:
        crop = _tensor(np.floor(uniform("crop_padding", 2) * (2 * config.crop_padding + 1)) - config.crop_padding)
    if config.resized_crop.scale != (1, 1):
        # Width over height there, height over width in erasing: torchvision's two conventions.
        low, high = config.resized_crop.ratio
        resized = _rectangles(uniform("resized_crop", 4), config.resized_crop.scale, (1 / high, 1 / low))
    if config.sharpness.p and config.sharpness.factor != 1:
        chosen = uniform("sharpness")[:, 0] < config.sharpness.p
        sharpness = _tensor(np.where(chosen, config.sharpness.factor, 1))
    if config.erasing.p:
        u = uniform("erasing", 5)
        rectangles = _rectangles(u[:, 1:], config.erasing.scale, config.erasing.ratio)
        erasing = torch.where(_bools(u[:, :1] < config.erasing.p), rectangles, 0)
    return Draws(
        n,
        config.fill,
        flip=_bools(uniform("flip")[:, 0] < config.flip) if config.flip else None,
        rotation=within("rotation", config.rotation),
        translate=translate,
        scale=_tensor(_between(uniform("scale")[:, 0], *config.scale)) if config.scale != (1, 1) else None,
        shear=within("shear", config.shear),
        crop_padding=crop,
        resized_crop=resized,
        brightness=factor("brightness", config.brightness),
        contrast=factor("contrast", config.contrast),
        saturation=factor("saturation", config.saturation),
        sharpness=sharpness,
        autocontrast=_bools(uniform("autocontrast")[:, 0] < config.autocontrast) if config.autocontrast else None,
        erasing=erasing,
    )


def augment(images: Tensor, draws: Draws, size: int) -> Tensor:
    """Return the faces as the network is to see them, before normalisation.

    A face whose geometry is the identity is returned exactly where ``size`` is its own. Where ``size`` is smaller, the
    face is moved at its own size and then shrunk with antialiasing, as ``Preprocessing`` shrinks faces for evaluation.
    Nothing here waits for the device.

    Args:
        images: uint8 (B, H, H), or (B, C, H, H) with 1 or 3 channels.
        draws: parameters of these B faces, on the device of ``images``.
        size: side of the result in pixels.

    Returns:
        float32 (B, C, size, size) in [0, 1].

    Raises:
        TypeError: ``images`` is not uint8.
        ValueError: wrong shapes, another number of draws than faces, or draws on another device.
    """
    faces = images.unsqueeze(1) if images.dim() == 3 else images
    if images.dtype != torch.uint8:
        raise TypeError(f"faces must be uint8, not {images.dtype}")
    if faces.dim() != 4 or faces.shape[1] not in (1, 3) or faces.shape[2] != faces.shape[3]:
        raise ValueError(f"faces must be (B, H, H) or (B, 1 or 3, H, H), not {tuple(images.shape)}")
    if len(faces) != len(draws):
        raise ValueError(f"{len(faces)} faces need as many draws, not {len(draws)}")
    if size < 1:
        raise ValueError(f"size must be at least 1, not {size}")
    for name, value in draws._tensors():
        if value.device != images.device:
            raise ValueError(
                f"draws of {name} are on {value.device}, the faces on {images.device}; use draws.to(device)"
            )
    # The result is a tensor of our own from here on, so operations may work in place.
    x = _move(faces.to(torch.float32).div_(255), draws, size)
    if draws.brightness is not None:
        x = x.mul_(_each(draws.brightness)).clamp_(0, 1)
    if draws.contrast is not None:
        x = torch.lerp(_grey(x).mean((1, 2, 3), keepdim=True), x, _each(draws.contrast)).clamp_(0, 1)
    if draws.saturation is not None and x.shape[1] == 3:
        x = torch.lerp(_grey(x), x, _each(draws.saturation)).clamp_(0, 1)
    if draws.sharpness is not None:
        x = _sharpen(x, draws.sharpness)
    if draws.autocontrast is not None:
        x = _stretch(x, draws.autocontrast)
    if draws.erasing is not None:
        x = x.masked_fill_(_inside(draws.erasing, size).unsqueeze(1), ERASED)
    return x


def alone(config: Augment) -> dict[str, Augment]:
    """Return each operation that ``config`` turns on as a configuration of its own, by the name of its field."""
    drawn = {name for name, _ in draw(config, 1, seed=0, epoch=0)._tensors()}
    return {
        name: Augment(fill=config.fill).model_copy(update={name: getattr(config, name)})
        for name in Augment.model_fields
        if name in drawn
    }


def epoch_order(n: int, *, seed: int, epoch: int, targets: Tensor | None = None) -> Tensor:
    """Return which face is seen at each place of an epoch, int64 (n,), on the CPU; a pure function.

    Without ``targets`` it is a permutation. With them every emotion that has a face is seen equally often (up to one),
    its faces drawn with replacement.

    Raises:
        ValueError: ``targets`` are not n numbers from 0 to 6, or ``seed``, ``epoch`` or ``n`` is out of range.
    """
    _check(n, seed, epoch)
    order = np.argsort(_uniform("order", seed, epoch, n, 1)[:, 0], kind="stable")
    if targets is None or n == 0:
        return torch.from_numpy(order)
    labels = targets.cpu().numpy()
    if labels.shape != (n,):
        raise ValueError(f"balanced drawing needs {n} targets, not {tuple(targets.shape)}")
    if labels.min() < 0 or labels.max() >= NUM_EMOTIONS:
        raise ValueError(
            f"balanced drawing needs targets 0 to {NUM_EMOTIONS - 1}, found {labels.min()} to {labels.max()}"
        )
    counts = np.bincount(labels, minlength=NUM_EMOTIONS)
    first = np.cumsum(counts) - counts
    present = np.flatnonzero(counts)
    emotion = present[order % len(present)]
    place = np.floor(_uniform("balance", seed, epoch, n, 1)[:, 0] * counts[emotion]).astype(np.int64)
    return torch.from_numpy(np.argsort(labels, kind="stable")[first[emotion] + place])


@dataclass(frozen=True, eq=False)
class MixDraws:
    """How ``n`` faces are mixed with another one each.

    Attributes:
        partner: int64 (n,): the other face, as a place in the epoch's order.
        lam: float32 (n,): share of the face itself.
        box: float32 (n, 4): top, left, height and width, as shares of the face, of the rectangle that shows the partner
            (CutMix); None where no face has one.
        boxed: bool (n,): True where the face is mixed by its box and not by ``lam`` everywhere (mixup).
    """

    partner: Tensor
    lam: Tensor
    box: Tensor | None = None
    boxed: Tensor | None = None

    def __len__(self) -> int:
        return len(self.partner)

    def __getitem__(self, index: slice | Tensor) -> MixDraws:
        """Return the draws of the faces at ``index``: a slice, or int64 positions."""
        return self._map(lambda value: value[index])

    def to(self, device: torch.device | str) -> MixDraws:
        """Return the draws on ``device``."""
        return self._map(lambda value: value.to(device))

    def _map(self, change: Callable[[Tensor], Tensor]) -> MixDraws:
        return MixDraws(
            change(self.partner),
            change(self.lam),
            None if self.box is None else change(self.box),
            None if self.boxed is None else change(self.boxed),
        )


def mix_draw(n: int, *, mixup: float, cutmix: float, seed: int, epoch: int) -> MixDraws:
    """Return how an epoch's ``n`` faces are mixed, on the CPU; a pure function.

    Each face has a partner (a permutation of the epoch) and a share of its own, from Beta(alpha, alpha). With both
    kinds on, each face has one of them with probability 1/2. With both off, each face is its own partner.

    A CutMix box lies wholly inside the face, at a uniform place, so that its area is exactly the partner's share; in
    Yun et al. 2019 it may stick out, which enlarges the share of the face beyond the Beta distribution.

    Args:
        n: number of faces.
        mixup: alpha of mixup (Zhang et al. 2018, arXiv:1710.09412); 0 is off.
        cutmix: alpha of CutMix (Yun et al. 2019, arXiv:1905.04899); 0 is off.
        seed: the training's seed.
        epoch: the epoch's number.

    Raises:
        ValueError: an alpha is negative, or ``seed``, ``epoch`` or ``n`` is out of range.
    """
    _check(n, seed, epoch)
    if mixup < 0 or cutmix < 0:
        raise ValueError(f"mixup and cutmix must be at least 0, not {mixup} and {cutmix}")
    if not mixup and not cutmix:
        return MixDraws(torch.arange(n), torch.ones(n))
    partner = np.argsort(_uniform("partner", seed, epoch, n, 1)[:, 0], kind="stable")
    boxed = np.full(n, bool(cutmix))
    if mixup and cutmix:
        boxed = _uniform("mixing", seed, epoch, n, 1)[:, 0] < 0.5
    lam = np.ones(n)
    for name, alpha, where in (("mixup", mixup, ~boxed), ("cutmix", cutmix, boxed)):
        if alpha:
            drawn = np.random.Generator(_philox(name, seed, epoch)).beta(alpha, alpha, n)
            lam = np.where(where, drawn, lam)
    if not cutmix:
        return MixDraws(torch.from_numpy(partner), _tensor(lam))
    side = np.sqrt(1 - lam)[:, None]
    corner = _uniform("box", seed, epoch, n, 2) * (1 - side)
    box = np.where(boxed[:, None], np.concatenate([corner, side, side], 1), 0)
    return MixDraws(torch.from_numpy(partner), _tensor(lam), _tensor(box), _bools(boxed))


def mix(x: Tensor, partner_x: Tensor, draws: MixDraws) -> tuple[Tensor, Tensor]:
    """Return faces mixed with their partners, and the share of each face's own target.

    Args:
        x: float (B, C, H, W), the faces.
        partner_x: their partners, the same shape.
        draws: of these B faces, on their device.

    Returns:
        The mixed faces (B, C, H, W), and (B,) the share of the face itself; the partner's is what is missing to 1. With
        a box it is the share of pixels, so rounding to whole pixels is in it.

    Raises:
        ValueError: faces, partners and draws differ in number or shape.
    """
    if x.shape != partner_x.shape or x.dim() != 4 or len(x) != len(draws):
        raise ValueError(
            f"faces (B, C, H, W), partners and draws must agree, not {tuple(x.shape)}, {tuple(partner_x.shape)} and "
            f"{len(draws)} draws"
        )
    lam = draws.lam.to(x.dtype)
    if draws.box is None or draws.boxed is None:
        return torch.lerp(partner_x, x, _each(lam)), lam
    hidden = _inside(draws.box, x.shape[-1])
    share = _shares(draws, draws.boxed, hidden).to(x.dtype)
    own = torch.where(draws.boxed[:, None, None], (~hidden).to(x.dtype), lam[:, None, None])
    return torch.lerp(partner_x, x, own.unsqueeze(1)), share


def mix_shares(draws: MixDraws, size: int) -> Tensor:
    """Return the share of each face's own target as ``mix`` does, float32 (B,), for faces of ``size`` × ``size``."""
    if draws.box is None or draws.boxed is None:
        return draws.lam
    return _shares(draws, draws.boxed, _inside(draws.box, size))


def _shares(draws: MixDraws, boxed: Tensor, hidden: Tensor) -> Tensor:
    return torch.where(boxed, 1 - hidden.to(torch.float32).mean((1, 2)), draws.lam)


def _check(n: int, seed: int, epoch: int) -> None:
    for name, value, bits in (("n", n, 62), ("seed", seed, 64), ("epoch", epoch, 32)):
        if not 0 <= value < 2**bits:
            raise ValueError(f"{name} must be at least 0 and below 2^{bits}, not {value}")


def _philox(name: str, seed: int, epoch: int) -> np.random.Philox:
    return np.random.Philox(key=np.array([seed, _STREAMS[name] << 32 | epoch], np.uint64))


def _uniform(name: str, seed: int, epoch: int, n: int, columns: int) -> Doubles:
    """Return numbers in [0, 1), (n, columns), made from the raw bits: numpy keeps those the same in every version."""
    raw = _philox(name, seed, epoch).random_raw(n * columns)
    return np.ldexp((raw >> np.uint64(11)).astype(np.float64), -53).reshape(n, columns)


def _between(u: Doubles, low: float, high: float) -> Doubles:
    return low + u * (high - low)


def _tensor(values: npt.NDArray[np.generic]) -> Tensor:
    return torch.from_numpy(values.astype(np.float32))


def _bools(values: npt.NDArray[np.bool_]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values))


def _rectangles(u: Doubles, area: tuple[float, float], ratio: tuple[float, float]) -> Tensor:
    """Return rectangles inside the unit square, (n, 4): top, left, height, width.

    The area is uniform in its range and the ratio of height to width log-uniform in the part of its range that fits the
    square for that area; torchvision draws both anew until they fit, which makes large areas rarer.
    """
    share = _between(u[:, 0], *area)
    low, high = (np.log(np.clip(bound, share, 1 / share)) for bound in ratio)
    shape = np.exp(low + u[:, 1] * (high - low))
    height, width = np.minimum(np.sqrt(share * shape), 1), np.minimum(np.sqrt(share / shape), 1)
    return _tensor(np.stack([u[:, 2] * (1 - height), u[:, 3] * (1 - width), height, width], 1))


def _compose(draws: Draws) -> Tensor | None:
    """Return the map from output to face, (n, 2, 3), or None where no operation moves the face.

    Coordinates run from -1 to 1 over the face, from edge to edge, so the map is the same for every size.
    """
    result: Tensor | None = None

    def then(change: Tensor) -> None:
        # ``change`` maps what ``result`` yields one step further back, towards the face.
        nonlocal result
        if result is None:
            result = change
            return
        linear = change[:, :, :2] @ result
        linear[:, :, 2] += change[:, :, 2]
        result = linear

    eye = torch.eye(2, 3, dtype=torch.float64).repeat(draws.n, 1, 1)
    if any(value is not None for value in (draws.rotation, draws.translate, draws.scale, draws.shear)):
        affine = eye.clone()
        angle = torch.deg2rad(draws.rotation.double()) if draws.rotation is not None else eye[:, 0, 1]
        slope = torch.tan(torch.deg2rad(draws.shear.double())) if draws.shear is not None else eye[:, 0, 1]
        zoom = draws.scale.double() if draws.scale is not None else eye[:, 0, 0]
        cos, sin = torch.cos(angle), torch.sin(angle)
        # The inverse of zoom · rotation · shear, whose determinant is zoom².
        affine[:, 0, 0] = (cos - sin * slope) / zoom
        affine[:, 0, 1] = (sin + cos * slope) / zoom
        affine[:, 1, 0] = -sin / zoom
        affine[:, 1, 1] = cos / zoom
        if draws.translate is not None:
            affine[:, :, 2] = -(affine[:, :, :2] @ (2 * draws.translate.double()).unsqueeze(2)).squeeze(2)
        then(affine)
    if draws.flip is not None:
        mirror = eye.clone()
        mirror[:, 0, 0] = 1 - 2 * draws.flip.double()
        then(mirror)
    if draws.resized_crop is not None:
        top, left, height, width = draws.resized_crop.double().unbind(1)
        window = eye.clone()
        window[:, 0, 0], window[:, 0, 2] = width, 2 * left + width - 1
        window[:, 1, 1], window[:, 1, 2] = height, 2 * top + height - 1
        then(window)
    if draws.crop_padding is not None:
        shift = eye.clone()
        shift[:, :, 2] = 2 * draws.crop_padding.double().flip(1) / SIZE
        then(shift)
    return None if result is None else result.float()


def _move(x: Tensor, draws: Draws, size: int) -> Tensor:
    """Return faces (B, C, size, size) from (B, C, H, H), moved by ``draws.affine``."""
    side = x.shape[-1]
    if draws.affine is not None and len(x):
        # Upwards the sample itself reaches the output size; downwards a bilinear sample would alias.
        x = _sample(x, draws, max(size, side))
    if x.shape[-1] != size:
        x = functional.interpolate(x, (size, size), mode="bilinear", antialias=size < side)
    return x


def _sample(x: Tensor, draws: Draws, size: int) -> Tensor:
    assert draws.affine is not None
    grid = _grid(draws.affine, size)
    # Beyond the outermost pixels' centres ``zeros`` fades to black over one pixel. That pixel is one of the output, as
    # when a face is resized and then moved: where faces grow, pixels of the face would darken a wide rim.
    fades = draws.fill == "zeros" and (size != x.shape[-1] or draws.resized_crop is not None)
    moved = functional.grid_sample(
        x, grid.permute(0, 2, 3, 1), "bilinear", "border" if fades else draws.fill, align_corners=False
    )
    if fades:
        edge = grid.abs_().neg_().add_(1).mul_(size / 2)
        if draws.resized_crop is not None:
            edge.div_(draws.resized_crop[:, 2:, None, None].flip(1))
        edge.add_(0.5).clamp_(0, 1)
        moved.mul_(edge[:, :1] * edge[:, 1:])
    if draws.still is not None and size == x.shape[-1]:
        moved = torch.where(_each(draws.still), x, moved)
    return moved


def _grid(affine: Tensor, size: int) -> Tensor:
    """Return where to sample, (n, 2, size, size), the numbers of ``functional.affine_grid(..., align_corners=False)``.

    One sum instead of that function's matrix product, x and y apart: many times faster here, and float32 under TF32
    and autocast too.
    """
    centres = (torch.arange(size, dtype=torch.float32, device=affine.device) * 2 + 1) / size - 1
    by_x, by_y, offset = affine.unsqueeze(3).unbind(2)
    return (by_y * centres + offset).unsqueeze(3) + (by_x * centres).unsqueeze(2)


def _each(values: Tensor) -> Tensor:
    """Return one value per face (B,) as (B, 1, 1, 1)."""
    return values[:, None, None, None]


def _grey(x: Tensor) -> Tensor:
    """Return (B, 1, H, W) from 1 or 3 channels."""
    if x.shape[1] == 1:
        return x
    return (LUMA[0] * x[:, 0] + LUMA[1] * x[:, 1] + LUMA[2] * x[:, 2]).unsqueeze(1)


def _sharpen(x: Tensor, factor: Tensor) -> Tensor:
    """Move each inner pixel away from the mean of its neighbourhood, in which it counts 5 of 13 (Pillow's SMOOTH)."""
    rows = x[..., :-2, :] + x[..., 1:-1, :] + x[..., 2:, :]
    smooth = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:]
    inner = x[..., 1:-1, 1:-1]
    smooth.add_(inner, alpha=4).div_(13)
    inner.copy_(torch.lerp(smooth, inner, _each(factor)).clamp_(0, 1))
    return x


def _stretch(x: Tensor, chosen: Tensor) -> Tensor:
    """Stretch each channel of the chosen faces to [0, 1]; a constant one stays as it is."""
    low, high = x.amin((2, 3), keepdim=True), x.amax((2, 3), keepdim=True)
    stretched = _each(chosen) & (high > low)
    scale = torch.where(stretched, 1 / (high - low), 1)
    return x.sub_(torch.where(stretched, low, 0)).mul_(scale).clamp_(0, 1)


def _inside(rectangles: Tensor, size: int) -> Tensor:
    """Return a mask (n, size, size) of the pixels whose centre lies in the rectangle; one of height 0 holds none."""
    centres = (torch.arange(size, dtype=torch.float32, device=rectangles.device) + 0.5) / size
    top, left, height, width = rectangles[:, :, None].unbind(1)
    rows = (centres >= top) & (centres < top + height)
    columns = (centres >= left) & (centres < left + width)
    return rows.unsqueeze(2) & columns.unsqueeze(1)
