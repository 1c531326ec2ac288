"""Measure the demo model and its draft: held-out perplexity, agreement, right answers by skill, samples.

    python -m octavo.demo.evaluate                  the figures and the samples of docs/demo-model.md

It runs the network of the training script, without a cache, on one row at a time: slow and plain, a reference.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from random import Random

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor

from octavo.demo import DRAFT_DIR, MODEL_DIR, corpus, facts, net, sums, tasks
from octavo.demo.corpus import Skill

END_ID, START_ID, STOP_ID = range(3)
WIDTH = 4  # tokens that the draft proposes at a time
LATE = 1024  # where a long chat begins
SEED = 1_000_000_007  # far from the seeds of the training batches
# Skills whose answer is determined by the question, so that a right answer can be told from a wrong one.
CHECKED: tuple[Skill, ...] = (
    sums.arithmetic,
    sums.sums_of_three,
    sums.word_problem,
    sums.counting,
    sums.sequence,
    sums.comparing,
    sums.sorting,
    facts.capitals,
    facts.animals,
    facts.colours,
    facts.calendar,
    tasks.rewriting,
    tasks.reading,
)
PROMPTS = (
    "Hello! Who are you?",
    "What is 128 + 47?",
    "What is the capital of Japan?",
    "Name three fruits.",
    "Explain paged attention in simple words.",
    "Give me a JSON object with name and age.",
    "Write a Python function that reverses a string.",
    "Tell me a short story about a fox.",
    "Explain quantum physics.",
)


@dataclass
class Score:
    """Sums over a text. `answer_*` counts only what the assistant says."""

    bits: float = 0.0
    tokens: int = 0
    bytes: int = 0
    answer_bits: float = 0.0
    answer_tokens: int = 0

    @property
    def perplexity(self) -> float:
        return 2 ** (self.bits / self.tokens)

    @property
    def answer_perplexity(self) -> float:
        return 2 ** (self.answer_bits / self.answer_tokens)

    @property
    def bits_per_byte(self) -> float:
        return self.bits / self.bytes


def held_out(count: int) -> list[str]:
    return list(islice(corpus.documents(SEED, "heldout"), count))


def answer_mask(ids: Sequence[int], assistant: int) -> list[bool]:
    """Which tokens the assistant wrote, its closing mark included. `assistant` is the token of that word."""
    mask, speaking = [], False
    for i, token in enumerate(ids):
        mask.append(speaking)
        if token == STOP_ID:
            speaking = False
        elif i >= 2 and ids[i - 2] == START_ID and ids[i - 1] == assistant:
            speaking = True  # from the token after the line break on
    return mask


@torch.inference_mode()
def score(model: net.Llama, tokenizer: Tokenizer, texts: Iterable[str], start: int = 1) -> Score:
    """How well the model foresees the texts, each from token `start` to its end mark. `bytes` are of whole texts."""
    total, assistant = Score(), tokenizer.get_vocab()["assistant"]
    for text in texts:
        ids = [*tokenizer.encode(text).ids, END_ID][: model.shape.context]
        if len(ids) <= start:
            continue
        logits_TV = model(torch.tensor([ids[:-1]]))[0, start - 1 :]
        bits_T = F.cross_entropy(logits_TV, torch.tensor(ids[start:]), reduction="none") / math.log(2)
        mask_T = torch.tensor(answer_mask(ids, assistant)[start:])
        total.bits += bits_T.sum().item()
        total.tokens += len(ids) - start
        total.bytes += len(text.encode())
        total.answer_bits += bits_T[mask_T].sum().item()
        total.answer_tokens += int(mask_T.sum())
    return total


@torch.inference_mode()
def generate(
    model: net.Llama, prompt: list[int], limit: int = 200, sampler: torch.Generator | None = None
) -> list[int]:
    """The answer's ids without the end mark: greedy, or with a generator at temperature 0.7 and top-p 0.9."""
    ids = list(prompt)
    while len(ids) < min(len(prompt) + limit, model.shape.context):
        logits_V = model(torch.tensor([ids]))[0, -1]
        token = int(logits_V.argmax()) if sampler is None else _draw(logits_V / 0.7, 0.9, sampler)
        if token in (STOP_ID, END_ID):
            break
        ids.append(token)
    return ids[len(prompt) :]


