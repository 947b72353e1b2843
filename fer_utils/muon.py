"""Muon: convolution kernels move by the orthogonal part of their momentum, everything else by AdamW.

Jordan et al. 2024 (kellerjordan.github.io/posts/muon), with the rates of Liu et al. 2025 (arXiv:2502.16982).
"""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import Tensor

COEFFICIENTS: Final = (3.4445, -4.7750, 2.0315)
"""Of the quintic iteration: five steps take singular values to 0.68 to 1.14, from 1/500 of the largest up."""

RMS: Final = 0.2
"""Of an update over its rate, as AdamW's usually is, so that rates and decay mean what they mean there."""


class Muon(torch.optim.AdamW):
    """An optimiser whose kernels turn as far in every direction, however strong the gradient is in each.

    A kernel (out, in, k, k) is taken as a matrix (out, in * k * k). Its momentum is made orthogonal, singular values of
    about 1, and scaled to a root mean square of 0.2 times the rate. First convolutions, which see pixels (at most 3
    channels), depthwise ones, linear layers, biases and norms are AdamW's. ``torch.optim.Muon`` takes matrices alone,
    one after the other; here kernels of one shape are computed together.

    Args:
        groups: parameter groups, each with ``params``, ``lr``, ``weight_decay`` and ``name``; each is split in two.
        lr: rate of groups without one.
        betas: AdamW's decays, for what is its.
        momentum: decay of the kernels' mean gradient.
        nesterov: look ahead by one gradient.
        precision: dtype of the products that make a matrix orthogonal; bfloat16 is enough where it is fast.
        fused: AdamW's.
    """

    def __init__(
        self,
        groups: list[dict[str, Any]],
        lr: float,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        momentum: float = 0.95,
        nesterov: bool = True,
        precision: torch.dtype = torch.float32,
        fused: bool = False,
    ) -> None:
        split = []
        for group in groups:
            for kernels in (True, False):
                params = [p for p in group["params"] if is_kernel(p) == kernels]
                if params:
                    name = f"{group['name']}, kernels" if kernels else group["name"]
                    split.append({**group, "params": params, "name": name, "kernels": kernels})
        super().__init__(split, lr=lr, betas=betas, fused=fused)
        # Fused, it would have gradients scaled for float16 left scaled, as the momentum must not be.
        self._step_supports_amp_scaling = False
        self.momentum, self.nesterov, self.precision = momentum, nesterov, precision

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Do one step; ``closure`` is AdamW's."""
        groups = self.param_groups
        self.param_groups = [group for group in groups if not group["kernels"]]
        try:
            loss = super().step(closure)
        finally:
            self.param_groups = groups
        alike: dict[tuple[int, ...], list[tuple[Tensor, dict[str, Any]]]] = {}
        for group in groups:
            for kernel in group["params"] if group["kernels"] else []:
                if kernel.grad is not None:
                    alike.setdefault(tuple(kernel.shape), []).append((kernel, group))
        for members in alike.values():
            ways = orthogonal(torch.stack([self._way(kernel) for kernel, _ in members]), self.precision)
            # Singular values of 1 give a root mean square of 1 over the root of the longer side.
            ways = ways * (RMS * max(ways.shape[1:]) ** 0.5)
            for (kernel, group), way in zip(members, ways, strict=True):
                # The rate may be a tensor, of a CUDA graph.
                kernel.mul_(1 - group["lr"] * group["weight_decay"])
                kernel.sub_(way.reshape(kernel.shape) * group["lr"])
        return loss

    def _way(self, kernel: Tensor) -> Tensor:
        """Take the gradient into the momentum, and return the matrix to be made orthogonal."""
        assert kernel.grad is not None
        held = self.state[kernel]
        if "mean" not in held:
            held["mean"] = torch.zeros_like(kernel)
            # AdamW asks for it in every state that it is given back.
            held["step"] = torch.zeros(())
        mean: Tensor = held["mean"]
        mean.lerp_(kernel.grad, 1 - self.momentum)
        return (torch.lerp(kernel.grad, mean, self.momentum) if self.nesterov else mean).flatten(1)


def is_kernel(parameter: Tensor) -> bool:
    """Return whether a parameter is a kernel between maps of features: neither of pixels nor depthwise."""
    return parameter.ndim == 4 and parameter.shape[1] > 3


def orthogonal(matrices: Tensor, precision: torch.dtype = torch.float32, steps: int = 5) -> Tensor:
    """Return matrices with the singular vectors of ``matrices`` and singular values of about 1 (0.68 to 1.14).

    A Newton-Schulz iteration, X := a X + b (X Xᵀ) X + c (X Xᵀ)² X. It rights its own rounding, so bfloat16 is
    enough. (The same polynomials of the first X Xᵀ alone are less work, and in bfloat16 they are not right.)

    Args:
        matrices: (n, rows, columns).
        precision: dtype of its products.
        steps: of the iteration.
    """
    if matrices.shape[1] > matrices.shape[2]:
        return orthogonal(matrices.mT, precision, steps).transpose(1, 2)
    a, b, c = COEFFICIENTS
    # Over the Frobenius norm no singular value is above 1; a matrix of zeros stays one.
    found: Tensor = (matrices / matrices.norm(dim=(1, 2), keepdim=True).clamp_min(1e-12)).to(precision)
    for _ in range(steps):
        gram = found @ found.mT
        found = torch.baddbmm(found, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), found, beta=a)
    return found.to(matrices.dtype)
