"""`PSPCallback.metrics`: what was logged, as metrics of the last epoch of each stage."""

import copy
import pickle

import pytest
import torch
from lightning.pytorch import Callback

from lightning_psp import PSPCallback
from lightning_psp.callback.layer_metrics import LayerMetrics, MeanSquares
from lightning_psp.metrics import MeanSquarePotential, PSPEntropy
from tests.support.entropy_reference import classwise, entropy_by_hand
from tests.support.evaluated import HIDDEN, data, hidden_potentials, module_of
from tests.support.small import CLASSES, loader, quiet_trainer

LAYERS = ["first", "second", "third"]


def approx32(value):
    """Lightning keeps what is logged in float32."""
    return pytest.approx(float(value), rel=2**-23)


@pytest.fixture
def trained():
    """A callback after a training with validation, its module, and the validation data."""
    module, (loaders, features, labels), callback = module_of(), data(), PSPCallback(entropy=(1, 2))
    trainer = quiet_trainer(callback, max_epochs=2)
    trainer.fit(module, loader(), loaders)
    return callback, module, features, labels, trainer


def test_there_is_a_record_for_each_stage_and_layer(trained):
    callback, *_ = trained
    assert {stage: [*layers] for stage, layers in callback.metrics.items()} == {
        "train": LAYERS,
        "val": LAYERS,
        "test": [],
    }
    record = callback.metrics["val"]["first"]
    assert isinstance(record.mean_square, MeanSquarePotential)
    assert isinstance(record.entropy, PSPEntropy)
    assert (record.entropy.order, record.entropy2.order) == (1, 2)
    assert record.entropies == {1: record.entropy, 2: record.entropy2}


def test_values_of_the_metrics_are_those_logged_and_of_a_count_by_hand(trained):
    callback, module, features, labels, trainer = trained
    logged = trainer.callback_metrics
    for stage in ("train", "val"):
        for layer, record in callback.metrics[stage].items():
            assert float(record.mean_square.compute()) == approx32(logged[f"psp_z2_{stage}/{layer}"])
    for layer, z in hidden_potentials(module, features).items():
        record = callback.metrics["val"][layer]
        assert float(record.mean_square.compute()) == pytest.approx(z.square().mean().item(), rel=1e-12)
        for order, metric in record.entropies.items():
            name = "entropy" if order == 1 else "entropy2"
            assert float(metric.compute()) == pytest.approx(entropy_by_hand(z, labels, order), rel=1e-6)
            assert float(metric.compute()) == approx32(logged[f"psp_{name}_val/{layer}"])
        by_class = torch.from_numpy(classwise((z > 0).numpy(), labels.numpy(), CLASSES))
        torch.testing.assert_close(record.entropy.classwise(), by_class, rtol=0.0, atol=1e-12)


def test_what_was_not_measured_is_said(trained):
    callback, *_ = trained
    for stage, layer in (("train", "first"), ("val", "third")):
        with pytest.raises(AttributeError, match="order 1 was not measured"):
            _ = callback.metrics[stage][layer].entropy
    with pytest.raises(AttributeError, match=r"order 3 was not measured.*\[1, 2\]"):
        _ = callback.metrics["val"]["first"].entropy3
    with pytest.raises(AttributeError, match="has no attribute 'entropies_'"):
        _ = callback.metrics["val"]["first"].entropies_


def test_an_editor_proposes_the_entropies():
    entropies = {1: PSPEntropy(num_classes=2), 3: PSPEntropy(num_classes=2, order=3)}
    names = dir(LayerMetrics(MeanSquarePotential(), entropies))
    assert {"mean_square", "entropies", "entropy", "entropy3"} <= set(names)
    assert "entropy2" not in names


def test_metrics_can_be_plotted_and_go_on(trained):
    callback, *_ = trained
    pytest.importorskip("matplotlib")
    record = callback.metrics["val"]["first"]
    record.entropy.plot()
    record.mean_square.plot()
    before, elements = float(record.mean_square.compute()), int(record.mean_square.elements)
    record.mean_square.update(torch.ones(4, 8, dtype=torch.float64))
    expected = (before * elements + 32) / (elements + 32)
    assert float(record.mean_square.compute()) == pytest.approx(expected, rel=1e-12)
    record.entropy.update(torch.ones(1, 8), torch.tensor([0]))


