"""Every configuration can be read, and one is trained."""

import itertools
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("jsonargparse")
pytest.importorskip("torchvision")

import train
from lightning_psp import PSPCallback
from support.images import MNIST

# Lightning calls what this version of jsonargparse deprecates.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

EXAMPLES = Path(__file__).parents[2] / "examples"
CONFIGS = EXAMPLES / "configs"
STRENGTHS = {
    "lenet/l1": {"l1": 1e-4},
    "lenet/l2": {"weight_decay": 1e-4},
    "cifar10/l1": {"l1": 1e-5},
    "cifar10/l2": {"weight_decay": 5e-4},
    "label_smoothing": {"label_smoothing": 0.1},
}
PSP_STRENGTHS = {
    "psp": 1e-3,
    "psp_paper": 1e-3,
    "psp_code": 1e-2,
    "psp_code_resnet18": 1e-2,
    "psp_code_all_cnn_c": 1e-2,
}
# 1e-3 divided by half the number of units: filters and features of all layers, by hand from the networks' shapes.
EQ_7 = {
    "lenet/psp_eq7": 1e-3 / ((20 + 50 + 500 + 10) / 2),
    "cifar10/psp_eq7": 1e-3 / ((64 + 4 * (64 + 128 + 256 + 512) + 10) / 2),
    "cifar10/psp_eq7_resnet32": 1e-3 / ((16 + 10 * (16 + 32 + 64) + 10) / 2),
    "cifar10/psp_eq7_all_cnn_c": 1e-3 / ((3 * 96 + 5 * 192 + 10 + 10) / 2),
    # Expanded channels twice a block, in the first block once; narrow ones enter no nonlinearity.
    "cifar10/psp_eq7_mobilenetv2": 1e-3
    / ((32 + 32 + 12 * (16 + 2 * 24 + 3 * 32 + 4 * 64 + 3 * 96 + 3 * 160) + 1280 + 10) / 2),
}
README = (CONFIGS / "README.md").read_text()


@pytest.fixture(autouse=True)
def no_command_line(monkeypatch):
    """LightningCLI warns where there are arguments besides those that it is given, and pytest may have some."""
    monkeypatch.setattr(sys, "argv", ["train.py"])


def rows():
    """Data set, network and technique of the experiments that the table names.

    Of the further data sets' files in a cell only those with the last technique: they differ from the first in nothing
    that another technique would show.
    """
    files = ("", "networks/", "techniques/")
    table = re.findall(r"^\| (`.*) \| (`.*) \| (.*) \|$", README, flags=re.MULTILINE)
    named = [[re.findall(r"`([\w/]+)\.yaml`", cell) for cell in row] for row in table]
    named[-1][2] = named[0][2]  # "as for MNIST"
    for row in named:
        first, *others = [[folder + name for name in names] for folder, names in zip(files, row, strict=True)]
        networks, techniques = others
        yield from itertools.product(first[:1], networks, techniques)
        yield from itertools.product(first[1:], networks, techniques[-1:])


def read(*names, arguments=()):
    files = [argument for name in names for argument in ("--config", str(CONFIGS / f"{name}.yaml"))]
    root = [] if names[0] == "digits" else ["--data.root=nowhere"]
    quiet = ["--trainer.logger=false", "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"]
    return train.make_cli([*files, *root, *quiet, *arguments], run=False)


def callback(cli):
    (found,) = (each for each in cli.trainer.callbacks if isinstance(each, PSPCallback))
    return found


@pytest.mark.parametrize("names", list(rows()), ids=" ".join)
def test_an_experiment_can_be_read(names):
    cli = read(*names)
    kinds = [Path(name).stem for name in names]
    expected = {"l1": 0.0, "weight_decay": 0.0, "label_smoothing": 0.0, "momentum": 0.9 * names[0].startswith("cifar")}
    expected.update(STRENGTHS.get(names[2].removeprefix("techniques/"), {}))
    assert {key: getattr(cli.model, key) for key in expected} == expected
    expected_lam = EQ_7.get(names[2].removeprefix("techniques/"), PSP_STRENGTHS.get(kinds[2], 0.0))
    assert callback(cli).lam == pytest.approx(expected_lam, rel=0.03)  # rounded
    assert callback(cli).reduction == ("sum" if "eq7" in kinds[2] else "squared_mean" if "code" in kinds[2] else "mean")
    assert type(cli.model.network).__name__.lower() == kinds[1].replace("_", "").removesuffix("digits")
    assert type(cli.datamodule).__name__.lower() == kinds[0].replace("_code", "").replace("_", "")
    if names[0].startswith("cifar"):
        assert cli.datamodule.batch_size == (100 if kinds[0] == "cifar10_code" else 128)


