"""Settings for all tests."""

import torch

# The tensors are small, and workers that each use all cores would wait for one another.
torch.set_num_threads(1)
