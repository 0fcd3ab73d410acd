"""Recurrent networks."""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
import onnx
from onnx import numpy_helper

from models.builder import Builder
from models.topologies.registry import UNRUNNABLE, pooled, topology

# Recurrent networks

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
Cell = Literal["LSTM", "GRU", "RNN"]


def recurrent(
    b: Builder,
    cell: Cell,
    x: str,
    hidden: int,
    *states: str,
    lengths: str = "",
    peepholes: bool = False,
    direction: str = "forward",
    **attributes: Any,
) -> list[str]:
    """One recurrent layer on (time, batch, features): Y, Y_h and, for LSTM, Y_c."""
    gates, d = GATES[cell] * hidden, 2 if direction == "bidirectional" else 1
    x_size = b.channels(x, 2)
    w = b.param(b.normal(d, gates, x_size, scale=1 / math.sqrt(x_size)), f"{cell.lower()}.W")
    r = b.param(b.normal(d, gates, hidden, scale=1 / math.sqrt(hidden)), f"{cell.lower()}.R")
    state = [*states, "", ""][:2] if cell == "LSTM" else list(states)
    state += [b.param(b.normal(d, 3 * hidden), "lstm.P")] if peepholes else []
    extra = [b.vec(d, 2 * gates), lengths, *state]
    return b.ops(
        cell, x, w, r, *extra, n=3 if cell == "LSTM" else 2, hidden_size=hidden, direction=direction, **attributes
    )


def last_step(b: Builder, y: str) -> str:
    """PyTorch's way from Y (time, 1, batch, hidden) to the last step's (batch, hidden)."""
    return b.op("Gather", b.transpose(b.squeeze(y, 1), 1, 0, 2), -1, axis=1)


def joined_directions(b: Builder, y: str) -> str:
    """PyTorch's way from Y (time, 2, batch, hidden) to (time, batch, 2 * hidden)."""
    return b.reshape(b.transpose(y, 0, 2, 1, 3), 0, 0, -1)


@topology("lstm", cell="LSTM")
@topology("gru", cell="GRU")
@topology("rnn", cell="RNN")
@topology("lstm_reverse", cell="LSTM", direction="reverse")
@topology("lstm_bidirectional", cell="LSTM", direction="bidirectional")
@topology("gru_bidirectional", cell="GRU", direction="bidirectional")
@topology("rnn_bidirectional", cell="RNN", direction="bidirectional")
@topology("gru_linear_before_reset", cell="GRU", linear_before_reset=1)
@topology("lstm_activations_clip", cell="LSTM", activations=["Sigmoid", "Tanh", "Relu"], clip=3.0)
@topology("rnn_relu", cell="RNN", activations=["Relu"])
@topology("lstm_peepholes", cell="LSTM", peepholes=True)
@topology("lstm_peepholes_bidirectional", cell="LSTM", peepholes=True, direction="bidirectional")
def recurrent_classifier(*, cell: Cell, direction: str = "forward", **attributes: Any) -> onnx.ModelProto:
    """batch_first recurrent layer, then a Gemm on the last time step, or on the mean where a direction is reversed."""
    b = Builder()
    x = b.transpose(b.input("input", ("batch", "time", 12)), 1, 0, 2)
    y = recurrent(b, cell, x, 16, direction=direction, **attributes)[0]
    if direction == "forward":
        return b.model(b.linear(last_step(b, y), 10))
    y = joined_directions(b, y) if direction == "bidirectional" else b.squeeze(y, 1)
    return b.model(pooled(b, b.transpose(y, 1, 0, 2)))


@topology("lstm_stacked", cell="LSTM")
@topology("gru_stacked", cell="GRU")
@topology("lstm_stacked_bidirectional", cell="LSTM", bidirectional=True)
def recurrent_stacked(*, cell: Cell, bidirectional: bool = False) -> onnx.ModelProto:
    """Two layers on top of a Gemm-like projection; the second reads all steps of the first."""
    b = Builder()
    h = b.relu(b.dense(b.input("input", ("time", "batch", 12)), 20))
    for hidden in (16, 24):
        y = recurrent(b, cell, h, hidden, direction="bidirectional" if bidirectional else "forward")[0]
        h = joined_directions(b, y) if bidirectional else b.squeeze(y, 1)
    return b.model(b.dense(h, 10))


