"""Hosts with data of their own: pairs by content, data that change, what was withdrawn, hosts that come and go."""

import json

import pytest
from ease_flwr.strategies import gsd
from typer.testing import CliRunner

from ease_flwr import cli, launcher
from ease_flwr.config import ConfigError, ForgetConfig
from ease_flwr.hosts import connected
from ease_flwr.hosts.simulation import Where
from ease_flwr.launcher import Asked
from ease_flwr.store import clients, queue
from ease_flwr.store.files import home as where_runs_are
from tests.hosts import LATE, NAMES, Federation, fingerprint, log, remembered


@pytest.fixture
def federation(tmp_path, monkeypatch):
    monkeypatch.setenv("EASE_FLWR_HOME", str(tmp_path / "home"))
    found = Federation(tmp_path, monkeypatch)
    monkeypatch.setattr(launcher, "submit", found.submitted)
    return found


def ask(run, scenario, *targets, strategy="finetune", **how):
    return launcher.forget(
        run, Asked(ForgetConfig(scenario=scenario, targets=targets), strategy, ("rounds=1",), **how), Where("ease")
    )


def last_trained(federation, host):
    """Ids that a host trained on in the last process."""
    return {i for run, name, i in federation.trained if name == host and run == federation.at_work}


def test_a_pair_is_the_same_pair_wherever_it_stands(federation):
    """Positions would have meant another photograph."""
    run, south = federation.learn("run"), federation.hosts["south"]
    row = south.train[2]
    wanted = south.id(row)
    south.reverse()
    south.rename(row, "another-name.png")
    south.remove(south.train[0])
    assert south.train[2][0] != "another-name.png"
    federation.trained.clear()
    assert ask(run, "sample", f"south/{wanted}") == 0
    assert last_trained(federation, "south") == {i for i, _ in south.ids} - {wanted}
    assert wanted in {i for i, _ in south.ids}
    assert "south: its data have changed since they were learnt (" in log(run)
    counted = json.loads((run / "results.json").read_text())["models"]["unlearned"]["forget"]["n"]
    assert counted == 1


def test_names_of_pictures_name_pairs_too(federation):
    run, south = federation.learn("run"), federation.hosts["south"]
    federation.trained.clear()
    assert ask(run, "sample", f"south/{south.train[1][0]}") == 0
    assert last_trained(federation, "south") == {i for i, _ in south.ids} - {south.id(south.train[1])}


def test_what_names_nothing_is_refused_and_positions_are(federation):
    run, south = federation.learn("run"), federation.hosts["south"]
    before = (run / "queue.json").read_bytes()
    federation.trained.clear()
    with pytest.raises(ConfigError, match=r"south/3: positions move when data change: name pairs of hosts by their content"):
        ask(run, "sample", "south/3")
    gone = south.id(south.train[0])
    south.remove(south.train[0])
    with pytest.raises(ConfigError, match=rf"south/{gone} is not among the training pairs there: `ease data ids`"):
        ask(run, "sample", f"south/{gone}", f"south/{south.id(south.train[0])}")
    with pytest.raises(ConfigError, match=r"no training pair of those who answer has label nobody: north, south, west"):
        ask(run, "class", south.train[-1][2], "nobody")
    assert (run / "queue.json").read_bytes() == before
    assert len(queue.read_set_aside(run)) == 2
    assert not federation.trained


@pytest.mark.slow
def test_what_was_withdrawn_is_not_trained_on_in_any_run_of_these_hosts(federation):
    run, south, west = federation.learn("run"), federation.hosts["south"], federation.hosts["west"]
    one = south.ids[1][0]
    label = west.train[-1][2]
    with_label = {(h.name, i) for h in federation.hosts.values() for i, about in h.ids if about == label}
    ask(run, "sample", f"south/{one}")
    ask(run, "class", label)
    federation.trained.clear()
    other = federation.learn("other")
    bad = {("south", one), *with_label}
    trained = {(name, i) for _, name, i in federation.trained}
    assert trained
    assert not trained & bad
    assert "south leaves out" in log(other)
    assert "that were withdrawn before: nobody trains on them" in log(other)
    # a host that has lost its memory is told by the server what was named to it one by one
    (south.home / "withdrawn.json").unlink()
    federation.trained.clear()
    federation.learn("third")
    assert ("south", one) not in {(name, i) for _, name, i in federation.trained}
    assert remembered(south)["pairs"]
    assert one not in (south.home / "withdrawn.json").read_text()  # digests are salted


