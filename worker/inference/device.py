"""The device and the precision at which a model is computed."""

from __future__ import annotations

import logging

import torch

from clip_queue.shared.startup import CannotWork
from clip_queue.worker.inference.int8_linear import steps

log = logging.getLogger(__name__)

TENSOR_CORES, BF16 = (7, 0), (8, 0)  # the CUDA capabilities from which a GPU has them


def pick_device(name: str) -> torch.device:
    """The device of a setting; ``auto``: CUDA if there is a GPU, else the CPU.

    Raises:
        CannotWork: there is no such device here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(1, device=device).cpu()
    except torch.cuda.OutOfMemoryError:  # the device is there, and may have room later
        raise
    except Exception as error:  # torch raises RuntimeError, AssertionError, NotImplementedError
        count = torch.cuda.device_count()
        there = f"{count} CUDA device{'' if count == 1 else 's'} here" if count else "no CUDA device or driver here"
        raise CannotWork(
            f"CLIP_QUEUE_DEVICE: {name[:40]!r} cannot be used ({there}): use auto, cpu, cuda, cuda:1 or mps"
        ) from error
    return device


def pick_precision(name: str, device: torch.device) -> str:
    """The precision of a setting: ``fp32``, ``bf16``, ``fp16`` or ``int8``.

    ``auto``: fp16 on a GPU with tensor cores, where it is as fast as bf16 and nearer to fp32; bf16 on a CPU that
    multiplies it natively, at twice the speed of fp32; else fp32.

    Raises:
        CannotWork: ``int8`` where nothing multiplies integers quickly.
    """
    if name == "int8" and not (device.type == "cpu" and steps()):
        here = "this one has not" if device.type == "cpu" else f"the device is {device}"
        raise CannotWork(f"CLIP_QUEUE_PRECISION: int8 needs a CPU that has AVX2, and {here}: use auto")
    if name == "bf16" and device.type == "cuda" and torch.cuda.get_device_capability(device) < BF16:
        log.warning("this GPU has no bf16 of its own and is slow at it: set CLIP_QUEUE_PRECISION=fp16, or auto")
    if name != "auto":
        return name
    if device.type == "cuda":
        return "fp16" if torch.cuda.get_device_capability(device) >= TENSOR_CORES else "fp32"
    native = device.type == "cpu" and bool(torch.cpu.get_capabilities().get("avx512_bf16"))
    return "bf16" if native else "fp32"
