"""The three anchors: what a tower still holds, what lies along locked directions, what comes back."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from ease_flwr.clients.audit import Audit, Subject
from ease_flwr.clients.contrastive import Contrastive
from ease_flwr.strategies.base import MethodContext
from ease_flwr.strategies.ordinary import Continuing

from ease_flwr import data
from ease_flwr.audit import anchors, examination, intervals, measures, report
from ease_flwr.config import TrainConfig
from ease_flwr.exchange import messages
from ease_flwr.exchange.answers import Update
from ease_flwr.exchange.examined import Examination, ExaminedSet, MemberHits
from ease_flwr.exchange.messages import Learn
from ease_flwr.model import adapters
from ease_flwr.model.lock import ForgetLock
from tests.in_process_grid import InProcessGrid, submit
from tests.small import TINY, plain, settings, small_experiment
from tests.test_bilateral import Memory
from tests.test_training_by_law import EVERYTHING, fitted, host, locked  # noqa: F401

# ---- modality ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def halves():
    """A client, what it asks, adapters that know nothing, and by tower adapters whose other tower is still like that."""
    e = small_experiment()
    world, model = data.load(e.data, e.seed), adapters.load(e.model, e.lora, e.seed)
    learnt = {}
    for tower in ("visual", "text"):
        only = tuple(i for i, b in enumerate(model.blocks) if b.tower == tower)
        job = Learn(phase="learn", round=1, train=TrainConfig(epochs=8, batch=48), tensors=only)
        client = Contrastive(e, "client-0", world, Memory())
        learnt[tower] = client.fit([model.initial], {"instruction": job.model_dump_json()})[0][0]
    client = Audit(e, "client-0", world, Memory())
    forget = tuple(e.forget.forget_sets())
    asked = messages.Audit(forget=forget, train=e.learn)
    subject = Subject(client.data.train, client.data.evaluation("test", forget), asked, model.initial, None)
    return client, subject, model, learnt


def added(found):
    return sum(np.array(member.hits[0][0]) for member in found)


def test_the_tower_that_holds_the_pairs_is_the_one_whose_swap_brings_them_back(halves):
    """Into a model that knows nothing: of the tower that has learnt, all that its model finds; of the other, nothing new."""
    client, subject, model, learnt = halves
    asked = client._asked(subject.sets)
    nothing = client._hits(asked, model.initial).sum(0)
    for tower, other in (("visual", "text"), ("text", "visual")):
        whole = client._hits(asked, learnt[tower]).sum(0)
        swap = client.swapped(learnt[tower], subject)["swap"]
        assert added(swap[tower]).tolist() == whole.tolist()
        assert added(swap[other]).tolist() == nothing.tolist()
        assert whole.sum() > 2 * nothing.sum()
    assert sum(np.array(member.of) for member in swap["text"]).tolist() == [len(asked.query)] * 2  # all of it: none left out


def test_a_swapped_model_is_that_of_the_swapped_adapters(halves):
    client, subject, model, learnt = halves
    asked, edge = client._asked(subject.sets), next(b.start for b in model.blocks if b.tower == "text")
    there = replace(subject, reference=learnt["text"])
    mixed = np.concatenate([learnt["visual"][:edge], learnt["text"][edge:]])
    swap = client.swapped(learnt["visual"], there)["swap"]
    assert added(swap["visual"]).tolist() == client._hits(asked, mixed).sum(0).tolist()
    assert client.swapped(model.initial, replace(subject, reference=None)) == {}


def test_the_swap_is_told_by_part_of_what_was_forgotten():
    """Members 7 and 8, of whom 8 is told apart by a word; a single order of batches is no sample of orders."""

    def one(label, images, texts):
        return MemberHits(label=label, of=(4, 5), hits=(((images, texts),),))

    def ranks(*labels):
        n = len(labels)
        return ExaminedSet(i2t=(1,) * n, t2i=(1,) * n, captions=(1,) * n, similarity=(0.5,) * n, labels=labels)

    sets = {"forget_exclusive": ranks(7.0, 8.0), "forget_word": ranks(8.0)}
    swap = {"visual": (one(7.0, 0, 0), one(8.0, 1, 0)), "text": (one(7.0, 4, 5), one(8.0, 2, 0))}
    found = measures.estimates(examination.together([Examination(sets=sets, swap=swap)]))
    value = {key: e.value for key, e in found.items() if key.startswith("swap")}
    assert value == pytest.approx(
        {"swap.visual": 100 / 8 / 2, "swap.text": (75 + 50) / 2, "swap.visual.forget_word": 12.5, "swap.text.forget_word": 25}
    )
    assert found["swap.text"].units == 2
    low, high = intervals.compared(found["swap.text"]).low, intervals.compared(found["swap.text"]).high
    assert low < 62.5 < high


def test_parts_have_lines_of_their_own():
    one = {"value": 40.0, "low": 30.0, "high": 50.0}
    numbers = {"r1.forget_exclusive": one, **{f"swap.{t}{p}": one for t in ("visual", "text") for p in ("", ".forget_look")}}
    numbers = dict.fromkeys(("original", "unlearned", "retrain"), numbers)
    found = anchors.modality(numbers)
    assert list(found["swap"]) == ["all", "forget_look"]
    shown = [line.number for line in anchors.lines({"modality": found, "subspace": {"why": "x"}, "temporal": {}}, "quick")]
    assert shown[3:5] == [
        "R@1 % of its image tower with the text tower of retrain, forget_look",
        "R@1 % of its text tower with the image tower of retrain, forget_look",
    ]


# ---- unique subspace -----------------------------------------------------------------------------------------------------


def test_energy_of_what_was_learnt_by_hand():
    """U is the first axis of four: learning moved by (3, 4, 0, 0), retraining by (0, 1, 0, 0)."""
    lock = ForgetLock.around(torch.zeros(4), [0], [torch.eye(4, 1)], 1.0)
    moved = {"original": np.array([3, 4, 0, 0], np.float32), "retrain": np.array([0, 1, 0, 0], np.float32)}
    said = [Examination(sets={}, regained=r) for r in ((0.1, 0.2, 0.3, 0.4), (0.3, 0.4, 0.5, 0.6))]
    found = anchors.subspace(lock, moved, {"original": examination.together(said), "retrain": examination.together([])})
    assert (found["directions"], found["chance"]) == (1, 0.25)
    assert found["energy"] == pytest.approx({"original": 9 / 25, "retrain": 0})
    assert list(found["step"]) == ["original"]
    assert found["step"]["original"]["orders"] == pytest.approx([0.2, 0.3, 0.4, 0.5])
    assert found["step"]["original"]["mean"] == pytest.approx(0.35)
    assert found["step"]["original"]["sd"] == pytest.approx(np.std([2, 3, 4, 5], ddof=1) / 10)
    assert "no forget lock" in anchors.subspace(None, moved, {})["why"]
    assert "no direction" in anchors.subspace(replace(lock, starts=(), bases=(), anchors=()), moved, {})["why"]


def test_a_relearning_client_says_how_far_its_first_step_leads_along_the_lock(halves):
    """Of the first step of each order of batches, and of no later one."""
    client, subject, model, learnt = halves
    lock = ForgetLock.around(torch.from_numpy(model.initial), [40], [torch.eye(200, 120)])
    theta = learnt["visual"]
    found = client.relearning(theta, replace(subject, lock=lock))["regained"]
    steps = [client._learn(theta, subject, (1,), seed)[0] - theta for seed in range(4)]
    shares = [float((s[40:160].astype(float) ** 2).sum() / (s.astype(float) ** 2).sum()) for s in steps]
    assert found == pytest.approx(shares, rel=1e-5)
    assert min(shares) > 0
    assert client.relearning(theta, subject)["regained"] == []


# ---- temporal ------------------------------------------------------------------------------------------------------------


def noted(push=2.0, steps=3, strength=10.0, share=0.5, added=0.3, lr=0.1):
    return {"drift": 0.1, "added": added, "steps": steps, "lr": lr, "push": push, "strength": strength, "share": share}


LOCK = ForgetLock.around(torch.zeros(4), [0], [torch.eye(4, 1)], 10.0)


@pytest.mark.parametrize(
    ("rounds", "published", "server"),
    [
        ([noted(), noted(steps=2, push=1.0)], 2 / 10, 0.3),
        ([noted(steps=1, strength=1.0)], 1 * 0.1 * 2, 0.3),  # n lr G is nearer than G / lambda
        ([noted(strength=8.0), noted(strength=4.0, share=0.25, added=0.1)], 2 / 4, 0.3 * 0.75 / 0.25),  # the weakest counts
        ([noted(), noted(strength=0.0, share=0.0)], 6 * 0.1 * 2, None),  # released
        ([noted(push=None, strength=0.0)], None, 0.3),
    ],
)
def test_bounds_by_hand(rounds, published, server):
    found = anchors.bounds(LOCK, rounds)
    assert found.get("published") == pytest.approx(published)
    assert found.get("server") == pytest.approx(server)
    assert ("why" in found) == (published is None)


def test_no_bound_is_told_where_there_is_none():
    twice = LOCK.and_also(ForgetLock.around(torch.zeros(4), [0], [torch.eye(3, 1)]), torch.zeros(4))
    assert set(anchors.bounds(twice, [noted()])) == {"why"}
    assert anchors.bounds(None, []) == anchors.bounds(LOCK, []) == {}
    assert anchors.temporal(LOCK, [], {}, {"unlearned": {}}) == {}


def test_the_drift_of_a_continuation_stays_within_the_bound_of_what_clients_report(host):  # noqa: F811
    """Law, of three rounds of a client without the server's half. From a third of G the bound is broken: it is no empty one."""
    e, world, model, theta = host
    lock = replace(locked(host, 30.0), share=0.0)
    context = MethodContext(e, SimpleNamespace(), "continuation", model.initial, model.blocks, ("client-1",))
    method, broken = Continuing(context, lock, None), False
    for round in (1, 2, 3):
        plan = TrainConfig(epochs=2, batch=EVERYTHING, lr=e.learn.lr)
        job = Learn(phase="continuation", round=round, train=plan)
        after, metrics = fitted(Contrastive(e, "client-1", world, Memory()), theta, job, lock)
        theta = method.combine(round, theta, {"client-1": Update("client-1", after, None, {"num-examples": 9, **metrics})})
        rounds = method.facts["lock"]
        assert rounds[-1]["drift"] == pytest.approx(float(lock.drift(torch.from_numpy(after)).norm()))
        assert 0 < rounds[-1]["drift"] <= anchors.bounds(lock, rounds)["published"]
        less = [r | {"push": r["push"] / 3} for r in rounds]
        broken |= rounds[-1]["drift"] > anchors.bounds(lock, less)["published"]
    assert broken


