"""`ease status`: what needs a person, from files and from what a SuperLink says."""

import datetime
import hashlib
import json
import os
import shutil
import time

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from typer.testing import CliRunner

from ease_flwr import cli
from ease_flwr.config import ConfigError, ForgetRequest, ForgetSet, code_hash
from ease_flwr.following import situation
from ease_flwr.hosts import connected, status
from ease_flwr.hosts.connected import Certificate, Node
from ease_flwr.hosts.status import Federation
from ease_flwr.store import queue
from tests.standing import copy, enqueue, leaves, pairs
from tests.test_cli import ease

SINCE = "2026-11-01T10:00:00Z"
NAMES = ["client-0", "client-1", "client-2"]


def connected_to(*online, offline=()):
    there = [Node(n, f"1{n[-1]}", f"key of {n}", n in online, SINCE) for n in (*online, *offline)]
    return Federation("ward", there)


def write(run, name, value):
    (run / name).write_text(json.dumps(value))


def told(run, **codes):
    """What the server noted at the last roll call."""
    about = {"pairs": 48, "data": "d", "base": "b" * 64, "node": "1", "key": "", "first": SINCE, "last": SINCE}
    write(run, "clients.json", {"clients": {n.replace("_", "-"): {**about, "code": c} for n, c in codes.items()}})


@pytest.fixture(autouse=True)
def room(monkeypatch):
    """Half of the disk is free, whatever the machine has that runs these tests."""
    usage = shutil.disk_usage("/")._replace(total=100, free=50)
    monkeypatch.setattr(status.shutil, "disk_usage", lambda _: usage)


@pytest.fixture
def run(learnt, tmp_path):
    return copy(learnt, tmp_path / "run")


def needs(run, federation):
    return status.of_run(run, federation, situation)["attention"]


def test_a_run_that_is_well(run):
    (run / "clients.json").unlink()  # runs of before have none
    found = status.of_run(run, connected_to(*NAMES), situation)
    assert (found["ok"], found["attention"], found["schema"], found["code"]) == (True, [], 1, code_hash())
    assert [(s["phase"], s["state"]) for s in found["run"]["queue"]] == [("learn", "done")]
    assert [(c["name"], c["online"], c["since"], c["last"]) for c in found["run"]["clients"]] == [
        (n, True, SINCE, "") for n in NAMES
    ]
    assert 0 < found["disk"]["free"] < found["disk"]["total"]


def test_a_host_that_is_expected_must_be_there_and_one_that_left_need_not(run, whole, tmp_path):
    assert needs(run, connected_to("client-0", offline=["client-1"])) == [
        f"client-1 is offline since {SINCE}",
        "client-2 is offline, not registered",
    ]
    assert needs(run, Federation()) == []  # nobody was asked
    request = enqueue(run, leaves("client-1"))
    assert needs(run, connected_to("client-0", "client-2")) == []  # it has asked to leave
    (step,) = [s for s in status.of_run(run, Federation(), situation)["run"]["queue"] if s["request"]]
    assert (step["state"], step["asked"], step["request"]) == ("waiting", "client client-1", request.id)
    left = status.of_run(copy(whole, tmp_path / "whole"), connected_to("client-2"), situation)
    assert left["ok"]
    assert {c["name"]: c["departed"] for c in left["run"]["clients"]} == {NAMES[0]: True, NAMES[1]: True, NAMES[2]: False}


def test_of_a_name_with_two_keys_the_node_that_is_online_counts(run):
    nodes = [Node("client-0", "1", "old", False, SINCE), Node("client-0", "2", "new", True, SINCE)]
    found = status.of_run(run, Federation("ward", [*nodes, *connected_to(*NAMES[1:]).nodes]), situation)
    assert found["ok"]
    assert found["run"]["clients"][0]["key"] == "new"


def test_what_clients_answered_last(run):
    told(run, client_0=code_hash(), client_1="c" * 64, newcomer=code_hash())
    clients = {c["name"]: c for c in status.of_run(run, Federation(), situation)["run"]["clients"]}
    assert {n: c["same_code"] for n, c in clients.items()} == {
        "client-0": True,
        "client-1": False,
        "client-2": None,
        "newcomer": True,
    }
    assert (clients["client-1"]["pairs"], clients["client-1"]["last"], clients["newcomer"]["expected"]) == (48, SINCE, True)


