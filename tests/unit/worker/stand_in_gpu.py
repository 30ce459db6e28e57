"""A stand-in for a GPU: torch's CUDA as the worker uses it, late as a card is, on a machine that has none.

A tensor "on the device" is a wrapper that claims to be. What is done with it is put on the queue of a stream, which one
thread works off with ordinary tensors, in order, as late as the test wants. So the worker's own code runs, and its
mistakes show as they would on a card: a result that is read before its event, or a host buffer that is filled anew
before its copy, holds the wrong numbers.
"""

from __future__ import annotations

import contextlib
import functools
import queue
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten

from clip_queue.shared.models import parse_model
from clip_queue.shared.settings import Settings
from clip_queue.worker.inference import clip_model, engine
from clip_queue.worker.inference.clip_model import ClipModel

WAIT = 20.0  # seconds; only a bug lets them pass
BROKEN = "CUDA error: an illegal memory access was encountered"


class AcceleratorError(RuntimeError):
    """As torch raises it; the worker knows it by name, since older torch has none."""


# Operations whose result the host needs at once.
_READS = (torch.ops.aten.is_nonzero.default, torch.ops.aten._local_scalar_dense.default, torch.ops.aten.item.default)


class OnDevice(torch.Tensor):
    """A tensor on the stand-in. ``shape_of`` is on torch's device,
    ``cell`` has the numbers once they are there."""

    __torch_function__ = torch._C._disabled_torch_function_impl
    shape_of: torch.Tensor
    cell: list[torch.Tensor]
    gpu: StandInGpu

    @staticmethod
    @torch.inference_mode(False)  # a view of a parameter may be no inference tensor
    def __new__(cls, shape_of: torch.Tensor, cell: list[torch.Tensor], gpu: StandInGpu) -> OnDevice:
        made: OnDevice = torch.Tensor._make_wrapper_subclass(
            cls,
            shape_of.shape,
            strides=shape_of.stride(),
            storage_offset=shape_of.storage_offset(),
            dtype=shape_of.dtype,
            device="meta",  # to torch's own code, which would else ask CUDA about the device
        )
        made.shape_of, made.cell, made.gpu = shape_of, cell, gpu
        gpu.allocated(made)
        return made

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return self.gpu.device

    @property
    def is_cuda(self) -> bool:  # type: ignore[override]
        return True

    def __repr__(self) -> str:  # type: ignore[override]
        return f"OnDevice({tuple(self.shape)}, {self.dtype})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        gpu = next(leaf.gpu for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, OnDevice))
        return gpu.dispatch(func, args, kwargs)


class _Mode(TorchDispatchMode):
    """Sends what this thread does to the stand-in, also what begins with no tensor on it."""

    def __init__(self, gpu: StandInGpu) -> None:
        super().__init__()
        self._gpu = gpu

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self._gpu.dispatch(func, args, kwargs or {})


class Stream:
    """Work in order, in a thread. :meth:`pause` stops it before the next copy to the device, :meth:`resume` lets it go
    on, for a number of them or for good."""

    def __init__(self) -> None:
        self._work: queue.Queue[Callable[[], None] | None] = queue.Queue()
        self._gate = threading.Condition()
        self._passes: float = float("inf")
        self.error: Exception | None = None
        self.thread = threading.Thread(target=self._run, name="stand-in stream", daemon=True)
        self.thread.start()

    def put(self, work: Callable[[], None]) -> None:
        self._work.put(work)

    def pause(self) -> None:
        with self._gate:
            self._passes = 0

    def resume(self, passes: float = float("inf")) -> None:
        with self._gate:
            self._passes += passes
            self._gate.notify_all()

    def begin_pass(self) -> None:
        with self._gate:
            self._gate.wait_for(lambda: self._passes > 0)
            self._passes -= 1

    def drain(self) -> None:
        """Wait for all that is queued. Raises what CUDA would."""
        event = Event()
        event.record(self)
        event.synchronize()

    def end(self) -> None:
        self.resume()
        self._work.put(None)
        self.thread.join(WAIT)
        assert not self.thread.is_alive()

    def _run(self) -> None:
        while work := self._work.get():
            if self.error is None:
                try:
                    work()
                except Exception as error:
                    self.error = error


