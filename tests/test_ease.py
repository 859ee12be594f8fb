"""The server half of EASE, on vectors one can follow by hand."""

from dataclasses import replace

import numpy as np
import pytest
from ease_flwr.strategies import gsd, load
from ease_flwr.strategies.ease import Ease
from ease_flwr.strategies.gsd import Columns, GsdParams

from ease_flwr.config import ConfigError, Experiment, ForgetSet, TrainConfig
from ease_flwr.config.renamed import EASE
from ease_flwr.model.adapters import Block
from ease_flwr.store.history import History
from tests.server_half import context, update

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


@pytest.mark.parametrize(
    ("updates", "fill", "spans"),
    [
        (2, 0.5, [(0, 4), (4, 8), (8, 12)]),
        (4, 1.0, [(0, 4), (4, 8), (8, 12)]),
        (3, 0.5, [(0, 8), (8, 12)]),  # two tensors of the image tower together; the text tower has only one
        (100, 0.5, [(0, 8), (8, 12)]),  # never across towers
    ],
)
def test_tensors_are_taken_together_until_all_updates_leave_room(updates, fill, spans):
    assert gsd.blocks_of(BLOCKS, updates, fill) == spans


def test_a_rest_that_is_too_small_joins_the_block_before_it():
    blocks = [Block(f"visual.{k}", "visual", (size,), start) for k, (size, start) in enumerate([(4, 0), (4, 4), (2, 8)])]
    assert gsd.blocks_of(blocks, 2, 0.5) == [(0, 4), (4, 10)]


@pytest.mark.parametrize("most", [1, 40, 2**27])
def test_blocks_read_at_once_are_the_blocks(most, tmp_path):
    columns = gsd.recorded(context(np.zeros(12), BLOCKS), history(tmp_path), ("client-0",))
    spans = [(b.start, b.stop) for b in BLOCKS]
    for (start, stop), (theirs, others) in zip(spans, gsd.at_once(spans, columns, most), strict=True):
        for who, read in ((columns.forget, theirs), (columns.retain, others)):
            assert [m.tolist() for m in read] == [rows(start, stop).tolist() for rows in who]


def test_excision_takes_the_sine_part_of_exclusive_directions_back_to_the_start(tmp_path):
    theta_0 = np.full(12, 0.5, np.float32)
    theta = theta_0 + np.arange(1, 13, dtype=np.float32)
    method = ease(theta_0, gsd={"fill": 1}, bke={"enabled": True})
    start = method.prepare(theta, history(tmp_path))
    # image tower: (e0 + e1)/sqrt 2 has cosine .707 to e0, its sine part is e1; text tower: e8 is orthogonal to e9, e10
    expected = theta.copy()
    expected[[1, 8]] = 0.5
    assert np.allclose(start, expected, atol=1e-6)
    assert np.array_equal(method.snapshot["request"], theta)
    assert np.array_equal(method.snapshot["teacher"], start)
    assert method.lock_after(start).dimension == 2
    assert method.facts["unique"] == {"visual": 1, "text": 1}
    assert [b["cosines"] for b in method.facts["blocks"]] == [[0.707], [0.0]]  # six updates want the image tower as one block
    overlap = method.facts["overlap"]
    assert overlap["clients"] == ["client-0", "client-1", "client-2"]
    assert overlap["matrix"][1][2] == pytest.approx(1 / 2, abs=1e-3)  # the same in one block of two


def test_threshold_below_the_cosine_spares_a_direction(tmp_path):
    start = ease(np.zeros(12), gsd={"tau": 0.5, "fill": 1}).prepare(np.ones(12, np.float32), history(tmp_path))
    assert start[1] == 1  # cosine .707 > .5
    assert start[8] == 0


def test_rounds_add_the_forgotten_step_project_and_lock_it(tmp_path):
    method = ease(np.zeros(12), gsd={"fill": 1}, bke={"enabled": True}, projection=1)
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
    method = ease(None, who=who, rounds=5, lr_end=0.2, gsd={"source": "none"}, bke={"rate": 0.3, "sides": "joint"})
    method.prepare(np.ones(12, np.float32), None)
    assert [method.requests(r)["client-1"].instruction.train.lr for r in (1, 3, 5)] == pytest.approx([0.1, 0.06, 0.02])
    job = method.requests(3)["client-0"].instruction
    assert (job.objective, job.train.lr, job.train.epochs) == ("bilateral", pytest.approx(0.03), 1)
    assert list(job.options) == ["weight", "margin", "evidence", "target", "way", "sides"]
    assert job.options["sides"] == "joint"
    assert list(method.requests(3)["client-0"].once) == ["request"]


