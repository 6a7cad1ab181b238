"""Every configuration can be read, and one is trained."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

pytest.importorskip("jsonargparse")
pytest.importorskip("torchvision")

import train
from images import MNIST
from lightning_psp import PSPCallback

# Lightning calls what this version of jsonargparse deprecates.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

EXAMPLES = Path(__file__).parents[2] / "examples"
CONFIGS = EXAMPLES / "configs"
README = (CONFIGS / "README.md").read_text()


@pytest.fixture(autouse=True)
def no_command_line(monkeypatch):
    """LightningCLI warns where there are arguments besides those that it is given, and pytest may have some."""
    monkeypatch.setattr(sys, "argv", ["train.py"])


def rows():
    """Data set, network and technique of every experiment that the table names."""
    files = ("", "networks/", "techniques/")
    table = re.findall(r"^\| (`.*) \| (`.*) \| (.*) \|$", README, flags=re.MULTILINE)
    named = [[re.findall(r"`([\w/]+)\.yaml`", cell) for cell in row] for row in table]
    named[-1][2] = named[0][2]  # "as for MNIST"
    for row in named:
        first, *others = [[folder + name for name in names] for folder, names in zip(files, row, strict=True)]
        yield from ((data, network, technique) for data in first for network in others[0] for technique in others[1])


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
    expected = {"l1": 0.0, "weight_decay": 0.0, "label_smoothing": 0.0}
    technique = yaml.safe_load((CONFIGS / f"{names[2]}.yaml").read_text())
    expected.update({key: value for key, value in technique.get("model", {}).items() if key != "network"})
    assert {key: getattr(cli.model, key) for key in expected} == expected
    assert callback(cli).lam == float(technique.get("psp", {}).get("lam", 0.0))
    assert type(cli.model.network).__name__.lower() == kinds[1].replace("_", "").removesuffix("digits")
    assert type(cli.datamodule).__name__.lower() == kinds[0].replace("_", "")


def test_the_table_names_every_file():
    named = {f"{name}.yaml" for row in rows() for name in row}
    assert named == {path.relative_to(CONFIGS).as_posix() for path in CONFIGS.rglob("*.yaml")}


def test_lenet5_as_in_the_paper():
    cli = read("mnist", "networks/lenet5", "techniques/lenet/psp")
    (group,) = cli.model.configure_optimizers()["optimizer"].param_groups
    assert (group["lr"], group["momentum"], group["weight_decay"]) == (0.1, 0, 0)
    assert (cli.trainer.max_epochs, cli.datamodule.batch_size, cli.datamodule.held_out) == (50, 100, 0)
    assert (callback(cli).lam, callback(cli).reduction, callback(cli).selection.output) == (1e-3, "mean", True)
    assert cli.config["seed_everything"] == 0
    assert read("fashion_mnist", "networks/lenet5").trainer.max_epochs == 150


def test_resnet18_as_in_the_paper_and_as_in_the_code():
    paper = read("cifar10", "networks/resnet18", "techniques/cifar10/psp_paper")
    code = read("cifar10", "networks/resnet18", "techniques/cifar10/psp_code_resnet18")
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
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    (checkpoint,) = tmp_path.rglob("*.ckpt")
    saved = torch.load(checkpoint, weights_only=False)
    assert saved["epoch"] == 0
    assert saved["state_dict"]["network.fc1.weight"].shape == (300, 64)