def test_who_was_forgotten_does_not_come_back_unnoticed(federation):
    run, south = federation.learn("run"), federation.hosts["south"]
    ask(run, "client", "south")
    assert json.loads((where_runs_are() / "withdrawn.json").read_text())["clients"]["south"]["keys"] == [fingerprint(south)]
    with pytest.raises(ConfigError, match=r"south was forgotten on \d{4}-\d\d-\d\d, by request \w+: leave it out, or, where"):
        launcher.run(launcher.NewRun("demo", assignments=[f"{k}={v}" for k, v in _typed().items()]), Where("ease"))
    south.name = LATE  # the same host calls itself something else
    launcher.join(run, LATE)
    federation.trained.clear()
    launcher.continue_training(run, 1, Where("ease"))
    assert "has the key of south, which was forgotten" in log(run)
    assert {name for _, name, _ in federation.trained} == {"north", "west"}


def _typed():
    return {"data.kind": "folder", "data.names": ",".join(NAMES), "forget.targets": "north"}


def test_a_host_that_is_gone_blocks_nothing(federation):
    run = federation.learn("run")
    federation.hosts["south"].online = False
    assert ask(run, "client", "south", strategy="ease") == 0
    assert "south" not in log(run).rpartition("[roll call] pairs")[2].partition("\n")[0]
    federation.hosts["west"].online = False
    launcher.continue_training(run, 1, Where("ease", quorum=0.5))
    assert "west takes no part now: it did not come" in log(run)
    federation.hosts["west"].online = True
    federation.trained.clear()
    launcher.continue_training(run, 1, Where("ease"))
    assert {name for _, name, _ in federation.trained} == {"north", "west"}  # it takes part again


@pytest.mark.slow
def test_a_host_joins_later_and_can_be_forgotten_again(federation):
    run = federation.learn("run")
    federation.hosts[LATE].online = True
    ask(run, "client", "south", strategy="ease")
    launcher.join(run, LATE)
    federation.trained.clear()
    launcher.continue_training(run, 2, Where("ease"))
    assert {name for _, name, _ in federation.trained} == {"north", "west", LATE}
    assert {p.parent.name for p in run.glob("phases/continuation/history/*/*")} == {LATE}
    assert clients.read(run)[LATE].learnt
    assert ask(run, "client", LATE, strategy="ease") == 0
    said = json.loads((run / "results.json").read_text())["requests"][-1]
    assert said["gsd"] == "history"
    assert any(said["unique"].values())
    with pytest.raises(ConfigError, match=r"federaser follows every round of the learn phase, and"):
        ask(run, "client", "west", strategy="federaser")
    with pytest.raises(ConfigError, match=r"west takes part in .* already"):
        launcher.join(run, "west")
    with pytest.raises(ConfigError, match=rf"{LATE} was forgotten by .*, for good: where it has agreed, a new run takes it"):
        launcher.join(run, LATE)


def test_a_run_of_hosts_is_not_simulated_and_its_hosts_are_registered(federation, monkeypatch):
    """Said at once, and nothing is queued."""
    run = federation.learn("run")
    before = (run / "queue.json").read_bytes()
    for go in (
        lambda: launcher.resume(run, Where()),
        lambda: launcher.continue_training(run, 1, Where()),
        lambda: launcher.audit(run, "quick", Where()),
        lambda: launcher.forget(run, Asked(ForgetConfig(targets=("south",))), Where()),
    ):
        with pytest.raises(ConfigError, match=r"its clients are hosts with data of their own: .*--superlink NAME"):
            go()
    there = [connected.Node(n, "1", "", True, "") for n in ("north", "east", "west")]
    monkeypatch.setattr(connected, "nodes", lambda superlink: there)
    new = launcher.NewRun("demo", assignments=[f"{k}={v}" for k, v in _typed().items()])
    with pytest.raises(ConfigError, match=r"no host is registered as south; registered are east, north, west: mend data.names"):
        launcher.run(new, Where("ease"))
    assert (run / "queue.json").read_bytes() == before


def test_a_request_that_is_set_aside_leaves_a_run_that_has_finished(federation):
    run = federation.learn("run")
    with pytest.raises(
        ConfigError, match=r"is set aside: no training pair .* \(ask again in other words, or `ease withdraw RUN"
    ):
        ask(run, "class", "nobody")
    (aside,) = queue.read_set_aside(run)
    assert json.loads((run / "state.json").read_text())["status"] == "finished"
    launcher.withdraw(run, aside.request.id)
    assert json.loads((run / "state.json").read_text()) == {"status": "finished", "error": ""}
    assert [s.why for s in queue.read_set_aside(run)] == ["it was withdrawn"]


