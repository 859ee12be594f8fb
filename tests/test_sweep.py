"""Sweeps: which cells are run, what is shown of them, and what failure leaves."""

import json
import re
from operator import attrgetter

import pytest
from ease_flwr.strategies import load
from hypothesis import given, settings
from hypothesis import strategies as st

from ease_flwr import config, data
from ease_flwr.config import ConfigError
from ease_flwr.sweep import ablation, cells, comparison, tuning
from ease_flwr.sweep.cells import Sweep, Variant


def results(seed, value, rounds=8):
    """A run in which unlearned is `value` on every set, and retrain 10."""
    models = {m: {s: {"r1": v} for s in cells.SHOWN} for m, v in (("original", 90.0), ("retrain", 10.0), ("unlearned", value))}
    models |= {"continued": models["unlearned"], "retrain_equal": models["retrain"], "retrain_continued": models["retrain"]}
    cost = {"rounds": rounds, "client_steps": 10 * rounds, "uplink_bytes": 6 * rounds, "downlink_bytes": 4 * rounds}
    return {
        "schema": 2,
        "seed": seed,
        "models": models,
        "requests": [{"server_bytes": 2_500_000}],
        "gaps": {"pair_similarity": value / 100, "forget_normalised": value / 80},
        "learning": {"rounds": 50},
        "gaps_retrain_2_to_retrain": {**dict.fromkeys(cells.SHOWN, 1.0 + seed), "pair_similarity": 0.02},
        "cost": {"unlearn": cost, "retrain": dict.fromkeys(cost, 320)},
    }


def begun(sweep, variant, seed, where):
    """What a run writes of itself when it begins."""
    where.mkdir(parents=True, exist_ok=True)
    loaded = sweep.asked(variant)[0].model_copy(update={"seed": seed})
    said = {**loaded.model_dump(mode="json"), "strategy_name": variant.strategy, "code": config.code_hash()}
    (where / "experiment.json").write_text(
        json.dumps({**said, "files": data.fingerprint(loaded) if loaded.data.kind == "personas" else ""})
    )


@pytest.fixture
def asked(monkeypatch):
    """A cell writes results: 10 more than its seed; it fails where tau is 0.7."""
    seen = []

    def run_cell(sweep, variant, seed, where, family):
        seen.append((variant.label, seed, tuple(sweep.assignments)))
        begun(sweep, variant, seed, where)
        if variant.settings.get("strategy.gsd.tau") == 0.7:
            (where / "state.json").write_text(json.dumps({"status": "failed", "error": "RuntimeError: full"}))
        else:
            rounds = variant.settings.get("strategy.rounds", 40 if variant.strategy == "retrain" else 8)
            (where / "results.json").write_text(json.dumps(results(seed, 10.0 + seed, rounds)))

    monkeypatch.setattr(cells, "_run_cell", run_cell)
    return seen


VARIANTS = (Variant("EASE"), Variant("tau 0.7", settings={"strategy.gsd.tau": 0.7}), Variant("fine-tuning", "finetune"))


def test_finished_cells_are_kept_failed_ones_shown_and_tried_again(asked, tmp_path):
    lines = []
    found = cells.run(Sweep("personas", [0, 2], tmp_path, ["learn.rounds=2"], lines.append), VARIANTS)
    assert [a[:2] for a in asked] == [
        *(("EASE", 0), ("EASE", 2)),  # the first of each seed leaves its learnt federation to the others
        *((label, seed) for seed in (0, 2) for label in ("tau 0.7", "fine-tuning")),
    ]
    assert asked[0][2] == ("learn.rounds=2",)
    assert found["tau 0.7"][0] == {"failed": "failed: RuntimeError: full"}
    assert lines[0] == f"6 cells, each a run of its own in {tmp_path}"
    assert lines[3].startswith("[3/6] seed 0, tau 0.7: failed: RuntimeError: full, ETA")
    cells.run(Sweep("personas", [0, 2], tmp_path, ["learn.rounds=2"], lines.append), VARIANTS)
    assert len(asked) == 6 + 2
    assert lines[8] == "[1/6] seed 0, EASE: done (was there)"
    table = ablation.table(found)
    assert "| EASE | 11.0 ± 1.4 |" in table
    assert "| tau 0.7 | failed: RuntimeError: full |" in table
    assert table.splitlines()[-1].endswith("| 0.110 ± 0.014 | 25.0 | 12.5 |")
    assert len({line.count("|") for line in table.splitlines()}) == 1
    found["fine-tuning"][2] = {"failed": "failed: RuntimeError: full"}  # a mean of fewer seeds says so, in both kinds of tables
    for text in (ablation.table(found), comparison.table(found)):
        assert re.search(r"\| fine-tuning \| .* \(1 seeds\) \|$", text, re.MULTILINE)
        assert text.count(" seeds) |") == 1


