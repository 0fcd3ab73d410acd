"""Masks that are learned while training: which rules there are, and what is asked of one.

The network computes with W m, where the mask m, zeros and ones, follows scores S of the weights. The gradient of the
loss by m, times W, is that of S (straight through: Bengio et al. 2013, arXiv:1308.3432), also where the mask is closed:
a weight can come back. A rule says what the scores are, which weights move, and when the mask closes (`MASKING`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxprune.allocation.kinds import flag
from onnxprune.allocation.options import Cut
from onnxprune.errors import OptionError
from onnxprune.formats.patterns import NMPattern
from onnxprune.graph.arrays import Array
from onnxprune.options import TUNE, choice, declared, number, option, shared
from onnxprune.sparsity.options import Zeros

LEARNED, MAGNITUDE = "learned", "magnitude"  # what scores are: a parameter of their own, or a row of `SCORES`
OPEN, ALL, NONE = "open", "all", "none"  # weights that move: those whose mask is open, all, none
RATE = {"adam": 1e-2, "adamw": 1e-2, "sgd": 0.1}  # of scores; Adam's as Sanh et al. 2020 have it
UNIT_KINDS = ("heads", "channels")


def magnitude(w: Array, g: Array) -> Array:
    """|W|"""
    return np.asarray(np.abs(w))


SCORES: dict[str, Callable[[Array, Array], Array]] = {MAGNITUDE: magnitude}  # of weights, and of the step's gradients


@dataclass(frozen=True)
class Masking:
    """One rule. scores: `LEARNED` or a row of `SCORES`; moves: `OPEN`, `ALL` or `NONE`; soft: whether what lies below a
    threshold is closed, in place of a number of the lowest; returns: whether a weight that was closed can come back;
    grows: whether zeros come by a schedule, else all are there from the first step on; signed: weights are constants
    with the signs that they have."""

    help: str
    scores: str = LEARNED
    moves: str = OPEN
    soft: bool = False
    returns: bool = True
    grows: bool = True
    signed: bool = False


MASKING: dict[str, Masking] = {
    "movement": Masking(
        "the highest scores stay, which grow where weights move away from zero (Sanh et al. 2020, Movement Pruning)"
    ),
    "soft-movement": Masking(
        "the same with a threshold, and a penalty on the scores that says how much goes (the same, SMvP)", soft=True
    ),
    "magnitude": Masking(
        "the largest weights stay; those that are closed are trained on, and can come back (Lin et al. 2020, Dynamic "
        "Model Pruning with Feedback)", MAGNITUDE, ALL,
    ),
    "gradual-magnitude": Masking(
        "the largest weights stay; what is closed stays so (Zhu and Gupta 2017)", MAGNITUDE, returns=False
    ),
    "edge-popup": Masking(
        "the highest scores stay, of random weights that are never trained: constants with random signs (Ramanujan et "
        "al. 2020); needs --init", moves=NONE, grows=False, signed=True,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Masked:
    """What the user says of masks that are learned."""

    learn_masks: str | None = option(
        None, choice({name: row.help for name, row in MASKING.items()}), panel=TUNE, metavar="NAME",
        otherwise="no masks",
        help="Learn while training which --sparsity of the weights goes, or which --heads or --channels, by scores of "
        "the weights: dense for a tenth of the steps, then more and more, and for the last quarter with masks that "
        "stay. " + "; ".join(f"{name}: {row.help}" for name, row in MASKING.items()) + ".",
    )  # fmt: skip
    mask_rate: float | None = option(
        None, number("a number above 0", 0, above=True), panel=TUNE, metavar="X",
        otherwise=f"{RATE['adam']:g}, of sgd {RATE['sgd']:g}",
        help="The highest learning rate of the scores of --learn-masks; it falls as that of the weights does.",
    )  # fmt: skip
    mask_penalty: float | None = option(
        None, number("a number above 0", 0, above=True), panel=TUNE, metavar="X",
        help="Of --learn-masks soft-movement, in place of --sparsity: this times the mean of sigmoid(S), S the scores, "
        "is added to the loss; the more, the fewer weights are left.",
    )  # fmt: skip


OF_ZEROS = ("sparsity", "pattern", "sparsity_allocate", "sparsity_schedule")
OPTIONS = (
    *declared(Masked),
    *shared((*declared(Zeros), *declared(Cut)), (*OF_ZEROS, *UNIT_KINDS, "ignore", "round_to"), {}),
)
SPREADS = ("global", "uniform", "erk")  # rows of `ZERO_ALLOCATORS` that go by any scores
GROWTH = "cubic"


@dataclass(frozen=True)
class Learning:
    """What is asked of a mask. method: of `MASKING`; zeros: how many weights go, and how they lie; units: (kind,
    fraction that goes) in place of single weights; ignore: globs; round_to: of units that are left; rate: of scores;
    penalty: of soft rules."""

    method: str
    zeros: Zeros
    units: tuple[tuple[str, float], ...] = ()
    ignore: tuple[str, ...] = ()
    round_to: int = 1
    rate: float = RATE["adam"]
    penalty: float | None = None

    @property
    def row(self) -> Masking:
        """The rule."""
        return MASKING[self.method]

    @property
    def growth(self) -> str:
        """The row of `GROWTHS` by which zeros come."""
        return self.zeros.sparsity_schedule or GROWTH

    @property
    def allocate(self) -> str:
        """Where zeros go: every layer alike where a pattern says so, and of weights that are not trained; else by one
        threshold."""
        even = isinstance(self.zeros.shape, NMPattern) or self.row.signed
        return self.zeros.sparsity_allocate or ("uniform" if even else "global")


def learning_of(values: Mapping[str, Any], optimizer: str, fresh: bool) -> Learning | None:
    """What is asked for, by options, None without --learn-masks; fresh: whether weights are new.

    Raises `OptionError` for an option that lacks another, or has no effect.
    """
    v = {o.name: values.get(o.name, o.default) for o in OPTIONS}
    given = [o for o in OPTIONS if v[o.name] != o.default]
    name = v["learn_masks"]
    if name is None:
        if given:
            raise OptionError(f"{given[0].as_typed(v[given[0].name])} needs --learn-masks movement, or another")
        return None
    row, units = MASKING[name], tuple((kind, v[kind]) for kind in UNIT_KINDS if v[kind] is not None)
    zeros, of_units = Zeros(**{n: v[n] for n in OF_ZEROS}), " and ".join(flag(kind) for kind, _ in units)
    if row.signed and not fresh:
        raise OptionError(f"--learn-masks {name} needs --init SEED: it chooses among weights never trained")
    for o in given:
        why = _idle(o.name, v, row, of_units)
        if why:
            raise OptionError(f"{o.as_typed(v[o.name])} has no effect with --learn-masks {name}: {why}")
    for n in ("learning_rate", "weight_decay") if row.moves == NONE else ():
        if values.get(n):
            why = "weights are not trained, and scores go by --mask-rate"
            raise OptionError(f"--{n.replace('_', '-')} {values[n]:g} has no effect with --learn-masks {name}: {why}")
    _check_amount(name, row, zeros, units, v["mask_penalty"])
    round_to = v["round_to"] if any(o.name == "round_to" for o in given) else 1
    rate = RATE[optimizer] if v["mask_rate"] is None else v["mask_rate"]
    return Learning(name, zeros, units, tuple(v["ignore"]), round_to, rate, v["mask_penalty"])


def _idle(name: str, v: Mapping[str, Any], row: Masking, of_units: str) -> str:
    """Why an option would have no effect, "" where it has one."""
    if name in ("sparsity", "pattern", "sparsity_allocate") and of_units:
        return f"it is of single weights; leave it out with {of_units}"
    if name == "round_to" and (row.soft or not of_units):
        return "a threshold says how many units stay" if of_units else "single weights have no width"
    if name in ("sparsity", "sparsity_allocate") and row.soft:
        return "--mask-penalty says how much goes"
    if name == "pattern" and row.soft and isinstance(Zeros(pattern=v[name]).shape, NMPattern):
        return "it fixes how many weights stay, and a threshold does not"
    if name == "sparsity_allocate" and v[name] not in SPREADS:
        return f"it goes by more than scores; choose {', '.join(SPREADS)}"
    if name == "sparsity_schedule" and not row.grows:
        return "all zeros are there from the first step on"
    if name == "mask_rate" and row.scores != LEARNED:
        return f"scores are not learned but {SCORES[row.scores].__doc__}"
    return "it is told how much goes; soft-movement is not" if name == "mask_penalty" and not row.soft else ""


def _check_amount(
    name: str, row: Masking, zeros: Zeros, units: tuple[tuple[str, Any], ...], penalty: float | None
) -> None:  # fmt: skip
    """Raise `OptionError` where it is not said how much goes."""
    if row.soft and penalty is None:
        raise OptionError(f"--learn-masks {name} needs --mask-penalty 100: it says how much goes")
    for kind, amount in units:
        if (amount == "auto") != row.soft or not amount:
            way = f"give auto: --mask-penalty says how much of the {kind} goes" if row.soft else "give a part, as 0.5"
            raise OptionError(f"{flag(kind)} {amount}: with --learn-masks {name} {way}")
    if row.soft or units:
        return
    if not zeros.asked or zeros.sparsity == 0:
        raise OptionError(f"--learn-masks {name}: say how much goes, with --sparsity 0.9, --pattern 2:4 or --heads 0.5")
    zeros.check(False)


__all__ = ["MASKING", "OPTIONS", "SCORES", "Learning", "Masked", "Masking", "learning_of"]
