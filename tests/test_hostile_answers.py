"""Generated answers of one hostile client among four, to every kind of message.

Whatever it sends: nothing out of bounds is averaged, the run goes on with the others, and what was kept of the exchange can be
read again and used when the run is resumed.
"""

import contextlib
import tempfile
from pathlib import Path

import numpy as np
import pytest
from ease_flwr.strategies.base import mean
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ease_flwr.audit import examination, measures
from ease_flwr.config import ForgetSet, TrainConfig, code_hash, weights_sha256
from ease_flwr.exchange import evaluation
from ease_flwr.exchange.federation import Request
from ease_flwr.exchange.judgement import pool
from ease_flwr.exchange.messages import Audit, Evaluate, Hello
from ease_flwr.exchange.roll_call import Wanted, counted, roll_call
from ease_flwr.exchange.training import train
from tests.hostile import HOSTILE, NAMES, PAIRS, P, Wire, changed, federation, instruct, moved, plain, trained
from tests.small import small_experiment

FORGET = (ForgetSet(scenario="class", targets=("x",)),)
SET = {"images": 5, "texts": 6, "i2t": [1, 2, 3], "t2i": [1, 2, 3], "gallery": 9}
JUDGED = {"sets": {"forget": SET, "retain": SET, "test": SET}}
RANKED = {"i2t": [1, 2], "t2i": [1, 3, 2], "captions": [1, 2], "similarity": [0.5, 0.4], "labels": [7.0, 8.0]}
HITS = [{"label": 7.0, "of": [1, 2], "hits": [[[1, 2]] * 5] * 4}, {"label": 8.0, "of": [1, 1], "hits": [[[0, 1]] * 5] * 4}]
CROSSED = [{**m, "hits": [by_stop[:1] for by_stop in m["hits"]]} for m in HITS]
SWAPPED = [{**m, "hits": [m["hits"][0][:1]]} for m in HITS]
EXAMINED = {
    "sets": {"forget": RANKED, "retain": RANKED, "test": RANKED, "neighbours": RANKED},
    "member": [[0.5, 1.0, 0.4, 0.1], [0.6, 1.0, 0.4, 0.1]],
    "stranger": [[0.3, 1.0, 0.2, 0.1]],
    "member_labels": [7.0, 8.0],
    "stranger_labels": [9.0],
    "relearn": HITS,
    "cross": {"visual": CROSSED, "text": CROSSED},
    "swap": {"visual": SWAPPED, "text": SWAPPED},
    "probe": [[0.5, 0.4], [-0.1]],
    "cka": {"forget": [0.9, 0.8], "public": [0.9, 0.8]},
}
generated = settings(deadline=None, suppress_health_check=list(HealthCheck), database=None)
"""A hundred of each kind; `python -m tests.long answers` makes 2,500 of each."""


@contextlib.contextmanager
def journal():
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder) / "journal"


def twice(honest, hostile, ask):
    """What comes of an exchange, and what comes of it when the run is resumed: then nobody is asked."""
    with journal() as folder:
        said, again = [], []
        first = ask(federation(Wire(honest, hostile), folder, said))
        silent = Wire(honest, hostile)
        second = ask(federation(silent, folder, again))
        assert silent.asked == 0
        assert said == again
        assert all(line.isprintable() and len(line) < 500 for line in said)
    return first, second, said


@pytest.mark.slow
@generated
@given(trained(JUDGED))
def test_of_a_training(content):
    theta = np.ones(P, np.float32)
    good = moved(theta, 1.0, judged=JUDGED)

    def ask(f):
        return train(f, theta, instruct(), before=Evaluate(forget=FORGET))

    first, second, said = twice(lambda name, message: good, lambda name, message: content, ask)
    assert {*NAMES} - {HOSTILE} <= {*first.updates}
    for found in (first, second):
        after = mean(found.updates)
        assert np.linalg.norm(after - 2) <= 21 * np.sqrt(P)
        assert all(1 <= u.examples <= PAIRS for u in found.updates.values())
        assert all(0 <= s["r1"] <= 100 for s in pool({n: u.judged for n, u in found.updates.items()}).sets.values())
    assert np.array_equal(mean(first.updates), mean(second.updates))
    assert HOSTILE in first.updates or any(line.startswith(f"{HOSTILE} failed, left out: ") for line in said)


