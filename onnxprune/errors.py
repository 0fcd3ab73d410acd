"""Everything that onnxprune raises on purpose.

OnnxPruneError
├── UserError              exit code 2: the input or an option is wrong, and the message says the way out
│   ├── ModelFileError     the file is missing, truncated, not ONNX, or refers to data it may not read
│   ├── OptionError        an option's value does not make sense, or matches nothing
│   │   ├── Unreachable    a target that no cut of what may go can reach
│   │   └── NothingAsked   no option says what to do
│   └── NothingToPrune     no group of the asked kind exists; the message says what pins the rest
└── InternalError          exit code 1: our mistake; nothing was written
    └── VerificationError  the pruned model does not compute what the masked model computes
"""

from collections.abc import Iterator
from contextlib import contextmanager


class OnnxPruneError(Exception):
    """Base of every error that onnxprune raises on purpose; its text is one line for the user."""

    exit_code = 1


class UserError(OnnxPruneError):
    """The input or an option is at fault."""

    exit_code = 2


class ModelFileError(UserError):
    """The model file cannot be read, or must not be trusted."""


class OptionError(UserError):
    """An option's value does not make sense, or a glob matches nothing."""


class Unreachable(OptionError):
    """A target that no cut of the groups that may go can reach; a search goes on without it."""


class NothingAsked(OptionError):
    """No option says what is to become of the model."""


class NothingToPrune(UserError):
    """No group of the requested kind can be pruned."""


class InternalError(OnnxPruneError):
    """A broken promise of ours; nothing was written."""


class VerificationError(InternalError):
    """Pruned and masked model disagree, or the pruned model does not load."""


@contextmanager
def blamed(
    what: str,
    problem: str = "cannot be written",
    way: str = "",
    *,
    refusals: tuple[type[Exception], ...] = (OSError, ValueError),
) -> Iterator[None]:
    """What the system refuses inside raises an OptionError: `what` (an option and its value), the problem, the reason
    in parentheses, and the way out. refusals: a ValueError is of a name with a null byte, or of a closed stream."""
    try:
        yield
    except refusals as e:
        raise OptionError(f"{what}: {problem} ({getattr(e, 'strerror', None) or e}){way}") from e
