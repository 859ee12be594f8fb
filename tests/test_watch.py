"""A SuperLink and SuperNodes that are watched: what is said at the start, at the end, and (slow) of Flower's own programs."""

import os
import socket
import ssl
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from ease_flwr.config import ConfigError
from ease_flwr.hosts import certificates, deploy, probe, processes, rotation, settings, watch
from ease_flwr.hosts.settings import Deployment

CA = Path("/opt/ease/a/ca.crt")


@pytest.fixture
def federation(tmp_path):
    folder = tmp_path / "federation"
    ports = {"port": processes.free_port(), "loopback_port": processes.free_port()}
    deploy.init(folder, Deployment(address="127.0.0.1", hosts=("a", "b"), **ports))
    for host in "ab":
        change(folder / "hosts" / host / "node.toml", "9094", str(processes.free_port()))
        change(folder / "hosts" / host / "node.toml", '"/data"', '""')
    return folder


def change(file, this, there):
    text = file.read_text()
    assert this in text
    file.write_text(text.replace(this, there))


@pytest.fixture
def answering():
    """Starts servers on loopback that answer with a certificate, or in plain words; gives host:port."""
    sockets = []

    def start(certificate=None, key=None):
        listening = socket.create_server(("127.0.0.1", 0))
        sockets.append(listening)
        context = None
        if certificate:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate, key)

        def serve():
            while True:
                try:
                    connection, _ = listening.accept()
                except OSError:
                    return
                try:
                    if context:
                        context.wrap_socket(connection, server_side=True).close()
                    else:
                        connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
                except OSError:
                    pass
                finally:
                    connection.close()

        threading.Thread(target=serve, daemon=True).start()
        return f"127.0.0.1:{listening.getsockname()[1]}"

    yield start
    for listening in sockets:
        listening.shutdown(socket.SHUT_RDWR)
        listening.close()


def test_a_call_tells_what_is_wrong_with_a_server(answering, tmp_path):
    authority, other, key = certificates.new_authority(), certificates.new_authority(), certificates.new_key()
    ours, theirs = (certificates.certificates(a).decode() for a in (authority, other))

    def server(address):
        (tmp_path / "pem").write_bytes(certificates.server_certificate(authority, key, address))
        (tmp_path / "key").write_bytes(key)
        return answering(tmp_path / "pem", tmp_path / "key")

    good = server("127.0.0.1")
    assert probe.probe(good, ours, CA) == probe.Seen(days=certificates.DAYS - 1)
    assert probe.probe(good, theirs + ours, CA).why == ""
    assert probe.probe(good, theirs, CA).why == (
        f"{good}: the server's certificate is not signed by CA {CA}: get the new ca.crt from the operator"
    )
    assert probe.probe(good, ours, CA, "fl.example.org").why.startswith(f"{good}: the server's certificate is not for fl.ex")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(certificates, "DAYS", 0)
        old = server("127.0.0.1")
    time.sleep(1.1)
    assert probe.probe(old, ours, CA).why == (
        f"{old}: the server's certificate has expired: the operator runs `ease deploy renew`"
    )
    plain = answering()
    assert probe.probe(plain, ours, CA).why.startswith(f"{plain} answers without TLS")
    assert probe.probe(plain).why == ""
    nobody = f"127.0.0.1:{processes.free_port()}"
    assert probe.probe(nobody, ours, CA).why == f"{nobody} cannot be reached: Connection refused"


def test_a_complaint_is_told_once_and_lasts_as_long_as_its_patience(monkeypatch):
    clock, seen, said = [0.0], [""], []
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    complaint = watch.Complaint(lambda: seen[0], 60)

    def at(seconds, what):
        clock[0], seen[0] = seconds, what
        return complaint.told(said.append)

    assert not at(0, "")
    assert not at(10, "away")
    assert not at(60, "away")
    assert not at(65, "")
    assert not at(100, "away")
    assert not at(130, "other")
    assert at(161, "other") == "other"
    again = ["away (waiting 60 s)", "no longer: away", "away (waiting 60 s)", "other (waiting 60 s)"]
    assert said == again


def refuses(act, folder, line):
    with pytest.raises(ConfigError) as said:
        act(folder)
    assert str(said.value) == line.format(folder)


