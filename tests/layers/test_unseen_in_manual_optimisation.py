"""What could not be seen is said under manual optimisation, too, where backward passes let go of the graph."""

import warnings

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from lightning_psp import PSPCallback
from tests.support.gan import Gan
from tests.support.networks import Cube
from tests.support.small import Classifier, loader, quiet_trainer


def told(module, **arguments):
    """The warnings of one step that tell of layers, and the layers that it found."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer = quiet_trainer(PSPCallback(lam=0.1, **arguments), max_steps=1)
        trainer.fit(module.double(), loader(1))
    texts = [str(warning.message) for warning in caught]
    layers = {key.partition("/")[2] for key in trainer.callback_metrics if key.startswith("psp_z2_train/")}
    return [text for text in texts if "layer" in text], layers


class VisibleCube(nn.Module):
    def forward(self, z: Tensor) -> Tensor:
        return Cube.apply(z)


class Manual(Classifier):
    """Takes its loss backward itself, as often as it is told to."""

    def __init__(self, function, passes):
        super().__init__()
        self.automatic_optimization = False
        self.function, self.passes = function, passes

    def forward(self, features):
        return self.third(self.function(self.second(torch.relu(self.first(features)))))

    def training_step(self, batch, batch_index):
        logits = self(batch[0])
        for number in range(self.passes):
            self.manual_backward(functional.cross_entropy(logits, batch[1]), retain_graph=number + 1 < self.passes)


@pytest.mark.parametrize("passes", [1, 2])
@pytest.mark.parametrize(("function", "named"), [(torch.exp, "exp"), (Cube.apply, "Cube")])
def test_a_function_that_is_no_layer_is_named(function, named, passes):
    (message,), layers = told(Manual(function, passes))
    assert message.startswith("No layer was found for")
    assert named in message
    assert layers == {"first", "third"}


@pytest.mark.parametrize("passes", [1, 2])
def test_a_custom_function_that_is_an_activation_is_not_named(passes):
    messages, layers = told(Manual(VisibleCube(), passes), activations=(VisibleCube,))
    assert not messages
    assert layers == {"first", "second", "third"}


@pytest.mark.parametrize("discriminator_comes_first", [False, True])
def test_a_generator_whose_images_enter_the_loss_reaches_nothing_past_its_layers(discriminator_comes_first):
    class Paired(Gan):
        """Generated features are to be like the real ones, and to fool the discriminator."""

        def training_step(self, batch, batch_index):
            fake = self.generator(self.noise)
            steps = [self.discriminate, self.generate]
            for step in steps if discriminator_comes_first else reversed(steps):
                step(fake, batch[0])

        def discriminate(self, fake, real):
            score = self.discriminator(torch.cat([fake.detach(), real]))
            self.manual_backward(functional.softplus(score).mean())

        def generate(self, fake, real):
            score = self.discriminator(fake)
            self.manual_backward(functional.softplus(-score).mean() + functional.l1_loss(fake, real))

    messages, layers = told(Paired())
    assert not messages
    assert layers == {"generator.0", "generator.2", "discriminator.0", "discriminator.2"}
