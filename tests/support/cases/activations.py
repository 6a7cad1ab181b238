"""One small network for each way to write each of PyTorch's nonlinearities."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.support.cases import Case, classification_batch


class Dense(nn.Module):
    """Two linear layers with a nonlinearity between them: a module or a function."""

    def __init__(self, activation: Callable[[Tensor], Tensor], features: int = 8) -> None:
        super().__init__()
        self.fc1 = nn.Linear(6, 8)
        self.activation = activation
        self.fc2 = nn.Linear(features, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.activation(self.fc1(x)))


class DensePReLU(nn.Module):
    """The function form of PReLU, whose slope is a parameter of the network."""

    def __init__(self, prelu: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.fc1 = nn.Linear(6, 8)
        self.slope = nn.Parameter(torch.full((8,), 0.25))
        self.fc2 = nn.Linear(8, 3)
        self.prelu = prelu

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.prelu(self.fc1(x), self.slope))


MODULES = {
    "Threshold": lambda: nn.Threshold(0.1, -0.2),
    "ReLU": nn.ReLU,
    # equal bounds: random in training otherwise
    "RReLU": lambda: nn.RReLU(0.2, 0.2),
    "Hardtanh": nn.Hardtanh,
    "ReLU6": nn.ReLU6,
    "Sigmoid": nn.Sigmoid,
    "Hardsigmoid": nn.Hardsigmoid,
    "Tanh": nn.Tanh,
    "SiLU": nn.SiLU,
    "Mish": nn.Mish,
    "Hardswish": nn.Hardswish,
    "ELU": nn.ELU,
    # PyTorch's derivative of CELU rounds alpha to float32: 0.5 is exact there
    "CELU": lambda: nn.CELU(0.5),
    "SELU": nn.SELU,
    "GELU": nn.GELU,
    "GELU tanh": lambda: nn.GELU(approximate="tanh"),
    "Hardshrink": lambda: nn.Hardshrink(0.1),
    "LeakyReLU": nn.LeakyReLU,
    "LogSigmoid": nn.LogSigmoid,
    "Softplus": nn.Softplus,
    "Softshrink": lambda: nn.Softshrink(0.1),
    "PReLU": nn.PReLU,
    "Softsign": nn.Softsign,
    "Tanhshrink": nn.Tanhshrink,
    "Threshold in place": lambda: nn.Threshold(0.1, -0.2, inplace=True),
    "ReLU in place": lambda: nn.ReLU(inplace=True),
    "RReLU in place": lambda: nn.RReLU(0.2, 0.2, inplace=True),
    "Hardtanh in place": lambda: nn.Hardtanh(inplace=True),
    "ReLU6 in place": lambda: nn.ReLU6(inplace=True),
    "Hardsigmoid in place": lambda: nn.Hardsigmoid(inplace=True),
    "SiLU in place": lambda: nn.SiLU(inplace=True),
    "Mish in place": lambda: nn.Mish(inplace=True),
    "Hardswish in place": lambda: nn.Hardswish(inplace=True),
    "ELU in place": lambda: nn.ELU(inplace=True),
    "CELU in place": lambda: nn.CELU(0.5, inplace=True),
    "SELU in place": lambda: nn.SELU(inplace=True),
    "LeakyReLU in place": lambda: nn.LeakyReLU(inplace=True),
}

FUNCTIONS = {
    "F.threshold": lambda x: F.threshold(x, 0.1, -0.2),
    "F.relu": lambda x: F.relu(x),
    "F.relu of a keyword": lambda x: F.relu(input=x),
    "F.rrelu": lambda x: F.rrelu(x),
    "F.rrelu training": lambda x: F.rrelu(x, 0.2, 0.2, training=True),
    "F.hardtanh": lambda x: F.hardtanh(x),
    "F.relu6": lambda x: F.relu6(x),
    "F.sigmoid": lambda x: F.sigmoid(x),
    "F.hardsigmoid": lambda x: F.hardsigmoid(x),
    "F.tanh": lambda x: F.tanh(x),
    "F.silu": lambda x: F.silu(x),
    "F.mish": lambda x: F.mish(x),
    "F.hardswish": lambda x: F.hardswish(x),
    "F.elu": lambda x: F.elu(x),
    "F.celu": lambda x: F.celu(x, 0.5),
    "F.selu": lambda x: F.selu(x),
    "F.gelu": lambda x: F.gelu(x),
    "F.gelu tanh": lambda x: F.gelu(x, approximate="tanh"),
    "F.hardshrink": lambda x: F.hardshrink(x, 0.1),
    "F.leaky_relu": lambda x: F.leaky_relu(x, 0.2),
    "F.logsigmoid": lambda x: F.logsigmoid(x),
    "F.softplus": lambda x: F.softplus(x),
    "F.softshrink": lambda x: F.softshrink(x, 0.1),
    "F.softsign": lambda x: F.softsign(x),
    "F.tanhshrink": lambda x: F.tanhshrink(x),
    "F.threshold in place": lambda x: F.threshold(x, 0.1, -0.2, True),
    "F.threshold inplace=": lambda x: F.threshold(x, 0.1, value=-0.2, inplace=True),
    "F.relu in place": lambda x: F.relu(x, True),
    "F.relu inplace=": lambda x: F.relu(x, inplace=True),
    "F.rrelu in place": lambda x: F.rrelu(x, 0.2, 0.2, True, True),
    "F.rrelu inplace=": lambda x: F.rrelu(x, inplace=True),
    "F.hardtanh in place": lambda x: F.hardtanh(x, -1.0, 1.0, True),
    "F.hardtanh inplace=": lambda x: F.hardtanh(x, inplace=True),
    "F.relu6 in place": lambda x: F.relu6(x, True),
    "F.relu6 inplace=": lambda x: F.relu6(x, inplace=True),
    "F.hardsigmoid in place": lambda x: F.hardsigmoid(x, True),
    "F.hardsigmoid inplace=": lambda x: F.hardsigmoid(x, inplace=True),
    "F.silu in place": lambda x: F.silu(x, True),
    "F.silu inplace=": lambda x: F.silu(x, inplace=True),
    "F.mish in place": lambda x: F.mish(x, True),
    "F.mish inplace=": lambda x: F.mish(x, inplace=True),
    "F.hardswish in place": lambda x: F.hardswish(x, True),
    "F.hardswish inplace=": lambda x: F.hardswish(x, inplace=True),
    "F.elu in place": lambda x: F.elu(x, 1.0, True),
    "F.elu inplace=": lambda x: F.elu(x, inplace=True),
    "F.celu in place": lambda x: F.celu(x, 0.5, True),
    "F.celu inplace=": lambda x: F.celu(x, inplace=True),
    "F.selu in place": lambda x: F.selu(x, True),
    "F.selu inplace=": lambda x: F.selu(x, inplace=True),
    "F.leaky_relu in place": lambda x: F.leaky_relu(x, 0.2, True),
    "F.leaky_relu inplace=": lambda x: F.leaky_relu(x, inplace=True),
    "F.threshold_": lambda x: F.threshold_(x, 0.1, -0.2),
    "F.relu_": lambda x: F.relu_(x),
    "F.rrelu_": lambda x: F.rrelu_(x),
    "F.hardtanh_": lambda x: F.hardtanh_(x),
    "F.elu_": lambda x: F.elu_(x),
    "F.celu_": lambda x: F.celu_(x),
    "F.selu_": lambda x: F.selu_(x),
    "F.leaky_relu_": lambda x: F.leaky_relu_(x),
    "torch.threshold": lambda x: torch.threshold(x, 0.1, -0.2),
    "torch.relu": lambda x: torch.relu(x),
    "torch.relu of a keyword": lambda x: torch.relu(input=x),
    "torch.rrelu": lambda x: torch.rrelu(x),
    "torch.sigmoid": lambda x: torch.sigmoid(x),
    "torch.special.expit": lambda x: torch.special.expit(x),
    "torch.tanh": lambda x: torch.tanh(x),
    "torch.celu": lambda x: torch.celu(x),
    "torch.selu": lambda x: torch.selu(x),
    "torch.hardshrink": lambda x: torch.hardshrink(x, lambd=0.1),
    "torch.threshold_": lambda x: torch.threshold_(x, 0.1, -0.2),
    "torch.relu_": lambda x: torch.relu_(x),
    "torch.rrelu_": lambda x: torch.rrelu_(x),
    "torch.sigmoid_": lambda x: torch.sigmoid_(x),
    "torch.tanh_": lambda x: torch.tanh_(x),
    "torch.celu_": lambda x: torch.celu_(x),
    "torch.selu_": lambda x: torch.selu_(x),
    "Tensor.relu": lambda x: x.relu(),
    "Tensor.sigmoid": lambda x: x.sigmoid(),
    "Tensor.tanh": lambda x: x.tanh(),
    "Tensor.hardshrink": lambda x: x.hardshrink(0.1),
    "Tensor.relu_": lambda x: x.relu_(),
    "Tensor.sigmoid_": lambda x: x.sigmoid_(),
    "Tensor.tanh_": lambda x: x.tanh_(),
}

PRELU_FUNCTIONS = {
    "F.prelu": lambda x, slope: F.prelu(x, slope),
    "torch.prelu": lambda x, slope: torch.prelu(x, slope),
    "Tensor.prelu": lambda x, slope: x.prelu(slope),
}

GLU_FORMS = {
    "GLU": lambda: nn.GLU(),
    "F.glu": lambda: lambda x: F.glu(x),
    "F.glu dim=": lambda: lambda x: F.glu(x, dim=1),
}

# The function object itself is kept by the network, as `nn.TransformerEncoderLayer` does
KEPT_FUNCTIONS = {
    "kept F.relu": F.relu,
    "kept F.gelu": F.gelu,
    "kept F.silu": F.silu,
    "kept torch.tanh": torch.tanh,
    "kept torch.relu_": torch.relu_,
    "kept Tensor.sigmoid": torch.Tensor.sigmoid,
}

NO_LAYERS = {
    "softmax": lambda x: F.softmax(x, -1),
    "nn.Softmax": nn.Softmax(-1),
    "log_softmax": lambda x: F.log_softmax(x, -1),
    "Tensor.softmax": lambda x: x.softmax(-1),
    "softmin": lambda x: F.softmin(x, -1),
    "clamp": lambda x: x.clamp(-0.5, 0.5),
    "torch.clamp": lambda x: torch.clamp(x, min=0.0),
    "dropout": lambda x: F.dropout(x, 0.0),
}


def _case(name: str, network: Callable[[], nn.Module], names: tuple[str, ...]) -> Case:
    return Case(name, network, lambda: classification_batch(5, 6), names=names, reductions=("mean",))


TWO = ("fc1", "fc2")
ACTIVATION_CASES = [
    *(_case(f"nn.{k}", lambda make=v: Dense(make()), TWO) for k, v in MODULES.items()),
    *(_case(k, lambda function=v: Dense(function), TWO) for k, v in FUNCTIONS.items()),
    *(_case(k, lambda function=v: DensePReLU(function), TWO) for k, v in PRELU_FUNCTIONS.items()),
    *(_case(k, lambda make=v: Dense(make(), features=4), TWO) for k, v in GLU_FORMS.items()),
    *(_case(k, lambda function=v: Dense(function), TWO) for k, v in KEPT_FUNCTIONS.items()),
    *(_case(f"no layer: {k}", lambda function=v: Dense(function), ("fc2",)) for k, v in NO_LAYERS.items()),
]
