"""States of units, whatever the type and layout of their potentials."""

import math

import pytest
import torch
from torch import Tensor

from lightning_psp.functional import states
from lightning_psp.functional.states import states_of


def potentials(dtype: torch.dtype) -> Tensor:
    """Potentials of all signs, and all that is hard to tell."""
    z = torch.randn(30, 4, 5, 6, generator=torch.Generator().manual_seed(0)).to(dtype)
    hard = [0.0, -0.0, math.inf, -math.inf, math.nan, torch.finfo(dtype).tiny, -torch.finfo(dtype).tiny]
    z[3, 1].view(-1)[: len(hard)] = torch.tensor(hard, dtype=dtype)
    return z


LAYOUTS = {
    "rows": lambda z: z,
    "channels last": lambda z: z.contiguous(memory_format=torch.channels_last),
    "transposed": lambda z: z.transpose(0, 1),
    "every second": lambda z: z[::2],
    "expanded": lambda z: z[:, :1].expand(-1, 4, -1, -1),
    "with gradient": lambda z: z.clone().requires_grad_(),
    "empty": lambda z: z[:0],
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("chunk", [1, 120, 500, 2**19])
def test_a_unit_is_on_where_its_potential_is_above_zero(
    layout: str, dtype: torch.dtype, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one piece and in many."""
    monkeypatch.setattr(states, "_CHUNK", chunk)
    z = LAYOUTS[layout](potentials(dtype))
    found = states_of(z)
    assert found.dtype == torch.int8
    assert found.shape == z.shape
    assert not found.requires_grad
    expected = [int(value > 0) for value in z.detach().double().flatten().tolist()]
    assert found.flatten().tolist() == expected
