"""Settings for all tests, and the real data and model they may use."""

import os
from pathlib import Path

import pytest
from hypothesis import settings

from funnel.encoding.encoders import DEFAULT_ENCODER, Encoder, load_encoder
from funnel.errors import EncoderError, MissingPackageError

# No deadline: on a busy machine one slow example is no fault of the code.
settings.register_profile("funnel", deadline=None)
settings.load_profile("funnel")

DATA_VARIABLE = "FUNNEL_DATA"
DEFAULT_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of real corpora (BEIR layout); the test is skipped where there is none."""
    folder = Path(os.environ.get(DATA_VARIABLE, DEFAULT_DATA))
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}; set {DATA_VARIABLE} to the folder that holds scifact")
    return folder


@pytest.fixture
def bars_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bars appear after a second; a test that asks what they show asks for them at once."""
    monkeypatch.setattr("funnel.progress.SHOWN_AFTER_S", 0.0)


@pytest.fixture(scope="session")
def minilm() -> Encoder:
    """The default encoder on the CPU, loaded once; the test is skipped where the model is not at hand."""
    try:
        return load_encoder(DEFAULT_ENCODER, device="cpu")
    except (EncoderError, MissingPackageError) as error:
        pytest.skip(str(error))
