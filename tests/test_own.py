"""What a user brings along: experiments and methods beside ours, and shipped with the app."""

import json
import os
import re
import subprocess
import sys
import tomllib
from importlib.metadata import EntryPoint, EntryPoints

import pytest
from ease_flwr.strategies.base import Method
from typer.testing import CliRunner

from ease_flwr import config, data, launcher, methods, strategies
from ease_flwr.cli.main import app as ease
from ease_flwr.config import APP, ConfigError, halves, own
from ease_flwr.hosts import app
from ease_flwr.sweep import cells
from tests.small import RUN_CONFIG
from tests.test_methods import write_guide


@pytest.fixture(autouse=True)
def nobody_else(our_methods_alone, our_files_alone, monkeypatch, tmp_path):
    """This process knows of nobody's files but the test's."""
    monkeypatch.setenv("EASE_FLWR_HOME", str(tmp_path / "home"))


def written(folder, name, text="extends: personas\ndata:\n  clients: 5\n"):
    file = folder / "conf" / f"{name}.yaml"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    return file


def test_experiments_and_variants_of_ones_own_stand_beside_ours(tmp_path):
    ours = config.choices("experiment")
    written(tmp_path, "experiment/mine")
    written(tmp_path, "variant/short", "learn:\n  rounds: 3\n")
    own.add_folder(tmp_path / "conf")
    assert config.choices("experiment") == sorted([*ours, "mine"])
    with pytest.raises(
        ConfigError, match=r"^no experiment 'none': there are .*mine.*; one of your own lies in ./conf/experiment/"
    ):
        config.load("none")
    found = config.load("mine+short+sharing")
    assert (found.name, found.data.clients, found.learn.rounds) == ("mine+short+sharing", 4, 3)
    assert own.named(f"{written(tmp_path, 'elsewhere/other')}+short") == "other+short"
    assert config.load("other").data.clients == 5
    assert own.by_file("other+short") == f"{tmp_path}/conf/elsewhere/other.yaml+short"
    assert own.by_file("personas+sharing") == "personas+sharing"


@pytest.mark.parametrize(
    ("words", "own_seed", "seed"),
    [
        ([], None, 0),
        ([], 7, 7),
        (["--seed", "0"], 7, 0),
        (["--set", "seed=5"], 7, 5),
        (["--seed", "5", "--set", "seed=5"], 7, 5),
    ],
)
def test_the_seed_of_an_experiment_is_its_own_unless_another_is_said(words, own_seed, seed, tmp_path, monkeypatch):
    file = written(tmp_path, "mine", "extends: personas\n" + (f"seed: {own_seed}\n" if own_seed is not None else ""))
    seen = []
    monkeypatch.setattr(launcher, "submit", lambda settings, experiment, *where: seen.append((settings, experiment)) or 1)
    said = CliRunner().invoke(ease, ["run", str(file), *words])
    ((settings, experiment),) = seen
    assert (experiment.seed, config.from_run_config({**RUN_CONFIG, **settings})[0].seed) == (seed, seed)
    assert f"-seed{seed}-" in settings["run-dir"], said.output


def test_two_seeds_are_none_and_flower_alone_has_none_either(tmp_path):
    file = written(tmp_path, "mine", "extends: flickr8k\nseed: 7\n")
    for command in (["run", str(file)], ["data", "deal", str(file), "--to", str(tmp_path / "parts.json")]):
        said = CliRunner().invoke(ease, [*command, "--seed", "1", "--set", "seed=2"])
        assert (said.exit_code, said.output.partition(": ")[2]) == (2, "seed=2: --seed 1 is said as well: leave one out\n")
    told = tomllib.loads((APP / "pyproject.toml").read_text())["tool"]["flwr"]["app"]["config"]
    flat = {k: v for k, v in told.items() if not isinstance(v, dict)}
    own.named(str(file))
    assert config.from_run_config({**flat, "experiment": "mine"})[0].seed == 7


def test_an_experiment_that_is_named_by_its_file_may_extend_its_neighbours(tmp_path):
    written(tmp_path, "anywhere/base", "data:\n  clients: 6\nforget:\n  targets: [client-0]\n")
    written(tmp_path, "anywhere/personas", "seed: 7\n")  # ours is meant where the name is ours
    assert own.named(str(written(tmp_path, "anywhere/mine", "extends: base\nseed: 3\n"))) == "mine"
    found = config.load("mine")
    assert (found.data.clients, found.seed) == (6, 3)
    assert config.load("personas").seed == 0


@pytest.mark.parametrize(("group", "name"), [("experiment", "personas"), ("variant", "sharing")])
def test_own_files_that_hide_ours_are_refused_where_they_are_asked_for(group, name, tmp_path):
    written(tmp_path, f"{group}/{name}", "seed: 7\n")
    own.add_folder(tmp_path / "conf")
    assert config.load("personas_class").seed == 0  # who asks for another one is not stopped
    with pytest.raises(ConfigError, match=rf"there is another {group} '{name}', .*{name}.yaml: rename yours"):
        config.load("personas+sharing")


