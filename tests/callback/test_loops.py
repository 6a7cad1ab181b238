"""Whatever the trainer's loops do around a training step, its gradient is that of the loss and the penalty."""

import copy

import pytest
import torch
from lightning.pytorch import callbacks as lightning_callbacks
from lightning.pytorch.callbacks import ModelPruning, StochasticWeightAveraging
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader

from lightning_psp import PSPCallback
from tests.support.followed import LAM, Followed, assert_same, mean_square, potentials, total
from tests.support.small import Classifier, loader, quiet_trainer

pytestmark = pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no")


def fit(module, *callbacks, batches=3, validation=None, **settings):
    trainer = quiet_trainer(PSPCallback(lam=LAM), *callbacks, **settings)
    trainer.fit(module, loader(batches), validation)
    return trainer


def seeded(kind=Followed):
    torch.manual_seed(0)
    return kind().double()


def logged(trainer, key):
    return trainer.callback_metrics[key].item()


def mean_over_all(module, loaders):
    """⟨z²⟩ of a classifier over all batches of some loaders, each value weighing the same."""
    with torch.no_grad():
        batches = [potentials(module, features) for each in loaders for features, _ in each]
        return sum(mean_square(*passes) for passes in zip(*batches, strict=True)).item() / 3


class Fetching(Followed):
    """Takes its batches from the loader's iterator itself."""

    def training_step(self, dataloader_iter):
        self.batch, _, _ = next(dataloader_iter)
        return functional.cross_entropy(self(self.batch[0]), self.batch[1])


@pytest.mark.filterwarnings("ignore:.*`dataloader_iter`")
@pytest.mark.parametrize("kind", [Followed, Fetching])
def test_a_mean_over_an_epoch_is_that_of_its_steps(kind):
    module = seeded(kind)
    trainer = fit(module, max_epochs=2)
    module.check(steps=6)
    trained = sum(torch.stack(step).mean() for step in module.mean_squares[3:]) / 3
    assert logged(trainer, "psp/z2_train") == pytest.approx(trained.item(), rel=1e-6)


@pytest.mark.filterwarnings("ignore:train_dataloader yielded None")
def test_epochs_that_begin_with_no_batch():
    module, trainer = seeded(), quiet_trainer(PSPCallback(lam=LAM), max_epochs=2)
    trainer.fit(module, DataLoader([None, *loader(2)], batch_size=None))
    module.check(steps=4)
    trained = sum(torch.stack(step).mean() for step in module.mean_squares[2:]) / 2
    assert logged(trainer, "psp/z2_train") == pytest.approx(trained.item(), rel=1e-6)


# --- validation, prediction ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [
        {"num_sanity_val_steps": 2},
        {"val_check_interval": 1, "num_sanity_val_steps": 0},
        {"check_val_every_n_epoch": None, "val_check_interval": 2},
        {"inference_mode": False, "val_check_interval": 1},
    ],
    ids=str,
)
def test_validation_at_any_time(settings):
    module = seeded()
    seen = []
    module.on_train_batch_end = lambda *args: seen.append(copy.deepcopy(module.state_dict()))
    trainer = fit(module, validation=loader(2, seed=1), **settings)
    module.check(steps=3)
    trained = sum(torch.stack(step).mean() for step in module.mean_squares) / 3
    assert logged(trainer, "psp/z2_train") == pytest.approx(trained.item(), rel=1e-6)
    last_validated = 2 if settings.get("val_check_interval") == 2 else 3
    module.load_state_dict(seen[last_validated - 1])
    assert logged(trainer, "psp/z2_val") == pytest.approx(mean_over_all(module, [loader(2, seed=1)]), rel=1e-6)


