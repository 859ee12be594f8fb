"""Real `flwr run`s on Ray: the launcher, what ends it, the plain command, too few nodes, and the trap of stale client code."""

import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from ease_flwr.config import APP, BASE_MODEL, base_hash
from ease_flwr.hosts import processes
from ease_flwr.hosts.simulation import own_superlink
from tests.small import SMALL, TINY

pytestmark = pytest.mark.slow

ONE_ROUND = {**SMALL, "learn.rounds": 1, "continuation.rounds": 1, "strategy.rounds": 1}


@pytest.fixture
def environment(tmp_path):
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    notebook = {"FORCE_COLOR": "1", "CLICOLOR_FORCE": "1"}  # as its kernel sets them; flwr's answers are read all the same
    return {**os.environ, **notebook, "EASE_FLWR_HOME": str(tmp_path / "runs"), "PATH": path}


def left_running(environment):
    """Flower's and Ray's processes that this test started: other runs of the machine have another home."""
    words = ("flower-superlink", "flower-superexec", "flwr-simulation", "raylet", "gcs_server")
    found = []
    for process in psutil.process_iter(["cmdline", "environ"]):
        ours = (process.info["environ"] or {}).get("EASE_FLWR_HOME") == environment["EASE_FLWR_HOME"]
        if ours and any(w in " ".join(process.info["cmdline"] or []) for w in words):
            found.append(process.info["cmdline"])
    return found


def ease_run(environment, folder, settings, *flags, **options):
    arguments = [a for k, v in settings.items() for a in ("--set", f"{k}={v}")]
    command = [sys.executable, "-m", "ease_flwr", "run", "--run-dir", str(folder), *flags, *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, **options)