def test_a_request_that_was_set_aside_needs_somebody(run):
    enqueue(run, pairs("client-0/3", "client-0/4"), id="wrong")
    queue.set_aside(run, "wrong", "client-0 has no pair 9")
    found = status.of_run(run, Federation(), situation)
    assert found["attention"] == ["request wrong (2 entries of pairs) is set aside: client-0 has no pair 9"]
    assert [s["state"] for s in found["run"]["queue"]] == ["done", "set aside"]
    enqueue(run, pairs("client-0/3", "client-0/4"), id="wrong")  # asked again, better
    enqueue(run, leaves("client-1"), id="other")
    queue.set_aside(run, "other", queue.WITHDRAWN)
    assert needs(run, Federation()) == []
    assert "client-0/3" not in json.dumps(found)  # a monitoring system need not know which pairs


def test_a_run_at_work_that_failed_or_was_killed(run):
    enqueue(run, leaves("client-1"))
    write(run, "state.json", {"status": "running", "error": ""})
    found = status.of_run(run, connected_to(*NAMES), situation)
    assert (found["ok"], found["run"]["phase"]) == (True, "forget")
    assert found["run"]["queue"][1]["state"] == "at hand"
    long_ago = time.time() - 7200
    for name in ("log.txt", "state.json"):
        os.utime(run / name, (long_ago, long_ago))
    go_on = f"`ease resume {run}` with --superlink ward goes on"
    assert needs(run, connected_to(*NAMES)) == [f"no word for 120 minutes: if it was killed, {go_on}"]
    write(run, "state.json", {"status": "failed", "error": "too few answers"})
    assert needs(run, connected_to(*NAMES)) == [f"the run has failed: too few answers: {go_on}"]


def test_certificates_and_disk(run, monkeypatch):
    soon = Federation(
        "ward", connected_to(*NAMES).nodes, [Certificate("server.pem", SINCE, 29), Certificate("ca.crt", SINCE, 30)]
    )
    assert needs(run, soon) == ["server.pem expires in 29 days: `ease deploy renew`"]
    gone = Federation("ward", connected_to(*NAMES).nodes, [Certificate("ca.crt", SINCE, -1)])
    assert needs(run, gone) == ["ca.crt has expired: `ease deploy rotate-ca`"]
    usage = shutil.disk_usage(run)._replace(free=4)
    monkeypatch.setattr(status.shutil, "disk_usage", lambda _: usage)
    assert needs(run, Federation()) == [f"{run}: 4% of the disk is free: make room"]