class Event:
    """As ``torch.cuda.Event``. Without a stream it is recorded on the current device's, which is the first one's."""

    current: Stream

    def __init__(self, *, blocking: bool = False, **_: Any) -> None:
        self.blocking = blocking

    def record(self, stream: Stream | None = None) -> None:
        self._stream = stream or Event.current
        self._done = threading.Event()
        self._stream.put(self._done.set)

    def synchronize(self) -> None:
        until = time.monotonic() + WAIT
        while not self._done.wait(0.002):
            if self._stream.error:
                raise AcceleratorError(BROKEN) from self._stream.error
            assert time.monotonic() < until, "the stand-in's stream was left paused"


class StandInGpu:
    """The stand-in as device number 1; number 0, which is the current one, has nothing to do.

    :attr:`memory` is its size in bytes, :attr:`used` what tensors hold, :attr:`peak` the most of it.
    :attr:`waits` tells what made the host wait for
    the device without need. :attr:`copies` counts the copies to the device that were launched.
    """

    device = torch.device("cuda", 1)

    def __init__(self) -> None:
        self.stream, self.idle = Stream(), Stream()
        self.memory: float = float("inf")
        self.peak = 0
        self.capability = (9, 0)
        self.waits: list[str] = []
        self.copies = 0
        self.poison: Callable[[torch.Tensor], bool] = lambda copied: False  # what breaks the device when it gets there
        self._held: dict[int, list[int]] = {}  # of a storage: tensors, bytes
        self._lock = threading.RLock()
        self._pinned: list[weakref.ref[torch.Tensor]] = []

    @property
    def used(self) -> int:
        with self._lock:
            return sum(size for _, size in self._held.values())

    def repair(self) -> None:
        """A new stream in the place of a broken one."""
        self.stream.end()
        self.stream = Stream()

    def model(self, name: str = "emoji-mini", **settings: Any) -> ClipModel:
        """A model on the stand-in, for any thread."""
        with _Mode(self):
            model = ClipModel(parse_model(name), Settings(device="cuda:1", **settings))
        for method in ("stack", "padded", "embed_images", "embed_stack", "embed_texts"):
            setattr(model, method, self.within(getattr(model, method)))
        return model

    def within(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, with what it does sent to the stand-in."""

        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            with contextlib.nullcontext() if _in_mode() else _Mode(self):
                return function(*args, **kwargs)

        return call

    def allocated(self, tensor: OnDevice) -> None:
        """Count a tensor's memory. Raises ``OutOfMemoryError`` if there is too little."""
        storage = tensor.shape_of.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        with self._lock:
            if key not in self._held and self.used + size > self.memory:
                raise torch.cuda.OutOfMemoryError(f"CUDA out of memory. Tried to allocate {size} bytes.")
            self._held.setdefault(key, [0, size])[0] += 1
            self.peak = max(self.peak, self.used)
        weakref.finalize(tensor, self._freed, key)

    def _freed(self, key: int) -> None:
        with self._lock:
            held = self._held[key]
            held[0] -= 1
            if not held[0]:
                del self._held[key]

    def dispatch(self, func: Any, args: Any, kwargs: Any) -> Any:
        leaves = tree_leaves((args, kwargs))
        ours = [leaf for leaf in leaves if isinstance(leaf, OnDevice)]
        if kwargs.get("pin_memory"):
            host = func(*args, **{**kwargs, "pin_memory": False})
            self._pinned = [ref for ref in self._pinned if ref() is not None] + [weakref.ref(host)]
            return host
        to_device = any(isinstance(leaf, torch.device) and leaf.type == "cuda" for leaf in leaves)
        to_host = any(isinstance(leaf, torch.device) and leaf.type == "cpu" for leaf in leaves)
        if not ours and not to_device:
            return func(*args, **kwargs)
        if self.stream.error:
            raise AcceleratorError(BROKEN)
        if func is torch.ops.aten._fused_sdp_choice.default:
            return 0  # plain operations, which this machine has too
        if ours and (to_host or func in _READS):
            self.stream.drain()
            self.waits.append(f"{func}")
            return func(*tree_map(_real, args), **tree_map(_real, kwargs))
        if func is torch.ops.aten.copy_.default and not isinstance(args[0], OnDevice):
            return self._to_host(args[0], args[1], *args[2:], **kwargs)
        copies = not ours and any(isinstance(leaf, torch.Tensor) for leaf in leaves)
        if copies:
            self._leaving(leaves, kwargs.get("non_blocking") or any(leaf is True for leaf in leaves))
        return self._later(func, args, kwargs, copies=copies)

    def _leaving(self, leaves: list[Any], non_blocking: bool) -> None:
        """A copy to the device."""
        self.copies += 1
        for leaf in leaves:
            if isinstance(leaf, torch.Tensor) and leaf.dim() and not (non_blocking and self._is_pinned(leaf)):
                self.waits.append(f"a copy from memory that is not pinned, {tuple(leaf.shape)}")
                self.stream.drain()

    def _to_host(self, host: torch.Tensor, source: OnDevice, non_blocking: bool = False) -> torch.Tensor:
        self.stream.put(lambda: _plainly(host.copy_, source.cell[0]))
        if not (non_blocking and self._is_pinned(host)):
            self.waits.append(f"a copy to memory that is not pinned, {tuple(host.shape)}")
            self.stream.drain()
        return host

    def _is_pinned(self, tensor: torch.Tensor) -> bool:
        storage = tensor.untyped_storage()._cdata
        return any((host := ref()) is not None and host.untyped_storage()._cdata == storage for ref in self._pinned)

    def _later(self, func: Any, args: Any, kwargs: Any, *, copies: bool) -> Any:
        """Queue an operation; returns tensors that have their shape already."""
        shapes = func(*tree_map(_shape, args), **tree_map(_shape, kwargs))
        known = {id(leaf.shape_of): leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, OnDevice)}
        leaves, form = tree_flatten(shapes)
        for at, shape in enumerate(leaves):
            if isinstance(shape, torch.Tensor):
                leaves[at] = known[id(shape)] if id(shape) in known else OnDevice(shape, [], self)
        cells = [leaf.cell for leaf in leaves if isinstance(leaf, OnDevice)]
        made = tree_unflatten(leaves, form)
        # The numbers stay alive for as long as an operation waits for them; the tensors, and their memory, do not.
        late = tree_map(_cell, (args, kwargs))

        def work() -> None:
            if copies:
                self.stream.begin_pass()
            late_args, late_kwargs = tree_map(_number, late)
            if copies and any(self.poison(leaf) for leaf in tree_leaves(late_args) if isinstance(leaf, torch.Tensor)):
                raise AcceleratorError(BROKEN)
            results = tree_leaves(_plainly(func, *late_args, **late_kwargs))
            for cell, number in zip(cells, (r for r in results if isinstance(r, torch.Tensor)), strict=True):
                cell[:] = [
                    number.clone() if copies else number
                ]  # here the device is the host: it may be the same memory

        self.stream.put(work)
        return made


