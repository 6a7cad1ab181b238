"""The modules whose forward is running, their paths in the network, and the names of places in their code."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from enum import Enum, auto
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.modules import activation as activation_modules
from torch.nn.parameter import UninitializedParameter
from torch.nn.utils.parametrize import ParametrizationList
from torch.utils.weak import WeakIdKeyDictionary
from torchmetrics import Metric, MetricCollection

from lightning_psp.capture.direct_calls import DirectCalls
from lightning_psp.capture.origin import Origin, Potential, Source, is_within
from lightning_psp.torch_private.modules import CODE_OF_A_CALL, OwnParameter, Parts, has_parts

_ACTIVATION_MODULES: tuple[type[nn.Module], ...] = tuple(
    getattr(activation_modules, name) for name in activation_modules.__all__ if name != "MultiheadAttention"
)
_METRICS = (Metric, MetricCollection)
# An activation that is written out may have a few slopes of its own.
_MOST_SLOPES = 4


class Kind(Enum):
    """What a module may be besides a part of the network.

    - NAMED: an activation, for the user says so.
    - ACTIVATION: one of torch's own.
    - CANDIDATE: somebody's module that may turn out to be an activation that is written out.
    - PARAMETRIZATION: it makes a weight.
    """

    NAMED = auto()
    ACTIVATION = auto()
    CANDIDATE = auto()
    PARAMETRIZATION = auto()


class Known(NamedTuple):
    """What is known of a module.

    Args:
        path: its path in the network; None if it lies outside.
        has_weights: whether it has parameters, its own or inside of it.
        kind: what it may be besides.
        is_network: whether a call of it outside of every other one is a call of the network.
        is_of_metric: whether it is a part of a metric of torchmetrics.
    """

    path: str | None
    has_weights: bool
    kind: Kind | None
    is_network: bool
    is_of_metric: bool


_OUTSIDE = Known("", True, None, False, False)


class Frame:
    """A call of a module whose forward is running.

    Args:
        module: the module.
        known: what is known of it.
    """

    __slots__ = (
        "first",
        "given",
        "known",
        "module",
        "overwritten",
        "path",
        "potential",
        "since",
        "starts_call",
        "suppresses",
        "turns",
        "unit_dim",
    )

    def __init__(self, module: nn.Module, known: Known) -> None:
        self.module = module
        self.known = known
        self.path = known.path  # in the network; None if it lies outside
        self.starts_call = False  # whether it is an outermost call of the network
        self.suppresses = False  # whether nothing inside of it is a layer
        self.potential: Potential[Any] | None = None  # what entered it, where it is a nonlinearity as a whole
        self.given: Origin | None = None  # the one tensor that a candidate was called with
        self.overwritten: Potential[Any] | None = None  # that tensor, taken for a potential before it was overwritten
        self.unit_dim: int | None = None  # of what it returns, where nothing inside it is followed
        self.first = 0  # number of potentials before it
        self.since = 0  # number of tensors before it of which anything was known
        self.turns: dict[str, int] = {}  # how often each name of a place was given


class Frames:
    """The running modules, the innermost last.

    Args:
        root: the network; paths are relative to it.
        named: the module classes that the user takes for activations.
    """

    def __init__(self, root: nn.Module, named: tuple[type[nn.Module], ...]) -> None:
        self._root = root
        self._named = named
        self._no_activations: set[type[nn.Module]] = set()  # which nonlinearities are given what the module is given
        self._kinds: dict[type[nn.Module], Kind | None] = {}  # of the modules of each class, where they are alike
        # By identity: the hash of a metric changes with what it has counted.
        self._modules: list[nn.Module] = []  # of the network
        self._known: dict[int, Known] = {}  # of these
        self._foreign: MutableMapping[nn.Module, Known] = WeakIdKeyDictionary()  # of others
        self._parameters: dict[int, OwnParameter] = {}
        self._metrics: set[type[nn.Module]] = set()  # the classes of metrics among the modules
        self._has_metrics = False
        self._has_all = False  # whether the parameters were looked for in this step
        self._parts: Parts | None = None  # that were found in this step
        self.running: list[Frame] = []
        # Whether modules are run by code of Python that can be told, and not as nodes of a graph.
        self.follows_code = CODE_OF_A_CALL is not None
        self._direct: DirectCalls[Frame] = DirectCalls()
        self.start()

    def start(self, running: Iterable[Frame] = ()) -> None:
        """Starts a new step, with these modules running."""
        # Copies, for who counts places in them is another one.
        self.resumed = [Frame(frame.module, frame.known) for frame in running]
        self.running = list(self.resumed)
        self.outside = Frame(self._root, _OUTSIDE)  # of every module
        self._direct.clear()
        self.suppressed = 0  # how many of them are activations that the user names, or make a weight
        self._has_all = False
        self._parts = None

    def begin_suppression(self) -> None:
        """Has calls of functions looked over: those inside of an activation or of what makes a weight."""
        self.suppressed += 1

    def end_suppression(self) -> None:
        """Ends what :meth:`begin_suppression` has begun."""
        self.suppressed -= 1

    def modules(self) -> Iterable[nn.Module]:
        """All modules of the network."""
        if not self._modules:
            self._find_paths()
        return self._modules

    def frame_of(self, module: nn.Module) -> Frame:
        """A frame for a call of a module."""
        known = self._known.get(id(module)) or self._foreign.get(module)
        if known is None:
            if has_parts(module):
                self._find_paths()  # a module that was added since
            known = self._known.get(id(module))
            if known is None:
                known = self._foreign[module] = self._describe(module, None, Parts(module), is_of_metric=False)
        return Frame(module, known)

    def name_of_parameter(self, parameter: Any) -> str | None:
        """The name of a parameter of the network; None if it is none of it."""
        own = self._parameters.get(id(parameter))
        if own is None or own.table.get(own.key) is not parameter:
            own = None
            if not self._has_all:
                self._has_all = True
                self._parameters = (self._parts or Parts(self._root)).parameters()
                own = self._parameters.get(id(parameter))
        return None if own is None else _cleaned(own.name)

    def module_at(self, path: str) -> nn.Module | None:
        """The innermost module that has this path."""
        return next((module for module in reversed(self._modules) if self._known[id(module)].path == path), None)

    def is_wrapped(self, frame: Frame) -> bool:
        """Whether the module around a module stands for the same one, such as that of `torch.compile`."""
        return bool(self.running) and self.running[-1].path == frame.path

    @property
    def in_metric(self) -> bool:
        """Whether a network that a metric holds is running."""
        return self._has_metrics and any(frame.known.is_of_metric for frame in self.running)

    def innermost_path(self) -> str:
        """Path of the innermost running module of the network; empty outside of them."""
        return next((frame.path for frame in reversed(self.running) if frame.path is not None), "")

    def host(self, label: str) -> str:
        """Where a nonlinearity is called, for a reader."""
        path = self.innermost_path()
        return f"{path}.{label}" if path else label

    def name_place(self, source: Source, label: str, activation: Frame | None = None) -> None:
        """Names neurons after the place in the code where their potential enters a nonlinearity.

        Args:
            source: the neurons.
            label: the nonlinearity's name.
            activation: the nonlinearity, where it is a module.
        """
        caller, calls = self.outside, len(self.running)
        for inside, frame in enumerate(reversed(self.running)):
            # A module that hands what it is given to a nonlinearity is taken for an activation until it returns.
            may_be_whole = frame.given is not None and frame.given.source is source
            may_be_whole = may_be_whole and type(frame.module) not in self._no_activations
            if frame.known.kind in (Kind.ACTIVATION, Kind.NAMED) or may_be_whole:
                activation = activation or frame
            elif frame.path is not None and frame is not activation:
                caller, calls = frame, inside
                break
        for frame in self._direct.running(calls, self._frame_inside) if self.follows_code else ():
            if frame.known.kind not in (Kind.ACTIVATION, Kind.NAMED):
                caller = frame
                break
            activation = activation or frame
        assert caller.path is not None
        name = f"{caller.path}.{label}" if caller.path else label
        if activation is not None and activation.path and is_within(activation.path, caller.path):
            name = activation.path
        _count(caller, source, name)

    def count_place(self, source: Source, name: str) -> None:
        """Names neurons after a place in the innermost running module."""
        _count(next((frame for frame in reversed(self.running) if frame.path is not None), self.outside), source, name)

    def _frame_inside(self, module: nn.Module) -> Frame | None:
        known = self._known.get(id(module))
        return None if known is None or known.path is None else Frame(module, known)

    def rename_inside(self, frame: Frame, source: Source, label: str) -> None:
        """Names neurons after a place inside a module that was taken for an activation and is none."""
        self._no_activations.add(type(frame.module))
        take_back(source)
        _count(frame, source, f"{frame.path}.{label}" if frame.path else label)

    def _find_paths(self) -> None:
        self._has_all = False
        parts = self._parts = Parts(self._root)
        refuse_scripted(parts.paths)
        self._metrics = {cls for cls in set(map(type, parts.paths)) if issubclass(cls, _METRICS)}
        metrics = [path for module, path in parts.paths.items() if path and type(module) in self._metrics]
        self._has_metrics = bool(metrics)
        neurons = _paths_of_neurons(parts)
        self._modules = [*parts.paths]
        self._known = {
            id(module): self._describe(
                module,
                _cleaned(neurons[module]),
                parts,
                bool(metrics) and any(path == metric or is_within(path, metric) for metric in metrics),
            )
            for module, path in parts.paths.items()
        }

    def _describe(self, module: nn.Module, path: str | None, parts: Parts, is_of_metric: bool) -> Known:
        cls = type(module)
        if cls not in self._kinds:
            self._kinds[cls] = self._kind_of(cls)
        kind = self._kinds[cls]
        if kind is Kind.CANDIDATE and (module is self._root or not _may_be_activation(module, parts)):
            kind = None
        # Buffers called `weight` alone make a frozen normalisation, and more often a loss with weights of classes.
        is_network = path is not None and (module in parts.parameterised or path == "")
        is_network = is_network and cls not in self._metrics
        return Known(path, module in parts.weighted, kind, is_network, is_of_metric)

    def _kind_of(self, cls: type[nn.Module]) -> Kind | None:
        if issubclass(cls, self._named):
            return Kind.NAMED
        if issubclass(cls, ParametrizationList):
            return Kind.PARAMETRIZATION
        if issubclass(cls, _ACTIVATION_MODULES):
            return Kind.ACTIVATION
        return None if cls.__module__.startswith("torch.nn.") else Kind.CANDIDATE


def _paths_of_neurons(parts: Parts) -> Mapping[nn.Module, str]:
    """The path of each module; of modules of one class that share all of their parameters, that of the first."""
    counts = Counter(id(parameter) for own in parts.own.values() for parameter in own)
    shared = {parameter for parameter, count in counts.items() if count > 1}
    if not shared:
        return parts.paths
    found: dict[nn.Module, str] = {}
    by_path: dict[str, str] = {}
    first: dict[Any, str] = {}
    for module, path in parts.paths.items():
        parent, _, name = path.rpartition(".")
        own = f"{by_path[parent]}.{name}" if parent else name
        if module in parts.parameterised and all(id(parameter) in shared for _, parameter in _parameters(module)):
            key = type(module), *((name, id(parameter)) for name, parameter in _parameters(module))
            own = first.setdefault(key, own)
        found[module] = by_path[path] = own
    return found


def _parameters(module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    # A module may have a method of its own under that name, with other arguments and for some parameters alone.
    return nn.Module.named_parameters(module)


def refuse_scripted(modules: Mapping[nn.Module, str]) -> None:
    """Raises an error if one of some modules, each with its path, is compiled by TorchScript."""
    for module, path in modules.items():
        if isinstance(module, torch.jit.ScriptModule):
            raise NotImplementedError(
                f"Module {path!r} is compiled by TorchScript, which hides its potentials. Use the module before"
                " `torch.jit.script` or `torch.jit.trace`."
            )


def _count(caller: Frame, source: Source, name: str) -> None:
    turn = caller.turns.get(name, 0)
    caller.turns[name] = turn + 1
    source.place = f"{name}:{turn}" if turn else name
    source.turn = (caller.turns, name, turn)


def take_back(source: Source) -> None:
    """Gives a name of a place free, if it was the last one given there."""
    if source.turn is not None:
        turns, name, turn = source.turn
        if turns.get(name) == turn + 1:
            turns[name] = turn
        source.place = source.turn = None


def _may_be_activation(module: nn.Module, parts: Parts) -> bool:
    slopes = parts.own.get(module, [])
    return (
        len(slopes) <= _MOST_SLOPES
        and parts.parameterised.isdisjoint(module.children())
        and not any(isinstance(slope, UninitializedParameter) for slope in slopes)
        and all(sum(size > 1 for size in slope.shape) <= 1 for slope in slopes)
    )


def _cleaned(path: str) -> str:
    # The module that `torch.compile` puts around another one has the same name.
    return ".".join(part for part in path.split(".") if part != "_orig_mod") if "_orig_mod" in path else path
