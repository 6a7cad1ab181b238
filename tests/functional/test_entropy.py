"""PSP-entropy as a function, first order: values against counts in loops, and what is refused."""

import itertools
import math

import pytest
import torch
from torch.overrides import TorchFunctionMode

from lightning_psp.functional import EntropyEstimate, entropy, estimate_psp_entropy, mean_square_potential, psp_entropy
from lightning_psp.functional.binary_entropy import LARGEST_COUNT
from lightning_psp.functional.entropy import _psp_entropy_compute, _psp_entropy_update
from tests.support.entropy_cases import CASES, batch
from tests.support.entropy_reference import classwise, observations


@pytest.fixture(params=["bytes", "rows", "rows in parts", "products"])
def way(request, monkeypatch):
    """The ways in which states are added up: on some processors, on others, and on accelerators."""
    monkeypatch.setattr(entropy, "multiplies_bytes", lambda device: request.param == "bytes")
    monkeypatch.setattr(entropy, "_adds_rows", lambda device: request.param.startswith("rows"))
    if request.param == "rows in parts":
        monkeypatch.setattr(entropy, "_CACHED", 150)


@pytest.mark.parametrize("name", CASES)
def test_counts_in_loops(name, way):
    shape, unit, unit_dim = CASES[name]
    z, target = batch(shape)
    expected = classwise(*observations(z, target, unit, unit_dim), 3)
    units = psp_entropy(z, target, 3, unit=unit, unit_dim=unit_dim, reduction="none")
    torch.testing.assert_close(units, torch.from_numpy(expected.sum(0)), rtol=0.0, atol=1e-12)
    value = psp_entropy(z, target, 3, unit=unit, unit_dim=unit_dim)
    assert value.ndim == 0
    assert value.item() == pytest.approx(expected.sum(0).mean(), abs=1e-12)
    counts = _psp_entropy_update(z, target, 3, unit, unit_dim)
    torch.testing.assert_close(_psp_entropy_compute(*counts), torch.from_numpy(expected), rtol=0.0, atol=1e-12)
    assert [count.dtype for count in counts] == [torch.int64, torch.int64]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_other_precisions(dtype, order):
    z, target = batch((30, 6), dtype=dtype)
    assert psp_entropy(z, target, 3, order) == psp_entropy(z.double(), target, 3, order)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32])
@pytest.mark.parametrize("order", [1, 2])
def test_classes_of_other_types(dtype, order):
    z, target = batch((30, 6))
    assert psp_entropy(z, target.to(dtype), 3, order) == psp_entropy(z, target, 3, order)


@pytest.mark.parametrize("order", [1, 2])
def test_layouts_in_memory(order):
    z, target = batch((12, 4, 3, 5))
    for other in (z.contiguous(memory_format=torch.channels_last), z.transpose(0, 3).contiguous().transpose(0, 3)):
        for unit in ("element", "channel"):
            assert psp_entropy(other, target, 3, order, unit) == psp_entropy(z, target, 3, order, unit)


@pytest.mark.parametrize("order_in_memory", [*itertools.permutations(range(4))], ids=str)
def test_units_keep_their_order_in_any_order_of_memory(order_in_memory, way):
    z, target = batch((12, 4, 3, 5))
    back = [order_in_memory.index(dim) for dim in range(4)]
    other = z.permute(order_in_memory).contiguous().permute(back)
    assert other.stride() != z.stride() or order_in_memory == (0, 1, 2, 3)
    for found, expected in zip(_psp_entropy_update(other, target, 3), _psp_entropy_update(z, target, 3), strict=True):
        assert torch.equal(found, expected)


def test_a_potential_of_zero_is_off():
    z = torch.tensor([[0.0, -0.0, 1e-45, -math.inf], [1.0, 1.0, -1e-45, math.inf]])
    found = psp_entropy(z, torch.tensor([0, 0]), 1, reduction="none")
    assert found.tolist() == [1.0, 1.0, 1.0, 1.0]
    active, samples = _psp_entropy_update(z[:1], torch.tensor([0]), 2)
    assert active.tolist() == [[0, 0, 1, 0], [0, 0, 0, 0]]
    assert samples.tolist() == [1, 0]


