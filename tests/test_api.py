"""Runs in Python: the script of the README, and what each call says where it cannot do what is asked."""

import html
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import ease_flwr as ease
from ease_flwr import api, config, launcher
from ease_flwr.config import APP, ConfigError
from ease_flwr.store import files
from tests.small import SMALL

pytestmark = pytest.mark.usefixtures("in_process")


def test_importing_is_free():
    look = "import sys, ease_flwr as ease; ease.__version__; before = len(sys.modules); ease.run; "
    look += "print(before < 80, [m for m in ('torch', 'open_clip', 'ray', 'peft', 'matplotlib') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, timeout=60)
    assert done.stdout == "True []\n", done.stderr
    with pytest.raises(AttributeError, match="module 'ease_flwr' has no attribute 'magic'"):
        ease.magic  # noqa: B018


@pytest.mark.slow
def test_the_script_of_the_readme(home, monkeypatch, tmp_path, capsys):
    """Twenty lines: learn, forget, print the table, load the model, find a picture by a caption."""
    (script,) = [c for c in re.findall(r"```python\n(.*?)```", (APP / "README.md").read_text(), re.S) if "ease.run(" in c]
    assert len(script.splitlines()) <= 20
    run = ease.run
    monkeypatch.setattr(
        ease, "run", lambda *words, overrides, **more: run(*words, overrides={**SMALL, **overrides}, **more), False
    )
    monkeypatch.chdir(tmp_path)
    found = {}
    exec(compile(script, "README.md", "exec"), found)
    assert [row["model"] for row in found["run"].table()][:2] == ["original", "retrain"]
    assert found["run"].results["requests"][0]["targets"] == ["client-0"]
    assert len(found["best"]) == 5
    assert (tmp_path / "forgotten.safetensors").is_file()
    assert "unlearned" in capsys.readouterr().out


def test_a_model_embeds_and_searches_as_the_run_does(whole, tmp_path):
    run = ease.open_run(whole)
    pairs, model = run.pairs("client-1"), run.model("original")
    images, texts = model.images(pairs.images[:40]), model.texts([c[0] for c in pairs.captions[:40]])
    for found in (images, texts):
        assert found.shape[0] == 40
        assert torch.allclose(found.norm(dim=1), torch.ones(40), atol=1e-5)
    Image.fromarray(pairs.images[3]).save(tmp_path / "three.png")
    same = model.images([tmp_path / "three.png", Image.fromarray(pairs.images[3]), pairs.images[3]])
    assert torch.allclose(same, images[3].expand(3, -1), atol=1e-6)
    order = (images @ texts[3]).argsort(descending=True).tolist()
    assert model.search(pairs.captions[3][0], pairs.images[:40], best=7) == order[:7]
    from ease_flwr.model import adapters

    experiment = run.experiment
    adapted = adapters.load(experiment.model, experiment.lora, experiment.seed)
    adapted.set(adapters.read(whole / "adapters" / "original", adapted.blocks))
    with torch.no_grad():
        assert torch.allclose(adapted.embed_images(adapted.trunk(adapted.base.normalise(pairs.images[:40]))), images, atol=1e-5)
    assert not np.allclose(images, run.model("unlearned").images(pairs.images[:40]), atol=1e-3)


def test_an_audit_that_is_refused_or_at_work_leaves_the_last_one(whole, tmp_path, monkeypatch):
    run, submitted = shutil.copytree(whole, tmp_path / "run"), []
    monkeypatch.setattr(launcher, "submit", lambda *words: submitted.append(words) or 1)
    before = run / "audit-full" / "audit.json"
    before.parent.mkdir()
    for name in ("state.json", "audit.json"):
        (before.parent / name).write_text("{}")
    with pytest.raises(ConfigError, match=r"^--references 2: .* has none: `ease reference .* --count 2` trains them$"):
        ease.open_run(run).audit(references=2)
    with files.locked(before.parent / "run.lock"), pytest.raises(ConfigError, match=r"audit-full is in use by another process"):
        ease.open_run(run).audit()
    assert before.is_file()
    assert not submitted
    with pytest.raises(ease.RunError):
        ease.open_run(run).audit()
    assert submitted
    assert not before.exists()  # the same question again replaces its answer


def test_a_run_says_how_it_went(reported, whole):
    page = re.search(r'<p class="sentence">(.*?)</p>', (reported / "report.html").read_text()).group(1)
    assert ease.open_run(reported).verdict() == html.unescape(re.sub("<.*?>", "", page))
    assert ease.open_run(whole).verdict() == ""  # without an audit


