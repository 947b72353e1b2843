"""Convolutions of small maps as matrix products: bfloat16 on a CPU, each part of them where it pays.

Without AMX oneDNN, which torch calls, computes maps and their gradient at the processor's speed, and the kernels'
gradient of small maps at a quarter to a half of it: that one alone is computed here, as a matrix product for each tap
of the kernel, of what the tap saw by what became of it. With AMX matrix products are so much faster than oneDNN's
convolutions of small maps that maps and their gradient are products as well: positions that see the same taps go into
one. Steps with either are timed in benchmarks/RESULTS.md. On a 3 × 3 map only 49 of the 81 pairs of tap and position
lie inside; padding takes part in none of the products. They are torch's own, so that sums are kept in float32 and
rounded once, as in a stock convolution, and the same input gives the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import lru_cache
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional
from torch.nn.grad import conv2d_input

LARGEST_MAP: Final = 5
"""Side of the largest output map whose kernels' gradient is computed here, without AMX."""

LARGEST_MAP_AMX: Final = 4
"""Side of the largest output map that is computed here with AMX, all three parts of it."""

SMALLEST_KERNEL: Final = 128 * 256
"""Fewest channels in times channels out: with fewer, copying the neighbours costs more than is gained."""

FEWEST_MAPS: Final = 32
"""Smallest batch: in a smaller one, rearranging the maps costs more than is gained."""