def test_constant_units_have_exactly_no_entropy():
    z = torch.tensor([[1.0, -1.0]]).repeat(49, 1)  # 49/49·log2 of it is where rounding shows
    for order in (1, 2):
        assert math.copysign(1.0, psp_entropy(z, torch.zeros(49, dtype=torch.int64), 1, order)) == 1.0
        assert psp_entropy(z, torch.zeros(49, dtype=torch.int64), 1, order) == 0.0


@pytest.mark.parametrize("order", [1, 2, 3])
def test_order_of_samples_and_of_units_does_not_matter(order):
    z, target = batch((40, 9))
    value = psp_entropy(z, target, 3, order)
    rows, columns = torch.randperm(40), torch.randperm(9)
    assert psp_entropy(z[rows][:, columns], target[rows], 3, order).item() == pytest.approx(value.item(), abs=1e-12)
    scaled = psp_entropy(5.0 * z, 2 - target, 3, order)
    assert scaled.item() == pytest.approx(value.item(), abs=1e-12)


def test_a_thousand_classes():
    z, target = batch((300, 5), num_classes=1000)
    target[0] = 999
    expected = classwise(*observations(z, target), 1000).sum(0)
    with pytest.warns(UserWarning, match="has no samples of 7[0-9][0-9] of 1000 classes"):
        found = psp_entropy(z, target, 1000, reduction="none")
    torch.testing.assert_close(found, torch.from_numpy(expected), rtol=0.0, atol=1e-12)


@pytest.mark.slow
def test_more_samples_than_float32_counts():
    size = LARGEST_COUNT + 5
    z = torch.ones(1, dtype=torch.float16).expand(size).clone()
    z[:3] = -1.0
    active, samples = _psp_entropy_update(z, torch.zeros(1, dtype=torch.int64).expand(size), 1)
    assert (active.item(), samples.item()) == (size - 3, size)


def test_more_positions_than_float32_counts():
    z = torch.ones(1, dtype=torch.float16).expand(1, 1, LARGEST_COUNT + 1)
    active, samples = _psp_entropy_update(z, torch.zeros(1, dtype=torch.int64), 1, "channel")
    assert (active.item(), samples.item()) == (LARGEST_COUNT + 1, LARGEST_COUNT + 1)


def test_autocast_rounds_no_count():
    z, target = batch((700, 9), num_classes=1)
    expected = classwise(*observations(z, target), 1).mean()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert psp_entropy(z, target, 1).item() == pytest.approx(expected, abs=1e-12)


