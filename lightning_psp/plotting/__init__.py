"""Pictures of results. Needs matplotlib, which the extra `plot` installs.

Results of :mod:`lightning_psp.analysis` and of pruning, and logs of trainings go in; each function draws into the axes
that it is given, or into a new figure of pyplot, and gives figure and axes. Nothing else in the package imports this
but `LamSearch.plot` when it is called. Start with `style.py`, which all pictures share: they can be read in grey and by
colour-blind readers.
"""

try:
    import matplotlib  # noqa: F401
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "`lightning_psp.plotting` needs matplotlib, which is not installed: pip install 'lightning_psp[plot]'"
    ) from error

from lightning_psp.plotting.curves import plot_curves
from lightning_psp.plotting.distributions import plot_distributions
from lightning_psp.plotting.gradient_parts import plot_gradient_parts
from lightning_psp.plotting.plane import plot_plane
from lightning_psp.plotting.pruning import plot_pruning
from lightning_psp.plotting.spectrum import plot_spectrum

__all__ = [
    "plot_curves",
    "plot_distributions",
    "plot_gradient_parts",
    "plot_plane",
    "plot_pruning",
    "plot_spectrum",
]
