"""Cases of the definition of layers: `case.py` has their form, `table.py` all of them, `watched.py` trains them."""
