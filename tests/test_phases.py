"""Phases: what decides them, what is cached, what may change, how many rounds a model has had, what is refused."""

import json
import sys
from pathlib import Path

import pytest

from ease_flwr import config, launcher
from ease_flwr.audit import figures
from ease_flwr.audit.summary import read_results
from ease_flwr.config import ConfigError, Experiment
from ease_flwr.config.identity import imported
from ease_flwr.config.section import leaves
from ease_flwr.store import queue
from tests.in_process_grid import InProcessGrid, submit
from tests.small import TINY, hashes, plain, settings
from tests.standing import SIMULATION, ask, copy, enqueue
from tests.standing import leaves as leaving

pytestmark = pytest.mark.usefixtures("in_process")
LEARN = {"until": "learn"}


def other(field, value):
    """Another value of a field."""
    choices = getattr(field.annotation, "__args__", ())
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value * 0.75 if isinstance(value, float) else value + 1
    return next(c for c in choices if isinstance(c, str) and c != value) if choices and isinstance(value, str) else None


def test_what_does_not_decide_learning_changes_no_adapter(learnt, home):
    """All such settings are changed at once; the others are in the key of the cache."""
    changes = {}
    e = config.load("personas", TINY)
    for name, field, what in leaves(Experiment):
        value = e
        for part in name.split("."):
            value = getattr(value, part)
        if what != "learning" and (changed := other(field, value)) is not None:
            changes[name] = changed
    unused = {"tracking", "forget.scenario", "evaluation.reference"}  # need more than another value
    changes = {k: v for k, v in changes.items() if k not in unused} | {"name": "other", "forget.targets": "client-1"}
    changes.pop("name")
    assert {"evaluation.every", "federation.deadline", "continuation.rounds", "audit.recall"} <= set(changes)
    submit({**settings(home / "other", **changes), **LEARN, "fresh": True})
    assert hashes(home / "other") == hashes(learnt)


def test_every_file_that_runs_while_learning_is_in_the_key(home):
    """Functions that are called in a learn phase, on either side, lie in files that the key of the cache covers."""
    called = set()

    def profile(frame, event, argument):
        if event == "call":
            called.add(frame.f_code.co_filename)

    sys.setprofile(profile)
    try:
        submit({**settings(home / "profiled"), **LEARN, "fresh": True})
    finally:
        sys.setprofile(None)
    own = {Path(f) for f in called if Path(f).is_relative_to(config.APP) and "tests" not in Path(f).parts}
    covered = imported(*(f"ease_flwr.{m}" for m in ("server.learn", "client_app", "data.personas", "clients.contrastive")))
    after = {
        "server_app.py",
        "pipeline.py",
        "roster.py",
        "conclusion.py",
        "submission.py",
        "admission.py",
        "summary.py",
        "card.py",
    }  # around the phase
    missing = {p for p in own - covered if p.name not in after and p.parent.name not in ("strategies", "audit")}
    assert {"training.py", "base.py", "contrastive.py", "personas.py", "adapters.py"} <= {p.name for p in own & covered}
    assert not missing


def failing(client):
    """A tamper function: what this client answers in the second round of learning is of no use."""
    rounds = []

    def tamper(name, reply):
        if name == client and reply.has_content() and "arrays" in reply.content:
            rounds.append(name)
            if len(rounds) in (2, 3):  # asked, and asked again
                del reply.content["metrics"]
        return reply

    return tamper


@pytest.mark.slow
def test_a_phase_with_failures_is_not_cached_and_its_failures_stay(tmp_path, monkeypatch):
    monkeypatch.setenv("EASE_FLWR_HOME", str(tmp_path / "home"))
    lossy = {"federation.quorum": 0.5}
    run_config = settings(tmp_path / "run", **lossy)
    submit(run_config, InProcessGrid(3, run_config, tamper=failing("client-2")))
    lost = read_results(tmp_path / "run")["failures"]
    assert [(f["phase"], f["round"], f["client"]) for f in lost] == [("learn", 2, "client-2")] * 2
    launcher.continue_training(tmp_path / "run", 1, SIMULATION)
    assert read_results(tmp_path / "run")["failures"] == lost  # of phases that are done as well
    submit({**settings(tmp_path / "next", **lossy), **LEARN})
    assert "from the cache" not in (tmp_path / "next" / "log.txt").read_text()
    assert hashes(tmp_path / "next")["original"] != hashes(tmp_path / "run")["original"]
    submit({**settings(tmp_path / "third", **lossy), **LEARN})  # nothing failed: now it is there
    assert "from the cache" in (tmp_path / "third" / "log.txt").read_text()


def test_a_run_goes_on_under_settings_that_change_no_adapter_only(learnt, tmp_path):
    run = copy(learnt, tmp_path / "run")
    enqueue(run, leaving("client-0"), "finetune", rounds=1)
    for name, value in {"federation.half": "true", "federation.norm_bound": 30, "learn.lr": 0.1}.items():
        with pytest.raises(ConfigError, match=f"was begun with another {name}: go on with the settings in its experiment.json"):
            submit({**settings(run, **{name: value}), "resume": True})
    submit({**settings(run, **{"federation.deadline": 99, "audit.recall": 1}), "resume": True})
    assert "unlearned" in hashes(run)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """Two requests by two methods with other numbers of rounds, rounds of learning between and after them, and references."""
    home = tmp_path_factory.mktemp("mixed")  # a cache of its own: every round is told
    run = home / "run"
    more = {"evaluation.reference": "retrain", "evaluation.every": 1, "continuation.rounds": 0}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EASE_FLWR_HOME", str(home))
        patch.setattr(launcher, "submit", lambda run_config, *_: submit(run_config) or 0)
        submit(plain(settings(run, **more)))
        launcher.continue_training(run, 2, SIMULATION)
        ask(run, leaving("client-1"), "finetune", "rounds=3")
        launcher.continue_training(run, 1, SIMULATION)
    return run


