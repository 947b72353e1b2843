"""models.py: every backbone, stem, width and head; freezing and rates; ImageNet weights or a word on their absence."""

import contextlib
import copy
import hashlib
import http.server
import pickle
import socket
import threading
from collections import OrderedDict
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn

from fer_utils import models
from fer_utils.models import MissingWeights, ModelError
from fer_utils.recipe import Recipe

SMALLEST = {
    "resnet18": 24,
    "resnet34": 24,
    "resnet50": 24,
    "vgg11_bn": 32,
    "vgg16": 32,
    "inception_v3": 75,
    "densenet121": 32,
    "efficientnet_b0": 24,
    "mobilenet_v3_small": 24,
    "convnext_tiny": 32,
    "custom_cnn": 24,
}
"""Smallest image_size that each backbone takes, of those that a recipe can ask for."""


def make(**fields: Any) -> Recipe:
    return Recipe.model_validate({"name": "test", "epochs": 1, **fields})


def shapes_only(**fields: Any) -> nn.Module:
    """Build a network without memory or arithmetic."""
    with torch.device("meta"):
        return models.build(make(**fields))


def light_vgg(recipe: Recipe) -> nn.Module:
    """Build a VGG whose two layers of 4096, 120 of its 138 million parameters, are constant and frozen."""
    with torch.device("meta"):
        model = models.build(recipe)
    model.to_empty(device="cpu")
    for module in model.modules():
        if isinstance(module, nn.Linear) and module.out_features == 4096:
            module.weight.requires_grad_(False).fill_(1 / module.in_features)
            module.bias.requires_grad_(False).zero_()
        elif isinstance(module, nn.Conv2d | nn.Linear | nn.BatchNorm2d):
            module.reset_parameters()
    return model


# -- every backbone ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("backbone", SMALLEST)
def test_every_backbone_takes_a_step_at_its_smallest_size(backbone: str, channels: int) -> None:
    size = SMALLEST[backbone]
    recipe = make(backbone=backbone, channels=channels, image_size=size, lr=0.01)
    torch.manual_seed(0)
    model = light_vgg(recipe) if backbone.startswith("vgg") else models.build(recipe)
    models.set_training_mode(model, recipe)
    optimizer = torch.optim.SGD(models.parameter_groups(model, recipe))
    kernels = models.first_filters(model)
    x = torch.randn(2, channels, size, size)
    given = x.clone()
    logits = model(x)
    assert logits.shape == (2, 7)
    torch.autograd.backward(nn.functional.cross_entropy(logits, torch.tensor([0, 6])))
    optimizer.step()
    assert kernels.shape[1] == channels
    assert not torch.equal(models.first_filters(model), kernels)
    assert all(p.isfinite().all() for p in model.parameters() if p.requires_grad)
    assert torch.equal(x, given)


@pytest.mark.parametrize("backbone", [name for name in SMALLEST if name not in ("custom_cnn", "inception_v3")])
def test_size_and_arithmetic_are_what_torchvision_states(backbone: str) -> None:
    weights = next(iter(torchvision.models.get_model_weights(backbone)))
    model = shapes_only(backbone=backbone, channels=3, image_size=224)
    final = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
    # Stated for 1000 classes.
    assert models.count_parameters(model) + 993 * (final.in_features + 1) == weights.meta["num_params"]
    billions = (models.multiply_adds(model, 3, 224) + 993 * final.in_features) / 1e9
    assert billions == pytest.approx(weights.meta["_ops"], abs=0.0006)


def test_inception_is_stated_with_the_auxiliary_classifier_that_is_left_out() -> None:
    model = shapes_only(backbone="inception_v3", channels=3, image_size=299)
    assert models.multiply_adds(model, 3, 299) / 1e9 == pytest.approx(5.713, abs=0.0021)
    assert not [name for name, _ in model.named_parameters() if "Aux" in name]


@pytest.mark.parametrize(
    ("backbone", "size", "smallest"),
    [("vgg16", 24, 32), ("vgg11_bn", 28, 32), ("inception_v3", 48, 75), ("densenet121", 28, 32), ("alexnet", 48, 64)],
)
def test_a_size_too_small_is_refused_with_one_that_is_not(backbone: str, size: int, smallest: int) -> None:
    with pytest.raises(ModelError, match=rf"{backbone}.*{size} × {size} pixels.*takes is {smallest}\."):
        shapes_only(backbone=backbone, image_size=size)


