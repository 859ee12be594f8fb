"""The server's door: what passes nginx to the SuperLink, and what does not, whoever asks and however it is spelt."""

import http.client
import re
import shutil
import socket
import ssl
import subprocess
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import hypothesis
import hypothesis.strategies as st
import pytest
from flwr.superlink.routers.fleet.router import router as fleet
from hypothesis import given

from ease_flwr.hosts import certificates, deploy, probe, processes, settings, watch
from ease_flwr.hosts.settings import Deployment

CONTROL = "/v1/control/list-nodes"
needs_nginx = pytest.mark.skipif(not Path(deploy.NGINX).is_file(), reason=f"no {deploy.NGINX} here")


def federation(folder):
    ports = {"port": processes.free_port(), "loopback_port": processes.free_port()}
    deploy.init(folder, Deployment(address="127.0.0.1", hosts=("a", "b"), **ports))
    return folder / "server"


def named(text):
    """The paths that a configuration of nginx lets pass."""
    passing = re.findall(r"location ~ \^/v1/fleet/\((.*)\)\\z ", text)
    return {f"/v1/fleet/{name}" for names in passing for name in names.split("|")}


def test_what_hosts_need_passes_and_nothing_else_is_named(tmp_path):
    """With another Flower that asks for more, this fails before a host does."""
    text = (federation(tmp_path / "new") / "nginx.conf").read_text()
    needed = {route.path for route in fleet.routes} - {"/v1/fleet/register-node", "/v1/fleet/unregister-node"}
    assert named(text) == needed  # a node is registered by the operator, through Control
    assert len(re.findall(r"location ", text)) == 3
    assert text.count("proxy_pass") == 2


def test_the_superlink_is_told_to_listen_on_loopback_alone(tmp_path):
    server = federation(tmp_path / "new")
    command = watch.superlink(server, settings.read(settings.Server, server / "link.toml"))
    assert command[command.index("--host") + 1] == "127.0.0.1"
    (server / "link.toml").write_text('host = "0.0.0.0"\nport = 9092\n')
    with pytest.raises(deploy.ConfigError, match=r"link\.toml: line 1: unknown key host \(known: port, proxy, insecure\)"):
        settings.read(settings.Server, server / "link.toml")


class Behind:
    """In place of a SuperLink: answers 200 to everything, over TLS with the server's certificate, and notes what came."""

    def __init__(self, server):
        self.asked = []
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.load_cert_chain(server / "server.pem", server / "server.key")
        port = settings.read(settings.Server, server / "link.toml").port
        self.listening = socket.create_server(("127.0.0.1", port))
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self):
        while True:
            try:
                plain, _ = self.listening.accept()
            except OSError:
                return
            with suppress(OSError), plain, self.context.wrap_socket(plain, server_side=True) as connection:
                self._answer(connection)

    def _answer(self, connection):
        head, _, rest = connection.recv(65536).partition(b"\r\n\r\n")
        if not head:  # of somebody who did not like the certificate
            return
        length = int(re.search(rb"(?i)content-length: (\d+)", head)[1])
        while len(rest) < length:
            rest += connection.recv(65536)
        self.asked.append((head.split(b"\r\n")[0].decode(), head.decode().lower(), length))
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.listening.shutdown(socket.SHUT_RDWR)
        self.listening.close()


@contextmanager
def nginx(server):
    """nginx of a server's folder, for as long as the block; gives its process."""
    where = settings.read(settings.Server, server / "link.toml")
    with (server / "nginx.out").open("w") as out:
        process = subprocess.Popen([*deploy.proxy(server), "-g", "user root;"], stdout=out, stderr=out)
    try:
        limit = time.monotonic() + 20
        while not processes.listens(where.proxy):
            assert process.poll() is None, (server / "nginx.out").read_text()
            assert time.monotonic() < limit
            time.sleep(0.05)
        yield process
    finally:
        process.terminate()
        process.wait(20)


