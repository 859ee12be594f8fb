"""A reference that is asked for when a run has finished: the same bits, and no reference for other requests."""

import json
import shutil

import pytest
from typer.testing import CliRunner

import ease_flwr as ease
from ease_flwr import launcher
from ease_flwr.audit import references
from ease_flwr.audit.references import Wanted
from ease_flwr.audit.summary import current_audit, read_results
from ease_flwr.cli import app
from ease_flwr.config import ConfigError
from ease_flwr.store import phases, queue
from ease_flwr.store.files import locked
from ease_flwr.store.layout import RunLayout
from ease_flwr.store.queue import Step
from tests import in_process_grid
from tests.in_process_grid import submit
from tests.small import hashes, settings
from tests.standing import SIMULATION, ask, copy, die, enqueue, leaves

pytestmark = pytest.mark.usefixtures("in_process")
MODELS = ["original", "retrain", "retrain_equal", "unlearned_1", "unlearned", "continued", "retrain_continued"]


@pytest.fixture(scope="module")
def begun_with_one(home):
    """The run of `whole`, begun with a reference."""
    submit(settings(home / "begun", **{"forget.then": "client-1", "evaluation.reference": "retrain"}))
    return home / "begun"


def alone(whole, tmp_path, monkeypatch):
    """A copy of `whole`, which has none, where nothing can be taken from the cache."""
    monkeypatch.setenv("EASE_FLWR_HOME", str(tmp_path / "home"))
    return copy(whole, tmp_path / "run")


def ids(run):
    return [r.id for _, r in queue.served(run)]


def mortal(monkeypatch, lives):
    """The next submission dies when messages are sent for the n-th time; those after it live."""
    lived = launcher.submit

    def submitted(run_config, experiment, folder, where):
        monkeypatch.setattr(launcher, "submit", lived)
        assert die(run_config, lives)
        return 1

    monkeypatch.setattr(launcher, "submit", submitted)


@pytest.mark.slow
def test_it_is_the_reference_of_a_run_that_was_begun_with_one(whole, begun_with_one, tmp_path, monkeypatch, capsys):
    run = alone(whole, tmp_path, monkeypatch)
    before = hashes(run)
    assert launcher.reference(run, 0, SIMULATION) == 0
    said = capsys.readouterr().out
    price = f"reference of {' and '.join(ids(run))}: 10 rounds (retrain 4, retrain_equal 4, retrain_continued 2) of 1 client, "
    assert said.index(price) < said.index("run directory")  # before anybody is asked anything
    assert hashes(run) == hashes(begun_with_one)
    assert before.items() <= hashes(run).items()
    assert list(read_results(run)["models"]) == MODELS
    assert read_results(run)["gaps"] == read_results(begun_with_one)["gaps"]
    assert "| retrain |" in (run / "table.md").read_text()
    assert "No reference stands" not in (run / "table.md").read_text()
    assert {p.name for p in (run / "adapters").iterdir()} == set(MODELS)
    assert json.loads((run / "references.json").read_text()) == {"requests": ids(run), "count": 1, "continued": 2}
    assert not RunLayout(run).unknown()

    monkeypatch.setattr(in_process_grid.InProcessGrid, "push_messages", None)  # nobody is asked again
    assert launcher.reference(run, 0, SIMULATION) == 0
    assert f"{run} has its reference of {' and '.join(ids(run))}: retrain, retrain_equal" in capsys.readouterr().out
    assert launcher.resume(run, SIMULATION) == 0


@pytest.mark.slow
@pytest.mark.parametrize("again", ["resume", "reference"])
def test_killed_in_the_middle_it_goes_on(whole, begun_with_one, tmp_path, monkeypatch, again):
    run = alone(whole, tmp_path, monkeypatch)
    mortal(monkeypatch, 5)  # who is there, what they have, two rounds
    assert launcher.reference(run, 0, SIMULATION) == 1
    assert list(run.glob("journal/retrain-2/*"))
    assert "retrain" not in hashes(run)
    going_on = launcher.resume if again == "resume" else lambda run, where: launcher.reference(run, 0, where)
    assert going_on(run, SIMULATION) == 0
    assert hashes(run) == hashes(begun_with_one)
    assert "[retrain-2] goes on after" in (run / "log.txt").read_text()


@pytest.mark.slow
def test_it_is_none_for_a_later_request(learnt, tmp_path, monkeypatch):
    """It leaves the tables and the models, which say whose it was; asked again, one is trained for both."""
    run = copy(learnt, tmp_path / "run")
    assert ask(run, leaves("client-0")) == 0
    assert launcher.reference(run, 0, SIMULATION) == 0
    (first,), theirs = ids(run), hashes(run)["retrain"]
    assert ask(run, leaves("client-1")) == 0
    assert not {"retrain", "retrain_equal"} & set(hashes(run))
    assert not (run / "adapters" / "retrain").exists()
    both = " and ".join(ids(run))
    told = (
        f"The reference of this run was trained without what {first} asked, and is none for {both}: `ease reference RUN` trains"
    )
    assert told in (run / "table.md").read_text()
    assert launcher.reference(run, 0, SIMULATION) == 0
    assert hashes(run)["retrain"] != theirs
    assert {"retrain", "retrain-2"} <= {p.name for p in (run / "phases").iterdir()}
    assert references.read(run).requests == tuple(ids(run))


