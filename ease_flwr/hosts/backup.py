"""`ease deploy backup` and `restore`: all that a server needs to go on elsewhere, in one file.

That is keys, certificates, settings, the SuperLink's database and the runs. What is made again by itself is left out: the
cache, apps that were laid out, logs of services, locks. The file is a tar. Its last member is the manifest:

    {"schema": 1, "at": UTC, "folder": where it lay, "code": ..., "files": {name: {"sha256": ..., "size": ...}}}
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import shutil
import sqlite3
import tarfile
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO, Any

from ease_flwr.config import ConfigError, code_hash
from ease_flwr.config.request import now
from ease_flwr.hosts.link import read_state
from ease_flwr.store.files import busy, locked, new_folder
from ease_flwr.store.layout import RunLayout, described

SCHEMA = 1
MANIFEST = "manifest.json"
LEFT_OUT = ("runs/cache", "runs/apps", "flwr/apps", "nginx-temp", "nginx.pid")
"""What is made again by itself."""
DATABASE = ".db"
STARTING = 300.0
"""Seconds that a run may take from its submission to its lock."""
CHUNK = 2**20


def runs(server: Path) -> list[Path]:
    """The runs below a server's folder, and audits among them, which are runs too."""
    left = tuple(server / name for name in LEFT_OUT)
    return sorted(f.parent for f in server.rglob("experiment.json") if not any(f.is_relative_to(x) for x in left))


def at_work(run: Path) -> bool:
    """Whether a process has a run, or was just asked to take it."""
    layout = RunLayout(run)
    new = read_state(run)["status"] == "submitted" and time.time() - layout.state.stat().st_mtime < STARTING
    return new or (layout.run_lock.is_file() and busy(layout.run_lock))


def backup(server: Path, file: Path, wait: bool = False) -> int:
    """Write a server's folder to a new file, mode 0600; returns how many files it holds. Nothing is to be stopped for it.

    wait: for runs that are at work, otherwise they are an error. Raises ConfigError.
    """
    server, file = server.absolute(), file.absolute()
    if not server.is_dir():
        raise ConfigError(f"{server}: no such folder: give the server's own, as /opt/ease/server")
    if file.exists() or not file.parent.is_dir():
        raise ConfigError(f"{file}: {'is there already' if file.exists() else 'no such folder'}: choose another name")
    if file.is_relative_to(server):
        raise ConfigError(f"{file}: inside of the folder that is to be kept: choose a file outside")
    with contextlib.ExitStack() as held:
        for run in runs(server):
            while at_work(run):
                if not wait:
                    raise ConfigError(f"{run} is at work: wait until it has ended, or let --wait do so")
                time.sleep(1)
            held.enter_context(locked(RunLayout(run).run_lock, wait))
            held.enter_context(locked(RunLayout(run).queue_lock, wait=True))
        scratch = Path(held.enter_context(tempfile.TemporaryDirectory(dir=file.parent, prefix=".backup-")))
        partial = scratch / file.name
        try:
            with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as out:
                count = _write(server, out, scratch)
                out.flush()
                os.fsync(out.fileno())
        except OSError as error:
            raise ConfigError(f"{file}: {error.strerror or error}: nothing was written") from None
        partial.replace(file)
    return count


def _write(server: Path, out: IO[bytes], scratch: Path) -> int:
    found: dict[str, dict[str, Any]] = {}
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for path, name in _kept(server):
            info = tarfile.TarInfo(name)
            info.mode, info.mtime = path.stat().st_mode & 0o777, int(path.stat().st_mtime)
            if path.is_dir():
                info.type = tarfile.DIRTYPE
                tar.addfile(info)
                continue
            source = _online(path, scratch / "database") if path.suffix == DATABASE else path
            with source.open("rb") as f:
                info.size = os.fstat(f.fileno()).st_size
                read = _Hashed(f)
                tar.addfile(info, read)
            found[name] = {"sha256": read.digest.hexdigest(), "size": info.size}
        about = {"schema": SCHEMA, "at": now(), "folder": str(server), "code": code_hash()}
        text = json.dumps({**about, "files": found}, indent=1).encode()
        info = tarfile.TarInfo(MANIFEST)
        info.size = len(text)
        tar.addfile(info, io.BytesIO(text))
    return len(found)


