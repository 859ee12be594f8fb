"""Backup, restore and upgrade of a server: whole or not at all, and nothing from a file that is not what it says."""

import io
import os
import shutil
import sqlite3
import stat
import subprocess
import sys
import tarfile
import threading
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from benchmarks import wards
from ease_flwr import cli, launcher
from ease_flwr.config import APP, ConfigError, code_hash
from ease_flwr.hosts import backup, upgrade
from ease_flwr.hosts.simulation import Where
from ease_flwr.store.files import locked
from tests.standing import copy

LEFT = {"runs/cache", "runs/apps", "flwr/apps", "superlink.log", "state.db-wal", "state.db-shm", "nginx-temp", "nginx.pid"}


@pytest.fixture
def server(learnt, tmp_path):
    """A server's folder with a run, its database in use."""
    folder = tmp_path / "server"
    for name in (
        "flwr/apps/x/a.py",
        "runs/cache/k/theta",
        "runs/apps/y/b.py",
        "runs/receipt-key.pem",
        "server.key",
        "superlink.log",
        "nginx-temp/0000000001",
        "nginx.pid",
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"content of {name}")
    for name in ("server.key", "runs/receipt-key.pem"):
        (folder / name).chmod(0o600)
    copy(learnt, folder / "runs" / "one")
    (folder / "runs" / "one" / "half.json.partial").write_text("{")
    connection = sqlite3.connect(folder / "state.db", isolation_level=None)
    connection.execute("pragma journal_mode=wal")
    connection.execute("create table node (name text)")
    connection.execute("insert into node values ('host-1')")
    yield folder
    connection.close()


def files(folder):
    return {p.relative_to(folder).as_posix(): p for p in folder.rglob("*") if p.is_file()}


def test_what_a_server_needs_comes_back_as_it_was(server, tmp_path):
    file, again = tmp_path / "server.tar", tmp_path / "elsewhere" / "server"
    again.parent.mkdir()
    count = backup.backup(server, file)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert {p.name for p in tmp_path.iterdir()} >= {"server", "server.tar"}
    assert not list(tmp_path.glob(".backup-*"))
    manifest = backup.restore(file, again)
    assert (manifest["folder"], manifest["code"], len(manifest["files"])) == (str(server), code_hash(), count)
    before, after = files(server), files(again)
    gone = {n for n in before.keys() - after.keys() if not any(n == x or n.startswith(f"{x}/") for x in LEFT)}
    assert gone <= {"runs/one/run.lock", "runs/one/queue.lock", "runs/one/half.json.partial"}
    assert not after.keys() - before.keys()
    assert not [n for n in after if n.startswith("nginx")]
    for name in after.keys() - {"state.db"}:
        assert after[name].read_bytes() == before[name].read_bytes()
        assert stat.S_IMODE(after[name].stat().st_mode) & 0o700 == stat.S_IMODE(before[name].stat().st_mode) & 0o700
    assert stat.S_IMODE(after["server.key"].stat().st_mode) == 0o600
    with sqlite3.connect(after["state.db"]) as there:  # it was written to and not yet checkpointed
        assert there.execute("select name from node").fetchall() == [("host-1",)]


def test_a_run_goes_on_at_another_place(server, tmp_path, capsys):
    backup.backup(server, tmp_path / "server.tar")
    shutil.rmtree(server)
    backup.restore(tmp_path / "server.tar", tmp_path / "other")
    assert launcher.resume(tmp_path / "other" / "runs" / "one", Where()) == 0
    assert "everything on its request queue is done" in capsys.readouterr().out


def test_a_run_at_work_is_named_or_waited_for(server, tmp_path):
    run = server / "runs" / "one"
    with (
        locked(run / "run.lock"),
        pytest.raises(ConfigError, match=rf"{run} is at work: wait until it has ended, or let --wait"),
    ):
        backup.backup(server, tmp_path / "server.tar")
    assert [p.name for p in tmp_path.iterdir()] == ["server"]
    (run / "state.json").write_text('{"status": "submitted", "error": ""}')  # its process has not come yet
    with pytest.raises(ConfigError, match="is at work"):
        backup.backup(server, tmp_path / "server.tar")
    os.utime(run / "state.json", (0, 0))  # and never will
    taken, let_go = threading.Event(), []

    def work():
        with locked(run / "run.lock"):
            taken.set()
            time.sleep(1.5)
            let_go.append(time.monotonic())

    worker = threading.Thread(target=work)
    worker.start()
    taken.wait()
    backup.backup(server, tmp_path / "server.tar", wait=True)
    assert let_go[0] < time.monotonic()
    worker.join()


