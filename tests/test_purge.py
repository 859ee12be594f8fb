"""After forgetting: what is left in the folder of a run, what is deleted, and what a receipt says about both."""

import json
import random

import pytest

from ease_flwr import launcher
from ease_flwr.audit import envelope, receipt, report
from ease_flwr.audit.summary import read_results
from ease_flwr.config import ConfigError
from ease_flwr.store import phases, purge
from tests.in_process_grid import submit
from tests.small import hashes, settings
from tests.standing import SIMULATION, Death, ask, copy, pairs

pytestmark = pytest.mark.usefixtures("in_process")


@pytest.mark.slow
def test_purge_deletes_what_knows_and_says_what_is_kept(whole, tmp_path, monkeypatch):
    monkeypatch.setenv("EASE_FLWR_HOME", str(tmp_path / "home"))
    submit(settings(tmp_path / "run", **{"forget.then": "client-1", "audit.level": "quick", "evaluation.reference": "retrain"}))
    run = tmp_path / "run"
    gone = [phases.read(run / "phases" / p).theta for p in ("learn", "forget")]
    columns = [f.read_bytes()[-400:] for f in run.glob("phases/learn/history/client-[01]/*.safetensors")]
    assert len(columns) == 8
    planned = purge.residual(run)
    assert {x.status for x in planned} == {"to be purged", "kept"}
    found = purge.purge(run)
    assert {x.where for x in found if x.status == "purged"} == {x.where for x in planned if x.status == "to be purged"}
    assert all(x.reason for x in found if x.status == "kept")
    for file in (p for p in tmp_path.rglob("*") if p.is_file()):  # the cache too
        content = file.read_bytes()
        assert not any(theta.tobytes()[1000:1400] in content for theta in gone), file
        assert not any(column in content for column in columns), file
    assert json.loads((run / "audit.json").read_text())["scores"] == {}
    assert not (run / "adapters" / "original").exists()
    assert launcher.audit(run, "quick", SIMULATION) == 0  # of the models that are left
    audited = json.loads((run / "audit-quick" / "audit.json").read_text())["adapters_sha256"]
    assert {"unlearned", "continued", "retrain"} <= {*audited}
    assert "original" not in audited
    launcher.continue_training(run, 1, SIMULATION)  # it still goes on
    assert "original" not in hashes(run)
    assert "continued" in hashes(run)
    left = {x.where for x in purge.residual(run) if x.status == "to be purged" and "scores" not in x.where}
    assert left == {"report.html", "figures"}  # going on ends with a report again, and it shows pictures of what was forgotten
    purge.purge(run)
    assert not [x for x in purge.residual(run) if x.status == "to be purged"]


def test_a_purged_run_has_a_report_still(reported, tmp_path):
    """Without the figures of single pairs, whose similarities were purged."""
    run = copy(reported, tmp_path / "run")
    drawn = {f.stem for f in (run / "figures").glob("*.svg")}
    purge.purge(run)
    assert not (run / "figures").exists()
    report.of_run(run, pictures=False)
    assert drawn - {f.stem for f in (run / "figures").glob("*.svg")} == {"similarity", "membership", "first-alike"}


@pytest.mark.parametrize("lives", [1, 2, 5])
def test_a_purge_that_dies_is_known_and_done_again(lives, reported, tmp_path, monkeypatch):
    run, delete, left = copy(reported, tmp_path / "run"), purge._delete, iter(range(lives))
    planned = {x.where for x in purge.residual(run) if x.status == "to be purged"}

    def mortal(layout, paths):
        if paths and next(left, None) is None:
            raise Death
        delete(layout, paths)

    monkeypatch.setattr(purge, "_delete", mortal)
    with pytest.raises(Death):
        purge.purge(run)
    assert "original" not in purge.left(run, ["original", "unlearned"])  # what may be gone is not asked for
    still = {x.where: x.status for x in purge.residual(run) if x.status == "to be purged"}
    said = receipt.predicate(run, read_results(run))["residual"]
    assert len({x["where"] for x in said}) == len(said)
    assert {x["where"]: x["status"] for x in said if x["where"] in planned} == dict.fromkeys(planned, "purged") | still
    monkeypatch.setattr(purge, "_delete", delete)
    purge.purge(run)
    assert not [x for x in purge.residual(run) if x.status == "to be purged"]
    assert planned <= {entry["where"] for entry in purge.purged(run)}
    report.of_run(run)


@pytest.mark.parametrize("content", [b"", b'{"at": ', b"\xff\xfe", b"[]"])
@pytest.mark.parametrize(
    "name",
    ["audit.json", "metrics.jsonl", "experiment.json", "purge.json", "ledger.jsonl", "adapters/unlearned/provenance.json"],
)
def test_a_broken_file_of_a_run_is_named(name, content, receipted, reported, tmp_path, home):
    """As a full disk, or one that lost its power, leaves it."""
    run, key = copy(receipted[0], tmp_path / "run"), home / "key.pem"
    if name == "audit.json":
        run = copy(reported, tmp_path / "reported")
    (run / name).write_bytes(content)
    works = [
        lambda: purge.purge(run),
        lambda: receipt.make(run, key),
        lambda: receipt.verify(run),
        lambda: report.of_run(run, False),
    ]
    for work in works:
        try:
            work()
        except ConfigError as error:
            assert str(run) in str(error) or "receipt" in str(error)  # noqa: PT017


