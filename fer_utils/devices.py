"""Where the arithmetic runs and how precise it is: chosen by itself, set by whoever wants to."""

from __future__ import annotations

import contextlib
import ctypes
import platform
from contextlib import AbstractContextManager
from typing import Final, Literal

import torch

Precision = Literal["float32", "bfloat16", "float16", "float64"]

DEVICES: Final = ("auto", "cpu", "cuda", "mps")
PRECISIONS: Final = ("auto", "float32", "bfloat16", "float16", "float64")


class DeviceError(ValueError):
    """The device or precision asked for is not there; the message says what is."""


def choose_device(name: str | None = "auto") -> torch.device:
    """Return CUDA, then MPS, then CPU for ``auto`` or None; or the device that ``name`` asks for (``cuda:1``, say).

    Raises:
        DeviceError: the name is unknown or the device is not there.
    """
    wanted = name or "auto"
    if wanted == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps") if torch.backends.mps.is_available() else torch.device("cpu")
    try:
        device = torch.device(wanted)
    except RuntimeError as error:
        raise DeviceError(f"device {wanted!r} is unknown; use one of {', '.join(DEVICES)}, or cuda:N") from error
    if device.type == "cuda" and not (torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count()):
        raise DeviceError(f"device {wanted!r} is not there: {torch.cuda.device_count()} CUDA devices; use auto or cpu")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise DeviceError("device 'mps' is not there; use auto or cpu")
    if device.type not in DEVICES:
        raise DeviceError(f"device {wanted!r} is not supported; use one of {', '.join(DEVICES)}, or cuda:N")
    return device


def choose_precision(name: str | None, device: torch.device) -> Precision:
    """Return the precision asked for, or for ``auto`` or None bfloat16 where the hardware has it, else float32.

    Raises:
        DeviceError: the name is unknown, or float16 is asked for on a CPU, whose kernels for it are missing or slow, or
            float64 on MPS, which has none.
    """
    wanted = name or "auto"
    if wanted == "auto":
        return "bfloat16" if _has_bfloat16(device) else "float32"
    if wanted == "float16" and device.type == "cpu":
        raise DeviceError("precision float16 needs a GPU; use auto, bfloat16 or float32 on a CPU")
    if wanted == "float32":
        return "float32"
    if wanted == "bfloat16":
        return "bfloat16"
    if wanted == "float16":
        return "float16"
    if wanted == "float64" and device.type == "mps":
        raise DeviceError("precision float64 is unknown to Apple's MPS; use auto or float32 there, or the CPU")
    if wanted == "float64":
        return "float64"
    raise DeviceError(f"precision {wanted!r} is unknown; use one of {', '.join(PRECISIONS)}")


def _has_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        # is_bf16_supported() also says yes where it is emulated, which is slower than float32.
        return torch.cuda.get_device_capability(device)[0] >= 8
    if device.type == "cpu":
        capabilities = torch.cpu.get_capabilities()
        return bool(capabilities.get("amx_bf16") or capabilities.get("avx512_bf16"))
    return False


def autocast(device: torch.device, precision: Precision) -> AbstractContextManager[None]:
    """Return a context in which networks compute in ``precision``.

    float32 and float64 are the precision of the network's own weights: the context changes nothing.
    """
    if precision in ("float32", "float64"):
        return contextlib.nullcontext()
    context: AbstractContextManager[None] = torch.autocast(device.type, getattr(torch, precision))
    return context


def keep_freed_memory() -> bool:
    """Have the C library keep up to 1 GiB of freed memory for the next allocation; return whether it was told.

    A training step on a CPU frees and allocates the same large blocks again and again. glibc hands them back to the
    system in between, which then clears every page anew: 26,000 page faults in a step of ResNet18 with 128 faces of
    48 px. Nothing is done where the C library is another. It holds for the whole process until it ends.
    """
    if platform.system() != "Linux" or platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    # The numbers of M_MMAP_THRESHOLD and M_TRIM_THRESHOLD in malloc.h; 32 MiB is the most that the first may be.
    return bool(mallopt(-3, 32 << 20)) and bool(mallopt(-1, 1 << 30))