def test_every_size_of_a_rising_resolution_is_checked() -> None:
    with pytest.raises(ModelError, match=r"vgg11_bn.*28 × 28"):
        shapes_only(backbone="vgg11_bn", image_size=48, progressive=28)
    shapes_only(backbone="vgg11_bn", image_size=48, progressive=32)


def test_transformers_are_built_for_their_size() -> None:
    assert shapes_only(backbone="vit_b_16", image_size=48)(torch.empty(2, 1, 48, 48, device="meta")).shape == (2, 7)
    with pytest.raises(ModelError, match=r"vit_b_16 cannot be built for image_size 50 .224 fits"):
        shapes_only(backbone="vit_b_16", image_size=50)
    with pytest.raises(ModelError, match="no convolutional stage"):
        models.target_layer(shapes_only(backbone="vit_b_16", image_size=48))


# -- members ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fields", [{}, {"backbone": "resnet50"}, {"backbone": "custom_cnn", "width": 1.0}])
def test_members_answer_with_the_mean_of_their_logits_and_learn_each_for_itself(fields: dict[str, Any]) -> None:
    recipe = make(**{"image_size": 48, "width": 0.125, "members": 3, **fields})
    torch.manual_seed(0)
    model = models.build(recipe).double()
    every = models.networks(model)
    faces = torch.randn(5, 1, 48, 48, dtype=torch.float64)
    with torch.no_grad():
        assert model(faces).shape == (5, 3, 7)
        model.eval()
        answers = torch.stack([network(faces) for network in every])
        assert min((answers[i] - answers[j]).abs().max() for i, j in ((0, 1), (0, 2), (1, 2))) > 1e-3
        torch.testing.assert_close(model(faces), answers.mean(dim=0), rtol=1e-9, atol=1e-9)
    alone = models.build(recipe.model_copy(update={"members": 1}))
    assert models.networks(alone) == [alone]
    assert models.count_parameters(model) == 3 * models.count_parameters(alone)
    assert models.multiply_adds(model, 1, 48) == 3 * models.multiply_adds(alone, 1, 48)
    assert models.layer_names(model) == models.layer_names(alone)
    assert len(models.first_filters(model)) == 3 * len(models.first_filters(alone))


def test_layers_are_named_in_every_member_as_in_one() -> None:
    recipe = make(width=0.125, members=2, train_layers=("layer4", "fc"), layer_lr={"layer4": 0.5}, lr=0.1)
    model = models.build(recipe)
    for network in models.networks(model):
        trained = {name.split(".")[0] for name, parameter in network.named_parameters() if parameter.requires_grad}
        assert trained == {"layer4", "fc"}
    groups = {group["name"]: group for group in models.parameter_groups(model, recipe)}
    assert groups["layer4"]["lr"] == 0.05
    assert len(groups["layer4"]["params"]) == 2 * 5
    with pytest.raises(ModelError, match="no layer 'members'"):
        models.build(make(width=0.125, members=2, train_layers=("members",)))


def test_weights_fit_whatever_the_dropout_and_nothing_else() -> None:
    with torch.device("meta"):
        there, here = (models.build(make(width=0.5, dropout=dropout)) for dropout in (0.0, 0.3))
        assert list(models.fitted(there.state_dict(), here)) == list(here.state_dict())
        assert list(models.fitted(here.state_dict(), there)) == list(there.state_dict())
        with pytest.raises(ModelError, match=r"conv1.weight is \(32, 1, 7, 7\) there and \(48, 1, 7, 7\) here"):
            models.fitted(there.state_dict(), models.build(make(width=0.75)))
        with pytest.raises(ModelError, match="another head"):
            models.fitted(there.state_dict(), models.build(make(width=0.5, head=(16,))))


