"""What the server half of EASE decides, one decision a test: support, teacher, learning rates, sums, projection, lock."""

import numpy as np
import pytest
import torch
from ease_flwr.strategies import gsd
from ease_flwr.strategies.ease import Ease
from ease_flwr.strategies.gsd import Columns, GsdParams

from ease_flwr.config import ConfigError, Experiment, ForgetSet, TrainConfig
from ease_flwr.exchange.rounds import Plan
from ease_flwr.model.adapters import Block
from ease_flwr.model.lock import ForgetLock
from ease_flwr.store.history import History
from tests.server_half import Clients, context, run, update
from tests.test_ease import BLOCKS, SAMPLE, ease, history

CLASS = ForgetSet(scenario="class", targets=("ann",))
CLASSES = ForgetSet(scenario="class", targets=("ann", "bob"))
NAMES = ("client-0", "client-1", "client-2")


# ---- what is measured ------------------------------------------------------------------------------------------------------


def rows(*strengths):
    """Updates along these coordinates of twelve: {coordinate: strength}, a round each."""
    columns = np.zeros((12, len(strengths)), np.float32)
    for t, (where, strength) in enumerate(strengths):
        columns[where, t] = strength
    return lambda start, stop: columns[start:stop]


def cosines(forget, *retain, **params):
    (angles,) = gsd.measure(GsdParams(**params), Columns([forget], retain), [Block("text.a", "text", (12,), 0)]).angles
    return angles.cosines.tolist()


def test_every_update_of_every_retained_client_is_support():
    """However many there are: what a threshold on their number would drop is excised from what others did."""
    many = [rows(*[(3 * k + i, 9 - i) for i in range(3)]) for k in range(3)]  # nine directions of twelve
    for coordinate in range(12):
        assert cosines(rows((coordinate, 1)), *many, energy=1) == pytest.approx([1.0 if coordinate < 9 else 0.0], abs=1e-9)


def test_a_basis_holds_the_energy_that_is_set_on_either_side():
    loud_and_quiet = rows((0, 10), (1, 3))  # 100 and 9 of 109: 91.7 %
    elsewhere = rows((11, 1))
    for energy, directions in ((0.9, 1), (0.95, 2), (0.99, 2)):
        assert cosines(loud_and_quiet, elsewhere, energy=energy) == pytest.approx([0.0] * directions)
        # the quiet direction of a retained client is support, or is not
        assert cosines(rows((1, 1)), loud_and_quiet, energy=energy) == pytest.approx([directions - 1.0])


# ---- what forget clients are sent ------------------------------------------------------------------------------------------


def test_the_teacher_is_the_model_after_the_excision_and_sent_once(tmp_path):
    method = ease(np.full(12, 0.5), gsd={"fill": 1}, bke={"enabled": True})
    theta = np.ones(12, np.float32)
    start = method.prepare(theta, history(tmp_path))
    once = method.requests(1)["client-0"].once
    assert list(once) == ["request", "teacher"]
    assert np.array_equal(once["request"], theta)
    assert np.array_equal(once["teacher"], start)
    assert start[8] == 0.5  # orthogonal to everything: back to where learning began
    assert start[0] == 1
    assert all(not method.requests(1)[n].once for n in ("client-1", "client-2"))


@pytest.mark.parametrize("forget", [CLASS, SAMPLE])
@pytest.mark.parametrize("shrink", [0, 0.25, 0.9])
def test_where_nothing_is_excised_a_share_of_everything_learnt_is_taken_back(forget, shrink, tmp_path):
    theta_0, theta = np.linspace(-1, 1, 12), np.linspace(3, 7, 12).astype(np.float32)
    method = ease(theta_0, who=context(theta_0, BLOCKS, forget=forget), shrink=shrink)
    assert np.allclose(method.prepare(theta, History(tmp_path)), shrink * theta_0 + (1 - shrink) * theta)
    assert np.array_equal(method.requests(1)["client-0"].once["request"], theta)  # BKE is told what the model was


def test_shrinking_moves_nothing_that_an_older_lock_holds():
    """What was pushed away for an earlier request would come back by a share otherwise."""
    theta_0, theta = np.zeros(12), np.full(12, 4, np.float32)
    lock = ForgetLock.around(torch.ones(12), (0,), [torch.eye(12)[:, [2, 7]]])  # theta has drifted since
    who = context(theta_0, BLOCKS, forget=CLASS)
    found = Ease(who, Ease.Params(shrink=0.5), lock).prepare(theta, None)
    assert np.allclose(found, np.where(np.isin(range(12), (2, 7)), 4, 2))


def test_forgetting_that_is_to_have_help_is_refused_without_any():
    who = context(np.zeros(12), BLOCKS, forget=CLASS, forget_clients=())
    with pytest.raises(ConfigError, match=r"without GSD and without forget clients that help there is nothing to forget by"):
        ease(None, who=who).prepare(np.ones(12, np.float32), None)


