"""Answers of clients are not trusted: whatever comes is used, or refused with its name, and never averaged by mistake."""

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from hypothesis import given, settings
from hypothesis import strategies as st

from ease_flwr.core.config import TrainConfig
from ease_flwr.core.federation import Cost, FederationError
from ease_flwr.core.messages import Instruction, pack, read_answers, read_hello, read_update
from tests.test_federation import fake, federation, instruct

P = 6
GOOD = np.linspace(-1, 1, P).astype(np.float32)
floats = st.floats(width=32, allow_nan=True, allow_infinity=True)
arrays = st.one_of(
    st.lists(floats, max_size=9).map(lambda v: np.array(v, np.float32)),
    st.sampled_from([np.float64, np.float16, np.int32, np.int8, np.bool_]).map(lambda t: np.ones(P, t)),
    st.sampled_from([np.zeros((2, 3), np.float32), np.zeros((P, 1), np.float32), np.zeros((), np.float32)]),
    st.sampled_from([np.full(P, 3e38, np.float32), np.full(P, np.nan, np.float32), np.full(P, -np.inf, np.float32)]),
).map(Array)
broken = st.builds(
    lambda dtype, shape, stype, data: Array(dtype=dtype, shape=shape, stype=stype, data=data),
    st.sampled_from(["float32", "float64", "object", "nonsense", ">f4"]),
    st.lists(st.integers(-2, 8), max_size=2).map(tuple),
    st.sampled_from(["numpy.ndarray", "pickle", ""]),
    st.binary(max_size=200),
)
names = st.sampled_from(["adapters", "step", "", "../x", "more"])
records = st.dictionaries(names, st.one_of(arrays, broken), max_size=3).map(lambda d: ArrayRecord(d))
numbers = st.one_of(
    st.integers(-(2**62), 2**62), st.floats(), st.lists(st.integers(-5, 5), max_size=9), st.lists(st.floats(), max_size=3)
)
metrics = st.dictionaries(st.sampled_from(["num-examples", "loss", "steps", "memory", "x"]), numbers, max_size=5).map(
    MetricRecord
)
contents = st.dictionaries(
    st.sampled_from(["arrays", "metrics", "info", "more"]),
    st.one_of(records, metrics, st.just(ConfigRecord({"name": "x"}))),
    max_size=3,
)


def answering(content):
    """client-1 answers this instead."""

    def tamper(name, reply):
        if reply.has_content() and "info" in reply.content:
            return reply
        reply = fake(GOOD)(name, reply)
        if name == "client-1":
            reply.__dict__["_content"] = RecordDict(content)
        return reply

    return tamper


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(contents)
def test_whatever_a_client_answers_is_valid_or_named_and_left_out(content):
    said = []
    f = federation(answering(content), said=said, **{"federation.quorum": 0.6})
    f.nodes, f.pairs = {f"client-{k}": 100 + k for k in range(3)}, dict.fromkeys(f.clients, 100)
    updates = f.train(np.zeros(P, np.float32), instruct(f), Cost(), told=set())
    if "client-1" in updates:
        assert updates["client-1"].adapters.shape == (P,)
        assert np.isfinite(updates["client-1"].adapters).all()
        assert 1 <= updates["client-1"].examples <= 100
    else:
        assert [line.split(":")[0] for line in said] == ["client-1 failed, asked again", "client-1 failed, left out"]
        assert all("\n" not in line for line in said)
        assert [r["client"] for r in f.failures] == ["client-1", "client-1"]
    assert set(updates) >= {"client-0", "client-2"}


def sending(update, examples=5, **changes):
    """client-1 sends this update."""

    def tamper(name, reply):
        return fake(GOOD * 1e-3 if name != "client-1" else update, **{"num-examples": examples, **changes})(name, reply)

    return tamper


@pytest.mark.parametrize(
    ("tamper", "why"),
    [
        (sending(GOOD), "update of norm 1.67, the median is 0.00167 (federation.norm_bound)"),
        (sending(np.full(P, 1e30, np.float32)), "update of norm 2.45e+30, the median is 0.00167 (federation.norm_bound)"),
        (sending(np.full(P, np.nan, np.float32)), "adapters not finite"),
    ],
)
def test_updates_out_of_proportion_are_refused(tamper, why):
    said = []
    f = federation(tamper, said=said, **{"federation.quorum": 0.6})
    f.roll_call()
    updates = f.train(np.zeros(P, np.float32), instruct(f), Cost(), told=set())
    assert list(updates) == ["client-0", "client-2"]
    assert said[-1] == f"client-1 failed, left out: {why}"
    assert f.failures[-1] == {"phase": "learn", "round": 1, "client": "client-1", "why": why}


