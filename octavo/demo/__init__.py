"""The demo model: a tiny chat model and its draft, trained by this package on text that this package writes.

Importing it gives two paths and nothing else. `python -m octavo.demo.train` makes the weights anew and
`python -m octavo.demo.evaluate` measures them; see docs/demo-model.md.
"""

from pathlib import Path

MODEL_DIR = Path(__file__).parent / "model"
DRAFT_DIR = Path(__file__).parent / "draft"

__all__ = ["DRAFT_DIR", "MODEL_DIR"]
