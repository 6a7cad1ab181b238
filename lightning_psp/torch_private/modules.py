"""Modules: hooks on all of them, and what `torch.compile` makes of one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from torch import nn
from torch.nn.modules import module as torch_modules
from torch.utils.hooks import RemovableHandle

from lightning_psp.torch_private.names import find, lacking

_OptimizedModule: Any = find("torch._dynamo.OptimizedModule")

# Of what Python runs for a call of a module, down to its `forward`; None where this version of torch has another one.
CODE_OF_A_CALL: Any = getattr(find("torch.nn.Module._wrapped_call_impl"), "__code__", None)
FILE_OF_CALLS = nn.Module.add_module.__code__.co_filename


def is_compiled(module: nn.Module) -> bool:
    """Whether a module is what `torch.compile` puts around another one; False where this is not told.

    Example:
        >>> import torch
        >>> is_compiled(nn.Linear(2, 2)), is_compiled(torch.compile(nn.Linear(2, 2)))
        (False, True)
    """
    return _OptimizedModule is not None and isinstance(module, _OptimizedModule)


def compiled_call_of(module: nn.Module) -> Any:
    """What runs in place of a module that its method `compile` has compiled; None for others, or where not told.

    Example:
        >>> compiled_call_of(nn.Linear(2, 2)) is None
        True
    """
    return getattr(module, "_compiled_call_impl", None)


def compiled_among(modules: Iterable[nn.Module]) -> list[nn.Module]:
    """The modules of which one of :func:`is_compiled` and :func:`compiled_call_of` tells that they are compiled.

    Example:
        >>> import torch
        >>> len(compiled_among([nn.Linear(2, 2), torch.compile(nn.Linear(2, 2)), nn.ReLU()]))
        1
    """
    cls = _OptimizedModule or ()
    return [m for m in modules if getattr(m, "_compiled_call_impl", None) is not None or isinstance(m, cls)]


def set_compiled_call(module: nn.Module, call: Any) -> None:
    """Puts another function in the place of :func:`compiled_call_of`, which is there."""
    module._compiled_call_impl = call


_PLAIN_WEIGHTS = {nn.Parameter, type(None)}


def is_plain(module: nn.Module) -> bool:
    """Whether a call of a module runs its class's forward and nothing else, with plain parameters, a weight among them.

    So it is not where it has parts, hooks that run before it, a forward of its own or a compiled one; where its
    parameters are of another class, such as parts of what other processes have, or no parameters at all; or where this
    version of torch does not tell.

    Example:
        >>> is_plain(nn.Linear(2, 2)), is_plain(nn.ReLU())
        (True, False)
        >>> is_plain(nn.utils.parametrizations.orthogonal(nn.Linear(2, 2)))
        False
    """
    own = module.__dict__
    weights = own.get("_parameters")
    if not weights or own.get("_modules", True) or own.get("_forward_pre_hooks", True):
        return False
    if "forward" in own or "_compiled_call_impl" in own or weights.get("weight") is None:
        return False
    return _PLAIN_WEIGHTS.issuperset(map(type, weights.values()))


def tables_of(module: nn.Module) -> list[dict[str, Any]]:
    """The tables in which a module keeps its own parameters and its own buffers, to be written to.

    Raises:
        NotImplementedError: if this version of torch keeps them elsewhere.

    Example:
        >>> parameters, buffers = tables_of(nn.BatchNorm1d(2))
        >>> list(parameters), list(buffers)
        (['weight', 'bias'], ['running_mean', 'running_var', 'num_batches_tracked'])
    """
    return _named(module, "_parameters", "_buffers")


def parts_of(module: nn.Module) -> dict[str, Any]:
    """The table in which a module keeps the modules that it is made of, to be written to.

    Raises:
        NotImplementedError: if this version of torch keeps them elsewhere.

    Example:
        >>> list(parts_of(nn.Sequential(nn.Linear(2, 2), nn.ReLU())))
        ['0', '1']
    """
    table: dict[str, Any] = _named(module, "_modules")[0]
    return table


def hooks_on(module: nn.Module) -> list[dict[int, Any]]:
    """The tables of the hooks that run before and after a module's forward and backward pass, to be written to.

    Raises:
        NotImplementedError: if this version of torch keeps them elsewhere.

    Example:
        >>> network = nn.Linear(2, 2)
        >>> handle = network.register_forward_hook(print)
        >>> [handle.id in table for table in hooks_on(network)].count(True)
        1
    """
    return _named(module, *_HOOKS)


_HOOKS = (
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_backward_pre_hooks",
    "_backward_hooks",
)


def _named(module: nn.Module, *names: str) -> list[Any]:
    for name in names:
        if not hasattr(module, name):
            lacking(f"Module.{name}", "a network cannot be left as it was", "Use another version.")
    return [getattr(module, name) for name in names]


def has_parts(module: nn.Module) -> bool:
    """Whether a module has names for parameters or other modules of its own.

    Example:
        >>> has_parts(nn.Linear(2, 2)), has_parts(nn.ReLU())
        (True, False)
    """
    tables = [getattr(module, name, None) for name in ("_parameters", "_modules")]
    if None in tables:
        return next(module.parameters(recurse=False), None) is not None or next(module.children(), None) is not None
    return any(tables)


class OwnParameter(NamedTuple):
    """Where a parameter is.

    Args:
        name: its name in the network.
        table: the parameters of the module that has it.
        key: its name there.
    """

    name: str
    table: Mapping[str, Any]
    key: str


class Parts:
    """The modules that a module is made of, itself included, as one walk finds them.

    Walked by the tables in which modules keep their parts: torch's own iterators take a multiple of the time, which is
    too much for every step. Where this version of torch keeps the parts elsewhere, its iterators are asked.

    Args:
        root: the module.

    Attributes:
        paths: each module, once, with the first path that leads to it, in the order of `named_modules`.
        parameterised: those with parameters of their own or inside of them.
        weighted: these, and those with buffers called ``weight`` of their own or inside of them.
        own: of each module with parameters of its own these, each once.

    Example:
        >>> parts = Parts(nn.Sequential(nn.Linear(2, 2), nn.ReLU()))
        >>> list(parts.paths.values()), len(parts.weighted)
        (['', '0', '1'], 2)
        >>> [parameter.name for parameter in parts.parameters().values()]
        ['0.weight', '0.bias']
    """

    def __init__(self, root: nn.Module) -> None:
        self.paths: dict[nn.Module, str] = {}
        self.parameterised: set[nn.Module] = set()
        self.weighted: set[nn.Module] = set()
        self.own: dict[nn.Module, list[nn.Parameter]] = {}
        self._has_tables = all(hasattr(root, name) for name in _TABLES)
        if self._has_tables:
            self._walk(root, "")
            return
        for path, module in root.named_modules():
            self.paths[module] = path
            if next(module.parameters(), None) is not None:
                self.parameterised.add(module)
            if own := [*module.parameters(recurse=False)]:
                self.own[module] = own
            if "weight" in [name.rpartition(".")[2] for name, _ in module.named_buffers()]:
                self.weighted.add(module)
        self.weighted |= self.parameterised

    def parameters(self) -> dict[int, OwnParameter]:
        """The parameters by their `id`, each with the first name that leads to it, as `named_parameters` gives them."""
        found: dict[int, OwnParameter] = {}
        if not self._has_tables:
            table = dict(next(iter(self.paths)).named_parameters())
            return {id(parameter): OwnParameter(name, table, name) for name, parameter in table.items()}
        for module, path in self.paths.items():
            own = module._parameters
            for key, parameter in own.items():
                if parameter is not None and id(parameter) not in found:
                    found[id(parameter)] = OwnParameter(f"{path}.{key}" if path else key, own, key)
        return found

    def _walk(self, module: nn.Module, path: str) -> None:
        self.paths[module] = path
        # Layers that are frozen for good, such as batch norms in detectors, have their weights in buffers.
        buffers = module._buffers
        is_weighted = "weight" in buffers and buffers["weight"] is not None
        own = [parameter for parameter in module._parameters.values() if parameter is not None]
        if own:
            self.own[module] = own if len(own) == 1 else [*dict.fromkeys(own)]
        is_parameterised = bool(own)
        for name, part in module._modules.items():
            if part is not None:
                if part not in self.paths:
                    self._walk(part, f"{path}.{name}" if path else name)
                is_parameterised = is_parameterised or part in self.parameterised
                is_weighted = is_weighted or part in self.weighted
        if is_parameterised:
            self.parameterised.add(module)
        if is_weighted or is_parameterised:
            self.weighted.add(module)


_TABLES = ("_parameters", "_buffers", "_modules")


class GlobalHooks:
    """Two hooks on every call of a module's forward, that are put there and taken away again.

    Compiled code is made anew whenever a hook has another number or is another function: these keep theirs. Where this
    version of torch keeps hooks elsewhere, they are registered anew each time.

    Args:
        before: called before a forward, as a `forward_pre_hook`.
        after: called after one, also after an exception, as a `forward_hook`.
    """

    def __init__(self, before: Callable[..., None], after: Callable[..., None]) -> None:
        self._before = before
        self._after = after
        self._handles: list[Any] = []
        names = ("_global_forward_pre_hooks", "_global_forward_hooks", "_global_forward_hooks_always_called")
        self._tables: list[Any] = [getattr(torch_modules, name, None) for name in names]
        self._has_tables = None not in self._tables
        self._numbers = [RemovableHandle(table).id for table in self._tables[: 2 * self._has_tables]]

    def register(self) -> None:
        """Puts them there."""
        if self._has_tables:
            (before, after), (pre_hooks, hooks, always) = self._numbers, self._tables
            pre_hooks[before], hooks[after], always[after] = self._before, self._after, True
        elif not self._handles:
            self._handles = [
                torch_modules.register_module_forward_pre_hook(self._before),
                torch_modules.register_module_forward_hook(self._after, always_call=True),
            ]

    def remove(self) -> None:
        """Takes them away."""
        if self._has_tables:
            (before, after), (pre_hooks, hooks, always) = self._numbers, self._tables
            del pre_hooks[before], hooks[after], always[after]
        for handle in self._handles:
            handle.remove()
        self._handles = []
