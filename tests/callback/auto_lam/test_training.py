"""A training in which λ is found is that with these λ given, in everything else; what cannot be measured is said."""

import logging
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader

from lightning_psp import PSPCallback, find_lam
from lightning_psp.callback.trainer_state import refuse_training
from tests.support.auto_lam import Given, Lams, norm
from tests.support.followed import potentials
from tests.support.rows import ByHand
from tests.support.small import BATCH, CLASSES, Classifier, loader, quiet_trainer, traces

pytestmark = [
    pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
]


def fitted(module, *callbacks, data=None, **settings):
    """The trainer, and λ of each batch."""
    lams = Lams()
    trainer = quiet_trainer(*callbacks, lams, **settings)
    trainer.fit(module, loader(12) if data is None else data)
    return trainer, lams.values


def made(kind=Classifier):
    torch.manual_seed(0)
    return kind().double()


# --- nothing else changes ---------------------------------------------------------------------------------------------


class Drawing(Classifier):
    """Dropout and a batch norm, also where they run again; a frozen layer, and one of which no gradient comes."""

    def __init__(self):
        super().__init__()
        self.again = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU(inplace=True), nn.Dropout(0.3))
        self.embedding = nn.Embedding(CLASSES, 8, sparse=True)
        self.frozen, self.unused = nn.Linear(8, 8).requires_grad_(False), nn.Linear(2, 2)
        self.register_buffer("same", torch.ones(1).expand(4))  # whose entries are one
        self.drawn, self.logged, self.grads = [], [], []

    def training_step(self, batch, batch_index):
        features, labels = batch
        hidden = functional.dropout(functional.silu(self.first(features)), 0.2)
        hidden = checkpoint(self.again, hidden, use_reentrant=False, preserve_rng_state=False)
        hidden = torch.tanh(self.frozen(hidden) + self.embedding(labels))
        loss = functional.cross_entropy(self.third(self.relu(self.second(hidden))), labels)
        self.log("loss", loss)
        return loss

    def on_before_backward(self, loss):
        self.grads.append([parameter.grad for parameter in self.parameters()])

    def on_after_backward(self):
        self.drawn.append(torch.rand(1).item())

    def on_train_batch_end(self, *args):
        self.logged.append({**self.trainer.callback_metrics, **dict(self.named_buffers())})


@pytest.mark.parametrize("settings", [{}, {"accumulate_grad_batches": 3, "max_epochs": 3}])
def test_all_else_is_that_of_a_training_with_these_numbers(settings):
    module = made(Drawing)
    _, lams = fitted(module, PSPCallback(lam="auto"), **settings)
    assert len(set(lams)) == 2
    other = made(Drawing)
    _, given = fitted(other, PSPCallback(lam=1.0, schedule=Given(lams)), **settings)
    assert given == lams
    assert module.drawn == other.drawn
    assert all(map(torch.equal, module.state_dict().values(), other.state_dict().values()))
    for found, expected in zip(module.logged, other.logged, strict=True):
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[key], expected[key]) for key in expected)


def test_gradients_are_not_written_before_the_backward_pass():
    module = made(Drawing)
    fitted(module, PSPCallback(lam="auto"))
    assert all(gradient is None for grads in module.grads for gradient in grads)


class Closures(Classifier):
    """Each step evaluates the loss several times."""

    def configure_optimizers(self):
        return torch.optim.LBFGS(self.parameters(), lr=0.1, max_iter=3)


def test_of_a_closure_that_runs_again_the_first_run_is_measured(monkeypatch):
    measured = []
    grad = torch.autograd.grad
    monkeypatch.setattr(torch.autograd, "grad", lambda *args, **kwargs: (measured.append(1), grad(*args, **kwargs))[1])
    module = made(Closures)
    _, lams = fitted(module, PSPCallback(lam="auto"))
    assert len(module.gradients) > 24
    assert len(measured) == 4  # of loss and penalty in the steps 0 and 10
    assert len(set(lams)) == 2


@pytest.mark.parametrize("settings", [{}, {"accumulate_grad_batches": 4}])
def test_a_resumed_training_equals_an_uninterrupted_one(tmp_path, settings):
    def saving():
        return ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1, save_on_train_epoch_end=True)

    def train(epochs, path=None):
        module, lams, callback = made(), Lams(), PSPCallback(lam="auto", schedule="cosine")
        settings_of = {"max_epochs": epochs, "enable_checkpointing": True, **settings}
        trainer = quiet_trainer(callback, lams, saving(), **settings_of)
        trainer.fit(module, loader(12 * settings.get("accumulate_grad_batches", 1)), ckpt_path=path)
        return module, lams.values, callback.state_dict()

    module, lams, state = train(3)
    assert len({round(lam, 12) for lam in lams}) > 3
    resumed, rest, resumed_state = train(3, tmp_path / "epoch=0.ckpt")
    assert rest == lams[-len(rest) :]
    assert 0 < len(rest) < len(lams)
    assert resumed_state == state
    assert all(map(torch.equal, module.parameters(), resumed.parameters()))


