"""Sweeps: which cells are run, what is shown of them, and what failure leaves."""

import json

import pytest

from ease_flwr import launcher, sweep
from ease_flwr.core import config
from ease_flwr.sweep import ABLATION, Variant


def results(seed, value):
    sets = {s: {"r1": value} for s in ("forget_exclusive", "forget_shared", "forget", "retain", "test")}
    cost = {"client_steps": 10, "uplink_bytes": 6, "downlink_bytes": 4}
    return {
        "schema": 1,
        "seed": seed,
        "models": dict.fromkeys(("original", "retrain", "retrain_equal", "unlearned", "held", "retrain_held"), sets),
        "gaps": {"pair_similarity": value / 100},
        "cost": {"unlearn": cost, "retrain": {k: 4 * v for k, v in cost.items()}},
    }


@pytest.fixture
def cells(tmp_path, monkeypatch):
    """launcher.run replaced by one that notes what it is asked and writes results, or fails where tau is 0.7."""
    asked = []

    def run(experiment, strategy, seed, folder, fresh, settings, cpus, gpus):
        asked.append((strategy, seed, tuple(settings)))
        folder.mkdir()
        print("chatter")
        if "strategy.tau=0.7" in settings:
            (folder / "state.json").write_text(json.dumps({"status": "failed", "error": "RuntimeError: full"}))
            return 1
        (folder / "results.json").write_text(json.dumps(results(seed, 10.0 * (1 + seed))))
        return 0

    monkeypatch.setattr(launcher, "run", run)
    return asked


VARIANTS = (Variant("EASE"), Variant("tau 0.7", settings={"strategy.tau": 0.7}), Variant("fine-tuning", "finetune"))


def test_finished_cells_are_kept_failed_ones_shown_and_tried_again(cells, tmp_path, capsys):
    lines = []
    found = sweep.run("personas", VARIANTS, [0, 1], tmp_path, ["learn.rounds=2"], lines.append)
    assert [(a[0], a[1]) for a in cells] == [(s, n) for n in (0, 1) for s in ("ease", "ease", "finetune")]
    assert cells[1][2] == ("learn.rounds=2", "strategy.tau=0.7")
    assert found["tau 0.7"][0] == {"failed": "failed: RuntimeError: full"}
    assert lines[1].startswith("[2/6] seed 0, tau 0.7: failed: RuntimeError: full, ETA")
    assert "chatter" not in capsys.readouterr().out
    sweep.run("personas", VARIANTS, [0, 1], tmp_path, [], lines.append)
    assert len(cells) == 6 + 2
    assert lines[6] == "[1/6] seed 0, EASE: done (was there)"
    table = sweep.table(found)
    assert "| EASE | 15.0 ± 7.1 |" in table
    assert "| tau 0.7 | failed: RuntimeError: full |" in table
    assert table.splitlines()[-1].endswith("| 0.150 ± 0.071 | 25.0 | 25.0 |")
    assert len({line.count("|") for line in table.splitlines() if "s_retrain" not in line}) == 1


def test_every_variant_is_a_valid_setting_and_has_a_folder_of_its_own():
    from strategies import load

    variants = [v for group in ABLATION.values() for v in group]
    assert len({v.folder for v in variants}) == len(variants)
    for variant in variants:
        experiment = config.load("personas", variant.settings)
        params = load(variant.strategy).Params
        config.validate(params, config.strategy_values(variant.strategy, experiment), variant.label)
