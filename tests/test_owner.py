"""What the owner of a host decides: each attack by who writes the run config and the instructions is a test."""

import copy
import json
import re
import stat
from datetime import datetime, time

import pytest
from flwr.app import Context, RecordDict

from ease_flwr import data
from ease_flwr.client_app import app, on_host
from ease_flwr.config import APP, ForgetSet, TrainConfig, code_hash, from_run_config
from ease_flwr.data import folder as hosts_data
from ease_flwr.exchange.messages import Audit, Evaluate, Forget, Hello, Learn, message
from ease_flwr.exchange.transport import reason
from ease_flwr.hosts import owner, owners_log, policy
from ease_flwr.hosts.policy import Policy
from ease_flwr.model import adapters
from tests.hosts import Host, run_config
from tests.in_process_grid import TaskIdentity

PLAN = TrainConfig(rounds=1, epochs=1, batch=8)
ALLOWED = Policy(code=(), objectives=("contrastive", "ascent"), probes=("membership",))


@pytest.fixture(scope="module")
def theta():
    experiment = from_run_config(run_config("/x"))[0]
    return adapters.load(experiment.model, experiment.lora, 0).initial


@pytest.fixture
def host(tmp_path):
    assert TaskIdentity.run_id == 1
    hosts_data.load.cache_clear()
    data.load.cache_clear()
    found = Host("north", tmp_path)
    found.allow()
    return found


def ask(host, job, arrays=(), verb="", **changes):
    """The answer of a host to an instruction under a run config."""
    config = run_config("/runs/one", **{k: v for k, v in changes.items() if "." in k})
    config |= {k: v for k, v in changes.items() if "." not in k}
    context = Context(run_id=1, node_id=100, node_config=host.node, state=RecordDict(), run_config=config)
    sent = message(job, dict(arrays), 100, 10.0)
    if verb:
        sent.metadata.__dict__["_message_type"] = verb
    sent.metadata._message_id = "message-1"
    return app(copy.deepcopy(sent), context)


def told(answer):
    assert answer.has_error()
    return reason(answer).removeprefix("client raised: ")


def log(host):
    return owners_log.joined(host.home)


def learn(**changes):
    return Learn(**{"phase": "learn", "round": 1, "train": PLAN, **changes})


def test_what_is_allowed_is_done_and_the_log_says_what_left(host, theta):
    answer = ask(host, learn(), {"adapters": theta})
    assert not answer.has_error()
    assert json.loads(ask(host, Hello()).content["answer"]["json"])["code"] == code_hash()
    first, second = log(host)
    assert (first["asked"], first["objective"], first["run_dir"], first["phase"]) == (
        "learn",
        "contrastive",
        "/runs/one",
        "learn",
    )
    assert first["sent"]["arrays"] == {"adapters": f"float32 ({len(theta)},)"}
    assert first["sent"]["bytes"] >= theta.nbytes
    assert {"loss", "num-examples"} <= set(first["sent"]["metrics"])
    assert (second["asked"], second["sent"]["arrays"], second["sent"]["answer"]) == ("hello", {}, True)
    (file,) = (host.home / "log").glob("*.jsonl")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert "sent" in owners_log.in_words(first)


def test_a_simulation_has_no_owner():
    experiment = from_run_config(run_config("/x", **{"data.cache": "/elsewhere"}))[0]
    assert on_host(experiment, {"partition-id": 0}) is experiment
    assert owner.Owner.of({"partition-id": 0}) is None


# ---- instructions ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("verb", "job", "rule"),
    [
        ("train", learn(objective="npo"), "objectives: not 'npo'"),
        ("train", learn(train=PLAN.model_copy(update={"batch": 2})), "smallest-set: 2 pairs in a batch, at least 8"),
        ("train", learn(train=PLAN.model_copy(update={"batch": 7})), "smallest-set: 7 pairs in a batch, at least 8"),
        (
            "train",
            learn(
                beside=Forget(phase="x", round=1, train=PLAN, objective="lip", forget=ForgetSet(scenario="client", targets=()))
            ),
            "objectives: not 'lip'",
        ),
        ("query", learn(), "no learn in a message of type query"),
        ("train", Hello(), "no hello in a message of type train"),
        ("train", Audit(forget=(), train=PLAN), "no audit in a message of type train"),
        ("evaluate", Audit(forget=(), train=PLAN, probes=("membership", "__init__")), "probes: not '__init__'"),
        ("evaluate", Audit(forget=(), train=PLAN, probes=("relearning",)), "probes: not 'relearning'"),
        ("evaluate", Audit(forget=(), train=PLAN, probes=("membership",)), ""),
        ("train", learn(before=Evaluate(similarity=True)), ""),
        ("train", learn(), ""),
    ],
)
def test_each_rule_by_itself(verb, job, rule):
    assert ALLOWED.check(verb, job, 0, datetime(2026, 1, 1, 12)) == rule


