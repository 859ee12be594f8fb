"""What a run is asked to be: settings, requests to forget, and the identity of both. Imports neither torch nor flwr."""

from ease_flwr.config import halves, own
from ease_flwr.config.data import BackdoorConfig, DataConfig
from ease_flwr.config.experiment import AuditConfig, Experiment, FederationConfig, HistoryConfig
from ease_flwr.config.identity import (
    ADAPTERS,
    APP,
    PACKAGE,
    code_hash,
    code_of,
    digest,
    file_sha256,
    named_file,
    named_file_sha256,
    weights_sha256,
)
from ease_flwr.config.model import LoraConfig, ModelConfig, TrainConfig
from ease_flwr.config.reading import (
    Submission,
    assign,
    choices,
    from_run_config,
    load,
    parse_assignments,
    parts,
    read_yaml,
    settings,
    strategy_values,
)
from ease_flwr.config.request import ForgetConfig, ForgetRequest, ForgetSet, Union, described, told, union
from ease_flwr.config.section import NAME, ConfigError, RunError, Section, chosen, operational, searched, validate
from ease_flwr.config.weights import architecture_beside

__all__ = [
    "ADAPTERS",
    "APP",
    "NAME",
    "PACKAGE",
    "AuditConfig",
    "BackdoorConfig",
    "ConfigError",
    "DataConfig",
    "Experiment",
    "FederationConfig",
    "ForgetConfig",
    "ForgetRequest",
    "ForgetSet",
    "HistoryConfig",
    "LoraConfig",
    "ModelConfig",
    "RunError",
    "Section",
    "Submission",
    "TrainConfig",
    "Union",
    "architecture_beside",
    "assign",
    "choices",
    "chosen",
    "code_hash",
    "code_of",
    "described",
    "digest",
    "file_sha256",
    "from_run_config",
    "halves",
    "load",
    "named_file",
    "named_file_sha256",
    "operational",
    "own",
    "parse_assignments",
    "parts",
    "read_yaml",
    "searched",
    "settings",
    "strategy_values",
    "told",
    "union",
    "validate",
    "weights_sha256",
]
