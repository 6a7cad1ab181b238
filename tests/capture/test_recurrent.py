"""The gates of recurrent layers are layers like any other, although torch computes them inside fused functions."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from torch.utils.checkpoint import checkpoint

from lightning_psp import PSPCallback, psp_penalty, record_potentials
from tests.support.cases import REDUCTIONS
from tests.support.recurrent import (
    KINDS,
    LAM,
    SETTINGS,
    assert_equal_gradients,
    batches,
    built,
    cells_as_one_layer,
    expected_gradients,
    gradients_of,
    lightning_gradients,
    loss_of,
    seeded_loss,
)
from tests.support.unrolled import (
    BATCH,
    STEPS,
    CellLoop,
    Recurrent,
    Setting,
    penalty,
    unrolled,
)

# each setting with one reduction, and the kinds by turns with all of them
IN_LIGHTNING = [(s, REDUCTIONS[i % 3]) for i, s in enumerate(SETTINGS)]
IN_LIGHTNING += [
    (s, reduction) for s in SETTINGS[:12:2] for reduction in REDUCTIONS if (s, reduction) not in IN_LIGHTNING
]

pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")


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
    expected = expected_gradients(network, batch, reduction, cells_as_one_layer)
    wanted = cells_as_one_layer(network, batch)[1]

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
