"""Layers as the definition says, on the smallest network for each kind of fault."""

import pytest

pytest.register_assert_rewrite("tests.layers.watched")
