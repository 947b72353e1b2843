"""Convolutions of small maps whose kernels' gradient is a matrix product for each tap: bfloat16 on a CPU.

oneDNN, which torch calls, computes maps and their gradient at the processor's speed, and the kernels' gradient of small
maps at a quarter to a half of it. Here that one is a matrix product for each tap of the kernel, of what the tap saw by
what became of it, without the padding. It is torch's own matrix product, so that sums are kept in float32 and rounded
once, as in a stock convolution, and the same input gives the same bytes.
"""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional
from torch.nn.grad import conv2d_input

LARGEST_MAP: Final = 5
"""Side of the largest output map whose kernels' gradient is computed here."""

SMALLEST_KERNEL: Final = 128 * 256
"""Fewest channels in times channels out: with fewer, copying the neighbours costs more than is gained."""

FEWEST_MAPS: Final = 32
"""Smallest batch: in a smaller one, rearranging the maps costs more than is gained."""


class SmallMapConv2d(nn.Conv2d):
    """A stock convolution, except for the gradient of small maps' kernels under bfloat16 autocast on a CPU.

    Which way is taken depends on the input alone, so that one network may see several sizes. Parameters and names are
    those of ``nn.Conv2d``, and so is every output.
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
        and (max(input.shape[2:]) - 1) // stride < LARGEST_MAP
    )


class _Convolution(torch.autograd.Function):
    """Convolution of bfloat16 maps with float32 kernels, which are rounded to bfloat16 as autocast does."""

    @staticmethod
    def forward(ctx: Any, maps: Tensor, weight: Tensor, stride: int) -> Tensor:
        kernels = weight.to(torch.bfloat16)
        ctx.save_for_backward(maps, kernels)
        ctx.stride = stride
        return functional.conv2d(maps, kernels, None, stride, kernels.shape[2] // 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        maps, kernels = ctx.saved_tensors
        of_maps = of_weight = None
        if ctx.needs_input_grad[0]:
            of_maps = conv2d_input(maps.shape, kernels, gradient, ctx.stride, kernels.shape[2] // 2)  # type: ignore[no-untyped-call]
        if ctx.needs_input_grad[1]:
            # What a profiler, which otherwise shows the copies and products alone, shows them as.
            with torch.profiler.record_function(f"kernels' gradient {list(maps.shape)} {list(kernels.shape)}"):
                inner, outer = maps.permute(0, 2, 3, 1), gradient.permute(0, 2, 3, 1)
                of_weight = kernel_gradient(inner, outer, kernels.shape[2], ctx.stride)
        return of_maps, of_weight, None


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
