"""Settings for the tests of the examples."""

import logging

import pytest

SILENCED = ("lightning.pytorch", "lightning.fabric")


@pytest.fixture(autouse=True)
def lightning_speaks_again():
    """A script that ran in this process has silenced Lightning, which other tests listen to."""
    levels = {name: logging.getLogger(name).level for name in SILENCED}
    yield
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)
