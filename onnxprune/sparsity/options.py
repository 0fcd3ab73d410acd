"""What the user says of zeros, and of how weights are stored."""

from __future__ import annotations

from dataclasses import dataclass

from onnxprune.errors import OptionError
from onnxprune.formats.patterns import BlockPattern, NMPattern, Pattern, parse_pattern
from onnxprune.options import SPARSE, choice, number, option, switch
from onnxprune.solvers.masks import SOLVERS, needs_data
from onnxprune.sparsity.allocate import ZERO_ALLOCATORS
from onnxprune.sparsity.grow import GROWTH, GROWTHS

BEST_SOLVER, PLAIN_SOLVER = "admm", "magnitude"  # the solver with data (tools/bench_solvers.py), and without
FREE_SOLVERS = [name for name, row in SOLVERS.items() if not row.needs_data]
BEST_ALLOCATION, EVEN_ALLOCATION = "error", "uniform"  # of zeros, with data and without


def _pattern(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError("expected N:M, as 2:4, block:RxC or column")
    try:
        return str(parse_pattern(value))
    except OptionError as e:
        raise ValueError(str(e).partition(": ")[2]) from None


@dataclass(frozen=True)
class Zeros:
    """Which weights become zero."""

    sparsity: float | str | None = option(
        None, number("a fraction in [0, 1); 0.8 or 80% makes 80% of the weights zero", 0, 1, below=True), panel=SPARSE,
        metavar="R", unit="fraction made zero", short="-s", needs=("no plan",), main=True,
        help="Fraction of the weights of products (MatMul, Gemm, convolutions, recurrent layers) that becomes zero, "
        "after --channels; of those that --format can store: dense and sparse-initializer store all.",
    )  # fmt: skip
    pattern: str | None = option(
        None, _pattern, panel=SPARSE, metavar="N:M|block:RxC|column", needs=("no plan",), main=True,
        help="2:4 keeps 2 of every 4 consecutive weights along the reduction (of Conv: input channels), as TensorRT "
        "wants them; N counts what is kept, where other texts may count what goes. With --sparsity: block:RxC, tiles "
        "of R outputs by C inputs go as a whole; column, inputs of a layer (of Conv: at a kernel position) go for all "
        "its outputs, and dense kernels do less.",
    )  # fmt: skip
    quality: float | str | None = option(
        None, number("a number of standard deviations above 0, as 0.5", 0, 100, above=True, below=True), panel=SPARSE,
        metavar="Q", unit="standard deviations", needs=("no plan",),
        help="Instead: weights below Q standard deviations of their layer become zero.",
    )  # fmt: skip
    permute: bool = option(
        True, switch, panel=SPARSE, needs=("no plan", "an N:M pattern"),
        help="With --pattern N:M, reorder channels through the whole graph so that less is lost.",
    )  # fmt: skip
    solver: str | None = option(
        None, choice({name: row.help for name, row in SOLVERS.items()}), panel=SPARSE, metavar="NAME",
        otherwise=f"{BEST_SOLVER} with --calibration, {PLAIN_SOLVER} without", needs=("no plan", "zeros"),
        help=f"Which weights stay, and with which values; all but {' and '.join(FREE_SOLVERS)} need --calibration; "
        "list explains them.",
    )  # fmt: skip
    sparsity_allocate: str | None = option(
        None, choice({name: row.help for name, row in ZERO_ALLOCATORS.items()}), panel=SPARSE, metavar="NAME",
        needs=("no plan", "zeros"), otherwise=f"{BEST_ALLOCATION} with --calibration, {EVEN_ALLOCATION} without",
        help="Where the zeros go; list explains them.",
    )  # fmt: skip

    sparsity_schedule: str | None = option(
        None, choice({name: row.help for name, row in GROWTHS.items()}), panel=SPARSE, metavar="NAME",
        otherwise=GROWTH, needs=("no plan", "zeros"), help="How zeros grow in --steps.",
    )  # fmt: skip

    @property
    def asked(self) -> bool:
        """Whether weights are to become zero by an option of this stage."""
        return any(x is not None for x in (self.sparsity, self.pattern, self.quality))

    @property
    def shape(self) -> Pattern | None:
        """The pattern."""
        return None if self.pattern is None else parse_pattern(self.pattern)

    def needs_data(self) -> str:
        """The option that asks for calibration data, "" for none."""
        if needs_data(self.solver or PLAIN_SOLVER):
            return f"--solver {self.solver}"
        needed = ZERO_ALLOCATORS[self.sparsity_allocate or EVEN_ALLOCATION].needs_data
        return f"--sparsity-allocate {self.sparsity_allocate}" if needed else ""

    def check(self, ratios: bool) -> None:
        """Raises `OptionError` for what cannot be meant; ratios: whether --ratio names layers."""
        pattern = self.shape
        if self.quality is not None and (self.sparsity is not None or self.pattern is not None or ratios):
            raise OptionError(
                "--quality sets a threshold for each layer; leave out --sparsity, --pattern and --ratio sparsity:..., "
                "and use --ignore for layers that stay dense"
            )
        spread = not ZERO_ALLOCATORS[self.sparsity_allocate or EVEN_ALLOCATION].even
        if spread and (isinstance(pattern, NMPattern) or self.quality is not None):
            raise OptionError(
                f"--sparsity-allocate {self.sparsity_allocate} spreads --sparsity over the layers; leave it out with "
                f"{'--pattern N:M' if pattern is not None else '--quality'}"
            )
        if isinstance(pattern, NMPattern):
            if ratios or (self.sparsity is not None and abs(float(self.sparsity) - pattern.ratio) > 1e-9):
                raise OptionError(
                    f"--pattern {pattern} makes {pattern.ratio:.0%} of the weights zero; leave out --sparsity and "
                    "--ratio sparsity:..., and use --ignore for layers that stay dense"
                )
        elif pattern is not None and self.sparsity is None and not ratios:
            raise OptionError(f"--pattern {pattern} says where zeros lie; say how many with --sparsity 0.7")
        if isinstance(pattern, BlockPattern) and not SOLVERS[self.solver or PLAIN_SOLVER].tiles:
            raise OptionError(
                f"--solver {self.solver} removes weights one by one; with --pattern {pattern} choose {BEST_SOLVER}"
            )
