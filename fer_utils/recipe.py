"""A recipe: everything that defines a training, checked strictly before anything is loaded.

    python -m fer_utils.recipe                list the recipes with a sentence each
    python -m fer_utils.recipe fast           print one in full, defaults included
    python -m fer_utils.recipe my_own.yaml    check and print your own

A recipe is a YAML file of the fields that the second prints; ``extends: fast`` starts from another and changes a few
lines. What each field means and may be stands beside it in fer_utils/recipe.py. torch is not imported here, so that a
mistake is told at once.
"""

from __future__ import annotations

import ast
import difflib
import functools
import importlib.util
import json
import re
import sys
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Final, Literal, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from fer_utils.files import ROOT, expanded

RECIPES: Final = Path(__file__).resolve().parent / "recipes"

Probability = float
Pair = tuple[float, float]


class RecipeError(ValueError):
    """A recipe or a parameter is wrong; the message names it, its line where it has one, and what it may be."""


class _Yaml:
    """Which plain words of YAML are null, truth values and numbers, by the rules of YAML 1.2.

    PyYAML's own, of YAML 1.1, read ``1e-3`` as text, ``on`` as true, ``010`` as 8 and ``1:30`` as 90.
    """

    yaml_implicit_resolvers: ClassVar[dict[str, list[tuple[str, re.Pattern[str]]]]] = {}
    for _tag, _pattern, _starts in (
        ("null", r"^(?:null|Null|NULL|~|)$", ("", "n", "N", "~")),
        ("bool", r"^(?:true|True|TRUE|false|False|FALSE)$", tuple("tTfF")),
        ("int", r"^[-+]?(?:0|[1-9][0-9]*)$", tuple("-+0123456789")),
        ("float", r"^[-+]?(?:\.[0-9]+|[0-9]+\.[0-9]*|[0-9]+(?=[eE]))(?:[eE][-+]?[0-9]+)?$", tuple("-+.0123456789")),
    ):
        for _start in _starts:
            yaml_implicit_resolvers.setdefault(_start, []).append((f"tag:yaml.org,2002:{_tag}", re.compile(_pattern)))


class _Loader(_Yaml, yaml.SafeLoader):  # type: ignore[misc]
    pass


class _Dumper(_Yaml, yaml.SafeDumper):  # type: ignore[misc]
    pass


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    """Quote what other line breaks than a newline hold: PyYAML writes them plainly and reads a newline back."""
    style = '"' if any(character in text for character in "\r\x85\u2028\u2029") else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _text)


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Sharpness(_Strict):
    """Sharpen (factor above 1) or blur (below 1) a face with probability ``p``."""

    factor: float = Field(1.0, ge=0)
    p: float = Field(0.0, ge=0, le=1)


class Erasing(_Strict):
    """Blank one rectangle of a face with probability ``p`` (Zhong et al. 2017, arXiv:1708.04896)."""

    p: float = Field(0.0, ge=0, le=1)
    scale: Pair = (0.02, 0.33)
    """Range of the rectangle's share of the face."""
    ratio: Pair = (0.3, 3.3)
    """Range of the rectangle's height over width."""


class ResizedCrop(_Strict):
    """Crop a random rectangle and resize it to the input size."""

    scale: Pair = (1.0, 1.0)
    """Range of the crop's share of the face."""
    ratio: Pair = (1.0, 1.0)
    """Range of the crop's width over height."""


