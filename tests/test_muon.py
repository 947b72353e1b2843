"""Muon: what is orthogonal, what it moves, and PyTorch's own for the same matrices."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from fer_utils import models
from fer_utils import recipe as recipes
from fer_utils.muon import Muon, is_kernel, orthogonal
from fer_utils.training import make_optimizer


def uneven(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Matrices whose singular values fall to a hundredth of the largest."""
    generator = torch.Generator().manual_seed(0)
    left, _, right = torch.linalg.svd(torch.randn(shape, generator=generator, dtype=torch.float64), full_matrices=False)
    return (left * torch.logspace(0, -2, left.shape[-1], dtype=torch.float64) @ right).to(dtype)


@pytest.mark.parametrize("precision", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(2, 16, 144), (1, 40, 8), (3, 24, 24)], ids=["wide", "tall", "square"])
def test_a_matrix_is_made_orthogonal_with_the_singular_vectors_that_it_has(
    shape: tuple[int, int, int], precision: torch.dtype
) -> None:
    matrices = uneven(*shape, dtype=torch.float64 if precision == torch.float64 else torch.float32)
    found = orthogonal(matrices * 1e-4, precision)
    assert found.dtype == matrices.dtype
    left, _, right = torch.linalg.svd(matrices, full_matrices=False)
    inside = left.mT @ found @ right.mT
    values = torch.diagonal(inside, dim1=1, dim2=2)
    assert values.min() > 0.65
    assert values.max() < 1.2
    across = inside - torch.diag_embed(values)
    assert across.abs().max() < (0.1 if precision == torch.bfloat16 else 1e-4)


def test_no_gradient_is_no_way() -> None:
    assert torch.equal(orthogonal(torch.zeros(2, 4, 9)), torch.zeros(2, 4, 9))


@pytest.mark.parametrize("nesterov", [True, False])
def test_kernels_move_as_by_torchs_muon_of_their_matrices(nesterov: bool) -> None:
    torch.manual_seed(0)
    kernels = [nn.Parameter(torch.randn(shape)) for shape in ((16, 8, 3, 3), (16, 8, 3, 3), (6, 32, 1, 1))]
    matrices = [nn.Parameter(kernel.detach().flatten(1).clone()) for kernel in kernels]
    groups = [{"params": kernels, "lr": 0.02, "weight_decay": 0.1, "name": "all"}]
    ours = Muon(groups, 0.02, momentum=0.9, nesterov=nesterov)
    theirs = torch.optim.Muon(
        matrices, lr=0.02, weight_decay=0.1, momentum=0.9, nesterov=nesterov, adjust_lr_fn="match_rms_adamw"
    )
    start = [matrix.detach().clone() for matrix in matrices]
    for _ in range(4):
        for kernel, matrix in zip(kernels, matrices, strict=True):
            # Theirs is of bfloat16: of like singular values its result is a good one.
            matrix.grad = uneven(1, *matrix.shape)[0] + 0.1 * torch.randn(matrix.shape)
            kernel.grad = matrix.grad.reshape(kernel.shape)
        ours.step()
        theirs.step()
    for kernel, matrix, before in zip(kernels, matrices, start, strict=True):
        moved, wanted = kernel.detach().flatten(1) - before, matrix.detach() - before
        assert (moved - wanted).norm() < 0.03 * wanted.norm()


def test_an_update_is_as_large_as_adamws_usually_is() -> None:
    kernel = nn.Parameter(torch.zeros(64, 32, 3, 3))
    optimizer = Muon([{"params": [kernel], "lr": 1e-3, "weight_decay": 0.0, "name": "all"}], 1e-3)
    kernel.grad = torch.randn(64, 32, 3, 3, generator=torch.Generator().manual_seed(0))
    optimizer.step()
    assert kernel.detach().square().mean().sqrt() == pytest.approx(0.2 * 1e-3, rel=0.2)


