"""Without a GPU, Triton's kernels run in its interpreter. It must be told before triton is imported.

Reports of the crashes that tests cause do not go to the user's folder.
"""

from __future__ import annotations

import os
import tempfile

import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

_state = tempfile.TemporaryDirectory()
os.environ["XDG_STATE_HOME"] = _state.name
