"""Networks: torchvision's backbones and one small CNN, made to fit a recipe, with ImageNet weights if it asks for them.

Every network maps float faces (B, channels, S, S) to logits (B, 7), ``Members`` in training to those of each.
Parameters keep torchvision's names, and the head lies under the backbone's own classifier name (``fc`` or
``classifier``), so layers are named as torchvision names them.
"""

from __future__ import annotations

import contextlib
import re
import socket
import sys
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from pickle import UnpicklingError  # what torch.load raises; nothing is unpickled here
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlparse

import torch
import torchvision
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models.resnet import BasicBlock, Bottleneck

from fer_utils import convolution
from fer_utils.emotions import NUM_EMOTIONS
from fer_utils.files import sha256
from fer_utils.recipe import Recipe

if TYPE_CHECKING:
    import pandas as pd

DOWNLOAD_TIMEOUT: Final = 20.0
"""Seconds without a byte before a download of weights is given up: torch sets no limit of its own."""

_SIZES: Final = (24, 28, 32, 40, 48, 56, 64, 75, 80, 96, 112, 128, 160, 192, 224, 256, 299, 384, 512)
_DIGEST: Final = re.compile(r"-([0-9a-f]{8,})\.pth$")
"""What torchvision's file names end in: how the SHA-256 of the file begins."""
_DENSENET_KEY: Final = re.compile(r"^(.*denselayer\d+\.(?:norm|relu|conv))\.([12]\..*)$")


class ModelError(ValueError):
    """A recipe asks for a network that cannot be built; the message says what can."""


class MissingWeights(RuntimeError):
    """ImageNet weights cannot be had; the message says what was tried, where to put the file, and how to do without."""


