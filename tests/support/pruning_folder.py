"""A folder as `examples/pruning_study.py` leaves it, of networks that nobody trained."""

import torch

from lightning_psp.pruning import apply_masks, magnitude_masks
from support.classifier import Classifier


def write_training(folder, network, settings, sparsities):
    """Write weights and masks of one training, as many levels as sparsities, and return its row of the study."""
    psp = "_psp" if settings["lam"] else ""
    level = f"_level{settings['level']:02}" if settings["level"] else ""
    files = folder / f"{settings['task']}_{settings['arm']}{psp}{level}_seed{settings['seed']}"
    files.mkdir()
    module = Classifier(network)
    torch.manual_seed(sum(map(ord, files.name)))
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    for number, sparsity in enumerate(sparsities):
        masks = magnitude_masks(module, sparsity=sparsity)
        apply_masks(module, masks)
        torch.save({"weights": module.state_dict(), "masks": masks}, files / f"level{number:02}.pt")
    return {**settings, "levels": [{"sparsity": sparsity} for sparsity in sparsities]}
