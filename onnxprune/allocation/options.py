"""What the user says of what goes, and how it is chosen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from onnxprune.allocation.allocators import ALLOCATORS
from onnxprune.allocation.budget import BUDGETS
from onnxprune.allocation.kinds import PRUNABLE, split_kind
from onnxprune.allocation.methods import METHODS
from onnxprune.allocation.recipe import DEFAULTS, GIVEN, UNTARGETED
from onnxprune.allocation.select import MAX_RATIO, ROUND_TO
from onnxprune.errors import OptionError
from onnxprune.importance.score import CRITERIA, Scorer
from onnxprune.importance.weights import exponent
from onnxprune.options import (
    HOW,
    MAX_STEPS,
    WHAT,
    amount,
    choice,
    each,
    integer,
    listed,
    number,
    of_total,
    option,
    or_function,
    pair,
    switch,
    target,
    text,
)
from onnxprune.options import path as path_
from onnxprune.sparsity.amounts import ZEROS

Target = float | str  # 0.7, "70%", "300M"
Amount = float | str | Literal["auto"]
Amounts = Mapping[str, Amount]  # kind -> how much of it goes

_FRACTION = "a fraction in [0, 1) that is removed, as 0.3 or 30%, or auto"
_LEFT = "what is left, a fraction (0.7, 70%) or a number ({})"


def _kind(help: str, *, short: str = "", main: bool = False) -> Any:
    return option(
        None, amount(_FRACTION), panel=WHAT, metavar="R|auto", unit="fraction removed", needs=("no plan",),
        help=help, short=short, main=main,
    )  # fmt: skip


def _target(budget: str, *, effect: str = "") -> Any:
    row = BUDGETS[budget]
    return option(
        None, target(_LEFT.format(row.example), row.units), panel=WHAT, metavar="T",
        unit=f"fraction or {row.unit} left", needs=("no plan",), help=row.help, main=row.main, effect=effect,
    )  # fmt: skip


def _importance(value: Any) -> Any:
    """A criterion by its name, `lp:` with an exponent."""
    if isinstance(value, str) and value.strip().lower().startswith("lp:"):
        try:
            return f"lp:{exponent(value.strip().lower()):.12g}"
        except ValueError:
            raise ValueError("expected a number above 0 behind lp:, as lp:0.5") from None
    return _named(value)


_named = choice({name: row.help for name, row in CRITERIA.items()})
_importance.choices = _named.choices  # type: ignore[attr-defined]


def _plan(value: Any) -> Any:
    """A path, or a `Plan` (which is declared further up)."""
    return path_(value) if isinstance(value, str) or not hasattr(value, "keep") else value


@dataclass(frozen=True)
class Cut:
    """What is removed, and how it is chosen."""

    channels: Amount | None = _kind(
        "Fraction of the units of every group that is removed: channels, filters, neurons, recurrent units. auto: "
        "whatever a target needs.",
        short="-c", main=True,
    )  # fmt: skip
    heads: Amount | None = _kind(
        "Attention heads, through q, k, v and the output; shared keys and values go with their queries.", main=True
    )
    head_dim: Amount | None = _kind(
        "Dimensions inside of heads: q with k, v with the output projection; rotary pairs together."
    )
    hidden: Amount | None = _kind(
        "Width of residual streams that are normalised (transformers, Swin, ConvNeXt), through everything."
    )
    layers: Amount | None = _kind(
        "Residual blocks, of transformers and of CNNs: those that change the stream least.", main=True
    )
    experts: Amount | None = _kind("Experts of mixtures of experts.")
    whole_layers: bool = option(
        False, switch, panel=WHAT, needs=("no plan", "layers"),
        help="--layers: attention goes with the feed-forward block after it.",
    )  # fmt: skip
    allow_io_change: bool = option(
        False, switch, panel=WHAT, needs=("no plan", "a cut"),
        help="Inputs and outputs that hold heads (key-value caches, masks per head) may shrink with them.",
    )  # fmt: skip
    ratio: Mapping[str, float | str] | tuple[tuple[str, float | str], ...] = option(
        (), each(pair("[KIND:]GLOB=R, for instance 'layer1*=0.5'",
                      number("a fraction in [0, 1) after the glob, for instance 'layer1*=0.5'", 0, 1, below=True))),
        panel=WHAT, metavar="[KIND:]GLOB=R", unit="fraction removed", needs=("no plan",),
        help="Fraction removed from the groups, or made zero in the layers, whose name, node, weight or output "
        "matches. Repeatable, last match wins; without --channels, --heads, ... only what matches is pruned. KIND "
        "(channels, heads, head_dim, hidden, layers, experts, sparsity) says which, where the glob does not.",
    )  # fmt: skip
    ignore: tuple[str, ...] | list[str] | str = option(
        (), each(text), panel=WHAT, metavar="GLOB", needs=("no plan", "a cut or zeros"),
        help="Leave matching groups or layers alone. Repeatable.",
    )  # fmt: skip
    target_macs: Target | None = _target("macs")
    target_params: Target | None = _target("params")
    target_bytes: Target | None = _target("bytes")
    target_latency: Target | None = _target("latency", effect="exempt: of times, which differ")
    target_energy: Target | None = _target("energy")
    target_memory: Target | None = _target("memory")
    methods: tuple[str, ...] | list[str] | str = option(
        (), listed(choice({name: row.help for name, row in METHODS.items()})), panel=WHAT, metavar="NAME,...",
        needs=("no plan", "a target"), otherwise="all that can run here, with --target-latency",
        help="What a target may be reached by: " + "; ".join(f"{n}: {row.help}" for n, row in METHODS.items()) + ".",
    )  # fmt: skip
    plain: bool = option(
        False, switch, panel=WHAT, needs=("a search over methods",),
        help="Nothing that needs our operators in the file: it runs wherever ONNX does.",
    )  # fmt: skip
    plan: Any = option(
        None, _plan, panel=WHAT, metavar="FILE",
        help="Replay a plan that --save-plan wrote: what is kept, the zeros and their storage come from it.",
    )  # fmt: skip
    plan_for_another_model: bool = option(
        False, switch, panel=WHAT, needs=("a plan",),
        help="--plan may be one that was made for another model of the same structure.",
    )  # fmt: skip
    importance: str | Scorer | None = option(
        None, or_function(_importance), panel=HOW, metavar="NAME",
        otherwise=f"{DEFAULTS['real'].importance} with data, {DEFAULTS[''].importance} without",
        needs=("no plan", "units or blocks to score"),
        help="What makes a unit worth keeping; list explains them. In Python also a function: group -> scores.",
    )  # fmt: skip
    scores: Mapping[str, Any] | str | Path | None = option(
        None, lambda v: v if isinstance(v, Mapping) else path_(v), panel=HOW, metavar="FILE.npz",
        needs=("no plan", "units or blocks to score"),
        help="Instead of --importance: an array of scores per group, by the group's name; larger ones stay.",
    )  # fmt: skip
    allocate: str | None = option(
        None, choice({name: row.help for name, row in ALLOCATORS.items()}), panel=HOW, metavar="NAME",
        otherwise=f"{DEFAULTS['real'].allocate} with data and a target, {UNTARGETED} else",
        needs=("no plan", "units to choose"),
        help="; ".join(f"{name}: {row.help}" for name, row in ALLOCATORS.items()) + ".",
    )  # fmt: skip
    round_to: int = option(
        ROUND_TO, integer("a whole number, 1 (off) or more", 1), panel=HOW, metavar="N", unit="units",
        needs=("no plan", "units to choose"), help="Widths become multiples of N; 1 is exact.",
    )  # fmt: skip
    max_ratio: float | str | None = option(
        None, number("a fraction in (0, 1), as 0.8 or 80%", 0, 1, above=True, below=True), panel=HOW, metavar="R",
        unit="fraction removed", otherwise=f"{MAX_RATIO} for global and targets", needs=("no plan", "units to choose"),
        help="Most that is removed of any group.",
    )  # fmt: skip
    steps: int = option(
        1, integer(f"a whole number from 1 to {MAX_STEPS}", 1, MAX_STEPS), panel=HOW, metavar="N",
        needs=("no plan", "a cut, or zeros by data or tuning"),
        help="Cut in N steps, scoring what is left again after each; zeros in N growing steps.",
    )  # fmt: skip

    @cached_property
    def pairs(self) -> tuple[tuple[str, float], ...]:
        """Glob and fraction of every `--ratio`."""
        return tuple(self.ratio)  # type: ignore[arg-type]

    @cached_property
    def amounts(self) -> dict[str, Amount]:
        """Kind -> how much of it goes, of the kinds that are named."""
        given = {kind: getattr(self, kind) for kind in PRUNABLE}
        return {kind: value for kind, value in given.items() if value is not None}

    @cached_property
    def targets(self) -> dict[str, Target]:
        """Budget -> what is left of it, as far as targets are given."""
        given = {name: getattr(self, f"target_{name}") for name in BUDGETS}
        return {name: value for name, value in given.items() if value is not None}

    @property
    def criterion(self) -> str | None:
        """The criterion that is named; `GIVEN` where importance or scores are the caller's own."""
        if self.scores is not None or callable(self.importance):
            return GIVEN
        return self.importance

    @property
    def custom(self) -> bool:
        """Whether importance or scores are the caller's own."""
        return self.criterion == GIVEN

    def check(self) -> None:
        """Raises `OptionError` for what cannot be meant together."""
        if self.importance is not None and self.scores is not None:
            raise OptionError("--importance and --scores both say what a unit is worth; leave one of them out")


