"""What tests of models share."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture
def one_thread():
    """Keep tiny products from waiting for a second core."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
