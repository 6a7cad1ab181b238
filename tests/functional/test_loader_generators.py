"""Generators are found wherever data loaders have them."""

import pytest
import torch
from lightning.pytorch.utilities import CombinedLoader
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, TensorDataset

from lightning_psp.functional.loader_generators import loader_generators

DATA = TensorDataset(torch.arange(6.0))


class Noisy(TensorDataset):
    def __init__(self, generator):
        super().__init__(torch.arange(6.0))
        self.generator = generator


def with_batch_sampler(generator):
    return DataLoader(DATA, batch_sampler=BatchSampler(RandomSampler(DATA, generator=generator), 2, drop_last=False))


PLACES = {
    "loader": lambda generator: DataLoader(DATA, shuffle=True, generator=generator),
    "sampler": lambda generator: DataLoader(DATA, sampler=RandomSampler(DATA, generator=generator)),
    "sampler of batches": with_batch_sampler,
    "data set": lambda generator: DataLoader(Noisy(generator)),
    "nested": lambda generator: {"a": [DataLoader(DATA), (with_batch_sampler(generator),)]},
    "combined": lambda generator: CombinedLoader([DataLoader(DATA), with_batch_sampler(generator)]),
}


@pytest.mark.parametrize("place", PLACES)
def test_places(place):
    generator = torch.Generator()
    assert loader_generators(PLACES[place](generator)) == [generator]


@pytest.mark.parametrize("loaders", [None, DataLoader(DATA), [(torch.zeros(2), torch.zeros(2))], "text"])
def test_none(loaders):
    assert loader_generators(loaders) == []
