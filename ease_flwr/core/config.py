"""What an experiment is: YAML and `key=value` in, frozen objects out. Every field is documented here and nowhere else.

An experiment is read from conf/experiment/NAME.yaml (after the one it `extends`), then from conf/variant/ what NAME+VARIANT+...
adds to it; dotted keys (`forget.targets=client-4`) override single fields. This module imports neither torch nor flwr, so that
a mistake is answered at once.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

APP = Path(__file__).resolve().parents[2]
"""The folder that holds conf/, strategies/ and clients/: a checkout, or the unpacked app on a Flower host."""


NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
SAMPLE = re.compile(r"[^/\s]+/(\d+|\d*:\d*(:\d+)?)")
"""A target of the sample scenario: CLIENT/POSITION or CLIENT/START:STOP:STEP."""


class ConfigError(ValueError):
    """A setting that cannot be used; the message is one line: what, where, what to do."""


class Section(BaseModel):
    """A frozen group of settings that refuses keys it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


def searched(default: Any, values: tuple[Any, ...], **limits: Any) -> Any:
    """A field whose values `ease tune` tries."""
    return Field(default, json_schema_extra={"search": list(values)}, **limits)


class BackdoorConfig(Section):
    """A patch that means a sentence, in the data of some clients only: after they are forgotten the audit asks for it."""

    clients: tuple[str, ...] = ()
    """Whose training pairs are marked; none: nobody's."""
    share: float = Field(0.3, gt=0, le=1)
    """Share of their pairs."""


class DataConfig(Section):
    kind: Literal["personas", "photographs", "folder"] = "personas"
    """Module of ease_flwr/data that provides the pairs."""
    clients: int = Field(8, ge=2)
    """Number of clients; they are named client-0, client-1, ..."""
    names: tuple[str, ...] = ()
    """folder: what the clients' hosts call themselves."""
    root: str = ""
    """photographs: folder with an index and images, see ease_flwr/data/formats.py. folder: a host's own, from its node config
    `data-root`."""
    alpha: float = Field(0.5, gt=0)
    """Dirichlet concentration of the skew: of base scenes over shapes (personas), of pairs over labels (photographs)."""

    exclusive: int = Field(5, ge=1)
    """personas: how many each client alone knows."""
    shared: int = Field(8, ge=0)
    """personas: how many are known to several clients."""
    holders: int = Field(4, ge=2)
    """personas: clients that know a shared one."""
    strangers: int = Field(12, ge=2)
    """personas: how many nobody is ever trained on."""
    exclusive_pairs: int = Field(56, ge=1)
    """personas: training pairs per exclusive persona."""
    shared_pairs: int = Field(40, ge=1)
    """personas: training pairs per shared persona and holder."""
    scenes: int = Field(96, ge=1)
    """personas: base scenes in each client's training data."""
    test_repeats: int = Field(2, ge=1)
    """personas: test gallery groups per background (10) and template (3)."""
    holdout_repeats: int = Field(5, ge=1)
    """personas: hold-out gallery groups per unseen background (2) and template (4)."""
    test_scenes: int = Field(600, ge=8)
    """personas: base scenes in the global test gallery."""
    unseen: int = Field(240, ge=8)
    """Public pairs that nobody trains on (personas: of strangers; photographs: of the validation split)."""

    partition: Literal["iid", "dirichlet", "label", "file"] = "label"
    """photographs: how training pairs are dealt to clients. label: sorted by label, then cut into equal parts. file: as
    `parts` says."""
    parts: str = ""
    """photographs, partition "file": a JSON file {"names": {CLIENT: [image names]}}; `ease data deal` writes one."""
    labels: str = ""
    """photographs: a JSON file {"names": {image name: label}} in place of the index's labels; `ease data cluster` writes it."""
    mixed: float = Field(0.4, ge=0, le=1)
    """photographs, partition "label": share of every client's pairs that is shuffled among all clients."""
    image_size: int = Field(0, ge=0)
    """photographs, folder: side in pixels to which images are resized and centre-cropped; 0 is 224, as most CLIPs have it."""
    cache: str = ""
    """Folder of a host (node config `cache`) where decoded images and what the frozen trunk makes of them are kept for the
    process of the next message; "" is nowhere."""
    cache_limit: float = Field(50, gt=0)
    """GiB that this folder may hold; what was used longest ago is deleted first."""
    cache_half: bool = False
    """Whether bfloat16 is enough for what the trunk makes of images: half the memory, gradients nearly the same."""
    backdoor: BackdoorConfig = BackdoorConfig()


