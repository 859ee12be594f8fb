"""Who takes part in a request: laws over random sequences of requests, against brute force over pairs."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ease_flwr.config import ConfigError, ForgetRequest, ForgetSet
from ease_flwr.data.pairs import withdrawn
from ease_flwr.server.parties import RollCall, asked, check, leaving, left_out, parties
from ease_flwr.store.layout import KINDS, described

CLIENTS = ("a", "b", "c", "d")
LABELS = ("x", "y", "z")
worlds = st.fixed_dictionaries({c: st.lists(st.sampled_from(LABELS), min_size=1, max_size=5) for c in CLIENTS})
forget_sets = st.one_of(
    st.lists(st.sampled_from(CLIENTS), min_size=1, max_size=2, unique=True).map(lambda t: ("client", tuple(t))),
    st.lists(st.sampled_from(LABELS), min_size=1, max_size=2, unique=True).map(lambda t: ("class", tuple(t))),
    st.lists(st.tuples(st.sampled_from(CLIENTS), st.integers(0, 4)), min_size=1, max_size=3, unique=True).map(
        lambda t: ("sample", tuple(f"{c}/{i}:{i + 1}" for c, i in t))
    ),
)


def requests_of(drawn):
    sets = [ForgetSet(scenario=scenario, targets=targets) for scenario, targets in drawn]
    return [ForgetRequest.of(s, "finetune", {}, id=f"r{i}") for i, s in enumerate(sets)]


def brute_force(world, requests):
    """By client, the pairs (positions) that each request is the first to name."""
    out = {}
    for client, labels in world.items():
        left, out[client] = set(range(len(labels))), []
        for r in requests:
            taken = set(np.flatnonzero(withdrawn((r.forget_set,), client, tuple(labels)))) & left
            left -= taken
            out[client].append(taken)
    return out


@settings(max_examples=200, deadline=None)
@given(worlds, st.lists(forget_sets, min_size=1, max_size=5), st.fixed_dictionaries(dict.fromkeys(CLIENTS, st.integers(1, 4))))
def test_no_owner_is_asked_for_a_result_about_fewer_pairs_than_he_allows(world, drawn, limits):
    """Nor does anybody leave or count as silent because of that, and who may help is asked."""
    requests, pairs = requests_of(drawn), {c: len(labels) for c, labels in world.items()}
    taken = brute_force(world, requests)
    counts = {c: tuple(len(t) for t in taken[c]) for c in CLIENTS}
    call, free = RollCall(pairs, tuple(requests), counts, limits), RollCall(pairs, tuple(requests), counts)
    for i, request in enumerate(requests):
        who, all_of_them = parties(request, call, (), CLIENTS), parties(request, free, (), CLIENTS)
        left = {c: pairs[c] - sum(counts[c][: i + 1]) for c in CLIENTS}
        assert set(who.retained) == {c for c in all_of_them.retained if left[c] >= limits[c]}
        able = {c for c in all_of_them.forget_clients if counts[c][i] >= limits[c] and not 0 < left[c] < limits[c]}
        assert (set(who.forget_clients), set(who.unable)) == (able, set(all_of_them.forget_clients) - able)
        assert who.absent == all_of_them.absent == all_of_them.unable == ()
        assert leaving(request, call) == leaving(request, free)


@settings(max_examples=200, deadline=None)
@given(worlds, st.lists(forget_sets, min_size=1, max_size=5), st.sets(st.sampled_from(CLIENTS)))
def test_every_request_asks_exactly_those_it_concerns(world, drawn, silent):
    requests, pairs = requests_of(drawn), {c: len(labels) for c, labels in world.items()}
    taken = brute_force(world, requests)
    call = RollCall(pairs, tuple(requests), {c: tuple(len(t) for t in taken[c]) for c in CLIENTS})
    departed = frozenset()
    for i, request in enumerate(requests):
        who = parties(request, call, departed, set(CLIENTS) - silent)
        holding = {c for c in CLIENTS if c not in departed and taken[c][i]}
        keeping = {c for c in CLIENTS if c not in departed and len(set.union(*taken[c][: i + 1])) < pairs[c]}
        assert set(who.forget_clients) == holding - silent
        assert set(who.absent) == holding & silent
        assert set(who.retained) == keeping - set(who.absent)
        assert set(asked(request, call, departed)) == holding
        # nobody who left is asked for anything, nobody is asked for nothing
        assert not departed & {*who.retained, *who.forget_clients, *who.absent}
        without = left_out(call, requests[: i + 1])
        for c in CLIENTS:
            gone = withdrawn(without.get(c, ()), c, tuple(world[c]))
            assert set(np.flatnonzero(gone)) == set.union(*taken[c][: i + 1])
        now = leaving(request, call)
        assert {c for c in now if c in request.leaving} == set(request.leaving)
        assert all(call.kept(c, requests[: i + 1]) == 0 for c in now if c in holding)
        departed |= now | set(who.absent)


@settings(max_examples=100, deadline=None)
@given(worlds, st.lists(forget_sets, min_size=1, max_size=4))
def test_a_request_that_concerns_nobody_or_leaves_nobody_is_refused(world, drawn):
    requests, pairs = requests_of(drawn), {c: len(labels) for c, labels in world.items()}
    taken = brute_force(world, requests)
    call = RollCall(pairs, tuple(requests), {c: tuple(len(t) for t in taken[c]) for c in CLIENTS})
    for i, request in enumerate(requests):
        nobody = not any(taken[c][i] for c in CLIENTS)
        everybody = all(len(set.union(*taken[c][: i + 1])) == pairs[c] for c in CLIENTS)
        if nobody or everybody:
            with pytest.raises(ConfigError, match=rf"request r{i}: (no pair of the federation is left|it concerns every pair)"):
                check(request, call)
        else:
            check(request, call)


def test_the_first_kind_that_describes_a_file_is_its_kind():
    """Every kind describes a file that no earlier one does: none is dead."""
    for kind in KINDS:
        example = kind.path.replace("{rest}", "x/y")
        for name in ("level", "file", "phase", "client", "model"):
            example = example.replace(f"{{{name}}}", "some")
        found, _ = described(example)
        assert found is kind, example
    assert described("surprise.txt") == (None, {})
    assert described("phases/learn/surprise.txt") == (None, {})