@pytest.mark.slow
@generated
@given(changed({"now": JUDGED, "then": JUDGED}))
def test_of_a_judgement(said):
    models = {"now": np.ones(P, np.float32), "then": np.zeros(P, np.float32)}

    def ask(f):
        return evaluation.evaluate(f, models, Evaluate(forget=FORGET))[0]

    good = plain({"now": JUDGED, "then": JUDGED})
    first, second, _ = twice(lambda name, message: good, lambda name, message: plain(said), ask)
    assert first == second
    for by_client in first.values():
        assert {*NAMES} - {HOSTILE} <= {*by_client}
        for found in pool(by_client).sets.values():
            assert 0 <= found["r1"] <= 100
            assert found["n"] <= 5 * (3 + 10)


@pytest.mark.slow
@generated
@given(changed({"original": EXAMINED, "retrain": EXAMINED}))
def test_of_an_audit(said):
    models = {"original": np.ones(P, np.float32), "retrain": np.zeros(P, np.float32)}
    question = Audit(forget=FORGET, probes=examination.PROBES["full"], train=TrainConfig())

    def ask(f):
        return evaluation.examine(f, models, {n: Request(question) for n in NAMES})[0]

    good = plain({"original": EXAMINED, "retrain": EXAMINED})
    first, second, _ = twice(lambda name, message: good, lambda name, message: plain(said), ask)
    assert first == second
    found = {m: examination.together(list(by_client.values())) for m, by_client in first.items()}
    own = {m: measures.estimates(a) for m, a in found.items()}
    numbers = measures.numbers(found["original"], own["original"], [(found["retrain"], own["retrain"])])
    assert numbers.keys() >= {"r1.forget", "relearn.area", "membership.cosine"}
    assert all(np.isfinite(m.value) or np.isnan(m.value) for m in numbers.values())


PRESENT = {
    "pairs": PAIRS,
    "forget": [5],
    "refused": [""],
    "unknown": [[]],
    "ids": [[]],
    "data": "d",
    "barred": 0,
    "threads": 1,
}


def taken(said):
    """The name that it gives itself."""
    return said.get("name") if isinstance(said, dict) and isinstance(said.get("name"), str) else HOSTILE


@pytest.mark.slow
@generated
@given(st.data())
def test_of_a_roll_call(data):
    experiment = small_experiment(**{"federation.quorum": 0.7, "data.clients": 4, "federation.start_timeout": 0.01})
    same = {"code": code_hash(), "base": weights_sha256(experiment.model)}
    hello = {**PRESENT, **same, "name": HOSTILE, "forget": [], "refused": [], "unknown": [], "ids": []}
    said = data.draw(changed(hello))
    wire = Wire(lambda name, message: plain({**hello, "name": name}), lambda name, message: plain(said))
    called = roll_call(wire, experiment, Wanted(NAMES))
    assert {*NAMES} - {HOSTILE, taken(said)} <= {*called.roster.clients}
    assert all(line.isprintable() and len(line) < 500 for line in (*called.missing.values(), *called.strange))
    later = data.draw(changed({**PRESENT, **same, "name": HOSTILE}))
    wire = Wire(lambda name, message: plain({**PRESENT, **same, "name": name}), lambda name, message: plain(later))
    found = counted(wire, experiment, called.roster, {n: Hello(forget=FORGET) for n in called.roster.clients})
    assert {*called.roster.clients} - {HOSTILE} <= {*found.pairs}
    assert all(why.isprintable() and len(why) < 500 for why in found.refused.values())