def test_no_run_can_begin_while_it_is_copied(server, tmp_path, monkeypatch):
    asked = []

    def kept(folder):
        for lock in ("run.lock", "queue.lock"):
            with pytest.raises(ConfigError, match="in use by another process"), locked(server / "runs" / "one" / lock):
                pass
            asked.append(lock)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(backup, "_kept", kept)
    with pytest.raises(ConfigError, match=r"server.tar: No space left on device: nothing was written"):
        backup.backup(server, tmp_path / "server.tar")
    assert asked == ["run.lock", "queue.lock"]
    assert [p.name for p in tmp_path.iterdir()] == ["server"]


def test_what_cannot_be_kept_is_said(server, tmp_path):
    def fails(match, folder=server, file=tmp_path / "new.tar"):
        with pytest.raises(ConfigError, match=match):
            backup.backup(folder, file)

    fails(r"nowhere: no such folder: give the server's own", folder=tmp_path / "nowhere")
    fails(r"inside of the folder that is to be kept", file=server / "new.tar")
    fails(r"nowhere/new.tar: no such folder", file=tmp_path / "nowhere" / "new.tar")
    (tmp_path / "old.tar").write_text("")
    fails(r"old.tar: is there already: choose another name", file=tmp_path / "old.tar")
    (server / "ca.crt").symlink_to("/etc/ssl/ca.crt")
    fails(r"ca.crt: neither a file nor a folder: .*put the file itself there")
    (server / "ca.crt").unlink()
    (server / "other.db").write_text("no database")
    fails(r"other.db: not a database that can be read")


def member(name, kind=tarfile.REGTYPE, target=""):
    def change(tar):
        info = tarfile.TarInfo(name)
        info.type, info.linkname = kind, target
        tar.addfile(info, io.BytesIO())

    return change


BAD = {
    "absolute": (member("/tmp/x"), r"'/tmp/x' leads out of the folder"),
    "above": (member("runs/../../x"), r"'runs/../../x' leads out of the folder"),
    "link": (member("x", tarfile.SYMTYPE, "/etc"), r"x is neither a file nor a folder"),
    "hard link": (member("x", tarfile.LNKTYPE, "server.key"), r"x is neither a file nor a folder"),
    "device": (member("x", tarfile.CHRTYPE), r"x is neither a file nor a folder"),
    "pipe": (member("x", tarfile.FIFOTYPE), r"x is neither a file nor a folder"),
    "after the manifest": (member("x"), r"x is there twice, or after the manifest"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_file_that_is_no_backup_writes_nothing(server, tmp_path, name):
    change, match = BAD[name]
    file = tmp_path / "server.tar"
    backup.backup(server, file)
    with tarfile.open(file, "a") as tar:
        change(tar)
    refused(file, match, tmp_path)


def refused(file, match, tmp_path):
    with pytest.raises(ConfigError, match=match):
        backup.restore(file, tmp_path / "new")
    assert not (tmp_path / "new").exists()
    assert not list(tmp_path.glob(".restore-*"))


def rewritten(file, change):
    """The same backup with other members: change takes {name: content}."""
    with tarfile.open(file) as tar:
        contents = {m.name: tar.extractfile(m).read() for m in tar if m.isreg()}
    change(contents)
    with tarfile.open(file, "w") as tar:
        for name, content in contents.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda c: c.update({"server.key": b"another key"}), r"server.key is not as the manifest says"),
        (lambda c: c.pop("server.key"), r"server.key is not as the manifest says"),
        (lambda c: c.pop("manifest.json"), r"no manifest, it was cut or is no backup"),
        (lambda c: c.update({"manifest.json": b'{"schema": 2}'}), r"its manifest cannot be read \(schema 2\)"),
        (lambda c: c.update({"manifest.json": b"["}), r"its manifest cannot be read"),
    ],
    ids=["changed", "missing", "no manifest", "later schema", "broken manifest"],
)
def test_every_file_is_checked_first(server, tmp_path, change, match):
    file = tmp_path / "server.tar"
    backup.backup(server, file)
    rewritten(file, change)
    refused(file, match, tmp_path)


