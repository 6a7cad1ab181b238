"""Where there is no PSP-entropy: what is said, and what is an error."""

import copy
import logging
import math
import pickle

import pytest
import torch
from lightning.pytorch import Callback
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from lightning_psp import PSPCallback
from tests.support.entropy_reference import entropy_by_hand
from tests.support.evaluated import data, evaluated, hidden_potentials, messages, module_of
from tests.support.small import BATCH, CLASSES, Classifier, loader, quiet_trainer, traces


class Regression(Classifier):
    def __init__(self):
        super().__init__()
        self.third = nn.Linear(8, 1)

    def training_step(self, batch, batch_index):
        return functional.mse_loss(self(batch[0])[:, 0], batch[1].double())

    def validation_step(self, batch, batch_index):
        self.log("val_loss", self.training_step(batch, batch_index))


def regression_data(dtype):
    _, features, labels = data()
    return DataLoader(TensorDataset(features, (10 * labels).to(dtype)), batch_size=BATCH)


@pytest.mark.parametrize(("dtype", "part"), [(torch.float64, "no class labels"), (torch.int64, "a class label is")])
def test_regression_models_are_left_in_peace(dtype, part, caplog):
    with caplog.at_level(logging.INFO):
        trainer = quiet_trainer(PSPCallback(), max_epochs=2)
        trainer.fit(module_of(Regression), regression_data(dtype), regression_data(dtype))
    assert "psp/z2_val" in trainer.callback_metrics
    assert not [key for key in trainer.callback_metrics if "entropy" in key]
    (message,) = messages(caplog)
    assert part in message


def test_what_the_batch_was_is_said_where_no_labels_were_found(caplog):
    _, features, labels = data()
    triples = DataLoader(TensorDataset(features, labels, labels.double()), batch_size=BATCH)
    with caplog.at_level(logging.INFO):
        quiet_trainer(PSPCallback()).validate(module_of(Regression), triples, verbose=False)
    (message,) = messages(caplog)
    assert "were found in a batch, which is a list of 3: say with `target` where they are" in message


def test_orders_that_were_asked_for_are_an_error_without_labels():
    module, trainer = module_of(Regression), quiet_trainer(PSPCallback(entropy=(1,)))
    before = traces(trainer, module)
    with pytest.raises(ValueError, match=r"entropy=\(1,\).*no class labels.*target.*entropy=\(\)"):
        trainer.fit(module, regression_data(torch.float64), regression_data(torch.float64))
    module.train()  # Lightning itself leaves it in the mode of the evaluation that failed
    assert traces(trainer, module) == before


@pytest.mark.parametrize("arguments", [{"target": "label"}, {"entropy": (1,), "num_classes": CLASSES - 1}])
def test_wrong_arguments_show_in_the_sanity_check(arguments):
    module = module_of()
    with pytest.raises(ValueError, match="label"):
        quiet_trainer(PSPCallback(**arguments), num_sanity_val_steps=2).fit(module, loader(), data()[0])
    assert not module.losses


def test_no_orders_measure_nothing(caplog):
    with caplog.at_level(logging.INFO):
        assert evaluated(PSPCallback(entropy=()), module_of(), data()[0]) == {}
    assert messages(caplog) == []


@pytest.mark.parametrize("place", [0, -1])
@pytest.mark.parametrize(("label", "part"), [(CLASSES, "a class label is 3, where 2 is"), (-1, "is -1, where 0")])
@pytest.mark.parametrize("num_classes", [None, CLASSES])
def test_labels_out_of_range(label, num_classes, part, place, caplog):
    class Unlabelled(Classifier):
        def test_step(self, batch, batch_index):
            functional.cross_entropy(self(batch[0]), batch[1].clamp(0, CLASSES - 1))

    _, features, found = data()
    found[place] = label
    loaders = DataLoader(TensorDataset(features, found), batch_size=BATCH)
    with caplog.at_level(logging.INFO):
        assert evaluated(PSPCallback(num_classes=num_classes), module_of(Unlabelled), loaders) == {}
    (message,) = messages(caplog)
    assert part in message
    with pytest.raises(ValueError, match=part):
        evaluated(PSPCallback(entropy=(1,), num_classes=num_classes), module_of(Unlabelled), loaders)


@pytest.mark.parametrize("orders", ["auto", (1,)])
def test_a_number_of_classes_that_contradicts_the_logits(orders):
    module, (loaders, *_) = module_of(), data()
    with pytest.raises(ValueError, match="`num_classes` to be the number of logits, 3, but got 5"):
        evaluated(PSPCallback(entropy=orders, num_classes=5), module, loaders)
    assert evaluated(PSPCallback(entropy=(), num_classes=5), module, loaders) == {}


