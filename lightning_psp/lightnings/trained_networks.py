"""Telling networks that a fit trains from those that are frozen, also while only others are trained."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn
from torch.utils.weak import WeakIdKeyDictionary

from lightning_psp.lightnings.lightning_private import toggled_off

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule


class TrainedNetworks:
    """Tells whether a network is one that the fit trains, whichever of its steps is running.

    It is if one of its parameters asks for a gradient, has done so in an earlier call, or was kept from it by
    `toggle_optimizer`. The critic of a GAN is in its generator's step, the network of a perceptual loss never.

    Args:
        module: the user's module.
    """

    def __init__(self, module: LightningModule) -> None:
        self._module = module
        self._known = WeakIdKeyDictionary()

    def __call__(self, network: nn.Module) -> bool:
        """Whether the fit trains a network that is called now."""
        if network not in self._known:
            toggled = toggled_off(self._module)
            if not any(parameter.requires_grad or parameter in toggled for parameter in network.parameters()):
                return False
            self._known[network] = True
        return True
