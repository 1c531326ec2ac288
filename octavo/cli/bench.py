"""`octavo bench serve | throughput | latency | startup | plot`: flags as `vllm bench` has them."""

from __future__ import annotations

import argparse
import json
import tempfile
import uuid
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from octavo.cli.flags import Parser, add_flags, add_foreign, number, read_flags
from octavo.core import foreign
from octavo.core.config import EngineConfig
from octavo.core.errors import ConfigError

DATASETS = ("random", "sharegpt", "prefix_repetition", "custom", "spec_bench", "timed_trace")
BACKENDS = ("openai", "vllm", "openai-chat", "openai-embeddings")


def add_bench(commands: Any) -> None:
    """Registers `bench` and its commands."""
    bench = commands.add_parser("bench", help="measures a server or the engine")
    kinds = bench.add_subparsers(metavar="BENCHMARK", required=True, parser_class=Parser, prog=bench.prog)
    serve = kinds.add_parser("serve", help="load on a server over HTTP")
    _add_server(serve)
    _add_load(serve)
    _add_sampling(serve)
    _add_result(serve)
    _add_dataset(serve, "random")
    add_foreign(serve, foreign.BENCH_SERVE)
    serve.set_defaults(action=_serve)

    throughput = kinds.add_parser("throughput", help="many prompts at once, without a server")
    _add_throughput(throughput)
    _add_dataset(throughput, "sharegpt")
    add_foreign(throughput, foreign.BENCH_THROUGHPUT)
    latency = kinds.add_parser("latency", help="one batch again and again, without a server")
    _add_latency(latency)
    for parser, action in ((throughput, _throughput), (latency, _latency)):
        _add_offline(parser)
        parser.set_defaults(action=action)
    startup = kinds.add_parser("startup", help="process start to first answer")
    group = startup.add_argument_group("benchmark")
    group.add_argument("--num-iters-cold", type=number, default=3, metavar="N", help="starts with empty caches")
    group.add_argument("--num-iters-warmup", type=number, default=1, metavar="N", help="starts that fill the caches")
    group.add_argument("--num-iters-warm", type=number, default=3, metavar="N", help="starts with filled caches")
    group.add_argument("--output-json", metavar="FILE", help="write the times there")
    _add_engine(startup)
    startup.set_defaults(action=_startup)

    for name, reason in foreign.BENCHMARKS.items():
        absent = kinds.add_parser(name, add_help=False)
        absent.parse_known_args = partial(_refuse, f"{absent.prog}: {reason}")

    plot = kinds.add_parser("plot", help="draws result files: latency against load, or a step's anatomy")
    plot.add_argument("plot", metavar="FILE.png", help="the picture")
    plot.add_argument("results", nargs="+", metavar="RESULT.json", help="what --save-result or --output-json wrote")
    plot.set_defaults(action=_plot)


def _refuse(reason: str, *arguments: Any) -> NoReturn:
    raise ConfigError(reason)


def _add_server(parser: Parser) -> None:
    group = parser.add_argument_group("server")
    one = _one_of(BACKENDS, foreign.BACKENDS)
    told = f"the API that is used: {', '.join(BACKENDS)} (default: openai)"
    group.add_argument("--backend", default="openai", type=one, metavar="NAME", help=told)
    group.add_argument("--base-url", metavar="URL", help="http:// or https:// and a host, instead of --host and --port")
    group.add_argument("--host", default="127.0.0.1", metavar="TEXT", help="(default: 127.0.0.1)")
    group.add_argument("--port", type=number, default=8000, metavar="N", help="(default: 8000)")
    group.add_argument("--endpoint", metavar="PATH", help="path of the API (default: as the backend has it)")
    group.add_argument("--header", nargs="*", metavar="KEY=VALUE", help="headers of each request")
    group.add_argument("--insecure", action="store_true", help="accept any certificate")
    group.add_argument("--model", metavar="TEXT", help="name of the model (default: the first that the server has)")
    group.add_argument("--served-model-name", metavar="TEXT", help="what requests call it, if not by --model")
    group.add_argument("--tokenizer", metavar="TEXT", help="Hugging Face id or folder (default: the model's)")
    group.add_argument("--tokenizer-mode", default="auto", choices=("auto", "hf"), help="both are the same here")
    group.add_argument("--skip-tokenizer-init", action="store_true", help="no tokenizer: random prompts are token ids")
    group.add_argument(
        "--vocab-size", type=number, metavar="N", help="ids are below it (default: the folder's, or 10000)"
    )
    group.add_argument("--lora-modules", nargs="+", metavar="TEXT", help="models of which each request uses one")
    group.add_argument(
        "--lora-assignment", default="random", choices=("random", "round-robin"), help="how it is chosen"
    )
    group.add_argument("--request-timeout-sec", type=float, default=21600.0, metavar="X", help="for a whole answer")


