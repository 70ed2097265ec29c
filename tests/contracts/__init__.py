"""One contract per kind of thing, run for every one of its kind."""

import pytest

pytest.register_assert_rewrite(
    "tests.contracts.engine", "tests.contracts.command", "tests.contracts.sink", "tests.contracts.source"
)
