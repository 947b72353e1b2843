"""The convolution of small maps: what the stock one gives, to its precision, and the stock one itself elsewhere."""

from __future__ import annotations

import copy
import io
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from fer_utils import convolution, models
from fer_utils.convolution import SmallMapConv2d, fast
from fer_utils.recipe import load

Result = tuple[Tensor, Tensor, Tensor]

SHAPES = [
    # batch, in, out, height, width, kernel, stride
    (16, 48, 40, 3, 3, 3, 1),
    (13, 33, 21, 3, 3, 3, 1),
    (9, 24, 24, 1, 1, 3, 1),
    (9, 24, 31, 2, 2, 3, 1),
    (8, 17, 24, 4, 4, 3, 1),
    (11, 24, 16, 4, 2, 3, 1),
    (11, 24, 16, 1, 3, 3, 1),
    (13, 24, 40, 6, 6, 3, 2),
    (8, 19, 24, 5, 5, 3, 2),
    (8, 24, 24, 8, 7, 3, 2),
    (8, 24, 24, 1, 2, 3, 2),
    (9, 24, 24, 5, 5, 3, 1),
    (9, 24, 24, 10, 9, 3, 2),
]


@pytest.fixture(autouse=True)
def _few_channels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small kernels and batches take the way of large ones, or the tests would take long."""
    monkeypatch.setattr(convolution, "SMALLEST_KERNEL", 1)
    monkeypatch.setattr(convolution, "FEWEST_MAPS", 8)


@pytest.fixture(params=[False, True], ids=["without AMX", "with AMX"])
def amx(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Both ways, whatever this processor has: each is right on every one, and pays on some."""
    monkeypatch.setattr(convolution, "has_amx", lambda: request.param)
    return bool(request.param)


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Parts of convolutions that were computed in the small maps' way."""
    parts: list[str] = []

    def note(name: str) -> None:
        inner = getattr(convolution, name)

        def noting(*arguments: object) -> Tensor:
            parts.append(name)
            made: Tensor = inner(*arguments)
            return made

        monkeypatch.setattr(convolution, name, noting)

    for name in ("convolve", "map_gradient", "kernel_gradient"):
        note(name)
    return parts


def pair(inputs: int, outputs: int, kernel: int, stride: int) -> tuple[nn.Conv2d, nn.Conv2d]:
    """A stock convolution and a fast one with the same kernels."""
    torch.manual_seed(inputs + outputs)
    stock = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False).to(memory_format=torch.channels_last)
    made = fast(copy.deepcopy(stock))
    assert type(made) is SmallMapConv2d
    return stock, made


def results(module: nn.Module, maps: Tensor, gradient: Tensor) -> Result:
    """Output, input's gradient and kernels' gradient under bfloat16 autocast, in float64."""
    held = maps.clone().requires_grad_()
    module.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=maps.dtype != torch.float64):
        output = module(held)
    output.backward(gradient.to(output.dtype))
    weight = module.get_parameter("weight")
    assert held.grad is not None
    assert weight.grad is not None
    assert weight.grad.dtype == weight.dtype
    return output.detach().double(), held.grad.double(), weight.grad.double()