def test_an_output_that_is_no_logits_says_nothing_of_the_number_of_classes():
    class Embedding(Classifier):
        def test_step(self, batch, batch_index):
            functional.mse_loss(self(batch[0]), batch[0][:, :CLASSES])

    module, (_, features, labels) = module_of(Embedding), data()
    labels = torch.arange(len(labels)) % 5
    loaders = DataLoader(TensorDataset(features, labels), batch_size=BATCH)
    logged = evaluated(PSPCallback(num_classes=5), module, loaders)
    for layer, z in hidden_potentials(module, features).items():
        assert logged[f"psp_entropy_test/{layer}"] == pytest.approx(entropy_by_hand(z, labels, 1), rel=1e-6)


def test_without_an_output_layer_the_number_of_classes_is_asked_for():
    class Heads(Classifier):
        def __init__(self):
            super().__init__()
            self.other = nn.Linear(8, 5)

        def forward(self, features):
            hidden = self.second(functional.silu(self.first(features))).relu()
            return self.third(hidden), self.other(hidden)

        def test_step(self, batch, batch_index):
            sum(functional.cross_entropy(logits, batch[1]) for logits in self(batch[0]))

    module, (loaders, features, labels) = module_of(Heads), data()
    with pytest.raises(ValueError, match="output layers have 3 and 5 units: give it as `num_classes`"):
        evaluated(PSPCallback(entropy=(1,)), module, loaders)
    logged = evaluated(PSPCallback(entropy=(1,), num_classes=CLASSES), module, loaders)
    for layer, z in hidden_potentials(module, features).items():
        assert logged[f"psp_entropy_test/{layer}"] == pytest.approx(entropy_by_hand(z, labels, 1), rel=1e-6)


@pytest.mark.parametrize("sizes", [(5, 3), (3, 5), (1, 3)])
def test_data_sets_with_classes_of_their_own_are_not_counted_as_one(sizes, caplog):
    class Heads(Classifier):
        def __init__(self):
            super().__init__()
            self.heads = nn.ModuleList([nn.Linear(8, size) for size in sizes])

        def test_step(self, batch, batch_index, dataloader_idx=0):
            self.third = self.heads[dataloader_idx]
            logits, labels = self(batch[0]), batch[1].clamp(max=1)
            if logits.shape[1] == 1:
                functional.binary_cross_entropy_with_logits(logits[:, 0], labels.double())
            else:
                functional.cross_entropy(logits, labels)

    module, (_, features, labels) = module_of(Heads), data()
    loaders = [DataLoader(TensorDataset(features, labels.clamp(max=1)), batch_size=4) for _ in sizes]
    with caplog.at_level(logging.INFO):
        assert evaluated(PSPCallback(), module, loaders) == {}
    (message,) = messages(caplog)
    assert f"tells of {max(2, sizes[0])} classes in one batch and of {sizes[1]} in another" in message
    assert "psp_entropy_test/first" in evaluated(PSPCallback(entropy=(1,)), module, loaders[:1])


class OfLengths(Classifier):
    """The second layer has another number of units in the last batch, or other rows than the batch."""

    transposes = False

    def forward(self, features):
        first = functional.silu(self.first(features))
        middle = self.second(torch.stack([first] * (2 if features.sum() > 0 else 3), 0 if self.transposes else 1))
        return self.third(functional.relu(middle).mean(0 if self.transposes else 1))


@pytest.mark.parametrize(("transposes", "part"), [(False, "units in one batch and"), (True, "do not go with 4 class")])
def test_a_layer_that_cannot_be_counted_is_left_out_alone(transposes, part, caplog):
    module, (loaders, features, labels) = module_of(OfLengths), data()
    assert len({bool(part.sum() > 0) for part in features.split(BATCH)}) == 2
    module.transposes = transposes
    with caplog.at_level(logging.INFO):
        logged = evaluated(PSPCallback(), module, loaders)
    assert set(logged) == {"psp/entropy_test", "psp_entropy_test/first"}
    expected = entropy_by_hand(hidden_potentials(module, features)["first"], labels, 1)
    assert logged["psp/entropy_test"] == pytest.approx(expected, rel=1e-6)
    (message,) = messages(caplog)
    assert "'second'" in message
    assert part in message
    with pytest.raises(ValueError, match=f"'second'.*{part}.*exclude"):
        evaluated(PSPCallback(entropy=(1,)), module, loaders)
    if not transposes:
        assert "psp_entropy_test/second" in evaluated(
            PSPCallback(entropy=(1,), entropy_unit="channel"), module, loaders
        )


