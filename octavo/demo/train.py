"""Train the demo model and its draft from nothing: the text, the tokenizer, the weights.

    python -m octavo.demo.train --out DIR                    the model, into DIR/model
    python -m octavo.demo.train --out DIR --draft            its draft, into DIR/draft, distilled from DIR/model
    python -m octavo.demo.train --out DIR --resume           go on from DIR/model, say after the corpus has grown

Worker processes write fresh text while the device trains; a batch is used once, and again only if the writers are
slower than the device. Training ends after `--steps` or `--minutes`, whichever comes first, and the learning rate
follows a cosine over that span. The folder is rewritten every minute, so that an interrupted run leaves a usable
checkpoint.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import multiprocessing
import os
import random
import shutil
import time
from collections.abc import Callable, Iterator
from multiprocessing.pool import Pool
from pathlib import Path
from typing import TextIO

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor

from octavo.demo import corpus, net

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json")
TOKENIZER_SEED = 0  # the batches take the seeds from 1 on
END_ID, STOP_ID = corpus.SPECIAL.index(corpus.END), corpus.SPECIAL.index(corpus.STOP)


# --- tokenizer ------------------------------------------------------------------------------------


def train_tokenizer(documents: int) -> Tokenizer:
    """A byte-level BPE. Digits stand alone, so that arithmetic is learned by place and not by heart."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    reserved = len(corpus.TOOL_MARKS)
    trainer = trainers.BpeTrainer(
        vocab_size=net.VOCAB - reserved,
        special_tokens=list(corpus.SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    markers = corpus.SPECIAL + corpus.TOOL_MARKS
    texts = itertools.islice(corpus.documents(TOKENIZER_SEED), documents)
    tokenizer.train_from_iterator((part for text in texts for part in corpus.without(text, markers)), trainer)
    tokenizer.add_tokens([AddedToken(mark, special=False, normalized=False) for mark in corpus.TOOL_MARKS])
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "chat_template.jinja").write_text(corpus.CHAT_TEMPLATE)
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": net.MODEL.context,
        "eos_token": corpus.STOP,
        "pad_token": corpus.END,
        "bos_token": None,
        "unk_token": None,
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")
    generation = {
        "do_sample": True,
        "temperature": 0.7,
        "top_p": 0.9,
        "eos_token_id": [STOP_ID, END_ID],
        "pad_token_id": END_ID,
    }
    (folder / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")


# --- batches --------------------------------------------------------------------------------------


def pack(tokenizer: Tokenizer, texts: Iterator[str], rows: int, length: int) -> np.ndarray:
    """uint16 [rows, length + 1]. Every row begins where a document begins; its last document is cut at the edge."""
    packed = np.empty((rows, length + 1), dtype=np.uint16)
    for row in packed:
        filled = 0
        while filled < len(row):
            ids = [*tokenizer.encode(next(texts)).ids, END_ID][: len(row) - filled]
            row[filled : filled + len(ids)] = ids
            filled += len(ids)
    return packed


_worker: tuple[Tokenizer, int, int]


def _start_worker(path: str, rows: int, length: int) -> None:
    global _worker
    _worker = Tokenizer.from_file(path), rows, length


def _write_batch(seed: int) -> np.ndarray:
    tokenizer, rows, length = _worker
    return pack(tokenizer, corpus.documents(seed), rows, length)


def batches(pool: Pool, first_seed: int, waiting_for: int, device: torch.device) -> Iterator[tuple[Tensor, bool]]:
    """Batches for ever, each with whether it is fresh. All are kept on the device: 2 bytes a token."""
    kept: list[Tensor] = []
    r = random.Random(first_seed)
    seeds = itertools.count(first_seed)
    waiting = [pool.apply_async(_write_batch, (next(seeds),)) for _ in range(waiting_for)]
    while True:
        while not any(job.ready() for job in waiting) and len(kept) >= 64:
            yield r.choice(kept), False
        job = next((job for job in waiting if job.ready()), waiting[0])
        waiting.remove(job)
        waiting.append(pool.apply_async(_write_batch, (next(seeds),)))
        kept.append(torch.from_numpy(job.get().astype(np.int16)).to(device))
        yield kept[-1], True


# --- training -------------------------------------------------------------------------------------

Loss = Callable[[Tensor], Tensor]


def next_token_loss(student: net.Llama) -> Loss:
    def loss(ids_BT: Tensor) -> Tensor:
        logits_BTV = student(ids_BT[:, :-1])
        return F.cross_entropy(logits_BTV.flatten(0, 1).float(), ids_BT[:, 1:].flatten())

    return loss


def distillation_loss(student: net.Llama, teacher: net.Llama) -> Loss:
    """The cross-entropy to the teacher's distribution: the draft shall guess what the model says, not the text."""

    def loss(ids_BT: Tensor) -> Tensor:
        with torch.no_grad():
            target_BTV = teacher(ids_BT[:, :-1]).float().softmax(-1)
        logits_BTV = student(ids_BT[:, :-1]).float()
        mean: Tensor = -(target_BTV * logits_BTV.log_softmax(-1)).sum(-1).mean()
        return mean

    return loss


def optimizer_of(student: net.Llama, rate: float) -> torch.optim.AdamW:
    matrices = [p for p in student.parameters() if p.dim() == 2]
    vectors = [p for p in student.parameters() if p.dim() < 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    fused = matrices[0].device.type == "cuda"
    return torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.95), fused=fused)


def prepare(args: argparse.Namespace, folder: Path) -> None:
    """Put the tokenizer and its settings into the folder, unless they are there already."""
    if args.draft:
        folder.mkdir(parents=True, exist_ok=True)
        for name in TOKENIZER_FILES:
            shutil.copy(args.out / "model" / name, folder / name)
    elif not args.resume:
        save_tokenizer(train_tokenizer(args.tokenizer_documents), folder)


def train(args: argparse.Namespace) -> None:
    folder = args.out / ("draft" if args.draft else "model")
    prepare(args, folder)
    setup = str(folder / "tokenizer.json"), args.rows, args.length
    with multiprocessing.get_context("fork").Pool(args.workers, _start_worker, setup) as pool:  # before CUDA starts
        device = torch.device(
            ("cuda" if torch.cuda.is_available() else "cpu") if args.device == "auto" else args.device
        )
        torch.manual_seed(args.seed)
        shape = net.DRAFT if args.draft else net.MODEL
        student = (net.load(folder) if args.resume else net.Llama(shape)).to(device)
        if args.draft:
            loss_of = distillation_loss(student, net.load(args.out / "model").to(device).eval())
        else:
            loss_of = next_token_loss(student)
        with (args.out / f"{folder.name}-log.tsv").open("a" if args.resume else "w") as log:
            loop(args, student, loss_of, batches(pool, args.first_seed, 2 * args.workers, device), folder, log)


def loop(
    args: argparse.Namespace,
    student: net.Llama,
    loss_of: Loss,
    stream: Iterator[tuple[Tensor, bool]],
    folder: Path,
    log: TextIO,
) -> None:
    optimizer = optimizer_of(student, args.rate)
    settings = net.config(student.shape, STOP_ID, END_ID)
    print("step\tseconds\ttokens\tfresh\tloss", file=log, flush=True)
    started = saved = time.monotonic()
    tokens = fresh_tokens = 0
    recent: list[Tensor] = []
    for step, (batch, fresh) in enumerate(stream):
        if step == 0:
            started = time.monotonic()  # the workers have begun
        spent = time.monotonic() - started
        progress = max(step / args.steps, spent / (60 * args.minutes))
        if step % 100 == 0 or progress >= 1:
            mean = torch.stack(recent).mean().item() if recent else math.nan
            line = f"{step}\t{spent:.1f}\t{tokens}\t{fresh_tokens}\t{mean:.4f}"
            print(line, file=log, flush=True)
            print(line, flush=True)
            recent.clear()
        if progress >= 1:
            break
        cosine = 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress))
        for group in optimizer.param_groups:
            group["lr"] = args.rate * min(1.0, (step + 1) / args.warmup) * cosine
        with torch.autocast(batch.device.type, torch.bfloat16, enabled=batch.device.type == "cuda"):
            loss = loss_of(batch.long())
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        recent.append(loss.detach())
        tokens += batch.shape[0] * args.length
        fresh_tokens += batch.shape[0] * args.length * fresh
        if time.monotonic() - saved > 60:
            saved = time.monotonic()
            net.save(student, folder, settings)
    net.save(student, folder, settings)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Train the Octavo demo model, or with --draft its draft.")
    parser.add_argument("--out", type=Path, required=True, help="folder for model/, draft/ and the logs")
    parser.add_argument("--draft", action="store_true", help="distil the draft from OUT/model")
    parser.add_argument("--resume", action="store_true", help="go on from the weights and the tokenizer in OUT")
    parser.add_argument(
        "--first-seed", type=int, default=1, help="seed of the first batch; a resumed run takes new ones"
    )
    parser.add_argument("--steps", type=int, default=100_000, help="stop after this many batches")
    parser.add_argument("--minutes", type=float, default=6.0, help="stop after this much training time")
    parser.add_argument("--rows", type=int, default=32, help="rows of a batch")
    parser.add_argument("--length", type=int, default=net.MODEL.context, help="tokens of a row")
    parser.add_argument("--rate", type=float, default=3e-3, help="peak learning rate")
    parser.add_argument("--warmup", type=int, default=200, help="steps until the peak")
    parser.add_argument(
        "--workers", type=int, default=max(1, (os.cpu_count() or 2) - 1), help="processes that write text"
    )
    parser.add_argument("--tokenizer-documents", type=int, default=40_000, help="documents the tokenizer is trained on")
    parser.add_argument("--device", choices=("auto", "cuda", "cpu"), default="auto")
    parser.add_argument("--seed", type=int, default=0, help="seed of the initial weights")
    train(parser.parse_args(arguments))


if __name__ == "__main__":
    main()
