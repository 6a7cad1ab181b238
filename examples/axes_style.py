"""What all pictures have in common."""

from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator


def tidy(axes: Axes) -> None:
    """Draw a faint grid behind the lines, and no frame."""
    axes.grid(color="#E5E5E5", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def label_plainly(axis: Axis) -> None:
    """Label a logarithmic axis, on which all is drawn, with 1, 2, 5, 10, … or more in place of powers of ten."""
    lowest, highest = axis.get_data_interval()
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if highest > 6 * lowest else (1, 1.2, 1.5, *range(2, 10))))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(NullLocator())
