"""The gates of recurrent layers are layers like any other, although torch computes them inside fused functions."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader

from lightning_psp import PSPCallback, psp_penalty, record_potentials
from tests.cases import REDUCTIONS
from tests.lightning_cases import Training, fit
from tests.small import quiet_trainer
from tests.unrolled import BATCH, FEATURES, STEPS, CellLoop, Recurrent, Setting, penalty, unrolled, unrolled_cells

KINDS = ("rnn_tanh", "rnn_relu", "lstm", "gru")
SETTINGS = [
    *(Setting(kind) for kind in KINDS),
    *(Setting(kind, levels=2, bidirectional=True, batch_first=False) for kind in KINDS),
    *(Setting(kind, levels=2, packing="unsorted", readout=1) for kind in KINDS),
    *(Setting(kind, levels=3, bidirectional=True, bias=False, packing="sorted", batch_first=False) for kind in KINDS),
    *(Setting(kind, levels=3, dropout=0.5, learned_states=True) for kind in KINDS),
    *(Setting(kind, levels=2, bidirectional=True, dropout=0.5, packing="unsorted") for kind in KINDS),
    *(Setting(kind, bidirectional=True, packing="unsorted", learned_states=True, readout=1) for kind in KINDS),
    *(Setting(kind, unbatched=True, bias=False, learned_states=True) for kind in KINDS),
    Setting("gru", unbatched=True, batch_first=False, levels=2, bidirectional=True, readout=1),
    *(Setting("lstm", proj_size=2, levels=2, bidirectional=both, learned_states=both) for both in (False, True)),
    Setting("lstm", proj_size=2, bias=False, packing="unsorted", readout=1),
    Setting("lstm", levels=2, readout=2),
    Setting("lstm", bidirectional=True, packing="unsorted", readout=2, proj_size=2),
    Setting("lstm", frozen=True, levels=2),
    Setting("gru", frozen=True, learned_states=True),
]
# each setting with one reduction, and the kinds by turns with all of them
IN_LIGHTNING = [(s, REDUCTIONS[i % 3]) for i, s in enumerate(SETTINGS)]
IN_LIGHTNING += [
    (s, reduction) for s in SETTINGS[:12:2] for reduction in REDUCTIONS if (s, reduction) not in IN_LIGHTNING
]
LAM = 0.3

pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")


def built(setting: Setting) -> Recurrent:
    torch.manual_seed(0)
    return Recurrent(setting).double()


def batches(number: int = 1) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(BATCH, STEPS, FEATURES, dtype=torch.float64, generator=generator) for _ in range(number)]


def loss_of(logits: Tensor) -> Tensor:
    rows = logits.flatten(0, -2)
    # the loss sees the logits as the network returned them, rows being rows of labels
    labels = torch.arange(len(rows)).remainder(2).reshape(logits.shape[:-1])
    return F.cross_entropy(logits.movedim(-1, 1) if logits.ndim > 2 else logits, labels)


def seeded_loss(network: nn.Module, batch: Tensor) -> Tensor:
    torch.manual_seed(2)  # of dropout
    return loss_of(network(batch))


def gradients_of(value: Tensor, network: nn.Module) -> dict[str, Tensor]:
    trained = {name: p for name, p in network.named_parameters() if p.requires_grad}
    found = torch.autograd.grad(value, list(trained.values()), allow_unused=True)
    return {k: torch.zeros_like(p) if g is None else g for (k, p), g in zip(trained.items(), found, strict=True)}


def expected_gradients(
    network: nn.Module,
    batch: Tensor,
    reduction: str = "mean",
    explicit: Callable[..., Any] = unrolled,
    left_out: tuple[str, ...] = (),
) -> dict[str, Tensor]:
    network = copy.deepcopy(network)
    torch.manual_seed(2)
    logits, potentials = explicit(network, batch)
    chosen = {name: z for name, z in potentials.items() if z.requires_grad and name not in left_out}
    expected = gradients_of(loss_of(logits) + LAM * penalty(chosen, reduction), network)
    torch.manual_seed(2)
    plain = gradients_of(loss_of(explicit(network, batch)[0]), network)
    # without the gates' part of the penalty the tests would fail
    assert any((expected[name] - g).norm() > 1e-3 * expected[name].norm() for name, g in plain.items())
    return expected


def assert_equal_gradients(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert (found[name] - gradient).norm() <= 1e-8 * gradient.norm(), name


def lightning_gradients(network: nn.Module, loss: Any, batches: list[Tensor], callback: PSPCallback, **settings: Any):
    module, trainer = fit(network, loss, batches, callback, **settings)
    return module.gradients, trainer


@pytest.mark.parametrize(("setting", "reduction"), IN_LIGHTNING, ids=str)
def test_gradient_in_lightning(setting, reduction):
    network = built(setting)
    (batch,) = batches()
    expected = expected_gradients(network, batch, reduction)

    callback = PSPCallback(lam=LAM, reduction=reduction)
    (gradients,), _ = lightning_gradients(network, seeded_loss, [batch], callback)

    assert_equal_gradients(gradients, expected)


@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_recorded_potentials_and_their_gradient(setting):
    network = built(setting)
    (batch,) = batches()
    torch.manual_seed(2)
    wanted = unrolled(network, batch)[1]
    for reduction in REDUCTIONS:
        with record_potentials(network) as potentials:
            loss = seeded_loss(network, batch)
        assert list(potentials) == list(wanted)
        for layer, z in potentials.items():
            torch.testing.assert_close(z, wanted[layer], rtol=1e-12, atol=1e-14)
        found = gradients_of(loss + LAM * psp_penalty(potentials, reduction), network)
        assert_equal_gradients(found, expected_gradients(network, batch, reduction))


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_cells_in_a_loop(kind, bias, reduction):
    torch.manual_seed(0)
    network = CellLoop(kind, bias).double()
    (batch,) = batches()
    expected = expected_gradients(network, batch, reduction, unrolled_cells)
    wanted = unrolled_cells(network, batch)[1]

    with record_potentials(network) as potentials:
        loss = seeded_loss(network, batch)
    found = gradients_of(loss + LAM * psp_penalty(potentials, reduction), network)
    callback = PSPCallback(lam=LAM, reduction=reduction)
    (gradients,), _ = lightning_gradients(network, seeded_loss, [batch], callback)

    assert list(potentials) == list(wanted)
    for layer, z in potentials.items():
        torch.testing.assert_close(z, wanted[layer], rtol=1e-12, atol=1e-14)
    assert_equal_gradients(found, expected)
    assert_equal_gradients(gradients, expected)


@pytest.mark.parametrize("packing", ["", "unsorted"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_two_calls_in_one_step_are_one_batch(kind, reduction, packing):
    network = built(Setting(kind, levels=2, packing=packing))
    (batch,) = batches()
    follower = copy.deepcopy(network)
    (first, z1), (second, z2) = unrolled(follower, batch), unrolled(follower, batch * 2)
    together = {layer: torch.cat([z1[layer], z2[layer]]) for layer in z1}
    expected = gradients_of(loss_of(first) + loss_of(second) + LAM * penalty(together, reduction), follower)

    def twice(network, batch):
        return loss_of(network(batch)) + loss_of(network(batch * 2))

    callback = PSPCallback(lam=LAM, reduction=reduction)
    (gradients,), _ = lightning_gradients(network, twice, [batch], callback)

    assert_equal_gradients(gradients, expected)


@pytest.mark.parametrize("kind", KINDS)
def test_accumulated_gradients(kind):
    network = built(Setting(kind, bidirectional=True))
    parts = [expected_gradients(network, batch) for batch in batches(2)]

    callback = PSPCallback(lam=LAM)
    (gradients,), _ = lightning_gradients(network, seeded_loss, batches(2), callback, accumulate_grad_batches=2)

    assert_equal_gradients(gradients, {name: (parts[0][name] + parts[1][name]) / 2 for name in parts[0]})


@pytest.mark.parametrize("patterns", [("rnn.l0*",), ("rnn.l1", "head"), ("rnn.*",)])
@pytest.mark.parametrize("kind", KINDS)
def test_layers_are_chosen_by_their_full_names(kind, patterns):
    network = built(Setting(kind, levels=2, bidirectional=True))
    (batch,) = batches()
    names = ("rnn.l0", "rnn.l0_reverse", "rnn.l1", "rnn.l1_reverse", "head")
    left_out = {("rnn.l0*",): names[:2], ("rnn.l1", "head"): names[2::2], ("rnn.*",): names[:4]}[patterns]
    expected = expected_gradients(network, batch, left_out=left_out)

    with record_potentials(network, exclude=patterns) as potentials:
        loss = seeded_loss(network, batch)
    found = gradients_of(loss + LAM * psp_penalty(potentials), network)
    callback = PSPCallback(lam=LAM, exclude=tuple(f"network.{pattern}" for pattern in patterns))
    (gradients,), _ = lightning_gradients(network, seeded_loss, [batch], callback)

    assert list(potentials) == [name for name in names if name not in left_out]
    assert_equal_gradients(found, expected)
    assert_equal_gradients(gradients, expected)


def test_a_pattern_that_matches_no_direction_lists_the_layers():
    network = built(Setting("gru", bidirectional=True))
    with (
        pytest.raises(ValueError, match=r"'rnn'.*rnn\.l0, rnn\.l0_reverse, head"),
        record_potentials(network, exclude=("rnn",)),
    ):
        network(*batches())


class Validated(Training):
    def validation_step(self, batch: Tensor) -> None:
        self.network(batch)


@pytest.mark.parametrize("lam", [0.0, 1e-3])
@pytest.mark.parametrize("setting", SETTINGS[::6], ids=str)
def test_logged_values(setting, lam):
    network = built(setting)
    module = Validated(network, seeded_loss)
    module.configure_optimizers = lambda: torch.optim.SGD(network.parameters(), lr=0.0)
    training, validation = batches(2)
    trainer = quiet_trainer(PSPCallback(lam=lam))
    # a network in validation drops nothing
    module.on_train_start = lambda: setattr(network.rnn, "dropout", 0.0)

    loaders = [DataLoader([batch], batch_size=None) for batch in (training, validation)]
    trainer.fit(module, *loaders)

    for stage, batch in (("train", training), ("val", validation)):
        plain = copy.deepcopy(network)
        plain.setting = Setting(**{**vars(setting), "dropout": 0.0})
        wanted = {
            f"psp_z2_{stage}/network.{layer}": z.square().mean().item()
            for layer, z in unrolled(plain, batch)[1].items()
        }
        logged = {key: value.item() for key, value in trainer.callback_metrics.items() if f"z2_{stage}/" in key}
        assert logged == pytest.approx(wanted, rel=1e-6)


def tensors(found: Any) -> list[Tensor]:
    return [found] if isinstance(found, Tensor) else [t for part in found if part is not None for t in tensors(part)]


@pytest.mark.parametrize("precision", ["64-true", "32-true", "bf16-mixed"])
@pytest.mark.parametrize("setting", [s for s in SETTINGS[1::2] if not (s.unbatched or s.frozen)], ids=str)
def test_results_are_those_without_the_callback(setting, precision):
    network = built(setting)
    network = network if precision == "64-true" else network.float()
    batch = batches()[0].to(network.head.weight.dtype)
    found = []

    def run(network, batch):
        torch.manual_seed(2)
        hidden = network.rnn.register_forward_hook(lambda module, inputs, results: found.append(tensors(results)))
        loss = network(batch).float().square().mean()
        hidden.remove()
        return loss

    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16-mixed"):
        run(network, batch)
    fit(network, run, [batch], PSPCallback(lam=LAM), precision=precision)

    for plain, watched in zip(*found, strict=True):
        assert torch.equal(watched, plain)
        assert (watched.dtype, watched.stride()) == (plain.dtype, plain.stride())
        assert watched.requires_grad == plain.requires_grad


@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_comes_close(kind):
    network = built(Setting(kind, levels=2))
    (batch,) = batches()
    expected = expected_gradients(network, batch)

    callback = PSPCallback(lam=LAM)
    (gradients,), _ = lightning_gradients(
        network.float(), seeded_loss, [batch.float()], callback, precision="bf16-mixed"
    )

    difference = torch.cat([(gradients[name].double() - g).flatten() for name, g in expected.items()])
    assert difference.norm() <= 2e-2 * torch.cat([g.flatten() for g in expected.values()]).norm()


class Checkpointed(Recurrent):
    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(super().forward, x, use_reentrant=False)


@pytest.mark.parametrize("kind", KINDS)
def test_an_activation_checkpoint_around_it(kind):
    torch.manual_seed(0)
    network = Checkpointed(Setting(kind, levels=2, bidirectional=True, dropout=0.5)).double()
    (batch,) = batches()
    expected = expected_gradients(network, batch)

    callback = PSPCallback(lam=LAM)
    (gradients,), _ = lightning_gradients(network, seeded_loss, [batch], callback)

    assert_equal_gradients(gradients, expected)


class Activated(Recurrent):
    """Its hidden states enter a ReLU that overwrites them."""

    def forward(self, x: Tensor) -> Tensor:
        if self.setting.packing:
            x = pack_padded_sequence(x, torch.tensor(self.setting.lengths), True, False)
        output = self.rnn(x)[0]
        return self.head(F.relu(pad_packed_sequence(output, True)[0] if self.setting.packing else output, inplace=True))


def unrolled_and_activated(network: Activated, batch: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    lengths, entering = network.setting.lengths, []

    class Head(nn.Module):
        def forward(self, hidden: Tensor) -> Tensor:
            if network.setting.packing:
                longest_first = sorted(range(BATCH), key=lambda b: -lengths[b])
                places = [(b, t) for t in range(STEPS) for b in longest_first if t < lengths[b]]
                row_of = dict(zip(places, hidden, strict=True))
                zero = torch.zeros_like(hidden[0])
                rows = [row_of.get((b, t), zero) for b in range(BATCH) for t in range(STEPS)]
                hidden = torch.stack(rows).unflatten(0, (BATCH, STEPS))
            entering.append(hidden)
            return linear(torch.relu(hidden))

    linear, network.head = network.head, Head()
    logits, potentials = unrolled(network, batch)
    network.head = linear
    return logits, {"rnn": potentials["rnn"], "rnn:1": entering[0], "head": logits}


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("packing", ["", "unsorted"])
@pytest.mark.parametrize("kind", KINDS)
def test_hidden_states_that_enter_a_nonlinearity(kind, packing, reduction):
    torch.manual_seed(0)
    network = Activated(Setting(kind, packing=packing)).double()
    (batch,) = batches()
    expected = expected_gradients(network, batch, reduction, unrolled_and_activated)

    with record_potentials(network) as potentials:
        loss = seeded_loss(network, batch)
    found = gradients_of(loss + LAM * psp_penalty(potentials, reduction), network)
    callback = PSPCallback(lam=LAM, reduction=reduction)
    (gradients,), _ = lightning_gradients(network, seeded_loss, [batch], callback)

    assert list(potentials) == ["rnn", "rnn:1", "head"]
    assert_equal_gradients(found, expected)
    assert_equal_gradients(gradients, expected)


class Encoder(nn.Module):
    """Calls the fused function itself, or a recurrent layer whose hidden states it returns."""

    def __init__(self, is_function: bool) -> None:
        super().__init__()
        self.cell = nn.LSTMCell(FEATURES, 3)
        self.rnn = nn.LSTM(FEATURES, 3, batch_first=True)
        self.is_function = is_function

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        if not self.is_function:
            output, states = self.rnn(x)
            return output[:, -1], *states
        states = (x.new_zeros(1, len(x), 3),) * 2
        weights = list(self.rnn.parameters())
        return torch.lstm(x, states, weights, True, 1, 0.0, self.training, False, batch_first=True)[0]


@pytest.mark.parametrize("output", [True, False])
def test_returned_hidden_states_are_no_layer(output):
    network = Encoder(is_function=False).double()
    (batch,) = batches()
    with record_potentials(network, output=output) as potentials:
        network(batch)
    assert list(potentials) == ["rnn"]

    def loss(network, batch):
        return F.mse_loss(network(batch)[0], torch.ones(BATCH, 3, dtype=torch.float64))

    _, trainer = fit(network, loss, [batch], PSPCallback(lam=LAM, output=output))
    assert [key for key in trainer.callback_metrics if key.startswith("psp_z2_train/")] == ["psp_z2_train/network.rnn"]


def test_names_outside_a_recurrent_module():
    (batch,) = batches()
    network = nn.Sequential(Encoder(is_function=True)).double()
    with record_potentials(network, output=False) as potentials:
        network(batch)
    assert list(potentials) == ["0.lstm"]
    with record_potentials(network[0].rnn, output=False) as potentials:
        network[0].rnn(batch)
    assert list(potentials) == ["lstm"]


@pytest.mark.parametrize("lam", [0.0, LAM])
def test_nothing_is_put_into_the_graph_without_a_penalty(lam):
    found = []

    def loss(network, batch):
        found.append(type(network.rnn(batch)[0].grad_fn).__name__)
        return loss_of(network(batch))

    fit(built(Setting("gru")), loss, batches(), PSPCallback(lam=lam))

    assert ("Attach" in found[0]) == (lam > 0)


class Recurrence(nn.Module):
    def __init__(self, recurrent: nn.Module) -> None:
        super().__init__()
        self.recurrent = recurrent
        self.head = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        found = self.recurrent(x)
        return self.head(found if isinstance(found, Tensor) else found[0])


@pytest.mark.filterwarnings("ignore:.*quantiz")
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.LSTMCell, nn.GRUCell, nn.RNNCell])
def test_quantised_layers_are_refused_by_name_or_excluded(kind):
    plain = Recurrence(kind(FEATURES, 3)).eval()
    network = torch.ao.quantization.quantize_dynamic(plain, {kind})
    x = torch.randn(BATCH, STEPS, FEATURES) if kind in (nn.LSTM, nn.GRU) else torch.randn(BATCH, FEATURES)
    with pytest.raises(NotImplementedError, match=r"'recurrent'.*exclude=\('recurrent',\)"), record_potentials(network):
        network(x)
    with record_potentials(network, exclude=("recurrent",)) as potentials:
        network(x)
    assert list(potentials) == ["head"]


class FusedLoss(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(FEATURES, 3)
        self.head = nn.Linear(3, 2)

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        return F.linear_cross_entropy(F.relu(self.fc(x)), self.head.weight, labels)


@pytest.mark.skipif(not hasattr(F, "linear_cross_entropy"), reason="this version of torch does not have it")
def test_a_fused_output_layer_is_refused_by_name_or_excluded():
    network, x, labels = FusedLoss(), torch.randn(5, FEATURES), torch.tensor([0, 1, 1, 0, 1])
    with (
        pytest.raises(NotImplementedError, match=r"exclude=\('linear_cross_entropy',\)"),
        record_potentials(network),
    ):
        network(x, labels)
    with record_potentials(network, exclude=("linear_cross_entropy",)) as potentials:
        network(x, labels)
    assert list(potentials) == ["fc"]
