"""`python -m ease_flwr.hosts.guard FAMILY FOLDER GRACE`: ends a family of processes where its owner was killed and could not.

The owner holds the other end of standard input. It tells of the processes it starts, a line each, PID and time of creation, and
at last "end". A pipe that closes before that is a death.
"""

from __future__ import annotations

import contextlib
import shutil
import signal
import sys

import psutil

from ease_flwr.hosts import processes


def main(family: str, folder: str, grace: float) -> None:
    """Wait for the owner's last word, or for its death."""
    for number in processes.SIGNALS:  # of a scheduler that ends all it sees: the owner comes first
        signal.signal(number, signal.SIG_IGN)
    known = []
    for line in sys.stdin:
        if line == "end\n":
            return
        pid, created = line.split()
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(int(pid))
            known += [process] if abs(process.create_time() - float(created)) < 2 else []  # clocks are put right
    processes.end(family, known, grace)
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], float(sys.argv[3]))
