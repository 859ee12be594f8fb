"""What several test files share. What is learnt is learnt once: all files have one cache."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: two processes with two threads each on two cores would spin

import pytest
from hypothesis import settings as generation

from tests.small import settings

generation.register_profile("same", derandomize=True)  # what is generated is the same each time
generation.register_profile("many", max_examples=2_500)  # of a long check: --hypothesis-profile=many
generation.load_profile("same")


@pytest.fixture(scope="session")
def shared_home(tmp_path_factory):
    """Where the cache of all tests is."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def home(shared_home, request):
    """A folder for the runs of a test file; their cache is everybody's."""
    folder = shared_home / request.module.__name__
    folder.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EASE_FLWR_HOME", str(shared_home))
        yield folder


@pytest.fixture
def our_methods_alone(monkeypatch):
    """This process knows of no methods but ours."""
    from ease_flwr.config import halves, identity

    for half in identity.HALVES:
        home = halves._home(half)
        monkeypatch.setattr(home, "__path__", home.__path__[:1])


@pytest.fixture
def our_files_alone(monkeypatch):
    """This process knows of no experiments and variants but ours, and forgets those of the test."""
    from ease_flwr.config import own

    monkeypatch.setattr(own, "settings", {group: {} for group in own.GROUPS})
    monkeypatch.setattr(own, "clashes", {})


@pytest.fixture
def in_process(monkeypatch):
    """The launcher submits to this process."""
    from ease_flwr import launcher
    from tests.in_process_grid import submit

    def submitted(run_config, experiment, folder, where):
        submit(run_config)
        return 0

    monkeypatch.setattr(launcher, "submit", submitted)


@pytest.fixture
def nothing_starts(monkeypatch):
    """The launcher submits nothing; one entry for each time it would have."""
    from ease_flwr import launcher

    would: list[int] = []
    monkeypatch.setattr(launcher, "submit", lambda *_: would.append(1) or 1)
    return would


@pytest.fixture(scope="module")
def still():
    """The clock of roll calls and exchanges stands still, but where they wait themselves."""
    from ease_flwr.exchange import roll_call, transport
    from tests.in_process_grid import Clock

    with pytest.MonkeyPatch.context() as patch:
        for module in (roll_call, transport):
            patch.setattr(module, "time", Clock())
        yield


@pytest.fixture(scope="session")
def whole(shared_home):
    """One command: learn, forget client-0, then client-1, continue."""
    return _run(shared_home, settings(shared_home / "whole", **{"forget.then": "client-1"}))


@pytest.fixture(scope="session")
def learnt(shared_home):
    """A federation that has learnt, and nothing else."""
    return _run(shared_home, {**settings(shared_home / "learnt"), "until": "learn"})


@pytest.fixture(scope="session")
def reported(shared_home):
    """A run with a reference, a quick audit and its report."""
    from ease_flwr.audit import report

    folder = _run(
        shared_home, settings(shared_home / "reported", **{"audit.level": "quick", "evaluation.reference": "retrain"})
    )
    report.of_run(folder)
    return folder


def _run(home, run_config):
    from pathlib import Path

    from tests.in_process_grid import submit

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EASE_FLWR_HOME", str(home))
        submit(run_config)
    return Path(run_config["run-dir"])