def kinds_of(amounts: Amounts, pairs: tuple[tuple[str, float], ...]) -> list[str]:
    """The kinds that options and ratios are about; channels where none is named."""
    named = {*amounts, *(split_kind(glob)[0] for glob, _ in pairs)} - {""}
    return [k for k in PRUNABLE if k in named] or ["channels"]


def by_mode(
    pairs: tuple[tuple[str, float], ...], structural: bool, sparse: bool
) -> tuple[tuple[tuple[str, float], ...], tuple[tuple[str, float], ...]]:
    """Ratios for units and for zeros; without a prefix, those of the one mode that is on."""
    named = [glob.startswith(ZEROS) for glob, _ in pairs]
    removed = structural or any(split_kind(glob)[0] for glob, _ in pairs)
    zeroed = sparse or any(named)
    cuts, zeros = [], []
    for (glob, r), of_zeros in zip(pairs, named, strict=True):
        plain = not of_zeros and not split_kind(glob)[0]
        if plain and removed and zeroed:
            raise OptionError(
                f"--ratio {glob}={r:g}: channels are removed and weights made sparse; say which with "
                f"channels:{glob} or sparsity:{glob}"
            )
        if of_zeros or (plain and zeroed):
            zeros.append((glob, r))
        else:
            cuts.append((glob, r))
    return tuple(cuts), tuple(zeros)


def limit_of(budget: str, value: Target, total: float) -> float:
    """`0.7`, `70%` (of what there is) or `300M`, `1.2G` (absolute) as an absolute number; raises `OptionError`."""
    row = BUDGETS[budget]
    limit = of_total(value, total, row.units)
    if not 0 < limit <= total:
        raise OptionError(
            f"--target-{budget} {value}: must be above 0 and at most what the model has now ({total:.4g} {row.unit})"
        )
    return limit


__all__ = ["Amount", "Amounts", "Cut", "Target", "by_mode", "kinds_of", "limit_of"]