class RoundedProducts(TorchFunctionMode):
    """Has products of float32 taken in bfloat16, as `torch.set_float32_matmul_precision` allows some hardware."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is torch.Tensor.matmul and args[0].dtype == torch.float32:
            args = tuple(factor.bfloat16().float() for factor in args)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("positions", [1, 255, 257, 55 * 55])
@pytest.mark.parametrize("way", ["products"], indirect=True)
def test_precision_of_products_rounds_no_count(positions, way):
    z, target = batch((6, 3, positions))
    z[:, 0] = 1.0
    with RoundedProducts():
        found = psp_entropy(z, target, 3, unit="channel", reduction="none")
    expected = classwise(*observations(z, target, "channel"), 3).sum(0)
    torch.testing.assert_close(found, torch.from_numpy(expected), rtol=0.0, atol=1e-12)


def test_gradients_are_not_asked_for():
    z, target = batch((30, 6))
    assert not psp_entropy(z.requires_grad_(), target, 3).requires_grad
    assert mean_square_potential(z).requires_grad


@pytest.mark.parametrize("order", [1, 2])
def test_absent_classes_are_named(order):
    z, target = batch((30, 6))
    with pytest.warns(UserWarning, match=r"no samples of 2 of 5 classes, which add nothing to it: \[3, 4\]"):
        found = psp_entropy(z, target, 5, order)
    assert found == psp_entropy(z, target, 3, order)


@pytest.mark.parametrize("order", [1, 2])
def test_no_samples_at_all(order):
    z, target = batch((0, 6))
    with pytest.warns(UserWarning, match=r"no samples of 2 of 2 classes"):
        assert psp_entropy(z, target, 2, order).isnan()
    with pytest.warns(UserWarning, match=r"no samples of 2 of 2 classes"):
        assert estimate_psp_entropy(z, target, 2, order).number_of_sets == 0


def test_estimate_of_first_order():
    z, target = batch((30, 6))
    value = psp_entropy(z, target, 3).item()
    assert estimate_psp_entropy(z, target, 3) == EntropyEstimate(value, 0.0, 6, is_exact=True)


def test_mean_square():
    z = torch.tensor([[300.0, -400.0]], dtype=torch.float16)
    assert mean_square_potential(z) == torch.tensor(125000.0)  # beyond what float16 holds
    assert mean_square_potential(z.double()).dtype == torch.float64
    with pytest.raises(ValueError, match=r"`z` to hold values but got shape \[0, 3\]"):
        mean_square_potential(torch.zeros(0, 3))


Z, TARGET = torch.zeros(4, 3), torch.tensor([0, 1, 0, 1])


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"num_classes": 0}, ValueError, "`num_classes` to be at least 1 but got 0"),
        ({"num_classes": 2.0}, TypeError, "`num_classes` to be an integer but got 2.0"),
        ({"order": 0}, ValueError, "`order` to be at least 1 but got 0"),
        ({"order": True}, TypeError, "`order` to be an integer but got True"),
        ({"order": "2"}, TypeError, "`order` to be an integer but got '2'"),
        ({"order": 63}, ValueError, "`order` to be at most 62 but got 63"),
        ({"order": 4}, ValueError, "`z` to hold at least 4 units with `order=4` but got 3"),
        ({"unit": "neuron"}, ValueError, "`unit` to be one of element, channel but got 'neuron'"),
        ({"reduction": "sum"}, ValueError, "`reduction` to be one of mean, none but got 'sum'"),
        ({"reduction": "none", "order": 2}, ValueError, "'none', one value a unit. Use `order=1`"),
        ({"unit_dim": 0}, ValueError, "behind the batch dimension 0 but got 0"),
        ({"unit_dim": None}, TypeError, "`unit_dim` to be an integer but got None"),
        ({"unit": "channel", "unit_dim": 2}, ValueError, r"from 1 to 1 or from -1 to -1 .* \[4, 3\], but got 2"),
        ({"unit": "channel", "unit_dim": -2}, ValueError, "but got -2"),
        ({"max_sets": 1}, ValueError, "`max_sets` to be at least 2 but got 1"),
        ({"seed": -1}, ValueError, "`seed` to be at least 0 but got -1"),
        ({"z": [[1.0]]}, TypeError, "`z` to be a tensor but got list"),
        ({"z": Z.int()}, TypeError, "real floating point tensor but got torch.int32"),
        ({"z": Z.cfloat()}, TypeError, "real floating point tensor but got torch.complex64"),
        ({"z": torch.tensor(1.0)}, ValueError, r"\[batch, …\] and \[batch\] but got \[\] and \[4\]"),
        ({"z": torch.zeros(4, 0)}, ValueError, r"at least one unit but got shape \[4, 0\]"),
        ({"z": torch.tensor([[1.0], [math.nan], [math.inf], [-math.inf]])}, ValueError, "infinities but got NaN"),
        ({"target": [0, 1, 0, 1]}, TypeError, "`target` to be a tensor but got list"),
        ({"target": TARGET.float()}, TypeError, "`target` to hold integers .* got torch.float32: .* class of each"),
        ({"target": TARGET.bool()}, TypeError, "`target` to hold integers .* got torch.bool: .* class of each"),
        (
            {"target": TARGET.to(torch.uint16)},
            TypeError,
            r"integers of type uint8, int8, int16, int32 or int64 but got torch.uint16: use `target\.long\(\)`",
        ),
        ({"target": TARGET[:3]}, ValueError, r"but got \[4, 3\] and \[3\]"),
        ({"target": TARGET[:, None]}, ValueError, r"but got \[4, 3\] and \[4, 1\]"),
        ({"target": TARGET + 1}, ValueError, "classes from 0 to 1 with `num_classes=2` but got 2"),
        ({"target": TARGET - 1}, ValueError, "but got -1"),
    ],
)
def test_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        psp_entropy(**{"z": Z, "target": TARGET, "num_classes": 2, **arguments})
    if "reduction" not in arguments:
        with pytest.raises(error, match=message):
            estimate_psp_entropy(**{"z": Z, "target": TARGET, "num_classes": 2, **arguments})
