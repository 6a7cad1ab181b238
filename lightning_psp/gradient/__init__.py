"""Adding the gradient of the penalty to a backward pass.

The potentials of a step come in and are kept (`tap.py`) until a loss goes back; where its gradient passes a potential,
that of the penalty is added, and the value of the penalty comes out. Open `injection.py` first, which prepares a
backward pass; `entropy_term.py` does the same for the entropy.
"""
