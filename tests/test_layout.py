"""The layout of a run tells the truth: what resume and report read, what a receipt pins, and that nothing else lies there."""

import json
import shutil

import pytest

from ease_flwr import launcher
from ease_flwr.audit import envelope, receipt, report
from ease_flwr.audit.summary import current_audit, read_results
from ease_flwr.config import ConfigError
from ease_flwr.store import purge
from ease_flwr.store.layout import RunLayout
from tests.in_process_grid import submit
from tests.small import hashes, settings
from tests.standing import SIMULATION, ask, copy, die, leaves

pytestmark = pytest.mark.usefixtures("in_process")


def only(run, to, wanted):
    """A copy of a run that has the files of these kinds alone."""
    for artefact in RunLayout(run).artefacts():
        if artefact.kind and wanted(artefact.kind):
            (to / artefact.name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(artefact.path, to / artefact.name)
    return to


@pytest.fixture(scope="module")
def audited(home):
    more = {"evaluation.reference": "retrain", "audit.level": "quick", "continuation.rounds": 1, "evaluation.every": 1}
    submit(settings(home / "audited", **more))
    return home / "audited"


@pytest.mark.slow
def test_resume_reads_what_the_table_says_and_nothing_else(whole, tmp_path, monkeypatch):
    monkeypatch.setenv("EASE_FLWR_HOME", str(tmp_path / "home"))
    assert die(settings(tmp_path / "run", **{"forget.then": "client-1"}), 10)
    run = only(tmp_path / "run", tmp_path / "moved", lambda kind: kind.resume in ("reads", "cuts"))
    launcher.resume(run, SIMULATION)
    assert "goes on after" in (run / "log.txt").read_text()
    assert hashes(run) == hashes(whole)


def test_what_was_half_written_is_removed(learnt, tmp_path):
    run = copy(learnt, tmp_path / "run")
    (run / "forget.partial" / "history").mkdir(parents=True)
    (run / "forget.partial" / "theta.safetensors").write_bytes(b"half")
    (run / "results.json.partial").write_text("{")
    ask(run, leaves("client-0"), "finetune", "rounds=1")
    assert not list(run.rglob("*.partial"))


def test_report_reads_what_the_table_says_and_nothing_else(audited, tmp_path):
    run = only(audited, tmp_path / "moved", lambda kind: kind.report)
    report.of_run(run)
    assert (run / "report.html").stat().st_size > 10_000
    assert RunLayout(run).unknown() == []


def test_a_receipt_pins_what_the_table_says(audited, tmp_path):
    run, key = copy(audited, tmp_path / "run"), tmp_path / "key.pem"
    envelope.keygen(key)
    receipt.make(run, key)
    named = {s["name"] for s in envelope.opened(run / "receipt.json")["subject"]}
    assert named == {a.name for a in RunLayout(run).artefacts() if a.kind and a.kind.sealed}
    assert {"results.json", "queue.json", "audit.json", "phases/forget/theta.safetensors"} <= named


def test_what_no_kind_describes_is_named(audited, tmp_path):
    run, key = copy(audited, tmp_path / "run"), tmp_path / "key.pem"
    envelope.keygen(key)
    (run / "phases" / "forget" / "copy-of-client-0.safetensors").write_bytes(b"?")
    assert [x.where for x in purge.purge(run) if x.status == "unknown"] == ["phases/forget/copy-of-client-0.safetensors"]
    receipt.make(run, key)
    with pytest.raises(
        ConfigError, match=r"copy-of-client-0.safetensors is no part of a run that this version knows: look at it"
    ):
        receipt.verify(run)
    (run / "phases" / "forget" / "copy-of-client-0.safetensors").unlink()
    receipt.verify(run)


def test_only_an_audit_of_these_adapters_counts(audited, tmp_path):
    """Law: whatever audits lie there, the one that counts is about the adapters of results.json; the full one goes first."""
    run = copy(audited, tmp_path / "run")
    key = tmp_path / "key.pem"
    envelope.keygen(key)

    def signed():
        receipt.make(run, key)
        return envelope.opened(run / "receipt.json")["predicate"]["audit"]

    quick = json.loads((run / "audit.json").read_text())
    assert signed()["file"] == "audit.json"
    stale = {**quick, "level": "full", "at": "2099-01-01T00:00:00Z", "verdict": [{"answer": "stale"}]}
    stale["adapters_sha256"] = {**quick["adapters_sha256"], "unlearned": "0" * 64}
    (run / "audit-full").mkdir()
    (run / "audit-full" / "audit.json").write_text(json.dumps(stale))
    assert signed()["file"] == "audit.json"
    full = {**quick, "level": "full", "at": "2000-01-01T00:00:00Z"}
    (run / "audit-full" / "audit.json").write_text(json.dumps(full))
    assert (signed()["file"], signed()["level"]) == ("audit-full/audit.json", "full")
    (run / "audit.json").write_text(json.dumps({**quick, "adapters_sha256": stale["adapters_sha256"]}))
    (run / "audit-full" / "audit.json").unlink()
    assert signed() == {**signed(), "file": "", "level": "none", "verdict": []}
    assert current_audit(run, read_results(run)) == (None, {})
