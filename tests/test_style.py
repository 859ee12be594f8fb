"""The rules of the house: style, types, who may import whom."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ease_flwr.config import APP, halves

BIN = Path(sys.executable).parent
SETTINGS = str(APP / "pyproject.toml")


def passes(*command, where=APP):
    done = subprocess.run([BIN / command[0], *command[1:]], cwd=where, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("command", [("check",), ("format", "--check")], ids=["ruff", "format"])
def test_style(command):
    passes("ruff", *command, ".")


@pytest.mark.parametrize(
    "command",
    [
        ("mypy", "--config-file", SETTINGS, "--cache-dir", str(APP / ".mypy_cache")),
        ("lint-imports", "--no-cache", "--config", SETTINGS),
    ],
    ids=["mypy", "imports"],
)
def test_types_and_layers(command, tmp_path):
    """Of the code as a wheel lays it out: these tools do not follow `ease_flwr.__path__`."""
    inside = tmp_path / "ease_flwr"
    shutil.copytree(APP / "ease_flwr", inside, ignore=shutil.ignore_patterns("__pycache__"))
    for half in ("strategies", "clients"):
        shutil.copytree(APP / half, inside / half, ignore=shutil.ignore_patterns("__pycache__"))
    passes(*command, where=tmp_path)


def test_readme_commands_are_what_ci_runs():
    readme = (APP / "README.md").read_text()
    blocks = [b.split("```")[0].strip() for b in readme.split("```bash")[1:]]
    assert blocks == [
        "pip install -e . -c constraints.txt && ease run",
        'pip install -e ".[dev]" -c constraints.txt && pytest -n 2 --dist loadfile',
    ]
    assert "for block in 1 2" in (APP / ".ci" / "run").read_text()


def test_the_readme_counts_and_names_every_method():
    table = (APP / "README.md").read_text().split("**Compare methods.**")[1].split("**Run a federation.**")[0]
    names = [name for row in table.splitlines() if row.startswith("| ") for name in re.findall(r"`(\w+)`", row)]
    assert sorted(names) == halves.names("strategies")
    assert f"There are {len(names)} methods" in " ".join(table.split())
