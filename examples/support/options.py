"""Values on command lines."""

import argparse


def positive_integer(text: str) -> int:
    """Read an integer of at least 1 from the command line."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected an integer of at least 1 but got {text}")
    return number