class CustomCNN(nn.Module):
    """Four blocks of 3×3 convolution, ReLU and 2×2 max-pool, then the recipe's head on 256 × 3 × 3 features.

    At 48 px the last map is 3 × 3 and the pool before the classifier changes nothing; it lets other sizes through.
    """

    def __init__(self, channels: int = 1, head: tuple[int, ...] = (), dropout: float = 0.0) -> None:
        super().__init__()
        blocks: list[nn.Module] = []
        for inputs, outputs in ((channels, 32), (32, 64), (64, 128), (128, 256)):
            blocks += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
        self.features = nn.Sequential(*blocks)
        self.pool = nn.AdaptiveAvgPool2d(3)
        self.classifier = _head(256 * 3 * 3, head, dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (B, 7) of faces (B, channels, S, S), S at least 16."""
        logits: Tensor = self.classifier(self.pool(self.features(x)).flatten(1))
        return logits


class Members(nn.Module):
    """Networks of one kind that learn side by side, each for itself, and answer as one: a deep ensemble.

    The mean is that of their logits, which is the normalised geometric mean of their probabilities. Several networks
    that differ in their random start alone are surer and more often right together than any of them (Lakshminarayanan
    et al. 2017, arXiv:1612.01474).
    """

    def __init__(self, networks: Iterable[nn.Module]) -> None:
        super().__init__()
        self.members = nn.ModuleList(networks)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits of faces (B, channels, S, S): (B, 7), their mean; in training (B, M, 7), each member's own."""
        logits = torch.stack([member(x) for member in self.members], dim=1)
        if self.training:
            return logits
        # In bfloat16 the mean of several would be rounded once more.
        return logits.mean(dim=1, dtype=torch.promote_types(logits.dtype, torch.float32))


def build(recipe: Recipe, *, pretrained: bool = True) -> nn.Module:
    """Return the recipe's network, in training mode, its frozen parameters marked; ``Members`` where it has several.

    Args:
        recipe: backbone, stem, width, channels, head, dropout, members, weights and train_layers are read.
        pretrained: False leaves ImageNet weights out, for whoever loads a checkpoint next.

    With ImageNet weights a 1-channel network gets the mean of the first kernels over their three colours. A backbone's
    own dropout (VGG's, EfficientNet's) stays as torchvision has it, before the head's. Inception and GoogLeNet come
    without auxiliary classifiers, and without torchvision's change of the input: their weights expect
    ``normalize: half``. Convolutions that are faster on small maps (``convolution``) are stock ones to everyone else.

    Raises:
        ModelError: no such backbone or layer, a size that the backbone cannot take, or a head that it cannot carry.
        MissingWeights: the ImageNet weights are neither in torch's cache nor to be downloaded, or damaged there.
    """
    made = [_network(recipe, pretrained) for _ in range(recipe.members)]
    model = made[0] if recipe.members == 1 else Members(made)
    for size in dict.fromkeys((recipe.image_size, min(recipe.progressive or recipe.image_size, recipe.image_size))):
        _check_size(model, recipe, size)
    layers = layer_names(model)
    _check_layers("train_layers", recipe.train_layers, layers)
    _check_layers("layer_lr", tuple(recipe.layer_lr), layers)
    if recipe.train_layers:
        for name, parameter in _parameters(model):
            parameter.requires_grad = _layer_of(name, recipe.train_layers) is not None
    return convolution.fast(model)


def parameter_groups(model: nn.Module, recipe: Recipe) -> list[dict[str, Any]]:
    """Return the optimiser's groups: ``params``, ``lr``, ``weight_decay`` and ``name``, frozen parameters left out.

    A layer's rate is ``lr`` times its factor in ``layer_lr``, where the longest matching name wins. Matrices and
    convolution kernels decay; biases, norms and embeddings do so with ``decay_all`` only, which is stock torch.

    Raises:
        ModelError: ``layer_lr`` names a layer that the network has not.
    """
    _check_layers("layer_lr", tuple(recipe.layer_lr), layer_names(model))
    groups: dict[tuple[str, bool], dict[str, Any]] = {}
    for layer in (*recipe.layer_lr, "rest" if recipe.layer_lr else "all"):
        lr = recipe.lr * recipe.layer_lr.get(layer, 1.0)
        for decayed in (True, False):
            decay, name = (recipe.weight_decay, layer) if decayed else (0.0, f"{layer}, no decay")
            groups[layer, decayed] = {"params": [], "lr": lr, "weight_decay": decay, "name": name}
    for name, parameter in _parameters(model):
        if parameter.requires_grad:
            layer = _layer_of(name, tuple(recipe.layer_lr)) or ("rest" if recipe.layer_lr else "all")
            decayed = recipe.decay_all or (parameter.ndim >= 2 and name.endswith("weight"))
            groups[layer, decayed]["params"].append(parameter)
    return [group for group in groups.values() if group["params"]]


def set_training_mode(model: nn.Module, recipe: Recipe) -> None:
    """Put the network in training mode; with ``freeze_batch_norm`` frozen batch-norms keep their statistics."""
    model.train()
    if recipe.freeze_batch_norm:
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d) and not any(p.requires_grad for p in module.parameters()):
                module.eval()


def learns_from_one_face(model: nn.Module, recipe: Recipe) -> bool:
    """Return whether a training step can see one face alone: not where batch norm comes to maps of a single pixel."""
    smallest = min(recipe.progressive or recipe.image_size, recipe.image_size)
    return _problem_at(model, recipe.channels, smallest, recipe) is None


def summary(model: nn.Module, recipe: Recipe) -> pd.DataFrame:
    """Return a table of the network's innermost modules in the order in which one face passes them.

    Columns: ``layer`` (name), ``kind`` (class), ``shape`` (output, without the batch), ``parameters`` (number) and
    ``trainable`` (number of those that are not frozen). A module used twice is listed once.
    """
    import pandas as pd  # half a second that whoever only loads a network does not wait for

    names = {module: name for name, module in model.named_modules() if not any(module.children())}
    shapes: dict[nn.Module, str] = {}

    def note(module: nn.Module, _: Any, output: Any) -> None:
        shapes.setdefault(module, " × ".join(map(str, output.shape[1:])) if isinstance(output, Tensor) else "")

    hooks = [module.register_forward_hook(note) for module in names]
    try:
        _pass_shapes(model, recipe.channels, recipe.image_size)
    finally:
        for hook in hooks:
            hook.remove()
    rows = []
    for module, shape in shapes.items():
        sizes = [(parameter.numel(), parameter.requires_grad) for parameter in module.parameters()]
        counts = sum(size for size, _ in sizes), sum(size for size, trained in sizes if trained)
        # Which code computes a convolution says nothing about the network.
        kind = "Conv2d" if isinstance(module, nn.Conv2d) else type(module).__name__
        rows.append((names[module], kind, shape, *counts))
    return pd.DataFrame(rows, columns=["layer", "kind", "shape", "parameters", "trainable"])


