"""The API processes of one machine, on one port.

They share the sockets that this process listens on: who is free takes a connection, and one that ends and is started
again refuses none. They also share a folder of what they have counted, so that each answers ``/metrics`` for all.
"""

from __future__ import annotations

import contextlib
import os
import socket
from pathlib import Path

from clip_queue.shared.settings import Settings, cores
from clip_queue.stack import children
from clip_queue.stack.machine import FolderLock, StackError, listening, memory_folder, reachable, temporary_folder
from clip_queue.stack.supervisor import Spec

CORES_EACH = 4  # the other cores are for decoding, the store and the model
MOST = 8


class ApiProcesses:
    """The API processes on ``host``:``port`` (0: a free one).

    Args:
        number: how many; 0: none, and no port; None: one for four cores, at most eight.
    """

    def __init__(self, number: int | None, host: str, port: int) -> None:
        self.host, self.port = host, port
        self.number = max(1, min(MOST, cores() // CORES_EACH)) if number is None else number
        self._doors: tuple[socket.socket, ...] = ()
        self._counts = contextlib.ExitStack()

    @property
    def names(self) -> list[str]:
        """``api``, or ``api-1``, …"""
        return ["api"] if self.number == 1 else [f"api-{number}" for number in range(1, self.number + 1)]

    @property
    def url(self) -> str:
        """Without a path."""
        return f"http://{reachable(self.host)}:{self.port}"

    def take_port(self) -> None:
        """Listen from now on; who comes waits for the processes. Raises :class:`StackError` if it cannot."""
        if not self.number:
            return
        try:
            self._doors = tuple(listening(self.host, self.port))
        except StackError as why:
            address = f"{self.host}:{self.port}"
            raise StackError(f"cannot listen on {address} ({why}): choose another port with --port") from None
        self.port = self._doors[0].getsockname()[1]

    def specs(self, settings: Settings) -> list[Spec]:
        """The processes, once the port is taken."""
        if not self._doors:
            return []
        counts = None
        if self.number > 1 and children.COUNTS not in os.environ:
            counts = Path(self._counts.enter_context(temporary_folder(memory_folder())))
            self._counts.callback(FolderLock(counts).release)
        return [children.api(settings, name, self._doors, counts) for name in self.names]

    def close(self) -> None:
        """Let the port go, and remove the folder."""
        for door in self._doors:
            door.close()
        self._counts.close()