class ModelConfig(Section):
    name: str = ""
    """open_clip model name, e.g. ViT-B-32; "" when `weights` brings its own configuration."""
    weights: str = ""
    """A base-model .json of `ease make-base`, a .safetensors file (with an open_clip config beside it under the same
    name and .json when `name` is ""), an open_clip pretrained tag, or "" for seeded random weights."""
    context: int = Field(0, ge=0)
    """Tokens of text the model looks at; 0 is the model's own number. Fewer are faster; longer captions are cut."""
    mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
    """Per-channel mean of the image normalisation (0..1 scale); the default is OpenAI's. A base-model .json brings its own."""
    std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)
    """Per-channel standard deviation of the image normalisation."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the towers run (node config `device` says it for one host); auto: on a GPU if the process was given one."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Arithmetic of the towers; with bfloat16 (autocast) adapters, their gradients and the loss stay float32."""
    checkpointing: bool = False
    """Whether activations are computed again in the backward pass instead of kept: less memory, a third more work."""


class LoraConfig(Section):
    rank: int = Field(8, ge=1)
    """Rank r of every adapter."""
    alpha: int = Field(16, ge=1)
    """LoRA alpha: the update is (alpha / r) B A."""
    targets: tuple[str, ...] = ("attn", "c_fc", "c_proj")
    """Module names (last parts of the dotted path) that get an adapter, in both towers."""
    visual_from: int = Field(0, ge=0)
    """First transformer block of the image tower that is adapted."""
    text_from: int = Field(0, ge=0)
    """First transformer block of the text tower that is adapted."""


class TrainConfig(Section):
    rounds: int = Field(30, ge=1)
    """Federated rounds."""
    epochs: int = Field(3, ge=1)
    """Local epochs a round."""
    batch: int = Field(64, ge=2)
    """Pairs in a batch; the InfoNCE loss contrasts them with each other."""
    lr: float = Field(5e-3, gt=0)
    """AdamW learning rate of the adapters (no weight decay)."""
    clip: float = Field(1.0, gt=0)
    """Largest gradient norm."""
    aggregator: Literal["FedAvg", "FedProx", "FedAvgM", "FedAdam", "FedMedian", "FedTrimmedAvg", "Krum"] = "FedAvg"
    """Flower's strategy that aggregates while the federation learns (the retrained reference too); then it is FedAvg."""
    aggregator_options: dict[str, float] = {}
    """Its own settings, by Flower's names, e.g. server_momentum, eta, beta, num_malicious_nodes, proximal_mu."""
    fraction: float = Field(1.0, gt=0, le=1)
    """Share of the clients that take part in a round, drawn by name and seed. Who has to forget is always asked."""
    average: int = Field(4, ge=1)
    """A phase ends with the mean of the global adapters of its last so many rounds; single rounds fluctuate."""


class ForgetConfig(Section):
    scenario: Literal["client", "class", "sample"] = "client"
    """What is to be forgotten. client: all that some clients brought, who leave.  class: all pairs with certain labels,
    whoever holds them.  sample: single pairs of some clients, who stay with the rest."""
    targets: tuple[str, ...] = ()
    """client: names of clients.  class: labels.  sample: CLIENT/POSITION or CLIENT/START:STOP:STEP in the client's training
    pairs, counted from 0."""
    draw: int = Field(1, ge=1)
    """Where there are no targets, the seed draws so many. class: labels (personas: people whom several clients know).
    sample: pairs of every client (personas: clients who withdraw all pairs of one of their exclusive people)."""

    then: tuple[str, ...] = ()
    """client: names of clients that ask to be forgotten after the targets have been, each a request of its own."""
    also: tuple[ForgetConfig, ...] = ()
    """Requests of other scenarios that hold as well, see `together`."""

    @model_validator(mode="after")
    def _targets_are_well_formed(self) -> ForgetConfig:
        if self.scenario == "client" and not self.targets:
            raise ValueError("targets: (empty): name the clients that leave")
        if self.then and self.scenario != "client":
            raise ValueError("then: further requests are for the client scenario")
        if self.scenario == "sample" and (bad := [t for t in self.targets if not SAMPLE.fullmatch(t)]):
            raise ValueError(f"targets: {bad[0]!r} is not CLIENT/POSITION or CLIENT/START:STOP:STEP")
        return self

    def names(self) -> set[str]:
        """Clients that the targets name."""
        if self.scenario == "class":
            return set()
        return {t.rpartition("/")[0] if self.scenario == "sample" else t for t in (*self.targets, *self.then)}

    def requests(self) -> list[ForgetConfig]:
        """One after the other: what the targets ask, then each client of `then`."""
        return [self.model_copy(update={"targets": t, "then": ()}) for t in (self.targets, *((n,) for n in self.then))]

    def leaving(self) -> set[str]:
        """Clients of whom everything is forgotten."""
        return {t for part in (self, *self.also) if part.scenario == "client" for t in part.targets}

    def told(self, client: str) -> ForgetConfig:
        """What this client is told: of single pairs, its own only."""
        also = tuple(part.told(client) for part in self.also)
        if self.scenario != "sample":
            return self.model_copy(update={"also": also}) if also else self
        return self.model_copy(update={"targets": tuple(t for t in self.targets if t.startswith(f"{client}/")), "also": also})

    @staticmethod
    def together(requests: Sequence[ForgetConfig]) -> ForgetConfig | None:
        """All requests as one; None if there are none."""
        scenarios = dict.fromkeys(r.scenario for r in requests)
        joined = [
            ForgetConfig(scenario=s, targets=tuple(t for r in requests if r.scenario == s for t in r.targets))
            for s in scenarios
        ]
        return joined[0].model_copy(update={"also": tuple(joined[1:])}) if joined else None

    def described(self) -> dict[str, Any]:
        """For results and people: {"scenario", "targets"}."""
        scenario = self.scenario if not self.also else "several"
        return {"scenario": scenario, "targets": [t for part in (self, *self.also) for t in part.targets]}


