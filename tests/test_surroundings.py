"""Whatever is set on a machine, our processes get what they can work with."""

import os
import sys
from pathlib import Path

import httpx
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from ease_flwr.config import ConfigError
from ease_flwr.hosts import connected, doctor, processes, surroundings

KNOWN = {*surroundings.PAST, *surroundings.PROXIES, *(name.upper() for name in surroundings.PROXIES)}
WORDS = st.text(st.characters(blacklist_categories=("Cs",), blacklist_characters="\0"), max_size=20)
ADDRESSES = st.builds(
    "{}{}{}".format, st.sampled_from(["", "http://", "socks5://", "ftp://"]), WORDS, st.sampled_from(["", ":9"])
)
PAST = st.lists(
    st.sampled_from(["*", ".corp", "10.0.0.0/8", "::1/128", "[::1]", "<local>", "a b", "ü.de", "h:80", "https://a:b"]) | WORDS
).map(",".join)


@pytest.fixture
def alone(monkeypatch):
    """No proxy, and no temporary folder of the user's."""
    monkeypatch.setattr(surroundings.tempfile, "tempdir", "/tmp")
    for name in (*KNOWN, "RAY_TMPDIR", "TMPDIR"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def goes_past(url):
    """Whether httpx, and so flwr, asks this address itself under the variables that are set."""
    with httpx.Client(verify=False) as client:
        return client._transport_for_url(httpx.URL(url)) is client._transport


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(st.sampled_from(sorted(KNOWN)), ADDRESSES | PAST))
@example({"http_proxy": "http://127.0.0.1:9", "HTTP_PROXY": "http://127.0.0.1:9"})
@example({"ALL_PROXY": "socks5h://proxy:1080", "NO_PROXY": "::1/128"})
@example({"https_proxy": "proxy:99999", "no_proxy": "*"})
@example({"http_proxy": "http://user:p@ss word@proxy:1"})
def test_whatever_proxies_are_set_this_machine_is_asked_past_them(alone, told):
    for name in KNOWN:
        alone.delenv(name, raising=False)
    for name, value in told.items():
        alone.setenv(name, value)
    before = dict(os.environ)
    with surroundings.past_proxies():
        here = {name: os.environ.get(name) for name in KNOWN}
        assert goes_past("http://127.0.0.1:9091")
        assert goes_past("http://localhost:9091")
    assert dict(os.environ) == before
    assert {name: surroundings.environment().get(name) for name in KNOWN} == here


def test_a_proxy_that_can_be_used_is_used_for_all_but_this_machine(alone):
    alone.setenv("HTTP_PROXY", "http://proxy:3128")
    alone.setenv("NO_PROXY", "inside.corp, 10.1.2.3")
    found = surroundings.environment()
    assert found["HTTP_PROXY"] == "http://proxy:3128"
    assert found["no_proxy"] == found["NO_PROXY"] == "inside.corp,10.1.2.3,127.0.0.1,localhost,::1"
    with surroundings.past_proxies():
        assert not goes_past("http://elsewhere.org")
        assert goes_past("http://inside.corp")


def test_the_environment_of_flwr(alone, tmp_path):
    alone.setenv("PATH", "/usr/bin")
    alone.setenv("PYTHONIOENCODING", "ascii")
    for name in ("FORCE_COLOR", "CLICOLOR_FORCE", "TTY_COMPATIBLE"):  # a notebook's kernel sets these
        alone.setenv(name, "1")
    found = surroundings.environment(tmp_path, threads=2)
    assert found["PATH"] == os.pathsep.join([str(Path(sys.executable).parent), "/usr/bin"])
    assert (found["FLWR_HOME"], found["OMP_NUM_THREADS"]) == (str(tmp_path), "2")
    assert found["FLWR_TELEMETRY_ENABLED"] == "0"
    assert found["PYTHONIOENCODING"] == "utf-8"  # flwr's words have more letters than a terminal may know
    assert not {"FORCE_COLOR", "CLICOLOR_FORCE", "TTY_COMPATIBLE"} & set(found)
    assert not processes.listens(processes.free_port())


@given(st.integers(1, 200), st.booleans(), st.booleans())
@example(27, True, False)
def test_sockets_below_the_temporary_folder_have_paths_that_fit(tmp_path_factory, length, there, ray):
    with pytest.MonkeyPatch.context() as patch:
        for name in ("RAY_TMPDIR", "TMPDIR"):
            patch.delenv(name, raising=False)
        folder = tmp_path_factory.mktemp("t") / ("ü" * (length // 2) + "x")[:120]
        if there:
            folder.mkdir()
        patch.setenv("RAY_TMPDIR" if ray else "TMPDIR", str(folder))
        found = surroundings.temporary()
        longest = f"{found}/ease-flwr-{'0' * 16}/ray/session_2026-01-31_23-59-59_999999_4194304/sockets/plasma_store"
        assert len(os.fsencode(longest)) <= 107
        fits = len(os.fsencode(longest.replace(str(found), str(folder), 1))) <= 107
        assert (found == folder) == fits or not there


def test_temporary_folders_that_cannot_be_written_are_passed_over(alone, tmp_path):
    file = tmp_path / "f"
    file.write_text("")
    alone.setenv("RAY_TMPDIR", str(file))
    alone.setenv("TMPDIR", "/proc/1")
    assert surroundings.temporary() == Path("/tmp")
    alone.setattr(surroundings, "unwritable", lambda folder: f"{folder}: no")
    with pytest.raises(ConfigError, match=r"^no folder for temporary files: .*/tmp: no; .*: set TMPDIR to a short one"):
        processes.Family()


def test_a_superlink_that_nobody_knows_is_refused_where_flwr_reads_its_file(alone, tmp_path):
    alone.setenv("FLWR_HOME", str(tmp_path))
    with pytest.raises(ConfigError, match=r"^--superlink nope: .*no connection of that name in .*config.toml: there are "):
        connected.check("nope")
    alone.setenv("FLWR_HOME", "/proc/1/nothing")
    with pytest.raises(ConfigError, match=r"^--superlink nope: "):
        connected.check("nope")


@pytest.mark.parametrize(
    ("limits", "cores", "memory"),
    [
        ({"cpu.max": "150000 100000\n", "memory.max": "536870912\n"}, ", 1.5 in this container: ", "0.5 of 0.5 GiB free"),
        ({"cpu.max": "max 100000\n", "memory.max": "max\n"}, None, None),
        ({}, None, None),
    ],
)
def test_the_doctor_knows_the_limits_of_a_container(limits, cores, memory, monkeypatch, tmp_path):
    for name, text in limits.items():
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(doctor, "CONTAINER", tmp_path)
    found = {f.what: f for f in doctor._machine()}
    assert (cores or ": so many clients") in found["cores"].found
    assert ("in this container" in found["cores"].found) == bool(cores)
    assert memory is None or found["memory"].found == memory
    assert found["memory"].ok == (memory is None)
