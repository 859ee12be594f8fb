"""What a client that is registered could once do to a federation, and what it gets now. docs/security.md names these tests."""

import json
from hashlib import sha256

import numpy as np
import pytest
from ease_flwr.strategies.base import mean
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict

from ease_flwr.audit.examination import PROBES
from ease_flwr.config import ConfigError, ForgetSet, TrainConfig
from ease_flwr.exchange import evaluation
from ease_flwr.exchange.federation import Request
from ease_flwr.exchange.judgement import pool
from ease_flwr.exchange.messages import Audit, Evaluate, unpack
from ease_flwr.exchange.training import train
from ease_flwr.exchange.transport import reason
from ease_flwr.store import names
from tests.hostile import HOSTILE, NAMES, P, Wire, federation, instruct, moved, plain
from tests.small import small_experiment
from tests.test_hostile_answers import EXAMINED, SET
from tests.test_roll_call import call_of_nodes

FORGET = (ForgetSet(scenario="class", targets=("x",)),)
ONES = np.ones(P, np.float32)


def between(good, bad, **how):
    """A federation in which one client answers something else, and what it says."""
    said = []
    return federation(Wire(lambda name, message: good, lambda name, message: bad), said=said, **how), said


def training(hostile, honest=0.01, **how):
    """A round of training, and what was said."""
    f, said = between(moved(ONES, honest, examples=100), hostile, **how)
    return train(f, ONES, instruct()), said


def sending(record):
    return RecordDict({"arrays": ArrayRecord({"adapters": record}), "metrics": MetricRecord({"num-examples": 5, "loss": 1.0})})


def test_it_claimed_more_pairs_than_all_others_and_owned_the_average():
    found, _ = training(moved(ONES, 0.1, examples=2**40), 0.0, pairs=2**40)
    assert found.updates[HOSTILE].examples == 10 * 100
    assert mean(found.updates)[0] == pytest.approx(1 + 0.1 * 1000 / 1300)


def test_it_sent_a_step_of_any_length_to_be_added():
    found, said = training(moved(ONES, 1e6))
    assert np.linalg.norm(found.updates[HOSTILE].adapters - ONES) == pytest.approx(0.01 * np.sqrt(P), rel=1e-3)
    assert said == [f"{HOSTILE}: update of norm 2.45e+06 cut to 0.0245, which is usual (federation.norm_bound)"]


def test_an_archive_in_place_of_an_array_ended_the_run(tmp_path):
    with open(tmp_path / "x.npz", "wb") as file:
        np.savez(file, adapters=ONES)
    data = (tmp_path / "x.npz").read_bytes()
    found, said = training(sending(Array(dtype="float32", shape=(P,), stype="numpy.ndarray", data=data)))
    assert HOSTILE not in found.updates
    assert said[-1].startswith(f"{HOSTILE} failed, left out: adapters: ")


def test_bytes_that_unpack_to_more_than_was_asked_are_not_unpacked(monkeypatch):
    def small(record):
        assert all(len(array.data) < 2000 for array in record.values())
        return unpack(record)

    monkeypatch.setattr("ease_flwr.exchange.answers.unpack", small)
    found, said = training(sending(Array(np.zeros(10**6, np.float32))))
    assert HOSTILE not in found.updates
    assert said[-1] == f"{HOSTILE} failed, left out: adapters: 4000128 bytes, expected an array of NumPy of at most 1048"


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ({**SET, "images": 0, "texts": 0, "i2t": [0, 0, 0], "t2i": [0, 0, 0]}, "greater than or equal to 1"),
        ({**SET, "i2t": [3, 2, 1]}, "fewer hits at a later rank"),
        ({**SET, "images": 10}, "10 pictures and 6 captions"),
        ({**SET, "images": 101, "texts": 101, "gallery": 200}, "forget: 101 queries of 100 pairs"),
    ],
)
def test_counts_that_cannot_be_ended_every_resume(said, why, tmp_path):
    good = {"sets": {"forget": SET, "retain": SET, "test": SET}}
    bad = {"sets": {**good["sets"], "forget": said}}
    photographs = {"data.kind": "photographs", "data.root": "/x"}
    f, heard = between(plain({"now": good}), plain({"now": bad}), folder=tmp_path, **photographs)
    answers, _ = evaluation.evaluate(f, {"now": ONES}, Evaluate(forget=FORGET))
    assert HOSTILE not in answers["now"]
    assert why in heard[0]
    assert pool(answers["now"]).r1("forget") > 0


def test_a_judgement_of_a_million_queries_was_everybodys():
    million = {"images": 10**6, "texts": 10**6, "i2t": [10**6] * 3, "t2i": [10**6] * 3, "gallery": 10**6}
    f, heard = between(plain({"now": {"sets": {"test": SET}}}), plain({"now": {"sets": {"test": million}}}))
    answers, _ = evaluation.evaluate(f, {"now": ONES}, Evaluate())
    assert answers["now"][HOSTILE].sets["test"].images == 10 * 5
    assert pool(answers["now"]).sets["test"]["n"] == 10 * 5 + 3 * 5
    assert heard == [
        f"{HOSTILE}: its 1000000 queries of test count as 50, 10 times the median (federation.weight_bound)",
    ]


