"""Curves over the epochs: what is read from which log, and what is drawn."""

import math

import numpy as np
import pytest
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from matplotlib.figure import Figure

from lightning_psp.plotting import plot_curves

ERRORS, SIZES = [[4.0, 3.0, 2.0], [2.0, 1.0, 1.0]], [[1.0, 2.0, 8.0], [3.0, 4.0, 10.0]]


def trainings(number=2):
    return [{"val_error": ERRORS[seed], "psp/z2_val": SIZES[seed]} for seed in range(number)]


class Logged(LightningModule):
    """Logs a value each step and one each epoch."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def train_dataloader(self):
        return [0, 1, 2]

    def val_dataloader(self):
        return [0]

    def training_step(self, batch, batch_idx):
        self.log("lam", float(10 * self.current_epoch + batch))

    def validation_step(self, batch, batch_idx):
        self.log("val_error", 0.5 / (1 + self.current_epoch), batch_size=1)

    def configure_optimizers(self):
        return None

    def test_dataloader(self):
        return [0]

    def test_step(self, batch, batch_idx):
        self.log("test_error", 0.125, batch_size=1)


def fit(logger, epochs=3, **settings):
    trainer = Trainer(
        max_epochs=epochs,
        logger=logger,
        log_every_n_steps=1,
        accelerator="cpu",
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **settings,
    )
    trainer.fit(Logged())
    return trainer


def lines(axes):
    return {line.get_label(): [line.get_xdata().tolist(), line.get_ydata().tolist()] for line in axes.lines}


def test_mean_of_several_trainings_with_a_band():
    figure, (error, z2) = plot_curves({"none": trainings(1), "PSP": trainings(2)})
    assert lines(error) == {"none": [[1, 2, 3], [4, 3, 2]], "PSP": [[1, 2, 3], [3, 2, 1.5]]}
    assert lines(z2)["PSP"] == [[1, 2, 3], [2, 3, 9]]
    (band,) = z2.collections
    corners = {tuple(corner) for corner in band.get_paths()[0].vertices.tolist()}
    assert {(1, 1), (1, 3), (2, 2), (2, 4), (3, 8), (3, 10)} <= corners
    assert "mean of 1 or 2 trainings" in figure.texts[0].get_text()
    assert z2.get_ylabel() == "mean squared potential ⟨z²⟩ (log scale)"
    assert error.get_ylabel() == "val_error (log scale)"
    assert {error.get_yscale(), z2.get_yscale()} == {"log"}
    figure.canvas.draw()


def test_the_last_technique_stands_out():
    _, (axes,) = plot_curves(dict.fromkeys("abc", trainings(1)), keys=["val_error"])
    colours = [line.get_color() for line in axes.lines]
    assert colours[-1] == "#D55E00"
    assert len(set(colours)) == len({line.get_linestyle() for line in axes.lines}) == 3


@pytest.mark.parametrize("where", ["folder", "file"])
@pytest.mark.parametrize(("kind", "file"), [(CSVLogger, "metrics.csv"), (TensorBoardLogger, "events.out.tfevents*")])
@pytest.mark.filterwarnings(
    "ignore:.*configure_optimizers.*", "ignore:Checkpoint directory", "ignore::DeprecationWarning"
)
def test_logs_of_lightning(kind, file, where, tmp_path):
    folder = fit(kind(tmp_path)).logger.log_dir
    log = folder if where == "folder" else next(tmp_path.rglob(file))
    _, (error, lam) = plot_curves({"a": log}, keys=("val_error", "lam"), log_scale=False)
    np.testing.assert_allclose(lines(error)["a"], [[1, 2, 3], [0.5, 0.25, 0.5 / 3]], rtol=1e-6)
    assert lines(lam)["a"] == [[1, 2, 3], [2, 12, 22]]  # the last of each epoch


@pytest.mark.parametrize("batches", [3, 1])
@pytest.mark.parametrize("kind", [CSVLogger, TensorBoardLogger])
@pytest.mark.filterwarnings(
    "ignore:.*configure_optimizers.*", "ignore:Checkpoint directory", "ignore::DeprecationWarning"
)
def test_an_evaluation_after_the_training_is_no_further_epoch(kind, batches, tmp_path):
    trainer = fit(kind(tmp_path), limit_train_batches=batches)
    for evaluate in (trainer.validate, trainer.test):
        evaluate(trainer.lightning_module, verbose=False)
    log = trainer.logger.log_dir
    _, (error, lam, test) = plot_curves({"a": log}, keys=("val_error", "lam", "test_error"), log_scale=False)
    np.testing.assert_allclose(lines(error)["a"], [[1, 2, 3], [0.5, 0.25, 0.5 / 3]], rtol=1e-6)
    assert lines(lam)["a"] == [[1, 2, 3], [batches - 1, 9 + batches, 19 + batches]]
    assert lines(test)["a"] == [[3], [0.125]]


@pytest.mark.parametrize("last", ["2,2,0.3,", "2,5,,0.1"])
def test_an_epoch_of_few_values_is_one(last, tmp_path):
    """Validation in every second epoch of a single step, or within an epoch that was broken off."""
    path = tmp_path / "metrics.csv"
    path.write_text("\n".join(["epoch,step,loss,val_error", "0,0,0.5,", "1,1,0.4,", "1,1,,0.25", last]))
    _, (loss, error) = plot_curves({"one": path}, keys=("loss", "val_error"))
    assert max(*lines(loss)["one"][0], *lines(error)["one"][0]) == 3


def test_rows_without_an_epoch_are_of_that_of_their_step(tmp_path):
    """Lightning's LearningRateMonitor and users write such rows; one without any other of its step is left out."""
    rows = ["epoch,step,lr,val_error", ",5,0.2,", "1,5,,0.25", "0,2,,0.5", ",2,0.1,", ",9,0.3,"]
    path = tmp_path / "metrics.csv"
    path.write_text("\n".join(rows))
    _, axes = plot_curves({"one": path}, keys=("lr", "val_error"))
    assert lines(axes[0]) == {"one": [[1, 2], [0.1, 0.2]]}
    assert lines(axes[1]) == {"one": [[1, 2], [0.5, 0.25]]}


