"""One torch thread: tiny tensors, and spinning threads starve each other on a shared machine."""

import pytest
import torch


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    torch.set_num_threads(1)
