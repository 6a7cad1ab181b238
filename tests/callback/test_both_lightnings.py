"""The callback under `lightning.pytorch` and under the package `pytorch_lightning`, in one process.

`test_one_lightning` runs these tests where only one of the two is installed.
"""

import copy
import csv
import importlib
from contextlib import nullcontext
from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest
import torch

from lightning_psp import PSPCallback
from lightning_psp.callback.trainer_state import refuse_training
from tests.support.command_line import train_by_configuration
from tests.support.either_lightning import LAYERS, NAMES, check, classifier_of, loader, quiet_trainer
from tests.support.processes.forked import printed_by

OTHER = dict(zip(NAMES, reversed(NAMES), strict=True))

pytestmark = [
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
    # Lightning calls what this version of jsonargparse deprecates.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


@pytest.fixture(params=NAMES)
def name(request):
    """The package that a test uses."""
    pytest.importorskip(request.param)
    return request.param


@pytest.fixture
def both():
    """Both are installed."""
    for each in NAMES:
        pytest.importorskip(each)


def submodule(name, path):
    return importlib.import_module(f"{name}.{path}")


# --- a training ------------------------------------------------------------------------------------------------------


def test_gradients_and_values(name):
    module = classifier_of(name)()
    callback = PSPCallback(lam=0.3)
    trainer = quiet_trainer(name, callback, max_epochs=2)
    trainer.fit(module, loader(), loader(1))
    check(module, steps=6)
    stages = [f"psp_z2_{stage}/{layer}" for stage in ("train", "val") for layer in LAYERS]
    steps = {"psp/lam", "psp/penalty", "psp/penalty_share", "psp/z2"}
    expected = {*steps, "psp/z2_train", "psp/z2_val", "psp/entropy_val", *stages}
    assert expected <= set(trainer.callback_metrics)
    assert isinstance(callback, importlib.import_module(name).Callback)
    assert not [step for step in trainer.strategy.__dict__ if step.endswith("_step")]


def test_step_values_are_in_the_row_of_the_loss(name, tmp_path):
    logger = submodule(name, "loggers").CSVLogger(tmp_path)
    trainer = quiet_trainer(name, PSPCallback(), logger=logger, log_every_n_steps=1)
    trainer.fit(classifier_of(name)(), loader(), loader(1))
    with open(tmp_path / "lightning_logs" / "version_0" / "metrics.csv") as file:
        rows = [row for row in csv.DictReader(file) if row["psp/lam"] or row["loss"]]
    assert len(rows) == 3
    assert all(row[key] for row in rows for key in ("psp/lam", "psp/penalty", "psp/z2", "loss", "epoch"))


def test_one_callback_in_trainers_of_both(both):
    callback = PSPCallback(lam=0.3)
    for each in (*NAMES, *NAMES):
        module = classifier_of(each)()
        quiet_trainer(each, callback).fit(module, loader(), loader(1))
        check(module, steps=3)
        assert isinstance(callback, importlib.import_module(each).Callback)


def test_a_crash_leaves_nothing_behind(name):
    class Crash(classifier_of(name)):
        def on_after_backward(self):
            raise RuntimeError("crash")

    trainer = quiet_trainer(name, PSPCallback())
    with pytest.raises(RuntimeError, match="crash"):
        trainer.fit(Crash(), loader(), loader(1))
    assert not [step for step in trainer.strategy.__dict__ if step.endswith("_step")]


@pytest.mark.parametrize("resumed_in_other", [False, True])
def test_a_checkpoint_of_one_goes_on_in_the_other(name, resumed_in_other, tmp_path):
    second = OTHER[name] if resumed_in_other else name
    pytest.importorskip(second)

    def train(package, epochs, checkpoint=None):
        torch.manual_seed(0)
        saving = submodule(package, "callbacks").ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
        module, callback = classifier_of(package)().double(), PSPCallback(lam=0.3, schedule="learning_rate")
        trainer = quiet_trainer(package, callback, saving, max_epochs=epochs, enable_checkpointing=True)
        trainer.fit(module, loader(), loader(1), ckpt_path=checkpoint)
        return module.state_dict(), callback.state_dict()

    weights, state = train(name, 2)
    saved = torch.load(tmp_path / "epoch=1.ckpt", weights_only=True)
    assert saved["callbacks"]["PSPCallback"] == state
    resumed_weights, resumed_state = train(second, 2, tmp_path / "epoch=0.ckpt")
    assert resumed_state == state
    assert all(torch.equal(weights[each], resumed_weights[each]) for each in weights)


def test_a_copy_in_the_middle_of_a_training(name):
    class Copying(submodule(name, "callbacks").Callback):
        def on_train_batch_end(self, *args):
            copies.append(copy.deepcopy(callback).state_dict())
            states.append(callback.state_dict())

    copies, states = [], []
    callback, module = PSPCallback(lam=0.3), classifier_of(name)()
    quiet_trainer(name, callback, Copying()).fit(module, loader(), loader(1))
    check(module, steps=3)
    assert copies == states


@pytest.mark.parametrize("size", [1, 2])
def test_tensor_parallelism_is_refused(name, size):
    strategy = submodule(name, "strategies").ModelParallelStrategy(1, size)
    strategy._device_mesh = MagicMock(mesh_dim_names=("data_parallel", "tensor_parallel"))
    strategy._device_mesh.__getitem__("tensor_parallel").size.return_value = size
    trainer = SimpleNamespace(strategy=strategy, world_size=size)
    is_refused = pytest.raises(NotImplementedError, match="tensor_parallel_size=1")
    with is_refused if size > 1 else nullcontext():
        refuse_training(trainer, classifier_of(name)(), 0.1, 0.0)


# --- imports ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_first", [True, False])
def test_one_is_not_imported_because_of_the_other(name, is_first, tmp_path):
    code = f"""
        if {is_first}:
            import {name}
        import sys
        import lightning_psp.analysis, lightning_psp.metrics
        from lightning_psp import PSPCallback
        from tests.support.either_lightning import check, classifier_of, loader, quiet_trainer

        def imported():
            return [name for name in ("lightning", "pytorch_lightning") if name in sys.modules]

        print(*imported())
        module = classifier_of({name!r})()
        quiet_trainer({name!r}, PSPCallback(lam=0.3)).fit(module, loader(), loader(1))
        check(module, steps=3)
        print(*imported())
    """
    package = name.partition(".")[0]
    assert printed_by(code, tmp_path) == [package] * (1 + is_first)


def test_the_class_is_a_callback_of_whichever_is_imported_later(both, tmp_path):
    """A subclass, an instance and a pickled instance that are older, too."""
    code = """
        import inspect, pickle
        from lightning_psp import PSPCallback
        class Mine(PSPCallback): pass
        older = [Mine(), pickle.loads(pickle.dumps(PSPCallback(lam=0.25)))]
        import pytorch_lightning
        print(*[isinstance(each, pytorch_lightning.Callback) for each in older])
        import lightning.pytorch
        print(*[isinstance(each, lightning.pytorch.Callback) for each in older])
        print(issubclass(PSPCallback, pytorch_lightning.Callback), older[1].lam, older[0].state_key.split()[0])
        for package in (lightning.pytorch, pytorch_lightning):
            loader = package.__spec__.loader
            print(type(loader).__name__, "exec_module" in vars(loader), len(inspect.getsource(package)) > 99)
    """
    expected = ["True"] * 5 + ["0.25", "Mine"] + ["SourceFileLoader", "False", "True"] * 2
    assert printed_by(code, tmp_path) == expected


def test_without_any_lightning_the_import_says_what_to_install(tmp_path):
    code = """
        import importlib.util
        found = importlib.util.find_spec
        importlib.util.find_spec = lambda name, *rest: None if "lightning" in name else found(name, *rest)
        try:
            import lightning_psp
        except ImportError as error:
            print(error)
    """
    message = " ".join(printed_by(code, tmp_path))
    assert "pip install lightning" in message
    assert "pip install pytorch-lightning" in message


# --- a module of one in a Trainer of the other -----------------------------------------------------------------------


@pytest.mark.parametrize("call", ["fit", "validate"])
def test_a_module_of_the_other_is_an_error(name, both, call):
    trainer = quiet_trainer(name, PSPCallback())
    with pytest.raises(TypeError, match="`LightningModule`"):
        getattr(trainer, call)(classifier_of(OTHER[name])(), loader(1))


def test_our_own_error_names_both(name, both):
    """Where the trainer has let the module pass."""
    module = classifier_of(OTHER[name])()
    with pytest.raises(TypeError, match=rf"Classifier is a `{OTHER[name]}.LightningModule`.* `{name}.Trainer`"):
        PSPCallback().setup(quiet_trainer(name), module, "fit")


# --- LightningCLI ----------------------------------------------------------------------------------------------------


def test_configuration_of_a_command_line(name, tmp_path):
    """In one process with that of the other."""
    pytest.importorskip("jsonargparse")
    callback = """
        class_path: lightning_psp.PSPCallback
        init_args: {lam: 0.3, exclude: [second], activations: [torch.sin], schedule: cosine}
    """
    trainer, found = train_by_configuration(name, classifier_of(name), (loader(), loader(1)), callback, tmp_path)
    assert isinstance(found, PSPCallback)
    assert (found.lam, found.selection.exclude) == (0.3, ("second",))
    assert "psp/z2_val" in trainer.callback_metrics


def test_arguments_on_a_command_line_with_imports_in_order_of_name(name, tmp_path):
    """The callback is imported before Lightning; its class is used before there is an instance."""
    pytest.importorskip("jsonargparse")
    code = f"""
        from lightning_psp import PSPCallback
        from {name} import LightningDataModule
        from {name}.cli import LightningCLI
        from tests.support.either_lightning import classifier_of, loader

        class CLI(LightningCLI):
            def add_arguments_to_parser(self, parser):
                parser.add_lightning_class_args(PSPCallback, "psp")

        class Data(LightningDataModule):
            def train_dataloader(self):
                return loader()

        settings = {{"save_config_callback": None, "seed_everything_default": 0}}
        cli = CLI(classifier_of({name!r}), Data, args=["--psp.lam", "0.2"], run=False, **settings)
        print(*[each.lam for each in cli.trainer.callbacks if isinstance(each, PSPCallback)])
    """
    assert printed_by(code, tmp_path)[-1] == "0.2"
