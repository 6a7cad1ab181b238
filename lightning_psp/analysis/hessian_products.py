"""Products of the Hessian of a mean loss with vectors."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from lightning_psp.analysis.batches import Loss, device_of, moved, samples_in
from lightning_psp.analysis.second_derivatives import gradients, twice_differentiable
from lightning_psp.analysis.unchanged import Unchanged, refuse_lazy, refuse_shared_memory, seed_everything
from lightning_psp.functional.penalty import psp_penalty
from lightning_psp.functional.reductions import Reduction
from lightning_psp.pruning.bound_masks import bind_masks
from lightning_psp.recording.potentials import record_potentials

MOST_KEPT_BYTES = 2 * 2**30


class HessianProducts:
    r"""Multiplies the Hessian of :math:`\mathcal{L} + \lambda R` with vectors.

    The first backward pass is differentiated a second time: :math:`H v = \nabla_w \langle \nabla_w \mathcal{L}, v
    \rangle`. Where the graphs of the first backward pass of all batches take no more than 2 GiB they are kept, and a
    product is the second backward pass alone; otherwise each product takes all three passes, batch by batch.

    To be used within :meth:`prepared`. A vector has an entry for each weight that is not masked, in the order of
    ``named_parameters()``.

    Args:
        module: the network.
        data: the batches.
        loss: gives the loss of a batch, the mean over its samples.
        masks: name of a parameter to a bool tensor, True where a weight counts; None for all.
        lam: λ.
        reduction: the scale of R.
        seed: of what is random in the data; the same in each pass.
    """

    def __init__(
        self,
        module: nn.Module,
        data: Iterable[Any],
        loss: Loss,
        masks: Mapping[str, Tensor] | None,
        lam: float,
        reduction: Reduction,
        seed: int,
    ) -> None:
        self.parameters = {name: weight for name, weight in module.named_parameters() if weight.requires_grad}
        if not self.parameters:
            raise ValueError("Expected argument `module` to have a parameter that asks for a gradient but got none.")
        for name, weight in self.parameters.items():
            if not weight.is_floating_point():
                raise TypeError(f"Expected parameter {name!r} to be real floating point but got {weight.dtype}.")
            refuse_lazy(name, weight)
        refuse_shared_memory(self.parameters.items())
        self.dtype = _widest(self.parameters.values())
        self.precision = max(torch.finfo(weight.dtype).eps for weight in self.parameters.values())
        self.count = 0
        self._module, self._data, self._loss = module, data, loss
        self._lam, self._reduction, self._seed = lam, reduction, seed
        self._weights: list[Tensor] = list(self.parameters.values())
        self._kept_entries = _kept_entries(module, self.parameters, masks)
        self._graphs: list[tuple[int, list[Tensor]]] = []
        self._are_all_kept = False
        self._may_keep = True
        self._samples: int | None = None

    @property
    def size(self) -> int:
        """The number of entries of a vector."""
        return (
            sum(weight.numel() for weight in self._weights) if self._kept_entries is None else len(self._kept_entries)
        )

    @contextmanager
    def prepared(self) -> Iterator[None]:
        """Has the network in `eval()`, twice differentiable, while the block runs; leaves it as it was."""
        unchanged = Unchanged(self._module, self._data)
        try:
            with (
                unchanged,
                unchanged,
                torch.inference_mode(False),
                torch.enable_grad(),
                twice_differentiable(self._module),
            ):
                self._module.eval()
                yield
        finally:
            self._graphs.clear()
            self._are_all_kept = False

    def __call__(self, vector: Tensor) -> Tensor:
        """The product with a vector ``[size]`` on the CPU, of the same type."""
        self.count += 1
        parts = self._split(vector)
        total: list[Tensor] | None = None
        samples = 0
        for number, gradient in self._gradients():
            product = self._product(gradient, parts)
            total = [number * part for part in product] if total is None else _sum(total, product, number)
            samples += number
        if total is None or samples == 0:
            raise ValueError("Expected argument `data` to give at least one batch with samples but got none.")
        if self._samples not in (None, samples):
            raise ValueError(
                "Expected argument `data` to give the same samples in every pass but got"
                f" {self._samples} in one and {samples} in another."
            )
        self._samples = samples
        return self._joined(total).div_(samples)

    def named(self, vectors: Tensor) -> dict[str, Tensor]:
        """Vectors ``[count, size]`` as a tensor ``[count, *shape]`` for each parameter, 0 where masked."""
        whole = vectors if self._kept_entries is None else self._filled(vectors)
        parts = whole.split([weight.numel() for weight in self._weights], dim=1)
        return {
            name: part.reshape(len(vectors), *weight.shape).to(weight.dtype)
            for (name, weight), part in zip(self.parameters.items(), parts, strict=True)
        }

    def _gradients(self) -> Iterator[tuple[int, list[Tensor]]]:
        """The number of samples and the gradient of each batch, with the graph that made it."""
        if self._are_all_kept:
            yield from self._graphs
            return
        seed_everything(self._data, self._seed)
        held = _HeldBytes([*self._module.parameters(), *self._module.buffers()])
        device = device_of(self._module)
        for batch in self._data:
            if samples_in(batch) == 0:
                continue
            with held if self._may_keep else contextlib.nullcontext():
                found = samples_in(batch), self._gradient(moved(batch, device))
            if held.total > MOST_KEPT_BYTES:
                self._graphs.clear()
                self._may_keep = False
            if self._may_keep:
                self._graphs.append(found)
            yield found
        self._are_all_kept = self._may_keep

    def _gradient(self, batch: Any) -> list[Tensor]:
        value = self._value(batch)
        if not value.requires_grad:
            raise ValueError(
                "Expected argument `loss` to give a loss that depends on a trained parameter but got one without graph."
            )
        return gradients([value], self._weights, create_graph=True)

    def _product(self, gradient: list[Tensor], parts: list[Tensor]) -> list[Tensor]:
        """The derivative of a gradient's inner product with a vector."""
        pairs = [(slope, part) for slope, part in zip(gradient, parts, strict=True) if slope.requires_grad]
        if not pairs:  # the loss is linear in the weights
            return [torch.zeros_like(weight) for weight in self._weights]
        slopes, directions = zip(*pairs, strict=True)
        products = gradients(slopes, self._weights, directions, retain_graph=self._may_keep)
        # Of embeddings they may be sparse; zeros in place of none ask for a gradient in some versions of torch.
        return [product.detach().to_dense() for product in products]

    def _value(self, batch: Any) -> Tensor:
        if self._lam == 0:
            value = self._loss(self._module, batch)
            _check_scalar(value)
            return value
        with record_potentials(self._module) as potentials:
            value = self._loss(self._module, batch)
            _check_scalar(value)
        return value + self._lam * psp_penalty(potentials, self._reduction)

    def _split(self, vector: Tensor) -> list[Tensor]:
        return [part[0].to(self._weights[place].device) for place, part in enumerate(self.named(vector[None]).values())]

    def _joined(self, parts: list[Tensor]) -> Tensor:
        whole = torch.cat([part.flatten().to("cpu", self.dtype) for part in parts])
        return whole if self._kept_entries is None else whole[self._kept_entries]

    def _filled(self, vectors: Tensor) -> Tensor:
        whole = vectors.new_zeros(len(vectors), sum(weight.numel() for weight in self._weights))
        whole[:, self._kept_entries] = vectors
        return whole