# -- stems, widths, heads ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("max_pool", [True, False])
@pytest.mark.parametrize(("stem", "kernel", "stride"), [("imagenet", 7, 2), ("3x3s2", 3, 2), ("3x3s1", 3, 1)])
def test_the_stem_sets_the_first_kernels_and_the_resolution(
    stem: str, kernel: int, stride: int, max_pool: bool
) -> None:
    fields = {"stem": stem, "max_pool": max_pool}
    model = shapes_only(**fields)
    table = models.summary(model, make(**fields)).set_index("layer")
    side = 48 // stride
    assert model.get_parameter("conv1.weight").shape == (64, 1, kernel, kernel)
    assert table.loc["conv1", "shape"] == f"64 × {side} × {side}"
    pooled = side // 2 if max_pool else side
    assert table.loc["layer1.1.bn2", "shape"] == f"64 × {pooled} × {pooled}"
    assert set(model.state_dict()) == set(torchvision.models.resnet18().state_dict())


@pytest.mark.parametrize("backbone", ["resnet18", "resnet50"])
@pytest.mark.parametrize(("width", "channels"), [(0.125, 8), (0.75, 48), (2.0, 128)])
def test_width_scales_every_stage_and_no_name(backbone: str, width: float, channels: int) -> None:
    with torch.device("meta"):
        plain = torchvision.models.get_model(backbone, num_classes=7).state_dict()
    model = shapes_only(backbone=backbone, width=width, channels=3)
    state = model.state_dict()
    assert list(state) == list(plain)
    assert state["conv1.weight"].shape == (channels, 3, 7, 7)
    for name, tensor in state.items():
        scaled = [n if plain[name].shape[i] in (1, 3, 7) else n / width for i, n in enumerate(tensor.shape)]
        assert scaled == list(plain[name].shape), name


def test_a_narrow_network_computes_and_starts_as_a_wide_one_does() -> None:
    torch.manual_seed(0)
    recipe = make(width=0.1, zero_init_residual=True, dropout=0.5, stem="3x3s2", max_pool=False)
    model = models.build(recipe)
    # 6.4 channels are 8, 51.2 are 48.
    assert model.get_parameter("conv1.weight").shape[0] == 8
    assert model.get_parameter("layer4.1.conv2.weight").shape == (48, 48, 3, 3)
    assert model(torch.randn(2, 1, 48, 48)).shape == (2, 7)
    # Kaiming's normal distribution over outputs: variance 2 / (outputs × kernel area).
    weight = model.get_parameter("layer4.1.conv2.weight")
    assert float(weight.detach().std()) == pytest.approx((2 / (48 * 9)) ** 0.5, rel=0.05)


@pytest.mark.parametrize(("backbone", "last"), [("resnet18", "bn2"), ("resnet50", "bn3")])
@pytest.mark.parametrize("width", [1.0, 0.25])
def test_zero_init_residual_makes_each_block_the_identity(backbone: str, last: str, width: float) -> None:
    model = models.build(make(backbone=backbone, width=width, zero_init_residual=True))
    for name, parameter in model.named_parameters():
        if name.endswith(".weight") and isinstance(model.get_submodule(name[:-7]), nn.BatchNorm2d):
            assert bool((parameter == 0).all()) == name.endswith(f"{last}.weight"), name


@pytest.mark.parametrize("backbone", ["resnet18", "resnet50"])
def test_silu_follows_every_norm_that_relu_did(backbone: str) -> None:
    relu, silu = (shapes_only(backbone=backbone, activation=activation) for activation in ("relu", "silu"))
    changed = {n for n, module in relu.named_modules() if isinstance(module, nn.ReLU)}
    assert {n for n, module in silu.named_modules() if isinstance(module, nn.SiLU)} == changed
    assert "layer4.1.relu" in changed
    assert not any(isinstance(module, nn.ReLU) for module in silu.modules())
    assert list(silu.state_dict()) == list(relu.state_dict())


@pytest.mark.parametrize(("backbone", "blocks"), [("resnet18", 3), ("resnet50", 3)])
def test_an_average_shortcut_sees_every_pixel_under_the_same_names(backbone: str, blocks: int) -> None:
    strided, average = (shapes_only(backbone=backbone, shortcut=shortcut) for shortcut in ("strided", "average"))
    assert {name: tensor.shape for name, tensor in average.state_dict().items()} == {
        name: tensor.shape for name, tensor in strided.state_dict().items()
    }
    assert sum(isinstance(module, nn.AvgPool2d) for module in average.modules()) == blocks


