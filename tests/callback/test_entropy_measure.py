"""PSP-entropy over validation and test runs: its values against a count by hand."""

import logging

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import EarlyStopping
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from lightning_psp import PSPCallback
from tests.support.entropy_reference import entropy_by_hand
from tests.support.evaluated import HIDDEN, data, evaluated, hidden_potentials, messages, module_of
from tests.support.small import BATCH, CLASSES, Classifier, loader, quiet_trainer


@pytest.mark.parametrize("stage", ["val", "test"])
def test_values_are_those_of_a_count_by_hand(stage):
    module, (loaders, features, labels) = module_of(), data()
    logged = evaluated(PSPCallback(entropy=(1, 2, 3)), module, loaders, stage)
    expected = {}
    for order, name in ((1, "entropy"), (2, "entropy2"), (3, "entropy3")):
        layers = {n: entropy_by_hand(z, labels, order) for n, z in hidden_potentials(module, features).items()}
        expected[f"psp/{name}_{stage}"] = sum(layers.values()) / 2
        expected.update({f"psp_{name}_{stage}/{layer}": value for layer, value in layers.items()})
    assert logged == pytest.approx(expected, rel=1e-6)
    assert min(logged.values()) > 0.1


def test_by_default_order_one_is_measured():
    module, (loaders, features, labels) = module_of(), data()
    logged = evaluated(PSPCallback(log_layers=False), module, loaders)
    layers = [entropy_by_hand(z, labels, 1) for z in hidden_potentials(module, features).values()]
    assert logged == {"psp/entropy_test": pytest.approx(sum(layers) / 2, rel=1e-6)}


def test_values_of_each_epoch_of_a_fit_are_those_of_its_weights():
    class Compare(Callback):
        def on_validation_epoch_start(self, trainer, module):
            if not trainer.sanity_checking:
                expected.append([entropy_by_hand(z, labels, 1) for z in hidden_potentials(module, features).values()])

        def on_train_epoch_end(self, trainer, module):
            logged.append([float(trainer.callback_metrics[f"psp_entropy_val/{layer}"]) for layer in HIDDEN])

    (loaders, features, labels), expected, logged = data(), [], []
    quiet_trainer(PSPCallback(), Compare(), max_epochs=3, num_sanity_val_steps=2).fit(module_of(), loader(), loaders)
    assert len(logged) == 3
    assert logged == [pytest.approx(layers, rel=1e-6) for layers in expected]
    assert logged[0] != logged[2]


def test_nothing_is_measured_in_the_sanity_check():
    class Look(Callback):
        def on_sanity_check_end(self, trainer, module):
            seen.append([key for key in trainer.callback_metrics if "entropy" in key])

    seen = []
    quiet_trainer(PSPCallback(), Look(), num_sanity_val_steps=2).fit(module_of(), loader(), data()[0])
    assert seen == [[]]


def test_an_activation_that_is_written_out_is_counted_once():
    """Its inner nonlinearity is taken for one until it closes: other values, of which other units are on."""

    class Shifted(Classifier):
        def forward(self, features):
            z = self.first(features)
            return self.third(torch.relu(self.second(z * torch.sigmoid(z + 0.5))))

    torch.manual_seed(3)
    module, (loaders, features, labels) = Shifted().double(), data()
    logged = evaluated(PSPCallback(entropy=(1, 2)), module, loaders)
    z = module.first(features).detach()
    for order, name in ((1, "entropy"), (2, "entropy2")):
        assert logged[f"psp_{name}_test/first"] == pytest.approx(entropy_by_hand(z, labels, order), rel=1e-6)
        assert abs(entropy_by_hand(z + 0.5, labels, order) - entropy_by_hand(z, labels, order)) > 0.01


def test_channels_are_units_and_their_positions_observations():
    class Convolutional(Classifier):
        def __init__(self):
            super().__init__()
            self.first, self.third = nn.Conv1d(1, 4, 3), nn.Linear(16, CLASSES)

        def forward(self, features):
            return self.third(functional.relu(self.first(features.unsqueeze(1))).flatten(1))

    module, (loaders, features, labels) = module_of(Convolutional), data()
    logged = evaluated(PSPCallback(entropy=(1, 2), entropy_unit="channel"), module, loaders)
    with torch.no_grad():
        windows = features.unfold(1, 3, 1)  # [batch, position, 3]
        z = torch.einsum("bpk,ck->bpc", windows, module.first.weight[:, 0]) + module.first.bias
    rows, classes = z.flatten(0, 1), labels.repeat_interleave(z.shape[1])
    assert logged["psp_entropy_test/first"] == pytest.approx(entropy_by_hand(rows, classes, 1), rel=1e-6)
    assert logged["psp_entropy2_test/first"] == pytest.approx(entropy_by_hand(rows, classes, 2), rel=1e-6)