class _Hashed(io.RawIOBase):
    """A file that is hashed as it is read."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file, self.digest = file, hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        content = self.file.read(size)
        self.digest.update(content)
        return content


def _kept(server: Path) -> Iterator[tuple[Path, str]]:
    """Folders and files that go into a backup, with their names in it. Raises ConfigError at a link."""
    inside = runs(server)
    for path in sorted(server.rglob("*")):
        name = path.relative_to(server).as_posix()
        if any(name == x or name.startswith(f"{x}/") for x in LEFT_OUT):
            continue
        if path.is_symlink() or not (path.is_dir() or path.is_file()):
            raise ConfigError(f"{path}: neither a file nor a folder: a backup holds nothing else, put the file itself there")
        run = next((r for r in reversed(inside) if path.is_relative_to(r)), None)
        if not (path.is_file() and _made_again(path, run)):
            yield path, name


def _made_again(path: Path, run: Path | None) -> bool:
    """Locks, logs of services, what SQLite keeps beside a database, and what was half written in a run."""
    if path.suffix == ".lock" or (path.name == MANIFEST and run is None):
        return True
    if run is None:
        return (
            ".log" in path.suffixes
            or path.suffix == ".out"
            or any(path.name.endswith(f"{DATABASE}-{x}") for x in ("wal", "shm"))
        )
    kind, _ = described(path.relative_to(run).as_posix())
    return kind is not None and kind.resume == "removes"


def _online(database: Path, to: Path) -> Path:
    """A copy of a database that is in use, whole as of one moment."""
    to.unlink(missing_ok=True)
    os.close(os.open(to, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    try:
        source, target = sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True), sqlite3.connect(to)
        with contextlib.closing(source), contextlib.closing(target):
            source.backup(target)
    except sqlite3.Error as error:
        raise ConfigError(f"{database}: not a database that can be read ({error})") from None
    return to


def restore(file: Path, server: Path) -> dict[str, Any]:
    """Write what a backup holds into a new folder; returns its manifest. Everything is checked before anything is written.

    Raises ConfigError.
    """
    server = server.absolute()
    try:
        with tarfile.open(file, "r:") as tar:
            manifest = _checked(tar, file)
            new_folder(server, "a restored server begins in a new folder, choose another")
            draft = Path(tempfile.mkdtemp(dir=server.parent, prefix=".restore-"))
            try:
                _extract(tar, draft)
                draft.chmod(0o700)
                draft.replace(server)
            finally:
                shutil.rmtree(draft, ignore_errors=True)
    except (OSError, tarfile.TarError) as error:
        raise ConfigError(f"{file}: not a backup that can be read ({error})") from None
    return manifest


def _checked(tar: tarfile.TarFile, file: Path) -> dict[str, Any]:
    """The manifest, once every member is what it says. Raises ConfigError."""
    found: dict[str, dict[str, Any]] = {}
    manifest: dict[str, Any] = {}
    for member in tar:
        parts = PurePosixPath(member.name).parts
        if not parts or member.name.startswith("/") or ".." in parts or "\0" in member.name:
            raise ConfigError(f"{file}: {member.name!r} leads out of the folder: this is no backup of `ease deploy backup`")
        if not (member.isreg() or member.isdir()):
            raise ConfigError(
                f"{file}: {member.name} is neither a file nor a folder: this is no backup of `ease deploy backup`"
            )
        if member.isdir():
            continue
        if member.name in found or manifest:
            raise ConfigError(f"{file}: {member.name} is there twice, or after the manifest")
        content = tar.extractfile(member)
        assert content is not None
        if member.name == MANIFEST:
            manifest = _manifest(content.read(), file)
            continue
        read = _Hashed(content)
        while read.read(CHUNK):
            pass
        found[member.name] = {"sha256": read.digest.hexdigest(), "size": member.size}
    if not manifest:
        raise ConfigError(f"{file}: no manifest, it was cut or is no backup of `ease deploy backup`")
    if wrong := sorted(n for n in found.keys() | manifest["files"].keys() if found.get(n) != manifest["files"].get(n)):
        raise ConfigError(f"{file}: {wrong[0]} is not as the manifest says: take another backup")
    return manifest


def _manifest(text: bytes, file: Path) -> dict[str, Any]:
    try:
        manifest: dict[str, Any] = json.loads(text)
        if manifest["schema"] != SCHEMA or not isinstance(manifest["files"], dict):
            raise ValueError(f"schema {manifest['schema']!r}")
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{file}: its manifest cannot be read ({error})") from None
    return manifest


def _extract(tar: tarfile.TarFile, to: Path) -> None:
    """What `_checked` has seen, for nobody else to read."""
    for member in tar:
        target = to / member.name
        if member.isdir():
            target.mkdir(mode=0o700, parents=True, exist_ok=True)
        elif member.name != MANIFEST:
            target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            content = tar.extractfile(member)
            assert content is not None
            with os.fdopen(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, member.mode & 0o755), "wb") as f:
                shutil.copyfileobj(content, f, CHUNK)
            os.utime(target, (member.mtime, member.mtime))
