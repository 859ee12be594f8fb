"""Answers in words, and the noise that they are judged by."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ease_flwr import config
from ease_flwr.audit import noise, verdict
from ease_flwr.audit.intervals import Measure
from ease_flwr.audit.verdict import FORGOTTEN, KEPT, STAYS, Beside
from ease_flwr.config import AuditConfig, ConfigError

NAN = math.nan


def line(found, question=FORGOTTEN, key="r1.forget", two_sided=True, **more):
    """The row of one number of *unlearned* whose limit is 3."""
    against = more.pop("against", ("retrain",))
    return verdict.row((question, key), Beside("unlearned", against, {key: found}), 3.0, two_sided, **more)


def beside(gap, low, high, s=NAN):
    return Measure(10 + gap, gap=gap, gap_low=low, gap_high=high, noise=s, cells=0 if math.isnan(s) else 4)


TELL = "; more members or pairs would tell"


@pytest.mark.parametrize(
    ("gap", "low", "high", "answer"),
    [
        (1.0, -1.0, 2.0, "like retraining"),
        (9.0, 5.0, 12.0, "too little forgotten"),
        (-9.0, -12.0, -5.0, "too much forgotten"),
        (2.0, -1.0, 5.0, "not sure: perhaps too little forgotten" + TELL),
        (-2.0, -5.0, 1.0, "not sure: perhaps too much forgotten" + TELL),
        (-1.0, -2.0, 5.0, "not sure: that it is too little forgotten cannot be excluded" + TELL),
        (0.0, -5.0, 5.0, "not sure: that it is too little forgotten or too much forgotten cannot be excluded" + TELL),
        (1.0, NAN, NAN, "not sure: perhaps too little forgotten" + TELL),
    ],
)
def test_forgetting_too_much_is_a_fault_too(gap, low, high, answer):
    row = line(beside(gap, low, high))
    assert row.answer == answer
    assert row.reference == pytest.approx(10)


@pytest.mark.parametrize(
    ("gap", "low", "high", "answer"),
    [
        (4, -1, 9, "kept"),
        (-7, -9, -5, "lost"),
        (-3, -5, -1, "not sure: perhaps lost" + TELL),
        (5.7, -4, 16, "not sure: that it is lost cannot be excluded" + TELL),  # better: 48.0 beside 42.3 of 30 pairs
        (7, 5, 9, "kept"),
        (7, NAN, NAN, "not sure: that it is lost cannot be excluded" + TELL),
    ],
)
def test_keeping_more_is_no_fault_and_never_a_loss(gap, low, high, answer):
    assert line(beside(gap, low, high), KEPT, "r1.retain", two_sided=False).answer == answer


reals = st.floats(-200, 200)


@given(
    reals, st.sampled_from([FORGOTTEN, KEPT, STAYS]), st.booleans(), st.sampled_from(["r1.retain", "distance.forget", "probe"])
)
def test_without_an_interval_no_answer_is_good(gap, question, two_sided, key):
    row = line(Measure(gap, gap=gap), question, key, two_sided)
    assert row.answer not in verdict.GOOD
    assert row.answer.startswith("not sure")


@given(reals, st.floats(0, 50), st.floats(0, 50), st.booleans())
def test_what_is_better_is_never_called_perhaps_lost(gap, below, above, two_sided):
    answer = line(beside(gap, gap - below, gap + above), KEPT, "r1.retain", two_sided).answer
    assert gap < 0 or "perhaps lost" not in answer
    assert (answer in verdict.GOOD) <= (gap - below >= -3)


def test_what_would_tell():
    noisy = Measure(10, 9, 11, 0.5, -0.5, 1.5).with_noise(2.0, 4)  # +-3.92 where members say +-1
    assert line(noisy).answer.endswith("; a second retraining would tell")
    assert line(noisy, against=("retrain", "retrain_2")).answer.endswith("; more retrainings would tell")
    wide = Measure(10, 0, 20, 0.5, -9.5, 10.5).with_noise(2.0, 4)
    assert line(wide).answer.endswith("; more members or pairs would tell")
    assert line(wide, level="quick").answer.endswith("; more members or pairs, or a full audit would tell")
    assert line(wide, KEPT, "r1.retain", False, level="quick").answer.endswith("; more members or pairs would tell")


def test_the_headline_says_what_was_not_asked():
    quick, full = (verdict.asked_of(level, "noise s unknown: one retraining") for level in ("quick", "full"))
    assert quick == ("quick audit; not asked: relearning, cross-modal probes, linear probe; noise s unknown: one retraining")
    assert full == "full audit; noise s unknown: one retraining"
    text = verdict.table([line(beside(1.0, -1.0, 2.0)), line(beside(9.0, 5.0, 12.0, s=0.5))], quick)
    assert f"### Forgotten like retraining? 1 of 2 answers say so ({quick})" in text
    assert "| r1.forget | unlearned | 11.0 | 10.0 (retrain) | +1.0 (-1.0 to +2.0) | - | 3 | like retraining |" in text
    assert (
        "| r1.forget | unlearned | 19.0 | 10.0 (retrain) | +9.0 ! (+5.0 to +12.0) | 0.5 (4) | 3 | too little forgotten |"
        in text
    )
    assert text.startswith("Differences are model minus reference")
    assert "(no interval)" in verdict.table([line(Measure(10, gap=0))], quick)


def test_what_is_kept_is_judged_by_both_references():
    numbers = {k: Measure(50, gap=0, gap_low=-1, gap_high=1) for k in ("r1.forget", "r1.retain", "r1.test")}
    models = ("unlearned", ("retrain", "retrain_2")), ("unlearned", ("retrain_equal",)), ("continued", ("retrain_continued",))
    rows = verdict.verdict([Beside(m, against, numbers) for m, against in models], AuditConfig(), "full")
    assert [(r.question, r.what, r.against) for r in rows] == [
        (FORGOTTEN, "r1.forget", "retrain and retrain_2"),
        *((KEPT, key, "retrain and retrain_2") for key in ("r1.retain", "r1.test")),
        *((KEPT, key, "retrain_equal") for key in ("r1.retain", "r1.test")),
        *((STAYS, key, "retrain_continued") for key in ("r1.forget", "r1.retain", "r1.test")),
    ]
    assert verdict.read_rows(json.loads(json.dumps(verdict.plain(rows))))[0].what == "r1.forget"


# ---- noise -------------------------------------------------------------------------------------------------------------


def cell(folder, seed, second, experiment="personas", **numbers):
    """An audited run whose second retraining differs from the first by these numbers."""
    folder.mkdir(parents=True)
    sha = {"unlearned": folder.name, "retrain": f"first {seed}", "retrain_2": second}
    results = {"schema": 2, "experiment": experiment, "seed": seed, "adapters_sha256": sha}
    (folder / "results.json").write_text(json.dumps(results))
    again = {k: {"value": v} if k.startswith("distance") else {"value": 50, "gap": v} for k, v in numbers.items()}
    audit = {"level": "quick", "at": "now", "adapters_sha256": sha, "numbers": {"retrain_2": again}}
    (folder / "audit.json").write_text(json.dumps(audit))


def test_noise_by_hand(tmp_path):
    cell(tmp_path / "sweep" / "ease", 0, "a", **{"r1.retain": 1.0, "distance.forget": 0.04})
    cell(tmp_path / "sweep" / "npo", 0, "a", **{"r1.retain": 1.0, "distance.forget": 0.04})  # the same two: one cell
    cell(tmp_path / "alone", 1, "b", **{"r1.retain": -3.0})
    found = noise.pool([tmp_path / "sweep", tmp_path / "alone"])
    assert (found["experiment"], found["cells"], found["seeds"]) == ("personas", 2, [0, 1])
    assert found["numbers"]["r1.retain"] == {"s": pytest.approx(((1 + 9) / 2 / 2) ** 0.5, abs=1e-6), "cells": 2}
    assert found["numbers"]["distance.forget"] == {"s": pytest.approx(0.04 / 2**0.5, abs=1e-6), "cells": 1}


def test_noise_of_nothing_or_of_different_things_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"no audited run there has two retrainings: give runs with evaluation.references=2"):
        noise.pool([tmp_path])
    cell(tmp_path / "one", 0, "a", **{"r1.retain": 1.0})
    cell(tmp_path / "two", 0, "b", "flickr8k", **{"r1.retain": 1.0})
    with pytest.raises(ConfigError, match="runs of flickr8k, personas: give those of one experiment"):
        noise.pool([tmp_path])


def test_where_the_noise_of_a_verdict_comes_from(tmp_path, monkeypatch):
    monkeypatch.setattr(config, "APP", tmp_path)
    nothing = noise.known("personas", {})
    assert nothing == noise.Noise({}, "noise s unknown: one retraining, no conf/noise/personas.json")
    own = noise.known("personas", {"r1.retain": 2.0})
    assert own == noise.Noise({"r1.retain": (2**0.5, 1)}, "noise s from this run's two retrainings alone")
    cell(tmp_path / "run", 3, "a", **{"r1.retain": 4.0})
    file, _ = noise.write([tmp_path / "run"], None)
    assert file == tmp_path / "conf" / "noise" / "personas.json"
    pooled = noise.known("personas", {"r1.retain": 2.0, "relearn.1": 1.0})
    assert pooled.source == "noise s from 1 cell in conf/noise/personas.json"
    assert pooled.s["r1.retain"] == (pytest.approx(8**0.5, abs=1e-6), 1)
    assert pooled.s["relearn.1"] == (0.5**0.5, 1)  # what the file does not know
    measured = pooled.on({"r1.retain": Measure(50, 49, 51, 0, -1, 1), "r1.test": Measure(50, 49, 51, 0, -1, 1)})
    assert measured["r1.retain"].gap_high == pytest.approx(1.96 * 8**0.5)
    assert measured["r1.test"].gap_high == 1
    file.write_text("{")
    with pytest.raises(ConfigError, match=r"personas.json: .*: write it again with `ease noise`, or remove it"):
        noise.known("personas", {})
