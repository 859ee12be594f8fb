"""What a machine does with the folder that it gets: its units, its rules, its installer. By the tools of the machine itself."""

import os
import pwd
import shutil
import stat
import subprocess
import sys
import time
from contextlib import contextmanager

import pytest
import yaml

from ease_flwr.hosts import deploy, settings
from ease_flwr.hosts.settings import Deployment

ROOT = os.geteuid() == 0
PORT = 9443
INSIDE = 9093


def needs(*programs, root=False):
    """Skips a test where a program is not there, or who runs it is not root."""
    missing = [p for p in programs if shutil.which(p, path=f"{os.environ['PATH']}:/usr/sbin:/sbin") is None]
    why = f"no {missing[0]} here" if missing else "needs root" if root and not ROOT else ""
    return pytest.mark.skipif(bool(why), reason=why)


def run(*command, **options):
    variables = {**os.environ, "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin"}
    return subprocess.run(command, env=variables, capture_output=True, text=True, timeout=60, **options)


def done(*command, **options):
    found = run(*command, **options)
    assert found.returncode == 0, found.stdout + found.stderr
    return found.stdout


@pytest.fixture
def machine(tmp_path):
    """A federation whose prefix is a folder of this machine, with something that could be a program."""
    prefix = tmp_path / "opt"
    (prefix / "venv" / "bin").mkdir(parents=True)
    (prefix / "venv" / "bin" / "ease").write_text("#!/bin/sh\n")
    (prefix / "venv" / "bin" / "ease").chmod(0o755)
    plan = Deployment(address="127.0.0.1", hosts=("a", "b"), port=PORT, prefix=str(prefix), user="daemon", allow=("192.0.2.2",))
    deploy.init(tmp_path / "federation", plan)
    return tmp_path


UNITS = ("server/ease-superlink.service", "server/ease-proxy.service", "hosts/a/ease-supernode.service")


@needs("systemd-analyze", "nginx")
@pytest.mark.parametrize("unit", UNITS)
def test_units_pass_the_lint_of_systemd(machine, unit):
    found = run("systemd-analyze", "verify", str(machine / "federation" / unit))
    assert found.returncode == 0, found.stderr
    assert unit.partition("/")[2].split("/")[-1] not in found.stderr  # no remark about it


@needs("nft")
@pytest.mark.parametrize("allow", [(), ("192.0.2.7", "192.0.2.128/25"), ("2001:db8::/64", "192.0.2.7")])
def test_rules_pass_the_check_of_nft(allow, tmp_path):
    if not ROOT:
        pytest.skip("nft -c needs root")
    deploy.init(tmp_path / "new", Deployment(address="server", hosts=("a",), allow=allow, user="daemon"))
    done("nft", "-c", "-f", str(tmp_path / "new" / "server" / "ease.nft"))


SERVE = "import http.server as h; h.ThreadingHTTPServer(('0.0.0.0', {}), h.SimpleHTTPRequestHandler).serve_forever()"
CALL = "import socket; socket.create_connection(('{}', {}), 2).close()"


@contextmanager
def two_machines():
    """Two network namespaces with a wire between them: a server, 192.0.2.1, and somebody with 192.0.2.2 and 192.0.2.3."""
    server, other = (f"ease-{os.getpid()}-{k}" for k in "so")
    try:
        for name in (server, other):
            done("ip", "netns", "add", name)
            done("ip", "-n", name, "link", "set", "lo", "up")
        done("ip", "-n", server, "link", "add", "wire", "type", "veth", "peer", "name", "wire", "netns", other)
        for name, addresses in ((server, "1"), (other, "23")):
            for k in addresses:
                done("ip", "-n", name, "address", "add", f"192.0.2.{k}/24", "dev", "wire")
            done("ip", "-n", name, "link", "set", "wire", "up")
        yield server, other
    finally:
        for name in (server, other):
            run("ip", "netns", "del", name)


