"""The server half of EASE, on vectors one can follow by hand."""

import tempfile
from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ease_flwr.config import ConfigError, Experiment, ForgetSet, TrainConfig
from ease_flwr.config.renamed import EASE
from ease_flwr.exchange import evaluation
from ease_flwr.exchange.judgement import Judgement
from ease_flwr.exchange.training import Trained
from ease_flwr.model.adapters import Block
from ease_flwr.store.cost import Cost
from ease_flwr.store.history import History
from strategies import calibration, gsd, load
from strategies.ease import Ease
from strategies.gsd import Columns, GsdParams
from tests.server_half import LEAVES, Clients, context, update

BLOCKS = (Block("visual.a", "visual", (4,), 0), Block("visual.b", "visual", (2, 2), 4), Block("text.a", "text", (4,), 8))
SAMPLE = ForgetSet(scenario="sample", targets=("client-1/3",))


def ease(theta_0, lock=None, who=None, **params):
    return Ease(who or context(theta_0, BLOCKS), Ease.Params(**params), lock)


def history(folder):
    """client-0 moves along e0 + e1 in the image tower, and along e8 in the text tower; others along e0, e1 not at all."""
    h = History(folder)
    for round in (1, 2):
        for name, where in (("client-0", (0, 1, 8)), ("client-1", (0, 9)), ("client-2", (0, 10))):
            column = np.zeros(12, np.float32)
            column[list(where)] = round
            h.append(round, name, column)
    return h


def test_blocks_of_each_scope():
    assert gsd.blocks_of(BLOCKS, "tensor") == [(0, 4), (4, 8), (8, 12)]
    assert gsd.blocks_of(BLOCKS, "tower") == [(0, 8), (8, 12)]
    assert gsd.blocks_of(BLOCKS, "vector") == [(0, 12)]


@pytest.mark.parametrize("most", [1, 40, 2**27])
def test_blocks_read_at_once_are_the_blocks(most, tmp_path):
    columns = gsd.recorded(context(np.zeros(12), BLOCKS), history(tmp_path))
    spans = gsd.blocks_of(BLOCKS, "tensor")
    for (start, stop), (theirs, others) in zip(spans, gsd.at_once(spans, columns, most), strict=True):
        for who, read in ((columns.forget, theirs), (columns.retain, others)):
            assert [m.tolist() for m in read] == [rows(start, stop).tolist() for rows in who]


def test_excision_takes_the_sine_part_of_exclusive_directions_back_to_the_start(tmp_path):
    theta_0 = np.full(12, 0.5, np.float32)
    theta = theta_0 + np.arange(1, 13, dtype=np.float32)
    method = ease(theta_0, gsd={"tau": 0.8})
    start = method.prepare(theta, history(tmp_path))
    # image tower: (e0 + e1)/sqrt 2 has cosine .707 to e0, its sine part is e1; text tower: e8 is orthogonal to e9, e10
    expected = theta.copy()
    expected[[1, 8]] = 0.5
    assert np.allclose(start, expected, atol=1e-6)
    assert np.allclose(method.snapshot["request"], theta)
    assert method.lock_after(start).dimension == 2
    assert method.facts["unique"] == {"visual": 1, "text": 1}
    assert [b["cosines"] for b in method.facts["blocks"]] == [[0.707], [], [0.0]]
    overlap = method.facts["overlap"]
    assert overlap["clients"] == ["client-0", "client-1", "client-2"]
    assert overlap["matrix"][1][2] == pytest.approx(1 / 3, abs=1e-3)  # the same in one block of three


def test_threshold_below_the_cosine_spares_a_direction(tmp_path):
    start = ease(np.zeros(12), gsd={"tau": 0.5}).prepare(np.ones(12, np.float32), history(tmp_path))
    assert start[1] == 1  # cosine .707 > .5
    assert start[8] == 0


def test_rounds_add_the_forgotten_step_project_and_lock_it(tmp_path):
    method = ease(np.zeros(12), gsd={"tau": 0.8})
    theta = method.prepare(np.ones(12, np.float32), history(tmp_path))
    step = np.zeros(12, np.float32)
    step[[1, 5]] = (3, 2)
    retained = theta + np.float32(0.25)
    updates = {n: update(n, theta + step if n == "client-0" else retained) for n in ("client-0", "client-1", "client-2")}
    after = method.combine(1, theta, updates)
    expected = retained + step
    expected[[1, 8]] = 0  # the gap stays empty
    assert np.allclose(after, expected, atol=1e-6)
    # later rounds may not take the step back: e5 is locked where it is, besides e1 and e8
    method.lock = replace(method.lock_after(after), share=1.0)
    assert method.lock.dimension == 3
    later = after.copy()
    later[[1, 5, 8, 11]] += 7
    assert np.allclose(method.locked(1, later) - after, 7 * np.eye(12)[11], atol=1e-5)


