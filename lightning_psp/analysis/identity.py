"""Texts that tell a network, a loss or tensors from others."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import partial
from hashlib import sha256
from io import BytesIO
from types import CellType, CodeType, FunctionType
from typing import Any

import torch
from torch import Tensor, nn

from lightning_psp.analysis.batches import Loss


def digest(tensors: Iterable[Tensor]) -> str:
    """A text that differs where the types, shapes or values of tensors do."""
    found = sha256()
    for tensor in tensors:
        if tensor.layout != torch.strided:  # sparse, or of rows of several lengths
            written = BytesIO()
            torch.save(tensor.detach().cpu(), written)
            found.update(written.getvalue())
            continue
        found.update(f"{tensor.dtype} {[*tensor.shape]}".encode())
        found.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def identity_of_network(module: nn.Module, state: Iterable[Tensor]) -> list[str]:
    """Texts that tell a network from others: by what it is printed as, and the buffers that it keeps.

    Args:
        module: the network.
        state: its tensors that are told apart elsewhere.

    Example:
        >>> relu, tanh = nn.Sequential(nn.Linear(2, 2), nn.ReLU()), nn.Sequential(nn.Linear(2, 2), nn.Tanh())
        >>> identity_of_network(relu, relu.parameters()) == identity_of_network(tanh, tanh.parameters())
        False
    """
    elsewhere = {id(tensor) for tensor in state}
    printed = re.sub(r" at 0x[0-9a-fA-F]+", "", repr(module))  # where an object lies is another in each run
    kept = [buffer for buffer in module.buffers() if id(buffer) not in elsewhere]
    name = f"{type(module).__module__}.{type(module).__qualname__}"
    return [name, sha256(printed.encode()).hexdigest(), digest(kept)]


def identity_of(loss: Loss) -> str:
    """A text that tells a loss from others: by its name and, of a function, its code and what that uses.

    That is: functions and plain values that it is given by default or finds outside of itself, functions of other
    modules by their own code alone, and tensors. Values that an object holds are not seen.

    Example:
        >>> identity_of(lambda module, batch: module(batch)) == identity_of(lambda module, batch: 2 * module(batch))
        False
    """
    return _text(loss, None, set())


def _text(value: Any, home: str | None, seen: set[int]) -> str:
    """Says all of a plain value and a tensor; of a function the name, its code and what that uses; else the type.

    Args:
        value: the value.
        home: the module whose functions are looked into; None for that of the first function.
        seen: the functions that were looked into, by their `id`.
    """
    if isinstance(value, partial):
        arguments = [*value.args, *sorted(value.keywords.items())]
        return f"{_text(value.func, home, seen)} with {_texts(arguments, home, seen)}"
    if isinstance(value, (tuple, list)):
        return f"({_texts(value, home, seen)})"
    if isinstance(value, (bool, int, float, str, type(None))):
        return repr(value)
    if isinstance(value, Tensor) and not isinstance(value, nn.Parameter):  # which may be one that is moved
        return digest([value])
    kind: Any = value if hasattr(value, "__qualname__") else type(value)
    name = f"{kind.__module__}.{kind.__qualname__}"
    function = getattr(value, "__func__", value)
    if not isinstance(function, FunctionType) or id(function) in seen:
        return name
    code = function.__code__
    seen.add(id(function))  # it may call itself
    used: list[Any] = []
    home = function.__module__ if home is None else home
    if function.__module__ == home:
        cells = [cell.cell_contents for cell in function.__closure__ or () if cell != CellType()]
        used = [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).items(), *cells]
        used += _globals(code, function.__globals__)
    return f"{name} {_digest_of_code(code)} with {_texts(used, home, seen)}"


def _texts(values: Iterable[Any], home: str | None, seen: set[int]) -> str:
    return ", ".join(_text(each, home, seen) for each in values)


def _globals(code: CodeType, scope: dict[str, Any]) -> list[Any]:
    """The values that code finds by name outside of its function and does not change in a run: no lists."""
    values = [scope[name] for name in code.co_names if name in scope]
    found = [each for each in values if isinstance(each, (bool, int, float, str, tuple, Tensor, FunctionType))]
    for constant in code.co_consts:
        if isinstance(constant, CodeType):  # of a function inside
            found += _globals(constant, scope)
    return found


def _digest_of_code(code: CodeType) -> str:
    constants = []
    for each in code.co_consts:
        text = _digest_of_code(each) if isinstance(each, CodeType) else repr(each)
        # the order of a set's members is another in each run
        constants.append(str(sorted(map(repr, each))) if isinstance(each, frozenset) else text)
    return sha256(repr((code.co_code, constants, code.co_names)).encode()).hexdigest()
