"""What turns faces into network input: numbers, channels, sizes, and what is refused when it is read back."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torchvision.transforms import v2

from fer_utils import recipe as recipes
from fer_utils.emotions import EMOTIONS
from fer_utils.faces import Faces
from fer_utils.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing


@pytest.fixture
def faces() -> Faces:
    images = np.random.default_rng(0).integers(0, 256, (20, 48, 48), dtype=np.uint8)
    return Faces(images, np.arange(20, dtype=np.int64) % 7, np.array([f"face {i}" for i in range(20)]))


def of(faces: Faces, **fields: object) -> Preprocessing:
    return Preprocessing.of(recipes.load("fast", {"image_size": 48, **fields}), faces)


def test_half_maps_black_to_minus_one_and_white_to_one(faces: Faces) -> None:
    images = torch.zeros(2, 48, 48, dtype=torch.uint8)
    images[1] = 255
    result = of(faces, normalize="half")(images)
    assert result.shape == (2, 1, 48, 48)
    assert result[0].unique().tolist() == [-1.0]
    assert result[1].unique().tolist() == [1.0]


@pytest.mark.parametrize("channels", [1, 3])
def test_dataset_normalisation_gives_training_faces_mean_0_and_std_1(faces: Faces, channels: int) -> None:
    result = of(faces, normalize="dataset", channels=channels)(torch.from_numpy(faces.images))
    assert result.shape == (20, channels, 48, 48)
    assert result.mean().item() == pytest.approx(0, abs=1e-5)
    assert result.std(correction=0).item() == pytest.approx(1, abs=1e-5)


def test_three_channels_are_the_grey_one_repeated_and_normalised_as_torchvision_does(faces: Faces) -> None:
    result = of(faces, normalize="imagenet", channels=3, image_size=96)(torch.from_numpy(faces.images))
    grey = torch.from_numpy(faces.images).unsqueeze(1).expand(-1, 3, -1, -1).float() / 255
    resized = v2.functional.resize(grey, [96, 96], antialias=True)
    expected = v2.functional.normalize(resized, list(IMAGENET_MEAN), list(IMAGENET_STD))
    torch.testing.assert_close(result, expected, atol=1e-5, rtol=0)


def test_shrinking_is_antialiased() -> None:
    stripes = np.zeros((1, 48, 48), np.uint8)
    stripes[:, :, ::2] = 255
    # At a third of the size a sample lies on a stripe, -1 or 1, and a triangle over six pixels sees ±1/9.
    result = Preprocessing(16, 1, (0.5,), (0.5,))(torch.from_numpy(stripes))
    assert result[..., 2:-2].abs().max().item() < 0.12


def test_it_survives_a_round_trip_and_refuses_another_label_order(faces: Faces) -> None:
    original = of(faces, normalize="dataset", channels=3)
    values = original.to_dict()
    assert Preprocessing.from_dict(values) == original
    with pytest.raises(ValueError, match="label order"):
        Preprocessing.from_dict({**values, "emotions": list(reversed(EMOTIONS))})
    with pytest.raises(ValueError, match="incomplete"):
        Preprocessing.from_dict({key: value for key, value in values.items() if key != "mean"})
    with pytest.raises(ValueError, match="3 numbers"):
        Preprocessing.from_dict({**values, "mean": [0.5]})


def test_floats_are_refused_rather_than_scaled_twice(faces: Faces) -> None:
    with pytest.raises(TypeError, match="uint8"):
        of(faces)(torch.rand(1, 48, 48))


def test_numbers_that_no_network_was_trained_with_are_refused(faces: Faces) -> None:
    values = of(faces, normalize="dataset", channels=3).to_dict()
    for wrong, told in (({"std": [0.5]}, "3 numbers"), ({"std": [0.5, 0.5, 0]}, "above 0"), ({"size": 0}, "above 0")):
        with pytest.raises(ValueError, match=told):
            Preprocessing.from_dict({**values, **wrong})
