"""What somebody types arrives: any text, for any field, all the way from the command line to the server's reading of it."""

import json
import math
import os
import re
from pathlib import Path

import pytest
from flwr.common.config import parse_config_args
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ease_flwr import config
from ease_flwr.cli.operator import _lines
from ease_flwr.config import ConfigError, Experiment, ForgetConfig, ForgetRequest
from ease_flwr.config.section import leaves
from ease_flwr.config.typed import items, read, spelled
from ease_flwr.store import files, queue
from ease_flwr.store.queue import Step

TRICKY = [
    *("3", "on", "1.0", "C#", "a:", "null", "12:30", "2024-01-01", "#1", "!x", "%x", "@x"),
    *("`x`", "'x", '"x', "*", "&a", "=", "|"),
    *("010", "0x10", "1_0", "10.0", "1e3", ".5", "-0", "+5", "nan", "inf", "1e999", "٣", " 3", "3 ", "9" * 5000, "true", "~"),
    *("[a", '["a,b", " c"]', "{", "a=b", "a b", "a\nb", "a\tb", "a, b", ",", "ü", "名前", "\x00", "\ud800"),
    *("~/x", "../x", "//x", "x" * 300),
]
TEXT = st.one_of(st.sampled_from(TRICKY), st.text(max_size=12), st.integers().map(str), st.floats().map(str))
FIELDS = {name: field.annotation for name, field, _ in leaves(Experiment)}
PATHS = ("data.root", "data.parts", "data.labels", "data.cache", "data.memory")


def arrived(told, folder):
    """An experiment as the server reads it: through the launcher's document, Flower's TOML and its run config."""
    (folder / "run-config.toml").write_text(f'document = "{config.encoded(told)}"\n')
    return config.from_run_config(parse_config_args([str(folder / "run-config.toml")]))


def settings_of(told, run_dir="/runs/one", experiment="personas_class"):
    return {"experiment": experiment, "strategy": "ease", "run-dir": run_dir, "fresh": False, "seed": 0, "set": told, "own": ""}


def standing(text):
    """A path from where the tests stand; of a home, the user's alone is meant."""
    home = text == "~" or text.startswith("~/")
    return str(Path.home() / text[2:].lstrip("/") if home else Path(text).absolute())


def one_line(refusal):
    assert len(str(refusal).splitlines()) == 1


def at(experiment, key):
    for part in key.split("."):
        experiment = getattr(experiment, part)
    return experiment


@settings(max_examples=400, deadline=None)
@given(key=st.sampled_from(sorted(FIELDS)), text=TEXT)
@example(key="forget.targets", text="010")
@example(key="data.cache", text="~")
@example(key="data.cache", text="~nobody")
@example(key="data.root", text="my pictures, 'new' = \"x\"\nä")
def test_any_text_for_any_field_arrives_or_is_one_line(tmp_path_factory, key, text):
    folder, kind = tmp_path_factory.getbasetemp(), FIELDS[key]
    try:
        asked, told = config.asked("personas_class", [f"{key}={text}"])
    except ConfigError as refusal:
        one_line(refusal)
        assert kind is not str or key in (*PATHS, "name", "data.partition", "model.weights")
        return
    found, _ = arrived(settings_of(told), folder)
    assert found == asked
    value = at(found, key)
    if key in PATHS:
        assert value == (standing(text) if text else "")
    elif kind is str:
        assert value == text or (key == "model.weights" and value == standing(text))
    elif kind is int:
        assert value == int(text)
        assert str(value) == text.lstrip("+") or text == "-0"
    elif kind is float:
        assert math.isfinite(value)
        assert value == float(text)
    elif kind == tuple[str, ...]:
        assert value == tuple(items(text))


@pytest.mark.parametrize(
    ("text", "instead"), [("010", "10"), ("1_0", "10"), ("10.0", "10"), ("1e1", "10"), (" 10", "10"), ("٣", "3")]
)
def test_a_number_is_written_as_numbers_are(text, instead):
    with pytest.raises(ConfigError, match=rf"^experiment personas: learn.rounds={text!r}: write {instead}$"):
        config.load("personas", {"learn.rounds": text})
    assert config.load("personas_class", {"forget.targets": text}).forget.targets == (text.strip(),)


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("lora.targets", "[attn,c_fc,c_proj]"),
        ("model.mean", "[0.5,0.5,0.5]"),
        ("forget.targets", "[x]"),
    ],
)
def test_a_list_in_brackets_is_one_of_json(key, text):
    line = re.escape(f"""{key}={text!r}: write it with commas alone, a,b, or as a JSON list of texts, ["a","b"]""")
    with pytest.raises(ConfigError, match=f"{line}$"):
        config.load("personas", {key: text})
    assert config.load("personas", {"lora.targets": '["attn","c_fc"]'}).lora.targets == ("attn", "c_fc")