def test_ease_run_does_the_job_and_leaves_nothing_running(environment, tmp_path):
    done = ease_run(environment, tmp_path / "run", ONE_ROUND, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert list(results["models"]) == ["original", "retrain", "retrain_equal", "unlearned", "continued", "retrain_continued"]
    assert "| unlearned |" in done.stdout
    assert f"results in {tmp_path / 'run'}" in done.stdout
    assert "[learn 1/1] 3/3 clients" in done.stdout
    assert not left_running(environment)
    again = ease_run(environment, tmp_path / "again", ONE_ROUND, "--fresh", cwd=tmp_path)
    assert again.returncode == 0
    assert json.loads((tmp_path / "again" / "results.json").read_text())["adapters_sha256"] == results["adapters_sha256"]


def test_what_is_set_around_it_does_not_matter(environment, tmp_path):
    """Paths of sockets end after 107 bytes; nobody listens at the addresses; nothing can be written in /proc."""
    long = tmp_path / ("x" * 60)
    long.mkdir()
    around = {**environment, "TMPDIR": str(long), "RAY_ADDRESS": f"127.0.0.1:{processes.free_port()}"}
    around["RAY_JOB_CONFIG_JSON_ENV_VAR"] = json.dumps({"runtime_env": {"working_dir": "gcs://gone.zip"}})
    around |= {"http_proxy": "http://127.0.0.1:9", "ALL_PROXY": "socks5h://127.0.0.1:9", "no_proxy": "::1/128"}
    around |= {"HOME": "/proc/nobody", "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii", "TERM": "dumb"}
    around.pop("FLWR_HOME", None)
    settings = {**TINY, "learn.rounds": 1, "strategy.rounds": 1, "continuation.rounds": 0}
    done = ease_run(around, tmp_path / "run", settings, "--seed", str(2**63 - 1))
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads((tmp_path / "run" / "state.json").read_text())["status"] == "finished"
    assert not list(long.glob("ray*"))
    assert not left_running(environment)


def test_a_run_whose_words_nobody_reads_ends_and_can_be_resumed(environment, tmp_path):
    run = tmp_path / "run"
    settings = [a for k, v in SMALL.items() for a in ("--set", f"{k}={v}")]
    command = [sys.executable, "-m", "ease_flwr", "run", "--run-dir", str(run), *settings]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline().startswith("starting Flower and Ray")
        process.stdout.close()
        assert process.wait(300) == 1
        said = process.stderr.read()
    assert said.startswith("ease: nobody reads what is said: "), said
    assert said.endswith(f"processes ended; `ease resume {run}` goes on\n")
    assert said.count("\n") == 1
    assert not left_running(environment)


def test_where_ray_cannot_start_one_line_says_why(environment, tmp_path):
    done = ease_run(environment, tmp_path / "run", ONE_ROUND, "--client-cpus", "100000")
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("ease run: the run ended unexpectedly (finished:failed"), done.stderr
    assert "): Ray: ActorPool is empty." in last
    assert not left_running(environment)


def test_failing_run_has_a_failing_exit_status(environment, tmp_path):
    broken = {**ONE_ROUND, "model.weights": str(tmp_path / "broken.json")}
    content = {"format": BASE_MODEL}  # its hash is right, so that it is found out when it is read
    (tmp_path / "broken.json").write_text(json.dumps({**content, "sha256": base_hash(content)}))
    done = ease_run(environment, tmp_path / "run", broken)
    assert done.returncode == 1
    assert "ease run: ConfigError: model.weights:" in done.stderr
    assert "is not a base model" in done.stderr
    assert not (tmp_path / "run" / "results.json").exists()
    assert not left_running(environment)


class Command:
    """An `ease` command in a process of its own, and all that it has started."""

    def __init__(self, environment, said, *arguments):
        self.id, self.said = secrets.token_hex(8), said
        command = [sys.executable, "-m", "ease_flwr", *arguments]
        with said.open("w") as out:
            marked = {**environment, processes.MARK: self.id}
            self.process = subprocess.Popen(command, env=marked, stdout=out, stderr=out)

    def until(self, condition, seconds):
        """Wait for something; fail where it does not come."""
        limit = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < limit, f"{processes.members(self.id)}\n{self.said.read_text()}"
            time.sleep(0.1)

    def trains(self, folder):
        """Wait until a run has begun to train."""
        log = folder / "log.txt"
        self.until(lambda: self.process.poll() is not None or (log.is_file() and "\n[learn 1/" in log.read_text()), 300)
        assert self.process.poll() is None, self.said.read_text()
        names = {p.name() for p in processes.members(self.id)}
        assert "raylet" in names, names

    def temporary(self):
        """Temporary folders of its SuperLinks."""
        links = [p for p in processes.members(self.id) if "flower-superlink" in processes.command_of(p)]
        return {Path(p.environ()["FLWR_HOME"]) for p in links} | {Path(p.cwd()) for p in links}

    def end(self, number):
        """Send it a signal. Everything must be gone within thirty seconds; its exit status."""
        folders = self.temporary()
        assert any(f.name.startswith("ease-flwr-") for f in folders), folders
        self.process.send_signal(number)

        def gone():
            self.process.poll()
            return not processes.members(self.id) and not any(f.exists() for f in folders)

        self.until(gone, 30)
        return self.process.wait(1)


LONGER = {**SMALL, "evaluation.reference": "none"}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=["SIGTERM", "SIGKILL"])
def test_what_ends_a_run_ends_all_of_it_and_resume_goes_on(environment, tmp_path, number):
    run = tmp_path / "run"
    settings = [a for k, v in LONGER.items() for a in ("--set", f"{k}={v}")]
    command = Command(environment, tmp_path / "said", "run", "--run-dir", str(run), *settings)
    command.trains(run)
    status = command.end(number)
    if number == signal.SIGTERM:
        assert status == 128 + signal.SIGTERM
        assert f"processes ended; `ease resume {run}` goes on" in command.said.read_text().splitlines()[-1]
    assert json.loads((run / "state.json").read_text())["status"] != "finished"
    resumed = Command(environment, tmp_path / "resumed", "resume", str(run))
    assert resumed.process.wait(600) == 0, resumed.said.read_text()
    assert json.loads((run / "state.json").read_text())["status"] == "finished"
    assert not left_running(environment)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=["SIGTERM", "SIGKILL"])
