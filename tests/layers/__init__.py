"""Layers as the definition says, on the smallest network for each kind of fault: the cases are in `support.layers`."""