@pytest.mark.parametrize("kind", ["folder", "no file", "hidden"])
def test_what_is_no_experiment_beside_ones_own_stops_who_asks_for_it_alone(kind, tmp_path):
    """A folder of that name, a link to nothing, and what editors and systems leave beside a file."""
    mine = written(tmp_path, "experiment/mine")
    odd = mine.with_name({"folder": "odd.yaml", "no file": "odd.yaml", "hidden": ".#mine.yaml"}[kind])
    odd.mkdir() if kind == "folder" else odd.symlink_to("somebody@somewhere.1234")
    own.add_folder(tmp_path / "conf")
    assert own.named(str(mine)) == "mine"
    assert config.load("mine").data.clients == 5
    assert own.spelled(config.parts("mine"))
    assert (".#mine" in config.choices("experiment")) is False
    if kind != "hidden":
        line = {"folder": "Is a directory", "no file": "No such file or directory"}[kind]
        with pytest.raises(ConfigError, match=rf"^{odd}: {line}$"):
            config.load("odd")


@pytest.mark.parametrize(
    "command", [["run"], ["compare", "--strategies", "npo", "--seeds", "0"], ["tune", "--strategies", "npo"]]
)
def test_settings_of_a_strategy_that_is_not_there_are_read_by_nobody(command, tmp_path):
    file = written(tmp_path, "mine", "extends: personas\nstrategies:\n  npoo: {rounds: 3}\n")
    said = CliRunner().invoke(ease, [command[0], str(file), *command[1:]])
    assert said.exit_code == 2
    assert re.search(r"^ease \w+: strategies.npoo: no 'npoo' in strategies/: there are .*: did you mean npo\?$", said.output)
    assert not (tmp_path / "home").exists()


def test_an_experiment_extends_one_that_extends_none(tmp_path):
    written(tmp_path, "experiment/base", "extends: personas\n")
    written(tmp_path, "experiment/mine", "extends: base\n")
    own.add_folder(tmp_path / "conf")
    with pytest.raises(ConfigError, match=r"^experiment mine: base extends another one itself \(personas\): extend that, or"):
        config.load("mine")


def test_a_folder_without_experiments_is_refused(tmp_path):
    written(tmp_path, "experiments/mine")
    with pytest.raises(ConfigError, match=r"conf: no experiment/NAME.yaml and no variant/NAME.yaml in it"):
        own.add_folder(tmp_path / "conf")


def test_a_run_is_told_the_texts_of_its_own_experiment_and_no_other(tmp_path, monkeypatch):
    """So that it can be resumed and asked when the files are gone, changed, or never were on this machine."""
    written(tmp_path, "experiment/mine")
    written(tmp_path, "experiment/secret", "seed: 1\n")
    written(tmp_path, "variant/short", "learn:\n  rounds: 3\n")
    own.add_folder(tmp_path / "conf")
    expected = config.load("mine+short")
    told = own.spelled(config.parts("mine+short"))
    assert re.fullmatch(r"[\w-]+", told)  # nothing that a command line could split
    assert own.read(told).keys() == {"experiment/mine", "variant/short"}
    assert own.spelled(config.parts("personas+sharing")) == ""
    monkeypatch.setattr(own, "settings", {group: {} for group in own.GROUPS})
    run_config = {**RUN_CONFIG, "experiment": "mine+short", "set": "", "own": told}
    assert config.from_run_config(run_config)[0] == expected
    with pytest.raises(ConfigError, match=r"^own: not what `ease run` writes .*: submit the run again"):
        config.from_run_config({**run_config, "own": "bm90IEpTT04"})


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("learn: {rounds: 3}\nseed: 1\nlearn: {batch: 8}\n", r"not YAML: 'learn' is there twice in one section in .* line 1,"),
        ("learn:\n  rounds: 3\n  rounds: 3\n", r"not YAML: 'rounds' is there twice in one section in .* line 2,"),
        ("'': 1\n'': 2\n", "not YAML: '' is there twice in one section"),
        ("strategy:\n  a: [{b: 1, b: 2}]\n", "not YAML: 'b' is there twice in one section"),
        ("name: ../../other\n", r"name='\.\./\.\./other': it is called by its file, leave this out"),
    ],
)
@pytest.mark.parametrize("group", own.GROUPS)
def test_nothing_that_a_yaml_says_is_dropped(group, text, line, tmp_path):
    """Of two keys YAML takes the last. An experiment is called by its file, and its run folders by that name."""
    file = written(tmp_path, f"{group}/mine", text)
    own.add_folder(tmp_path / "conf")
    with pytest.raises(ConfigError, match=f"^{re.escape(str(file))}: {line}"):
        config.load("mine" if group == "experiment" else "personas+mine")
    written(tmp_path, f"{group}/mine", "name: mine\nlearn: &a {rounds: 3}\nstrategy: {x: *a, y: *a}\n")
    assert config.load("mine" if group == "experiment" else "personas+mine").learn.rounds == 3