def test_the_table_names_every_file():
    named = {f"{name}.yaml" for row in rows() for name in row}
    assert named == {path.relative_to(CONFIGS).as_posix() for path in CONFIGS.rglob("*.yaml")}


def test_the_table_of_paper_and_code_is_where_the_link_leads():
    (target, anchor) = re.search(r"\]\((\.\./[^)#]+)#([^)]+)\)", README).groups()
    headings = re.findall(r"^## (.*)$", (CONFIGS / target).read_text(), flags=re.MULTILINE)
    assert anchor in [heading.lower().replace(" ", "-") for heading in headings]


def test_lenet5_as_in_the_paper():
    cli = read("mnist", "networks/lenet5", "techniques/lenet/psp")
    (group,) = cli.model.configure_optimizers()["optimizer"].param_groups
    assert (group["lr"], group["momentum"], group["weight_decay"]) == (0.1, 0, 0)
    assert (cli.trainer.max_epochs, cli.datamodule.batch_size, cli.datamodule.held_out) == (50, 100, 0)
    assert (callback(cli).lam, callback(cli).reduction, callback(cli).selection.output) == (1e-3, "mean", True)
    assert cli.config["seed_everything"] == 0
    assert read("fashion_mnist", "networks/lenet5").trainer.max_epochs == 150


def test_cifar10_of_paper_and_code_differ_in_the_batch_alone():
    paper, code = ((CONFIGS / f"{name}.yaml").read_text().splitlines() for name in ("cifar10", "cifar10_code"))
    settings = zip(*([line for line in each if not line.startswith("#")] for each in (paper, code)), strict=True)
    assert [pair for pair in settings if len(set(pair)) > 1] == [("    batch_size: 128", "    batch_size: 100")]


@pytest.mark.parametrize("name", [path.stem for path in CONFIGS.glob("*.yaml")])
def test_one_device_trains_unless_asked_for_more(name):
    assert read(name, "networks/lenet5").config["trainer"]["devices"] == 1


def test_resnet18_as_in_the_paper_and_as_in_the_code():
    paper = read("cifar10", "networks/resnet18", "techniques/cifar10/psp_paper")
    code = read("cifar10_code", "networks/resnet18", "techniques/cifar10/psp_code_resnet18")
    for cli in (paper, code):
        (group,) = cli.model.configure_optimizers()["optimizer"].param_groups
        assert (group["lr"], group["momentum"], group["nesterov"], group["weight_decay"]) == (0.1, 0.9, True, 0)
        assert (cli.trainer.max_epochs, cli.model.milestones) == (500, [150, 250, 350])
    assert (paper.datamodule.batch_size, code.datamodule.batch_size) == (128, 100)
    assert (callback(paper).lam, callback(paper).reduction) == (1e-3, "mean")
    assert (callback(code).lam, callback(code).reduction) == (1e-2, "squared_mean")
    assert tuple(callback(code).selection.include) == ("network.fc",)


def test_a_technique_changes_the_network_that_another_file_names():
    assert read("mnist", "networks/lenet5", "techniques/lenet/dropout").model.network.dropout == 0.5
    network = read("cifar10", "networks/all_cnn_c", "techniques/cifar10/psp_code_all_cnn_c").model.network
    assert type(network.drop_hidden) is torch.nn.Dropout2d


def test_the_command_line_has_the_last_word():
    arguments = ["--psp.lam=0.5", "--data.held_out=10", "--data.download=true"]
    cli = read("mnist", "networks/lenet5", "techniques/lenet/psp", arguments=arguments)
    assert isinstance(cli.datamodule, MNIST)
    assert (callback(cli).lam, cli.datamodule.held_out, cli.datamodule.download) == (0.5, 10, True)


def test_digits_are_trained(tmp_path):
    pytest.importorskip("sklearn")
    files = [CONFIGS / f"{name}.yaml" for name in ("digits", "networks/lenet300_digits", "techniques/lenet/psp")]
    configs = [argument for file in files for argument in ("--config", str(file))]
    command = [sys.executable, str(EXAMPLES / "train.py"), "fit", *configs]
    command += ["--trainer.max_epochs=1", "--trainer.accelerator=cpu", f"--trainer.default_root_dir={tmp_path}"]
    environment = {**os.environ, "PYTHONPATH": str(EXAMPLES.parent)}  # this copy of the package
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    (checkpoint,) = tmp_path.rglob("*.ckpt")
    saved = torch.load(checkpoint, weights_only=False)
    assert saved["epoch"] == 0
    assert saved["state_dict"]["network.fc1.weight"].shape == (300, 64)