def test_scores_hours_and_requests():
    noon, quiet = datetime(2026, 1, 1, 12), ALLOWED.model_copy(update={"scores": False, "probes": policy.PROBES})
    never = "scores: nothing about single pairs leaves"
    assert quiet.check("evaluate", Audit(forget=(), train=PLAN), 0, noon) == never
    assert quiet.check("evaluate", Evaluate(similarity=True), 0, noon) == never
    assert quiet.check("train", learn(before=Evaluate(similarity=True)), 0, noon) == never
    assert quiet.check("evaluate", Evaluate(), 0, noon) == ""
    few = ALLOWED.model_copy(update={"requests": 3})
    assert few.check("train", learn(), 2, noon) == ""
    assert few.check("train", learn(), 3, noon) == "requests: 3 a day, and these are done"
    assert few.check("evaluate", Evaluate(), 3, noon) == "requests: 3 a day, and these are done"
    assert few.check("query", Hello(), 3, noon) == ""
    night = ALLOWED.model_copy(update={"hours": "20:00-06:00"})
    assert night.check("train", learn(), 0, noon) == "hours: 20:00-06:00"
    assert night.check("evaluate", Audit(forget=(), train=PLAN), 0, noon) == "hours: 20:00-06:00"
    assert night.check("evaluate", Evaluate(), 0, noon) == "hours: 20:00-06:00"
    assert night.check("query", Hello(), 0, noon) == ""
    for hour, there in ((19, False), (20, True), (23, True), (0, True), (5, True), (6, False)):
        assert policy.within("20:00-06:00", time(hour)) is there
        assert policy.within("06:00-20:00", time(hour)) is not there


def test_so_many_requests_a_day_and_no_more(host, theta, monkeypatch):
    host.allow(requests=2)
    clock = [datetime(2026, 1, 1, 12).astimezone()]
    monkeypatch.setattr(owner.Owner.__init__, "__defaults__", (lambda: clock[0],))
    answers = [ask(host, learn(), {"adapters": theta}) for _ in range(3)]
    assert [a.has_error() for a in answers] == [False, False, True]
    assert told(answers[2]) == "host north refuses: requests: 2 a day, and these are done"
    assert not ask(host, Hello()).has_error()
    clock[0] = datetime(2026, 1, 2, 0, 1).astimezone()
    assert not ask(host, learn(), {"adapters": theta}).has_error()
    assert len(list((host.home / "log").glob("*.jsonl"))) == 2


def test_evaluations_are_requests_too(host, theta):
    host.allow(requests=2)
    named = [ForgetSet(scenario="sample", targets=(f"north/{i}",)) for i, _ in host.ids[:3]]
    answers = [ask(host, Evaluate(forget=(one,), similarity=True), {"now": theta}) for one in named]
    assert [a.has_error() for a in answers] == [False, False, True]
    assert told(answers[2]) == "host north refuses: requests: 2 a day, and these are done"


def test_an_objective_or_a_probe_that_is_not_listed_is_refused_and_logged(host, theta):
    host.allow(objectives=["contrastive"], probes=["membership"])
    forget = Forget(phase="f", round=1, train=PLAN, objective="ascent", forget=ForgetSet(scenario="client", targets=("north",)))
    assert told(ask(host, forget, {"adapters": theta})) == "host north refuses: objectives: not 'ascent'"
    audit = Audit(forget=(), train=PLAN, probes=("relearning",))
    assert told(ask(host, audit, {"now": theta})) == "host north refuses: probes: not 'relearning'"
    assert [line["asked"] for line in log(host)] == ["forget", "audit"]
    assert all("sent" not in line and "refused" in line for line in log(host))


# ---- run config --------------------------------------------------------------------------------------------------------------


