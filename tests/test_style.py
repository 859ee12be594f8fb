"""The rules of the house: style, types, who may import whom."""

import subprocess
import sys
from pathlib import Path

import pytest

from ease_flwr.config import APP

BIN = Path(sys.executable).parent


@pytest.mark.parametrize(
    "command",
    [
        ["ruff", "check", "."],
        ["ruff", "format", "--check", "."],
        ["mypy"],
        ["lint-imports", "--no-cache"],
    ],
    ids=["ruff", "format", "mypy", "imports"],
)
def test_house_rules(command):
    done = subprocess.run([BIN / command[0], *command[1:]], cwd=APP, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr


def test_readme_commands_are_what_ci_runs():
    readme = (APP / "README.md").read_text()
    blocks = [b.split("```")[0].strip() for b in readme.split("```bash")[1:]]
    assert blocks == [
        "pip install -e . -c constraints.txt && ease run",
        'pip install -e ".[dev]" -c constraints.txt && pytest',
    ]
    assert "for block in 1 2" in (APP / ".ci" / "run").read_text()
