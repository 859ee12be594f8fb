"""Requests that come later, one after the other, while the run is busy, or wrong: a federation that stands for months."""

import json

import pytest

from ease_flwr import config, launcher
from ease_flwr.config import ConfigError, ForgetSet, told, union
from ease_flwr.exchange.messages import Hello, read_instruction
from ease_flwr.exchange.transport import FederationError
from ease_flwr.store import phases, purge, queue
from ease_flwr.store.files import locked
from ease_flwr.store.queue import Step
from tests.in_process_grid import InProcessGrid, submit
from tests.small import TINY, hashes, settings
from tests.standing import SIMULATION, ask, copy, die, enqueue, leaves, pairs

pytestmark = pytest.mark.usefixtures("in_process", "still")


@pytest.mark.slow
def test_requests_that_come_later_give_the_adapters_of_one_command(whole, learnt, tmp_path, capsys):
    run = copy(learnt, tmp_path / "run")
    assert list(hashes(run)) == ["original"]
    assert ask(run, leaves("client-0")) == 0
    first = hashes(run)
    assert first["unlearned"] == hashes(whole)["unlearned_1"]
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file() and p.name not in ("log.txt", "metrics.jsonl")}
    assert ask(run, leaves("client-0")) == 0  # the same request changes nothing
    assert "asked before, by strategy ease: not asked again" in capsys.readouterr().out
    assert {p: p.read_bytes() for p in before} == before
    ask(run, leaves("client-1"), id="second")
    launcher.continue_training(run, TINY["continuation.rounds"], SIMULATION)
    assert hashes(run) == hashes(whole)
    steps = queue.read(run)
    assert [s.kind for s in steps] == ["learn", "forget", "forget", "continuation"]
    assert steps[2].request.id == "second"
    assert "client-1" not in (run / "run_config.json").read_text()  # requests are not in the run config
    launcher.continue_training(run, 1, SIMULATION)
    assert hashes(run)["unlearned"] == hashes(whole)["unlearned"]
    assert hashes(run)["continued"] != hashes(whole)["continued"]


def test_it_goes_on_when_the_host_of_who_left_is_gone(whole, learnt, tmp_path):
    run = copy(learnt, tmp_path / "run")
    ask(run, leaves("client-0"))
    queue.append(run, Step(kind="continuation", rounds=1))
    grid = InProcessGrid(3, settings(run))
    del grid.contexts[100]
    submit({**settings(run), "resume": True}, grid)
    results = json.loads((run / "results.json").read_text())
    assert results["adapters_sha256"]["unlearned"] == hashes(whole)["unlearned_1"]
    assert "client-0" not in results["clients"]["continued"]
    del grid.contexts[102]  # one that is needed
    queue.append(run, Step(kind="continuation", rounds=1))
    with pytest.raises(FederationError, match=r"1 of 2 clients are there, .*: client-2: it did not come"):
        submit({**settings(run, **{"federation.start_timeout": 0.1}), "resume": True}, grid)


def test_wrong_requests_are_one_line_and_change_nothing(learnt, tmp_path):
    run = copy(learnt, tmp_path / "run")
    before = (run / "queue.json").read_bytes()
    with pytest.raises(ConfigError, match=r"no client client-9; there are client-0, client-1, client-2"):
        ask(run, leaves("client-9"))
    with pytest.raises(ConfigError, match=r"all clients would have left"):
        ask(run, leaves("client-0", "client-1", "client-2"))
    with pytest.raises(ConfigError, match=r"strategy ease: unknown key tua"):
        ask(run, leaves("client-0"), "ease", "tua=1")
    with pytest.raises(ConfigError, match=r"nothing was forgotten there yet; learning before that is `learn.rounds`"):
        launcher.continue_training(run, 3, SIMULATION)
    with pytest.raises(ConfigError, match=r": no run there: give the folder of one$"):
        ask(tmp_path, leaves("client-0"))
    assert (run / "queue.json").read_bytes() == before