def test_the_server_takes_back_its_share_of_what_a_round_added():
    e = small_experiment()
    lock = ForgetLock.around(torch.zeros(2), [0], [torch.eye(2, 1)], 0.0, 0.5)
    method = Continuing(MethodContext(e, SimpleNamespace(), "continuation", np.zeros(2, np.float32), (), ("a",)), lock, None)
    came = Update("a", np.array([4, 1], np.float32), None, {"num-examples": 1, "loss": 1.0, "steps": 3})
    after = method.combine(1, np.array([1, 1], np.float32), {"a": came})
    assert after.tolist() == [2, 1]
    (said,) = method.facts["lock"]
    assert (said["added"], said["drift"], said["push"], said["steps"], said["share"]) == (3, 2, None, 3, 0.5)


# ---- whole runs ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(home):
    """A tiny run with a full audit, and what was sent."""
    told = settings(home / "run", **{"evaluation.reference": "retrain", "audit.level": "full"})
    grid = InProcessGrid(TINY["data.clients"], told)
    submit(told, grid)
    return home / "run", grid, json.loads((home / "run" / "audit.json").read_text())


@pytest.mark.slow
def test_an_audit_has_all_three_anchors(run):
    folder, _, found = run
    modality, subspace, temporal = (found["anchors"][a] for a in ("modality", "subspace", "temporal"))
    for tower in ("visual", "text"):
        models = modality["swap"]["all"][tower]
        assert set(found["numbers"]) == set(models)
        assert models["retrain"]["value"] == modality["recall"]["models"]["retrain"]["value"]  # with itself it is itself
        assert {"original", "unlearned", "retrain"} <= set(modality["cross"][tower])
    assert {"original", "unlearned", "retrain"} <= set(subspace["energy"]) & set(subspace["step"])
    assert subspace["energy"]["original"] > subspace["energy"]["unlearned"]
    assert all(0 < e < 1 for step in subspace["step"].values() for e in step["orders"])
    assert [r["round"] for r in temporal["rounds"]] == list(range(1, TINY["continuation.rounds"] + 1))
    drifts = [r["drift"] for r in temporal["rounds"]]
    assert 0 < max(drifts) <= min(temporal["bounds"]["published"], temporal["bounds"]["server"])
    assert temporal["drift"]["continued"] <= max(drifts)
    numbers = found["numbers"]
    gained = numbers["continued"]["r1.forget_exclusive"]["value"] - numbers["unlearned"]["r1.forget_exclusive"]["value"]
    assert temporal["back"]["continued"]["gap"] == pytest.approx(gained, abs=1e-4)
    assert temporal["back"]["retrain_continued"]["since"] == "retrain_equal"
    shown = (folder / "audit.md").read_text()
    assert shown.count("\n| modality | ") == 5 + 2 * 3  # all, and each kind of association in either tower
    assert shown.count("\n| unique subspace | ") == 2
    assert shown.count("\n| temporal | ") == 3


