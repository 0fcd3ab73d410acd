"""What a form is, the registry of forms, their sizes and their inputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import numpy as np
from onnx import ModelProto, helper

from models.builder import Array

BATCH, TIME, VOCAB, LAYERS, LABELS = 2, 6, 20, 2, 10
HEADS, HEAD, FFN, WIDTH, WIDE = 4, 8, 48, 32, 40
EXPERTS = 6
TABLE = 16  # rows of tables of positions, at least the longest sequence of `feeds`
TOTAL = "total_sequence"  # past and new positions
LOWEST = float(np.finfo(np.float32).min)
BuildFn = TypeVar("BuildFn", bound=Callable[..., ModelProto])


@dataclass(frozen=True)
class Form:
    """What a form is, and the groups that the dependency analysis should find in it.

    heads: sizes of the groups of heads, one per attention unless something shared ties several; under grouped
    queries the units are key-value heads.
    head_dim: per attention the dimensions of a head of q with k, then of v with the output projection; pairs of
    dimensions where q and k rotate; a group that a shared table of angles ties is listed once, and so is one for q, k
    and v where a Reshape to (3, heads, d) leaves them one axis for their dimensions.
    hidden: widths of the residual streams that cross a normalisation. channels: every other width, such as those of
    feed-forward layers. experts: numbers of experts. blocks: residual blocks `y = [norm](x + f(x))`.
    io: heads and their dimensions are axes of inputs or outputs (key-value caches), which the user has to allow.
    """

    name: str
    build: Callable[[], ModelProto]
    heads: tuple[int, ...] = (HEADS, HEADS)
    head_dim: tuple[int, ...] = (HEAD,) * 4
    hidden: tuple[int, ...] = (WIDTH,)
    channels: tuple[int, ...] = (FFN, FFN)
    experts: tuple[int, ...] = ()
    blocks: int = 2 * LAYERS
    note: str = ""
    io: bool = False
    runs: bool = True
    checked: bool = True
    tolerance: float = 1e-4  # of a run against another way to compute the same, relative to the largest output


TRANSFORMERS: dict[str, Form] = {}


def form(name: str = "", *, fixed: dict[str, Any] | None = None, **expected: Any) -> Callable[[BuildFn], BuildFn]:
    """Register a builder under its own name, or under `name` with the keyword arguments `fixed`."""

    def register(build: BuildFn) -> BuildFn:
        key = name or build.__name__
        assert key not in TRANSFORMERS, f"form {key!r} is registered twice"
        note = expected.pop("note", "") or " ".join((build.__doc__ or "").split())
        TRANSFORMERS[key] = Form(key, partial(build, **(fixed or {})), note=note, **expected)
        return build

    return register


LIMITS = {"input_ids": VOCAB, "decoder_input_ids": VOCAB, "token_type_ids": 2}


def feeds(form: Form | ModelProto, *, size: int = 2, seed: int = 0) -> dict[str, Array]:
    """Random inputs: symbolic sizes become `size`, past and new positions together twice that.

    Masks are 0 or 1, and 1 at the first position; those over past and new positions are 1.
    """
    model = form if isinstance(form, ModelProto) else form.build()
    rng = np.random.default_rng(seed)
    found: dict[str, Array] = {}
    for value in model.graph.input:
        dims = value.type.tensor_type.shape.dim
        shape = [d.dim_value or (2 * size if d.dim_param == TOTAL else size) for d in dims]
        dtype = helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
        if dtype.kind == "f":
            found[value.name] = rng.standard_normal(shape).astype(dtype)
        elif "mask" in value.name:
            mask = rng.integers(0, 2, shape).astype(dtype)
            mask[..., slice(None) if dims[-1].dim_param == TOTAL else 0] = 1
            found[value.name] = mask
        else:
            found[value.name] = rng.integers(0, LIMITS.get(value.name, 6), shape).astype(dtype)
    return found
