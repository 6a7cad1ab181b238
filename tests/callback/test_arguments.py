"""Bad arguments are refused with what was got and what is allowed; patterns that match nothing list the layers."""

from copy import copy
from inspect import signature

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from lightning_psp import PSPCallback, psp_penalty, record_potentials
from lightning_psp.schedules import Cosine, Linear, ProportionalToLearningRate, WarmUp
from tests.support.small import Classifier, loader, quiet_trainer

pytestmark = pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no")


@pytest.mark.parametrize(
    ("arguments", "error", "parts"),
    [
        ({"lam": -1.0}, ValueError, ("lam", "-1.0", "at least 0")),
        ({"lam": float("nan")}, ValueError, ("lam", "nan")),
        ({"lam": float("inf")}, ValueError, ("lam", "inf")),
        ({"lam": "big"}, ValueError, ("lam", "'big'", "number of at least 0 or 'auto'")),
        ({"lam": True}, TypeError, ("lam", "'auto'", "True")),
        ({"lam": None}, TypeError, ("lam", "'auto'", "None")),
        ({"lam": torch.tensor(0.1)}, TypeError, ("lam", "tensor(0.1", "lam.item()")),
        ({"schedule": "exponential"}, ValueError, ("schedule", "exponential", "cosine")),
        ({"schedule": 3}, TypeError, ("schedule", "3")),
        (
            {"schedule": WarmUp},
            TypeError,
            ("a `Schedule`, such as `WarmUp(steps=100)`, the name of one, or None but got",),
        ),
        ({"entropy": None}, TypeError, ("such as (1, 2), or () for none, but got None",)),
        ({"layer_lam": {"conv*": -2}}, ValueError, ("layer_lam", "conv*", "-2")),
        ({"layer_lam": {1: 2.0}}, TypeError, ("layer_lam", "patterns", "1")),
        ({"layer_lam": ["conv*"]}, TypeError, ("layer_lam", "conv*")),
        ({"include": "conv*"}, TypeError, ("include", "conv*", "sequence")),
        ({"include": ()}, ValueError, ("include",)),
        ({"exclude": [1]}, TypeError, ("exclude", "1")),
        ({"output": "yes"}, TypeError, ("output", "yes")),
        ({"reduction": "median"}, ValueError, ("reduction", "median", "squared_mean")),
        ({"activations": ("torch.no_such_function",)}, ValueError, ("activations", "torch.no_such_function")),
        ({"activations": (lambda z: z,)}, TypeError, ("activations", "module class")),
        ({"activations": (nn.ReLU(),)}, TypeError, ("activations", "ReLU()")),
        ({"activations": nn.SiLU}, TypeError, ("`activations` to be a sequence", "SiLU")),
        ({"activations": "torch.sin"}, TypeError, ("`activations` to be a sequence", "but got 'torch.sin'")),
        ({"log_layers": 1}, TypeError, ("log_layers", "1")),
        ({"histograms": None}, TypeError, ("histograms", "None")),
    ],
)
def test_callback_refuses(arguments, error, parts):
    with pytest.raises(error) as raised:
        PSPCallback(**arguments)
    for part in parts:
        assert part in str(raised.value)


@pytest.mark.parametrize(
    ("schedule", "name", "value", "error"),
    [
        (WarmUp, "steps", 0, ValueError),
        (WarmUp, "steps", 1.5, TypeError),
        (Linear, "end", -1, ValueError),
        (Linear, "end", "0", TypeError),
        (Cosine, "end", float("inf"), ValueError),
        (ProportionalToLearningRate, "reference", 0.0, ValueError),
        (ProportionalToLearningRate, "reference", -0.1, ValueError),
    ],
)
def test_schedules_refuse(schedule, name, value, error):
    with pytest.raises(error, match=f"`{name}` to be .* but got {value!r}"):
        schedule(**{name: value})


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64, np.int64])
def test_numbers_of_numpy_will_do(kind):
    callback = PSPCallback(kind(1), entropy_temperature=kind(2))
    assert (callback.lam, type(callback.lam)) == (1.0, float)
    with pytest.raises(ValueError, match="`lam` to be a finite number of at least 0 but got"):
        callback.lam = kind(-1)
    with pytest.raises(TypeError, match="`lam` to be a number of at least 0 or 'auto' but got"):
        callback.lam = np.array([kind(1)])


CHANGEABLE = {"lam": 0.5, "schedule": Cosine(), "histograms": True}


