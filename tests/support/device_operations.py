"""What the virtual accelerator must know of an operation of PyTorch: from its schema, and which make the host wait."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

# What the host must know before it goes on: a number, or how long a result is. CUDA's own list.
WAITS = frozenset(
    "_local_scalar_dense nonzero masked_select unique_dim _unique _unique2 unique_consecutive unique_dim_consecutive "
    "equal allclose is_nonzero bincount repeat_interleave _linalg_check_errors linalg_eig histc".split()
)
FREE = frozenset(
    "empty empty_strided empty_like new_empty new_empty_strided _unsafe_view lift is_same_size _has_same_storage_numel "
    "_efficientzerotensor".split()
)
# Host numbers of no dimension that are no operand of a pointwise operation, and still go with tensors of a device.
HOST_NUMBERS = frozenset(("masked_fill", "masked_fill_", "fill_", "index_put", "index_put_", "_index_put_impl_"))
INDEXED = frozenset(("index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"))


@dataclass(frozen=True)
class Operation:
    """What there is to know of an operation, from its schema."""

    name: str
    mutable: bool
    view: bool
    composite: bool  # is made of others, which are run and counted one by one
    pointwise: bool
    reshapes: bool  # in place, and writes no number: squeeze_, t_
    written: tuple[tuple[int, str], ...]  # arguments that it writes to, by place and by name
    returned: tuple[int, ...]  # for each result that is an argument written to, which of `written`


@cache
def known_of(op: Any) -> Operation:
    schema = op._schema
    written = [
        (place, argument) for place, argument in enumerate(schema.arguments) if argument.alias_info is not None
        and argument.alias_info.is_write
    ]  # fmt: skip
    sets = [argument.alias_info.before_set for _, argument in written]
    returned = [
        sets.index(result.alias_info.before_set)
        for result in schema.returns
        if result.alias_info is not None and result.alias_info.is_write
    ]
    return Operation(
        name=schema.name.split("::")[1],
        mutable=schema.is_mutable,
        view=op.is_view,
        composite=torch._C._dispatch_has_kernel_for_dispatch_key(op.name(), "CompositeImplicitAutograd"),
        pointwise=torch.Tag.pointwise in op.tags,
        reshapes=torch.Tag.inplace_view in op.tags,
        written=tuple((place, argument.name) for place, argument in written),
        returned=tuple(returned),
    )


def waits_for_a_mask(known: Operation, args: tuple) -> bool:
    """Whether tensors are indexed by a mask, whose hits the host must count first. CUDA does not where a Python number
    is assigned: that is a masked fill."""
    if known.name not in INDEXED:
        return False
    masks = [x for x in args[1] if x is not None and x.dtype in (torch.bool, torch.uint8)]
    if not masks:
        return False
    value = args[2] if len(args) > 2 else None
    number = value is not None and value.numel() == 1 and getattr(value, "from_number", True)
    return not (number and len(masks) == len([x for x in args[1] if x is not None]) == 1)