def test_a_backup_that_was_cut_and_a_folder_that_is_full(server, tmp_path):
    file = tmp_path / "server.tar"
    backup.backup(server, file)
    with pytest.raises(ConfigError, match=r"server is not empty: a restored server begins in a new folder"):
        backup.restore(file, server)
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    refused(file, r"server.tar: (not a backup that can be read|no manifest)", tmp_path)
    refused(tmp_path / "nowhere.tar", r"nowhere.tar: not a backup that can be read", tmp_path)


def test_the_commands(server, tmp_path):
    def said(*words):
        done = CliRunner().invoke(cli.app, ["deploy", *map(str, words)])
        return done.exit_code, done.output

    file = tmp_path / "server.tar"
    code, text = said("backup", server, file)
    assert code == 0
    assert text.endswith(f"{file.stat().st_size} bytes: it holds private keys, and what the runs know\n")
    assert said("backup", server, file)[0] == 2
    code, text = said("restore", file, tmp_path / "new")
    assert code == 0
    assert text.endswith(f"it was in {server}: docs/operations.md says which files have that path\n")
    shutil.rmtree(server)
    assert "docs/operations.md" not in said("restore", file, server)[1]


# ---- other code --------------------------------------------------------------------------------------------------------------


def test_code_is_not_changed_under_a_phase_at_hand(server):
    run = server / "runs" / "one"
    upgrade.check(server, "ease")
    (run / "journal" / "forget").mkdir(parents=True)
    (run / "journal" / "forget" / "0001.safetensors").write_bytes(b"")
    with pytest.raises(ConfigError) as error:
        upgrade.check(server, "ease")
    assert str(error.value) == (
        f"{run}: its phase forget was begun by this code: finish it with `ease resume {run} --superlink ease`"
    )
    with locked(run / "run.lock"), pytest.raises(ConfigError, match="is at work: wait until it has ended"):
        upgrade.check(server, "")


def test_what_is_no_code_is_not_installed(tmp_path):
    (tmp_path / "new.whl").write_text("no wheel")
    for what, match in (
        (tmp_path, "expected a wheel, or the folder of a checkout"),
        (tmp_path / "new.whl", r"pip install: .*"),
    ):
        with pytest.raises(ConfigError, match=match):
            upgrade.install(what, ["--no-index"])


@pytest.mark.slow
def test_an_upgrade_of_an_environment(server, tmp_path):
    """From the wheel of this code to that of another, in an environment of its own."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "venv")], check=True)
    (site,) = (tmp_path / "venv").glob("lib/python*/site-packages")
    (site / "packages.pth").write_text("\n".join(p for p in sys.path if p.endswith("site-packages")) + "\n")
    first, second = wards.wheel(APP, tmp_path / "a"), wards.wheel(wards.next_version(tmp_path / "next"), tmp_path / "b")
    variables = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}

    def python(*words):
        command = [str(tmp_path / "venv" / "bin" / "python"), *map(str, words)]
        return subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, text=True, check=False)

    done = python("-m", "pip", "install", "--no-deps", "--no-index", first)
    assert done.returncode == 0, done.stderr
    done = python("-m", "ease_flwr", "deploy", "upgrade", second, "--server", server, "--pip=--no-index")
    assert done.returncode == 0, done.stderr
    before, after = done.stdout.splitlines()[0].removeprefix("code before ").split(", now ")
    assert before == code_hash()[:12]
    assert python("-m", "ease_flwr", "--version").stdout.splitlines()[0].endswith(f"code {after}")
    assert after != before
    assert done.stdout.splitlines()[1] == "restart the service here: systemctl restart ease-superlink"
    assert Path(site, "ease_flwr").is_dir()
