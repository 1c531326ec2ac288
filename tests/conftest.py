"""Without a GPU, Triton's kernels run in its interpreter. It must be told before triton is imported."""

from __future__ import annotations

import os

import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