def test_cells_run_side_by_side_give_the_same(asked, tmp_path):
    one = cells.run(Sweep("personas", [0, 1, 2], tmp_path / "one"), VARIANTS)
    assert cells.run(Sweep("personas", [0, 1, 2], tmp_path / "four", jobs=4), VARIANTS) == one


def test_a_wrong_setting_of_any_cell_is_said_before_anything_runs(asked, tmp_path):
    with pytest.raises(ConfigError, match=r"strategy finetune: unknown key gsd \(known: rounds, lr_end\)"):
        cells.run(Sweep("personas", [0], tmp_path), [*VARIANTS, Variant("wrong", "finetune", {"strategy.gsd.tau": 1})])
    with pytest.raises(ConfigError, match="strategy federaser cannot forget a class, only: client"):
        cells.run(Sweep("personas_class", [0], tmp_path), [Variant("federaser", "federaser")])
    assert not asked


def test_every_variant_is_a_valid_setting_and_has_a_folder_of_its_own():
    variants = [v for group in ablation.ABLATION.values() for v in group]
    assert len({v.folder for v in variants}) == len(variants)
    for variant in variants:
        load(variant.strategy).check(variant.strategy, config.load("personas", dict(variant.settings)), "client")


def test_comparison_at_equal_traffic_and_with_own_budgets(asked, tmp_path):
    lines = []
    tables = comparison.compare(Sweep("personas", [0, 2], tmp_path, say=lines.append), ["ease", "retrain"])
    assert [line.split()[0] for line in lines[1:]] == [f"[{k}/6]" for k in range(1, 7)]  # both tables are counted together
    labels = [(label, seed) for label, seed, _ in asked]
    assert labels == [
        *(("ease", 0), ("ease", 2), ("retrain", 0), ("retrain", 2)),
        *(("retrain, 7 exchanges", 0), ("retrain, 7 exchanges", 2)),  # EASE's own budget is the equal one: not run twice
    ]
    assert tables["equal"]["ease"] is tables["own"]["ease"]
    own = comparison.table(tables["own"])
    assert (
        "| ease | +1.0 ± 1.4 | +1.0 ± 1.4 | +1.0 ± 1.4 | +1.0 ± 1.4 | +0.14 ± 0.02 | 0.110 ± 0.014 | 8 | 25.0 | 12.5 | 2.5 |"
        in own
    )
    assert "| retrain (again: noise floor) |" in own
    assert "- original: forget_exclusive 90.0 ± 0.0" in own
    s = "forget_exclusive 1.6, forget_shared 1.6, retain 1.6, test 1.6, pair_similarity 0.014"  # sqrt((1 + 9) / 2 / 2)
    assert own.splitlines()[-1] == f"- s, the noise of one training, from 2 cells with two retrainings: {s}"
    assert all("evaluation.references=2" in assignments for _, _, assignments in asked)
    lines = comparison.rows(tables).splitlines()
    assert lines[0].startswith("budget,strategy,seed,forget_exclusive minus retrain")
    assert "equal,retrain,2,2.0,2.0,2.0,2.0,0.12,7,70,42,28," in lines
    assert len(lines) == 1 + 2 * 2 * 2


def test_photographs_always_have_their_ceiling(asked, tmp_path):
    """At the equal number of exchanges and with its own; said in the table as it is, beside the difference."""
    tables = comparison.compare(Sweep("flickr8k", [0], tmp_path), ["ease"])
    assert [label for label, _, _ in asked] == ["ease", "finetune"]
    text = comparison.table(tables["equal"])
    assert "| finetune (ceiling of what is kept) | +0.0 |" in text
    assert "\n- ceiling, finetune after 8 exchanges: retain 10.0, test 10.0\n" in text
    asked.clear()
    comparison.compare(Sweep("flickr8k", [0], tmp_path / "named"), ["finetune", "ease"])
    assert [label for label, _, _ in asked] == ["finetune", "ease"]
    assert "ceiling" not in comparison.table({"npo": {0: results(0, 10.0)}})


def test_a_budget_in_bytes_gives_dear_exchanges_fewer(monkeypatch, asked, tmp_path):
    def run_cell(sweep, variant, seed, where, family):
        begun(sweep, variant, seed, where)
        value = results(seed, 10.0)
        value["cost"]["unlearn"]["downlink_bytes"] *= 6 if variant.strategy == "npo" else 1
        (where / "results.json").write_text(json.dumps(value))
        asked.append(variant.label)

    monkeypatch.setattr(cells, "_run_cell", run_cell)
    lines = []
    comparison.compare(Sweep("personas", [0], tmp_path, say=lines.append), ["ease", "npo"], budget="bytes")
    assert [line.split()[0] for line in lines[1:]] == ["[1/2]", "[2/2]", "[3/3]"]  # what fits is known when the bytes are
    assert asked == ["ease", "npo", "npo, 2 exchanges"]  # seven times ten bytes, at thirty an exchange


