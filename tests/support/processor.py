"""What torch itself can do on the processor that the tests run on."""

import functools

import pytest
import torch
from torch import nn


@functools.cache
def refusal_of_bfloat16_lstm() -> str | None:
    """What torch says of an LSTM in bfloat16 autocast, which needs instructions that not every processor has."""
    lstm = nn.LSTM(2, 3, num_layers=2)
    try:
        with torch.autocast("cpu", torch.bfloat16):
            result, _ = lstm(torch.zeros(4, 1, 2))
        result.float().sum().backward()
    except RuntimeError as error:
        return str(error).splitlines()[0]
    return None


def skip_unless_torch_runs_in_bfloat16(kind: str) -> None:
    """Skips a test of a kind of recurrent layer that torch cannot run in bfloat16 autocast here."""
    refusal = refusal_of_bfloat16_lstm() if kind == "lstm" else None
    if refusal is not None:
        pytest.skip(f"torch runs no LSTM in bfloat16 on this processor: {refusal}")
