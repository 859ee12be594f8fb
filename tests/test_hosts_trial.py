"""The trial of separate hosts (benchmarks/hosts.py) itself: its machines, and what it says where it cannot run or fails."""

import json

import pytest

from benchmarks import hosts, wards
from benchmarks.machines import Network, Service, TrialError, impossible
from ease_flwr.hosts.processes import Family


@pytest.fixture
def network():
    if why := impossible():
        pytest.skip(why)
    made = not hosts.HOME.exists()
    hosts.HOME.mkdir(parents=True, exist_ok=True)
    with Family(grace=1) as family:
        yield Network(family.folder, family)
    if made:
        hosts.HOME.rmdir()


def test_where_it_cannot_run_it_is_skipped_and_not_passed(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(hosts, "impossible", lambda: "needs root")
    assert hosts.main(tmp_path / "x.json", []) == hosts.SKIPPED
    found = json.loads((tmp_path / "x.json").read_text())
    assert (found["skipped"], found["passed"], found["steps"]) == ("needs root", False, [])
    assert capsys.readouterr().out == "skipped: needs root\n"
    assert hosts.main(tmp_path / "x.json", ["magic"]) == 2


def test_a_step_that_fails_says_what_was_said(monkeypatch, capsys):
    def magic(trial):
        raise TrialError("server: `ease magic` ended with 2")

    monkeypatch.setitem(hosts.STEPS, "magic", magic)
    steps = []
    assert not hosts.done(None, "magic", steps)
    assert [(s["step"], s["passed"], s["said"]) for s in steps] == [
        ("magic", False, "TrialError: server: `ease magic` ended with 2")
    ]
    assert capsys.readouterr().out.startswith("FAILED magic ")


def test_machines_have_folders_of_their_own_and_reach_each_other(network):
    a, b = network.add("a"), network.add("b")
    a.at("/opt/ease/secret").write_text("of a")
    assert a.run("cat secret") == "of a"
    with pytest.raises(TrialError, match=r"(?s)b: `cat secret` ended with 1, not 0:\n.*No such file"):
        b.run("cat secret")
    assert b.run(f"ls {network.folder}") == ""
    a.copy("/opt/ease/secret", b, "/opt/ease/copied")
    assert b.run("cat copied") == "of a"
    a.at("/opt/ease/listen.py").write_text(
        "import os, socket\n"
        "listening = socket.create_server(('10.77.0.1', 8000))\n"
        "print(os.environ['SAYS'], listening.accept()[0].recv(9).decode())\n"
    )
    a.at("/opt/ease/x.service").write_text(
        "[Service]\nWorkingDirectory=/opt/ease\nEnvironment=HOME=/opt/ease SAYS=heard\nRestartSec=0.1\n"
        "ExecStart=/opt/ease/python/bin/python3 listen.py\n"
    )
    service = Service(a, "/opt/ease/x.service")
    service.start()
    say = 'python/bin/python3 -c \'import socket; socket.create_connection(("10.77.0.1", 8000), 5).sendall(b"hello")\''
    for _ in range(2):  # it comes back when it has ended
        b.run(f"until {say} 2> said; do sleep 0.1; done")
    service.stop()
    assert a.log("x").read_text().count("heard hello") == 2
    with pytest.raises(TrialError):
        b.run(say)  # nobody is there any more
    with pytest.raises(TrialError, match="unreachable"):
        b.run("python/bin/python3 -c 'import socket; socket.create_connection((\"192.0.2.1\", 80), 5)'")  # no way out


def test_each_host_has_a_label_that_no_other_has():
    labels = [wards.alone(name) for name in wards.HOSTS]
    assert len(set(labels)) == len(wards.HOSTS)
    assert all(labels)
