"""What the package asks of torch that has no public name.

No other folder uses such a name: it calls a function of this one, which says what it means and does in public words.
Where a version of torch lacks the name, a slower way leads to the same result, or an error says what is lacking. Open
`tensors.py` first.
"""
