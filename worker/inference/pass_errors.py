"""What an error of a forward pass means."""

from __future__ import annotations

from clip_queue.shared.errors import ClipError


class NotFinite(ClipError):
    """The model made NaN or infinity of an item."""

    def __init__(self) -> None:
        super().__init__(
            "The model's vector of this item is not finite, so it is not used: the model's numbers do not fit into the "
            "worker's precision, or its weights are broken. Set CLIP_QUEUE_PRECISION=fp32 there."
        )


# Signs of too little memory, which leaves the device as it was, in errors of other kinds: of a pinned allocation, and
# of the libraries' workspaces.
_MEMORY = ("out of memory", "STATUS_ALLOC_FAILED")


def breaks_device(error: Exception) -> bool:
    """Whether the device cannot be used any more: after a CUDA error other than lack of memory, its context is lost."""
    name, said = type(error).__name__, str(error)
    if name == "OutOfMemoryError" or any(sign in said for sign in _MEMORY):
        return False
    return name == "AcceleratorError" or "CUDA error" in said
