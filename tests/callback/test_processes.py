"""Two processes that train together on a CPU: same gradient and same values as one process on the whole batch."""

import pytest
import torch

from tests.support.entropy_reference import entropy_by_hand
from tests.support.followed import LAM, assert_same, mean_square, potentials
from tests.support.processes import CAN_SHARD, PROCESSES, results_of
from tests.support.processes.training_worker import ERRORS, RUNS, SQUARED_MEAN, DeadHead, OneHasMore, parts

pytestmark = pytest.mark.first


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """What each process kept of each run, by name of the run."""
    return results_of("training_worker", RUNS, tmp_path_factory.mktemp("processes"))


def of(results, name):
    if name.endswith("sharded") and not CAN_SHARD:
        pytest.skip("this version of torch shards weights on accelerators only")
    for result in results[name]:
        assert "error" not in result, result["error"]
    return results[name]


def module_with(name, weights):
    module = RUNS[name][0]().double()
    module.load_state_dict(weights)
    return module


def total(module, batch):
    layers = potentials(module, batch[0])
    return module.loss(layers[-1], batch[1]) + LAM * sum(mean_square(z) for z in layers) / 3


def layers_of(module, batch):
    """Every layer's potentials, that of a dead head included."""
    found = dict(zip(("first", "second", "third"), potentials(module, batch[0]), strict=True))
    if isinstance(module, DeadHead):
        found["dead"] = module.dead(found["first"] * torch.sigmoid(found["first"]))
    return found


def shares(name, both):
    """For each step what each process sees, None for one that sees nothing."""
    steps = [list(step) for step in zip(*(RUNS[name][3](rank) for rank in range(PROCESSES)), strict=True)]
    if name == "sampled":
        steps = [list(step) for step in zip(*(result["batches"] for result in both), strict=True)]
    idle = {"resting": 1, "resting first": 0, "empty": 1}.get(name.removeprefix("squared mean, "))
    if idle is not None:
        steps[idle][1] = None
    return steps


def together(share):
    return tuple(torch.cat(column) for column in zip(*filter(None, share), strict=True))


EXACT = [name for name in RUNS if name not in ERRORS and not name.startswith(("broken", "one ", "squared"))]


@pytest.mark.parametrize("name", EXACT)
def test_gradients(results, name):
    mine, other = of(results, name)
    steps = shares(name, (mine, other))
    window = RUNS[name][2].get("accumulate_grad_batches", 1)
    windows = [steps[start : start + window] for start in range(0, len(steps), window)]
    assert len(mine["gradients"]) == len(windows)
    for found, same, weights, window_steps in zip(
        mine["gradients"], other["gradients"], mine["weights"], windows, strict=True
    ):
        assert_same(found, same, rtol=0.0, atol=0.0)
        module = module_with(name, weights)
        parameters = [*module.first.parameters(), *module.second.parameters(), *module.third.parameters()]
        value = 0.0
        for share in window_steps:
            if None not in share and len(share[0][1]) == len(share[1][1]):
                value = value + total(module, together(share)) / window  # one process on the whole batch
            else:
                value = value + sum(total(module, part) for part in share if part) / PROCESSES / window
        assert_same(found[: len(parameters)], torch.autograd.grad(value, parameters))


def squared_means(module, step, number):
    """Of each layer the mean over units of the squared mean over the batch of both processes."""
    layers = [*potentials(module, together(step)[0])]
    if isinstance(module, OneHasMore) and number == 1:
        layers.append(module.more(step[1][0]))
    return [z.mean(0).square().mean() for z in layers]


