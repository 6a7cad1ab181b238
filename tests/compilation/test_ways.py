"""The ways to compile a network or a step: gradients of a training without compilation, and no compilation twice."""

import copy

import pytest
import torch
from torch.nn import functional

from lightning_psp import PSPCallback
from lightning_psp.gradient import arriving
from tests.support.compiled import (
    COMPILED,
    LAM,
    WAYS,
    Model,
    assert_same,
    assert_same_gradients,
    batches,
    blocks_by_method,
    compare,
    forward_of_network,
    graphs,
    nested,
    network,
    network_by_method,
    step,
    train,
    whole_module,
)
from tests.support.small import quiet_trainer

pytestmark = COMPILED


def pair():
    """A module and a copy of it, the first of which is compiled."""
    torch.manual_seed(0)
    module = Model().double()
    other = copy.deepcopy(module)
    network(module)
    return module, other


@pytest.mark.parametrize(
    ("way", "is_full"),
    [
        pytest.param(
            way, is_full, marks=() if is_full and way not in (nested, forward_of_network) else pytest.mark.slow
        )
        for way in WAYS
        for is_full in (True, False)
    ],
)
def test_every_way_to_compile(way, is_full):
    trained = compare(Model, lambda module: way(module, fullgraph=is_full))
    assert len([key for key in trained.values if key.startswith("psp_z2_train/")]) == 5
    assert trained.graphs == 1


def test_where_the_gradient_at_the_loss_is_not_read(monkeypatch):
    """As on an accelerator, which the step would have to wait for."""
    monkeypatch.setattr(arriving, "read_on_processor", lambda total: total)
    compare(Model, network_by_method, lambda: PSPCallback(lam=LAM, layer_lam={"*blocks.1": 0.5 * LAM}))


@pytest.mark.parametrize("way", [pytest.param(network, marks=pytest.mark.slow), network_by_method])
def test_compiled_in_configure_model(way):
    class Late(Model):
        def configure_model(self):
            way(self)

    trained = []
    for kind in (Model, Late):
        torch.manual_seed(0)
        trained.append(train(kind().double(), PSPCallback(lam=LAM)))
    assert trained[1].graphs == 1
    assert_same(trained[1], trained[0])


@pytest.mark.parametrize("way", [network, *(pytest.param(w, marks=pytest.mark.slow) for w in (whole_module, step))])
def test_inductor(way):
    assert compare(Model, lambda module: way(module, backend="inductor")).graphs == 1


def test_lam_accumulation_and_validation_compile_nothing_again():
    trained = compare(
        Model,
        network,
        lambda: PSPCallback(lam=LAM, schedule="cosine"),
        data=batches(5),
        validation=batches(2),
        max_epochs=3,
        accumulate_grad_batches=2,
    )
    assert trained.graphs == 3  # of training, of validation, and of the sanity check, where nothing is watched


def test_fits_after_one_another_with_other_settings():
    """A fit without the callback is not penalised by code that was compiled with it."""
    module, other = pair()
    compiled = []
    for settings in (
        {"lam": 0.3},
        None,
        {"lam": 0.9},
        None,
        {"lam": 0.0},
        {"lam": 0.3, "include": ["*head"]},
        {"lam": 0.3, "reduction": "sum"},
        {"lam": 0.3, "activations": [torch.sin]},
        {"lam": 0.3},
    ):
        made = [train(m, settings and PSPCallback(**settings)) for m in (module, other)]
        assert_same(*made)
        compiled.append(made[0].graphs)
        module.gradients.clear()
        other.gradients.clear()
    assert compiled == [1, 1, 0, 0, 0, 0, 1, 1, 0]


def test_one_callback_for_several_fits():
    module, other = pair()
    callbacks = [PSPCallback(lam=LAM), PSPCallback(lam=LAM)]
    for number in range(2):
        made = [train(m, callback) for m, callback in zip((module, other), callbacks, strict=True)]
        assert_same(*made)
        assert made[0].graphs == (not number)


def test_one_compiled_network_in_two_modules_has_the_names_of_each():
    class Other(Model):
        def __init__(self, backbone):
            super().__init__(torch.nn.Identity())
            self.backbone = backbone

        def forward(self, features):
            return self.backbone(features)

    module, _ = pair()
    train(module, PSPCallback(lam=LAM))
    trained = train(Other(module.network).double(), PSPCallback(lam=LAM))
    assert trained.graphs == 0
    layers = {key.partition("/")[2] for key in trained.values if key.startswith("psp_z2_train/")}
    assert layers == {f"backbone.{name}" for name in ("embed", "blocks.0.act", "blocks.0", "blocks.1", "head")}


@pytest.mark.parametrize(
    ("options", "reduction"),
    [({}, "mean"), ({"dynamic": True}, "sum"), ({"dynamic": True}, "squared_mean")],
)
def test_a_smaller_last_batch(options, reduction):
    trained = compare(
        Model,
        lambda module: network(module, **options),
        lambda: PSPCallback(lam=LAM, reduction=reduction),
        data=batches(3, last=3),
    )
    assert trained.graphs == (1 if options else 2)


@pytest.mark.parametrize("stance", [pytest.param("force_eager", marks=pytest.mark.slow), "eager_on_recompile"])
def test_stances(stance):
    module, other = pair()
    for m in (module, other):
        train(m)
        m.gradients.clear()
    with torch.compiler.set_stance(stance):
        made = [train(m, PSPCallback(lam=LAM)) for m in (module, other)]
    assert made[0].graphs == 0
    assert_same(*made)