def count_parameters(model: nn.Module) -> int:
    """Return the number of parameters, frozen ones included."""
    return sum(parameter.numel() for parameter in model.parameters())


def multiply_adds(model: nn.Module, channels: int, size: int) -> int:
    """Return the multiply-adds of convolutions and matrix products for one face of ``size`` pixels."""
    with FlopCounterMode(display=False) as counter:
        _pass_shapes(model, channels, size)
    return int(counter.get_total_flops()) // 2


def target_layer(model: nn.Module) -> nn.Module:
    """Return the last convolutional stage, whose output (B, C, H, W) Grad-CAM reads; a max-pool at its end is left out.

    Of a model with several members each has its own (``networks``).

    Raises:
        ModelError: the network has no stage of that kind (vision transformers).
    """
    transformers = (torchvision.models.VisionTransformer, torchvision.models.SwinTransformer)
    final = _classifier_name(model).split(".")[0]
    stages = [
        child
        for name, child in model.named_children()
        if name != final and any(isinstance(module, nn.Conv2d) for module in child.modules())
    ]
    if isinstance(model, transformers) or not stages:
        raise ModelError(
            f"{type(model).__name__} has no convolutional stage for Grad-CAM: use a convolutional backbone"
        )
    stage = stages[-1]
    if isinstance(stage, nn.Sequential | nn.ModuleList):
        return [child for child in stage if not isinstance(child, nn.MaxPool2d)][-1]
    return stage


def first_filters(model: nn.Module) -> Tensor:
    """Return a copy of the first convolution's kernels (out, in, k, k) on the CPU, float32; of several members, all."""
    kernels = [network.get_parameter(f"{_first_convolution(network)}.weight") for network in networks(model)]
    return torch.cat([each.detach().float().cpu() for each in kernels])


def layer_names(model: nn.Module) -> list[str]:
    """Return the names that ``train_layers`` and ``layer_lr`` may hold: every module that has parameters, in order."""
    names: dict[str, None] = {}
    # Members have the same layers.
    for parameter, _ in networks(model)[0].named_parameters():
        parts = parameter.split(".")
        names |= dict.fromkeys(".".join(parts[:depth]) for depth in range(1, len(parts)))
    return list(names)


def weights_file(backbone: str) -> Path:
    """Return where torch's cache keeps the ImageNet weights of a backbone, whether they are there or not.

    Raises:
        ModelError: torchvision has no such backbone.
    """
    return Path(torch.hub.get_dir(), "checkpoints", Path(urlparse(_weights(backbone).url).path).name)


def networks(model: nn.Module) -> list[nn.Module]:
    """Return a model's members, or the model itself where it has none."""
    return list(model.members) if isinstance(model, Members) else [model]


