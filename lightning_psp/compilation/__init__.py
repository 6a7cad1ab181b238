"""Potentials inside functions made by `torch.compile`."""
