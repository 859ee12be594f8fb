"""How the files of a federation change: each as a whole or not at all, secrets for their owner alone.

Whatever ends a command between two of these calls, the same command can be given again.
"""

from __future__ import annotations

import os
from pathlib import Path

SECRET = 0o600


def put(file: Path, content: bytes | str, mode: int = 0o644) -> None:
    """Write a file atomically; one that has this content already is left as it is."""
    wanted = content.encode() if isinstance(content, str) else content
    if file.is_file() and file.read_bytes() == wanted:
        return
    partial = file.with_name(f".{file.name}.partial")
    partial.unlink(missing_ok=True)
    with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as f:
        f.write(wanted)
        f.flush()
        os.fchmod(f.fileno(), mode)  # whatever the umask
        os.fsync(f.fileno())
    move(partial, file)


def give(file: Path, folder: Path) -> None:
    """Give a file to the owner of a folder: root gives commands in folders of other accounts."""
    if os.geteuid() == 0:
        owner = folder.stat()
        os.chown(file, owner.st_uid, owner.st_gid)


def move(this: Path, there: Path) -> None:
    """Rename a file or a folder, atomically."""
    os.replace(this, there)


def remove(file: Path) -> None:
    """Delete a file, if it is there."""
    file.unlink(missing_ok=True)