class Augment(_Strict):
    """What is done to training faces, each face with its own draw. Defaults do nothing."""

    flip: float = Field(0.0, ge=0, le=1)
    """Probability of a mirror image."""
    rotation: float = Field(0.0, ge=0, le=180)
    """Degrees, uniform in ±rotation."""
    translate: float = Field(0.0, ge=0, lt=1)
    """Shift as a share of the face, uniform in ±translate, on each axis."""
    scale: Pair = (1.0, 1.0)
    """Zoom, uniform in the range; above 1 enlarges."""
    shear: float = Field(0.0, ge=0, lt=90)
    """Degrees of horizontal shear, uniform in ±shear."""
    crop_padding: int = Field(0, ge=0, le=24)
    """Pad the 48-pixel face by so many pixels and crop 48 at random: a whole-pixel shift on each axis."""
    resized_crop: ResizedCrop = ResizedCrop()
    fill: Literal["zeros", "border", "reflection"] = "zeros"
    """What lies outside the face once it is moved."""
    brightness: float = Field(0.0, ge=0)
    """Factor uniform in 1 ± brightness, not below 0."""
    contrast: float = Field(0.0, ge=0)
    """Factor uniform in 1 ± contrast, not below 0."""
    saturation: float = Field(0.0, ge=0)
    """Factor uniform in 1 ± saturation; only colour images have any."""
    sharpness: Sharpness = Sharpness()
    autocontrast: float = Field(0.0, ge=0, le=1)
    """Probability that a face's grey values are stretched to the full range."""
    erasing: Erasing = Erasing()

    @model_validator(mode="after")
    def _ranges(self) -> Augment:
        for name, pair in (
            ("scale", self.scale),
            ("resized_crop.scale", self.resized_crop.scale),
            ("resized_crop.ratio", self.resized_crop.ratio),
            ("erasing.scale", self.erasing.scale),
            ("erasing.ratio", self.erasing.ratio),
        ):
            if not 0 < pair[0] <= pair[1]:
                raise ValueError(f"augment.{name} must be a range [low, high] with 0 < low <= high, not {list(pair)}")
        if self.resized_crop.scale[1] > 1 or self.erasing.scale[1] > 1:
            raise ValueError("augment.resized_crop.scale and augment.erasing.scale are shares of the face: at most 1")
        return self


