"""Experiments: every YAML loads, and every mistake is one line that says what, where and what to do."""

import pytest

from ease_flwr import config, launcher, strategies
from ease_flwr.config import ConfigError, Experiment, halves, identity, renamed
from ease_flwr.config.section import leaves

NAMES = "client-0, client-1, client-2, client-3, client-4, client-5, client-6, client-7"


@pytest.mark.parametrize("name", config.choices("experiment"))
def test_every_experiment_loads(name):
    assert config.load(name).name == name


@pytest.mark.parametrize("data", ["flickr30k", "coco", "textcaps"])
@pytest.mark.parametrize("scenario", ["client", "class", "sample"])
@pytest.mark.parametrize("model", ["ViT-B-32", "ViT-L-14"])
def test_papers_experiments_are_put_together(data, scenario, model):
    name = data + ("" if model == "ViT-B-32" else "+l14") + ("" if scenario == "client" else f"+{scenario}")
    found = config.load(name)
    assert (found.name, found.model.name, found.model.weights, found.forget.scenario) == (name, model, "openai", scenario)
    assert found.model.checkpointing == (model == "ViT-L-14")
    assert bool(found.forget.targets) == (scenario == "client")


def test_an_unknown_variant_is_named():
    with pytest.raises(
        ConfigError, match=r"^no variant 'l15': there are bf16, class, l14, sample, sharing, top6; one of your own lies in "
    ):
        config.load("flickr30k+class+l15")


def test_an_experiment_extends_another_one(tmp_path, monkeypatch):
    monkeypatch.setattr("ease_flwr.config.reading.APP", tmp_path)
    (tmp_path / "conf" / "experiment").mkdir(parents=True)
    (tmp_path / "conf/experiment/one.yaml").write_text("learn: {rounds: 7, lr: 0.25}\nseed: 3")
    (tmp_path / "conf/experiment/two.yaml").write_text("extends: one\nlearn: {rounds: 9}")
    found = config.load("two")
    assert (found.name, found.seed, found.learn.rounds, found.learn.lr) == ("two", 3, 9, 0.25)
    (tmp_path / "conf/experiment/two.yaml").write_text("extends: three")
    with pytest.raises(
        ConfigError,
        match=r"^no experiment 'three': there are one, two; one of your own lies in ./conf/experiment/",
    ):
        config.load("two")


@pytest.mark.parametrize("name", halves.names("strategies"))
def test_every_strategy_loads(name):
    kind = strategies.load(name)
    assert kind.rounds_of(kind.check(name, Experiment(), kind.scenarios[0]), 40) >= 0
    assert kind.__doc__


def test_every_field_is_documented():
    def check(model):
        for name, field in model.model_fields.items():
            if isinstance(field.annotation, type) and issubclass(field.annotation, config.Section):
                check(field.annotation)
            else:
                assert field.description, f"{model.__name__}.{name}"

    for model in (Experiment, config.Submission, *(strategies.load(n).Params for n in halves.names("strategies"))):
        check(model)


def test_dotted_overrides():
    e = config.load(
        "personas", {"forget.targets": "client-4,client-5", "learn.rounds": "3", "seed": 7, "strategy.gsd.tau": "0.4"}
    )
    assert e.forget.targets == ("client-4", "client-5")
    assert e.learn.rounds == 3
    assert e.seed == 7
    assert config.strategy_values("ease", e)["gsd"]["tau"] == 0.4


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        ({"learn.round": "3"}, "unknown key learn.round (known: rounds, epochs, batch, lr, clip, "),
        ({"learn.rounds": "many"}, "learn.rounds='many': Input should be a valid integer"),
        ({"learn.rounds": "0"}, "learn.rounds=0: Input should be greater than or equal to 1"),
        ({"forget.targets": "client-9"}, f"forget.targets: no client client-9; there are {NAMES}"),
        ({"forget.targets": NAMES}, "forget.targets: all clients are to be forgotten, nobody would be left"),
        (
            {"forget.targets": "client-4,client-4"},
            "forget.targets: client-4 is named twice: name it once, in targets or",
        ),
        ({"forget.targets": "client-4", "forget.then": "client-4"}, "forget.targets: client-4 is named twice: name it once"),
        ({"seed": "-1"}, "seed=-1: Input should be greater than or equal to 0"),
    ],
)
def test_mistakes_are_one_line(overrides, line):
    with pytest.raises(ConfigError) as error:
        config.load("personas", overrides)
    assert line in str(error.value)
    assert "\n" not in str(error.value)