def test_retained_clients_learn_slower_and_forget_clients_do_bke():
    who = context(np.zeros(12), BLOCKS, experiment=Experiment(learn=TrainConfig(lr=0.1)))
    method = ease(None, who=who, rounds=5, lr_end=0.2, gsd={"source": "none"}, bke={"lr": 0.03, "sides": "joint"})
    method.prepare(np.ones(12, np.float32), None)
    assert [method.requests(r)["client-1"].instruction.train.lr for r in (1, 3, 5)] == pytest.approx([0.1, 0.06, 0.02])
    job = method.requests(3)["client-0"].instruction
    assert (job.objective, job.train.lr, job.train.epochs) == ("bilateral", 0.03, 2)
    assert list(job.options) == ["weight", "margin", "evidence", "target", "way", "sides"]
    assert job.options["sides"] == "joint"
    assert list(method.requests(3)["client-0"].once) == ["request"]


def validated(answer):
    """In place of the exchange on validation pairs: answer(models, names) judges."""
    return mock.patch.object(evaluation, "validate", lambda federation, m, names, forget: (answer(m, names), Cost(rounds=1)))


@settings(deadline=None, max_examples=50)
@given(
    st.lists(st.tuples(st.floats(0, 100), st.floats(0, 9)), min_size=3, max_size=3),
    st.floats(1, 100),
    st.floats(0, 9),
    st.floats(0, 1),
)
def test_calibration_takes_the_shallowest_that_reaches_the_unseen_level_and_never_costs_too_much(found, before, goal, drop):
    taus = (0.3, 0.5, 0.8)

    def judged(models, names):
        assert list(models) == ["as it is", "tensor 0.3", "tensor 0.5", "tensor 0.8"]
        assert "client-0" in names
        values = zip(models, [(before, 0.0), *found], strict=True)
        return {m: Judgement(sets={"retain": {"r1": r}}, partner_loss=loss, unseen_loss=goal) for m, (r, loss) in values}

    who = context(np.zeros(12), BLOCKS)
    with tempfile.TemporaryDirectory() as folder, validated(judged):
        columns = gsd.recorded(who, history(Path(folder)))
        choice = calibration.choose(who, GsdParams(taus=taus, drop=drop), np.ones(12, np.float32), columns)
    assert choice.scope == "tensor"
    allowed = [t for t, (r, _) in zip(taus, found, strict=True) if r >= (1 - drop) * before]
    assert choice.tau in (allowed or taus[:1])
    losses = dict(zip(taus, (loss for _, loss in found), strict=True))
    reached = [t for t in allowed if losses[t] >= goal]
    assert not reached or choice.tau == min(reached)
    assert reached or not allowed or losses[choice.tau] == max(losses[t] for t in allowed)


def test_without_a_forget_client_the_deepest_that_is_allowed_is_taken(tmp_path):
    method = ease(np.zeros(12), gsd={"taus": (0.3, 0.5, 0.8), "drop": 0.1})
    recalls = iter((100.0, 99.0, 95.0, 50.0))
    with validated(lambda models, names: {m: Judgement(sets={"retain": {"r1": next(recalls)}}) for m in models}):
        start = method.prepare(np.ones(12, np.float32), history(tmp_path))
    assert method.facts["tau"] == 0.5
    assert start[1] == 1  # its cosine .707 is beyond
    assert method.meter.spent.rounds == 1
    found = method.facts["calibration"]
    assert (found["goal"], found["least"]) == (None, 90.0)
    assert list(found["candidates"]) == ["as it is", "tensor 0.3", "tensor 0.5", "tensor 0.8"]
    unknown = {"partner_loss": None, "unseen_loss": None}
    assert found["candidates"]["as it is"] == {"retain": 100.0, **unknown}
    chosen = {"scope": "tensor", "tau": 0.5, "allowed": True, "chosen": True}
    assert found["candidates"]["tensor 0.5"] == {"retain": 95.0, **unknown, **chosen}
    assert [c["allowed"] for c in found["candidates"].values() if "tau" in c] == [True, True, False]


