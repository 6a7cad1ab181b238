"""Networks that are pruned, and small trainings of them."""