def events(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def last_round(run, label):
    return max(e["rounds_in_all"] for e in events(run) if e.get("model") == label)


@pytest.mark.slow
def test_references_have_as_many_rounds_as_their_models(mixed):
    steps = queue.read(mixed)
    assert [s.kind for s in steps] == ["learn", "forget", "continuation", "forget", "continuation"]
    assert last_round(mixed, "forget") == last_round(mixed, "retrain_equal") == 4 + 2
    assert last_round(mixed, "continuation") == last_round(mixed, "retrain_continued-2") == 4 + 2 + 2
    assert last_round(mixed, "forget-2") == last_round(mixed, "retrain_equal-2") == 4 + 2 + 2 + 3
    assert last_round(mixed, "continuation-2") == last_round(mixed, "retrain_continued-2-1") == 4 + 2 + 2 + 3 + 1
    assert last_round(mixed, "retrain") == last_round(mixed, "retrain-2") == 4


@pytest.mark.slow
def test_recall_is_drawn_at_the_round_it_was_taken(mixed):
    """Law: each curve of the report has the rounds of its model, and no point beyond its last."""
    limits = json.loads((mixed / "experiment.json").read_text())["audit"]
    _, rows = figures.curves(events(mixed), limits).data
    told = {(e["rounds_in_all"], e["validation"]["retain"]) for e in events(mixed) if "validation" in e}
    drawn = {(x, y) for name, _, x, y in rows if name == "retain"}
    assert drawn == told
    assert max(x for name, who, x, _ in rows if who == "retrained") == max(x for name, who, x, _ in rows if who == "this run")


METHODS_THAT_FOLLOW_ROUNDS = ("federaser", "fedrecovery", "pga", "sifu")


@pytest.mark.parametrize("strategy", METHODS_THAT_FOLLOW_ROUNDS)
def test_methods_that_follow_rounds_are_refused_before_anything_runs(learnt, tmp_path, strategy):
    run = copy(learnt, tmp_path / "run")
    ask(run, leaving("client-0"), "finetune", "rounds=1")
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    with pytest.raises(
        ConfigError,
        match=rf"strategy {strategy} follows every round of the learn phase, and client-0 has left since: use a strategy that",
    ):
        ask(run, leaving("client-1"), strategy)
    assert {p: p.read_bytes() for p in run.rglob("*") if p.is_file()} == before


def test_purged_updates_are_missed_by_name(learnt, tmp_path):
    from ease_flwr.store import purge
    from tests.standing import pairs

    run = copy(learnt, tmp_path / "run")
    ask(run, pairs("client-1/0:4"), "finetune", "rounds=1")
    found = purge.purge(run)
    assert [x.where for x in found if x.reason == purge.MIXED] == ["phases/learn/history/client-1"]
    ask(run, leaving("client-2"), "ease")  # those of who stays are still there
    purge.purge(run, updates=True)
    for strategy in ("ease", "federaser"):
        why = rf"strategy {strategy} (reads|follows) .* (those of client-1 were purged|has left since)"
        with pytest.raises(ConfigError, match=why):
            ask(run, leaving("client-1"), strategy)


def test_a_request_is_checked_against_its_own_scenario(home, tmp_path):
    """On an experiment about a class a client may leave by a method for clients, and the other way round is refused."""
    run_config = {**settings(tmp_path / "run"), **LEARN, "experiment": "personas_class"}
    submit(run_config)
    run = tmp_path / "run"
    queued = (run / "queue.json").read_bytes()
    label = next(x for x in config.load("personas_class").forget.targets or ("",)) or "nobody"
    with pytest.raises(ConfigError, match=r"strategy federaser cannot forget a class, only: client|nobody knows"):
        ask(run, config.ForgetConfig(scenario="class", targets=(label,)), "federaser")
    assert (run / "queue.json").read_bytes() == queued
    assert ask(run, leaving("client-0"), "federaser", "rounds=1") == 0


def test_what_only_hosts_can_refuse_leaves_the_queue_too(learnt, tmp_path):
    """A position beyond a client's pairs is refused at the roll call, by name; what else is queued is done."""
    run = copy(learnt, tmp_path / "run")
    bad = enqueue(run, config.ForgetConfig(scenario="sample", targets=("client-1/9999",)), "npo", rounds=1)
    good = enqueue(run, leaving("client-0"), "finetune", rounds=1)
    with pytest.raises(ConfigError, match=r"forget.targets: client-1/9999: client-1 has \d+ pairs, counted from 0"):
        launcher.resume(run, SIMULATION)
    assert [r.id for r in queue.requests(queue.read(run))] == [good.id]
    assert f"request {bad.id} is set aside" in (run / "log.txt").read_text()
    launcher.resume(run, SIMULATION)
    assert [q["id"] for q in read_results(run)["requests"]] == [good.id]


def test_asked_twice_or_after_leaving(learnt, tmp_path):
    run = copy(learnt, tmp_path / "run")
    ask(run, leaving("client-0"), "finetune", "rounds=1")
    queued = (run / "queue.json").read_bytes()
    with pytest.raises(ConfigError, match=r"client-0 is forgotten already, by request \w{12}: ask for the others alone"):
        ask(run, leaving("client-0", "client-1"), "finetune")
    assert (run / "queue.json").read_bytes() == queued