@pytest.mark.parametrize("size", [6, 7])
def test_an_average_shortcut_is_the_mean_of_the_pixels_that_are_there(size: int) -> None:
    model = models.build(make(width=0.25, shortcut="average")).eval()
    shortcut = model.get_submodule("layer2.0.downsample")
    with torch.no_grad():
        maps = torch.randn(1, 16, size, size)
        rows = [slice(i, min(i + 2, size)) for i in range(0, size, 2)]
        means = torch.stack([torch.stack([maps[0, :, y, x].mean((1, 2)) for x in rows], -1) for y in rows], -2)
        kernel = model.get_parameter("layer2.0.downsample.0.weight")[:, :, 0, 0]
        # Batch norm starts with mean 0 and variance 1.
        expected = torch.einsum("oc,cyx->oyx", kernel, means) / (1 + 1e-5) ** 0.5
        torch.testing.assert_close(shortcut(maps)[0], expected)
        # Where the block halves its map, the other branch has the same size.
        assert model.get_submodule("layer2.0")(maps).shape[2:] == shortcut(maps).shape[2:]


@pytest.mark.parametrize("backbone", ["resnet18", "vgg16", "custom_cnn", "mobilenet_v3_small", "convnext_tiny"])
def test_a_head_of_any_depth_lies_under_the_backbones_own_name(backbone: str) -> None:
    under = "fc" if backbone == "resnet18" else "classifier"
    names = dict(shapes_only(backbone=backbone, head=(100, 20), dropout=0.4).named_modules())
    head = [module for name, module in names.items() if name.startswith(under) and not any(module.children())][-6:]
    kinds = [type(module).__name__ for module in head]
    assert kinds == ["Dropout", "Linear", "ReLU", "Linear", "ReLU", "Linear"]
    assert head[0].p == 0.4
    assert [module.out_features for module in head if isinstance(module, nn.Linear)] == [100, 20, 7]


def test_a_lone_linear_layer_keeps_torchvisions_name() -> None:
    assert [n for n, _ in shapes_only().named_parameters()][-2:] == ["fc.weight", "fc.bias"]


def test_squeezenet_ends_in_a_convolution_and_takes_no_head() -> None:
    assert shapes_only(backbone="squeezenet1_1").get_parameter("classifier.1.weight").shape == (7, 512, 1, 1)
    with pytest.raises(ModelError, match=r"squeezenet1_1.*takes no head"):
        shapes_only(backbone="squeezenet1_1", dropout=0.5)


def test_one_grey_channel_starts_as_the_backbone_starts_three() -> None:
    torch.manual_seed(0)
    three = models.first_filters(models.build(make(channels=3)))
    torch.manual_seed(0)
    one = models.first_filters(models.build(make(channels=1)))
    assert one.shape == (64, 1, 7, 7)
    assert float(one.std()) == pytest.approx(float(three.std()), rel=0.1)


# -- freezing, rates, modes -------------------------------------------------------------------------------------------


def test_only_the_named_layers_are_trained() -> None:
    model = shapes_only(train_layers=("layer4.1", "fc", "bn1"))
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {
        "bn1.weight", "bn1.bias", "layer4.1.conv1.weight", "layer4.1.bn1.weight", "layer4.1.bn1.bias",
        "layer4.1.conv2.weight", "layer4.1.bn2.weight", "layer4.1.bn2.bias", "fc.weight", "fc.bias",
    }  # fmt: skip


def test_a_layer_is_none_that_only_begins_alike() -> None:
    model = shapes_only(backbone="vgg11_bn", train_layers=("features.1",))
    assert {n for n, p in model.named_parameters() if p.requires_grad} == {"features.1.weight", "features.1.bias"}


@pytest.mark.parametrize("field", ["train_layers", "layer_lr"])
@pytest.mark.parametrize("name", ["layer", "layer5", "relu", "fc.0", "ayer4", ""])
def test_a_layer_that_is_not_there_is_refused_with_those_that_are(field: str, name: str) -> None:
    with pytest.raises(ModelError, match=rf"{field}: .*'{name}'.* conv1, bn1, layer1, layer1.0.*layer4.*fc"):
        shapes_only(**{field: (name,) if field == "train_layers" else {name: 0.1}})