def test_all_runs_in_a_line_each(run, learnt, tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    for name in ("a", "b"):
        copy(learnt, home / name)
    write(home / "b", "state.json", {"status": "failed", "error": "no quorum"})
    copy(learnt, home / "broken")
    (home / "broken" / "queue.json").write_text("[")
    found = status.of_all(home, connected_to("client-0", offline=["client-1", "stranger"]), situation)
    assert [(r["folder"], r["status"], r["steps"]["done"]) for r in found["runs"]] == [
        (str(home / "a"), "finished", 1),
        (str(home / "b"), "failed", 1),
    ]
    failed, broken, offline = found["attention"]
    assert failed.startswith("b: the run has failed: no quorum")
    assert "broken/queue.json: not the request queue of a run" in broken
    assert offline == f"client-1 is offline since {SINCE}"  # a stranger is nobody's client


# ---- the command -------------------------------------------------------------------------------------------------------------


def test_the_exit_status_is_for_monitoring(run, monkeypatch, tmp_path):
    monkeypatch.setenv("FLWR_HOME", str(tmp_path))
    (tmp_path / "config.toml").write_text('[superlink.ward]\naddress = "127.0.0.1:9"\ninsecure = true\n')

    def exits(*words):
        done = CliRunner().invoke(cli.app, ["status", *map(str, words)])
        return done.exit_code, done.output

    code, said = exits(run)
    assert code == 0
    assert said.splitlines()[-1] == "all is well"
    request = ForgetRequest.of(ForgetSet(scenario="class", targets=("a",)), "ease", {}, "x").model_dump(mode="json")
    write(run, "set-aside.json", [{"request": request, "why": "w" * 150, "at": SINCE}])
    code, said = exits(run)
    assert code == 1
    assert said.splitlines()[-1] == f"! request x (1 label) is set aside: {'w' * 150}"
    assert max(map(len, said.splitlines()[:-1])) <= 100 + len(str(run))
    code, said = exits(run, "--json")
    assert (code, json.loads(said)["ok"]) == (1, False)
    assert exits(tmp_path)[0] == 2
    code, said = exits("--superlink", "ward")
    assert code == 2
    assert said.startswith("ease status: --superlink ward: Connection to the SuperLink is unavailable")
    assert "--superlink nobody" in exits("--superlink", "nobody")[1]


def test_a_table_is_never_wider_than_the_page():
    from ease_flwr.cli import hosts

    rows = list(hosts._table(("a", "b", "c"), [("x" * 90, "y" * 60, ""), ("1", "2", "3")]))
    assert {len(row) for row in rows[1:2]} == {100}
    assert rows[1].split()[-1] == "-"
    assert "…" in rows[1]


def test_it_is_light(run):
    done = ease("status", str(run))
    assert done.returncode == ("all is well" not in done.stdout), done.stderr  # 1 where the disk is nearly full
    assert done.stdout.rstrip().endswith("[]")


# ---- what the SuperLink says -------------------------------------------------------------------------------------------------


def test_nodes_have_the_names_that_their_keys_were_registered_under(monkeypatch, tmp_path):
    from flwr.cli import utils
    from flwr.proto.control_pb2 import ListNodesResponse
    from flwr.proto.node_pb2 import NodeInfo

    class Client:
        def ListNodes(self, request):  # noqa: N802
            nodes = [
                NodeInfo(node_id=7, name="b", status="online", last_activated_at="2026-11-26T11:00:00+01:00", public_key=b"k"),
                NodeInfo(node_id=8, name="a", status="offline", last_deactivated_at="2026-11-26T09:00:00+00:00"),
                NodeInfo(node_id=9, name="gone", status="unregistered"),
                NodeInfo(node_id=10, name="c", status="registered"),
            ]
            return ListNodesResponse(nodes_info=nodes)

        def close(self):
            pass

    monkeypatch.setenv("FLWR_HOME", str(tmp_path))
    (tmp_path / "config.toml").write_text('[superlink.ward]\naddress = "127.0.0.1:9"\ninsecure = true\n')
    monkeypatch.setattr(utils, "init_http_client_from_connection", lambda _: Client())
    assert connected.nodes("ward") == [
        Node("a", "8", "", False, "2026-11-26T09:00:00Z"),
        Node("b", "7", hashlib.sha256(b"k").hexdigest(), True, "2026-11-26T10:00:00Z"),
        Node("c", "10", "", False, ""),
    ]
    assert connected.certificates("ward") == []  # without TLS


def certificate(file, until):
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "ward")])
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.serial_number(1).not_valid_before(until - datetime.timedelta(days=90)).not_valid_after(until)
    with file.open("ab") as f:
        f.write(builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))


@pytest.mark.parametrize("beside", [True, False], ids=["beside", "in server/"])
def test_days_until_certificates_expire(monkeypatch, tmp_path, beside):
    now = datetime.datetime(2026, 11, 26, tzinfo=datetime.UTC)
    root, server = tmp_path / ("server" if beside else "ca"), tmp_path / "server"
    for folder in {root, server}:
        folder.mkdir()
    for days in (400, 20):  # while an authority is replaced, both are in the file
        certificate(root / "ca.crt", now + datetime.timedelta(days=days, hours=1))
    certificate(server / "server.pem", now - datetime.timedelta(hours=1))
    monkeypatch.setenv("FLWR_HOME", str(tmp_path))
    (tmp_path / "config.toml").write_text(f'[superlink.ward]\naddress = "127.0.0.1:9"\nroot-certificates = "{root}/ca.crt"\n')
    found = connected.certificates("ward", now)
    assert [(c.file, c.days) for c in found] == [(f"{server}/server.pem", -1), (f"{root}/ca.crt", 20)]
    (server / "server.pem").write_text("nothing")
    with pytest.raises(ConfigError, match=r"server.pem: not a certificate .*: restore it"):
        connected.certificates("ward", now)
