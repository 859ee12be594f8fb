"""A federation that stands for months: requests that come later, processes that die, purging, receipts."""

import json
import random
import shutil
import subprocess
import sys

import numpy as np
import pytest
from safetensors import SafetensorError

from ease_flwr import launcher, server_app
from ease_flwr.audit import receipt
from ease_flwr.core import agenda, config, purge
from ease_flwr.core.config import ConfigError, ForgetConfig
from ease_flwr.core.federation import FederationError
from ease_flwr.core.paths import locked
from ease_flwr.core.run import read_phase
from ease_flwr.launcher import Where
from tests.in_process_grid import InProcessGrid
from tests.small import RUN_CONFIG, SMALL
from tests.test_audit import context_of

TINY = {**SMALL, "learn.rounds": 4, "strategy.rounds": 2, "hold.rounds": 2, "learn.batch": 64, "data.scenes": 16}
TINY |= {"evaluation.reference": "none", "strategy.bke_epochs": 1, "data.test_scenes": 16, "data.unseen": 16}


def settings(folder, **changes):
    return {**RUN_CONFIG, "run-dir": str(folder), "set": " ".join(f"{k}={v}" for k, v in (TINY | changes).items())}


def submit(run_config, grid=None):
    """What the launcher does, in this process."""
    server_app.main(grid or InProcessGrid(SMALL["data.clients"], run_config), context_of(run_config))


@pytest.fixture(autouse=True)
def in_process(monkeypatch):
    def submitted(run_config, experiment, folder, where):
        submit(run_config)
        return 0

    monkeypatch.setattr(launcher, "submit", submitted)


def hashes(folder):
    return json.loads((folder / "results.json").read_text())["adapters_sha256"]


def leaves(name):
    return ForgetConfig(targets=(name,))


@pytest.fixture(scope="module")
def whole(home):
    """One command: learn, forget client-0, then client-1, hold."""
    submit(settings(home / "whole", **{"forget.then": "client-1"}))
    return home / "whole"


@pytest.fixture(scope="module")
def learnt(home):
    submit({**settings(home / "learnt"), "until": "learn"})
    return home / "learnt"


def copy(folder, to):
    """A run directory at another place: what it was told about its own is changed by whoever resumes it."""
    return shutil.copytree(folder, to)


def test_requests_that_come_later_give_the_adapters_of_one_command(whole, learnt, tmp_path, capsys):
    run = copy(learnt, tmp_path / "run")
    assert list(hashes(run)) == ["original"]
    assert launcher.forget(run, leaves("client-0"), "ease", [], "", Where()) == 0
    first = hashes(run)
    assert first["unlearned"] == hashes(whole)["unlearned_1"]
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file() and p.name not in ("log.txt", "metrics.jsonl")}
    assert launcher.forget(run, leaves("client-0"), "ease", [], "", Where()) == 0  # the same request changes nothing
    assert "asked before, not asked again" in capsys.readouterr().out
    assert {p: p.read_bytes() for p in before} == before
    launcher.forget(run, leaves("client-1"), "ease", [], "second", Where())
    launcher.learn(run, TINY["hold.rounds"], Where())
    assert hashes(run) == hashes(whole)
    steps = agenda.read(run)
    assert [s.kind for s in steps] == ["learn", "forget", "forget", "hold"]
    assert steps[2].id == "second"
    assert "client-1" not in (run / "run_config.json").read_text()  # requests are not in the run config
    launcher.learn(run, 1, Where())
    assert hashes(run)["unlearned"] == hashes(whole)["unlearned"]
    assert hashes(run)["held"] != hashes(whole)["held"]


