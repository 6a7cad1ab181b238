"""Names, values and choice of recurrent layers, and what must not change in what they return."""

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_psp import PSPCallback, psp_penalty, record_potentials
from lightning_psp.capture import fused_calls
from lightning_psp.capture.recurrent import attach, parse_call
from tests.support.lightning_cases import Training, fit
from tests.support.processor import skip_unless_torch_runs_in_bfloat16
from tests.support.recurrent import (
    KINDS,
    LAM,
    SETTINGS,
    assert_equal_gradients,
    batches,
    built,
    expected_gradients,
    gradients_of,
    lightning_gradients,
    loss_of,
    seeded_loss,
)
from tests.support.small import quiet_trainer
from tests.support.unrolled import BATCH, FEATURES, STEPS, Setting, unrolled

pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")


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

    loaders = [DataLoader([batch], batch_size=None) for batch in (training, validation)]
    trainer.fit(module, *loaders)

    for stage, batch in (("train", training), ("val", validation)):
        plain = copy.deepcopy(network)
        if stage == "val":  # which drops nothing
            plain.setting = Setting(**{**vars(setting), "dropout": 0.0})
        torch.manual_seed(2)
        potentials = unrolled(plain, batch)[1]
        wanted = {f"psp_z2_{stage}/network.{layer}": z.square().mean().item() for layer, z in potentials.items()}
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
    skip_unless_torch_runs_in_bfloat16(kind)
    network = built(Setting(kind, levels=2))
    (batch,) = batches()
    expected = expected_gradients(network, batch)

    callback = PSPCallback(lam=LAM)
    (gradients,), _ = lightning_gradients(
        network.float(), seeded_loss, [batch.float()], callback, precision="bf16-mixed"
    )

    difference = torch.cat([(gradients[name].double() - g).flatten() for name, g in expected.items()])
    assert difference.norm() <= 2e-2 * torch.cat([g.flatten() for g in expected.values()]).norm()


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


def test_what_is_put_into_the_graph_copies_nothing():
    result = torch.ones(3, requires_grad=True) * 2
    attached = attach(result, [result * 3])
    assert attached is not result
    assert attached.data_ptr() == result.data_ptr()
    attached.add_(1)
    assert result._version == 1  # so that a backward pass that needs it notices


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


def test_a_call_that_is_not_understood_is_refused_by_name(monkeypatch):
    """Such as one with an argument that a later version of torch may bring."""
    states = (torch.zeros(1, 1, 3),) * 2
    known = (
        torch.ones(1, 1, FEATURES),
        states,
        list(nn.LSTM(FEATURES, 3).parameters()),
        True,
        1,
        0.0,
        True,
        False,
        False,
    )
    assert parse_call(torch.lstm, "lstm", known, {}) is not None
    assert parse_call(torch.lstm, "lstm", known, {"more": 1}) is None
    assert parse_call(torch.lstm, "lstm", (*known, 1), {}) is None

    monkeypatch.setattr(fused_calls, "parse_call", lambda *args: None)
    network = built(Setting("lstm"))
    with pytest.raises(NotImplementedError, match=r"'rnn'.*exclude=\('rnn',\)"), record_potentials(network):
        network(*batches())
    with record_potentials(network, exclude=("rnn",)) as potentials:
        network(*batches())
    assert list(potentials) == ["head"]


def test_an_input_that_is_a_parameter():
    network = nn.GRU(FEATURES, 3, batch_first=True)
    learned = nn.Parameter(torch.randn(BATCH, STEPS, FEATURES))
    with record_potentials(network) as potentials:
        network(learned)
    assert potentials["gru"].shape == (BATCH, STEPS, 9)
