"""How an option is declared: once, as a field of the frozen dataclass of the stage that it belongs to.

    @dataclass(frozen=True)
    class Recovering:
        recover: str | None = option(None, choice(ROWS), panel=HOW, help="How the loss is made up for.")

From the field come the flag of the command line, the keyword in Python, the checks, the record of what was asked, and
docs/options.md. Values arrive as words (command line) or as Python objects; `parse` takes both and raises `ValueError`
with what it expected. Messages name options as the command line does; `in_python` puts them into Python's words.
"""

from __future__ import annotations

import dataclasses
import math
import operator
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any

WHAT, HOW, CHECK, OUTPUT = "What to remove", "How to choose", "Checks and measurement", "Files and output"
SPARSE, STORE, DATA, IMAGES = "Sparse weights", "How weights are stored", "Calibration and evaluation", "Images"
TUNE = "Tuning"
MAX_STEPS = 1000  # of an option or a plan; more would be a mistake or worse
PANELS = (WHAT, HOW, SPARSE, STORE, TUNE, DATA, IMAGES, CHECK, OUTPUT)

Parse = Callable[[Any], Any]


@dataclass(frozen=True)
class Option:
    """One option.

    name: the keyword; flag: of the command line, "" for an option of Python alone; off: the flag that says no;
    short: one letter; metavar, unit: of its value; type: as annotated; otherwise: what None stands for;
    choices: what it may be; needs: names of conditions that must hold (`CONDITIONS` of pipeline/options.py);
    many: repeatable; main: on the first screen of help; effect: "" where it changes what is written or reported, else
    why it need not; alone: the word that a flag without a value stands for, "" where it must have one.
    """

    name: str
    default: Any
    parse: Parse
    panel: str
    help: str
    type: str
    flag: str
    off: str = ""
    short: str = ""
    metavar: str = ""
    unit: str = ""
    otherwise: str = ""
    choices: Mapping[str, str] = dataclasses.field(default_factory=dict)
    needs: tuple[str, ...] = ()
    many: bool = False
    main: bool = False
    effect: str = ""
    alone: str = ""

    @property
    def switch(self) -> bool:
        """Whether it is on or off and takes no value."""
        return isinstance(self.default, bool) and not self.alone

    def as_typed(self, value: Any) -> str:
        """The option with its value as typed on the command line."""
        if self.switch:
            return self.flag if value or not self.off else self.off
        if self.alone and value is True:
            return self.flag
        return f"{self.flag or self.name} {shown(value)}"

    def read(self, value: Any) -> Any:
        """The value that was given, checked; raises `ValueError` with a line that names the option."""
        if value is None or (self.many and not isinstance(value, str) and not value):
            return self.default
        try:
            return self.parse(value)
        except ValueError as e:
            raise ValueError(f"{self.as_typed(value)}: {e}") from None


def option(
    default: Any,
    parse: Parse,
    *,
    panel: str,
    help: str,
    flag: str | None = None,
    off: str = "",
    short: str = "",
    metavar: str = "",
    unit: str = "",
    otherwise: str = "",
    needs: Sequence[str] = (),
    main: bool = False,
    effect: str = "",
    alone: str = "",
) -> Any:
    """A field of an options dataclass; see `Option`. flag: by default the name with dashes; "" for Python alone."""
    declared = {
        "parse": parse, "panel": panel, "help": help, "flag": flag, "off": off, "short": short, "metavar": metavar,
        "unit": unit, "otherwise": otherwise, "needs": tuple(needs), "main": main, "effect": effect,
        "alone": alone,
        "choices": getattr(parse, "choices", {}), "many": getattr(parse, "many", False),
    }  # fmt: skip
    return dataclasses.field(default=default, metadata={"option": declared})


def declared(cls: type[Any]) -> tuple[Option, ...]:
    """The options of a stage's dataclass, in the order of its fields; those that are not declared are left out."""
    options = []
    for f in dataclasses.fields(cls):
        if "option" in f.metadata:
            d = dict(f.metadata["option"])
            d["flag"] = f"--{f.name.replace('_', '-')}" if d["flag"] is None else d["flag"]
            d["off"] = d["off"] or (f"--no-{f.name.replace('_', '-')}" if f.default is True else "")
            options.append(Option(name=f.name, default=f.default, type=str(f.type), **d))
    return tuple(options)


# values


def text(value: Any) -> str:
    """Any text; raises `ValueError` for what is none."""
    if not isinstance(value, str):
        raise ValueError(f"expected a text, found {type(value).__name__}")
    return value


