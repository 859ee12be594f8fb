"""The update history on disk."""

import numpy as np
import pytest

from ease_flwr.core.history import History


def test_columns_come_back_in_order_of_rounds(tmp_path):
    history = History(tmp_path)
    for round in (2, 1, 10):
        history.append(round, "client-0", np.full(3, round, np.float32))
    assert history.columns("client-0").tolist() == [[1, 2, 10]] * 3
    assert not list(tmp_path.rglob("*.partial"))
    with pytest.raises(ValueError, match=r"no update history of client-9 in .*: it never took part"):
        history.columns("client-9")
