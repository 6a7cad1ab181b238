"""What the tests share: cases, references written without the package, small trainings, programs of processes.

No file here imports a test. Start with `small.py`, a classifier to train, and `reference.py`, the penalty by hand.
"""

import pytest

pytest.register_assert_rewrite(
    "tests.support.gradients", "tests.support.recurrent", "tests.support.layers.watched", "tests.support.followed"
)
