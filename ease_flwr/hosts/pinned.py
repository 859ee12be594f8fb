"""Which code a host runs: the app bundles that its owner has pinned in policy.toml, and no others.

A bundle is told by its sha256 before anything of it is unpacked. One that is not pinned is kept in code/, as it came, for the
owner to look at. Whatever is shown of it is read from memory, and is not to be trusted to keep a terminal in order.
"""

from __future__ import annotations

import difflib
import hashlib
import io
import os
import re
import shutil
import tempfile
import zipfile
from pathlib import Path

from ease_flwr.config import ConfigError
from ease_flwr.exchange.transport import plain
from ease_flwr.hosts import app
from ease_flwr.hosts.policy import POLICY, listed, read_policy
from ease_flwr.hosts.settings import NODE, Host, read
from ease_flwr.hosts.writing import give, put, remove
from ease_flwr.store.files import locked

CODE = "code"
"""Folder of the bundles in a host's folder, DIGEST.fab each, and of what was unpacked of pinned ones, DIGEST/."""
OFFERS = 3
"""Bundles that are not pinned: so many are kept, the newest ones."""
MOST, UNPACKED = 20 * 2**20, 200 * 2**20
"""Bytes of a bundle that is kept, and of all that is in it."""
INSTALLED = "installed"
"""What the program on this host would send itself."""


def digest(fab: bytes) -> str:
    """What a bundle is told by: Flower's fab hash."""
    return hashlib.sha256(fab).hexdigest()


def refusal(home: Path, fab: bytes) -> str:
    """Why a bundle may not run here, "" where it may. It is kept either way. Raises ConfigError without a policy."""
    name, pins = digest(fab), read_policy(home / POLICY).code
    (home / CODE).mkdir(mode=0o700, exist_ok=True)
    with locked(home / CODE / ".lock", wait=True):
        if len(fab) <= MOST:
            keep(home, fab)
        for file in _offers(home, pins)[OFFERS:]:
            remove(file)
    if name in pins:
        return ""
    host = read(Host, home / NODE).client_name
    return f"host {host} runs only code that its owner has pinned; this is {name[:16]}: ease host review"


def keep(home: Path, fab: bytes) -> Path:
    """Keep a bundle as it is; its file."""
    file = home / CODE / f"{digest(fab)}.fab"
    file.parent.mkdir(mode=0o700, exist_ok=True)
    put(file, fab)
    for path in (file, file.parent):
        give(path, home)
    return file


def unpacked(home: Path, fab: bytes) -> Path:
    """The folder of a pinned bundle, unpacked by Flower the first time: all of it or nothing."""
    from flwr.cli.install import install_from_fab

    to = home / CODE / digest(fab)
    if not to.is_dir():
        draft = Path(tempfile.mkdtemp(dir=to.parent, prefix=".draft-"))
        try:
            os.replace(install_from_fab(fab, draft, skip_prompt=True), to)
        except OSError:
            if not to.is_dir():  # otherwise another message was faster
                raise
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    return to


def review(home: Path, chosen: str = "", lines: bool = False) -> str:
    """What is different between a pinned bundle and an offered one, by default the newest of each. Raises ConfigError.

    lines: every line that has changed, not only the names of files.
    """
    pins = read_policy(home / POLICY).code
    offers = _offers(home, pins)
    if not chosen and not offers:
        return f"nothing is offered: {len(pins)} pinned in {home / POLICY}, and the server has sent nothing else"
    new = _found(home, chosen) if chosen else offers[0]
    old = next((f for f in _kept(home) if f.stem in pins and f != new), None)
    before, after = contents(old.read_bytes()) if old else {}, contents(new.read_bytes())
    out = [f"offered  {new.stem}" + (", pinned" if new.stem in pins else "")]
    out += [f"pinned   {old.stem}" if old else "pinned   none that is here: all files are new"]
    for name in sorted(before.keys() | after.keys()):
        out += _difference(name, before.get(name), after.get(name), lines)
    if len(out) == 2:
        out.append("the same files: they are packed in another way")
    more = [f"ease host review {home} {new.stem[:16]} --diff"] if not lines else []
    more += [f"ease host accept {home} {new.stem[:16]}"] if new.stem not in pins else []
    return "\n".join([*out, *(f"next: {command}" for command in more)])


def accept(home: Path, chosen: str) -> str:
    """Pin a bundle that is kept here, by the beginning of its digest, or what is installed on this host; its digest.

    Raises ConfigError.
    """
    policy = read_policy(home / POLICY)
    file = keep(home, app.packed()) if chosen == INSTALLED else _found(home, chosen)
    if digest(file.read_bytes()) != file.stem:
        raise ConfigError(f"{file}: its content is not of this digest: remove it, the server sends it again")
    if file.stem not in policy.code:
        text, code = (home / POLICY).read_text(encoding="utf-8"), (*policy.code, file.stem)
        _rewrite(home, re.sub(r"(?m)^code\s*=\s*\[[^\]]*\]", f"code = {listed(code)}", text))
        if read_policy(home / POLICY) != policy.model_copy(update={"code": code}):
            _rewrite(home, text)
            raise ConfigError(f'{home / POLICY}: its key code is not written as usual: add "{file.stem}" to it by hand')
    return file.stem


def contents(fab: bytes) -> dict[str, bytes]:
    """The files of a bundle by name, read in memory. Raises ConfigError where it is none, or too large to be one."""
    try:
        with zipfile.ZipFile(io.BytesIO(fab)) as archive:
            infos = [i for i in archive.infolist() if not i.is_dir() and i.filename != ".info/CONTENT"]
            if len({i.filename for i in infos}) < len(infos) or sum(i.file_size for i in infos) > UNPACKED:
                raise ConfigError(f"bundle {digest(fab)[:16]}: names twice in it, or more than it may hold: do not accept it")
            return {i.filename: archive.read(i) for i in infos}
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, OSError, EOFError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"bundle {digest(fab)[:16]}: no app bundle ({error}): do not accept it") from None


def _difference(name: str, before: bytes | None, after: bytes | None, lines: bool) -> list[str]:
    if before == after:
        return []
    what = "new" if before is None else "gone" if after is None else "changed"
    old, new = ((side or b"").decode(errors="replace").split("\n") for side in (before, after))
    changes = list(difflib.unified_diff(old, new, name, name, lineterm="", n=3))
    plus = sum(c[0] == "+" for c in changes[2:])
    head = f"{what:8} {plain(name)}  +{plus} -{sum(c[0] == '-' for c in changes[2:])}"
    return [head, *(plain(c) for c in changes[2:])] if lines else [head]


def _kept(home: Path) -> list[Path]:
    """All bundles that are here, the newest first."""
    found = [f for f in (home / CODE).glob("*.fab") if re.fullmatch(r"[0-9a-f]{64}", f.stem)]
    return sorted(found, key=lambda f: (-f.stat().st_mtime_ns, f.stem))


def _offers(home: Path, pins: tuple[str, ...]) -> list[Path]:
    return [f for f in _kept(home) if f.stem not in pins]


def _found(home: Path, chosen: str) -> Path:
    found = [f for f in _kept(home) if f.stem.startswith(chosen.lower())] if len(chosen) >= 8 else []
    if len(found) != 1:
        there = ", ".join(f.stem[:16] for f in _kept(home)) or "none"
        raise ConfigError(f"no bundle {chosen!r} in {home / CODE}: there are {there}; give 8 digits at least")
    return found[0]


def _rewrite(home: Path, text: str) -> None:
    file = home / POLICY
    put(file, text, file.stat().st_mode & 0o777)
    give(file, home)
