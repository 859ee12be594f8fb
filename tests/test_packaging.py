"""Where the code may lie: in a checkout, in the app that Flower unpacks, in an installed wheel. It is the same everywhere."""

import json
import os
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from importlib import import_module
from pathlib import Path

import pytest

from ease_flwr import __version__
from ease_flwr.config import APP
from ease_flwr.hosts import app
from tests.test_methods import write_guide
from tests.test_simulation import ONE_ROUND

LOOK = """
import json, sys
import ease_flwr
from ease_flwr import clients, config, strategies
from ease_flwr.config import halves
print(json.dumps({
    "code": config.code_hash(),
    "learning": config.code_of("ease_flwr.strategies.ordinary", "ease_flwr.clients.contrastive"),
    "strategies": halves.names("strategies"),
    "clients": halves.names("clients"),
    "experiments": config.choices("experiment"),
    "base": config.named_file_sha256(config.load("personas").model.weights),
    "from": [m.__file__ for m in (ease_flwr, strategies, clients, sys.modules[strategies.load("ease").__module__])],
    "on top": [name for name in ("strategies", "clients") if name in sys.modules],
}))
"""


def built(command, folder, ending):
    """What a build command leaves in `folder`, unpacked beside it."""
    folder.mkdir()
    environment = {**os.environ, "FLWR_HOME": str(folder), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    (package,) = folder.glob(ending)
    with zipfile.ZipFile(package) as z:
        z.extractall(folder / "unpacked")
    return folder / "unpacked"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    script = "import sys; from hatchling.builders.wheel import WheelBuilder as W; print(*W(sys.argv[1]).build(directory='.'))"
    return built([sys.executable, "-c", script, str(APP)], tmp_path_factory.mktemp("packages") / "wheel", "*.whl")


@pytest.fixture(scope="module")
def fab(tmp_path_factory):
    folder = tmp_path_factory.mktemp("packages")
    app.write(folder / "ease-flwr")
    return built(["flwr", "build", "--app", str(folder / "ease-flwr")], folder / "fab", "*.fab")


def seen(place, folder):
    """What Python finds in an empty folder with this place on its path."""
    environment = {**os.environ, "PYTHONPATH": str(place)}
    done = subprocess.run([sys.executable, "-c", LOOK], cwd=folder, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert all(Path(f).is_relative_to(place) for f in found.pop("from"))
    assert found.pop("on top") == []  # names as common as these are nobody's
    return found


def test_checkout_app_and_wheel_are_the_same(wheel, fab, tmp_path):
    here = seen(APP, tmp_path)
    assert len(here["strategies"]) > 20
    assert "personas" in here["experiments"]
    assert len(here["base"]) == 64
    assert seen(fab, tmp_path) == here
    assert seen(wheel, tmp_path) == here


def test_an_app_has_what_a_run_needs_in_files_that_flower_hub_takes(fab):
    """Publishing takes these endings alone, and LICENSE."""
    taken = {".py", ".toml", ".md", ".yaml", ".json", ""}
    files = {p.relative_to(fab) for p in fab.rglob("*") if p.is_file() and p.parts[-2] != ".info"}
    assert {f.suffix for f in files} <= taken
    assert {f.parts[0] for f in files} <= {"ease_flwr", *app.ON_TOP}


@pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning")  # of Flower
def test_flower_hub_takes_all_of_the_app(tmp_path):
    """By the very checks of `flwr app publish`: names, types, number and size of files."""
    publish = import_module("flwr.cli.app_cmd.publish")

    app.write(tmp_path / "ease-flwr")
    files = publish._collect_file_paths(tmp_path / "ease-flwr")
    publish._validate_files(files)
    there = {p for p in (tmp_path / "ease-flwr").rglob("*") if p.is_file()}
    assert there - set(files) == {tmp_path / "ease-flwr" / "ease_flwr" / "py.typed"}
    publish._validate_app_name("ease-flwr", "folder")
    with pytest.raises(ValueError, match="is not empty: choose another"):
        app.write(tmp_path / "ease-flwr")
    with pytest.raises(ValueError, match="Flower wants a letter, then letters, digits and hyphens"):
        app.write(tmp_path / "ease_flwr")


@pytest.mark.parametrize("packed", ["wheel", "fab"])
def test_deployment_can_be_begun_from_what_was_packed(packed, request, tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(request.getfixturevalue(packed))}
    command = [sys.executable, "-m", "ease_flwr", "deploy", "init", "there", "--hosts", "a,b", "--address", "localhost"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "there" / "hosts" / "a" / "ease-supernode.service").is_file()


def test_a_source_distribution_has_all_that_is_versioned(tmp_path):
    if not (APP / ".git").exists():
        pytest.skip("not a checkout")
    script = "import sys; from hatchling.builders.sdist import SdistBuilder as S; print(*S(sys.argv[1]).build(directory='.'))"
    subprocess.run([sys.executable, "-c", script, str(APP)], cwd=tmp_path, check=True, capture_output=True, timeout=60)
    (file,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(file) as sdist:
        there = {name.partition("/")[2] for name in sdist.getnames()}
    versioned = subprocess.run(["git", "-C", str(APP), "ls-files"], capture_output=True, text=True, check=True).stdout.split(
        "\n"
    )
    assert {name for name in versioned if name and (APP / name).exists()} <= there


def test_the_version_is_that_of_the_tag():
    """Flower reads it from pyproject.toml, where it cannot be computed; so a tag that says another is refused here."""
    project = tomllib.loads((APP / "pyproject.toml").read_text())["project"]
    assert project["version"] == __version__
    changes = (APP / "CHANGELOG.md").read_text()
    command = ["git", "-C", str(APP), "tag", "--points-at", "HEAD"]
    tags = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split() if (APP / ".git").exists() else []
    assert set(tags) <= {f"v{__version__}"}
    assert f"## [{__version__ if tags else 'Unreleased'}]" in changes


@pytest.mark.parametrize(
    "command", [("app",), ("data", "demo"), ("deploy", "init", "--hosts", "a,b", "--address", "localhost")]
)
def test_a_folder_that_cannot_be_made_is_said_in_one_line(command, tmp_path):
    (tmp_path / "file").write_text("")
    for folder, why in ((tmp_path / "file", "File exists"), (tmp_path / "file" / "x", "Not a directory")):
        words = [sys.executable, "-m", "ease_flwr", *command, str(folder)]
        done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 2
        assert done.stderr.endswith(f": {folder}: {why}: choose another folder\n"), done.stderr
        assert done.stderr.count("\n") == 1


def test_a_wheel_has_one_package_and_all_of_it(wheel):
    (package,) = (p for p in wheel.iterdir() if not p.name.endswith(".dist-info"))
    assert package.name == "ease_flwr"
    ours = {p.relative_to(APP / "ease_flwr") for p in (APP / "ease_flwr").rglob("*") if p.is_file() and p.suffix != ".pyc"}
    assert ours <= {p.relative_to(package) for p in package.rglob("*")}
    assert {"strategies", "clients", "conf", "pyproject.toml", "README.md", "LICENSE", "py.typed"} <= set(os.listdir(package))


def test_a_wheel_says_what_it_is(wheel):
    (about,) = wheel.glob("*.dist-info/METADATA")
    said = about.read_text().split("\n\n", 1)[0].splitlines()
    assert f"Version: {__version__}" in said
    assert "Classifier: Typing :: Typed" in said
    assert "Project-URL: Paper, https://arxiv.org/abs/2605.00733" in said
    assert any(re.fullmatch(r"Requires-Dist: flwr\[simulation\].*<1\.43.*", line) for line in said)


def test_a_wheel_lays_itself_out_as_an_app(wheel, our_methods_alone, tmp_path, monkeypatch):
    monkeypatch.setattr(app, "APP", wheel / "ease_flwr")
    monkeypatch.setattr(app, "PACKAGE", wheel / "ease_flwr")
    monkeypatch.setenv("EASE_FLWR_HOME", str(tmp_path / "home"))
    found = app.folder()
    assert found.parent == tmp_path / "home" / "apps"
    assert set(os.listdir(found)) == {"ease_flwr", *app.ON_TOP}
    assert not set(app.ON_TOP) & set(os.listdir(found / "ease_flwr"))
    (found / "mark").write_text("")
    assert app.folder() == found
    assert (found / "mark").exists()  # laid out once
    old = found.parent / "old"
    old.mkdir()
    os.utime(old, (1, 1))
    os.utime(found, (1, 1))
    assert app.folder() == found
    assert list(found.parent.iterdir()) == [found]  # what nobody has used for long is gone


def test_an_installation_without_the_app_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(app, "APP", tmp_path)
    with pytest.raises(ValueError, match=rf"^no pyproject.toml in {tmp_path}: install the wheel, or the checkout"):
        app.folder()


@pytest.mark.slow
@pytest.mark.parametrize("packed", ["wheel", "fab"])
def test_a_run_from_what_was_packed_with_an_experiment_and_a_method_of_ones_own(packed, request, tmp_path):
    place, folder = request.getfixturevalue(packed), tmp_path / "mine"
    folder.mkdir()
    write_guide(folder)
    (folder / "conf" / "experiment").mkdir(parents=True)
    (folder / "conf" / "experiment" / "mine.yaml").write_text("extends: personas\n")
    before = sorted(folder.rglob("*"))
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "EASE_FLWR_HOME": str(tmp_path / "runs"), "PATH": path, "PYTHONPATH": str(place)}

    def ease(*words):
        command = [sys.executable, "-m", "ease_flwr", *words]
        return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)

    settings = [word for k, v in {**ONE_ROUND, "audit.level": "quick"}.items() for word in ("--set", f"{k}={v}")]
    done = ease("run", "mine", "--strategy", "shuffle", "--run-dir", str(tmp_path / "run"), *settings)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "| unlearned |" in done.stdout
    assert ease("report", str(tmp_path / "run")).returncode == 0
    assert (tmp_path / "run" / "report.html").stat().st_size > 10_000
    assert sorted(f for f in folder.rglob("*") if "__pycache__" not in f.parts) == before
