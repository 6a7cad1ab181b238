"""The entropy term around a step: several backward passes, what is refused, and what a weight of 0 leaves alone."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from lightning_psp import PSPCallback
from lightning_psp.callback import settings as callback_settings
from lightning_psp.gradient.class_states import BatchClasses, ClassStates
from lightning_psp.gradient.entropy_term import EntropyTerm
from lightning_psp.schedules import WarmUp
from tests.support.entropy_reference import soft_entropy
from tests.support.followed import Followed, assert_same, mean_square, potentials, total
from tests.support.small import FEATURES, Classifier, loader, quiet_trainer

pytestmark = pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no")
LAM, WEIGHT = 0.3, -0.4


def batch():
    return next(iter(loader(1)))


def trained(kind, callback):
    """A module that ran one step and got its weights back, and its trainer."""
    torch.manual_seed(0)
    module = kind().double()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    trainer = quiet_trainer(callback)
    trainer.fit(module, loader(1))
    module.load_state_dict(before)
    return module, trainer


class Manual(Classifier):
    """One backward pass, written as the subclass says."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, batch_index):
        self.run_backward(*batch)

    def run_backward(self, features, labels):
        self.manual_backward(functional.cross_entropy(self(features), labels))


class Twice(Manual):
    """Both passes reach the same potentials."""

    def run_backward(self, features, labels):
        loss = functional.cross_entropy(self(features), labels)
        self.manual_backward(loss, retain_graph=True)
        self.manual_backward(loss)


class Vector(Manual):
    """Of each sample half of its loss, and so half of the term."""

    def run_backward(self, features, labels):
        losses = functional.cross_entropy(self(features), labels, reduction="none")
        self.manual_backward(losses, gradient=torch.full_like(losses, 0.5 / len(losses)))


class Parted(Manual):
    """Two networks' worth of potentials, one after the other."""

    def run_backward(self, features, labels):
        self.manual_backward(functional.cross_entropy(self(features), labels))
        self.manual_backward(functional.cross_entropy(self(2 * features), labels))


class Together(Classifier):
    """Two passes before one backward pass count as one batch."""

    def training_step(self, batch, batch_index):
        features, labels = batch
        return functional.cross_entropy(self(features), labels) + functional.cross_entropy(self(-features), labels)


def summed(module, features, labels, lam=LAM, weight=WEIGHT):
    first, second, logits = potentials(module, features)
    terms = lam * sum(map(mean_square, (first, second, logits))) / 3
    terms = terms + weight * (soft_entropy(first, labels, 1.0) + soft_entropy(second, labels, 1.0)) / 2
    return functional.cross_entropy(logits, labels), terms


@pytest.mark.parametrize("lam", [0.0, LAM])
@pytest.mark.parametrize(
    ("kind", "of_loss", "of_terms"), [(Manual, 1.0, 1.0), (Twice, 2.0, 1.0), (Vector, 0.5, 0.5)], ids=lambda x: str(x)
)
def test_manual_optimisation(kind, of_loss, of_terms, lam):
    module, _ = trained(kind, PSPCallback(lam=lam, entropy_weight=WEIGHT))
    loss, terms = summed(module, *batch(), lam=lam)
    expected = torch.autograd.grad(of_loss * loss + of_terms * terms, list(module.parameters()))
    assert_same(module.gradients[-1], expected)


def test_each_backward_pass_has_its_own_term():
    module, trainer = trained(Parted, PSPCallback(lam=0.0, entropy_weight=WEIGHT))
    features, labels = batch()
    parts = [summed(module, x, labels, lam=0.0) for x in (features, 2 * features)]
    expected = torch.autograd.grad(sum(loss + term for loss, term in parts), list(module.parameters()))
    assert_same(module.gradients[-1], expected)
    value = sum(term for _, term in parts).item()
    assert trainer.callback_metrics["psp/entropy_term"].item() == pytest.approx(value, rel=1e-9)


