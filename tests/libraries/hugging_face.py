"""How rows of transformers are made: a configuration, inputs, and the loss inside `forward` or in the step."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.libraries.check import Case, Row
from tests.libraries.taps import Layer, outs

VOCABULARY, LENGTH, BATCH, CLASSES = 40, 8, 3, 4

Inputs = Callable[[Any], tuple[dict[str, Any], dict[str, Any]]]  # config to inputs and labels


def text(config: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Tokens and a label for each."""
    tokens = torch.randint(3, VOCABULARY, (BATCH, LENGTH))
    return {"input_ids": tokens}, {"labels": torch.randint(0, VOCABULARY, (BATCH, LENGTH))}


def sentences(config: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Tokens and a class for each sentence."""
    return {"input_ids": text(config)[0]["input_ids"]}, {"labels": torch.randint(0, CLASSES, (BATCH,))}


def sequences(config: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Tokens of a source and of a target."""
    inputs, labels = text(config)
    return {**inputs, "decoder_input_ids": labels["labels"].roll(1, -1)}, labels


def images(size: int = 32, batch: int = 2) -> Inputs:
    """Images and a class for each."""

    def made(config: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        return {"pixel_values": torch.randn(batch, 3, size, size)}, {"labels": torch.randint(0, CLASSES, (batch,))}

    return made


def cross_entropy(output: Any, labels: dict[str, Any]) -> Tensor:
    """The loss of somebody's own step."""
    logits = output.logits
    return F.cross_entropy(logits.reshape(-1, logits.shape[-1]), labels["labels"].reshape(-1))


def model(
    name: str,
    class_name: str,
    layers: Iterable[str | Layer],
    inputs: Inputs = text,
    loss: Callable[[Any, dict[str, Any]], Tensor] | None = cross_entropy,
    *,
    inside: bool = True,
    says: str = "",
    unseen: Iterable[str] = (),
    must_say: bool = False,
    double: bool = True,
    made_late: Callable[[], dict[str, Any]] = dict,
    **settings: Any,
) -> list[Row]:
    """Rows of one model: with the labels given to `forward`, and with a loss in the step.

    Args:
        name: of the row.
        class_name: in transformers.
        layers: of the definition; a text may hold braces.
        inputs: makes inputs and labels.
        loss: of the step, if there is to be such a row.
        inside: whether there is a row with labels for `forward`.
        says: see `Case`.
        unseen: see `Case`.
        must_say: see `Case`.
        double: see `Row`.
        made_late: makes settings for which the library must be imported.
        settings: of the configuration.
    """
    layers = list(layers)

    def make(step: Callable[[Any, dict[str, Any], dict[str, Any]], Tensor]) -> Callable[[], Case]:
        def made() -> Case:
            network, config = build(class_name, {**settings, **made_late()}, torch.float64 if double else torch.float32)
            given, labels = inputs(config)
            made_layers = [one for entry in layers for one in (outs(entry) if isinstance(entry, str) else [entry])]
            return Case(
                network,
                lambda net: step(net, given, labels),
                made_layers,
                says=says,
                unseen=tuple(unseen),
                must_say=must_say,
            )

        return made

    rows = []
    if inside:
        rows.append(Row("transformers", name, make(lambda net, given, labels: net(**given, **labels).loss), double))
    if loss is not None:
        label = f"{name}, loss in the step" if inside else name
        rows.append(Row("transformers", label, make(lambda net, given, labels: loss(net(**given), labels)), double))
    return rows


def build(class_name: str, settings: dict[str, Any], dtype: torch.dtype = torch.float64) -> tuple[nn.Module, Any]:
    """A model with random weights, in training mode."""
    import transformers

    transformers.logging.set_verbosity_error()
    made = getattr(transformers, class_name)
    config = made.config_class(**settings)
    network = made(config).to(dtype).train()
    with torch.no_grad():  # weights of ordinary size: potentials of all layers matter
        for parameter in network.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0.0, 0.2)
    return network, config
