"""All options together, and when one would have no effect."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from onnxprune import kernels
from onnxprune.allocation.allocators import ALLOCATORS
from onnxprune.allocation.budget import LATENCY, target_flags
from onnxprune.allocation.kinds import flag
from onnxprune.allocation.methods import CLUSTER, METHODS, VALUES, idle, needing_ours, of_zeros, stored_zeros, usual
from onnxprune.allocation.methods import kinds as kinds_of_methods
from onnxprune.allocation.options import Amount, Cut, by_mode, kinds_of
from onnxprune.calibration.options import Data
from onnxprune.calibration.presets import Preprocess
from onnxprune.errors import NothingAsked, OnnxPruneError, OptionError
from onnxprune.evaluation.measure import Check
from onnxprune.evaluation.metrics import MINIMIZED, Scoring, is_function
from onnxprune.formats.options import Store
from onnxprune.formats.patterns import NMPattern
from onnxprune.importance.score import CRITERIA, criterion_of
from onnxprune.importance.shown import needs_labels as no_labels
from onnxprune.latency.options import Speed
from onnxprune.options import Option, closest, declared, in_python, read_keywords, record
from onnxprune.recovery.recover import RECOVERIES, Recovering
from onnxprune.solvers.masks import needs_labels
from onnxprune.sparsity.options import Zeros
from onnxprune.sparsity.spec import Spec
from onnxprune.training.options import Training
from onnxprune.training.regularize import REGULARIZERS

PARTS: dict[str, type[Any]] = {
    "cut": Cut, "zeros": Zeros, "store": Store, "recovery": Recovering, "training": Training, "data": Data,
    "images": Preprocess, "scoring": Scoring, "check": Check, "speed": Speed,
}  # fmt: skip
OPTIONS: tuple[Option, ...] = tuple(o for part in PARTS.values() for o in declared(part))


@dataclass(frozen=True)
class Options:
    """All options of all stages; `given` are those that differ from their defaults, as they were read."""

    cut: Cut = field(default_factory=Cut)
    zeros: Zeros = field(default_factory=Zeros)
    store: Store = field(default_factory=Store)
    recovery: Recovering = field(default_factory=Recovering)
    training: Training = field(default_factory=Training)
    data: Data = field(default_factory=Data)
    images: Preprocess = field(default_factory=Preprocess)
    scoring: Scoring = field(default_factory=Scoring)
    check: Check = field(default_factory=Check)
    speed: Speed = field(default_factory=Speed)
    given: Mapping[str, Any] = field(default_factory=dict)

    @staticmethod
    def of(keywords: Mapping[str, Any]) -> Options:
        """Read and check options by keyword; raises `OptionError` for values and for combinations of which one would
        have no effect, in the words of the command line, and `TypeError` for an unknown keyword."""
        known = {o.name: o for o in OPTIONS}
        keywords = dict(keywords)
        images = keywords.pop("preprocess", None)
        if images is not None and not isinstance(images, Preprocess):
            raise OptionError(f"preprocess={images!r:.40}: expected onnxprune.Preprocess, or its fields as keywords")
        if images is not None:
            keywords = {f.name: getattr(images, f.name) for f in fields(images)} | keywords
        values: dict[str, Any] = {}
        for name, value in keywords.items():
            if name not in known:
                near = " or ".join(closest(name, OPTIONS))
                raise TypeError(f"prune() takes no option {name!r}" + (f"; did you mean {near}?" if near else ""))
            try:
                values[name] = known[name].read(value)
            except ValueError as e:
                raise OptionError(str(e)) from None
        parts = {
            part: cls(**{o.name: values[o.name] for o in declared(cls) if o.name in values})
            for part, cls in PARTS.items()
        }
        given = {
            o.name: values[o.name] for o in OPTIONS
            if o.name in values and (type(values[o.name]) is not type(o.default) or values[o.name] != o.default)
        }  # fmt: skip
        options = Options(**parts, given=given)
        options.check_all()
        return options

    @cached_property
    def _pairs(self) -> tuple[tuple[tuple[str, float], ...], tuple[tuple[str, float], ...]]:
        return by_mode(self.cut.pairs, bool(self.cut.amounts) or self.targeted, self.zeros.asked)

    @property
    def targeted(self) -> bool:
        """Whether how much goes is up to a target."""
        return bool(self.cut.targets) or self.scoring.max_drop is not None

    @property
    def minimized(self) -> str:
        """The budget that --max-drop makes as small as it can."""
        return self.scoring.minimize or MINIMIZED

    @property
    def limited(self) -> set[str]:
        """Budgets that are bounded: by targets, and by the search for --max-drop."""
        return {*self.cut.targets, *({self.minimized} if self.scoring.max_drop is not None else ())}

    @property
    def timed(self) -> bool:
        """Whether a search goes by the time that a run takes."""
        return LATENCY in self.limited

    @property
    def methods(self) -> tuple[str, ...]:
        """What a search may do, where that is not said kind by kind."""
        if self.cut.methods:
            return tuple(self.cut.methods)
        free = self.timed and not (self.cut.amounts or self.cut.pairs or self.zeros.asked)
        if not free:
            return ()
        rest = needing_ours(METHODS, elsewhere=self.speed.elsewhere)
        absent = self.cut.plain or self.speed.elsewhere or bool(kernels.available())
        return tuple(name for name in usual() if not (absent and name in rest))

    @property
    def weight_methods(self) -> list[str]:
        """The methods that change weights, of `latency.zeros.METHODS` and `CLUSTER`; those that nobody named are tried
        where there are data."""
        if not self.cut.methods and self.data.calibration is None:
            return []
        zeros = stored_zeros(self.methods, elsewhere=self.speed.elsewhere)
        return [*zeros, *[CLUSTER] * (CLUSTER in self.methods)]

    @property
    def searched(self) -> bool:
        """Whether ways to a target are made and compared."""
        return LATENCY in self.cut.targets or bool(self.cut.targets and self.weight_methods)

    @property
    def reported(self) -> set[str]:
        """Budgets whose figures are reported beside those that always are."""
        return {"energy", "memory"} & {*self.limited, *({"energy"} if self.check.energy else ())}

    @property
    def amounts(self) -> dict[str, Amount]:
        """Kind -> how much of it goes; under a target channels, where neither kinds nor methods are named."""
        if self.cut.amounts or not self.targeted:
            return self.cut.amounts
        kinds = kinds_of_methods(self.methods) if self.methods else ["channels"]
        blocks = self.cut.methods or self.data.calibration is not None  # which are weighed by what the outputs suffer
        return {kind: "auto" for kind in kinds if kind != "layers" or blocks}

    @property
    def cuts(self) -> tuple[tuple[str, float], ...]:
        """Glob and fraction of every `--ratio` that is for units, not for zeros."""
        return self._pairs[0]

    @property
    def structural(self) -> bool:
        """Whether units are to be removed, or a search chooses what is."""
        return bool(self.amounts or self.cuts or self.methods)

    @property
    def kinds(self) -> list[str]:
        """Kinds of which units are to be removed."""
        if self.methods and not self.amounts:  # zeros alone
            return []
        return kinds_of(self.amounts, self.cuts) if self.structural else []

    @property
    def sparse(self) -> bool:
        """Whether weights are to become zero."""
        return self.zeros.asked or bool(self._pairs[1])

    @property
    def spec(self) -> Spec:
        """What is asked of the weights."""
        return Spec(
            self.zeros, self.stored,
            self._pairs[1], (), None, self.recovery.zeros,
            None if self.data.cache is None else Path(self.data.cache), self.check.seed,
            self.cut.steps if self.sparse else 1, not self.structural,
            self.training.tune is not None,
        )  # fmt: skip

    @property
    def stored(self) -> Store:
        """How weights are stored; zeros that are clustered stay in a dense weight."""
        if self.store.cluster is None:
            return self.store
        return replace(self.store, format="dense" if self.sparse else None)

    @property
    def asked(self) -> dict[str, Any]:
        """What was given, as plain data."""
        return {name: record(value) for name, value in self.given.items()}

    @property
    def data_option(self) -> str:
        """The option that asks for calibration data, "" for none."""
        criterion = criterion_of(self.cut.criterion or "")
        if self.structural and criterion is not None and criterion.needs_data:
            return f"--importance {self.cut.criterion}"
        if self.structural and self.cut.allocate is not None and ALLOCATORS[self.cut.allocate].needs_data:
            return f"--allocate {self.cut.allocate}"
        if self.weight_methods:
            return f"--methods {','.join(name for name in self.methods if not METHODS[name].kind)}"
        recovery = self.recovery.needs_data(cuts=self.structural, zeros=self.sparse)
        distilled = self.training.tune is not None and self.training.train is None
        tune = f"--tune {self.training.tune}" if distilled else ""
        return recovery or (self.zeros.needs_data() if self.sparse else "") or tune

    @property
    def labels_option(self) -> str:
        """The option that asks for labels of --train, "" for none."""
        criterion = criterion_of(self.cut.criterion or "")
        if self.structural and criterion is not None and criterion.labels:
            return f"--importance {self.cut.criterion}"
        return f"--solver {self.zeros.solver}" if self.sparse and needs_labels(self.zeros.solver or "") else ""

    @property
    def goes_by_labels(self) -> bool:
        """Whether something other than tuning goes by the labels of --train."""
        fisher = (self.structural and self.cut.criterion == "fisher") or (self.sparse and self.zeros.solver == "fisher")
        return fisher or bool(self.labels_option)

    @property
    def may_make_up(self) -> bool:
        """Whether samples may be made up, where images go in: nothing that was said forbids the work."""
        chosen = self.recovery.recover
        quick = chosen is not None and not RECOVERIES[chosen].needs_data and not self.data_option
        return self.structural and not quick

    def check_all(self) -> None:
        """Raises `OptionError` where nothing is asked for, or an option would have no effect."""
        known = {o.name: o for o in OPTIONS}
        something = self.structural or self.spec.asked or self.store.cluster is not None or self.cut.plan is not None
        if not something:
            raise NothingAsked(
                "nothing to do: say how much with --channels 0.3, --heads 0.25, --layers 0.1, --target-macs 70%, "
                "--max-drop 0.01, --sparsity 0.8, --pattern 2:4, --cluster 16, --format csr, --ratio or --plan"
            )
        for name, value in self.given.items():
            for need in known[name].needs:
                if not CONDITIONS[need].holds(self):
                    raise OptionError(without_effect(known[name], value, need))
        self.cut.check()
        self.check_methods()
        self.zeros.check(bool(self._pairs[1]))
        self.store.check(self.zeros.shape, zeros=self.sparse)
        self.data.check(self.check.threads, levels=_levels(self))
        if self.amounts.get("layers") == "auto" and not self.targeted:
            raise OptionError(f"--layers auto needs a target: {target_flags()}")
        if self.cut.allow_io_change and self.scoring.evaluate is not None and not is_function(self.scoring.evaluate):
            raise OptionError(
                "--evaluate scores models that take the same inputs; with --allow-io-change give module:function"
            )
        self.recovery.check(cuts=self.structural)
        if self.labels_option and self.training.train is None:
            raise OptionError(no_labels(self.labels_option))
        self.check_tuning()
        if self.check.dry_run and self.scoring.evaluate is not None and self.scoring.max_drop is None:
            raise OptionError("--evaluate has no effect here: --dry-run makes no model that could be scored")

    def check_methods(self) -> None:
        """Raises `OptionError` for methods that would have no effect, or cannot run."""
        named = tuple(self.cut.methods)
        zeros, typed = of_zeros(named), f"--methods {','.join(named)}"
        if named and self.cut.amounts:
            kinds = " ".join(flag(kind) for kind in self.cut.amounts)
            raise OptionError(f"{typed} says what may go, and {kinds} as well; leave one of them out")
        if LATENCY in self.cut.targets and not self.check.measure:
            raise OptionError(
                f"--target-latency {self.cut.targets[LATENCY]} is held as measured, and --no-latency measures nothing; "
                "leave one of them out"
            )
        if (self.timed or self.searched) and self.cut.steps > 1:
            what = "a time is" if self.timed else f"what {typed} chooses is"
            raise OptionError(f"--steps {self.cut.steps}: {what} reached in one step; leave it out")
        if useless := idle(named, self.limited):
            serves = sorted(set.intersection(*(set(METHODS[name].serves) for name in useless)))
            raise OptionError(
                f"{typed}: {', '.join(useless)} can make less of {', '.join(serves)} alone; give "
                f"--target-{serves[0]} 60%"
            )
        if zeros and self.zeros.asked:
            raise OptionError(f"{typed} chooses zeros, and so do --sparsity, --pattern, --quality; leave one out")
        if zeros and self.store.format is not None:
            raise OptionError(
                f"{typed} stores zeros as it pays, and --format {self.store.format} says how; leave it out"
            )
        if CLUSTER in named and self.store.cluster is not None:
            raise OptionError(f"{typed} chooses codebooks, and so does --cluster {self.store.cluster}; leave one out")
        ours = needing_ours(named, elsewhere=self.speed.elsewhere)
        if VALUES in named and ours == [VALUES]:
            raise OptionError(f"{typed}: values are stored in sparse operators alone; add unstructured, nm or block")
        if ours and self.cut.plain:
            raise OptionError(f"{typed}: {', '.join(ours)} need our operators, which --plain rules out")
        if ours and self.speed.elsewhere:
            raise OptionError(
                f"{typed}: which layers our operators make faster is measured, and --elsewhere says that this machine "
                f"does not count; leave {', '.join(ours)} out"
            )
        if ours and kernels.available():
            raise OptionError(f"{typed}: sparse kernels cannot run here: {kernels.available()}")

    def check_tuning(self) -> None:
        """Raises `OptionError` for what tuning cannot go with."""
        named = self.data.augment if isinstance(self.data.augment, tuple) else ()
        if self.training.tune is None:
            if named and self.cut.plan is None:
                raise OptionError(
                    f"--augment {','.join(named)} is for --tune 10; --augment alone crops and flips calibration images"
                )
            return
        typed = f"--tune {self.training.tune}"
        if self.check.dry_run:
            raise OptionError(f"{typed} has no effect: --dry-run makes no model that could be tuned")
        name = self.training.regularize
        if name is not None and self.cut.steps > 1:
            raise OptionError(
                f"--regularize {name} goes before one cut; leave out --steps {self.cut.steps}, or --regularize"
            )
        if name is not None and REGULARIZERS[name].chosen and self.scoring.max_drop is not None:
            raise OptionError(
                f"--regularize {name} pulls at units that are chosen first, and --max-drop chooses again and again; "
                f"say how much goes with --channels 0.3 or --target-macs 70%, or choose another regularizer"
            )


@dataclass(frozen=True)
class Condition:
    """Without which an option has no effect. holds: for these options; way: how to make it hold."""

    holds: Callable[[Options], bool]
    way: str


def _scored(o: Options) -> bool:
    return o.scoring.evaluate is not None and not is_function(o.scoring.evaluate)


def _units(o: Options) -> bool:
    return any(kind != "layers" for kind in o.kinds)


def _data(o: Options) -> bool:
    return o.data.calibration is not None or o.may_make_up or o.cut.plan is not None


def _levels(o: Options) -> bool:
    """Whether a level database is made."""
    return o.targeted and _data(o) and (o.cut.allocate is None or ALLOCATORS[o.cut.allocate].at_outputs)


SOMETHING = "something to remove: --channels 0.3, --heads 0.25, --layers 0.1, --target-macs 70% or --ratio"
BLOCK_CRITERIA = [name for name, row in CRITERIA.items() if row.blocks]
ZEROS = "zeros: --sparsity 0.8, --pattern 2:4 or --quality 0.5"
CONDITIONS: dict[str, Condition] = {
    "no plan": Condition(
        lambda o: o.cut.plan is None,
        "has no effect: --plan replays what was chosen before, what is kept, which weights are zero and how they are "
        "stored; leave one of the two out",
    ),
    "a plan": Condition(lambda o: o.cut.plan is not None, "needs --plan FILE"),
    "a target": Condition(
        lambda o: o.targeted, f"says what a target may be reached by: it needs {target_flags()}, or --max-drop"
    ),
    "a search over methods": Condition(
        lambda o: o.timed and not (o.cut.amounts or o.cut.pairs or o.zeros.asked),
        "is for a search over methods: it needs --target-latency 60%, and no kind by itself",
    ),
    "a time to hold": Condition(lambda o: o.timed, "needs --target-latency 60%"),
    "a latency table": Condition(lambda o: o.speed.latency_table is not None, "needs --latency-table FILE"),
    "a bound": Condition(lambda o: o.scoring.max_drop is not None, "needs --max-drop 0.01 --evaluate SRC"),
    "energy": Condition(lambda o: "energy" in o.reported, "needs --energy, or --target-energy 70%"),
    "no energy target": Condition(
        lambda o: "energy" not in o.limited, "has no effect: --target-energy and --minimize energy report it as it is"
    ),
    "layers": Condition(lambda o: "layers" in o.kinds, "needs --layers 0.1"),
    "a cut": Condition(lambda o: o.structural, f"needs {SOMETHING}"),
    "a cut or zeros": Condition(lambda o: o.structural or o.spec.asked, f"needs {SOMETHING}, or {ZEROS}"),
    "a cut, zeros or clusters": Condition(
        lambda o: o.structural or o.spec.asked or o.store.cluster is not None,
        f"needs {SOMETHING}, {ZEROS}, or --cluster 16",
    ),
    "a cut, or zeros by data or tuning": Condition(
        lambda o: o.structural or (o.sparse and (o.data.calibration is not None or o.training.tune is not None)),
        f"needs {SOMETHING}, or {ZEROS}, solved for with --calibration SRC or trained between with --tune 10",
    ),
    "units to choose": Condition(_units, "needs units to choose from: --channels 0.3, --heads 0.25 or a target; "
                                         "blocks go by what they change in the stream"),
    "units or blocks to score": Condition(
        lambda o: _units(o) or (o.structural and (o.cut.custom or o.cut.criterion in BLOCK_CRITERIA)),
        "needs units to score: --channels 0.3, --heads 0.25 or a target; blocks go by what they change in the "
        f"stream, or by {' or '.join(BLOCK_CRITERIA)}",
    ),
    "zeros": Condition(lambda o: o.sparse, f"needs {ZEROS}"),
    "tuning": Condition(lambda o: o.training.tune is not None, "needs --tune 10"),
    "tuning or a plan": Condition(
        lambda o: o.training.tune is not None or o.cut.plan is not None or o.goes_by_labels,
        "needs --tune 10, --importance taylor or another that goes by labels, or a --plan that tunes",
    ),
    "training samples": Condition(lambda o: o.training.train is not None, "needs --train SRC"),
    "a regularizer": Condition(lambda o: o.training.regularize is not None, "needs --regularize bn, or another"),
    "sgd": Condition(lambda o: o.training.optimizer == "sgd", "needs --optimizer sgd"),
    "an N:M pattern": Condition(
        lambda o: isinstance(o.zeros.shape, NMPattern),
        "needs --pattern N:M",
    ),
    "zeros or a format": Condition(
        lambda o: o.sparse or o.store.format is not None, f"needs {ZEROS}, or --format csr for those that are there"
    ),
    "a cluster": Condition(
        lambda o: o.store.cluster is not None or CLUSTER in o.cut.methods, "needs --cluster K, or --methods cluster"
    ),
    "data": Condition(_data, "needs --calibration SRC"),
    "data or training samples": Condition(
        lambda o: _data(o) or o.training.train is not None, "needs --calibration SRC, or --tune 10 with --train SRC"
    ),
    "data or samples to score": Condition(
        lambda o: _data(o) or _scored(o) or o.training.train is not None,
        "needs --calibration SRC or --evaluate SRC, with pictures",
    ),
    "samples to score": Condition(_scored, "needs --evaluate SRC, samples and no function"),
    "samples or a function to score": Condition(
        lambda o: o.scoring.evaluate is not None, "needs --evaluate SRC: labelled samples, or module:function"
    ),
    "levels, zeros by data or tuning": Condition(
        lambda o: o.training.tune is not None
        or _levels(o)
        or o.timed
        or (o.sparse and o.data.calibration is not None)
        or o.cut.plan is not None,
        "has no effect here: it keeps level databases (a target with --allocate kl and --calibration SRC), sparse "
        "layers that were solved for (--sparsity 0.8 with --calibration SRC), times (--target-latency 60%) and the "
        "state of --tune 10",
    ),
}  # fmt: skip


def without_effect(option: Option, value: Any, need: str) -> str:
    """The line that refuses an option."""
    return f"{option.as_typed(value)} {CONDITIONS[need].way}"


@contextmanager
def called(
    function: str, known: Sequence[Option], given: Mapping[str, Any]
) -> Iterator[tuple[dict[str, Any], Preprocess]]:
    """Values of all options of a command that is called from Python, and those of images among them.

    Errors, here and inside, are in a caller's words; `TypeError` for a keyword that the function does not take.
    """
    try:
        try:
            read = read_keywords(function, known, given)
        except ValueError as e:
            raise OptionError(str(e)) from None
        values = {o.name: o.default for o in known} | read
        yield values, Preprocess(**{f.name: values[f.name] for f in fields(Preprocess)})
    except OnnxPruneError as e:
        raise type(e)(in_python(str(e), known)) from e