def test_several_scenarios_after_one_another(learnt, tmp_path):
    run = copy(learnt, tmp_path / "run")
    ask(run, pairs("client-1/16:24"), "finetune", "rounds=1")
    ask(run, leaves("client-0"))
    results = json.loads((run / "results.json").read_text())
    assert results["forget"] == {"scenario": "several", "targets": ["client-1/16:24", "client-0"]}
    assert [q["targets"] for q in results["requests"]] == [["client-1/16:24"], ["client-0"]]
    assert results["cost"]["unlearn"]["rounds"] == 3


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
    enqueue(run, leaves("client-0"))

    class Busy(InProcessGrid):
        def push_messages(self, messages):
            enqueue(run, leaves("client-1"), id="late")
            return super().push_messages(messages)

    submit({**settings(run), "resume": True}, Busy(3, settings(run)))
    assert [q["targets"] for q in json.loads((run / "results.json").read_text())["requests"]] == [["client-0"], ["client-1"]]


def test_single_pairs_are_told_to_their_client_alone(learnt, tmp_path):
    run = copy(learnt, tmp_path / "run")
    enqueue(run, pairs("client-1/16:24", "client-2/17"), "npo", rounds=1)
    grid = InProcessGrid(3, settings(run))
    submit({**settings(run), "resume": True}, grid)
    for message in grid.sent:
        text = json.dumps(dict(message.content["config"]))
        others = {"client-1/16:24": 101, "client-2/17": 102}
        assert all(message.metadata.dst_node_id == node for target, node in others.items() if target in text)


def test_a_request_may_name_as_many_pairs_as_a_hospital_has():
    """Each is compared with none of the others: fifty thousand took ten minutes."""
    targets = [f"a/id:{i:024x}" for i in range(50_000)]
    (asked,) = config.validate(config.ForgetConfig, {"scenario": "sample", "targets": targets}, "request").forget_sets()
    assert asked.targets == tuple(targets)
    with pytest.raises(ConfigError, match=rf"{targets[7]} is named twice"):
        config.validate(config.ForgetConfig, {"scenario": "sample", "targets": [*targets, targets[7]]}, "request")


def test_forget_sets_are_told_apart():
    one = ForgetSet(scenario="sample", targets=("a/1", "b/2"))
    both = (one, ForgetSet(scenario="client", targets=("c",)), ForgetSet(scenario="sample", targets=("a/3",)))
    assert [s.targets for s in told(both, "a")] == [("a/1",), ("c",), ("a/3",)]
    assert [s.targets for s in told(both, "c")] == [("c",)]
    assert one.named == {"a", "b"}
    assert one.leaving == ()
    assert both[1].leaving == ("c",)
    first, second = (config.ForgetRequest.of(one, name, {}) for name in ("ease", "npo"))
    assert first.id == second.id  # asking twice is asking once, by whatever method
    assert union([first]) == (one,)
    assert config.described(both) == {"scenario": "several", "targets": ["a/1", "b/2", "c", "a/3"]}
    assert config.NAME.fullmatch("hospital-2")
    assert not config.NAME.fullmatch("../x")


@pytest.mark.slow
def test_asked_at_once_or_one_after_the_other(learnt, tmp_path):
    """What comes later on the queue changes nothing about what comes first."""
    together, apart = copy(learnt, tmp_path / "together"), copy(learnt, tmp_path / "apart")
    enqueue(together, pairs("client-1/16:24"), "npo", rounds=1)
    queue.append(together, Step(kind="continuation", rounds=1))
    enqueue(together, leaves("client-0"), "finetune", rounds=1)
    queue.append(together, Step(kind="continuation", rounds=1))
    launcher.resume(together, SIMULATION)
    ask(apart, pairs("client-1/16:24"), "npo", "rounds=1")
    launcher.continue_training(apart, 1, SIMULATION)
    ask(apart, leaves("client-0"), "finetune", "rounds=1")
    launcher.continue_training(apart, 1, SIMULATION)
    assert hashes(together) == hashes(apart)


@pytest.mark.slow
@pytest.mark.parametrize("lives", [5, 12])
def test_a_request_that_comes_while_the_run_is_dead(whole, tmp_path, monkeypatch, lives):
    """The phase that was at hand asks again what it asked before, whatever has come onto the queue."""
    monkeypatch.setenv("EASE_FLWR_HOME", str(tmp_path / "home"))
    run_config = settings(tmp_path / "run", **{"evaluation.every": 1, "continuation.rounds": 0})
    assert die(run_config, lives)
    enqueue(tmp_path / "run", leaves("client-1"), "ease", rounds=2, bke={"enabled": True}, lock={"strength": 20})
    queue.append(tmp_path / "run", Step(kind="continuation", rounds=2))
    launcher.resume(tmp_path / "run", SIMULATION)
    assert hashes(tmp_path / "run") == hashes(whole)


