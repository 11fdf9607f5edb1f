"""The folder of real Korean data and tools that may lie beside the checkout."""

from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parents[1].parent / "shared"


def shared(*parts: str) -> Path:
    """Path of a file below the shared folder; skips the calling test where it is absent."""
    path = SHARED.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"needs {path.relative_to(SHARED.parent)} beside the checkout")
    return path
