"""open_clip and torchvision; nowhere else does the worker import them.

Imported as they are, they bring torch's compiler (with sympy and torch.distributed) and timm: more than half of the
processor time that a worker's start takes, and 170 MB. torchvision asks the compiler whether it may compile a function
that detects boxes, and not to compile another; open_clip wants timm for the image towers that are timm's. Both are
imported when something uses them.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

COMPILER = "torch._dynamo"
UTILS = f"{COMPILER}.utils"
TIMM = "timm"

_deferred: dict[str, ModuleType] = {}


class _Deferred(ModuleType):
    """In the place of a module of the compiler, until more of it is asked for than stands here."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # of the import system, which looks at every module
            raise AttributeError(name)
        _give_back()
        return getattr(importlib.import_module(self.__name__), name)


def _is_compile_supported(device: str) -> bool:
    supported: bool = importlib.import_module(UTILS).is_compile_supported(device)
    return supported


def _disable(fn: Callable[..., Any] | None = None, *_how: bool, **_why: Any) -> Callable[..., Any]:
    """That a function is not to be compiled needs no saying where nothing that calls it is compiled.

    Without a function: the decorator that says so.
    """
    return _disable if fn is None else fn


def _give_back() -> None:
    """From now on, what is deferred is imported as usual."""
    for name, module in _deferred.items():
        if sys.modules.get(name) is module:
            del sys.modules[name]


@contextmanager
def _lean() -> Iterator[None]:
    """Within the context an import brings neither compiler nor timm, unless it cannot do without the compiler."""
    if COMPILER not in sys.modules:
        _deferred.update({name: _Deferred(name) for name in (COMPILER, UTILS)})
        vars(_deferred[COMPILER])["disable"] = _disable
        vars(_deferred[UTILS])["is_compile_supported"] = _is_compile_supported
        sys.modules.update(_deferred)
    without_timm = TIMM not in sys.modules
    if without_timm:
        sys.modules[TIMM] = None  # type: ignore[assignment]  # as where it is not installed
    try:
        yield
    finally:
        _give_back()
        if without_timm:
            del sys.modules[TIMM]


def _timm_tower(*args: Any, **options: Any) -> Any:
    """open_clip's ``TimmModel``, with timm."""
    model: Any = importlib.import_module("open_clip.model")
    model.TimmModel = importlib.reload(importlib.import_module("open_clip.timm_model")).TimmModel
    return model.TimmModel(*args, **options)


with _lean():
    import open_clip
    from open_clip.modified_resnet import Bottleneck, ModifiedResNet
    from open_clip.tokenizer import SimpleTokenizer, get_clean_fn
    from open_clip.transform import PreprocessCfg, image_transform_v2
    from open_clip.transformer import LayerNorm, QuickGELU, ResidualAttentionBlock, VisionTransformer, text_global_pool
    from torchvision.transforms import CenterCrop, Resize
    from torchvision.transforms.v2 import functional

if importlib.import_module("open_clip.timm_model").timm is None:
    vars(importlib.import_module("open_clip.model"))["TimmModel"] = _timm_tower

__all__ = [
    "Bottleneck",
    "CenterCrop",
    "LayerNorm",
    "ModifiedResNet",
    "PreprocessCfg",
    "QuickGELU",
    "ResidualAttentionBlock",
    "Resize",
    "SimpleTokenizer",
    "VisionTransformer",
    "functional",
    "get_clean_fn",
    "image_transform_v2",
    "open_clip",
    "text_global_pool",
]