def test_foils(tmp_path):
    theta = np.ones(12, np.float32)

    def start(**params):
        method = ease(np.zeros(12), gsd={"fill": 1, **params}, bke={"enabled": False})
        return method.prepare(theta, history(tmp_path))

    assert np.array_equal(start(reference="request"), theta)  # since the request nothing was learnt
    whole = start(subspace="whole")
    assert np.allclose(whole[:2], 0, atol=1e-6)  # e0 + e1, shared part and all
    assert np.linalg.norm(whole) < np.linalg.norm(start()) < np.linalg.norm(theta)
    random = start(subspace="random")
    assert not np.allclose(random, start())
    assert np.allclose(start(source="none"), 0.75 * theta)  # shrinking alone


@pytest.mark.parametrize(("name", "subspace"), [("excise_all", "whole"), ("excise_random", "random")])
def test_a_foil_has_its_own_defaults_whatever_else_is_set(name, subspace, tmp_path):
    kind = load(name)
    for given_settings in ({}, {"gsd": {"energy": 0.9}, "bke": {"epochs": 2}}):
        assert kind.Params(**given_settings).gsd.subspace == subspace
    foil = kind(context(np.zeros(12), BLOCKS), kind.Params(gsd={"fill": 1}))
    expected = ease(np.zeros(12), gsd={"fill": 1, "subspace": subspace})
    theta = np.ones(12, np.float32)
    assert np.array_equal(*(method.prepare(theta, history(tmp_path)) for method in (foil, expected)))


def test_a_source_that_cannot_tell_is_refused():
    for scenario in ("class", "sample"):
        with pytest.raises(ConfigError, match=r"strategy.gsd.source=history: the updates of clients that stay contain"):
            gsd.source(scenario, GsdParams(source="history"))
        assert gsd.source(scenario, GsdParams()) == "none"
    assert gsd.source("client", GsdParams()) == "history"


@pytest.mark.parametrize(
    ("name", "scenario", "settings", "why"),
    [
        (
            "ease",
            "client",
            {"gsd": {"source": "none"}, "bke": {"enabled": False}, "shrink": 0},
            "nothing forgets a client without GSD, BKE and shrinking",
        ),
        (
            "ease",
            "class",
            {"bke": {"enabled": False}, "shrink": 0},
            "nothing forgets a class without GSD, BKE and shrinking: leave one on",
        ),
        ("ease", "class", {"gsd": {"source": "history"}}, "the updates of clients that stay contain"),
        ("ease", "client", {"lock": {"inside": True}}, "lock.inside=true holds nothing at lock.strength=0: give it a strength"),
        ("excise_all", "client", {"gsd": {"source": "none"}, "bke": {"enabled": True}, "shrink": 0}, "without GSD, BKE"),
        ("ease", "client", {"rounds": 0}, "rounds"),
    ],
)
def test_what_cannot_forget_is_refused_before_anything_runs(name, scenario, settings, why):
    with pytest.raises(ConfigError, match=why):
        load(name).check(name, Experiment(strategy=settings), scenario)


def test_a_foil_asks_nobody_for_bke(tmp_path):
    foil = load("excise_all")(context(np.zeros(12), BLOCKS), load("excise_all").Params(bke={"enabled": True}))
    foil.prepare(np.ones(12, np.float32), history(tmp_path))
    assert foil.facts["bke"] == "param"


def test_a_retained_client_that_never_took_part_supports_nothing(tmp_path):
    who = context(np.zeros(12), BLOCKS, clients=("client-1", "client-2", "client-3"))
    found = ease(None, who=who).prepare(np.ones(12, np.float32), history(tmp_path))
    assert np.array_equal(found, ease(np.zeros(12)).prepare(np.ones(12, np.float32), history(tmp_path)))


@pytest.mark.parametrize(("old", "new"), EASE.items())
@pytest.mark.parametrize("name", ["ease", "excise_all", "excise_random"])
def test_an_old_setting_is_answered_with_its_new_name(name, old, new):
    section, _, field = new.partition(".")
    assert not field or field in Ease.Params.model_fields[section].annotation.model_fields
    with pytest.raises(ConfigError, match=f"^strategy {name}: {old} is called {new} since version 0.2: use that name$"):
        load(name).check(name, Experiment(strategy={old: 1}), "client")


def test_sections_of_today_are_no_old_settings():
    settings = {"gsd": {"source": "none", "tau": 0.3}, "bke": {"rate": 0.2}, "lock": {"strength": 0}}
    params = Ease.check("ease", Experiment(strategies={"ease": {"bke": {"epochs": 1}}}, strategy=settings), "sample")
    assert (params.gsd.source, params.bke.rate, params.bke.epochs, params.lock.strength) == ("none", 0.2, 1, 0)


def test_measured_angles_need_no_run():
    """The call that benchmarks time: updates of one client that leaves and of another, from anywhere."""
    rng = np.random.default_rng(0)
    matrices = [rng.standard_normal((12, 2)).astype(np.float32) for _ in range(2)]
    rows = [lambda i, j, m=m: m[i:j] for m in matrices]
    found = gsd.measure(GsdParams(), Columns(rows[:1], rows[1:]), [Block("text.a", "text", (12,), 0)])
    assert len(found.angles[0].cosines) == 2
    assert found.shared.shape == (2, 2)
