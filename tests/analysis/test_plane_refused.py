"""What a plane is refused for, before anything is measured or changed."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_psp.analysis import hessian_eigenvalues, loss_plane
from tests.support.analysis.planes import CLASSES, MLP, batches, solutions


@pytest.fixture
def scene():
    network = MLP()
    return network, *solutions(network), batches(dtype=torch.float32)


ARGUMENTS = {
    "measures as text": ({"measures": "loss"}, TypeError, "`measures` to be a sequence of loss, error, z2, entropy"),
    "no measures": ({"measures": ()}, TypeError, "`measures` to be a sequence"),
    "unknown measure": (
        {"measures": ("loss", "entropy3")},
        ValueError,
        "`measures` to be one of .* but got 'entropy3'",
    ),
    "twice": ({"measures": ("loss", "loss")}, ValueError, "name each measure once"),
    "size of one number": ({"size": 25}, TypeError, "`size` to be the numbers of points"),
    "one point along x": ({"size": (1, 5)}, ValueError, r"`size\[0\]` to be at least 2 but got 1"),
    "no point along y": ({"size": (5, 0)}, ValueError, r"`size\[1\]` to be at least 1 but got 0"),
    "fraction of a point": ({"size": (2.5, 5)}, TypeError, r"`size\[0\]` to be an integer"),
    "negative margin": ({"margin": -0.1}, ValueError, "`margin` to be a finite number of at least 0"),
    "infinite margin": ({"margin": float("inf")}, ValueError, "`margin` to be a finite number"),
    "direction": ({"direction": "random"}, ValueError, "`direction` to be one of orthogonal, filter"),
    "seed": ({"seed": 1.5}, TypeError, "`seed` to be an integer"),
    "batch norm": ({"batch_norm": "train"}, ValueError, "`batch_norm` to be one of keep, reestimate"),
    "by layer": ({"by_layer": 1}, TypeError, "`by_layer` to be a bool"),
    "loss": ({"loss": "nll"}, TypeError, "`loss` to be a function of the network and a batch but got str"),
    "loss of torch": ({"loss": nn.CrossEntropyLoss()}, TypeError, "the network and a batch, .* got CrossEntropyLoss"),
    "function of torch": ({"loss": nn.functional.nll_loss}, TypeError, "the network and a batch, .* but got nll_loss"),
    "mask of another name": (
        {"masks": {"fc9.weight": torch.ones(1, dtype=torch.bool)}},
        ValueError,
        r"`masks` to name parameters of MLP but got 'fc9\.weight'",
    ),
    "mask of numbers": ({"masks": {"fc1.bias": torch.ones(6)}}, TypeError, r"bool tensors but got torch\.float32"),
    "mask of another shape": (
        {"masks": {"fc1.bias": torch.ones(5, dtype=torch.bool)}},
        ValueError,
        r"mask of 'fc1\.bias' to have the parameter's shape \(6,\) but got \(5,\)",
    ),
    "masks as a list": ({"masks": [torch.ones(6)]}, TypeError, "`masks` to map parameter names"),
}


@pytest.mark.parametrize(("settings", "error", "message"), ARGUMENTS.values(), ids=ARGUMENTS)
def test_arguments(scene, settings, error, message):
    with pytest.raises(error, match=message):
        loss_plane(*scene, **settings)


def test_network(scene):
    _, first, second, data = scene
    with pytest.raises(TypeError, match=r"`module` to be a `torch.nn.Module`"):
        loss_plane(torch.relu, first, second, data)
    with pytest.raises(ValueError, match=r"'0\.weight' is not made yet"):
        loss_plane(nn.Sequential(nn.LazyLinear(2)), {}, {}, data)
    with pytest.raises(ValueError, match=r"'0\.weight' is on the meta device, without numbers"):
        loss_plane(nn.Sequential(nn.Linear(2, 2, device="meta")), {}, {}, data)


def test_state_dicts(scene):
    network, first, second, data = scene
    with pytest.raises(TypeError, match=r"`second` to be a state dict but got MLP. Give its `second\.state_dict\(\)`"):
        loss_plane(network, first, network, data)
    with pytest.raises(TypeError, match=r"`second` to be a state dict but got str. Give what `torch\.load` reads"):
        loss_plane(network, first, "second.ckpt", data)
    with pytest.raises(
        ValueError, match=r"`first` .* has not: epoch, state_dict. .* use `first=checkpoint\['state_dict'\]`"
    ):
        loss_plane(network, {"epoch": 3, "state_dict": first}, second, data)
    with pytest.raises(ValueError, match=r"has not: net\..*of a module around `module`: give that, or the `state_dict"):
        loss_plane(network, {f"net.{name}": value for name, value in first.items()}, second, data)
    without = {name: value for name, value in second.items() if name != "fc2.bias"}
    with pytest.raises(ValueError, match=r"`second` to hold 'fc2.bias' but got none"):
        loss_plane(network, first, without, data)
    with pytest.raises(ValueError, match=r"`second` to hold 'fc2.bias' of shape \[5\] but got \[4\]"):
        loss_plane(network, first, {**second, "fc2.bias": torch.ones(4)}, data)
    with pytest.raises(ValueError, match=r"`second` to hold numbers but 'fc2.bias' is not finite"):
        loss_plane(network, first, {**second, "fc2.bias": torch.full((5,), torch.nan)}, data)
    with pytest.raises(ValueError, match="to be different solutions but got the same weights"):
        loss_plane(network, first, dict(first), data)


def test_one_batch_in_place_of_several(scene):
    network, first, second, data = scene
    with pytest.raises(
        TypeError, match=r"got Tensor\. A single batch is given as a list of one, \[\(images, labels\)\]"
    ):
        loss_plane(network, first, second, data[0])
    with pytest.raises(
        TypeError, match=r"got Tensor\. A single batch is given as a list of one, \[\(images, labels\)\]"
    ):
        hessian_eigenvalues(network, data[0])


def test_state_dicts_with_names_and_tensors_of_their_own():
    torch.manual_seed(0)
    network, data = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, CLASSES)), batches(dtype=torch.float32)
    plain = loss_plane(network, *solutions(network), data, size=(3, 2))

    def rename(module, state, prefix, metadata):
        for name in list(state):
            state[name.replace("0.", "first.")] = state.pop(name)

    first, second = (
        {name.replace("0.", "first."): value for name, value in state.items()} for state in solutions(network)
    )
    handle = network.register_state_dict_post_hook(rename)
    renamed = loss_plane(network, first, second, data, size=(3, 2))
    assert all(torch.equal(values, renamed.values[measure]) for measure, values in plain.values.items())
    handle.remove()
    network.register_state_dict_post_hook(lambda module, state, *_: state.update(sum=state["0.weight"] + 1))
    with pytest.raises(ValueError, match="parameter or buffer for 'sum' of its state dict"):
        loss_plane(network, *solutions(nn.Linear(4, 1)), data)


def test_directions(scene):
    network, first, second, data = scene
    nothing = {name: torch.zeros(value.shape, dtype=torch.bool) for name, value in first.items()}
    for direction in ("orthogonal", "filter"):
        with pytest.raises(ValueError, match=r"`masks`.*direction"):
            loss_plane(network, first, second, data, masks=nothing, direction=direction)
    single = {**nothing, "fc1.bias": torch.arange(6) == 2}
    with pytest.raises(ValueError, match="in which there is a direction orthogonal"):
        loss_plane(network, first, second, data, masks=single)
    found = loss_plane(network, first, second, data, masks=nothing, size=(2, 1))  # a line has no second direction
    assert found.values["loss"].isfinite().all()


def test_data(scene):
    network, first, second, data = scene
    with pytest.raises(TypeError, match=r"`data` to be an iterable that starts again .* but got generator"):
        loss_plane(network, first, second, (batch for batch in data))
    with pytest.raises(TypeError, match="`data` to be an iterable of batches but got int"):
        loss_plane(network, first, second, 3)
    with pytest.raises(ValueError, match="at least one batch with samples"):
        loss_plane(network, first, second, [])
    with pytest.raises(TypeError, match=r"whose second item holds the classes .* but got Tensor"):
        loss_plane(network, first, second, [x for x, _ in data])
    with pytest.raises(TypeError, match=r"second item holds the classes .* but got a tuple of one item\.$"):
        loss_plane(network, first, second, [(x,) for x, _ in data])
    with pytest.raises(TypeError, match=r"but got dict\. For other batches give argument `loss`; errors and"):
        loss_plane(network, first, second, [{"x": x, "y": y} for x, y in data])
    with pytest.raises(TypeError, match=r"whose second item holds the classes .* but got Tensor"):
        loss_plane(network, first, second, [x for x, _ in data], measures=("loss",))
    with pytest.raises(TypeError, match=r"class labels to be integers for an entropy but got torch.float32"):
        loss_plane(network, first, second, [(x, labels.float()) for x, labels in data])

    class Shrinking:
        passes = 0

        def __iter__(self):
            self.passes += 1
            return iter(data[: 4 - self.passes])

    with pytest.raises(ValueError, match="the same samples in every pass but got 23 in one and 20 in another"):
        loss_plane(network, first, second, Shrinking())


def test_classes_that_were_not_there_before(scene):
    """A class between those of the first pass would be taken for the next one."""
    network, first, second, data = scene
    passes = 0

    class Changing:
        def __iter__(self):
            nonlocal passes
            passes += 1
            return ((x, 2 * labels + (passes > 1)) for x, labels in data)

    with pytest.raises(ValueError, match="the same class labels in every pass but got others"):
        loss_plane(network, first, second, Changing(), measures=("entropy",), loss=lambda m, b: m(b[0]).sum())


def test_losses(scene):
    network, first, second, data = scene
    for loss, found in (
        (lambda module, batch: module(batch[0]), r"a tensor \[10, 3\] of torch.float32"),
        (lambda module, batch: 1.0, "float"),
    ):
        with pytest.raises(TypeError, match=f"`loss` to return a scalar tensor but got {found}"):
            loss_plane(network, first, second, data, loss=loss, measures=("loss",))


def test_cross_entropy_needs_a_tensor_of_scores(scene):
    network, first, second, data = scene
    network.register_forward_hook(lambda module, inputs, scores: {"logits": scores})
    with pytest.raises(TypeError, match=r"a tensor of scores .* but got dict.* the argument `loss`"):
        loss_plane(network, first, second, data, measures=("loss",))


def test_error_needs_scores_of_one_call(scene):
    network, first, second, data = scene

    def twice(module, batch):
        return F.cross_entropy(module(batch[0]) + module(batch[0]), batch[1])

    def never(module, batch):
        return F.cross_entropy(module.forward(batch[0]), batch[1])

    for loss, calls in ((twice, 2), (never, 0)):
        with pytest.raises(ValueError, match=f"`loss` to call `module` once.* but got {calls} calls"):
            loss_plane(network, first, second, data, loss=loss)
    one = nn.Linear(4, 1)
    first, second = solutions(one)

    def binary(module, batch):
        return F.binary_cross_entropy_with_logits(module(batch[0]).squeeze(1), (batch[1] > 0).float())

    with pytest.raises(ValueError, match=r"scores \[batch, classes, …\] .* but got a tensor \[10, 1\]"):
        loss_plane(one, first, second, data, loss=binary, measures=("loss", "error"))


def test_labels_that_leave_samples_out(scene):
    network, first, second, data = scene
    masked = [(x, labels.clone()) for x, labels in data]
    masked[1][1][0] = -100  # which cross-entropy leaves out of its mean
    with pytest.raises(ValueError, match=r"class for each sample but got some of -100, .* `data`, or give"):
        loss_plane(network, first, second, masked, measures=("loss",))
    settings = {"loss": lambda module, batch: F.cross_entropy(module(batch[0]), batch[1]), "size": (2, 1)}
    loss_plane(network, first, second, masked, measures=("loss",), **settings)
    with pytest.raises(ValueError, match=rf"classes from 0 to {CLASSES - 1}, .* but got some from -100 to"):
        loss_plane(network, first, second, masked, measures=("loss", "error"), **settings)
    with pytest.raises(ValueError, match=r"class for each sample for an entropy but got some of -100"):
        loss_plane(network, first, second, masked, measures=("entropy",), **settings)


def test_entropy_needs_hidden_layers():
    network = nn.Linear(4, CLASSES)
    with pytest.raises(ValueError, match="to have a hidden layer for 'entropy' but got none"):
        loss_plane(network, *solutions(network), batches(dtype=torch.float32))
