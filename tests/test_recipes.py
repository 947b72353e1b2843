"""recipes/*.yaml: each earlier system is what its text says, from the first kernel to the last learning rate."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from torch import nn

from fer_utils import models, training
from fer_utils import recipe as recipes
from fer_utils.augment import draw
from fer_utils.faces import Splits
from fer_utils.preprocessing import Preprocessing
from fer_utils.recipe import Recipe

FIVE = ("dense_head", "partial_finetune", "linear_head", "custom_cnn", "one_cycle")
RESNETS = ("dense_head", "partial_finetune", "linear_head", "one_cycle")


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, torch.Tensor]]:
    """ResNet18's ImageNet weights in random numbers, where torch's cache has them; their file's name has no digest."""
    home = tmp_path_factory.mktemp("torch")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torchvision.models.ResNet18_Weights.IMAGENET1K_V1.value, "url", "http://127.0.0.1:9/resnet18.pth")
        with patch.context() as there:
            there.setenv("TORCH_HOME", str(home))
            path = models.weights_file("resnet18")
        assert path.is_relative_to(home)
        path.parent.mkdir(parents=True)
        torch.manual_seed(3)
        state = torchvision.models.resnet18().state_dict()
        torch.save(state, path)
        yield {"home": str(home), **state}  # type: ignore[dict-item]


def shapes_only(recipe: Recipe) -> nn.Module:
    with torch.device("meta"):
        return models.build(recipe, pretrained=False)


# -- the network ------------------------------------------------------------------------------------------------------


