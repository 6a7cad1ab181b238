"""A product that a version of torch may lack: another one gives the same counts."""

import pytest
import torch

from lightning_psp.functional import psp_entropy
from lightning_psp.torch_private import products
from tests.support.entropy_cases import batch


def test_this_version_has_the_name():
    assert products._int_mm is not None


def test_entropies_of_pairs_are_the_same(monkeypatch):
    z, target = batch((70, 20))
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    found = psp_entropy(z, target, 3, 2).item()
    monkeypatch.setattr(products, "_int_mm", None)
    assert not products.multiplies_bytes(z.device)
    assert psp_entropy(z, target, 3, 2).item() == pytest.approx(found, abs=1e-13)
