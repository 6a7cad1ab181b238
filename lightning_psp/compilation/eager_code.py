"""Keeping this package's own code from being compiled.

Between the graphs of a compiled function, torch compiles whatever Python code runs, hooks and torch function modes
included. Code that looks at versions of tensors, at autograd's graph and at memory has to run as it is written.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator
from types import CodeType, FunctionType
from typing import Any, TypeVar
from weakref import KeyedRef, WeakKeyDictionary, WeakSet

import torch
from torch.utils.weak import WeakIdKeyDictionary, WeakIdRef

from lightning_psp.torch_private.compiler import keep_code

Function = TypeVar("Function", bound=Callable[..., Any])


def keep_out_of_graphs(function: Function) -> Function:
    """Has a function run as it is written wherever it is called, by a compiled function too."""
    disabled: Function = torch.compiler.disable(function)
    return disabled


def keep_from_compiler(package: str) -> None:
    """Has functions run as they are written where they are called between graphs.

    A compiled function that calls one of them takes it into its graph as ever.

    Args:
        package: the package whose functions these are; of its modules, those that are imported already.
    """
    # Which hooks of this package use.
    for kind in (WeakSet, WeakKeyDictionary, KeyedRef, WeakIdKeyDictionary, WeakIdRef):
        for function in vars(kind).values():
            _keep_from_compiler(function)
    modules = [module for name, module in sys.modules.items() if name.partition(".")[0] == package]
    for module in modules:
        for value in vars(module).values():
            if getattr(value, "__module__", None) == module.__name__:
                for function in vars(value).values() if isinstance(value, type) else [value]:
                    _keep_from_compiler(function)


def _keep_from_compiler(function: Any) -> None:
    if isinstance(function, (staticmethod, classmethod)):
        function = function.__func__
    elif isinstance(function, property):
        function = function.fget
    if isinstance(function, FunctionType):
        for code in _with_inner(inspect.unwrap(function).__code__):
            keep_code(code)


def _with_inner(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _with_inner(constant)
