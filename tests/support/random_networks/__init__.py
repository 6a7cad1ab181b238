"""Random networks: what a program is, the statements it is made of, and the grammar that draws programs."""