class Recipe(_Strict):
    """Everything that defines a training."""

    name: str = Field(min_length=1, pattern=r"^[\w.-]+$")
    description: str = ""

    # The network
    backbone: str = "resnet18"
    """``resnet18`` and any other classification model of torchvision's registry, or ``custom_cnn``."""
    weights: Literal["none", "imagenet"] = "none"
    """Start from scratch, or from torchvision's ImageNet weights."""
    start: str | None = None
    """Directory of a run of this network on these faces, whose best weights are trained further; or of several,
    ``RUN,RUN``, whose networks become the ``members``. With ``epochs: 0`` they are kept as they are."""
    stem: Literal["imagenet", "3x3s2", "3x3s1"] = "imagenet"
    """First convolution of a ResNet: 7×7 with stride 2, or 3×3 with stride 2 or 1."""
    max_pool: bool = True
    """Keep the max-pool after a ResNet's stem."""
    width: float = Field(1.0, gt=0, le=4)
    """Channels of a ResNet's stages as a multiple of 64, 128, 256 and 512, rounded to a multiple of 8."""
    activation: Literal["relu", "silu"] = "relu"
    """What follows a ResNet's batch norms: ReLU, or SiLU (Elfwing et al. 2018, arXiv:1702.03118)."""
    shortcut: Literal["strided", "average"] = "strided"
    """How a ResNet's shortcuts halve a map: one pixel of each four, or their mean (ResNet-D, He et al. 2019,
    arXiv:1812.01187)."""
    members: int = Field(1, ge=1, le=64)
    """Networks that learn side by side from the same batches, each for itself, and answer as one, by the mean of their
    logits (Lakshminarayanan et al. 2017, arXiv:1612.01474)."""
    channels: Literal[1, 3] = 1
    """Grey once, or repeated three times."""
    head: tuple[int, ...] = ()
    """Sizes of hidden layers between the backbone's features and the seven logits, each with a ReLU."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout before the head's first layer."""
    train_layers: tuple[str, ...] = ()
    """Names of the layers that are trained (``layer4``, ``layer4.1``), the others frozen; empty trains all."""
    freeze_batch_norm: bool = False
    """Keep batch-norm statistics of frozen layers as they were loaded."""
    zero_init_residual: bool = False
    """Start each residual block of a ResNet as the identity."""

    # The input
    image_size: int = Field(48, ge=24, le=512)
    """Side of the network's input in pixels."""
    normalize: Literal["half", "imagenet", "dataset"] = "half"
    """Mean and standard deviation: 0.5 and 0.5, ImageNet's, or those of the training faces."""
    augment: Augment = Augment()
    mixup: float = Field(0.0, ge=0)
    """Alpha of mixup (Zhang et al. 2018, arXiv:1710.09412); 0 is off."""
    cutmix: float = Field(0.0, ge=0)
    """Alpha of CutMix (Yun et al. 2019, arXiv:1905.04899); 0 is off."""
    progressive: int | None = Field(None, ge=24)
    """Input size of the first epoch, rising in steps of 4 to ``image_size``; null or more is that size throughout."""

    # The data
    val_fraction: float | None = Field(None, ge=0, lt=1)
    """Share of training faces cut off for validation; null is 0.1 where there is no official validation part."""
    split_seed: int = Field(0, ge=0)
    """Seed of the cut, apart from the training's, so that several seeds share one validation part."""
    train_faces: int | None = Field(None, ge=14)
    """Train on about so many faces, a stratified draw by ``split_seed``; null is all of them."""
    dedupe: Literal["none", "exact", "near"] = "none"
    """Train on one of each group of copies; groups with conflicting labels are left out."""

    # The optimisation
    optimizer: Literal["adam", "adamw", "muon", "sgd"] = "adamw"
    """``muon`` moves convolution kernels by the orthogonal part of their momentum and the rest by AdamW, whose ``lr``
    and ``weight_decay`` it has."""
    lr: float = Field(1e-3, gt=0)
    """Learning rate; with ``one_cycle`` and ``cosine`` the highest."""
    layer_lr: dict[str, float] = Field(default_factory=dict)
    """Factor on ``lr`` by layer name, for instance ``layer3: 0.3``; a layer not named has 1."""
    weight_decay: float = Field(0.0, ge=0)
    decay_all: bool = False
    """Decay biases and batch-norm parameters too, as stock torch optimisers do."""
    momentum: float = Field(0.9, ge=0, lt=1)
    """Of ``sgd``, and of ``muon``'s kernels (0.95 is usual there)."""
    nesterov: bool = True
    betas: Pair = (0.9, 0.999)
    schedule: Literal["constant", "one_cycle", "cosine", "plateau"] = "constant"
    warmup: float = Field(0.0, ge=0, le=1)
    """Share of all steps in which the rate rises (``one_cycle`` and ``cosine``)."""
    plateau_factor: float = Field(0.5, gt=0, lt=1)
    plateau_patience: int = Field(2, ge=0)
    """Epochs without a lower validation loss before ``plateau`` multiplies the rate by its factor."""
    clip_norm: float | None = Field(None, gt=0)
    clip_value: float | None = Field(None, gt=0)
    sam: float = Field(0.0, ge=0)
    """Sharpness-aware minimisation: how far uphill a step's gradient is taken, 0 is off. A step costs two
    (Foret et al. 2021, arXiv:2010.01412)."""
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    teacher: str | None = None
    """Directory of a run whose best network answers for part of each target: distillation (Hinton et al. 2015,
    arXiv:1503.02531). Several with commas between answer as one, by the mean of their probabilities."""
    teacher_share: float = Field(0.9, gt=0, le=1)
    """Share of the teacher's answer in a target."""
    teacher_views: Literal["same", "one", "flip", "ten_crop"] = "same"
    """What the teacher sees: ``same`` is what the network sees in each step, at the teacher's own input size; with the
    others it is asked once before training, for the faces as they are, and answers by the mean over one view, two or
    ten. That costs no step."""
    balance: Literal["none", "loss", "sampling"] = "none"
    """Weigh the loss by inverse class frequency, or draw every emotion equally often."""
    ema: float = Field(0.0, ge=0, lt=1)
    """Decay of the moving average of the weights, each step; 0 is off. It is what is evaluated and saved as best."""

    # The run
    epochs: int = Field(ge=0, le=100_000)
    """Passes over the training faces; 0 keeps the network as it starts."""
    batch_size: int = Field(128, ge=1)
    seed: int = Field(0, ge=0, lt=2**63)
    early_stopping: int | None = Field(None, ge=1)
    """Epochs without a better validation accuracy before the training ends."""
    keep_epoch: int | None = Field(None, ge=1)
    """The epoch whose network is kept as the best, whatever validation says of it; training ends there, or with
    ``epochs`` where those are fewer. For faces too few to choose by, when other faces have settled it. Null keeps the
    epoch with the best validation accuracy."""
    precision: Literal["auto", "float32", "bfloat16", "float16", "float64"] = "auto"
    """Arithmetic of the network: ``auto`` is bfloat16 where the hardware has it, else float32; float64 is to check."""
    compile: bool = False
    """Compile the network with ``torch.compile``."""
    cuda_graph: bool = True
    """On CUDA, launch the step of a full batch at once, as a CUDA graph. Not in float16 or float64, nor with several
    processes."""

    @field_validator("teacher", "start", mode="before")
    @classmethod
    def _no_run(cls, value: Any) -> Any:
        # In YAML "none" is text; as a parameter and to a reader it is nothing.
        return None if isinstance(value, str) and value.strip().lower() == "none" else value

    @field_validator("channels", mode="before")
    @classmethod
    def _whole(cls, value: Any) -> Any:
        # To Python, and so to a Literal, true and 1.0 are 1.
        if type(value) is not int:
            raise ValueError("expected 1 or 3")
        return value

    @model_validator(mode="after")
    def _combination(self) -> Recipe:
        problems = []
        known = backbones()
        if known and self.backbone not in known:
            problems.append(_unknown(self.backbone, known, "backbone"))
        if self.schedule == "plateau" and self.val_fraction == 0:
            problems.append("schedule plateau watches the validation loss, but val_fraction is 0")
        if self.early_stopping and self.val_fraction == 0:
            problems.append("early_stopping watches the validation accuracy, but val_fraction is 0")
        if self.early_stopping and self.keep_epoch:
            problems.append("keep_epoch says where training ends, so early_stopping cannot: set one of them to null")
        stock = {
            "stem": "imagenet",
            "max_pool": True,
            "width": 1.0,
            "activation": "relu",
            "shortcut": "strided",
            "zero_init_residual": False,
        }
        changed = [name for name, value in stock.items() if getattr(self, name) != value]
        if changed and not self.backbone.startswith("resnet"):
            told = ", ".join(f"{name} {json.dumps(stock[name]).strip(chr(34))}" for name in changed)
            problems.append(
                f"{' and '.join(changed)}: only a ResNet has it, and backbone is {self.backbone}; set {told}, or start "
                "from a recipe without it, such as one_cycle"
            )
        if self.weights == "imagenet":
            if self.backbone == "custom_cnn":
                problems.append("weights imagenet: there are none for backbone custom_cnn")
            if self.stem != "imagenet":
                problems.append(f"weights imagenet has 7×7 kernels first, which cannot become stem {self.stem}")
            if self.width != 1.0:
                problems.append(f"weights imagenet fits width 1 only, not width {self.width}")
            if self.activation != "relu":
                problems.append(f"weights imagenet was trained with ReLU, not with activation {self.activation}")
            if self.shortcut != "strided":
                problems.append("weights imagenet was trained with strided shortcuts, not with shortcut average")
            if self.zero_init_residual:
                problems.append("zero_init_residual would be overwritten by weights imagenet")
        if self.start is not None and self.weights == "imagenet":
            problems.append(f"start {self.start} brings its own weights, in place of imagenet: set weights none")
        if self.start is not None and not self.starts:
            problems.append("start names no run; null is from scratch")
        if len(set(self.starts)) < len(self.starts):
            problems.append(f"start {self.start} names a run twice: members that are the same know no more than one")
        if self.members > 1:
            problems += [
                f"{name} takes one norm over all members, which learn each for itself: set {name} to {off}"
                for name, off in (("clip_norm", "null"), ("sam", "0"))
                if getattr(self, name)
            ]
        if self.epochs == 0 and self.teacher is not None:
            problems.append("epochs 0 trains nothing: a teacher has nothing to answer for; set teacher null")
        if self.teacher is not None and not self.teachers:
            problems.append("teacher names no run; null is no teacher")
        if self.teacher is not None and (self.mixup or self.cutmix):
            problems.append("a teacher answers for faces as they are: no mixup and no cutmix")
        if any(factor < 0 for factor in self.layer_lr.values()):
            problems.append("layer_lr holds factors of at least 0")
        if any(size < 1 for size in self.head):
            problems.append("head holds layer sizes of at least 1")
        if not all(0 <= beta < 1 for beta in self.betas):
            problems.append("betas holds two numbers of at least 0 and below 1")
        if problems:
            raise ValueError("\n".join(problems))
        return self

    @property
    def teachers(self) -> tuple[str, ...]:
        """The runs that ``teacher`` names."""
        return _names(self.teacher)

    @property
    def starts(self) -> tuple[str, ...]:
        """The runs that ``start`` names."""
        return _names(self.start)

    @property
    def trained_epochs(self) -> int:
        """How many of its epochs are trained, early stopping aside."""
        return self.epochs if self.keep_epoch is None else min(self.keep_epoch, self.epochs)

    def dump(self) -> str:
        """Return the recipe as YAML, every field, in the order of this class."""
        values = self.model_dump(mode="json")
        return str(yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120))