def test_several_validation_loaders_count_as_one():
    class Several(Followed):
        def validation_step(self, batch, batch_index, dataloader_idx=0):
            self(batch[0])

    module = seeded(Several)
    loaders = [loader(1, seed=1), loader(3, seed=2)]
    trainer = fit(module, validation=loaders)
    module.check(steps=3)
    assert logged(trainer, "psp/z2_val") == pytest.approx(mean_over_all(module, loaders), rel=1e-6)


@pytest.mark.parametrize("inference_mode", [True, False])
@pytest.mark.parametrize("stage", ["validate", "test"])
def test_evaluation_without_fit(stage, inference_mode):
    module = seeded()
    trainer = quiet_trainer(PSPCallback(), inference_mode=inference_mode)
    getattr(trainer, stage)(module, loader(2), verbose=False)
    key = {"validate": "psp/z2_val", "test": "psp/z2_test"}[stage]
    assert logged(trainer, key) == pytest.approx(mean_over_all(module, [loader(2)]), rel=1e-6)


def test_prediction_is_left_alone():
    class Predicting(Followed):
        def predict_step(self, batch, batch_index):
            return self(batch[0])

    module = seeded(Predicting)
    trainer = quiet_trainer(PSPCallback(lam=LAM))
    (prediction,) = trainer.predict(module, loader(1))
    torch.testing.assert_close(prediction, potentials(module, next(iter(loader(1)))[0])[-1])
    assert not [key for key in trainer.callback_metrics if key.startswith("psp")]
    trainer.fit(module, loader())
    module.check(steps=3)


# --- settings of the trainer -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "steps"),
    [
        ({"detect_anomaly": True}, 3),
        ({"overfit_batches": 2}, 2),
        ({"limit_train_batches": 2, "max_epochs": 2}, 4),
        ({"fast_dev_run": True}, 1),
        ({"max_steps": 2}, 2),
        ({"max_epochs": 2, "reload_dataloaders_every_n_epochs": 1}, 6),
    ],
    ids=str,
)
def test_settings_of_the_trainer(settings, steps):
    module = seeded()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lightning.pytorch.trainer.connectors.data_connector._worker_check", lambda **_: None)
        fit(module, **settings)
    module.check(steps)


class Unlogged(Followed):
    def training_step(self, batch, batch_index):
        self.batch = batch
        return functional.cross_entropy(self(batch[0]), batch[1])


def test_barebones_penalises_and_logs_nothing():
    module = seeded(Unlogged)
    settings = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"))
    fit(module, barebones=True, **settings)
    module.check(steps=3)


@pytest.mark.parametrize("set_to_none", [True, False])
def test_gradients_zeroed_either_way(set_to_none):
    module = seeded()
    module.optimizer_zero_grad = lambda epoch, batch, optimizer: optimizer.zero_grad(set_to_none=set_to_none)
    fit(module)
    module.check(steps=3)


@pytest.mark.parametrize("algorithm", ["norm", "value"])
def test_clipping_takes_the_penalty_with_it(algorithm):
    module = seeded()
    before = [parameter.detach().clone() for parameter in module.parameters()]
    limit = {"norm": 0.1, "value": 0.01}[algorithm]
    fit(module, batches=1, gradient_clip_val=limit, gradient_clip_algorithm=algorithm)
    module.check(steps=1)
    (gradient,) = module.expected
    if algorithm == "value":
        clipped = [g.clamp(-limit, limit) for g in gradient]
    else:
        norm = torch.cat([g.flatten() for g in gradient]).norm()
        assert norm > limit
        clipped = [g * limit / (norm + 1e-6) for g in gradient]
    assert_same(module.parameters(), [p - 0.1 * g for p, g in zip(before, clipped, strict=True)])


def test_two_fits_of_one_trainer_object_and_a_fit_after_validation():
    module = seeded()
    callback = PSPCallback(lam=LAM)
    quiet_trainer(callback).validate(module, loader(1), verbose=False)
    quiet_trainer(callback).fit(module, loader())
    trainer = quiet_trainer(callback)
    trainer.fit(module, loader())
    trainer.fit_loop.max_epochs = 2
    trainer.fit(module, loader())
    module.check(steps=9)


