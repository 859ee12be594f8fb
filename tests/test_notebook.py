"""In a notebook a bar follows a run; elsewhere its lines are printed."""

import sys
from types import ModuleType, SimpleNamespace

import pytest

import ease_flwr as ease
from ease_flwr import notebook
from ease_flwr.config import ConfigError
from tests.small import TINY

AT = {"model": "learn", "round": 3, "last": 10, "loss": 0.5, "answered": 7, "asked": 8, "eta": 12.4}


def test_what_the_bar_says():
    assert notebook.bar({"status": "running", "round": AT, "error": ""}) == (
        '<progress max="10" value="3"></progress> learn 3/10, loss 0.500, 7/8 clients, ETA 12 s'
    )
    assert notebook.bar({"status": ""}) == "starting"
    assert notebook.bar({"status": "running", "round": {}, "error": ""}) == "at work"
    assert notebook.bar({"status": "finished", "round": AT, "error": ""}) == "finished"
    assert notebook.bar({"status": "failed", "round": AT, "error": "a <b> is missing"}) == "failed: a &lt;b&gt; is missing"


class ZMQInteractiveShell:
    """By this name a kernel is known."""


@pytest.mark.usefixtures("in_process")
def test_a_run_in_a_notebook_and_elsewhere(home, monkeypatch, capsys):
    shown = []
    shell, there = ModuleType("IPython"), ModuleType("IPython.display")
    shell.get_ipython = ZMQInteractiveShell
    there.HTML = str
    there.display = lambda html, display_id: shown.append(html) or SimpleNamespace(update=shown.append)
    monkeypatch.setitem(sys.modules, "IPython", shell)
    monkeypatch.setitem(sys.modules, "IPython.display", there)
    monkeypatch.setattr(notebook, "SECONDS", 0.05)
    monkeypatch.setattr("ease_flwr.launcher.misleading", lambda *_: "no log has this")
    ease.run(overrides=TINY, folder=home / "one", fresh=True)
    said = capsys.readouterr().out
    assert "[learn" not in said
    assert "no log has this" in said  # what only the launcher says
    assert shown[0] == "starting"
    assert any("learn" in html and "<progress" in html for html in shown)
    assert shown[-1] == "finished"
    with pytest.raises(ConfigError, match="is not empty"):
        ease.run(overrides=TINY, folder=home / "one")
    assert shown[-1] == "finished"  # of what was not begun nothing is shown
    shell.get_ipython = object  # as in a terminal
    seen = len(shown)
    ease.run(overrides=TINY, folder=home / "two", until="learn")
    assert "[learn" in capsys.readouterr().out
    assert len(shown) == seen
