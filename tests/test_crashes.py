"""Runs that are killed, resumed, short of disk or changed on disk: they go on to the last bit, or say in one line why not."""

import json
import random
import subprocess
import sys

import pytest
from safetensors import SafetensorError

from ease_flwr import config, launcher
from ease_flwr.config import ConfigError
from tests.in_process_grid import submit
from tests.small import hashes, settings
from tests.standing import SIMULATION, copy, die, enqueue, leaves

pytestmark = pytest.mark.usefixtures("in_process")


def test_a_broken_cache_is_computed_again(whole, tmp_path, monkeypatch):
    monkeypatch.setenv("EASE_FLWR_HOME", str(tmp_path / "home"))
    submit({**settings(tmp_path / "first"), "until": "learn"})
    for file in (tmp_path / "home").glob("cache/*/theta.safetensors"):
        file.unlink()  # a hard link of the run
        file.write_bytes(b"cut")
    submit({**settings(tmp_path / "run"), "until": "learn"})
    assert "computed again, the cache is broken" in (tmp_path / "run" / "log.txt").read_text()
    assert hashes(tmp_path / "run")["original"] == hashes(whole)["original"]


@pytest.mark.parametrize("moment", [4, pytest.param(9, marks=pytest.mark.slow)])
def test_a_killed_run_goes_on_as_if_nothing_had_happened(whole, tmp_path, moment, monkeypatch):
    monkeypatch.setenv("EASE_FLWR_HOME", str(tmp_path / "home"))  # no cache
    run_config = settings(tmp_path / "run", **{"forget.then": "client-1"})
    assert die(run_config, moment)
    assert json.loads((tmp_path / "run" / "state.json").read_text())["status"] == "failed"
    launcher.resume(tmp_path / "run", SIMULATION)
    assert hashes(tmp_path / "run") == hashes(whole)
    assert "goes on after" in (tmp_path / "run" / "log.txt").read_text()
    assert not list((tmp_path / "run").glob("journal/*"))
    events = map(json.loads, (tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
    rounds = [e["round"] for e in events if "answered" in e]
    assert [rounds.count(n) for n in (1, 2, 3, 4)] == [4, 4, 1, 1]  # learn, forget, forget-2, continuation: said once


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_killed_again_and_again_at_random_moments(whole, tmp_path, seed, monkeypatch):
    monkeypatch.setenv("EASE_FLWR_HOME", str(tmp_path / "home"))
    draw = random.Random(seed)
    run_config = settings(tmp_path / "run", **{"forget.then": "client-1"})
    deaths = 0
    while die(run_config, draw.randint(3, 7)):
        deaths += 1
        run_config = {**run_config, "resume": True} if (tmp_path / "run" / "queue.json").is_file() else run_config
    assert deaths >= 4
    assert hashes(tmp_path / "run") == hashes(whole)


def dead(tmp_path, monkeypatch, moment=9):
    monkeypatch.setenv("EASE_FLWR_HOME", str(tmp_path / "home"))
    run_config = settings(tmp_path / "run")
    assert die(run_config, moment)
    return tmp_path / "run"


@pytest.mark.slow
def test_every_kept_file_is_checked(whole, tmp_path, monkeypatch):
    run = dead(tmp_path, monkeypatch)
    files = sorted([*run.glob("journal/*/*.safetensors"), *run.glob("phases/*/*.*"), *run.glob("phases/*/history/*/00001.*")])
    assert len(files) >= 6
    draw = random.Random(0)
    for file in files:
        good = file.read_bytes()
        for change in ("cut", "flip"):
            position = draw.randrange(len(good))
            flipped = good[:position] + bytes([good[position] ^ 4]) + good[position + 1 :]
            file.unlink()  # a hard link of the cache
            file.write_bytes(good[: len(good) // 2] if change == "cut" else flipped)
            kept = {p: p.read_bytes() for p in files}
            with pytest.raises(ConfigError, match=f"{run}/.*(its sha256|not an exchange|phase.json: )") as error:
                launcher.resume(run, SIMULATION)
            assert "\n" not in str(error.value)
            assert {p: p.read_bytes() for p in files} == kept  # nothing is overwritten
        file.write_bytes(good)
    launcher.resume(run, SIMULATION)


@pytest.fixture
def little_room(tmp_path):
    """A file system of half a megabyte."""
    place = tmp_path / "little"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", str(place)], capture_output=True).returncode:
        pytest.skip("no right to mount a small file system here")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.mark.slow
def test_a_full_disk_loses_nothing(whole, little_room, tmp_path, monkeypatch):
    monkeypatch.setenv("EASE_FLWR_HOME", str(tmp_path / "home"))
    run = little_room / "run"
    with pytest.raises((OSError, SafetensorError), match="No space left on device"):
        submit(settings(run, **{"forget.then": "client-1"}))
    state = json.loads((run / "state.json").read_text())
    assert state["status"] == "running" or state["error"].startswith(f"the disk of {run} is full: make room, then `ease resume")
    subprocess.run(["mount", "-o", "remount,size=200m", str(little_room)], check=True)
    launcher.resume(run, SIMULATION)
    assert hashes(run) == hashes(whole)


@pytest.mark.slow
def test_a_clock_that_goes_backwards_changes_nothing(whole, tmp_path, monkeypatch):
    monkeypatch.setenv("EASE_FLWR_HOME", str(tmp_path / "home"))
    now = [2e9]

    def earlier():
        now[0] -= 3600
        return now[0]

    monkeypatch.setattr("time.time", earlier)
    submit(settings(tmp_path / "run", **{"forget.then": "client-1"}))
    assert hashes(tmp_path / "run") == hashes(whole)


def test_other_settings_and_other_code_are_refused(tmp_path, monkeypatch):
    run = dead(tmp_path, monkeypatch)
    with pytest.raises(ConfigError, match=r"was begun with another learn.lr: go on with the settings in its experiment.json"):
        submit({**settings(run, **{"learn.lr": 0.1}), "resume": True})
    monkeypatch.setattr("ease_flwr.store.run.code_hash", lambda: "f" * 64)
    with pytest.raises(
        ConfigError, match=r"a phase was begun by other code \(\w{12}, this is ffffffffffff\): finish it with that"
    ):
        submit({**settings(run), "resume": True})


def test_a_phase_that_was_begun_after_an_upgrade_goes_on(learnt, whole, tmp_path, monkeypatch):
    """The code of a phase is its own, not that of the run's first day."""
    monkeypatch.setenv("EASE_FLWR_HOME", str(tmp_path / "home"))
    run = copy(learnt, tmp_path / "run")
    for module in ("ease_flwr.store.run", "ease_flwr.exchange.roll_call", "ease_flwr.config"):
        monkeypatch.setattr(f"{module}.code_hash", lambda: "f" * 64)
    enqueue(run, leaves("client-0"), rounds=2, bke={"enabled": True}, lock={"strength": 20})
    assert die({**settings(run), "resume": True}, 5)
    assert any(run.glob("journal/*/*"))
    submit({**settings(run), "resume": True})
    assert hashes(run)["unlearned"] == hashes(whole)["unlearned_1"]


@pytest.mark.slow
def test_kill_9_at_random_moments(tmp_path):
    command = [sys.executable, "-m", "tests.kill_9", str(tmp_path), "2"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, cwd=config.APP)
    assert done.stdout.endswith("every run as without\n"), done.stdout + done.stderr