def test_where_clients_leave_nobody_has_to_help(tmp_path):
    method = ease(np.zeros(12))
    method.prepare(np.ones(12, np.float32), history(tmp_path))
    assert list(method.requests(1)) == ["client-1", "client-2"]
    assert method.facts["bke"] == "param"


def test_a_client_that_has_left_without_help_is_sent_nothing(tmp_path):
    method = ease(np.zeros(12), who=context(np.zeros(12), BLOCKS, forget_clients=()), bke={"enabled": True})
    method.prepare(np.ones(12, np.float32), history(tmp_path))
    assert list(method.requests(1)) == ["client-1", "client-2"]
    assert method.facts["bke"] == "param"


def test_the_weights_of_bke_travel_as_they_are_set():
    settings = {"weight": 7.0, "margin": 3.0, "evidence": 0.25, "target": "unseen", "way": 0.75, "sides": "text"}
    method = ease(np.zeros(12), gsd={"source": "none"}, bke={**settings, "batch": 9, "epochs": 4, "rate": 2.0})
    method.prepare(np.ones(12, np.float32), None)
    job = method.requests(1)["client-0"].instruction
    assert job.options == settings
    assert (job.train.batch, job.train.epochs, job.train.lr) == (9, 4, 0.01)


def test_the_lock_goes_to_retained_clients_in_the_forget_phase_where_that_is_asked_for(tmp_path):
    for inside in (True, False):
        method = Ease(context(np.zeros(12), BLOCKS), Ease.Params(lock={"inside": inside, "strength": 9}))
        method.prepare(np.ones(12, np.float32), history(tmp_path / str(inside)))
        for request in method.requests(1).values():
            assert (list(request.once), len(request.instruction.lock)) == ((["lock"], 64) if inside else ([], 0))


# ---- what is learnt meanwhile ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("learnt", "rounds"), [(50, 7), (200, 28), (6, 1)])
def test_by_itself_a_forget_phase_has_one_round_for_seven_of_learning(learnt, rounds):
    assert ease(None, who=context(np.zeros(12), BLOCKS, learnt=learnt)).rounds == rounds
    assert ease(None, who=context(np.zeros(12), BLOCKS, learnt=learnt), rounds=3).rounds == 3


def learning_rates(rounds, **params):
    who = context(np.zeros(12), BLOCKS, experiment=Experiment(learn=TrainConfig(lr=0.1)))
    method = ease(None, who=who, rounds=rounds, gsd={"source": "none"}, **params)
    method.prepare(np.ones(12, np.float32), None)
    return [method.requests(r)["client-1"].instruction.train.lr for r in range(1, rounds + 1)]


def test_the_learning_rate_falls_in_a_line_to_its_end():
    assert learning_rates(4) == pytest.approx([0.1, 0.075, 0.05, 0.025])  # the default ends at a quarter
    assert learning_rates(3, lr_end=1.0) == pytest.approx([0.1, 0.1, 0.1])
    assert learning_rates(1, lr_end=0.5) == pytest.approx([0.1])


@pytest.mark.parametrize(
    ("rounds", "set_to", "average"), [(4, 9, 2), (4, 2, 2), (5, 9, 2), (6, 2, 2), (6, 9, 3), (1, 9, 1), (4, 1, 1)]
)
def test_a_short_phase_is_averaged_over_its_second_half_at_most(rounds, set_to, average, monkeypatch):
    who = context(np.zeros(12), BLOCKS, experiment=Experiment(learn=TrainConfig(average=set_to)))
    method = ease(None, who=who, rounds=rounds, gsd={"source": "none"})
    assert method.average == average
    clients = Clients(lambda theta, requests: {n: update(n, theta + np.float32(n != "client-0")) for n in NAMES})
    method.prepare(np.zeros(12, np.float32), None)
    found = run(monkeypatch, clients, method, np.zeros(12), Plan("forget", rounds)).theta
    assert found == pytest.approx([rounds - (average - 1) / 2] * 12)  # each round moves by one


# ---- what the server makes of it -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scenario", "labels", "expected"),
    [
        (SAMPLE, (1, 1), 3 + 5),
        (CLASS, (None, None), (3 + 5) / 2),  # whoever does not say it knows all
        (CLASSES, (2, 2), (3 + 5) / 2),
        (CLASSES, (1, 1), 3 + 5),  # each knows another one of two
        (CLASSES, (1, 2), (3 + 5) / 1.5),
        (CLASSES, (0, 9), (3 + 5) / 1.5),  # what cannot be is taken for the nearest that can
    ],
)
def test_each_class_is_moved_away_from_once(scenario, labels, expected, tmp_path):
    who = context(np.zeros(12), BLOCKS, scenario, forget_clients=("client-1", "client-2"))
    method = ease(None, who=who, gsd={"source": "none"})
    theta = method.prepare(np.ones(12, np.float32), History(tmp_path))
    stay = theta + np.float32(0.25)  # what they learn besides
    steps = {"client-1": 3, "client-2": 5}
    updates = {n: update(n, stay, step=s * np.eye(12, dtype=np.float32)[4]) for n, s in steps.items()}
    for known, own in zip(labels, updates.values(), strict=True):
        own.metrics.update({} if known is None else {"labels": known})
    assert method.combine(1, theta, updates) - stay == pytest.approx(expected * np.eye(12)[4])