class HistoryConfig(Section):
    rank: int = Field(0, ge=0)
    """0 keeps every update; q keeps a sketch of rank q for each client, constant in the number of rounds."""
    half: bool = False
    """Whether bfloat16 is enough on disk."""


class HoldConfig(Section):
    rounds: int = Field(5, ge=0)
    """Ordinary rounds of the retained clients after forgetting, with the lock on."""
    overlap: int = Field(4, ge=0)
    """Fresh pairs about forgotten knowledge that the first retained client meets in these rounds (the reference too)."""


class FederationConfig(Section):
    half: bool = False
    """Adapters travel in half precision: they go out rounded to float16, and what rounding left over is added to the next
    round's (error feedback, Seide et al. 2014; Karimireddy et al., arXiv 1901.09847); clients send their change in float16."""
    norm_bound: float = Field(20.0, gt=1)
    """An update is refused when it is so many times longer than the median of its round."""
    quorum: float = Field(1.0, gt=0, le=1)
    """Share of the asked clients that must answer; below it the run stops."""
    deadline: float = Field(600, gt=0)
    """Seconds a client has for one answer; then it is asked once more."""
    start_timeout: float = Field(120, gt=0)
    """Seconds to wait at the start until all nodes are there."""


class EvaluationConfig(Section):
    every: int = Field(10, ge=0)
    """Validation recall every so many rounds of a phase (0: only at its end)."""
    reference: Literal["retrain", "none"] = "retrain"
    """Whether the model is also trained without what is to be forgotten, to compare with."""
    equal: bool = True
    """Whether the reference also goes on for as many rounds as forgetting took (retrain_equal), and through the hold phase."""
    split: Literal["test", "validation"] = "test"
    """Pairs that the models are judged on at the end; validation while settings are being chosen."""
    order_seed: int = Field(0, ge=0)
    """Changes the order of training data only; two retrainings that differ in it show the noise of every gap."""


class AuditConfig(Section):
    """How near to retraining is near enough, for the verdict."""

    level: Literal["quick", "full", "none"] = "quick"
    """What a run asks at its end; `ease audit RUN --level full` asks the rest later."""
    recall: float = Field(3.0, gt=0)
    """Points of R@1 on what is to be forgotten, and on what others know too, above or below."""
    retained: float = Field(3.0, gt=0)
    """Points of R@1 below it on what is kept."""
    people: float = Field(15.0, gt=0)
    """Points of R@1 for the one whom the two models differ most for."""
    distance: float = Field(0.1, gt=0)
    """Mean distance of the similarities of single pairs."""
    auc: float = Field(0.05, gt=0)
    """AUC of membership attacks and of the linear probe."""
    relearn: float = Field(10.0, gt=0)
    """Points of R@1 after learning it again."""


