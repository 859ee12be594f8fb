"""What this process takes from its machine."""

from __future__ import annotations

import resource
import sys


def peak_memory() -> int:
    """The most bytes of memory this process has had so far (getrusage counts kilobytes on Linux, bytes on macOS)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