@pytest.mark.parametrize(
    ("key", "most"),
    [("data.clients", 10_000), *((f"data.{name}", 1_000_000) for name in ("scenes", "exclusive", "gallery", "test_repeats"))],
)
def test_no_number_fills_the_memory(key, most):
    """data.clients=10000000000 once made so many names."""
    with pytest.raises(ConfigError, match=rf"{key}={most + 1}: Input should be less than or equal to {most}$"):
        config.load("personas", {key: str(most + 1)})


@pytest.mark.parametrize("text", ["nan", "inf", "-inf", "1e999", float("nan"), float("inf")])
def test_numbers_are_finite(text):
    with pytest.raises(ConfigError, match=r"learn.lr=.*: expected a finite number$"):
        config.load("personas", {"learn.lr": text})


@pytest.mark.usefixtures("our_files_alone")
def test_a_file_of_settings_is_read_by_type_too(tmp_path):
    """YAML has opinions of its own about what is typed: here they do not count."""
    said = "forget: {scenario: class, targets: [3, on, 1.0, 12:30, 2024-01-01, null, 010, C#, 'a, b']}\n"
    said += "learn: {rounds: 3, lr: 1e-3}\n"
    (tmp_path / "labels.yaml").write_text("\ufeff" + said, encoding="utf-8")
    found = config.load(config.own.named(str(tmp_path / "labels.yaml")))
    assert found.forget.targets == ("3", "on", "1.0", "12:30", "2024-01-01", "null", "010", "C#", "a, b")
    assert (found.learn.rounds, found.learn.lr) == (3, 0.001)
    (tmp_path / "wrong.yaml").write_bytes(b"learn: {rounds: \xff}")
    with pytest.raises(ConfigError, match=r"wrong.yaml: byte [0-9]+ is no UTF-8: save it as UTF-8"):
        config.load(config.own.named(str(tmp_path / "wrong.yaml")))


def test_settings_without_a_type_keep_what_was_typed():
    """A method knows the types of its settings: until it is asked, nothing of a text is lost."""

    class Params(config.Section):
        name: str = ""
        share: float | None = 0.5
        count: int = 1

    for text in ("1.0", "0.40", "010", "true", "1e3", "null", "3"):
        kept = config.settings([f"name={text}"])
        assert read(read(kept, Experiment), Params)["name"] == text
    assert config.validate(Params, config.settings(["share=null", "count=3"]), "x") == Params(share=None, count=3)
    with pytest.raises(ConfigError, match=r"^x: count='010': write 10$"):
        config.validate(Params, config.settings(["count=010"]), "x")


@settings(max_examples=200, deadline=None)
@given(names=st.lists(st.text(max_size=8), max_size=4))
def test_a_list_is_spelled_so_that_it_is_read_again(names):
    assert items(spelled(names)) == names


@settings(max_examples=100, deadline=None)
@example(names=["a", "\u200b"])
@given(names=st.lists(st.text(min_size=1, max_size=8), min_size=1, max_size=4, unique=True))
def test_labels_stay_what_they_are_on_the_queue(tmp_path_factory, names):
    folder = tmp_path_factory.mktemp("run")
    asked = {"scenario": "class", "targets": names}
    if "" in (meant := tuple(map(config.canonical, names))):  # nobody means the pairs without a label
        with pytest.raises(ConfigError, match=r"^[^\n]* names nothing: leave it out$"):
            config.validate(ForgetConfig, asked, "request")
        return
    (wanted,) = config.validate(ForgetConfig, asked, "request").forget_sets()
    request = ForgetRequest.of(wanted, "npo", config.settings(["rounds=1"]))
    queue.write(folder, [Step(kind="learn"), Step(kind="forget", request=request)])
    assert queue.requests(queue.read(folder)) == [request]
    assert request.targets == meant


