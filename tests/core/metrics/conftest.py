"""A node whose VM consumes what this process does."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.core.metrics.measured import Measured


@pytest.fixture
def measured(tmp_path: Path) -> Iterator[Measured]:
    measured = Measured(tmp_path)
    yield measured
    measured.close()
