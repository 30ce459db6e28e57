"""Becomes a command that does not outlive its parent: ``python child.py PARENT_PID COMMAND ARGUMENT…``.

The kernel sends it SIGTERM when the thread that started it ends, be it by ``kill -9`` (Linux). The wish is made here,
in a process of its own, because Python code between fork and exec is unsafe where there are threads. Run by path and
isolated (``-I -S``), so it costs some 20 ms and imports nothing of this project.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main(parent: int, command: list[str]) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
        if os.getppid() != parent:  # it died before the line above
            sys.exit("the supervisor is gone")
    try:
        os.execvp(command[0], command)
    except OSError as error:
        sys.exit(f"{command[0]}: {error.strerror}")


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
