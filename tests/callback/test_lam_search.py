"""What a search for λ suggests, prints and draws."""

import html
import math

import pytest

from lightning_psp import LamSearch


def test_suggestion():
    values = {"val_loss": (0.5, 0.3, 0.3, math.nan, 0.4), "accuracy": (0.5, 0.3, 0.3, math.inf, 0.4)}
    lams = (0.0, 0.1, 1.0, 10.0, 100.0)
    assert LamSearch(lams, values, "val_loss", "min").suggestion() == 1.0
    assert LamSearch(lams, values, "accuracy", "max").suggestion() == 0.0
    with pytest.raises(ValueError, match="'val_loss'"):
        LamSearch((0.0, 1.0), {"val_loss": (math.nan, math.inf)}, "val_loss", "min").suggestion()


def test_plot():
    pyplot = pytest.importorskip("matplotlib.pyplot")
    values = {"val_error": (0.5, 0.2, 0.4), "psp/z2_val": (5.0, 2.0, 0.1), "val_loss": (1.0, 2.0, 3.0)}
    search = LamSearch((0.0, 0.1, 1.0), values, "val_error", "min")
    figure, (error, z2) = search.plot()
    curve, without, chosen = error.lines
    assert curve.get_xydata().tolist() == [[0.1, 0.2], [1.0, 0.4]]
    assert without.get_ydata()[0] == 0.5
    assert chosen.get_xdata()[0] == 0.1
    assert z2.get_ylabel() == "⟨z²⟩ of the validation data"
    with pytest.raises(ValueError, match="val_error, psp/z2_val, val_loss but got 'loss'"):
        search.plot(keys=["loss"])
    with pytest.raises(
        TypeError, match=r"`keys` to be a sequence of names, such as \('val_loss',\), but got 'val_loss'"
    ):
        search.plot(keys="val_loss")
    even = LamSearch((0.0, 0.1, 1.0), {"val_error": (0.5, 0.5, 0.5)}, "val_error", "min")
    assert len(even.plot()[1][0].lines) == 2  # and no suggestion
    pyplot.close("all")
    assert figure


@pytest.mark.parametrize(
    ("losses", "said"),
    [
        ((1.0, 0.8, 0.5, 0.7), "Suggestion: λ = 0.1."),
        (
            (1.0, 0.3, 0.5, 0.7),
            "Suggestion: λ = 0.01, the smallest that was tried: try smaller ones, too, or longer trainings.",
        ),
        ((1.0, 0.8, 0.5, 0.4), "Suggestion: λ = 1, the largest that was tried: try larger ones, too."),
        (
            (0.2, 0.8, 0.5, 0.4),
            "Suggestion: λ = 0, no penalty. Of so short trainings that may be chance: try longer ones.",
        ),
        ((0.5, 0.5, 0.5, 0.5), "No suggestion: 'val_loss' is the same for every λ. Train longer."),
        ((math.nan, math.nan, math.inf, math.nan), "No training ended with a finite 'val_loss'."),
    ],
)
def test_a_search_is_printed_as_a_table_with_what_it_suggests(losses, said):
    values = {"val_loss": losses, "psp/z2_val": (9.0, 7.0, 3.0, 0.25), "psp_z2_val/network.0": (1.0, 1.0, 1.0, 1.0)}
    search = LamSearch((0.0, 0.01, 0.1, 1.0), values, "val_loss", "min")
    title, *rows, advice = str(search).splitlines()
    assert search._repr_html_() == f"<pre>{html.escape(str(search))}</pre>"
    assert title.split() == ["λ", "val_loss", "⟨z²⟩", "of", "the", "validation", "data"]
    assert [row.split()[::2] for row in rows] == [["0", "9"], ["0.01", "7"], ["0.1", "3"], ["1", "0.25"]]
    assert advice == said


def test_values_that_differ_are_printed_differently():
    search = LamSearch((0.0, 0.1, 1.0), {"val_loss": (2.2541, 2.2540, 2.2542), "z": (1.0, 1.0, 1.0)}, "val_loss", "min")
    assert [line.split()[-1] for line in str(search).splitlines()[1:4]] == ["2.2541", "2.254", "2.2542"]
    even = LamSearch((0.0, 1.0), {"val_loss": (2.25411, 2.25411)}, "val_loss", "min")
    assert str(even).splitlines()[1].split()[-1] == "2.254"
