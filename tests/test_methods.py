"""The server halves of the methods, on vectors one can follow by hand."""

import math
from types import SimpleNamespace

import numpy as np
import pytest

from ease_flwr.core.adapters import Block
from ease_flwr.core.config import ConfigError, Experiment, ForgetConfig, TrainConfig
from ease_flwr.core.history import History
from ease_flwr.core.messages import Update
from strategies import load
from strategies.base import Setting, Unlearning
from strategies.fedosd import conflict_free
from strategies.sfu import leading
from tests import in_process_grid  # noqa: F401  (lets Flower make messages outside a run)

BLOCKS = (
    Block("visual.m.lora_A", "visual", (1, 2), 0),
    Block("visual.m.lora_B", "visual", (2, 1), 2),
    Block("text.m.lora_A", "text", (1, 2), 4),
    Block("text.m.lora_B", "text", (2, 1), 6),
)
THETA_0 = np.full(8, 0.5, np.float32)
FORGET = ForgetConfig(targets=("client-0",))


def method(name, **params):
    """client-0 leaves, client-1 and client-2 stay; they hold 100, 200 and 100 pairs."""
    pairs = {"client-0": 100, "client-1": 200, "client-2": 100}
    federation = SimpleNamespace(say=print, pairs=pairs)
    experiment = Experiment(forget=FORGET)
    setting = Setting(experiment, federation, THETA_0, BLOCKS, ("client-1", "client-2"), ("client-0",), FORGET)
    kind = load(name)
    return kind(setting, kind.Params(**params))


def update(name, adapters, examples=100, step=None):
    return Update(name, np.asarray(adapters, np.float32), step, {"num-examples": examples})


def unit(*where, size=1.0):
    v = np.zeros(8, np.float32)
    v[list(where)] = size
    return v


def test_retrain_starts_where_learning_started():
    assert method("retrain").prepare(np.ones(8, np.float32), None).tolist() == THETA_0.tolist()


def test_negation_turns_the_first_module_of_both_towers_round():
    after = method("negate", modules=1).prepare(np.arange(8, dtype=np.float32), None)
    assert after.tolist() == [0, 1, -2, -3, 4, 5, -6, -7]


@pytest.fixture
def history(tmp_path):
    """Two rounds of weighted updates: client-0 along 0, client-1 along 2, client-2 along 4, the second half as long."""
    h = History(tmp_path)
    for round, size in ((1, 1.0), (2, 0.5)):
        for name, where in (("client-0", 0), ("client-1", 2), ("client-2", 4)):
            h.append(round, name, unit(where, size=size))
    return h


def test_rounds_of_a_history_come_in_order_and_a_sketch_has_none(history, tmp_path):
    rounds = list(history.rounds())
    assert [sorted(r) for r in rounds] == [["client-0", "client-1", "client-2"]] * 2
    assert rounds[1]["client-1"].tolist() == unit(2, size=0.5).tolist()
    assert history.nbytes > 2 * 3 * 8 * 4
    sketch = History(tmp_path / "sketch", Experiment(history={"rank": 1}).history)
    sketch.append(1, "client-0", unit(0))
    with pytest.raises(ConfigError, match=r"the history keeps a sketch: set history.rank=0"):
        list(sketch.rounds())


def test_federaser_takes_recorded_lengths_in_present_directions(history):
    eraser = method("federaser", rounds=1)
    start = eraser.prepare(np.ones(8, np.float32), history)
    # those who stay have 300 of 400 pairs: their mean without client-0 moves 1 / .75 along each direction
    assert np.allclose(start, THETA_0 + unit(2, 4, size=4 / 3))
    eraser.round = 1
    moves = {"client-1": unit(3, size=9.0), "client-2": unit(4, size=-0.1) + unit(0, size=7)}
    after = eraser.combine(start, {n: update(n, start + m) for n, m in moves.items()})
    # .5 / .75 in the tensor where each moved when it was recorded, nothing in those where it did not
    assert np.allclose(after - start, unit(3, size=2 / 3) - unit(4, size=2 / 3))
    still = eraser.combine(start, {"client-1": update("client-1", start)})
    assert np.array_equal(still, start)  # zero norm: no NaN


