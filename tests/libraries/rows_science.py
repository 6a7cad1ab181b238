"""scvi-tools and Chemprop: variational autoencoders of counts, messages along bonds, in the libraries' own training."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import nn

from tests.libraries.check import Row, Training
from tests.libraries.taps import Layer, into, outs

QUIET = {
    "accelerator": "cpu",
    "logger": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "precision": "64-true",
}


def counts(name: str, class_name: str, layers: Iterable[str | Layer], says: str = "", **settings: Any) -> Row:
    """A model of scvi-tools, trained by its own `train`."""

    def fit(callbacks: list[Any]) -> None:
        import anndata
        import numpy
        import scvi

        numbers = numpy.random.default_rng(0).poisson(2.0, (32, 12)).astype("float32")
        cells = anndata.AnnData(numbers if class_name != "PEAKVI" else (numbers > 2).astype("float32"))
        cells.obs["batch"] = ["x", "y"] * 16
        model_class = getattr(scvi.model, class_name)
        model_class.setup_anndata(cells, batch_key="batch")
        model = model_class(cells, **settings)
        stop = {"early_stopping": False} if class_name == "PEAKVI" else {}
        model.train(max_epochs=1, batch_size=32, train_size=1.0, callbacks=callbacks, **QUIET, **stop)

    return Row("scvi-tools", name, lambda: Training(fit, expected(layers), says=says))


def expected(layers: Iterable[str | Layer]) -> Callable[[nn.Module], list[Layer]]:
    return lambda module: [one for entry in layers for one in (outs(entry) if isinstance(entry, str) else [entry])]


def molecules(name: str, passing: str, layers: Iterable[str | Layer]) -> Row:
    """Energies of molecules, trained by a Trainer as the library's documentation does."""

    def fit(callbacks: list[Any]) -> None:
        from chemprop import data, models
        from chemprop import nn as parts
        from lightning.pytorch import Trainer

        smiles = ["CCO", "CCN", "c1ccccc1", "CC(=O)O"]
        points = [data.MoleculeDatapoint.from_smi(text, [float(i)]) for i, text in enumerate(smiles)]
        loader = data.build_dataloader(data.MoleculeDataset(points), batch_size=4, num_workers=0, shuffle=False)
        head = parts.RegressionFFN(input_dim=8, hidden_dim=8)
        model = models.MPNN(getattr(parts, passing)(d_h=8), parts.MeanAggregation(), head)
        Trainer(max_epochs=1, enable_checkpointing=False, callbacks=callbacks, **QUIET).fit(model.double(), loader)

    return Row("chemprop", name, lambda: Training(fit, expected(layers)))


ENCODER = [
    "module.z_encoder.encoder.fc_layers.Layer 0.1",
    "module.z_encoder.mean_encoder",
    "module.z_encoder.var_encoder",
]
DECODER = ["module.decoder.px_decoder.fc_layers.Layer 0.1", "module.decoder.px_scale_decoder.0"]
SMALL = {"n_hidden": 8, "n_latent": 4}
# The first sum of messages and the second are two calls of one `forward`.
MESSAGES = [
    "message_passing.W_i",
    into("message_passing.tau", lambda turn, args, kwargs: turn == 1),
    into("message_passing.tau", lambda turn, args, kwargs: turn == 2, name="message_passing.tau:1"),
    "message_passing.W_o",
    "predictor.ffn.0.0",
    "predictor.ffn.1.2",
]

ROWS: list[Row] = [
    # The posterior's mean and variance, the share of each gene before its softmax, and the logits of no count.
    counts("SCVI", "SCVI", [*ENCODER, *DECODER, "module.decoder.px_dropout_decoder"], says="exp", **SMALL),
    counts("SCVI, negative binomial", "SCVI", [*ENCODER, *DECODER], says="exp", **SMALL, gene_likelihood="nb"),
    molecules("MPNN", "BondMessagePassing", MESSAGES),
    molecules("MPNN of atoms", "AtomMessagePassing", MESSAGES),
]
