"""CIFAR-10 small enough to train on in a test, as an archive of JPEGs and in torchvision's files."""

import hashlib
import io
import pickle
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image
from torchvision import datasets

CLASSES = ["airplane", "automobile", "bird"]
NUMBERS = {"train": 12, "test": 3}  # images of each class


def write_archives(root: Path) -> dict[str, np.ndarray]:
    """Write archives of JPEGs of one colour each, and return these colours in order of class and name."""
    generator = np.random.default_rng(0)
    folder = root / "CIFAR10-jpeg"
    folder.mkdir(parents=True)
    colours = {}
    for part, number in NUMBERS.items():
        colours[part] = generator.integers(0, 256, (len(CLASSES), number, 3), dtype=np.uint8)
        with zipfile.ZipFile(folder / f"{part}.zip", "w") as archive:
            for name, of_class in reversed(list(zip(CLASSES, colours[part], strict=True))):
                for place, colour in enumerate(of_class):
                    jpeg = io.BytesIO()
                    pixels = np.broadcast_to(colour, (32, 32, 3))
                    Image.fromarray(np.ascontiguousarray(pixels)).save(jpeg, "jpeg", quality=100, subsampling=0)
                    archive.writestr(f"{name}/{place:04}.jpg", jpeg.getvalue())
    return colours


def write_files(root: Path, monkeypatch) -> dict[str, tuple[np.ndarray, list[int]]]:
    """Write the set as torchvision reads it, have it accept the files, and return pixels and labels of both parts."""
    generator = np.random.default_rng(0)
    folder = root / datasets.CIFAR10.base_folder
    folder.mkdir(parents=True)

    def write(name, content):
        (folder / name).write_bytes(pickle.dumps(content))
        return name, hashlib.md5((folder / name).read_bytes()).hexdigest()

    found = {}
    for part, number in NUMBERS.items():
        pixels = generator.integers(0, 256, (3 * number, 3, 32, 32), dtype=np.uint8)
        labels = generator.integers(0, 10, 3 * number).tolist()
        written = write(f"{part}_batch", {"data": pixels.reshape(-1, 3 * 32 * 32), "labels": labels})
        monkeypatch.setattr(datasets.CIFAR10, f"{part}_list", [written])
        found[part] = pixels, labels
    name, digest = write("batches.meta", {"label_names": [str(each) for each in range(10)]})
    monkeypatch.setattr(datasets.CIFAR10, "meta", {"filename": name, "key": "label_names", "md5": digest})
    return found