def test_counts_that_would_take_too_much_memory_are_left_out(caplog):
    class Many(Classifier):
        def __init__(self):
            super().__init__()
            self.first, self.second, self.third = nn.Linear(6, 70), nn.Linear(70, 8), nn.Linear(8, 1_000_000)

    with caplog.at_level(logging.INFO):
        assert evaluated(PSPCallback(), module_of(Many), data()[0]) == {}
    (message,) = messages(caplog)
    assert "512 MiB" in message
    assert 'entropy_unit="channel"' in message


def test_a_class_without_samples_is_warned_about_once():
    _, features, labels = data()
    labels[labels == 1] = 2
    loaders = DataLoader(TensorDataset(features, labels), batch_size=BATCH)
    with pytest.warns(UserWarning, match="No sample of the classes 1 was seen") as caught:
        quiet_trainer(PSPCallback(), max_epochs=2).fit(module_of(), loader(), loaders)
    assert len([warning for warning in caught if "No sample" in str(warning.message)]) == 1


@pytest.mark.filterwarnings("ignore:The potentials of layer 'first' hold NaN")
def test_a_layer_with_nan_has_no_entropy():
    module, (loaders, *_) = module_of(), data()
    module.second.weight.data[0, 0] = float("nan")
    callback = PSPCallback()
    with pytest.warns(UserWarning, match="'second' hold NaN"):
        logged = evaluated(callback, module, loaders)
    assert math.isfinite(logged["psp_entropy_test/first"])
    assert callback.metrics["test"]["first"].entropy.compute() == pytest.approx(logged["psp_entropy_test/first"])
    with pytest.raises(AttributeError, match="was not measured of this layer"):
        _ = callback.metrics["test"]["second"].entropy
    assert math.isnan(logged["psp_entropy_test/second"])
    assert math.isnan(logged["psp/entropy_test"])


def test_no_counts_are_kept_between_evaluations():
    class Unscored(Classifier):
        def validation_step(self, batch, batch_index):
            self(batch[0])

    class Look(Callback):
        def on_validation_batch_end(self, *others):
            counting.append(size())

        def on_train_epoch_start(self, *others):
            resting.append(size())

    def size():
        return len(pickle.dumps(callback._entropy))  # Lightning gives the callback methods of the module

    counting, resting = [], []
    callback = PSPCallback(entropy=(1, 2), num_classes=10_000)
    quiet_trainer(callback, Look(), max_epochs=3, num_sanity_val_steps=0).fit(module_of(Unscored), loader(), data()[0])
    assert min(counting) > max(resting) + 10_000
    assert len(resting) == 3


def test_no_counts_are_kept_behind_an_exception():
    class Fails(Classifier):
        def test_step(self, batch, batch_index):
            self(batch[0])
            if batch_index == 2:
                raise KeyError

    callback = PSPCallback(entropy=(1, 2), num_classes=10_000)
    before = len(pickle.dumps(callback._entropy))
    with pytest.raises(KeyError):
        evaluated(callback, module_of(Fails), data()[0])
    assert len(pickle.dumps(callback._entropy)) < before + 10_000


def test_copies_of_the_callback_measure_for_themselves():
    module, (loaders, *_) = module_of(), data()
    callback = PSPCallback(entropy=(1, 2))
    expected = evaluated(callback, module, loaders)
    for copied in (copy.deepcopy(callback), pickle.loads(pickle.dumps(callback))):
        assert evaluated(copied, module, loaders) == expected


@pytest.mark.parametrize(
    ("arguments", "error", "parts"),
    [
        ({"entropy": "yes"}, TypeError, ("entropy", "'yes'", "'auto'")),
        ({"entropy": 1}, TypeError, ("entropy", "1", "sequence")),
        ({"entropy": (0,)}, ValueError, ("entropy", "(0,)", "from 1")),
        ({"entropy": (1.0,)}, TypeError, ("entropy", "(1.0,)")),
        ({"entropy": (True,)}, TypeError, ("entropy", "(True,)")),
        ({"entropy": (1, 1)}, ValueError, ("entropy", "once")),
        ({"entropy_unit": "filter"}, ValueError, ("entropy_unit", "'filter'", "element, channel")),
    ],
)
def test_arguments_that_are_refused(arguments, error, parts):
    with pytest.raises(error) as raised:
        PSPCallback(**arguments)
    for part in parts:
        assert part in str(raised.value)
