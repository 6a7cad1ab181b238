"""Layers by name and number, and the gradient against plain hooks, on networks of other libraries."""

import importlib

import pytest

from tests.libraries.catalogue import IMPORTS, rows
from tests.libraries.check import check

pytestmark = [pytest.mark.libraries, pytest.mark.filterwarnings("ignore")]


@pytest.mark.parametrize("row", rows(), ids=str)
def test_layers_and_gradient(row):
    module = IMPORTS[row.library]
    pytest.importorskip(module, reason=f"{row.library} is not installed", exc_type=ImportError)
    importlib.import_module(module)
    for found in check(row):
        assert found.verdict in ("exact", "said"), f"{found.way}: {found.verdict}"
