"""The audit of a run that nobody has retrained: against strangers, with the three-sample view, and never a refusal."""

import json
import shutil

import numpy as np
import pytest
from ease_flwr.clients.audit import Audit

import ease_flwr as ease
from ease_flwr import data, launcher
from ease_flwr.audit import envelope, intervals, opening, receipt, report, strangers, verdict
from ease_flwr.audit.examination import ALONE, Answers
from ease_flwr.audit.intervals import Estimate, Measure
from ease_flwr.audit.summary import current_audit, read_results
from ease_flwr.audit.verdict import AS_BEFORE, STILL, UNKNOWN, Beside
from ease_flwr.config import AuditConfig, ConfigError, ForgetSet
from ease_flwr.store.layout import RunLayout
from tests.in_process_grid import InProcessGrid, submit
from tests.photographs import write_photographs
from tests.small import settings, small_experiment
from tests.standing import SIMULATION
from tests.test_bilateral import Memory

# ---- by hand ---------------------------------------------------------------------------------------------------------------


def judged(cosines, ranks, labels):
    """A sample of pairs with one caption each."""
    found = {"i2t": ranks, "t2i": ranks, "captions": [1] * len(ranks), "similarity": cosines, "labels": labels}
    return {key: np.array(values, dtype=float) for key, values in found.items()}


def model(forgotten, strange):
    """Cosines of forgotten pairs and strangers; what is above .5 is found."""
    ranks = [[1 if c > 0.5 else 9 for c in cosines] for cosines in (forgotten, strange)]
    both = {
        "forget": judged(forgotten, ranks[0], [-1] * 4),
        "retain": judged([0.9, 0.9], [1, 1], [4, 5]),
        "strangers": judged(strange, ranks[1], [-1] * 4),
    }
    return strangers.samples(Answers(samples=both))


BEFORE = model([0.8, 0.9, 0.7, 0.8], [0.2, 0.1, 0.3, 0.2])
HALFWAY = model([0.5, 0.6, 0.4, 0.5], [0.2, 0.1, 0.3, 0.2])
THERE = model([0.3, 0.4, 0.2, 0.3], [0.3, 0.2, 0.4, 0.3])


def test_three_samples_by_hand():
    found = strangers.view({"original": BEFORE, "unlearned": HALFWAY, "continued": THERE})
    assert found["models"]["original"]["similarity.forget"]["value"] == pytest.approx(0.8)
    assert found["models"]["original"]["similarity.strangers"]["value"] == pytest.approx(0.2)
    assert found["models"]["original"]["r1.forget"] == {"value": 100, "low": 100 - 12.5, "high": 100}  # four pairs, both ways
    assert found["models"]["unlearned"]["r1.forget"]["value"] == 25  # .6 alone is found
    assert found["models"]["unlearned"]["r1.retain"]["value"] == 100
    # (.5 - .2) of (.8 - .2) is left, and of what strangers have come nearer to, nothing
    assert found["way"]["unlearned"]["similarity"]["value"] == pytest.approx(0.5)
    assert found["way"]["continued"]["similarity"]["value"] == pytest.approx(1)
    assert found["way"]["unlearned"]["r1"]["value"] == pytest.approx(0.75)
    assert found["way"]["unlearned"]["similarity"]["low"] < 0.5 < found["way"]["unlearned"]["similarity"]["high"]
    text = strangers.table(found)
    assert "| R@1 % | original | 100.0 (87.5 to 100.0) | 100.0" in text
    assert text.splitlines()[2] == "| number | model | forgotten | kept | strangers | share of the way to strangers |"


def test_a_model_that_is_the_original_has_moved_nothing():
    share = strangers.view({"original": BEFORE, "unlearned": BEFORE})["way"]["unlearned"]["similarity"]
    assert share == {"value": 0, "low": 0, "high": 0}