def test_what_ends_a_comparison_ends_its_cells(environment, tmp_path, number):
    settings = [a for k, v in SMALL.items() for a in ("--set", f"{k}={v}")]
    arguments = ["--strategies", "ease", "--seeds", "0", "--folder", str(tmp_path / "cells")]
    command = Command(environment, tmp_path / "said", "compare", *arguments, *settings)
    command.trains(tmp_path / "cells" / "seed-0" / "ease")
    command.end(number)
    assert not left_running(environment)


def flwr_run(app, link, nodes, folder, **changes):
    settings = " ".join(f"{k}={v}" for k, v in {**ONE_ROUND, **changes}.items())
    config = f'run-dir="{folder}" set="{settings}"'
    federation = f"num-supernodes={nodes} client-resources-num-cpus=1"
    command = ["flwr", "run", str(app), "ease", "--stream", "--run-config", config, "--federation-config", federation]
    return subprocess.run(command, env=link.environment, capture_output=True, text=True, timeout=600, check=False)


def test_plain_flwr_run_and_too_few_nodes(environment, tmp_path, monkeypatch):
    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    with own_superlink(1) as link:
        flwr_run(APP, link, 3, tmp_path / "plain")
        assert json.loads((tmp_path / "plain" / "state.json").read_text())["status"] == "finished"
        flwr_run(APP, link, 2, tmp_path / "few", **{"federation.start_timeout": 3})
        error = json.loads((tmp_path / "few" / "state.json").read_text())["error"]
    assert error.endswith('`flwr run . --stream --federation-config "num-supernodes=3 client-resources-num-cpus=1"`')


def test_clients_run_the_submitted_code_and_not_that_of_the_daemons_folder(environment, tmp_path, monkeypatch):
    """A SuperLink started in an old checkout must not lend its clients that checkout's code."""
    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    old = tmp_path / "old"
    for name in ("ease_flwr", "strategies", "clients", "conf"):
        shutil.copytree(APP / name, old / name, ignore=shutil.ignore_patterns("__pycache__"))
    with (old / "clients" / "contrastive.py").open("a") as f:
        f.write("\nraise RuntimeError('old code')\n")
    with own_superlink(1, folder=old) as link:
        said = flwr_run(APP, link, 3, tmp_path / "run")
        state = json.loads((tmp_path / "run" / "state.json").read_text())
        assert state["status"] == "finished", said.stdout + said.stderr


def test_learning_now_forgetting_later_in_processes_of_their_own(environment, tmp_path):
    def ease(*arguments):
        command = [sys.executable, "-m", "ease_flwr", *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)

    settings = {**ONE_ROUND, "evaluation.reference": "none"}
    done = ease_run(environment, tmp_path / "whole", settings)
    assert done.returncode == 0, done.stdout + done.stderr
    done = ease_run(environment, tmp_path / "run", settings, "--until", "learn")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "| original |" in done.stdout
    run = str(tmp_path / "run")
    done = ease("forget", run, "--client", "client-0")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "[learn] was done before, 1 rounds" in done.stdout
    done = ease("continue", run, "--rounds", "1")
    assert done.returncode == 0, done.stdout + done.stderr
    later, at_once = (json.loads((tmp_path / n / "results.json").read_text())["adapters_sha256"] for n in ("run", "whole"))
    assert later == at_once
    again = ease("forget", run, "--client", "client-0")
    assert "asked before, by strategy ease: not asked again" in again.stdout
    assert "everything on its request queue is done" in again.stdout
    assert ease("receipt", "keygen").returncode == 0
    assert ease("purge", run).stdout.count("purged") >= 5
    assert ease("receipt", run).returncode == 0
    good = ease("verify", run, "--key", str(tmp_path / "runs" / "receipt-key.pub"))
    assert good.returncode == 0, good.stderr
    (tmp_path / "run" / "results.json").write_text("{}")
    bad = ease("verify", run)
    assert bad.returncode == 2
    assert bad.stderr.startswith(f"ease verify: {run}/results.json was changed since the receipt of")
    assert not left_running(environment)
