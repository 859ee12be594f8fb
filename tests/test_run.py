"""A whole run in one process: roll call, learn, forget, continue, audit, on the smallest built-in world."""

import json

import pytest
from safetensors.torch import load_file

from ease_flwr import clients, config, strategies
from ease_flwr.config import ConfigError, halves
from ease_flwr.model.lock import ForgetLock
from tests.in_process_grid import InProcessGrid, submit
from tests.small import RUN_CONFIG, SMALL, settings
from tests.test_federation import is_hello

pytestmark = pytest.mark.usefixtures("still")


def play(folder, shuffle=0, tamper=None, **changes):
    run_config = {**RUN_CONFIG, "run-dir": str(folder), **changes}
    submit(run_config, InProcessGrid(SMALL["data.clients"], run_config, shuffle, tamper))
    return json.loads((folder / "results.json").read_text())


@pytest.fixture(scope="module")
def ease(home):
    return play(home / "ease")


def r1(results, model, name):
    return results["models"][model][name]["r1"]


def test_forgets_like_a_retraining_and_keeps_the_rest(ease):
    assert r1(ease, "original", "forget_exclusive") > r1(ease, "retrain", "forget_exclusive") + 25
    assert r1(ease, "unlearned", "forget_exclusive") < r1(ease, "retrain", "forget_exclusive") + 10
    for kept in ("retain", "test"):
        assert r1(ease, "unlearned", kept) > r1(ease, "retrain", kept) - 15
    # among three clients one other knows what is shared: more of it goes than among eight (README)
    assert r1(ease, "unlearned", "forget_shared") > r1(ease, "retrain", "forget_shared") - 35


def test_results_follow_the_contract(ease):
    assert ease["schema"] == 2
    assert (ease["experiment"], ease["strategy"], ease["seed"]) == ("personas", "ease", 0)
    assert ease["forget"] == {"scenario": "client", "targets": ["client-0"]}
    assert list(ease["models"]) == ["original", "retrain", "retrain_equal", "unlearned", "continued", "retrain_continued"]
    sets = ease["models"]["continued"]
    kinds = ["forget_word", "forget_look", "forget_both"]
    assert list(sets) == ["forget_exclusive", *kinds, "forget_shared", "forget", "retain", "test", "forget_unseen"]
    assert sum(sets[kind]["n"] for kind in kinds) == sets["forget_exclusive"]["n"]
    one = sets["forget"]
    assert one["n"] == sets["forget_exclusive"]["n"] + sets["forget_shared"]["n"]
    assert one["r1"] == pytest.approx((one["i2t"]["r1"] + one["t2i"]["r1"]) / 2)
    assert set(one["i2t"]) == set(one["t2i"]) == {"r1", "r5", "r10"}
    assert {"forget", "retain", "forget_normalised", "pair_similarity"} <= set(ease["gaps"])
    assert set(ease["cost"]) == {"learn", "retrain", "unlearn", "continuation"}
    counted = {"rounds", "client_steps", "uplink_bytes", "downlink_bytes", "seconds", "server_seconds"}
    assert all(set(c) == counted | {"server_memory", "client_memory"} for c in ease["cost"].values())
    assert 2**26 < ease["cost"]["unlearn"]["client_memory"] < 2**36
    assert ease["cost"]["unlearn"]["server_seconds"] > 0
    assert ease["cost"]["unlearn"]["rounds"] == 3
    assert set(ease["adapters_sha256"]) == set(ease["models"])
    assert all(len(h) == 64 for h in ease["adapters_sha256"].values())


def test_files_of_a_run(ease, home):
    folder = home / "ease"
    assert json.loads((folder / "state.json").read_text()) == {"status": "finished", "error": ""}
    assert "| unlearned |" in (folder / "table.md").read_text()
    events = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    learnt = [e for e in events if e.get("model") == "learn"]
    assert [e["round"] for e in learnt if "loss" in e] == list(range(1, 15))
    assert [e["round"] for e in learnt if "validation" in e] == [14]
    assert (folder / "adapters" / "unlearned" / "adapter_model.safetensors").is_file()
    lock = ForgetLock.from_tensors(load_file(folder / "phases" / "forget" / "lock.safetensors"))
    assert lock.dimension > 0
    said = f"{lock.dimension} directions locked, derived from what was forgotten; they stay on the server"
    assert said in (folder / "log.txt").read_text()
    assert not list(folder.rglob("*.partial"))
    assert not list(folder.glob("journal/*"))


