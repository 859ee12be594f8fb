"""What a user brings along: experiments and methods beside ours, and shipped with the app."""

import os
import subprocess
import sys
from importlib.metadata import EntryPoint, EntryPoints

import pytest
from ease_flwr.strategies.base import Method

from ease_flwr import config, strategies
from ease_flwr.config import APP, ConfigError, halves, own
from ease_flwr.hosts import app
from tests.test_methods import write_guide


@pytest.fixture(autouse=True)
def nobody_else(monkeypatch, tmp_path):
    """This process knows of nobody's files but the test's."""
    monkeypatch.setattr(own, "settings", {group: {} for group in own.GROUPS})
    for half in ("strategies", "clients"):
        home = halves._home(half)
        monkeypatch.setattr(home, "__path__", home.__path__[:1])
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
    assert own.add_experiment(written(tmp_path, "elsewhere/other")) == "other"
    assert config.load("other").data.clients == 5
    assert own.by_file("other+short") == f"{tmp_path}/conf/elsewhere/other.yaml+short"
    assert own.by_file("personas+sharing") == "personas+sharing"


@pytest.mark.parametrize(
    ("name", "text", "why"),
    [
        (
            "experiment/personas",
            "data:\n  clients: 5\n",
            r"there is another experiment 'personas', .*personas.yaml: rename yours",
        ),
        ("variant/sharing", "", r"there is another variant 'sharing', .*: rename yours"),
        ("experiments/mine", "", r"conf: no experiment/NAME.yaml and no variant/NAME.yaml in it"),
    ],
)
def test_own_files_that_hide_ours_or_are_nowhere_are_refused(name, text, why, tmp_path):
    written(tmp_path, name, text)
    with pytest.raises(ConfigError, match=why):
        own.add_folder(tmp_path / "conf")


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
    assert [f.name for f in halves.own_files("strategies")] == ["shuffle.py"]


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


def test_what_is_ones_own_is_shipped_with_the_app(tmp_path, monkeypatch):
    assert app.folder() == APP
    write_guide(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    file = written(tmp_path, "experiment/mine")
    own.add_folder(tmp_path / "conf")
    found = app.folder()
    assert found.parent == tmp_path / "home" / "apps"
    for name in ("strategies/shuffle.py", "clients/shuffle.py", "conf/experiment/mine.yaml", "strategies/ease.py"):
        assert (found / name).is_file()
    assert app.folder() == found
    file.write_text("extends: personas\n")
    assert app.folder() != found  # another file, another app


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