def test_federaser_with_fewer_exchanges_walks_every_so_many_th_round(tmp_path):
    h = History(tmp_path)
    for round in range(1, 42):
        for name in ("client-0", "client-1"):
            h.append(round, name, unit(2, size=float(round)))
    eraser = method("federaser", rounds=8)
    eraser.prepare(np.ones(8, np.float32), h)
    walked = []
    for round in range(1, 9):
        eraser.round = round
        walked.append(eraser.recorded()["client-1"][1] * 2 / 3)  # 200 of the 300 pairs that took part stay
    assert np.allclose(walked, [6, 11, 16, 21, 26, 31, 36, 41])


def test_fedrecovery_takes_back_what_the_leaving_client_added(history):
    theta = np.ones(8, np.float32)
    after = method("fedrecovery", factor=2.0).prepare(theta, history)
    # D = e0 + e2 + e4, without client-0 (e2 + e4) / .75: the residual is e0 - (e2 + e4) / 3; the weights are 1 and
    # .25 * 3 / (1.25 * 3) = .2 for a second round half as long
    taken = (unit(0) - unit(2, 4) / 3) * (1 + 0.2 * 0.5)
    assert np.allclose(after, theta - 2 * taken, atol=1e-6)
    noisy = method("fedrecovery", factor=2.0, sigma=0.1).prepare(theta, history)
    assert 0.02 < np.std(noisy - after) < 0.3


def test_sifu_certificate(history):
    # client-0 has a quarter: its own update is 4 e0, the movement e0 + e2 + e4, distance sqrt(9 + 1 + 1), times 1/3
    psi = math.sqrt(11) / 3
    bound = {"epsilon": 1.0, "delta": 1.25 / math.exp(2)}  # sqrt(2 ln(1.25 / delta)) = 2
    first = method("sifu", sigma=2 * psi * 1.01, **bound)
    model = first.prepare(np.ones(8, np.float32), history)
    certificate = first.facts["certificate"]
    assert (certificate["round"], certificate["psi"]) == (1, pytest.approx(psi))
    assert certificate["psi_at_request"] == pytest.approx(1.5 * psi)
    assert certificate["bound"] == pytest.approx(1.01 * psi)
    none = method("sifu", sigma=1e-6, **bound)
    assert np.allclose(none.prepare(np.ones(8, np.float32), history), THETA_0, atol=1e-4)
    assert none.facts["certificate"]["round"] == 0
    everything = method("sifu", sigma=2 * psi * 1.6, **bound)
    everything.prepare(np.ones(8, np.float32), history)
    assert everything.facts["certificate"]["round"] == 2
    assert np.abs(model - THETA_0 - unit(0, 2, 4)).max() < 5 * 2 * psi  # noise of that size around the model of round 1


def test_pga_reference_is_the_mean_of_the_others_and_the_ball_is_around_it(history):
    pga = method("pga", stop=0.5)
    reference = pga.prepare(np.ones(8, np.float32), history)
    # the last model before the last round: theta_0 + e0 + e2 + e4; client-0 went on from it by 4 * .5 e0
    last, own = THETA_0 + 1.5 * unit(0, 2, 4), THETA_0 + unit(0, 2, 4) + unit(0, size=2.0)
    assert np.allclose(reference, (last - own / 4) / 0.75, atol=1e-6)
    assert pga.radius == pytest.approx(np.linalg.norm(reference - THETA_0) / math.sqrt(3), rel=1e-6)
    assert pga.limit == pytest.approx(0.5 * (9 + 1 + 1))
    assert list(pga.instruct("forget", 1)) == ["client-0"]
    assert list(pga.instruct("forget", 2)) == ["client-1", "client-2"]


