"""Convolutions of small maps as matrix products that leave the padding out: bfloat16 on a CPU.

On a 3 × 3 map with padding 1 only 49 of the 81 pairs of kernel tap and position lie inside, and oneDNN, which torch
calls, is far from the processor's speed there. Here positions that see the same taps go into one matrix product of
exactly these. It is torch's own matrix product, so that sums are kept in float32 and rounded once, as in a stock
convolution, and the same input gives the same bytes.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

LARGEST_MAP: Final = 4
"""Side of the largest output map that is computed here: on larger ones there is too little padding to leave out."""

SMALLEST_KERNEL: Final = 128 * 256
"""Fewest channels in times channels out: with fewer, copying the neighbours costs more than is gained."""

FEWEST_MAPS: Final = 32
"""Smallest batch: in a smaller one, rearranging the kernels costs more than is gained."""


class SmallMapConv2d(nn.Conv2d):
    """A stock convolution, except for small maps under bfloat16 autocast on a CPU; same parameters and names.

    Which way is taken depends on the input alone, so that one network may see several sizes.
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
    difference. Suited are 3 × 3 kernels with padding 1 and 1 × 1 kernels with stride 2, with many channels and without
    bias, groups or dilation.
    """
    for module in model.modules():
        if type(module) is nn.Conv2d and _suits(module):
            module.__class__ = SmallMapConv2d
    return model


def _suits(module: nn.Conv2d) -> bool:
    shape = (module.kernel_size, module.padding, module.stride)
    shapes = [((3, 3), (1, 1), (1, 1)), ((3, 3), (1, 1), (2, 2)), ((1, 1), (0, 0), (2, 2))]
    return (
        shape in shapes
        and (module.groups, module.dilation, module.padding_mode) == (1, (1, 1), "zeros")
        and module.bias is None
        and module.in_channels * module.out_channels >= SMALLEST_KERNEL
    )


def _pays(input: Tensor, weight: Tensor, stride: int) -> bool:
    # A compiler or an export is to see the stock operation.
    if torch.compiler.is_compiling() or torch.jit.is_tracing():  # type: ignore[attr-defined, no-untyped-call]
        return False
    return (
        torch.is_autocast_enabled("cpu")
        and torch.get_autocast_dtype("cpu") == torch.bfloat16
        and input.device.type == weight.device.type == "cpu"
        and input.dtype in (torch.bfloat16, torch.float32)
        and weight.dtype == torch.float32
        and input.ndim == 4
        and len(input) >= FEWEST_MAPS
        and min(input.shape[2:]) > 0
        and (max(input.shape[2:]) - 1) // stride < LARGEST_MAP
    )


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
        if under:
            found.setdefault(tuple(tap for tap, _ in under), []).append((result, under[0][1]))
    runs = []
    for taps, members in found.items():
        apart, step = (b - a for a, b in zip(*members[:2], strict=True)) if len(members) > 1 else (1, 1)
        results = slice(members[0][0], members[-1][0] + 1, apart)
        between = taps[1] - taps[0] if len(taps) > 1 else 1
        runs.append(_Run(results, slice(taps[0], taps[-1] + 1, between), members[0][1], step, len(members), len(taps)))
    return tuple(runs)


def _gather_and_multiply(maps: Tensor, kernels: Tensor, sides: tuple[int, int], stride: int, gradient: bool) -> Tensor:
    """Return maps (B, H', W', M) of contiguous maps (B, H, W, N) and contiguous kernels.

    ``kernels`` are (M, k, k, N), or mirrored (k, k, N, M) where ``gradient``; ``sides`` those of the convolution's
    input.
    """
    batch, _, width, channels = maps.shape
    kernel = kernels.shape[1]
    last = kernels.shape[-1 if gradient else 0]
    size = sides if gradient else tuple((side - 1) // stride + 1 for side in sides)
    # An input that no output reads, as between the points of a strided 1 × 1 kernel, has no gradient.
    make = torch.zeros if kernel < stride else torch.empty
    result = make((batch, *size, last), dtype=maps.dtype)
    high, wide = width * channels, channels
    for column in _runs(sides[1], kernel, stride, gradient):
        for row in _runs(sides[0], kernel, stride, gradient):
            neighbours = maps.as_strided(
                (batch, row.length, column.length, row.seen, column.seen * channels),
                (maps.stride(0), row.step * high, column.step * wide, high, 1),
                row.source * high + column.source * wide,
            ).reshape(batch * row.length * column.length, -1)
            if gradient:
                matrix = kernels[row.taps, column.taps].reshape(-1, last)
            else:
                matrix = kernels[:, row.taps, column.taps].reshape(last, -1).t()
            product = torch.mm(neighbours, matrix)
            result[:, row.results, column.results] = product.view(batch, row.length, column.length, last)
    return result


def _kernel_gradient(maps: Tensor, gradient: Tensor, kernel: int, stride: int) -> Tensor:
    """Return the kernels' gradient, float32 (M, N, k, k), of maps (B, H, W, N) and their gradient (B, H', W', M)."""
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


class _Convolution(torch.autograd.Function):
    """Convolution of bfloat16 maps with float32 kernels, which are rounded to bfloat16 as autocast does."""

    @staticmethod
    def forward(ctx: Any, maps: Tensor, weight: Tensor, stride: int) -> Tensor:
        with torch.profiler.record_function(_told("convolution", maps, weight)):
            kernels = weight.to(torch.bfloat16).permute(0, 2, 3, 1).contiguous()
            inner = maps.permute(0, 2, 3, 1).contiguous()
            ctx.save_for_backward(inner, kernels)
            ctx.stride = stride
            sides = (inner.shape[1], inner.shape[2])
            return _gather_and_multiply(inner, kernels, sides, stride, gradient=False).permute(0, 3, 1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        maps, kernels = ctx.saved_tensors
        with torch.profiler.record_function(
            _told("convolution_backward", maps.permute(0, 3, 1, 2), kernels.permute(0, 3, 1, 2))
        ):
            outer = gradient.permute(0, 2, 3, 1).contiguous()
            of_maps = of_weight = None
            if ctx.needs_input_grad[0]:
                sides = (maps.shape[1], maps.shape[2])
                of_maps = _gather_and_multiply(outer, _mirrored(kernels), sides, ctx.stride, gradient=True)
                of_maps = of_maps.permute(0, 3, 1, 2)
            if ctx.needs_input_grad[1]:
                of_weight = _kernel_gradient(maps, outer, kernels.shape[1], ctx.stride)
        return of_maps, of_weight, None


def _mirrored(kernels: Tensor) -> Tensor:
    """Return kernels (M, k, k, N) turned by half a turn, (k, k, M, N)."""
    size = kernels.shape[1]
    turned = kernels.new_empty(size, size, kernels.shape[0], kernels.shape[3])
    for row in range(size):
        for column in range(size):
            # Block by block: flip and permute would copy twice.
            turned[row, column] = kernels[:, size - 1 - row, size - 1 - column]
    return turned


def _told(what: str, maps: Tensor, weight: Tensor) -> str:
    """Name for a profiler, which otherwise shows the copies and products alone."""
    return f"{what} {list(maps.shape)} {list(weight.shape)}"
