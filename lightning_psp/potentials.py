"""Recording the potentials of a network with their graph attached."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lightning_psp.capture.mode import Capture
from lightning_psp.capture.nonlinearities import find_nonlinearities
from lightning_psp.capture.provenance import Potential
from lightning_psp.gradient.graph import reach
from lightning_psp.selection import LayerSelection


class Potentials(dict[str, Tensor]):
    """Layer name to potentials, in order of call.

    `unit_dims` holds the dimension of each layer's neurons.
    """

    def __init__(self) -> None:
        """Starts without any layer."""
        super().__init__()
        self.unit_dims: dict[str, int] = {}


@contextmanager
def record_potentials(
    module: nn.Module,
    *,
    include: Sequence[str] = ("*",),
    exclude: Sequence[str] = (),
    output: bool = True,
    activations: Sequence[str | type[nn.Module] | Callable[..., object]] = (),
) -> Iterator[Potentials]:
    """Records the potentials of a network while the block runs.

    A potential is the tensor that enters a nonlinearity: a module, a function or a method, in place or not. The
    network's return value (or the tensor that enters its own loss) is the output layer. Each call of a nonlinearity
    within one call of the network is a layer of its own; the passes of several calls of the network are concatenated
    along the batch. Calls under `torch.no_grad()` inside a block that was entered with gradient are left out.

    In recurrent layers the gates' pre-activations are the potentials, ``[batch, time, gates · hidden]``, or the rows
    ``[sum of lengths, gates · hidden]`` of packed sequences. Each direction of each level is a layer: ``rnn``, or
    ``rnn.l0``, ``rnn.l0_reverse``, ``rnn.l1``, … where there are several. What such a layer returns is no potential
    until it enters a nonlinearity or a loss's softmax; it is no output layer.

    Args:
        module: the network. Layers are named relative to it.
        include: glob patterns on layer names.
        exclude: glob patterns on layer names.
        output: whether the output layer is recorded.
        activations: further module classes or torch functions whose input is a potential, or their dotted names.

    Yields:
        A dict from layer name to potentials ``[batch, …]`` with their graph, filled whenever a call of the network
        ends and when the block ends.

    Raises:
        ValueError: at the end of the block, if no layer was found or a pattern matches none; if the passes of a layer
            cannot be concatenated.
        RuntimeError: if a potential is overwritten in place after its nonlinearity has read it.
        NotImplementedError: if a fused function hides the potentials of a layer, or the network uses reentrant
            activation checkpoints of another library.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> network = nn.Sequential(nn.Linear(4, 3), nn.ReLU(inplace=True), nn.Linear(3, 2))
        >>> with record_potentials(network) as potentials:
        ...     logits = network(torch.randn(5, 4))
        >>> {layer: tuple(z.shape) for layer, z in potentials.items()}
        {'0': (5, 3), '2': (5, 2)}
    """
    check_module(module)
    selection = LayerSelection(include, exclude, output)
    recorded = Potentials()

    def keep(z: Tensor, potential: Potential[_Recorded], in_place: bool) -> _Recorded:
        value = z.clone() if in_place else z
        return _Recorded(value, None if value.is_inference() else value._version)

    nonlinearities = find_nonlinearities(activations)
    capture = Capture(module, nonlinearities, selection, keep, root_is_network=True, tracks_units=True, reduction=None)
    capture.on_outputs = lambda: _collect(capture, selection, recorded)
    try:
        with capture:
            yield recorded
        if not capture.potentials and capture.has_skipped:
            raise ValueError(
                "No potential was recorded: the network was called without gradient in a block that was entered with"
                " gradient, as a teacher is. To record it, enter the block without gradient, too:"
                " `with torch.no_grad(), record_potentials(...) as potentials`."
            )
        selection.check(
            {**dict.fromkeys(potential.layer for potential in capture.potentials), **capture.fused_calls.left_out}
        )
    finally:
        capture.potentials = []  # the capture itself lives until cycles of references are collected


def check_module(module: nn.Module) -> None:
    """Raises an error if a module is not one whose functions can be watched."""
    if not isinstance(module, nn.Module):
        raise TypeError(f"Expected argument `module` to be a `torch.nn.Module` but got {type(module).__name__}.")
    for path, part in module.named_modules():
        if isinstance(part, torch.jit.ScriptModule):
            raise NotImplementedError(
                f"Module {path!r} is compiled by TorchScript, which hides its potentials. Use the module before"
                " `torch.jit.script` or `torch.jit.trace`."
            )


class _Recorded(NamedTuple):
    """A potential and the version of its values when its nonlinearity read them."""

    value: Tensor
    version: int | None


def _collect(capture: Capture[_Recorded], selection: LayerSelection, recorded: Potentials) -> None:
    passes: dict[str, list[Tensor]] = {}
    for potential in capture.potentials:
        if potential.kept is not None and selection.selects(potential.layer, potential.is_output):
            value, version = potential.kept
            if version is not None and value._version != version:
                raise RuntimeError(
                    f"The potentials of layer {potential.layer!r} were overwritten in place after their nonlinearity"
                    " had read them. Write the operation that follows out of place (`x = x + y` for `x += y`), or leave"
                    " the layer out with the argument `exclude`."
                )
            passes.setdefault(potential.layer, []).append(value)
            recorded.unit_dims[potential.layer] = potential.unit_dim
    last = next((tensors[-1] for tensors in reversed(passes.values())), None)
    if last is not None:
        reach(last)  # raises an error where a checkpoint hides potentials
    recorded.clear()
    for layer, tensors in passes.items():
        try:
            recorded[layer] = torch.cat(tensors) if len(tensors) > 1 else tensors[0]
        except RuntimeError as error:
            raise ValueError(
                f"The passes of layer {layer!r} cannot be concatenated along the batch: their shapes are"
                f" {', '.join(str([*tensor.shape]) for tensor in tensors)}. Record each call of the network in a"
                " block of its own."
            ) from error
