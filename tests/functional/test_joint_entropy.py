"""PSP-entropy of second and higher order."""

import itertools
import math
import statistics
from unittest.mock import Mock

import numpy as np
import pytest
import torch

from lightning_psp.functional import (
    EntropyEstimate,
    estimate_psp_entropy,
    pair_entropy,
    progress,
    psp_entropy,
    set_entropy,
)
from lightning_psp.functional.pair_lookup import CountedInPairs, SinglyCounted
from lightning_psp.functional.states import pack_states, states_of_units, unpack_states
from tests.support.entropy_cases import CASES, batch
from tests.support.entropy_reference import mean_over_sets, observations, of_set


@pytest.fixture(params=["bytes", "float32"])
def products(request, monkeypatch):
    """Both ways in which a processor multiplies."""
    monkeypatch.setattr(pair_entropy, "multiplies_bytes", lambda device: request.param == "bytes")


@pytest.fixture(params=[SinglyCounted, CountedInPairs])
def lookup(request, monkeypatch):
    """Both ways in which entropies of pairs are looked up."""

    def rules(active, table, width):
        return [request.param(part, table) for part in torch.split(active, width)]

    monkeypatch.setattr(pair_entropy, "_rules", rules)


@pytest.mark.parametrize("name", [name for name in CASES if not name.startswith("one unit")])
@pytest.mark.parametrize("order", [2, 3])
def test_counts_in_loops(name, order):
    shape, unit, unit_dim = CASES[name]
    z, target = batch(shape)
    expected = mean_over_sets(*observations(z, target, unit, unit_dim), order)
    assert psp_entropy(z, target, 3, order, unit, unit_dim=unit_dim).item() == pytest.approx(expected, abs=1e-11)


@pytest.mark.parametrize("units", [2, 7, 8, 9, 16, 17, 24, 31])
def test_blocks_of_pairs(units, products, lookup, monkeypatch):
    monkeypatch.setattr(pair_entropy, "BLOCK", 16)
    monkeypatch.setattr(pair_entropy, "ROWS", 5)
    monkeypatch.setattr(pair_entropy, "OBSERVATIONS", 8)
    z, target = batch((35, units))
    expected = mean_over_sets(*observations(z, target), 2)
    assert psp_entropy(z, target, 3, 2).item() == pytest.approx(expected, abs=1e-12)


def test_large_classes(products, lookup):
    """Counts beyond what a byte holds, and more than are unpacked at a time."""
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(20_011, 3, generator=generator) + torch.tensor([2.0, 0.0, -1.0])
    target = torch.zeros(len(z), dtype=torch.int64)
    expected = mean_over_sets(*observations(z, target), 2)
    assert psp_entropy(z, target, 1, 2).item() == pytest.approx(expected, abs=1e-12)


def test_few_states_are_looked_up_where_tables_are_small(monkeypatch):
    def kinds(units, observations):
        active = torch.arange(units, dtype=torch.int32) * observations // units
        return {type(rule) for rule in pair_entropy._rules(active, torch.rand(observations + 1), pair_entropy.BLOCK)}

    assert kinds(1500, 50) == {CountedInPairs}
    assert kinds(100, 2000) == {SinglyCounted}
    monkeypatch.setattr(pair_entropy, "LARGEST_TABLES", 1000)
    assert kinds(1500, 50) == {SinglyCounted}


