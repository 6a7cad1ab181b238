"""Networks of other people's libraries: are their layers found, and is the gradient right?

A row of a `rows_*.py`, here or in `attention/`, builds a small network with random weights, a loss, and the layers
that the definition gives to the library's own code. `taps` computes the gradient from these layers with plain hooks,
`check` compares it with what the package does, `report` writes the table. Start with `taps.py` and a row. Run by
`make test-libraries`.
"""
