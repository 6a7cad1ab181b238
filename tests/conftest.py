"""Settings for all tests."""

import os

import pytest
import torch
from hypothesis import HealthCheck, settings

# The tensors are small, and workers that each use all cores would wait for one another.
torch.set_num_threads(1)

# Programs, not tests.
collect_ignore = ["benchmarks"]

# Lightning calls what jsonargparse deprecates, some versions as soon as their CLI is imported.
os.environ["JSONARGPARSE_DEPRECATION_WARNINGS"] = "off"

settings.register_profile(
    "short",
    max_examples=250,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
settings.register_profile("thorough", settings.get_profile("short"), max_examples=5000, derandomize=False)
settings.load_profile("short")


def pytest_collection_modifyitems(items):
    """Files that take long come first: a worker that begins one at the end keeps the others waiting."""
    items.sort(key=lambda item: item.get_closest_marker("first") is None)


@pytest.fixture
def fresh_compiler():
    """Nothing compiled by another test is left, and none is left to the next."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()
