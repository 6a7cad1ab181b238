"""Names of autograd and of modes that a version of torch may lack: another way, or an error that says so."""

import importlib.util

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from lightning_psp import PSPCallback, record_potentials
from lightning_psp.capture import checkpoints
from lightning_psp.torch_private import autograd
from tests.support.small import FEATURES, Classifier, loader, quiet_trainer


def loaded_anew():
    spec = importlib.util.find_spec("lightning_psp.torch_private.autograd")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_this_version_has_all_names():
    module = loaded_anew()
    names = ("_DisableTorchFunction", "_len_torch_dispatch_stack", "_disable_current_modes")
    assert all(getattr(module, name) is not None for name in names)
    assert module.CHECKPOINT_GENERATORS
    assert module._current_graph_task_id is torch._C._current_graph_task_id


def test_whether_a_backward_pass_runs_is_told_or_said_not_to_be(monkeypatch):
    monkeypatch.delattr(torch._C, "_current_graph_task_id")
    module = loaded_anew()
    with pytest.raises(NotImplementedError, match=r"no `torch\._C\._current_graph_task_id`, without which a recomput"):
        module.in_backward()
    monkeypatch.setattr(autograd, "_current_graph_task_id", module._current_graph_task_id)
    network = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    with pytest.raises(NotImplementedError, match="a recomputation cannot be told"), record_potentials(network):
        network(torch.ones(1, 2))


class Checkpointed(Classifier):
    """The same with the first of its hidden layers inside a checkpoint."""

    def forward(self, features):
        def first(features):
            return self.second(functional.silu(self.first(features)))

        return self.third(self.relu(checkpoint(first, features, use_reentrant=False)))


def gradients(kind):
    torch.manual_seed(0)
    module = kind()
    trainer = quiet_trainer(PSPCallback(lam=0.3))
    trainer.fit(module, loader(2), loader(1))
    return module.gradients


def test_without_the_generator_of_checkpoints_potentials_are_held(monkeypatch):
    expected = gradients(Classifier)
    saved = []
    original = checkpoints._save_for_backward
    monkeypatch.setattr(checkpoints, "_save_for_backward", lambda z: saved.append(z.shape) or original(z))
    gradients(Checkpointed)
    assert saved  # that there is one is what the rest does without
    saved.clear()
    monkeypatch.setattr(checkpoints, "CHECKPOINT_GENERATORS", [])
    monkeypatch.setattr(checkpoints, "_replaced", checkpoints._Replaced())
    found = gradients(Checkpointed)
    assert not saved
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-14)


class Counts(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.calls = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.calls += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("is_missing", [False, True])
def test_without_the_number_of_modes_they_are_left_all_the_same(is_missing, monkeypatch):
    if is_missing:
        monkeypatch.setattr(autograd, "_len_torch_dispatch_stack", None)
    with Counts() as mode:
        torch.ones(1)
        assert mode.calls == 1
        with autograd.without_dispatch_modes():
            torch.ones(1)
        assert mode.calls == 1
    with autograd.without_dispatch_modes():
        assert torch.ones(1).item() == 1


def test_modes_that_cannot_be_left_are_an_error_in_checkpoints_alone(monkeypatch):
    monkeypatch.setattr(autograd, "_disable_current_modes", None)
    gradients(Classifier)
    with pytest.raises(NotImplementedError, match=r"_disable_current_modes`, without which .* Train without check"):
        gradients(Checkpointed)


class Sees(TorchFunctionMode):
    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.seen.append(func)
        return func(*args, **(kwargs or {}))


def test_functions_run_unwatched_or_the_entropy_term_is_refused(monkeypatch):
    with Sees() as mode:
        with autograd.unwatched():
            torch.sigmoid(torch.zeros(1))
        assert torch.sigmoid not in mode.seen
    monkeypatch.setattr(autograd, "_DisableTorchFunction", None)
    gradients(Classifier)  # which has no such term
    module = Classifier()
    trainer = quiet_trainer(PSPCallback(entropy_weight=-0.1))
    with pytest.raises(NotImplementedError, match="DisableTorchFunction`, without which there is no entropy term"):
        trainer.fit(module, loader(1), loader(1))


def test_hooks_are_shown_or_said_not_to_be():
    tensor = torch.ones(FEATURES, requires_grad=True)
    handle = tensor.register_hook(torch.neg)
    assert [*autograd.hooks_of(tensor)] == [handle.id]
    with pytest.raises(NotImplementedError, match=r"no `Tensor\._backward_hooks`"):
        autograd.hooks_of(object())


class Cube(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx, gradient):
        return 3 * ctx.saved_tensors[0] ** 2 * gradient


def test_the_function_of_a_node_is_told_or_its_class():
    node = Cube.apply(torch.ones(1, requires_grad=True)).grad_fn
    assert autograd.function_of(node) is Cube

    class Node:
        pass

    assert autograd.function_of(Node()) is Node


class Twice(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    def backward(ctx, gradient):
        return 2 * gradient


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_the_node_of_a_custom_function_is_followed_when_its_tensor_is_gone(mode):
    autograd._nodes_of_functions_hold_their_graph.cache_clear()
    x = torch.ones(1, requires_grad=True)
    y = Twice.apply(x)
    node = y.grad_fn
    with mode():
        holder = autograd.holder_of(y)
    del y
    assert node.next_functions[0][0].variable is x
    del holder
