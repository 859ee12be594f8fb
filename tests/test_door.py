"""Code that a server sends to a host: only what the host's owner has pinned is unpacked or imported."""

import hashlib
import io
import re
import stat
import subprocess
import sys
import zipfile

import pytest
from flwr.app import Context, RecordDict

from ease_flwr.config import ConfigError
from ease_flwr.exchange.messages import Hello, message
from ease_flwr.hosts import app, deploy, door, owners_log, pinned, settings, watch
from ease_flwr.hosts.policy import POLICY, read_policy
from tests.in_process_grid import TaskIdentity


@pytest.fixture
def home(tmp_path):
    deploy.init(tmp_path / "f", settings.Deployment(address="127.0.0.1", hosts=("a",), insecure=True))
    return tmp_path / "f" / "hosts" / "a"


def changed(files, fab=None):
    """A bundle like another, by default ours, with other files; None takes one out."""
    found = pinned.contents(fab or app.packed()) | files
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, content in found.items():
            if content is not None:
                archive.writestr(name, content)
        lines = [f"{n},{hashlib.sha256(c).hexdigest()},{8 * len(c)}" for n, c in found.items() if c is not None]
        archive.writestr(".info/CONTENT", "\n".join(lines))
    return out.getvalue()


def evil(tmp_path, file="ease_flwr/client_app.py"):
    """Leaves a mark where anything of it runs."""
    return changed({file: f"open({str(tmp_path / 'OWNED')!r}, 'w').close()\n".encode()})


def asked():
    assert TaskIdentity.run_id == 1
    hello = message(Hello(), {}, 100, 10.0)
    hello.metadata._message_id = "message-1"
    return hello, Context(run_id=1, node_id=100, node_config={}, state=RecordDict(), run_config={})


def test_a_bundle_is_the_same_wherever_it_is_packed(tmp_path):
    from flwr.cli.build import build_fab_from_disk

    app.write(tmp_path / "app")
    with pytest.warns(DeprecationWarning, match="GitWildMatchPattern"):
        fabs = [build_fab_from_disk(folder) for folder in (tmp_path / "app", app.folder())]
    assert [pinned.digest(fab) for fab in (*fabs, app.packed())] == [pinned.digest(app.packed())] * 3


def test_init_pins_what_it_packs(home):
    (file,) = (home / "code").glob("*.fab")
    assert read_policy(home / POLICY).code == (file.stem,) == (pinned.digest(app.packed()),)
    assert file.read_bytes() == app.packed()
    assert pinned.refusal(home, app.packed()) == ""
    assert pinned.review(home).startswith("nothing is offered: 1 pinned in ")
    installer = (home / "install.sh").read_text()
    assert f'case " {settings.NODE} {POLICY} ' in installer  # what the owner has edited is kept


def test_other_code_is_refused_before_anything_of_it_is_unpacked(home, tmp_path, capsys):
    """What an operator got before: any code, on every host."""
    fab, before = evil(tmp_path), sorted(home.rglob("*"))
    it = door.Door(home)
    it.receive(fab, skip_prompt=True)
    answer = it.loader(default_app_ref="", app_path=None, multi_app=True)("ease-flwr/ease-flwr", "0.2.0", "0" * 64)
    line = f"host a runs only code that its owner has pinned; this is {pinned.digest(fab)[:16]}: ease host review"
    reply = answer(*asked())
    assert (reply.error.code, reply.error.reason) == (2, line)
    new = {p.relative_to(home).as_posix() for p in set(home.rglob("*")) - set(before)}
    day = next((home / "log").glob("*.jsonl")).relative_to(home).as_posix()
    assert new == {f"code/{pinned.digest(fab)}.fab", "code/.lock", "log", day}
    assert not (tmp_path / "OWNED").exists()
    assert line in capsys.readouterr().err
    (noted,) = owners_log.joined(home)
    assert (noted["asked"], noted["refused"]) == ("code", line)


def test_nothing_runs_where_no_bundle_has_come_or_the_policy_is_gone(home):
    assert door.Door(home).loader()().__self__.why == "no code has come with this message"
    (home / POLICY).unlink()
    it = door.Door(home)
    it.receive(app.packed())
    assert it.loader()("", "", "")(*asked()).error.reason == (
        "this host cannot tell whether its owner has pinned this code (ConfigError): its log says why"
    )


PROGRAM = """
import sys
from pathlib import Path
from ease_flwr.hosts import door
it = door.Door(Path(sys.argv[1]))
it.receive(Path(sys.argv[2]).read_bytes(), skip_prompt=True)
answer = it.loader()("../../elsewhere", "9", "f" * 64)
from flwr.app import Context, RecordDict
from flwr.supercore.task_identity import TaskIdentity
TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = 1
from ease_flwr import client_app
from ease_flwr.exchange.messages import Hello, message
from ease_flwr.config import PACKAGE
hello = message(Hello(), {}, 1, 10.0)
hello.metadata._message_id = "m"
node = {"client-name": "a", "home": sys.argv[1], "policy": sys.argv[1] + "/policy.toml"}
reply = answer(hello, Context(run_id=1, node_id=1, node_config=node, state=RecordDict(), run_config={}))
print(PACKAGE)
print(reply.error.reason)
"""


