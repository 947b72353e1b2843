"""Maps of where a network looks: they point at what makes the difference, and they depend on what was learned."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional
from torchvision.models import VisionTransformer

from fer_utils import explain, models
from fer_utils.emotions import EMOTIONS
from fer_utils.faces import Faces
from fer_utils.plots import explain as figures
from fer_utils.preprocessing import Preprocessing
from fer_utils.recipe import Recipe

HAPPY, SAD = EMOTIONS.index("happy"), EMOTIONS.index("sad")
MOUTH = (slice(30, 43), slice(12, 36))
"""Where the drawn mouths are: rows, columns."""


def drawn(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Faces that differ by the mouth alone, apart from noise: it smiles or it frowns."""
    rng = np.random.default_rng(seed)
    targets = rng.choice([HAPPY, SAD], n)
    y, x = np.mgrid[:48, :48]
    images = np.empty((n, 48, 48))
    for image, target in zip(images, targets, strict=True):
        image[:] = np.where(((x - 24) / 19) ** 2 + ((y - 24) / 22) ** 2 < 1, 170, 60)
        for centre in (16, 32):
            image[(x - centre) ** 2 + (y - 18) ** 2 < 9] = 30
        curve = 36 + (-1 if target == HAPPY else 1) * 0.06 * ((x - 24) ** 2 - 40)
        image[(np.abs(y - curve) < 1.5) & (np.abs(x - 24) < 10)] = 30
        image += rng.normal(0, 12, image.shape)
    return np.clip(images, 0, 255).astype(np.uint8), targets.astype(np.int64)


@pytest.fixture(scope="module")
def trained(tiny_recipe: Recipe) -> tuple[nn.Module, Preprocessing]:
    """A network that tells smiles from frowns."""
    torch.manual_seed(0)
    images, targets = drawn(256, seed=1)
    # With ReLU it learns the mouth in a second; maps of a SiLU network are weaker there.
    recipe = tiny_recipe.model_copy(update={"activation": "relu", "shortcut": "strided"})
    model = models.build(recipe)
    preprocessing = Preprocessing.of(recipe, Faces.empty())
    inputs, labels = preprocessing(torch.from_numpy(images)), torch.from_numpy(targets)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for step in range(40):
        chosen = torch.arange(64) + 64 * (step % 4)
        loss = functional.cross_entropy(model(inputs[chosen]), labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
    tested, wanted = drawn(40, seed=2)
    found = model(preprocessing(torch.from_numpy(tested))).argmax(1).numpy()
    assert (found == wanted).mean() > 0.95, "it has not learned what it is to be asked about"
    return model, preprocessing


def share_in_mouth(maps: np.ndarray) -> np.ndarray:
    """Mean of a map over the mouth as a multiple of its mean over the face."""
    positive = np.clip(maps, 0, None)
    inside: np.ndarray = positive[(slice(None), *MOUTH)].mean(axis=(1, 2)) / positive.mean(axis=(1, 2))
    return inside


def test_grad_cam_points_to_the_mouth(trained: tuple[nn.Module, Preprocessing]) -> None:
    images, targets = drawn(30, seed=3)
    maps = explain.grad_cam(*trained, images, targets, batch_size=7)
    assert maps.shape == (30, 48, 48)
    assert maps.dtype == np.float32
    assert maps.min() >= 0
    assert maps.max() <= 1
    assert np.median(share_in_mouth(maps)) > 1.3
    # Each face is asked about its own emotion, whatever the batches.
    assert np.abs(maps - explain.grad_cam(*trained, images, targets)).max() < 0.01


def test_occlusion_points_to_the_mouth(trained: tuple[nn.Module, Preprocessing]) -> None:
    images, targets = drawn(8, seed=3)
    maps = explain.occlusion(*trained, images, targets, stride=6)
    highest = [np.unravel_index(values.argmax(), values.shape) for values in maps]
    inside = [30 <= row < 43 and 8 <= column < 40 for row, column in highest]
    assert sum(inside) >= 7
    assert np.median(share_in_mouth(maps)) > 2


def test_with_random_weights_the_maps_change(trained: tuple[nn.Module, Preprocessing]) -> None:
    model, preprocessing = trained
    images, targets = drawn(20, seed=4)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    other = explain.randomized(model, seed=1)
    maps = explain.grad_cam(model, preprocessing, images, targets)
    assert np.nanmean(explain.similarity(maps, maps)) == pytest.approx(1)
    alike = explain.similarity(maps, explain.grad_cam(other, preprocessing, images, targets))
    # Maps of a network that knows nothing are constant or have little in common with those of one that does.
    assert (np.isnan(alike) | (alike < 0.7)).mean() > 0.7
    assert np.nan_to_num(share_in_mouth(explain.occlusion(other, preprocessing, images[:6], targets[:6]))).mean() < 2
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


def test_asking_for_another_emotion_gives_another_map(trained: tuple[nn.Module, Preprocessing]) -> None:
    images, targets = drawn(6, seed=5)
    swapped = np.where(targets == HAPPY, SAD, HAPPY)
    assert not np.allclose(explain.grad_cam(*trained, images, targets), explain.grad_cam(*trained, images, swapped))
    own, other = (explain.occlusion(*trained, images, asked, stride=12) for asked in (targets, swapped))
    # What is lost to the one emotion is won by the other.
    assert np.corrcoef(own.ravel(), other.ravel())[0, 1] < -0.8


def test_no_target_means_the_predicted_emotion(trained: tuple[nn.Module, Preprocessing]) -> None:
    model, preprocessing = trained
    images, _ = drawn(5, seed=6)
    predicted = model(preprocessing(torch.from_numpy(images))).argmax(1).numpy()
    assert np.array_equal(explain.grad_cam(*trained, images), explain.grad_cam(*trained, images, predicted))
    own = explain.occlusion(*trained, images, stride=12)
    assert np.array_equal(own, explain.occlusion(*trained, images, predicted, stride=12))


def test_occlusion_is_the_mean_fall_over_the_squares_that_cover_a_pixel() -> None:
    class Corner(nn.Module):
        """The probability of the first emotion rises with the top left pixel alone."""

        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(1))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return functional.pad(x[:, 0, 0, :1] * self.weight, (0, 6))

    image = np.full((1, 48, 48), 51, np.uint8)
    image[0, 0, 0] = 255
    preprocessing = Preprocessing(48, 1, (0.0,), (1.0,))
    first = np.zeros(1, np.int64)
    maps = explain.occlusion(Corner(), preprocessing, image, first, patch=24, stride=12)
    plain = np.exp(1) / (np.exp(1) + 6)
    # The mean grey of this face is 51, so covering the pixel leaves a logit of 0.2.
    fall = plain - np.exp(0.2) / (np.exp(0.2) + 6)
    assert maps[0, 0, 0] == pytest.approx(fall, abs=1e-6)
    # One of the four squares over this pixel covers the corner too; none of those over the last.
    assert maps[0, 20, 20] == pytest.approx(fall / 4, abs=1e-6)
    assert maps[0, 47, 47] == pytest.approx(0, abs=1e-6)
    whole = explain.occlusion(Corner(), preprocessing, image, first, patch=48, stride=48)
    assert whole == pytest.approx(np.full((1, 48, 48), fall), abs=1e-6)
    # The last squares end at the edge where the strides do not.
    assert np.isfinite(explain.occlusion(Corner(), preprocessing, image, first, patch=10, stride=7)).all()


