"""Scripts outside the package that no other test runs: what they import is there."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = sorted(path for folder in ("bench", "tests/fuzz", "scripts") for path in (ROOT / folder).glob("*.py"))


def imported(path: Path) -> list[tuple[str, str]]:
    """Names that the file takes from modules of this repository, inside functions too."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in ("octavo", "tests", "bench"):
            found += [(node.module or "", alias.name) for alias in node.names]
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_what_is_imported_exists(path: Path):
    for module, name in imported(path):
        if not hasattr(importlib.import_module(module), name):
            importlib.import_module(f"{module}.{name}")  # a submodule, or an error that names it


def test_the_test_can_fail(tmp_path: Path):
    script = tmp_path / "script.py"
    script.write_text("def main():\n    from octavo.server.transport import bind\n")
    with pytest.raises(ModuleNotFoundError, match="transport"):
        test_what_is_imported_exists(script)
