"""The command line: light, and honest about mistakes."""

import json
import re
import subprocess
import sys
from pathlib import Path

import click
import pytest
from typer.main import get_command
from typer.testing import CliRunner

from ease_flwr import __version__
from ease_flwr.cli import app, main
from ease_flwr.config import code_hash
from ease_flwr.hosts.simulation import SuperLink

HEAVY = ("torch", "open_clip", "ray", "peft")


def ease(*arguments, tmp_path=None):
    code = (
        "import sys; sys.argv[0] = 'ease'\n"
        "from ease_flwr.cli import app\n"
        f"try:\n    app()\nfinally:\n    print([m for m in {HEAVY} if m in sys.modules])"
    )
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, cwd=tmp_path, timeout=60)


def test_help_is_light():
    done = ease("--help")
    assert done.returncode == 0
    assert "make-base" in done.stdout
    assert done.stdout.rstrip().endswith("[]")


def test_the_version_says_what_is_installed():
    ours, others, heavy = ease("--version").stdout.splitlines()
    assert re.fullmatch(
        rf"ease_flwr {re.escape(__version__)}(, commit [0-9a-f]{{7,}}(-dirty)?)?, code {code_hash()[:12]}", ours
    )
    assert re.fullmatch(r"flwr \S+, ray \S+, torch \S+, open_clip_torch \S+, peft \S+", others)
    assert heavy == "[]"


