"""The networks of the papers, as plain modules: nothing in them knows of PSP."""

from networks.lenet import LeNet5, LeNet300

__all__ = ["LeNet5", "LeNet300"]
