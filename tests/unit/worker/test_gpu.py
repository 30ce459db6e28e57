"""What a card says of itself, by a stand-in for NVIDIA's library: there is no card here."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from clip_queue.worker.inference.gpu import Gpu


class Library:
    """As pynvml, with one card."""

    class NVMLError(Exception):
        pass

    broken = False

    def nvmlInit(self) -> None: ...

    def nvmlDeviceGetHandleByUUID(self, uuid: bytes) -> str:
        if uuid != b"GPU-1234":
            raise self.NVMLError
        return "card"

    def nvmlDeviceGetMemoryInfo(self, handle: str) -> Any:
        if self.broken:
            raise self.NVMLError
        assert handle == "card"
        return SimpleNamespace(used=3 * 2**30, total=8 * 2**30)

    def nvmlDeviceGetUtilizationRates(self, handle: str) -> Any:
        return SimpleNamespace(gpu=42)


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Library:
    it = Library()
    monkeypatch.setitem(sys.modules, "pynvml", it)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="1234"))
    return it


def test_a_card_tells_its_memory_and_how_busy_it_is(library: Library) -> None:
    gpu = Gpu(torch.device("cuda", 0))
    assert gpu.usage() == {"memory_used": 3 * 2**30, "memory_total": 8 * 2**30, "busy": 0.42}
    library.broken = True
    assert gpu.usage() == {}
    library.broken = False
    assert gpu.usage()["busy"] == 0.42


def test_a_card_that_is_not_found_tells_nothing(library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="MIG"))
    assert Gpu(torch.device("cuda", 0)).usage() == {}


def test_without_the_library_nothing_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)  # an import of it fails
    assert Gpu(torch.device("cuda", 0)).usage() == {}


def test_a_cpu_is_not_asked(library: Library) -> None:
    assert Gpu(torch.device("cpu")).usage() == {}
