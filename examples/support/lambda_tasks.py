"""The tasks on which settings of λ are compared: small networks on little data."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from support.classifier import Classifier
from support.data import Digits, ThreeSets
from support.image_sample import image_sample
from support.images import MNIST, FashionMNIST
from support.networks import LeNet5, LeNet300, SmallResNet
from support.small_tasks import TASKS as SMALL_TASKS
from support.small_tasks import with_sgd

EPOCHS = 20
VALIDATION_IMAGES = 1000


@dataclass(frozen=True)
class Task:
    """Data, split by a seed, and a module that learns it."""

    title: str
    data: Callable[[Path, int], ThreeSets]
    module: Callable[[], Classifier]


def _on_digits(title: str, module: Callable[[], Classifier]) -> Task:
    return Task(f"{title}, digits", lambda folder, seed: Digits(split_seed=seed), module)


def _small_task(title: str, name: str) -> Task:
    task = SMALL_TASKS[name]
    return _on_digits(title, lambda: task.module(task.network(0.0), 0.0))


def _on_images(network: type[nn.Module], name: str, kind: type[MNIST], images: int) -> Task:
    return Task(
        f"{name}, {images:,} images",
        lambda folder, seed: image_sample(kind, folder, images, VALIDATION_IMAGES, seed),
        lambda: Classifier(network().to(memory_format=torch.channels_last)),  # less time for LeNet-5 on CPU
    )


TASKS = {
    "digits_mlp": _small_task("MLP", "digits_mlp"),
    "digits_lenet": _small_task("small LeNet", "digits_cnn"),
    "digits_resnet": _on_digits("ResNet with batch norm", lambda: with_sgd(SmallResNet(), 0.0)),
    "digits_transformer": _small_task("transformer", "digits_transformer"),
    "lenet300_mnist": _on_images(LeNet300, "LeNet-300, MNIST", MNIST, 5000),
    "lenet300_fashion": _on_images(LeNet300, "LeNet-300, Fashion-MNIST", FashionMNIST, 5000),
    "lenet5_mnist": _on_images(LeNet5, "LeNet-5, MNIST", MNIST, 2000),
    "lenet5_fashion": _on_images(LeNet5, "LeNet-5, Fashion-MNIST", FashionMNIST, 2000),
}
