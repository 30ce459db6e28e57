"""open_clip and torchvision; nowhere else does the worker import them.

Imported as they are, they bring torch's compiler (with sympy and torch.distributed), timm and transformers: more than
half of the processor time that a worker's start takes, and 170 MB. torchvision asks the compiler whether it may compile
a function that detects boxes, and not to compile another; open_clip wants timm and transformers for the towers that are
theirs. They are imported when something uses them.
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
TOWERS = {"timm": ("timm_model", "TimmModel"), "transformers": ("hf_model", "HFTextEncoder")}
"""Libraries that towers of open_clip need, the module that imports each, and the tower."""

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
    """Within the context an import brings no towers' libraries, and no compiler unless it cannot do without."""
    if COMPILER not in sys.modules:
        _deferred.update({name: _Deferred(name) for name in (COMPILER, UTILS)})
        vars(_deferred[COMPILER])["disable"] = _disable
        vars(_deferred[UTILS])["is_compile_supported"] = _is_compile_supported
        sys.modules.update(_deferred)
    hidden = [name for name in TOWERS if name not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]  # None: as where it is not installed
    try:
        yield
    finally:
        _give_back()
        for name in hidden:
            del sys.modules[name]


def _tower(module: str, name: str) -> Callable[..., Any]:
    """What makes a tower of open_clip's, with the library that it needs."""

    def make(*args: Any, **options: Any) -> Any:
        model = vars(importlib.import_module("open_clip.model"))
        model[name] = vars(importlib.reload(importlib.import_module(f"open_clip.{module}")))[name]
        return model[name](*args, **options)

    return make


with _lean():
    import open_clip
    from open_clip.modified_resnet import Bottleneck, ModifiedResNet
    from open_clip.tokenizer import SimpleTokenizer, get_clean_fn
    from open_clip.transform import PreprocessCfg, image_transform_v2
    from open_clip.transformer import LayerNorm, QuickGELU, ResidualAttentionBlock, VisionTransformer, text_global_pool
    from torchvision.transforms import CenterCrop, Resize
    from torchvision.transforms.v2 import functional

for library, (module, name) in TOWERS.items():
    if vars(importlib.import_module(f"open_clip.{module}"))[library] is None:
        vars(importlib.import_module("open_clip.model"))[name] = _tower(module, name)

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