def test_they_are_of_the_last_epoch_and_a_new_epoch_leaves_them_to_who_has_them():
    class Keep(Callback):
        def on_train_epoch_end(self, trainer, module):
            kept.append(callback.metrics)
            logged.append({key: float(value) for key, value in trainer.callback_metrics.items()})

    kept, logged, callback = [], [], PSPCallback()
    quiet_trainer(callback, Keep(), max_epochs=3).fit(module_of(), loader(), data()[0])
    for metrics, values in zip(kept, logged, strict=True):
        for layer in HIDDEN:
            assert float(metrics["val"][layer].mean_square.compute()) == approx32(values[f"psp_z2_val/{layer}"])
            assert float(metrics["val"][layer].entropy.compute()) == approx32(values[f"psp_entropy_val/{layer}"])
    assert logged[0] != logged[2]


def test_no_module_or_trainer_finds_them(trained):
    callback, module, *_, trainer = trained
    metrics = [metric for record in callback.metrics["val"].values() for metric in record.entropies.values()]
    assert metrics
    assert not [each for each in module.modules() if isinstance(each, (MeanSquarePotential, PSPEntropy))]
    assert not [each for each in vars(trainer).values() if isinstance(each, (MeanSquarePotential, PSPEntropy))]


@pytest.mark.parametrize("make", [copy.deepcopy, lambda callback: pickle.loads(pickle.dumps(callback))])
@pytest.mark.parametrize("hook", ["on_train_batch_end", "on_validation_batch_end", "on_validation_batch_start"])
def test_a_copy_in_the_middle_of_an_epoch_has_what_was_measured_up_to_then(make, hook):
    class Copy(Callback):
        pass

    def copied(trainer, *args, **kwargs):
        if not copies:
            copies.append(make(callback))
            originals.append(
                {
                    stage: {layer: record.mean_square.compute() for layer, record in layers.items()}
                    for stage, layers in callback.metrics.items()
                }
            )

    copies, originals, callback = [], [], PSPCallback(entropy=(1,))
    setattr(watcher := Copy(), hook, copied)
    quiet_trainer(callback, watcher, max_epochs=2, num_sanity_val_steps=0).fit(module_of(), loader(3), data()[0])
    for stage, layers in originals[0].items():
        assert {layer: float(v) for layer, v in layers.items()} == {
            layer: float(record.mean_square.compute()) for layer, record in copies[0].metrics[stage].items()
        }
    assert originals[0]["train"]


def test_nothing_is_measured_but_the_last_epochs_after_a_crash():
    class Crash(Callback):
        def on_train_batch_end(self, *args):
            raise RuntimeError("crash")

    callback = PSPCallback()
    with pytest.raises(RuntimeError, match="crash"):
        quiet_trainer(callback, Crash()).fit(module_of(), loader(), data()[0])
    assert int(callback.metrics["train"]["first"].mean_square.elements) == 4 * 8


@pytest.mark.parametrize("steps", [1, 99, 100, 101, 250])
def test_sums_that_wait_count_once_each(steps):
    squares, expected, count = MeanSquares(), 0.0, 0
    for step in range(steps):
        total = float(step) if step % 3 else torch.tensor(float(step))
        squares.add({"always": (total, 2), **({"seldom": (1.0, 1)} if step == 7 else {})})
        expected, count = expected + step, count + 2
    assert squares.means()["always"] == pytest.approx(expected / count, rel=1e-12)
    assert ("seldom" in squares.means()) == (steps > 7)
    assert int(squares.metrics["always"].elements) == count


def test_the_state_of_an_epoch_is_plain_tensors_and_taken_up_again():
    squares = MeanSquares()
    squares.add({"a": (torch.tensor(2.0), 2), "b": (3.0, 1)})
    squares.add({"a": (4.0, 1)})
    squares.add({})
    state = squares.state()
    assert {layer: [type(value) for value in entry] for layer, entry in state.items()} == {
        "a": [torch.Tensor, torch.Tensor],
        "b": [torch.Tensor, torch.Tensor],
    }
    resumed = MeanSquares()
    resumed.load(state)
    resumed.add({"b": (1.0, 3)})
    assert resumed.means() == {"a": 2.0, "b": 1.0}
    assert squares.means() == {"a": 2.0, "b": 3.0}
