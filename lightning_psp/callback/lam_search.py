"""What a search for λ found."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Mode = Literal["min", "max"]


@dataclass(frozen=True)
class LamSearch:
    """Result of :func:`~lightning_psp.find_lam`: what was logged by the end of each short training.

    Attributes:
        lams: the λ that were tried, in ascending order, 0 among them.
        values: for each logged name its value at the end of each training, in the order of `lams`; NaN where it was not
            logged.
        monitor: name of the value by which λ is chosen.
        mode: whether the lowest of its values is the best, or the highest.

    Example:
        >>> search = LamSearch((0.0, 0.01, 0.1, 1.0), {"val_loss": (0.5, 0.5, 0.4, 0.9)}, "val_loss", "min")
        >>> search.suggestion()
        0.1
        >>> print(search)
               λ    val_loss
               0         0.5
            0.01         0.5
             0.1         0.4
               1         0.9
        Suggestion: λ = 0.1.
    """

    lams: tuple[float, ...]
    values: dict[str, tuple[float, ...]]
    monitor: str
    mode: Mode

    def __str__(self) -> str:
        """A table of λ, the value that chooses and ⟨z²⟩, and what is suggested."""
        shown = {self.monitor: self.monitor, "psp/z2_val": "⟨z²⟩ of the validation data"}
        columns = {title: self.values[name] for name, title in shown.items() if name in self.values}
        widths = {title: max(10, len(title)) for title in columns}
        digits = {title: _digits(values) for title, values in columns.items()}
        lines = [f"{'λ':>8}" + "".join(f"  {title:>{widths[title]}}" for title in columns)]
        for place, lam in enumerate(self.lams):
            cells = (f"  {values[place]:>{widths[title]}.{digits[title]}g}" for title, values in columns.items())
            lines.append(f"{lam:>8g}" + "".join(cells))
        return "\n".join([*lines, self._advice()])

    def _repr_html_(self) -> str:
        """The table in a notebook."""
        return f"<pre>{html.escape(str(self))}</pre>"

    def _advice(self) -> str:
        """What to do with the suggestion: at an end of the λ that were tried the best one may lie beyond."""
        if not any(math.isfinite(value) for value in self.values[self.monitor]):
            return f"No training ended with a finite {self.monitor!r}."
        if self.is_undecided:
            return f"No suggestion: {self.monitor!r} is the same for every λ. Train longer."
        suggested = self.suggestion()
        if suggested == 0:
            return "Suggestion: λ = 0, no penalty. Of so short trainings that may be chance: try longer ones."
        tried = [lam for lam in self.lams if lam > 0]
        beyond = {
            tried[-1]: ", the largest that was tried: try larger ones, too",
            tried[0]: ", the smallest that was tried: try smaller ones, too, or longer trainings",
        }
        return f"Suggestion: λ = {suggested:g}{beyond.get(suggested, '')}."

    @property
    def is_undecided(self) -> bool:
        """Whether `monitor` has the same value for every λ, so that none is better than another."""
        first, *others = self.values[self.monitor]
        return all(value == first for value in others)

    def suggestion(self) -> float:
        """The λ with the best value of `monitor`, of equal ones the largest; 0 where no penalty was best.

        Where :attr:`is_undecided` is true, that is no advice.

        Raises:
            ValueError: if no training ended with a finite value.
        """
        sign = 1 if self.mode == "min" else -1
        finite = [
            (sign * value, -lam)
            for lam, value in zip(self.lams, self.values[self.monitor], strict=True)
            if math.isfinite(value)
        ]
        if not finite:
            raise ValueError(
                f"No training ended with a finite {self.monitor!r}: try smaller λ, or a lower learning rate."
            )
        return -min(finite)[1] + 0.0

    def plot(self, ax: Axes | Sequence[Axes] | None = None, keys: Sequence[str] | None = None) -> tuple[Any, Any]:
        """Draws logged values against λ, with the suggestion marked and the training without penalty as a line.

        Args:
            ax: axes to draw into, one for each key; by default a new figure of pyplot.
            keys: names of the values; by default `monitor` and ⟨z²⟩ of the validation data.

        Returns:
            The figure, and the axes in the order of `keys`.

        Raises:
            TypeError: if `keys` is a single string.
            ValueError: if a key was not logged, or there are not as many axes as keys.
            ModuleNotFoundError: if matplotlib, which the extra ``plot`` installs, is missing.
        """
        from lightning_psp.plotting.style import check_names, given_axes, new_axes, tidy

        if keys is not None:
            check_names("keys", keys)
        names = [name for name in (self.monitor, "psp/z2_val") if name in self.values] if keys is None else list(keys)
        missing = [name for name in names if name not in self.values]
        if missing:
            raise ValueError(f"Expected argument `keys` to be among {', '.join(self.values)} but got {missing[0]!r}.")
        axes = new_axes(len(names), (4.6, 3.8)) if ax is None else given_axes(ax, len(names), ", ".join(names))
        tried = [place for place, lam in enumerate(self.lams) if lam > 0]
        chosen = self.suggestion()
        for name, panel in zip(names, axes, strict=True):
            values = self.values[name]
            lams = [self.lams[place] for place in tried]
            panel.plot(lams, [values[place] for place in tried], color="#D55E00", marker="o", linewidth=1.6)
            panel.axhline(values[0], color="#555555", linestyle=":", label="λ = 0")
            if chosen > 0 and not self.is_undecided:
                panel.axvline(chosen, color="#0072B2", linestyle="--", label=f"suggestion: {chosen:g}")
            panel.set_xscale("log")
            panel.margins(y=0.1)  # the line of λ = 0 is mostly the highest, and would lie next to the frame
            panel.set_xlabel("λ")
            panel.set_ylabel("⟨z²⟩ of the validation data" if name == "psp/z2_val" else name)
            tidy(panel)
        axes[0].legend(frameon=False)
        return axes[0].figure, tuple(axes)


def _digits(values: Sequence[float]) -> int:
    """Significant digits that tell values apart: four, or a few more where those are needed."""
    finite = {value for value in values if math.isfinite(value)}
    for digits in range(4, 8):
        if len({f"{value:.{digits}g}" for value in finite}) == len(finite):
            return digits
    return 8