@pytest.mark.parametrize("argument", [name for name in signature(PSPCallback).parameters if name not in CHANGEABLE])
def test_an_argument_that_is_read_once_cannot_be_changed(argument):
    callback = PSPCallback()
    before = repr(callback)
    with pytest.raises(AttributeError, match=rf"a new one, PSPCallback\({argument}=1\)\. `lam`, `schedule` and"):
        setattr(callback, argument, 1)
    assert repr(callback) == before


def test_arguments_that_are_read_again_can_be_changed_and_show():
    callback = PSPCallback()
    copied = copy(callback)
    for argument, value in CHANGEABLE.items():
        setattr(callback, argument, value)
        assert getattr(callback, argument) == value
        assert f"{argument}={value!r}" in repr(callback)
        assert f"{argument}={value!r}" not in repr(copied)
    callback.schedule = "warmup"
    assert callback.schedule == WarmUp()
    with pytest.raises(ValueError, match="schedule"):
        callback.schedule = "late"
    with pytest.raises(TypeError, match="histograms"):
        callback.histograms = 1


def test_unknown_argument():
    with pytest.raises(TypeError, match="entropies"):
        PSPCallback(entropies="auto")


@pytest.mark.parametrize("argument", ["include", "exclude", "layer_lam"])
def test_a_pattern_that_matches_no_layer_lists_the_layers(argument):
    value = {"typo*": 2.0} if argument == "layer_lam" else ("typo*",)
    trainer = quiet_trainer(PSPCallback(**{argument: value}))
    with pytest.raises(ValueError, match=rf"'typo\*' of argument `{argument}`.*first, second, third"):
        trainer.fit(Classifier(), loader())
    assert trainer.global_step == 0


@pytest.mark.parametrize("argument", ["include", "exclude"])
def test_a_pattern_that_matches_no_layer_outside_lightning(argument):
    module, patterns = Classifier(), {argument: ("typo",)}
    with pytest.raises(ValueError, match=r"'typo'.*first, second, third"), record_potentials(module, **patterns):
        module(torch.randn(2, 6))


def test_a_module_that_is_not_called():
    with pytest.raises(ValueError, match="No potential was found"), record_potentials(Classifier()):
        pass


class NoPotential(Classifier):
    def training_step(self, batch, batch_index):
        return sum(parameter.square().sum() for parameter in self.parameters())


def test_a_model_without_potentials():
    trainer = quiet_trainer(PSPCallback())
    with pytest.raises(ValueError, match="No potential was found"):
        trainer.fit(NoPotential(), loader())
    assert trainer.global_step == 0


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
def test_scripted_modules_are_refused():
    compiled = torch.jit.script(nn.Sequential(nn.Linear(2, 2), nn.ReLU()))
    with pytest.raises(NotImplementedError, match="compiled"), record_potentials(compiled):
        pass
    network = nn.Sequential(nn.Linear(2, 2), compiled)
    with pytest.raises(NotImplementedError, match="'1'"), record_potentials(network):
        pass


@pytest.mark.parametrize(
    ("potentials", "error", "part"),
    [
        ({}, ValueError, "at least one layer"),
        ({"fc": torch.ones(2, 3, dtype=torch.long)}, TypeError, "'fc'"),
        ({"fc": torch.ones(2, 3, dtype=torch.complex64)}, TypeError, "'fc'"),
        ({"fc": torch.ones(0, 3)}, ValueError, "'fc'"),
        (torch.ones(2, 3), TypeError, "`with record_potentials.* as potentials`, but got Tensor"),
        (nn.Linear(2, 3), TypeError, "`with record_potentials.* as potentials`, but got Linear"),
        ([torch.ones(2, 3)], TypeError, "`with record_potentials.* as potentials`, but got list"),
        (record_potentials(nn.Linear(2, 3)), TypeError, "as potentials`, but got a block that was not entered"),
        ({"fc": [torch.ones(2, 3)]}, TypeError, "'fc' to be a tensor but got list"),
    ],
)
def test_penalty_refuses(potentials, error, part):
    with pytest.raises(error, match=part):
        psp_penalty(potentials)


def test_penalty_refuses_an_unknown_reduction():
    with pytest.raises(ValueError, match=r"reduction.*median"):
        psp_penalty({"fc": torch.ones(2, 3)}, "median")


def test_record_refuses_what_is_no_module():
    with pytest.raises(TypeError, match=r"module.*function"), record_potentials(functional.relu):
        pass
