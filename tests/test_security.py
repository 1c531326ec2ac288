"""What our code never does, read from the source; and what serving processes refuse at run time."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from octavo.core import errors

ROOT = Path(__file__).parent.parent / "octavo"
FILES = sorted(ROOT.rglob("*.py"))

# Modules that turn bytes into code, and calls that run text.
MODULES = {"pickle", "_pickle", "dill", "cloudpickle", "marshal", "shelve", "joblib", "code", "codeop", "runpy"}
NAMES = {"eval", "exec", "compile", "__import__", "execfile"}
METHODS = {
    ("torch", "load"), ("torch", "save"), ("yaml", "load"), ("yaml", "unsafe_load"), ("yaml", "full_load"),
    ("os", "system"), ("os", "popen"), ("sock", "recv_pyobj"), ("np", "save"), ("importlib", "util"),
}  # fmt: skip
KEYWORDS = {"allow_pickle", "shell", "trust_remote_code"}  # forbidden when true
# Where a check guards against strangers: `python -O` must leave it as it is.
NO_ASSERTS = (
    *("core/child.py", "core/guard.py", "core/hub.py", "core/errors.py", "engine/ipc.py", "models/loader.py"),
    *("server/admin.py", "server/auth.py", "server/config.py", "server/http.py", "server/origins.py"),
    *("server/transport.py", "server/batch/files.py", "server/batch/multipart.py", "text/chat.py", "text/sandbox.py"),
)


def findings(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] in MODULES)
        elif isinstance(node, ast.ImportFrom):
            if (node.module or "").split(".")[0] in MODULES:
                yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names if (node.module, alias.name) in METHODS)
        elif isinstance(node, ast.Call):
            function = node.func
            if isinstance(function, ast.Name) and function.id in NAMES:
                yield function.id
            if isinstance(function, ast.Attribute):
                if function.attr in ("recv_pyobj", "send_pyobj", "unsafe_load"):
                    yield function.attr
                if isinstance(function.value, ast.Name) and (function.value.id, function.attr) in METHODS:
                    yield f"{function.value.id}.{function.attr}"
            for keyword in node.keywords:
                value = keyword.value
                if keyword.arg in KEYWORDS and not (isinstance(value, ast.Constant) and value.value is False):
                    yield f"{keyword.arg}="


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_nothing_runs_what_it_reads(path: Path) -> None:
    name = str(path.relative_to(ROOT))
    found = list(findings(ast.parse(path.read_text())))
    assert not found, f"{name} uses {', '.join(found)}"


def test_the_gate_sees_them() -> None:
    source = """
import pickle, os, torch, yaml
from marshal import loads
from torch import load
eval("1"); exec("x"); compile("", "", "exec"); __import__("x")
torch.load("x"); yaml.load("x"); os.system("x"); s.recv_pyobj(); f(shell=True); np.load(x, allow_pickle=y)
g(shell=False); re.compile("x"); model.eval(); yaml.safe_load("x")
"""
    assert len(list(findings(ast.parse(source)))) == 13


def test_asserts_do_nothing_that_others_need() -> None:
    """Under `python -O` they are not there: what one of them names or awaits would not be either."""
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Assert):
                used = [each for each in ast.walk(node) if isinstance(each, (ast.NamedExpr, ast.Await, ast.Yield))]
                assert not used, f"{path.relative_to(ROOT)}:{node.lineno}"


def test_no_security_check_is_an_assert() -> None:
    for name in NO_ASSERTS:
        asserts = [
            node.lineno for node in ast.walk(ast.parse((ROOT / name).read_text())) if isinstance(node, ast.Assert)
        ]
        assert not asserts, f"{name} asserts in line {asserts}"


# -- errors that clients see come from one catalogue

CLIENT_ERRORS = {
    name for name, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, errors.RequestError)
} | {"Refused", "ErrorDetail", "Failure"}
OURS = CLIENT_ERRORS | {"GrammarError", "RaisedByTemplate", "OverBudget"}
# The texts of these are about what the client wrote, and are tested to hold nothing else.
ABOUT_THE_REQUEST = {
    "grammar/source.py",  # the compiler's complaint about a grammar, cut and cleaned by vocabulary.py
    "server/fields.py",  # msgspec's "Expected `int`, got `str`"
    "server/batch/lines.py",  # the same, of a line
    "text/chat.py",  # Jinja's, of a template's line
}


def leaks(tree: ast.AST) -> Iterator[int]:
    """Lines where the text of an exception that is not ours goes into an error for a client."""
    for handler in ast.walk(tree):
        if not isinstance(handler, ast.ExceptHandler) or handler.name is None or handler.type is None:
            continue
        caught = handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]
        if all(ast.unparse(kind).split(".")[-1] in OURS for kind in caught):
            continue
        for node in ast.walk(handler):
            if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in CLIENT_ERRORS:
                names = {each.id for arg in node.args for each in ast.walk(arg) if isinstance(each, ast.Name)}
                if handler.name in names:
                    yield node.lineno


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_exception_is_formatted_into_an_answer(path: Path) -> None:
    name = str(path.relative_to(ROOT))
    if name not in ABOUT_THE_REQUEST:
        assert not list(leaks(ast.parse(path.read_text()))), name


def test_the_leaks_are_seen() -> None:
    source = "try: f()\nexcept OSError as e: raise RequestError(f'no: {e}')\n"
    source += "except RequestError as e: raise Draining(str(e))"
    assert list(leaks(ast.parse(source))) == [2]


# -- at run time

REFUSED = {
    "pickle": "pickle.loads(pickle.dumps(print))",
    "torch.load": "f = io.BytesIO(); torch.save(print, f); f.seek(0); torch.load(f, weights_only=False)",
    "numpy": "f = io.BytesIO(pickle.dumps(print)); numpy.load(f, allow_pickle=True)",
    "marshal": "marshal.loads(marshal.dumps([1]))",
    "eval": "eval('1 + 1')",
    "exec": "exec('x = 1')",
    "compile": "compile('1', 'x', 'eval')",
}


@pytest.mark.parametrize("name", REFUSED)
def test_serving_processes_refuse(name: str) -> None:
    imports = "import io, pickle, marshal, numpy" + (", torch" if name == "torch.load" else "")
    code = f"""
{imports}
from octavo.core import guard
guard.install()
{REFUSED[name]}
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1 and "is refused in a serving process" in done.stderr, done.stderr


def test_libraries_go_on() -> None:
    code = """
from octavo.core import guard
guard.install()
import dataclasses, collections, jinja2, json.tool
assert collections.namedtuple("A", "x")(1).x == 1
assert jinja2.Template("{{ x }}").render(x=2) == "2"
assert dataclasses.make_dataclass("B", ["y"])(3).y == 3
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_children_take_no_module_from_the_current_folder(tmp_path: Path) -> None:
    """A server may be started in the folder of a model that somebody else made."""
    canary = tmp_path / "canary"
    (tmp_path / "msgspec.py").write_text(f"open({str(canary)!r}, 'w')\nraise SystemExit('a module of the folder')")
    code = """
from octavo.core.child import Child
child = Child("octavo.grammar.process", {})
child.sock.shutdown(1)
child._process.wait(60)
"""
    environment = [sys.executable, "-P", "-c", code]
    subprocess.run(environment, cwd=tmp_path, check=True, timeout=120)
    assert not canary.exists()
