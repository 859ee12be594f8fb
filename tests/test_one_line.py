"""A mistake reaches the terminal as its one line: from a client, from the server, and before anything is started."""

import sys
import traceback

import pytest
import torch
from flwr.app import Context, RecordDict
from safetensors.torch import save_file

from ease_flwr import client_app, launcher, server_app
from ease_flwr.cli import main
from ease_flwr.config import ConfigError, ModelConfig, published
from ease_flwr.exchange.messages import Hello, message
from ease_flwr.exchange.transport import FederationError, reason
from ease_flwr.hosts import app, connected
from ease_flwr.hosts.link import read_state
from ease_flwr.hosts.processes import Stopped
from ease_flwr.hosts.simulation import Where
from tests.in_process_grid import TaskIdentity
from tests.photographs import write_photographs
from tests.small import RUN_CONFIG


def asked(monkeypatch, error):
    """The answer of a client that raises this."""
    assert TaskIdentity.run_id == 1

    def broken(context, objective=""):
        raise error

    monkeypatch.setattr(client_app, "make_client", broken)
    context = Context(run_id=1, node_id=100, node_config={"partition-id": 0}, state=RecordDict(), run_config=dict(RUN_CONFIG))
    hello = message(Hello(), {}, 100, 10.0)
    hello.metadata._message_id = "message-1"
    return client_app.app(hello, context)


def test_what_a_client_says_of_a_mistake_is_its_line(monkeypatch, capsys):
    answer = asked(monkeypatch, ConfigError("/data/3.jpg: image\ncannot be read"))
    assert reason(answer) == "client raised: /data/3.jpg: image cannot be read"
    assert capsys.readouterr().err == "ease_flwr: /data/3.jpg: image cannot be read\n"  # who runs the host sees it too


def test_of_a_fault_it_says_where_and_the_traceback_stays(monkeypatch, capsys):
    answer = asked(monkeypatch, KeyError("x"))
    found = reason(answer)
    assert found.startswith("client raised: KeyError: 'x' (test_one_line.py, line ")
    assert found.endswith(", broken)")
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize("error", [ConfigError("no such run"), FederationError("nobody answers")])
def test_flower_shows_the_line_and_no_frames(monkeypatch, error):
    def stop(grid, context):
        raise error

    monkeypatch.setattr(server_app, "serve", stop)
    monkeypatch.setattr(sys, "tracebacklimit", 1000, raising=False)
    with pytest.raises(type(error)):
        server_app.main(None, None)
    assert sys.tracebacklimit == 1000  # a process that goes on keeps its tracebacks
    monkeypatch.setattr(sys, "argv", ["/usr/bin/flwr-simulation"])
    try:
        server_app.main(None, None)
    except (ConfigError, FederationError):
        shown = traceback.format_exc()
    assert str(error) in shown
    assert "File" not in shown


def test_a_partition_that_does_not_fit_is_said_before_anything_starts(tmp_path, monkeypatch):
    write_photographs(tmp_path, train=6, val=2, test=2)
    (tmp_path / "parts.json").write_text('{"names": {"client-0": ["train-0.png", "gone.png"], "client-1": ["a", "b"]}}')
    monkeypatch.setattr(launcher, "submit", lambda *_: pytest.fail("something was started"))
    told = [f"data.root={tmp_path}", "data.clients=2", "data.partition=file", f"data.parts={tmp_path / 'parts.json'}"]
    told += ["forget.targets=client-1", "model.name=ViT-B-32"]
    with pytest.raises(ConfigError, match=r"parts.json names 'gone.png', which is not in the train split"):
        launcher.run(launcher.NewRun("flickr8k", folder=tmp_path / "run", assignments=told), Where())