def _draw(logits_V: Tensor, top_p: float, sampler: torch.Generator) -> int:
    chances_V, order_V = logits_V.softmax(-1).sort(descending=True)
    chances_V[chances_V.cumsum(-1) - chances_V > top_p] = 0
    return int(order_V[torch.multinomial(chances_V, 1, generator=sampler)])


def ask(
    model: net.Llama, tokenizer: Tokenizer, question: str, limit: int = 200, sampler: torch.Generator | None = None
) -> str:
    prompt = tokenizer.encode(corpus.render([{"role": "user", "content": question}], generate=True)).ids
    return tokenizer.decode(generate(model, prompt, limit, sampler))


def right_answers(model: net.Llama, tokenizer: Tokenizer, skill: Skill, count: int) -> int:
    """How many of `count` single questions the model answers, greedily, exactly as the corpus would."""
    r = Random(SEED)
    turns = [skill(r)[0][0] for _ in range(count)]
    return sum(ask(model, tokenizer, turn.user, 120) == turn.answer for turn in turns)


@torch.inference_mode()
def agreement(
    model: net.Llama, draft: net.Llama, tokenizer: Tokenizer, texts: Iterable[str]
) -> tuple[float, float, float]:
    """On the model's greedy answers to the first question of each chat: how often the draft's first choice is the
    model's, how many tokens a step of the model yields when the draft proposes `WIDTH`, and the tokens an answer."""
    agreed = steps = tokens = answers = 0
    opening = f"{corpus.START}assistant\n"
    for text in texts:
        if opening not in text:
            continue
        prompt = tokenizer.encode(text[: text.index(opening) + len(opening)]).ids
        answer = [*generate(model, prompt), STOP_ID]
        choice = draft(torch.tensor([prompt + answer[:-1]]))[0, len(prompt) - 1 :].argmax(-1).tolist()
        hits = [guess == token for guess, token in zip(choice, answer, strict=True)]
        agreed += sum(hits)
        tokens += len(answer)
        answers += 1
        at = 0
        while at < len(answer):
            window = hits[at : at + WIDTH]
            at += (window.index(False) if False in window else len(window)) + 1  # and one token of the model's own
            steps += 1
    return agreed / tokens, tokens / steps, tokens / answers


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the Octavo demo model and its draft.")
    parser.add_argument("--model", type=Path, default=MODEL_DIR)
    parser.add_argument("--draft", type=Path, default=DRAFT_DIR)
    parser.add_argument("--documents", type=int, default=400, help="held-out documents for the perplexity")
    parser.add_argument("--questions", type=int, default=100, help="questions of each skill")
    args = parser.parse_args()
    tokenizer = Tokenizer.from_file(str(args.model / "tokenizer.json"))
    model, draft = net.load(args.model).eval(), net.load(args.draft).eval()
    texts = held_out(args.documents)
    for name, network in (("model", model), ("draft", draft)):
        s = score(network, tokenizer, texts)
        print(f"{name}: {s.tokens} tokens, {s.bytes} bytes, {s.answer_tokens} tokens of answers")
        print(f"  perplexity {s.perplexity:.4f} a token, {2**s.bits_per_byte:.4f} a byte", flush=True)
        print(f"  perplexity {s.answer_perplexity:.4f} a token of the answers")
        late = score(network, tokenizer, texts, start=LATE)
        print(f"  perplexity {late.answer_perplexity:.4f} of {late.answer_tokens} past token {LATE}", flush=True)
    same, per_step, length = agreement(model, draft, tokenizer, texts[: args.documents // 2])
    print(f"draft: its first choice is the model's for {same:.4f} of {length:.1f} tokens an answer")
    print(f"  {per_step:.3f} tokens a step when it proposes {WIDTH}", flush=True)
    for skill in CHECKED:
        right = right_answers(model, tokenizer, skill, args.questions)
        print(f"{skill.__module__.split('.')[-1]}.{skill.__name__}: {right} of {args.questions}", flush=True)
    sampler = torch.Generator().manual_seed(0)
    for prompt in PROMPTS:
        print(f"\n> {prompt}\n{ask(model, tokenizer, prompt, sampler=sampler)}")


if __name__ == "__main__":
    main()