@functools.cache
def backbones() -> tuple[str, ...]:
    """Return ``custom_cnn`` and torchvision's classification models, read from its sources, since importing takes long.

    Empty where torchvision is not installed as plain files; ``models.build`` then is the first to find a wrong name.
    """
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return ()
    found = []
    for path in sorted((Path(spec.origin).parent / "models").glob("*.py")):
        found += re.findall(r"^@register_model\(.*\)\n(?:@.*\n)*def (\w+)\(", path.read_text(encoding="utf-8"), re.M)
    return ("custom_cnn", *sorted(found)) if found else ()


def names() -> list[str]:
    """Return the names of the recipes in the box."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def load(recipe: str | Path, overrides: Mapping[str, Any] | None = None) -> Recipe:
    """Read a recipe by name or by the path of a YAML file, with ``overrides`` of whole fields.

    Overrides whose value is None are "as the recipe says" and ignored; text is turned into the field's type. A recipe
    without ``name`` goes by its file's.

    Raises:
        RecipeError: no such recipe, a malformed file, an unknown key, a wrong type or an impossible combination. The
            message names the file and line, or the override, and what was expected.
    """
    path = _find(recipe)
    values, lines = _read(path, ())
    # Python's \w holds letters and numbers, such as ², that pydantic's does not.
    spelled = "".join(
        letter if letter.isalpha() or letter.isdecimal() or letter in "_.-" else " " for letter in path.stem
    )
    values.setdefault("name", "-".join(spelled.split()) or "recipe")
    for name, value in (overrides or {}).items():
        if value is None:
            continue
        values[name] = coerce(name, value)
        lines = {where: line for where, line in lines.items() if where[0] != name}
        lines[(name,)] = f"parameter {name}"
    return _validate(values, lines, str(path))


def in_epochs(number: int) -> str:
    """Return ``1 epoch``, ``60 epochs``."""
    return f"{number} epoch" if number == 1 else f"{number} epochs"


def drawn(train_faces: int | None, held: int) -> int | None:
    """Return about how many of ``held`` training faces a recipe's ``train_faces`` takes, None where it takes all."""
    return train_faces if train_faces is not None and train_faces < held else None