def call(server, method, path, body=b"", **headers):
    """The status of an answer of nginx to this path, as it is; the certificate is checked."""
    where = settings.read(settings.Server, server / "link.toml")
    context = ssl.create_default_context(cafile=server / "ca.crt")
    connection = http.client.HTTPSConnection("127.0.0.1", where.proxy, context=context, timeout=20)
    try:
        connection.putrequest(method, path, skip_host=True)
        for name, value in {"Host": "localhost", "Content-Length": len(body), **headers}.items():
            connection.putheader(name, str(value))
        connection.endheaders(body)
        return connection.getresponse().status
    finally:
        connection.close()


@needs_nginx
def test_the_configuration_is_one_for_nginx(tmp_path):
    for address in ("127.0.0.1", "2001:db8::1"):
        deploy.init(tmp_path / address, Deployment(address=address, hosts=("a",), port=processes.free_port()))
        said = subprocess.run([*deploy.proxy(tmp_path / address / "server"), "-t"], capture_output=True, text=True)
        assert said.returncode == 0, said.stderr
    assert "listen [::]:" in (tmp_path / "2001:db8::1" / "server" / "nginx.conf").read_text()


@needs_nginx
def test_what_passes_nginx_and_what_does_not(tmp_path):
    server = federation(tmp_path / "new")
    with Behind(server) as behind, nginx(server):
        assert call(server, "POST", "/v1/fleet/pull-messages", b"x" * 100, **{"X-Forwarded-For": "192.0.2.9"}) == 200
        line, head, length = behind.asked.pop()
        assert (line, length) == ("POST /v1/fleet/pull-messages HTTP/1.1", 100)
        assert "x-forwarded-for: 127.0.0.1" in head
        assert call(server, "POST", "/v1/fleet/../fleet/get-run?x=1") == 200
        assert behind.asked.pop()[0] == "POST /v1/fleet/get-run HTTP/1.1"  # as nginx has read it, without what was added
        for path in (
            *(CONTROL, "/v1/control/start-run", "/v1/control/register-node", "/v1/runtime/acquire-task", "/health", "/"),
            *("/docs", "/openapi.json", "/v1/fleet/", "/v1/fleet/register-node", "/v1/fleet/unregister-node"),
            *("/v1/fleet/../control/list-nodes", "/v1/fleet/%2e%2e/control/start-run", "/v1/fleet/..%2fcontrol/start-run"),
            *("/v1/fleet/get-run/../../control/list-nodes", "/v1/fleet/get-run%0d%0aX:1", "/v1/fleet/get-run/", "//v1/x"),
            *("/v1/fleet/%252e%252e/control/list-nodes", "/V1/FLEET/get-run", "/v1/fleet/get-run;/../x"),
        ):
            assert call(server, "POST", path) == 403, path
        assert call(server, "GET", "/v1/fleet/get-run") == 403
        assert call(server, "POST", "/v1/fleet/get-run", b"x" * (64 * 1024 + 1)) == 413
        assert call(server, "POST", "/v1/fleet/push-object", b"x" * (5 * 1024 * 1024 + 4096)) == 200  # a piece of adapters
        assert behind.asked.pop()[2] == 5 * 1024 * 1024 + 4096
        assert call(server, "POST", "/v1/fleet/push-object", b"x" * (16 * 1024 * 1024 + 1)) == 413
        assert not behind.asked
        said = (server / "nginx.out").read_text()
        assert f'access forbidden by rule, client: 127.0.0.1, server: , request: "POST {CONTROL} HTTP/1.1"' in said


@needs_nginx
def test_one_address_has_so_many_connections_and_no_more(tmp_path):
    server = federation(tmp_path / "new")
    where = settings.read(settings.Server, server / "link.toml")
    context, opened = ssl.create_default_context(cafile=server / "ca.crt"), []
    with Behind(server), nginx(server):
        for _ in range(32):  # each begins a request, and does not end it
            opened.append(
                context.wrap_socket(socket.create_connection(("127.0.0.1", where.proxy)), server_hostname="localhost")
            )
            opened[-1].sendall(b"POST /v1/fleet/get-run HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n")
        time.sleep(0.5)
        assert call(server, "POST", "/v1/fleet/get-run") == 503  # SuperNodes try again after it, and after no other
        for connection in opened:
            connection.close()
        time.sleep(0.5)
        assert call(server, "POST", "/v1/fleet/get-run") == 200
        assert "limiting connections by zone" in (server / "nginx.out").read_text()


