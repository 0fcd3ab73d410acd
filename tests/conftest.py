"""Shared helpers: cut a model with every group of kind channels, and check the law."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared" / "assets"


@pytest.fixture
def shared() -> Path:
    """Models and data for development; tests that use them skip where they are absent."""
    if not SHARED.is_dir():
        pytest.skip("../shared is absent")
    return SHARED
