"""The two packages that PyTorch Lightning comes as, `lightning.pytorch` and `pytorch_lightning`: used, never imported.

Each has a `Callback` of its own, and a trainer's command line takes only what is derived from it. Which of the two a
program uses is often not known yet when it imports this package, and importing both takes seconds. So `AnyCallback` is
given the `Callback` of each Lightning as a base when that Lightning is imported, be it before this package or after.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lightning.pytorch import Callback, LightningModule, Trainer

    class AnyCallback(Callback):
        """A callback of every Lightning that is imported."""
else:

    class _Base:
        # Python changes the bases of a class only if `object` is not its only one.
        pass

    class AnyCallback(_Base):
        """A callback of every Lightning that is imported."""


LIGHTNINGS = ("lightning.pytorch", "pytorch_lightning")


def refuse_other_lightning(trainer: Trainer, module: LightningModule) -> None:
    """Raises an error where a trainer of one Lightning runs a module of the other, or what is no LightningModule."""
    for name in LIGHTNINGS:
        package = sys.modules.get(name)
        if package is None or not isinstance(trainer, package.Trainer) or isinstance(module, package.LightningModule):
            continue
        other = next(each for each in LIGHTNINGS if each != name)
        if other not in sys.modules or not isinstance(module, sys.modules[other].LightningModule):
            raise TypeError(
                f"Expected a `{name}.LightningModule` but got {type(module).__qualname__}. For one that `torch.compile`"
                " has wrapped, give the module itself."
            )
        raise TypeError(
            f"{type(module).__qualname__} is a `{other}.LightningModule`, but runs in a `{name}.Trainer`. Import both"
            " from the same package."
        )


class _Announcement(MetaPathFinder):
    """Has `_take_up` called with each Lightning that is imported from now on."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Leaves the finding to the other finders."""
        if fullname not in LIGHTNINGS:
            return None
        others = (finder for finder in sys.meta_path if finder is not self)
        spec = next(filter(None, (finder.find_spec(fullname, path, target) for finder in others)), None)
        if spec is None or spec.loader is None:
            return spec
        loader = spec.loader
        execute = loader.exec_module

        def execute_and_announce(module: ModuleType) -> None:
            del vars(loader)["exec_module"]
            execute(module)
            _take_up(module)

        vars(loader)["exec_module"] = execute_and_announce
        return spec


def _take_up(package: ModuleType) -> None:
    if package.Callback not in AnyCallback.__bases__:
        AnyCallback.__bases__ = (package.Callback, *AnyCallback.__bases__)


def _is_installed(package: str) -> bool:
    return package in sys.modules or importlib.util.find_spec(package) is not None


if not any(_is_installed(name.partition(".")[0]) for name in LIGHTNINGS):
    raise ImportError(
        "lightning_psp needs PyTorch Lightning, as one of its two packages: `pip install lightning` or"
        " `pip install pytorch-lightning`."
    )
for _name in LIGHTNINGS:
    if _name in sys.modules:
        _take_up(sys.modules[_name])
sys.meta_path.insert(0, _Announcement())
