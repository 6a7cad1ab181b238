"""Recording the potentials of a network with their graph attached."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node

from lightning_psp.capture.frames import refuse_scripted
from lightning_psp.capture.graph import nodes_below, nodes_of_parameters, refuse_reentrant_checkpoints
from lightning_psp.capture.mode import Capture
from lightning_psp.capture.nonlinearities import find_nonlinearities
from lightning_psp.capture.origin import Potential
from lightning_psp.capture.selection import LayerSelection
from lightning_psp.compilation.listening import announce_graph, told_of_graphs
from lightning_psp.torch_private.modules import Parts
from lightning_psp.torch_private.tensors import version_of


class Potentials(dict[str, Tensor]):
    """Layer name to potentials, in order of call.

    Passes of a layer whose shapes differ or of which some depend on no parameter that is trained, and parts of a layer
    that enter several nonlinearities, are entries of their own, ``name``, ``name:1``, ….
    :func:`~lightning_psp.psp_penalty` counts them as the one layer that they are.

    `unit_dims` holds the dimension of the neurons of each entry, `layers` its layer and which part of that it is: a
    pair such as ``("gates", 2)``, `passes` how many passes were concatenated in it, and `nonlinearities` the name of
    what it enters: a function or module class, ``"gates"`` in recurrent layers, ``"output"`` for an output layer.
    `outputs` names the entries that are output layers, `constants` those that depend on no trained parameter though
    they carry a graph, as where an input of a frozen network asks for its gradient: they are no part of the penalty.
    """

    def __init__(self) -> None:
        """Starts without any layer."""
        super().__init__()
        self.unit_dims: dict[str, int] = {}
        self.layers: dict[str, tuple[str, int]] = {}
        self.passes: dict[str, int] = {}
        self.nonlinearities: dict[str, str] = {}
        self.outputs: set[str] = set()
        self.constants: set[str] = set()

    def __repr__(self) -> str:
        entries = "".join(f"  {name} {[*z.shape]}\n" for name, z in self.items())
        return f"{type(self).__name__}(\n{entries})" if entries else f"{type(self).__name__}()"


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

    A potential is the tensor that enters a nonlinearity: a module, a function or a method, in place or not, torch's own
    or written out. The output layer is what enters the softmax or sigmoid of a loss, and what the network returned and
    the loss reaches; where the block sees no loss, what the network returned and on which nothing else that it returned
    depends. Neurons that are evaluated again are the same layer: passes that fit are concatenated along the batch,
    others are entries ``name:1``, … (:class:`~lightning_psp.Potentials`). Calls under `torch.no_grad()` inside a block
    that was entered with gradient are left out.

    A layer is named after the module with weights whose output its potential is, after the parameter that made it, or
    after the place in the code. A warning at the end of the block names functions that may be nonlinearities and have
    no layer, and says where only the output of a network of several layers was found.

    In recurrent layers the gates' pre-activations are the potentials, ``[batch, time, gates · hidden]``, or the rows
    ``[sum of lengths, gates · hidden]`` of packed sequences. Each direction of each level is a layer: ``rnn``, or
    ``rnn.l0``, ``rnn.l0_reverse``, ``rnn.l1``, … where there are several. What such a layer returns is no potential
    until it enters a nonlinearity or a loss's softmax; it is no output layer.

    Args:
        module: the network. Layers are named relative to it.
        include: glob patterns on layer names.
        exclude: glob patterns on layer names.
        output: whether output layers are recorded.
        activations: further module classes or torch functions whose input is a potential, or their dotted names.

    Yields:
        A dict from layer name to potentials ``[batch, …]`` with their graph, filled whenever a call of the network
        ends and when the block ends.

    Raises:
        ValueError: at the end of the block, if no layer was found, if a pattern matches none, or if the patterns and
            `output` leave none.
        RuntimeError: if a potential is overwritten in place after its nonlinearity has read it.
        NotImplementedError: if a fused function hides the potentials of a layer, the network uses reentrant
            activation checkpoints of another library, or its units are split over processes (tensor parallelism).

    Example:
        >>> import torch
        >>> from torch import nn
        >>> network = nn.Sequential(nn.Linear(4, 3), nn.ReLU(inplace=True), nn.Linear(3, 2))
        >>> with record_potentials(network) as potentials:
        ...     logits = network(torch.randn(5, 4))
        >>> potentials
        Potentials(
          0 [5, 3]
          2 [5, 2]
        )
    """
    selection = LayerSelection(include, exclude, output)
    with recording(module, selection, activations, lambda message: warnings.warn(message, stacklevel=6)) as recorded:
        yield recorded