def test_the_server_names_no_file_of_a_host(host, tmp_path):
    secret = tmp_path / "elsewhere"
    secret.mkdir()
    for name in ("shadow", "base.json", "parts.json"):
        (secret / name).write_text("root:x:0")
    names_a_file = "host north refuses: model.weights names a file, and only its owner does that: base-model in node.toml"
    for weights in (f"{secret}/shadow", f"{secret}/base.json", "../x.json", "ease_flwr/../../elsewhere/shadow", "six.py"):
        assert told(ask(host, Hello(), **{"model.weights": weights})) == names_a_file
    both = "host north refuses: data.labels and data.parts name files, and only its owner does that"
    for key in ("data.labels", "data.parts"):
        assert told(ask(host, Hello(), **{key: f"{secret}/parts.json"})) == both
    asked = ask(host, Hello(), **{"data.root": str(secret), "data.cache": str(secret / "cache"), "data.memory": str(secret)})
    assert json.loads(asked.content["answer"]["json"])["pairs"] == len(host.train)  # of its own folder
    assert sorted(p.name for p in secret.iterdir()) == ["base.json", "parts.json", "shadow"]


def test_paths_are_the_owners_whether_or_not_a_policy_is_there(host):
    experiment = from_run_config(run_config("/x", **{"data.root": "/a", "data.cache": "/b", "model.device": "cuda"}))[0]
    node = {k: v for k, v in host.node.items() if k != "policy"} | {"base-model": "/own.json"}
    there = on_host(experiment, node)
    assert (there.data.root, there.data.cache, there.model.weights) == (str(host.root), "", "/own.json")
    assert there.data.memory == str(host.home)
    assert there.model.device == "cuda"
    host.allow(gpu=False)
    assert on_host(experiment, host.node).model.device == "cpu"
    with pytest.raises(policy.RefusedError, match=r"model\.weights names a file"):
        on_host(experiment.model_copy(update={"model": experiment.model.model_copy(update={"weights": "/a.json"})}), host.node)


# ---- errors that travel ------------------------------------------------------------------------------------------------------


def test_what_a_host_says_of_a_mistake_quotes_no_data(host, theta, monkeypatch, capsys):
    name, caption = "JaneDoe1958.png", "Jane Doe, born 1958"
    host.rename(host.train[0], name)
    picture = host.root / "images" / name
    good = picture.read_bytes()
    picture.write_bytes(b"no picture")
    asked = Hello(forget=(ForgetSet(scenario="sample", targets=("north/id:" + "0" * 24,)),))
    heard = [ask(host, asked), ask(host, learn(), {"adapters": theta})]
    assert re.fullmatch(r"DataError \(entries\.py, line \d+, image\)", told(heard[-1]))
    host.rows.append((f"../{name}", caption, "", "train"))
    host.write()
    hosts_data.load.cache_clear()
    data.load.cache_clear()
    heard.append(ask(host, Hello()))
    assert re.fullmatch(r"DataError \(formats\.py, line \d+, read_index\)", told(heard[-1]))
    host.rows.pop()
    host.write()
    picture.write_bytes(good)
    hosts_data.load.cache_clear()
    data.load.cache_clear()
    monkeypatch.setattr(hosts_data.Hosts, "client", lambda *_: (_ for _ in ()).throw(ValueError(f"cannot encode {caption!r}")))
    heard.append(ask(host, Hello()))
    for answer in heard:
        text = told(answer) if answer.has_error() else str(answer.content)
        assert not re.search("Jane|1958", text)
    assert re.fullmatch(r"ValueError \(test_owner\.py, line \d+, <genexpr>\)", told(heard[-1]))
    assert caption in capsys.readouterr().err  # whoever looks after the host reads it there
    assert "Jane" not in json.dumps(log(host))


def test_what_travels_is_short_and_moves_no_cursor(host):
    answer = told(ask(host, Hello(), experiment="\x1b[2J\u202e" + "x" * 5000))
    assert len(answer) <= 300
    assert answer.isprintable()


def test_only_errors_of_data_are_raised_where_data_are_read():
    """Their messages quote file names, captions and labels; those of a ConfigError travel."""
    for room in ("formats", "photographs", "partition"):
        assert "ConfigError" not in (APP / "ease_flwr" / "data" / f"{room}.py").read_text()