def test_conflict_free_directions():
    g = np.array([1.0, 1.0, 0.0])
    assert np.allclose(conflict_free(g, np.array([[2.0, 0, 0]])), [0, math.sqrt(2), 0])
    assert np.allclose(conflict_free(g, np.array([[1.0, 0, 0], [1.0, 1e-9, 0]])), [0, math.sqrt(2), 0])  # nearly dependent rows
    assert np.allclose(conflict_free(g, np.array([[1.0, 1.0, 0]])), 0)
    assert np.allclose(conflict_free(g, np.zeros((1, 3))), g)


def test_fedosd_steps_where_nobody_is_hurt_and_recovers_without_going_back():
    osd = method("fedosd", rounds=2, step=0.5)
    theta = np.zeros(8, np.float32)
    osd.prepare(theta, None)
    osd.round = 1
    updates = {
        "client-0": update("client-0", unit(0, 1)),
        "client-1": update("client-1", unit(0, size=3.0)),
        "client-2": update("client-2", unit(2)),
    }
    after = osd.combine(theta, updates)
    assert np.allclose(after, unit(1, size=0.5 * math.sqrt(2)), atol=1e-6)
    osd.round = 2
    back = {n: update(n, after - unit(1) + unit(3), examples=k) for n, k in (("client-1", 30), ("client-2", 10))}
    assert np.allclose(osd.combine(after, back), after + unit(3, size=math.sqrt(2)), atol=1e-6)


def test_sfu_moves_only_where_nobody_elses_inputs_are():
    assert np.allclose(np.abs(leading(np.array([[3.0, 0, 0], [0, 1.0, 0]]), 0.85)), [[1], [0], [0]])
    assert leading(np.array([[3.0, 0, 0], [0, 1.0, 0]]), 0.95).shape == (3, 2)
    sfu = method("sfu", energy=0.9)
    sfu.round = 1
    theta = np.zeros(8, np.float32)
    updates = {
        "client-0": update("client-0", np.ones(8)),
        "client-1": update("client-1", unit(0, size=5.0)),  # sees the first input in the image tower, nothing in the other
        "client-2": update("client-2", unit(0, size=2.0)),
    }
    assert np.allclose(sfu.combine(theta, updates), unit(1, 4, 5), atol=1e-6)


def test_gdfa_takes_away_what_all_probes_agree_on():
    gdfa = method("gdfa", probes=2, radius=0.0, scale=2.0, rounds=3)
    theta = np.ones(8, np.float32)
    start = gdfa.prepare(theta, None)
    gdfa.mean = lambda updates: next(iter(updates.values())).adapters
    probes = [unit(0, 1, size=0.5), unit(0, size=0.25) - unit(1, size=0.25)]
    for round, probe in enumerate(probes, 1):
        gdfa.round = round
        assert list(gdfa.instruct("forget", round)) == ["client-0"]
        assert gdfa.instruct("forget", round)["client-0"].instruction.part == "forget"
        start = gdfa.combine(start, {"client-0": update("client-0", start + probe)})
    # along 0 both go up, by .375 on average; along 1 they disagree; elsewhere both are zero, which is no sign
    assert np.allclose(start, theta - unit(0, size=0.75))


def test_mode_degrades_in_odd_rounds_and_guides_in_even_ones():
    mode = method("mode", momentum=0.75)
    theta = np.ones(8, np.float32)
    mode.prepare(theta, None)
    mode.mean = lambda updates: np.full(8, 3.0, np.float32)
    mode.round = 1
    requests = mode.instruct("forget", 1)
    assert sorted(requests) == ["client-1", "client-2"]
    assert np.array_equal(requests["client-1"].arrays["adapters"], THETA_0)
    assert np.allclose(mode.combine(theta, {}), 0.75 * 1 + 0.25 * 3)
    guided = mode.instruct("forget", 2)
    assert guided["client-0"].instruction.objective == "guidance"
    assert np.allclose(guided["client-0"].arrays["teacher"], 3)