def test_passes_before_one_backward_count_as_one_batch():
    module, trainer = trained(Together, PSPCallback(lam=0.0, entropy_weight=WEIGHT))
    features, labels = batch()
    both, twice = torch.cat([features, -features]), torch.cat([labels, labels])
    loss, term = summed(module, both, twice, lam=0.0)
    assert_same(module.gradients[0], torch.autograd.grad(2 * loss + term, list(module.parameters())))
    assert trainer.callback_metrics["psp/entropy_term"].item() == pytest.approx(term.item(), rel=1e-9)


class FollowedEntropy(Followed):
    """Follows the loss with the entropy term and without a penalty."""

    def on_after_backward(self):
        Classifier.on_after_backward(self)
        with torch.enable_grad():
            loss, terms = summed(self, *self.batch, lam=0.0)
            self.expected.append(torch.autograd.grad(loss + terms, list(self.parameters())))


def test_every_step_has_its_own_labels():
    module = FollowedEntropy().double()
    quiet_trainer(PSPCallback(lam=0.0, entropy_weight=WEIGHT), max_epochs=2).fit(module, loader(3))
    module.check(steps=6)


def test_line_search_of_lbfgs():
    class Closures(FollowedEntropy):
        def configure_optimizers(self):
            return torch.optim.LBFGS(self.parameters(), lr=0.1, max_iter=4)

    module = Closures().double()
    quiet_trainer(PSPCallback(lam=0.0, entropy_weight=WEIGHT)).fit(module, loader(1))
    assert len(module.gradients) > 2
    module.check(steps=len(module.gradients))


def test_a_step_in_which_the_schedule_leaves_no_penalty():
    module, trainer = trained(FollowedEntropy, PSPCallback(lam=5.0, schedule=WarmUp(100), entropy_weight=WEIGHT))
    assert trainer.callback_metrics["psp/lam"] == 0.0
    module.check(steps=1)


def test_factors_of_layers_are_factors_on_the_penalty_alone():
    settings = {"lam": LAM, "entropy_weight": WEIGHT}
    module, _ = trained(Classifier, PSPCallback(**settings, layer_lam={"first": 0.0, "third": 0.0}))
    features, labels = batch()
    loss, terms = summed(module, features, labels, lam=0.0)
    second = potentials(module, features)[1]
    expected = torch.autograd.grad(loss + terms + LAM * mean_square(second) / 3, list(module.parameters()))
    assert_same(module.gradients[0], expected)


def test_chosen_layers():
    module, _ = trained(Classifier, PSPCallback(lam=0.0, entropy_weight=WEIGHT, exclude=("first",)))
    features, labels = batch()
    _, second, logits = potentials(module, features)
    value = functional.cross_entropy(logits, labels) + WEIGHT * soft_entropy(second, labels, 1.0)
    assert_same(module.gradients[0], torch.autograd.grad(value, list(module.parameters())))


class Overwritten(Classifier):
    """The logits are overwritten after the loss has read them."""

    def training_step(self, batch, batch_index):
        logits = self(batch[0])
        loss = functional.cross_entropy(logits, batch[1])
        logits.detach().zero_()
        return loss


class HiddenOverwritten(Classifier):
    """A hidden potential is overwritten after its nonlinearity has read it."""

    def forward(self, features):
        z = self.first(features)
        hidden = functional.relu(z)
        z += 1
        return self.third(self.relu(self.second(hidden)))


def test_overwritten_potentials():
    module, _ = trained(Overwritten, PSPCallback(lam=0.0, entropy_weight=WEIGHT))
    loss, terms = summed(module, *batch(), lam=0.0)
    assert_same(module.gradients[0], torch.autograd.grad(loss + terms, list(module.parameters())))
    with pytest.raises(RuntimeError, match="'first' were overwritten"):
        trained(HiddenOverwritten, PSPCallback(lam=0.0, entropy_weight=WEIGHT))


# --- labels ----------------------------------------------------------------------------------------------------------


def fit_on(batches, **settings):
    class Any(Classifier):
        def training_step(self, batch, batch_index):
            return self(batch["x"] if isinstance(batch, dict) else batch[0]).square().mean()

    trainer = quiet_trainer(PSPCallback(lam=0.0, entropy_weight=WEIGHT, **settings))
    trainer.fit(Any().double(), torch.utils.data.DataLoader(batches, batch_size=None))
    return trainer.callback_metrics["psp/entropy_term"].item()