@pytest.mark.parametrize("share", [0, 0.1, 0.5, 1])
def test_of_what_comes_back_to_the_gap_the_server_takes_its_share(share, tmp_path):
    """Coordinate 8 is exclusive. The reference of the projection is where learning began, .5, not where the request came."""
    method = ease(np.full(12, 0.5), gsd={"fill": 1}, projection=share)
    theta = method.prepare(np.full(12, 2.0, np.float32), history(tmp_path))
    assert theta[8] == pytest.approx(0.5)
    after = method.combine(1, theta, {n: update(n, theta + np.float32(4)) for n in NAMES[1:]})
    assert after[8] == pytest.approx(0.5 + 4 * (1 - share))
    assert after[5] == pytest.approx(6)


def test_only_what_retained_clients_learn_is_averaged():
    method = ease(np.zeros(12), gsd={"source": "none"})
    theta = method.prepare(np.zeros(12, np.float32), None)
    moves = {"client-0": 0, "client-1": 1, "client-2": 3}
    updates = {n: update(n, theta + np.float32(m), k) for (n, m), k in zip(moves.items(), (900, 300, 100), strict=True)}
    assert method.combine(1, theta, updates) == pytest.approx([1.5] * 12)  # (300 + 3 x 100) / 400
    assert method.combine(1, theta, {n: updates[n] for n in NAMES[1:]}) == pytest.approx([1.5] * 12)


@pytest.mark.parametrize(
    ("bke", "settings", "rules"),
    [
        (True, {}, (20, 0.5)),
        (False, {}, (0, 0.1)),
        (True, {"strength": 0, "share": 0}, (0, 0)),
        (False, {"strength": 3, "share": 1}, (3, 1)),
    ],
)
def test_the_lock_is_strong_where_bke_works_unless_it_is_set(bke, settings, rules, tmp_path):
    method = Ease(context(np.zeros(12), BLOCKS), Ease.Params(bke={"enabled": bke}, lock=settings))
    lock = method.lock_after(method.prepare(np.ones(12, np.float32), history(tmp_path)))
    assert (lock.strength, lock.share) == rules


# ---- the lock --------------------------------------------------------------------------------------------------------------


def older(where, *rules):
    """A lock on one coordinate of the second block, at 2."""
    basis = torch.zeros(4, 1)
    basis[where - 4] = 1
    return ForgetLock.around(torch.full((12,), 2.0), [4], [basis], *rules)


def test_an_older_lock_binds_in_the_rounds_of_a_later_request():
    method = ease(np.zeros(12), older(6, 0.0, 0.75), gsd={"source": "none"}, shrink=0)
    theta = method.prepare(np.full(12, 2.0, np.float32), None)
    after = method.combine(1, theta, {n: update(n, theta + np.float32(4)) for n in NAMES[1:]})
    expected = np.full(12, 6.0)
    expected[6] = 2 + 4 * (1 - 0.75)
    assert after == pytest.approx(expected)


def test_the_way_of_bke_alone_is_held_where_it_ended():
    method = ease(np.zeros(12), gsd={"source": "none"})
    theta = method.prepare(np.ones(12, np.float32), None)
    step = 3 * np.eye(12, dtype=np.float32)[4]
    theta = method.combine(1, theta, {n: update(n, theta + (step if n == "client-0" else 0)) for n in NAMES})
    away = method.lock_after(theta).project(torch.from_numpy(theta + 7)).numpy() - theta
    assert away == pytest.approx([0.0 if k == 4 else 7.0 for k in range(12)], abs=1e-5)


def test_the_lock_has_the_gap_the_way_of_bke_and_what_was_locked_before(tmp_path):
    params = Ease.Params(
        gsd={"fill": 1}, bke={"enabled": True}, projection=1, lock={"strength": 9, "share": 0.25, "halving": 3, "release": 7}
    )
    method = Ease(context(np.zeros(12), BLOCKS), params, older(6, 0.0))
    theta = method.prepare(np.ones(12, np.float32), history(tmp_path))
    for k in (4, 5):  # two rounds of BKE, each along a coordinate of its own
        step = 3 * np.eye(12, dtype=np.float32)[k]
        theta = method.combine(1, theta, {n: update(n, theta + (step if n == "client-0" else 0)) for n in NAMES})
    lock = method.lock_after(theta)
    assert (lock.strength, lock.share, lock.halving, lock.release) == (9, 0.25, 3, 7)
    held = [1, 4, 5, 6, 8]  # the gap 1 and 8, BKE 4 and 5, before 6
    assert lock.dimension == len(held)
    here = torch.from_numpy(theta)
    assert torch.allclose(lock.project(here), here, atol=1e-6)  # where it ended, nothing is pulled
    away = lock.project(here + 7) - here
    assert away.numpy() == pytest.approx([0.0 if k in held else 7.0 for k in range(12)], abs=1e-5)