def test_differences_are_marked_where_they_are_worse():
    """Ten points below retraining: too much forgotten, and lost. Ten above: too little forgotten, and no fault."""
    below, above = (comparison.table({"npo": {0: results(0, value)}}) for value in (0.0, 20.0))
    assert "| npo | -10.0 ! | -10.0 ! | -10.0 ! | -10.0 ! |" in below
    assert "| npo | +10.0 ! | +10.0 ! | +10.0 | +10.0 |" in above
    assert below.startswith(
        "R@1, model minus reference (of several retrainings the mean); ! is beyond the limit of the audit and worse."
    )
    once = {k: v for k, v in results(0, 0.0).items() if k != "gaps_retrain_2_to_retrain"}
    assert "noise of one training: unknown, there is one retraining a seed" in comparison.table({"npo": {0: once}})


SOME = st.sets(st.sampled_from(cells.SHOWN), max_size=3).map(lambda gone: [s for s in cells.SHOWN if s not in gone])


@settings(max_examples=20, deadline=None)
@given(judged=st.lists(SOME, min_size=1, max_size=3), similar=st.booleans())
def test_seeds_that_judge_different_sets_are_shown_by_what_all_judge(tmp_path_factory, judged, similar):
    """One seed splits what is forgotten, another has nobody who shares it: a table is for all of them, and names the rest."""
    found = {}
    for seed, sets in enumerate(judged):
        found[seed] = results(seed, 12.0)
        found[seed]["models"] = {m: {s: of[s] for s in sets} for m, of in found[seed]["models"].items()}
        if not similar:
            del found[seed]["gaps"]["pair_similarity"]
    some = [s for s in cells.SHOWN if 0 < sum(s in sets for sets in judged) < len(judged)]
    for text in (comparison.table({"ease": found}), ablation.table({"EASE": found})):
        head = next(line for line in text.splitlines() if line.startswith("| "))
        for s in cells.SHOWN:
            shown = all(s in sets for sets in judged) and (s != "forget" or not all("forget_exclusive" in x for x in judged))
            assert bool(re.search(rf"[| ]{s} \|", head)) == shown
        assert (f"- left out, since not every cell judges it: {', '.join(some)}\n" in text) == bool(some)
    assert len(comparison.rows({"own": {"ease": found}}).splitlines()) == 1 + len(judged)
    if all("retain" in sets for sets in judged):
        folder = tmp_path_factory.mktemp("comparison")
        (folder / "comparison.json").write_text(json.dumps({"equal": {"ease": found}, "own": {"ease": found}}))
        assert comparison.report(folder).is_file()


def test_comparison_shows_failures():
    assert comparison.table({"ease": {0: {"failed": "failed: full"}}}) == "no cell finished\n"
    mixed = {"ease": {0: results(0, 10.0)}, "npo": {0: {"failed": "failed: full"}}}
    assert "| npo | failed: full |" in comparison.table(mixed)
    assert "npo,0,,,,,,,,,,failed: full" in comparison.rows({"own": mixed})


def test_tuning_tries_the_defaults_first_and_no_more_than_the_budget():
    experiment = config.load("personas")
    for name in ("ease", "npo", "finetune", "cliperase"):
        found = tuning.trials(name, experiment, 4)
        defaults = load(name).check(name, experiment, "client")
        assert all(attrgetter(k.removeprefix("strategy."))(defaults) == v for k, v in found[0].settings.items())
        assert 1 <= len({v.label for v in found}) == len(found) <= 4
        assert tuning.trials(name, experiment, 4) == found
        for trial in found:
            load(name).check(name, config.load("personas", dict(trial.settings)), "client")
    assert len(tuning.trials("finetune", experiment, 4)) == 1
    assert {tuple(v.settings.items()) for v in tuning.trials("ease", experiment, 4)} == {
        (("strategy.projection", share),) for share in (0.05, 0.1, 0.25)
    }


def test_score_counts_too_much_forgetting_but_no_gain():
    run = results(0, 10.0)
    run["models"]["unlearned"] = {s: {"r1": v} for s, v in zip(cells.SHOWN, (4.0, 8.0, 0.0, 15.0, 7.0), strict=True)}
    assert tuning.score(run) == pytest.approx((6 + 2 + 0 + 3) / 4)


def test_tuning_marks_the_best_trial_of_each_method(asked, tmp_path):
    found = tuning.tune(Sweep("personas", [3], tmp_path), ["npo"], 2)
    assert {a[2] for a in asked} == {(*comparison.QUICK, "evaluation.split=validation")}
    text = tuning.table(found, 2)
    assert text.startswith("At most 2 trials a method")
    assert text.count("| npo | **") == 1
    (best,) = [v.label for v in tuning.trials("npo", config.load("personas"), 1)]
    (other,) = found.keys() - {best}
    found[other][3] = {"failed": "failed: full"}
    text = tuning.table(found, 2)
    assert (text.count("| failed |"), text.count("| npo | **")) == (1, 1)
    found[best][3] = {"failed": "failed: full"}
    text = tuning.table(found, 2)
    assert (text.count("| failed |"), text.count("**")) == (2, 0)