def path(value: Any) -> Path:
    """A path; whether something lies there is for those who open it."""
    try:
        return Path(value)
    except TypeError:
        raise ValueError(f"expected a path, found {type(value).__name__}") from None


def anything(value: Any) -> Any:
    """The value as it is, for a stage that reads it itself."""
    return value


def switch(value: Any) -> bool:
    """True or False; raises `ValueError` for anything else."""
    if not isinstance(value, bool):
        raise ValueError(f"expected True or False, found {value!r:.40}")
    return value


UNITS = {"": 1.0, "K": 1e3, "M": 1e6, "G": 1e9, "B": 1e9, "KB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12}
NUMBER = re.compile(r"([+-]?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?|nan|inf)\s*(%|[a-z]*)", re.IGNORECASE)


def quantity(value: Any, units: Mapping[str, float] = UNITS) -> tuple[float, str]:
    """`0.7` is (0.7, ""), `70%` (0.7, "%"), `5MB` (5e6, "MB"), `1.2G` (1.2e9, "G"); raises `ValueError`.

    units: their sizes, by their names in capitals.
    """
    if isinstance(value, Real) and not isinstance(value, bool):
        return float(value), ""
    match = NUMBER.fullmatch(value.strip()) if isinstance(value, str) else None
    unit = match.group(2).upper() if match else "?"
    if match is None or (unit and unit != "%" and unit not in units):
        raise ValueError("no number")
    factor = 0.01 if unit == "%" else units.get(unit, 1.0)
    return float(match.group(1)) * factor, unit


def number(
    expected: str, low: float = -math.inf, high: float = math.inf, *, above: bool = False, below: bool = False
) -> Parse:
    """A number from `low` (above: beyond it) to `high` (below: less than it); percent signs are understood."""

    def parse(value: Any) -> float:
        try:
            x, unit = quantity(value)
        except ValueError:
            raise ValueError(f"expected {expected}") from None
        inside = (low < x if above else low <= x) and (x < high if below else x <= high)
        if not inside or unit not in ("", "%") or not math.isfinite(x):
            raise ValueError(f"expected {expected}")
        return x

    return parse


def integer(expected: str, low: int, high: int | None = None) -> Parse:
    """A whole number from `low` to `high`."""

    def parse(value: Any) -> int:
        try:
            x = int(value) if isinstance(value, str) else operator.index(value)
        except (TypeError, ValueError):
            raise ValueError(f"expected {expected}") from None
        if isinstance(value, bool) or x < low or (high is not None and x > high):
            raise ValueError(f"expected {expected}")
        return x

    return parse


def amount(expected: str) -> Parse:
    """A fraction in [0, 1), as 0.3 or 30%, or the word auto."""
    fraction = number(expected, 0, 1, below=True)

    def parse(value: Any) -> Any:
        return "auto" if isinstance(value, str) and value.strip().lower() == "auto" else fraction(value)

    return parse


def target(expected: str, units: Mapping[str, float] = UNITS) -> Parse:
    """What is left: 0.7, 70% or an absolute 300M, 5MB; kept as it was given, since it is a part of a total."""

    def parse(value: Any) -> Any:
        try:
            x, _ = quantity(value, units)
        except ValueError:
            raise ValueError(f"expected {expected}") from None
        if not x > 0 or not math.isfinite(x):
            raise ValueError(f"must be above 0; expected {expected}")
        return value

    return parse


def of_total(value: Any, total: float, units: Mapping[str, float] = UNITS) -> float:
    """A target as an absolute number: fractions up to 1 and percentages are parts of `total`."""
    x, unit = quantity(value, units)
    return x * total if unit == "%" or (not unit and x <= 1) else x


def size(expected: str, unit: float = 1.0, low: float = 0.0) -> Parse:
    """Bytes, above `low`: `500MB`, or a plain number of `unit` bytes on the command line; a Python number is bytes."""

    def parse(value: Any) -> float:
        try:
            x, named = quantity(value)
        except ValueError:
            raise ValueError(f"expected {expected}") from None
        x = x if named or not isinstance(value, str) else x * unit
        if named == "%" or not low < x < math.inf:
            raise ValueError(f"expected {expected}")
        return x

    return parse


def choice(rows: Mapping[str, str]) -> Parse:
    """One of the names, in any case; rows: name -> what it is."""
    names = {name.lower(): name for name in rows}

    def parse(value: Any) -> str:
        name = names.get(value.strip().lower()) if isinstance(value, str) else None
        if name is None:
            raise ValueError(f"unknown; choose one of {', '.join(rows)}")
        return name

    parse.choices = dict(rows)  # type: ignore[attr-defined]
    return parse


def or_function(parse: Parse) -> Parse:
    """What `parse` takes, or a callable."""

    def either(value: Any) -> Any:
        return value if callable(value) else parse(value)

    either.choices = getattr(parse, "choices", {})  # type: ignore[attr-defined]
    return either


def numbers(expected: str) -> Parse:
    """Numbers separated by commas, or a sequence of them."""

    def parse(value: Any) -> tuple[float, ...]:
        parts = value.split(",") if isinstance(value, str) else value
        try:
            return tuple(float(v) for v in ([parts] if isinstance(parts, Real) else parts))
        except (TypeError, ValueError):
            raise ValueError(f"expected {expected}") from None

    return parse


def each(parse: Parse) -> Parse:
    """A sequence of values, repeated on the command line, or a single one."""

    def several(value: Any) -> tuple[Any, ...]:
        values = value.items() if isinstance(value, Mapping) else [value] if isinstance(value, str) else value
        if not isinstance(values, Iterable):
            raise ValueError(f"expected several, found {type(value).__name__}")
        return tuple(parse(v) for v in values)

    several.many = True  # type: ignore[attr-defined]
    several.choices = getattr(parse, "choices", {})  # type: ignore[attr-defined]
    return several


def listed(parse: Parse) -> Parse:
    """Values with commas between, repeated on the command line, or a sequence of them; each once."""

    def several(value: Any) -> tuple[Any, ...]:
        words = value.split(",") if isinstance(value, str) else value if isinstance(value, (list, tuple)) else [value]
        return tuple(dict.fromkeys(parse(w) for w in words))

    several.many, several.choices = True, getattr(parse, "choices", {})  # type: ignore[attr-defined]
    return several


def pair(expected: str, parse: Parse, *, mark: str = "=") -> Parse:
    """A name and a value, split at the last mark since names may hold some: `GLOB=0.3`, `NAME:1,3,8,8`."""

    def both(value: Any) -> tuple[str, Any]:
        if isinstance(value, str):
            name, _, rest = value.rpartition(mark)
        else:
            try:
                name, rest = value
            except (TypeError, ValueError):
                raise ValueError(f"expected {expected}") from None
        if not isinstance(name, str) or not name:
            raise ValueError(f"expected {expected}")
        try:
            return name, parse(rest)
        except ValueError as e:
            raise ValueError(f"{e}") from None

    return both


def dims(expected: str) -> Parse:
    """`1,3,224,224` or a sequence of sizes above 0."""

    def parse(value: Any) -> tuple[int, ...]:
        try:
            sizes = tuple(int(d) for d in (value.split(",") if isinstance(value, str) else value))
        except (TypeError, ValueError):
            raise ValueError(f"expected {expected}") from None
        if any(d < 1 for d in sizes) or (isinstance(value, str) and not re.fullmatch(r"[\d, ]+", value)):
            raise ValueError(f"expected {expected}")
        return sizes

    return parse


# words

RANK = 8  # axes of a shape that a message shows
PLAIN = ("auto", "synthetic")  # words of options that take any text


def shown(value: Any) -> str:
    """A value in a message or a record, as short text."""
    if isinstance(value, (str, Path)):
        return str(value)
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, Mapping):
        return " ".join(filter(None, (_named(k, v) for k, v in value.items()))) or "arrays"
    if isinstance(value, (tuple, list)) and all(isinstance(v, (str, Real, tuple, list)) for v in value):
        mark = "," if all(isinstance(v, Real) for v in value) else " "
        return mark.join(_named(*v) if isinstance(v, (tuple, list)) and len(v) == 2 else shown(v) for v in value)
    if callable(value):
        return f"function {getattr(value, '__name__', type(value).__name__)}"
    typed = dataclasses.is_dataclass(value) and type(value).__str__ is not object.__str__  # says how it is typed
    return str(value) if typed or isinstance(value, Real) else type(value).__name__