def test_the_pinned_bundle_runs_and_not_what_lies_beside_it(home, tmp_path):
    fab = tmp_path / "x.fab"
    fab.write_bytes(app.packed())
    command = [sys.executable, "-P", "-c", PROGRAM, str(home), str(fab)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    package, said = done.stdout.splitlines()[-2:]
    assert package == str(home / "code" / pinned.digest(app.packed()) / "ease_flwr")  # and not this checkout
    assert re.fullmatch(r"KeyError \(submission\.py, line \d+, from_run_config\)", said)
    fab.write_bytes(evil(tmp_path, "ease_flwr/hosts/owner.py"))
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout.splitlines()[-1].startswith("host a runs only code that its owner has pinned; this is ")
    assert not (tmp_path / "OWNED").exists()


def test_flower_asks_for_code_in_the_two_ways_that_the_door_has_taken(home, monkeypatch):
    from flwr.supernode.runtime.run_clientapp import run_clientapp

    assert set(run_clientapp.__code__.co_names) >= door.REPLACED

    def other():
        return 0

    monkeypatch.setattr(sys.modules["flwr.supernode.runtime.run_clientapp"], "run_clientapp", other)
    with pytest.raises(RuntimeError, match=r"loads code in a way that hosts/door\.py does not know"):
        door.answer(home)


def test_the_door_takes_messages_for_clients_only(home, monkeypatch):
    """A server can ask a SuperNode for programs of other kinds (agents, connectors), which import a bundle as well."""
    wanted, started, heard = [], [], []

    class Runtime:
        @classmethod
        def from_server_address(cls, **_):
            return cls()

        def AcquireTask(self, request):  # noqa: N802  (Flower's name)
            from flwr.proto.runtime_pb2 import AcquireTaskResponse

            wanted.append(list(request.supported_task_types))
            if len(wanted) > 2:
                raise StopIteration
            got = AcquireTaskResponse(token="secret")
            got.task.type = ("flwr-agentapp", "flwr-clientapp")[len(wanted) - 1]
            return got

    home.joinpath("flwr").mkdir()
    (home / settings.DOOR_KEY).write_bytes(b"k" * 32)
    monkeypatch.setattr(door, "RuntimeHttpClient", Runtime)
    monkeypatch.setattr(door, "SECONDS", 0)

    class Started(subprocess.Popen):
        def __init__(self, command, **_):
            started.append(command)
            self.stdin = io.StringIO()
            monkeypatch.setattr(self.stdin, "close", lambda: heard.append(self.stdin.getvalue()))

        def __del__(self):
            """There was no process."""

        def poll(self):
            return 0

    monkeypatch.setattr(subprocess, "Popen", Started)
    with pytest.raises(StopIteration):
        door.serve(home, "127.0.0.1:1")
    assert wanted == [["flwr-clientapp"]] * 3
    (command,) = started
    assert command[:5] == [sys.executable, "-P", "-m", "ease_flwr.hosts.door", str(home)]
    assert heard == ["secret"]
    assert "secret" not in command


CALLED = """
import runpy, sys
import flwr.supernode.cli
flwr.supernode.cli.flwr_clientapp = lambda: print(sys.argv[1:], open("/proc/self/cmdline").read())
runpy.run_module("ease_flwr.hosts.door", run_name="__main__")
"""


def test_the_token_of_a_message_is_not_in_how_the_program_was_called(home):
    """Who has it can take the message, and every account of the machine can read how programs were called."""
    command = [sys.executable, "-P", "-c", CALLED, str(home), "--runtime-api-address", "127.0.0.1:1"]
    done = subprocess.run(command, input="secret", capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    heard, called = done.stdout.split("]", 1)
    assert heard == "['--runtime-api-address', '127.0.0.1:1', '--token', 'secret'"
    assert "127.0.0.1:1" in called
    assert "secret" not in called


def test_the_supernode_starts_no_program_by_itself(home):
    there = settings.read(settings.Host, home / "node.toml")
    supernode, ours = watch.node_programs(home, there)
    assert supernode[supernode.index("--isolation") + 1] == "process"
    assert stat.S_IMODE((home / settings.DOOR_KEY).stat().st_mode) == 0o600
    assert ours[-2:] == [str(home), f"127.0.0.1:{there.port}"]
    first = (home / settings.DOOR_KEY).read_bytes()
    watch.node_programs(home, there)
    assert (home / settings.DOOR_KEY).read_bytes() != first
    (home / POLICY).unlink()
    (home / "node.toml").write_text((home / "node.toml").read_text().replace("/data", ""))
    with pytest.raises(
        ConfigError, match=rf"no {home}/policy.toml: nothing is done without it; `ease host policy {home}` writes"
    ):
        watch.node(home)