def test_fused_trains_what_changed_most_and_nothing_else():
    fused = method("fused", share=0.5)
    fused.prepare(THETA_0 + unit(2, 3, size=2.0) + unit(4, size=1.0) + unit(0, size=0.1), None)
    assert fused.tensors == (1, 2)
    assert fused.instruct("forget", 1)["client-1"].instruction.tensors == (1, 2)


def test_holders_steps_are_added_and_a_class_is_left_once():
    npo = method("npo")
    theta = np.zeros(8, np.float32)
    npo.mean = lambda updates: unit(7, size=float(len(updates)))
    updates = {n: update(n, unit(0, size=2.0)) for n in ("client-0", "client-1", "client-2")}
    assert np.allclose(npo.combine(theta, updates), unit(7, size=2.0) + unit(0, size=2.0))
    updates = {n: update(n, unit(5), step=unit(0, size=2.0)) for n in ("client-1", "client-2")}
    for scenario, size in (("sample", 4.0), ("class", 2.0)):
        forget = ForgetConfig(scenario=scenario, targets=())
        setting = Setting(
            npo.setting.experiment, None, THETA_0, BLOCKS, ("client-1", "client-2"), ("client-1", "client-2"), forget
        )
        assert np.allclose(load("npo")(setting, load("npo").Params()).step(theta, updates), unit(0, size=size))


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("FedAvg", {}, 2.0),  # (30 * 1 + 10 * 5) / 40
        ("FedProx", {"proximal_mu": 0.1}, 2.0),
        ("FedAvgM", {"server_momentum": 0.5, "server_learning_rate": 0.5}, 1.0),  # first round: half of the mean
        ("FedMedian", {}, 3.0),
        ("FedTrimmedAvg", {"beta": 0.2}, 3.0),
        ("Krum", {"num_malicious_nodes": 0}, 1.0),
    ],
)
def test_flowers_aggregators_by_name(name, options, expected):
    experiment = Experiment(learn=TrainConfig(aggregator=name, aggregator_options=options, average=1))

    class Two:
        def train(self, theta, requests, cost, told, before):
            self.instruction = requests["a"].instruction
            return {n: update(n, theta + np.float32(d), k) for n, k, d in (("a", 30, 1), ("b", 10, 5))}

    setting = Setting(experiment, Two(), np.zeros(2, np.float32), (), ("a", "b"))
    theta, _ = Unlearning(setting, Unlearning.Params()).learning().run("learn", np.zeros(2, np.float32), 1, lambda p: None)
    assert np.allclose(theta, expected)
    assert setting.federation.instruction.proximal == options.get("proximal_mu", 0.0)


def test_adaptive_aggregation_starts_from_the_global_adapters_and_wrong_options_are_said():
    experiment = Experiment(learn=TrainConfig(aggregator="FedAdam", aggregator_options={"eta": 0.1}, average=1))
    federation = SimpleNamespace(train=lambda theta, *_: {"a": update("a", theta + np.float32(1))})
    setting = Setting(experiment, federation, np.zeros(2, np.float32), (), ("a",))
    theta, _ = Unlearning(setting, Unlearning.Params()).learning().run("learn", np.ones(2, np.float32), 2, lambda p: None)
    assert (theta > 1.05).all()
    wrong = experiment.learn.model_copy(update={"aggregator_options": {"speed": 1.0}})
    setting = Setting(experiment.model_copy(update={"learn": wrong}), federation, np.zeros(2, np.float32), (), ("a",))
    with pytest.raises(ConfigError, match=r"learn.aggregator_options: FedAdam does not take them: .*'speed'"):
        Unlearning(setting, Unlearning.Params()).learning()
