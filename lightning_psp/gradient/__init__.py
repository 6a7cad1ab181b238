"""Adding the gradient of the penalty to a backward pass."""