def test_pixels_depthwise_kernels_norms_and_linear_layers_are_adamws() -> None:
    network = nn.Sequential(
        *(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 12, 3)),
        *(nn.Flatten(), nn.Linear(12, 7)),
    )
    assert [name for name, p in network.named_parameters() if is_kernel(p)] == ["3.weight"]
    other = copy.deepcopy(network)
    groups = [{"params": list(network.parameters()), "lr": 0.01, "weight_decay": 0.1, "name": "all"}]
    ours = Muon(groups, 0.01, betas=(0.8, 0.9))
    adamw = torch.optim.AdamW(other.parameters(), lr=0.01, weight_decay=0.1, betas=(0.8, 0.9))
    torch.manual_seed(0)
    for _ in range(3):
        for mine, its in zip(network.parameters(), other.parameters(), strict=True):
            mine.grad = torch.randn(mine.shape)
            its.grad = mine.grad.clone()
        ours.step()
        adamw.step()
    for (name, mine), its in zip(network.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(mine, its) == (name != "3.weight"), name


def test_a_frozen_kernel_stays() -> None:
    kernels = [nn.Parameter(torch.ones(8, 8, 3, 3)) for _ in range(2)]
    optimizer = Muon([{"params": kernels, "lr": 0.1, "weight_decay": 0.5, "name": "all"}], 0.1)
    kernels[0].grad = torch.eye(8).reshape(8, 8, 1, 1).expand(8, 8, 3, 3).contiguous()
    optimizer.step()
    assert not torch.equal(kernels[0], torch.ones_like(kernels[0]))
    assert torch.equal(kernels[1], torch.ones_like(kernels[1]))


def test_a_recipes_muon_has_its_momentum_its_rates_by_layer_and_its_decay() -> None:
    fields = {"optimizer": "muon", "momentum": 0.8, "nesterov": False, "layer_lr": {"layer4": 0.5}, "lr": 0.01}
    recipe = recipes.load("fast", {**fields, "weight_decay": 0.2, "betas": (0.7, 0.9)})
    optimizer = make_optimizer(recipe, models.build(recipe), fused=False, precision="bfloat16")
    assert isinstance(optimizer, Muon)
    assert (optimizer.momentum, optimizer.nesterov, optimizer.precision) == (0.8, False, torch.bfloat16)
    told = {g["name"]: (len(g["params"]), g["lr"], g["weight_decay"], g["betas"]) for g in optimizer.param_groups}
    assert told["layer4, kernels"] == (5, 0.005, 0.2, (0.7, 0.9))
    # Stem and classifier decay too, by AdamW.
    assert told["rest"] == (2, 0.01, 0.2, (0.7, 0.9))
    assert told["rest, kernels"][0] == 14
    assert told["rest, no decay"][2] == 0


def test_the_recipes_precision_is_that_of_the_large_products() -> None:
    recipe = recipes.load("fast", {"optimizer": "muon"})
    model = models.build(recipe)
    found = {
        precision: make_optimizer(recipe, model, fused=False, precision=precision).precision  # type: ignore[attr-defined]
        for precision in ("float32", "bfloat16", "float16", "float64")
    }
    # float16's range is too small for squares.
    assert found == {
        "float32": torch.float32,
        "bfloat16": torch.bfloat16,
        "float16": torch.float32,
        "float64": torch.float64,
    }


def test_the_rate_of_a_group_is_followed_and_may_be_a_tensor() -> None:
    start = torch.randn(2, 8, 8, 3, 3, generator=torch.Generator().manual_seed(0))
    moved = {}
    for lr in (0.1, 0.05, torch.tensor(0.05)):
        kernel = nn.Parameter(start[0].clone())
        optimizer = Muon([{"params": [kernel], "lr": 0.1, "weight_decay": 0.3, "name": "all"}], 0.1)
        kernel.grad = start[1].clone()
        optimizer.param_groups[0]["lr"] = lr
        optimizer.step()
        moved[lr] = kernel.detach() - start[0]
    torch.testing.assert_close(*[2 * way if lr == 0.05 else way for lr, way in list(moved.items())[:2]])
    torch.testing.assert_close(*list(moved.values())[1:])


def test_gradients_scaled_for_float16_do_not_reach_the_momentum() -> None:
    gradients = torch.randn(3, 8, 8, 3, 3, generator=torch.Generator().manual_seed(0))
    found = []
    for scaled in (False, True):
        kernel = nn.Parameter(torch.zeros(8, 8, 3, 3))
        groups = [{"params": [kernel], "lr": 0.1, "weight_decay": 0.0, "name": "all"}]
        optimizer = Muon(groups, 0.1, fused=True)
        scaler = torch.amp.GradScaler("cpu", enabled=scaled)
        for gradient in gradients:
            torch.autograd.backward(scaler.scale((kernel * gradient).sum()))
            scaler.step(optimizer)
            scaler.update(64.0 if scaled else None)
            optimizer.zero_grad()
        found.append(kernel.detach())
    torch.testing.assert_close(*found)