def _named(name: Any, value: Any) -> str:
    """`GLOB=0.3` of a ratio, `NAME:1,3` of a shape, "" of what is too long for a message."""
    if isinstance(value, (Real, str)):
        return f"{name}={shown(value)}"
    shape = isinstance(value, (tuple, list)) and len(value) <= RANK and all(isinstance(d, int) for d in value)
    return f"{name}:{','.join(map(str, value))}" if shape else ""


def record(value: Any) -> Any:
    """A value as plain data for JSON; arrays and functions by what they are."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (tuple, list)) and all(isinstance(v, (str, Real, tuple, list)) for v in value):
        return [record(v) for v in value]
    if isinstance(value, Mapping) and all(isinstance(v, (str, Real)) for v in value.values()):
        return {str(k): record(v) for k, v in value.items()}
    return shown(value)


def in_python(message: str, options: Iterable[Option]) -> str:
    """A message of the command line in the words of a caller from Python: `--channels 30` is `channels=30`."""
    flags = {o.flag: o for o in options if o.flag} | {o.off: o for o in options if o.off}

    def word(match: re.Match[str]) -> str:
        o = flags.get(match.group(1))
        if o is None:
            return match.group(0)
        if o.switch:
            return f"{o.name}={match.group(1) == o.flag}{match.group(2) or ''}"
        value = (match.group(2) or "").strip()
        bare = value.rstrip(".,;:)`")
        if not value or not (value.endswith(":") or _is_value(bare, o)):
            return f"{o.name}{match.group(2) or ''}"
        return f"{o.name}={_literal(bare, o)}{value[len(bare) :]}"

    return re.sub(r"(?<![\w-])(--[a-z][a-z-]*[a-z])(?:( [^\s]+))?", word, message)


def _is_value(word: str, option: Option) -> bool:
    """Whether the word behind a flag in a message is its value, and not the sentence going on."""
    return bool(
        word in PLAIN
        or _is_own(word, option)
        or _is_placeholder(word, option)
        or word[:1] in ("'", '"')
        or re.search(r"[\d/\\.*=]|\w:\w", word)
    )


def _is_own(word: str, option: Option) -> bool:
    """Whether an option takes this word, and not just any."""
    return _parsed(word, option) is not None and _parsed("?", option) is None


def _is_placeholder(word: str, option: Option) -> bool:
    """Whether a word stands for a value, as SRC does."""
    return (word == option.metavar and word.isupper()) or re.fullmatch(r"[A-Z][A-Z:.]+", word) is not None


def _parsed(word: str, option: Option) -> Any:
    """What a word means, None where the option does not take it."""
    try:
        return option.parse(word)
    except ValueError:
        return None


def _literal(word: str, option: Option) -> str:
    """A word of the command line as Python writes the value: `NAME:1,3` of a shape is `{'NAME': (1, 3)}`."""
    plain = NUMBER.fullmatch(word)
    if plain and not plain.group(2):
        return word
    parsed = _parsed(word, option)
    if isinstance(parsed, tuple) and parsed and not isinstance(parsed[0], str):
        return repr(dict(parsed) if isinstance(parsed[0], tuple) else parsed)
    kept = word[:1] in "'\"" or (_is_placeholder(word, option) and not _is_own(word, option))
    return word if kept else repr(word)


def shared(known: Iterable[Option], names: Iterable[str], helps: Mapping[str, str]) -> tuple[Option, ...]:
    """Options by name, for another command; helps: what they mean there, where that differs."""
    by_name = {o.name: o for o in known}
    return tuple(dataclasses.replace(by_name[n], help=helps.get(n, by_name[n].help)) for n in names)


def read_keywords(function: str, known: Iterable[Option], given: Mapping[str, Any]) -> dict[str, Any]:
    """Values of the keywords that a function was given, read. Raises `TypeError` for one that it does not take, and
    `ValueError` with a line that names the option."""
    by_name = {o.name: o for o in known}
    for name in given:
        if name not in by_name:
            raise TypeError(f"{function}() takes no option {name!r}; there are {', '.join(by_name)}")
    return {name: by_name[name].read(value) for name, value in given.items()}


def closest(word: str, options: Iterable[Option]) -> Iterator[str]:
    """Keywords that a mistyped one may have meant."""
    import difflib

    yield from difflib.get_close_matches(word, [o.name for o in options], n=2)


__all__ = [
    "CHECK", "DATA", "HOW", "IMAGES", "OUTPUT", "PANELS", "SPARSE", "STORE", "TUNE", "WHAT", "Option", "amount",
    "anything", "choice", "closest", "declared", "dims", "each", "in_python", "integer", "listed", "number", "numbers",
    "of_total", "option", "or_function", "pair", "path", "quantity", "record", "shown", "size", "switch", "target",
    "text",
]  # fmt: skip