def _add_load(parser: Parser) -> None:
    group = parser.add_argument_group("load")
    group.add_argument(
        "--request-rate",
        type=float,
        nargs="+",
        default=[float("inf")],
        metavar="X",
        help="requests a second; several are measured one after the other (default: inf, all at once)",
    )
    group.add_argument("--burstiness", type=float, default=1.0, metavar="X", help="shape of the gaps; 1 is Poisson's")
    group.add_argument(
        "--self-timed",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="requests leave when the trace of --dataset-name timed_trace says (default: at --request-rate)",
    )
    group.add_argument("--max-concurrency", type=number, metavar="N", help="requests that run at once, at most")
    group.add_argument("--ramp-up-strategy", choices=("linear", "exponential"), help="how the rate grows over the run")
    group.add_argument("--ramp-up-start-rps", type=float, metavar="X", help="requests a second at the start")
    group.add_argument("--ramp-up-end-rps", type=float, metavar="X", help="requests a second at the end")
    group.add_argument(
        "--probe-request-rate", type=float, default=0.0, metavar="X", help="one-token requests beside it"
    )
    group.add_argument("--num-warmups", type=number, default=0, metavar="N", help="requests before it")
    group.add_argument("--ready-check-timeout-sec", type=float, default=0.0, metavar="X", help="wait for the server")
    group.add_argument("--profile", action="store_true", help="POST /start_profile and /stop_profile around it")
    group.add_argument("--disable-tqdm", action="store_true", help="no progress bar")


def _add_sampling(parser: Parser) -> None:
    group = parser.add_argument_group("sampling (default: the server's)")
    group.add_argument(
        "--ignore-eos",
        action=argparse.BooleanOptionalAction,
        help="answers are as long as asked for (default: for random prompts and traces)",
    )
    group.add_argument("--logprobs", type=number, metavar="N", help="of so many tokens at each place")
    for name in ("top-p", "min-p", "temperature", "frequency-penalty", "presence-penalty", "repetition-penalty"):
        group.add_argument(f"--{name}", type=float, metavar="X")
    group.add_argument("--top-k", type=int, metavar="N")
    group.add_argument("--extra-body", type=_json_object, metavar="JSON", help="more fields of each request")


def _add_result(parser: Parser) -> None:
    group = parser.add_argument_group("result")
    group.add_argument(
        "--percentile-metrics",
        default="ttft,tpot,itl",
        metavar="NAMES",
        help="of ttft, tpot, itl, e2el, client_queue_time, e2el_including_client_queue (default: ttft,tpot,itl)",
    )
    group.add_argument("--metric-percentiles", default="99", metavar="NUMBERS", help="such as 50,90,99 (default: 99)")
    group.add_argument("--goodput", nargs="+", metavar="NAME:MS", help="goals: ttft:200 tpot:50 e2el:5000")
    group.add_argument("--save-result", action="store_true", help="write a JSON file")
    group.add_argument("--save-detailed", action="store_true", help="with every request's figures, text and error")
    group.add_argument("--append-result", action="store_true", help="as another line of the file")
    group.add_argument("--result-dir", metavar="FOLDER", help="where (default: here)")
    group.add_argument("--result-filename", metavar="NAME", help="(default: label, rate, model and time)")
    group.add_argument("--label", metavar="TEXT", help="name of the run (default: the backend)")
    group.add_argument("--metadata", nargs="*", metavar="KEY=VALUE", help="more to remember in the result")
    group.add_argument("--plot", metavar="FILE.png", help="draw latency against load")
    group.add_argument("--plot-timeline", action="store_true", help="a page of when tokens came, beside the result")
    group.add_argument(
        "--timeline-itl-thresholds", nargs="+", default=["25,50"], metavar="MS", help="of its colours (default: 25,50)"
    )
    group.add_argument("--plot-dataset-stats", action="store_true", help="draw how long prompts and answers were")
    group.add_argument("--device-name", metavar="TEXT", help="the server's GPU, such as H200: its use is reported")
    _add_device(group)


