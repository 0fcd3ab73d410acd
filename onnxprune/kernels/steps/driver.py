"""All that the C part (`_steps.h`) calls, with the address of the table of a run (tables.py)."""

from __future__ import annotations

from numba import cfunc, types

from onnxprune.kernels.addresses import i64
from onnxprune.kernels.steps.batch_norm import plan as plan_norm
from onnxprune.kernels.steps.batch_norm import run as run_norm
from onnxprune.kernels.steps.clip import plan as plan_clip
from onnxprune.kernels.steps.clip import run as run_clip
from onnxprune.kernels.steps.conv import plan as plan_conv
from onnxprune.kernels.steps.conv import prepare as prepare_conv
from onnxprune.kernels.steps.conv import run as run_conv
from onnxprune.kernels.steps.conv_weight import plan as plan_weight
from onnxprune.kernels.steps.conv_weight import run as run_weight
from onnxprune.kernels.steps.max_pool import plan as plan_pool
from onnxprune.kernels.steps.max_pool import run as run_pool
from onnxprune.kernels.steps.product import plan as plan_product
from onnxprune.kernels.steps.product import prepare as prepare_product
from onnxprune.kernels.steps.product import run as run_product
from onnxprune.kernels.steps.recurrent import plan as plan_recurrent
from onnxprune.kernels.steps.recurrent import prepare as prepare_recurrent
from onnxprune.kernels.steps.recurrent import run as run_recurrent
from onnxprune.kernels.steps.tables import (
    BATCH_NORM,
    CLIP,
    CONV,
    CONV_WEIGHT,
    LSTM,
    PRODUCT,
    STEP_FIELDS,
    STEP_KERNEL,
    STEP_PLAN,
    STEP_PREPARE,
)


@cfunc(types.int64(types.int64, types.int64, types.int64, types.int64, types.int64), cache=True)
def entry(what: int, table: int, task: int, scratch: int, unused: int) -> int:
    """STEP_PLAN: 0, or 1 where the shapes of the inputs do not fit."""
    t = i64(table, STEP_FIELDS)
    kernel = t[STEP_KERNEL]
    if what == STEP_PLAN:
        if kernel >= LSTM:
            return 0 if plan_recurrent(t) else 1
        if kernel == CONV_WEIGHT:
            return 0 if plan_weight(t) else 1
        if kernel == CONV:
            return 0 if plan_conv(t) else 1
        if kernel == CLIP:
            return 0 if plan_clip(t) else 1
        if kernel == BATCH_NORM:
            return 0 if plan_norm(t) else 1
        if kernel == PRODUCT:
            return 0 if plan_product(t) else 1
        return 0 if plan_pool(t) else 1
    if what == STEP_PREPARE:
        if kernel >= LSTM:
            prepare_recurrent(t, task)
        elif kernel == PRODUCT:
            prepare_product(t, task)
        else:
            prepare_conv(t)
    elif kernel >= LSTM:
        run_recurrent(t, task, scratch)
    elif kernel == CONV_WEIGHT:
        run_weight(t, task, scratch)
    elif kernel == CONV:
        run_conv(t, task, scratch)
    elif kernel == CLIP:
        run_clip(t, task)
    elif kernel == BATCH_NORM:
        run_norm(t, task)
    elif kernel == PRODUCT:
        run_product(t, task, scratch)
    else:
        run_pool(t, task, scratch)
    return 0