def test_places_of_labels():
    features, labels = batch()
    values = [
        fit_on_seeded(b, **settings)
        for b, settings in [
            ((features, labels), {}),
            ({"x": features, "labels": labels}, {}),
            ((features, 0, labels), {"target": 2}),
            ({"x": features, "class": labels, "y": 0 * labels}, {"target": "class"}),
            ((features, {"a": labels}), {"target": lambda b: b[1]["a"]}),
            ((features, labels * 1000), {}),  # the names of the classes do not matter
            ((features, labels), {"num_classes": 3}),
        ]
    ]
    assert values == [values[0]] * len(values)


def fit_on_seeded(b, **settings):
    torch.manual_seed(0)
    return fit_on([b], **settings)


@pytest.mark.parametrize(
    ("make", "settings", "parts"),
    [
        (lambda x, y: (x,), {}, ("class labels", "list of 1", "`target`")),
        (lambda x, y: {"x": x, "class": y}, {}, ("['x', 'class']", "`target`")),
        (lambda x, y: (x, y.double()), {}, ("class labels", "`target`")),
        (lambda x, y: (x, y), {"target": "labels"}, ("'labels'", "list of 2")),
        (lambda x, y: (x, y - 1), {}, ("at least 0", "from -1")),
        (lambda x, y: (x, y + 1), {"num_classes": 3}, ("from 0 to 2", "to 3")),
        (lambda x, y: (x, y[:3]), {}, ("'first'", "[4, 8]", "3 class labels", "exclude=('first',)")),
    ],
)
def test_labels_that_do_not_fit(make, settings, parts):
    features, _ = batch()
    with pytest.raises(ValueError, match="batch") as raised:
        fit_on([make(features, torch.tensor([0, 2, 1, 2]))], **settings)
    for part in parts:
        assert part in str(raised.value)


@pytest.mark.parametrize(
    ("arguments", "error", "parts"),
    [
        ({"entropy_weight": "big"}, TypeError, ("entropy_weight", "'big'", "number")),
        ({"entropy_weight": True}, TypeError, ("entropy_weight", "True")),
        ({"entropy_weight": float("nan")}, ValueError, ("entropy_weight", "nan")),
        ({"entropy_weight": float("-inf")}, ValueError, ("entropy_weight", "-inf")),
        ({"entropy_temperature": 0}, ValueError, ("entropy_temperature", "0", "above 0")),
        ({"entropy_temperature": "hot"}, TypeError, ("entropy_temperature", "'hot'")),
        ({"num_classes": 0}, ValueError, ("num_classes", "0")),
        ({"num_classes": 2.0}, TypeError, ("num_classes", "2.0")),
        ({"target": 1.5}, TypeError, ("target", "1.5")),
    ],
)
def test_arguments(arguments, error, parts):
    with pytest.raises(error) as raised:
        PSPCallback(**arguments)
    for part in parts:
        assert part in str(raised.value)


# --- what is refused, and what is left alone -------------------------------------------------------------------------


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("lam", [0.0, LAM])
def test_compiled_layers_are_refused(lam):
    class Compiled(Classifier):
        def __init__(self):
            super().__init__()
            part = nn.Sequential(nn.Linear(FEATURES, 8), nn.SiLU(), nn.Linear(8, FEATURES))
            self.part = torch.compile(part, backend="aot_eager")

        def forward(self, features):
            return super().forward(torch.tanh(self.part(features)))

    with pytest.raises(NotImplementedError, match=r"layer 'part\..*0'.*torch.compiler.disable.*exclude=\('part"):
        trained(Compiled, PSPCallback(lam=lam, entropy_weight=WEIGHT))
    module, _ = trained(Compiled, PSPCallback(lam=0.0, entropy_weight=WEIGHT, exclude=("part*",)))
    features, labels = batch()
    features = torch.tanh(module.part(features))
    loss, terms = summed(module, features, labels, lam=0.0)
    found = {name: g for (name, _), g in zip(module.named_parameters(), module.gradients[0], strict=True)}
    expected = torch.autograd.grad(loss + terms, list(module.parameters()))
    assert_same(found.values(), expected)


