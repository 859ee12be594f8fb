"""Machines as people have them: whatever is set, closed or cannot be written, a command ends well or with one line."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from ease_flwr import WINDOWS, config, launcher
from ease_flwr.cli import app
from ease_flwr.config import APP, ConfigError
from ease_flwr.hosts import doctor
from ease_flwr.hosts import simulation as simulations
from ease_flwr.hosts.link import Link
from ease_flwr.hosts.simulation import Where
from ease_flwr.store import files

VARIABLES = {
    "HOME": ["/proc/nobody", "FILE", ""],
    "EASE_FLWR_HOME": ["/proc/nothing", "FILE/runs", "", None],
    "FLWR_HOME": ["/proc/nothing", "FILE", None],
    "TMPDIR": ["/proc", "FILE", "/tmp/" + "x" * 90, ""],
    "RAY_ADDRESS": ["10.255.255.1:6379", "auto", ""],
    "RAY_TMPDIR": ["/proc/1", "relative"],
    "http_proxy": ["http://127.0.0.1:9", "socks5://h:1080", "::", "http://u:secret@h:9x"],
    "ALL_PROXY": ["socks5h://h:1080"],
    "no_proxy": ["*", "::1/128,[::1]"],
    "LC_ALL": ["C", "POSIX", "xx_YY.nothing"],
    "PYTHONIOENCODING": ["ascii", "latin-1:strict"],
    "PYTHONUTF8": ["0"],
    "NO_COLOR": ["1"],
    "FORCE_COLOR": ["1"],
    "TERM": ["dumb", "", "nothing-known"],
    "COLUMNS": ["1", "20", "0", "many"],
}
"""What is set on machines, and to what; FILE is a file where a folder should be, None is not set at all."""
COMMANDS = [
    *(["--help"], ["run", "--help"], ["--version"], ["methods"], ["doctor", "--json"], ["status"], ["status", "FILE"]),
    *(["status", "MISSING"], ["purge", "MISSING"], ["report", "FILE"], ["summary", "MISSING"], ["resume", "FILE"]),
    *(
        ["forget", "MISSING", "--client", "ümlaut"],
        ["data", "check", "MISSING"],
        ["data", "demo", "FILE"],
        ["verify", "MISSING"],
    ),
    *(["receipt", "MISSING"], ["app", "/proc/ease-flwr"], ["receipt", "keygen"], ["data", "check", "GOOD"]),
    *(["run", "personas", "--run-dir", "/proc/run"], ["run", "personas", "--run-dir", "FILE/run"]),
    *(["run", "personas", "--superlink", "nope"], ["compare", "--folder", "FILE/cells", "--seeds", "0"]),
    *(["run", "personas", "--seed", str(2**64)], ["host", "log", "MISSING"], ["deploy", "health", "MISSING"]),
]
STREAMS = ["", "", "", ">&-", "2>&-", ">&- 2>&-", "<&-", ">/dev/full", "| head -0", "| head -1"]
JUDGED = {"status", "doctor"}
"""Commands whose exit status 1 is their answer about this machine, told on standard output."""
CASES = 28


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """FILE, MISSING, and GOOD: photographs in a folder with letters that ASCII does not have, one of them missing."""
    from ease_flwr.data import demo

    here = tmp_path_factory.mktemp("place")
    (here / "file").write_text("")
    demo.write(here / "ümlaut", 0)
    next((here / "ümlaut" / "images").iterdir()).unlink()
    return {"FILE": str(here / "file"), "MISSING": str(here / "missing-é"), "GOOD": str(here / "ümlaut")}


def filled(word, place):
    for name, path in place.items():
        word = word.replace(name, path)
    return word


@pytest.mark.parametrize("case", range(CASES))
def test_whatever_is_set_a_command_ends_well_or_with_one_line(case, place):
    draw = random.Random(f"machines {case}")
    around = {"PATH": os.environ["PATH"], "PYTHONPATH": str(APP), "HOME": str(Path(place["FILE"]).parent)}
    for name in draw.sample(sorted(VARIABLES), 5):
        value = draw.choice(VARIABLES[name])
        around |= {} if value is None else {name: filled(value, place)}
    words = [filled(word, place) for word in COMMANDS[case % len(COMMANDS)]]
    stream = draw.choice(STREAMS)
    line = f'"$0" -m ease_flwr "$@" {stream.split("|")[0]}; echo "status $?" >&9'
    line = f"{{ {line}; }} |{stream.split('|')[1]}" if "|" in stream else line
    read, write = os.pipe()
    done = subprocess.run(
        ["bash", "-c", f"exec 9>&{write}; {line}", sys.executable, *words],
        env=around,
        capture_output=True,
        pass_fds=[write],
        cwd=Path(place["FILE"]).parent,
        timeout=120,
    )
    os.close(write)
    with os.fdopen(read) as f:
        status = int(f.read().removeprefix("status "))
    told, said = done.stdout.decode(), done.stderr.decode()
    shown = f"{words} {stream} {around}\n{told}\n{said}"
    assert "Traceback" not in told + said, shown
    assert "Exception ignored" not in said, shown
    assert status in (0, 1, 2), shown
    answered = status == 1 and words[0] in JUDGED
    if status and not answered and "2>&-" not in stream and not told and "|" not in stream:
        lines = said.splitlines()
        assert len([x for x in lines if x.startswith(("ease ", "ease:"))]) == 1 or "Usage: " in said, shown


def test_nothing_is_written_into_a_file_that_got_the_number_of_a_closed_stream(tmp_path):
    """What a child process says goes to descriptor 1, which belongs to the first file that is opened."""
    program = (
        "import os, sys\nfrom ease_flwr.cli import terminal\nterminal.open_streams()\n"
        f"f = open({str(tmp_path / 'precious')!r}, 'w')\nprint('said')\nos.system('echo child')\n"
    )
    subprocess.run(["bash", "-c", '"$0" -c "$1" >&- 2>&-', sys.executable, program], env={"PYTHONPATH": str(APP)}, check=True)
    assert (tmp_path / "precious").read_text() == ""


WITHOUT = "import signal, sys; sys.modules['fcntl'] = sys.modules['resource'] = None; del signal.SIGHUP; import ease_flwr.cli\n"
WITHOUT += "sys.platform = 'win32'\n"
"""What Python has on Windows."""


@pytest.mark.parametrize("use", ["ease_flwr.cli.app(['doctor'])", "ease_flwr.run"])
def test_on_windows_one_line_says_where_it_does_run(use):
    done = subprocess.run([sys.executable, "-c", WITHOUT + use], capture_output=True, text=True, env={"PYTHONPATH": str(APP)})
    assert done.returncode == (2 if "cli" in use else 1)
    assert done.stderr.splitlines()[-1].endswith(f": {WINDOWS}")
    assert "Traceback" not in done.stderr or "cli" not in use


@pytest.mark.parametrize(
    "error", [PermissionError(13, "Permission denied", "/x/y"), OSError("no words"), ImportError("no\ntorch")]
)
def test_what_a_machine_refuses_is_one_line(error, monkeypatch):
    def refuse(*_, **__):
        raise error

    monkeypatch.setattr("ease_flwr.store.purge.residual", refuse)
    said = CliRunner().invoke(app, ["purge", "somewhere", "--dry-run"])
    assert said.exit_code == 1
    assert said.output.startswith("ease purge: ")
    assert said.output.count("\n") == 1


UNWRITABLE = ["FILE/run", "FILE", "/proc/run", "/proc/1/run", "/sys/run", "/dev/null/run"]


@pytest.mark.parametrize("folder", UNWRITABLE)
def test_a_run_folder_that_cannot_be_made_is_refused_before_anything_is_started(folder, place, monkeypatch):
    monkeypatch.setattr(simulations, "own_superlink", lambda *_, **__: pytest.fail("a SuperLink is started"))
    told = filled(folder, place)
    with pytest.raises(ConfigError) as error:
        launcher.run(launcher.NewRun(folder=Path(told)), Where())
    assert told in str(error.value)
    assert "\n" not in str(error.value)


def test_a_folder_is_looked_at_and_left_as_it_was(tmp_path):
    assert files.unwritable(tmp_path / "a" / "b") == files.unwritable(tmp_path) == ""
    assert not list(tmp_path.iterdir())


def test_a_lock_is_asked_about_where_nothing_can_be_written(tmp_path, monkeypatch):
    file = tmp_path / "lock"
    assert not files.busy(file)
    assert not file.exists()  # the folder may be another user's
    with files.locked(file):
        assert files.busy(file)
    assert not files.busy(file)

    def no_locks(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("fcntl.flock", no_locks)
    with pytest.raises(ConfigError, match=r"lock cannot be locked: Operation not supported: choose a folder on another"):
        files.locked(file).__enter__()


def test_nobodys_home_is_asked_for(monkeypatch):
    monkeypatch.delenv("EASE_FLWR_HOME", raising=False)
    monkeypatch.setattr(Path, "expanduser", lambda self: (_ for _ in ()).throw(RuntimeError("Could not determine home")))
    with pytest.raises(ConfigError, match=r"^this user has no home folder: set EASE_FLWR_HOME to the folder for runs$"):
        files.home()
    monkeypatch.setenv("EASE_FLWR_HOME", "")
    with pytest.raises(ConfigError, match="no home folder"):  # an empty one is none, and not where one stands
        files.home()


@pytest.mark.parametrize(
    "answer", ['{"success": false, "error-message": "Using SuperLink\\n\\nValue"}', "no\nJSON", '{"x": 1}']
)
def test_what_flower_refuses_is_one_line(answer, monkeypatch):
    monkeypatch.setattr(Link, "_flwr", lambda *_: answer)
    with pytest.raises(ConfigError, match=r"^flwr run refused the app: [^\n]+$"):
        Link("ease").submit({"strategy": "ease"})


def test_a_request_for_a_superlink_that_nobody_knows_is_not_on_the_agenda(learnt, tmp_path, monkeypatch):
    monkeypatch.setenv("FLWR_HOME", str(tmp_path))
    before = (learnt / "queue.json").read_bytes()
    said = CliRunner().invoke(app, ["forget", str(learnt), "--client", "client-0", "--superlink", "nope"])
    assert said.exit_code == 2
    assert said.output.startswith("ease forget: --superlink nope: ")
    assert (learnt / "queue.json").read_bytes() == before


@pytest.mark.parametrize("seed", [0, 2**32 - 1, 2**32, 2**63, 2**64 - 1])
def test_a_seed_of_an_experiment_is_one_for_all_that_draw(seed, monkeypatch):
    import torch

    from ease_flwr.data import topics

    assert config.load("personas", {"seed": seed}).seed == seed
    torch.Generator().manual_seed(seed)
    captions = {"a": [1.0, 0.0], "b": [1.0, 0.1], "c": [0.0, 1.0]}
    model = SimpleNamespace(encode_text=lambda tokens, normalize: torch.tensor(tokens), to=lambda device: None)
    tokenize = lambda texts: SimpleNamespace(to=lambda device: [captions[t] for t in texts])  # noqa: E731
    monkeypatch.setattr(topics.backbone, "load", lambda model_config: SimpleNamespace(model=model, tokenize=tokenize))
    entries = [SimpleNamespace(name=f"{c}.jpg", captions=[c]) for c in captions]
    found = topics.topics(entries, config.ModelConfig(), 2, seed)
    assert found["a.jpg"] == found["b.jpg"] != found["c.jpg"]


def test_a_larger_seed_is_refused_at_once():
    with pytest.raises(
        ConfigError, match=r"^experiment personas: seed=18446744073709551616: [^\n]*less than 18446744073709551616"
    ):
        config.load("personas", {"seed": 2**64})


def test_the_doctor_finds_all_well_here_without_importing_it(place):
    program = "import sys; from ease_flwr.cli import app; sys.argv = ['ease', 'doctor', '--json']\ntry: app()\nfinally: "
    program += "print([m for m in ('torch', 'ray', 'flwr', 'open_clip', 'peft') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    found, _, heavy = done.stdout.rpartition("\n[")
    findings = {f["what"]: f for f in json.loads(found)["findings"]}
    assert (done.returncode, heavy) == (0, "]\n"), done.stdout
    wanted = "python ease_flwr flwr ray torch open_clip_torch peft cores memory GPU ports runs"
    assert {*wanted.split(), "temporary files", "open files"} <= findings.keys()
    assert all(f["ok"] for f in findings.values())


@pytest.mark.parametrize(
    ("changed", "line"),
    [
        ({"ray": "2.40.0"}, 'MEND  ray              2.40.0: flwr 1.41.0 wants ==2.55.1: pip install "ray==2.55.1"'),
        ({"torch": "2.1.0+cpu"}, 'MEND  torch            2.1.0+cpu: ease_flwr wants <3,>=2.11: pip install "torch<3,>=2.11"'),
        ({"flwr": None}, 'MEND  flwr             is not installed: ease_flwr wants it: pip install "flwr<1.43,>=1.41.0"'),
        ({"peft": "0.21.0"}, "OK    peft             0.21.0"),
    ],
)
def test_the_doctor_says_which_packages_do_not_fit(changed, line, monkeypatch):
    true = doctor.version

    def version(name):
        if name in changed and changed[name] is None:
            raise doctor.PackageNotFoundError(name)
        return changed.get(name) or ("1.41.0" if name == "flwr" else true(name))

    wishes = ["ray==2.55.1; extra == 'simulation'", "nothing-known; extra == 'agent'"]
    monkeypatch.setattr(doctor, "version", version)
    monkeypatch.setattr(doctor, "requires", lambda name: wishes if name == "flwr" else [])
    said = CliRunner().invoke(app, ["doctor"])
    assert line in said.output.splitlines(), said.output
    assert said.exit_code == (1 if line.startswith("MEND") else 0)
    assert "nothing-known" not in said.output


def test_the_doctor_says_what_is_to_be_mended_on_a_machine(monkeypatch, place):
    monkeypatch.setenv("EASE_FLWR_HOME", place["FILE"] + "/runs")
    monkeypatch.setenv("HTTP_PROXY", "http://user:secret@proxy:3128")
    monkeypatch.setenv("ALL_PROXY", "ftp://proxy:1080")
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    monkeypatch.setattr(doctor.resource, "getrlimit", lambda what: (256, 512))
    monkeypatch.setattr(doctor, "MEMORY", 1e9)
    monkeypatch.setattr(doctor, "PROGRAMS", ("flwr", "flower-nothing"))
    said = CliRunner().invoke(app, ["doctor"])
    lines = {line[6:22].strip(): line for line in said.output.splitlines()}
    mend = {name for name, line in lines.items() if line.startswith("MEND")}
    assert mend == {"runs", "open files", "memory", "programs"}, said.output
    assert "proxy proxy: this machine itself is asked past it" in lines["HTTP_PROXY"]
    assert "it is not handed on: it is not http://HOST:PORT" in lines["ALL_PROXY"]
    assert "a run does not use it" in lines["RAY_ADDRESS"]
    assert "secret" not in said.output
    assert said.output.splitlines()[-1] == "4 to mend before a run can start here"
    assert said.exit_code == 1


def test_commands_are_grouped_for_who_sees_them_first():
    said = CliRunner().invoke(app, ["--help"], env={"COLUMNS": "120"}).output
    heads = ["Run and compare", "Forget and go on", "Audit and report", "Deploy and hosts", "Data and models"]
    assert sorted(heads, key=said.index) == heads
    assert " Commands " not in said  # of those that belong to no group
