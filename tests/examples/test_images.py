"""The data modules: which images, in which form, held out or not."""

from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("torchvision")
pytest.importorskip("sklearn")

from lightning.pytorch import LightningModule
from PIL import Image
from torchvision import datasets

from support.augmentation import crop_randomly, flip_randomly
from support.cifar10 import CIFAR10, decode_once
from support.images import MNIST, FashionMNIST
from tests.support.idx import SIZES, write_sets
from tests.support.small import quiet_trainer
from tests.support.small_cifar10 import write_archives, write_files

DATA = Path(__file__).parents[3] / "shared" / "data"


class Watcher(LightningModule):
    """Keeps the batches of one epoch and of its validation."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.training_batches, self.validation_batches = [], []

    def training_step(self, batch, batch_index):
        self.training_batches.append(batch)
        return self.weight

    def validation_step(self, batch, batch_index):
        self.validation_batches.append(batch)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def batches(data):
    module = Watcher()
    quiet_trainer(num_sanity_val_steps=0, limit_train_batches=None).fit(module, datamodule=data)
    return [
        tuple(torch.cat(parts) for parts in zip(*found, strict=True))
        for found in (module.training_batches, module.validation_batches)
    ]


def as_rows(images, labels):
    """One row an image, sorted, so that the order does not matter."""
    rows = torch.cat([images.double().flatten(1), labels[:, None].double()], dim=1).numpy()
    return rows[np.lexsort(rows.T)]


def test_the_sets_are_whole_normalised_and_shuffled(tmp_path):
    write_sets(tmp_path)
    for kind, mean, deviation in ((MNIST, 0.1307, 0.3081), (FashionMNIST, 0.5, 0.5)):
        data = kind(tmp_path, batch_size=70)
        for (images, labels), name in zip(batches(data), ("train", "t10k"), strict=True):
            raw = (tmp_path / kind.__name__ / "raw" / f"{name}-images-idx3-ubyte").read_bytes()[16:]
            pixels = np.frombuffer(raw, dtype=np.uint8).reshape(-1, 1, 28, 28)
            of_file = torch.tensor((pixels / 255 - mean) / deviation)
            names = (tmp_path / kind.__name__ / "raw" / f"{name}-labels-idx1-ubyte").read_bytes()[8:]
            labels_of_file = torch.tensor(list(names))
            assert len(labels) == SIZES[name]
            np.testing.assert_allclose(as_rows(images, labels), as_rows(of_file, labels_of_file), atol=1e-5)
            assert torch.equal(labels, labels_of_file) == (name == "t10k")


def test_held_out_images_are_not_trained_on(tmp_path):
    write_sets(tmp_path)
    whole = MNIST(tmp_path)
    whole.setup("fit")
    data = MNIST(tmp_path, held_out=40)
    data.setup("fit")
    assert (len(data.train_set), len(data.validation_set), len(data.test_set)) == (260, 40, 100)
    parts = [torch.cat(each) for each in zip(data.train_set.tensors, data.validation_set.tensors, strict=True)]
    np.testing.assert_array_equal(as_rows(*parts), as_rows(*whole.train_set.tensors))
    again = MNIST(tmp_path, held_out=40)
    again.setup("fit")
    assert torch.equal(again.validation_set.tensors[0], data.validation_set.tensors[0])
    assert whole.validation_set is whole.test_set
    for held_out in (-1, 300):
        with pytest.raises(ValueError, match=f"`held_out` to be at least 0 and less than 300.*got {held_out}"):
            MNIST(tmp_path, held_out=held_out).setup("fit")


@pytest.fixture
def archives(tmp_path):
    """Folder of archives of JPEGs of one colour each, and these colours in order of class and name."""
    return tmp_path / "data", write_archives(tmp_path / "data")


def test_jpegs_are_decoded_once(archives, tmp_path, monkeypatch):
    root, colours = archives
    archive, cache = root / "CIFAR10-jpeg" / "train.zip", tmp_path / "cache"
    images, labels = decode_once(archive, cache)
    assert images.shape == (36, 3, 32, 32)
    assert images.dtype == torch.uint8
    assert labels.tolist() == [0] * 12 + [1] * 12 + [2] * 12
    expected = torch.tensor(colours["train"]).view(36, 3, 1, 1).int()
    assert (images.int() - expected).abs().max() <= 3  # what JPEG loses
    with monkeypatch.context() as patch:
        patch.setattr(Image, "open", lambda *arguments: pytest.fail("decoded again"))
        assert torch.equal(decode_once(archive, cache)[0], images)
    archive.write_bytes((root / "CIFAR10-jpeg" / "test.zip").read_bytes())
    assert len(decode_once(archive, cache)[0]) == 9  # another archive of that name


def test_processes_that_decode_at_once_do_not_share_an_unfinished_file(archives, tmp_path, monkeypatch):
    archive, cache = archives[0] / "CIFAR10-jpeg" / "train.zip", tmp_path / "cache"
    save, written = torch.save, []

    def save_beside_another(content, path):
        written.append(path)
        if len(written) == 1:  # the other begins later and ends earlier
            decode_once(archive, cache)
        save(content, path)

    monkeypatch.setattr(torch, "save", save_beside_another)
    images, labels = decode_once(archive, cache)
    assert len(set(written)) == 2
    assert (len(images), labels.bincount().tolist()) == (36, [12, 12, 12])
    assert [path.suffix for path in cache.iterdir()] == [".pt"]


def test_a_part_of_the_training_images_is_one_draw_of_as_many_of_each_class(archives, tmp_path):
    def parts(**more):
        data = CIFAR10(archives[0], jpeg=True, cache=tmp_path / "cache", **more)
        data.setup("fit")
        sets = (data.train_set, data.validation_set)
        return len(data.test_set), *({tuple(row) for row in as_rows(*each.tensors)} for each in sets)

    torch.manual_seed(0)
    _, whole, _ = parts()
    number, six, _ = parts(train_images=6)
    torch.manual_seed(1)
    _, again, _ = parts(train_images=6)
    _, fifteen, _ = parts(train_images=15)
    _, rest, held_out = parts(train_images=15, held_out=4)
    assert number == 9
    assert (len(whole), len(six), len(fifteen)) == (36, 6, 15)
    for found in (six, fifteen):
        assert np.bincount([int(row[-1]) for row in found]).tolist() == [len(found) // 3] * 3
    assert again == six < fifteen < whole
    assert (len(rest), len(held_out)) == (11, 4)
    assert rest | held_out == fifteen
    assert parts(train_images=36) == parts()


@pytest.mark.parametrize("number", [-3, 1, 7, 39])
def test_numbers_of_training_images_that_are_refused(number, archives, tmp_path):
    data = CIFAR10(archives[0], jpeg=True, cache=tmp_path / "cache", train_images=number)
    with pytest.raises(
        ValueError, match=rf"`train_images` to be 0 or a multiple of 3, .* up to 36, but got {number}\."
    ):
        data.setup("fit")


def test_images_held_out_of_a_part_are_fewer_than_it(archives, tmp_path):
    data = CIFAR10(archives[0], jpeg=True, cache=tmp_path / "cache", train_images=6, held_out=6)
    with pytest.raises(ValueError, match=r"`held_out` to be at least 0 and less than 6.*got 6"):
        data.setup("fit")


def test_cifar10_is_augmented_in_training_alone(archives, tmp_path):
    root, colours = archives
    data = CIFAR10(root, jpeg=True, cache=tmp_path / "cache", batch_size=8)
    (images, labels), (unseen, unseen_labels) = batches(data)
    mean = np.array([0.4914, 0.4822, 0.4465]).reshape(3, 1, 1)
    deviation = np.array([0.2023, 0.1994, 0.2010]).reshape(3, 1, 1)
    black = torch.tensor((0 - mean) / deviation)
    is_black = ((images - black).abs() < 1e-5).all(dim=1)
    assert is_black[:, 16, 16].sum() == 0
    assert is_black.flatten(1).any(dim=1).sum() > 20  # of 36, most are shifted
    expected = (colours["test"].reshape(9, 3, 1, 1) / 255 - mean) / deviation
    np.testing.assert_allclose(unseen.double(), np.broadcast_to(expected, unseen.shape), atol=3.1 / 255 / 0.1994)
    assert unseen_labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert labels.bincount().tolist() == [12, 12, 12]


def test_cifar10_of_torchvision_s_files(tmp_path, monkeypatch):
    written = write_files(tmp_path, monkeypatch)
    data = CIFAR10(tmp_path)
    for part, (pixels, labels) in written.items():
        images, found = data.load(train=part == "train")
        np.testing.assert_array_equal(images, pixels)
        assert found.tolist() == labels


@pytest.mark.parametrize("kind", [MNIST, FashionMNIST, CIFAR10])
def test_missing_files_are_named_with_the_options(kind, tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"folder \S*/nothing to hold \w+ .*`--data.root` and `--data.download true`"
    ) as caught:
        kind(tmp_path / "nothing").setup("fit")
    assert ("`--data.jpeg true`" in str(caught.value)) == (kind is CIFAR10)


def test_missing_archives_are_named_with_the_option(tmp_path):
    data = CIFAR10(tmp_path, jpeg=True, cache=tmp_path / "cache")
    with pytest.raises(
        FileNotFoundError, match=r"archive \S*/CIFAR10-jpeg/train.zip but it is not there.*`--data.root`"
    ):
        data.prepare_data()


@pytest.mark.parametrize(
    ("kind", "files"), [(MNIST, "MNIST"), (FashionMNIST, "FashionMNIST"), (CIFAR10, "CIFAR10")], ids=str
)
def test_files_are_fetched_when_data_is_prepared_and_not_later(kind, files, tmp_path, monkeypatch):
    asked = []

    class Files(getattr(datasets, files)):
        def __init__(self, root, train=True, download=False):
            asked.append(download)
            self.data, self.targets = torch.zeros(4, 28, 28) if kind is not CIFAR10 else np.zeros((4, 32, 32, 3)), [0]

    monkeypatch.setattr(datasets, files, Files)
    if kind is not CIFAR10:
        monkeypatch.setattr(kind, "files", Files)
    kind(tmp_path).prepare_data()
    assert not any(asked)
    data = kind(tmp_path, download=True)
    data.prepare_data()
    assert asked.pop()
    data.load(train=True)
    assert asked == [False]


def test_archives_are_decoded_when_data_is_prepared(archives, tmp_path, monkeypatch):
    root, _ = archives
    data = CIFAR10(root, jpeg=True, cache=tmp_path / "cache")
    data.prepare_data()
    monkeypatch.setattr(Image, "open", lambda *arguments: pytest.fail("decoded in setup"))
    data.setup("fit")
    assert (len(data.train_set), len(data.test_set)) == (36, 9)


def test_a_crop_is_a_window_of_the_padded_image():
    images = torch.randint(1, 256, (500, 3, 6, 5), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    cropped = crop_randomly(images, padding=2)
    padded = np.pad(images.numpy(), ((0, 0), (0, 0), (2, 2), (2, 2)))
    places = []
    for image, crop in zip(padded, cropped.numpy(), strict=True):
        windows = {(top, left): image[:, top : top + 6, left : left + 5] for top in range(5) for left in range(5)}
        places += [place for place, window in windows.items() if np.array_equal(window, crop)]
    assert len(places) == 500
    assert len(set(places)) == 25  # of 25 that there are


def test_half_of_the_images_are_flipped():
    images = torch.rand(400, 2, 3, 4, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    flipped = flip_randomly(images)
    mirrored = images[:, :, :, [3, 2, 1, 0]]
    is_flipped = (flipped == mirrored).flatten(1).all(1)
    assert ((flipped == images).flatten(1).all(1) ^ is_flipped).all()
    assert 150 < is_flipped.sum() < 250


@pytest.mark.skipif(not (DATA / "MNIST").is_dir(), reason=f"MNIST is not in {DATA}")
def test_mnist_has_the_mean_that_it_is_normalised_by():
    data = MNIST(DATA)
    data.setup("fit")
    images, labels = next(iter(torch.utils.data.DataLoader(data.train_set, batch_size=60_000)))
    normalised, _ = data.on_after_batch_transfer((images, labels), 0)
    assert abs(normalised.double().mean()) < 1e-3
    assert abs(normalised.double().std() - 1) < 1e-3
    assert labels.bincount().tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
