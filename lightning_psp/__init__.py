"""Post-synaptic potentials for PyTorch Lightning: see and shape what happens before a nonlinearity."""

from lightning_psp.analysis.layer_summary import layer_summary
from lightning_psp.callback import PSPCallback
from lightning_psp.callback.find_lam import find_lam
from lightning_psp.callback.lam_search import LamSearch
from lightning_psp.compilation.eager_code import keep_from_compiler
from lightning_psp.functional.penalty import psp_penalty
from lightning_psp.recording.potentials import Potentials, record_potentials

__version__ = "0.1.0"

__all__ = [
    "LamSearch",
    "PSPCallback",
    "Potentials",
    "__version__",
    "find_lam",
    "layer_summary",
    "psp_penalty",
    "record_potentials",
]

keep_from_compiler(__name__)
