"""What is used again is what is asked now: cells, cached phases and run folders, by settings, code and data."""

import json
import multiprocessing
import os
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ease_flwr import config, data
from ease_flwr.config import ConfigError, Experiment
from ease_flwr.data import photographs
from ease_flwr.store import files, phases
from ease_flwr.store.cost import Cost
from ease_flwr.store.phases import PhaseResult
from ease_flwr.sweep import cells, comparison
from ease_flwr.sweep.cells import Sweep, Variant
from tests.photographs import write_photographs
from tests.test_sweep import begun, results

# ---- cells ---------------------------------------------------------------------------------------------------------------

VARIANTS = (Variant("EASE"), Variant("longer", settings={"strategy.rounds": 9}))
TOLD = st.sampled_from([(), ("learn.rounds=2",), ("learn.rounds=3",), ("learn.lr=0.002",), ("audit.level=none",)])
STEP = st.tuples(
    TOLD, st.sampled_from(["0" * 64, "1" * 64]), st.booleans(), st.lists(st.integers(0, 2), min_size=1, unique=True)
)


@pytest.mark.slow
@settings(max_examples=20, deadline=None)
@given(steps=st.lists(STEP, min_size=2, max_size=5))
def test_a_cell_that_is_taken_is_the_one_that_is_asked(tmp_path_factory, steps):
    """Law: whatever was run in a folder before, what comes out was run as it is asked now, or the difference is named."""
    folder, ran = tmp_path_factory.mktemp("cells"), []

    def run_cell(sweep, variant, seed, where, family):
        ran.append((variant.label, seed))
        begun(sweep, variant, seed, where)
        for name in ("run_config.json", "queue.json"):
            (where / name).write_text("[]")
        if not step[2]:  # it lives
            said = json.loads((where / "experiment.json").read_text())
            (where / "results.json").write_text(json.dumps({**results(seed, 10.0), "asked": said}))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cells, "_run_cell", run_cell)
        for step in steps:
            told, code, _, seeds = step
            patch.setattr(config, "code_hash", lambda more=None, code=code: code)
            before = {p: p.read_bytes() for p in folder.rglob("results.json")}
            sweep, known = Sweep("personas", seeds, folder, told, lambda _: None), len(ran)
            try:
                found = cells.run(sweep, VARIANTS)
            except ConfigError as refusal:
                differs(str(refusal), sweep, code)
                assert len(ran) == known
                assert {p: p.read_bytes() for p in before} == before
                continue
            for variant in VARIANTS:
                for seed in seeds:
                    if "failed" not in (found_now := found[variant.label][seed]):
                        asked = {**sweep.asked(variant)[0].model_dump(mode="json"), "seed": seed}
                        assert found_now["asked"] == {**found_now["asked"], **asked, "code": code}
            assert all(p.read_bytes() == was for p, was in before.items())  # a finished cell is not run again


def differs(said, sweep, code):
    """What is said is a difference between what is asked and a cell that is there."""
    where, _, rest = said.partition(" was run with ")
    then = json.loads((Path(where) / "experiment.json").read_text())
    if rest.startswith("code "):
        assert then["code"] != code
    else:
        key = rest.partition("=")[0]
        now, _ = sweep.asked(VARIANTS["longer" in where])
        value_then, value_now = then, now.model_dump(mode="json")
        for part in key.split("."):
            value_then, value_now = value_then[part], value_now[part]
        assert value_then != value_now


def test_a_cell_that_was_begun_goes_on(tmp_path):
    said = []

    class Family:
        def run(self, command, log):
            said.append(command[3:])

    sweep, where = Sweep("personas", [0], tmp_path, ["data.root=a b"]), tmp_path / "seed-0" / "EASE"
    cells._run_cell(sweep, VARIANTS[1], 0, where, Family())
    assert said[0][:2] == ["run", "personas"]
    assert {f"data.root={Path('a b').absolute()}", "strategy.rounds=9"} <= set(said[0])
    begun(sweep, VARIANTS[0], 0, where)
    asked, _ = sweep.asked(VARIANTS[0])
    assert cells.standing(where, asked, "ease") == "nothing"
    for name in ("run_config.json", "queue.json"):
        (where / name).write_text("[]")
    assert cells.standing(where, asked, "ease") == "begun"
    assert cells.standing(where, asked, "npo") == "nothing"
    cells._run_cell(sweep, VARIANTS[0], 0, where, Family())
    assert said[1] == ["resume", str(where)]
    (where / "results.json").write_text("{}")
    assert cells.standing(where, asked, "ease") == "finished"
    with pytest.raises(ConfigError, match=r"EASE was run with strategy ease, and npo is asked: give another --folder, or "):
        cells.standing(where, asked, "npo")
    (where / "experiment.json").unlink()
    with pytest.raises(ConfigError, match=r"EASE was run with settings that are not known"):
        cells.standing(where, asked, "ease")