def test_a_log_that_other_programs_have_written(tmp_path):
    """Tables where a value is missing have floating point numbers for epochs, and columns may hold texts."""
    path = tmp_path / "metrics.csv"
    path.write_text("epoch,step,note,val_error\n0.0,5,first,0.5\n1.0,9,second,0.25")
    _, (axes,) = plot_curves({"one": path}, keys=["val_error"])
    assert lines(axes) == {"one": [[1, 2], [0.5, 0.25]]}


@pytest.mark.parametrize("value", [0.0, -0.5])
def test_values_that_have_no_logarithm_are_shown(value):
    runs = {"a": {"val_error": [0.5, value], "psp/z2_val": [2.0, 1.0]}, "b": {"val_error": [0.5], "psp/z2_val": [3.0]}}
    _, (error, z2) = plot_curves(runs)
    assert (error.get_yscale(), z2.get_yscale()) == ("linear", "log")
    assert error.get_ylim()[0] < value
    assert error.get_ylabel() == "val_error"
    assert z2.get_ylabel().endswith("(log scale)")


def test_a_single_epoch_is_a_point():
    _, (axes,) = plot_curves({"one": {"v": [2.0]}, "two": {"v": [2.0, 1.0]}}, keys=["v"])
    assert [line.get_marker() for line in axes.lines] == ["o", "None"]


@pytest.mark.parametrize("epochs", [1, 2, 3, 4, 12, 150])
def test_ticks_are_at_whole_epochs(epochs):
    figure, (axes,) = plot_curves({"one": {"v": [2.0] * epochs}}, keys=["v"])
    figure.canvas.draw()
    assert all(tick == round(tick) for tick in axes.get_xticks())
    assert len(axes.get_xticks()) > 1


def test_a_value_beside_none_that_is_finite_is_a_point():
    _, (axes,) = plot_curves({"a": {"v": [1.0, math.nan, 2.0, 3.0, math.inf, 4.0]}}, keys=["v"])
    assert (axes.lines[0].get_marker(), axes.lines[0].get_markevery()) == ("o", [0, 5])


def test_trainings_without_a_common_epoch_are_an_error():
    with pytest.raises(ValueError, match="trainings of 'a' to have an epoch in common"):
        plot_curves({"a": [{"v": []}, {"v": [1.0]}]}, keys=["v"])


def test_a_training_that_was_broken_off_shortens_the_mean():
    short = {key: values[:2] for key, values in trainings(1)[0].items()}
    _, (error, _) = plot_curves({"a": [short, trainings(2)[1]]})
    assert lines(error) == {"a": [[1, 2], [3, 2]]}


def test_given_axes_are_used():
    axes = Figure().subplots(1, 2)
    figure, drawn = plot_curves({"a": trainings()}, axes)
    assert figure is axes[0].figure
    assert drawn == tuple(axes)
    assert axes[0].get_legend() is not None
    with pytest.raises(ValueError, match="2 axes, one for each of val_error, psp/z2_val, but got 1"):
        plot_curves({"a": trainings()}, axes[0])