@pytest.mark.skipif(not Path("/proc/cpuinfo").is_file(), reason="only Linux tells otherwise what the processor has")
def test_amx_is_seen_where_linux_sees_it() -> None:
    told = Path("/proc/cpuinfo").read_text()
    assert convolution.has_amx() == ("amx_tile" in told and "amx_bf16" in told)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_it_is_as_near_to_float64_as_the_stock_convolution(shape: tuple[int, ...], amx: bool, taken: list[str]) -> None:
    batch, inputs, outputs, height, width, kernel, stride = shape
    stock, made = pair(inputs, outputs, kernel, stride)
    maps = torch.randn(batch, inputs, height, width).contiguous(memory_format=torch.channels_last)
    gradient = torch.randn(batch, outputs, -(-height // stride), -(-width // stride))
    exact = results(copy.deepcopy(stock).double(), maps.double(), gradient.double())
    ours = results(made, maps, gradient)
    if not amx:
        assert taken == ["kernel_gradient"]
    else:
        small = max(gradient.shape[2:]) <= 4
        assert taken == (["convolve", "map_gradient", "kernel_gradient"] if small else [])
    theirs = results(stock, maps, gradient)
    assert amx or torch.equal(theirs[0], ours[0])
    for truth, stock_result, mine in zip(exact, theirs, ours, strict=True):
        assert mine.shape == truth.shape
        stock_error, error = ((found - truth).square().mean().sqrt() for found in (stock_result, mine))
        scale = truth.square().mean().sqrt()
        assert error <= 1.5 * stock_error + 1e-6 * scale
        assert error < 0.01 * scale


@pytest.mark.usefixtures("amx")
def test_sums_are_rounded_once() -> None:
    # Whole numbers that bfloat16 holds: sums over 9 × 64 of them are exact in float32 and are rounded at the end.
    stock, made = pair(64, 16, 3, 1)
    with torch.no_grad():
        for module in (stock, made):
            module.weight.copy_(torch.randint(-4, 5, module.weight.shape, generator=torch.Generator().manual_seed(1)))
    maps = torch.randint(-4, 5, (8, 64, 3, 3)).float()
    gradient = torch.randint(-4, 5, (8, 16, 3, 3)).float()
    exact = results(copy.deepcopy(stock).double(), maps.double(), gradient.double())
    for truth, mine in zip(exact, results(made, maps, gradient), strict=True):
        assert torch.equal(truth.bfloat16().double(), mine)


@pytest.mark.usefixtures("amx")
def test_the_same_input_gives_the_same_bytes() -> None:
    _, made = pair(40, 40, 3, 1)
    maps, gradient = torch.randn(16, 40, 3, 3), torch.randn(16, 40, 3, 3)
    for first, second in zip(results(made, maps, gradient), results(made, maps, gradient), strict=True):
        assert torch.equal(first, second)


@pytest.mark.usefixtures("amx")
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_layouts_of_maps_and_kernels_change_nothing(layout: torch.memory_format) -> None:
    _, made = pair(24, 24, 3, 1)
    maps, gradient = torch.randn(8, 24, 3, 3), torch.randn(8, 24, 3, 3)
    expected = results(made, maps, gradient)
    other = copy.deepcopy(made).to(memory_format=layout)
    cut_out = torch.randn(8, 24, 5, 5).contiguous(memory_format=layout)
    cut_out[:, :, 1:4, 1:4] = maps
    for first, second in zip(expected, results(other, cut_out[:, :, 1:4, 1:4], gradient), strict=True):
        assert torch.equal(first, second)


@pytest.mark.usefixtures("amx")
def test_a_part_of_a_batch_is_its_own_and_not_the_first() -> None:
    _, made = pair(24, 24, 3, 1)
    both = torch.randn(16, 24, 3, 3).to(torch.bfloat16).contiguous(memory_format=torch.channels_last)
    gradients = torch.randn(16, 24, 3, 3).to(torch.bfloat16).contiguous(memory_format=torch.channels_last)
    expected = results(made, both[8:].clone(), gradients[8:].clone())
    part = both[8:].requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        output = made(part)
    for mine, first in zip(
        (output, *torch.autograd.grad(output, (part, made.weight), gradients[8:])), expected, strict=True
    ):
        assert torch.equal(mine.double(), first)


@pytest.mark.usefixtures("amx")
def test_frozen_kernels_and_inputs_get_no_gradient() -> None:
    _, made = pair(24, 24, 3, 1)
    made.requires_grad_(False)
    maps = torch.randn(8, 24, 3, 3, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        made(maps).float().sum().backward()
    assert maps.grad is not None
    assert made.weight.grad is None
    made.requires_grad_(True)
    with torch.autocast("cpu", torch.bfloat16):
        made(maps.detach()).float().sum().backward()
    assert made.weight.grad is not None


@pytest.mark.usefixtures("amx")
@pytest.mark.parametrize("case", ["float32", "float16", "float64", "large", "few", "single", "meta"])
def test_everything_else_is_the_stock_convolution(case: str, taken: list[str]) -> None:
    stock, made = pair(24, 24, 3, 1)
    maps = torch.randn(4 if case == "few" else 8, 24, *((6, 6) if case == "large" else (3, 3)))
    if case == "single":
        maps = maps[0]
    if case == "float64":
        maps, stock, made = maps.double(), stock.double(), made.double()
    if case == "meta":
        maps, stock, made = maps.to("meta"), stock.to("meta"), made.to("meta")
    dtype = torch.float16 if case == "float16" else torch.bfloat16
    with torch.autocast("cpu", dtype, enabled=case != "float32"):
        expected, output = stock(maps), made(maps)
    expected.sum().backward()
    output.sum().backward()
    assert not taken
    assert made.weight.grad is not None
    assert stock.weight.grad is not None
    for theirs, ours in ((expected, output), (stock.weight.grad, made.weight.grad)):
        assert ours.dtype == theirs.dtype
        assert ours.shape == theirs.shape
        assert case == "meta" or torch.equal(ours, theirs)


@pytest.mark.usefixtures("amx")
def test_outside_of_training_it_is_the_stock_convolution(taken: list[str]) -> None:
    stock, made = pair(24, 24, 3, 1)
    maps = torch.randn(8, 24, 3, 3)
    with torch.autocast("cpu", torch.bfloat16):
        with torch.no_grad():
            assert torch.equal(made(maps), stock(maps))
        made.requires_grad_(False)
        assert torch.equal(made(maps), stock(maps))
    assert not taken


@pytest.mark.usefixtures("amx")
def test_maps_without_pixels_are_refused_as_ever() -> None:
    _, made = pair(24, 24, 3, 1)
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(RuntimeError, match="Kernel size can't be greater"):
        made(torch.randn(8, 24, 0, 3))


@pytest.mark.usefixtures("amx")
@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")
def test_an_export_sees_the_stock_operation(taken: list[str]) -> None:
    _, made = pair(24, 24, 3, 1)
    maps = torch.randn(8, 24, 3, 3)
    # With gradients, as a training is compiled: without them the stock operation is taken anyway.
    with torch.autocast("cpu", torch.bfloat16):
        exported = torch.export.export(made.eval(), (maps,))
        traced = torch.jit.trace(made, maps, check_trace=False)
    assert not taken
    assert any("conv2d" in str(node.target) for module in exported.graph_module.modules() for node in nodes(module))
    assert "_convolution" in str(traced.inlined_graph)


def nodes(module: nn.Module) -> list[torch.fx.Node]:
    return list(module.graph.nodes) if isinstance(module, torch.fx.GraphModule) else []


class Doubled(nn.Conv2d):
    """Somebody's own convolution."""

    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


def test_only_what_it_suits_is_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convolution, "SMALLEST_KERNEL", 16 * 16)
    suited = [nn.Conv2d(16, 16, 3, 1, 1, bias=False), nn.Conv2d(16, 32, 3, 2, 1, bias=False)]
    others = [
        nn.Conv2d(16, 32, 1, 2, bias=False),
        nn.Conv2d(16, 16, 3, 1, 1),
        nn.Conv2d(8, 16, 3, 1, 1, bias=False),
        nn.Conv2d(16, 16, 3, 1, 0, bias=False),
        nn.Conv2d(16, 16, 3, 3, 1, bias=False),
        nn.Conv2d(16, 16, 1, 1, bias=False),
        nn.Conv2d(16, 16, 5, 1, 2, bias=False),
        nn.Conv2d(16, 16, 3, 1, 1, groups=2, bias=False),
        nn.Conv2d(16, 16, 3, 1, 1, dilation=2, bias=False),
        nn.Conv2d(16, 16, 3, 1, 1, padding_mode="reflect", bias=False),
        nn.Conv2d(16, 16, 3, 1, "same", bias=False),
        Doubled(16, 16, 3, 1, 1, bias=False),
    ]
    fast(nn.Sequential(*suited, *others))
    assert [type(module) for module in suited] == [SmallMapConv2d] * 2
    assert not any(isinstance(module, SmallMapConv2d) for module in others)


def test_parameters_stay_the_same_objects_under_the_same_names() -> None:
    model = nn.Sequential(nn.Conv2d(8, 8, 3, 1, 1, bias=False), nn.BatchNorm2d(8))
    before = dict(model.named_parameters())
    assert fast(model) is model
    after = dict(model.named_parameters())
    assert list(before) == list(after)
    assert all(before[name] is after[name] for name in before)
    assert type(copy.deepcopy(model)[0]) is SmallMapConv2d
    held = io.BytesIO()
    torch.save(model.state_dict(), held)
    held.seek(0)
    stock = nn.Sequential(nn.Conv2d(8, 8, 3, 1, 1, bias=False), nn.BatchNorm2d(8))
    stock.load_state_dict(torch.load(held, weights_only=True))
    assert torch.equal(stock.get_parameter("0.weight"), after["0.weight"])


@pytest.mark.parametrize("with_amx", [False, True], ids=["without AMX", "with AMX"])
@pytest.mark.parametrize("fields", [{}, {"shortcut": "strided", "activation": "relu"}], ids=["average", "strided"])
def test_a_resnet_gives_the_stock_networks_logits_and_gradients(
    fields: dict[str, str], with_amx: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()  # a whole network, as it is
    monkeypatch.setattr(convolution, "has_amx", lambda: with_amx)
    torch.manual_seed(0)
    model = models.build(load("fast", {"dropout": 0.0, "width": 1.0, **fields})).to(memory_format=torch.channels_last)
    stock = copy.deepcopy(model)
    for module in stock.modules():
        if isinstance(module, SmallMapConv2d):
            module.__class__ = nn.Conv2d
    kinds = {name for name, module in model.named_modules() if isinstance(module, SmallMapConv2d)}
    assert {"layer4.0.conv1", "layer4.0.conv2", "layer4.1.conv2"} <= kinds
    assert not {"conv1", "layer4.0.downsample.0"} & kinds
    faces, targets = torch.randn(32, 1, 48, 48), torch.randint(0, 7, (32,))
    exact = gradients(copy.deepcopy(stock), faces, targets, torch.float32)
    theirs, ours = (gradients(m, faces, targets, torch.bfloat16) for m in (stock, model))
    for name, truth in exact.items():
        stock_error, error = (theirs[name] - truth).norm(), (ours[name] - truth).norm()
        assert error <= 1.5 * stock_error + 1e-6 * truth.norm(), name


def gradients(model: nn.Module, faces: Tensor, targets: Tensor, dtype: torch.dtype) -> dict[str, Tensor]:
    """Logits, and the gradient of each parameter."""
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        logits = model(faces)
    nn.functional.cross_entropy(logits.float(), targets).backward()
    found = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    return {"logits": logits.detach().float(), **found}


PROGRAM = """
import resource, sys, torch
from fer_utils.devices import keep_freed_memory
torch.set_num_threads(1)
told = keep_freed_memory() if sys.argv[1] == "keep" else False
def blocks():
    for size in (40, 60, 25):
        held = [torch.ones(size << 17) for _ in range(4)]
        del held
for _ in range(3):
    blocks()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    blocks()
print(int(told), resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="it is glibc that is told")
def test_freed_memory_is_kept_and_not_cleared_again() -> None:
    faults = {}
    for how in ("keep", "leave"):
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, how],
            capture_output=True,
            text=True,
            check=True,
            timeout=120,
            cwd=Path(__file__).parents[1],
        )
        told, faults[how] = map(int, done.stdout.split())
        assert told == (how == "keep")
    assert faults["keep"] < faults["leave"] / 10
