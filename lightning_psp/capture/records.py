"""What a capture is made of, for those who tell it of functions that it does not see called."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic

from lightning_psp.capture.frames import Frames
from lightning_psp.capture.ledger import Ledger
from lightning_psp.capture.origin import Kept
from lightning_psp.capture.origins import Origins
from lightning_psp.capture.outputs import OutputFinder
from lightning_psp.capture.settlement import Settlement
from lightning_psp.capture.shadow import Graph
from lightning_psp.capture.witness import Witness


@dataclass(frozen=True)
class Records(Generic[Kept]):
    """The parts of a capture that learn of potentials and of what leads to them.

    Args:
        frames: the running modules.
        origins: what is known of tensors.
        graph: the graph in which they are.
        ledger: the potentials.
        outputs: calls of the network, and losses.
        witness: what may be an activation that nobody sees.
        settlement: finds of which tensor one stands for that may be the output.
    """

    frames: Frames
    origins: Origins
    graph: Graph
    ledger: Ledger[Kept]
    outputs: OutputFinder[Kept]
    witness: Witness
    settlement: Settlement[Kept]
