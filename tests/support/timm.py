"""timm, where it can be imported."""

from __future__ import annotations

import pytest


def needs_timm() -> None:
    """Skip a test where timm is not there, or comes with a torchvision for another torch."""
    try:
        import timm  # noqa: F401
    except (ImportError, RuntimeError) as error:
        pytest.skip(f"needs the extra vision: {error}")