def length(recipe: Recipe) -> str:
    """Return how long a recipe trains: ``60 epochs``, or ``38 of 48 epochs`` where ``keep_epoch`` ends it."""
    whole = in_epochs(recipe.epochs)
    return whole if recipe.trained_epochs == recipe.epochs else f"{recipe.trained_epochs} of {whole}"


def changes(recipe: Recipe) -> dict[str, str] | None:
    """Return what differs from the recipe of its name in the box, as text that ``load`` takes as overrides.

    Name and description aside. None where the box has no recipe of that name.
    """
    if recipe.name not in names():
        return None
    base = load(recipe.name).model_dump(mode="json")
    told = {}
    for name, value in recipe.model_dump(mode="json").items():
        if value != base[name] and name not in ("name", "description"):
            told[name] = value if isinstance(value, str) else "none" if value is None else json.dumps(value)
    return told


def parse(text: str, source: str = "recipe") -> Recipe:
    """Read a recipe from the YAML that ``Recipe.dump`` wrote into a run or an export.

    Raises:
        RecipeError: the text is no recipe of this version; the message begins with ``source``, where it is from.
    """
    values, lines = _document(text, source)
    return _validate(values, lines, source)


def coerce(name: str, value: Any) -> Any:
    """Turn ``value`` into the type of the recipe's field ``name`` where it is text, else return it as it is.

    Raises:
        RecipeError: there is no such field, with the nearest proposed, or the text cannot be read as its type.
    """
    field = Recipe.model_fields.get(name)
    if field is None:
        raise RecipeError(_unknown(name, list(Recipe.model_fields)))
    return coerce_to(field.annotation, name, value)


