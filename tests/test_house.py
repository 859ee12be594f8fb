"""The house by itself: sizes, nothing dead, nothing described that is not there, long checks as new as the code."""

import ast
import re

import pytest

from ease_flwr.config import APP
from tests.long import CHECKS, result_of

SOURCES = sorted(
    p for room in ("ease_flwr", "strategies", "clients", "benchmarks", "tests") for p in (APP / room).rglob("*.py")
)
COMMANDS = APP / "ease_flwr" / "cli"
API = APP / "ease_flwr" / "api.py"


def test_no_file_is_longer_than_three_hundred_lines():
    long = {p.relative_to(APP).as_posix(): n for p in SOURCES if (n := len(p.read_text().splitlines())) > 300}
    assert not long


def test_no_function_has_more_than_six_parameters():
    """Commands of the command line have as many as they have options, and so has what does the same in Python."""
    many = []
    for path in (p for p in SOURCES if COMMANDS not in p.parents and p != API and "tests" not in p.parts):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                names = [a.arg for a in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
                if len([n for n in names if n not in ("self", "cls")]) > 6:
                    many.append(f"{path.relative_to(APP)}:{node.lineno} {node.name}")
    assert not many


def test_nothing_is_there_for_tests_alone():
    """Every function and class at the top of a module is named elsewhere in the program, or found by the name of its file."""
    program = [p for p in SOURCES if "tests" not in p.parts]
    text = "\n".join(p.read_text() for p in program) + (APP / "pyproject.toml").read_text()
    words: dict[str, int] = {}
    for word in re.findall(r"\w+", text):
        words[word] = words.get(word, 0) + 1
    dead = []
    for path in program:
        for node in ast.parse(path.read_text()).body:
            asked_by_python = node.name.startswith("__") if isinstance(node, ast.FunctionDef) else False
            found_by_file = asked_by_python or (
                path.parent.name in ("strategies", "clients") and isinstance(node, ast.ClassDef)
            )
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.decorator_list and not found_by_file:
                dead += [f"{path.relative_to(APP)}: {node.name}"] if words[node.name] < 2 else []
    assert not dead


PATHS = re.compile(r"(?<![\w./-])((?:ease_flwr|strategies|clients|conf|docs|tests|benchmarks)/[\w./-]*\w(?:\.\w+|/))(?![\w-])")
EXAMPLES = re.compile(r"docs/figures/|tests/long_results/|.*/NAME\.|.*/shuffle\.")
"""Written by commands, or names of files that the guide lets the reader make."""


def test_every_path_that_is_described_exists():
    documents = [p for p in APP.glob("*.md") if p.name != "CHANGELOG.md"] + list((APP / "docs").glob("*.md"))
    wrong = []
    for path in (*documents, *SOURCES):
        for found in PATHS.findall(path.read_text()):
            if not (APP / found).exists() and not EXAMPLES.match(found) and "tests" not in path.parts:
                wrong.append(f"{path.relative_to(APP)}: {found}")
    assert not wrong


def test_every_test_that_is_named_exists():
    """Tables of docs/ say which test shows what they claim."""
    tests = [p for p in SOURCES if "tests" in p.parts]
    there = {p.stem for p in tests} | set(re.findall(r"def (test_\w+)", "\n".join(p.read_text() for p in tests)))
    named = {name for p in (APP / "docs").glob("*.md") for name in re.findall(r"\btest_\w+", p.read_text())}
    assert len(named) > 40
    assert named <= there


@pytest.mark.parametrize("name", [name for name, check in CHECKS.items() if check.follows])
def test_long_checks_are_as_new_as_the_code(name):
    found = result_of(name)
    if found.get("skipped"):
        pytest.skip(f"{name} was not checked: {found['skipped']}")
    assert found.get("passed"), f"run `python -m tests.long {name}`"
    assert found["code"] == CHECKS[name].code(), (
        f"the code has changed since {found['date']}: run `python -m tests.long {name}`"
    )