def test_channels_of_a_transformer_are_in_its_last_dimension():
    class Transformer(Classifier):
        def __init__(self):
            super().__init__()
            self.block = nn.TransformerEncoderLayer(6, 2, 10, dropout=0.0, batch_first=True)
            self.third = nn.Linear(6, CLASSES)

        def forward(self, features):
            return self.third(self.block(torch.stack([features, 2 * features, -features], 1)).mean(1))

    module, (loaders, _, labels) = module_of(Transformer), data()
    seen = []
    handle = module.block.linear1.register_forward_hook(lambda _, args, output: seen.append(output.detach().clone()))
    logged = evaluated(PSPCallback(entropy_unit="channel"), module, loaders)
    handle.remove()
    z = torch.cat(seen)
    expected = entropy_by_hand(z.flatten(0, 1), labels.repeat_interleave(3), 1)
    assert logged["psp_entropy_test/block.linear1"] == pytest.approx(expected, rel=1e-6)


def test_several_dataloaders_count_as_one_data_set():
    class Several(Classifier):
        def validation_step(self, batch, batch_index, dataloader_idx=0):
            self.log("val_loss", functional.cross_entropy(self(batch[0]), batch[1]))

    module, (first, *_), (second, *_) = module_of(Several), data(3, seed=1), data(4, seed=2)
    logged = evaluated(PSPCallback(), module, [first, second], "val")
    features, labels = (torch.cat(pair) for pair in zip(first.dataset.tensors, second.dataset.tensors, strict=True))
    for layer, z in hidden_potentials(module, features).items():
        assert logged[f"psp_entropy_val/{layer}"] == pytest.approx(entropy_by_hand(z, labels, 1), rel=1e-6)


def test_a_network_called_twice_in_a_step_has_twice_the_observations():
    class Twice(Classifier):
        def test_step(self, batch, batch_index):
            functional.cross_entropy(self(batch[0]) + self(-batch[0]), batch[1])

    module, (loaders, features, labels) = module_of(Twice), data()
    logged = evaluated(PSPCallback(), module, loaders)
    for layer, z in hidden_potentials(module, torch.cat([features, -features])).items():
        expected = entropy_by_hand(z, torch.cat([labels, labels]), 1)
        assert logged[f"psp_entropy_test/{layer}"] == pytest.approx(expected, rel=1e-6)


def test_layers_are_chosen_by_the_patterns_of_the_callback():
    logged = evaluated(PSPCallback(exclude=("first",)), module_of(), data()[0])
    assert set(logged) == {"psp/entropy_test", "psp_entropy_test/second"}
    assert set(evaluated(PSPCallback(output=False), module_of(), data()[0])) == {
        "psp/entropy_test",
        *(f"psp_entropy_test/{layer}" for layer in HIDDEN),
    }


@pytest.mark.parametrize("target", [1, "digit", lambda batch: batch["digit"]])
def test_labels_are_found_where_target_says(target):
    class Elsewhere(Classifier):
        def test_step(self, batch, batch_index):
            functional.cross_entropy(self(batch["x"] if isinstance(batch, dict) else batch[0]), find(batch))

    def find(batch):
        return batch[target] if not callable(target) else target(batch)

    module, (_, features, labels) = module_of(Elsewhere), data()
    batches = [
        (x, y, y * 0) if target == 1 else {"x": x, "digit": y}
        for x, y in zip(features.split(BATCH), labels.split(BATCH), strict=True)
    ]
    logged = evaluated(PSPCallback(target=target, entropy=(1,)), module, DataLoader(batches, batch_size=None))
    for layer, z in hidden_potentials(module, features).items():
        assert logged[f"psp_entropy_test/{layer}"] == pytest.approx(entropy_by_hand(z, labels, 1), rel=1e-6)


def test_classes_that_come_late_are_counted():
    module, (_, features, labels) = module_of(), data()
    order = labels.argsort()
    logged = evaluated(
        PSPCallback(), module, DataLoader(TensorDataset(features[order], labels[order]), batch_size=BATCH)
    )
    for layer, z in hidden_potentials(module, features).items():
        assert logged[f"psp_entropy_test/{layer}"] == pytest.approx(entropy_by_hand(z, labels, 1), rel=1e-6)


@pytest.mark.parametrize("place", [0, 2])
@pytest.mark.parametrize("is_empty", [False, True])
def test_a_batch_that_the_network_does_not_see(place, is_empty):
    class Skips(Classifier):
        def test_step(self, batch, batch_index):
            if is_empty or batch_index != place:
                functional.cross_entropy(self(batch[0]), batch[1])

    module, (_, features, labels) = module_of(Skips), data()
    batches = [*zip(features.split(4), labels.split(4), strict=True)]
    batches.insert(place, (features[:0], labels[:0]) if is_empty else (features[:4], labels[:4]))
    logged = evaluated(PSPCallback(entropy=(1,)), module, DataLoader(batches, batch_size=None))
    expected = entropy_by_hand(hidden_potentials(module, features)["first"], labels, 1)
    assert logged["psp_entropy_test/first"] == pytest.approx(expected, rel=1e-6)


