"""LobsterPruning: plateaus, thresholds within the bound, what remains at the end, resuming, errors."""

import copy
import math
import pickle

import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from torch.nn import functional

from lightning_psp import PSPCallback
from lightning_psp.pruning import LobsterPruning, PruningStep, sparsity
from tests.support.command_line import train_by_configuration
from tests.support.pruning.lobster import AT_ONCE, IN_TURN, Model, assert_same, data, loss_of, pruned, train
from tests.support.small import Classifier, quiet_trainer, traces

pytestmark = [
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`"),
    pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch ended"),
]


# --- the whole of it -------------------------------------------------------------------------------------------------


def test_a_training_prunes_until_nothing_more_goes():
    pruning = LobsterPruning(**IN_TURN)
    trainer, module = train(pruning, epochs=300)
    shares = [step.sparsity for step in pruning.history]
    assert len(shares) > 2
    assert shares == sorted(shares)
    for step in pruning.history:
        assert step.loss_after <= 1.1 * step.loss_before
        assert step.evaluations <= 15
    assert sparsity(module).network == sparsity(pruning.masks).network == shares[-1] > 0.3
    assert trainer.current_epoch < 300
    assert trainer.should_stop
    # the last plateau found nothing, and its best weights remain
    last = pruning.history[-1]
    assert (last.threshold, last.loss_after, last.sparsity) == (0, last.loss_before, shares[-2])
    assert loss_of(module) == pytest.approx(last.loss_after, rel=1e-12)


def test_plateaus_by_hand():
    """All of the procedure but the search, from the losses of the validations."""
    pruning = LobsterPruning(**IN_TURN)
    _, module = train(pruning, epochs=80)
    losses, steps = module.validated, list(pruning.history)
    reference, best, best_weights, waited = math.inf, math.inf, None, 0
    for epoch, loss in enumerate(losses):
        waited = 0 if loss < (1 - IN_TURN["min_improvement"]) * reference else waited + 1
        reference = loss if waited == 0 else reference
        if loss < best:
            best, best_weights = loss, module.weights[epoch]
        if waited < IN_TURN["patience"]:
            assert_same(module.ended[epoch], module.weights[epoch])
            continue
        step = steps.pop(0)
        assert step.epoch == epoch
        assert step.loss_before == pytest.approx(best, rel=1e-12)
        kept = {name: weight.abs() >= step.threshold for name, weight in best_weights.items() if "weight" in name}
        best_weights = pruned(best_weights, kept)
        assert_same(module.ended[epoch], best_weights)
        best = reference = step.loss_after
        waited = 0
        share = 1 - sum(int((w != 0).sum()) for w in (best_weights[name] for name in kept)) / sum(
            w.numel() for w in kept.values()
        )
        assert step.sparsity == pytest.approx(share)
    assert steps == []
    assert len(pruning.history) > 3


def test_loss_after_is_that_of_the_pruned_network():
    pruning = LobsterPruning(**AT_ONCE)
    _, module = train(pruning, epochs=6)
    assert len(pruning.history) == 5
    judge = Model()
    for step, state in zip(pruning.history, module.ended[1:], strict=True):
        judge.load_state_dict(state)
        assert loss_of(judge) == pytest.approx(step.loss_after, rel=1e-12)
        assert sparsity(judge).network == step.sparsity
        assert min(w[w != 0].abs().min() for n, w in state.items() if "weight" in n) >= step.threshold > 0


def test_the_last_weights_remain_where_the_trainer_stops():
    pruning = LobsterPruning(lam=1e-3, patience=3)
    _, module = train(pruning, epochs=12)
    assert not all(map(torch.equal, module.state_dict().values(), module.weights[0].values()))
    assert_same(module.state_dict(), module.last)


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5])
def test_the_largest_sparsity(share):
    pruning = LobsterPruning(**{**AT_ONCE, "tolerance": 100.0}, max_sparsity=share)
    trainer, module = train(pruning)
    weights = sum(weight.numel() for name, weight in module.named_parameters() if "weight" in name)
    assert sparsity(module).network == round(share * weights) / weights
    assert [step.sparsity for step in pruning.history] == [sparsity(module).network]
    assert trainer.current_epoch == 2


def test_a_weight_stays_whatever_is_allowed():
    pruning = LobsterPruning(**{**AT_ONCE, "tolerance": 1e9})
    _, module = train(pruning)
    assert sum(int((weight != 0).sum()) for name, weight in module.named_parameters() if "weight" in name) == 1


def test_no_tolerance():
    pruning = LobsterPruning(**{**AT_ONCE, "tolerance": 0.0})
    train(pruning, epochs=10)
    assert all(step.loss_after <= step.loss_before for step in pruning.history)


def test_only_what_is_chosen():
    pruning = LobsterPruning(**AT_ONCE, include=["first.*", "second.*"], exclude=["second.*"])
    _, module = train(pruning, epochs=4)
    assert list(pruning.masks) == ["first.weight"]
    assert (module.first.weight == 0).any()
    assert (module.second.weight != 0).all()


def test_a_negative_loss():
    class Negative(Model):
        def validation_step(self, batch, batch_index):
            self.log("val_loss", functional.cross_entropy(self(batch[0]), batch[1]) - 10)

    pruning = LobsterPruning(**{**AT_ONCE, "tolerance": 0.01})
    train(pruning, module=Negative(), epochs=4)
    for step in pruning.history:
        assert step.loss_before < 0
        assert step.loss_after <= step.loss_before + 0.01 * abs(step.loss_before)
    assert pruning.history[0].threshold > 0


# --- beside others ---------------------------------------------------------------------------------------------------


def test_what_is_logged(tmp_path):
    saving = ModelCheckpoint(tmp_path, monitor="pruning/sparsity", mode="max")
    pruning = LobsterPruning(**AT_ONCE)
    trainer, module = train(pruning, saving, epochs=5, enable_checkpointing=True)
    metrics = trainer.callback_metrics
    share = pruning.history[-1].sparsity
    assert metrics["pruning/sparsity"].item() == pytest.approx(share)
    assert metrics["pruning/threshold"].item() == pytest.approx(pruning.history[-1].threshold)
    assert metrics["pruning_sparsity/second.weight"].item() == pytest.approx(
        (module.second.weight == 0).double().mean().item()
    )
    assert saving.best_model_score.item() == pytest.approx(share)


def test_early_stopping_counts_validations():
    stopping = EarlyStopping("val_loss", patience=4, min_delta=10.0)
    trainer, _ = train(LobsterPruning(**AT_ONCE), stopping)
    assert trainer.current_epoch == 5
    assert stopping.wait_count == 4


def test_a_sanity_check_and_validations_without_steps_do_not_count():
    pruning = LobsterPruning(**AT_ONCE)
    train(pruning, epochs=2, num_sanity_val_steps=-1, accumulate_grad_batches=3, val_check_interval=1)
    # three batches an epoch, each with a validation, the last with a step
    assert pruning._last_step == 2
    assert len(pruning.history) == 2


def test_steps_go_on_until_the_fewest_epochs():
    pruning = LobsterPruning(**AT_ONCE, max_sparsity=0.1)
    trainer, module = train(pruning, min_epochs=6)
    assert trainer.current_epoch == 6
    assert sparsity(module).network == pytest.approx(0.1, abs=0.01)


def test_another_fit_goes_on_and_another_module_begins_anew():
    pruning = LobsterPruning(**AT_ONCE)
    _, module = train(pruning, epochs=3)
    masks, steps = dict(pruning.masks), len(pruning.history)
    train(pruning, module=module, epochs=2)
    assert all((pruning.masks[name] <= mask).all() for name, mask in masks.items())
    assert len(pruning.history) > steps
    train(pruning, epochs=1)
    assert pruning.history == []
    assert sparsity(pruning.masks).network == 0


def test_copies_and_pickles():
    pruning = LobsterPruning(**AT_ONCE)
    train(pruning, epochs=3)
    for other in (copy.deepcopy(pruning), pickle.loads(pickle.dumps(pruning))):
        assert other.history == pruning.history
        assert_same(other.masks, pruning.masks)


class Stops(Model):
    """In the middle of a search: after two validations of two batches, and one more."""

    steps = iter(range(1000))  # of the class, for what a module has is given back

    def validation_step(self, batch, batch_index):
        if next(self.steps) >= 6:
            raise KeyError("crash")
        super().validation_step(batch, batch_index)


def test_an_interrupted_search_leaves_the_best_weights():
    pruning, module = LobsterPruning(**AT_ONCE), Stops()
    before = traces(quiet_trainer(), module)
    with pytest.raises(KeyError, match="crash"):
        train(pruning, module=module, epochs=3, num_sanity_val_steps=0)
    assert pruning.history == []
    best = min(range(2), key=module.validated.__getitem__)
    assert_same(module.state_dict(), module.weights[best])
    after = traces(quiet_trainer(), module)
    different = ("modes", "attributes")  # of a module that a fit had
    assert {name: after[name] for name in after if name not in different} == {
        name: before[name] for name in before if name not in different
    }


# --- resuming --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("at_validation_end", [True, False])
@pytest.mark.parametrize("epoch", [1, 8, 9, 13])
def test_a_resumed_training_equals_an_uninterrupted_one(tmp_path, at_validation_end, epoch):
    saving = ModelCheckpoint(
        tmp_path, "{epoch}", save_top_k=-1, monitor=None, save_on_train_epoch_end=not at_validation_end
    )
    whole = LobsterPruning(**IN_TURN)
    _, module = train(whole, saving, epochs=18, enable_checkpointing=True)
    assert len(whole.history) > 1
    path = tmp_path / f"epoch={epoch}.ckpt"
    state = torch.load(path, weights_only=True)["callbacks"]["LobsterPruning"]
    resumed = LobsterPruning(**IN_TURN)
    _, other = train(resumed, epochs=18, checkpoint=path)
    assert other.validated[-3:] == module.validated[-3:]
    assert_same(other.state_dict(), module.state_dict())
    assert_same(resumed.masks, whole.masks)
    assert resumed.history == whole.history
    assert len(state["history"]) <= len(whole.history)
    assert resumed.state_dict()["plateau"] == whole.state_dict()["plateau"]
    assert_same(resumed.state_dict()["best"], whole.state_dict()["best"])


def test_a_training_that_had_stopped_stays_so(tmp_path):
    pruning = LobsterPruning(**AT_ONCE)
    _, module = train(pruning, ModelCheckpoint(tmp_path, "last"), enable_checkpointing=True)
    resumed = LobsterPruning(**AT_ONCE)
    trainer, other = train(resumed, checkpoint=tmp_path / "last.ckpt")
    assert_same(other.state_dict(), module.state_dict())
    assert resumed.history == pruning.history
    assert trainer.current_epoch < 60


def test_a_checkpoint_loads_without_the_callback(tmp_path):
    saving = ModelCheckpoint(tmp_path, "last")
    _, module = train(LobsterPruning(**AT_ONCE), saving, epochs=4, enable_checkpointing=True)
    other = Model()
    other.load_state_dict(torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"])
    assert_same(other.state_dict(), module.state_dict())
    assert sparsity(other).network > 0.1


def test_other_patterns_are_refused_when_a_training_is_resumed(tmp_path):
    train(LobsterPruning(**AT_ONCE), ModelCheckpoint(tmp_path, "last"), epochs=2, enable_checkpointing=True)
    with pytest.raises(ValueError, match="Use the patterns of before"):
        train(LobsterPruning(**AT_ONCE, exclude=["third.*"]), epochs=3, checkpoint=tmp_path / "last.ckpt")


# --- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"lam": -1}, ValueError, "`lam`"),
        ({"lam": 2}, ValueError, "`lam`"),
        ({"lam": "1"}, TypeError, "`lam`"),
        ({"tolerance": -0.1}, ValueError, "`tolerance`"),
        ({"tolerance": math.nan}, ValueError, "`tolerance`"),
        ({"patience": 0}, ValueError, "`patience`"),
        ({"patience": 1.5}, TypeError, "`patience`"),
        ({"monitor": None}, TypeError, "`monitor`"),
        ({"min_improvement": -1}, ValueError, "`min_improvement`"),
        ({"include": "first"}, TypeError, "`include`"),
        ({"include": []}, ValueError, "`include`"),
        ({"exclude": "first"}, TypeError, "`exclude`"),
        ({"max_sparsity": 1.1}, ValueError, "`max_sparsity`"),
    ],
)
def test_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        LobsterPruning(**arguments)


def test_a_pattern_without_a_parameter():
    with pytest.raises(ValueError, match=r"'conv\*' of argument `include` matches no parameter.*first.weight"):
        train(LobsterPruning(include=["conv*"]))


@pytest.mark.parametrize("monitor", ["loss_of_val", "loss"])
def test_a_monitor_that_the_validation_does_not_log_is_an_error_in_the_first(monitor):
    module = Model()
    with pytest.raises(ValueError, match=rf"monitor='{monitor}'.*names are: val_loss\."):
        train(LobsterPruning(monitor=monitor), PSPCallback(), module=module)
    assert len(module.validated) == 1


@pytest.mark.parametrize(
    ("patience", "settings", "is_said"),
    [
        (3, {}, True),
        (2, {}, False),
        (1, {"check_val_every_n_epoch": 2}, True),
        (3, {"val_check_interval": 0.5}, False),
        (3, {"val_check_interval": 1}, False),
    ],
)
def test_a_training_without_a_plateau_is_said_at_its_start(patience, settings, is_said, recwarn):
    train(LobsterPruning(patience=patience), epochs=3, **settings)
    said = [str(each.message) for each in recwarn if "LobsterPruning(patience" in str(each.message)]
    validations = 3 // settings.get("check_val_every_n_epoch", 1)
    expected = f"needs {patience + 1} validations or more, and Trainer(max_epochs=3) makes {validations}."
    assert [expected in message for message in said] == [True] * is_said


@pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`")
@pytest.mark.parametrize("settings", [{"limit_val_batches": 0}, {}])
def test_a_trainer_that_validates_nothing(settings):
    trainer = quiet_trainer(LobsterPruning(), max_epochs=1, **settings)
    with pytest.raises(ValueError, match=r"the trainer validates nothing\. Give `fit` validation data"):
        trainer.fit(Model(), data(), data() if settings else None)


def test_losses_that_are_never_finite():
    class Broken(Model):
        def validation_step(self, batch, batch_index):
            self.log("val_loss", math.nan)

    with pytest.raises(ValueError, match="'val_loss' was finite in no validation"):
        train(LobsterPruning(patience=3), module=Broken())


def test_steps_are_frozen():
    step = PruningStep(1, 0.1, 0.5, 1.0, 1.05, 15)
    with pytest.raises(AttributeError):
        step.epoch = 2


# --- command line ----------------------------------------------------------------------------------------------------

CALLBACK = """
class_path: lightning_psp.pruning.LobsterPruning
init_args:
  lam: 0.001
  tolerance: 0.2
  patience: 1
  monitor: val_loss
  min_improvement: 0.5
  include: ["*"]
  exclude: ["third.*"]
  max_sparsity: 0.5
"""


@pytest.mark.filterwarnings(
    "ignore::DeprecationWarning"
)  # Lightning calls what this version of jsonargparse deprecates
def test_every_argument_comes_from_yaml(tmp_path):
    pytest.importorskip("jsonargparse")
    loaders = (data(), data(64, seed=1))
    _, pruning = train_by_configuration("lightning.pytorch", Classifier, loaders, CALLBACK, tmp_path, epochs=2)
    assert (pruning.lam, pruning.tolerance, pruning.patience, pruning.max_sparsity) == (0.001, 0.2, 1, 0.5)
    assert list(pruning.masks) == ["first.weight", "second.weight"]
    assert len(pruning.history) == 1
