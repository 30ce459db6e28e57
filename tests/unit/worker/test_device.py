"""The device and the precision of a setting."""

from __future__ import annotations

import pytest
import torch

from clip_queue.shared.startup import CannotWork
from clip_queue.worker.inference.device import pick_device, pick_precision


def test_the_device_is_cuda_where_there_is_one() -> None:
    assert pick_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    with pytest.raises(CannotWork, match=r"^CLIP_QUEUE_DEVICE: 'cuda:99' cannot be used"):
        pick_device("cuda:99")


def test_the_precision_follows_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    native = bool(torch.cpu.get_capabilities().get("avx512_bf16"))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    assert pick_precision("auto", torch.device("cuda")) == "fp16"
    assert pick_precision("auto", torch.device("cpu")) == ("bf16" if native else "fp32")
    assert pick_precision("auto", torch.device("mps")) == "fp32"
    assert pick_precision("bf16", torch.device("cuda")) == "bf16"


@pytest.mark.parametrize(
    ("capability", "auto"), [((6, 1), "fp32"), ((7, 0), "fp16"), ((7, 5), "fp16"), ((12, 0), "fp16")]
)
def test_a_gpu_without_tensor_cores_computes_at_fp32_and_one_without_bf16_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, capability: tuple[int, int], auto: str
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert pick_precision("auto", torch.device("cuda")) == auto
    assert not caplog.records
    assert pick_precision("bf16", torch.device("cuda")) == "bf16"
    assert ("this GPU has no bf16 of its own" in caplog.text) == (capability < (8, 0))


def test_int8_is_refused_where_nothing_multiplies_integers(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CannotWork, match=r"^CLIP_QUEUE_PRECISION: int8 needs a CPU that .* device is cuda:1: use auto"):
        pick_precision("int8", torch.device("cuda:1"))
    monkeypatch.setattr("clip_queue.worker.inference.device.steps", lambda: 0)
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)
    with pytest.raises(CannotWork, match="this one has not: use auto"):
        pick_precision("int8", torch.device("cpu"))
    assert pick_precision("auto", torch.device("cpu")) == "fp32"
