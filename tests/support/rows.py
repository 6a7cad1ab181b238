"""A logger that keeps its rows, and a module with manual optimisation."""

from tests.support.processes.training_worker import Kept
from tests.support.small import Classifier


class Rows(Kept):
    """Keeps each row with its step."""

    def log_metrics(self, metrics, step=None):
        self.rows.append({**metrics, "step": step})

    def of_steps(self):
        return [row for row in self.rows if "psp/lam" in row]


class ByHand(Classifier):
    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, batch_index):
        loss = super().training_step(batch, batch_index)
        self.optimizers().zero_grad()
        self.manual_backward(loss)
        self.optimizers().step()
