"""Lightning's side: the callback that adds the penalty to a training, and what it logs and says.

In come a trainer's events; a watched step's potentials go out to the log, as gradients to the backward pass, and as
messages to the user. Begin with `psp_callback`, which answers the events, and go on to `watch`, which sees one step.
"""

from lightning_psp.callback.psp_callback import PSPCallback

__all__ = ["PSPCallback"]
