"""Recording the potentials of a block of code.

A network and the code that calls it come in; a dict from layer name to potentials, graph attached, comes out. Here a
capture and what looks into compiled functions are put together. Open `potentials.py` first.
"""

from lightning_psp.recording.potentials import Potentials, record_potentials

__all__ = ["Potentials", "record_potentials"]