@pytest.mark.parametrize("backbone", [*SMALLEST, "vit_b_16", "swin_t"])
def test_every_trained_parameter_is_in_one_group_and_kernels_decay(backbone: str) -> None:
    recipe = make(backbone=backbone, image_size=96, weight_decay=0.1)
    with torch.device("meta"):
        model = models.build(recipe)
    names = {id(p): name for name, p in model.named_parameters()}
    stock = models.parameter_groups(model, recipe.model_copy(update={"decay_all": True}))
    assert [(len(group["params"]), group["weight_decay"]) for group in stock] == [(len(names), 0.1)]
    groups = models.parameter_groups(model, recipe)
    placed = [id(p) for group in groups for p in group["params"]]
    assert sorted(placed) == sorted(names)
    assert [group["weight_decay"] for group in groups] == [0.1, 0.0]
    kinds = (nn.Conv2d, nn.Linear, nn.MultiheadAttention)
    for group in groups:
        for p in group["params"]:
            owner, _, leaf = names[id(p)].rpartition(".")
            is_kernel = isinstance(model.get_submodule(owner), kinds) and leaf.endswith("weight")
            assert (group["weight_decay"] > 0) == is_kernel, names[id(p)]


def test_the_longest_name_sets_the_rate() -> None:
    recipe = make(lr=2.0, layer_lr={"layer4": 0.5, "layer4.1": 0.25, "fc": 0.0}, decay_all=True)
    with torch.device("meta"):
        model = models.build(recipe)
    groups = models.parameter_groups(model, recipe)
    assert [(g["name"], g["lr"], len(g["params"])) for g in groups] == [
        ("layer4", 1.0, 9),
        ("layer4.1", 0.5, 6),
        ("fc", 0.0, 2),
        ("rest", 2.0, 45),
    ]


def test_groups_are_what_an_optimiser_takes() -> None:
    recipe = make(width=0.125, layer_lr={"fc": 3.0}, lr=0.01, weight_decay=0.2)
    groups = torch.optim.AdamW(models.parameter_groups(models.build(recipe), recipe)).param_groups
    told = [(g["name"], pytest.approx(g["lr"]), g["weight_decay"]) for g in groups]
    assert told == [("fc", 0.03, 0.2), ("fc, no decay", 0.03, 0), ("rest", 0.01, 0.2), ("rest, no decay", 0.01, 0)]


