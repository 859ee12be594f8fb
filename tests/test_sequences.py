"""Laws over random sequences of requests, crashes, departures and purges; see tests/sequences.py."""

import shutil

import pytest
from hypothesis import HealthCheck, given, settings

from ease_flwr import launcher
from tests.sequences import Federation, Operation, operations

pytestmark = pytest.mark.usefixtures("still")

relaxed = {"deadline": None, "suppress_health_check": list(HealthCheck)}
LEAVES_THEN_LABEL = [Operation("client", (0,)), Operation("class", (0, 4), "npo")]
WITHDRAWN_THEN_LEAVES = [Operation("sample", (9, 20), "npo"), Operation("client", (3,), "npo"), Operation("continue")]
REFUSED_AFTER_A_CRASH = [Operation("class", (2, 1)), Operation("class", (1, 2), crash=2), Operation("purge")]
SILENT = [Operation("class", (2,), silent=True), Operation("client", (1,), "ease", 2, silent=True)]
ABSENT = [*SILENT, Operation("continue", crash=2)]
TWO_METHODS = [Operation("client", (0,), "ease", 3), Operation("client", (1,), "federaser"), Operation("class", (3,), "ease")]
PURGED = [
    Operation("client", (0,), "ease"),
    Operation("continue"),
    Operation("class", (5,)),
    Operation("purge"),
    Operation("continue"),
]
TWICE_WITHOUT = [Operation("class", (1,), silent=True), Operation("client", (0,)), Operation("purge")]
NOBODY_HELPS = [
    Operation("sample", (0,), "finetune", silent=True),
    Operation("client", (0,), "npo", crash=3),
    Operation("class", (1,), "ease"),
    Operation("client", (0,), "finetune"),
    Operation("continue"),
]


def play(folder, sequence, monkeypatch, crashing=True):
    """Do all of it; the digests of the models at the end."""
    own = folder.with_name(f"{folder.name}-home")  # a cache of its own: what other runs have learnt is purged by them
    shutil.rmtree(own, ignore_errors=True)
    monkeypatch.setenv("EASE_FLWR_HOME", str(own))
    run = Federation(folder, crashing)
    monkeypatch.setattr(launcher, "submit", run.submitted)
    for op in sequence:
        run.do(op)
    return run.finish(folder.parent / "key.pem")


def law(home, sequence):
    """Every step is as it must be, and the same as without crashes, to the last bit."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        shutil.rmtree(home / "crashing", ignore_errors=True)
        shutil.rmtree(home / "whole", ignore_errors=True)
        found = play(home / "crashing", sequence, monkeypatch)
        if any(op.crash for op in sequence):
            assert found == play(home / "whole", sequence, monkeypatch, crashing=False)


@pytest.mark.slow
@pytest.mark.parametrize(
    "sequence",
    [LEAVES_THEN_LABEL, WITHDRAWN_THEN_LEAVES, TWO_METHODS, ABSENT, PURGED, REFUSED_AFTER_A_CRASH, NOBODY_HELPS, TWICE_WITHOUT],
)
def test_sequences_that_once_went_wrong(home, sequence):
    law(home, sequence)


@pytest.mark.slow
@settings(max_examples=12, derandomize=True, **relaxed)
@given(sequence=operations)
def test_random_sequences(home, sequence):
    law(home, sequence)


@pytest.mark.long
@settings(max_examples=60, **relaxed)
@given(sequence=operations)
def test_many_random_sequences(home, sequence):
    law(home, sequence)
