"""The command `octavo` and its subcommands. Imports nothing heavy until it knows what to do."""

from __future__ import annotations

import argparse
import os
import socket
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from octavo.cli.advise import add_advice
from octavo.cli.bench import add_bench
from octavo.cli.flags import Parser, add_flags, add_foreign, number, read_flags, with_config
from octavo.cli.quantize import add_quantize
from octavo.core import foreign
from octavo.core.config import EngineConfig
from octavo.core.errors import OctavoError
from octavo.server.config import ServerConfig
from octavo.version import VERSION

KEY_VARIABLE = "OCTAVO_API_KEY"  # several keys are separated by commas


def main(argv: Sequence[str] | None = None) -> int:
    """The exit status: 0 is success, 1 an error that one line on standard error explains, 2 a wrong flag."""
    try:
        options = _parser().parse_args(with_config(sys.argv[1:] if argv is None else argv))
        return int(options.action(options))
    except OctavoError as error:
        print(f"octavo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="octavo", description="LLM inference and serving on a paged KV cache.")
    top.add_argument("--version", action="version", version=VERSION)
    commands = top.add_subparsers(metavar="COMMAND", required=True, parser_class=Parser)

    serve = commands.add_parser("serve", help="an OpenAI-compatible server")
    _add_model(serve)
    serve.add_argument("--config", metavar="FILE", help="YAML file of flags; those given here win")
    add_flags(serve, ServerConfig, "server")
    add_flags(serve, EngineConfig, "engine", skip=("model",))
    add_foreign(serve, {**foreign.ENGINE, **foreign.SERVER})
    serve.set_defaults(action=_serve)

    batch = commands.add_parser("run-batch", help="answers to the requests in a file, in OpenAI's batch format")
    _add_model(batch)
    batch.add_argument("-i", "--input-file", required=True, metavar="FILE", help="one request a line, as JSON")
    batch.add_argument("-o", "--output-file", required=True, metavar="FILE", help="where the answers go")
    add_flags(batch, EngineConfig, "engine", skip=("model",))
    add_foreign(batch, foreign.ENGINE)
    batch.set_defaults(action=_run_batch)

    run = commands.add_parser("run", help="one answer in the terminal")
    run.add_argument("prompt", metavar="PROMPT", help="what to say to the model; - reads it from standard input")
    run.add_argument("--model", help="Hugging Face id or a folder; the demo model when it is left out")
    run.add_argument("--raw", action="store_true", help="continue the text as it is, without the chat template")
    chat = commands.add_parser("chat", help="a conversation in the terminal")
    _add_model(chat)
    for parser, action in ((run, _run), (chat, _chat)):
        group = parser.add_argument_group("sampling")
        group.add_argument("--system", metavar="TEXT", help="system message")
        group.add_argument("--max-tokens", type=number, metavar="N", help="longest answer (default: what fits)")
        group.add_argument("--temperature", type=float, metavar="X", help="0 is greedy (default: the model's)")
        group.add_argument("--top-p", type=float, metavar="X", help="(default: the model's)")
        add_flags(parser, EngineConfig, "engine", skip=("model",))
        add_foreign(parser, foreign.ENGINE)
        parser.set_defaults(action=action)

    add_bench(commands)
    add_advice(commands)
    add_quantize(commands)
    commands.add_parser("version", help="the version").set_defaults(action=_version)
    return top


def _add_model(parser: Parser) -> None:
    parser.add_argument(
        "model", nargs="?", metavar="MODEL", help="Hugging Face id or a folder; the demo model when it is left out"
    )
    parser.add_argument("--model", dest="model_flag", metavar="MODEL", help="the same, as a flag")


def _engine_config(options: argparse.Namespace) -> EngineConfig:
    flagged = getattr(options, "model_flag", None)
    if flagged is not None:
        options.model = flagged
    return read_flags(EngineConfig, options)


def _serve(options: argparse.Namespace) -> int:
    keys = tuple(key for key in os.environ.get(KEY_VARIABLE, "").split(",") if key)
    engine, server = _engine_config(options), read_flags(ServerConfig, options, api_key=keys)
    from octavo.core import log
    from octavo.core.crash import report_folder
    from octavo.server.sockets import listen
    from octavo.supervisor import supervise

    def run(sock: socket.socket, control: socket.socket) -> int:
        from octavo.server.serve import front

        return front(engine, server, sock, control)

    log.hold_standard_streams()
    log.setup(server.log_level, server.log_format)
    with listen(server) as sock:
        return supervise(partial(run, sock), report_folder(server.crash_dir), server.watchdog_timeout)


def _run_batch(options: argparse.Namespace) -> int:
    engine = _engine_config(options)
    from octavo.server.batch.offline import run_batch

    return run_batch(engine, ServerConfig(), Path(options.input_file), Path(options.output_file))


def _run(options: argparse.Namespace) -> int:
    engine = _engine_config(options)
    from octavo.cli.terminal import run

    prompt = sys.stdin.read() if options.prompt == "-" else options.prompt
    return run(engine, prompt, options)


def _chat(options: argparse.Namespace) -> int:
    engine = _engine_config(options)
    from octavo.cli.terminal import chat

    return chat(engine, options)


def _version(options: argparse.Namespace) -> int:
    print(VERSION)
    return 0


if __name__ == "__main__":
    sys.exit(main())