def test_rows_print_as_a_table(reported, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    rows = ease.open_run(reported).table()
    head, *lines = str(rows).splitlines()
    assert head.split() == list(rows[0])
    assert lines[0].split() == ["original", *(f"{v:.1f}" for v in [*rows[0].values()][1:])]
    assert len({len(line) for line in (head, *lines)}) == 1


def test_a_run_shows_itself(whole):
    run = ease.open_run(str(whole))
    assert repr(run) == f"Run({str(whole)!r})"
    assert run.models == tuple(run.results["models"])
    rows = run.table()
    assert rows[0]["retain"] == run.results["models"]["original"]["retain"]["r1"]
    shown = run._repr_html_()
    assert shown.count("<tr>") == len(rows) + 1
    assert f"<td>{rows[0]['retain']:.1f}</td>" in shown
    assert run.experiment.name == "personas"


@pytest.mark.slow
def test_learning_now_and_forgetting_later(home):
    run = ease.run(seed=3, overrides={**SMALL, "evaluation.reference": "none"}, folder=home / "later", until="learn")
    assert run.models == ("original",)
    again = run.forget(client="client-0", request=ease.Request("finetune", {"rounds": 1}, "first")).continue_training(1)
    assert again.folder == home / "later"
    assert [q["id"] for q in run.results["requests"]] == ["first"]
    assert run.resume().models[-1] == "continued"


@pytest.mark.parametrize(
    ("call", "why"),
    [
        (lambda run: ease.open_run(run.folder / "none"), "no run there: give the folder of one"),
        (lambda run: ease.run("persona"), "no experiment 'persona'"),
        (lambda run: ease.run("none.yaml"), "no experiment file none.yaml"),
        (lambda run: ease.run(Path("none.yaml")), "no experiment file none.yaml"),
        (lambda run: run.continue_training(0), "rounds=0: give the number of rounds, 1 or more"),
        (lambda run: run.export("unlearned", run.folder / "a.bin"), "a.bin: expected a name that ends in .safetensors"),
        (lambda run: run.export("unlearned", run.folder / "a", "onnx"), "form='onnx': expected open_clip or peft"),
        (lambda run: ease.run(overrides={"learn.round": 3}), "unknown key learn.round"),
        (lambda run: ease.run(until="end"), "until='end': expected learn"),
        (lambda run: run.audit("half"), "level='half': expected quick or full"),
        (lambda run: run.forget(), "name one of client, label and pairs"),
        (lambda run: run.forget(client="client-0", label="x"), "name one of client, label and pairs"),
        (lambda run: run.model("best"), "no model 'best' there: there are .*original"),
        (lambda run: run.forget(pairs="client-9/0"), "client-9"),
        (lambda run: ease.run(overrides={"learn": {"rounds": 3}}), "give fields by their dotted paths"),
        (lambda run: run.pairs("client-9"), "no client client-9: there are client-0"),
        (lambda run: run.report(), "no audit of its models"),
    ],
)
def test_what_cannot_be_done_is_said(call, why, whole):
    with pytest.raises(ConfigError, match=why):
        call(ease.open_run(whole))


def test_a_run_that_stops_raises_what_it_says(home, monkeypatch):
    from ease_flwr import launcher

    monkeypatch.setattr(launcher, "submit", lambda settings, experiment, folder, where: 1)
    with pytest.raises(ease.RunError, match="the run ended with status 1"):
        ease.run(overrides=SMALL, folder=home / "stopped")


def test_a_report_that_fails_does_not_fail_the_run(whole, monkeypatch, capsys):
    from ease_flwr import launcher
    from ease_flwr.audit import report

    asked = []
    monkeypatch.setattr(launcher, "current_audit", lambda run, results: (run, {}))
    monkeypatch.setattr(report, "of_run", lambda run, pictures: asked.append(pictures) or run / "report.html")
    assert launcher.pictured(whole, 0, True) == launcher.pictured(whole, 0, False) == 0
    assert asked == [True, False]  # of a deployed federation the pictures are elsewhere
    assert launcher.pictured(whole, 1, True) == 1
    monkeypatch.setattr(report, "of_run", lambda run, pictures: {}["val"])
    assert launcher.pictured(whole, 0, True) == 0
    assert f"no report: 'val': `ease report {whole}` tries again" in capsys.readouterr().out


def test_values_are_spelled_as_the_command_line_takes_them():
    told = {
        "learn.rounds": 3,
        "data.names": ["a", "b"],
        "fresh": True,
        "lora.alpha": 0.5,
        "strategy.bke.enabled": None,
        "x": "y z",
    }
    expected = ["learn.rounds=3", "data.names=a,b", "fresh=true", "lora.alpha=0.5", "strategy.bke.enabled=null", "x=y z"]
    assert api.assignments(told) == expected
    assert api.assignments({"data.root": APP, "seed": np.int64(3)}) == [f"data.root={APP}", "seed=3"]
    assert config.load("personas", config.parse_assignments(["learn.rounds=3"])).learn.rounds == 3