@pytest.mark.slow
def test_the_lock_goes_to_who_learns_again_and_to_nobody_else(run):
    _, grid, _ = run
    audits = [m for m in grid.sent if '"kind":"audit"' in m.content["config"]["instruction"]]
    got = {m.metadata.dst_node_id: "lock" in m.content["arrays"] for m in audits}
    assert got == {100: True, 101: False, 102: False}
    named = {m.metadata.dst_node_id: json.loads(m.content["config"]["instruction"])["lock"] for m in audits}
    assert [len(named[node]) for node in (100, 101, 102)] == [64, 0, 0]


@pytest.mark.slow
def test_the_report_of_a_run_with_a_quick_audit_has_the_table(home):
    told = settings(home / "quick", **{"evaluation.reference": "retrain", "audit.level": "quick", "strategy.lock.strength": 0})
    grid = InProcessGrid(TINY["data.clients"], told)
    submit(told, grid)
    assert not any("lock" in m.content["arrays"] for m in grid.sent if m.content.array_records)
    found = json.loads((home / "quick" / "audit.json").read_text())["anchors"]
    assert "published bound" in found["temporal"]["bounds"]["why"]
    assert found["temporal"]["rounds"][-1]["drift"] <= found["temporal"]["bounds"]["server"]
    text = report.of_run(home / "quick", pictures=False).read_text()
    assert "<h2>The three anchors</h2>" in text
    lines = anchors.lines(found, "quick")
    assert sum(line.after == "full audit" for line in lines) == 2  # cross probes; without strength U stays on the server
    assert all(line.number in text and line.reading.replace("'", "&#39;") in text for line in lines)


@pytest.mark.slow
def test_a_method_without_a_lock_says_so(home):
    told = settings(home / "plain", **{"evaluation.reference": "retrain", "audit.level": "quick"})
    submit(plain(told))
    text = (home / "plain" / "audit.md").read_text()
    assert "| energy along U | - | - | - | The method leaves no forget lock" in text
    assert "| drift along U, after going on | - | - | - | Nothing is locked. |" in text
    assert "R@1 that came back" in text
