"""Which Ray a simulation uses: its own, whatever is set around it, or the cluster that was named."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from ease_flwr import api
from ease_flwr.cli.main import app
from ease_flwr.config import APP, ConfigError
from ease_flwr.hosts import cluster, processes, surroundings
from ease_flwr.hosts.simulation import Where


def test_another_clusters_variables_are_not_handed_on(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "10.1.1.1:6379")
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    monkeypatch.setenv("RAY_memory_usage_threshold", "0.9")
    found = {name: value for name, value in surroundings.environment().items() if name.startswith("RAY_")}
    assert found == {"RAY_memory_usage_threshold": "0.9"}


def test_a_ray_of_its_own_whatever_the_address_says(monkeypatch, tmp_path):
    monkeypatch.setenv("RAY_ADDRESS", "10.1.1.1:6379")
    own = {"RAY_ADDRESS": "local", "RAY_TMPDIR": str(tmp_path)}  # not "": Ray would look for one on this machine
    own |= {"RAY_worker_niceness": "0"}  # other work on this machine does not starve the clients
    assert cluster.variables("", tmp_path) == own
    assert cluster.variables("10.0.0.1:6379", tmp_path) == {"RAY_ADDRESS": "10.0.0.1:6379"}


@pytest.mark.parametrize("address", ["head", "6379", ":6379", "head:", "head:no", "10.0.0.1:99999", "head:-1"])
def test_an_address_is_a_host_and_a_port(address):
    with pytest.raises(ConfigError, match=rf"^--ray {address}: expected HOST:PORT of a Ray cluster's head, for example"):
        cluster.nodes(address)


def test_where_nobody_listens():
    port = processes.free_port()
    with pytest.raises(ConfigError) as error:
        cluster.nodes(f"127.0.0.1:{port}")
    assert str(error.value) == (
        f"--ray 127.0.0.1:{port}: [Errno 111] Connection refused: start the head there, `ray start --head --port {port}`"
    )


@pytest.fixture
def listener():
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


def test_who_listens_may_be_no_ray(listener, monkeypatch):
    monkeypatch.setattr(cluster, "JOIN_SECONDS", 3.0)
    with pytest.raises(ConfigError, match=r"^--ray 127\.0\.0\.1:\d+: who answers there is no Ray; its head says"):
        cluster.nodes(listener)


@pytest.mark.parametrize(
    ("join", "said"),
    [
        (
            "raise SystemExit('[C] Failed to connect to socket at address:/tmp/ray')",
            "this machine is no node of that cluster: ",
        ),
        ("raise RuntimeError('Version mismatch: Ray: 2.55.1 and 2.40.0')", "RuntimeError: Version mismatch: Ray: 2.55.1 and"),
        ("raise SystemExit(9)", "exit status 9"),
    ],
)
def test_why_this_machine_cannot_join(listener, monkeypatch, join, said):
    monkeypatch.setattr(cluster, "JOIN", join)
    with pytest.raises(ConfigError) as error:
        cluster.nodes(listener)
    assert str(error.value).startswith(f"--ray {listener}: {said}")


def test_a_cluster_that_it_can_join_has_so_many_nodes(listener, monkeypatch):
    monkeypatch.setattr(cluster, "JOIN", "import sys; print('joining', sys.argv[1]); print(2)")
    assert cluster.nodes(listener) == 2


@pytest.fixture
def places(monkeypatch):
    """Where each command would have its run take place."""
    asked = []

    def note(*words, where=None, **more):
        asked.append(where or next(w for w in words if isinstance(w, Where)))
        raise ConfigError("enough")

    monkeypatch.setattr(api, "run", note)
    for name in ("resume", "forget", "continue_training", "audit"):
        monkeypatch.setattr(api.Run, name, note)
    return asked


@pytest.mark.parametrize("words", ["run", "resume RUN", "forget RUN --client a", "continue RUN", "audit RUN"])
def test_every_command_that_runs_takes_a_cluster(words, places, monkeypatch):
    CliRunner().invoke(app, [*words.split(), "--ray", "head:6379"])
    monkeypatch.setenv("EASE_FLWR_RAY", "other:6379")
    CliRunner().invoke(app, words.split())
    monkeypatch.delenv("EASE_FLWR_RAY")
    CliRunner().invoke(app, words.split())
    assert [place.ray for place in places] == ["head:6379", "other:6379", ""]


@pytest.mark.parametrize(("address", "ships"), [(None, False), ("local", False), ("10.0.0.1:6379", True)])
def test_a_cluster_is_sent_the_code_and_a_ray_of_ones_own_is_not(address, ships, tmp_path):
    """As `flwr-simulation` imports it, before it starts Ray."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    program = "import sys; sys.argv = ['flwr-simulation']; import ease_flwr.client_app, os, json; print(os.getcwd())"
    program += "; print(os.environ.get('RAY_JOB_CONFIG_JSON_ENV_VAR'))"
    around = plain | {"PYTHONPATH": str(APP)} | ({"RAY_ADDRESS": address} if address else {})
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, env=around, cwd=tmp_path, capture_output=True, text=True, check=True)
    folder, job = done.stdout.splitlines()[-2:]
    assert Path(folder) == APP
    assert job == (json.dumps({"runtime_env": {"working_dir": str(APP)}}) if ships else "None")
