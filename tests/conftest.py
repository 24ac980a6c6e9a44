"""What every test gets: a clean environment, whoever runs it."""

from __future__ import annotations

import os

import pytest


@pytest.fixture(autouse=True)
def _no_settings_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads what the person running it has set for their own clusters."""
    for name in [name for name in os.environ if name.startswith("INFERCLUSTER_")]:
        monkeypatch.delenv(name)