class _Cell:
    def __init__(self, cell: list[torch.Tensor]) -> None:
        self.cell = cell


def _cell(leaf: Any) -> Any:
    return _Cell(leaf.cell) if isinstance(leaf, OnDevice) else _real(leaf)


def _number(leaf: Any) -> Any:
    return leaf.cell[0] if isinstance(leaf, _Cell) else leaf


def _real(leaf: Any) -> Any:
    if isinstance(leaf, OnDevice):
        return leaf.cell[0]
    return torch.device("cpu") if isinstance(leaf, torch.device) and leaf.type == "cuda" else leaf


def _shape(leaf: Any) -> Any:
    if isinstance(leaf, OnDevice):
        return leaf.shape_of
    if isinstance(leaf, torch.Tensor):
        return torch.empty_strided(leaf.shape, leaf.stride(), dtype=leaf.dtype, device="meta")
    return torch.device("meta") if isinstance(leaf, torch.device) else leaf


@torch.inference_mode()
def _plainly(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    return function(*args, **kwargs)


def _in_mode() -> bool:
    return any(isinstance(mode, _Mode) for mode in torch.utils._python_dispatch._get_current_dispatch_mode_stack())


@contextlib.contextmanager
def _overwriting() -> Iterator[None]:
    """A model's ``to`` makes new parameters: a wrapper cannot be put into an old one."""
    before = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    try:
        yield
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(before)


class Patched:
    """Puts a stand-in in the place of ``torch.cuda``, for a ``with`` block."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._patch = monkeypatch
        self._open = contextlib.ExitStack()

    def __enter__(self) -> StandInGpu:
        gpu = StandInGpu()
        Event.current = gpu.idle
        self._open.enter_context(_overwriting())
        patch = functools.partial(self._patch.setattr, torch.cuda)
        patch("_lazy_init", lambda: None)
        patch("Event", Event)
        patch("current_stream", lambda device=None: gpu.stream if device == gpu.device else gpu.idle)
        patch("get_device_capability", lambda device=None: gpu.capability)
        patch("is_available", lambda: True)
        for module in (clip_model, engine):
            self._patch.setattr(module, "pick_device", lambda name: gpu.device)
        self._open.callback(lambda: gpu.stream.end())
        self._open.callback(gpu.idle.end)
        return gpu

    def __exit__(self, *_: object) -> None:
        self._open.close()