def coerce_to(kind: Any, name: str, value: Any) -> Any:
    """Turn text such as ``"true"``, ``"1e-3"`` or ``"[1, 2]"`` into ``kind``; other values are returned as they are.

    Raises:
        RecipeError: the text cannot be read as ``kind``; the message names the parameter.
    """
    options = _options(kind)
    lists = [option for option in options if get_origin(option) is tuple and Ellipsis in get_args(option)]
    if lists and isinstance(value, int | float | str) and re.fullmatch(r"\s*[\w.]+\s*", str(value)) and value != "none":
        # One item is a list of one: head 100, train_layers fc.
        return [yaml.load(str(value), _Loader)]
    if isinstance(value, Sequence) and not isinstance(value, str):
        return list(value)
    if not isinstance(value, str):
        return value
    text = value.strip()
    if type(None) in options and text.lower() in ("none", "null", ""):
        return None
    for option in options:
        if option is bool and text.lower() in ("true", "false"):
            return text.lower() == "true"
        if get_origin(option) is Literal:
            # Literal[1, 3] is as good a target for "3" as Literal["a", "b"] is for "a".
            return next((choice for choice in get_args(option) if str(choice) == text), value)
        try:
            if option is int:
                return int(text)
            if option is float:
                return float(text)
        except ValueError:
            continue
        if get_origin(option) in (tuple, dict) or (isinstance(option, type) and issubclass(option, BaseModel)):
            try:
                return yaml.load(text, _Loader)
            except _BAD_YAML as error:
                raise RecipeError(f"parameter {name}: {value!r} is not YAML: {error}") from error
    if str in options:
        return value
    raise RecipeError(f"parameter {name}: expected {describe_type(kind)}, got {value!r}")


def _options(kind: Any) -> tuple[Any, ...]:
    return get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)


def describe_type(kind: Any) -> str:
    """Return a type in a user's words, for instance ``a whole number`` or ``one of: adam, adamw, sgd``."""
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "text", type(None): "None"}
    parts = []
    for option in _options(kind):
        if get_origin(option) is Literal:
            parts.append("one of: " + ", ".join(map(str, get_args(option))))
        else:
            parts.append(words.get(option, "a list or mapping as in the recipe"))
    return " or ".join(parts)


_SHARED_KINDS: Final[dict[str, Any]] = {"resume": bool | Literal["auto"], "on_bad": Literal["raise", "skip"]}
"""Types of parameters that several notebooks have and that are no field of Recipe."""


