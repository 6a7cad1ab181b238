"""What counts as a layer, and what it is called."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from lightning_psp import psp_penalty, record_potentials


def layers(network, *inputs, **choices):
    with record_potentials(network, **choices) as potentials:
        network(*inputs)
    return list(potentials)


class LeNet5(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 20, 5)
        self.conv2 = nn.Conv2d(20, 50, 5)
        self.fc1 = nn.Linear(800, 500)
        self.fc2 = nn.Linear(500, 10)

    def forward(self, images):
        x = functional.max_pool2d(functional.relu(self.conv1(images)), 2)
        x = functional.max_pool2d(self.conv2(x).relu_(), 2)
        return self.fc2(torch.relu(self.fc1(x.flatten(1))))


def test_lenet5():
    assert layers(LeNet5(), torch.randn(2, 1, 28, 28)) == ["conv1", "conv2", "fc1", "fc2"]


def test_choice_of_layers():
    images = torch.randn(2, 1, 28, 28)
    assert layers(LeNet5(), images, include=("conv*",)) == ["conv1", "conv2"]
    assert layers(LeNet5(), images, exclude=("conv*",)) == ["fc1", "fc2"]
    assert layers(LeNet5(), images, output=False) == ["conv1", "conv2", "fc1"]


class Block(nn.Module):
    """A residual block with one activation module for two calls, and a sum written in place or not."""

    def __init__(self, in_place):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)
        self.bn = nn.BatchNorm2d(3)
        self.act = nn.ReLU(inplace=in_place)
        self.in_place = in_place

    def forward(self, x):
        out = self.bn(self.conv(self.act(self.bn(self.conv(x)))))
        if self.in_place:
            out += x
        else:
            out = out + x
        return self.act(out)


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_names_are_the_same_in_training_and_evaluation(in_place, training, mode):
    network = nn.Sequential(Block(in_place), nn.Flatten(), nn.Dropout(0.1), nn.Linear(12, 2)).train(training)
    with mode():
        assert layers(network, torch.randn(2, 3, 2, 2)) == ["0.bn", "0.act", "3"]


def test_a_sum_into_a_function_is_named_after_the_module_that_calls_it():
    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x):
            return functional.relu(functional.relu(x + self.fc(x)) + self.fc(x))

    assert layers(nn.Sequential(Sum(), nn.Linear(4, 2)), torch.randn(2, 4)) == ["0.relu", "0.relu:1", "1"]
    assert layers(Sum(), torch.randn(2, 4)) == ["relu", "relu:1"]  # the output of Sum is that of its last nonlinearity


def test_one_module_several_times_in_a_call_and_several_calls():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x):
            return self.fc(torch.tanh(self.fc(torch.tanh(self.fc(x)))))

    network = Twice()
    with record_potentials(network) as potentials:
        network(torch.randn(2, 4))
        assert {layer: len(z) for layer, z in potentials.items()} == {"fc": 6}
        network(torch.randn(5, 4))
    assert {layer: len(z) for layer, z in potentials.items()} == {"fc": 21}


def test_a_module_by_its_forward_and_one_made_on_the_spot():
    class Inline(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x):
            return nn.Sigmoid()(nn.ReLU()(self.fc(x)) + x)

    assert layers(Inline(), torch.randn(2, 4)) == ["fc", "sigmoid"]
    network = LeNet5()
    with record_potentials(network) as potentials:
        network.forward(torch.randn(2, 1, 28, 28))
    assert list(potentials)[:3] == ["conv1", "conv2", "fc1"]


def test_attention_and_guards_are_no_layers():
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.query, self.key, self.value, self.out = (nn.Linear(8, 8) for _ in range(4))

        def forward(self, x):
            mask = torch.ones(x.shape[1], x.shape[1]).tril().log()
            weights = (self.query(x) @ self.key(x).mT + mask).softmax(-1)
            return self.out(weights @ self.value(x).clamp(-3, 3))

    with pytest.warns(UserWarning, match="only the output was found"):
        assert layers(Attention(), torch.randn(2, 5, 8)) == ["out"]
    encoder = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    with record_potentials(encoder) as potentials:
        encoder(torch.randn(2, 5, 8))
    assert list(potentials) == ["linear1", "norm2"]
    assert all(z.isfinite().all() for z in potentials.values())


@pytest.mark.parametrize("training", [True, False])
def test_transformer_layer_without_gradient_takes_no_hidden_path(training):
    encoder = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).train(training)
    with torch.no_grad():
        assert layers(encoder, torch.randn(2, 5, 8)) == ["linear1", "norm2"]


class Swish(nn.Module):
    def forward(self, x):
        return x * torch.sigmoid(1.7 * x)


@pytest.mark.parametrize("given", [Swish, f"{__name__}.Swish"])
def test_a_module_class_as_activation(given):
    network = nn.Sequential(nn.Linear(4, 3), Swish(), nn.Linear(3, 2))
    inputs = torch.randn(2, 4)
    with record_potentials(network, activations=(given,)) as potentials:
        network(inputs)
    assert list(potentials) == ["0", "2"]
    torch.testing.assert_close(potentials["0"], network[0](inputs))


@pytest.mark.parametrize("given", [torch.sin, "torch.sin"])
@pytest.mark.parametrize("form", [torch.sin, torch.Tensor.sin, torch.Tensor.sin_])
def test_a_function_as_activation_in_all_its_forms(given, form):
    class Siren(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc1, self.fc2 = nn.Linear(4, 3), nn.Linear(3, 2)

        def forward(self, x):
            return self.fc2(form(self.fc1(x)))

    network, inputs = Siren(), torch.randn(2, 4)
    with pytest.warns(UserWarning, match="only the output was found"):
        assert layers(network, inputs) == ["fc2"]
    with record_potentials(network, activations=(given,)) as potentials:
        network(inputs)
    assert list(potentials) == ["fc1", "fc2"]
    torch.testing.assert_close(potentials["fc1"], network.fc1(inputs))


def test_calls_of_another_network_and_of_a_teacher_are_left_out():
    student, other = LeNet5(), LeNet5()
    images = torch.randn(2, 1, 28, 28)
    with record_potentials(student) as potentials:
        other(images)
        with torch.no_grad():
            student(images)
        student(images)
    assert list(potentials) == ["conv1", "conv2", "fc1", "fc2"]
    assert all(len(z) == 2 for z in potentials.values())


def test_a_loss_in_the_block_adds_no_layer():
    network, labels = LeNet5(), torch.tensor([1, 2])
    with record_potentials(network) as potentials:
        logits = network(torch.randn(2, 1, 28, 28))
        functional.cross_entropy(logits[:, :5], labels)
        torch.sigmoid(logits)
    assert list(potentials) == ["conv1", "conv2", "fc1", "fc2"]


def test_nothing_is_left_on_the_module_or_in_torch_after_an_exception():
    from tests.support.small import quiet_trainer, traces

    network = LeNet5()
    trainer = quiet_trainer()
    before = traces(trainer, network)
    with pytest.raises(RuntimeError), record_potentials(network):
        network(torch.randn(2, 1, 5, 28))
    assert traces(trainer, network) == before


def test_values_overwritten_after_the_nonlinearity_are_an_error_that_names_the_layer():
    class Overwrites(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x):
            z = self.fc(x)
            y = torch.sigmoid(z)
            z += 1
            return y

    with pytest.raises(RuntimeError, match="'fc'"):
        layers(Overwrites(), torch.randn(2, 4))


@pytest.mark.parametrize(
    ("network", "inputs", "units"),
    [
        (nn.Sequential(nn.Conv2d(3, 5, 1), nn.BatchNorm2d(5), nn.ReLU()), torch.randn(2, 3, 4, 6), 5),
        (nn.Sequential(nn.Linear(3, 5), nn.GELU()), torch.randn(2, 7, 3), 5),
        (nn.Sequential(nn.Linear(3, 5), nn.LayerNorm(5), nn.Dropout(0.1), nn.Tanh()), torch.randn(2, 7, 3), 5),
        (nn.Sequential(nn.Linear(3, 5), nn.ReLU()), torch.randn(2, 3), 5),
    ],
)
def test_sum_counts_units_and_averages_positions(network, inputs, units):
    with record_potentials(network) as potentials:
        network(inputs)
    (z,) = potentials.values()
    torch.testing.assert_close(psp_penalty(potentials, "sum"), 0.5 * units * z.square().mean())


class MovedSum(nn.Module):
    """A sum of two maps of an image, read as a sequence of tokens."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 5, 1), nn.Conv2d(3, 5, 1)

    def forward(self, images):
        return torch.relu((self.conv1(images) + self.conv2(images)).flatten(2).transpose(1, 2))


