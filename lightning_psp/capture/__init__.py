"""Seeing the potentials of a network while its forward pass runs.

Every function call and module call of a step flows in; out come `Potential`s, each with the layer whose neurons it
holds, and the knowledge which of them are the output. Open `mode.py` first, which hands each call to the file that
knows its kind, and go on in this order:

- `functions.py`, `nonlinearities.py`: what torch's functions do with neurons;
- `origin.py`, `origins.py`, `provenance.py`, `pointwise.py`, `shadow.py`, `graph.py`: where tensors come from;
- `frames.py`, `module_calls.py`, `direct_calls.py`, `network_calls.py`, `checkpoints.py`: which modules and
  checkpointed functions run;
- `ledger.py`, `selection.py`, `kinds.py`: what becomes a potential, and its layer; `records.py`, what others tell of;
- `activation_calls.py`, `followed_calls.py`, `written_activations.py`, `fused_calls.py` with `recurrent.py`,
  `loss_calls.py`: one kind of call each;
- `outputs.py`, `settlement.py`, `witness.py`: the output layer, and what could not be seen.
"""