@needs("nft", "ip", "setpriv", "bash", root=True)
def test_rules_let_in_loopback_and_hosts_and_drop_others(machine):
    if run("ip", "netns", "add", f"ease-{os.getpid()}").returncode:
        pytest.skip("no network namespaces here")
    run("ip", "netns", "del", f"ease-{os.getpid()}")

    def inside(name, *command):
        return run("ip", "netns", "exec", name, *command)

    def reaches(name, address, port, source=""):
        code = CALL.format(address, port).replace(", 2)", f", 2, ('{source}', 0))" if source else ", 2)")
        return inside(name, sys.executable, "-c", code).returncode == 0

    with two_machines() as (server, other):
        serving = [
            subprocess.Popen(
                ["ip", "netns", "exec", server, sys.executable, "-c", SERVE.format(port)], stderr=subprocess.DEVNULL
            )
            for port in (PORT, PORT + 1, INSIDE)
        ]
        try:
            limit = time.monotonic() + 30
            while not all(reaches(other, "192.0.2.1", PORT + k, "192.0.2.3") for k in (0, 1)):
                assert time.monotonic() < limit
            rules = str(machine / "federation" / "server" / "ease.nft")
            for _ in range(2):  # given again it replaces the table
                assert inside(server, "nft", "-f", rules).returncode == 0
            assert reaches(server, "127.0.0.1", PORT)
            assert reaches(server, "192.0.2.1", PORT)
            assert reaches(other, "192.0.2.1", PORT, "192.0.2.2")
            assert not reaches(other, "192.0.2.1", PORT, "192.0.2.3")
            assert reaches(other, "192.0.2.1", PORT + 1, "192.0.2.3")  # what is not ours is left alone
            for account, status in (("root", 0), ("daemon", 0), ("nobody", 1)):  # the SuperLink, on loopback
                as_ = ["setpriv", "--reuid", account, "--clear-groups"]
                assert inside(server, *as_, "bash", "-c", f"< /dev/tcp/127.0.0.1/{INSIDE}").returncode == status
            assert "counter packets 0" not in inside(server, "nft", "list", "table", "inet", "ease").stdout
        finally:
            for process in serving:
                process.terminate()
                process.wait()


@needs("install", "cmp", root=True)
def test_the_installer_can_be_given_again_and_keeps_what_is_edited(machine):
    if os.path.isdir("/run/systemd/system"):
        pytest.skip("systemd runs here: a test installs no unit")
    here, there = machine / "federation" / "hosts" / "a", machine / "opt" / "a"
    said = done("sh", str(here / "install.sh"))
    assert "account daemon: there" in said
    assert "node.key: copied" in said
    assert (
        f"no systemd here: as daemon, run {machine}/opt/venv/bin/ease deploy node {there}, and again whenever it ends" in said
    )
    (there / "node.toml").write_text((there / "node.toml").read_text().replace('"/data"', '"/elsewhere"'))
    (there / "runs").mkdir()
    deploy.replace_key(machine / "federation", "a")
    again = done("sh", str(here / "install.sh"))
    assert "node.key: copied" in again
    assert "node.toml: kept as it is here" in again
    assert "ca.crt: copied" not in again
    assert settings.read(settings.Host, there / "node.toml").data_root == "/elsewhere"
    assert (there / "node.key").read_bytes() == (here / "node.key").read_bytes()
    owner = pwd.getpwnam("daemon").pw_uid
    for path in (there, *there.rglob("*")):
        assert path.stat().st_uid == owner
        assert not stat.S_IMODE(path.stat().st_mode) & 0o077
    assert "copied" not in done("sh", str(here / "install.sh"))


@needs("install", "cmp", "nginx", root=True)
def test_the_installer_of_the_server_has_two_units(machine):
    if os.path.isdir("/run/systemd/system"):
        pytest.skip("systemd runs here: a test installs no unit")
    here, there = machine / "federation" / "server", machine / "opt" / "server"
    said = done("sh", str(here / "install.sh"))
    assert f"as daemon, run {machine}/opt/venv/bin/ease deploy link {there}, and again" in said
    assert f"as daemon, run /usr/sbin/nginx -p {there} -c nginx.conf, and again" in said
    with (there / "nginx.conf").open("a") as f:
        f.write("# of this machine\n")
    assert "nginx.conf: kept as it is here" in done("sh", str(here / "install.sh"))


@needs("install", "cmp", root=True)
def test_the_installer_says_what_is_missing(machine):
    installer = machine / "federation" / "server" / "install.sh"
    installer.write_text(installer.read_text().replace("/usr/sbin/nginx", "/no/nginx"))
    found = run("sh", str(installer))
    assert (found.returncode, found.stderr) == (1, "install.sh: no /no/nginx: install nginx first\n")
    (machine / "opt" / "venv" / "bin" / "ease").unlink()
    found = run("sh", str(installer))
    assert found.returncode == 1
    assert found.stderr == f"install.sh: no {machine}/opt/venv/bin/ease: install ease_flwr there first\n"
    assert not (machine / "opt" / "server").exists()


@pytest.mark.parametrize("folder", ["server", "hosts/b"])
def test_compose_files(machine, folder):
    file = machine / "federation" / folder / "compose.yaml"
    services = yaml.safe_load(file.read_text())["services"]
    if proxy := services.pop("proxy", None):
        assert proxy["command"] == ["nginx", "-p", "/federation", "-c", "nginx.conf", "-g", "user root;"]
    ((name, service),) = services.items()
    assert service["command"] == ["ease", "deploy", {"superlink": "link", "supernode": "node"}[name], "/federation"]
    if shutil.which("docker") is None or run("docker", "compose", "version").returncode:
        pytest.skip("no docker compose here: its syntax as YAML is all that was checked")
    done("docker", "compose", "-f", str(file), "config", "--quiet")
