"""What BKE did is said: in the log, in metrics.jsonl, in results.json and in the report."""

import json

import pytest
from ease_flwr.clients.bilateral import Bilateral
from ease_flwr.strategies.ease import SAID, Ease, together
from flwr.app import MetricRecord

from ease_flwr.audit import report
from ease_flwr.config import TrainConfig
from ease_flwr.exchange.answers import read_update
from ease_flwr.exchange.messages import Learn, pack
from tests.in_process_grid import submit
from tests.server_half import context
from tests.small import settings
from tests.test_ease import BLOCKS, SAMPLE
from tests.test_untrusted import GOOD, reply_with

KNOWN = {"exclusive": 3, "pairs": 8, "share": 0.5, "partner_loss": 2.0, "goal": 2.5}
IDLE = {"exclusive": 1, "pairs": 4, "share": 0.0, "partner_loss": 4.0, "goal": 4.5}
NOBODY = {"exclusive": 0, "pairs": 4, "share": 1.0, "partner_loss": 0.0, "goal": 0.0}


def said_by(who):
    """The lines that a context's federation is told, and the numbers with them."""
    lines = []
    who.federation.say = lambda line, **values: lines.append((line, values))
    return lines


def test_a_run_says_it_everywhere(whole):
    results = json.loads((whole / "results.json").read_text())
    events = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    log = (whole / "log.txt").read_text()
    first, second = results["requests"]
    for phase, client, asked in (("forget", "client-0", first), ("forget-2", "client-1", second)):
        rounds = [e for e in events if e.get("model") == phase and "loss" in e]
        assert [e["objective"].keys() for e in rounds] == [{client}, {client}]
        for e, row in zip(rounds, asked["bke_rounds"], strict=True):
            own = e["objective"][client]
            assert own.keys() == SAID
            assert 0 <= own["exclusive"] <= own["pairs"]
            assert row == {"round": e["round"], **together([own])}
            line = f"[{phase} {e['round']}/2] BKE of {client}: {own['exclusive']} of {own['pairs']} pairs exclusive"
            assert line in log
            assert (f"[{phase} {e['round']}/2] BKE does nothing for {client}" in log) == (own["share"] == 0)
    assert not any("objective" in e for e in events if e.get("model") == "learn")
    text = report.write(whole, {"title": "a run", "decided": results["requests"]}, []).read_text()
    for asked in (first, second):
        assert f"What BKE did ({asked['id']})" in text
    row = first["bke_rounds"][0]
    assert f"<td>1</td><td>1</td><td>{row['idle']}</td><td>{row['pairs']}</td><td>{row['exclusive']}</td>" in text


def test_clients_that_stay_say_it_of_the_job_beside_their_own(home):
    run_config = settings(home / "sample", **{"forget.draw": 1, "continuation.rounds": 0})
    submit({**run_config, "experiment": "personas_sample"})
    (asked,) = json.loads((home / "sample" / "results.json").read_text())["requests"]
    events = [json.loads(line) for line in (home / "sample" / "metrics.jsonl").read_text().splitlines()]
    rounds = [e for e in events if e.get("model") == "forget" and "loss" in e]
    assert asked["bke"] == "loss"
    assert len(rounds) == len(asked["bke_rounds"]) == 2
    for e, row in zip(rounds, asked["bke_rounds"], strict=True):
        assert e["answered"] == 3
        (own,) = e["objective"].values()  # one of them has what is to be forgotten
        assert 0 < own["exclusive"] <= own["pairs"]
        assert row == {"round": e["round"], **together([own])}


def test_forget_clients_count_as_one_by_their_exclusive_pairs():
    assert together([KNOWN, IDLE, NOBODY]) == {
        "clients": 3,
        "exclusive": 4,
        "pairs": 16,
        "idle": 1,
        "share": pytest.approx(1.5 / 4),  # three at one half, one at nothing
        "partner_loss": pytest.approx(10 / 4),
        "goal": pytest.approx(12 / 4),
    }
    nothing = {"clients": 1, "exclusive": 0, "pairs": 4, "idle": 0, "share": None, "partner_loss": None, "goal": None}
    assert together([NOBODY]) == nothing


def test_a_share_of_nothing_is_said_in_one_line():
    who = context([0.0] * 12, BLOCKS, SAMPLE, forget_clients=("client-1", "client-2"))
    lines, method = said_by(who), Ease(who, Ease.Params(rounds=3))
    method.note(1, {"client-1": KNOWN})
    method.note(2, {"client-1": KNOWN, "client-2": IDLE})
    method.note(3, {"client-1": NOBODY})
    method.note(3, {})  # an older client, or another objective: nothing is made up
    assert [line for line, _ in lines] == [
        "[forget 1/3] BKE of client-1: 3 of 8 pairs exclusive, 0.50 of the step taken, partner loss 2.00 (goal 2.50)",
        "[forget 2/3] BKE of 2 clients: 4 of 12 pairs exclusive, 0.38 of the step taken, partner loss 2.50 (goal 3.00)",
        "[forget 2/3] BKE does nothing for client-2: share 0, its exclusive pairs are at the goal, or past it, without a step",
        "[forget 3/3] BKE of client-1: 0 of 4 pairs exclusive",
    ]
    assert [r["round"] for r in method.facts["bke_rounds"]] == [1, 2, 3]


@pytest.mark.parametrize(
    ("own", "why"),
    [
        ({"share": float("nan")}, r"metric 'share' is not finite"),
        ({"share\n[forget] all is well": 1.0}, r"metrics \['share\\n\[forget\].*: expected up to 32 of its own, plain names"),
        ({f"n{i}": 1.0 for i in range(33)}, r"expected up to 32 of its own"),
        ({"exclusive": 1e300}, r"plain names, up to 2\^62"),
        ({"share": [1, 2]}, "expected single numbers"),
    ],
)
def test_what_an_objective_says_is_checked_like_every_answer(own, why):
    def reading(**more):
        metrics = MetricRecord({"num-examples": 5, "loss": 1.0, "steps": 2, "memory": 7, **more})
        reply = reply_with({"arrays": pack({"adapters": GOOD}), "metrics": metrics})
        return read_update("a", reply, GOOD, Learn(phase="forget", round=1, train=TrainConfig()))

    assert reading(**KNOWN).own == KNOWN
    with pytest.raises(ValueError, match=why) as error:
        reading(**own)
    assert "\n" not in str(error.value)


def test_strategy_and_objective_agree_on_what_is_said():
    """The halves never import each other: the names are those that the client's docstring explains."""
    assert all(f"`{name}`" in Bilateral.finish.__doc__ for name in SAID)