class ScaledActivation(nn.Module):
    """A nonlinearity of a nonlinearity's scaled result."""

    def __init__(self, activation):
        super().__init__()
        self.fc, self.activation = nn.Linear(3, 5), activation

    def forward(self, tokens):
        return torch.tanh(2 * self.activation(self.fc(tokens)))


@pytest.mark.parametrize(
    ("network", "inputs"),
    [
        (MovedSum(), torch.randn(2, 3, 4, 6)),
        (ScaledActivation(functional.gelu), torch.randn(2, 7, 3)),
        (ScaledActivation(nn.ReLU(inplace=True)), torch.randn(2, 7, 3)),
        (ScaledActivation(lambda z: z[:, 1:].relu_()), torch.randn(2, 7, 3)),
    ],
)
def test_units_are_followed_through_moved_sums_and_nonlinearities(network, inputs):
    with record_potentials(network) as potentials:
        network(inputs)
    for z in potentials.values():
        assert z.shape[-1] == 5
    expected = sum(0.5 * 5 * z.square().mean() for z in potentials.values())
    torch.testing.assert_close(psp_penalty(potentials, "sum"), expected)


def test_a_module_that_calls_a_nonlinearity_of_what_it_fake_quantised():
    class QuantisedReLU(nn.Linear):
        def forward(self, x):
            weight = torch.fake_quantize_per_tensor_affine(self.weight, 0.01, 0, -128, 127)
            return functional.relu(functional.linear(x, weight, self.bias))

    network = nn.Sequential(QuantisedReLU(3, 4), nn.Linear(4, 2))
    assert layers(network, torch.randn(5, 3)) == ["0", "1"]
