"""Without a GPU, Triton's kernels run in its interpreter. It must be told before triton is imported.

Reports of the crashes that tests cause do not go to the user's folder. Under `python -O`, where the product
has to work too, the asserts of tests and of what helps them hold all the same: pytest makes conditions of them.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest
import torch

pytest.register_assert_rewrite(
    *(f"tests.{path.stem}" for path in Path(__file__).parent.iterdir() if path.stem not in ("__init__", "conftest"))
)

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

_state = tempfile.TemporaryDirectory()
os.environ["XDG_STATE_HOME"] = _state.name
