"""Answers of clients are not trusted: whatever comes is used, or refused with its name, and never averaged by mistake."""

import json

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from hypothesis import given, settings
from hypothesis import strategies as st

from ease_flwr.config import TrainConfig
from ease_flwr.exchange.answers import Present, read, read_models, read_update, validated
from ease_flwr.exchange.evaluation import evaluate
from ease_flwr.exchange.examined import Examination
from ease_flwr.exchange.judgement import Evaluation
from ease_flwr.exchange.messages import Evaluate, Learn, pack
from ease_flwr.exchange.transport import FederationError
from tests.test_federation import ask, fake, federation

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
    st.sampled_from(["arrays", "metrics", "answer", "more"]),
    st.one_of(records, metrics, st.just(ConfigRecord({"json": "x"}))),
    max_size=3,
)


def answering(content):
    """client-1 answers this instead."""

    def tamper(name, reply):
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
    found = ask(f, np.zeros(P, np.float32))
    if "client-1" in found.updates:
        assert found.updates["client-1"].adapters.shape == (P,)
        assert np.isfinite(found.updates["client-1"].adapters).all()
        assert 1 <= found.updates["client-1"].examples <= 100
    else:
        assert [line.split(":")[0] for line in said] == ["client-1 failed, asked again", "client-1 failed, left out"]
        assert all("\n" not in line for line in said)
        assert [r["client"] for r in found.failures] == ["client-1", "client-1"]
    assert set(found.updates) >= {"client-0", "client-2"}


def sending(update, examples=5, **changes):
    """client-1 sends this update."""

    def tamper(name, reply):
        return fake(GOOD * 1e-3 if name != "client-1" else update, **{"num-examples": examples, **changes})(name, reply)

    return tamper


@pytest.mark.parametrize("long", [GOOD, np.full(P, 1e30, np.float32)])
def test_updates_out_of_proportion_are_shortened(long):
    said = []
    found = ask(federation(sending(long), said=said), np.zeros(P, np.float32))
    usual, length = np.linalg.norm(GOOD * 1e-3), np.linalg.norm(long.astype(np.float64))
    assert found.updates["client-1"].adapters == pytest.approx(long / length * usual, rel=1e-5)
    why = f"update of norm {length:.3g} cut to 0.00167, which is usual (federation.norm_bound)"
    assert said == [f"client-1: {why}"]
    assert found.failures == ({"phase": "learn", "round": 1, "client": "client-1", "why": why},)


def test_what_is_no_number_is_left_out():
    said = []
    f = federation(sending(np.full(P, np.nan, np.float32)), said=said, **{"federation.quorum": 0.6})
    found = ask(f, np.zeros(P, np.float32))
    assert list(found.updates) == ["client-0", "client-2"]
    assert said[-1] == "client-1 failed, left out: adapters not finite"
    assert found.failures[-1] == {"phase": "learn", "round": 1, "client": "client-1", "why": "adapters not finite"}


def test_more_examples_than_pairs_are_refused():
    f = federation(sending(GOOD * 1e-3, examples=10**9))
    with pytest.raises(FederationError, match=r"num-examples is 1000000000, expected a positive number up to 100"):
        ask(f, np.zeros(P, np.float32))


def reply_with(content):
    question = Message(RecordDict({"config": ConfigRecord({"x": 1})}), dst_node_id=1, message_type="evaluate")
    question.metadata._message_id = "1"
    return Message(RecordDict(content), reply_to=question)


def answer_with(text):
    return reply_with({"answer": ConfigRecord({"json": text if isinstance(text, str) else json.dumps(text)})})


GOOD_SET = {"images": 5, "texts": 5, "i2t": [1, 2, 3], "t2i": [1, 2, 3], "gallery": 5}


def about(model="now", **changes):
    return {model: {"sets": {"test": {**GOOD_SET, **changes}}}}


@pytest.mark.parametrize(
    ("said", "why"),
    [
        (about(t2i=[1, 2, 6]), "6 hits of 5 images and 5 texts"),
        (about(i2t=[1, 2]), "Field required"),
        (about(images=-5), "greater than or equal to 1"),
        (about("later"), r"an answer about \['later'\], expected \['now'\]"),
        (about() | about("more"), r"an answer about \['more', 'now'\], expected \['now'\]"),
        (about(similarity=[0.5] * 4), "4 similarities of 5 pairs"),
        ('{"now": {"sets": {"test": {"similarity": [NaN]}}}}', "NaN is not a number"),
        (about(gallery=[5]), "valid integer"),
        (about(surprise=1), "Extra inputs are not permitted"),
        ({"now": {"sets": {"elsewhere": GOOD_SET}}}, "Input should be 'forget_exclusive'"),
        ([1], "an answer about list"),
        ("not json", "no usable answer"),
        ("[" * 100_000, "no usable answer"),
    ],
)
def test_judgements_are_checked(said, why):
    with pytest.raises(ValueError, match=why) as error:
        read_models(answer_with(said), Evaluation, {"now"})
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match=r"no usable answer, but \['arrays'\]"):
        read_models(reply_with({"arrays": pack({"x": GOOD})}), Evaluation, {"now"})