def test_ids_are_listed_on_the_host(federation, tmp_path):
    south = federation.hosts["south"]
    listed = CliRunner().invoke(cli.app, ["data", "ids", str(south.root), "--client", "south", "--names"])
    assert listed.stdout.splitlines() == [f"south/{south.id(r)}  # {r[0]}" for r in south.train]
    one = CliRunner().invoke(cli.app, ["data", "ids", str(south.root), "--client", "south", "--match", "TRAIN-3."])
    assert one.stdout.splitlines() == [f"south/{south.id(south.train[3])}"]
    named = CliRunner().invoke(cli.app, ["data", "ids", str(south.root), "--client", "south", "--picture", "train-1.png"])
    assert named.stdout.splitlines() == [f"south/{south.id(south.train[1])}"]
    assert "1 of 16 training pairs: train-1.png" in named.stderr
    none = CliRunner().invoke(cli.app, ["data", "ids", str(south.root), "--client", "south", "--match", "no such thing"])
    assert none.exit_code == 2
    assert "no training pair matches" in none.output
    file = tmp_path / "ids.txt"
    file.write_text("\ufeff# withdrawn in May\r\n\r\n" + "\r\n".join(listed.stdout.splitlines()[:2]), encoding="utf-8")
    from ease_flwr.cli.operator import _lines

    assert _lines(file) == [f"south/{south.id(r)}" for r in south.train[:2]]


def test_a_request_about_fewer_pairs_than_owners_allow_is_served_or_set_aside(federation):
    """Under the policy that init writes, and with everybody's answer needed. The run failed, and every resume of it again."""
    for host in federation.hosts.values():
        host.allow()
    north = federation.hosts["north"]
    label = next(r[2] for r in north.train if r[2])
    alone = [i for i, of in north.ids if of == label]
    assert len(alone) == 3
    run = federation.learn("run", **{"federation.quorum": 1.0})
    with pytest.raises(ConfigError, match="is set aside: strategy npo needs the help of north, and none of them may give it: "):
        ask(run, "class", label, strategy="npo")
    (aside,) = queue.read_set_aside(run)
    assert (
        "results leave north only if they are about 4 pairs or more (smallest-set of its owner): ask their owners" in aside.why
    )
    assert launcher.resume(run, Where("ease")) == 0
    federation.trained.clear()
    assert ask(run, "class", label) == 0  # by a method that trains on the rest
    assert last_trained(federation, "north") == {i for i, _ in north.ids} - set(alone)


def test_a_host_with_fewer_pairs_than_its_owner_allows_does_not_train_and_stays(federation):
    for host in federation.hosts.values():
        host.allow()
    north = federation.hosts["north"]
    while len(north.train) > 3:
        north.remove(north.train[0])
    run = federation.learn("run", **{"federation.quorum": 1.0})
    assert not last_trained(federation, "north")
    assert "north has 3 pairs and does not train: results leave north only if they are about 4 pairs or more" in log(run)
    south = federation.hosts["south"]
    assert ask(run, "sample", *(f"south/{i}" for i, _ in south.ids[3:])) == 0  # three are left there
    assert json.loads((run / "results.json").read_text())["requests"][0]["targets"]
    assert last_trained(federation, "west")
    with pytest.raises(
        ConfigError, match=r"is set aside: request .*: it leaves nobody enough pairs to train on: results leave"
    ):
        ask(run, "client", "west")


def test_what_a_host_has_taught_stays_where_it_may_not_train_on_the_few_pairs_that_it_keeps(federation, monkeypatch):
    for host in federation.hosts.values():
        host.allow()
    run, south, seen = federation.learn("run", **{"federation.quorum": 1.0}), federation.hosts["south"], []
    took_part = gsd.took_part

    def noted(context, history):
        seen.append((context.clients, context.away, took_part(context, history)))
        return seen[-1][2]

    monkeypatch.setattr(gsd, "took_part", noted)
    assert ask(run, "sample", *(f"south/{i}" for i, _ in south.ids[3:])) == 0  # three are left there
    assert ask(run, "client", "west", strategy="excise_all") == 0
    assert seen[-1] == (("north",), ("south",), ["north", "south"])
    assert [r.targets for _, r in queue.served(run)][1:] == [("west",)]
