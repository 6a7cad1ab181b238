"""Giving a network other weights to start from: its own of before, or newly drawn ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from lightning_psp.functional.plain_files import read_plain
from lightning_psp.pruning.prunable import norm_like, own_parts, weights


def load_state(path: str | Path) -> dict[str, Tensor]:
    """The weights in a file: a state dict, or a checkpoint of Lightning.

    Args:
        path: the file.

    Raises:
        ValueError: if the file holds something else, or objects beside the weights that would run code.
    """
    content = read_plain(path)
    if content is None:
        raise ValueError(
            f"{str(path)!r} holds objects beside tensors, such as hyperparameters of other types, or is no torch file."
            " Where you trust it, give the state dict itself: `torch.load(path, weights_only=False)['state_dict']`."
        )
    state = content.get("state_dict", content) if isinstance(content, dict) else None
    if not isinstance(state, dict) or not all(isinstance(name, str) for name in state):
        raise ValueError(f"Expected {str(path)!r} to hold a state dict or a checkpoint but got something else.")
    return state


def rewind(module: nn.Module, state: Mapping[str, Any]) -> None:
    """Gives a module the weights and buffers of a state dict, which has all of them and nothing else.

    The ``_orig_mod`` in names of compiled modules may be there or not, on either side.

    Args:
        module: the module.
        state: a state dict of it.

    Raises:
        ValueError: if names or shapes do not fit; nothing is changed then.
    """
    own = {_plain(name): (name, value) for name, value in module.state_dict().items()}
    given = {_plain(name): value for name, value in state.items()}
    faults = []
    if missing := [name for name in own if name not in given]:
        faults.append(f"it lacks {_some(missing)}")
    if unknown := [name for name in given if name not in own]:
        faults.append(f"{type(module).__name__} lacks {_some(unknown)}")
    for name, (_, value) in own.items():
        other = given.get(name)
        if isinstance(value, Tensor) and isinstance(other, Tensor) and value.shape != other.shape:
            faults.append(f"{name} has shape {tuple(other.shape)}, not {tuple(value.shape)}")
    if faults:
        kind = type(module).__name__
        is_of_part = bool(unknown) and all(any(whole.endswith(f".{name}") for whole in missing) for name in unknown)
        remedy = f" Give that of the whole {kind}, not of a part of it." if is_of_part else ""
        raise ValueError(
            f"Expected argument `rewind_to` to be a state dict of {kind}, but {'; '.join(faults)}.{remedy}"
        )
    module.load_state_dict({name: given[plain] for plain, (name, _) in own.items()})


def redraw(module: nn.Module, seed: int) -> None:
    """Draws all weights of a module anew, with the `reset_parameters` of its parts, which resets batch norm as well.

    Networks inside metrics, such as that of a Fréchet inception distance, stay as they are. The global state of torch's
    random numbers is afterwards what it was before.

    Args:
        module: the module.
        seed: of the weights.

    Raises:
        ValueError: if a parameter belongs to no part that has `reset_parameters`; nothing is changed then.
    """
    own = set(map(id, own_parts(module)))
    parts = [part for part in module.modules() if id(part) in own]
    resets = [(part, _reset_of(part)) for part in parts]
    to_draw = {id(p) for part in parts for p in part.parameters(recurse=False)}
    drawn = {id(p) for part, reset in resets if reset is not None for p in part.parameters()}
    missing = (to_draw - drawn) | _made_into_weights(module)
    missed = [name for name, p in module.named_parameters() if id(p) in to_draw & missing]
    if missed:
        raise ValueError(
            f"rewind_to='random' cannot draw {', '.join(missed)} anew: no module that they belong to has a method"
            " `reset_parameters` which does. Give their modules one, or rewind to a state dict."
        )
    with _random_numbers_kept():
        torch.manual_seed(seed)
        # from the parts to the whole, as constructors do it
        for part, reset in reversed(resets):
            if reset is not None:
                _draw(part, reset)


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")


def _plain(name: str) -> str:
    return ".".join(part for part in name.split(".") if part != "_orig_mod")


def _reset_of(part: nn.Module) -> Callable[[], Any] | None:
    # nn.MultiheadAttention and nn.Transformer have the second.
    return next(
        filter(callable, (getattr(part, name, None) for name in ("reset_parameters", "_reset_parameters"))), None
    )


def _made_into_weights(module: nn.Module) -> set[int]:
    """Parameters that a weight is made from in a way that `reset_parameters` knows nothing of, weight norm apart."""
    names = dict(module.named_parameters(remove_duplicate=False))
    hidden = {id(p) for name, p in names.items() if ".parametrizations." in f".{name}" or name.endswith("_orig")}
    pairs = [
        name[:-2] for name in names if name.endswith("_v") and f"{name[:-2]}_g" in names and name[:-2] not in names
    ]
    hidden |= {id(names[stem + end]) for stem in pairs for end in ("_v", "_g")}
    known = [weight for weight in weights(module) if weight.scale is not None]
    return hidden - {id(p) for weight in known for p in (weight.parameter, weight.scale)}


def _draw(part: nn.Module, reset: Callable[[], Any]) -> None:
    """Resets the parameters of a part, also of one whose weight is made from others."""
    own = dict(part.named_parameters(recurse=False))
    if parametrize.is_parametrized(part):
        with parametrize.cached():
            drawn = {name: getattr(part, name) for name in part.parametrizations}  # type: ignore[union-attr]
            reset()
        for name, value in drawn.items():
            setattr(part, name, value.detach())
        return
    reset()
    if "weight_v" in own and "weight_g" in own:
        with torch.no_grad():
            own["weight_v"].copy_(part.weight)  # type: ignore[arg-type]
            own["weight_g"].copy_(norm_like(own["weight_v"], own["weight_g"]))


@contextmanager
def _random_numbers_kept() -> Iterator[None]:
    """Puts the state of torch's random numbers back, of all devices in use."""
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with torch.random.fork_rng(devices):
        yield