def test_the_same_in_a_judgement_that_comes_with_training():
    million = {"images": 10**6, "texts": 10**6, "i2t": [10**6] * 3, "t2i": [10**6] * 3, "gallery": 10**6}
    good, bad = (moved(ONES, 0.01, judged={"sets": {"test": found}}) for found in (SET, million))
    f, heard = between(good, bad)
    found = train(f, ONES, instruct(), before=Evaluate())
    assert found.updates[HOSTILE].judged.sets["test"].images == 50
    assert heard == [f"{HOSTILE}: its 1000000 queries of test count as 50, 10 times the median (federation.weight_bound)"]


def test_a_set_that_nobody_else_has_stood_for_all_that_was_forgotten():
    """The sum of forget_exclusive and forget_shared is what was forgotten, where a world has these."""
    alone = {"images": 1, "texts": 1, "i2t": [0, 0, 0], "t2i": [0, 0, 0], "gallery": 1}
    good = {"sets": {"forget": SET, "retain": SET}}
    bad = {"sets": {"forget_exclusive": alone, "retain": SET}}
    photographs = {"data.kind": "photographs", "data.root": "/x"}
    f, heard = between(plain({"now": good}), plain({"now": bad}), **photographs)
    answers, _ = evaluation.evaluate(f, {"now": ONES}, Evaluate(forget=FORGET))
    assert HOSTILE not in answers["now"]
    assert heard == [
        f"{HOSTILE} failed, left out of the judgement: an answer about forget_exclusive, which photographs do not have"
    ]


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"sets": {**EXAMINED["sets"], "retain": {**EXAMINED["sets"]["retain"], "labels": [1.0, 2.0]}}}, "other queries"),
        ({"member": EXAMINED["member"][:1], "member_labels": [7.0], "probe": [[0.5], [-0.1]]}, "other queries"),
        ({"member": [[0.5, 1.0], [0.6, 1.0]]}, "Field required"),
        ({"relearn": EXAMINED["relearn"][:1]}, "other queries than the first model: relearn"),
    ],
)
def test_one_bad_answer_failed_the_whole_audit(change, why):
    good = {"original": EXAMINED, "retrain": EXAMINED}
    f, heard = between(plain(good), plain({"original": EXAMINED, "retrain": {**EXAMINED, **change}}))
    question = Audit(forget=FORGET, probes=PROBES["full"], train=TrainConfig())
    found, _ = evaluation.examine(f, dict.fromkeys(good, ONES), {n: Request(question) for n in NAMES})
    assert {*found["retrain"]} == {*NAMES} - {HOSTILE}
    assert why in heard[0]


def test_an_answer_to_what_was_not_asked_is_left_out():
    f, _ = between(plain({"now": {"sets": {}}}), plain({"now": EXAMINED}))
    found, _ = evaluation.examine(f, {"now": ONES}, {n: Request(Audit(forget=FORGET, train=TrainConfig())) for n in NAMES})
    assert {*found["now"]} == {*NAMES} - {HOSTILE}


def test_an_error_of_a_client_wrote_on_the_terminal_of_the_operator():
    question = Message(RecordDict({"x": ConfigRecord({"y": 1})}), dst_node_id=1, message_type="train")
    question.metadata._message_id = "1"
    said = reason(Message(Error(2, "\x1b[2J\x07" + "all is well\r\n" * 10_000), reply_to=question))
    assert said.isprintable()
    assert said.startswith(r"client raised: \x1b[2J\x07all is well all is well")
    assert len(said) < 400


# ---- names and sizes at the roll call ----------------------------------------------------------------------------------------


def test_a_client_called_itself_by_the_name_of_another():
    """Its node has a key that the operator has registered without a name."""
    hers = {"keys": {"client-1": digest(b"hers")}}
    found = call_of_nodes({"client-1": ("", b"mine")}, hers)
    assert found.missing == {
        "client-1": "it calls itself client-1, which had another key before: if its owner has a new key, register it under "
        "that name (`ease deploy replace-key`, then `ease deploy register`)"
    }
    assert "client-1" in call_of_nodes({"client-1": ("client-1", b"mine")}, hers).roster.clients
    assert "client-1" in call_of_nodes({"client-1": ("", b"hers")}, hers).roster.clients


def test_more_pairs_than_its_owner_has_stated(monkeypatch):
    found = call_of_nodes({}, {}, **{"federation.sizes": ("client-1:10", "client-2:100000")})
    assert found.roster.clients == ("client-0", "client-2")
    assert "training pairs, federation.sizes states 10: ask its owner" in found.missing["client-1"]
    with pytest.raises(ConfigError, match=r"sizes: 'client-1' is not NAME:PAIRS, for example hospital-a:1200"):
        small_experiment(**{"federation.sizes": ("client-1",)})
    with pytest.raises(ConfigError, match=r"sizes: a name is there twice: say its size once"):
        small_experiment(**{"federation.sizes": ("client-1:10", "client-1:100")})


def test_keys_are_kept_by_name(tmp_path, monkeypatch):
    monkeypatch.setenv("EASE_FLWR_HOME", str(tmp_path))
    assert names.bind({"a": "1", "b": ""}) == []
    assert names.known() == {"a": "1"}
    assert names.bind({"a": "1", "c": "3"}) == []
    assert names.bind({"a": "2"}) == ["a"]
    assert names.known() == {"a": "2", "c": "3"}
    (tmp_path / "names.json").write_text(json.dumps({"keys": {"a": 1}}))
    with pytest.raises(ConfigError, match=r"names.json: not the keys of clients \(expected a key for each name\): restore it"):
        names.known()


def digest(key):
    return sha256(key).hexdigest()
