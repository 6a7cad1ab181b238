"""Sets in the files of MNIST, small enough to train on in a test: scikit-learn's digits, enlarged."""

import struct
from pathlib import Path

import torch
from sklearn.datasets import load_digits

SIZES = {"train": 300, "t10k": 100}


def write_sets(root: Path) -> None:
    """Write MNIST and Fashion-MNIST, both with the digits, as torchvision reads them."""
    digits = load_digits()
    images = torch.tensor(digits.images).mul(255 / 16).byte().repeat_interleave(3, 1).repeat_interleave(3, 2)
    images = torch.nn.functional.pad(images, (2, 2, 2, 2))
    labels = torch.tensor(digits.target).byte()
    for name in ("MNIST", "FashionMNIST"):
        folder = root / name / "raw"
        folder.mkdir(parents=True)
        start = 0
        for part, size in SIZES.items():
            these = slice(start, start + size)
            header = struct.pack(">4I", 0x803, size, 28, 28)
            (folder / f"{part}-images-idx3-ubyte").write_bytes(header + images[these].numpy().tobytes())
            header = struct.pack(">2I", 0x801, size)
            (folder / f"{part}-labels-idx1-ubyte").write_bytes(header + labels[these].numpy().tobytes())
            start += size