def test_a_copy_of_ours_is_ours(tmp_path):
    """Somebody may stand in a checkout with another one installed."""
    written(tmp_path, "experiment/personas", (APP / "conf" / "experiment" / "personas.yaml").read_text())
    own.add_folder(tmp_path / "conf")
    assert app.folder() == APP  # nothing to ship


def test_methods_of_ones_own_are_found_and_do_not_replace_ours(tmp_path, monkeypatch):
    write_guide(tmp_path)
    (tmp_path / "strategies" / "ease.py").write_text("raise RuntimeError('not ours')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert "shuffle" in halves.names("strategies")
    assert "shuffle" in halves.names("clients")
    assert strategies.load("ease").__name__ == "Ease"
    assert list(halves.own_files("strategies")) == ["shuffle"]


class Declared(Method):
    """A method of an installed package."""


def test_methods_of_installed_packages_are_found_by_their_entry_points(monkeypatch):
    declared = {"theirs": "tests.test_own:Declared", "wrong": "tests.test_own:written", "ease": "tests.test_own:Declared"}
    points = EntryPoints(EntryPoint(name, value, "ease_flwr.strategies") for name, value in declared.items())
    monkeypatch.setattr(halves, "entry_points", lambda **asked: points.select(**asked))
    assert {"theirs", "wrong"} <= set(halves.names("strategies"))
    assert strategies.load("theirs") is Declared
    assert strategies.load("ease") is not Declared
    why = "entry point wrong of ease_flwr.strategies: tests.test_own:written must be a class that extends Method"
    with pytest.raises(ConfigError, match=why):
        strategies.load("wrong")


def test_a_method_of_ones_own_is_shipped_where_it_is_used_and_nothing_else_is(tmp_path, monkeypatch):
    write_guide(tmp_path)
    (tmp_path / "strategies" / "mybot.py").write_text("KEY = 'secret'\nraise RuntimeError('it was run')\n")
    (tmp_path / "strategies" / "_shared.py").write_text("HALF = 0.5\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert "mybot" not in halves.names("strategies")
    assert methods.listing().count("\nshuffle ") == 1
    assert app.folder(["ease"]) == APP
    found = app.folder(["ease", "shuffle"])
    assert found.parent == tmp_path / "home" / "apps"
    more = {"strategies/shuffle.py", "strategies/_shared.py", "clients/shuffle.py"}
    there = {p.relative_to(found).as_posix() for p in found.rglob("*.py")}
    ours = {p.relative_to(APP).as_posix() for top in ("ease_flwr", "strategies", "clients") for p in (APP / top).rglob("*.py")}
    assert there == ours | more
    assert app.folder(["shuffle"]) == found
    command = [sys.executable, "-c", "import ease_flwr.config as c; print(c.code_hash())"]
    done = subprocess.run(command, cwd=found, env={"PYTHONPATH": str(found)}, capture_output=True, text=True, check=True)
    there, ours = done.stdout.strip(), config.code_hash()
    assert config.code_hash(app.own_halves(["ease"])) == ours
    assert config.code_hash(app.own_halves(["shuffle"])) == there != ours
    asked = config.load("personas")
    cell = {**asked.model_dump(mode="json"), "strategy_name": "shuffle", "code": there, "files": data.fingerprint(asked)}
    (tmp_path / "experiment.json").write_text(json.dumps(cell))
    assert cells.differs(tmp_path, asked, "shuffle") == ""
    (tmp_path / "strategies" / "_shared.py").write_text("HALF = 0.25\n")
    assert app.folder(["shuffle"]) != found  # another file, another app
    assert cells.differs(tmp_path, asked, "shuffle").startswith(f"code {there[:12]}, and this is ")


def test_the_command_line_takes_along_what_lies_in_the_working_folder(tmp_path):
    write_guide(tmp_path)
    written(tmp_path, "experiment/mine")
    environment = {**os.environ, "PYTHONPATH": str(APP)}

    def ease(*words):
        command = [sys.executable, "-m", "ease_flwr", *words]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)

    assert any(line.startswith("shuffle ") for line in ease("methods").stdout.splitlines())
    occupied = ease("run", "mine", "--strategy", "shuffle", "--run-dir", str(tmp_path))
    assert occupied.stderr == f"ease run: run-dir {tmp_path} is not empty: choose another, or remove it\n"  # all else is known
    by_file = written(tmp_path, "elsewhere/other")
    assert "is not empty" in ease("run", str(by_file), "--run-dir", str(tmp_path)).stderr
    assert ease("compare", "nowhere.yaml").stderr == "ease compare: no experiment file nowhere.yaml\n"
    wrong = ease("--conf", str(tmp_path), "run")
    assert (wrong.returncode, wrong.stderr) == (
        2,
        f"ease --conf: {tmp_path}: no experiment/NAME.yaml and no variant/NAME.yaml in it\n",
    )