def test_unknown_names_list_the_known_ones():
    with pytest.raises(
        ConfigError,
        match=r"^no experiment 'persona': there are coco, demo, flickr30k, flickr8k, flickr8k_sample, flickr8k_towers, hosp",
    ):
        config.load("persona")
    with pytest.raises(ConfigError, match=r"^no 'eas' in strategies/: there are ascent, ccu, "):
        strategies.load("eas")
    with pytest.raises(ConfigError, match=r"seed.x: seed is a value, not a section"):
        config.load("personas", {"seed": 1, "seed.x": "2"})
    with pytest.raises(ConfigError, match=r"'learn.rounds': expected key=value, for example forget.targets=client-4"):
        config.parse_assignments(["learn.rounds"])


def test_run_config_of_flower():
    base = {"experiment": "personas", "strategy": "ease", "seed": 2, "run-dir": "", "fresh": False, "set": ""}
    e, s = config.from_run_config(
        {**base, "forget.targets": "client-3", "data.root": "", "set": "learn.rounds=4 continuation.rounds=0"}
    )
    assert (e.seed, e.forget.targets, e.learn.rounds, e.continuation.rounds) == (2, ("client-3",), 4, 0)
    assert s == config.Submission()


@pytest.mark.parametrize(("old", "new"), renamed.EXPERIMENT.items())
def test_old_names_are_answered_with_the_new_ones(old, new):
    value = {"rounds": 3} if old == "hold" else 3
    with pytest.raises(ConfigError, match=rf"experiment personas: {old} is called {new} since version 0.2: use that name"):
        config.load("personas", {old: value})


def test_old_names_in_a_file_too(tmp_path, monkeypatch):
    (tmp_path / "conf" / "experiment").mkdir(parents=True)
    (tmp_path / "conf" / "experiment" / "mine.yaml").write_text("hold:\n  rounds: 3\n")
    monkeypatch.setattr("ease_flwr.config.reading.APP", tmp_path)
    with pytest.raises(ConfigError, match=r"experiment mine: hold is called continuation since version 0.2"):
        config.load("mine")


def test_every_field_says_what_it_decides():
    """What may differ when a run goes on is said by the fields themselves: settings of time limits, places and looking."""
    may_differ = {name for name, _, what in leaves(Experiment) if what == "nothing"}
    assert {"federation.deadline", "federation.quorum", "data.cache", "tracking", "audit.level"} <= may_differ
    assert not {"federation.half", "federation.norm_bound", "learn.lr", "seed", "evaluation.order_seed"} & may_differ
    e = Experiment()
    assert config.chosen(e, "learning", "later", "nothing").keys() == {name for name, _, _ in leaves(Experiment)}
    assert config.chosen(e, "later")["continuation.rounds"] == 5


def test_the_code_of_a_module_is_all_that_it_imports(tmp_path, monkeypatch):
    for name, text in {
        "a": "from ease_flwr import b\nif TYPE_CHECKING:\n    from ease_flwr import d\n",
        "b": "def f():\n    import ease_flwr.c\n",
        "c": "import torch\n",
        "d": "",
        "__init__": "",
    }.items():
        (tmp_path / "ease_flwr").mkdir(exist_ok=True)
        (tmp_path / "ease_flwr" / f"{name}.py").write_text(text)
    monkeypatch.setattr("ease_flwr.config.identity.PACKAGE", tmp_path / "ease_flwr")
    monkeypatch.setattr("ease_flwr.config.identity.APP", tmp_path)
    identity.imported.cache_clear()
    assert sorted(p.stem for p in identity.imported("ease_flwr.a")) == ["__init__", "a", "b", "c"]
    before = config.code_of("ease_flwr.a")
    (tmp_path / "ease_flwr" / "d.py").write_text("x = 1\n")
    assert config.code_of("ease_flwr.a") == before
    (tmp_path / "ease_flwr" / "c.py").write_text("import numpy\n")
    assert config.code_of("ease_flwr.a") != before
    identity.imported.cache_clear()


@pytest.mark.parametrize(
    ("strategy", "learnt", "rounds", "noted"),
    [
        ("ease", 3, 9, True),
        ("ease", 9, 9, False),
        ("ease", 50, None, False),
        ("finetune", 3, 4, True),
        ("retrain", 3, 9, False),
    ],
)
def test_more_rounds_of_forgetting_than_of_learning_are_noted(strategy, learnt, rounds, noted):
    settings = {"learn.rounds": learnt} | ({"strategy.rounds": rounds} if rounds else {})
    said = launcher.misleading(config.load("personas", settings), strategy)
    expected = (
        f"forgetting has {rounds} rounds after {learnt} of learning: it costs more than retraining, and teaches what is kept"
    )
    assert said == (expected if noted else "")
