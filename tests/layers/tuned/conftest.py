"""What the tests of tuned forms share."""

import pytest
from tuned_forms import MATRICES

from zoo.native import library


@pytest.fixture
def no_matrix_unit(monkeypatch):
    """All kernels but the one for which some processors lack the unit."""
    target = library.target
    monkeypatch.setattr(
        library,
        "target",
        lambda kernel, dtype: None if kernel == MATRICES else target(kernel, dtype),
    )
