"""Masks by magnitude and at random, and what they do to networks, against counts and sorts written out."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

from lightning_psp.pruning import Sparsity, apply_masks, magnitude_masks, random_masks_like, sparsity
from lightning_psp.pruning.prunable import prunable_parameters
from tests.support.pruning.networks import (
    NETWORKS,
    LinearBesideLSTM,
    TiedTransformer,
    effective_weights,
    old_weight_norm,
)


@pytest.fixture(params=NETWORKS)
def network(request):
    torch.manual_seed(0)
    return NETWORKS[request.param]()


def expected_by_sorting(weights, share):
    """The names and positions of the smallest weights, by a stable sort in Python."""
    entries = [
        (abs(value), name, position)
        for name, weight in weights.items()
        for position, value in enumerate(weight.flatten().tolist())
    ]
    entries.sort(key=lambda entry: entry[0])
    gone = entries[: round(share * len(entries))]
    found = {name: torch.ones(weight.numel(), dtype=torch.bool) for name, weight in weights.items()}
    for _, name, position in gone:
        found[name][position] = False
    return {name: found[name].view(weight.shape) for name, weight in weights.items()}


def assert_equal(masks, expected):
    assert list(masks) == list(expected)
    for name, mask in masks.items():
        assert mask.dtype == torch.bool
        assert torch.equal(mask, expected[name]), name


# --- which parameters ------------------------------------------------------------------------------------------------

KINDS = [
    (nn.Linear, (3, 2)),
    (nn.Bilinear, (2, 2, 3)),
    *[(getattr(nn, f"Conv{n}d"), (2, 3, 2)) for n in (1, 2, 3)],
    *[(getattr(nn, f"ConvTranspose{n}d"), (2, 3, 2)) for n in (1, 2, 3)],
]


@pytest.mark.parametrize(("kind", "arguments"), KINDS, ids=lambda value: getattr(value, "__name__", ""))
def test_every_kind_of_layer(kind, arguments):
    layer = nn.Sequential(nn.BatchNorm1d(2), kind(*arguments))
    assert list(magnitude_masks(layer, sparsity=0.5)) == ["1.weight"]


@pytest.mark.parametrize("kind", [nn.LazyLinear, nn.LazyConv2d, nn.LazyConvTranspose2d])
def test_lazy_layers(kind):
    arguments = (3,) if kind is nn.LazyLinear else (3, 2)
    network = nn.Sequential(nn.Linear(2, 2), kind(*arguments))
    with pytest.raises(ValueError, match=r"'1.weight' cannot be pruned: it is not initialised yet. Call the network"):
        magnitude_masks(network, sparsity=0.5)
    assert list(magnitude_masks(network, sparsity=0.5, exclude=["1.*"])) == ["0.weight"]
    network[1](torch.randn(1, 2, 4, 4) if kind is not nn.LazyLinear else torch.randn(1, 2))
    assert list(magnitude_masks(network, sparsity=0.5)) == ["0.weight", "1.weight"]


def test_names_of_the_networks():
    assert list(prunable_parameters(NETWORKS["lenet5"]())) == [
        f"{each}.weight" for each in ("conv1", "conv2", "fc1", "fc2")
    ]
    assert list(prunable_parameters(LinearBesideLSTM())) == ["first.weight", "head.weight"]


def test_a_shared_parameter_is_one_entry():
    network = TiedTransformer()
    masks = magnitude_masks(network, sparsity=0.5)
    assert "embedding.weight" in masks
    assert "head.weight" not in masks
    for name in ("head.weight", "embedding.weight"):
        assert list(magnitude_masks(network, sparsity=0.5, include=[name])) == ["embedding.weight"]
        assert "embedding.weight" not in magnitude_masks(network, sparsity=0.5, exclude=[name])
    apply_masks(network, {"head.weight": masks["embedding.weight"]})
    assert network.embedding.weight is network.head.weight
    assert torch.equal(network.embedding.weight != 0, masks["embedding.weight"])
    both = dict.fromkeys(("embedding.weight", "head.weight"), masks["embedding.weight"])
    with pytest.raises(ValueError, match=r"once but got 'embedding.weight' and 'head.weight'"):
        apply_masks(network, both)


def test_names_in_compiled_networks():
    plain = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    masks = magnitude_masks(plain, sparsity=0.5)
    compiled = nn.Sequential(torch.compile(copy.deepcopy(plain)))
    assert list(prunable_parameters(compiled, ["0.0.*"])) == ["0._orig_mod.0.weight"]
    assert list(prunable_parameters(compiled, exclude=["0._orig_mod.0.*"])) == ["0._orig_mod.2.weight"]
    for prefix in ("0.", "0._orig_mod."):
        apply_masks(compiled, {prefix + name: mask for name, mask in masks.items()})
    assert torch.equal(compiled.get_parameter("0._orig_mod.0.weight") != 0, masks["0.weight"])


# --- by magnitude ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.0, 0.37, 0.98, 1.0])
def test_global_sparsity(network, share):
    """Exact to one weight, and the weights that a sort takes."""
    weights = effective_weights(network)
    masks = magnitude_masks(network, sparsity=share)
    elements = sum(weight.numel() for weight in weights.values())
    assert sum(int((~mask).sum()) for mask in masks.values()) == round(share * elements)
    if elements < 200_000:
        assert_equal(masks, expected_by_sorting(weights, share))
    else:
        gone = [weights[name][~mask].abs().max() for name, mask in masks.items() if not mask.all()]
        stay = [weights[name][mask].abs().min() for name, mask in masks.items() if mask.any()]
        assert not gone or not stay or max(gone) <= min(stay)


def test_layer_sparsity(network):
    weights = effective_weights(network)
    masks = magnitude_masks(network, sparsity=0.7, scope="layer")
    for name, weight in weights.items():
        assert int((~masks[name]).sum()) == round(0.7 * weight.numel())
        if weight.numel() < 20_000:
            assert_equal({name: masks[name]}, expected_by_sorting({name: weight}, 0.7))


def test_threshold(network):
    weights = effective_weights(network)
    threshold = weights[next(iter(weights))].abs().median().item()
    masks = magnitude_masks(network, threshold=threshold)
    assert_equal(masks, {name: ~(weight.abs() < threshold) for name, weight in weights.items()})
    assert all(mask.all() for mask in magnitude_masks(network, threshold=0.0).values())


@pytest.mark.parametrize("scope", ["global", "layer"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16, torch.complex64])
def test_ties_are_broken_by_position(scope, dtype):
    network = nn.Sequential(nn.Linear(5, 2, dtype=dtype), nn.Linear(2, 3, dtype=dtype))
    values = torch.tensor([1.0, -1.0, 2.0, 1.0, 0.0, 1.0, -2.0, 1.0, -1.0, 0.0])
    network[0].weight.data.copy_(values.view(2, 5))
    network[1].weight.data.copy_(torch.tensor([1.0, 1.0, -1.0, 1.0, 1.0, 1.0]).view(3, 2))
    masks = magnitude_masks(network, sparsity=0.5, scope=scope)
    first = torch.ones(10, dtype=torch.bool)
    first[[4, 9, *([0, 1, 3, 5, 7, 8] if scope == "global" else [0, 1, 3])]] = False
    second = torch.ones(6, dtype=torch.bool)
    if scope == "layer":
        second[:3] = False
    assert_equal(masks, {"0.weight": first.view(2, 5), "1.weight": second.view(3, 2)})


def test_weights_that_are_zero_go_first():
    network = NETWORKS["lenet5"]()
    apply_masks(network, magnitude_masks(network, sparsity=0.6))
    before = sparsity(network)
    masks = magnitude_masks(network, sparsity=0.8)
    for name, parameter in prunable_parameters(network).items():
        assert not (masks[name] & (parameter == 0)).any()
    assert before.network == pytest.approx(0.6, abs=1e-4)


# --- at random -------------------------------------------------------------------------------------------------------


def test_random_masks(network):
    masks = magnitude_masks(network, sparsity=0.7)
    state = torch.get_rng_state()
    drawn, again, other = (random_masks_like(masks, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert_equal(again, drawn)
    assert sparsity(drawn) == sparsity(other) == sparsity(masks)
    differing = [name for name, mask in masks.items() if not mask.all() and mask.any()]
    assert differing
    for name in differing:
        assert not torch.equal(drawn[name], masks[name])
        assert not torch.equal(drawn[name], other[name])


def test_random_places_are_equally_likely():
    masks = {"weight": torch.tensor([[True, False, False], [True, False, False]])}
    drawn = torch.stack([random_masks_like(masks, seed=seed)["weight"] for seed in range(600)])
    assert (drawn.flatten(1).sum(1) == 2).all()
    # a standard deviation of 0.019 around 1/3
    assert (drawn.double().mean(0) - 1 / 3).abs().max() < 0.08


# --- applied ---------------------------------------------------------------------------------------------------------


def test_applied_masks(network):
    before = effective_weights(network)
    names = [name for name, _ in network.named_parameters()]
    others = {name: value.clone() for name, value in network.state_dict().items() if name not in before}
    masks = magnitude_masks(network, sparsity=0.6)
    apply_masks(network, masks)
    for name, weight in effective_weights(network).items():
        torch.testing.assert_close(weight, before[name] * masks[name], rtol=1e-5, atol=1e-7)
        assert (weight[~masks[name]] == 0).all()
    assert [name for name, _ in network.named_parameters()] == names
    lengths = ("original0", "weight_g", "weight")  # of weight norm; an old one's weight is made anew in each call
    for name, value in others.items():
        assert torch.equal(network.state_dict()[name], value) or name.endswith(lengths)
    assert sparsity(network) == sparsity(masks)
    assert sparsity(masks).network == pytest.approx(0.6, abs=0.01)
    state = copy.deepcopy(network.state_dict())
    apply_masks(network, masks)
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())


def test_what_a_mask_takes_away_is_zero_even_where_it_was_nan():
    layer = nn.Linear(2, 1)
    layer.weight.data.fill_(math.nan)
    apply_masks(layer, {"weight": torch.tensor([[True, False]])})
    assert layer.weight[0, 1] == 0
    assert layer.weight[0, 0].isnan()
    with pytest.raises(ValueError, match="'weight' holds NaN"):
        magnitude_masks(layer, sparsity=0.5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.complex64])
@pytest.mark.parametrize("layout", ["contiguous", "transposed", "channels last", "a part"])
def test_other_precisions_and_layouts(dtype, layout):
    """Of all numbers, NaN and infinities included, none but those that go changes, and none of them becomes -0."""
    values = torch.randn(4, 3, 2, 2).to(dtype)
    values.view(-1)[:6] = torch.tensor([math.nan, -math.inf, math.inf, -0.0, math.nan, -1.0])
    change = {
        "contiguous": lambda x: x,
        "transposed": lambda x: x.transpose(0, 1).contiguous().transpose(0, 1),
        "channels last": lambda x: x.to(memory_format=torch.channels_last),
        "a part": lambda x: torch.cat([x, x])[4:],
    }
    layer = nn.Conv2d(3, 4, 2)
    layer.weight = nn.Parameter(change[layout](values))
    mask = torch.rand(4, 3, 2, 2) < 0.5
    mask.view(-1)[:6] = torch.tensor([False, False, True, False, True, False])
    apply_masks(layer, {"weight": mask})
    expected = torch.where(mask, values, torch.zeros((), dtype=dtype))
    torch.testing.assert_close(layer.weight.detach(), expected, rtol=0, atol=0, equal_nan=True)
    assert not torch.view_as_real(layer.weight[~mask].to(torch.complex64)).signbit().any()


def test_any_parameter_can_be_masked():
    network = TiedTransformer()
    name = "encoder.layers.0.self_attn.in_proj_weight"
    assert name not in magnitude_masks(network, sparsity=0.5)
    apply_masks(network, {name: torch.zeros(24, 8, dtype=torch.bool)})
    assert not network.get_parameter(name).any()


@pytest.mark.parametrize("dim", [0, 1, None])
@pytest.mark.parametrize("weight_norm", [parametrizations.weight_norm, old_weight_norm])
def test_weight_norm_without_a_whole_direction(weight_norm, dim):
    """Where a whole filter goes, its weights are 0 and not NaN."""
    layer = weight_norm(nn.Linear(3, 2).double(), dim=dim)
    (name,) = magnitude_masks(layer, sparsity=0.5)
    rows = {0: [[0, 1, 0], [1, 1, 1]], 1: [[1, 0, 0], [1, 1, 0]], None: [[1, 1, 1], [1, 1, 1]]}
    gone = torch.tensor(rows[dim], dtype=torch.bool)
    before = effective_weights(layer)[name]
    x = torch.randn(4, 3, dtype=torch.float64)
    apply_masks(layer, {name: ~gone})
    torch.testing.assert_close(layer(x), x @ (before * ~gone).T + layer.bias)
    assert sparsity(layer).network == gone.double().mean()
    layer(x).square().sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in layer.parameters())


# --- sparsity --------------------------------------------------------------------------------------------------------


def test_sparsity_of_a_module_and_of_masks():
    network = nn.Sequential(nn.Linear(4, 2), nn.Linear(2, 1))
    network[0].weight.data.view(-1)[:6] = 0.0
    expected = Sparsity(network=0.6, layers={"0.weight": 0.75, "1.weight": 0.0})
    assert sparsity(network) == expected
    masks = {name: parameter != 0 for name, parameter in prunable_parameters(network).items()}
    assert sparsity(masks) == expected
    for found in (sparsity(network, exclude=["0.*"]), sparsity(masks, include=["1.*"])):
        assert found == Sparsity(0.0, {"1.weight": 0.0})
    with pytest.raises(AttributeError):
        expected.network = 0.0
    masks["of no weight"] = torch.ones(0, 2, dtype=torch.bool)
    assert sparsity(masks) == Sparsity(0.6, {**expected.layers, "of no weight": 0.0})


# --- errors, before anything is changed ------------------------------------------------------------------------------

LAYER = nn.Linear(2, 3)
MASK = torch.ones(3, 2, dtype=torch.bool)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({}, ValueError, "exactly one of the arguments `sparsity` and `threshold` but got sparsity=None"),
        ({"sparsity": 0.5, "threshold": 0.1}, ValueError, "but got sparsity=0.5, threshold=0.1"),
        ({"sparsity": -0.1}, ValueError, "`sparsity` to be a finite number of at least 0 and at most 1 but got -0.1"),
        ({"sparsity": 98}, ValueError, "`sparsity` to be a finite number of at least 0 and at most 1 but got 98"),
        ({"sparsity": "high"}, TypeError, "`sparsity` to be a number but got 'high'"),
        ({"threshold": -1.0}, ValueError, "`threshold` to be a finite number of at least 0 but got -1.0"),
        ({"sparsity": 0.5, "scope": "filter"}, ValueError, "`scope` to be one of global, layer but got 'filter'"),
        ({"sparsity": 0.5, "include": "weight"}, TypeError, "`include` to be a sequence of glob patterns"),
        ({"sparsity": 0.5, "include": ["conv*"]}, ValueError, "'conv*' of argument `include` matches no parameter"),
        ({"sparsity": 0.5, "exclude": ["conv*"]}, ValueError, "The parameters that can be pruned are: weight."),
        ({"sparsity": 0.5, "exclude": ["*"]}, ValueError, "No parameter is left to prune"),
    ],
)
def test_magnitude_masks_refuse(arguments, error, message):
    with pytest.raises(error) as raised:
        magnitude_masks(LAYER, **arguments)
    assert message in str(raised.value)


def test_a_network_without_any_weights_to_prune():
    for read in (lambda module: magnitude_masks(module, sparsity=0.5), sparsity):
        with pytest.raises(ValueError, match="LSTM has no linear or convolution layer"):
            read(nn.LSTM(2, 2))
        with pytest.raises(TypeError, match="got str"):
            read("network")
    with pytest.raises(ValueError, match="`module_or_masks` to hold at least one mask but got none"):
        sparsity({})


@pytest.mark.parametrize(
    ("masks", "error", "message"),
    [
        ({}, ValueError, "at least one mask but got none"),
        ([MASK], TypeError, "but got list. `magnitude_masks` makes such masks"),
        ({"weight": MASK.float()}, TypeError, "bool tensors but got torch.float32 for 'weight'"),
        ({"weight": [[True]]}, TypeError, "bool tensors but got list for 'weight'"),
        ({"weight": MASK.T}, ValueError, "the mask of '1.weight' to have the parameter's shape (3, 2) but got (2, 3)"),
        (
            {"fc.weight": MASK},
            ValueError,
            "parameters of Sequential but got '1.fc.weight'. Its parameters are: 0.weight",
        ),
    ],
)
def test_masks_that_do_not_fit(masks, error, message):
    """The first one does, and is not applied."""
    network = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 3))
    if isinstance(masks, dict) and masks:
        masks = {"0.weight": torch.zeros(2, 2, dtype=torch.bool), **{f"1.{name}": mask for name, mask in masks.items()}}
        message = message.replace("'weight'", "'1.weight'")
    before = copy.deepcopy(network.state_dict())
    with pytest.raises(error) as raised:
        apply_masks(network, masks)
    assert message in str(raised.value)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    if "Sequential" not in message and "shape" not in message:
        with pytest.raises(error):
            random_masks_like(masks, seed=0)
        with pytest.raises(error):
            sparsity(masks)


def test_random_masks_refuse_a_seed_that_is_no_integer():
    with pytest.raises(TypeError, match="`seed` to be an integer but got None"):
        random_masks_like({"weight": MASK}, seed=None)


PARAMETRISED = {
    "spectral norm": (parametrizations.spectral_norm, r"by _SpectralNorm. Take that away .*remove_parametrizations"),
    "orthogonal": (parametrizations.orthogonal, r"by _Orthogonal. Take that away .*remove_parametrizations"),
    "two": (lambda layer: parametrizations.spectral_norm(parametrizations.weight_norm(layer)), "_WeightNorm, _Spec"),
    "old spectral norm": (torch.nn.utils.spectral_norm, r"by a hook. Take that away .*remove_spectral_norm"),
    "torch's own masks": (
        lambda layer: prune.l1_unstructured(layer, "weight", 0.5),
        r"by a hook. Take that away \(`torch.nn.utils.prune.remove",
    ),
}


@pytest.mark.parametrize("case", PARAMETRISED)
@pytest.mark.filterwarnings("ignore:.*spectral_norm.* is deprecated")
def test_other_parametrisations(case):
    change, message = PARAMETRISED[case]
    network = nn.Sequential(nn.Linear(3, 3), change(nn.Linear(3, 3)))
    for read in (lambda module: magnitude_masks(module, sparsity=0.5), sparsity):
        with pytest.raises(ValueError, match=message):
            read(network)
    assert list(magnitude_masks(network, sparsity=0.5, exclude=["1.*"])) == ["0.weight"]


def test_quantised_weights():
    layer = nn.Linear(3, 2)
    layer.weight = nn.Parameter(torch.zeros(2, 3, dtype=torch.uint8), requires_grad=False)
    with pytest.raises(ValueError, match=r"'weight' cannot be pruned: it holds torch\.uint8"):
        sparsity(layer)
