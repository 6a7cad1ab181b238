"""All rows. The tables import their libraries only when a row is made."""

from __future__ import annotations

import importlib
from pathlib import Path

from tests.libraries.check import Row

# Library, as its package is called in the index, to the module that is imported.
IMPORTS = {
    "transformers": "transformers",
    "diffusers": "diffusers",
    "timm": "timm",
    "monai": "monai",
    "segmentation_models_pytorch": "segmentation_models_pytorch",
    "torch_geometric": "torch_geometric",
    "scvi-tools": "scvi",
    "chemprop": "chemprop",
    "pytorch-forecasting": "pytorch_forecasting",
    "neuralforecast": "neuralforecast",
    "u8darts": "darts",
    "gluonts": "gluonts.torch",
    "lightly": "lightly",
    "pytorch-metric-learning": "pytorch_metric_learning",
    "litgpt": "litgpt",
    "peft": "peft",
    "open_clip_torch": "open_clip",
    "vit-pytorch": "vit_pytorch",
    "x-transformers": "x_transformers",
    "denoising-diffusion-pytorch": "denoising_diffusion_pytorch",
    "zuko": "zuko",
    "nflows": "nflows",
    "normflows": "normflows",
    "pytorch-tabnet": "pytorch_tabnet",
    "rtdl_revisiting_models": "rtdl_revisiting_models",
    "tabm": "tabm",
    "pyro-ppl": "pyro",
    "gpytorch": "gpytorch",
    "pytorch-crf": "torchcrf",
    "torchdiffeq": "torchdiffeq",
    "snntorch": "snntorch",
    "einops": "einops",
    "pykan": "kan",
    "stable-baselines3": "stable_baselines3",
    "tensordict": "tensordict",
}


def rows() -> list[Row]:
    """Those of every table, by library in the order above."""
    here = Path(__file__).parent
    tables = [".".join(path.relative_to(here).with_suffix("").parts) for path in sorted(here.rglob("rows_*.py"))]
    found = [row for table in tables for row in importlib.import_module(f"tests.libraries.{table}").ROWS]
    names = [str(row) for row in found]
    assert len(set(names)) == len(names), "two rows of one name"
    order = list(IMPORTS)
    return sorted(found, key=lambda row: order.index(row.library))
