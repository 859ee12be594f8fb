"""Answers as hostile and broken clients send them: good ones in which something is changed, wherever it is."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.supercore.task_identity import TaskIdentity
from hypothesis import strategies as st

from ease_flwr.config import TrainConfig
from ease_flwr.exchange.federation import Federation, Request
from ease_flwr.exchange.journal import Journal
from ease_flwr.exchange.messages import Learn, pack
from ease_flwr.exchange.roll_call import Roster
from ease_flwr.exchange.transport import Node
from tests.small import small_experiment

TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = 1  # without it Flower refuses to make a Message

NAMES = ("client-0", "client-1", "client-2", "client-3")
HOSTILE = "client-1"
PAIRS = 100
P = 6

Answer = Callable[[str, Message], RecordDict]
"""What a client answers, by its name, to a message."""


class Wire:
    """In place of a Transport: all clients answer at once. One of them may answer something else."""

    def __init__(self, honest: Answer, hostile: Answer) -> None:
        self.honest, self.hostile = honest, hostile
        self.asked = 0

    def nodes(self) -> dict[int, Node]:
        return {i: Node() for i in range(len(NAMES))}

    def ask(self, messages: list[Message], deadline: float) -> dict[int, Message]:
        self.asked += len(messages)
        return {m.metadata.dst_node_id: self.reply(m) for m in messages}

    def reply(self, message: Message) -> Message:
        name = NAMES[message.metadata.dst_node_id]
        message.metadata._message_id = "1"
        said = (self.hostile if name == HOSTILE else self.honest)(name, message)
        return Message(said, reply_to=message)


def federation(wire: Wire, folder: Any = None, said: list[str] | None = None, **changes: Any) -> Federation:
    """Four clients of a hundred pairs each, of whom three are enough. changes: of the experiment; pairs: of the hostile one."""
    pairs = {**dict.fromkeys(NAMES, PAIRS), HOSTILE: changes.pop("pairs", PAIRS)}
    roster = Roster(NAMES, {n: i for i, n in enumerate(NAMES)}, pairs)
    experiment = small_experiment(**{"federation.quorum": 0.7, "data.clients": 4, **changes})
    transport: Any = wire
    heard = [] if said is None else said
    return Federation(transport, experiment, roster, lambda line, **_: heard.append(line), Journal(folder))


def instruct() -> dict[str, Request]:
    """Everybody learns."""
    return {n: Request(Learn(phase="learn", round=1, train=TrainConfig())) for n in NAMES}


def moved(theta: Any, by: float, examples: int = 5, judged: Any = None) -> RecordDict:
    """An answer to a training, by which every adapter has moved by so much."""
    metrics = MetricRecord({"num-examples": examples, "loss": 1.0, "steps": 2})
    content: dict[str, Any] = {"arrays": pack({"adapters": theta + np.float32(by)}), "metrics": metrics}
    return RecordDict(content if judged is None else {**content, "answer": ConfigRecord({"json": json.dumps(judged)})})


def plain(values: Any) -> RecordDict:
    """An answer in JSON, whatever it is."""
    text = values if isinstance(values, str) else json.dumps(values)
    return RecordDict({"answer": ConfigRecord({"json": text})})


# ---- what is changed -----------------------------------------------------------------------------------------------------

numbers = st.one_of(
    st.sampled_from([0, -1, 1, 2, 5, 2**31, 2**53, 2**62, 10**30, -(10**30), 1e308, -1e308, 1e-308, 0.5, 1.5, -0.0]),
    st.integers(-5, 200),
    st.floats(allow_nan=True, allow_infinity=True),
)
leaves = st.one_of(
    st.none(), st.booleans(), numbers, st.text(max_size=9), st.sampled_from(["../x", "\x1b[2J", "a" * 300, *NAMES])
)
values = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner, max_size=3)
)


def places(tree: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where something is in a tree of lists and dictionaries."""
    inside = tree.items() if isinstance(tree, Mapping) else enumerate(tree) if isinstance(tree, list) else ()
    return [at, *(place for key, value in inside for place in places(value, (*at, key)))]


def everywhere(tree: Any, change: Callable[[Any], Any]) -> Any:
    """A tree with every number changed."""
    if isinstance(tree, dict):
        return {key: everywhere(value, change) for key, value in tree.items()}
    if isinstance(tree, list):
        return [everywhere(value, change) for value in tree]
    return change(tree) if isinstance(tree, int | float) else tree


