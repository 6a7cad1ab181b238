"""Class labels are found where they usually are, or where the user says."""

from collections import UserDict, namedtuple

import pytest
import torch

from lightning_psp.callback.targets import check_target, find_target

LABELS = torch.tensor([2, 0, 1])
INPUTS = torch.zeros(3, 4)
Pair = namedtuple("Pair", "inputs labels")


@pytest.mark.parametrize(
    "batch",
    [
        (INPUTS, LABELS),
        [INPUTS, LABELS],
        Pair(INPUTS, LABELS),
        {"x": INPUTS, "label": LABELS},
        {"x": INPUTS, "labels": LABELS},
        {"x": INPUTS, "target": LABELS},
        {"x": INPUTS, "y": LABELS},
        {"label": ["cat", "dog", "cat"], "y": LABELS},
        UserDict({"x": INPUTS, "labels": LABELS}),
    ],
    ids=lambda batch: type(batch).__name__,
)
def test_usual_places(batch):
    assert find_target(batch) is LABELS


UNSIGNED = (torch.uint8, torch.uint16, torch.uint32, torch.uint64)


@pytest.mark.parametrize("dtype", [*UNSIGNED, torch.int8, torch.int16, torch.int32, torch.int64])
@pytest.mark.parametrize("target", [None, 1, lambda batch: batch[1]])
def test_integer_types(dtype, target):
    found = find_target((INPUTS, LABELS.to(dtype)), target)
    assert found.dtype == torch.int64
    assert torch.equal(found, LABELS)


@pytest.mark.parametrize(
    "batch",
    [
        INPUTS,
        LABELS,
        torch.stack([LABELS, LABELS]),  # rows of a tensor are no pair
        None,
        (INPUTS,),
        (INPUTS, LABELS, LABELS),
        (INPUTS, LABELS.double()),
        (INPUTS, LABELS > 0),
        (INPUTS, LABELS.to(torch.complex64)),
        (INPUTS, LABELS[:, None]),
        (INPUTS, torch.tensor(1)),
        (INPUTS, [2, 0, 1]),
        {"x": INPUTS, "class": LABELS},
        {"x": INPUTS, "labels": LABELS.double()},
    ],
    ids=lambda batch: type(batch).__name__,
)
def test_nothing_fits(batch):
    assert find_target(batch) is None


@pytest.mark.parametrize(
    ("batch", "target"),
    [
        ((INPUTS, INPUTS, LABELS), 2),
        ((INPUTS, INPUTS, LABELS), -1),
        ({"x": INPUTS, "class": LABELS, "y": 1 - LABELS}, "class"),
        ({0: LABELS}, 0),
        ({"a": (INPUTS, LABELS)}, lambda batch: batch["a"][1]),
    ],
)
def test_where_the_user_says(batch, target):
    assert find_target(batch, target) is LABELS


@pytest.mark.parametrize(
    ("batch", "target", "parts"),
    [
        ((INPUTS, LABELS), 2, ("`target` is 2", "tuple of 2")),
        ((INPUTS, LABELS), "labels", ("'labels'", "tuple of 2")),
        ({"y": LABELS}, "class", ("'class'", "['y']")),
        (None, 1, ("NoneType",)),
        ((INPUTS, LABELS), 0, ("[3, 4]", "float32")),
        ((INPUTS, LABELS > 0), 1, ("torch.bool",)),
        ((INPUTS, LABELS[:, None]), 1, ("[3, 1]",)),
        ((INPUTS, [0, 1, 2]), 1, ("list of 3",)),
        ((INPUTS, LABELS), lambda batch: None, ("NoneType",)),
    ],
)
def test_what_the_user_says_must_fit(batch, target, parts):
    with pytest.raises(ValueError, match="target") as raised:
        find_target(batch, target)
    for part in parts:
        assert part in str(raised.value)


def test_an_error_of_the_users_own_is_left_as_it_is():
    with pytest.raises(ZeroDivisionError):
        find_target((INPUTS, LABELS), lambda batch: 1 / 0)


@pytest.mark.parametrize("target", [None, 0, -1, "labels", lambda batch: batch[1]])
def test_allowed(target):
    check_target(target)


@pytest.mark.parametrize("target", [True, 1.0, ("a", "b"), LABELS])
def test_refused(target):
    with pytest.raises(TypeError, match="target"):
        check_target(target)
