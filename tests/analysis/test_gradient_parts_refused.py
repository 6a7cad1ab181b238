"""What the parts of the PSP gradient are refused for."""

import pytest
import torch
from torch import nn

from lightning_psp.analysis import psp_gradient_parts
from tests.support.networks import LeNet5
from tests.support.two_layers import SAMPLES, random, two_layers


@pytest.mark.parametrize("inputs", [[torch.ones(1, 4)], {"x": torch.ones(1, 4)}, None])
def test_inputs_must_be_a_tensor_or_a_tuple(inputs):
    with pytest.raises(TypeError, match=r"`inputs` to be a tensor or a tuple .* inputs alone, such as `batch\[0\]`"):
        psp_gradient_parts(two_layers(), inputs)


def test_packed_sequences_are_one_argument():
    packed = nn.utils.rnn.pack_sequence([random(3, 4), random(2, 4)])
    network = nn.LSTM(4, 5).double()
    with pytest.raises(TypeError, match="got PackedSequence"):
        psp_gradient_parts(network, packed)
    assert psp_gradient_parts(network, (packed,)).layers == ("lstm",)


def test_nothing_trained_is_an_error():
    network, x = two_layers().requires_grad_(False), random(SAMPLES, 4)
    for inputs in (x, x.clone().requires_grad_()):
        with pytest.raises(ValueError, match="depends on a trained parameter"):
            psp_gradient_parts(network, inputs)
    network[2].requires_grad_(True)
    with pytest.raises(ValueError, match="none reaches the layers 0"):
        psp_gradient_parts(network, x, output=False)
    with pytest.raises(ValueError, match=r"No layer is left .* are: 0, 2\."):
        psp_gradient_parts(network, x, exclude=("*",))


def test_a_function_is_no_module():
    with pytest.raises(TypeError, match=r"`module` to be a `torch\.nn\.Module`"):
        psp_gradient_parts(torch.relu, random(SAMPLES, 4))


def test_unknown_reduction_is_an_error():
    with pytest.raises(ValueError, match="`reduction` to be one of"):
        psp_gradient_parts(two_layers(), random(SAMPLES, 4), reduction="median")


def test_not_finite_is_an_error_that_names_the_layer():
    network = LeNet5()
    with torch.no_grad():
        network.conv2.weight[0, 0, 0, 0] = torch.nan
    with pytest.raises(ValueError, match=r"layer 'conv2'.*'conv1.weight' is not finite"):
        psp_gradient_parts(network, torch.randn(2, 1, 28, 28))