@pytest.mark.parametrize("name", SQUARED_MEAN)
def test_squared_means_are_those_of_the_whole_batch(results, name):
    mine, other = of(results, name)
    steps = shares(name, (mine, other))
    window = RUNS[name][2].get("accumulate_grad_batches", 1)
    assert len(mine["gradients"]) == -(-len(steps) // window)
    for index, (found, same, weights) in enumerate(
        zip(mine["gradients"], other["gradients"], mine["weights"], strict=True)
    ):
        assert_same(found, same, rtol=0.0, atol=0.0)
        module = module_with(name, weights)
        value = 0.0
        for number, step in enumerate(steps[index * window : (index + 1) * window], index * window):
            losses = [module.loss(potentials(module, part[0])[-1], part[1]) for part in step if part]
            if isinstance(module, OneHasMore) and number == 1:
                losses.append(module.extra(step[1][0]))
            layers = squared_means(module, step, number)
            value = value + (sum(losses) / PROCESSES + LAM * sum(layers)) / window
            for result, part, own in zip((mine, other), step, (layers[:3], layers), strict=True):
                penalty = LAM * sum(own).item()  # a process tells of the layers that it has
                assert not part or result["steps"][number]["psp/penalty"] == pytest.approx(penalty, rel=1e-6)
        # Weights that no process used have no gradient; they come last.
        assert_same(found, torch.autograd.grad(value, [*module.parameters()][: len(found)]))


# The second of three steps is a logging step.
TOLD = {
    "plain": [[], ["all_reduce"], []],
    "manual": [[], ["all_reduce"], []],
    "squared mean, plain": [
        ["all_reduce", "all_gather_object", "all_reduce"],
        ["all_reduce", "all_reduce"],
        ["all_reduce"],
    ],
}


@pytest.mark.parametrize("name", TOLD)
def test_what_processes_tell_each_other_in_a_step(results, name):
    """Nothing for the penalty but the sums over the batch that it is made of, and one reduction for the loggers."""
    for result in of(results, name):
        assert result["told"] == TOLD[name]


def test_squared_means_of_compiled_layers_are_refused(results):
    for result in results["squared mean, compiled"]:
        assert "NotImplementedError: The passes of layer 'first' in this step run in a function" in result["error"]
        assert "of one process only" in result["error"]


@pytest.mark.parametrize("name", EXACT)
def test_values_of_steps(results, name):
    """Those in `callback_metrics` are the process's own; a logger gets the mean."""
    both = of(results, name)
    window = RUNS[name][2].get("accumulate_grad_batches", 1)
    own = []
    for index, share in enumerate(shares(name, both)):
        module = module_with(name, both[0]["weights"][index // window])
        with torch.no_grad():
            layers = [part and layers_of(module, part) for part in share]
        live = [part and [mean_square(z) for key, z in part.items() if key != "dead"] for part in layers]
        rows = [
            part and {"psp/z2": sum(map(mean_square, part.values())) / len(part), "psp/penalty": LAM * sum(x) / len(x)}
            for part, x in zip(layers, live, strict=True)
        ]
        own.append(rows)
        for result, row in zip(both, rows, strict=True):
            for key, value in (row or {}).items():
                assert result["steps"][index][key] == pytest.approx(value.item(), rel=1e-6)
    if window == 1:
        logged = [row for row in both[0]["logged"] if "psp/penalty" in row]
        seen = [row for row in own[1] if row]  # the second step is a logging step
        assert logged[0]["psp/lam"] == pytest.approx(LAM)
        for key in ("psp/z2", "psp/penalty"):
            assert logged[0][key] == pytest.approx(sum(row[key].item() for row in seen) / len(seen), rel=1e-6)
        assert both[1]["logged"][0] == pytest.approx(logged[0])
        assert logged[0]["epoch"] == 0  # the row is Lightning's


@pytest.mark.parametrize("name", EXACT)
def test_values_of_epochs(results, name):
    """Each value of each process weighs the same."""
    both = of(results, name)
    window = RUNS[name][2].get("accumulate_grad_batches", 1)
    sums, counts = {}, {}
    for index, share in enumerate(shares(name, both)):
        module = module_with(name, both[0]["weights"][index // window])
        with torch.no_grad():
            for layer, z in layers_of(module, together(share)).items():
                sums[layer] = sums.get(layer, 0.0) + z.square().sum().item()
                counts[layer] = counts.get(layer, 0) + z.numel()
    expected = {"train": {layer: sums[layer] / counts[layer] for layer in sums}}
    for stage, batches, seed in (("val", 2, 1), ("test", 1, 2)):
        data = together([together(parts(rank, batches, seed)) for rank in range(PROCESSES)])
        with torch.no_grad():
            layers = layers_of(module_with(name, both[0]["final"]), data)
        expected[stage] = {layer: mean_square(z).item() for layer, z in layers.items()}
    if name == "sampled":  # the parts are parted once more
        del expected["val"], expected["test"]
        seen = together([together(result["batches"]) for result in both])[0]
        assert (len(seen), len(seen.unique(dim=0))) == (12, 11)  # one sample counts twice, for equal parts
    for result in both:
        named = {key.removeprefix("psp_z2_train/") for key in result["metrics"] if key.startswith("psp_z2_train/")}
        assert named == set(sums)
        for stage, means in expected.items():
            overall = sum(means.values()) / len(means)
            assert result["metrics"][f"psp/z2_{stage}"] == pytest.approx(overall, rel=1e-6)
            if stage != "test":
                for layer, mean in means.items():
                    assert result["metrics"][f"psp_z2_{stage}/{layer}"] == pytest.approx(mean, rel=1e-6)


def hidden_entropies(name, both, stage):
    """The entropies of order 1 and 2 over the batches of both processes, by key."""
    batches, seed = {"val": (2, 1), "test": (1, 2)}[stage]
    ranks = [0] if name == "one does not evaluate" else range(PROCESSES)
    features, labels = together([together(parts(rank, batches, seed)) for rank in ranks])
    with torch.no_grad():
        layers = layers_of(module_with(name, both[0]["final"]), (features, labels))
    expected = {}
    for order, key in ((1, "entropy"), (2, "entropy2")):
        for layer in layers.keys() - {"third"}:
            expected[f"psp_{key}_{stage}/{layer}"] = entropy_by_hand(layers[layer], labels, order)
    return expected


@pytest.mark.parametrize("name", [*(name for name in EXACT if name != "sampled"), "one does not evaluate"])
@pytest.mark.parametrize("stage", ["val", "test"])
def test_entropies_are_those_of_all_batches(results, name, stage):
    both = of(results, name)
    expected = hidden_entropies(name, both, stage)
    for result in both:
        found = {
            key: value for key, value in result["metrics"].items() if key.startswith("psp_entropy") and stage in key
        }
        assert found == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("name", [*EXACT, "one does not evaluate"])
def test_the_metrics_of_each_process_hold_what_was_logged(results, name):
    for result in of(results, name):
        logged = {key: value for key, value in result["metrics"].items() if key.startswith("psp_")}
        assert result["kept"] == pytest.approx(logged, rel=1e-6)
        assert len(logged) > 5


def test_a_process_without_labels_leaves_the_entropy_out_in_all(results):
    for result in of(results, "broken labels"):
        assert "psp/z2_test" in result["metrics"]
        assert not [key for key in result["metrics"] if "entropy" in key]


def test_a_process_without_labels_is_an_error_in_all_where_orders_were_asked_for(results):
    for result in results["broken labels of orders"]:
        assert "ValueError: PSPCallback(entropy=(1, 2)) cannot be measured: a class label is" in result["error"]


def test_a_contradiction_that_one_process_finds_is_an_error_in_all(results):
    for result in results["other number of classes"]:
        assert "`num_classes` to be the number of logits, 3, but got 4" in result["error"]


def test_no_value_is_said_to_need_synchronisation(results):
    for result in of(results, "plain"):
        assert not [warning for warning in result["warnings"] if "psp" in warning]


def test_a_broken_value_in_another_process_is_reported(results):
    first, _ = of(results, "broken")
    assert any("'first' hold NaN or infinity" in warning for warning in first["warnings"])


def test_units_split_over_processes_are_refused(results):
    for result in results["split"]:
        assert "NotImplementedError: PSPCallback cannot penalise" in result["error"]
        assert "ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1)" in result["error"]