def test_more_examples_than_pairs_are_refused():
    f = federation(sending(GOOD * 1e-3, examples=10**9))
    pairs = next(iter({said["pairs"] for said in f.roll_call().values()}))
    with pytest.raises(FederationError, match=rf"num-examples is 1000000000, expected a positive number up to {pairs}"):
        f.train(np.zeros(P, np.float32), instruct(f), Cost(), told=set())


def reply_with(content):
    question = Message(RecordDict({"config": ConfigRecord({"x": 1})}), dst_node_id=1, message_type="evaluate")
    question.metadata._message_id = "1"
    return Message(RecordDict(content), reply_to=question)


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ({"now/test.counts": [5, 5, 1, 2, 3, 1, 2, 6]}, "holds no counts of hits"),
        ({"now/test.counts": [5, 5, 1, 2]}, "holds no counts of hits"),
        ({"now/test.counts": [-5, 5, 0, 0, 0, 0, 0, 0]}, "holds no counts of hits"),
        ({"later/test.counts": [5, 5, 1, 2, 3, 1, 2, 3]}, "is about no model that was sent"),
        ({"now/test.similarity": [0.5, float("nan")]}, "is not finite"),
        ({"now/test.gallery": [5]}, "holds no size of a gallery"),
        ({"now/test.similarity": 0.5}, "is a single number"),
        ({"now/forget.level": [0.5, 0.2]}, "holds 2 numbers, expected 3"),
    ],
)
def test_judgements_are_checked(said, why):
    with pytest.raises(ValueError, match=why):
        read_answers(reply_with({"metrics": MetricRecord(said)}), {"now"})
    with pytest.raises(ValueError, match=r"no metrics in the answer, but \['arrays'\]"):
        read_answers(reply_with({"arrays": pack({"x": GOOD})}), {"now"})


def test_answers_that_come_with_training_are_checked_too():
    asked = Instruction(
        phase="learn", round=2, train=TrainConfig(), before=Instruction(phase="audit", round=0, train=TrainConfig())
    )
    said = {"num-examples": 5, "loss": 1.0, "now/test.counts": [5, 5, 1, 2, 3, 1, 2, 3], "now/test.gallery": 5}

    def read(asked, **more):
        return read_update(
            "a", reply_with({"arrays": pack({"adapters": GOOD}), "metrics": MetricRecord(said | more)}), GOOD, asked
        )

    assert read(asked).judged == {k: said[k] for k in ("now/test.counts", "now/test.gallery")}
    assert set(read(asked).metrics) == {"num-examples", "loss"}
    with pytest.raises(ValueError, match="holds no counts of hits"):
        read(asked, **{"now/test.counts": [5, 5, 1, 2, 3, 1, 2, 6]})
    with pytest.raises(ValueError, match="expected single numbers"):
        read(asked.model_copy(update={"before": None}))
    with pytest.raises(ValueError, match=r"type float32, expected \(\d+,\) float16"):
        read(asked.model_copy(update={"half": True}))


def test_a_bad_judgement_is_left_out_and_named():
    def tamper(name, reply):
        if name == "client-2" and "metrics" in reply.content:
            reply.content["metrics"] = MetricRecord({"now/retain.counts": [1, 1, 9, 9, 9, 9, 9, 9]})
        return reply

    said = []
    f = federation(tamper, said=said, **{"federation.quorum": 0.6})
    f.roll_call()
    from ease_flwr.core import adapters

    theta = adapters.load(f.experiment.model, f.experiment.lora, f.experiment.seed).initial
    ask = Instruction(phase="x", round=0, train=f.experiment.learn)
    answers = f.evaluate({"now": theta}, ask, f.clients, Cost())
    assert list(answers) == ["client-0", "client-1"]
    assert said[0].startswith("client-2 failed, left out of the judgement: metric 'now/retain.counts' holds no counts")


def test_names_must_be_safe_as_folders():
    info = {"pairs": 3, "forget": 0, "code": "x", "base": "y"}
    for name in ("../../etc", "a b", "", ".hidden", "x" * 65):
        with pytest.raises(ValueError, match=r"neither can be used"):
            read_hello(reply_with({"info": ConfigRecord({**info, "name": name})}))
    with pytest.raises(ValueError, match=r"without a usable 'pairs'"):
        read_hello(reply_with({"info": ConfigRecord({**info, "name": "a", "pairs": "3"})}))
