"""What lies on the machines of benchmarks/hosts.py before they are a federation: the program, data, an experiment.

Pictures and labels are those of the built-in world, made small. Each host knows people whom no other host knows.
"""

from __future__ import annotations

import io
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from PIL import Image

from benchmarks.machines import HOME, Machine
from ease_flwr.config import APP, PACKAGE, DataConfig
from ease_flwr.data.pairs import Pairs
from ease_flwr.data.personas import load
from tests.photographs import WRITERS

HOSTS = ("host-1", "host-2", "host-3", "host-4")
"""The last one comes later."""
LAYOUTS = dict(zip(HOSTS, ("karpathy", "csv", "webdataset", "json"), strict=True))
WORLD = DataConfig(
    names=HOSTS,
    clients=4,
    leavers=4,
    exclusive=4,
    exclusive_pairs=8,
    shared=4,
    sharers=2,
    shared_pairs=6,
    scenes=24,
    strangers=4,
    test_scenes=48,
)
BASE = HOME / "base.json"
"""The base model, on the server; hosts have theirs in their own folder."""
EXPERIMENT = f"""\
data: {{kind: folder, names: [host-1, host-2, host-3], image_size: 64}}
model: {{weights: {BASE}}}
lora: {{rank: 4, alpha: 8}}
learn: {{rounds: 2, epochs: 1, batch: 16, average: 1}}
forget: {{targets: [host-3]}}
strategy: {{rounds: 1}}
continuation: {{rounds: 1, overlap: 0}}
evaluation: {{every: 0, reference: none}}
audit: {{level: none}}
federation: {{quorum: 0.5, deadline: 120, start_timeout: 90}}
"""


def data(machine: Machine) -> None:
    """The data of a host, in /data's place: /opt/ease/data."""
    world, pictures = load(WORLD, 0), []
    splits = {"train": world.client(machine.name).train}
    splits |= {"val": world.scene_tests["validation"].pairs, "test": world.scene_tests["test"].pairs}
    for split, pairs in splits.items():
        pictures += [_picture(f"{machine.name}-{split}-{i}", split, pairs, i) for i in range(len(pairs.labels))]
    machine.at(HOME / "data").mkdir()
    WRITERS[LAYOUTS[machine.name]](machine.at(HOME / "data"), pictures)


def alone(name: str) -> str:
    """A label that this host alone has."""
    world = load(WORLD, 0)
    others = {label for other in HOSTS if other != name for label in world.client(other).train.labels}
    return min(set(world.client(name).train.labels) - others)


def _picture(name: str, split: str, pairs: Pairs, i: int) -> dict[str, Any]:
    content = io.BytesIO()
    Image.fromarray(pairs.images[i]).save(content, "jpeg", quality=95)
    said = {"name": f"{name}.jpg", "captions": list(pairs.captions[i]), "label": pairs.labels[i]}
    return {**said, "split": split, "content": content.getvalue()}


def base(file: Path) -> None:
    """The base model of the built-in world, as a file of its own."""
    shutil.copy2(PACKAGE / "data" / "personas-base.json", file)


def wheel(checkout: Path, to: Path) -> Path:
    """The wheel of a checkout."""
    to.mkdir()
    script = "import sys; from hatchling.builders.wheel import WheelBuilder as W; print(*W(sys.argv[1]).build(directory='.'))"
    subprocess.run([sys.executable, "-c", script, str(checkout)], cwd=to, check=True, capture_output=True)
    (built,) = to.glob("*.whl")
    return built


def next_version(folder: Path) -> Path:
    """A checkout of the version after this one: the same but for a line, so that its code has another digest."""
    for name in ("ease_flwr", "strategies", "clients", "conf", "pyproject.toml", "README.md", "LICENSE"):
        here = APP / name
        copied = shutil.ignore_patterns("__pycache__")
        shutil.copytree(here, folder / name, ignore=copied) if here.is_dir() else shutil.copy2(here, folder / name)
    with (folder / "ease_flwr" / "__init__.py").open("a", encoding="utf-8") as f:
        f.write("\nNEXT = True\n")
    return folder


def environment(machine: Machine, built: Path) -> None:
    """/opt/ease/venv, as a machine has it on which the project was installed: packages are those of this interpreter."""
    venv, python = machine.at(HOME / "venv"), HOME / "python" / "bin"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(venv)], check=True)
    for link in (venv / "bin").glob("python*"):
        link.unlink()
        link.symlink_to(python / Path(sys.executable).resolve().name)
    (venv / "pyvenv.cfg").write_text(f"home = {python}\ninclude-system-site-packages = false\n")
    (site,) = venv.glob("lib/python*/site-packages")
    (site / "packages.pth").write_text(f"{HOME}/packages\n")
    for program in (p for pattern in ("flwr*", "flower-*") for p in Path(sys.prefix, "bin").glob(pattern)):
        _, _, rest = program.read_text(encoding="utf-8").partition("\n")
        (venv / "bin" / program.name).write_text(f"#!{HOME}/venv/bin/python\n{rest}", encoding="utf-8")
        (venv / "bin" / program.name).chmod(0o755)
    shutil.copy2(built, machine.at(HOME / built.name))
    machine.run(f"python -m pip install --quiet --no-deps --no-index --disable-pip-version-check {built.name}")
