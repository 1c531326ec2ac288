"""The import directions of docs/design.md, read from the source: arrows never reverse."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "octavo"

# Each room and the rooms it may import from, beside itself.
ALLOWED = {
    "core": {"demo"},
    "demo": {"models", "layers", "core"},
    "text": {"core"},
    "grammar": {"text", "core"},
    "cache": {"core"},
    "scheduler": {"cache", "grammar", "core"},
    "kernels": {"core"},
    "attention": {"kernels", "core"},
    "moe": {"quant", "kernels", "core"},
    "quant": {"kernels", "core"},
    "layers": {"attention", "moe", "quant", "kernels", "core"},
    "platforms": {"core"},
    "models": {"layers", "attention", "moe", "quant", "kernels", "platforms", "core"},
    "sampling": {"kernels", "core"},
    "runner": {"models", "layers", "attention", "sampling", "platforms", "kernels", "core"},
    "engine": {"scheduler", "cache", "runner", "models", "attention", "platforms", "grammar", "text", "core"},
    "server": {"engine", "text", "core"},
    "bench": {"llm", "engine", "models", "text", "core"},
    "quantize": {"models", "layers", "attention", "platforms", "quant", "text", "core"},
    "advise": {"bench", "engine", "runner", "models", "quant", "attention", "platforms", "kernels", "core"},
    "supervisor": {"core"},
    "cli": {"supervisor", "server", "engine", "advise", "bench", "quantize", "text", "core", "llm"},
    "llm": {"engine", "grammar", "text", "core"},
    "__init__": {"llm", "engine", "core"},
    "version": set(),
}
EVERYWHERE = {"version"}
TORCH_FREE = ("core", "text", "grammar", "cache", "scheduler", "server", "cli")
# Imported inside functions, or in the rooms below.
OPTIONAL = {"triton", "flash_attn", "flashinfer", "transformers", "opentelemetry", "matplotlib"}
OPTIONAL_ROOMS = ("kernels",)


def imports(path: Path) -> list[tuple[str, bool]]:
    """(module, whether the import runs when the file is imported) of every import but those for type checkers."""
    found = []

    def visit(node: ast.AST, top: bool) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                continue
            if isinstance(child, ast.Import):
                found.extend((alias.name, top) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                assert child.level == 0, f"{path} has a relative import"
                # `from octavo import x` names a room in x.
                names = [f"octavo.{alias.name}" for alias in child.names] if child.module == "octavo" else []
                found.extend((name, top) for name in names or [child.module or ""])
            visit(child, top and not isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)))

    visit(ast.parse(path.read_text()), True)
    return found


def room(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


FILES = sorted(ROOT.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports(path: Path):
    here = room(path)
    for module, top in imports(path):
        head, *rest = module.split(".")
        if head == "octavo":
            other = rest[0] if rest else "__init__"
            assert other == here or other in ALLOWED[here] | EVERYWHERE, f"{here} must not import {other} ({module})"
        if head == "torch":
            assert here not in TORCH_FREE, f"{here} must not import torch"
            assert not module.startswith("torch.distributed") or here in ("parallel", "runner")
        if head in OPTIONAL:
            assert not top or here in OPTIONAL_ROOMS, (
                f"{module} is optional: import it inside the function that needs it"
            )


def test_every_room_is_known():
    assert {room(path) for path in FILES} <= set(ALLOWED)


def test_the_walk_sees_imports(tmp_path):
    file = tmp_path / "x.py"
    file.write_text("import torch\nfrom octavo.runner import batch\ndef f():\n    import triton\n")
    assert imports(file) == [("torch", True), ("octavo.runner", True), ("triton", False)]


def test_models_know_no_configuration():
    for path in FILES:
        if room(path) in ("models", "layers", "attention", "moe", "kernels"):
            assert "octavo.core.config" not in [module for module, _ in imports(path)], path