class Experiment(Section):
    name: str = "personas"
    """Name of the experiment, with its variants: conf/experiment/NAME.yaml and conf/variant/."""
    seed: int = Field(0, ge=0)
    """Decides the world, the partition, the adapters at the start and every order of data."""
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    lora: LoraConfig = LoraConfig()
    learn: TrainConfig = TrainConfig()
    forget: ForgetConfig = ForgetConfig(targets=("client-0",))
    history: HistoryConfig = HistoryConfig()
    hold: HoldConfig = HoldConfig()
    federation: FederationConfig = FederationConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    audit: AuditConfig = AuditConfig()
    tracking: Literal["", "tensorboard", "trackio", "wandb"] = ""
    """Where the numbers of every event go besides metrics.jsonl; what it names must be installed."""
    strategies: dict[str, dict[str, Any]] = {}
    """Settings of single strategies that this experiment needs to differ from their defaults."""
    strategy: dict[str, Any] = {}
    """Settings of the strategy that runs, e.g. strategy.rounds=3; they go before all others."""

    @model_validator(mode="after")
    def _targets_exist(self) -> Experiment:
        names = list(self.data.names) or [f"client-{k}" for k in range(self.data.clients)]
        if bad := [n for n in names if not NAME.fullmatch(n)]:
            raise ValueError(f"data.names: {bad[0]!r} cannot name a folder: letters, digits, . _ - and no other, 64 at most")
        if strange := sorted(set(self.data.backdoor.clients) - set(names)):
            raise ValueError(f"data.backdoor.clients: no client {', '.join(strange)}; there are {', '.join(names)}")
        named = self.forget.names()
        if wrong := sorted(named - set(names)):
            raise ValueError(f"forget.targets: no client {', '.join(wrong)}; there are {', '.join(names)}")
        if self.forget.scenario == "client" and len(named) >= len(names):
            raise ValueError("forget.targets: all clients are to be forgotten, nobody would be left")
        return self


def choices(group: str) -> list[str]:
    """Names in a configuration group: "experiment", "variant" or "strategy"."""
    return sorted(p.stem for p in (APP / "conf" / group).glob("*.yaml"))


def read_yaml(group: str, name: str) -> dict[str, Any]:
    """conf/GROUP/NAME.yaml as a dictionary. Raises ConfigError if there is none or it is not a mapping."""
    path = APP / "conf" / group / f"{name}.yaml"
    if name not in choices(group):
        raise ConfigError(f"no {group} {name!r}: there are {', '.join(choices(group))}")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected `key: value` lines")
    return values


def assign(values: dict[str, Any], key: str, value: Any) -> None:
    """values["a"]["b"] = value for the key "a.b"; a string is read as YAML, so 3 is a number; "x,y" fills a tuple field."""
    *path, last = key.split(".")
    for part in path:
        values = values.setdefault(part, {})
        if not isinstance(values, dict):
            raise ConfigError(f"{key}: {part} is a value, not a section")
    values[last] = yaml.safe_load(value) if isinstance(value, str) and value != "" else value


def _split_tuples(values: dict[str, Any], model: type[BaseModel]) -> None:
    """Turn "a,b" into ["a", "b"] where the field is a tuple: run configurations of Flower have no lists."""
    for name, field in model.model_fields.items():
        kind, value = field.annotation, values.get(name)
        if isinstance(value, dict) and isinstance(kind, type) and issubclass(kind, BaseModel):
            _split_tuples(value, kind)
        elif getattr(kind, "__origin__", None) is tuple and isinstance(value, str):
            values[name] = [part.strip() for part in value.split(",") if part.strip()]


M = TypeVar("M", bound=BaseModel)


def validate(model: type[M], values: dict[str, Any], where: str) -> M:
    """model(**values) with every mistake named on one line. Raises ConfigError."""
    _split_tuples(values, model)
    try:
        return model(**values)
    except ValidationError as error:
        parts = []
        for e in error.errors():
            key = ".".join(str(p) for p in e["loc"])
            if e["type"] == "extra_forbidden":
                section: Any = model
                for p in e["loc"][:-1]:
                    section = section.model_fields[str(p)].annotation
                parts.append(f"unknown key {key} (known: {', '.join(section.model_fields)})")
            else:
                message = e["msg"].removeprefix("Value error, ")
                about_section = isinstance(e["input"], dict)  # from a check of several fields: the message names them
                parts.append(
                    f"{key}.{message}" if about_section and key else f"{key}={e['input']!r}: {message}" if key else message
                )
        raise ConfigError(f"{where}: " + "; ".join(parts)) from None


