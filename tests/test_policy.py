"""policy.toml: what a new host allows, and what a mistake in it does."""

import re

import pytest

from ease_flwr.audit.examination import ALONE, PROBES
from ease_flwr.config import ConfigError
from ease_flwr.exchange.messages import Hello
from ease_flwr.hosts import deploy, policy, settings
from ease_flwr.hosts.policy import POLICY, Policy
from tests.hosts import Host
from tests.test_owner import ask, host, told

__all__ = ["host"]


def test_a_new_host_allows_what_there_is_and_says_what_it_means(tmp_path):
    deploy.init(tmp_path / "f", settings.Deployment(address="127.0.0.1", hosts=("a",)))
    found = policy.read_policy(tmp_path / "f" / "hosts" / "a" / POLICY)
    assert {p for level in (*PROBES.values(), *ALONE.values()) for p in level} == set(found.probes) == set(policy.PROBES)
    assert {"contrastive", "ascent", "bilateral"} <= set(found.objectives)
    assert not {"audit", "base", "probing"} & set(found.objectives)
    defaults = Policy(code=found.code, objectives=found.objectives, probes=found.probes)
    assert found == defaults


@pytest.mark.parametrize(
    ("this", "there", "mistake"),
    [
        (
            "scores = true",
            "score = true",
            "line 43: unknown key score (known: code, objectives, probes, smallest-set, scores, ",
        ),
        ('hours = ""', 'hours = "late"', "hours='late': expected hours such as"),
        ('"membership"', '"members"', "no probe 'members': there are alignment, "),
        ('"' + "0" * 64, '"' + "0" * 63, "is no sha256: expected 64 hex digits"),
        ("smallest-set = 4", "smallest-set = 0", "greater than or equal to 1"),
    ],
)
def test_a_mistake_in_policy_toml_is_one_line_and_nothing_is_done(host, this, there, mistake, capsys):
    text = (host.home / POLICY).read_text()
    assert this in text
    (host.home / POLICY).write_text(text.replace(this, there))
    with pytest.raises(ConfigError) as said:
        policy.read_policy(host.home / POLICY)
    line = re.sub(r"line \d+:", "line 43:", str(said.value))
    assert mistake in line
    assert str(said.value).startswith(f"{host.home / POLICY}: ")
    assert told(ask(host, Hello())) == "host north refuses: its policy.toml cannot be used, its log says why"
    assert str(said.value) in capsys.readouterr().err


def test_an_unknown_key_is_named_with_its_line(host):
    text = (host.home / POLICY).read_text()
    (host.home / POLICY).write_text(text.replace("scores = true", "score = true"))
    line = next(n for n, said in enumerate(text.splitlines(), 1) if said.startswith("scores"))
    with pytest.raises(ConfigError, match=rf"line {line}: unknown key score "):
        policy.read_policy(host.home / POLICY)


def test_without_its_policy_a_host_does_nothing(host):
    node = host.node
    (host.home / POLICY).unlink()
    host.__class__ = type("Bare", (Host,), {"node": node})
    assert told(ask(host, Hello())) == "host north refuses: its policy.toml cannot be used, its log says why"