@pytest.mark.slow
def test_recall_on_the_way_comes_with_the_training_messages(home, monkeypatch):
    sent = []
    push = InProcessGrid.push_messages
    monkeypatch.setattr(InProcessGrid, "push_messages", lambda self, messages: sent.extend(messages) or push(self, messages))
    changes = {"learn.average": 1, "strategy.rounds": 2, "strategy.gsd.tau": 0.6, "evaluation.reference": "none"}

    def found(name, **more):
        sent.clear()
        settings = {**SMALL, **changes, **more}
        results = play(home / name, fresh=True, set=" ".join(f"{k}={v}" for k, v in settings.items()))
        events = [json.loads(line) for line in (home / name / "metrics.jsonl").read_text().splitlines()]
        judged = {(e["model"], e["round"]): e["validation"] for e in events if "validation" in e}
        return results, judged, [m.metadata.message_type for m in sent].count("evaluate")

    short, ends, asked = found("short", **{"learn.rounds": 2})
    assert list(ends) == [("learn", 2), ("forget", 2), ("continuation", 2)]
    assert asked == 4 * 3  # three phases end, and the final judgement
    _, judged, asked = found("judged", **{"learn.rounds": 3, "evaluation.every": 1})
    assert list(judged) == [
        (m, r) for m, last in (("learn", 3), ("forget", 2), ("continuation", 2)) for r in range(1, last + 1)
    ]
    assert judged["learn", 2] == ends["learn", 2]
    assert set(judged["continuation", 1]) == set(ends["continuation", 2]) >= {"forget", "retain", "test"}
    assert asked == 4 * 3 + 2  # client-0 leaves: it trains in neither later phase, and is asked by itself
    same, judged, _ = found("same", **{"learn.rounds": 2, "evaluation.every": 1})
    assert same["adapters_sha256"] == short["adapters_sha256"]
    assert judged.items() >= ends.items()


@pytest.mark.slow
def test_half_precision_messages(ease, home):
    found = play(home / "half", set=RUN_CONFIG["set"] + " federation.half=true")
    assert "245760 bytes a message" in (home / "half" / "log.txt").read_text()
    half, full = found["cost"]["learn"], ease["cost"]["learn"]
    for bytes_ in ("uplink_bytes", "downlink_bytes"):
        assert 2 * half[bytes_] == full[bytes_]
    for name in ("forget_exclusive", "retain", "test"):
        assert r1(found, "unlearned", name) == pytest.approx(r1(ease, "unlearned", name), abs=12)
    assert found["adapters_sha256"]["original"] != ease["adapters_sha256"]["original"]


@pytest.mark.slow
def test_same_seed_and_other_arrival_order_give_the_same_adapters(home):
    first, again = (play(home / f"shuffled-{k}", shuffle=k, fresh=True, set=settings(home)["set"]) for k in (0, 9))
    assert again["adapters_sha256"] == first["adapters_sha256"]
    assert again["models"] == first["models"]


def test_other_strategy_takes_the_learn_phase_from_the_cache(ease, home):
    results = play(home / "finetune", strategy="finetune")
    assert "from the cache: 14 rounds" in (home / "finetune" / "log.txt").read_text()
    for model in ("original", "retrain", "retrain_equal"):
        assert results["adapters_sha256"][model] == ease["adapters_sha256"][model]
    # the control: without excision the same rounds forget less
    assert r1(results, "unlearned", "forget_exclusive") > r1(ease, "unlearned", "forget_exclusive") + 5
    assert results["adapters_sha256"]["unlearned"] != ease["adapters_sha256"]["unlearned"]


