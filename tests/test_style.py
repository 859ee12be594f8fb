"""The rules of the house: style, types, who may import whom, sizes, and long checks that are not older than the code."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from ease_flwr.config import APP
from tests.long import CHECKS, result_of

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


SOURCES = sorted(
    p for room in ("ease_flwr", "strategies", "clients", "benchmarks", "tests") for p in (APP / room).rglob("*.py")
)
COMMANDS = APP / "ease_flwr" / "cli"


def test_no_file_is_longer_than_three_hundred_lines():
    long = {p.relative_to(APP).as_posix(): n for p in SOURCES if (n := len(p.read_text().splitlines())) > 300}
    assert not long


def test_no_function_has_more_than_six_parameters():
    """Commands of the command line have as many as they have options."""
    many = []
    for path in (p for p in SOURCES if COMMANDS not in p.parents and "tests" not in p.parts):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                names = [a.arg for a in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
                if len([n for n in names if n not in ("self", "cls")]) > 6:
                    many.append(f"{path.relative_to(APP)}:{node.lineno} {node.name}")
    assert not many


@pytest.mark.parametrize("name", CHECKS)
def test_long_checks_are_as_new_as_the_code(name):
    found = result_of(name)
    assert found.get("passed"), f"run `python -m tests.long {name}`"
    assert found["code"] == CHECKS[name].code(), (
        f"the code has changed since {found['date']}: run `python -m tests.long {name}`"
    )