@topology("lstm_last_hidden", cell="LSTM")
@topology("gru_last_hidden", cell="GRU")
@topology("lstm_opset7", cell="LSTM", opset=7)
def recurrent_last_hidden(*, cell: Cell, opset: int = 17) -> onnx.ModelProto:
    """The classifier reads Y_h; Y is not used."""
    b = Builder(opset)
    y_h = recurrent(b, cell, b.input("input", ("time", "batch", 12)), 16)[1]
    return b.model(b.linear(b.squeeze(y_h, 0), 10))


@topology("lstm_zero_state_shape", cell="LSTM")
@topology("gru_zero_state_shape", cell="GRU")
def recurrent_zero_state(*, cell: Cell) -> onnx.ModelProto:
    """PyTorch's zero initial states: ConstantOfShape on Concat(directions, batch, hidden)."""
    b = Builder()
    x = b.transpose(b.input("input", ("batch", "time", 12)), 1, 0, 2)
    shape = b.dims(1, b.size(x, 1), 16)
    zero = b.op("ConstantOfShape", shape, value=numpy_helper.from_array(np.zeros(1, np.float32)))
    y = recurrent(b, cell, x, 16, *[zero] * (2 if cell == "LSTM" else 1))[0]
    return b.model(b.linear(last_step(b, y), 10))


@topology("lstm_constant_state", cell="LSTM")
@topology("gru_constant_state", cell="GRU")
def recurrent_constant_state(*, cell: Cell) -> onnx.ModelProto:
    """Initial states are stored weights (1, 2, hidden): the batch is baked in."""
    b = Builder()
    states = [b.param(b.normal(1, 2, 16, scale=0.5), "state") for _ in range(2 if cell == "LSTM" else 1)]
    y_h = recurrent(b, cell, b.input("input", ("time", 2, 12)), 16, *states)[1]
    return b.model(b.linear(b.squeeze(y_h, 0), 10))


@topology()
def lstm_expanded_state() -> onnx.ModelProto:
    """A learned initial state (1, 1, hidden), expanded over the batch."""
    b = Builder()
    x = b.input("input", ("time", "batch", 12))
    shape = b.dims(1, b.size(x, 1), 16)
    states = [b.op("Expand", b.param(b.normal(1, 1, 16, scale=0.5), "state"), shape) for _ in range(2)]
    return b.model(b.dense(b.squeeze(recurrent(b, "LSTM", x, 16, *states)[0], 1), 10))


@topology()
def lstm_states_as_inputs_outputs() -> onnx.ModelProto:
    """Streaming: the states come in and go out, so the hidden width is fixed; the projection before it is not."""
    b = Builder()
    x = b.dense(b.relu(b.dense(b.input("input", ("time", "batch", 12)), 24)), 12)
    h0, c0 = (b.input(name, (1, "batch", 16)) for name in ("h0", "c0"))
    y, y_h, y_c = recurrent(b, "LSTM", x, 16, h0, c0)
    return b.model(b.dense(b.squeeze(y, 1), 10), y_h, y_c)


@topology()
def lstm_sequence_lengths() -> onnx.ModelProto:
    b = Builder()
    x = b.input("input", ("time", "batch", 12))
    lengths = b.input("lengths", ("batch",), np.int32)
    y = recurrent(b, "LSTM", x, 16, lengths=lengths, direction="bidirectional")[0]
    return b.model(b.dense(joined_directions(b, y), 10))


@topology(into=UNRUNNABLE)
def lstm_layout1() -> onnx.ModelProto:
    """layout = 1 puts the batch first, in the states too."""
    b = Builder()
    y_h = recurrent(b, "LSTM", b.input("input", ("batch", "time", 12)), 16, layout=1)[1]
    return b.model(b.linear(b.squeeze(y_h, 1), 10))


@topology()
def encoder_decoder_lstm() -> onnx.ModelProto:
    """The encoder's last states start the decoder: both hidden widths are one."""
    b = Builder()
    source, target = (b.input(name, ("time", "batch", 12)) for name in ("source", "target"))
    _, h, c = recurrent(b, "LSTM", source, 16)
    return b.model(b.dense(b.squeeze(recurrent(b, "LSTM", target, 16, h, c)[0], 1), 10))


@topology()
def crnn() -> onnx.ModelProto:
    """Text recognition: channels and height merge into the features of an LSTM."""
    b = Builder()
    h = b.relu(b.bn(b.conv(b.input("input", ("batch", 1, 8, 16)), 12)))
    h = b.op("MaxPool", b.relu(b.conv(h, 16)), kernel_shape=[2, 1], strides=[2, 1])
    h = b.reshape(b.transpose(h, 3, 0, 1, 2), 16, b.size(h, 0), 64)
    return b.model(b.dense(b.squeeze(recurrent(b, "LSTM", h, 20)[0], 1), 10))
