"""The server halves of the methods, on vectors one can follow by hand, and laws about all of them."""

import ast
import importlib
import math
import os
import subprocess
import sys
from inspect import getsource

import numpy as np
import pytest
from ease_flwr.strategies import load
from ease_flwr.strategies.assisted import step
from ease_flwr.strategies.base import Method
from ease_flwr.strategies.fedosd import conflict_free
from ease_flwr.strategies.sfu import leading

from ease_flwr import strategies
from ease_flwr.config import APP, ConfigError, ForgetSet, HistoryConfig, halves
from ease_flwr.model.adapters import Block
from ease_flwr.store.history import History
from tests.server_half import LEAVES, context, update

BLOCKS = (
    Block("visual.m.lora_A", "visual", (1, 2), 0),
    Block("visual.m.lora_B", "visual", (2, 1), 2),
    Block("text.m.lora_A", "text", (1, 2), 4),
    Block("text.m.lora_B", "text", (2, 1), 6),
)
THETA_0 = np.full(8, 0.5, np.float32)


def method(name, **params):
    """client-0 leaves, client-1 and client-2 stay; they have 100, 200 and 100 pairs."""
    kind = load(name)
    return kind(context(THETA_0, BLOCKS), kind.Params(**params))


def unit(*where, size=1.0):
    v = np.zeros(8, np.float32)
    v[list(where)] = size
    return v


@pytest.mark.parametrize("name", halves.names("strategies"))
def test_no_method_stands_deeper_than_two_below_method(name):
    assert load(name).__mro__.index(Method) <= 2


@pytest.mark.parametrize("name", [*halves.names("strategies"), *strategies.SHARED])
def test_no_method_calls_past_its_parent(name):
    """Neither `Class.verb(self, ...)` nor `super(Class, self)`: what is shared has a name of its own."""
    module = importlib.import_module(f"strategies.{name}")
    for call in (n for n in ast.walk(ast.parse(getsource(module))) if isinstance(n, ast.Call) and n.args):
        past = call.func.value if isinstance(call.func, ast.Attribute) else call.func
        kind = getattr(module, past.id, None) if isinstance(past, ast.Name) else None
        if isinstance(call.func, ast.Attribute):
            assert not (isinstance(kind, type) and issubclass(kind, Method)), ast.unparse(call)
        assert ast.unparse(call.func) != "super", ast.unparse(call)


@pytest.mark.parametrize(
    ("scenario", "targets"), [("class", ("client-0",)), ("sample", ("client-0/3",)), ("client", ("client-0",))]
)
def test_nobody_leaves_but_by_the_client_scenario(scenario, targets):
    forget = ForgetSet(scenario=scenario, targets=targets)
    assert context(THETA_0, forget=forget).leaving == (targets if scenario == "client" else ())
    assert context(THETA_0, forget=None).leaving == ()


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
    sketch = History(tmp_path / "sketch", HistoryConfig(rank=1))
    sketch.append(1, "client-0", unit(0))
    with pytest.raises(ConfigError, match=r"the history keeps a sketch: set history.rank=0"):
        list(sketch.rounds())


def test_federaser_takes_recorded_lengths_in_present_directions(history):
    eraser = method("federaser", rounds=1)
    start = eraser.prepare(np.ones(8, np.float32), history)
    # those who stay have 300 of 400 pairs: their mean without client-0 moves 1 / .75 along each direction
    assert np.allclose(start, THETA_0 + unit(2, 4, size=4 / 3))
    moves = {"client-1": unit(3, size=9.0), "client-2": unit(4, size=-0.1) + unit(0, size=7)}
    after = eraser.combine(1, start, {n: update(n, start + m) for n, m in moves.items()})
    # .5 / .75 in the tensor where each moved when it was recorded, nothing in those where it did not
    assert np.allclose(after - start, unit(3, size=2 / 3) - unit(4, size=2 / 3))
    still = eraser.combine(1, start, {"client-1": update("client-1", start)})
    assert np.array_equal(still, start)  # zero norm: no NaN


