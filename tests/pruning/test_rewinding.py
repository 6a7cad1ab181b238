"""What a training under masks starts from: the weights as they are, those of before, or others of the same kind."""

import copy

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.nn.utils import parametrizations
from torchmetrics import Metric

from lightning_psp.pruning import MaskedTraining, magnitude_masks
from tests.support.pruning.networks import NETWORKS, old_weight_norm
from tests.support.pruning.training import (
    Pruned,
    Starts,
    adamw,
    assert_state,
    fit,
    lenet300,
    loader_for,
    masked,
    masks_for,
    sgd,
)

pytestmark = pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")


def test_weights_as_they_are():
    module, starts = lenet300(), Starts()
    before = copy.deepcopy(module.state_dict())
    fit(module, starts, MaskedTraining(module.masks))
    assert_state(starts.state, masked(before, module.masks))


@pytest.mark.parametrize("kind", ["state dict", "file", "checkpoint", "compiled", "from compiled"])
def test_rewound_weights(kind, tmp_path):
    """Buffers of batch norm, too. The state that is given is the one of then."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))
    module = Pruned(network, sgd())
    initial = module.state_dict()
    expected = copy.deepcopy(initial)
    rewind_to = initial
    if kind == "file":
        rewind_to = tmp_path / "initial.pt"
        torch.save(initial, rewind_to)
    elif kind == "checkpoint":
        saving = ModelCheckpoint(tmp_path, filename="first", every_n_train_steps=1)
        module.masks = magnitude_masks(module, sparsity=0.0, include=["network.0.*"])
        module.masks["network.0.weight"][0] = False
        fit(
            module, MaskedTraining(module.masks), saving, max_epochs=1, limit_train_batches=1, enable_checkpointing=True
        )
        rewind_to = str(tmp_path / "first.ckpt")
        expected = torch.load(rewind_to, weights_only=True)["state_dict"]
    elif kind == "from compiled":
        rewind_to = {name.replace("network.", "network._orig_mod."): value for name, value in initial.items()}
    callback = MaskedTraining(masks_for(module, 0.7), rewind_to=rewind_to)
    masks = module.masks
    with torch.no_grad():
        for value in module.state_dict().values():
            value.add_(1)
    starts = Starts()
    if kind == "compiled":
        module.network = torch.compile(network, backend="eager")
        module.masks = {}
        module.look = lambda place: None
    fit(module, callback, starts)
    found = {name.replace("_orig_mod.", ""): value for name, value in starts.state.items()}
    assert_state(found, masked(expected, masks))


def test_a_checkpoint_with_objects_of_other_types(tmp_path):
    """Nothing is changed; the state dict itself serves."""
    module, starts = lenet300(), Starts()
    before = copy.deepcopy(module.state_dict())
    path = tmp_path / "initial.ckpt"
    torch.save({"state_dict": {name: value + 1 for name, value in before.items()}, "hyper_parameters": nn.ReLU}, path)
    with pytest.raises(ValueError, match=r"initial.ckpt' holds objects beside tensors.*weights_only=False"):
        fit(module, MaskedTraining(module.masks, rewind_to=path))
    assert_state(module.state_dict(), before)
    state = torch.load(path, weights_only=False)["state_dict"]
    fit(module, MaskedTraining(module.masks, rewind_to=state), starts)
    assert_state(starts.state, masked(state, module.masks))


def test_a_checkpoint_of_before_the_first_step(tmp_path):
    """A fit that goes on from it is a new one."""
    module, starts = lenet300(), Starts()
    path = tmp_path / "start.ckpt"
    fit(module, max_steps=0, max_epochs=-1).save_checkpoint(path)
    initial = {name: value + 1 for name, value in module.state_dict().items()}
    fit(module, MaskedTraining(module.masks, rewind_to=initial), starts, ckpt_path=path)
    assert_state(starts.state, masked(initial, module.masks))


def test_the_lottery_ticket_is_the_training_of_the_masked_initial_network():
    """The same weights in the end as of a network that is masked by hand before and after each step."""
    module = lenet300()
    initial, masks = copy.deepcopy(module.state_dict()), module.masks
    fit(module)  # the first training
    fit(module, MaskedTraining(masks, rewind_to=initial))
    network = NETWORKS["lenet300"]()
    network.load_state_dict({name.removeprefix("network."): value for name, value in masked(initial, masks).items()})
    optimizer = sgd(momentum=0.9)(network.parameters())
    for _ in range(2):
        for inputs, labels in loader_for(network):
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(inputs), labels).backward()
            optimizer.step()
            with torch.no_grad():
                for name, parameter in network.named_parameters():
                    parameter.mul_(masks.get(f"network.{name}", 1))
    assert_state(module.network.state_dict(), network.state_dict())


RANDOM = [*NETWORKS, "batch norm"]


@pytest.mark.parametrize("name", RANDOM)
def test_weights_drawn_anew(name):
    def make(seed):
        torch.manual_seed(seed)
        if name in NETWORKS:
            return Pruned(NETWORKS[name](), adamw())
        return Pruned(nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 3)), adamw())

    def start(seed, drawn_with):
        module, starts = make(seed), Starts()
        for value in module.state_dict().values():
            value.add_(1) if value.is_floating_point() else value.fill_(7)
        masks = {key: torch.ones_like(mask) for key, mask in masks_for(module).items()}
        masks[next(iter(masks))].view(-1)[0] = False
        module.masks = masks
        state = torch.get_rng_state()
        fit(module, MaskedTraining(masks, rewind_to="random", seed=drawn_with), Looking(state), starts, max_epochs=1)
        return starts.state

    class Looking(Callback):
        def __init__(self, state):
            self.state = state

        def on_fit_start(self, trainer, pl_module):
            assert torch.equal(torch.get_rng_state(), self.state)

    found, again, other = start(0, drawn_with=5), start(1, drawn_with=5), start(0, drawn_with=6)
    assert_state(again, found)
    fresh = make(9)
    for part in fresh.modules() if name == "resnet18" else ():  # whose constructor draws in a way of its own
        if hasattr(part, "reset_parameters"):
            part.reset_parameters()
    for key, expected in fresh.state_dict().items():
        value = found[key]
        spread = expected.std() if expected.numel() > 1 else 0
        if spread == 0:
            torch.testing.assert_close(value, expected, msg=key)  # constants, and counters of batch norm
        elif value.numel() > 100:
            assert not torch.equal(value, other[key]), key
            assert value.mean().item() == pytest.approx(expected.mean().item(), abs=0.1), key
            assert value.std().item() == pytest.approx(spread.item(), rel=0.2), key


def test_the_whole_is_drawn_after_its_parts():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(64, 3)
            self.reset_parameters()

        def reset_parameters(self):
            nn.init.constant_(self.layer.bias, 4.0)

        def forward(self, x):
            return self.layer(x.flatten(1))

    module = Pruned(Scaled())
    starts = Starts()
    fit(module, MaskedTraining(masks_for(module), rewind_to="random", seed=0), starts)
    assert (starts.state["network.layer.bias"] == 4).all()


class Judge(Metric):
    """Judges images by a network of its own, which nobody can draw."""

    def __init__(self):
        super().__init__()
        self.network = Token(nn.Linear(3, 3))
        self.add_state("total", torch.zeros(()))

    def update(self, images):
        """Does not matter here."""

    def compute(self):
        return self.total


def test_networks_of_metrics_are_not_drawn():
    module, starts = Pruned(nn.Sequential(nn.Flatten(), nn.Linear(64, 3))), Starts()
    module.judge = Judge()
    before = copy.deepcopy(module.state_dict())
    fit(module, MaskedTraining(masks_for(module), rewind_to="random", seed=0), starts)
    same = [name for name, value in before.items() if torch.equal(value, starts.state[name])]
    assert same == [name for name in before if name.startswith("judge")]


class Token(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer
        self.token = nn.Parameter(torch.zeros(3))

    def forward(self, x):
        return self.layer(x.flatten(1)) + self.token


UNKNOWN = {
    "own parameter": (lambda: Token(nn.Linear(64, 3)), "network.token"),
    "spectral norm": (
        lambda: nn.Sequential(nn.Linear(4, 3), parametrizations.spectral_norm(nn.Linear(3, 3))),
        "network.1.parametrizations.weight.original",
    ),
    "weight norm elsewhere": (
        lambda: nn.Sequential(nn.Linear(4, 3), parametrizations.weight_norm(nn.LSTM(3, 3), "weight_hh_l0")),
        "network.1.parametrizations.weight_hh_l0.original0, network.1.parametrizations.weight_hh_l0.original1",
    ),
    "old weight norm elsewhere": (
        lambda: nn.Sequential(nn.Linear(4, 3), old_weight_norm(nn.LSTM(3, 3), name="weight_hh_l0")),
        "network.1.weight_hh_l0_g, network.1.weight_hh_l0_v",
    ),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_what_cannot_be_drawn_anew(name):
    make, names = UNKNOWN[name]
    module = Pruned(make())
    module.masks = magnitude_masks(module, sparsity=0.5, exclude=["network.1.*"] if "spectral" in name else [])
    before = copy.deepcopy(module.state_dict())
    with pytest.raises(ValueError, match=rf"cannot draw {names} anew.*`reset_parameters`"):
        fit(module, MaskedTraining(module.masks, rewind_to="random", seed=0))
    assert_state(module.state_dict(), before)