def test_it_goes_on_when_the_host_of_who_left_is_gone(whole, learnt, tmp_path):
    run = copy(learnt, tmp_path / "run")
    launcher.forget(run, leaves("client-0"), "ease", [], "", Where())
    agenda.append(run, agenda.Step(kind="hold", rounds=1))
    grid = InProcessGrid(3, settings(run))
    del grid.contexts[100]
    submit({**settings(run), "resume": True}, grid)
    results = json.loads((run / "results.json").read_text())
    assert results["adapters_sha256"]["unlearned"] == hashes(whole)["unlearned_1"]
    assert "client-0" not in results["clients"]["held"]
    del grid.contexts[102]  # one that is needed
    agenda.append(run, agenda.Step(kind="hold", rounds=1))
    with pytest.raises(FederationError, match=r"1 nodes are connected, experiment personas has 3 clients"):
        submit({**settings(run, **{"federation.start_timeout": 0.1}), "resume": True}, grid)


def test_a_broken_cache_is_computed_again(whole, home, tmp_path, monkeypatch):
    monkeypatch.setenv("EASE_FLWR_HOME", str(tmp_path / "home"))
    shutil.copytree(home / "cache", tmp_path / "home" / "cache")
    for file in (tmp_path / "home").glob("cache/*/theta.safetensors"):
        file.write_bytes(file.read_bytes()[:100])
    submit({**settings(tmp_path / "run"), "until": "learn"})
    assert "computed again, the cache is broken" in (tmp_path / "run" / "log.txt").read_text()
    assert hashes(tmp_path / "run")["original"] == hashes(whole)["original"]


def test_wrong_requests_are_one_line_and_change_nothing(learnt, tmp_path):
    run = copy(learnt, tmp_path / "run")
    before = (run / "agenda.json").read_bytes()
    with pytest.raises(ConfigError, match=r"no client client-9; there are client-0, client-1, client-2"):
        launcher.forget(run, leaves("client-9"), "ease", [], "", Where())
    everybody = ForgetConfig(targets=("client-0", "client-1", "client-2"))
    with pytest.raises(ConfigError, match=r"all clients would have left"):
        launcher.forget(run, everybody, "ease", [], "", Where())
    with pytest.raises(ConfigError, match=r"strategy ease: unknown key tua"):
        launcher.forget(run, leaves("client-0"), "ease", ["tua=1"], "", Where())
    with pytest.raises(ConfigError, match=r"nothing was forgotten there yet; learning before that is `learn.rounds`"):
        launcher.learn(run, 3, Where())
    with pytest.raises(ConfigError, match=r"run_config.json: .* it is needed to ask about this run again"):
        launcher.forget(tmp_path, leaves("client-0"), "ease", [], "", Where())
    assert (run / "agenda.json").read_bytes() == before


def test_several_scenarios_after_one_another(learnt, tmp_path):
    run = copy(learnt, tmp_path / "run")
    launcher.forget(run, ForgetConfig(scenario="sample", targets=("client-1/16:24",)), "finetune", ["rounds=1"], "", Where())
    launcher.forget(run, leaves("client-0"), "ease", [], "", Where())
    results = json.loads((run / "results.json").read_text())
    assert results["forget"] == {"scenario": "several", "targets": ["client-1/16:24", "client-0"]}
    assert [q["targets"] for q in results["requests"]] == [["client-1/16:24"], ["client-0"]]
    assert results["cost"]["unlearn"]["rounds"] == 3


class Death(BaseException):
    """Like kill -9: nothing is tidied up."""


class Mortal(InProcessGrid):
    """Dies when messages are sent for the n-th time."""

    def __init__(self, lives, *arguments):
        super().__init__(*arguments)
        self.lives = lives

    def push_messages(self, messages):
        self.lives -= 1
        if self.lives == 0:
            raise Death
        return super().push_messages(messages)


def die(run_config, lives):
    """True if it died before it was finished."""
    try:
        submit(run_config, Mortal(lives, SMALL["data.clients"], run_config))
    except Death:
        return True
    return False


