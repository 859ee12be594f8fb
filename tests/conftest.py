"""What several test files share."""

import pytest


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder for runs and their cache, for all tests of a file."""
    with pytest.MonkeyPatch.context() as patch:
        home = tmp_path_factory.mktemp("home")
        patch.setenv("EASE_FLWR_HOME", str(home))
        yield home