def test_where_there_is_no_way_to_go_no_share_is_said():
    why = strangers.view({"original": THERE, "unlearned": THERE})["way"]["unlearned"]["similarity"]
    assert why == {"why": "original had it with the strangers, as far as can be told"}
    assert strangers.view({"unlearned": THERE})["way"]["unlearned"]["r1"] == {"why": "original is not there"}
    one = Estimate(0.8), Estimate(0.2)
    assert strangers.way(one, one) is None  # of one member each: nothing is sure


def test_samples_draw_their_own_members():
    """Two samples with as many members are not drawn together: their difference is as unsure as both."""
    a = intervals.mean(np.arange(9.0), np.arange(9), 0)
    b = intervals.mean(np.arange(9.0), np.arange(9), 2)
    assert np.std(intervals.between(a, b).draws) == pytest.approx(np.hypot(a.draws.std(), b.draws.std()), rel=0.1)
    assert np.std(intervals.between(a, a).draws) == 0


@pytest.mark.parametrize(
    ("low", "high", "answer"),
    [
        (-0.02, 0.04, "like strangers"),
        (-0.2, -0.06, "like strangers, even less known"),
        (0.06, 0.2, "not forgotten"),
        (-0.1, 0.3, "not sure: perhaps not forgotten; more members or pairs, or a reference would tell"),
        (np.nan, np.nan, "not sure: perhaps not forgotten; more members or pairs, or a reference would tell"),
        (-0.3, 0.06, "not sure: that it is not forgotten cannot be excluded; more members or pairs, or a reference would tell"),
    ],
)
def test_only_more_than_strangers_is_a_fault(low, high, answer):
    gap = 0.1 if np.isnan(low) else (low + high) / 2
    found = Measure(0.5 + gap, gap=gap, gap_low=low, gap_high=high)
    row = strangers.row((UNKNOWN, "membership.cosine"), ("unlearned", "chance"), found, 0.05)
    assert row.answer == answer
    assert (row.value, row.reference, row.against) == (pytest.approx(0.5 + gap), pytest.approx(0.5), "chance")
    assert verdict.worse(row) == (gap > 0.05)
    assert (row.answer in verdict.GOOD) == answer.startswith("like")


def of(key, gap, low, high, question=UNKNOWN, against="strangers"):
    found = Measure(80 + gap, gap=gap, gap_low=low, gap_high=high)
    if question == AS_BEFORE:
        return verdict.row((question, key), Beside("unlearned", ("original",), {key: found}), 3.0, two_sided=False)
    return strangers.row((question, key), ("unlearned", against), found, 3.0)


def test_the_sentence_says_what_it_does_not_know():
    rows = [of("r1.forget", 1, -1, 2), of("r1.retain", -1, -2, 0, AS_BEFORE), of("r1.forget", 9, 5, 12, STILL)]
    assert opening.text(opening.sentence(rows, "full")) == (
        "Like strangers: 1 of 1 number within the limit beside strangers; the rest is kept: R@1 of the retain set is 79.0 %, "
        "1.0 points below what it was; after going on it is not like strangers: 1 of 1 number surely beyond its limit (R@1 of "
        "forget, 9.0 points above strangers); whether it is as if it had never been there is not known: nobody has retrained "
        "without it, which `ease reference RUN` does; 3 of 3 answers are sure: not asked by this full audit: cross-modal "
        "probes."
    )
    assert opening.sentence([of("r1.forget", 9, 5, 12)], "quick")[0].head == "Not forgotten"
    assert opening.sentence([of("r1.forget", 9, -5, 12)], "quick")[0].head == "Perhaps not forgotten"
    assert opening.sentence([of("r1.forget", -9, -12, -5)], "quick")[0].tone == "like"
    nobody = opening.sentence([of("r1.retain", -1, -2, 0, AS_BEFORE)], "quick")
    assert nobody[0].why == "nobody is left who could judge it"


# ---- whose pairs they are --------------------------------------------------------------------------------------------------


