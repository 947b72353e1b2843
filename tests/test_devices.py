"""The device and precision that are chosen, and what is refused."""

from __future__ import annotations

import pytest
import torch

from fer_utils.devices import DeviceError, autocast, choose_device, choose_precision


@pytest.mark.parametrize("kinds", [("cuda", "mps"), ("mps",), ()], ids=str)
def test_auto_takes_the_best_of_what_is_there(kinds: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: "cuda" in kinds)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: "mps" in kinds)
    assert choose_device("auto").type == choose_device(None).type == (*kinds, "cpu")[0]


def test_the_second_of_one_gpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert [str(choose_device(name)) for name in ("cuda", "cuda:0")] == ["cuda", "cuda:0"]
    with pytest.raises(DeviceError, match="'cuda:1' is not there: 1 CUDA devices"):
        choose_device("cuda:1")


@pytest.mark.skipif(torch.backends.mps.is_available(), reason="it is there")
def test_mps_is_refused_where_it_is_not() -> None:
    with pytest.raises(DeviceError, match="mps"):
        choose_device("mps")


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
    assert choose_precision(None, torch.device("cpu")) == choose_precision("auto", torch.device("cpu"))
    assert choose_precision("auto", torch.device("mps")) == "float32"


@pytest.mark.parametrize(("capability", "told"), [((7, 5), "float32"), ((8, 0), "bfloat16"), ((9, 0), "bfloat16")])
def test_a_gpu_that_emulates_bfloat16_is_spared_it(
    capability: tuple[int, int], told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    assert choose_precision("auto", torch.device("cuda")) == told


@pytest.mark.parametrize(("name", "hint"), [("float16", "GPU"), ("fp32", "fp32"), ("double", "double")])
def test_precisions_that_cannot_be_had_are_refused(name: str, hint: str) -> None:
    with pytest.raises(DeviceError, match=hint):
        choose_precision(name, torch.device("cpu"))


def test_float64_is_refused_on_mps_which_has_none() -> None:
    assert choose_precision("float64", torch.device("cpu")) == "float64"
    with pytest.raises(DeviceError, match="float64 is unknown to Apple's MPS"):
        choose_precision("float64", torch.device("mps"))


@pytest.mark.filterwarnings("error")
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
