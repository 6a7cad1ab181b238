"""The parts of the PSP gradient, against the paper's formulas by hand and against autograd of the penalty."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

from lightning_psp import psp_penalty, record_potentials
from lightning_psp.analysis import psp_gradient_parts
from tests.support.cases import REDUCTIONS
from tests.support.networks import BasicBlock, LeNet5, SharedWeights
from tests.support.reference import layer_term, penalty_of_terms
from tests.support.two_layers import SAMPLES, random, two_layers


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def parts_by_autograd(network, arguments, reduction):
    """Each layer's derivative by its own formula, none of it by `psp_penalty`: `{parameter: [parts]}`."""
    network = copy.deepcopy(network)
    with record_potentials(network) as potentials:
        network(*arguments)
    dims = potentials.unit_dims
    terms = {
        name: layer_term([[z]], reduction, lambda z, name=name: z.shape[dims[name]]) for name, z in potentials.items()
    }
    parameters = {name: p for name, p in network.named_parameters() if p.requires_grad}
    found = {name: [] for name in parameters}
    for layer in terms:
        alone = [term if name == layer else term.detach() for name, term in terms.items()]
        value = penalty_of_terms(alone, reduction)
        gradients = torch.autograd.grad(value, list(parameters.values()), retain_graph=True, allow_unused=True)
        for (name, parameter), gradient in zip(parameters.items(), gradients, strict=True):
            found[name].append(torch.zeros_like(parameter) if gradient is None else gradient)
    return found


def assert_right(parts, network, arguments, reduction="mean"):
    """Norms, shares and totals are those of parts computed one by one, and the parts add up to autograd's gradient."""
    expected = parts_by_autograd(network, arguments, reduction)
    whole = copy.deepcopy(network)
    with record_potentials(whole) as potentials:
        whole(*arguments)
    assert parts.layers == tuple(potentials)
    assert parts.parameters == tuple(expected)
    assert parts.reduction == reduction
    trained = {name: p for name, p in whole.named_parameters() if p.requires_grad}
    found = torch.autograd.grad(psp_penalty(potentials, reduction), list(trained.values()), allow_unused=True)
    for row, (name, gradient) in enumerate(zip(trained, found, strict=True)):
        tensors = expected[name]
        total = torch.zeros_like(trained[name]) if gradient is None else gradient
        torch.testing.assert_close(torch.stack(tensors).sum(0), total, rtol=1e-9, atol=1e-12)
        close(parts.norms[row], [part.square().sum().sqrt() for part in tensors])
        close(parts.total[row], total.square().sum().sqrt())
        if total.norm() > 1e-12:  # that of a bias before a batch norm is rounding error
            square = total.square().sum()
            close(parts.shares[row], [(part * total).sum() / square for part in tensors])
            close(parts.shares[row].sum(), 1.0)
        for column, part in enumerate(tensors):
            if not part.any():
                assert parts.norms[row, column] == 0
                assert parts.shares[row, column] == 0 or not total.any()


def close(value, expected):
    torch.testing.assert_close(value, torch.as_tensor(expected, dtype=torch.float64), rtol=1e-8, atol=1e-11)