def test_one_logit_decides_between_two_classes():
    class Binary(Classifier):
        def __init__(self):
            super().__init__()
            self.third = nn.Linear(8, 1)

        def test_step(self, batch, batch_index):
            functional.binary_cross_entropy_with_logits(self(batch[0])[:, 0], batch[1].double())

    module, (_, features, labels) = module_of(Binary), data()
    labels = labels % 2
    logged = evaluated(PSPCallback(), module, DataLoader(TensorDataset(features, labels), batch_size=BATCH))
    for layer, z in hidden_potentials(module, features).items():
        expected = entropy_by_hand(z, labels, 1)
        assert logged[f"psp_entropy_test/{layer}"] == pytest.approx(expected, rel=1e-6)


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("orders", ["auto", (1, 2)])
def test_values_in_a_compiled_network_are_those_of_the_plain_one(orders):
    module, (loaders, *_) = module_of(), data()
    expected = evaluated(PSPCallback(entropy=orders), module, loaders)
    module.forward = torch.compile(module.forward, backend="aot_eager")
    trainer = quiet_trainer(callback := PSPCallback(entropy=orders))
    trainer.test(module, loaders, verbose=False)
    assert {k: float(v) for k, v in trainer.callback_metrics.items() if "entropy" in k} == pytest.approx(expected)
    assert len(expected) == (3 if orders == "auto" else 6)
    # Between the epochs of a training, which takes compiled code of another kind.
    quiet_trainer(callback, max_epochs=2).fit(module, loader(), loaders)
    plain = module_of()
    plain.load_state_dict(module.state_dict())
    expected = evaluated(PSPCallback(entropy=orders), plain, loaders, "val")
    assert evaluated(callback, module, loaders, "val") == pytest.approx(expected)


def test_the_output_layer_is_left_out_where_the_network_ends_in_a_nonlinearity():
    class Probabilities(Classifier):
        def forward(self, features):
            return torch.sigmoid(super().forward(features))

        def test_step(self, batch, batch_index):
            functional.binary_cross_entropy(self(batch[0]), functional.one_hot(batch[1], CLASSES).double())

    logged = evaluated(PSPCallback(), module_of(Probabilities), data()[0])
    assert set(logged) == {"psp/entropy_test", *(f"psp_entropy_test/{layer}" for layer in HIDDEN)}


def test_layers_with_fewer_units_than_the_order_are_left_out(caplog):
    class Narrow(Classifier):
        def __init__(self):
            super().__init__()
            self.second, self.third = nn.Linear(8, 2), nn.Linear(2, CLASSES)

    module, (loaders, features, labels) = module_of(Narrow), data()
    with caplog.at_level(logging.INFO):
        logged = evaluated(PSPCallback(entropy=(2, 3)), module, loaders)
    first = entropy_by_hand(hidden_potentials(module, features)["first"], labels, 3)
    assert {key: value for key, value in logged.items() if "entropy3" in key} == {
        "psp/entropy3_test": pytest.approx(first, rel=1e-6),
        "psp_entropy3_test/first": pytest.approx(first, rel=1e-6),
    }
    assert "psp_entropy2_test/second" in logged
    (message,) = messages(caplog)
    assert "order 3" in message
    assert "'second'" in message


def test_another_network_may_have_more_classes():
    class Five(Classifier):
        def __init__(self):
            super().__init__()
            self.third = nn.Linear(8, 5)

    callback, (loaders, features, labels) = PSPCallback(entropy=(1,)), data()
    evaluated(callback, module_of(), loaders)
    labels = (labels + torch.arange(len(labels))) % 5
    logged = evaluated(callback, module := module_of(Five), DataLoader(TensorDataset(features, labels), batch_size=4))
    expected = entropy_by_hand(hidden_potentials(module, features)["first"], labels, 1)
    assert logged["psp_entropy_test/first"] == pytest.approx(expected, rel=1e-6)


def test_other_callbacks_can_monitor_the_entropy():
    stopping = EarlyStopping(monitor="psp/entropy_val", patience=0, mode="max", min_delta=100.0)
    trainer = quiet_trainer(stopping, PSPCallback(), max_epochs=5)
    trainer.fit(module_of(), loader(), data()[0])
    assert trainer.current_epoch == 2


def test_sampled_sets_are_said_to_be_so(caplog):
    class Wide(Classifier):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(6, 60), nn.Linear(60, 8)

    with caplog.at_level(logging.INFO):
        evaluated(PSPCallback(entropy=(3,)), module_of(Wide), data()[0])
    (message,) = messages(caplog)
    assert "random sample" in message
    assert "standard error" in message
    assert "order 3" in message