@st.composite
def changed(draw: Any, tree: Any) -> Any:
    """A tree with up to three changes: something else in a place, a number a little or much other, something gone or twice."""
    found = json.loads(json.dumps(tree))
    for _ in range(draw(st.integers(1, 3))):
        *way, last = draw(st.sampled_from(places(found))) or (None,)
        if last is None:
            return draw(values)
        holder = found
        for key in way:
            holder = holder[key]
        how = draw(st.sampled_from(["else", "number", "below", "gone", "twice", "empty", "key"]))
        if how == "else":
            holder[last] = draw(values)
        elif how == "number" and isinstance(holder[last], int | float):
            holder[last] = holder[last] * draw(st.sampled_from([-1, 0, 2, 1000, 1e9])) + draw(st.integers(-3, 3))
        elif how == "below":  # all of it, so that it fits together
            by, more = draw(st.sampled_from([(0, 0), (-1, 0), (0, 1), (2, 0), (10**6, 0), (1e9, 0), (1, 1)]))
            holder[last] = everywhere(holder[last], lambda number, by=by, more=more: number * by + more)
        elif how == "gone":
            del holder[last]
        elif how == "twice" and isinstance(holder, list):
            holder.append(holder[last])
        elif how == "empty" and isinstance(holder[last], list | dict):
            holder[last] = type(holder[last])()
        elif how == "key" and isinstance(holder, dict):
            holder[draw(st.sampled_from(["forget", "retain", "test", "neighbours", "text", "now", "x"]))] = holder[last]
    return found


arrays = st.one_of(
    st.lists(st.floats(width=32), max_size=9).map(lambda v: np.array(v, np.float32)),
    st.floats(-(2.0**120), 2.0**120, width=32).map(lambda v: np.full(P, v, np.float32)),
    st.sampled_from([np.float64, np.float16, np.int32, np.int8, np.bool_]).map(lambda t: np.ones(P, t)),
    st.sampled_from([(2, 3), (P, 1), (), (0,), (1000,)]).map(lambda shape: np.zeros(shape, np.float32)),
).map(Array)


def _archive() -> bytes:
    from io import BytesIO

    out = BytesIO()
    np.savez(out, adapters=np.zeros(P, np.float32))
    return out.getvalue()


def _cut(data: bytes, at: int) -> bytes:
    return data[: at % len(data)]


GOOD = Array(np.zeros(P, np.float32)).data
HUGE = GOOD.replace(b"(6,)", b"(9999999999,)").replace(b"9,), }" + b" " * 9, b"9,), }")
broken = st.builds(
    lambda dtype, shape, stype, data: Array(dtype=dtype, shape=shape, stype=stype, data=data),
    st.sampled_from(["float32", "float64", "object", "nonsense", ">f4"]),
    st.lists(st.integers(-2, 8), max_size=2).map(tuple),
    st.sampled_from(["numpy.ndarray", "pickle", ""]),
    st.one_of(
        st.binary(max_size=200),
        st.sampled_from([_archive(), HUGE, GOOD + GOOD, b""]),
        st.integers(0, 1000).map(lambda at: _cut(GOOD, at)),
    ),
)
records = st.one_of(
    st.fixed_dictionaries({"adapters": arrays | broken}),
    st.dictionaries(st.sampled_from(["adapters", "step", "", "../x"]), arrays | broken, max_size=3),
).map(lambda found: ArrayRecord(found))
metric = st.one_of(
    st.integers(-(2**62), 2**62), st.floats(), st.lists(st.integers(-5, 5), max_size=9), st.lists(st.floats(), max_size=3)
)
metrics = st.dictionaries(
    st.sampled_from(["num-examples", "loss", "steps", "memory", "labels", "seconds", "x", "a b"]), metric, max_size=5
)


@st.composite
def trained(draw: Any, judged: Any) -> RecordDict:
    """An answer to a training, one part or all of which is something else."""
    content: dict[str, Any] = {"arrays": ArrayRecord({"adapters": Array(np.full(P, 1.0, np.float32))})}
    content["metrics"] = MetricRecord({"num-examples": 5, "loss": 1.0, "steps": 2})
    content["answer"] = ConfigRecord({"json": json.dumps(judged)})
    which = draw(st.sets(st.sampled_from([*content, "more"]), min_size=1))
    if "arrays" in which:
        content["arrays"] = draw(records)
    if "metrics" in which:
        content["metrics"] = MetricRecord({"num-examples": 5, "loss": 1.0} | draw(metrics))
    if "answer" in which:
        content["answer"] = ConfigRecord({"json": json.dumps(draw(changed(judged)))})
    if "more" in which:
        names = st.sampled_from(["arrays", "metrics", "answer", "more"])
        content = {draw(names) if draw(st.booleans()) else name: part for name, part in content.items()}
    return RecordDict(content)