def resnet18(channels: int, size: int) -> list[tuple[str, str, str, int]]:
    """Name, kind, output and parameters of ResNet18's layers (He et al. 2016, table 1), without the head."""
    side = size // 2
    rows = [
        ("conv1", "Conv2d", f"64 × {side} × {side}", 64 * channels * 49),
        ("bn1", "BatchNorm2d", f"64 × {side} × {side}", 128),
        ("relu", "ReLU", f"64 × {side} × {side}", 0),
        ("maxpool", "MaxPool2d", f"64 × {side // 2} × {side // 2}", 0),
    ]
    side //= 2
    inputs = 64
    for stage, outputs in enumerate((64, 128, 256, 512), start=1):
        for block in (0, 1):
            if stage > 1 and block == 0:
                side = -(-side // 2)
            name, shape = f"layer{stage}.{block}", f"{outputs} × {side} × {side}"
            rows += [
                (f"{name}.conv1", "Conv2d", shape, inputs * outputs * 9),
                (f"{name}.bn1", "BatchNorm2d", shape, 2 * outputs),
                (f"{name}.relu", "ReLU", shape, 0),
                (f"{name}.conv2", "Conv2d", shape, outputs * outputs * 9),
                (f"{name}.bn2", "BatchNorm2d", shape, 2 * outputs),
            ]
            if stage > 1 and block == 0:
                rows += [
                    (f"{name}.downsample.0", "Conv2d", shape, inputs * outputs),
                    (f"{name}.downsample.1", "BatchNorm2d", shape, 2 * outputs),
                ]
            inputs = outputs
    return [*rows, ("avgpool", "AdaptiveAvgPool2d", "512 × 1 × 1", 0)]


def cnn() -> list[tuple[str, str, str, int]]:
    rows = []
    sizes = (1, 32, 64, 128, 256)
    for block in range(4):
        inputs, outputs, side = sizes[block], sizes[block + 1], 48 >> block
        rows += [
            (f"features.{3 * block}", "Conv2d", f"{outputs} × {side} × {side}", outputs * (9 * inputs + 1)),
            (f"features.{3 * block + 1}", "ReLU", f"{outputs} × {side} × {side}", 0),
            (f"features.{3 * block + 2}", "MaxPool2d", f"{outputs} × {side // 2} × {side // 2}", 0),
        ]
    return [*rows, ("pool", "AdaptiveAvgPool2d", "256 × 3 × 3", 0)]


LAYERS = {
    "dense_head": [
        *resnet18(3, 224),
        ("fc.0", "Linear", "100", 51_300),
        ("fc.1", "ReLU", "100", 0),
        ("fc.2", "Linear", "7", 707),
    ],
    "partial_finetune": [*resnet18(1, 224), ("fc.0", "Dropout", "512", 0), ("fc.1", "Linear", "7", 3591)],
    "linear_head": [*resnet18(3, 224), ("fc", "Linear", "7", 3591)],
    "custom_cnn": [
        *cnn(),
        ("classifier.0", "Dropout", "2304", 0),
        ("classifier.1", "Linear", "512", 1_180_160),
        ("classifier.2", "ReLU", "512", 0),
        ("classifier.3", "Linear", "7", 3591),
    ],
    "one_cycle": [*resnet18(3, 48), ("fc", "Linear", "7", 3591)],
}
PARAMETERS = {
    "dense_head": (11_228_519, 11_228_519),
    "partial_finetune": (11_173_831, 10_497_031),
    "linear_head": (11_180_103, 11_180_103),
    "custom_cnn": (1_571_591, 1_571_591),
    "one_cycle": (11_180_103, 11_180_103),
}
"""All, and those that are trained."""


@pytest.mark.parametrize("name", FIVE)
def test_the_network_layer_by_layer(name: str) -> None:
    recipe = recipes.load(name)
    model = shapes_only(recipe)
    table = models.summary(model, recipe)
    assert list(table[["layer", "kind", "shape", "parameters"]].itertuples(index=False, name=None)) == LAYERS[name]
    assert (table["parameters"].sum(), table["trainable"].sum()) == PARAMETERS[name]
    assert models.count_parameters(model) == PARAMETERS[name][0]
    trained = {layer.split(".")[0] for layer in table.loc[table["trainable"] > 0, "layer"]}
    frozen = {layer.split(".")[0] for layer in table.loc[table["trainable"] < table["parameters"], "layer"]}
    if name == "partial_finetune":
        assert (trained, frozen) == ({"layer3", "layer4", "fc"}, {"conv1", "bn1", "layer1", "layer2"})
    else:
        assert not frozen


def test_dropout_is_a_half_where_the_text_says_so() -> None:
    for name in FIVE:
        rates = [m.p for m in shapes_only(recipes.load(name)).modules() if isinstance(m, nn.Dropout)]
        assert rates == ([0.5] if name in ("partial_finetune", "custom_cnn") else [])


@pytest.mark.parametrize("name", RESNETS)
def test_imagenet_weights_are_where_fine_tuning_starts(
    name: str, imagenet: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", imagenet["home"])
    state = models.build(recipes.load(name)).state_dict()
    for key, value in state.items():
        if not key.startswith("fc."):
            mean = name == "partial_finetune" and key == "conv1.weight"
            assert torch.equal(value, imagenet[key].mean(1, keepdim=True) if mean else imagenet[key]), key


def test_custom_cnn_starts_from_scratch(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    models.build(recipes.load("custom_cnn"))
    assert not list(tmp_path.rglob("*"))


# -- the optimisation -------------------------------------------------------------------------------------------------

ADAM = {"kind": torch.optim.Adam, "betas": (0.9, 0.999), "eps": 1e-8}
OPTIMISERS: dict[str, tuple[dict[str, Any], list[tuple[str, int, float, float]]]] = {
    "dense_head": (ADAM, [("all", 64, 1e-4, 0.0)]),
    "partial_finetune": (
        {**ADAM, "kind": torch.optim.AdamW},
        [("layer3", 15, 3e-4, 0.01), ("layer4", 15, 5e-4, 0.01), ("fc", 2, 1e-3, 0.01)],
    ),
    "linear_head": (ADAM, [("all", 62, 1e-4, 0.0)]),
    "custom_cnn": (ADAM, [("all", 12, 1e-3, 0.0)]),
    "one_cycle": (ADAM, [("all", 62, 1e-3, 1e-4)]),
}
"""Optimiser, and of each group: name, parameter tensors, rate, weight decay."""


@pytest.mark.parametrize("name", FIVE)
def test_optimiser_and_its_groups(name: str, imagenet: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", imagenet["home"])
    optimizer = training.make_state(recipes.load(name), torch.device("cpu"), "float32").optimizer
    stock, groups = OPTIMISERS[name]
    assert type(optimizer) is stock["kind"]
    told = [(g["name"], len(g["params"]), pytest.approx(g["lr"]), g["weight_decay"]) for g in optimizer.param_groups]
    assert told == groups
    assert all((g["betas"], g["eps"]) == (stock["betas"], stock["eps"]) for g in optimizer.param_groups)


def test_conv1_has_the_rate_of_the_text_once_it_is_trained() -> None:
    recipe = recipes.load("partial_finetune", {"train_layers": "[conv1, layer3, layer4, fc]"})
    groups = models.parameter_groups(shapes_only(recipe), recipe)
    assert {g["name"]: pytest.approx(g["lr"] / recipe.lr) for g in groups} == {
        "conv1": 0.1,
        "layer3": 0.3,
        "layer4": 0.5,
        "fc": 1.0,
    }


@pytest.mark.parametrize("name", FIVE)
def test_the_learning_rate_over_a_run(name: str) -> None:
    recipe = recipes.load(name)
    steps = 225
    rates = training.learning_rates(recipe, steps)
    assert rates.shape == (recipe.epochs * steps,)
    if name != "one_cycle":
        # partial_finetune falls with the validation loss, which no plan knows.
        assert np.unique(rates).tolist() == [OPTIMISERS[name][1][-1][2]]
        return
    optimizer = torch.optim.Adam([nn.Parameter(torch.zeros(1))])
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, epochs=recipe.epochs, steps_per_epoch=steps)
    expected = []
    for _ in rates:
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if len(expected) < len(rates):
            schedule.step()
    np.testing.assert_allclose(rates, expected, rtol=1e-9)
    assert (rates[0], rates.max(), rates[-1]) == pytest.approx((4e-5, 1e-3, 4e-9))
    assert int(rates.argmax()) == round(0.3 * len(rates)) - 1


def test_frozen_layers_stay_through_a_step_but_for_their_statistics(
    imagenet: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", imagenet["home"])
    recipe = recipes.load("partial_finetune", {"image_size": 48})
    model = models.build(recipe)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    models.set_training_mode(model, recipe)
    optimizer = torch.optim.AdamW(models.parameter_groups(model, recipe))
    loss = nn.functional.cross_entropy(model(torch.randn(8, 1, 48, 48)), torch.arange(8) % 7)
    torch.autograd.backward(loss)
    optimizer.step()
    for key, value in model.state_dict().items():
        statistic = key.endswith(("running_mean", "running_var", "num_batches_tracked"))
        assert torch.equal(value, before[key]) != (statistic or key.startswith(("layer3", "layer4", "fc"))), key


# -- the input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "size", "channels", "mean", "std"),
    [
        ("dense_head", 224, 3, None, None),
        ("partial_finetune", 224, 1, (0.485,), (0.229,)),
        ("linear_head", 224, 3, None, None),
        ("custom_cnn", 48, 1, (0.5,), (0.5,)),
        ("one_cycle", 48, 3, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    ],
)
def test_size_channels_and_normalisation(
    name: str, size: int, channels: int, mean: Any, std: Any, synthetic_splits: Splits
) -> None:
    train = synthetic_splits.train
    done = Preprocessing.of(recipes.load(name), train)
    if mean is None:
        grey = train.images / 255
        mean, std = (grey.mean(),) * 3, (grey.std(),) * 3
    assert (done.size, done.channels) == (size, channels)
    assert done.mean == pytest.approx(mean)
    assert done.std == pytest.approx(std)
    faces = done(torch.from_numpy(train.images[:2].copy()))
    assert faces.shape == (2, channels, size, size)


RANGES: dict[str, dict[str, tuple[float, float]]] = {
    "dense_head": {"rotation": (-30, 30)},
    "partial_finetune": {
        "rotation": (-10, 10),
        "translate": (-0.05, 0.05),
        "scale": (0.95, 1.05),
        "sharpness": (1.0, 1.5),
    },
    "linear_head": {},
    "custom_cnn": {},
    "one_cycle": {
        "rotation": (-10, 10),
        "crop_padding": (-4, 4),
        "brightness": (0.8, 1.2),
        "contrast": (0.8, 1.2),
    },
}
SHARES = {"partial_finetune": {"flip": 0.5, "autocontrast": 0.3}, "one_cycle": {"flip": 0.5}}


@pytest.mark.parametrize("name", FIVE)
def test_augmentation_draws_what_the_text_says(name: str) -> None:
    n = 20_000
    draws = draw(recipes.load(name).augment, n, seed=0, epoch=0)
    on = {"n", "fill", "affine", "still", *RANGES[name], *SHARES.get(name, {})}
    assert all(getattr(draws, field) is None for field in vars(draws).keys() - on)
    assert draws.fill == "zeros"
    for field, (low, high) in RANGES[name].items():
        values = getattr(draws, field).double()
        assert float(values.min()) == pytest.approx(low, abs=(high - low) / 1000)
        assert float(values.max()) == pytest.approx(high, abs=(high - low) / 1000)
        assert low - 1e-6 <= float(values.min()) <= float(values.max()) <= high + 1e-6
        if field == "sharpness":
            assert float((values == high).double().mean()) == pytest.approx(0.3, abs=0.015)
        else:
            assert float(values.mean()) == pytest.approx((low + high) / 2, abs=(high - low) / 80)
    for field, share in SHARES.get(name, {}).items():
        assert float(getattr(draws, field).double().mean()) == pytest.approx(share, abs=0.015)


# -- the run ----------------------------------------------------------------------------------------------------------

RUNS: dict[str, dict[str, Any]] = {
    "dense_head": {"epochs": 30, "batch_size": 128},
    "partial_finetune": {"epochs": 30, "batch_size": 128, "clip_norm": 1.0, "schedule": "plateau"},
    "linear_head": {"epochs": 20, "batch_size": 128},
    "custom_cnn": {"epochs": 30, "batch_size": 64, "val_fraction": 0.2},
    "one_cycle": {"epochs": 10, "batch_size": 128, "clip_value": 0.1, "schedule": "one_cycle"},
}
PLAIN: dict[str, Any] = {
    "schedule": "constant", "val_fraction": None, "clip_norm": None, "clip_value": None, "early_stopping": None,
    "ema": 0.0, "label_smoothing": 0.0, "balance": "none", "mixup": 0.0, "cutmix": 0.0, "progressive": None,
    "dedupe": "none", "precision": "float32", "compile": False, "decay_all": True, "freeze_batch_norm": False,
    "plateau_factor": 0.5, "plateau_patience": 2, "seed": 0, "split_seed": 0,
}  # fmt: skip
"""What none of them has unless RUNS says so."""


@pytest.mark.parametrize("name", FIVE)
def test_length_and_what_else_it_has_and_has_not(name: str) -> None:
    recipe = recipes.load(name)
    for field, value in {**PLAIN, **RUNS[name]}.items():
        assert getattr(recipe, field) == value, field