def test_the_state_loads_without_code(tmp_path):
    saving = ModelCheckpoint(tmp_path, filename="last")
    quiet_trainer(PSPCallback(lam="auto"), saving, enable_checkpointing=True).fit(made(), loader(3))
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)["callbacks"]["PSPCallback"]["auto_lam"]
    assert saved["step"] == 0
    assert 0.3 * saved["means"][0] / saved["means"][1] == saved["probe"] > 0


def test_a_checkpoint_of_before_is_measured_anew():
    callback = PSPCallback(lam="auto")
    state = callback.state_dict()
    del state["auto_lam"]
    callback.load_state_dict(state)
    assert fitted(made(), callback)[1] == fitted(made(), PSPCallback(lam="auto"))[1]


def test_each_fit_measures_anew():
    callback = PSPCallback(lam="auto")
    fitted(made(), callback)
    _, again = fitted(made(), callback)
    _, expected = fitted(made(), PSPCallback(lam="auto"))
    assert again == expected


# --- measurements that are left out -----------------------------------------------------------------------------------


class Factors(Classifier):
    """Multiplies the loss of each step by a number; keeps the gradients that λ is made of."""

    factors: tuple[float, ...] = ()

    def __init__(self):
        super().__init__()
        self.norms = []

    def training_step(self, batch, batch_index):
        loss = super().training_step(batch, batch_index)
        factor = self.factors[batch_index] if batch_index < len(self.factors) else 1.0
        layers = potentials(self, batch[0])
        penalty = sum(z.square().mean() for z in layers) / 3
        trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
        self.norms.append(
            [norm(torch.autograd.grad(value, trained, retain_graph=True)) for value in (loss * factor, penalty)]
        )
        return loss * factor

    def on_before_optimizer_step(self, optimizer):
        for parameter in self.parameters():
            parameter.grad = None


def fit_with(factors, **settings):
    module = made(type("Module", (Factors,), {"factors": factors}))
    return module, fitted(module, PSPCallback(lam="auto"), **settings)[1]


@pytest.mark.parametrize("factor", [0.0, float("nan"), float("inf")])
@pytest.mark.filterwarnings("ignore:A backward pass reached no potential")
def test_a_first_gradient_without_a_norm_is_followed_by_another_measurement(factor):
    module, lams = fit_with((factor, factor))
    loss, penalty = module.norms[2]
    other_loss, other_penalty = module.norms[10]
    assert lams[:2] == [0.0, 0.0]
    assert lams[2:10] == pytest.approx([0.3 * loss / penalty] * 8, rel=1e-9)
    mean = 0.3 * (0.9 * loss + 0.1 * other_loss) / (0.9 * penalty + 0.1 * other_penalty)
    assert lams[10:] == pytest.approx([mean] * 2, rel=1e-9)


@pytest.mark.parametrize("factor", [0.0, float("nan"), float("inf")])
def test_a_later_one_is_left_out(factor):
    module, lams = fit_with((1.0,) * 10 + (factor,))
    loss, penalty = module.norms[0]
    assert lams == pytest.approx([0.3 * loss / penalty] * 12, rel=1e-9)


def test_a_loss_on_another_scale_has_another_strength():
    (_, one), (_, other) = fit_with(()), fit_with((1000.0,) * 12)
    assert other == pytest.approx([1000.0 * lam for lam in one], rel=1e-9)


class Bias(Classifier):
    """Potentials that are 0: so is the gradient of their squares."""

    def __init__(self):
        super().__init__()
        for parameter in self.parameters():
            nn.init.zeros_(parameter)


def test_a_penalty_without_gradient_is_said():
    with pytest.warns(UserWarning, match=r"lam='auto'.* has added no penalty: .*0, NaN or infinite"):
        _, lams = fitted(made(Bias), PSPCallback(lam="auto", output=False), data=loader(2))
    assert lams == [0.0, 0.0]


class Scaling(MixedPrecision):
    """Scales the loss, and nothing else, so that errors show."""

    def __init__(self):
        super().__init__("16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu", init_scale=2.0**16))

    def forward_context(self):
        return torch.autocast("cpu", enabled=False)


class Overflowing(Factors):
    """The gradients of the first two steps overflow."""

    def __init__(self):
        super().__init__()
        self.third.bias.register_hook(lambda gradient: gradient / (self.trainer.global_step > 1))


def test_steps_that_loss_scaling_skips():
    module = made(Overflowing)
    lams = fitted(module, PSPCallback(lam="auto"), plugins=[Scaling()], precision=None)[1]
    loss, penalty = module.norms[2]
    assert lams[:10] == pytest.approx([0.0] * 2 + [0.3 * loss / penalty] * 8, rel=1e-9)


class Half(MixedPrecision):
    """Half precision whose loss scale is such that the gradient of R itself overflows."""

    def __init__(self):
        super().__init__("16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu", init_scale=2.0**16))


