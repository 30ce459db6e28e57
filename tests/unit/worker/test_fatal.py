"""The end of a process that cannot go on."""

from __future__ import annotations

import subprocess
import sys

CODE = """
import threading
from clip_queue.worker.inference.fatal import die
threading.Thread(target=die, args=(RuntimeError("the device is gone"),)).start()
threading.Event().wait(60)
"""


def test_any_thread_can_end_the_process_at_once_with_its_own_exit_code() -> None:
    ended = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, timeout=60)
    assert ended.returncode == 70
    assert "worker ends: RuntimeError: the device is gone" in ended.stderr