# --- callbacks that change the weights -------------------------------------------------------------------------------


class Normalised(Followed):
    """With a batch norm whose statistics an average of weights needs anew."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(3, affine=False)

    def training_step(self, batch, batch_index):
        self.batch = batch
        return functional.cross_entropy(self.norm(self(batch[0])), batch[1])

    def on_after_backward(self):
        Classifier.on_after_backward(self)
        with torch.enable_grad():
            *hidden, out = potentials(self, self.batch[0])
            out = (out - out.mean(0)) / (out.var(0, unbiased=False) + self.norm.eps).sqrt()
            loss = functional.cross_entropy(out, self.batch[1])
            loss = loss + LAM * sum(mean_square(z) for z in (*hidden, out)) / 3
            self.expected.append(torch.autograd.grad(loss, list(self.parameters())))


def test_stochastic_weight_averaging_with_its_epoch_for_batch_norms():
    module, weights = seeded(Normalised), []
    module.on_train_batch_start = lambda *args: weights.append(copy.deepcopy(module.state_dict()))
    trainer = fit(module, StochasticWeightAveraging(0.05, swa_epoch_start=1, annealing_epochs=1), max_epochs=3)
    module.check(steps=9)
    assert trainer.current_epoch == 4
    # the last epoch trains nothing: its values are those of the averaged weights
    averaged = Normalised().double()
    averaged.load_state_dict(weights[-1])
    with torch.no_grad():
        outs = [potentials(averaged, features) for features, _ in loader(3)]
    hidden = [mean_square(*passes).item() for passes in list(zip(*outs, strict=True))[:2]]
    assert logged(trainer, "psp_z2_train/first") == pytest.approx(hidden[0], rel=1e-6)
    assert logged(trainer, "psp_z2_train/second") == pytest.approx(hidden[1], rel=1e-6)


@pytest.mark.parametrize("name", ["WeightAveraging", "EMAWeightAveraging"])
def test_weight_averaging_is_validated_with_its_averages(name):
    averaging = getattr(lightning_callbacks, name, None)
    if averaging is None:
        pytest.skip(f"this Lightning has no {name}")
    module = seeded()
    weights = []
    module.on_validation_batch_start = lambda *args: weights.append(copy.deepcopy(module.state_dict()))
    trainer = fit(module, averaging(), max_epochs=2, validation=loader(1, seed=1))
    module.check(steps=6)
    averaged = Classifier().double()
    averaged.load_state_dict(weights[-1])
    assert logged(trainer, "psp/z2_val") == pytest.approx(mean_over_all(averaged, [loader(1, seed=1)]), rel=1e-6)


class Pruned(Followed):
    """The weights of its first two layers are pruned after the first epoch."""

    def weights(self):
        return [layer.weight_orig for layer in (self.first, self.second)]

    def on_after_backward(self):
        if self.current_epoch == 0:
            return
        self.gradients.append([weight.grad.clone() for weight in self.weights()])
        with torch.enable_grad():
            for layer in (self.first, self.second):
                layer.weight = layer.weight_orig * layer.weight_mask
            self.expected.append(torch.autograd.grad(total(self, self.batch), self.weights()))


def test_model_pruning_by_masks():
    module = seeded(Pruned)
    pruned = [(module.first, "weight"), (module.second, "weight")]
    pruning = ModelPruning("l1_unstructured", pruned, amount=0.5, use_lottery_ticket_hypothesis=False)
    trainer = fit(module, pruning, max_epochs=2)
    module.check(steps=3)
    assert all((gradient == 0).sum() >= gradient.numel() // 3 for gradient in module.gradients[-1])
    layers = {key for key in trainer.callback_metrics if key.startswith("psp_z2_train")}
    assert layers == {f"psp_z2_train/{layer}" for layer in ("first", "second", "third")}
