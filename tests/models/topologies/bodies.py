"""Control flow and local functions."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx
from onnx import helper, numpy_helper

from models.builder import Builder, Dim
from models.topologies.registry import stem, tail, topology

# Control flow


@topology()
def if_captures() -> onnx.ModelProto:
    """Both branches read an outer activation; one adds an outer weight."""
    b = Builder()
    h, scale = stem(b), b.param(b.uniform(0.5, 1.5, 16, 1, 1))
    flag = b.input("flag", (), np.bool_)
    then, other = b.child(), b.child()
    bodies = {"then_branch": then.graph("then", then.mul(h, scale)), "else_branch": other.graph("else", other.relu(h))}
    y = b.declare(b.op("If", flag, **bodies), ("batch", 16, 8, 8))
    return b.model(tail(b, y))


@topology()
def if_weights_inside() -> onnx.ModelProto:
    """Each branch has its own weights, and hidden channels of its own."""
    b = Builder()
    h, flag = stem(b), b.input("flag", (), np.bool_)
    then, other = b.child(), b.child()
    wide = then.conv(then.relu(then.conv(h, 24)), 16)
    bodies = {"then_branch": then.graph("then", wide), "else_branch": other.graph("else", other.conv(h, 16))}
    y = b.declare(b.op("If", flag, **bodies), ("batch", 16, 8, 8))
    return b.model(tail(b, b.relu(y)))


@topology()
def if_nested_computed() -> onnx.ModelProto:
    """The condition is computed from data; a branch holds another If, whose body captures from two levels up."""
    b = Builder()
    h = stem(b)
    mean = b.reduce("Mean", h, 0, 1, 2, 3, keepdims=0)
    outer_then, outer_else = b.child(), b.child()
    inner_then, inner_else = outer_then.child(), outer_then.child()
    inner = {
        "then_branch": inner_then.graph("inner_then", inner_then.relu(h)),
        "else_branch": inner_else.graph("inner_else", inner_else.op("Neg", h)),
    }
    y = outer_then.declare(outer_then.op("If", outer_then.op("Less", mean, 0.2), **inner), ("batch", 16, 8, 8))
    outer = {
        "then_branch": outer_then.graph("then", outer_then.conv(y, 16)),
        "else_branch": outer_else.graph("else", outer_else.op("Identity", h)),
    }
    y = b.declare(b.op("If", b.op("Greater", mean, 0.0), **outer), ("batch", 16, 8, 8))
    return b.model(tail(b, y))


def loop_body(b: Builder, shape: Sequence[Dim], step: Callable[[Builder, str], str]) -> onnx.GraphProto:
    """A Loop body with one carried state of `shape`, updated by `step`."""
    body = b.child()
    for name, dtype in (("iteration", np.int64), ("condition", np.bool_)):
        body.input(f"{name}_in", (), dtype)
    state = step(body, body.input("state_in", shape))
    return body.graph("body", body.op("Identity", "condition_in"), state)


@topology("loop_conv", inside=True)
@topology("loop_conv_captured_weights", inside=False)
def loop_conv(*, inside: bool) -> onnx.ModelProto:
    """A residual block applied three times, its weights in the body or captured from outside."""
    b = Builder()
    h = stem(b)
    w1, w2 = b.he(24, 16, 3, 3), b.he(16, 24, 3, 3) * 0.3

    def step(body: Builder, x: str) -> str:
        up, down = names if names else (body.param(w1), body.param(w2))
        y = body.relu(body.conv(x, 24, weight=up, bias=False))
        return body.add(x, body.conv(y, 16, weight=down, bias=False))

    names = () if inside else (b.param(w1), b.param(w2))
    body = loop_body(b, ("batch", 16, 8, 8), step)
    y = b.declare(b.op("Loop", 3, True, h, body=body), ("batch", 16, 8, 8))
    return b.model(tail(b, y))


@topology()
def loop_gemm() -> onnx.ModelProto:
    """A recurrent net by hand: the body gathers step i from a captured tensor; the width is loop-carried."""
    b = Builder()
    x = b.relu(b.dense(b.input("input", (5, "batch", 12)), 20))
    body = b.child()
    i, _ = body.input("i", (), np.int64), body.input("condition_in", (), np.bool_)
    state = body.input("state_in", ("batch", 16))
    step = body.op("Gather", x, i, axis=0)
    new = body.op("Tanh", body.add(body.dense(step, 16), body.dense(state, 16)))
    graph = body.graph("body", body.op("Identity", "condition_in"), new, body.op("Identity", new))
    start = b.op("ConstantOfShape", b.dims(b.size(x, 1), 16), value=numpy_helper.from_array(np.zeros(1, np.float32)))
    last, steps = b.ops("Loop", 5, None, start, n=2, body=graph)
    b.declare(last, ("batch", 16))
    b.declare(steps, (5, "batch", 16))
    return b.model(b.linear(b.relu(b.linear(last, 24)), 10), b.dense(steps, 4))


@topology()
def scan_gemm() -> onnx.ModelProto:
    """Scan over time: state and step meet in the body."""
    b = Builder()
    x = b.relu(b.dense(b.input("input", (5, 2, 12)), 20))
    body = b.child()
    state, step = body.input("state_in", (2, 16)), body.input("step_in", (2, 20))
    new = body.op("Tanh", body.add(body.linear(step, 16), body.linear(state, 16, bias=False)))
    graph = body.graph("body", new, body.op("Identity", new))
    last, steps = b.ops("Scan", b.const(np.zeros((2, 16), np.float32)), x, n=2, body=graph, num_scan_inputs=1)
    b.declare(last, (2, 16))
    b.declare(steps, (5, 2, 16))
    return b.model(b.linear(last, 10), b.dense(b.relu(b.dense(steps, 24)), 4))


# Functions


@topology("function_local", constant=False)
@topology("function_local_weights_inside", constant=True)
def function_local(*, constant: bool) -> onnx.ModelProto:
    """A block as a model-local function, called twice; its weights are arguments or Constants of its body."""
    b = Builder()
    inner = Builder(weights="constant") if constant else Builder()
    weights = {"w1": b.he(24, 16, 3, 3), "b1": b.normal(24), "w2": b.he(16, 24, 3, 3) * 0.3, "b2": b.normal(16)}
    names = {name: inner.param(w) if constant else name for name, w in weights.items()}
    h = inner.relu(inner.op("Conv", "x", names["w1"], names["b1"], pads=[1, 1, 1, 1]))
    y = inner.add("x", inner.op("Conv", h, names["w2"], names["b2"], pads=[1, 1, 1, 1]))
    arguments = ["x"] if constant else ["x", *weights]
    imports = [helper.make_opsetid("", 17)]
    b.functions.append(helper.make_function("local", "Block", arguments, [y], inner.nodes, imports))
    h = stem(b)
    for _ in range(2):
        call = [] if constant else [b.param(w) for w in weights.values()]
        h = b.declare(b.op("Block", h, *call, domain="local"), ("batch", 16, 8, 8))
    return b.model(tail(b, h))
