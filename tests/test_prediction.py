"""The evaluation forward pass: every face once, in order, and views that are what their names say."""

from __future__ import annotations

import copy
from typing import Final

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fer_utils import models
from fer_utils import recipe as recipes
from fer_utils.devices import Precision
from fer_utils.prediction import TTA, predict
from fer_utils.preprocessing import Preprocessing

CPU = torch.device("cpu")
PRECISIONS: Final[tuple[Precision, ...]] = ("float32", "bfloat16", "float16")
HALF = Preprocessing(48, 1, (0.5,), (0.5,))
IMAGES = np.random.default_rng(0).integers(0, 256, (70, 48, 48), dtype=np.uint8)


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    return models.build(recipes.load("fast", {"width": 0.125}))


class Probe(nn.Module):
    """Gives the mean of chosen pixels as the first logit, and keeps what it was shown."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.seen: list[Tensor] = []

    def forward(self, inputs: Tensor) -> Tensor:
        self.seen.append(inputs.clone())
        left = inputs[..., :24].mean((1, 2, 3))
        return torch.stack([left * self.weight, *[torch.zeros_like(left)] * 6], dim=1)


@pytest.mark.parametrize("batch_size", [1, 33, 70, 500])
def test_batches_do_not_change_the_answer_or_its_order(model: nn.Module, batch_size: int) -> None:
    images = IMAGES[:40]
    whole = predict(model, HALF, images, device=CPU, batch_size=batch_size)
    assert whole.shape == (40, 7)
    assert whole.dtype == np.float64
    np.testing.assert_allclose(whole.sum(1), 1, atol=1e-12)
    alone = np.concatenate([predict(model, HALF, images[i : i + 1], device=CPU) for i in range(0, 40, 13)])
    np.testing.assert_allclose(whole[::13], alone, atol=1e-5)


def test_it_is_the_softmax_of_the_models_logits(model: nn.Module) -> None:
    model.eval()
    with torch.no_grad():
        expected = model(HALF(torch.from_numpy(IMAGES))).softmax(1)
    np.testing.assert_allclose(predict(model, HALF, IMAGES, device=CPU), expected.numpy(), atol=1e-5)


def test_the_models_modes_are_put_back(model: nn.Module) -> None:
    model.train()
    model.get_submodule("bn1").eval()
    before = {name: module.training for name, module in model.named_modules()}
    predict(model, HALF, IMAGES[:2], device=CPU)
    assert {name: module.training for name, module in model.named_modules()} == before


def test_flip_averages_a_face_and_its_mirror_image() -> None:
    probe = Probe()
    flipped = predict(probe, HALF, IMAGES, device=CPU, tta="flip")
    one = predict(Probe(), HALF, IMAGES, device=CPU)
    other = predict(Probe(), HALF, IMAGES[:, :, ::-1], device=CPU)
    np.testing.assert_allclose(flipped, (one + other) / 2, atol=1e-6)
    assert not np.allclose(one, other)


def test_ten_crops_are_four_corners_and_the_centre_with_their_mirror_images() -> None:
    preprocessing = Preprocessing(44, 1, (0.5,), (0.5,))
    probe = Probe()
    predict(probe, preprocessing, IMAGES[:1], device=CPU, tta="ten_crop")
    assert len(probe.seen) == 10
    face = IMAGES[0].astype(np.float32) / 255 * 2 - 1
    expected = [face[:44, :44], face[:44, 4:], face[4:, :44], face[4:, 4:], face[2:46, 2:46]]
    for index, crop in enumerate(expected):
        np.testing.assert_allclose(probe.seen[2 * index][0, 0], crop, atol=1e-6)
        np.testing.assert_allclose(probe.seen[2 * index + 1][0, 0], crop[:, ::-1], atol=1e-6)


def test_a_batch_of_fewer_faces_than_views_is_one_face_at_a_time(model: nn.Module) -> None:
    few, many = (predict(model, HALF, IMAGES[:3], device=CPU, batch_size=size, tta="ten_crop") for size in (4, 256))
    np.testing.assert_allclose(few, many, atol=1e-5)


def test_no_faces_give_no_rows(model: nn.Module) -> None:
    assert predict(model, HALF, IMAGES[:0], device=CPU).shape == (0, 7)


def test_an_unknown_augmentation_is_refused(model: nn.Module) -> None:
    with pytest.raises(ValueError, match="flip"):
        predict(model, HALF, IMAGES, device=CPU, tta="mirror")  # type: ignore[arg-type]


@pytest.mark.gpu
@pytest.mark.parametrize("tta", ["none", "flip", "ten_crop"])
def test_cuda_answers_as_a_cpu_does(model: nn.Module, tta: TTA) -> None:
    expected = predict(model, HALF, IMAGES, device=CPU, tta=tta)
    there = copy.deepcopy(model).to("cuda", memory_format=torch.channels_last)  # type: ignore[call-overload]
    found = {
        precision: predict(there, HALF, IMAGES, device=torch.device("cuda"), precision=precision, tta=tta)
        for precision in PRECISIONS
    }
    # Convolutions in float32 may use the ten bits of TF32 there.
    np.testing.assert_allclose(found["float32"], expected, atol=5e-3)
    np.testing.assert_allclose(found["bfloat16"], expected, atol=3e-2)
    np.testing.assert_allclose(found["float16"], expected, atol=5e-3)
