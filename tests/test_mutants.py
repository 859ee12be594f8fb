"""Mistakes on purpose: their table fits the code, and what becomes of one is told rightly."""

import ast

import pytest

from benchmarks import mutants
from benchmarks.mutants import Mutant
from ease_flwr.config import APP


@pytest.mark.parametrize("mutant", mutants.table(), ids=lambda m: m.name)
def test_every_mutant_can_be_made(mutant):
    source = (APP / mutant.file).read_text()
    made = mutant.made(source)
    assert ast.dump(ast.parse(made)) != ast.dump(ast.parse(source))
    assert all((APP / file).is_file() for file in mutant.tests)


def test_a_text_that_is_not_there_once_is_refused_in_one_line():
    mutant = Mutant("rotten", "x.py", "a", "b", ())
    for source, times in (("", 0), ("a + a", 2)):
        with pytest.raises(
            ValueError, match=rf"^mutant rotten: its text is {times} times in x.py, not once: mend it in mistakes/$"
        ):
            mutant.made(source)
    with pytest.raises(ValueError, match=r"^no mutant 'nonsense' in mistakes/: there are .*blocks-across-towers"):
        mutants.chosen(["blocks-across-towers", "nonsense"])
    assert [m.name for m in mutants.chosen(["blocks-across-towers"])] == ["blocks-across-towers"]


@pytest.mark.parametrize(
    ("instead", "expected"),
    [("return 2", "killed"), ("return 3 - 2", "survived"), ("return )", "broken"), ("import no", "broken")],
)
def test_what_becomes_of_a_mutant(instead, expected, tmp_path):
    """A mutant that no test can run with is not killed: nothing has looked at it."""
    (tmp_path / "subject.py").write_text("def one():\n    return 1\n")
    (tmp_path / "test_subject.py").write_text("from subject import one\n\n\ndef test_one():\n    assert one() == 1\n")
    text = "def one():\n    return 1" if instead == "import no" else "return 1"
    mutant = Mutant("m", "subject.py", text, instead, ("test_subject.py",))
    assert mutants.outcome(mutant, tmp_path) == expected
    assert (tmp_path / "subject.py").read_text() == "def one():\n    return 1\n"


@pytest.mark.slow
def test_tests_in_a_copy_look_at_the_copy(tmp_path):
    folder = mutants.copy(tmp_path)
    look = "import ease_flwr\nfrom ease_flwr import clients, strategies\n\n\ndef test_here():\n"
    look += f"    assert all(str(m.__path__[0]).startswith({str(folder)!r}) for m in (clients, ease_flwr, strategies))\n"
    (folder / "tests" / "test_here.py").write_text(look)
    said = mutants.test(folder, ["tests/test_here.py", "tests/test_lock.py"])
    assert said.returncode == 0, said.stdout + said.stderr
