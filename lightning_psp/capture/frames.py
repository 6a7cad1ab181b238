"""The modules whose forward is running, and their paths in the network."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any, NamedTuple

from torch import nn
from torch.nn.modules import activation as activation_modules

from lightning_psp.capture.provenance import Potential

_ACTIVATION_MODULES: tuple[type[nn.Module], ...] = tuple(
    getattr(activation_modules, name) for name in activation_modules.__all__ if name != "MultiheadAttention"
)


class Frame(NamedTuple):
    """A module whose forward is running.

    Args:
        module: the module.
        path: its path in the network; None if it lies outside.
        starts_call: whether it is an outermost call of the network.
        potential: what entered it, where it is a nonlinearity as a whole.
    """

    module: nn.Module
    path: str | None
    starts_call: bool
    potential: Potential[Any] | None


class Frames:
    """The running modules, the innermost last.

    Args:
        root: the network; paths are relative to it.
    """

    def __init__(self, root: nn.Module) -> None:
        self._root = root
        self._frames: dict[nn.Module, Frame] = {}  # of a call within a call of the network
        self._foreign: weakref.WeakSet[nn.Module] = weakref.WeakSet()
        self.running: list[Frame] = []

    def modules(self) -> Iterable[nn.Module]:
        """All modules of the network."""
        if not self._frames:
            self._find_paths()
        return self._frames

    def frame_of(self, module: nn.Module) -> Frame:
        """A frame for a call of a module within a call of the network."""
        frame = self._frames.get(module)
        if frame is None and (module._parameters or module._modules) and module not in self._foreign:
            self._find_paths()  # a module that was added since
            frame = self._frames.get(module)
            if frame is None:
                self._foreign.add(module)
        return Frame(module, None, False, None) if frame is None else frame

    def module_at(self, path: str) -> nn.Module | None:
        """The innermost module that has this path."""
        return next((module for module, frame in reversed(self._frames.items()) if frame.path == path), None)

    def innermost_path(self) -> str:
        """Path of the innermost running module of the network; empty outside of them."""
        innermost = self._innermost()
        return "" if innermost is None or innermost.path is None else innermost.path

    def host(self, label: str) -> str:
        """The name of a layer whose potential is no module's output."""
        innermost = self._innermost()
        if innermost is None or not innermost.path:
            return label
        is_activation = isinstance(innermost.module, _ACTIVATION_MODULES)
        return innermost.path if is_activation else f"{innermost.path}.{label}"

    def _innermost(self) -> Frame | None:
        frame: Frame
        for frame in reversed(self.running):
            if frame.path is not None:
                return frame
        return None

    def _find_paths(self) -> None:
        # The module that `torch.compile` puts around another one has the same name.
        self._frames = {
            module: Frame(module, ".".join(part for part in path.split(".") if part != "_orig_mod"), False, None)
            for path, module in self._root.named_modules()
        }