@needs_nginx
def test_who_asks_too_often_or_too_slowly_is_refused(tmp_path):
    server = federation(tmp_path / "new")
    text = (server / "nginx.conf").read_text()
    for before, after in (("50r/s", "1r/m"), ("burst=200", "burst=1 nodelay"), ("_timeout 10s", "_timeout 1s"), ("30s", "1s")):
        assert before in text
        text = text.replace(before, after)
    (server / "nginx.conf").write_text(text)
    where = settings.read(settings.Server, server / "link.toml")
    context = ssl.create_default_context(cafile=server / "ca.crt")
    begins = b"POST /v1/fleet/get-run HT"
    with Behind(server) as behind, nginx(server):
        for begun in (begins, begins + b"TP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nx"):
            plain = socket.create_connection(("127.0.0.1", where.proxy), 10)
            with plain, context.wrap_socket(plain, server_hostname="localhost") as connection:
                connection.sendall(begun)
                while connection.recv(4096):  # until nginx ends it
                    pass
        assert [call(server, "POST", "/v1/fleet/get-run") for _ in range(2)] == [200, 503]
        assert len(behind.asked) == 1


PIECES = [
    *("", "v1", "fleet", "control", "get-run", "push-object", "list-nodes", "start-run", "v1/fleet/get-run", "FLEET"),
    *(
        "get-run%20",
        "fleet%2fget-run",
        "..",
        ".",
        "%2e%2e",
        "%2E.",
        "%252e%252e",
        "%c0%ae",
        ";",
        "%00",
        "%0d%0a",
        "get-run%0a",
        "%0a",
        "%2f",
        "%5c",
    ),
    *("\\", "?", "#"),
]
"""Of which paths are made: names, and ways to hide some behind others."""


@needs_nginx
def test_no_spelling_of_a_path_reaches_more_than_hosts_need(tmp_path):
    server = federation(tmp_path / "new")
    text = (server / "nginx.conf").read_text()
    (server / "nginx.conf").write_text(text.replace("50r/s", "9999r/s"))
    passing = {f"POST {path} HTTP/1.1" for path in named(text)}
    with Behind(server) as behind, nginx(server):

        @given(st.lists(st.sampled_from(PIECES), min_size=1, max_size=8), st.sampled_from(["POST", "GET", "PUT"]))
        @hypothesis.settings(max_examples=300, deadline=None)
        def asks(pieces, method):
            status = call(server, method, "/" + "/".join(pieces))
            assert status in (200, 400, 403)
            assert len(behind.asked) == (status == 200)
            assert {line for line, _, _ in behind.asked} <= passing
            behind.asked.clear()

        asks()


@needs_nginx
def test_nginx_calls_nobody_but_the_superlink_of_this_federation(tmp_path):
    """Who takes the SuperLink's port on the server first, another account for example, gets no message of a host."""
    server, other = federation(tmp_path / "new"), federation(tmp_path / "other")
    shutil.copy2(server / "link.toml", other / "link.toml")
    with Behind(other) as behind, nginx(server):
        assert call(server, "POST", "/v1/fleet/get-run") == 502
        assert not behind.asked


@needs_nginx
def test_health_of_the_server_sees_what_nginx_does(tmp_path):
    server = federation(tmp_path / "new")
    where = settings.read(settings.Server, server / "link.toml")
    assert (
        f"nginx: {where.door} cannot be reached: Connection refused: `journalctl -u ease-proxy` says"
        in probe.health(server, 14)[1]
    )
    with nginx(server):
        assert "nginx" not in probe.health(server, 14)[1]
        trusted = (server / "ca.crt").read_text()
        assert probe.probe(where.door, trusted, name="localhost", path=CONTROL) == probe.Seen("", certificates.DAYS - 1, 403)
    with Behind(server):
        (server / "link.toml").write_text(f"port = {processes.free_port()}\nproxy = {where.port}\n")
        assert (
            f"127.0.0.1:{where.port} answers 200 to {CONTROL}, not 403: is it nginx with nginx.conf of"
            in probe.health(server, 14)[1]
        )
