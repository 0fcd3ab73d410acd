"""Numbers with their units, as tables show them."""

from __future__ import annotations


def show_number(x: float) -> str:
    """A number in four digits with a unit: 1234567 -> 1.235 M."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(x) >= size:
            return f"{x / size:.4g} {unit}"
    return f"{x:.4g}"


def show_bytes(b: float) -> str:
    """A number of bytes in four digits with a unit: 1234567 -> 1.235 MB."""
    return f"{show_number(b)}B" if b >= 1e3 else f"{b:.0f} B"


def show_seconds(s: float) -> str:
    """A time in three digits with a unit: 0.00123 -> 1.23 ms."""
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if s >= size:
            return f"{s / size:.3g} {unit}"
    return f"{s * 1e6:.3g} µs"


def show_share(x: float) -> str:
    """A share in percent: 0.684 -> 68.4%."""
    return f"{x:.1%}"


def show_joules(joules: float) -> str:
    """Joules in four digits with a unit: 0.0012345 -> 1.234 mJ."""
    for unit, size in (("J", 1.0), ("mJ", 1e-3), ("uJ", 1e-6)):
        if abs(joules) >= size:
            return f"{joules / size:.4g} {unit}"
    return f"{joules / 1e-9:.4g} nJ"


def show_any(x: float | None) -> str:
    """A number of unknown size, whole where it is; - where there is none."""
    return "-" if x is None else f"{x:,.0f}" if float(x).is_integer() else f"{x:.4g}"


def show_rank(x: float | None) -> str:
    """A rank correlation; - where there is none."""
    return "-" if x is None else f"{x:.2f}"