def test_federaser_with_fewer_exchanges_walks_every_so_many_th_round(tmp_path):
    h = History(tmp_path)
    for round in range(1, 42):
        for name in ("client-0", "client-1"):
            h.append(round, name, unit(2, size=float(round)))
    eraser = method("federaser", rounds=8)
    eraser.prepare(np.ones(8, np.float32), h)
    walked = [eraser.recorded(round)["client-1"][1] * 2 / 3 for round in range(1, 9)]  # 200 of 300 pairs stay
    assert np.allclose(walked, [6, 11, 16, 21, 26, 31, 36, 41])
    assert list(eraser.requests(1)) == ["client-1"]  # client-2 was not there when that round was recorded


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
    assert list(pga.requests(1)) == ["client-0"]
    assert sorted(pga.requests(1)["client-0"].once) == ["centre", "own"]
    assert list(pga.requests(2)) == ["client-1", "client-2"]


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
    moves = {"client-0": unit(0, 1), "client-1": unit(0, size=3.0), "client-2": unit(2)}
    after = osd.combine(1, theta, {n: update(n, m) for n, m in moves.items()})
    assert np.allclose(after, unit(1, size=0.5 * math.sqrt(2)), atol=1e-6)
    back = {n: update(n, after - unit(1) + unit(3), examples=k) for n, k in (("client-1", 30), ("client-2", 10))}
    assert np.allclose(osd.combine(2, after, back), after + unit(3, size=math.sqrt(2)), atol=1e-6)


def test_sfu_moves_only_where_nobody_elses_inputs_are():
    assert np.allclose(np.abs(leading(np.array([[3.0, 0, 0], [0, 1.0, 0]]), 0.85)), [[1], [0], [0]])
    assert leading(np.array([[3.0, 0, 0], [0, 1.0, 0]]), 0.95).shape == (3, 2)
    sfu = method("sfu", energy=0.9)
    jobs = {n: r.instruction for n, r in sfu.requests(1).items()}
    assert {n: j.objective for n, j in jobs.items()} == {
        "client-0": "ascent",
        "client-1": "representations",
        "client-2": "representations",
    }
    answers = {
        "client-0": np.ones(8),
        "client-1": unit(0, size=5.0),  # sees the first input in the image tower, nothing in the other
        "client-2": unit(0, size=2.0),
    }
    after = sfu.combine(1, np.zeros(8, np.float32), {n: update(n, v) for n, v in answers.items()})
    assert np.allclose(after, unit(1, 4, 5), atol=1e-6)


def test_gdfa_takes_away_what_all_probes_agree_on():
    gdfa = method("gdfa", probes=2, radius=0.0, scale=2.0, rounds=3)
    theta = np.ones(8, np.float32)
    start = gdfa.prepare(theta, None)
    probes = [unit(0, 1, size=0.5), unit(0, size=0.25) - unit(1, size=0.25)]
    for round, probe in enumerate(probes, 1):
        requests = gdfa.requests(round)
        assert list(requests) == ["client-0"]
        assert (requests["client-0"].instruction.only, requests["client-0"].instruction.without) == ((LEAVES,), ())
        start = gdfa.combine(round, start, {"client-0": update("client-0", start + probe)})
    # along 0 both go up, by .375 on average; along 1 they disagree; elsewhere both are zero, which is no sign
    assert np.allclose(start, theta - unit(0, size=0.75))


def test_mode_degrades_in_odd_rounds_and_guides_in_even_ones():
    mode = method("mode", momentum=0.75)
    theta = np.ones(8, np.float32)
    mode.prepare(theta, None)
    requests = mode.requests(1)
    assert sorted(requests) == ["client-1", "client-2"]
    assert np.array_equal(requests["client-1"].arrays["adapters"], THETA_0)
    degraded = {n: update(n, np.full(8, 3.0)) for n in requests}
    assert np.allclose(mode.combine(1, theta, degraded), 0.75 * 1 + 0.25 * 3)
    guided = mode.requests(2)
    assert guided["client-0"].instruction.objective == "guidance"
    assert np.allclose(guided["client-0"].arrays["teacher"], 3)