def test_methods_are_listed_and_shown_without_anything_heavy():
    done = ease("methods")
    lines = done.stdout.splitlines()
    row = next(line for line in lines if line.startswith("federaser "))
    assert row.split("  ")[0] == "federaser"
    assert "round by round" in row
    assert row.endswith("Rebuild the model from recorded step lengths and calibrated directions of the retained clients.")
    assert lines[-1] == "[]"
    assert not any(line.startswith(("base ", "_")) for line in lines)
    shown = ease("methods", "--show", "npo").stdout
    assert "# ---- strategies/npo.py ----" in shown
    assert "# ---- clients/npo.py ----" in shown
    assert "def negative_preference(" in shown
    assert ease("methods", "--show", "magic").stderr.startswith(
        "ease methods: no 'magic' in strategies/: there are ascent, ccu"
    )


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["run", "persona"], "ease run: no experiment 'persona': there are coco, demo, flickr30k, flickr8k, flickr8k_sample"),
        (["run", "personas_class", "--set", "forget.targets=bob"], "ease run: forget.targets: nobody knows bob; known people"),
        (
            ["run", "personas", "--set", "forget.scenario=sample"],
            "ease run: experiment personas: forget.targets: 'client-0' is not",
        ),
        (["ablate", "--groups", "all"], "ease ablate: no group 'all': there are parts, foils, bke, gsd, lambda"),
        (["ablate", "--seeds", "x"], "ease ablate: --seeds 'x': expected numbers with commas, for example 0,1,2"),
        (["ablate", "--set", "strategy.tua=1"], "ease ablate: strategy ease: unknown key tua (known: rounds, lr_end, gsd"),
        (
            ["compare", "--set", "evaluation.reference=none"],
            "ease compare: evaluation.reference=none: methods are measured against the retrained model, leave it on",
        ),
        (["compare", "--budget", "time"], "ease compare: --budget 'time': expected rounds or bytes"),
        (["compare", "--strategies", "ease,magic"], "ease compare: no 'magic' in strategies/: there are ascent, ccu"),
        (["ablate", "--seeds", f"1,{2**64}"], f"ease ablate: --seeds '1,{2**64}': {2**64} is too large: {2**64 - 1} at most"),
        (["tune", "--seeds", "one"], "ease tune: --seeds 'one': expected numbers with commas, for example 0,1,2"),
        (
            ["run", "personas_class", "--strategy", "sifu"],
            "ease run: strategy sifu cannot forget a class, only: client",
        ),
        (
            ["run", "--strategy", "pga", "--set", "learn.aggregator=Krum"],
            "ease run: strategy pga follows rounds of FedAvg, learn.aggregator=Krum has others",
        ),
        (
            ["run", "--strategy", "pga", "--set", "history.rank=8"],
            "ease run: strategy pga needs every round, history.rank=8 is a sketch: set 0",
        ),
        (["run", "--strategy", "eas"], "ease run: no 'eas' in strategies/: there are ascent, ccu"),
        (
            ["run", "--set", "learn.round=3"],
            "ease run: experiment personas: unknown key learn.round (known: rounds, epochs, batch, lr, clip, aggregator",
        ),
        (["run", "--set", "learn"], "ease run: 'learn': expected key=value, for example forget.targets=client-4"),
        (
            ["run", "--set", "forget.targets=client-8"],
            "ease run: experiment personas: forget.targets: no client client-8; there are client-0",
        ),
        (
            ["run", "--set", "seed=010"],
            "ease run: experiment personas: seed='010': write 10",
        ),
        (
            ["run", "--seed", str(2**64)],
            "ease run: experiment personas: seed=18446744073709551616: Input should be less than 18446744073709551616",
        ),
        (["run", "flickr8k", "--set", "data.root=a b"], "ease run: data.root='/"),
        (["run", "flickr8k"], "ease run: data.root='' is not an absolute path of a folder: expected images/"),
        (["make-base", "--path", "no/where/base.json"], "ease make-base: no folder /"),
    ],
)
def test_mistakes_are_one_line_at_once(arguments, line, tmp_path):
    done = ease(*arguments, tmp_path=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith(line)
    assert done.stderr.count("\n") == 1
    assert done.stdout.strip() == "[]"  # nothing heavy was imported
    assert not list(tmp_path.iterdir())


def test_sweeps_lie_among_the_runs_but_where_a_folder_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("EASE_FLWR_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    assert main._cells(None, "comparison", "personas+sharing", None) == tmp_path / "home" / "comparison-personas+sharing"
    assert main._cells(tmp_path / "mine", "comparison", "personas", ["seed=1"]) == tmp_path / "mine"
    others = {main._cells(None, "comparison", "personas", told) for told in (["learn.rounds=3"], ["learn.rounds=4"], None)}
    assert len(others) == 3  # cells of other settings are other cells


def nobodys_home(_):
    raise RuntimeError("Could not determine home directory.")


@pytest.mark.parametrize("command", ["ablate", "compare", "tune"])
def test_a_user_without_a_home_is_told_what_to_set(command, monkeypatch):
    monkeypatch.delenv("EASE_FLWR_HOME", raising=False)
    monkeypatch.setattr(Path, "expanduser", nobodys_home)
    said = CliRunner().invoke(app, [command, "--seeds", "x"])  # wrong too: nothing is ever started here
    assert said.output.strip() == f"ease {command}: this user has no home folder: set EASE_FLWR_HOME to the folder for runs"
    assert said.exit_code == 2


def commands(group, *words):
    for name, command in group.commands.items():
        yield from commands(command, *words, name) if hasattr(command, "commands") else [((*words, name), command)]


def test_paths_of_options_are_meant_from_where_one_stands(tmp_path, monkeypatch):
    """The shell leaves the ~ of --key=~/FILE alone."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "there").mkdir()
    monkeypatch.chdir(tmp_path / "there")
    count = 0
    for words, command in commands(get_command(app)):
        for option in (p for p in command.params if isinstance(p, click.Option) and isinstance(p.type, click.Path)):
            context = click.Context(command, info_name=words[-1])
            given = {"~/a/b": tmp_path / "home" / "a" / "b", "a": tmp_path / "there" / "a", "/a": Path("/a")}
            assert {p: option.process_value(context, p) for p in given} == given, (words, option.opts)
            count += 1
    assert count > 10
    assert CliRunner().invoke(app, ["receipt", "keygen", "--key=~/keys/one.pem"]).exit_code == 0
    assert (tmp_path / "home" / "keys" / "one.pem").is_file()
    assert not list((tmp_path / "there").iterdir())


def test_benchmarks_are_named(tmp_path):
    said = CliRunner().invoke(app, ["bench", "rounds"])
    assert said.exit_code == 2
    assert re.search(
        r"ease bench: no benchmark 'rounds' in .*: "
        r"there are caching, cells, frameworks, fuzz, gsd, large, mutants, round, startup, step, swap: did you mean round\?$",
        said.output.strip(),
    )
    said = CliRunner().invoke(app, ["bench", "gsd", "--to", str(tmp_path / "nowhere" / "x.json")])
    assert "no folder" in said.output


def test_run_folder_that_holds_something_is_left_alone(tmp_path):
    (tmp_path / "table.md").write_text("precious")
    result = CliRunner().invoke(app, ["run", "--run-dir", str(tmp_path)])
    assert result.exit_code == 2
    assert [p.name for p in tmp_path.iterdir()] == ["table.md"]


class FakeLink(SuperLink):
    def __init__(self, home, statuses):
        self.home = home
        (home / "superlink.out").write_text("first\nlast words\n")
        self.statuses = statuses

        class Process:
            poll = staticmethod(lambda: 0)

        self.process = Process()

    def status(self, run_id):
        return self.statuses.pop(0)


def test_follow_returns_the_true_status(tmp_path, capsys):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "log.txt").write_text("[learn 1/2]\n")
    (folder / "state.json").write_text(json.dumps({"status": "finished", "error": ""}))
    assert FakeLink(tmp_path, []).follow("1", folder) == 0
    assert capsys.readouterr().out == f"[learn 1/2]\nresults in {folder}\n"
    (folder / "state.json").write_text(json.dumps({"status": "failed", "error": "FederationError: 2 of 3"}))
    assert FakeLink(tmp_path, []).follow("1", folder) == 1
    assert capsys.readouterr().err == "ease run: FederationError: 2 of 3\n"


def test_follow_notices_a_run_that_died_silently(tmp_path, capsys):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "state.json").write_text(json.dumps({"status": "running", "error": ""}))
    link = FakeLink(tmp_path, ["running", "finished:failed out of memory"])
    assert link.follow("1", folder) == 1
    assert "the run ended unexpectedly (finished:failed out of memory): first | last words" in capsys.readouterr().err