def test_nothing_to_draw_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="`trainings`"):
        plot_curves({})
    with pytest.raises(ValueError, match="`trainings` to have at least one training of 'a' but got none"):
        plot_curves({"a": []})
    with pytest.raises(TypeError, match=r"`trainings` to be a dict of logs .* but got str"):
        plot_curves("logs")
    with pytest.raises(TypeError, match=r"such as \('val_loss',\), but got 'val_loss'"):
        plot_curves({"a": trainings()}, keys="val_loss")
    for argument in ("titles", "units"):
        with pytest.raises(TypeError, match=rf"`{argument}` to be a dict of texts by key, .* but got tuple"):
            plot_curves({"a": trainings()}, **{argument: ("a", "b")})
    for other in (3, [3.0], None):
        with pytest.raises(TypeError, match=r"`trainings` to have paths, or dicts .* but got .* for 'a'"):
            plot_curves({"a": other})
    with pytest.raises(TypeError, match=r"one number an epoch for 'val_error' but got 0\.5"):
        plot_curves({"a": {"val_error": 0.5, "psp/z2_val": [1.0]}})
    with pytest.raises(
        ValueError, match=r"'other' but got one with psp/z2_val, val_error: choose with argument `keys`\.$"
    ):
        plot_curves({"a": {**trainings()[0], "psp_z2_val/fc": [1.0]}}, keys=["other"])
    layers = {f"psp_z2_val/bn{number}": [1.0] for number in range(1, 9)}
    alike = ", ".join(f"psp_z2_val/bn{number}" for number in range(8, 3, -1))
    with pytest.raises(ValueError, match=f"with psp/z2_val, val_error, {alike}: choose"):
        plot_curves({"a": {**trainings()[0], **layers}}, keys=["psp_z2_val/bn9"])
    with pytest.raises(FileNotFoundError, match=r"folder with either of them\.$"):
        plot_curves({"a": tmp_path})
    (tmp_path / "version_0").mkdir()
    (tmp_path / "version_0" / "metrics.csv").touch()
    with pytest.raises(FileNotFoundError, match=r"logs in version_0: choose"):
        plot_curves({"a": tmp_path})


@pytest.mark.filterwarnings("ignore:.*configure_optimizers.*", "ignore:Checkpoint directory")
def test_a_log_without_the_key_names_those_it_has(tmp_path):
    with pytest.raises(ValueError, match=r"'psp/z2_val' but found lam, val_error: choose with argument `keys`"):
        plot_curves({"a": fit(CSVLogger(tmp_path), 1).logger.log_dir})


def test_values_that_are_all_missing_have_no_logarithmic_axis():
    _, (axes,) = plot_curves({"a": {"val_error": [math.nan, math.nan]}}, keys=["val_error"])
    assert (axes.get_yscale(), axes.get_ylabel()) == ("linear", "val_error")


@pytest.mark.parametrize(
    ("key", "title", "unit"),
    [
        ("psp/entropy_test", "PSP-entropy, test set", "mean over hidden layers (bits, log scale)"),
        ("psp/entropy2_val", "Second-order PSP-entropy", "mean over hidden layers (bits a pair, log scale)"),
        ("psp/entropy2_test", "Second-order PSP-entropy, test set", "mean over hidden layers (bits a pair, log scale)"),
        ("psp_z2_val/net.fc1", "Size of the potentials: net.fc1", "mean squared potential ⟨z²⟩ (log scale)"),
        ("psp_entropy_val/conv1", "PSP-entropy: conv1", "mean over units (bits, log scale)"),
        (
            "psp_entropy2_test/conv1",
            "Second-order PSP-entropy, test set: conv1",
            "mean over pairs of units (bits, log scale)",
        ),
        ("psp/z2", "Size of the potentials, by step", "mean squared potential ⟨z²⟩ (log scale)"),
        ("psp/penalty_share", "Penalty over loss", "λR / |loss| (log scale)"),
        ("my/z2_val", "my/z2_val", "my/z2_val (log scale)"),
        ("train_acc", "train_acc", "train_acc (log scale)"),
    ],
)
def test_what_is_logged_has_a_title_and_a_unit(key, title, unit):
    _, (axes,) = plot_curves({"a": {key: [1.0, 2.0]}}, keys=(key,))
    assert (axes.get_title(), axes.get_ylabel()) == (title, unit)
