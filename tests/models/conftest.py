"""One torch thread: tiny tensors, and spinning threads starve each other on a shared machine."""

import pytest
import torch
from hypothesis import settings

# A wall-clock deadline measures the other processes of the machine, not these laws.
settings.register_profile("laws", deadline=None, max_examples=60)
settings.load_profile("laws")


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    torch.set_num_threads(1)
