"""Counts at the edges: one pair, one label, five captions, no query; every number is one, or is left out by name."""

import pytest
from ease_flwr.clients import audit as probes
from hypothesis import HealthCheck, given
from hypothesis import settings as generation
from hypothesis import strategies as st

from ease_flwr.audit.omitted import MEMBERS, lines, of_models
from ease_flwr.config import DataError
from ease_flwr.server.pipeline import SetAsideError
from tests.shapes import Shape, check, play, read, tiny_model


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module", autouse=True)
def sooner(still):
    """Learning again is judged as often, after fewer steps."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(probes, "STEPS", (1, 2, 3, 4))
        yield patch


def played(shape, folder, sooner, weights):
    """A run of this shape, in a folder where nobody has ever been forgotten."""
    sooner.setenv("EASE_FLWR_HOME", str(folder / "home"))
    found = play(shape, folder, weights)
    check(found, shape)
    return found.run


ONE = Shape((3, 1), scenario="sample", level="full", captions=(5,), val=4)
SHAPES = [
    Shape((1, 1), captions=(2,), labels=0, reference=False),
    Shape((3, 2), scenario="class", labels=2, level="full"),
    Shape((2,) * 9, captions=(1, 5), scenario="sample", gone=2, val=1, test=1, hosts=False),
]


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_number_is_one_or_is_left_out_by_name(shape, tmp_path, sooner, weights):
    played(shape, tmp_path, sooner, weights)


def test_one_pair_is_compared_with_no_other(tmp_path, sooner, weights):
    run = played(ONE, tmp_path, sooner, weights)
    said = (run / "log.txt").read_text()
    assert "[roll call] c1 has one training pair: pairs are learnt from each other, so it teaches nothing" in said
    assert "concerns one pair of c0: the audit leaves out there what needs two" in said
    left_out = read(run / "audit.json")["left_out"]
    for name in ("cka.forget", "probe", "relearn", "cross"):
        assert left_out[name].startswith("needs two"), name
    assert left_out["correlation.forget"] == "needs two pairs that are not equally similar"
    assert left_out["interval of r1.forget"] == "needs two members"
    assert "\n- cka.forget: needs two pairs of a client that differ\n" in (run / "audit.md").read_text()


@pytest.mark.parametrize(("labels", "hosts"), [(0, True), (1, True), (0, False), (1, False)])
def test_a_request_that_leaves_nobody_or_names_nothing_is_refused_before_anything_is_learnt(
    labels, hosts, tmp_path, sooner, weights, capsys
):
    with pytest.raises((SetAsideError, DataError), match=r"every pair that the federation has left|has label"):
        played(Shape((2, 2), labels=labels, scenario="class", hosts=hosts), tmp_path, sooner, weights)
    said = capsys.readouterr().out
    assert "[learn" not in said or said.index("is set aside") < said.index("[learn")


def test_what_not_all_models_leave_out_is_named_with_those_that_do():
    """The label that two models differ most for has one picture, or several."""
    one, two = {"cka.forget": "needs two", "interval of people.forget": MEMBERS}, {"cka.forget": "needs two"}
    found = of_models({"original": one, "retrain": two, "unlearned": one})
    assert found == {"cka.forget": "needs two", "interval of people.forget (original, unlearned)": MEMBERS}
    assert lines(found)[1] == "interval of people.forget (original, unlearned): needs two members"


@st.composite
def shapes(draw):
    hosts = draw(st.booleans())
    pairs = draw(st.lists(st.integers(1 if hosts else 2, 5), min_size=2, max_size=9))
    return Shape(
        tuple(pairs),
        captions=tuple(draw(st.lists(st.integers(1, 5), min_size=1, max_size=3))),
        labels=draw(st.integers(0, 5)),
        scenario=draw(st.sampled_from(["client", "class", "sample"])),
        gone=draw(st.integers(1, 5)),
        level=draw(st.sampled_from(["quick", "full"])),
        reference=draw(st.booleans()),
        val=draw(st.integers(1, 4)),
        test=draw(st.integers(1, 4)),
        hosts=hosts,
        strategy=draw(st.sampled_from(["ease", "ease", "npo", "mvi", "multidelete"])),
    )


@pytest.mark.slow
@generation(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(shape=shapes())
def test_federations_of_every_shape(shape, tmp_path_factory, sooner, weights):
    try:
        played(shape, tmp_path_factory.mktemp("shape"), sooner, weights)
    except (SetAsideError, DataError):
        assert shape.impossible