@pytest.mark.slow
def test_errors_of_the_compiler_may_be_suppressed():
    with torch._dynamo.config.patch(suppress_errors=True):
        compare(Model, network)


def single(module, precision, tolerance, **options):
    """Trains in less than float64."""
    data = torch.utils.data.DataLoader([(x.float(), y) for x, y in batches(2)], batch_size=None)
    other = copy.deepcopy(module)
    network(module, **options)
    made = [train(m, PSPCallback(lam=LAM), data, precision=precision) for m in (module, other)]
    assert made[0].graphs > 0
    assert_same_gradients(*made, tolerance)
    for key, value in made[1].values.items():
        assert made[0].values[key] == pytest.approx(value, rel=tolerance)


def test_float32_under_inductor():
    torch.manual_seed(0)
    single(Model(), "32-true", 1e-5, backend="inductor")


@pytest.mark.slow
def test_bfloat16():
    torch.manual_seed(0)
    single(Model(), "bf16-mixed", 2e-2)


def test_a_scaler_that_changes_its_scale():
    from lightning.pytorch.plugins import MixedPrecision

    class Scaled(MixedPrecision):
        """Scales the loss by another power of two in each step, as mixed precision does."""

        class Scaler:
            number = 1

            def get_scale(self):
                return 2.0**self.number

        def __init__(self):
            super().__init__("bf16-mixed", "cpu")
            self.scaler = self.Scaler()

        def pre_backward(self, tensor, module):
            self.scaler.number += 3
            return super(MixedPrecision, self).pre_backward(tensor * self.scaler.get_scale(), module)

        def forward_context(self):
            return torch.autocast("cpu", enabled=False)

        def optimizer_step(self, optimizer, model, closure, **kwargs):
            loss = closure()
            for parameter in model.parameters():
                parameter.grad /= self.scaler.get_scale()
            optimizer.step()
            return loss

    module, other = pair()
    made = [train(m, PSPCallback(lam=LAM), batches(4), plugins=Scaled(), precision=None) for m in (module, other)]
    assert made[0].graphs == 1
    assert_same(*made)
    torch.manual_seed(0)
    plain = train(Model().double(), PSPCallback(lam=LAM), batches(4))
    first = {name: gradient / 16 for name, gradient in made[0].gradients[0].items()}
    for name, gradient in plain.gradients[0].items():
        torch.testing.assert_close(first[name], gradient, rtol=1e-8, atol=1e-12)


def test_accuracy_of_a_large_sum_under_inductor():
    class Wide(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = torch.nn.Parameter(torch.ones(()))

        def forward(self, x):
            return torch.relu(x * self.scale).mean(1, keepdim=True)

    class Large(Model):
        def training_step(self, batch, batch_index):
            self.large = 1.0 + torch.rand(16, 2**20)
            return functional.mse_loss(self.network(self.large), torch.zeros(16, 1))

    torch.manual_seed(0)
    module = Large(Wide())
    network(module, backend="inductor")
    trained = train(module, PSPCallback(lam=1e-3, output=False), batches(1), precision="32-true")
    expected = module.large.double().square().mean().item()
    assert trained.values["psp_z2_train/network.relu"] == pytest.approx(expected, rel=2e-4)


def test_crash_leaves_nothing():
    from tests.support.small import traces

    class Crash(Model):
        def training_step(self, batch, batch_index):
            self(batch[0])
            raise ValueError("crash")

    torch.manual_seed(0)
    module = Crash().double()
    blocks_by_method(module)
    trainer = quiet_trainer(PSPCallback(lam=LAM))
    before = traces(trainer, module), torch.backends.mha.get_fastpath_enabled()
    with pytest.raises(ValueError, match="crash"):
        trainer.fit(module, batches())
    assert (traces(trainer, module), torch.backends.mha.get_fastpath_enabled()) == before
    assert graphs() > 0


def test_copies_in_mid_fit():
    class Copies(Model):
        def training_step(self, batch, batch_index):
            loss = super().training_step(batch, batch_index)
            copied = copy.deepcopy(self.network)
            with torch.no_grad():
                copied(batch[0])
            return loss

    compare(Copies, network)


@pytest.mark.filterwarnings("ignore:.*needs a TensorBoardLogger")
def test_histograms_are_said_to_be_missing():
    module, _ = pair()
    with pytest.warns(UserWarning, match=r"torch.compile.*network.embed"):
        train(module, PSPCallback(lam=LAM, histograms=True))


def test_cuda_graphs_are_known():
    from lightning_psp.compilation.listening import uses_cuda_graphs

    def backend(name, config=None):
        def compile_graph(graph, inputs):
            return graph

        compile_graph.__name__ = name
        if config is not None:
            compile_graph.config = config
        return compile_graph

    cuda, cpu = [torch.device("cuda")], [torch.device("cpu")]
    assert uses_cuda_graphs(backend("inductor", {"triton.cudagraphs": True}), cuda)
    assert uses_cuda_graphs(backend("cudagraphs"), cuda)
    assert not uses_cuda_graphs(backend("inductor", {"triton.cudagraphs": True}), cpu)
    assert not uses_cuda_graphs(backend("inductor", {}), cuda)
    assert not uses_cuda_graphs(backend("aot_eager"), cuda)
