"""A launcher of a command that ends with its parent: ``python child.py PARENT_PID COMMAND ARGUMENT…``.

On Linux the kernel sends the command SIGTERM when the thread that started it ends, also when that was killed. The
launcher asks the kernel for this in a process of its own, because Python code between fork and exec is unsafe in a
process with threads. It is run by path and isolated (``-I -S``), so it costs some 20 ms and imports nothing of this
project.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main(parent: int, command: list[str]) -> None:
    """Replace this process by ``command``. Ends with a line on stderr if that is not possible."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
        if os.getppid() != parent:  # it ended before the line above
            sys.exit("the supervisor is gone")
    try:
        os.execvp(command[0], command)
    except OSError as error:
        sys.exit(f"{command[0]}: {error.strerror}")


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