def test_several_processes_are_refused():
    trainer = quiet_trainer(PSPCallback(lam=0.0, entropy_weight=WEIGHT), devices=2, strategy="ddp")
    with pytest.raises(NotImplementedError, match=r"entropy_weight.*2 processes.*entropy_weight=0"):
        trainer.callbacks[0].on_fit_start(trainer, Classifier())


def test_a_network_without_hidden_layers_is_said():
    class Linear(Classifier):
        def forward(self, features):
            return self.first(features)[:, :3]

        def on_after_backward(self):
            pass

    with pytest.warns(UserWarning, match="no potential of a hidden layer"):
        trained(Linear, PSPCallback(lam=0.0, entropy_weight=WEIGHT))


def test_a_backward_that_no_callback_hears_of_is_said():
    class Unheard(Manual):
        def run_backward(self, features, labels):
            functional.cross_entropy(self(features), labels).backward()

    with pytest.warns(UserWarning, match="self.manual_backward"):
        trained(Unheard, PSPCallback(lam=0.0, entropy_weight=WEIGHT))


@pytest.mark.filterwarnings("ignore:The potentials of layer 'first' hold NaN")
def test_nan_is_reported_with_the_name_of_its_layer():
    class Broken(Classifier):
        def training_step(self, batch, batch_index):
            features, labels = batch
            return super().training_step((features.index_fill(0, torch.tensor(1), float("nan")), labels), batch_index)

    with pytest.warns(UserWarning, match="'first' hold NaN"):
        _, trainer = trained(Broken, PSPCallback(lam=0.0, entropy_weight=WEIGHT))
    assert torch.isnan(trainer.callback_metrics["psp/entropy_term"])


@pytest.mark.parametrize("lam", [0.0, LAM])
def test_without_a_weight_nothing_changes(monkeypatch, lam):
    def unwanted(*args):
        raise AssertionError("part of the entropy term")

    for part in (ClassStates, BatchClasses, EntropyTerm):
        monkeypatch.setattr(part, "__init__", unwanted)
    monkeypatch.setattr(callback_settings, "find_target", unwanted)
    module, trainer = trained(Classifier, PSPCallback(lam=lam, entropy_weight=0.0, target="no such key"))
    value = total(module, batch(), lam)
    assert_same(module.gradients[0], torch.autograd.grad(value, list(module.parameters())))
    assert not [key for key in trainer.callback_metrics if "entropy" in key]


class Channels(nn.Module):
    """Channels in dimension 1, behind an in-place activation, and in the last dimension."""

    def __init__(self):
        super().__init__()
        self.convolution = nn.Conv1d(1, 4, 3)
        self.act = nn.ReLU(inplace=True)
        self.linear = nn.Linear(4, 5)
        self.head = nn.Linear(5, 3)

    def potentials(self, features):
        first = self.convolution(features.unsqueeze(1))
        second = self.linear(first.clamp(min=0).transpose(1, 2))
        return first, second, self.head(torch.tanh(second).mean(1))

    def forward(self, features):
        x = self.act(self.convolution(features.unsqueeze(1)))
        return self.head(torch.tanh(self.linear(x.transpose(1, 2))).mean(1))


class OfChannels(Classifier):
    def __init__(self):
        super().__init__()
        self.third = None
        self.first, self.second = Channels(), None

    def forward(self, features):
        return self.first(features)


def test_channels_are_units_where_the_callback_is_told_so():
    module, trainer = trained(OfChannels, PSPCallback(lam=0.0, entropy_weight=WEIGHT, entropy_unit="channel"))
    features, labels = batch()
    first, second, logits = module.first.potentials(features)
    # [batch, position, unit]: positions are observations
    terms = []
    for z in (first.movedim(1, 2), second):
        terms.append(soft_entropy(z.flatten(0, 1), labels.repeat_interleave(z.shape[1]), temperature=1.0))
    loss = functional.cross_entropy(logits, labels) + WEIGHT * sum(terms) / 2
    assert_same(module.gradients[0], torch.autograd.grad(loss, [*module.parameters()]))
    value = float(trainer.callback_metrics["psp/entropy_term"])
    assert value == pytest.approx(WEIGHT * sum(terms).item() / 2, rel=1e-9)
