"""How busy the GPU is and how full its memory, by NVIDIA's own library: nothing here calls CUDA, which may hang.

The library (extra ``gpu``) may be missing, and a card may not tell: then nothing is known.
"""

from __future__ import annotations

import logging
from typing import Any

import torch

log = logging.getLogger(__name__)


class Gpu:
    """The GPU of a device of this process; of another device nothing is known."""

    def __init__(self, device: torch.device) -> None:
        self._library: Any = None
        if device.type != "cuda":
            return
        try:
            import pynvml

            pynvml.nvmlInit()
            # The number of a device is this process's own (CUDA_VISIBLE_DEVICES); the id is the card's.
            uuid = torch.cuda.get_device_properties(device).uuid
            self._handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}".encode())
            self._library = pynvml
        except ImportError:
            log.info("how busy the GPU is will not be told: pip install 'clip-queue[gpu]'")
        except Exception as error:  # a driver that does not answer, a part of a card
            log.warning("how busy the GPU is will not be told: %s", type(error).__name__)

    def usage(self) -> dict[str, float]:
        """``memory_used`` and ``memory_total``, bytes, and ``busy``, the share of the last second or so; of the whole
        card, whoever uses it. Empty if nothing is known.
        """
        if self._library is None:
            return {}
        try:
            memory = self._library.nvmlDeviceGetMemoryInfo(self._handle)
            rates = self._library.nvmlDeviceGetUtilizationRates(self._handle)
        except self._library.NVMLError:
            return {}
        return {"memory_used": memory.used, "memory_total": memory.total, "busy": rates.gpu / 100}