def test_fused_trains_what_changed_most_and_nothing_else():
    fused = method("fused", share=0.5)
    fused.prepare(THETA_0 + unit(2, 3, size=2.0) + unit(4, size=1.0) + unit(0, size=0.1), None)
    assert fused.requests(1)["client-1"].instruction.tensors == (1, 2)


def test_steps_of_forget_clients_are_added_and_a_class_is_left_once():
    theta, both = np.zeros(8, np.float32), ("client-1", "client-2")
    moves = {"client-0": unit(0, size=2.0), "client-1": unit(7, size=1.0), "client-2": unit(7, size=3.0)}
    after = method("npo").combine(1, theta, {n: update(n, m) for n, m in moves.items()})
    assert np.allclose(after, unit(7, size=2.0) + unit(0, size=2.0))
    updates = {n: update(n, unit(5), step=unit(0, size=2.0)) for n in both}
    for scenario, size in (("sample", 4.0), ("class", 2.0)):
        forget = ForgetSet(scenario=scenario, targets=("x/0",))
        assert np.allclose(step(context(THETA_0, BLOCKS, forget, forget_clients=both), theta, updates), unit(0, size=size))


def test_forget_clients_that_stay_do_both_in_one_exchange_and_leave_out_what_was_forgotten_before():
    earlier, now = (ForgetSet(scenario="sample", targets=(f"client-1/{i}",)) for i in (3, 4))
    without = {"client-1": (earlier, now)}
    staying = context(THETA_0, BLOCKS, now, forget_clients=("client-1",), without=without)
    npo = load("npo")(staying, load("npo").Params(beta=0.25))
    npo.prepare(np.ones(8, np.float32), None)
    first, second = (r.instruction for r in npo.requests(2).values())
    assert (first.without, first.beside.forget, first.beside.without) == ((earlier, now), now, (earlier,))
    assert (first.beside.objective, first.beside.options) == ("npo", {"beta": 0.25})
    assert list(npo.requests(2)["client-1"].once) == ["request"]
    assert (second.without, second.beside) == ((), None)


GUIDE = """
import numpy as np
from ease_flwr import clients, strategies
from tests.server_half import context, update
kind = strategies.load("shuffle")
method = kind(context(np.zeros(2)), kind.Params(weight=0.5))
method.prepare(np.zeros(2, np.float32), None)
requests = method.requests(1)
job = requests["client-0"].instruction
print(clients.load(job.objective).Options(**job.options).weight, job.forget.targets)
moves = {"client-0": [1, 0], "client-1": [0, 2], "client-2": [0, 4]}
print(method.combine(1, np.zeros(2, np.float32), {n: update(n, moves[n]) for n in requests}))
"""


def test_the_halves_of_the_guide_are_found_and_fit(tmp_path):
    """Both files of docs/add-a-method.md in a folder on the path, in a process of their own."""
    write_guide(tmp_path)
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{APP}"}
    done = subprocess.run([sys.executable, "-c", GUIDE], cwd=APP, env=environment, capture_output=True, text=True)
    assert done.stdout.splitlines() == ["0.5 ('client-0',)", "[1. 3.]"], done.stderr


def write_guide(folder):
    """The code blocks of docs/add-a-method.md as the files that they name."""
    blocks = (APP / "docs" / "add-a-method.md").read_text().split("```python\n# ")[1:]
    assert len(blocks) == 2
    for block in blocks:
        name, _, code = block.split("```")[0].partition("\n")
        (folder / name).parent.mkdir()
        (folder / name).write_text(code)