@settings(max_examples=100, deadline=None)
@given(st.recursive(st.none() | st.integers() | st.floats() | st.text(max_size=5), st.lists, max_leaves=8))
def test_no_answer_of_an_audit_ends_in_anything_but_one_line(value):
    text = json.dumps({"now": {"sets": {"test": value}, "relearn": value}})
    with pytest.raises(ValueError, match="answer") as error:
        read_models(answer_with(text), Examination, {"now"})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"swap": {"text": [{"label": 1.0, "of": [2, 2], "hits": [[[0, 3]]]}]}}, "0 and 3 hits of 2 image and 2 text queries"),
        (
            {"swap": {"text": [{"label": 1.0, "of": [2, 2], "hits": [[[0, 1], [0, 1]]]}]}},
            "a probe without 1 counts in each of 1 ",
        ),
        ({"swap": {"both": []}}, "Input should be 'visual' or 'text'"),
        ({"regained": [0.1, 0.2, 0.3, 1.01]}, "less than or equal to 1"),
        ({"regained": [0.1, 0.2, 0.3, -0.01]}, "greater than or equal to 0"),
        ({"regained": [0.1, 0.2, 0.3]}, "3 first steps in 4 orders of batches"),
        ({"regained": [0.1, 0.2, 0.3, float("nan")]}, "finite number"),
    ],
)
def test_impossible_answers_about_the_anchors_are_refused_in_one_line(wrong, message):
    with pytest.raises(ValueError, match=message) as error:
        validated(Examination, {"sets": {}, **wrong})
    assert "\n" not in str(error.value)


def test_answers_that_come_with_training_are_checked_too():
    asked = Learn(phase="learn", round=2, train=TrainConfig(), before=Evaluate())
    metrics = {"num-examples": 5, "loss": 1.0}

    def reading(asked, judged=GOOD_SET, **more):
        content = {"arrays": pack({"adapters": GOOD}), "metrics": MetricRecord(metrics | more)}
        content["answer"] = ConfigRecord({"json": json.dumps({"sets": {"test": judged}})})
        return read_update("a", reply_with(content), GOOD, asked)

    assert reading(asked).judged.sets["test"].i2t == (1, 2, 3)
    assert set(reading(asked).metrics) == {"num-examples", "loss"}
    with pytest.raises(ValueError, match="6 hits of 5 images"):
        reading(asked, {**GOOD_SET, "i2t": [1, 2, 6]})
    assert reading(asked.model_copy(update={"before": None}), {"nonsense": 1}).judged is None  # nobody asked
    with pytest.raises(ValueError, match="expected single numbers"):
        reading(asked, x=[1, 2])
    locked = asked.model_copy(update={"lock": "a" * 64})
    assert reading(locked, lock_push=2.5).own == {"lock_push": 2.5}
    for push in ({}, {"lock_push": -0.5}):
        with pytest.raises(
            ValueError, match=r"lock_push is (None|-0.5), expected 0 or more after training under a forget lock"
        ):
            reading(locked, **push)
    with pytest.raises(ValueError, match="metric 'lock_push' is not finite"):
        reading(locked, lock_push=float("nan"))
    with pytest.raises(ValueError, match=r"type float32, expected \(\d+,\) float16"):
        reading(asked.model_copy(update={"half": True}))


def test_a_bad_judgement_is_left_out_and_named():
    def tamper(name, reply):
        if name == "client-2":
            reply.content["answer"]["json"] = json.dumps({"now": {"sets": {"retain": {**GOOD_SET, "i2t": [9, 9, 9]}}}})
        return reply

    said = []
    f = federation(tamper, said=said, **{"federation.quorum": 0.6})
    from ease_flwr.model import adapters

    theta = adapters.load(f.experiment.model, f.experiment.lora, f.experiment.seed).initial
    answers, _ = evaluate(f, {"now": theta}, Evaluate())
    assert list(answers["now"]) == ["client-0", "client-1"]
    assert said == [
        "client-2 failed, left out of the judgement: answer sets.retain: 9 hits of 5 images and 5 texts",
    ]


def test_names_must_be_safe_as_folders():
    info = {"pairs": 3, "code": "x", "base": "y"}
    for name in ("../../etc", "a b", "", ".hidden", "x" * 65):
        with pytest.raises(ValueError, match=r"neither can be used"):
            read(answer_with({**info, "name": name}), Present)
    with pytest.raises(ValueError, match=r"neither can be used"):
        read(answer_with({**info, "name": "a", "forget": [2, 2]}), Present)
    with pytest.raises(ValueError, match=r"answer pairs: Input should be a valid integer"):
        read(answer_with({**info, "name": "a", "pairs": [3]}), Present)