def test_probe_rounds_learn_each_part_of_the_data_by_itself(monkeypatch):
    def answer(theta, requests):
        assert np.array_equal(theta, np.zeros(12)) or len(clients.asked) % 2 == 0  # both parts begin at theta_0
        return {n: update(n, theta + np.eye(12, dtype=np.float32)[int(n[-1])]) for n in requests}

    clients = Clients(answer)
    missing = {"phase": "probe-forget", "round": 1, "client": "client-2", "why": "no answer"}

    def train(*asked):
        trained = clients.train(*asked)
        return Trained(trained.updates, trained.cost, trained.notified, (missing,) if len(clients.asked) == 1 else ())

    monkeypatch.setattr("ease_flwr.exchange.rounds.train", train)
    who = context(np.zeros(12), BLOCKS, SAMPLE, forget_clients=("client-1",))
    method = ease(None, who=who, gsd={"source": "probe", "probe_rounds": 2, "tau": 0.5})
    method.prepare(np.ones(12, np.float32), None)
    forget, _, retain, _ = clients.asked
    assert [(j.phase, j.only, j.without) for j in forget.values()] == [("probe-forget", (SAMPLE,), ())]
    assert {n: (j.phase, j.only, j.without) for n, j in retain.items()} == {
        "client-1": ("probe-retain", (), (SAMPLE,)),
        "client-2": ("probe-retain", (), ()),
    }
    assert method.meter.spent.rounds == 4
    assert method.failures == [missing]
    assert (method.facts["gsd"], method.facts["server_bytes"]) == ("probe", 0)
    assert "teacher" not in method.snapshot  # where clients stay, no teacher knows which pair should end where


def test_foils(tmp_path):
    theta = np.ones(12, np.float32)

    def start(**params):
        method = ease(np.zeros(12), gsd={"tau": 0.8, **params}, bke={"enabled": False})
        return method.prepare(theta, history(tmp_path))

    assert np.array_equal(start(reference="request"), theta)  # since the request nothing was learnt
    whole = start(subspace="whole")
    assert np.allclose(whole[:2], 0, atol=1e-6)  # e0 + e1, shared part and all
    assert np.linalg.norm(whole) < np.linalg.norm(start()) < np.linalg.norm(theta)
    random = start(subspace="random")
    assert not np.allclose(random, start())
    with pytest.raises(ConfigError, match=r"without GSD and without forget clients that help there is nothing to forget by"):
        start(source="none")


@pytest.mark.parametrize(("name", "subspace"), [("excise_all", "whole"), ("excise_random", "random")])
def test_a_foil_has_its_own_defaults_whatever_else_is_set(name, subspace, tmp_path):
    kind = load(name)
    for given_settings in ({}, {"gsd": {"energy": 0.9}, "bke": {"epochs": 1}}):
        params = kind.Params(**given_settings)
        assert (params.gsd.tau, params.gsd.subspace, params.bke.enabled) == (0.6, subspace, False)
    foil = kind(context(np.zeros(12), BLOCKS), kind.Params(gsd={"tau": 0.8}))
    expected = ease(np.zeros(12), gsd={"tau": 0.8, "subspace": subspace}, bke={"enabled": False})
    theta = np.ones(12, np.float32)
    assert np.array_equal(*(method.prepare(theta, history(tmp_path)) for method in (foil, expected)))


@pytest.mark.parametrize(
    ("source", "who", "message"),
    [
        (
            "history",
            context(np.zeros(12), BLOCKS, SAMPLE),
            "strategy.gsd.source=history: the updates of clients that stay contain",
        ),
        ("probe", context(np.zeros(12), BLOCKS, forget_clients=()), "strategy.gsd.source=probe: no forget client is there"),
    ],
)
def test_a_source_that_cannot_tell_is_refused(source, who, message):
    with pytest.raises(ConfigError, match=message):
        gsd.source(who, GsdParams(source=source))
    automatic = gsd.source(who, GsdParams())
    assert automatic == ("history" if who.forget == LEAVES else "none")


@pytest.mark.parametrize(("old", "new"), EASE.items())
@pytest.mark.parametrize("name", ["ease", "excise_all", "excise_random"])
def test_an_old_setting_is_answered_with_its_new_name(name, old, new):
    section, _, field = new.partition(".")
    assert field in Ease.Params.model_fields[section].annotation.model_fields
    with pytest.raises(ConfigError, match=f"^strategy {name}: {old} is called {new} since version 0.2: use that name$"):
        load(name).check(name, Experiment(strategy={old: 1}), "client")


def test_sections_of_today_are_no_old_settings():
    settings = {"gsd": {"source": "none", "tau": 0.3}, "bke": {"lr": 1e-3}, "lock": {"strength": 0}}
    params = Ease.check("ease", Experiment(strategies={"ease": {"bke": {"epochs": 1}}}, strategy=settings), "sample")
    assert (params.gsd.source, params.bke.lr, params.bke.epochs, params.lock.strength) == ("none", 1e-3, 1, 0)


def test_measured_angles_need_no_run():
    """The call that benchmarks time: updates of one client that leaves and of another, from anywhere."""
    rng = np.random.default_rng(0)
    matrices = [rng.standard_normal((12, 2)).astype(np.float32) for _ in range(2)]
    rows = [lambda i, j, m=m: m[i:j] for m in matrices]
    found = gsd.measure(GsdParams(directions=2), Columns(rows[:1], rows[1:]), [(0, 12)])
    assert len(found.angles[0].cosines) == 2
    assert found.shared.shape == (2, 2)
