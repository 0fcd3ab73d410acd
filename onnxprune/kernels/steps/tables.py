"""The numbers that the C part and the kernels of training share, and what the kernels are told.

A run is one table of int64: STEP_FIELDS fields, then parameters, then a row for every input and output. Every number
whose name starts with STEP is a macro in `_steps_tables.h`, which header.py writes.
"""

from __future__ import annotations

from onnxprune.kernels.tables import AXES_MOST

(
    STEP_KERNEL, STEP_INPUTS, STEP_OUTPUTS, STEP_TASKS, STEP_TASK_BYTES, STEP_SHARED_BYTES, STEP_SHARED,
    STEP_PREPARE_TASKS, STEP_PARAMS_AT,
) = range(9)  # fmt: skip
STEP_PARAMS = 32
STEP_TYPE, STEP_RANK, STEP_ADDRESS, STEP_DIMS = range(4)  # of a row
STEP_ROW = STEP_DIMS + AXES_MOST
STEP_INPUTS_MOST, STEP_OUTPUTS_MOST = 8, 4
STEP_INPUTS_AT = STEP_PARAMS_AT + STEP_PARAMS
STEP_OUTPUTS_AT = STEP_INPUTS_AT + STEP_INPUTS_MOST * STEP_ROW
STEP_FIELDS = STEP_OUTPUTS_AT + STEP_OUTPUTS_MOST * STEP_ROW
STEP_PLAN, STEP_PREPARE, STEP_RUN = range(3)  # what the entry is asked for

# kernels; from LSTM on those of recurrent layers, then their gradients in the same order
CONV_WEIGHT, CONV, CLIP, MAX_POOL, BATCH_NORM, PRODUCT, LSTM, GRU, RNN, LSTM_BACK, GRU_BACK, RNN_BACK = range(12)

# parameters of the kernels with windows; from BATCH on they are found in a run
(
    KH, KW, SH, SW, PT, PL, DH, DW, GROUPS, UP_H, UP_W, TURNED, LOW, HIGH, PB, PR,
    BATCH, C, OUTS, H, W, OH, OW, PHASES, DIRECT, IMAGES, CHANNELS, PARTS, BAND, ROWS_OF_PARTS,
) = range(STEP_PARAMS_AT, STEP_PARAMS_AT + 30)  # fmt: skip
GIVEN = 16  # of them are given

EPSILON = STEP_PARAMS_AT  # the parameter of a normalisation

INNER, OUTPUTS, CHUNKS, SHARES = range(STEP_PARAMS_AT, STEP_PARAMS_AT + 4)  # of a sparse product, found in a run

# parameters of recurrent layers, of which RELU (in place of Tanh in an RNN) and COMING are given: which gradients
# arrive, a sum of EVERY_STEP, LAST_STATE and LAST_CELL
RELU, COMING, SAMPLES, HIDDEN, GATES, TEAMS, SPAN = range(STEP_PARAMS_AT, STEP_PARAMS_AT + 7)
EVERY_STEP, LAST_STATE, LAST_CELL = 1, 2, 4


def numbers() -> dict[str, int]:
    """What the header has."""
    return {n: v for n, v in globals().items() if n.startswith("STEP_") and isinstance(v, int)}