@contextmanager
def recording(
    module: nn.Module,
    selection: LayerSelection,
    activations: Sequence[str | type[nn.Module] | Callable[..., object]],
    tell: Callable[[str], None],
) -> Iterator[Potentials]:
    """:func:`record_potentials`, which has `tell` called with what could not be seen."""
    _check_class(module)
    recorded = Potentials()
    kinds: set[type[Node]] = set()  # of the nodes of their graph

    def keep(z: Tensor, potential: Potential[_Recorded], in_place: bool) -> _Recorded:
        return _Recorded(z.clone() if in_place else z)

    nonlinearities = find_nonlinearities(activations)
    capture = Capture(
        module,
        nonlinearities,
        selection,
        keep,
        tracks_units=True,
        takes_foreign=False,
        reduction=None,
        traced=announce_graph,
    )
    capture.on_outputs = lambda: _collect(capture, selection, recorded, kinds)
    try:
        with told_of_graphs(capture), capture:
            yield recorded
        refuse_reentrant_checkpoints(kinds)
        if not capture.potentials and capture.records.ledger.has_skipped:
            raise ValueError(
                "No potential was recorded: the network was called without gradient in a block that was entered with"
                " gradient, as a teacher is. To record it, enter the block without gradient, too:"
                " `with torch.no_grad(), record_potentials(...) as potentials`. (Or it computes all inside a"
                " `torch.autograd.Function`, whose forward pass has no gradient either: nothing is seen there.)"
            )
        if capture.message and recorded:
            tell(capture.message)
        layers = {**dict.fromkeys(potential.layer for potential in capture.potentials), **capture.fused}
        if not layers and capture.saw_empty_batch:
            raise ValueError("No potential was found: the batch that the network was called with has no samples.")
        selection.check(layers)
        selection.check_chosen(layers, [layer for layer, _ in recorded.layers.values()])
    finally:
        capture.close()


def check_module(module: nn.Module) -> None:
    """Raises an error if a module is not one whose functions can be watched."""
    _check_class(module)
    refuse_scripted(Parts(module).paths)


def _check_class(module: Any) -> None:
    if not isinstance(module, nn.Module):
        raise TypeError(f"Expected argument `module` to be a `torch.nn.Module` but got {type(module).__name__}.")


class _Recorded:
    """A potential and the version of its values when its nonlinearity read them."""

    def __init__(self, value: Tensor) -> None:
        self.value = value
        self._version = None if value.is_inference() else version_of(value)

    def preserve(self, z: Tensor) -> None:
        """Copies the potential, which is about to be overwritten."""
        if self.is_unchanged:
            self.__init__(self.value.clone())  # type: ignore[misc]

    def release(self) -> None:
        """Has nothing to let go of."""

    @property
    def is_unchanged(self) -> bool:
        """Whether nothing else was written where the potential was."""
        return self._version is None or version_of(self.value) == self._version


def _collect(
    capture: Capture[_Recorded], selection: LayerSelection, recorded: Potentials, kinds: set[type[Node]]
) -> None:
    if capture.split_weight is not None:
        raise NotImplementedError(
            f"Parameter {capture.split_weight!r} is split over processes (tensor parallelism): each sees a part of a"
            " layer's units, of which no penalty can be made. Share out batches in place of layers: `fully_shard` keeps"
            " a part of each parameter in each process, too, and computes with the whole."
        )
    passes: dict[tuple[str, int], list[tuple[Tensor, int]]] = {}
    labels: dict[tuple[str, int], str] = {}
    outputs = {potential.layer for potential in capture.potentials if potential.is_output}
    for potential in capture.potentials:
        if potential.kept is not None and selection.selects(potential.layer, potential.is_output):
            if not potential.kept.is_unchanged:
                raise RuntimeError(
                    f"The potentials of layer {potential.layer!r} were overwritten in place after their nonlinearity"
                    " had read them. Write the operation that follows out of place (`x = x + y` for `x += y`), or leave"
                    " the layer out with the argument `exclude`."
                )
            passes.setdefault((potential.layer, potential.part), []).append((potential.kept.value, potential.unit_dim))
            labels.setdefault((potential.layer, potential.part), potential.label)
    recorded.clear()
    recorded.unit_dims.clear()
    recorded.layers.clear()
    recorded.passes.clear()
    recorded.nonlinearities.clear()
    recorded.outputs.clear()
    recorded.constants.clear()
    names = {layer for layer, _ in passes}
    nodes = nodes_below(z.grad_fn for tensors in passes.values() for z, _ in tensors)
    trained = nodes_of_parameters(nodes)
    kinds.clear()
    kinds.update(map(type, nodes))
    for (layer, part), tensors in passes.items():
        for tensor, unit_dim, number_of_passes, is_trained in _concatenated(tensors, trained):
            name, number = layer, 0
            while name in recorded or (number and name in names):
                number += 1
                name = f"{layer}:{number}"
            recorded[name] = tensor
            recorded.unit_dims[name] = unit_dim
            recorded.layers[name] = layer, part
            recorded.passes[name] = number_of_passes
            recorded.nonlinearities[name] = "output" if layer in outputs else labels[layer, part] or "gates"
            if layer in outputs:
                recorded.outputs.add(name)
            if tensor.requires_grad and not is_trained:
                recorded.constants.add(name)


def _concatenated(
    passes: list[tuple[Tensor, int]], trained: Container[Any] | None
) -> list[tuple[Tensor, int, int, bool]]:
    """The passes of one part of a layer: those that fit as one tensor, how many, and whether they can be trained.

    Args:
        passes: the potentials of each, and the dimension of the units.
        trained: the nodes that depend on trained parameters; None where all do that are asked about.
    """
    fitting: dict[tuple[torch.Size, torch.dtype, torch.device, int, bool], list[Tensor]] = {}
    for tensor, unit_dim in passes:
        # Constants, such as those of a frozen network on data, are no part of the penalty.
        is_trained = tensor.requires_grad and (trained is None or tensor.grad_fn in trained)
        kind = tensor.shape[1:], tensor.dtype, tensor.device, unit_dim, is_trained
        fitting.setdefault(kind, []).append(tensor)
    return [
        (torch.cat(tensors) if len(tensors) > 1 else tensors[0], unit_dim, len(tensors), is_trained)
        for (_, _, _, unit_dim, is_trained), tensors in fitting.items()
    ]