def test_what_a_host_lacks_is_one_line_at_the_start(federation, monkeypatch):
    home = federation / "hosts" / "a"
    monkeypatch.setattr(watch, "_watched", lambda *_: "started")
    assert watch.node(home) == "started"
    toml = (home / "node.toml").read_text()
    (home / "node.toml").write_text(toml.replace('data-root = ""', 'data-root = "/no/such"'))
    refuses(watch.node, home, "{}/node.toml: data-root /no/such is not there, or may not be read here")
    (home / "node.toml").write_text(toml.replace('base-model = ""', 'base-model = "/no/such"'))
    refuses(watch.node, home, "{}/node.toml: base-model /no/such is not there, or may not be read here")
    (home / "node.toml").write_text(toml)
    port = settings.read(settings.Host, home / "node.toml").port
    with socket.create_server(("127.0.0.1", port)):
        refuses(watch.node, home, f"port {port} of 127.0.0.1 is taken: does this SuperNode run? Or change {{}}/node.toml")
    key, trusted = (home / "node.key").read_bytes(), (home / "ca.crt").read_bytes()
    (home / "node.key").unlink()
    refuses(
        watch.node,
        home,
        "{}/node.key: No such file or directory: it comes with the folder that `ease deploy init` has written",
    )
    (home / "node.key").write_text("no key")
    with pytest.raises(ConfigError, match=r"node\.key: .*: get it from the operator again \(`ease deploy replace-key`\)$"):
        watch.node(home)
    (home / "node.key").write_bytes(key)
    (home / "ca.crt").write_text("nothing")
    refuses(watch.node, home, "{}/ca.crt: no certificate in it: get it from the operator again")
    monkeypatch.setattr(certificates, "DAYS", 0)
    (home / "ca.crt").write_bytes(certificates.certificates(certificates.new_authority()))
    refuses(watch.node, home, "{}/ca.crt expired 1 days ago: the operator runs `ease deploy rotate-ca`, and sends a new one")
    with (home / "ca.crt").open("ab") as f:
        f.write(trusted)  # one of them is good
    assert watch.node(home) == "started"


def test_what_the_server_lacks_is_one_line_at_the_start(federation, monkeypatch):
    server = federation / "server"
    monkeypatch.setattr(watch, "_watched", lambda *_: "started")
    assert watch.link(server) == "started"
    port = settings.read(settings.Server, server / "link.toml").port
    with socket.create_server(("127.0.0.1", port)):
        refuses(watch.link, server, f"port {port} is taken: end the program that listens there, or change {{}}/link.toml")
    key, certificate, trusted = ((server / n).read_bytes() for n in ("server.key", "server.pem", "ca.crt"))
    (server / "server.key").write_bytes(certificates.new_key())
    refuses(watch.link, server, "{0}/server.pem is not of server.key: carry both here again")
    (server / "server.key").write_bytes(key)
    (server / "ca.crt").write_bytes(certificates.certificates(certificates.new_authority()))
    refuses(watch.link, server, "{0}/server.pem is not signed by {0}/ca.crt: carry both here again")
    (server / "ca.crt").write_bytes(trusted)
    with monkeypatch.context() as patch:
        patch.setattr(certificates, "DAYS", 0)
        rotation.renew(federation)
    refuses(watch.link, server, "{0}/server.pem expired 1 days ago: `ease deploy renew`, and carry the new one here")
    (server / "server.pem").write_bytes(certificate)
    (server / "link.toml").unlink()
    refuses(watch.link, server, "{0}/link.toml: No such file or directory")


def test_flower_is_told_what_the_client_app_reads(federation):
    from flwr.common.config import parse_config_args

    home = federation / "hosts" / "a"
    there = settings.Host(client_name="a", server="x:1", data_root="/a b/ä", cache="/c=d", base_model="", device="cuda")
    command = watch.supernode(home, there)
    config = parse_config_args([command[command.index("--node-config") + 1]])
    assert config == {
        "client-name": "a",
        "data-root": "/a b/ä",
        "cache": "/c=d",
        "device": "cuda",
        "home": str(home),
        "policy": f"{home}/policy.toml",
    }
    variables = watch.environment(home)
    assert variables["PATH"].split(":")[0] == os.path.dirname(sys.executable)
    assert (variables["FLWR_HOME"], variables["EASE_FLWR_HOME"]) == (f"{home}/flwr", f"{home}/runs")
    assert variables["FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION"] == "1"


def test_a_process_that_calls_nobody_is_told_from_one_that_does():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        code = f"import socket, time\nc = socket.create_connection(('127.0.0.1', {port}))\nprint(flush=True)\ntime.sleep(600)"
        with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
            try:
                process.stdout.readline()
                assert watch.calls(psutil.Process(process.pid), own=1)
                with server.accept()[0] as accepted:
                    own = accepted.getpeername()[1]
                    assert not watch.calls(psutil.Process(process.pid), own)  # as one that is called at its own port
            finally:
                process.kill()


def test_health_of_what_does_not_run(federation):
    link = settings.read(settings.Server, federation / "server" / "link.toml")
    away, door = (f"{where} cannot be reached: Connection refused" for where in (link.here, link.door))
    home = federation / "hosts" / "a"
    assert probe.health(home, 14) == (
        False,
        f"a: `ease deploy node {home}` does not run: `journalctl -u ease-supernode` says why; {door}",
    )
    server = federation / "server"
    says = "`journalctl -u ease-superlink` says why"
    both = f"{says}; {away}; nginx: {door}: `journalctl -u ease-proxy` says why"
    assert probe.health(server, 14) == (False, f"server: `ease deploy link {server}` does not run: {both}")
    with pytest.raises(ConfigError, match=r"no node\.toml and no link\.toml in it: expected the folder of a host or of the"):
        probe.health(federation, 14)
    (server / "running.json").write_text(f'{{"pid": {os.getpid()}, "created": 0}}')  # another process has its number now
    assert "does not run" in probe.health(server, 14)[1]