@lru_cache(maxsize=1)
def has_amx() -> bool:
    """Return whether the processor multiplies tiles of bfloat16 (Intel AMX)."""
    can: Mapping[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()  # an older torch does not tell
    return bool(can.get("amx_tile") and can.get("amx_bf16"))


class SmallMapConv2d(nn.Conv2d):
    """A stock convolution, except for small maps in training under bfloat16 autocast on a CPU.

    Which way is taken depends on the input and the processor alone, so that one network may see several sizes.
    Parameters and names are those of ``nn.Conv2d``, and without AMX so is every output, to the byte.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Return maps (B, out, H', W') of maps (B, in, H, W), as ``nn.Conv2d`` does."""
        if not _pays(input, self.weight, self.stride[0]):
            return super().forward(input)
        output: Tensor = _Convolution.apply(input.to(torch.bfloat16), self.weight, self.stride[0])
        return output


def fast(model: nn.Module) -> nn.Module:
    """Make every convolution that it suits a ``SmallMapConv2d``, in place, and return the model.

    Modules and parameters stay the same objects under the same names: optimisers, hooks and state dicts see no
    difference. Suited are 3 × 3 kernels with padding 1 and stride 1 or 2, with many channels and without bias, groups
    or dilation.
    """
    for module in model.modules():
        if type(module) is nn.Conv2d and _suits(module):
            module.__class__ = SmallMapConv2d
    return model


def _suits(module: nn.Conv2d) -> bool:
    return (
        (module.kernel_size, module.padding) == ((3, 3), (1, 1))
        and module.stride in ((1, 1), (2, 2))
        and (module.groups, module.dilation, module.padding_mode) == (1, (1, 1), "zeros")
        and module.bias is None
        and module.in_channels * module.out_channels >= SMALLEST_KERNEL
    )


def _pays(input: Tensor, weight: Tensor, stride: int) -> bool:
    # A compiler or an export is to see the stock operation.
    if torch.compiler.is_compiling() or torch.jit.is_tracing():  # type: ignore[attr-defined, no-untyped-call]
        return False
    return (
        torch.is_grad_enabled()
        and weight.requires_grad
        and torch.is_autocast_enabled("cpu")
        and torch.get_autocast_dtype("cpu") == torch.bfloat16
        and input.device.type == weight.device.type == "cpu"
        and input.dtype in (torch.bfloat16, torch.float32)
        and weight.dtype == torch.float32
        and input.ndim == 4
        and len(input) >= FEWEST_MAPS
        and min(input.shape[2:]) > 0
        and (max(input.shape[2:]) - 1) // stride < (LARGEST_MAP_AMX if has_amx() else LARGEST_MAP)
    )


class _Convolution(torch.autograd.Function):
    """Convolution of bfloat16 maps with float32 kernels, which are rounded to bfloat16 as autocast does."""

    @staticmethod
    def forward(ctx: Any, maps: Tensor, weight: Tensor, stride: int) -> Tensor:
        kernels = weight.to(torch.bfloat16)
        ctx.save_for_backward(maps, kernels)
        ctx.stride = stride
        if not has_amx():
            return functional.conv2d(maps, kernels, None, stride, kernels.shape[2] // 2)
        with _profiled("forward", maps, kernels):
            return convolve(maps.permute(0, 2, 3, 1), kernels, stride).permute(0, 3, 1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        maps, kernels = ctx.saved_tensors
        of_maps = of_weight = None
        inner, outer = maps.permute(0, 2, 3, 1), gradient.permute(0, 2, 3, 1)
        if ctx.needs_input_grad[0] and has_amx():
            with _profiled("gradient of maps", maps, kernels):
                of_maps = map_gradient((maps.shape[2], maps.shape[3]), kernels, outer, ctx.stride).permute(0, 3, 1, 2)
        elif ctx.needs_input_grad[0]:
            of_maps = conv2d_input(maps.shape, kernels, gradient, ctx.stride, kernels.shape[2] // 2)  # type: ignore[no-untyped-call]
        if ctx.needs_input_grad[1]:
            with _profiled("gradient of kernels", maps, kernels):
                of_weight = kernel_gradient(inner, outer, kernels.shape[2], ctx.stride)
        return of_maps, of_weight, None


def _profiled(part: str, maps: Tensor, kernels: Tensor) -> AbstractContextManager[object]:
    """Return what a profiler, which otherwise shows the copies and products alone, shows them as."""
    return torch.profiler.record_function(f"{part} {list(maps.shape)} {list(kernels.shape)}")


def convolve(maps: Tensor, kernels: Tensor, stride: int) -> Tensor:
    """Return a convolution's maps, bfloat16 (B, H', W', M).

    Args:
        maps: bfloat16 (B, H, W, N).
        kernels: bfloat16 (M, N, k, k), k odd; the padding is half of that, rounded down.
        stride: of both sides, at most k.
    """
    arranged = kernels.permute(0, 2, 3, 1).contiguous()  # (M, k, k, N), as neighbours lie
    size, last = kernels.shape[2], len(kernels)
    sides = [_runs(side, size, stride, gradient=False) for side in maps.shape[1:3]]
    shape = [sum(run.length for run in runs) for runs in sides]
    return _gather_and_multiply(
        maps, shape, sides, last, lambda row, column: arranged[:, row, column].reshape(last, -1).t()
    )


def map_gradient(sides: tuple[int, int], kernels: Tensor, gradient: Tensor, stride: int) -> Tensor:
    """Return the gradient of a convolution's input, bfloat16 (B, H, W, N).

    Args:
        sides: H and W.
        kernels: bfloat16 (M, N, k, k), k odd; the padding is half of that, rounded down.
        gradient: of what it made of them, bfloat16 (B, H', W', M).
        stride: of both sides, at most k.
    """
    size, last = kernels.shape[2], kernels.shape[1]
    turned = kernels.new_empty(size, size, len(kernels), last)
    for row in range(size):
        for column in range(size):
            # Kernels turned by half a turn, block by block: flip and permute would copy twice.
            turned[row, column] = kernels[:, :, size - 1 - row, size - 1 - column]
    runs = [_runs(side, size, stride, gradient=True) for side in sides]
    return _gather_and_multiply(gradient, sides, runs, last, lambda row, column: turned[row, column].reshape(-1, last))


class _Run(NamedTuple):
    """Results along one side of a map that see the same taps of the kernel.

    Attributes:
        results: where they are.
        taps: the taps that they see, in the order of what is under them; the gradient's kernel is mirrored.
        source: index of what lies under the first tap of the first result.
        step: how far what lies under the next result is.
        length: number of results.
        seen: number of taps.
    """

    results: slice
    taps: slice
    source: int
    step: int
    length: int
    seen: int


@lru_cache(maxsize=256)
def _runs(side: int, kernel: int, stride: int, gradient: bool) -> tuple[_Run, ...]:
    """Cut a side into runs: of the outputs over inputs, or, for the gradient, of the inputs over outputs."""
    padding, outputs = kernel // 2, (side - 1) // stride + 1
    found: dict[tuple[int, ...], list[tuple[int, int]]] = {}
    for result in range(side if gradient else outputs):
        under: list[tuple[int, int]] = []
        for tap in range(kernel):
            if gradient:
                # The mirrored tap lay over this input when this output was computed.
                source, rest = divmod(result + padding - (kernel - 1 - tap), stride)
                inside = rest == 0 and 0 <= source < outputs
            else:
                source = stride * result - padding + tap
                inside = 0 <= source < side
            if inside:
                under.append((tap, source))
        found.setdefault(tuple(tap for tap, _ in under), []).append((result, under[0][1]))
    runs = []
    for taps, members in found.items():
        apart, step = (b - a for a, b in zip(*members[:2], strict=True)) if len(members) > 1 else (1, 1)
        results = slice(members[0][0], members[-1][0] + 1, apart)
        between = taps[1] - taps[0] if len(taps) > 1 else 1
        runs.append(_Run(results, slice(taps[0], taps[-1] + 1, between), members[0][1], step, len(members), len(taps)))
    return tuple(runs)


def _gather_and_multiply(
    maps: Tensor,
    sides: Sequence[int],
    runs: Sequence[tuple[_Run, ...]],
    last: int,
    matrix: Callable[[slice, slice], Tensor],
) -> Tensor:
    """Return maps (B, *sides, last) of maps (B, H, W, N): each run of rows and columns by ``matrix`` of their taps."""
    maps = maps.contiguous()
    batch, _, width, channels = maps.shape
    result = maps.new_empty(batch, *sides, last)
    high, wide = width * channels, channels
    for column in runs[1]:
        for row in runs[0]:
            neighbours = maps.as_strided(
                (batch, row.length, column.length, row.seen, column.seen * channels),
                (maps.stride(0), row.step * high, column.step * wide, high, 1),
                maps.storage_offset() + row.source * high + column.source * wide,
            ).reshape(batch * row.length * column.length, -1)
            product = torch.mm(neighbours, matrix(row.taps, column.taps))
            result[:, row.results, column.results] = product.view(batch, row.length, column.length, last)
    return result


def kernel_gradient(maps: Tensor, gradient: Tensor, kernel: int, stride: int) -> Tensor:
    """Return the gradient of a convolution's kernels, float32 (M, N, k, k).

    Args:
        maps: what it was given, bfloat16 (B, H, W, N).
        gradient: of what it made of them, bfloat16 (B, H', W', M).
        kernel: side k of its kernels, odd; its padding is half of that, rounded down.
        stride: of both sides.
    """
    # One product for each tap: what it saw, by what became of it.
    inputs, outputs = maps.permute(1, 2, 0, 3), gradient.permute(1, 2, 0, 3)
    products = maps.new_zeros(kernel, kernel, outputs.shape[3], inputs.shape[3])
    for column in range(kernel):
        over, under = _seen(column, inputs.shape[1], kernel, stride)
        # Only the columns that this tap saw, side by side, so that its rows lie together as well.
        left, right = outputs[:, over].contiguous(), inputs[:, under].contiguous()
        for row in range(kernel):
            over, under = _seen(row, inputs.shape[0], kernel, stride)
            torch.mm(left[over].flatten(0, 2).t(), right[under].flatten(0, 2), out=products[row, column])
    result = torch.empty(products.shape[2], kernel, kernel, products.shape[3])
    return result.copy_(products.permute(2, 0, 1, 3)).permute(0, 3, 1, 2)


def _seen(tap: int, side: int, kernel: int, stride: int) -> tuple[slice, slice]:
    """Return the outputs, and the inputs that a tap saw for them, along one side of a map; it may be none."""
    offset = tap - kernel // 2
    outputs = [at for at in range((side - 1) // stride + 1) if 0 <= stride * at + offset < side]
    if not outputs:
        return slice(0), slice(0)
    first, last = outputs[0], outputs[-1]
    return slice(first, last + 1), slice(stride * first + offset, stride * last + offset + 1, stride)