def test_autocast_rounds_no_count(products):
    z, target = batch((700, 9), num_classes=1)
    expected = mean_over_sets(*observations(z, target), 2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert psp_entropy(z, target, 1, 2).item() == pytest.approx(expected, abs=1e-12)


def test_counts_beyond_those_of_float32(products, monkeypatch):
    monkeypatch.setattr(pair_entropy, "LARGEST_COUNT", 100)
    patterns = pack_states(torch.ones(2, 300, dtype=torch.bool))
    together = pair_entropy._count_together(patterns, patterns)
    assert together.dtype in (torch.int32, torch.float64)
    assert together.tolist() == [[300, 300], [300, 300]]


@pytest.mark.parametrize("samples", [1, 5, 64, 70])
def test_units_that_share_their_states(samples, products, lookup):
    """Few samples leave few patterns, each of which many units have."""
    z, target = batch((samples, 40), num_classes=1)
    z = torch.cat([z, -z, z[:, :9], torch.ones(samples, 3)], dim=1)
    expected = mean_over_sets(*observations(z, target), 2)
    assert psp_entropy(z, target, 1, 2).item() == pytest.approx(expected, abs=1e-12)


def test_relations_between_orders():
    z, target = batch((200, 12))
    first, second = psp_entropy(z, target, 3), psp_entropy(z, target, 3, 2)
    assert first < second < 2 * first
    third = psp_entropy(z, target, 3, 3)
    assert second < third < 1.5 * second  # Han's inequality


def test_units_that_say_the_same():
    z, target = batch((50, 1))
    alone = psp_entropy(z, target, 3).item()
    for copies in (z.expand(-1, 3), torch.cat([z, -z], 1)):
        assert psp_entropy(copies, target, 3, 2).item() == pytest.approx(alone, abs=1e-12)
    assert psp_entropy(z.expand(-1, 4), target, 3, 4).item() == pytest.approx(alone, abs=1e-12)


def test_independent_units():
    z = torch.tensor(list(itertools.product([-1.0, 1.0], repeat=5)))
    for order in range(1, 6):
        assert psp_entropy(z, torch.zeros(32, dtype=torch.int64), 1, order).item() == pytest.approx(order, abs=1e-12)


@pytest.mark.parametrize(("samples", "order"), [(40, 4), (5, 6), (3, 20)])
def test_few_and_many_samples_for_the_states(samples, order):
    z, target = batch((samples, order + 2), num_classes=1)
    expected = mean_over_sets(*observations(z, target), order)
    assert psp_entropy(z, target, 1, order).item() == pytest.approx(expected, abs=1e-12)


def test_chunks_of_sets(monkeypatch):
    z, target = batch((40, 7))
    expected = mean_over_sets(*observations(z, target), 3)
    for chunk in (1, 100):
        monkeypatch.setattr(set_entropy, "_CHUNK", chunk)
        assert psp_entropy(z, target, 3, 3).item() == pytest.approx(expected, abs=1e-12)


def test_largest_order():
    z, target = batch((60, 62), num_classes=1)
    assert psp_entropy(z, target, 1, 62).item() == pytest.approx(math.log2(60), abs=1e-12)


def test_sampled_sets():
    z, target = batch((40, 10))
    states, classes = observations(z, target)
    estimate = estimate_psp_entropy(z, target, 3, 3, max_sets=50, seed=7)
    drawn = set_entropy.choose_sets(10, 3, 50, seed=7)
    assert len(set(drawn)) == 50
    assert all(len(set(units)) == 3 and 0 <= min(units) <= max(units) < 10 for units in drawn)
    values = [of_set(states, classes, units) for units in drawn]
    assert estimate.value == pytest.approx(statistics.mean(values), abs=1e-12)
    # of a mean of 50 out of 120
    assert estimate.standard_error == pytest.approx(math.sqrt(statistics.variance(values) / 50 * (1 - 50 / 120)))
    assert (estimate.number_of_sets, estimate.is_exact) == (50, False)
    assert estimate_psp_entropy(z, target, 3, 3, max_sets=50, seed=7) == estimate
    assert estimate_psp_entropy(z, target, 3, 3, max_sets=50, seed=8) != estimate
    with pytest.warns(UserWarning, match=r"order 3 .* random sample of 50 sets of units, standard error 0\.0"):
        assert psp_entropy(z, target, 3, 3, max_sets=50, seed=7).item() == estimate.value


def test_standard_error_tells_the_spread():
    """Over many seeds, the estimates lie around the exact value as their standard errors say."""
    z, target = batch((30, 12))
    exact = estimate_psp_entropy(z, target, 3, 3)
    assert (exact.number_of_sets, exact.standard_error, exact.is_exact) == (220, 0.0, True)
    found = [estimate_psp_entropy(z, target, 3, 3, max_sets=60, seed=seed) for seed in range(100)]
    errors = np.array([(estimate.value - exact.value) / estimate.standard_error for estimate in found])
    assert abs(errors.mean()) < 0.35
    assert 0.8 < errors.std() < 1.25


def test_all_sets_are_exact():
    z, target = batch((40, 6))
    assert estimate_psp_entropy(z, target, 3, 3, max_sets=20).is_exact
    assert not estimate_psp_entropy(z, target, 3, 3, max_sets=19).is_exact
    assert estimate_psp_entropy(z, target, 3, 2, max_sets=2) == EntropyEstimate(
        psp_entropy(z, target, 3, 2).item(), 0.0, 15, is_exact=True
    )


def test_number_of_sets_beyond_integers_of_machines():
    z, target = batch((20, 500), num_classes=1)
    assert estimate_psp_entropy(z, target, 1, 60, max_sets=5).value == pytest.approx(math.log2(20), abs=0.2)


@pytest.mark.parametrize("units", [1, 7, 8, 9, 20])
def test_packed_states(units):
    states = torch.randn(13, units) > 0
    packed = pack_states(states)
    assert packed.shape == (13, math.ceil(units / 8))
    assert np.array_equal(packed.numpy(), np.packbits(states.numpy(), axis=1, bitorder="little"))
    assert torch.equal(unpack_states(packed, torch.bool)[:, :units], states)
    chosen = torch.randint(0, units, (5,))
    assert torch.equal(states_of_units(packed.T, chosen).bool(), states.T[chosen])


def test_progress_is_shown_of_long_computations_only(monkeypatch, capsys):
    z, target = batch((40, 12))
    psp_entropy(z, target, 3, 2)
    psp_entropy(z, target, 3, 3)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr("lightning_psp.functional.progress.SECONDS_WITHOUT_BAR", 0.0)
    monkeypatch.setattr(progress.tqdm, "update", update := Mock())
    psp_entropy(z, target, 3, 2)
    psp_entropy(z, target, 3, 3)
    shown = capsys.readouterr()
    assert "| 0/432" in shown.err  # three classes, twelve units with one another
    assert "| 0/660" in shown.err  # three classes, all sets
    assert shown.out == ""
    assert sum(call.args[0] for call in update.call_args_list) == 432 + 660
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 1)
    psp_entropy(z, target, 3, 2)
    assert capsys.readouterr().err == ""


def test_the_number_of_threads_changes_neither_the_value_nor_itself():
    z, target = torch.randn(40, 2100, generator=torch.Generator().manual_seed(3)), torch.arange(40) % 3
    before = torch.get_num_threads()
    try:
        values = []
        for threads in (1, 3):
            torch.set_num_threads(threads)
            values.append(psp_entropy(z, target, 3, order=2).item())
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert values[0] == values[1]


def test_threads_are_given_back_after_an_error(monkeypatch):
    def fail(*args):
        raise MemoryError

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        monkeypatch.setattr(pair_entropy, "_count_together", fail)
        with pytest.raises(MemoryError):
            psp_entropy(torch.randn(8, 5), torch.arange(8) % 2, 2, order=2)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