UNSEEN = " \t\u00a0\u200b\u200c\u200d\u2060\ufeff"
LINE = st.text(st.characters(exclude_categories=["Cs", "Cc", "Zl", "Zp"], exclude_characters="#"), min_size=1, max_size=10).map(
    lambda text: text.strip().strip(UNSEEN).strip()
)


@settings(max_examples=200, deadline=None)
@given(
    names=st.lists(LINE.filter(lambda name: name == name.strip(UNSEEN) != ""), min_size=1, max_size=5),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]),
    around=st.sampled_from(UNSEEN),
    end=st.sampled_from(["\n", "\r\n", "\r"]),
    more=st.sampled_from(["", "# a remark", "   ", "  # indented"]),
)
def test_a_file_of_ids_is_read_however_it_was_saved(tmp_path_factory, names, encoding, around, end, more):
    file = tmp_path_factory.mktemp("ids") / "ids.txt"
    lines = [more, *(f"{around}{name}{around}\t# why" for name in names), *(f" {name} # why" for name in names), more]
    file.write_bytes(end.join(lines).encode(encoding))
    assert _lines(file) == names * 2


@settings(max_examples=100, deadline=None)
@given(name=st.one_of(st.sampled_from(TRICKY), st.text(max_size=20)))
def test_a_run_folder_of_any_name_is_the_one_that_the_server_opens(tmp_path_factory, name):
    here = tmp_path_factory.mktemp("runs")
    try:
        folder = Path(config.absolute(str(here / name), "run-dir"))
    except ConfigError:
        assert "\x00" in name or "\ud800" in name or len(os.fsencode(name)) > 255
        return
    _, submitted = arrived(settings_of({}, str(folder)), here)
    assert submitted.run_dir == str(folder)
    if folder != here and here in folder.parents and ".." not in folder.parts:
        assert files.claimed(folder)
        assert not files.claimed(folder)
        assert json.loads((folder / "state.json").read_text())["status"] == "submitted"


def test_paths_are_meant_from_where_one_stands(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "base.safetensors").write_bytes(b"")
    keys = {key: f"a b/{key}" for key in PATHS} | {"model.weights": "base.safetensors"}
    found, told = config.asked("personas", [f"{k}={v}" for k, v in keys.items()])
    monkeypatch.chdir("/")
    assert {k: at(found, k) for k in keys} == {k: str(tmp_path / v) for k, v in keys.items()}
    assert {k: told[k] for k in keys} == {k: str(tmp_path / v) for k, v in keys.items()}
    assert config.asked("personas", [])[0].model.weights == "ease_flwr/data/personas-base.json"
    assert config.asked("flickr30k", [])[0].model.weights == "openai"


@pytest.mark.usefixtures("our_files_alone")
def test_paths_of_a_file_of_ones_own_too(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text("extends: flickr8k\ndata: {root: pictures}\n")
    found, told = config.asked(config.own.named("mine.yaml"), [])
    assert found.data.root == told["data.root"] == str(tmp_path / "pictures")


def test_every_path_is_marked():
    """A field that is described as a file or a folder is one whose paths are made absolute."""
    marked = {n for n, f, _ in leaves(Experiment) if isinstance(f.json_schema_extra, dict) and f.json_schema_extra.get("path")}
    assert marked == set(PATHS)


@pytest.mark.parametrize(
    ("key", "near"),
    [
        ("learn.round", "learn.rounds"),
        ("lern.rounds", "learn"),
        ("data.rot", "data.root"),
        ("forget.target", "forget.targets"),
        ("targets", "lora.targets or forget.targets"),
    ],
)
def test_an_unknown_setting_is_answered_with_the_near_one(key, near):
    with pytest.raises(ConfigError, match=rf": did you mean {near}\?$"):
        config.load("personas", {key: "3"})


def test_other_unknown_names_too():
    with pytest.raises(ConfigError, match=r"did you mean personas\?$"):
        config.load("persona")
    with pytest.raises(ConfigError, match=r"did you mean fedosd\?$"):
        config.halves.check("strategies", "fedosdd")
    with pytest.raises(ConfigError, match=r"did you mean client-0\?$"):
        config.load("personas", {"forget.targets": "cleint-0"})