def test_the_network_is_left_as_it_was(trained: tuple[nn.Module, Preprocessing]) -> None:
    model, preprocessing = trained
    images, _ = drawn(2, seed=7)
    evaluated = explain.grad_cam(model, preprocessing, images)
    model.train()
    # As where batch norm is frozen.
    frozen = next(module for module in model.modules() if isinstance(module, nn.BatchNorm2d)).eval()
    assert np.array_equal(explain.grad_cam(model, preprocessing, images), evaluated)
    assert [module for module in model.modules() if not module.training] == [frozen]
    model.eval()
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())


def test_frozen_networks_and_other_input_sizes(tiny_recipe: Recipe) -> None:
    images, _ = drawn(2, seed=8)
    recipe = tiny_recipe.model_copy(update={"image_size": 64, "channels": 3, "train_layers": ("fc",)})
    maps = explain.grad_cam(models.build(recipe), Preprocessing.of(recipe, Faces.empty()), images)
    assert maps.shape == (2, 48, 48)
    assert np.isfinite(maps).all()


def test_wrong_arguments_are_refused(trained: tuple[nn.Module, Preprocessing]) -> None:
    images, _ = drawn(2, seed=9)
    for wrong in (np.array([3]), np.array([3, 7]), np.array([-1, 3])):
        with pytest.raises(ValueError, match="targets must be 2 numbers from 0 to 6"):
            explain.grad_cam(*trained, images, wrong)
        with pytest.raises(ValueError, match="targets must be 2"):
            explain.occlusion(*trained, images, wrong)
    for patch, stride in ((8, 9), (8, 0), (49, 4)):
        with pytest.raises(ValueError, match=f"and stride 1 to patch, not {patch} and {stride}"):
            explain.occlusion(*trained, images, patch=patch, stride=stride)


def test_no_faces_give_no_maps(trained: tuple[nn.Module, Preprocessing]) -> None:
    none = np.empty((0, 48, 48), np.uint8)
    assert explain.grad_cam(*trained, none).shape == (0, 48, 48)
    assert explain.occlusion(*trained, none).shape == (0, 48, 48)