def _add_dataset(parser: Parser, name: str) -> None:
    group = parser.add_argument_group("dataset")
    one, told = _one_of(DATASETS, foreign.DATASETS), f"{', '.join(DATASETS)} (default: {name})"
    group.add_argument("--dataset-name", default=name, type=one, metavar="NAME", help=told)
    group.add_argument("--dataset-path", metavar="FILE", help="of all but random and prefix_repetition")
    group.add_argument("--num-prompts", type=number, default=1000, metavar="N", help="(default: 1000)")
    group.add_argument("--input-len", type=number, metavar="N", help="tokens of a random prompt (default: 1024)")
    group.add_argument("--output-len", type=number, metavar="N", help="tokens of an answer (default: the dataset's)")
    if name == "random":
        group.add_argument("--seed", type=int, default=0, metavar="N", help="of prompts and times (default: 0)")
    group.add_argument("--no-stream", action="store_true", help="read the data set whole: always so")
    group.add_argument("--no-oversample", action="store_true", help="use no prompt of a small file twice")
    group.add_argument("--disable-shuffle", action="store_true", help="keep the order of the file")
    group.add_argument("--skip-chat-template", action="store_true", help="custom prompts are texts, not messages")
    group.add_argument("--chat-template-kwargs", type=_json_object, metavar="JSON", help="variables of the template")
    group.add_argument("--request-id-prefix", default=f"bench-{uuid.uuid4().hex[:8]}-", metavar="TEXT")
    for flag, text in (
        ("custom-output-len", "tokens of an answer to a custom prompt (default: the file's, else 256; -1: the file's)"),
        ("sharegpt-output-len", "tokens of an answer (default: as long as the one in the file)"),
        ("random-input-len", "--input-len of random prompts alone"),
        ("random-output-len", "--output-len of random prompts alone (default: 128)"),
        ("spec-bench-output-len", "--output-len of spec_bench alone (default: 256)"),
    ):
        group.add_argument(f"--{flag}", type=int, metavar="N", help=text)
    group.add_argument(
        "--random-range-ratio",
        default="0.0",
        metavar="X",
        help='lengths vary by this share around what is asked for; {"input": X, "output": X} sets both apart',
    )
    # What scripts for offline runs call it.
    names = ("--random-prefix-len",) if name == "random" else ("--random-prefix-len", "--prefix-len")
    group.add_argument(*names, type=number, default=0, metavar="N", help="common tokens before each random prompt")
    for flag, default, text in (
        ("prefix-len", 256, "common tokens of some prompts"),
        ("suffix-len", 256, "tokens of a prompt's own"),
        ("num-prefixes", 10, "different prefixes"),
        ("output-len", None, "tokens of an answer"),
    ):
        told = f"{text} (default: {default or 128})"
        group.add_argument(f"--prefix-repetition-{flag}", type=number, default=default, metavar="N", help=told)

    size = "prompts of a request, of openai-embeddings (default: 1)"
    group.add_argument("--random-batch-size", type=number, default=1, metavar="N", help=size)
    group.add_argument("--spec-bench-category", metavar="TEXT", help="of its questions (default: all)")
    chunk = "tokens that a hash of a trace stands for (default: 16)"
    group.add_argument("--timed-trace-chunk-hash-size", type=number, default=16, metavar="N", help=chunk)
    unit = "seconds that a unit of its timestamps takes (default: 1)"
    group.add_argument("--timed-trace-sec-multiplier", type=float, default=1.0, metavar="X", help=unit)
    for field in ("timestamp", "input_length", "output_length", "hash_ids"):
        flag = f"--timed-trace-label-{field.replace('_', '-')}"
        group.add_argument(flag, default=field, metavar="KEY", help=f"what a trace calls it (default: {field})")


def _add_throughput(parser: Parser) -> None:
    group = parser.add_argument_group("benchmark")
    group.add_argument("--backend", default="vllm", choices=("vllm",), help="the engine's own interface")
    group.add_argument("--num-warmups", type=number, default=0, metavar="N", help="prompts before it")
    group.add_argument("--async-engine", action="store_true", help="the server's engine, in a process of its own")
    group.add_argument("--prequeue-requests", action="store_true", help="queue all before the first step: always so")