def load(name: str, overrides: dict[str, Any] | None = None) -> Experiment:
    """The experiment NAME or NAME+VARIANT+... with these dotted keys changed. Raises ConfigError."""
    first, *variants = name.split("+")
    changes = read_yaml("experiment", first)
    values = read_yaml("experiment", changes.pop("extends")) if "extends" in changes else {}
    _merge(values, {"name": name, **changes})
    for variant in variants:
        _merge(values, read_yaml("variant", variant))
    for key, value in (overrides or {}).items():
        assign(values, key, value)
    return validate(Experiment, values, f"experiment {name}")


def _merge(values: dict[str, Any], changes: dict[str, Any]) -> None:
    """Put what changes into values, section by section."""
    for key, value in changes.items():
        if isinstance(value, dict) and isinstance(values.get(key), dict):
            _merge(values[key], value)
        else:
            values[key] = value


class Submission(Section):
    """What the run config of `flwr run` carries beside the experiment itself."""

    strategy: str = "ease"
    """File in strategies/; conf/strategy/ may hold what differs from its defaults."""
    run_dir: str = ""
    """Absolute folder of the run; "" is a new one under $EASE_FLWR_HOME or ~/ease_flwr_runs."""
    fresh: bool = False
    """Whether to compute learn phases again instead of taking them from the cache."""
    audit: Literal["", "quick", "full"] = ""
    """Instead of a new run, audit the finished one whose folder is the parent of run_dir."""
    resume: bool = False
    """Do what is left of the agenda of the run in run_dir, instead of a new run."""
    until: Literal["", "learn"] = ""
    """learn: a new run ends when it has learnt; what it forgets is asked later."""


def from_run_config(run_config: Mapping[str, Any]) -> tuple[Experiment, Submission]:
    """Read the run config of pyproject.toml, as changed by `flwr run -c`. Raises ConfigError.

    Keys: experiment, strategy, seed, run-dir, fresh, audit, resume, until; the dotted keys that pyproject.toml lists; and
    `set`, a string with any others, "learn.rounds=3 hold.rounds=2". An empty string means: not set.
    """
    values = dict(run_config)
    submission = Submission(
        strategy=str(values.pop("strategy")),
        run_dir=str(values.pop("run-dir")),
        fresh=bool(values.pop("fresh")),
        audit=values.pop("audit", ""),
        resume=bool(values.pop("resume", False)),
        until=values.pop("until", ""),
    )
    name, extra = str(values.pop("experiment")), str(values.pop("set"))
    overrides = {k: v for k, v in values.items() if v != ""} | parse_assignments(extra.split())
    return load(name, overrides), submission


def parse_assignments(items: Iterable[str]) -> dict[str, Any]:
    """["a.b=1", ...] as {"a.b": "1"}. Raises ConfigError for an item without an equals sign."""
    pairs = {}
    for item in items:
        key, equals, value = item.partition("=")
        if not equals or not key:
            raise ConfigError(f"{item!r}: expected key=value, for example forget.targets=client-4")
        pairs[key] = value
    return pairs


def strategy_values(name: str, experiment: Experiment) -> dict[str, Any]:
    """Settings of a strategy: its YAML, if there is one, then what the experiment says about it, then about this run."""
    known = read_yaml("strategy", name) if name in choices("strategy") else {}
    return {**known, **experiment.strategies.get(name, {}), **experiment.strategy}


def digest(*parts: Any) -> str:
    """sha256 of JSON-serialisable values and models: 64 hex digits."""
    plain = [p.model_dump(mode="json") if isinstance(p, BaseModel) else p for p in parts]
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def code_hash(*patterns: str) -> str:
    """sha256 over the project's own Python files (or those that match): the two halves of a run must agree on it."""
    h = hashlib.sha256()
    for path in sorted({p for pattern in patterns or CODE for p in APP.glob(pattern)}):
        h.update(path.relative_to(APP).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return h.hexdigest()


def weights_sha256(model: ModelConfig) -> str:
    """Of the base model's file; where there is none, of its name: all hosts must have the same."""
    return file_sha256(model.weights) or hashlib.sha256(f"{model.name} {model.weights}".encode()).hexdigest()


def file_sha256(file: str) -> str:
    """Of a file named by a setting, by its absolute path or inside the app; "" where there is none."""
    path = APP / file  # of an absolute path, that path
    return hashlib.sha256(path.read_bytes()).hexdigest() if file and path.is_file() else ""


CODE = ("ease_flwr/**/*.py", "strategies/**/*.py", "clients/**/*.py")
