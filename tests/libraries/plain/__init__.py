"""Rows of networks that are built and trained with a step in float64, without help of their libraries' own training."""
