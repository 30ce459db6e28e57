"""A launcher of a command that ends with its parent:
``python child.py PARENT_PID GRACE DEATH_SIGNAL GUARDIAN_FD COMMAND ARGUMENT…``.

It tells the guardian of itself before it becomes the command, so no kill of the parent comes between. Where there is a
death signal (Linux), the kernel also sends the command SIGTERM when the thread that started it ends. Both are asked for
in a process of its own, because Python code between fork and exec is unsafe in a process with threads. It is run by
path and isolated (``-I -S``), so it costs some 20 ms and imports nothing of this project.
"""

import contextlib
import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main(parent: int, grace: float, death_signal: bool, guardian: int, command: list[str]) -> None:
    """Replace this process by ``command``. Ends with a line on stderr if that is not possible.

    Args:
        parent: the id of the process that must live.
        grace: seconds that the command has to end, once the parent has ended.
        death_signal: whether to ask the kernel for a SIGTERM then.
        guardian: the file descriptor to tell the guardian by; -1: there is none.
    """
    if guardian >= 0:
        with contextlib.suppress(OSError):  # it has ended; the supervisor tells the next one
            os.write(guardian, f"+{os.getpid()} {grace}\n".encode())
        os.close(guardian)
    if death_signal:
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != parent:  # it ended before the lines above
        sys.exit("the supervisor is gone")
    try:
        os.execvp(command[0], command)
    except OSError as error:
        sys.exit(f"{command[0]}: {error.strerror}")


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]), sys.argv[3] == "1", int(sys.argv[4]), sys.argv[5:])
