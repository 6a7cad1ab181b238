"""The soft PSP-entropy against sums written out sample by sample, its limits and its gradient."""

import math

import pytest
import torch

from lightning_psp.functional import psp_entropy, soft_psp_entropy


def bits(probability):
    return -sum(p * math.log2(p) for p in (probability, 1 - probability) if p > 0)


def graded(temperature):
    return lambda value: 1 / (1 + math.exp(-value / temperature))


def binary(value):
    return float(value > 0)


def written_out(rows, labels, state):
    """Entropy of each unit; `rows[b][k]` holds the observations of unit k in sample b."""
    entropies = []
    for unit in range(len(rows[0])):
        total = 0.0
        for label in set(labels):
            found = [value for row, own in zip(rows, labels, strict=True) if own == label for value in row[unit]]
            total += bits(sum(map(state, found)) / len(found))
        entropies.append(total)
    return entropies


LABELS = torch.tensor([2, 0, 2, 0, 2, 4])  # 1 and 3 are absent


def potentials(*shape, seed=0):
    return torch.randn(len(LABELS), *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("temperature", [0.3, 1.0, 4.0])
@pytest.mark.parametrize("shape", [(), (5,), (3, 2, 2)], ids=str)
def test_elements(shape, temperature):
    z = potentials(*shape)
    expected = written_out(z.reshape(len(z), -1, 1).tolist(), LABELS.tolist(), graded(temperature))
    found = soft_psp_entropy(z, LABELS, 5, temperature=temperature, reduction="none")
    assert found.tolist() == pytest.approx(expected, rel=1e-12)
    mean = soft_psp_entropy(z, LABELS, 5, temperature=temperature)
    assert mean.item() == pytest.approx(sum(expected) / len(expected), rel=1e-12)


@pytest.mark.parametrize("unit_dim", [1, 2, -1, -2])
def test_channels(unit_dim):
    z = potentials(3, 4)
    rows = z if unit_dim in (1, -2) else z.transpose(1, 2)
    expected = written_out(rows.tolist(), LABELS.tolist(), graded(0.7))
    found = soft_psp_entropy(z, LABELS, 5, temperature=0.7, unit="channel", unit_dim=unit_dim, reduction="none")
    assert found.tolist() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("shape", [(), (5,)], ids=str)
def test_channels_without_positions_are_elements(shape):
    z = potentials(*shape)
    assert torch.equal(soft_psp_entropy(z, LABELS, 5, unit="channel"), soft_psp_entropy(z, LABELS, 5))


def test_absent_classes_contribute_nothing():
    z = potentials(5)
    compact = torch.tensor([1, 0, 1, 0, 1, 2])
    assert soft_psp_entropy(z, LABELS, 5).item() == pytest.approx(soft_psp_entropy(z, compact, 3).item(), rel=1e-14)


def test_falls_to_the_entropy_of_binary_states():
    z = potentials(40)
    hard = torch.tensor(written_out(z.unsqueeze(-1).tolist(), LABELS.tolist(), binary), dtype=z.dtype)
    gaps = [
        (soft_psp_entropy(z, LABELS, 5, temperature=temperature, reduction="none") - hard).abs().max().item()
        for temperature in (1.0, 0.1, 0.01, 1e-4, 1e-6)
    ]
    assert gaps == sorted(gaps, reverse=True)
    assert gaps[0] > 0.5
    assert gaps[-1] < 1e-9


@pytest.mark.filterwarnings("ignore:PSP-entropy has no samples")
@pytest.mark.parametrize("unit", ["element", "channel"])
def test_is_the_psp_entropy_at_a_low_temperature(unit):
    z = potentials(3, 4)
    settings = {"unit": unit, "reduction": "none"}
    found = soft_psp_entropy(z, LABELS, 5, temperature=1e-9, **settings)
    torch.testing.assert_close(found, psp_entropy(z, LABELS, 5, **settings), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("temperature", [1.0, 1e-6, 1e-300])
def test_a_potential_of_zero_stays_undecided(temperature):
    z = torch.zeros(4, 2, dtype=torch.float64)
    found = soft_psp_entropy(z, torch.tensor([0, 0, 1, 1]), 2, temperature=temperature)
    assert found.item() == 2.0  # the entropy of its state, which is 0, would be 0


def test_gradient_against_differences():
    z = potentials(3, 2).requires_grad_()
    for settings in ({}, {"unit": "channel"}, {"temperature": 0.4, "reduction": "none"}):
        assert torch.autograd.gradcheck(lambda z, s=settings: soft_psp_entropy(z, LABELS, 5, **s), (z,))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_gradient_is_finite_where_a_probability_is_0_or_1(dtype):
    values = [[-1e4, 1e4, math.inf, -math.inf, -90.0, 20.0, 0.0]] * len(LABELS)
    z = torch.tensor(values, dtype=dtype, requires_grad=True)
    found = soft_psp_entropy(z, LABELS, 5, reduction="none")
    assert found[:4].tolist() == [0.0] * 4  # no floor
    assert found[-1] == 3.0
    found.sum().backward()
    assert torch.isfinite(z.grad).all()
    assert not z.grad[:, :4].any()
    z = (torch.tensor(values, dtype=dtype)[:, :4] / 100).requires_grad_()
    soft_psp_entropy(z, LABELS, 5, temperature=1e-3).backward()
    assert torch.isfinite(z.grad).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype):
    z = potentials(50).to(dtype)
    found = soft_psp_entropy(z, LABELS, 5)
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(soft_psp_entropy(z.double(), LABELS, 5).item(), rel=1e-6)


@pytest.mark.parametrize("samples", [256, 257, 100_000])
def test_sums_of_many_samples_are_not_rounded_away(samples):
    z = torch.full((samples, 1), -0.85).requires_grad_()
    found = soft_psp_entropy(z, torch.zeros(samples, dtype=torch.int64), 1)
    found.backward()
    p = graded(1.0)(z[0].item())
    assert found.item() == pytest.approx(bits(p), rel=1e-5)
    slope = math.log2((1 - p) / p) * p * (1 - p)
    assert (z.grad * samples).flatten()[[0, -1]].tolist() == pytest.approx([slope, slope], rel=2e-5)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32])
