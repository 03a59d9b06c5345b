"""What every test needs: one thread, a screenless matplotlib, repeatable draws."""

import os

os.environ.setdefault("MPLBACKEND", "Agg")

import pytest  # noqa: E402
import torch  # noqa: E402
from hypothesis import settings  # noqa: E402

torch.set_num_threads(1)  # two threads on a loaded machine can be many times slower than one
settings.register_profile("genflow", deadline=None, derandomize=True, max_examples=25, database=None)
settings.load_profile("genflow")


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)
