"""Models that the tests of generation share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tiny_language_models import build_tiny
from trimtab.generate.language_model import LanguageModel


@pytest.fixture(scope="session")
def tiny() -> LanguageModel:
    """A tiny model with four slots; tests leave its batch idle."""
    return build_tiny(slots=4)


@pytest.fixture(scope="session")
def smollm2_path() -> Path:
    """The GGUF file of SmolLM2-135M-Instruct, fetched into the cache once."""
    from trimtab.errors import InputError
    from trimtab.generate.locate import ModelNotFoundError, find_model, pull

    try:
        return find_model("smollm2")
    except ModelNotFoundError:
        try:
            return pull("smollm2")
        except InputError as error:
            pytest.skip(f"SmolLM2 cannot be fetched: {error}")