def test_two_variants_do_not_share_a_cell(tmp_path):
    """The second would be given the results of the first. Values of a method of one's own may differ in signs alone."""
    same = [Variant("own rule=a+b", settings={"strategy.rounds": 3}), Variant("own rule=a*b", settings={"strategy.rounds": 4})]
    with pytest.raises(
        ConfigError, match=r"^'own rule=a\+b' and 'own rule=a\*b' would share the folder own-rule-a-b: name one"
    ):
        cells.run(Sweep("personas", [0], tmp_path), same)
    assert not list(tmp_path.iterdir())


def test_seeds_of_a_sweep_are_said_once(tmp_path):
    with pytest.raises(ConfigError, match=r"^seed=4: a comparison, ablation or search says its seeds by --seeds$"):
        cells.run(Sweep("personas", [0], tmp_path, ["seed=4"]), VARIANTS)


def test_two_sweeps_do_not_share_a_folder_at_once(tmp_path):
    with files.locked(tmp_path / "cells.lock"), pytest.raises(ConfigError, match="is in use by another process"):
        cells.run(Sweep("personas", [0], tmp_path, say=lambda _: None), VARIANTS)


def test_equal_exchanges_are_those_after_what_was_learnt(tmp_path, monkeypatch):
    """With patience a seed may learn fewer rounds than it could: what EASE takes by itself follows from these."""
    seen = []

    def run_cell(sweep, variant, seed, where, family):
        seen.append((variant.label, seed))
        begun(sweep, variant, seed, where)
        (where / "results.json").write_text(json.dumps({**results(seed, 10.0), "learning": {"rounds": 14 if seed else 50}}))

    monkeypatch.setattr(cells, "_run_cell", run_cell)
    lines = []
    sweep = Sweep("personas", [0, 1], tmp_path, ["learn.patience=3", "strategies.npo.rounds=5"], lines.append)
    tables = comparison.compare(sweep, ["ease", "npo"])
    assert [s for s in seen if "," in s[0]] == [("npo, 7 exchanges", 0), ("npo, 2 exchanges", 1)]
    assert [line.split()[0] for line in lines[-2:]] == ["[5/6]", "[6/6]"]
    assert set(tables["equal"]["npo"]) == {0, 1}


# ---- phases in the cache ---------------------------------------------------------------------------------------------------


def phase(folder, value=1.0):
    folder.mkdir(parents=True)
    phases.write(folder, PhaseResult(np.full(50_000, value, np.float32), Cost(rounds=3)), "key")
    return folder


def busy(home, name, barrier):
    """Publish and take the same entry again and again; every copy is whole."""
    os.environ["EASE_FLWR_HOME"] = str(home)
    own = phase(home / name)
    barrier.wait()
    for k in range(30):
        if phases.publish(own, "key"):
            os._exit(1)
        taken = home / f"{name}-{k}"
        if not phases.take("key", taken) or phases.read(taken).theta[0] != 1:
            os._exit(2)
    os._exit(0)


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded")
@pytest.mark.parametrize("links", [True, False])
def test_several_processes_publish_the_same_phase_at_once(tmp_path, monkeypatch, links):
    if not links:  # a file system without hard links
        monkeypatch.setattr(os, "link", lambda a, b: (_ for _ in ()).throw(OSError(95, "not supported")))
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(4)
    everybody = [context.Process(target=busy, args=(tmp_path, f"run-{k}", barrier)) for k in range(4)]
    for process in everybody:
        process.start()
    for process in everybody:
        process.join()
    assert [p.exitcode for p in everybody] == [0] * 4
    assert [p.name for p in (tmp_path / "cache").iterdir()] == ["key"]