@pytest.mark.parametrize("freeze", [True, False])
def test_frozen_statistics_stay_where_the_recipe_says(freeze: bool) -> None:
    recipe = make(width=0.125, train_layers=("layer4", "fc"), freeze_batch_norm=freeze, dropout=0.5)
    model = models.build(recipe).eval()
    models.set_training_mode(model, recipe)
    before = copy.deepcopy(model.state_dict())
    model(torch.randn(4, 1, 48, 48))
    moved = {name.split(".")[0] for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == ({"layer4"} if freeze else {"bn1", "layer1", "layer2", "layer3", "layer4"})
    assert model.get_submodule("fc.0").training


# -- what is told about a network -------------------------------------------------------------------------------------


def test_the_summary_lists_each_layer_in_order() -> None:
    recipe = make(backbone="custom_cnn", head=(512,), dropout=0.5, train_layers=("classifier",))
    with torch.device("meta"):
        table = models.summary(models.build(recipe), recipe)
    expected = []
    inputs = 1
    for block, outputs in enumerate((32, 64, 128, 256)):
        side = 48 >> block
        shape = f"{outputs} × {side} × {side}"
        expected.append((f"features.{3 * block}", "Conv2d", shape, outputs * (inputs * 9 + 1), 0))
        expected.append((f"features.{3 * block + 1}", "ReLU", shape, 0, 0))
        expected.append((f"features.{3 * block + 2}", "MaxPool2d", f"{outputs} × {side // 2} × {side // 2}", 0, 0))
        inputs = outputs
    expected += [
        ("pool", "AdaptiveAvgPool2d", "256 × 3 × 3", 0, 0),
        ("classifier.0", "Dropout", "2304", 0, 0),
        ("classifier.1", "Linear", "512", 2305 * 512, 2305 * 512),
        ("classifier.2", "ReLU", "512", 0, 0),
        ("classifier.3", "Linear", "7", 513 * 7, 513 * 7),
    ]
    assert list(table.columns) == ["layer", "kind", "shape", "parameters", "trainable"]
    assert list(table.itertuples(index=False, name=None)) == expected


@pytest.mark.parametrize("backbone", ["resnet50", "densenet121", "inception_v3"])
def test_the_summary_adds_up(backbone: str) -> None:
    recipe = make(backbone=backbone, image_size=75)
    with torch.device("meta"):
        model = models.build(recipe)
    table = models.summary(model, recipe)
    assert table["parameters"].sum() == models.count_parameters(model) == table["trainable"].sum()
    assert table["layer"].is_unique
    assert table["kind"].iloc[0] == "Conv2d"
    assert table["shape"].iloc[-1] == "7"


def test_multiply_adds_of_a_network_counted_by_hand() -> None:
    model = shapes_only(backbone="custom_cnn")
    by_hand = 9 * (48**2 * 32 + 24**2 * 32 * 64 + 12**2 * 64 * 128 + 6**2 * 128 * 256) + 2304 * 7
    assert models.multiply_adds(model, 1, 48) == by_hand


def test_looking_at_a_network_changes_nothing() -> None:
    recipe = make(width=0.125, train_layers=("fc",), freeze_batch_norm=True)
    model = models.build(recipe)
    models.set_training_mode(model, recipe)
    state = copy.deepcopy(model.state_dict())
    modes = [module.training for module in model.modules()]
    models.summary(model, recipe)
    models.multiply_adds(model, 1, 48)
    models.target_layer(model)
    models.first_filters(model).zero_()
    assert [module.training for module in model.modules()] == modes
    assert not any(module._forward_hooks for module in model.modules())
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("backbone", SMALLEST)
def test_grad_cam_gets_maps_of_the_last_stage(backbone: str) -> None:
    model = shapes_only(backbone=backbone, image_size=96).eval()
    maps: list[Tensor] = []
    models.target_layer(model).register_forward_hook(lambda module, args, output: maps.append(output))
    model(torch.empty(2, 1, 96, 96, device="meta"))
    (last,) = maps
    # 32 times smaller than the face; before the last max-pool where there is one.
    side = {"vgg11_bn": 6, "vgg16": 6, "custom_cnn": 12, "inception_v3": 1}.get(backbone, 3)
    assert last.shape[0] == 2
    assert last.shape[1] >= 256
    assert last.shape[2:] == (side, side)


def test_networks_are_copied_and_stored_and_take_channels_last() -> None:
    torch.manual_seed(0)
    for backbone, fields in (("resnet18", {"width": 0.25, "head": (16,)}), ("custom_cnn", {"dropout": 0.5})):
        model = models.build(make(backbone=backbone, **fields)).eval()
        x = torch.randn(3, 1, 48, 48)
        logits = model(x)
        twin = copy.deepcopy(model)
        assert torch.equal(twin(x), logits)
        other = models.build(make(backbone=backbone, **fields), pretrained=False).eval()
        other.load_state_dict(model.state_dict())
        assert torch.equal(other(x), logits)
        turned = twin.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last))
        torch.testing.assert_close(turned, logits, rtol=1e-4, atol=1e-5)


# -- ImageNet weights -------------------------------------------------------------------------------------------------


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty place for torch's cache."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    checkpoints = tmp_path / "hub" / "checkpoints"
    checkpoints.mkdir(parents=True)
    return checkpoints


@pytest.fixture(scope="module")
def imagenet() -> OrderedDict[str, Tensor]:
    """What torchvision's file of ResNet18 holds, in random numbers."""
    torch.manual_seed(1)
    model = torchvision.models.resnet18()
    for buffer in model.buffers():
        if buffer.is_floating_point():
            buffer.uniform_(0.5, 2)
    return model.state_dict()


def away(monkeypatch: pytest.MonkeyPatch, url: str, backbone: str = "resnet18") -> None:
    """Let torchvision look for a backbone's weights at another address."""
    weights = next(iter(torchvision.models.get_model_weights(backbone)))
    monkeypatch.setattr(weights.value, "url", url)


