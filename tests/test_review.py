"""What the owner of a host sees of the code that is offered, and of what was asked; and what the owner says."""

import io
import json
import re
import stat
import zipfile
from datetime import datetime

import pytest
from typer.testing import CliRunner

from ease_flwr import cli
from ease_flwr.config import APP, ConfigError
from ease_flwr.hosts import app, owners_log, pinned, upgrade
from ease_flwr.hosts.policy import POLICY
from tests.test_door import changed, home

__all__ = ["home"]


def said(*words):
    return CliRunner().invoke(cli.app, ["host", *map(str, words)])


def test_review_shows_what_is_different_and_accept_lets_it_run(home, tmp_path):
    new = changed({"clients/own.py": b"one\ntwo\n", "README.md": None, "clients/npo.py": b"x\n"})
    name = pinned.digest(new)
    assert pinned.refusal(home, new)
    shown = said("review", home).output.splitlines()
    assert shown[:2] == [f"offered  {name}", f"pinned   {pinned.digest(app.packed())}"]
    assert [re.sub(r" +", " ", line) for line in shown[2:]] == [
        f"gone README.md +0 -{(APP / 'README.md').read_text().count(chr(10))}",
        f"changed clients/npo.py +1 -{(APP / 'clients' / 'npo.py').read_text().count(chr(10))}",
        "new clients/own.py +2 -0",
        f"next: ease host review {home} {name[:16]} --diff",
        f"next: ease host accept {home} {name[:16]}",
    ]
    assert "\n+two\n" in said("review", home, name[:12], "--diff").output
    text, mode = (home / POLICY).read_text(), stat.S_IMODE((home / POLICY).stat().st_mode)
    assert said("accept", home, name[:8]).output == f"{name} may run here; {home}/policy.toml lists what else may\n"
    after = (home / POLICY).read_text()
    assert after.replace(f'    "{name}",\n', "") == text  # its remarks are still there
    assert stat.S_IMODE((home / POLICY).stat().st_mode) == mode
    assert pinned.refusal(home, new) == ""
    assert said("review", home).output.startswith("nothing is offered: 2 pinned")
    assert said("accept", home, name).exit_code == 0  # again
    assert (home / POLICY).read_text() == after


def test_what_cannot_be_accepted_is_one_line(home):
    for words, line in (
        (
            ("accept", home, "beef" * 4),
            rf"no bundle '{'beef' * 4}' in {home}/code: there are {pinned.digest(app.packed())[:16]};",
        ),
        (("accept", home, "3"), "give 8 digits at least"),
        (("review", home.parent), f"no {home.parent}/policy.toml: nothing is done without it"),
    ):
        found = said(*words)
        assert (found.exit_code, len(found.stderr.splitlines())) == (2, 1)
        assert line in found.stderr
    (home / POLICY).write_text((home / POLICY).read_text().replace("code = [", "'code' = ["))
    new = changed({"x.py": b"1"})
    pinned.refusal(home, new)
    before = (home / POLICY).read_text()
    assert (
        f'its key code is not written as usual: add "{pinned.digest(new)}" to it by hand'
        in said("accept", home, pinned.digest(new)).stderr
    )
    assert (home / POLICY).read_text() == before


def test_what_is_shown_of_a_bundle_moves_no_cursor_and_hides_nothing(home):
    hidden = "ok = True  # \u202e eurt\x1b[1A\x1b[2K\n"
    pinned.refusal(home, changed({"clients/\x1b[2Jown.py": hidden.encode()}))
    for words in (("review", home), ("review", home, "--diff")):
        assert all(line.isprintable() for line in said(*words).output.splitlines())
    assert r"+ok = True  # \u202e eurt\x1b[1A\x1b[2K" in said("review", home, "--diff").output


@pytest.mark.parametrize("fab", [b"no zip", b"PK\x05\x06" + bytes(18), None])
def test_a_bundle_that_is_none_is_refused_like_any_other(home, fab):
    if fab is None:  # two files of one name: a reader sees one, Flower unpacks the other
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w") as archive:
            archive.writestr("a.py", "1")
            with pytest.warns(UserWarning, match="Duplicate name"):
                archive.writestr("a.py", "2")
        fab = out.getvalue()
    assert pinned.refusal(home, fab).startswith("host a runs only code that its owner has pinned")
    found = said("review", home)
    assert found.exit_code == (2 if fab[:4] != b"PK\x05\x06" else 0)
    assert found.exit_code == 0 or "do not accept it" in found.stderr


def test_offers_do_not_fill_the_disk(home):
    for k in range(6):
        pinned.refusal(home, changed({"x.py": str(k).encode()}))
    pinned.refusal(home, b"x" * (pinned.MOST + 1))
    assert len(list((home / "code").glob("*.fab"))) == 1 + pinned.OFFERS


def test_what_the_owner_installs_may_run(home, monkeypatch):
    new = changed({"x.py": b"1"})
    monkeypatch.setattr(app, "packed", lambda: new)
    assert said("accept", home, "installed").output.startswith(f"{pinned.digest(new)} may run here")
    assert pinned.refusal(home, new) == ""


def test_an_upgrade_by_the_owner_lets_the_new_code_run(home):
    policy = home / POLICY
    policy.write_text(policy.read_text().replace(pinned.digest(app.packed()), "0" * 64))
    assert pinned.refusal(home, app.packed())
    assert upgrade.pin(home) == pinned.digest(app.packed())
    assert pinned.refusal(home, app.packed()) == ""
    policy.write_text("nothing")
    with pytest.raises(ConfigError, match=rf"^what is installed now is not pinned in {home}: {policy}: not TOML"):
        upgrade.pin(home)
    with pytest.raises(
        ConfigError, match=rf"^what is installed now is not pinned in {home.parent}: {home.parent}/node.toml: No s"
    ):
        upgrade.pin(home.parent)


def test_an_upgrade_from_a_version_without_policies_writes_one(home):
    written = (home / POLICY).read_text()
    (home / POLICY).unlink()
    assert upgrade.pin(home) == pinned.digest(app.packed())
    assert (home / POLICY).read_text() == written


def test_a_host_of_an_earlier_version_gets_a_policy(home):
    before = (home / POLICY).read_text()
    (home / POLICY).unlink()
    assert said("policy", home).output.startswith(f"{home}/policy.toml: written; look through it\n")
    assert (home / POLICY).read_text() == before
    (home / POLICY).write_text(before.replace("scores", "score"))
    assert said("policy", home).exit_code == 2


def test_the_log_is_for_people_and_for_programs(home):
    now = datetime(2026, 1, 2, 3, 4).astimezone()
    owners_log.write(home, now, {"message": "a", "asked": "learn", "run_dir": "/runs/\x1bone", "objective": "contrastive"})
    with next((home / "log").glob("*.jsonl")).open("a") as f:
        f.write('{"cut')  # by a crash
    owners_log.write(
        home, now, {"message": "a", "sent": {"bytes": 8, "arrays": {"adapters": "float32 (2,)"}, "metrics": ["loss"]}}
    )
    owners_log.write(home, now, {"message": "b", "asked": "audit", "probes": "membership"})
    owners_log.write(home, now, {"message": "b", "refused": "probes"})
    lines = said("log", home).output.splitlines()
    assert lines[0].endswith(r"\x1bone  learn contrastive  sent 8 bytes: adapters float32 (2,), loss")
    assert lines[1].endswith("audit membership  refused: probes")
    assert [json.loads(line)["asked"] for line in said("log", home, "--json").output.splitlines()] == ["learn", "audit"]
