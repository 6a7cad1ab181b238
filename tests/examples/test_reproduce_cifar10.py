"""The CIFAR-10 runner: the recipes of the configurations, shortened, each training once."""

import json
import sys

import numpy as np
import pytest
import torch

pytest.importorskip("jsonargparse")
pytest.importorskip("torchvision")

import paper_tables
import reproduce_cifar10
from support import resumable
from support.classifier import Classifier
from tests.support.small_cifar10 import write_archives, write_files

pytestmark = [
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
    # Lightning calls what this version of jsonargparse deprecates.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:LightningCLI's args parameter is intended"),
]


@pytest.fixture
def reproduce(monkeypatch, tmp_path):
    """Runs the script and returns what is in its results' folder."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))  # where decoded JPEGs are kept

    def run(*arguments):
        results = tmp_path / "results"
        command = ["--data", str(tmp_path / "data"), "--results", str(results), "--accelerator", "cpu", *arguments]
        monkeypatch.setattr(sys, "argv", ["reproduce_cifar10.py", *command])
        reproduce_cifar10.main()
        return {path.stem: json.loads(path.read_text()) for path in sorted(results.glob("*.json"))}

    return run


def test_jpegs_are_trained_on_once_and_make_a_table(monkeypatch, tmp_path, reproduce, capsys):
    write_archives(tmp_path / "data")
    arguments = [
        "--jpeg",
        "--networks",
        "resnet32",
        "--techniques",
        "none",
        "psp_code",
        "--seeds",
        "2",
        "--epochs",
        "2",
    ]
    results = reproduce(*arguments)
    assert list(results) == [
        f"CIFAR10-jpeg_resnet32_{technique}_seed{seed}" for technique in ("none", "psp_code") for seed in range(2)
    ]
    assert all(len(result["epochs"]) == 2 for result in results.values())
    first = {name.split("resnet32_")[1]: result["epochs"][0] for name, result in results.items()}
    # One seed gives one initial network; of 36 images all are in one batch, whose loss is that before any step.
    assert first["none_seed0"]["train_loss"] == pytest.approx(first["psp_code_seed0"]["train_loss"], rel=1e-6)
    assert first["none_seed0"]["train_loss"] != first["none_seed1"]["train_loss"]
    assert first["none_seed0"]["z2"] != first["psp_code_seed0"]["z2"]
    with monkeypatch.context() as patch:
        patch.setattr(resumable, "Trainer", lambda **settings: pytest.fail("trained again"))
        assert reproduce(*arguments) == results

    folders = ["--results", str(tmp_path / "results"), "--output", str(tmp_path / "tables")]
    monkeypatch.setattr(sys, "argv", ["paper_tables.py", *folders])
    paper_tables.main()
    assert "| PSP, code (λ = 0.01) | 2 |" in capsys.readouterr().out
    assert {path.name for path in (tmp_path / "tables").iterdir()} == {
        "CIFAR10-jpeg_ResNet-32.md",
        "CIFAR10-jpeg_ResNet-32_curves.png",
    }


def test_torchvision_s_files_are_trained_on(monkeypatch, tmp_path, reproduce):
    write_files(tmp_path / "data", monkeypatch)
    result = reproduce("--networks", "all_cnn_c", "--techniques", "l2", "--seeds", "1", "--epochs", "1")
    assert list(result) == ["CIFAR10_all_cnn_c_l2_seed0"]


def test_a_part_of_the_images_has_files_and_tables_of_its_own(monkeypatch, tmp_path, reproduce, capsys):
    write_archives(tmp_path / "data")
    arguments = ["--jpeg", "--networks", "resnet32", "--techniques", "none", "psp_eq7", "--epochs", "1"]
    whole = reproduce(*arguments, "--seeds", "1")
    results = reproduce(*arguments, "--images", "6", "--seeds", "1", "--first-seed", "2")
    assert [name for name in results if name not in whole] == [
        f"CIFAR10-jpeg-6images_resnet32_{technique}_seed2" for technique in ("none", "psp_eq7")
    ]
    images = {name: result["configuration"]["train_images"] for name, result in results.items()}
    assert set(images.values()) == {0, 6}
    assert all(("6images" in name) == (number == 6) for name, number in images.items())

    folders = ["--results", str(tmp_path / "results"), "--output", str(tmp_path / "tables")]
    monkeypatch.setattr(sys, "argv", ["paper_tables.py", *folders])
    paper_tables.main()
    printed = capsys.readouterr().out
    assert "# ResNet-32 on CIFAR-10 as JPEGs\n" in printed
    assert "# ResNet-32 on CIFAR-10 as JPEGs, 6 training images\n" in printed
    assert printed.count("| no regularisation | 1 |") == 2
    assert {path.stem for path in (tmp_path / "tables").glob("*.md")} == {
        "CIFAR10-jpeg_ResNet-32",
        "CIFAR10-jpeg-6images_ResNet-32",
    }


def test_a_result_of_a_part_is_not_taken_for_another(tmp_path, reproduce):
    write_archives(tmp_path / "data")
    arguments = ["--jpeg", "--networks", "resnet32", "--techniques", "none", "--epochs", "1", "--seeds", "1"]
    reproduce(*arguments, "--images", "6")
    folder = tmp_path / "results"
    (folder / "CIFAR10-jpeg-6images_resnet32_none_seed0.json").rename(folder / "CIFAR10-jpeg_resnet32_none_seed0.json")
    with pytest.raises(ValueError, match=r"'train_images': 0.* but got one with .*'train_images': 6"):
        reproduce(*arguments)


@pytest.mark.parametrize(
    ("epochs", "milestones"),
    [(500, [150, 250, 350]), (50, [15, 25, 35]), (5, [2, 3, 4]), (4, [1, 2, 3]), (3, [1, 2, 2]), (1, [1, 1, 1])],
)
def test_few_epochs_keep_the_shares_and_the_first_learning_rate(epochs, milestones):
    assert reproduce_cifar10.shorten([150, 250, 350], 500, epochs) == milestones
    network = torch.nn.Linear(1, 1)
    optimizer = Classifier(network, learning_rate=0.1, milestones=milestones).configure_optimizers()["optimizer"]
    assert optimizer.param_groups[0]["lr"] == 0.1


def made(monkeypatch, tmp_path, *arguments):
    """Configurations of all trainings, and the modules, data and callbacks made for them, without training."""
    found = {}

    def note(path, configuration, make, **more):
        found[path.stem] = configuration, *make()

    monkeypatch.setattr(reproduce_cifar10, "train_once", note)
    command = ["--data", "nowhere", "--results", str(tmp_path), "--seeds", "1", *arguments]
    monkeypatch.setattr(sys, "argv", ["reproduce_cifar10.py", *command])
    reproduce_cifar10.main()
    return found


def test_recipes_are_those_of_the_configurations(monkeypatch, tmp_path):
    trainings = made(monkeypatch, tmp_path, "--networks", "all_cnn_c", "--epochs", "50")
    assert len(trainings) == len(reproduce_cifar10.TECHNIQUES)
    trainings |= made(
        monkeypatch, tmp_path, "--networks", "resnet18", "--epochs", "50", "--techniques", "psp_code", "dropout"
    )
    strengths = {
        "l1": {"l1": 1e-5},
        "l2": {"weight_decay": 5e-4},
        "label_smoothing": {"label_smoothing": 0.1},
    }
    psp_strengths = {"psp_paper": (1e-3, "mean"), "psp_eq7": (1.6e-6, "sum"), "psp_code": (1e-2, "squared_mean")}
    for name, (configuration, module, data, (psp,)) in trainings.items():
        network, technique = configuration["network"], configuration["technique"]
        expected = {"l1": 0.0, "weight_decay": 0.0, "label_smoothing": 0.0, **strengths.get(technique, {})}
        expected |= {"learning_rate": 0.1, "momentum": 0.9, "nesterov": True, "milestones": [15, 25, 35]}
        assert {key: getattr(module, key) for key in expected} == expected, name
        assert {key: configuration[key] for key in expected} == expected
        assert data.batch_size == configuration["batch_size"] == (100 if technique.endswith("_code") else 128)
        lam, reduction = psp_strengths.get(technique, (0.0, "mean"))
        assert (psp.lam, psp.reduction) == (configuration["lam"], configuration["reduction"]) == (lam, reduction)
        assert (configuration["epochs"], configuration["seed"], configuration["held_out"]) == (50, 0, 0)
        assert data.train_images == configuration["train_images"] == 0
        assert type(module.network).__name__ == {"ResNet-18": "ResNet18", "All-CNN-C": "AllCNNC"}[network]
    include, dropout = ({name: each[0][key] for name, each in trainings.items()} for key in ("include", "dropout"))
    assert include["CIFAR10_resnet18_psp_code_seed0"] == ["network.fc"]
    assert trainings["CIFAR10_all_cnn_c_psp_code_seed0"][0]["output"] is False
    assert {name: value for name, value in dropout.items() if value} == {
        "CIFAR10_resnet18_dropout_seed0": 0.1,
        "CIFAR10_all_cnn_c_dropout_seed0": "unit",
        "CIFAR10_all_cnn_c_psp_code_seed0": "channel",
    }
    json.dumps([each[0] for each in trainings.values()])


def test_the_paper_s_schedule_is_the_default(monkeypatch, tmp_path):
    ((configuration, module, _, _),) = made(
        monkeypatch, tmp_path, "--networks", "resnet32", "--techniques", "none"
    ).values()
    assert (configuration["epochs"], module.milestones) == (500, [150, 250, 350])


def test_weights_start_as_in_train_py(monkeypatch, tmp_path):
    import train

    trainings = made(monkeypatch, tmp_path, "--networks", "resnet32", "--techniques", "none", "--seeds", "2")
    for seed in range(2):
        files = [f"--config={reproduce_cifar10.CONFIGS}/{name}.yaml" for name in ("cifar10", "networks/resnet32")]
        quiet = ["--data.root=nowhere", "--trainer.logger=false", "--trainer.accelerator=cpu"]
        cli = train.make_cli([*files, *quiet, f"--seed_everything={seed}"], run=False)
        _, module, _, _ = trainings[f"CIFAR10_resnet32_none_seed{seed}"]
        for own, other in zip(module.parameters(), cli.model.parameters(), strict=True):
            assert torch.equal(own, other)
    assert not np.array_equal(*(each[1].network.fc.bias.detach().numpy() for each in trainings.values()))