def check_parameters(
    cells: Sequence[str], values: Mapping[str, Any], kinds: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Check a notebook's parameters before torch is imported or data is read.

    papermill only logs a name it does not know, so the names in its injected cell are held against those declared.

    Args:
        cells: sources of the cells run so far (IPython's ``In``): the one that begins with ``# parameters:`` declares
            the names, one that begins with ``# Parameters`` is papermill's.
        values: the notebook's global names (``globals()``).
        kinds: types of parameters that only this notebook has; the declared annotation does otherwise.

    Returns:
        The declared parameters with their values, text turned into each one's type; ``"none"`` stays as it is where it
        turns a field such as ``clip_norm`` off.

    Raises:
        RecipeError: an unknown name or a value of the wrong type; the message names it and what it may be.
    """
    declared: dict[str, Any] = {}
    injected: list[str] = []
    simple = {"int": int, "float": float, "bool": bool, "str": str}
    for cell in cells:
        if cell.startswith("# parameters:"):
            declared = {}
            for node in ast.parse(cell).body:
                if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                    declared[node.target.id] = simple.get(ast.unparse(node.annotation), str)
        elif cell.startswith("# Parameters\n"):
            for node in ast.parse(cell).body:
                if isinstance(node, ast.Assign):
                    injected += [target.id for target in node.targets if isinstance(target, ast.Name)]
    if not declared:
        raise RecipeError("no cell that begins with '# parameters:' has run: run the notebook from its top")
    for name in injected:
        if name not in declared:
            raise RecipeError(_unknown(name, list(declared), "parameter"))
    checked = {}
    for name, annotation in declared.items():
        field = Recipe.model_fields.get(name)
        kind = (kinds or {}).get(name) or (field.annotation if field else _SHARED_KINDS.get(name, annotation))
        value = values.get(name)
        if value is not None:
            if str in _options(kind) and isinstance(value, int | float) and not isinstance(value, bool):
                # papermill makes a number of what looks like one: seeds 0, out 7.
                value = str(value)
            given, value = value, coerce_to(kind, name, value)
            if value is None:
                # The text "none" turns a field off, where None means "as the recipe says": load reads it again.
                value = given
            else:
                _check_scalar(name, kind, value)
        if name == "device" and not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", value or "auto"):
            raise RecipeError(f"parameter device: expected one of: auto, cpu, cuda, cuda:N, mps, got {value!r}")
        checked[name] = value
    overrides = {name: value for name, value in checked.items() if name in Recipe.model_fields}
    base, run = checked.get("recipe"), checked.get("run")
    # As `runs.chosen_recipe` chooses: a run's own recipe comes before the default.
    of_run = [folder / "recipe.yaml" for folder in (Path(run), ROOT / "outputs" / run)] if run and not base else []
    # Where several recipes are named, each has to take what is put over all.
    several = [part.strip() for part in (checked.get("recipes") or "").split(",") if part.strip()]
    for each in several if several and not checked.get("runs") else [base]:
        load(each or next((path for path in of_run if path.is_file()), "fast"), overrides)
    return checked


def _check_scalar(name: str, kind: Any, value: Any) -> None:
    def fits(option: Any) -> bool:
        if get_origin(option) is Literal:
            return any(type(value) is type(choice) and value == choice for choice in get_args(option))
        if option in (int, float):
            # True is an int to Python, not to a reader.
            return isinstance(value, int if option is int else int | float) and not isinstance(value, bool)
        if option in (str, bool):
            return isinstance(value, option)
        # Lists and mappings are left to Recipe.
        return option is not type(None)

    if not any(fits(option) for option in _options(kind)):
        raise RecipeError(f"parameter {name}: expected {describe_type(kind)}, got {value!r}")


def _names(field: str | None) -> tuple[str, ...]:
    """The runs in a field that holds one, or several with commas between them."""
    return tuple(name.strip() for name in (field or "").split(",") if name.strip())


def _find(recipe: str | Path) -> Path:
    path = expanded(recipe)
    if path.suffix in (".yaml", ".yml"):
        if not path.is_file():
            raise RecipeError(f"recipe {recipe}: there is no such file")
        return path
    inside = RECIPES / f"{recipe}.yaml"
    if not inside.is_file():
        raise RecipeError(_unknown(str(recipe), names(), "recipe") + "; or give the path of a .yaml file")
    return inside


def _unknown(name: str, known: Sequence[str], what: str = "field") -> str:
    near = difflib.get_close_matches(name, known, n=1)
    guess = f", did you mean {near[0]}?" if near else ","
    return f"unknown {what} {name!r}{guess} known: {', '.join(known)}"


Lines = dict[tuple[str, ...], str]

# What PyYAML raises, and what an explicit tag (!!int abc) or a nesting without end makes of it.
_BAD_YAML: Final = (yaml.YAMLError, ValueError, KeyError, AttributeError, TypeError, RecursionError)


def _document(text: str, source: str) -> tuple[dict[str, Any], Lines]:
    """Read YAML, and where each key stands in it."""
    lines: Lines = {}
    collections = set()

    def visit(node: yaml.Node, path: tuple[str, ...], line: str) -> None:
        if isinstance(node, yaml.ScalarNode):
            return
        if id(node) in collections:
            # An alias: a few of them nested are a document of any size, or one without end.
            raise RecipeError(f"{line}: YAML aliases (*name) are not read; write the value out")
        collections.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            for item in node.value:
                visit(item, path, line)
            return
        for key, value in node.value:
            line = f"{source}, line {key.start_mark.line + 1}"
            if not isinstance(key, yaml.ScalarNode):
                raise RecipeError(f"{line}: a field's name is a word")
            where = (*path, str(key.value))
            if where in lines:
                raise RecipeError(f"{line}: {'.'.join(where)} is given twice")
            lines[where] = line
            visit(value, where, line)

    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if not isinstance(node, yaml.MappingNode):
            raise RecipeError(f"{source}: a recipe is a mapping of fields to values")
        visit(node, (), source)
        values: dict[str, Any] = loader.construct_document(node)
        if not isinstance(values, dict):
            raise RecipeError(f"{source}: a recipe is a mapping of fields to values")
    except RecipeError:
        raise
    except _BAD_YAML as error:
        raise RecipeError(f"{source}: not valid YAML: {error}") from error
    return values, lines


def _read(path: Path, chain: tuple[Path, ...]) -> tuple[dict[str, Any], Lines]:
    """Read a file and what it extends; the lines are those of the file that says it."""
    path = path.resolve()
    if path in chain:
        circle = " -> ".join(p.stem for p in (*chain, path))
        raise RecipeError(f"{path}: extends goes round in a circle: {circle}")
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path} cannot be read as text: {error}") from error
    values, lines = _document(text, str(path))
    parent = values.pop("extends", None)
    if parent is None:
        return values, lines
    line = lines[("extends",)]
    if not isinstance(parent, str):
        raise RecipeError(f"{line}: extends names one recipe, not {parent!r}")
    beside = path.parent / parent
    try:
        base = beside if beside.suffix in (".yaml", ".yml") and beside.is_file() else _find(parent)
    except RecipeError as error:
        raise RecipeError(f"{line}: {error}") from error
    inherited, inherited_lines = _read(base, (*chain, path))
    # These say what the other recipe is, not what this one is.
    for own in ("name", "description"):
        inherited.pop(own, None)
    return _merge(inherited, values), {**inherited_lines, **lines}


def _merge(base: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in change.items():
        # layer_lr is one value: naming layers anew must not keep factors of layers that the other recipe named.
        if key != "layer_lr" and isinstance(value, dict) and isinstance(merged.get(key), dict):
            merged[key] = _merge(merged[key], value)
        else:
            merged[key] = value
    return merged


def _validate(values: dict[str, Any], lines: Lines, source: str) -> Recipe:
    try:
        # Through JSON, where a list is the one way to write a tuple: strict mode then takes it.
        return Recipe.model_validate_json(json.dumps(values))
    except ValidationError as error:
        raise RecipeError("\n".join(_told(item, lines, source) for item in error.errors())) from error
    except (TypeError, ValueError) as error:
        raise RecipeError(f"{source}: {error}") from error


def _told(item: Any, lines: Lines, source: str) -> str:
    """One of pydantic's complaints with the line of the file, or the parameter, that caused it."""
    location = tuple(str(part) for part in item["loc"])
    line = next((lines[path] for depth in range(len(location), 0, -1) if (path := location[:depth]) in lines), source)
    if item["type"] == "extra_forbidden":
        return f"{line}: {_unknown(str(item['loc'][-1]), _siblings(item['loc']))}"
    if item["type"] == "value_error":
        told = []
        for problem in item["msg"].removeprefix("Value error, ").split("\n"):
            # Our own checks of combinations name the fields that they are about.
            words = re.findall(r"[\w.]*\w", problem)
            about = [where for path, where in lines.items() if ".".join(path) in words]
            told.append(f"{'; '.join(dict.fromkeys(about)) or line}: {problem}")
        return "\n".join(told)
    got = "" if item["type"] == "missing" else f" (got {item['input']!r})"
    name = ".".join(location)
    # The line of a parameter is its name already.
    return f"{line}: {item['msg']}{got}" if line == f"parameter {name}" else f"{line}: {name}: {item['msg']}{got}"


def _siblings(location: tuple[int | str, ...]) -> list[str]:
    model: Any = Recipe
    for part in location[:-1]:
        model = model.model_fields[part].annotation
    return list(model.model_fields)


def main(arguments: Sequence[str] | None = None) -> int:
    """List the recipes, or print one in full."""
    wanted = list(sys.argv[1:] if arguments is None else arguments)
    if "-h" in wanted or "--help" in wanted:
        print(__doc__)
        return 0
    try:
        if not wanted:
            for name in names():
                print(f"{name:18} {load(name).description}")
            return 0
        for name in wanted:
            print(load(name).dump(), end="")
    except RecipeError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