@pytest.mark.parametrize("moment", [4, pytest.param(9, marks=pytest.mark.slow)])
def test_a_killed_run_goes_on_as_if_nothing_had_happened(whole, tmp_path, moment, monkeypatch):
    monkeypatch.setenv("EASE_FLWR_HOME", str(tmp_path / "home"))  # no cache
    run_config = settings(tmp_path / "run", **{"forget.then": "client-1"})
    assert die(run_config, moment)
    assert json.loads((tmp_path / "run" / "state.json").read_text())["status"] == "failed"
    launcher.resume(tmp_path / "run", Where())
    assert hashes(tmp_path / "run") == hashes(whole)
    assert "goes on after" in (tmp_path / "run" / "log.txt").read_text()
    assert not list((tmp_path / "run").glob("journal/*"))
    events = map(json.loads, (tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
    rounds = [e["round"] for e in events if "answered" in e]
    assert [rounds.count(n) for n in (1, 2, 3, 4)] == [4, 4, 1, 1]  # learn, forget, forget-2, hold: told once


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_killed_again_and_again_at_random_moments(whole, tmp_path, seed, monkeypatch):
    monkeypatch.setenv("EASE_FLWR_HOME", str(tmp_path / "home"))
    draw = random.Random(seed)
    run_config = settings(tmp_path / "run", **{"forget.then": "client-1"})
    deaths = 0
    while die(run_config, draw.randint(3, 7)):
        deaths += 1
        run_config = {**run_config, "resume": True} if (tmp_path / "run" / "agenda.json").is_file() else run_config
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
                launcher.resume(run, Where())
            assert "\n" not in str(error.value)
            assert {p: p.read_bytes() for p in files} == kept  # nothing is overwritten
        file.write_bytes(good)
    launcher.resume(run, Where())


@pytest.fixture
def little_room(tmp_path):
    """A file system of half a megabyte."""
    place = tmp_path / "little"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", str(place)], capture_output=True).returncode:
        pytest.skip("no right to mount a small file system here")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_full_disk_loses_nothing(whole, little_room, tmp_path, monkeypatch):
    monkeypatch.setenv("EASE_FLWR_HOME", str(tmp_path / "home"))
    run = little_room / "run"
    with pytest.raises((OSError, SafetensorError), match="No space left on device"):
        submit(settings(run, **{"forget.then": "client-1"}))
    state = json.loads((run / "state.json").read_text())
    assert state["status"] == "running" or state["error"].startswith(f"the disk of {run} is full: make room, then `ease resume")
    subprocess.run(["mount", "-o", "remount,size=200m", str(little_room)], check=True)
    launcher.resume(run, Where())
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
    with pytest.raises(ConfigError, match=r"was begun with another learn: go on with the settings in its experiment.json"):
        submit({**settings(run, **{"learn.lr": 0.1}), "resume": True})
    monkeypatch.setattr("ease_flwr.core.run.code_hash", lambda *patterns: "f" * 64)
    with pytest.raises(
        ConfigError, match=r"a phase was begun by other code \(\w{12}, this is ffffffffffff\): finish it with that"
    ):
        submit({**settings(run), "resume": True})


def test_one_process_at_a_time(learnt, tmp_path):
    run = copy(learnt, tmp_path / "run")
    with (
        locked(run / "run.lock"),
        pytest.raises(ConfigError, match=r"is in use by another process: wait until that has"),
    ):
        submit({**settings(run), "resume": True})
    with locked(run / "run.lock"), pytest.raises(ConfigError, match=r"is in use by another process"):
        purge.purge(run)


@pytest.mark.slow
def test_a_request_that_comes_while_the_run_is_busy_is_handled(learnt, tmp_path):
    run = copy(learnt, tmp_path / "run")
    agenda.append(run, agenda.request(leaves("client-0"), "ease", {}))

    class Busy(InProcessGrid):
        def push_messages(self, messages):
            agenda.append(run, agenda.request(leaves("client-1"), "ease", {}, "late"))
            return super().push_messages(messages)

    submit({**settings(run), "resume": True}, Busy(3, settings(run)))
    assert [q["targets"] for q in json.loads((run / "results.json").read_text())["requests"]] == [["client-0"], ["client-1"]]


def test_single_pairs_are_told_to_their_client_alone(learnt, tmp_path):
    run = copy(learnt, tmp_path / "run")
    asked = ForgetConfig(scenario="sample", targets=("client-1/16:24", "client-2/17"))
    agenda.append(run, agenda.request(asked, "npo", {"rounds": 1}))
    grid = InProcessGrid(3, settings(run))
    submit({**settings(run), "resume": True}, grid)
    for message in grid.sent:
        text = json.dumps(dict(message.content["config"]))
        others = {"client-1/16:24": 101, "client-2/17": 102}
        assert all(message.metadata.dst_node_id == node for target, node in others.items() if target in text)


# ---- purge ----------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_purge_deletes_what_knows_and_says_what_is_kept(whole, tmp_path, monkeypatch):
    monkeypatch.setenv("EASE_FLWR_HOME", str(tmp_path / "home"))
    submit(settings(tmp_path / "run", **{"forget.then": "client-1", "audit.level": "quick", "evaluation.reference": "retrain"}))
    run = tmp_path / "run"
    gone = [read_phase(run / "phases" / p).theta for p in ("learn", "forget")]
    columns = [f.read_bytes()[-400:] for f in run.glob("phases/learn/history/client-[01]/*.safetensors")]
    assert len(columns) == 8
    planned = purge.residual(run)
    assert {x.status for x in planned} == {"to be purged", "kept"}
    found = purge.purge(run)
    assert {x.where for x in found if x.status == "purged"} == {x.where for x in planned if x.status == "to be purged"}
    assert all(x.reason for x in found if x.status == "kept")
    for file in (p for p in tmp_path.rglob("*") if p.is_file()):  # the cache too
        content = file.read_bytes()
        assert not any(theta.tobytes()[1000:1400] in content for theta in gone), file
        assert not any(column in content for column in columns), file
    assert json.loads((run / "audit.json").read_text())["scores"] == {}
    assert not (run / "adapters" / "original").exists()
    launcher.learn(run, 1, Where())  # it still goes on
    assert "original" not in hashes(run)
    assert "held" in hashes(run)
    assert not [x for x in purge.residual(run) if x.status == "to be purged" and "scores" not in x.where]


def test_nothing_to_purge_is_said(learnt, tmp_path):
    run = copy(learnt, tmp_path / "run")
    with pytest.raises(ConfigError, match=r"no request to forget is done there, so there is nothing to purge"):
        purge.purge(run)
    with pytest.raises(ConfigError, match=r"agenda.json: not the agenda of a run"):
        purge.purge(tmp_path)


# ---- receipts ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def receipted(whole, home):
    run = copy(whole, home / "receipted")
    public = receipt.keygen(home / "key.pem")
    receipt.make(run, home / "key.pem")
    purge.purge(run)
    receipt.make(run, home / "key.pem")
    return run, public


def test_a_receipt_says_what_was_asked_done_and_left(receipted, tmp_path):
    run, public = receipted
    said = receipt.opened(run / "receipt.json")["predicate"]
    assert [r["targets"] for r in said["requests"]] == [["client-0"], ["client-1"]]
    assert all(r["done"] >= r["asked"] > "2026" for r in said["requests"])
    assert {x["status"] for x in said["residual"]} == {"purged", "kept"}
    assert "parameters alone cannot prove it" in said["not_shown"]
    assert said["number"] == 2
    copied = copy(run, tmp_path / "elsewhere")  # a second machine's view
    good = receipt.verify(copied, public)
    assert good[0].startswith("2 receipts in an unbroken chain")
    assert receipt.verify(copied / "receipt.json", public)[0].startswith("receipt.json: good signature")
    assert (run.parent / "key.pem").stat().st_mode & 0o777 == 0o600


def test_every_edit_is_detected(receipted, tmp_path):
    run, public = receipted
    copied = copy(run, tmp_path / "run")
    draw = random.Random(1)
    files = ["receipt.json", "receipts/0001.json", "receipts/0002.json", "ledger.jsonl"]
    files += [
        "adapters/unlearned/adapter_model.safetensors",
        "adapters/held/adapter_config.json",
        "results.json",
        "agenda.json",
    ]
    for trial in range(48):
        file = copied / files[trial % len(files)]
        good = file.read_bytes()
        position = draw.randrange(len(good))
        edits = [
            good[:position] + bytes([good[position] ^ (1 << draw.randrange(7))]) + good[position + 1 :],
            good[:position] + good[position + 1 :],
            good[:position] + b" " + good[position:],
        ]
        file.write_bytes(edits[draw.randrange(3)])
        if file.read_bytes() == good:
            continue
        with pytest.raises(ConfigError) as error:
            receipt.verify(copied, public)
        assert "\n" not in str(error.value)
        file.write_bytes(good)
    receipt.verify(copied, public)
    (copied / "ledger.jsonl").write_text((copied / "ledger.jsonl").read_text().splitlines()[0] + "\n")
    with pytest.raises(ConfigError, match=r"1 receipts more than the ledger has lines"):
        receipt.verify(copied, public)


def test_the_wrong_key_and_fields_signed_anew_are_detected(receipted, tmp_path):
    run, public = receipted
    other = receipt.keygen(tmp_path / "other.pem")
    with pytest.raises(ConfigError, match=r"signed with key \w{16}, not with the expected"):
        receipt.verify(run, other)
    copied = copy(run, tmp_path / "run")
    statement = receipt.opened(run / "receipts" / "0002.json")
    statement["predicate"]["requests"] = statement["predicate"]["requests"][:1]
    envelope = json.loads((run / "receipts" / "0002.json").read_text())
    text = receipt.seal_again(statement, envelope["signatures"][0])
    (copied / "receipts" / "0002.json").write_text(text)
    with pytest.raises(ConfigError, match=r"0002.json: the signature does not fit the content"):
        receipt.verify(copied, public)
    with pytest.raises(ConfigError, match=r"a key is never overwritten"):
        receipt.keygen(tmp_path / "other.pem")
    (tmp_path / "other.pem").chmod(0o644)
    with pytest.raises(ConfigError, match=r"can be read by others: chmod 600"):
        receipt.make(copied, tmp_path / "other.pem")
    with pytest.raises(ConfigError, match=r"no private key .*: make one with `ease receipt keygen"):
        receipt.make(copied, tmp_path / "nothing.pem")


def test_sample_ids_are_hashed_in_a_receipt(learnt, tmp_path):
    run = copy(learnt, tmp_path / "run")
    launcher.forget(run, ForgetConfig(scenario="sample", targets=("client-1/16:24",)), "finetune", ["rounds=1"], "", Where())
    receipt.keygen(tmp_path / "key.pem")
    receipt.make(run, tmp_path / "key.pem")
    said = receipt.opened(run / "receipt.json")["predicate"]
    (target,) = said["requests"][0]["targets"]
    assert len(target) == 64
    assert "16:24" not in json.dumps(said)


def test_requests_join_and_are_told_apart():
    one = ForgetConfig(scenario="sample", targets=("a/1", "b/2"))
    both = ForgetConfig.together([one, leaves("c"), ForgetConfig(scenario="sample", targets=("a/3",))])
    assert both.targets == ("a/1", "b/2", "a/3")
    assert both.also[0].targets == ("c",)
    assert both.told("a").targets == ("a/1", "a/3")
    assert both.leaving() == {"c"}
    assert ForgetConfig.together([]) is None
    assert agenda.request(one, "ease", {}).id == agenda.request(one, "npo", {}).id
    from ease_flwr.data.pairs import withdrawn

    assert np.flatnonzero(withdrawn(both, "a", [""] * 5)).tolist() == [1, 3]
    assert withdrawn(both, "c", [""] * 5).all()
    assert config.NAME.fullmatch("hospital-2")
    assert not config.NAME.fullmatch("../x")


@pytest.mark.slow
def test_kill_9_at_random_moments(tmp_path):
    command = [sys.executable, "-m", "tests.kill_9", str(tmp_path), "5"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, cwd=config.APP)
    assert done.stdout.endswith("every run as without\n"), done.stdout + done.stderr
