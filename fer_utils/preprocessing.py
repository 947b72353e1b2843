"""What turns faces into a network's input. It is stored with every model and checked when a model is loaded."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from fer_utils.emotions import EMOTIONS
from fer_utils.faces import Faces
from fer_utils.recipe import Recipe

IMAGENET_MEAN: Final = (0.485, 0.456, 0.406)
IMAGENET_STD: Final = (0.229, 0.224, 0.225)
"""Mean and standard deviation of ImageNet's channels in [0, 1], as torchvision's weights expect them."""


@dataclass(frozen=True)
class Preprocessing:
    """Grey faces to normalised network input.

    Attributes:
        size: side of the input in pixels.
        channels: 1, or 3 for the grey channel repeated.
        mean, std: one number per channel, on values in [0, 1].
        emotions: names of the logits, in order.
    """

    size: int
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    emotions: tuple[str, ...] = EMOTIONS

    def __post_init__(self) -> None:
        if self.emotions != EMOTIONS:
            raise ValueError(f"label order {list(self.emotions)} is not this version's {list(EMOTIONS)}")
        if self.channels not in (1, 3) or len(self.mean) != self.channels or len(self.std) != self.channels:
            raise ValueError(f"mean and std need {self.channels} numbers, got {self.mean} and {self.std}")
        if self.size < 1 or min(self.std) <= 0:
            raise ValueError(f"size and std must be above 0, got {self.size} and {self.std}")

    @classmethod
    def of(cls, recipe: Recipe, train: Faces) -> Preprocessing:
        """Return the preprocessing of a recipe; ``normalize: dataset`` measures the training faces."""
        channels = recipe.channels
        if recipe.normalize == "imagenet":
            # A grey picture fed to a 1-channel network carries the first channel's numbers, as its users publish them.
            mean: tuple[float, ...] = IMAGENET_MEAN[:channels]
            std: tuple[float, ...] = IMAGENET_STD[:channels]
        elif recipe.normalize == "dataset":
            if not len(train):
                raise ValueError("normalize: dataset measures the training faces, but there are none")
            counts = np.bincount(train.images.reshape(-1), minlength=256) / train.images.size
            grey = np.arange(256) / 255
            centre = float(counts @ grey)
            spread = float(np.sqrt(counts @ (grey - centre) ** 2))
            mean, std = (centre,) * channels, (max(spread, 1e-3),) * channels
        else:
            mean, std = (0.5,) * channels, (0.5,) * channels
        return cls(recipe.image_size, channels, mean, std)

    def normalize(self, images: Tensor) -> Tensor:
        """Return network input from float images (B, 1 or 3, S, S) in [0, 1]; grey is repeated where it must be."""
        # Filled on the device: a copy from the host would make the host wait for a GPU.
        mean, std = (
            torch.cat([torch.full((1, 1, 1, 1), v, dtype=images.dtype, device=images.device) for v in values], dim=1)
            for values in (self.mean, self.std)
        )
        # The difference broadcasts a single grey channel over three: repeating comes for free. A second new tensor
        # would cost more than all the arithmetic here.
        return (images - mean).div_(std)

    def __call__(self, images: Tensor) -> Tensor:
        """Return network input (B, channels, S, S) float32 from uint8 faces (B, H, W) or (B, 1, H, W).

        Faces of another size than the input are resized bilinearly, with antialiasing when they shrink.
        """
        if images.dtype != torch.uint8:
            raise TypeError(f"faces must be uint8, not {images.dtype}")
        faces = images if images.dim() == 4 else images.unsqueeze(1)
        scaled = faces.to(torch.float32) / 255
        side = self.size
        if scaled.shape[-2:] != (side, side):
            scaled = functional.interpolate(scaled, (side, side), mode="bilinear", antialias=side < scaled.shape[-1])
        return self.normalize(scaled)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON and checkpoints."""
        return {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Preprocessing:
        """Read what ``to_dict`` wrote.

        Raises:
            ValueError: a field is missing or wrong, or the label order is another one.
        """
        try:
            return cls(
                int(values["size"]),
                int(values["channels"]),
                tuple(float(v) for v in values["mean"]),
                tuple(float(v) for v in values["std"]),
                tuple(values["emotions"]),
            )
        except (KeyError, TypeError) as error:
            raise ValueError(f"preprocessing {values!r} is incomplete: {error}") from error
