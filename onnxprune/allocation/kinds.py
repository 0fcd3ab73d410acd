"""Kinds of units: how options name them, alone or before a glob."""

from __future__ import annotations

from onnxprune.structure.components import KINDS

PRUNABLE = ("channels", *KINDS)


def flag(kind: str) -> str:
    """The option of the command line for a kind.

    >>> flag("head_dim")
    '--head-dim'
    """
    return f"--{kind.replace('_', '-')}"


def split_kind(glob: str) -> tuple[str, str]:
    """The kind that stands before a glob, "" for none, and the glob without it.

    >>> split_kind("head-dim:layer1*"), split_kind("layer1*"), split_kind("sparsity:layer1*")
    (('head_dim', 'layer1*'), ('', 'layer1*'), ('', 'sparsity:layer1*'))
    """
    before, colon, rest = glob.partition(":")
    kind = before.replace("-", "_")
    return (kind, rest) if colon and kind in PRUNABLE else ("", glob)


__all__ = ["PRUNABLE", "flag", "split_kind"]