def test_two_layers_by_hand():
    """The paper's Eq. 14 and 15: own term z · input, and Σ_k z_k ∂z_k/∂w from the next layer."""
    network, x = two_layers(bias=False), random(SAMPLES, 4)
    w1, w2 = network[0].weight.detach(), network[2].weight.detach()
    own, later, last = torch.zeros(6, 4).double(), torch.zeros(6, 4).double(), torch.zeros(3, 6).double()
    for sample in x:
        z1 = w1 @ sample
        hidden = z1.clamp(min=0)
        z2 = w2 @ hidden
        own += torch.outer(z1, sample) / SAMPLES
        for k in range(3):
            last[k] += z2[k] * hidden / SAMPLES
            for j in range(6):
                later[j] += z2[k] * w2[k, j] * (z1[j] > 0) * sample / SAMPLES
    parts = psp_gradient_parts(network, x, reduction="sum")
    assert parts.parameters == ("0.weight", "2.weight")
    assert parts.layers == ("0", "2")
    whole = own + later
    close(parts.norms, [[own.norm(), later.norm()], [0, last.norm()]])
    close(parts.total, [whole.norm(), last.norm()])
    close(parts.shares[0], [(own * whole).sum() / whole.norm() ** 2, (later * whole).sum() / whole.norm() ** 2])
    close(parts.shares[1], [0, 1])
    assert parts.norms[1, 0] == 0


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_sums_to_the_gradient_of_the_penalty(reduction):
    network, images = LeNet5().double(), random(SAMPLES, 1, 28, 28)
    parts = psp_gradient_parts(network, images, reduction=reduction)
    assert_right(parts, network, (images,), reduction)
    assert parts.layers == ("conv1", "conv2", "fc1", "fc2")
    rows = [parts.parameters.index(f"{layer}.weight") for layer in parts.layers]
    assert (parts.norms[rows].tril(-1) == 0).all()
    assert (parts.norms[rows].triu() > 0)[torch.triu_indices(4, 4).unbind()].all()


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("inplace", ["functional", "method in place", "module"])
def test_residual_blocks(inplace, reduction):
    network, x = BasicBlock(inplace).double(), random(SAMPLES, 4, 5, 5)
    assert_right(psp_gradient_parts(network, x, reduction=reduction), network, (x,), reduction)


def test_shared_parameters_are_one_row():
    network, x = SharedWeights().double(), random(SAMPLES, 6)
    parts = psp_gradient_parts(network, x)
    assert parts.parameters == ("shared.weight", "shared.bias", "head.weight", "head.bias")
    assert_right(parts, network, (x,))


def test_frozen_parameters_are_left_out():
    network, x = LeNet5().double(), random(SAMPLES, 1, 28, 28)
    network.conv1.requires_grad_(False)
    network.fc1.weight.requires_grad_(False)
    parts = psp_gradient_parts(network, x)
    assert parts.layers == ("conv2", "fc1", "fc2")  # conv1's potentials are constants, as in psp_penalty
    assert parts.parameters == ("conv2.weight", "conv2.bias", "fc1.bias", "fc2.weight", "fc2.bias")
    with record_potentials(network) as potentials:
        network(x)
    gradient = torch.autograd.grad(psp_penalty(potentials), network.conv2.weight)[0]
    close(parts.total[0], gradient.norm())
    close(parts.shares[0].sum(), 1.0)


def test_layers_can_be_chosen():
    network, x = LeNet5().double(), random(SAMPLES, 1, 28, 28)
    parts = psp_gradient_parts(network, x, exclude=("conv2",), output=False)
    assert parts.layers == ("conv1", "fc1")
    rows = [parts.parameters.index(name) for name in ("fc2.weight", "fc2.bias")]
    assert (parts.norms[rows] == 0).all()
    assert (parts.total[rows] == 0).all()
    assert parts.shares[rows].isnan().all()  # a share of nothing
    rest = [row for row in range(len(parts.parameters)) if row not in rows]
    close(parts.shares[rest].sum(1), torch.ones(6))


def test_activations_can_be_named():
    network = nn.Sequential(nn.Linear(4, 6), nn.Softmax(1), nn.Linear(6, 3)).double()
    parts = psp_gradient_parts(network, random(SAMPLES, 4), activations=(nn.Softmax,), include=("0",))
    assert parts.layers == ("0",)


def test_several_arguments():
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True, dtype=torch.float64)
    x, mask = random(SAMPLES, 6, 8), torch.ones(6, 6, dtype=torch.bool).triu(1)
    for arguments in ((x,), (x, mask)):
        assert_right(psp_gradient_parts(layer, arguments), layer, arguments)
    assert psp_gradient_parts(layer, x).layers[0] == "linear1"


