"""Eigenvalues and eigenvectors of Hessians, against matrices in float64 made without second derivatives."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from lightning_psp.analysis import HessianSpectrum, hessian_eigenvalues
from lightning_psp.analysis import hessian_products as products_module
from tests.support.analysis.dense_hessian import dense_hessian
from tests.support.cases import REDUCTIONS, cross_entropy
from tests.support.cases.activations import MODULES, Dense
from tests.support.reference import reference_penalty


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def batches(*sizes, features=6, classes=3):
    return [(torch.randn(size, features).double(), torch.randint(classes, (size,))) for size in sizes]


def flat(vectors):
    return torch.cat([part.flatten(1) for part in vectors.values()], dim=1)


def assert_largest(spectrum, matrix, k, kept=None):
    """The k largest eigenvalues of a matrix, with vectors and residuals; of its part for the weights that are kept."""
    part = matrix if kept is None else matrix[kept][:, kept]
    expected = torch.linalg.eigvalsh((part + part.T) / 2).flip(0)[:k]
    torch.testing.assert_close(spectrum.values, expected, rtol=1e-6, atol=1e-6)
    vectors = flat(spectrum.vectors)
    torch.testing.assert_close(vectors @ vectors.T, torch.eye(k).double(), rtol=0, atol=1e-5)
    if kept is not None:
        assert not vectors[:, ~kept].any()
        vectors, matrix = vectors[:, kept], part
    torch.testing.assert_close(vectors @ matrix, spectrum.values[:, None] * vectors, rtol=0, atol=1e-5)
    assert (spectrum.residuals <= 1e-7 * spectrum.values[0].abs()).all()


@pytest.mark.parametrize("activation", MODULES)
def test_activations(activation):
    # Bounds of RReLU are equal, since they are random in training otherwise.
    network, data = Dense(MODULES[activation]()).double(), batches(7, 4)
    spectrum = hessian_eigenvalues(network, data, k=3, tolerance=1e-8)
    assert_largest(spectrum, dense_hessian(network, data), 3)


def test_a_smaller_last_batch_weighs_less():
    network, data = Dense(nn.Tanh()).double(), batches(9, 9, 1)
    whole = [tuple(torch.cat(parts) for parts in zip(*data, strict=True))]
    spectrum = hessian_eigenvalues(network, data, k=2, tolerance=1e-8)
    assert_largest(spectrum, dense_hessian(network, whole), 2)


def test_a_batch_without_samples_weighs_nothing():
    network, data = Dense(nn.Tanh()).double(), batches(8, 0, 3)
    spectrum = hessian_eigenvalues(network, data, k=2, tolerance=1e-8)
    assert_largest(spectrum, dense_hessian(network, [data[0], data[2]]), 2)


class TimeFirst(nn.Module):
    """A recurrent network that takes ``[time, batch, features]``, or packed sequences."""

    def __init__(self):
        super().__init__()
        self.rnn = nn.RNN(3, 2)
        self.head = nn.Linear(2, 3)

    def forward(self, x):
        return self.head(self.rnn(x)[1][-1])


def packed(x):
    lengths = [1 + number % len(x) for number in range(x.shape[1])]
    return nn.utils.rnn.pack_padded_sequence(x, lengths, enforce_sorted=False)


@pytest.mark.parametrize("form", [lambda x: x, packed])
def test_samples_are_told_by_labels_where_inputs_begin_with_time(form):
    network = TimeFirst().double()
    data = [(form(torch.randn(4, size, 3, dtype=torch.float64)), torch.randint(3, (size,))) for size in (7, 2)]
    spectrum = hessian_eigenvalues(network, data, k=2, tolerance=1e-8)

    def mean_over_all(network, batch):
        losses = [functional.cross_entropy(network(x), labels, reduction="sum") for x, labels in data]
        return sum(losses) / 9

    assert_largest(spectrum, dense_hessian(network, data[:1], mean_over_all), 2)


@pytest.mark.parametrize("most_bytes", [0, 3000, 2**31])
def test_graphs_are_kept_where_they_fit(monkeypatch, most_bytes):
    monkeypatch.setattr(products_module, "MOST_KEPT_BYTES", most_bytes)
    network, data, calls = Dense(nn.GELU()).double(), batches(6, 6, 2), []

    def loss(network, batch):
        calls.append(len(batch[0]))
        return cross_entropy(network, batch)

    spectrum = hessian_eigenvalues(network, data, loss=loss, k=2, tolerance=1e-8)
    assert_largest(spectrum, dense_hessian(network, data), 2)
    assert len(calls) == (3 if most_bytes == 2**31 else 3 * spectrum.products)


def test_masks():
    network, data = Dense(nn.SiLU()).double(), batches(8, 5)
    masks = {
        "fc1.weight": torch.rand(8, 6) < 0.6,
        "fc1.bias": torch.zeros(8, dtype=torch.bool),
        "fc2.weight": torch.rand(3, 8) < 0.9,
    }
    before = copy.deepcopy(network.state_dict())
    spectrum = hessian_eigenvalues(network, data, k=3, masks=masks, tolerance=1e-8)
    kept = torch.cat([*(mask.flatten() for mask in masks.values()), torch.ones(3, dtype=torch.bool)])
    assert_largest(spectrum, dense_hessian(network, data), 3, kept)
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())


def penalised(reduction, lam):
    """Loss and penalty by their formulas, from what the two linear layers give."""

    def loss(network, batch):
        hidden = network.fc1(batch[0])
        logits = network.fc2(network.activation(hidden))
        return functional.cross_entropy(logits, batch[1]) + lam * reference_penalty([hidden, logits], reduction)

    return loss


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_penalty(reduction):
    network, data = Dense(nn.Tanh()).double(), batches(8, 3)
    spectrum = hessian_eigenvalues(network, data, k=3, lam=0.3, reduction=reduction, tolerance=1e-8)
    assert_largest(spectrum, dense_hessian(network, data, penalised(reduction, 0.3)), 3)
    without = hessian_eigenvalues(network, data, k=3, tolerance=1e-8)
    assert (spectrum.values - without.values).abs().max() > 1e-3


def test_penalty_of_what_an_activation_overwrites():
    network, data = Dense(nn.ReLU(inplace=True)).double(), batches(8, 3)
    spectrum = hessian_eigenvalues(network, data, k=3, lam=0.3, tolerance=1e-8)
    network.activation = nn.ReLU()
    assert_largest(spectrum, dense_hessian(network, data, penalised("mean", 0.3)), 3)


class Normalised(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1, self.norm, self.fc2 = nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)

    def forward(self, x):
        return self.fc2(functional.dropout(torch.tanh(self.norm(self.fc1(x))), 0.5, self.training))


def test_batch_norm_and_dropout_are_those_of_evaluation():
    network, data = Normalised().double(), batches(8, 5)
    network(3 * data[0][0] + 1)
    spectrum = hessian_eigenvalues(network, data, k=3, tolerance=1e-8)
    assert network.training
    assert_largest(spectrum, dense_hessian(network.eval(), data), 3)


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.head = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)
        self.second.weight = self.first.weight

    def forward(self, x):
        return self.head(torch.tanh(self.second(torch.tanh(self.first(x)))))


def test_embeddings_with_sparse_gradients():
    class Embedded(nn.Module):
        def __init__(self, sparse):
            super().__init__()
            self.embedding, self.head = nn.Embedding(5, 3, sparse=sparse), nn.Linear(3, 3)

        def forward(self, x):
            return self.head(torch.tanh(self.embedding(x).mean(1)))

    dense, sparse = Embedded(False).double(), Embedded(True).double()
    sparse.load_state_dict(dense.state_dict())
    data = [(torch.randint(5, (size, 4)), torch.randint(3, (size,))) for size in (6, 3)]
    masks = {"embedding.weight": torch.rand(5, 3) > 0.3}
    for settings in ({}, {"masks": masks}):
        spectrum = hessian_eigenvalues(sparse, data, k=2, tolerance=1e-8, **settings)
        expected = hessian_eigenvalues(dense, data, k=2, tolerance=1e-8, **settings)
        torch.testing.assert_close(spectrum.values, expected.values)
    assert_largest(hessian_eigenvalues(sparse, data, k=2, tolerance=1e-8), dense_hessian(dense, data), 2)


def test_tied_weights_count_once():
    network, data = Tied().double(), batches(8)
    spectrum = hessian_eigenvalues(network, data, k=3, tolerance=1e-8)
    assert "second.weight" not in spectrum.vectors
    assert_largest(spectrum, dense_hessian(network, data), 3)
    mask = torch.rand(6, 6) < 0.5
    masked = hessian_eigenvalues(network, data, k=3, tolerance=1e-8, masks={"second.weight": mask})
    kept = torch.ones(flat(spectrum.vectors).shape[1], dtype=torch.bool)
    kept[:36] = mask.flatten()
    assert_largest(masked, dense_hessian(network, data), 3, kept)


def test_frozen_and_unused_parameters():
    network, data = Dense(nn.Tanh()).double(), batches(8)
    network.fc1.bias.requires_grad_(False)
    network.unused = nn.Linear(2, 2).double()
    spectrum = hessian_eigenvalues(network, data, k=3, tolerance=1e-8, masks={"fc1.bias": torch.zeros(8).bool()})
    assert [*spectrum.vectors] == ["fc1.weight", "fc2.weight", "fc2.bias", "unused.weight", "unused.bias"]
    assert_largest(spectrum, dense_hessian(network, data), 3)


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv, self.head = nn.Linear(6, 12), nn.Linear(4, 3)

    def forward(self, x):
        query, key, value = self.qkv(x.unsqueeze(1) * torch.linspace(-1, 1, 5).double()[:, None]).chunk(3, dim=-1)
        return self.head(functional.scaled_dot_product_attention(query, key, value).mean(1))


class Recurrent(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.rnn, self.head = kind(2, 3, batch_first=True), nn.Linear(3, 3)

    def forward(self, x):
        return self.head(self.rnn(x.view(-1, 3, 2))[0][:, -1])


def encoder():
    layer = nn.TransformerEncoderLayer(2, 1, dim_feedforward=4, batch_first=True)
    return nn.Sequential(nn.Unflatten(1, (3, 2)), layer, nn.Flatten(), nn.Linear(6, 3))


def convolutions():
    return nn.Sequential(
        nn.Unflatten(1, (1, 6)), nn.Conv1d(1, 4, 3), nn.GELU(), nn.MaxPool1d(2), nn.Flatten(), nn.Linear(8, 3)
    )


def weight_norm():
    network = Dense(nn.Tanh())
    nn.utils.parametrizations.weight_norm(network.fc1)
    return network


@pytest.mark.parametrize(
    "build",
    [
        Attention,
        encoder,
        convolutions,
        weight_norm,
        lambda: Recurrent(nn.LSTM),
        lambda: Recurrent(nn.GRU),
        lambda: Recurrent(nn.RNN),
        lambda: torch.compile(Dense(nn.Tanh()), backend="aot_eager"),
    ],
    ids=["attention", "encoder", "convolutions", "weight norm", "LSTM", "GRU", "RNN", "compiled"],
)
def test_networks(build):
    network, data = build().double(), batches(6, 3)
    spectrum = hessian_eigenvalues(network, data, k=3, tolerance=1e-8)
    assert_largest(spectrum, dense_hessian(getattr(network, "_orig_mod", network).eval(), data), 3)


def quadratic(eigenvalues):
    """A network and a loss whose Hessian has these eigenvalues, in a random basis."""
    rows = len(eigenvalues)
    basis = torch.linalg.qr(torch.randn(rows, rows).double())[0]
    matrix = basis @ torch.diag(eigenvalues.double()) @ basis.T
    network = nn.Linear(rows, 1, bias=False).double()
    return network, lambda network, batch: (network.weight @ matrix @ network.weight.T).sum() / 2


@pytest.mark.parametrize(
    "eigenvalues",
    [
        torch.cat([torch.tensor([2.0, 1.0]), -torch.linspace(1, 50, 60)]),  # the largest by size are negative
        -torch.linspace(1, 50, 60),  # no positive one
        torch.cat([torch.tensor([2.0]), torch.zeros(60)]),  # fewer than k that are not 0
        torch.zeros(60),
        -torch.cat([torch.zeros(3), torch.linspace(1, 50, 60)]),  # 0 is the largest
        torch.cat([torch.full((4,), 5.0), torch.linspace(1, 3, 60)]),  # several times the same
        torch.tensor([1.0, -7.0, 3.0, 0.5]),  # a matrix that is written out
    ],
    ids=["saddle", "negative", "rank 1", "zero", "semidefinite", "multiple", "small"],
)
def test_algebraically_largest(eigenvalues):
    network, loss = quadratic(eigenvalues)
    k = 3
    spectrum = hessian_eigenvalues(network, [torch.ones(2, 1)], loss=loss, k=k, tolerance=1e-8)
    expected = eigenvalues.double().sort(descending=True).values[:k]
    torch.testing.assert_close(spectrum.values, expected, rtol=1e-6, atol=1e-6)
    vectors = flat(spectrum.vectors)
    torch.testing.assert_close(vectors @ vectors.T, torch.eye(k).double(), rtol=0, atol=1e-5)


def test_outputs_of_a_regression_share_their_eigenvalues():
    """Each output of a linear map has the same Hessian: every eigenvalue is there as often as there are outputs."""
    network = nn.Linear(200, 4, bias=False).double()
    inputs = torch.randn(300, 200).double() * torch.linspace(1, 3, 200)
    data = [(inputs, torch.randn(300, 4).double())]
    spectrum = hessian_eigenvalues(
        network, data, loss=lambda network, batch: functional.mse_loss(network(batch[0]), batch[1]), k=6
    )
    own = torch.linalg.eigvalsh(inputs.T @ inputs / 300 / 2).flip(0)
    torch.testing.assert_close(spectrum.values, own.repeat_interleave(4)[:6], rtol=1e-5, atol=0)


def test_all_eigenvalues():
    network, data = nn.Linear(2, 2).double(), batches(5, features=2, classes=2)
    spectrum = hessian_eigenvalues(network, data, k=6)
    assert_largest(spectrum, dense_hessian(network, data), 6)
    assert spectrum.products == 6


def test_single_precision_and_lists_of_batches_that_are_shuffled():
    network, (batch,) = Dense(nn.Tanh(), 8), batches(40)
    inputs, labels = batch[0].float(), batch[1]
    loader = DataLoader(TensorDataset(inputs, labels), batch_size=7, shuffle=True)
    spectrum = hessian_eigenvalues(network, loader, k=3)
    assert spectrum.vectors["fc1.weight"].dtype == torch.float32
    matrix = dense_hessian(network.double(), [(inputs.double(), labels)])
    torch.testing.assert_close(spectrum.values, torch.linalg.eigvalsh(matrix).flip(0)[:3], rtol=1e-4, atol=0)
    assert (spectrum.residuals <= 1e-3 * spectrum.values[0]).all()


def test_half_precision():
    network, data = Dense(nn.Tanh()), batches(20)
    data = [(inputs.bfloat16(), labels) for inputs, labels in data]
    spectrum = hessian_eigenvalues(network.bfloat16(), data, k=1, tolerance=0.1)
    assert spectrum.vectors["fc1.weight"].dtype == torch.bfloat16
    matrix = dense_hessian(network.double(), [(inputs.double(), labels) for inputs, labels in data])
    torch.testing.assert_close(spectrum.values, torch.linalg.eigvalsh(matrix)[-1:], rtol=0.1, atol=0)


def test_residuals_of_a_small_matrix_are_within_the_tolerance_or_an_error():
    network, (batch,) = nn.Linear(6, 3).bfloat16(), batches(20)
    data = [(batch[0].bfloat16(), batch[1])]
    with pytest.raises(RuntimeError, match=r"have not converged: the residuals .* `tolerance=1e-06`"):
        hessian_eigenvalues(network, data, k=2, tolerance=1e-6)
    single = [(batch[0].float(), batch[1])]
    with pytest.raises(RuntimeError, match=r"have not converged: the residuals .* `tolerance=1e-10`"):
        hessian_eigenvalues(nn.Linear(6, 3), single, k=2, tolerance=1e-10)
    negative = nn.Linear(3, 1, bias=False)  # whose largest eigenvalue is 0 to rounding
    curvature = torch.tensor([[1.0, 2.0, 3.0]])
    spectrum = hessian_eigenvalues(
        negative, [torch.ones(1, 1)], k=1, loss=lambda network, _: -((curvature * network.weight).sum() ** 2)
    )
    assert spectrum.values.abs() < 1e-5


def test_the_seed_gives_the_same_result_again():
    network, data = Dense(nn.Tanh()), [(inputs.float(), labels) for inputs, labels in batches(20)]
    first, again, other = (hessian_eigenvalues(network, data, k=2, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(flat(first.vectors), flat(again.vectors))
    assert not torch.equal(flat(first.vectors), flat(other.vectors))


def test_a_file_holds_the_whole_spectrum(tmp_path):
    spectrum = hessian_eigenvalues(Dense(nn.Tanh()).double(), batches(5), k=2)
    spectrum.save(tmp_path / "spectrum.pt")
    read = HessianSpectrum.load(tmp_path / "spectrum.pt")
    assert read.products == spectrum.products
    assert torch.equal(read.values, spectrum.values)
    assert torch.equal(read.residuals, spectrum.residuals)
    assert [*read.vectors] == [*spectrum.vectors]
    assert torch.equal(flat(read.vectors), flat(spectrum.vectors))