def test_the_first_stays_and_a_broken_one_is_replaced(tmp_path, monkeypatch):
    monkeypatch.setenv("EASE_FLWR_HOME", str(tmp_path))
    first, second = phase(tmp_path / "a", 1.0), phase(tmp_path / "b", 2.0)
    assert phases.publish(first, "key") == phases.publish(second, "key") == ""
    assert phases.read(phases.cached("key")).theta[0] == 1
    file = phases.cached("key") / "theta.safetensors"
    file.unlink()
    file.write_bytes(b"cut")
    with pytest.raises(ConfigError, match="does not fit its sha256"):
        phases.take("key", tmp_path / "taken")
    assert not (tmp_path / "taken").exists()
    assert phases.publish(second, "key") == ""
    assert phases.take("key", tmp_path / "taken")
    assert phases.read(tmp_path / "taken").theta[0] == 2
    assert [p.name for p in phases.cached("key").parent.iterdir()] == ["key"]
    assert not phases.take("other", tmp_path / "nothing")


def test_a_cache_that_cannot_be_written_is_said_and_stops_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("EASE_FLWR_HOME", str(tmp_path))
    (tmp_path / "cache").write_text("a file")
    assert phases.publish(phase(tmp_path / "a"), "key") == f"{tmp_path}/cache/key: File exists"


def test_what_a_killed_process_left_is_swept_away_after_a_day(tmp_path, monkeypatch):
    monkeypatch.setenv("EASE_FLWR_HOME", str(tmp_path))
    old, new = (tmp_path / "cache" / f"key-{k}.partial" for k in ("old", "new"))
    for folder in (old, new):
        folder.mkdir(parents=True)
    os.utime(old, (0, 0))
    assert phases.publish(phase(tmp_path / "a"), "key") == ""
    assert not old.exists()
    assert new.exists()


def test_other_files_under_the_same_names_are_other_data(tmp_path):
    """Captions, pictures, labels: whatever the settings name, they are not taken for what was there before."""
    write_photographs(tmp_path / "set", train=6, val=2, test=2)
    index, labels = tmp_path / "set" / "dataset.json", tmp_path / "labels.json"
    names = {image["filename"]: "sea" for image in json.loads(index.read_text())["images"]}
    labels.write_text(json.dumps({"names": names}))
    told = {"data.root": str(tmp_path / "set"), "data.clients": 2, "forget.targets": "client-0"}
    experiment = config.load("flickr8k", {**told, "data.labels": str(labels)})

    def now():
        photographs.load.cache_clear()
        return data.fingerprint(experiment)

    seen = [now()]
    assert now() == seen[0]
    picture = sorted((tmp_path / "set").rglob("*.png"))[0]
    changes = (
        lambda: labels.write_text(labels.read_text().replace("sea", "sky")),
        lambda: os.utime(picture, ns=(1, 1)),
        lambda: index.write_text(index.read_text().replace(" one", " uno")),
    )
    for change in changes:
        change()
        seen.append(now())
    assert len(set(seen)) == len(seen)


# ---- run folders -----------------------------------------------------------------------------------------------------------


def test_runs_of_the_same_second_have_folders_of_their_own(tmp_path, monkeypatch):
    monkeypatch.setenv("EASE_FLWR_HOME", str(tmp_path))
    monkeypatch.setattr(time, "strftime", lambda *_: "20260101-000000")
    found = [files.default_folder(Experiment(), "ease") for _ in range(24)]
    assert len(set(found)) == 24
    assert {p.parent for p in found} == {tmp_path}


def test_one_of_several_gets_a_folder_that_was_named(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(lambda _: files.claimed(tmp_path / "run"), range(24))) == 1
    assert files.only_claimed(tmp_path / "run")


def test_a_folder_that_was_claimed_and_not_used_is_given_back(tmp_path):
    assert files.claimed(tmp_path / "new" / "run")
    assert not files.claimed(tmp_path / "new" / "run")
    files.given_back(tmp_path / "new" / "run")
    assert not (tmp_path / "new" / "run").exists()
    assert files.claimed(tmp_path / "new" / "run")
    (tmp_path / "new" / "run" / "log.txt").write_text("at work")
    files.given_back(tmp_path / "new" / "run")
    assert (tmp_path / "new" / "run" / "log.txt").is_file()
    shutil.rmtree(tmp_path / "new")
    (tmp_path / "new").write_text("a file")
    with pytest.raises(ConfigError, match=r"new/run: (Not a directory|File exists): choose another folder"):
        files.claimed(tmp_path / "new" / "run")


@pytest.mark.parametrize(("error", "line"), [(11, "is in use by another process"), (37, "cannot be locked")])
def test_a_file_system_without_locks_is_not_another_process(tmp_path, monkeypatch, error, line):
    def refuse(*_):
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(files.fcntl, "flock", refuse)
    with pytest.raises(ConfigError, match=line), files.locked(tmp_path / "x.lock"):
        pass
