"""Seeing the potentials of a network while its forward pass runs."""