def test_both_maps_are_there_but_for_networks_without_a_convolutional_stage(
    trained: tuple[nn.Module, Preprocessing],
) -> None:
    images, _ = drawn(2, seed=11)
    both = explain.maps(*trained, images, stride=12)
    assert list(both) == ["Grad-CAM", "occlusion"]
    assert np.array_equal(both["Grad-CAM"], explain.grad_cam(*trained, images))
    assert np.array_equal(both["occlusion"], explain.occlusion(*trained, images, stride=12))
    transformer = VisionTransformer(48, 24, num_layers=1, num_heads=1, hidden_dim=8, mlp_dim=8, num_classes=7)
    colour = Preprocessing(48, 3, (0.5,) * 3, (0.5,) * 3)
    assert list(explain.maps(transformer, colour, images, stride=12)) == ["occlusion"]


def test_another_stage_gives_a_finer_map(trained: tuple[nn.Module, Preprocessing]) -> None:
    images, targets = drawn(4, seed=12)
    last = explain.grad_cam(*trained, images, targets)
    named = explain.grad_cam(*trained, images, targets, layer=models.target_layer(trained[0]))
    finer = explain.grad_cam(*trained, images, targets, layer=trained[0].get_submodule("layer2"))
    assert np.array_equal(named, last)
    steps = [np.abs(np.diff(maps, 2, axis=1)).mean() for maps in (last, finer)]
    assert steps[1] > 1.5 * steps[0]


def test_random_weights_are_those_of_their_seed_and_leave_torch_s_generator_alone(tiny_recipe: Recipe) -> None:
    model = models.build(tiny_recipe)
    before = torch.get_rng_state()
    first, again, other = (explain.randomized(model, seed).get_parameter("conv1.weight") for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_similarity_is_of_ranks() -> None:
    maps = np.random.default_rng(0).random((2, 48, 48)).astype(np.float32)
    assert explain.similarity(maps, np.exp(9 * maps)) == pytest.approx(1)
    assert explain.similarity(maps, 1 - maps**3) == pytest.approx(-1)
    assert np.isnan(explain.similarity(maps, np.zeros_like(maps))).all()
    # Spearman's textbook example: 1 - 6 Σd² / n(n² - 1), of ten pairs whose ranks differ by Σd² = 194.
    a = np.array([[106, 100, 86, 101, 99, 103, 97, 113, 112, 110]], np.float32)[..., None]
    b = np.array([[7, 27, 2, 50, 28, 29, 20, 12, 6, 17]], np.float32)[..., None]
    assert explain.similarity(a, b) == pytest.approx(-29 / 165)


def test_examples_are_the_surest_of_each_emotion() -> None:
    probabilities = np.full((5, 7), 0.01)
    for row, (emotion, value) in enumerate([(0, 0.5), (0, 0.9), (1, 0.8), (1, 0.7), (2, 0.6)]):
        probabilities[row, emotion] = value
    targets = np.array([0, 0, 0, 1, 0])
    assert explain.examples(probabilities, targets)[:3] == [(1, 2), (3, None), (None, None)]


def test_figures(trained: tuple[nn.Module, Preprocessing]) -> None:
    images, targets = drawn(3, seed=10)
    maps = explain.grad_cam(*trained, images)
    probabilities = np.full((3, 7), 0.05)
    probabilities[:, HAPPY] = 0.7
    shown = figures.attention(
        images, {"Grad-CAM": maps, "occlusion": maps}, targets, probabilities, " (synthetic faces)", places=[0, 1, 3]
    )
    assert "synthetic" in str(shown.get_suptitle())
    texts = [text.get_text() for axes in shown.axes for text in axes.texts]
    assert sorted(text[0] for text in texts) == sorted("✓" if target == HAPPY else "✗" for target in targets)
    both = figures.sanity(images, maps, maps, [1.0, 0.5, float("nan")])
    assert [axes.get_xlabel() for axes in both.axes[3:]] == ["alike 1.00", "alike 0.50", "no map"]


def test_members_point_where_they_do_together(trained: tuple[nn.Module, Preprocessing]) -> None:
    model, preprocessing = trained
    other = explain.randomized(model, seed=2)
    images, targets = drawn(6, seed=6)
    both = models.Members([model, other]).eval()
    apart = [explain.grad_cam(each, preprocessing, images, targets) for each in (model, other)]
    assert np.abs(apart[0] - apart[1]).max() > 0.5
    sums = apart[0] + apart[1]
    low = sums.min(axis=(1, 2), keepdims=True)
    expected = (sums - low) / (sums.max(axis=(1, 2), keepdims=True) - low)
    np.testing.assert_allclose(explain.grad_cam(both, preprocessing, images, targets), expected, atol=0.03)