def test_a_penalty_whose_gradient_overflows_in_half_precision():
    """A loss scale of 2¹⁶, a batch of 4 and potentials of 20: 2¹⁶ · 20 / 4 is beyond float16."""
    torch.manual_seed(0)
    module = Factors()
    nn.init.constant_(module.third.bias, 20.0)
    data = DataLoader([(features.float(), labels) for features, labels in loader(3)], batch_size=None)
    callback = PSPCallback(lam="auto", reduction="sum")
    lams = fitted(module, callback, data=data, plugins=[Half()], precision=None)[1]
    features, labels = list(data)[1]
    layers = potentials(module, features)
    loss = functional.cross_entropy(layers[-1], labels)
    penalty = sum(z.square().sum() / 2 / BATCH for z in layers)
    norms = [
        norm(torch.autograd.grad(value, list(module.parameters()), retain_graph=True)) for value in (loss, penalty)
    ]
    lam = 0.3 * norms[0] / norms[1]
    assert lams == pytest.approx([0.0, lam, lam], rel=1e-2)
    assert callback.state_dict()["auto_lam"]["probe"] == lams[1]


# --- what is said -----------------------------------------------------------------------------------------------------


def test_the_first_message_and_the_arguments(caplog):
    callback = PSPCallback(lam="auto")
    assert repr(callback).startswith("PSPCallback(lam='auto', schedule=None,")
    with caplog.at_level(logging.INFO):
        trainer, lams = fitted(made(), callback)
    (said,) = [record.getMessage() for record in caplog.records if "PSPCallback" in record.getMessage()]
    assert said.startswith(
        f"PSPCallback penalises 3 layers with λ = {lams[0]:.3g} (auto: its gradient has 0.3 of the norm of the loss's,"
        " measured every 10 steps). ⟨z²⟩ is largest in"
    )
    assert callback.lam == "auto"
    assert trainer.callback_metrics["psp/penalty"].item() > 0


def test_a_negligible_share_of_the_loss_has_no_hint(caplog):
    class Shifted(Classifier):
        def training_step(self, batch, batch_index):
            return super().training_step(batch, batch_index) + 1e6

    with caplog.at_level(logging.INFO):
        fitted(made(Shifted), PSPCallback(lam="auto"))
    assert "of the loss." in caplog.text
    assert "try a" not in caplog.text


@pytest.mark.parametrize("lam", ["automatic", "", "AUTO", "1e-3"])
def test_another_word_is_refused(lam):
    with pytest.raises(ValueError, match=f"`lam` to be a number of at least 0 or 'auto' but got '{lam}'"):
        PSPCallback(lam=lam)


def test_manual_optimisation_is_refused():
    with pytest.raises(NotImplementedError, match=r"lam='auto'.*manual optimisation.*number for `lam`.*`find_lam`"):
        fitted(made(ByHand), PSPCallback(lam="auto"))


@pytest.mark.parametrize(
    "strategy", [FSDPStrategy, type("Own", (FSDPStrategy,), {}), ModelParallelStrategy, DeepSpeedStrategy]
)
def test_sharded_parameters_are_refused(strategy):
    trainer = SimpleNamespace(strategy=strategy.__new__(strategy), world_size=2)
    with pytest.raises(NotImplementedError, match=f"{strategy.__name__} shares them out.*`find_lam`"):
        refuse_training(trainer, made(), "auto", 0.0)


def test_sharded_parameters_under_another_strategy_are_refused(monkeypatch):
    monkeypatch.setattr("torch.distributed.tensor.DTensor", nn.Parameter)
    with pytest.raises(NotImplementedError, match="these are sharded"):
        fitted(made(), PSPCallback(lam="auto"))
    fitted(made(), PSPCallback(lam=0.1))


class Once(torch.autograd.Function):
    """Its backward pass gives away what it needs."""

    @staticmethod
    def forward(ctx, x):
        ctx.kept = [x.clone()]
        return x.square()

    @staticmethod
    def backward(ctx, gradient):
        if not ctx.kept:
            raise RuntimeError("nothing is kept")
        return 2 * ctx.kept.pop() * gradient


class Used(Classifier):
    def training_step(self, batch, batch_index):
        return Once.apply(super().training_step(batch, batch_index))


def test_a_backward_pass_that_runs_once_is_an_error_and_leaves_nothing():
    module = made(Used)
    trainer = quiet_trainer(PSPCallback(lam="auto"))
    before = traces(trainer, module)
    with pytest.raises(RuntimeError, match=r"(?s)lam='auto'.*nothing is kept.*with a number for `lam`.*`find_lam`"):
        trainer.fit(module, loader(2))
    assert traces(trainer, module) == before
    quiet_trainer(PSPCallback(lam=0.1)).fit(module, loader(2))


def test_a_search_takes_numbers_in_its_place():
    trainer = quiet_trainer(PSPCallback(lam="auto", reduction="sum"))
    found, expected = (
        find_lam(each, made(), loader(3), loader(1), lams=(0.1, 1.0), epochs=1)
        for each in (trainer, quiet_trainer(PSPCallback(reduction="sum")))
    )
    assert found.values == expected.values
    assert found.values["psp/lam"] == (0.0, 0.1, 1.0)
    assert trainer.callbacks[0].lam == "auto"
