"""How rows of forecasting libraries are made: their own data sets, modules and trainers, for one step in float64."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable
from typing import Any

from torch import nn

from tests.libraries.check import Row, Training
from tests.libraries.taps import Layer, outs

QUIET = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False}


def row(library: str, name: str, fit: Callable[[list[Any]], None], layers: Iterable[str | Layer], **more: Any) -> Row:
    """A row of a LightningModule in the library's own training."""
    layers = list(layers)

    def expected(module: nn.Module) -> list[Layer]:
        return [one for entry in layers for one in (outs(entry) if isinstance(entry, str) else [entry])]

    return Row(library, name, lambda: Training(fit, expected, **more))


def pytorch_forecasting(
    name: str, class_name: str, layers: Iterable[str | Layer], known: bool = True, **settings: Any
) -> Row:
    def fit(callbacks: list[Any]) -> None:
        import numpy
        import pandas
        import pytorch_forecasting as library
        from lightning.pytorch import Trainer

        numbers = numpy.random.default_rng(0).normal(size=(2, 40))
        frame = {
            "time": [*range(20), *range(20)],
            "group": ["a"] * 20 + ["b"] * 20,
            "y": numbers[0] + 5,
            "x": numbers[1],
        }
        data = library.TimeSeriesDataSet(
            pandas.DataFrame(frame),
            time_idx="time",
            target="y",
            group_ids=["group"],
            max_encoder_length=6,
            max_prediction_length=3,
            time_varying_unknown_reals=["y"],
            time_varying_known_reals=["x"] if known else [],
            target_normalizer=library.GroupNormalizer(groups=["group"]),
        )
        made = {k: v(library) if callable(v) else v for k, v in settings.items()}
        model = getattr(library, class_name).from_dataset(data, **made)
        loader = data.to_dataloader(train=True, batch_size=8, num_workers=0)
        trainer = Trainer(
            max_epochs=1,
            limit_train_batches=1,
            precision="64-true",
            enable_checkpointing=False,
            callbacks=callbacks,
            **QUIET,
        )
        trainer.fit(model, loader)

    return row("pytorch-forecasting", name, fit, layers)


def neuralforecast(name: str, class_name: str, layers: Iterable[str | Layer], **settings: Any) -> Row:
    def fit(callbacks: list[Any]) -> None:
        import neuralforecast as library
        import numpy
        import pandas
        from neuralforecast import models

        numbers = numpy.random.default_rng(0).normal(size=80)
        series = {"unique_id": ["a"] * 40 + ["b"] * 40, "ds": [*range(40), *range(40)], "y": numbers}
        made = {k: v(library) if callable(v) else v for k, v in settings.items()}
        model = getattr(models, class_name)(
            h=3,
            input_size=6,
            max_steps=1,
            batch_size=2,
            windows_batch_size=8,
            callbacks=callbacks,
            enable_checkpointing=False,
            precision="64-true",
            **QUIET,
            **made,
        )
        library.NeuralForecast(models=[model], freq=1).fit(pandas.DataFrame(series))

    return row("neuralforecast", name, fit, layers, lightning="pytorch_lightning")


def darts(name: str, class_name: str, layers: Iterable[str | Layer], **settings: Any) -> Row:
    def fit(callbacks: list[Any]) -> None:
        import numpy
        from darts import TimeSeries, models

        series = TimeSeries.from_values(numpy.random.default_rng(0).normal(size=40))
        lengths = {"training_length": 8} if class_name == "RNNModel" else {"output_chunk_length": 3}
        made = {k: v() if callable(v) else v for k, v in settings.items()}
        model = getattr(models, class_name)(
            input_chunk_length=6,
            **lengths,
            n_epochs=1,
            batch_size=64,
            pl_trainer_kwargs={"callbacks": callbacks, **QUIET},
            **made,
        )
        model.fit(series)

    return row("u8darts", name, fit, layers, lightning="pytorch_lightning")


def gluonts(name: str, class_name: str, layers: Iterable[str | Layer], **settings: Any) -> Row:
    def fit(callbacks: list[Any]) -> None:
        import gluonts.torch as library
        import numpy
        from gluonts.dataset.common import ListDataset

        random = numpy.random.default_rng(0)
        series = [{"start": "2020-01-01", "target": random.normal(size=60) + 5} for _ in range(4)]
        with tempfile.TemporaryDirectory() as folder:
            trainer = {
                "callbacks": callbacks,
                "max_epochs": 1,
                "precision": "64-true",
                "default_root_dir": folder,
                **QUIET,
            }
            estimator = getattr(library, class_name)(
                prediction_length=3,
                context_length=6,
                batch_size=4,
                num_batches_per_epoch=1,
                trainer_kwargs=trainer,
                **settings,
            )
            estimator.train_model(ListDataset(series, freq="D"))

    return row("gluonts", name, fit, layers)
