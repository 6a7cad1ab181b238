"""Training under given masks: what it starts from, what it logs, saves and takes up again, and what it refuses."""

import copy
import pickle
import sys
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import Callback, LightningDataModule
from lightning.pytorch.callbacks import ModelCheckpoint, OnExceptionCheckpoint
from lightning.pytorch.cli import LightningCLI
from torch import nn
from torch.nn.utils import parametrizations
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

from lightning_psp.pruning import MaskedTraining, magnitude_masks, random_masks_like, sparsity
from tests.pruning.networks import NETWORKS, effective_weights, old_weight_norm
from tests.pruning.training import Pruned, adamw, assert_held, fit, loader_for, masks_for, sgd
from tests.support.small import traces

pytestmark = [
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`"),
    pytest.mark.filterwarnings("ignore:`.fit.ckpt_path=None.` was called without a model"),
    pytest.mark.filterwarnings("ignore:.fit.ckpt_path=.last.. is set"),
]


def lenet300(seed=0):
    torch.manual_seed(seed)
    module = Pruned(NETWORKS["lenet300"](), sgd(momentum=0.9))
    masks_for(module)
    return module


class Starts(Callback):
    """Keeps the weights that a training starts with."""

    def __init__(self):
        self.state = None

    def on_train_start(self, trainer, pl_module):
        self.state = copy.deepcopy(pl_module.state_dict())


def assert_state(found, expected):
    assert list(found) == list(expected)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=0, msg=name)


def masked(state, masks):
    return {name: value * masks.get(name, 1) for name, value in state.items()}


# --- what it starts from ---------------------------------------------------------------------------------------------


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


# --- logged ----------------------------------------------------------------------------------------------------------


def test_logged_values():
    module = lenet300()
    trainer = fit(module, MaskedTraining(module.masks))
    expected = sparsity(module.masks)
    logged = {name: value.item() for name, value in trainer.callback_metrics.items() if "pruning" in name}
    names = {f"pruning_sparsity/{name}": share for name, share in expected.layers.items()}
    assert logged == pytest.approx({"pruning/sparsity": expected.network, **names}, rel=1e-6)
    assert "pruning/sparsity" not in trainer.progress_bar_metrics


def test_barebones():
    module = lenet300()
    module.log = lambda *_, **__: None
    fit(module, MaskedTraining(module.masks), barebones=True, enable_checkpointing=None, logger=None)
    assert_held(module, ("training step", "at the end"))


# --- saved and taken up again ----------------------------------------------------------------------------------------


def saving(folder, **settings):
    return ModelCheckpoint(folder, filename="{step}", save_top_k=-1, every_n_train_steps=1, **settings)


def assert_saved(path, masks):
    checkpoint = torch.load(path, weights_only=True)
    assert_state(checkpoint["callbacks"]["MaskedTraining"]["masks"], masks)
    for name, mask in masks.items():
        assert mask.dtype == torch.bool
        assert (checkpoint["state_dict"][name][~mask] == 0).all()
    return checkpoint


def test_checkpoints_need_no_plugin(tmp_path):
    module = lenet300()
    names = list(module.state_dict())
    fit(module, MaskedTraining(module.masks), saving(tmp_path), enable_checkpointing=True)
    paths = list(tmp_path.glob("*.ckpt"))
    assert len(paths) == 6
    for path in paths:
        checkpoint = assert_saved(path, module.masks)
        assert list(checkpoint["state_dict"]) == names
        plain = lenet300(seed=1)
        plain.load_state_dict(checkpoint["state_dict"])
    assert_state(plain.state_dict(), torch.load(path, weights_only=True)["state_dict"])


@pytest.mark.parametrize("rewind_to", [None, "random", "state dict"])
def test_a_resumed_training_equals_an_uninterrupted_one(rewind_to, tmp_path):
    def train(seed, checkpoint=None, epochs=3):
        module = lenet300(seed)
        state = {name: value.add(seed) for name, value in module.state_dict().items()}
        arguments = {"random": {"rewind_to": "random", "seed": 4}, "state dict": {"rewind_to": state}}.get(
            rewind_to, {}
        )
        module.masks = masks
        saved = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
        fit(
            module,
            MaskedTraining(masks, **arguments),
            saved,
            max_epochs=epochs,
            enable_checkpointing=True,
            ckpt_path=checkpoint,
        )
        assert_held(module)
        return module.state_dict()

    masks = lenet300().masks
    expected = train(0)
    assert_state(train(1, tmp_path / "epoch=0.ckpt"), expected)


def test_masks_of_the_checkpoint_are_others(tmp_path):
    module = lenet300()
    fit(module, MaskedTraining(module.masks), saving(tmp_path), max_epochs=1, enable_checkpointing=True)
    other = lenet300()
    path = next(tmp_path.glob("*.ckpt"))
    with pytest.raises(ValueError, match=r"the masks of the checkpoint, but those of network.fc1.weight, network.fc2"):
        fit(other, MaskedTraining(random_masks_like(module.masks, seed=0)), ckpt_path=path)
    del other.masks["network.fc1.weight"]
    with pytest.raises(ValueError, match=r"but those of network.fc1.weight are others"):
        fit(other, MaskedTraining(other.masks), ckpt_path=path)


def test_a_checkpoint_of_a_training_without_masks(tmp_path):
    module = lenet300()
    fit(module, saving(tmp_path), max_epochs=1, enable_checkpointing=True)
    path = tmp_path / "step=3.ckpt"
    resumed = lenet300()
    initial = {name: value + 1 for name, value in resumed.state_dict().items()}
    with pytest.warns(UserWarning, match="does not rewind the weights, for this fit goes on from a checkpoint"):
        fit(resumed, MaskedTraining(resumed.masks, rewind_to=initial), Starts(), ckpt_path=path)
    assert_held(resumed)
    assert all(value.abs().mean() < 0.5 for value in resumed.state_dict().values())


def test_a_second_fit_goes_on_with_the_weights():
    module = lenet300()
    initial = copy.deepcopy(module.state_dict())
    callback, starts = MaskedTraining(module.masks, rewind_to=initial), Starts()
    trainer = fit(module, callback, starts, max_epochs=1)
    trained = copy.deepcopy(module.state_dict())
    trainer.fit_loop.max_epochs = 2
    trainer.fit(module, loader_for(module.network), loader_for(module.network, 1, seed=1))
    assert_state(starts.state, trained)
    fit(module, callback, starts)  # another trainer's
    assert_state(starts.state, masked(initial, module.masks))


# --- crashes ---------------------------------------------------------------------------------------------------------


class Crash(Callback):
    """In the middle of a step: the weights have moved, the masks were not applied yet."""

    def on_train_start(self, trainer, pl_module):
        optimizer = trainer.optimizers[0]
        step = optimizer.step

        def crash(*arguments, **settings):
            step(*arguments, **settings)
            if trainer.global_step >= 1:
                with torch.no_grad():
                    for parameter in pl_module.parameters():
                        parameter.add_(1.0)
                raise RuntimeError("crash")

        optimizer.step = crash


EXCEPTION_CHECKPOINTS = {"on exception": lambda folder: OnExceptionCheckpoint(folder, "crashed")}
if "save_on_exception" in ModelCheckpoint.__init__.__code__.co_varnames:
    EXCEPTION_CHECKPOINTS["model checkpoint"] = lambda folder: ModelCheckpoint(folder, save_on_exception=True)


@pytest.mark.parametrize("kind", EXCEPTION_CHECKPOINTS)
@pytest.mark.parametrize("order", [1, -1])
def test_a_checkpoint_made_by_an_exception(kind, order, tmp_path):
    module = lenet300()
    given = [EXCEPTION_CHECKPOINTS[kind](tmp_path), MaskedTraining(module.masks), Crash()]
    with pytest.raises(RuntimeError, match="crash"):
        fit(module, *given[::order], enable_checkpointing=True)
    (path,) = tmp_path.glob("*.ckpt")
    checkpoint = assert_saved(path, module.masks)
    assert checkpoint["global_step"] >= 1
    assert checkpoint["state_dict"]["network.fc1.weight"][module.masks["network.fc1.weight"]].mean() > 0.5


def hooks():
    return len(_global_optimizer_pre_hooks), len(_global_optimizer_post_hooks)


@pytest.mark.parametrize("event", ["setup", "on_fit_start", "on_train_batch_start", "on_before_optimizer_step", None])
def test_nothing_is_left_behind(event):
    class Crashing(Callback):
        """Crashes at an event."""

    def crash(*_, **__):
        raise RuntimeError("crash")

    if event is not None:
        setattr(Crashing, event, crash)
    module, callback = lenet300(), MaskedTraining(lenet300().masks)
    assert hooks() == (0, 0)
    trainer = fit(lenet300(), max_epochs=1)
    before = traces(trainer, module)
    if event is None:
        trainer = fit(module, callback, Crashing())
    else:
        with pytest.raises(RuntimeError, match="crash"):
            fit(module, callback, Crashing())
    assert hooks() == (0, 0)
    found = traces(trainer, module)
    assert found["hooks"] == before["hooks"]
    assert found["attributes"] == before["attributes"]
    assert found["parameter hooks"] == before["parameter hooks"]
    module.seen.clear()
    fit(module, callback)  # the same callback once more
    assert_held(module)


def test_a_copy_in_the_middle_of_a_training():
    class Copying(Callback):
        def on_train_batch_end(self, *_):
            copies.extend([copy.deepcopy(callback), pickle.loads(pickle.dumps(callback))])

    copies = []
    module = lenet300()
    callback = MaskedTraining(module.masks)
    fit(module, callback, Copying())
    assert hooks() == (0, 0)
    for each in copies:
        assert_state(each.masks, module.masks)
    other = lenet300()
    fit(other, copies[0])
    assert_held(other)


def test_the_masks_are_those_that_were_given():
    module = lenet300()
    given = {name: mask.clone() for name, mask in module.masks.items()}
    callback = MaskedTraining(given)
    for mask in given.values():
        mask.fill_(True)
    fit(module, callback)
    assert_held(module)


# --- refused ---------------------------------------------------------------------------------------------------------

MASK = torch.ones(2, 2, dtype=torch.bool)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"masks": {}}, ValueError, "at least one mask but got none"),
        ({"masks": None}, TypeError, "`masks` to map parameter names to bool tensors but got NoneType"),
        ({"masks": {"weight": MASK.float()}}, TypeError, "bool tensors but got torch.float32 for 'weight'"),
        ({"masks": "missing.pt"}, ValueError, "`masks` to be the path of a file but got 'missing.pt'"),
        ({"rewind_to": "initial.ckpt"}, ValueError, "`rewind_to` to be the path of a file but got 'initial.ckpt'"),
        ({"rewind_to": 3}, TypeError, "None, 'random', a state dict or a path but got int"),
        ({"rewind_to": "random"}, ValueError, "`seed` to be an integer for rewind_to='random' but got None"),
        ({"rewind_to": "random", "seed": 0.5}, TypeError, "`seed` to be an integer but got 0.5"),
        ({"seed": 1}, ValueError, "`seed` with rewind_to='random' alone but got seed=1"),
        ({"rewind_to": {}, "seed": 1}, ValueError, "`seed` with rewind_to='random' alone but got seed=1"),
    ],
)
def test_arguments(arguments, error, message):
    with pytest.raises(error) as raised:
        MaskedTraining(**{"masks": {"weight": MASK}, **arguments})
    assert message in str(raised.value)


FAULTS = {
    "name of a mask": (
        {"fc1.weight": MASK},
        {},
        "to name parameters of Pruned but got 'fc1.weight'. Its parameters are",
    ),
    "shape of a mask": ({"network.fc1.weight": MASK}, {}, r"the parameter's shape \(300, 784\) but got \(2, 2\)"),
    "lacks": (None, {"rewind_to": {}}, "state dict of Pruned, but it lacks network.fc1.weight, network.fc1.bias"),
    "inner": (None, {"rewind_to": NETWORKS["lenet300"]().state_dict()}, r"bias; Pruned lacks fc1.weight, fc1.bias"),
    "shape": (
        None,
        {"rewind_to": Pruned(NETWORKS["lenet300"](pixels=9)).state_dict()},
        r"but network.fc1.weight has shape \(300, 9\), not \(300, 784\)",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_what_does_not_fit_the_module(name):
    """An error before anything is changed."""
    masks, arguments, message = FAULTS[name]
    module = lenet300()
    before = copy.deepcopy(module.state_dict())
    with pytest.raises(ValueError, match=message):
        fit(module, MaskedTraining(masks or module.masks, **arguments))
    assert_state(module.state_dict(), before)
    assert hooks() == (0, 0)


def test_a_file_that_holds_something_else(tmp_path):
    path = tmp_path / "numbers.pt"
    torch.save([1, 2], path)
    with pytest.raises(TypeError, match="but got list"):
        MaskedTraining(path)
    with pytest.raises(ValueError, match=r"numbers.pt' to hold a state dict or a checkpoint but got something else"):
        fit(lenet300(), MaskedTraining(lenet300().masks, rewind_to=path))


@pytest.mark.parametrize("name", ["FSDPStrategy", "DeepSpeedStrategy"])
@pytest.mark.parametrize("is_derived", [False, True])
def test_sharded_weights_are_refused(name, is_derived):
    strategy = type(name, (), {})
    strategy = type("Own", (strategy,), {}) if is_derived else strategy
    message = rf"MaskedTraining cannot keep weights at 0 that {strategy.__name__} shards .* DDPStrategy\(\)"
    with pytest.raises(NotImplementedError, match=message):
        MaskedTraining({"weight": MASK}).setup(SimpleNamespace(strategy=strategy()), None, "fit")


# --- LightningCLI ----------------------------------------------------------------------------------------------------

CONFIGURATION = """
trainer:
  max_epochs: 1
  accelerator: cpu
  logger: false
  enable_checkpointing: false
  enable_progress_bar: false
  enable_model_summary: false
  callbacks:
    - class_path: lightning_psp.pruning.MaskedTraining
      init_args: {masks: MASKS, ARGUMENTS}
"""


class LeNet300(Pruned):
    def __init__(self):
        super().__init__(NETWORKS["lenet300"]())
        masks_for(self)


class Data(LightningDataModule):
    def train_dataloader(self):
        return loader_for(NETWORKS["lenet300"]())

    def val_dataloader(self):
        return loader_for(NETWORKS["lenet300"](), 1)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("kind", ["random", "path", "none"])
def test_configuration_of_a_command_line(kind, tmp_path, monkeypatch):
    pytest.importorskip("jsonargparse")
    monkeypatch.setattr(sys, "argv", ["train.py"])
    module = lenet300()
    torch.save(module.masks, tmp_path / "masks.pt")
    torch.save(module.state_dict(), tmp_path / "initial.pt")
    arguments = {
        "random": "rewind_to: random, seed: 3",
        "path": f"rewind_to: {tmp_path / 'initial.pt'}",
        "none": "rewind_to: null",
    }[kind]
    text = CONFIGURATION.replace("MASKS", str(tmp_path / "masks.pt")).replace("ARGUMENTS", arguments)
    path = tmp_path / "configuration.yaml"
    path.write_text(text)
    settings = {"save_config_callback": None, "seed_everything_default": 0}
    cli = LightningCLI(LeNet300, Data, args=["fit", "--config", str(path)], **settings)
    (callback,) = (each for each in cli.trainer.callbacks if isinstance(each, MaskedTraining))
    assert_state(callback.masks, module.masks)
    assert str(callback.rewind_to) == {"path": str(tmp_path / "initial.pt"), "none": "None"}.get(kind, kind)
    assert callback.seed == (3 if kind == "random" else None)
    for name, weight in effective_weights(cli.model).items():
        assert (weight[~module.masks[name]] == 0).all()
