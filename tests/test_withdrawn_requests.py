"""A request that is taken back, or cannot be served, leaves the run as if it had never been asked. Others have no say in it."""

import json

import pytest

from ease_flwr import launcher
from ease_flwr.config import ConfigError
from ease_flwr.server import admission
from ease_flwr.store import queue
from tests.in_process_grid import InProcessGrid, submit
from tests.small import hashes, settings
from tests.standing import SIMULATION, Mortal, ask, copy, enqueue, leaves, pairs
from tests.standing import Death as Killed

pytestmark = pytest.mark.usefixtures("in_process")
ASKED = {"leaves": leaves("client-0"), "pairs": pairs("client-1/16:24"), "others": pairs("client-2/17")}


def run_with(learnt, to, names):
    run = copy(learnt, to)
    for name in names:
        enqueue(run, ASKED[name], "finetune", id=name, rounds=2)
    return run


@pytest.fixture(scope="module")
def without(learnt, shared_home, tmp_path_factory):
    """The models of a run that was never asked one of these."""
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EASE_FLWR_HOME", str(shared_home))
        for left_out in (*ASKED, ""):
            run = run_with(learnt, tmp_path_factory.mktemp("without") / "run", [n for n in ASKED if n != left_out])
            submit({**settings(run), "resume": True})
            found[left_out] = hashes(run)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("lives", [2, 3, 4, 7, 10])
@pytest.mark.parametrize("back", ASKED)
def test_what_is_withdrawn_was_never_asked(learnt, without, tmp_path, back, lives):
    """Law: whenever the process died, and whichever request is taken back, that is not done."""
    run = run_with(learnt, tmp_path / "run", ASKED)
    with pytest.raises(Killed):
        submit({**settings(run), "resume": True}, Mortal(lives, 3, settings(run)))
    done = back in {r.id for _, r in queue.served(run)}
    if done:
        with pytest.raises(ConfigError, match=rf"request {back} is done, which cannot be taken back"):
            launcher.withdraw(run, back)
    else:
        launcher.withdraw(run, back)
    submit({**settings(run), "resume": True})
    assert hashes(run) == without["" if done else back]
    assert [s.request.id for s in queue.read_set_aside(run)] == ([] if done else [back])
    assert not list(run.glob("journal/*"))
    assert not queue.left_to_do(run)


def test_what_is_being_served_is_not_taken_back_and_what_waits_is(learnt, tmp_path):
    run = run_with(learnt, tmp_path / "run", ASKED)
    said = []

    class Busy(InProcessGrid):
        def push_messages(self, messages):
            if self.count > 6 and not said:
                said.append("")
                with pytest.raises(ConfigError, match=r"request leaves is being served now: end that process first"):
                    launcher.withdraw(run, "leaves")
                launcher.withdraw(run, "pairs")
            return super().push_messages(messages)

    submit({**settings(run), "resume": True}, Busy(3, settings(run)))
    assert said
    assert [r.id for _, r in queue.served(run)] == ["leaves", "others"]
    assert queue.read_set_aside(run)[0].why == "it was withdrawn"
    launcher.withdraw(run, "pairs")  # that it was set aside is known: nobody has to look at it again
    assert [s.why for s in queue.read_set_aside(run)] == ["it was withdrawn"]
    with pytest.raises(ConfigError, match=r"no request nothing on the queue: there are leaves, others"):
        launcher.withdraw(run, "nothing")


def test_only_whose_pairs_are_named_has_a_say_and_in_one_line(learnt, tmp_path):
    run = run_with(learnt, tmp_path / "run", ["leaves", "others"])

    def tamper(name, reply):
        if name == "client-1" and reply.has_content() and "answer" in reply.content:
            said = json.loads(reply.content["answer"]["json"])
            if said.get("refused"):
                said["refused"] = ["no\nway"] * len(said["refused"])
                said["unknown"] = [["client-2/17"]] * len(said["unknown"])
                reply.content["answer"]["json"] = json.dumps(said)
        return reply

    submit({**settings(run), "resume": True}, InProcessGrid(3, settings(run), tamper=tamper))
    assert [r.id for _, r in queue.served(run)] == ["leaves", "others"]
    enqueue(run, ASKED["pairs"], "finetune", id="own", rounds=2)
    with pytest.raises(ConfigError, match=r"^request own is set aside: no way \(ask again in other words, or"):
        submit({**settings(run), "resume": True}, InProcessGrid(3, settings(run), tamper=tamper))


def test_the_same_request_in_other_words_is_the_same_request(learnt, tmp_path, capsys):
    run = copy(learnt, tmp_path / "run")
    ask(run, pairs("client-1/16:19", "client-2/5"), "finetune", "rounds=1")
    before = (run / "queue.json").read_bytes()
    for again in (pairs("client-2/05", "client-1/16:19:1"), pairs("client-1/16", "client-1/17", "client-2/5", "client-1/18")):
        ask(run, again, "npo", "rounds=1")
        assert "asked before, by strategy finetune: not asked again" in capsys.readouterr().out
    assert (run / "queue.json").read_bytes() == before
    with pytest.raises(ConfigError, match=r"request \w+ is there already and asks something else: give yours another --id"):
        ask(run, pairs("client-1/30"), "finetune", id=queue.requests(queue.read(run))[0].id)
    assert (run / "queue.json").read_bytes() == before


def test_the_same_request_by_two_processes_at_once_is_done_once(learnt, tmp_path, capsys, monkeypatch):
    """The other one puts it on the queue while this one still looks whether it can be served."""
    run, check = copy(learnt, tmp_path / "run"), admission.check
    before = len(queue.read(run))

    def meanwhile(*words):
        monkeypatch.setattr(admission, "check", check)
        enqueue(run, leaves("client-0"), "npo", rounds=1)
        return check(*words)

    monkeypatch.setattr(admission, "check", meanwhile)
    monkeypatch.setattr(launcher, "resume", lambda folder, where: 0)
    assert ask(run, leaves("client-0"), "finetune", "rounds=1") == 0
    assert "asked before, by strategy npo: not asked again" in capsys.readouterr().out
    assert len(queue.read(run)) == before + 1


@pytest.mark.slow
def test_a_continuation_is_not_queued_twice(learnt, tmp_path, capsys):
    run = copy(learnt, tmp_path / "run")
    ask(run, leaves("client-0"), "finetune", "rounds=1")
    queue.append(run, queue.Step(kind="continuation", rounds=2))
    launcher.continue_training(run, 5, SIMULATION)
    assert "a continuation of 2 rounds waits already" in capsys.readouterr().out
    assert [s.rounds for s in queue.read(run) if s.kind == "continuation"] == [2]
    launcher.continue_training(run, 1, SIMULATION)
    assert [s.rounds for s in queue.read(run) if s.kind == "continuation"] == [2, 1]