def fitted(weights: Mapping[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """Return a network's weights under the names that another of its kind has for them.

    Dropout has no weights, but where a head has it its layers are numbered: ``fc.1.weight`` in place of ``fc.weight``.

    Args:
        weights: ``state_dict()`` of a network.
        network: one that differs from it in dropout alone; its names and shapes are read.

    Raises:
        ModelError: it differs in more than that; the first tensor that does not fit is named.
    """
    shapes = network.state_dict()
    head = _classifier_name(network).split(".")[0] + "."
    theirs, ours = ([name for name in held if name.startswith(head)] for held in (weights, shapes))
    renamed = dict(zip(theirs, ours, strict=True)) if len(theirs) == len(ours) else {}
    found = {renamed.get(name, name): value for name, value in weights.items()}
    for name, wanted in shapes.items():
        if name not in found:
            raise ModelError(f"{name} is in this network alone: another head, or another backbone")
        if found[name].shape != wanted.shape:
            raise ModelError(
                f"{name} is {tuple(found[name].shape)} there and {tuple(wanted.shape)} here: another head, or a "
                "backbone that is built for one size of input"
            )
    return found


# -- the network -----------------------------------------------------------------------------------------------------


def _network(recipe: Recipe, pretrained: bool) -> nn.Module:
    """One member, or the network itself where there is no other."""
    imagenet = pretrained and recipe.weights == "imagenet"
    model = _backbone(recipe)
    if imagenet:
        _load_imagenet(model, recipe.backbone)
    if recipe.backbone != "custom_cnn":
        _replace_stem(model, recipe, mean=imagenet)
        _replace_head(model, recipe)
    return model


def _backbone(recipe: Recipe) -> nn.Module:
    """The network as torchvision has it, three channels and a plain head of seven, but for a ResNet's width."""
    name = recipe.backbone
    if name == "custom_cnn":
        return CustomCNN(recipe.channels, recipe.head, recipe.dropout)
    options: dict[str, Any] = {}
    if name in ("inception_v3", "googlenet"):
        options = {"aux_logits": False, "transform_input": False, "init_weights": True}
    elif name.startswith("vit_"):
        options = {"image_size": recipe.image_size}
    elif name.startswith("maxvit"):
        options = {"input_size": (recipe.image_size, recipe.image_size)}
    try:
        model: nn.Module = torchvision.models.get_model(name, num_classes=NUM_EMOTIONS, **options)
    except (ValueError, AssertionError) as error:
        # Some transformers are built for one size of input, a multiple of the patches that they cut it into.
        raise ModelError(f"{name} cannot be built for image_size {recipe.image_size} (224 fits): {error}") from error
    if recipe.width != 1.0:
        _scale_width(model, recipe.width)
    if recipe.activation == "silu":
        for name, module in list(model.named_modules()):
            if isinstance(module, nn.ReLU):
                model.set_submodule(name, nn.SiLU())
    if recipe.shortcut == "average":
        _average_shortcuts(model)
    if recipe.zero_init_residual:
        for block in model.modules():
            if isinstance(block, BasicBlock | Bottleneck):
                nn.init.zeros_(block.bn3.weight if isinstance(block, Bottleneck) else block.bn2.weight)
    return model


def _replace_head(model: nn.Module, recipe: Recipe) -> None:
    name = _classifier_name(model)
    classifier = model.get_submodule(name)
    if isinstance(classifier, nn.Linear):
        model.set_submodule(name, _head(classifier.in_features, recipe.head, recipe.dropout))
    elif recipe.head or recipe.dropout:
        raise ModelError(f"{recipe.backbone} ends in a convolution and takes no head: set head to [] and dropout to 0")


def _head(features: int, hidden: tuple[int, ...], dropout: float) -> nn.Module:
    """Dropout, then Linear and ReLU for each hidden layer, then Linear to the logits; a lone Linear stays unwrapped."""
    layers: list[nn.Module] = [nn.Dropout(dropout)] if dropout else []
    for size in hidden:
        layers += [nn.Linear(features, size), nn.ReLU()]
        features = size
    layers.append(nn.Linear(features, NUM_EMOTIONS))
    return layers[0] if len(layers) == 1 else nn.Sequential(*layers)


def _replace_stem(model: nn.Module, recipe: Recipe, *, mean: bool) -> None:
    name = _first_convolution(model)
    old = model.get_submodule(name)
    assert isinstance(old, nn.Conv2d)
    if recipe.stem != "imagenet":
        stride = 2 if recipe.stem == "3x3s2" else 1
        new = nn.Conv2d(recipe.channels, old.out_channels, 3, stride, padding=1, bias=False)
        nn.init.kaiming_normal_(new.weight, mode="fan_out", nonlinearity="relu")
        model.set_submodule(name, new)
    elif recipe.channels == 1:
        kernels = old.weight.detach()
        # Untrained, the first colour's kernels are as the backbone initialises them; a mean would shrink them.
        old.weight = nn.Parameter(kernels.mean(dim=1, keepdim=True) if mean else kernels[:, :1].clone())
        old.in_channels = 1
    if not recipe.max_pool:
        model.set_submodule("maxpool", nn.Identity())


def _scale_width(model: nn.Module, width: float) -> None:
    """Scale every channel number of a ResNet, to a multiple of 8, and initialise it as torchvision does."""

    def scaled(channels: int) -> int:
        return max(8, int(channels * width / 8 + 0.5) * 8)

    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Conv2d):
            inputs = module.in_channels if name == "conv1" else scaled(module.in_channels)
            size, stride, padding = module.kernel_size[0], module.stride[0], module.padding
            assert not isinstance(padding, str)
            new = nn.Conv2d(inputs, scaled(module.out_channels), size, stride, padding[0], bias=False)
            nn.init.kaiming_normal_(new.weight, mode="fan_out", nonlinearity="relu")
            model.set_submodule(name, new)
        elif isinstance(module, nn.BatchNorm2d):
            model.set_submodule(name, nn.BatchNorm2d(scaled(module.num_features)))
        elif isinstance(module, nn.Linear):
            model.set_submodule(name, nn.Linear(scaled(module.in_features), module.out_features))


def _average_shortcuts(model: nn.Module) -> None:
    """Halve the maps of a ResNet's shortcuts by the mean of each four pixels; no parameter changes its name."""
    for block in model.modules():
        if isinstance(block, BasicBlock | Bottleneck) and block.downsample is not None and block.stride > 1:
            strided, norm = block.downsample
            # Of a map of odd size the last row and column are means of the pixels that are there.
            pool = nn.AvgPool2d(block.stride, block.stride, ceil_mode=True, count_include_pad=False)
            one_by_one = nn.Conv2d(strided.in_channels, strided.out_channels, 1, bias=False)
            one_by_one.weight = strided.weight
            block.downsample = nn.Sequential(OrderedDict([("pool", pool), ("0", one_by_one), ("1", norm)]))


def _first_convolution(model: nn.Module) -> str:
    name: str = next(name for name, module in model.named_modules() if isinstance(module, nn.Conv2d))
    return name


def _classifier_name(model: nn.Module) -> str:
    """Name of the last linear layer, or of the last convolution where there is none (SqueezeNet)."""
    kinds: dict[str, type[nn.Module]] = {name: type(module) for name, module in model.named_modules()}
    linear = [name for name, kind in kinds.items() if issubclass(kind, nn.Linear)]
    return (linear or [name for name, kind in kinds.items() if issubclass(kind, nn.Conv2d)])[-1]


# -- what fits -------------------------------------------------------------------------------------------------------


def _check_size(model: nn.Module, recipe: Recipe, size: int) -> None:
    problem = _problem_at(model, recipe.channels, size)
    if problem is not None:
        larger = (other for other in _SIZES if other > size and _problem_at(model, recipe.channels, other) is None)
        raise ModelError(
            f"{recipe.backbone} cannot take faces of {size} × {size} pixels; the next size that it takes is "
            f"{next(larger, 'none that a recipe allows')}. ({problem})"
        )


def _problem_at(model: nn.Module, channels: int, size: int, trained: Recipe | None = None) -> str | None:
    try:
        _pass_shapes(model, channels, size, trained)
    except (RuntimeError, ValueError, AssertionError) as error:
        # torchvision's transformers assert their input's size; convolutions and pools raise the others.
        return " ".join(str(error).split())
    return None


def _pass_shapes(model: nn.Module, channels: int, size: int, trained: Recipe | None = None) -> None:
    """Pass one face of ``size`` pixels: shapes only, no arithmetic; each module keeps its mode.

    It is passed as for predicting, or with a recipe in ``trained`` as in a training of it.
    """
    modes = {module: module.training for module in model.modules()}
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    shapes = {name: torch.empty_like(tensor, device="meta") for name, tensor in tensors.items()}
    dtype = next(model.parameters()).dtype
    try:
        if trained is None:
            model.eval()
        else:
            set_training_mode(model, trained)
        with torch.no_grad():
            functional_call(model, shapes, torch.empty(1, channels, size, size, dtype=dtype, device="meta"))
    finally:
        for module, training in modes.items():
            module.training = training


def _check_layers(field: str, wanted: tuple[str, ...], layers: list[str]) -> None:
    for name in wanted:
        if name not in layers:
            short = [layer for layer in layers if layer.count(".") <= 1]
            raise ModelError(f"{field}: the network has no layer {name!r} with parameters; it has {', '.join(short)}")


def _parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield names and parameters of all members, each name as it is in its member."""
    for network in networks(model):
        yield from network.named_parameters()


def _layer_of(parameter: str, layers: tuple[str, ...]) -> str | None:
    matching = [layer for layer in layers if parameter.startswith(layer + ".")]
    return max(matching, key=len, default=None)


# -- ImageNet weights ------------------------------------------------------------------------------------------------


def _weights(backbone: str) -> Any:
    """The first set of weights that torchvision lists, IMAGENET1K_V1: what ``pretrained=True`` has always meant."""
    try:
        return next(iter(torchvision.models.get_model_weights(backbone)))
    except ValueError as error:
        raise ModelError(f"{backbone} has no ImageNet weights, set weights to none: {error}") from error


def _load_imagenet(model: nn.Module, backbone: str) -> None:
    """Load everything but the classifier into the backbone as torchvision has it.

    torch hashes what it downloads, never a file that is there already: that is done here, and ``weights_only`` keeps
    any file harmless.
    """
    weights, path = _weights(backbone), weights_file(backbone)
    cached = path.is_file()
    try:
        if cached:
            _check_digest(path)
        with _timeout(DOWNLOAD_TIMEOUT):
            state = weights.get_state_dict(
                progress=sys.stderr.isatty(), check_hash=True, weights_only=True, map_location="cpu"
            )
        _load_all_but_classifier(model, state)
    except (OSError, RuntimeError, EOFError, UnpicklingError) as error:
        # The first of torch's lines may only say that there are errors; the next names one.
        told = " ".join(" ".join(str(error).splitlines()[:2]).split()) or type(error).__name__
        if isinstance(error, UnpicklingError):
            # torch's own message ends with how to load such a file all the same, which nobody should.
            told = "it is damaged or holds more than tensors and plain values"
        tried = f"{path} is not there, and downloading {weights.url} failed: {told}. To go on,"
        if cached:
            tried = f"{path} was in the cache but cannot be used: {told}. Delete it to download it anew, or"
        raise MissingWeights(
            f"ImageNet weights of {backbone}: {tried} put {path.name} at {path}, or train without: "
            "weights: none (papermill: -p weights none)"
        ) from error


def _check_digest(path: Path) -> None:
    """Hold a file against the digest in its name, where that has one."""
    told = _DIGEST.search(path.name)
    if told is not None:
        found = sha256(path)[: len(told[1])]
        if found != told[1]:
            raise RuntimeError(f"its SHA-256 begins with {found}, not with {told[1]} as in its name: it is damaged")


def _load_all_but_classifier(model: nn.Module, state: Any) -> None:
    if not isinstance(state, dict) or not all(isinstance(key, str) for key in state):
        raise RuntimeError("it holds no parameters by name")
    left_out = (_classifier_name(model) + ".", "AuxLogits.", "aux1.", "aux2.")
    for key in list(state):
        old = _DENSENET_KEY.match(key)
        if key.startswith(left_out):
            del state[key]
        elif old:
            # DenseNet's files carry the names of an older torchvision: norm.1 is norm1 now.
            state[old.group(1) + old.group(2)] = state.pop(key)
    missing, unexpected = model.load_state_dict(state, strict=False)
    missing = [key for key in missing if not key.startswith(left_out)]
    if missing or unexpected:
        raise RuntimeError(f"it is another network's: {missing[:3]} missing, {unexpected[:3]} unexpected")


@contextlib.contextmanager
def _timeout(seconds: float) -> Iterator[None]:
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds if before is None else before)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
