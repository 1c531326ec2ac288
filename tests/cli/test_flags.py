"""Flags are made from configuration classes."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass, fields

import pytest

from octavo.cli.flags import Parser, add_flags, number, read_flags
from octavo.cli.main import main
from octavo.core.config import EngineConfig, flag
from octavo.server.config import ServerConfig


@dataclass(frozen=True)
class Config:
    size: int | None = flag(None, "how large")
    share: float = flag(0.5, "how much")
    kind: str = flag("a", "which", ("a", "b"))
    fast: bool = flag(True, "whether")
    maybe: bool | None = flag(None, "perhaps")
    names: tuple[str, ...] = flag((), "who")


def parse(*args: str) -> Config:
    parser = Parser(prog="octavo test")
    add_flags(parser, Config, "things")
    return read_flags(Config, parser.parse_args(args))


def test_fields_become_flags() -> None:
    assert parse() == Config()
    assert parse("--size", "4k", "--share", "0.9", "--kind", "b", "--no-fast", "--maybe") == Config(
        4000, 0.9, "b", False, True
    )
    assert parse("--names", "x", "--names=y").names == ("x", "y")
    assert parse("--size=1").size == 1


def test_values_stand_where_no_flag_is_given() -> None:
    parser = Parser(prog="octavo test")
    add_flags(parser, Config, "things")
    assert read_flags(Config, parser.parse_args([]), names=("env",)).names == ("env",)
    assert read_flags(Config, parser.parse_args(["--names", "flag"]), names=("env",)).names == ("flag",)


@pytest.mark.parametrize(
    ("text", "value"), [("5", 5), ("4k", 4000), ("4K", 4096), ("1.5k", 1500), ("2M", 2**21), ("1g", 10**9)]
)
def test_numbers(text: str, value: int) -> None:
    assert number(text) == value


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--szie", "5"], "there is no flag --szie; did you mean --size?"),
        (["--quite-another"], "there is no flag --quite-another (--help"),
        (["--no-fats"], "did you mean --no-fast?"),
        (["--siz", "5"], "did you mean --size?"),
        (["--size", "five"], "'five' is not a whole number"),
        (["--size", "1.5"], "'1.5' is not a whole number"),
        (["--share", "x"], "--share"),
        (["--kind", "c"], "'c'"),
        (["--size"], "expected one argument"),
        (["stray"], "stray"),
    ],
)
def test_wrong_flags_say_what_was_meant(args: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse(*args)
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


def test_underscores_are_dashes(capsys: pytest.CaptureFixture[str]) -> None:
    @dataclass(frozen=True)
    class Long:
        max_model_len: int | None = flag(None, "")

    parser = Parser(prog="x")
    add_flags(parser, Long, "things")
    assert read_flags(Long, parser.parse_args(["--max_model_len=8"])).max_model_len == 8


def test_serve_has_a_flag_for_every_field(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["serve", "--help"])
    assert caught.value.code == 0
    told = capsys.readouterr().out
    names = [field.name for config in (EngineConfig, ServerConfig) for field in fields(config)]
    assert len(names) == len(set(names))
    for name in names:
        assert f"--{name.replace('_', '-')} " in told or f"--{name.replace('_', '-')}," in told, name


@pytest.mark.parametrize("args", [["--help"], ["serve", "--help"], ["run", "--help"], ["version"]])
def test_help_imports_nothing_heavy(args: list[str]) -> None:
    heavy = {"torch", "numpy", "uvicorn", "rich", "msgspec", "tokenizers", "jinja2", "asyncio"}
    code = f"""
import sys
from octavo.cli.main import main
try:
    main({args!r})
except SystemExit:
    pass
print({heavy!r} & {{*sys.modules}})
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "set()"