def test_resnet18():
    models = pytest.importorskip("torchvision.models")
    network, images = models.resnet18(num_classes=3).double(), random(2, 3, 32, 32)
    state = copy.deepcopy(network.state_dict())
    parts = psp_gradient_parts(network, images)
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())
    assert len(parts.layers) == 18
    assert parts.parameters == tuple(name for name, _ in network.named_parameters())
    with record_potentials(network) as potentials:
        network(images)
    gradients = torch.autograd.grad(psp_penalty(potentials), list(network.parameters()), retain_graph=True)
    close(parts.total, torch.stack([gradient.norm() for gradient in gradients]))
    close(parts.shares.sum(1), torch.ones(62))
    row, column = parts.parameters.index("layer2.0.conv1.weight"), parts.layers.index("layer3.1.relu")
    wanted = network.layer2[0].conv1.weight
    part = torch.autograd.grad((potentials["layer3.1.relu"] ** 2).mean() / 18, wanted)[0]
    whole = gradients[row]
    close(parts.norms[row, column], part.norm())
    close(parts.shares[row, column], (part * whole).sum() / whole.norm() ** 2)
    assert (parts.norms[row, : parts.layers.index("layer2.0.bn1")] == 0).all()


class Watched(nn.Module):
    """Batch norm, a buffer that is replaced, one that is made, and dropout in a part that is not trained."""

    def __init__(self, fails=False):
        super().__init__()
        self.first, self.norm, self.second = nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 3)
        self.dropout = nn.Dropout().eval()
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("last", None)
        self.fails = fails

    def forward(self, x):
        self.calls = self.calls + 1
        self.last = x
        hidden = self.dropout(functional.relu(self.norm(self.first(x)), inplace=True))
        if self.fails:
            raise RuntimeError("broken")
        return self.second(hidden)


@pytest.mark.parametrize("fails", [False, True])
def test_nothing_is_left_behind(fails):
    network, x = Watched(fails).double(), random(SAMPLES, 4)
    network.first.weight.grad = torch.ones_like(network.first.weight)
    state = copy.deepcopy(network.state_dict())
    buffers = {name: id(buffer) for name, buffer in network.named_buffers()}
    modes = [part.training for part in network.modules()]
    if fails:
        with pytest.raises(RuntimeError, match="broken"):
            psp_gradient_parts(network, x)
    else:
        psp_gradient_parts(network, x)
    assert {name: id(buffer) for name, buffer in network.named_buffers()} == buffers
    assert network.last is None
    assert network.state_dict().keys() == state.keys()
    for name, value in network.state_dict().items():
        assert torch.equal(value, state[name]), name
    assert [part.training for part in network.modules()] == modes
    assert all(p.grad is None for name, p in network.named_parameters() if name != "first.weight")
    assert (network.first.weight.grad == 1).all()
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    assert not any(getattr(part, kind) for part in network.modules() for kind in hooks)
    assert torch._C._len_torch_function_stack() == 0


def test_random_numbers_of_dropout_are_given_back():
    network = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Dropout(), nn.Linear(6, 3))
    x = random(SAMPLES, 4).float()
    before = torch.get_rng_state()
    first, again = (psp_gradient_parts(network, x) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first.norms, again.norms)


def test_buffers_that_do_not_change_are_not_written_to():
    """A graph that holds them can still be gone back through."""
    network, x = Watched().double().eval(), random(SAMPLES, 4)
    loss = network(x).sum()
    psp_gradient_parts(network, x)
    loss.backward()


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_works_where_gradients_are_off(context):
    network, x = two_layers(), random(SAMPLES, 4)
    with context():
        parts = psp_gradient_parts(network, x)
        assert torch.is_grad_enabled() is False
    assert_right(parts, network, (x,))


def test_checkpointed_batch_norm():
    """The recomputation in each backward pass moves the running statistics again."""
    network, x = Checkpointed().double(), random(SAMPLES, 4)
    state = copy.deepcopy(network.state_dict())
    parts = psp_gradient_parts(network, x)
    for name, value in network.state_dict().items():
        assert torch.equal(value, state[name]), name
    assert_right(parts, network, (x,))