def _add_latency(parser: Parser) -> None:
    group = parser.add_argument_group("benchmark")
    group.add_argument("--input-len", type=number, default=32, metavar="N", help="tokens of a prompt (default: 32)")
    group.add_argument("--output-len", type=number, default=128, metavar="N", help="tokens of an answer (default: 128)")
    sizes: dict[str, Any] = {"type": number, "nargs": "+", "default": [8], "metavar": "N"}
    group.add_argument("--batch-size", **sizes, help="prompts at once; several are measured in turn (default: 8)")
    group.add_argument("--use-beam-search", action="store_true", help="with --n beams")
    group.add_argument("--num-iters-warmup", type=number, default=10, metavar="N", help="(default: 10)")
    group.add_argument("--num-iters", type=number, default=30, metavar="N", help="(default: 30)")


def _add_offline(parser: Parser) -> None:
    group = parser.add_argument_group("answers and results")
    group.add_argument("--n", type=number, default=1, metavar="N", help="answers to a prompt (default: 1)")
    group.add_argument("--temperature", type=float, default=1.0, metavar="X", help="0 is greedy (default: 1)")
    group.add_argument("--disable-detokenize", action="store_true", help="make no text of answers")
    group.add_argument("--output-json", metavar="FILE", help="write the result there")
    group.add_argument("--plot", metavar="FILE.png", help="draw where the time of a step goes")
    group.add_argument("--profile", action="store_true", help="run under torch's profiler")
    group.add_argument("--profile-dir", default=".", metavar="FOLDER", help="where the trace goes (default: here)")
    _add_device(group)
    group.add_argument("--disable-tqdm", action="store_true", help="no progress bar")
    _add_engine(parser)


def _add_engine(parser: Parser) -> None:
    parser.add_argument("--shape", metavar="NAME", help="random weights in the shape of a model, such as llama-3-8b")
    add_flags(parser, EngineConfig, "engine")
    add_foreign(parser, foreign.ENGINE)


def _add_device(group: Any) -> None:
    group.add_argument("--device-bandwidth", type=float, metavar="X", help="bytes a second that the device can move")
    group.add_argument("--device-flops", type=float, metavar="X", help="operations a second in matrix products")


def _one_of(names: Sequence[str], others: Mapping[str, str]) -> Callable[[str], str]:
    """A name; why not, for one that other benchmarks know."""

    def check(text: str) -> str:
        if text in names:
            return text
        why = f"{others[text]}; " if text in others else ""
        raise argparse.ArgumentTypeError(f"{text!r}: {why}choose from {', '.join(names)}")

    return check


def _json_object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"{text!r} is not a JSON object")
    return value


def _serve(options: argparse.Namespace) -> int:
    from octavo.bench.serve import bench_serve

    return bench_serve(options)


def _throughput(options: argparse.Namespace) -> int:
    from octavo.bench.offline import bench_throughput

    return _offline(options, bench_throughput)


def _latency(options: argparse.Namespace) -> int:
    from octavo.bench.offline import bench_latency

    # The same prompts come again and again.
    return _offline(options, bench_latency, enable_prefix_caching=False)


def _startup(options: argparse.Namespace) -> int:
    from octavo.bench.startup import bench_startup

    return _offline(options, bench_startup)


def _offline(options: argparse.Namespace, run: Callable[[argparse.Namespace, EngineConfig], int], **values: Any) -> int:
    """`--shape`: the model is a folder that is made for this run."""
    if options.shape is None:
        return run(options, read_flags(EngineConfig, options, **values))
    from octavo.bench.shapes import SHAPES, write_shape

    if options.shape not in SHAPES:
        raise ConfigError(f"--shape {options.shape}: the shapes are {', '.join(SHAPES)}")
    if "model" in options:
        raise ConfigError("--shape makes the model: leave out --model")
    with tempfile.TemporaryDirectory() as place:
        options.model, options.load_format = str(write_shape(options.shape, Path(place) / options.shape)), "dummy"
        return run(options, read_flags(EngineConfig, options, **values))


def _plot(options: argparse.Namespace) -> int:
    from octavo.bench.output import read_results
    from octavo.bench.plots import plot_results

    plot_results(read_results([Path(path) for path in options.results]), options.plot)
    return 0
