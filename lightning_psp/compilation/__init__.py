"""Potentials inside functions made by `torch.compile`.

The graph that the compiler has traced comes in, and goes to the compiler in a form that tells of its potentials; each
of its runs gives the capture that is entered what the calls in it would have given it. Open `listening.py` first, which
hears of graphs and of their runs, and go on to `analysis.py` and `description.py`, which find the potentials of a
graph, `rewriting.py`, which changes it, and `runs.py`, which tells of a run.
"""