def test_heads_of_weights(tmp_path, monkeypatch):
    file, beside = tmp_path / "own.safetensors", tmp_path / "own.json"
    told = ModelConfig(weights=str(file))

    def said():
        with pytest.raises(ConfigError) as found:
            published(told)
        return str(found.value)

    assert said() == f"model.weights: no file {file}: give the absolute path of a .safetensors or .json file"
    file.write_bytes(b"<!doctype html>" * 100)
    assert said() == f"model.weights: {file} is a web page or other text: fetch the file itself"
    save_file({"w": torch.zeros(64)}, file)
    assert said() == f"model.weights: own.safetensors needs its open_clip config {beside} beside it, or model.name"
    whole = file.read_bytes()
    file.write_bytes(whole[:-10])
    assert said().startswith(f"model.weights: {file} is not a .safetensors file, or was cut (")
    file.write_bytes(whole)
    beside.write_text("{")
    assert said().startswith(f"model.weights: {beside} is not an open_clip config (")
    for text, missing in (("[]", "embed_dim"), ('{"embed_dim": 8}', "vision_cfg")):
        beside.write_text(text)
        assert said() == f"model.weights: {beside} is not an open_clip config: it has no {missing}"
    beside.write_text('{"embed_dim": 8, "vision_cfg": {}, "text_cfg": {}}')
    assert published(told).config == beside
    assert published(told.model_copy(update={"name": "ViT-B-32"})).config is None
    assert published(ModelConfig(name="ViT-B-32", weights="openai")) is None
    beside.unlink()
    monkeypatch.setattr(launcher, "submit", lambda *_: pytest.fail("something was started"))
    with pytest.raises(ConfigError, match="needs its open_clip config"):
        launcher.run(launcher.NewRun(folder=tmp_path / "run", assignments=[f"model.weights={file}"]), Where())


def test_an_unknown_connection_is_named_before_anything_is_asked(tmp_path, monkeypatch):
    monkeypatch.setenv("FLWR_HOME", str(tmp_path))
    (tmp_path / "config.toml").write_text('[superlink]\ndefault = "ward"\n[superlink.ward]\naddress = "127.0.0.1:1"\n')
    monkeypatch.setattr(launcher, "submit", lambda *_: pytest.fail("something was started"))
    for ask in (
        lambda: connected.nodes("wrad"),
        lambda: connected.certificates("wrad"),
        lambda: launcher.run(launcher.NewRun(folder=tmp_path / "run"), Where("wrad")),
    ):
        with pytest.raises(
            ConfigError, match=r"^--superlink wrad: no connection of that name in .*: there are ward: did you mean"
        ):
            ask()
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("stop", [KeyboardInterrupt(), Stopped(15)])
def test_a_simulation_that_is_stopped_says_so(tmp_path, monkeypatch, stop):
    """What its processes said of each other while they were ended is no reason."""

    def submitted(settings, experiment, folder, where):
        assert read_state(folder) == {"status": "submitted", "error": ""}
        if begun:
            (folder / "experiment.json").write_text("{}")
            (folder / "state.json").write_text('{"status": "failed", "error": "FederationError: an actor died"}')
        raise stop

    monkeypatch.setattr(launcher, "submit", submitted)
    for begun in (True, False):
        with pytest.raises(type(stop)):
            launcher.run(launcher.NewRun(folder=tmp_path / str(begun)), Where())
    assert read_state(tmp_path / "True") == {"status": "failed", "error": "it was stopped by whoever had started it"}
    assert not (tmp_path / "False").exists()  # nothing was begun there


def test_a_file_that_flower_cannot_pack_is_named(tmp_path, monkeypatch):
    files = {"conf/variant/small,quick.yaml": tmp_path / "small,quick.yaml", "ease_flwr/__init__.py": tmp_path}
    monkeypatch.setattr(app, "_files", lambda: files)
    with pytest.raises(ConfigError, match=r"small,quick.yaml': Flower lists the files of an app with commas and lines, rename"):
        app.check()


def test_seeds_are_numbers():
    assert main._numbers("0, 7,0") == [0, 7]
    for wrong in ("010", "²", "1,,2", "-1", "x", "9" * 30):
        with pytest.raises(ConfigError, match=r"^--seeds .*: expected numbers with commas, for example 0,1,2$"):
            main._numbers(wrong)