@pytest.mark.slow
def test_going_on_afterwards_trains_nothing_unasked(learnt, tmp_path, capsys):
    run = copy(learnt, tmp_path / "run")
    ask(run, leaves("client-0"))
    launcher.reference(run, 2, SIMULATION)
    assert {"retrain", "retrain_2", "retrain_equal"} <= set(hashes(run))
    launcher.continue_training(run, 1, SIMULATION)
    assert {"retrain", "retrain_2", "retrain_equal"} <= set(hashes(run))
    assert "retrain_continued" not in hashes(run)
    capsys.readouterr()
    launcher.reference(run, 0, SIMULATION)
    assert ": 1 round (retrain_continued 1) of 2 clients" in capsys.readouterr().out
    assert {"retrain_2", "retrain_continued"} <= set(hashes(run))


@pytest.mark.slow
def test_the_audit_with_a_reference_goes_first(learnt, tmp_path):
    """A full one of before says less than a quick one that has it."""
    run = copy(learnt, tmp_path / "run")
    ask(run, leaves("client-0"))
    assert launcher.audit(run, "quick", SIMULATION) == 0
    shutil.copytree(run / "audit-quick", run / "audit-full")
    old = json.loads((run / "audit-full" / "audit.json").read_text())
    (run / "audit-full" / "audit.json").write_text(json.dumps({**old, "level": "full", "at": "9999"}))
    launcher.reference(run, 0, SIMULATION)
    assert current_audit(run, read_results(run))[0] == run / "audit-full" / "audit.json"
    assert launcher.audit(run, "quick", SIMULATION) == 0
    file, found = current_audit(run, read_results(run))
    assert file == run / "audit-quick" / "audit.json"
    assert found["reference"]["unlearned"] == ["retrain"]
    assert "strangers" not in ease.open_run(run).verdict()


# ---- what it costs ---------------------------------------------------------------------------------------------------------


def test_the_price_by_hand(tmp_path):
    """Learning: 10 rounds of 4 clients. One has left: three quarters a round. All train at once: time goes by rounds."""
    spent = {
        "rounds": 10,
        "client_steps": 800,
        "uplink_bytes": 40e6,
        "downlink_bytes": 80e6,
        "seconds": 7000,
        "server_seconds": 200,
    }
    for name, content in {"learn": {"cost": spent}, "forget": {"facts": {"departed": ["a"], "rounds": 5}}}.items():
        (tmp_path / "phases" / name).mkdir(parents=True)
        phases.write_file(tmp_path / "phases" / name, content)
    asked = {"scenario": "client", "targets": ["a"], "id": "x", "strategy": "ease", "received": ""}
    steps = [Step(kind="learn"), Step(kind="forget", request=asked)]
    queue.write(tmp_path, steps)
    wanted = Wanted(requests=("x",), count=2)
    trainings = references.trainings(tmp_path, wanted, equal=True)
    assert [(t.phase, t.rounds) for t in trainings] == [("retrain", 10), ("retrain_2", 10), ("retrain_equal", 5)]
    assert references.price(tmp_path, trainings, 4) == (
        "25 rounds (retrain 10, retrain_2 10, retrain_equal 5) of 3 clients, about 1,500 client steps, 75.0 MB up, 150.0 MB "
        "down and 5.0 hours"
    )
    assert references.price(tmp_path, trainings[2:], 4).endswith("15.0 MB up, 30.0 MB down and 60 minutes")


def test_the_price_alone(whole, tmp_path):
    run = copy(whole, tmp_path / "run")
    said = CliRunner().invoke(app, ["reference", str(run), "--count", "2", "--dry-run"])
    assert said.exit_code == 0
    assert "(retrain 4, retrain_2 4, retrain_equal 4, retrain_continued 2)" in said.output
    assert not (run / "references.json").exists()


# ---- bad input -------------------------------------------------------------------------------------------------------------


def refused(run, *more):
    said = CliRunner().invoke(app, ["reference", str(run), *more])
    assert said.exit_code == 2
    return said.output


def test_bad_input_is_one_line(learnt, whole, tmp_path):
    assert "no run there: give the folder of one" in refused(tmp_path)
    assert "nothing was forgotten there yet, so nothing is to be learnt again without it" in refused(learnt)
    run = copy(whole, tmp_path / "run")
    with locked(run / "run.lock"):
        assert "is in use by another process: wait until that has ended, or end it" in refused(run)
    (run / "references.json").write_text('{"count": 0}')
    assert "references.json: " in (line := refused(run))
    assert f"remove it, and ask again with `ease reference {run}`" in line
    (run / "references.json").unlink()
    with pytest.raises(ConfigError, match="count=-1: give the number of retrainings, 1 or more"):
        ease.open_run(run).reference(-1)
    assert not (run / "references.json").exists()
    unfinished = copy(learnt, tmp_path / "unfinished")
    enqueue(unfinished, leaves("client-0"))
    assert f"{unfinished}: forget is not done: `ease resume {unfinished}` first" in refused(unfinished)