class _HeldBytes(saved_tensors_hooks):
    """Counts the memory of what graphs hold that are made in the block, besides tensors that are there anyway."""

    def __init__(self, there: Iterable[Tensor]) -> None:
        self.total = 0
        self._seen = {tensor.untyped_storage().data_ptr() for tensor in there if tensor.layout == torch.strided}
        super().__init__(self._count, lambda tensor: tensor)

    def _count(self, tensor: Tensor) -> Tensor:
        if tensor.layout == torch.strided:
            memory = tensor.untyped_storage()
            if memory.data_ptr() not in self._seen:
                self._seen.add(memory.data_ptr())
                self.total += memory.nbytes()
        return tensor


def _sum(total: list[Tensor], product: list[Tensor], number: int) -> list[Tensor]:
    return [whole.add_(part, alpha=number) for whole, part in zip(total, product, strict=True)]


def _check_scalar(value: Any) -> None:
    if not isinstance(value, Tensor) or value.numel() != 1:
        found = f"shape {[*value.shape]}" if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(f"Expected argument `loss` to give a tensor with one number but got {found}.")
    if not value.isfinite():
        raise ValueError(f"Expected argument `loss` to give a finite loss but got {value.item()}.")


def _widest(weights: Iterable[Tensor]) -> torch.dtype:
    """The type of the weights in which a vector is held: float32 for half precision, which solvers do not know."""
    return torch.float64 if any(weight.dtype == torch.float64 for weight in weights) else torch.float32


def _kept_entries(
    module: nn.Module, parameters: Mapping[str, Tensor], masks: Mapping[str, Tensor] | None
) -> Tensor | None:
    """The numbers of the weights that masks keep, in the order of the parameters; None for all."""
    if masks is None:
        return None
    keeps = {id(weight): torch.ones(weight.shape, dtype=torch.bool, device="cpu") for weight in parameters.values()}
    for bound in bind_masks(module, masks):
        if id(bound.weight.parameter) in keeps:  # a frozen weight counts neither way
            keeps[id(bound.weight.parameter)] &= ~bound.goes.cpu()
    entries = torch.cat([keeps[id(weight)].flatten() for weight in parameters.values()]).nonzero().flatten()
    if len(entries) == 0:
        raise ValueError("Expected argument `masks` to keep at least one weight but got none.")
    return entries
