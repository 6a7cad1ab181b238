"""The callback that trains a network under given masks."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch import Tensor, nn

from lightning_psp.functional.arguments import check_integer
from lightning_psp.functional.plain_files import read_plain
from lightning_psp.pruning.bound_masks import bind_masks, check_masks
from lightning_psp.pruning.holding import HoldsMasks
from lightning_psp.pruning.rewinding import load_state, redraw, rewind

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer


class MaskedTraining(HoldsMasks):
    """Trains a network whose masked weights are 0 and stay 0, from the weights as they are or from others.

    These are the one-shot arms that gradual pruning is compared with (Tartaglione et al., 2020, Section 4): with the
    masks of a pruned network and `rewind_to` its initial weights, the lottery ticket; with `rewind_to="random"`, the
    same structure from another start; with :func:`~lightning_psp.pruning.random_masks_like`, another structure. Without
    `rewind_to` it fine-tunes a pruned network, and keeps it pruned.

    A pruned weight is exactly 0 after every optimiser step, at every validation and in every checkpoint, whatever moves
    it: momentum, weight decay, moments of Adam, averaged weights. Parameters keep their names: a saved model loads
    without this package.

    When a fit starts, and does not go on from a checkpoint, the weights are rewound, then masked. In several processes
    the masks of the first one hold in all.

    Logged per epoch: ``pruning/sparsity``, the share of the masked parameters' weights that are 0, and
    ``pruning_sparsity/<parameter>``, the share of each.

    Args:
        masks: name of each parameter, as in the LightningModule's ``named_parameters()``, to a bool tensor of its
            shape, True where a weight stays; or the path of a file made by ``torch.save(masks, path)``.
        rewind_to: what to start from: None for the weights as they are; ``"random"`` to draw the weights anew, with the
            ``reset_parameters`` of every module, which also resets the statistics of batch norm; or a state dict of the
            LightningModule, as it is when the callback is made, or the path of one or of a checkpoint (for a file named
            ``random``: ``./random``). A state dict that is to hold weights of before a training has to be a copy made
            then: ``copy.deepcopy(module.state_dict())``.
        seed: of the weights for ``rewind_to="random"``; the state of the global random numbers does not change.

    Raises:
        TypeError: if an argument is of the wrong type.
        ValueError: if there is no mask or no such file; if `seed` is given without ``rewind_to="random"`` or the other
            way round. When a fit starts, before anything is changed: if names or shapes of masks or state dict do not
            fit; if a module with parameters cannot be drawn anew; if the fit goes on from a checkpoint with other
            masks; if the trainer has another callback that holds masks.
        NotImplementedError: if weights are sharded over processes.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> masks = {"network.weight": torch.tensor([[True, False], [False, True]])}
        >>> trainer = Trainer(callbacks=[MaskedTraining(masks)], logger=False, accelerator="cpu")
    """

    def __init__(
        self,
        masks: Mapping[str, Tensor] | str | Path,
        *,
        rewind_to: Literal["random"] | Mapping[str, Tensor] | str | Path | None = None,
        seed: int | None = None,
    ) -> None:
        super().__init__()
        if isinstance(masks, (str, Path)):
            _check_is_file("masks", masks)
            path, masks = masks, read_plain(masks)
            if masks is None:
                raise ValueError(
                    "Expected argument `masks` to be the path of a file of `torch.save(masks, path)` but got"
                    f" {str(path)!r}, which is no such file."
                )
        assert not isinstance(masks, (str, Path))
        check_masks(masks)
        if not isinstance(rewind_to, (Mapping, str, Path, type(None))):
            raise TypeError(
                "Expected argument `rewind_to` to be None, 'random', a state dict or a path but got"
                f" {type(rewind_to).__name__}."
                + (" Give a copy of its `state_dict()`." if isinstance(rewind_to, nn.Module) else "")
            )
        if isinstance(rewind_to, (str, Path)) and rewind_to != "random":
            _check_is_file("rewind_to", rewind_to, "'random' or ")
        if rewind_to == "random" and seed is None:
            raise ValueError("Expected argument `seed` to be an integer for rewind_to='random' but got None.")
        if seed is not None:
            check_integer("seed", seed)
            if rewind_to != "random":
                raise ValueError(f"Expected argument `seed` with rewind_to='random' alone but got seed={seed}.")
        self.masks = {name: mask.to("cpu", copy=True) for name, mask in masks.items()}
        # A state dict shares its tensors with the module, which may train in the meantime.
        self.rewind_to = copy.deepcopy(dict(rewind_to)) if isinstance(rewind_to, Mapping) else rewind_to
        self.seed = seed
        self._loaded: dict[str, Tensor] | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Forgets the checkpoint of before."""
        super().setup(trainer, pl_module, stage)
        self._loaded = None

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes note of the masks of a checkpoint, which have to be the same."""
        self._loaded = state_dict["masks"]

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Rewinds the weights where a new fit starts, and masks them."""
        bind_masks(pl_module, self.masks)  # raises its errors before anything is rewound
        if self._loaded is not None:
            self._check_loaded(self._loaded)
        elif self.is_resumed and self.rewind_to is not None:
            rank_zero_warn(
                "MaskedTraining(rewind_to=…) does not rewind the weights, for this fit goes on from a checkpoint that"
                " was made without it. To rewind them, fit without `ckpt_path`."
            )
        if not self.is_resumed and trainer.fit_loop.total_batch_idx < 0:
            self._rewind(pl_module)
        super().on_fit_start(trainer, pl_module)

    def _rewind(self, pl_module: LightningModule) -> None:
        if self.rewind_to == "random":
            assert self.seed is not None
            redraw(pl_module, self.seed)
        elif isinstance(self.rewind_to, (str, Path)):
            rewind(pl_module, load_state(self.rewind_to))
        elif self.rewind_to is not None:
            rewind(pl_module, self.rewind_to)

    def _check_loaded(self, loaded: dict[str, Tensor]) -> None:
        differing = sorted(loaded.keys() ^ self.masks.keys())
        differing += [
            name for name, mask in self.masks.items() if name in loaded and not torch.equal(mask, loaded[name].cpu())
        ]
        if differing:
            raise ValueError(
                f"Expected argument `masks` to be the masks of the checkpoint, but those of {', '.join(differing)} are"
                " others. To train its weights under these masks, load them into the model and fit without"
                " `ckpt_path`."
            )


def _check_is_file(name: str, path: str | Path, or_else: str = "") -> None:
    if not Path(path).is_file():
        raise ValueError(f"Expected argument `{name}` to be {or_else}the path of a file but got {str(path)!r}.")
