"""The device and precision that are chosen, and what is refused."""

from __future__ import annotations

import pytest
import torch

from fer_utils.devices import DeviceError, autocast, choose_device, choose_precision


def test_auto_takes_cuda_then_mps_then_cpu() -> None:
    device = choose_device("auto")
    assert device == choose_device(None)
    if torch.cuda.is_available():
        assert device.type == "cuda"
    elif torch.backends.mps.is_available():
        assert device.type == "mps"
    else:
        assert device.type == "cpu"


@pytest.mark.parametrize("name", ["gpu", "cuda:99", "vulkan", "meta", ""])
def test_unknown_or_absent_devices_are_named(name: str) -> None:
    if not name:
        assert choose_device(name) == choose_device("auto")
        return
    with pytest.raises(DeviceError, match=name):
        choose_device(name)


def test_auto_precision_follows_the_hardware() -> None:
    capabilities = torch.cpu.get_capabilities()
    native = capabilities.get("amx_bf16") or capabilities.get("avx512_bf16")
    assert choose_precision("auto", torch.device("cpu")) == ("bfloat16" if native else "float32")


@pytest.mark.parametrize(("name", "hint"), [("float16", "GPU"), ("fp32", "fp32"), ("double", "double")])
def test_precisions_that_cannot_be_had_are_refused(name: str, hint: str) -> None:
    with pytest.raises(DeviceError, match=hint):
        choose_precision(name, torch.device("cpu"))


def test_autocast_computes_products_in_the_precision_asked_for() -> None:
    a = torch.randn(4, 4)
    cpu = torch.device("cpu")
    with autocast(cpu, "bfloat16"):
        assert (a @ a).dtype == torch.bfloat16
    with autocast(cpu, "float32"):
        assert (a @ a).dtype == torch.float32
    with autocast(cpu, "float64"):
        assert (a.double() @ a.double()).dtype == torch.float64


@pytest.mark.gpu
def test_float16_is_allowed_on_cuda() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device here")
    assert choose_precision("float16", torch.device("cuda")) == "float16"