def test_nothing_to_purge_is_said(learnt, tmp_path):
    run = copy(learnt, tmp_path / "run")
    with pytest.raises(ConfigError, match=r"no request to forget is done there, so there is nothing to purge"):
        purge.purge(run)
    with pytest.raises(ConfigError, match=r": no run there: give the folder of one$"):
        purge.purge(tmp_path)


# ---- receipts ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def receipted(whole, home):
    run = copy(whole, home / "receipted")
    public = envelope.keygen(home / "key.pem")
    receipt.make(run, home / "key.pem")
    purge.purge(run)
    receipt.make(run, home / "key.pem")
    return run, public


def test_a_receipt_says_what_was_asked_done_and_left(receipted, tmp_path):
    run, public = receipted
    said = envelope.opened(run / "receipt.json")["predicate"]
    assert [r["targets"] for r in said["requests"]] == [["client-0"], ["client-1"]]
    assert all(r["done"] >= r["asked"] > "2026" for r in said["requests"])
    assert {x["status"] for x in said["residual"]} == {"purged", "kept"}
    assert "parameters alone cannot prove it" in said["not_shown"]
    assert said["number"] == 2
    copied = copy(run, tmp_path / "elsewhere")  # a second machine's view
    good = receipt.verify(copied, public)
    assert good[0].startswith("2 receipts in an unbroken chain")
    assert receipt.verify(copied / "receipt.json", public)[0].startswith("receipt.json: good signature")
    assert (run.parent / "key.pem").stat().st_mode & 0o777 == 0o600


def test_every_edit_is_detected(receipted, tmp_path):
    run, public = receipted
    copied = copy(run, tmp_path / "run")
    draw = random.Random(1)
    files = ["receipt.json", "receipts/0001.json", "receipts/0002.json", "ledger.jsonl"]
    files += [
        "adapters/unlearned/adapter_model.safetensors",
        "adapters/continued/adapter_config.json",
        "results.json",
        "queue.json",
    ]
    for trial in range(48):
        file = copied / files[trial % len(files)]
        good = file.read_bytes()
        position = draw.randrange(len(good))
        edits = [
            good[:position] + bytes([good[position] ^ (1 << draw.randrange(7))]) + good[position + 1 :],
            good[:position] + good[position + 1 :],
            good[:position] + b" " + good[position:],
        ]
        file.write_bytes(edits[draw.randrange(3)])
        if file.read_bytes() == good:
            continue
        with pytest.raises(ConfigError) as error:
            receipt.verify(copied, public)
        assert "\n" not in str(error.value)
        file.write_bytes(good)
    receipt.verify(copied, public)
    (copied / "ledger.jsonl").write_text((copied / "ledger.jsonl").read_text().splitlines()[0] + "\n")
    with pytest.raises(ConfigError, match=r"1 receipts more than the ledger has lines"):
        receipt.verify(copied, public)


def test_the_wrong_key_and_fields_signed_anew_are_detected(receipted, tmp_path):
    run, public = receipted
    other = envelope.keygen(tmp_path / "other.pem")
    with pytest.raises(ConfigError, match=r"signed with key \w{16}, not with the expected"):
        receipt.verify(run, other)
    copied = copy(run, tmp_path / "run")
    statement = envelope.opened(run / "receipts" / "0002.json")
    statement["predicate"]["requests"] = statement["predicate"]["requests"][:1]
    sealed = json.loads((run / "receipts" / "0002.json").read_text())
    text = envelope.seal_again(statement, sealed["signatures"][0])
    (copied / "receipts" / "0002.json").write_text(text)
    with pytest.raises(ConfigError, match=r"0002.json: the signature does not fit the content"):
        receipt.verify(copied, public)
    with pytest.raises(ConfigError, match=r"a key is never overwritten"):
        envelope.keygen(tmp_path / "other.pem")
    (tmp_path / "other.pem").chmod(0o644)
    with pytest.raises(ConfigError, match=r"can be read by others: chmod 600"):
        receipt.make(copied, tmp_path / "other.pem")
    with pytest.raises(ConfigError, match=r"no private key .*: make one with `ease receipt keygen"):
        receipt.make(copied, tmp_path / "nothing.pem")


def test_sample_ids_are_hashed_in_a_receipt(learnt, tmp_path):
    run = copy(learnt, tmp_path / "run")
    ask(run, pairs("client-1/16:24"), "finetune", "rounds=1")
    envelope.keygen(tmp_path / "key.pem")
    receipt.make(run, tmp_path / "key.pem")
    said = envelope.opened(run / "receipt.json")["predicate"]
    (target,) = said["requests"][0]["targets"]
    assert len(target) == 64
    assert "16:24" not in json.dumps(said)
