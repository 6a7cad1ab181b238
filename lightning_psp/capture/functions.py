"""What torch's functions do with the neurons whose potentials they are given.

Whoever follows tensors through a forward pass has to know of each function whether its result holds the same values,
some of them, a multiple of them, or something that weights made anew. This module is the table of that; which functions
are nonlinearities says `nonlinearities`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from enum import Enum, auto
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from lightning_psp.torch_private.functions import FURTHER_NAMESPACES, operators_of

TorchFunction = Callable[..., Any]
# What is done with a call: it is given the function, its arguments and those by keyword, and returns the result.
Handler = Callable[[TorchFunction, tuple[Any, ...], dict[str, Any]], Any]

NAMESPACES: tuple[Any, ...] = (functional, torch, Tensor, torch.special, *FURTHER_NAMESPACES)


class Role(Enum):
    """What a function gives.

    - VIEW: the same values under another shape or type.
    - PART: some of the values.
    - REARRANGEMENT: the values in another order, with repetitions or padding.
    - HANDING: what pools, drops, pads, rounds or bounds values: the same neurons.
    - WEIGHING: an affine map by weights that it is given.
    - ARITHMETIC: a sum, difference, product or quotient of two.
    - POINTWISE: a function of each value by itself, or of the values at the same place in several tensors.
    - ATTENTION: sums of some values that are weighed by others, with features in the last dimension.
    - JOINING: several tensors as one, or one in the place of parts of another.
    - BROADCAST: each of several tensors, repeated.
    - CONSTANT: nothing that depends on the values that it is given.
    """

    VIEW = auto()
    PART = auto()
    REARRANGEMENT = auto()
    HANDING = auto()
    WEIGHING = auto()
    ARITHMETIC = auto()
    POINTWISE = auto()
    ATTENTION = auto()
    JOINING = auto()
    BROADCAST = auto()
    CONSTANT = auto()


_NAMES: dict[Role, str] = {
    Role.VIEW: (
        "alias bfloat16 clone contiguous detach double flatten float half movedim moveaxis permute ravel requires_grad_"
        " reshape reshape_as squeeze swapaxes swapdims t to transpose type type_as unflatten unsqueeze view view_as"
        " cuda cpu real view_as_complex view_as_real"
    ),
    Role.PART: (
        "__getitem__ chunk diagonal dsplit gather hsplit imag index masked_select narrow select slice split"
        " split_with_sizes take_along_dim tensor_split unbind unsafe_chunk vsplit"
    ),
    Role.REARRANGEMENT: "_pad_packed_sequence index_select",
    Role.HANDING: (
        "adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d"
        " adaptive_max_pool3d alpha_dropout amax amin avg_pool1d avg_pool2d avg_pool3d channel_shuffle"
        " constant_pad_nd dropout dropout1d dropout2d dropout3d expand expand_as feature_alpha_dropout feature_dropout"
        " flip fractional_max_pool2d fractional_max_pool3d interpolate lp_pool1d lp_pool2d lp_pool3d"
        " max_pool1d max_pool2d max_pool3d mean nan_to_num native_dropout pad pixel_shuffle pixel_unshuffle repeat"
        " repeat_interleave roll sum tile upsample adaptive_max_pool1d_with_indices adaptive_max_pool2d_with_indices"
        " adaptive_max_pool3d_with_indices max_pool1d_with_indices max_pool2d_with_indices max_pool3d_with_indices"
        " fake_quantize_per_channel_affine fake_quantize_per_tensor_affine fused_moving_avg_obs_fake_quant"
    ),
    Role.WEIGHING: (
        "addbmm addmm addmv baddbmm batch_norm bilinear bmm conv1d conv2d conv3d conv_transpose1d conv_transpose2d"
        " conv_transpose3d convolution einsum embedding embedding_bag group_norm instance_norm __matmul__ __rmatmul__"
        " layer_norm linear matmul mm mv rms_norm tensordot"
    ),
    Role.ARITHMETIC: (
        "add __add__ __radd__ sub subtract __sub__ __rsub__ rsub mul multiply __mul__ __rmul__ div divide true_divide"
        " __truediv__ __rtruediv__ __div__ __rdiv__ neg negative __neg__ addcmul addcdiv lerp"
    ),
    Role.POINTWISE: (
        "abs absolute __abs__ arctan arctan2 arcsinh asinh atan atan2 clamp clamp_max clamp_min clip cos cosh erf erfc"
        " exp exp2 expm1 ge __ge__ gt __gt__ heaviside hypot le __le__ log log10 log1p log2 logaddexp logaddexp2 lt"
        " __lt__ max maximum min minimum pow __pow__ __rpow__ float_power reciprocal rsqrt sign sgn sin sinc sinh sqrt"
        " square tan masked_fill where digamma erfcx erfinv fmax fmin i0 i0e i1 i1e lgamma log_ndtr logit ndtr ndtri"
    ),
    Role.ATTENTION: "multi_head_attention_forward scaled_dot_product_attention",
    Role.JOINING: (
        "cat concat concatenate stack hstack vstack diagonal_scatter index_copy index_put masked_scatter scatter"
        " select_scatter slice_scatter"
    ),
    Role.BROADCAST: "broadcast_tensors",
    Role.CONSTANT: (
        "bernoulli empty_like full_like new_empty new_full new_ones new_tensor new_zeros ones_like rand_like"
        " randint_like randn_like size zeros_like"
    ),
}
_PROPERTIES = {Role.VIEW: "T mT H mH data real", Role.PART: "imag"}

# Of which an activation that is written out has at least one; of the other pointwise functions norms and statistics are
# made, too.
_ACTIVATING = (
    "arctan arctan2 arcsinh asinh atan atan2 clamp clamp_max clamp_min clip cos cosh erf erfc exp exp2 expm1 ge __ge__"
    " gt __gt__ heaviside le __le__ log1p logaddexp logaddexp2 lt __lt__ max maximum min minimum __rpow__ rsqrt sign"
    " sgn sin sinc sinh sqrt tan where digamma erfcx erfinv fmax fmin i0 i0e i1 i1e lgamma log_ndtr logit ndtr ndtri"
)
_MAXIMA = "max maximum"
_DIFFERENCES = "sub subtract __sub__"
_SUMS = "add __add__ __radd__ sub subtract __sub__ __rsub__ rsub"

# What tells of a tensor and gives none, of which code asks often.
_TELLING = (
    "__len__ data_ptr dim element_size get_device is_complex is_contiguous is_floating_point is_inference is_signed"
    " ndimension nelement numel size storage_offset stride untyped_storage"
)
_TELLING_PROPERTIES = (
    "_version device dtype grad_fn is_cpu is_cuda is_leaf is_nested is_sparse itemsize layout nbytes ndim output_nr"
    " requires_grad shape"
)

# Functions whose result has its features in the last dimension, whatever its number of dimensions.
_FEATURES_LAST = "__matmul__ __rmatmul__ baddbmm bilinear bmm embedding layer_norm linear matmul rms_norm"

# Methods that end in an underscore and leave the values as they are.
_NOT_OVERWRITING = (
    "requires_grad_ detach_ squeeze_ unsqueeze_ t_ transpose_ swapaxes_ swapdims_ as_strided_ share_memory_ rename_"
).split()


def forms_of(name: str) -> Iterator[TorchFunction]:
    """The functions, methods and operators of torch that have this name."""
    for namespace in NAMESPACES:
        function = getattr(namespace, name, None)
        if function is not None:
            yield function
    yield from operators_of(name)


def all_forms_of(names: str) -> frozenset[TorchFunction]:
    """The functions, methods and operators that have one of these names, which blanks separate."""
    return frozenset(function for name in names.split() for function in forms_of(name))


@cache
def roles() -> dict[TorchFunction, Role]:
    """What each function of the table gives."""
    found = {function: role for role, names in _NAMES.items() for function in all_forms_of(names)}
    for role, names in _PROPERTIES.items():
        found.update({getattr(Tensor, name).__get__: role for name in names.split()})
    # What compiled graphs call in place of these properties.
    found.update({getattr(torch.ops.aten, name): Role.VIEW for name in ("numpy_T", "mT", "matrix_H", "mH")})
    # What torch calls in place of a function with a further result.
    for size in "123":
        for name in (f"max_pool{size}d", f"adaptive_max_pool{size}d"):
            found[getattr(functional, name)] = Role.HANDING
    return found


@cache
def overwriting() -> dict[TorchFunction, Role | None]:
    """The functions that overwrite the tensor that they are given first, and what they leave in it."""
    known = roles()
    found: dict[TorchFunction, Role | None] = {}
    for name in dir(Tensor):
        if _overwrites(name):
            base = f"__{name[3:]}" if name.startswith("__i") else name[:-1]
            role = known.get(getattr(Tensor, base, None))  # type: ignore[arg-type]
            found.update(dict.fromkeys((getattr(Tensor, name), *operators_of(name)), role))
    found[Tensor.__setitem__] = None
    for namespace in (functional, torch):
        for name in dir(namespace):
            if name.endswith("_") and not name.startswith("_") and hasattr(namespace, name[:-1]):
                found[getattr(namespace, name)] = known.get(getattr(namespace, name[:-1]))
    return found


def with_overwriting(names: str) -> frozenset[TorchFunction]:
    """As :func:`all_forms_of`, with the methods and operators that overwrite what they are given."""
    methods = [
        f"__i{name[2:]}" if name.startswith("__") else f"{name}_"
        for name in names.split()
        if not name.startswith("__r")
    ]
    found = {getattr(Tensor, method) for method in methods if hasattr(Tensor, method)}
    return all_forms_of(names).union(found, *map(operators_of, methods))


ACTIVATING = with_overwriting(_ACTIVATING)
BOUNDS = with_overwriting("clamp clamp_max clamp_min clip")
COMPARISONS = all_forms_of("ge __ge__ greater greater_equal gt __gt__ le __le__ less less_equal lt __lt__")
SUMS = with_overwriting(_SUMS)
MAXIMA = with_overwriting(_MAXIMA)
DIFFERENCES = with_overwriting(_DIFFERENCES)
EXPONENTIALS = with_overwriting("exp exp2")
LOGARITHMS = with_overwriting("log log10 log2")
FEATURES_LAST = all_forms_of(_FEATURES_LAST)
SUMMING = all_forms_of("sum")
PRODUCTS = with_overwriting("mul multiply __mul__")
TELLING = frozenset(
    [
        *(getattr(Tensor, name) for name in _TELLING.split()),
        *(getattr(Tensor, name).__get__ for name in _TELLING_PROPERTIES.split() if hasattr(Tensor, name)),
    ]
)
ADDING_TO_FIRST = all_forms_of("addbmm addmm addmv baddbmm")
WITHOUT_BIAS = all_forms_of("einsum __matmul__ __rmatmul__ matmul mv tensordot")
MASKING = with_overwriting("masked_fill where")


def is_masking(function: TorchFunction, args: tuple[Any, ...]) -> bool:
    """Whether a call gives a tensor other values in some places: ``z[mask] = value`` is one.

    Args:
        function: the function.
        args: its positional arguments.
    """
    if function is not Tensor.__setitem__:
        return function in MASKING
    tensor, mask = args[0], args[1]
    return isinstance(mask, Tensor) and mask.dtype is torch.bool and mask.shape == tensor.shape


def _overwrites(method: str) -> bool:
    if method.startswith("__i") and method.endswith("__"):
        return method not in ("__index__", "__init__", "__init_subclass__", "__int__", "__invert__", "__iter__")
    return method.endswith("_") and not method.startswith("_") and method not in _NOT_OVERWRITING


@cache
def name_of(function: TorchFunction) -> str:
    """What a reader calls a function, whether it is a method, an operator or overwrites its argument."""
    name = getattr(function, "__name__", "").partition(".")[0].strip("_").removeprefix("special_")
    return {"rpow": "pow"}.get(name, name)
