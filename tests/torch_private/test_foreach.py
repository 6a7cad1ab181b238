"""Operations on many tensors, with and without the names that torch has for them."""

import pytest
import torch

from lightning_psp.functional.totals import add_up_weighted
from lightning_psp.pruning.decay import sensitivity_decay
from lightning_psp.torch_private import foreach

NAMES = ("_abs", "_clamp_max_", "_sub_", "_addcmul_")


def test_this_version_has_all_names():
    assert all(getattr(foreach, name) is not None for name in (*NAMES, "_mul"))


@pytest.mark.parametrize("has_name", [True, False])
def test_weighted_sums(has_name, monkeypatch):
    if not has_name:
        monkeypatch.setattr(foreach, "_mul", None)
    totals = [(0.5, torch.tensor(4.0)), (2.0, 3.0), (0.25, torch.tensor(2.0))]
    assert add_up_weighted(totals) == torch.tensor(8.5)
    assert add_up_weighted([]) == 0.0


@pytest.mark.parametrize("names", [(), *((name,) for name in NAMES), NAMES], ids=lambda names: "".join(names) or "all")
def test_decay(names, monkeypatch):
    for name in names:
        monkeypatch.setattr(foreach, name, None)
    generator = torch.Generator().manual_seed(0)
    weights = [torch.randn(size, dtype=torch.float64, generator=generator) for size in (3, 5)]
    gradients = [2 * torch.randn(size, dtype=torch.float64, generator=generator) for size in (3, 5)]
    expected = [w - 0.1 * w * torch.clamp(1 - g.abs(), min=0) for w, g in zip(weights, gradients, strict=True)]
    sensitivity_decay(weights, gradients, lam=0.1)
    torch.testing.assert_close(weights, expected, rtol=1e-12, atol=1e-14)
