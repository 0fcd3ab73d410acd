"""Inputs that several models take alike: what their declarations have in common, random values, the user's values."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper

from onnxprune.errors import OptionError
from onnxprune.graph.arrays import Array
from onnxprune.graph.io import Model
from onnxprune.graph.shapes import concrete_inputs, fixed, graph_inputs, infer, symbol_of
from onnxprune.runtime.feeds import guesses
from onnxprune.runtime.session import Feeds


def align(paths: Sequence[str], models: Sequence[Model], input_shape: Mapping[str, tuple[int, ...]]) -> Model:
    """The first model, its inputs narrowed in place to what every model takes.

    paths: what messages call the models; input_shape: input name -> concrete shape, to which it is narrowed too.
    Raises OptionError where nothing fits all.
    """
    first = models[0]
    ours = {i.name: i for i in graph_inputs(first)}
    for path, model in zip(paths, models, strict=True):
        theirs = {i.name: i for i in graph_inputs(model)}
        if lone := sorted(theirs.keys() ^ ours.keys()):
            has, lacks = (path, paths[0]) if lone[0] in theirs else (paths[0], path)
            raise OptionError(f"{lacks} has no input {lone[0]!r} as {has} has; compare models of equal inputs")
        for name, info in theirs.items():
            if info.type.WhichOneof("value") != "tensor_type":
                raise OptionError(f"{path}: input {name!r} is no tensor; models with tensor inputs can be measured")
        try:
            next(concrete_inputs(model, input_shape))
        except OptionError as e:
            raise OptionError(f"{path}: {e}") from e
    symbols = {name: list(map(symbol_of, info.type.tensor_type.shape.dim)) for name, info in ours.items()}
    for path, model in zip(paths, models, strict=True):
        for info in graph_inputs(model):
            if not _narrow(ours[info.name], info):
                taken = f"where the files before it take {signature(ours[info.name])}"
                mismatch = f"input {info.name!r} is {signature(info)}, {taken}"
                raise OptionError(f"{path}: {mismatch}; compare models of equal inputs")
    for name, shape in input_shape.items():
        given = helper.make_tensor_value_info(name, ours[name].type.tensor_type.elem_type, shape)
        _narrow(ours[name], given)
    axes = [x for name, info in ours.items() for x in zip(symbols[name], info.type.tensor_type.shape.dim, strict=False)]
    sizes = {symbol: d.dim_value for symbol, d in axes if symbol and fixed(d)}
    for symbol, d in axes:
        if symbol in sizes and not fixed(d):
            d.dim_value = sizes[symbol]  # what became fixed in one input is so in all
    return first


def _narrow(info: onnx.ValueInfoProto, other: onnx.ValueInfoProto) -> bool:
    """Fix axes of `info` that `other` fixes; false where the two contradict."""
    a, b = info.type.tensor_type, other.type.tensor_type
    if a.elem_type != b.elem_type:
        return False
    if not a.HasField("shape"):
        a.CopyFrom(b)
    elif b.HasField("shape"):
        pairs = list(zip(a.shape.dim, b.shape.dim, strict=False))
        same_rank = len(a.shape.dim) == len(b.shape.dim)
        if not same_rank or any(fixed(x) and fixed(y) and x.dim_value != y.dim_value for x, y in pairs):
            return False
        for x, y in pairs:
            if fixed(y):
                x.dim_value = y.dim_value
    return True


def type_name(info: onnx.ValueInfoProto) -> str:
    """The element type as users read it: float, int64."""
    return str(TensorProto.DataType.Name(info.type.tensor_type.elem_type)).lower()


def signature(info: onnx.ValueInfoProto) -> str:
    """Element type and axes: float n,8."""
    t = info.type.tensor_type
    dims = ",".join(str(d.dim_value) if fixed(d) else d.dim_param or "?" for d in t.shape.dim)
    return f"{type_name(info)} {dims}" if t.HasField("shape") else type_name(info)


def random_candidates(first: Model, input_shape: Mapping[str, tuple[int, ...]] | None, seed: int) -> Iterator[Feeds]:
    """Random inputs to try, one after the other."""
    for guess in guesses(first, infer(first, input_shape), input_shape, seed=seed):
        yield guess.feeds


def given_feeds(inputs: str | os.PathLike[str] | Mapping[str, Array], first: Model) -> tuple[Feeds, list[str]]:
    """The values that the user gives, checked, of more rows than the model takes the first; and what is not used.

    inputs: by input name, or the npz file that holds them. Raises OptionError where one is missing or does not fit.
    """
    notes: list[str] = []
    where = "inputs"
    if not isinstance(inputs, Mapping):
        where = f"--inputs {os.fspath(inputs)}"
        inputs = read_npz(where, inputs)
    infos = {i.name: i for i in graph_inputs(first)}
    if missing := [n for n in infos if n not in inputs]:
        raise OptionError(f"{where}: no array {missing[0]!r}; the file holds {', '.join(map(repr, inputs)) or 'none'}")
    if extra := [n for n in inputs if n not in infos]:
        notes.append(f"{where}: {', '.join(map(repr, extra))} not used, no input has this name")
    feeds: Feeds = {}
    for name, info in infos.items():
        x, t = np.asarray(inputs[name]), info.type.tensor_type
        dtype = np.dtype(helper.tensor_dtype_to_np_dtype(t.elem_type))
        dims = t.shape.dim
        if dims and x.ndim == len(dims) and fixed(dims[0]) and x.shape[0] > dims[0].dim_value:
            notes.append(f"{where}: the first {dims[0].dim_value} of {x.shape[0]} rows of {name!r}")
            x = x[: dims[0].dim_value]
        fits = not t.HasField("shape") or (
            x.ndim == len(dims) and all(not fixed(d) or d.dim_value == k for d, k in zip(dims, x.shape, strict=True))
        )
        text = dtype.kind == "O" and x.dtype.kind in "OSU"
        if not fits or not (x.dtype == dtype or text):
            given = f"{x.dtype} {','.join(map(str, x.shape))}"
            raise OptionError(f"{where}: {name!r} is {given}, the models take {signature(info)}")
        feeds[name] = x.astype(object) if text else np.ascontiguousarray(x)
    return feeds, notes


def read_npz(where: str, path: str | os.PathLike[str]) -> dict[str, Array]:
    """The arrays of a file of numpy.savez; raises OptionError, which begins with `where`, for anything else."""
    try:
        file = np.load(path, allow_pickle=False)
        if not isinstance(file, np.lib.npyio.NpzFile):
            raise ValueError("a single array")
        with file:
            return {name: file[name] for name in file.files}
    except Exception as e:  # zipfile, zlib and numpy each raise their own
        why = getattr(e, "strerror", None) or str(e) or type(e).__name__
        raise OptionError(f"{where}: expected a file of numpy.savez, found {why}") from e


def source(inputs: object, seed: int) -> str:
    """Where values come from, in words."""
    if inputs is None:
        return f"random, seed {seed}"
    return os.fspath(inputs) if isinstance(inputs, str | os.PathLike) else "given"


def batch_of(feeds: Feeds) -> int:
    """First axis of the first input of rank 2 or more; 1 where there is none."""
    return next((int(np.shape(x)[0]) for x in feeds.values() if np.ndim(x) > 1), 1)