def test_labels_of_every_integer_type(dtype):
    z = potentials(5)
    assert torch.equal(soft_psp_entropy(z, LABELS.to(dtype), 5), soft_psp_entropy(z, LABELS, 5))


Z, ONE_NAN = torch.ones(6, 3), torch.ones(6, 3).index_fill(0, torch.tensor([4]), math.nan)


@pytest.mark.parametrize(
    ("arguments", "error", "parts"),
    [
        ({"z": LABELS}, TypeError, ("`z`", "int64")),
        ({"z": Z.to(torch.complex64)}, TypeError, ("`z`", "complex64")),
        ({"z": torch.tensor(1.0)}, ValueError, ("`z`", "[]")),
        ({"z": torch.ones(6, 0)}, ValueError, ("`z`", "[6, 0]")),
        ({"z": torch.ones(0, 3), "target": LABELS[:0]}, ValueError, ("`z`", "[0, 3]")),
        ({"z": ONE_NAN}, ValueError, ("`z`", "NaN")),
        ({"target": LABELS.double()}, TypeError, ("`target`", "float64")),
        ({"target": LABELS > 0}, TypeError, ("`target`", "bool")),
        ({"target": LABELS[:5]}, ValueError, ("`target`", "[6, 3]", "[5]")),
        ({"target": LABELS[:, None]}, ValueError, ("`target`", "[6, 1]")),
        ({"target": LABELS - 1}, ValueError, ("`target`", "from 0 to 4", "-1")),
        ({"num_classes": 4}, ValueError, ("`target`", "from 0 to 3", "4")),
        ({"num_classes": 0}, ValueError, ("`num_classes`", "0")),
        ({"num_classes": 5.0}, TypeError, ("`num_classes`", "5.0")),
        ({"num_classes": True}, TypeError, ("`num_classes`", "True")),
        ({"temperature": 0.0}, ValueError, ("`temperature`", "0.0")),
        ({"temperature": -1}, ValueError, ("`temperature`", "-1")),
        ({"temperature": math.nan}, ValueError, ("`temperature`", "nan")),
        ({"temperature": math.inf}, ValueError, ("`temperature`", "inf")),
        ({"temperature": "low"}, TypeError, ("`temperature`", "'low'")),
        ({"unit": "filter"}, ValueError, ("`unit`", "element, channel", "'filter'")),
        ({"unit": "channel", "unit_dim": 0}, ValueError, ("`unit_dim`", "0")),
        ({"unit": "channel", "unit_dim": 2}, ValueError, ("`unit_dim`", "2")),
        ({"unit": "channel", "unit_dim": -2}, ValueError, ("`unit_dim`", "-2")),
        ({"reduction": "sum"}, ValueError, ("`reduction`", "mean, none", "'sum'")),
    ],
)
def test_refuses(arguments, error, parts):
    with pytest.raises(error) as raised:
        soft_psp_entropy(**{"z": Z, "target": LABELS, "num_classes": 5, **arguments})
    for part in parts:
        assert part in str(raised.value)
