"""The networks of the papers, and a small one, as plain modules: nothing in them knows of PSP."""

from support.networks.all_cnn import AllCNNC
from support.networks.lenet import LeNet5, LeNet300
from support.networks.mobilenet import MobileNetV2
from support.networks.resnet import ResNet18, ResNet32, SmallResNet

__all__ = ["AllCNNC", "LeNet5", "LeNet300", "MobileNetV2", "ResNet18", "ResNet32", "SmallResNet"]