def asked(name, config, forget):
    """The samples of a client, and all its sets."""
    experiment = small_experiment(**config)
    client = Audit(experiment, name, data.load(experiment.data, experiment.seed), Memory())
    sets = client.data.evaluation("test", forget)
    return client._samples(sets, "test"), sets


def test_a_host_ranks_its_forgotten_pairs_among_its_own_test_pairs(tmp_path):
    write_photographs(tmp_path, train=12, val=3, test=5)
    host = {"data.kind": "folder", "data.names": "north,south", "forget.targets": "south", "data.root": str(tmp_path)}
    host["data.image_size"] = 64
    found, sets = asked("south", host, (ForgetSet(scenario="client", targets=("south",)),))
    assert set(found) == {"forget", "strangers"}  # it keeps nothing
    assert found["forget"].gallery is found["strangers"].gallery
    pairs = found["forget"].gallery.pairs
    assert len(pairs) == len(sets["forget"].query) + 5
    assert {pairs.captions[i][0].split()[0] for i in found["forget"].query} == {"train"}
    assert {pairs.captions[i][0] for i in found["strangers"].query} == {f"test {i} one" for i in range(5)}
    found, sets = asked("north", host, (ForgetSet(scenario="client", targets=("south",)),))
    assert set(found) == {"retain"}
    assert len(found["retain"].gallery.pairs) == len(sets["retain"].query) + 5
    found, _ = asked("north", host, (ForgetSet(scenario="class", targets=("a",)),))
    assert set(found) == {"forget", "strangers", "retain"}
    assert {found["forget"].gallery.pairs.labels[i] for i in found["forget"].query} == {"a"}
    assert {found["retain"].gallery.pairs.labels[i] for i in found["retain"].query} == {"b", "c"}


def test_strangers_of_the_built_in_world_are_people_whom_nobody_knows():
    found, sets = asked("client-0", {}, (ForgetSet(scenario="client", targets=("client-0",)),))
    assert found["forget"] is sets["forget_exclusive"]
    assert found["strangers"].gallery is sets["forget_exclusive"].gallery
    experiment = small_experiment()
    world = data.load(experiment.data, experiment.seed)
    public, queries = world.client("client-0").strangers("test")
    for pairs in (public, queries.gallery.pairs.take(queries.query)):
        assert set(pairs.labels) == {name for name, person in world.people.items() if not person.known_by}


# ---- a run -----------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def alone(home):
    """A run without a reference, which ends with a quick audit."""
    submit(settings(home / "alone", **{"audit.level": "quick"}))
    return home / "alone"


def written(folder, level=""):
    return json.loads((folder / (f"audit-{level}" if level else "") / "audit.json").read_text())


def test_a_run_without_a_reference_ends_with_an_audit(alone):
    found = written(alone)
    assert set(found["numbers"]) == {"original", "unlearned", "continued", "base"}
    assert found["adapters_sha256"] == read_results(alone)["adapters_sha256"]  # the base model is none of the run
    assert found["reference"] == {m: [] for m in found["numbers"]}
    rows = {(r["question"], r["what"]): r for r in found["verdict"]}
    attacks = [f"membership.{a}" for a in ("cosine", "changed", "logistic")]
    for question, who in ((UNKNOWN, "unlearned"), (STILL, "continued")):
        asked = [what for q, what in rows if q == question]
        assert asked == [*attacks, "similarity.forget", "r1.forget"]
        assert {rows[question, a]["against"] for a in attacks} == {"chance"}
        three = found["strangers"]["models"][who]
        assert rows[question, "r1.forget"]["reference"] == pytest.approx(three["r1.strangers"]["value"], abs=1e-5)
        assert rows[question, "r1.forget"]["value"] == pytest.approx(three["r1.forget"]["value"], abs=1e-5)
    assert [what for q, what in rows if q == AS_BEFORE] == ["r1.retain", "r1.neighbours", "r1.test"]
    text = (alone / "audit.md").read_text()
    assert strangers.HEAD in text
    assert "this is no comparison with retraining" in text
    assert "`ease reference RUN` trains one: 8 rounds (retrain 4, retrain_equal 2, retrain_continued 2) of 2 clients" in text
    assert "retrained, and" not in text
    table = (alone / "table.md").read_text()
    assert "No reference stands beside these models: `ease reference RUN` trains one" in table
    assert not RunLayout(alone).unknown()


