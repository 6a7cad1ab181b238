"""Seeing the potentials of a network while its forward pass runs.

Every function call and module call of a step flows in; out come `Potential`s, each with the layer whose neurons it
holds, and the knowledge which of them are the output. Begin with `mode`, which hands each call to the file that knows
its kind: `provenance` and `pointwise` follow tensors, `ledger` takes potentials, `settlement` finds the output.
"""
