"""The largest threshold within a bound, against trying every one."""

import math

import pytest
import torch

from lightning_psp.pruning.threshold import find_threshold


class Evaluated:
    """A loss by the number of weights that a threshold takes away; keeps what it was asked for."""

    def __init__(self, magnitudes, loss):
        self.magnitudes = magnitudes.double().flatten().tolist()
        self.loss = loss
        self.thresholds = []

    def pruned(self, threshold):
        return sum(magnitude < threshold for magnitude in self.magnitudes)

    def __call__(self, threshold):
        self.thresholds.append(threshold)
        return self.loss(self.pruned(threshold))


def largest_by_trying(evaluated, bound, most):
    """How many weights can go within the bound."""
    counts = {evaluated.pruned(threshold) for threshold in evaluated.magnitudes}
    return max((count for count in counts if count <= most and evaluated.loss(count) <= bound), default=0)


def magnitudes(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    # as after a decay: most lie close to 0
    return torch.randn(count, dtype=torch.float64, generator=generator).abs() ** 5


def check(values, loss, bound, start=None, most=None, evaluations=14):
    evaluated = Evaluated(values, loss)
    start = float(values.mean()) if start is None else start
    found = find_threshold(evaluated, values, bound, start=start, most=most, evaluations=evaluations)
    assert len(evaluated.thresholds) <= evaluations
    if found is not None:
        assert found.threshold in evaluated.thresholds
        assert found.pruned == evaluated.pruned(found.threshold) > 0
        assert found.loss == evaluated.loss(found.pruned) <= bound
    return found, evaluated


@pytest.mark.parametrize("count", [2, 3, 10, 1000, 4000])
@pytest.mark.parametrize("share", [0.0, 1e-3, 0.3, 0.5, 0.97, 1.0])
def test_rising_losses(count, share):
    limit = math.floor(share * count)
    found, evaluated = check(magnitudes(count), lambda pruned: float(pruned > limit), 0.5)
    expected = largest_by_trying(evaluated, 0.5, count - 1)
    assert (0 if found is None else found.pruned) == expected


@pytest.mark.parametrize("start", [0.0, 1e-30, 0.1, 1e30])
def test_the_start_is_tried_first(start):
    values = magnitudes(100)
    found, evaluated = check(values, lambda pruned: float(pruned), 40.0, start=start)
    assert found.pruned == 40
    first = min(max(1, evaluated.pruned(start)), 99)
    assert evaluated.pruned(evaluated.thresholds[0]) == first


def test_resolution_in_many_weights():
    values = magnitudes(300_000)
    ordered = values.sort().values
    limit = 123_456
    found = find_threshold(
        lambda threshold: float(torch.searchsorted(ordered, threshold)), values, limit, start=float(values.mean())
    )
    assert limit - 300_000 / 2**12 < found.pruned <= limit


@pytest.mark.parametrize("seed", range(20))
def test_losses_that_rise_and_fall(seed):
    generator = torch.Generator().manual_seed(seed)
    table = torch.rand(200, generator=generator).tolist()
    found, evaluated = check(magnitudes(200, seed), lambda pruned: table[pruned], 0.5)
    tried = [evaluated.pruned(threshold) for threshold in evaluated.thresholds]
    best = max((count for count in tried if table[count] <= 0.5), default=0)
    assert (0 if found is None else found.pruned) == best


def test_nan_and_infinity_are_above_every_bound():
    found, _ = check(magnitudes(64), lambda pruned: math.nan if pruned > 20 else 1.0, 1.0)
    assert found.pruned == 20
    assert check(magnitudes(64), lambda _: math.inf, 1.0)[0] is None
    assert check(magnitudes(64), lambda _: 1.0, math.nan)[0] is None


def test_everything_may_go_but_the_largest():
    values = magnitudes(64)
    found, _ = check(values, lambda _: 0.0, 1.0)
    assert found.pruned == 63
    assert found.threshold == values.max()


@pytest.mark.parametrize("most", [0, 1, 10, 63, 64, 1000])
def test_a_limit(most):
    found, evaluated = check(magnitudes(64), lambda _: 0.0, 1.0, most=most)
    assert (0 if found is None else found.pruned) == min(most, 63)
    assert most > 0 or evaluated.thresholds == []


@pytest.mark.parametrize("count", [0, 1])
def test_nothing_to_prune(count):
    found, evaluated = check(magnitudes(count), lambda _: 0.0, 1.0, start=0.5)
    assert found is None
    assert evaluated.thresholds == []


@pytest.mark.parametrize("limit", range(13))
def test_equal_weights_go_together(limit):
    values = torch.tensor([1.0, 1.0, 1.0, 2.0, 2.0, 2.0, 2.0, 2.0, 3.0, 4.0, 4.0, 4.0])
    found, evaluated = check(values, lambda pruned: float(pruned > limit), 0.5)
    assert (0 if found is None else found.pruned) == largest_by_trying(evaluated, 0.5, 11)


def test_all_weights_equal():
    found, evaluated = check(torch.ones(50), lambda _: 0.0, 1.0)
    assert found is None
    assert evaluated.thresholds == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_thresholds_are_magnitudes_in_their_own_precision(dtype):
    values = magnitudes(500).to(dtype)
    found, _ = check(values, lambda pruned: float(pruned), 250.0)
    assert found.threshold in values.double().tolist()
    assert int((values < found.threshold).sum()) == found.pruned <= 250


def test_no_more_evaluations_than_allowed():
    for evaluations in (0, 1, 3):
        check(magnitudes(5000), lambda pruned: float(pruned), 123.0, evaluations=evaluations)