def test_failure_is_said_and_nothing_is_half_written(home):
    with pytest.raises(ConfigError):
        play(home / "wrong", set=RUN_CONFIG["set"] + " strategy.tua=1")
    state = json.loads((home / "wrong" / "state.json").read_text())
    assert state["status"] == "failed"
    assert state["error"].startswith("ConfigError: strategy ease: unknown key tua (known: rounds, lr_end, gsd")
    assert not (home / "wrong" / "results.json").exists()


def test_run_folder_must_be_new_and_absolute(home, tmp_path):
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "results.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"old is not empty: choose another, or remove it"):
        play(tmp_path / "old")
    assert (tmp_path / "old" / "results.json").read_text() == "{}"
    with pytest.raises(ConfigError, match=r"run-dir here: give an absolute path"):
        submit({**RUN_CONFIG, "run-dir": "here"})


def test_every_objective_a_strategy_names_exists():
    for name in halves.names("strategies"):
        assert set(strategies.load(name).objectives) <= set(halves.names("clients"))
    with pytest.raises(ValueError, match=r"no 'nothing' in clients/: there are ascent, audit, bilateral"):
        clients.load("nothing")
    assert config.choices("experiment")


def extra(**changes):
    return RUN_CONFIG["set"] + "".join(f" {k}={v}" for k, v in changes.items())


@pytest.mark.slow
def test_a_class_is_forgotten_by_clients_that_stay(home):
    results = play(home / "class", experiment="personas_class", set=extra(**{"forget.draw": 2, "strategy.rounds": 4}))
    assert results["forget"]["scenario"] == "class"
    assert len(results["forget"]["targets"]) == 2
    assert results["requests"][0]["gsd"] == "none"
    assert "forget_shared" not in results["models"]["original"]
    assert r1(results, "original", "forget") > r1(results, "retrain", "forget") + 25
    assert r1(results, "unlearned", "forget") < r1(results, "original", "forget") - 25
    assert r1(results, "unlearned", "retain") > r1(results, "retrain", "retain") - 15
    # a client that holds some of them learns the rest and forgets in one exchange
    assert results["cost"]["unlearn"]["uplink_bytes"] > results["cost"]["continuation"]["uplink_bytes"]


def test_history_cannot_tell_a_class_apart_and_is_refused(home):
    with pytest.raises(
        ConfigError, match=r"strategy.gsd.source=history: the updates of clients that stay contain what is to be"
    ):
        play(home / "refused", experiment="personas_class", set=extra(**{"strategy.gsd.source": "history"}))


@pytest.mark.slow
def test_two_requests_one_after_the_other(home, ease):
    results = play(home / "two", set=extra(**{"forget.then": "client-1"}))
    assert [q["targets"] for q in results["requests"]] == [["client-0"], ["client-1"]]
    assert list(results["models"])[3:5] == ["unlearned_1", "unlearned"]
    assert results["adapters_sha256"]["unlearned_1"] == ease["adapters_sha256"]["unlearned"]
    first = [results["clients"][m]["client-0"]["forget_exclusive"] for m in ("original", "unlearned_1", "unlearned")]
    second = [results["clients"][m]["client-1"]["forget_exclusive"] for m in ("original", "unlearned_1", "unlearned")]
    assert first[1] < first[0] - 20
    assert first[2] < first[1] + 10  # the second request does not revive the first
    assert second[2] < second[1] - 20


@pytest.mark.slow
def test_a_client_that_is_gone_is_forgotten_by_parameters_alone(home, ease):
    calls = []

    def tamper(name, reply):
        if name == "client-0" and is_hello(reply):
            calls.append(name)
            return reply if len(calls) <= 2 else None  # there at the start, gone when it is its turn
        return reply

    changed = extra(**{"federation.start_timeout": 0.2})
    results = play(home / "gone", tamper=tamper, set=changed)
    assert results["requests"][0]["bke"] == "param"
    assert "client-0 does not answer" in (home / "gone" / "log.txt").read_text()
    assert results["adapters_sha256"]["original"] == ease["adapters_sha256"]["original"]
    assert "forget" not in results["models"]["unlearned"]
    assert r1(results, "unlearned", "retain") > r1(results, "retrain", "retain") - 15