@pytest.fixture
def nowhere(monkeypatch: pytest.MonkeyPatch) -> str:
    """An address on this machine where nobody answers, of a file whose name has no digest that a stand-in lacks."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}/resnet18.pth"
    away(monkeypatch, url)
    return url


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[str]:
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder))) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


IMAGENET = {"weights": "imagenet", "image_size": 64}


def test_weights_come_from_torchs_cache(cache: Path, nowhere: str, imagenet: OrderedDict[str, Tensor]) -> None:
    torch.save(imagenet, cache / "resnet18.pth")
    assert models.weights_file("resnet18") == cache / "resnet18.pth"
    state = models.build(make(**IMAGENET, channels=3, head=(10,), max_pool=False)).state_dict()
    kept = {name for name, value in state.items() if name in imagenet and torch.equal(value, imagenet[name])}
    assert kept == {name for name in imagenet if not name.startswith("fc.")}
    assert set(state) - kept == {"fc.0.weight", "fc.0.bias", "fc.2.weight", "fc.2.bias"}


def test_one_channel_gets_the_mean_of_three(cache: Path, nowhere: str, imagenet: OrderedDict[str, Tensor]) -> None:
    torch.save(imagenet, cache / "resnet18.pth")
    model = models.build(make(**IMAGENET, channels=1)).eval()
    red, green, blue = imagenet["conv1.weight"].unbind(1)
    assert torch.equal(models.first_filters(model)[:, 0], imagenet["conv1.weight"].mean(1))
    torch.testing.assert_close(models.first_filters(model)[:, 0], (red + green + blue) / 3)
    # A grey face through the mean is a third of the grey face, three times, through the kernels.
    three = torchvision.models.resnet18()
    three.load_state_dict(imagenet)
    grey = torch.rand(2, 1, 64, 64)
    conv = model.get_submodule("conv1")(grey)
    torch.testing.assert_close(conv, three.conv1(grey.expand(-1, 3, -1, -1) / 3), rtol=1e-4, atol=1e-5)


def test_an_architecture_alone_asks_for_no_weights(cache: Path, nowhere: str) -> None:
    assert models.build(make(**IMAGENET), pretrained=False)(torch.zeros(2, 1, 64, 64)).shape == (2, 7)
    assert not list(cache.iterdir())


def old_densenet(state: OrderedDict[str, Tensor]) -> None:
    for key in list(state):
        if "denselayer" in key:
            head, _, tail = key.rpartition(".")
            state[f"{head[:-1]}.{head[-1]}.{tail}"] = state.pop(key)


@pytest.mark.parametrize(
    ("backbone", "options"),
    [
        ("densenet121", {}),
        ("googlenet", {"aux_logits": True, "init_weights": False}),
        ("mnasnet0_5", {}),
        ("squeezenet1_1", {}),
        ("shufflenet_v2_x0_5", {}),
        ("mobilenet_v3_small", {}),
    ],
)
def test_every_layout_of_weights_is_read(
    cache: Path, backbone: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    away(monkeypatch, f"http://127.0.0.1:9/{backbone}.pth", backbone)
    torch.manual_seed(2)
    plain = torchvision.models.get_model(backbone, **options)
    state = plain.state_dict()
    features = {name: value.clone() for name, value in state.items()}
    if backbone.startswith("densenet"):
        old_densenet(state)
        assert "features.denseblock1.denselayer1.norm.1.weight" in state
    torch.save(state, models.weights_file(backbone))
    loaded = models.build(make(**IMAGENET, backbone=backbone, channels=3)).state_dict()
    fresh = {name for name, value in loaded.items() if features[name].shape != value.shape}
    assert len(fresh) == 2
    assert all(torch.equal(value, features[name]) for name, value in loaded.items() if name not in fresh)


def test_missing_weights_are_told_with_what_to_do(cache: Path, nowhere: str) -> None:
    with pytest.raises(MissingWeights) as caught:
        models.build(make(**IMAGENET))
    message = str(caught.value)
    for part in ("resnet18", nowhere, "refused", f"put resnet18.pth at {cache}", "-p weights none"):
        assert part in message
    assert not list(cache.iterdir())


def test_a_server_that_does_not_answer_is_given_up(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "DOWNLOAD_TIMEOUT", 0.2)
    socket.setdefaulttimeout(None)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        away(monkeypatch, f"http://127.0.0.1:{silent.getsockname()[1]}/resnet18-f37072fd.pth")
        with pytest.raises(MissingWeights, match="timed out"):
            models.build(make(**IMAGENET))
    assert socket.getdefaulttimeout() is None


def test_weights_are_downloaded_once_and_checked(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, imagenet: OrderedDict[str, Tensor]
) -> None:
    folder = tmp_path / "served"
    folder.mkdir()
    plain = folder / "weights.pth"
    torch.save(imagenet, plain)
    digest = hashlib.sha256(plain.read_bytes()).hexdigest()[:8]
    plain.rename(folder / f"resnet18-{digest}.pth")
    (folder / "resnet18-00000000.pth").symlink_to(folder / f"resnet18-{digest}.pth")
    with serving(folder) as address:
        away(monkeypatch, f"{address}/resnet18-00000000.pth")
        with pytest.raises(MissingWeights, match="invalid hash value"):
            models.build(make(**IMAGENET))
        assert not list(cache.iterdir())
        away(monkeypatch, f"{address}/resnet18-{digest}.pth")
        models.build(make(**IMAGENET))
    # The server is gone: the second time comes from the cache.
    model = models.build(make(**IMAGENET))
    assert torch.equal(model.get_parameter("layer1.0.conv1.weight"), imagenet["layer1.0.conv1.weight"])
    path = cache / f"resnet18-{digest}.pth"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    found = hashlib.sha256(content).hexdigest()[:8]
    with pytest.raises(MissingWeights, match=f"{path} was in the cache but cannot be used: its SHA-256 ") as told:
        models.build(make(**IMAGENET))
    assert f"begins with {found}, not with {digest} as in its name: it is damaged. Delete it" in str(told.value)


class Harm:
    """What an unpickler would run."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_a_file_that_is_none_of_it_is_refused_and_runs_nothing(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    away(monkeypatch, "http://127.0.0.1:9/squeezenet1_1.pth", "squeezenet1_1")
    recipe = make(**IMAGENET, backbone="squeezenet1_1")
    path = models.weights_file("squeezenet1_1")
    whole = torchvision.models.squeezenet1_1().state_dict()
    torch.save(whole, path)
    models.build(recipe)
    good = path.read_bytes()
    torch.save({"features.0.weight": Harm(tmp_path / "harmed")}, path)
    harmful = (pickle.dumps(Harm(tmp_path / "harmed"), protocol=2), path.read_bytes())
    other = torchvision.models.mobilenet_v3_small().state_dict()
    first = OrderedDict(whole) | {"features.0.weight": whole["features.0.weight"][:, :1].clone()}
    less = OrderedDict(whole)
    del less["features.0.weight"]
    for content in (
        *harmful,
        b"",
        b"<html>",
        good[:-1000],
        good[: len(good) // 2],
        other,
        first,
        less,
        {1: first},
        first["features.0.weight"],
    ):
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            torch.save(content, path)
        with pytest.raises(MissingWeights, match=f"{path} was in the cache but cannot be used: .+ Delete it") as told:
            models.build(recipe)
        assert "weights_only" not in str(told.value), "how to load it all the same"
        assert "size mismatch" in str(told.value) or content is not first
    assert not (tmp_path / "harmed").exists()


def test_backbones_without_weights_are_told() -> None:
    for backbone in ("custom_cnn", "resnet81"):
        with pytest.raises(ModelError, match=f"{backbone} has no ImageNet weights"):
            models.weights_file(backbone)


def test_channels_are_the_nearest_multiple_of_eight() -> None:
    # 0.7 of 64, 128, 256 and 512 are 44.8, 89.6, 179.2 and 358.4.
    model = models.build(make(width=0.7))
    found = [model.get_submodule(f"layer{stage}.0.conv1").out_channels for stage in (1, 2, 3, 4)]
    assert found == [48, 88, 176, 360]


def test_an_averaged_shortcut_starts_from_the_weights_of_a_strided_one() -> None:
    kernels = []
    for shortcut in ("strided", "average"):
        torch.manual_seed(0)
        kernels.append(models.build(make(width=0.125, shortcut=shortcut)).get_parameter("layer2.0.downsample.0.weight"))
    assert torch.equal(*kernels)
