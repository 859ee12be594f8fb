"""Where single pairs are withdrawn: by whom BKE is told how they look to a model that never saw them."""

import shutil

import numpy as np
import pytest

from tests.server_half import context
from tests.test_ease import BLOCKS, SAMPLE, ease, history
from tests.test_ease_by_law import CLASS, NAMES


def staying(*names, **changes):
    """These of three clients have what a request names, and stay."""
    return context(np.full(12, 0.5), BLOCKS, **{"forget": SAMPLE, "clients": NAMES, "forget_clients": names, **changes})


def test_of_single_pairs_the_teacher_is_the_model_without_their_client(tmp_path):
    """client-1 moved along e0, where client-0 moved too, and alone along e9; client-2 alone along e10."""
    who, theta = staying("client-1", "client-2"), np.ones(12, np.float32)
    method = ease(None, who=who, gsd={"fill": 1})
    start = method.prepare(theta, history(tmp_path))
    assert np.allclose(start, 0.5 * 0.25 + 0.75)  # nothing is excised of the model itself
    requests = method.requests(1)
    for name, own in (("client-1", 9), ("client-2", 10)):
        teacher = requests[name].once["teacher"]
        assert teacher[own] == 0.5
        assert np.allclose(np.delete(teacher, own), 1)
        assert np.array_equal(requests[name].once["request"], theta)
    assert not requests["client-0"].once
    assert method.reads_history


@pytest.mark.parametrize("case", ["class", "target", "purged"])
def test_there_is_no_teacher_where_nothing_can_tell(case, tmp_path):
    """Others know a class too; another target needs none; updates may be gone."""
    who = staying("client-1", **({"forget": CLASS} if case == "class" else {}))
    method = ease(None, who=who, bke={"target": "unseen"} if case == "target" else {})
    recorded = history(tmp_path)
    if case == "purged":
        shutil.rmtree(tmp_path / "client-1")
    method.prepare(np.ones(12, np.float32), recorded)
    assert list(method.requests(1)["client-1"].once) == ["request"]
    assert not method.reads_history