class Checkpointed(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.norm, self.second = nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 3)

    def forward(self, x):
        hidden = torch.utils.checkpoint.checkpoint(
            lambda x: functional.silu(self.norm(self.first(x))), x, use_reentrant=False
        )
        return self.second(hidden)


def test_sparse_gradients():
    dense = nn.Sequential(nn.Embedding(7, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    sparse = copy.deepcopy(dense)
    sparse[0].sparse = True
    tokens = torch.tensor([[0, 2, 2], [5, 0, 1]])
    expected, found = psp_gradient_parts(dense, tokens), psp_gradient_parts(sparse, tokens)
    close(found.norms, expected.norms)
    close(found.shares, expected.shares)
    assert_right(expected, dense, (tokens,))


class Fourier(nn.Module):
    """A complex parameter behind a real network."""

    def __init__(self):
        super().__init__()
        self.filter = nn.Parameter(torch.randn(3, dtype=torch.complex128))
        self.head = nn.Linear(4, 2).double()

    def forward(self, x):
        return self.head(functional.relu(torch.fft.irfft(torch.fft.rfft(x) * self.filter, n=4)))


def test_complex_parameters():
    network, x = Fourier(), random(SAMPLES, 4)
    parts = psp_gradient_parts(network, x)
    apart = [(torch.view_as_real(g)).double() for g in parts_by_autograd(network, (x,), "mean")["filter"]]
    close(parts.norms[0], [part.norm() for part in apart])
    whole = torch.stack(apart).sum(0)
    close(parts.shares[0], [(part * whole).sum() / whole.norm() ** 2 for part in apart])


def test_small_gradients_do_not_vanish():
    """Squares of 1e-25 are zero in float32."""
    network, x = two_layers().float(), random(SAMPLES, 4).float()
    large = psp_gradient_parts(network, x)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(1e-12)
    small = psp_gradient_parts(network, x)
    rows = [small.parameters.index(name) for name in ("0.weight", "0.bias")]
    torch.testing.assert_close(small.norms[rows, 0], 1e-12 * large.norms[rows, 0], rtol=1e-5, atol=0.0)
    close(small.shares.sum(1), torch.ones(4))


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("was_trained", [False, True])
def test_compiled_network(was_trained, dynamic):
    """A compiled backward pass that was made for one use cannot serve several."""
    network, x = two_layers(), random(SAMPLES, 4)
    compiled = torch.compile(copy.deepcopy(network), backend="aot_eager", dynamic=dynamic)
    if was_trained:
        with record_potentials(compiled) as potentials:
            compiled(x)
        psp_penalty(potentials).backward()
        compiled.zero_grad()
    parts = psp_gradient_parts(compiled, x)
    expected = psp_gradient_parts(network, x)
    close(parts.norms, expected.norms)
    close(parts.shares, expected.shares)


@pytest.mark.usefixtures("fresh_compiler")
def test_network_is_compiled_as_ever_afterwards():
    graphs = []

    def count(graph, _):
        graphs.append(graph)
        return graph.forward

    network = torch.compile(two_layers(), backend=count)
    psp_gradient_parts(network, random(SAMPLES, 4))
    assert not graphs
    network(random(SAMPLES, 4))
    assert len(graphs) == 1


@pytest.mark.gpu
def test_on_a_gpu():
    network, x = LeNet5().double(), random(SAMPLES, 1, 28, 28)
    expected = psp_gradient_parts(network, x)
    found = psp_gradient_parts(network.cuda(), x.cuda())
    for name in ("norms", "shares", "total"):
        assert getattr(found, name).device.type == "cpu"
        close(getattr(found, name), getattr(expected, name))


def test_parts_are_frozen():
    parts = psp_gradient_parts(two_layers(), random(SAMPLES, 4))
    with pytest.raises(AttributeError):
        parts.layers = ()
