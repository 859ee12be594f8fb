"""Retraining twice: the second differs by its order of data alone, and every page sets a model beside the mean of both."""

import json
import shutil

import pytest
from ease_flwr.clients.contrastive import Contrastive
from typer.testing import CliRunner

from ease_flwr import data, launcher
from ease_flwr.audit import noise
from ease_flwr.audit.retrieval import signed
from ease_flwr.audit.summary import current_audit, summary
from ease_flwr.cli import app
from ease_flwr.config import APP, AuditConfig
from ease_flwr.exchange.messages import Learn
from ease_flwr.store.layout import RunLayout
from ease_flwr.sweep import comparison
from ease_flwr.sweep.cells import shown_sets
from tests.in_process_grid import submit
from tests.small import SMALL, small_experiment
from tests.standing import SIMULATION
from tests.test_bilateral import Memory
from tests.test_run import play

SHORT = {**SMALL, "learn.rounds": 3, "strategy.rounds": 2, "continuation.rounds": 1, "audit.level": "quick"}


@pytest.fixture(scope="module", autouse=True)
def _no_file_of_noise():
    """Whatever has been measured of the built-in world: here runs speak for themselves."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(noise, "file_of", lambda experiment: APP / "conf" / "noise" / f"small-{experiment}.json")
        yield


def written(folder, name):
    return json.loads((folder / f"{name}.json").read_text())


@pytest.fixture(scope="module")
def once(home):
    """A run with one retraining, audited again beside two."""
    play(home / "once", set=" ".join(f"{k}={v}" for k, v in SHORT.items()))
    settings = written(home / "once", "run_config")
    twice = f"{settings['set']} evaluation.references=2"
    submit({**settings, "set": twice, "fresh": True, "run-dir": str(home / "once" / "audit-quick"), "audit": "quick"})
    return home / "once"


@pytest.fixture(scope="module")
def both(home, once):
    """A run with two."""
    play(home / "both", fresh=True, set=" ".join(f"{k}={v}" for k, v in {**SHORT, "evaluation.references": 2}.items()))
    return home / "both"


def test_order_changes_the_order_of_data_and_nothing_else():
    experiment = small_experiment()
    client = Contrastive(experiment, "client-0", data.load(experiment.data, experiment.seed), Memory())
    first, second, third = (client._seed(Learn(phase="learn", round=1, train=experiment.learn, order=k)) for k in range(3))
    assert first == client._seed(Learn(phase="learn", round=1, train=experiment.learn))
    assert len({first, second, third}) == 3


@pytest.mark.slow
def test_a_second_retraining_is_trained_for_an_audit_as_a_run_trains_it(once, both, tmp_path):
    """Bitwise; all other models are what they are without it."""
    audit, results, own = written(once / "audit-quick", "audit"), written(once, "results"), written(both, "results")
    assert audit["trained"] == ["retrain_2"]
    assert own["adapters_sha256"] == {**results["adapters_sha256"], "retrain_2": audit["adapters_sha256"]["retrain_2"]}
    assert own["adapters_sha256"]["retrain"] != own["adapters_sha256"]["retrain_2"]
    assert list(own["models"])[:4] == ["original", "retrain", "retrain_2", "retrain_equal"]
    assert written(both, "audit")["numbers"] == audit["numbers"]
    assert own["cost"]["retrain_2"]["client_steps"] == own["cost"]["retrain"]["client_steps"]
    assert not RunLayout(once).unknown()
    shutil.copy(once / "results.json", tmp_path)
    (tmp_path / "audit-quick").mkdir()
    shutil.copy(once / "audit-quick" / "audit.json", tmp_path / "audit-quick")
    assert current_audit(tmp_path, results)[0] == tmp_path / "audit-quick" / "audit.json"


@pytest.mark.slow
def test_a_verdict_says_where_its_noise_comes_from(once, both):
    alone, own = written(once, "audit"), written(both, "audit")
    quick = "quick audit; not asked: relearning, cross-modal probes, linear probe; "
    assert alone["asked"] == quick + "noise s unknown: one retraining, no conf/noise/small-personas.json"
    assert {(row["noise"], row["cells"]) for row in alone["verdict"]} == {(None, 0)}
    assert own["asked"] == quick + "noise s from this run's two retrainings alone"
    assert own["reference"]["unlearned"] == ["retrain", "retrain_2"]
    assert {row["against"] for row in own["verdict"]} == {"retrain and retrain_2", "retrain_equal", "retrain_continued"}
    assert f"answers say so ({own['asked']})" in (both / "audit.md").read_text()
    for row in own["verdict"]:
        again = own["numbers"]["retrain_2"][row["what"]]
        d = again["value"] if row["what"].startswith("distance") else again["gap"]
        assert (row["noise"], row["cells"]) == (pytest.approx(abs(d) / 2**0.5, abs=1e-5), 1)
        assert row["high"] is None or row["high"] - row["gap"] >= 1.96 * row["noise"] - 1e-9


@pytest.mark.slow
def test_every_page_has_the_same_sign(both):
    """unlearned minus the mean of both retrainings: in results.json, table.md, summary, compare, the audit and the noise."""
    results, audit = written(both, "results"), written(both, "audit")
    models = {m: {s: found["r1"] for s, found in sets.items()} for m, sets in results["models"].items()}
    compared = comparison.differences(results, shown_sets([results]))
    table, text = (both / "table.md").read_text(), summary([both])
    assert results["limits"] == {"recall": 3.0, "retained": 3.0}
    for name, value in models["unlearned"].items():
        d = value - (models["retrain"][name] + models["retrain_2"][name]) / 2
        shown = signed(name, d, AuditConfig())
        assert shown.startswith(f"{d:+.1f}")
        assert results["gaps"][name] == pytest.approx(d)
        assert compared.get(name, d) == pytest.approx(d)
        assert audit["numbers"]["unlearned"][f"r1.{name}"]["gap"] == pytest.approx(d, abs=1e-5)
        assert f"{name} {shown}" in next(line for line in table.splitlines() if line.startswith("unlearned minus retrain and"))
        assert f"{d:+.1f}, {shown} |" in next(line for line in text.splitlines() if "unlearned minus retrain |" in line)
        again = models["retrain_2"][name] - models["retrain"][name]
        assert results["gaps_retrain_2_to_retrain"][name] == pytest.approx(again)
        assert audit["numbers"]["retrain_2"][f"r1.{name}"]["gap"] == pytest.approx(again, abs=1e-5)
        equal = value - models["retrain_equal"][name]
        assert results["gaps_unlearned_to_retrain_equal"][name] == pytest.approx(equal)
        for row in audit["verdict"]:
            if (row["what"], row["model"]) == (f"r1.{name}", "unlearned"):
                assert row["gap"] == pytest.approx(equal if row["against"] == "retrain_equal" else d)
    assert set(compared) == {"forget_exclusive", "forget_shared", "retain", "test"}


@pytest.mark.slow
@pytest.mark.usefixtures("in_process")
def test_a_full_audit_has_two_retrainings_and_a_quick_one_what_is_there(once, capsys):
    quick = written(once / "audit-quick", "audit")
    assert launcher.audit(once, "full", SIMULATION) == 0
    full = written(once / "audit-full", "audit")
    assert "[retrain_2] from the cache: 3 rounds" in capsys.readouterr().out
    assert full["trained"] == ["retrain_2"]
    assert full["adapters_sha256"] == quick["adapters_sha256"]
    assert {"relearn.1", "relearn.area", "cross.text", "probe"} <= set(full["numbers"]["unlearned"])
    assert full["asked"] == "full audit; noise s from this run's two retrainings alone"
    assert launcher.audit(once, "full", SIMULATION, references=1) == 0
    assert written(once / "audit-full", "audit")["reference"]["unlearned"] == ["retrain"]
    assert launcher.audit(once, "quick", SIMULATION) == 0
    assert written(once / "audit-quick", "audit")["trained"] == []


@pytest.mark.slow
def test_the_command_that_pools_noise(both, tmp_path):
    said = CliRunner().invoke(app, ["noise", str(both), "--to", str(tmp_path / "personas.json")])
    assert said.exit_code == 0
    found = json.loads((tmp_path / "personas.json").read_text())
    assert (found["experiment"], found["cells"], found["seeds"]) == ("personas", 1, [0])
    d = written(both, "results")["gaps_retrain_2_to_retrain"]["retain"]
    assert found["numbers"]["r1.retain"] == {"s": pytest.approx(abs(d) / 2**0.5, abs=1e-5), "cells": 1}
    assert "cells: 1, seeds: 0, in" in said.output
    said = CliRunner().invoke(app, ["noise", str(tmp_path)])
    assert said.exit_code == 2
    assert "no audited run there has two retrainings" in said.output