def test_it_is_shown_and_signed(alone, tmp_path):
    run = shutil.copytree(alone, tmp_path / "run")
    assert "whether it is as if it had never been there is not known" in ease.open_run(run).verdict()
    page = report.of_run(run, pictures=False).read_text()
    assert "Nobody has trained a model again without it" in page
    assert '<figure id="samples">' in page
    assert "this is no comparison with retraining" in page
    assert "target: retrained" not in page
    key = tmp_path / "key.pem"
    envelope.keygen(key)
    said = envelope.opened(receipt.make(run, key))["predicate"]
    assert said["audit"]["reference"] == []
    assert said["not_shown"].endswith("so the audit sets it beside pairs that nobody trained on.")
    assert receipt.verify(run)


@pytest.mark.slow
@pytest.mark.usefixtures("in_process")
def test_a_full_audit_asks_more(alone, tmp_path):
    run = shutil.copytree(alone, tmp_path / "run")
    assert launcher.audit(run, "full", SIMULATION) == 0
    full = written(run, "full")
    assert {"probe", "relearn.5"} <= set(full["numbers"]["unlearned"])
    (probe,) = (r for r in full["verdict"] if r["what"] == "probe" and r["question"] == UNKNOWN)
    assert probe["against"] == "base"
    assert probe["reference"] == pytest.approx(full["numbers"]["base"]["probe"]["value"], abs=1e-5)
    assert full["asked"] == "full audit; not asked: cross-modal probes; no reference"
    assert current_audit(run, read_results(run))[0].parent.name == "audit-full"
    assert "target: retrained" not in (run / "report.html").read_text()  # with what was learnt again


@pytest.mark.usefixtures("in_process")
def test_references_are_not_trained_unasked(alone):
    with pytest.raises(ConfigError, match=r"--references 2: .*alone has none: `ease reference .*alone --count 2` trains them"):
        launcher.audit(alone, "quick", SIMULATION, references=2)


def test_where_its_host_has_left_the_others_say_what_they_can(alone, tmp_path):
    run = shutil.copytree(alone, tmp_path / "run")
    (run / "audit.json").unlink()
    told = {**json.loads((run / "run_config.json").read_text()), "run-dir": str(run / "audit-full"), "audit": "full"}
    grid = InProcessGrid(3, told)
    del grid.contexts[100]
    submit(told, grid)
    found = written(run, "full")
    assert {r["question"] for r in found["verdict"]} == {AS_BEFORE}
    assert found["strangers"]["way"] == {}
    assert set(found["strangers"]["models"]["unlearned"]) == {"similarity.retain", "r1.retain"}
    text = (run / "audit-full" / "audit.md").read_text()
    assert text.startswith("Nobody judged what was forgotten: no client that has such pairs (client-0) answers.")
    assert ease.open_run(run).verdict().startswith("Whether it is forgotten is not known: nobody is left who could judge it; ")
    assert report.of_run(run, pictures=False).is_file()


def test_everybody_is_asked_for_the_samples_and_nobody_for_what_needs_a_reference():
    assert all("three_samples" in asked for asked in ALONE.values())
    assert not {"alignment", "swapped", "cross_modal"} & set(ALONE["full"])


def test_the_limits_are_those_of_the_audit():
    own = {"unlearned": {"membership.cosine": Estimate(0.5)}}
    rows = strangers.rows(own, {"unlearned": THERE}, AuditConfig(auc=0.2, distance=0.3, recall=7))
    assert {r.what: r.threshold for r in rows} == {"membership.cosine": 0.2, "similarity.forget": 0.3, "r1.forget": 7}