@pytest.mark.parametrize("served", [True, False])
def test_who_does_not_say_what_it_holds_stops_the_run(learnt, tmp_path, served):
    """Law: before anybody trains. Nothing is lost, and the run resumed is as if the client had answered at once."""
    run, whole = copy(learnt, tmp_path / "run"), copy(learnt, tmp_path / "whole")
    for folder in (run, whole):
        enqueue(folder, pairs("client-1/16:24"), "npo", rounds=1)
        if served:
            launcher.resume(folder, SIMULATION)
        queue.append(folder, Step(kind="continuation", rounds=1))
    queued = (run / "queue.json").read_bytes()

    class Deaf(InProcessGrid):
        """client-1 misses the question about requests alone."""

        def push_messages(self, messages):
            ids = super().push_messages(messages)
            for id, message in zip(ids, messages, strict=True):
                job = read_instruction(dict(message.content["config"]))
                if isinstance(job, Hello) and job.forget and message.metadata.dst_node_id == 101:
                    del self.pending[id]
            return ids

    deaf, changes = Deaf(3, settings(run)), {"federation.start_timeout": 0.2}
    with pytest.raises(
        FederationError, match=r"client-1 did not say how many pairs the requests concern, 2 of 3 did: see that they answer"
    ):
        submit({**settings(run, **changes), "resume": True}, deaf)
    assert {m.metadata.message_type for m in deaf.sent} == {"query"}
    assert (run / "queue.json").read_bytes() == queued
    for folder in (run, whole):
        launcher.resume(folder, SIMULATION)
    assert hashes(run) == hashes(whole)


def test_a_method_that_needs_help_and_finds_none_is_set_aside_and_the_rest_goes_on(learnt, whole, tmp_path):
    """Whoever was silent is asked again by the next process: then the same request is served."""
    run, heard = copy(learnt, tmp_path / "run"), []

    def tamper(name, reply):
        heard.extend([name] * (name == "client-1"))
        return None if name == "client-1" and len(heard) > 2 else reply  # there at the start, silent when its turn comes

    hasty = settings(run, **{"federation.start_timeout": 0.2, "federation.quorum": 0.5})
    helpless = enqueue(run, pairs("client-1/16"), "npo", rounds=1)
    enqueue(run, leaves("client-0"), rounds=2, bke={"enabled": True}, lock={"strength": 20})
    with pytest.raises(ConfigError, match=rf"{helpless.id} is set aside: strategy npo needs the help of client-1, and none"):
        submit({**hasty, "resume": True}, InProcessGrid(3, hasty, tamper=tamper))
    assert [r.targets for _, r in queue.served(run)] == [("client-0",)]
    assert not queue.left_to_do(run)
    (aside,) = queue.read_set_aside(run)
    assert aside.request == helpless
    assert aside.why.endswith("ask again when one does, or with another strategy (`ease methods`)")
    assert ask(run, pairs("client-1/16"), "npo", "rounds=1") == 0  # it answers again
    assert [r.id for _, r in queue.served(run)][1] == helpless.id


@pytest.mark.parametrize("number", [None, 3])
def test_a_run_never_goes_on_under_another_function(learnt, tmp_path, number):
    """Adapters of version 0.1 mean another model here: refused at once, by every command that would go on."""
    run = copy(learnt, tmp_path / "run")
    content = phases.read_file(run / "phases" / "learn")
    assert content.pop("adapters") == 2
    phases.write_file(run / "phases" / "learn", content | ({"adapters": number} if number else {}))
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    again = (
        lambda: ask(run, leaves("client-0")),
        lambda: launcher.resume(run, SIMULATION),
        lambda: launcher.continue_training(run, 1, SIMULATION),
        lambda: submit({**settings(run), "resume": True}),
    )
    for go_on in again:
        with pytest.raises(
            ConfigError, match=rf"learn was learnt with adapters of format {number or 1}, this version has format 2"
        ):
            go_on()
        assert {p: p.read_bytes() for p in before} == before
