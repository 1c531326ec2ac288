"""Beam search over the engine: each step asks for the next token's likeliest candidates of every beam.

The beams of a step are ordinary requests of one token. Their prefixes are in the cache, so a step computes little
more than one token a beam.
"""

from __future__ import annotations

from octavo.core.outputs import BeamSearchOutput, BeamSearchSequence, RequestOutput
from octavo.core.params import MAX_LOGPROBS, BeamSearchParams, SamplingParams
from octavo.text.detokenizer import Detokenizer
from octavo.text.tokenizer import Tokenizer


class Beams:
    """The beams of one prompt. Ranked by logprob / length ** length_penalty, where length counts the answer alone
    with its end token, as transformers does."""

    def __init__(self, prompt: list[int], params: BeamSearchParams, tokenizer: Tokenizer) -> None:
        self.params, self.tokenizer = params, tokenizer
        self._prompt_len = len(prompt)
        self._live = [BeamSearchSequence(prompt)]
        self._ended: list[BeamSearchSequence] = []
        self._allowed = None if params.allowed_token_ids is None else frozenset(params.allowed_token_ids)
        # Twice the width: even if half of them end, enough go on. Logprobs know nothing of what is allowed.
        self.step_params = SamplingParams(
            max_tokens=1,
            temperature=0.0,
            logprobs=2 * params.beam_width if self._allowed is None else MAX_LOGPROBS,
            ignore_eos=True,
            detokenize=False,
            allowed_token_ids=params.allowed_token_ids,
        )

    @property
    def done(self) -> bool:
        return not self._live

    def prompts(self) -> list[list[int]]:
        return [beam.tokens for beam in self._live]

    def advance(self, outputs: list[RequestOutput]) -> None:
        """Takes the candidates for each of `prompts()`, keeps the best."""
        width = self.params.beam_width
        candidates: list[BeamSearchSequence] = []
        for beam, output in zip(self._live, outputs, strict=True):
            logprobs = output.outputs[0].logprobs
            assert logprobs is not None and len(logprobs) == 1, "a step of a beam gives one token's candidates"
            for token, found in logprobs[0].items():
                if self._allowed is not None and token not in self._allowed:
                    continue
                total = beam.cum_logprob + found.logprob
                candidates.append(BeamSearchSequence([*beam.tokens, token], cum_logprob=total))
        candidates.sort(key=lambda beam: -beam.cum_logprob)
        self._live = []
        full = len(candidates[0].tokens) - self._prompt_len >= self.params.max_tokens
        ends = () if self.params.ignore_eos else self.tokenizer.eos_ids
        for rank, beam in enumerate(candidates[: 2 * width]):
            if beam.tokens[-1] in ends:
                # An ended beam counts only if it is among the best, not because room was left below them.
                if rank < width:
                    beam.finish_reason = "stop"
                    self._ended.append(beam)
            elif len(self._live) < width:
                self._live.append(beam)
        if full:
            for beam in self._live:
                beam.finish_reason = "length"
            self._ended += self._live
            self._live = []
        elif len(self._ended) >= width:
            # No live beam can still get among them once its score now is below theirs.
            self._ended = sorted(self._ended, key=self._score, reverse=True)[:width]
            if not self._live or self._score(self._live[0]) <= self._score(self._ended[-1]):
                self._live = []

    def result(self) -> BeamSearchOutput:
        best = sorted(self._ended, key=self._score, reverse=True)[: self.params.beam_width]
        for beam in best:
            answer = beam.tokens[self._prompt_len :]
            if beam.finish_reason == "stop" and not self.params.include_stop_str_in_output:
                answer = answer[:-1]
            prompt, skip = beam.tokens[: self._prompt_len], self.params.skip_special_tokens
            detokenizer = Detokenizer(self.tokenizer, prompt, skip_special_tokens=skip)
            beam.text = detokenizer.push(answer) + detokenizer.finish()
        return BeamSearchOutput(best)

    def _score(self, beam: BeamSearchSequence) -> float:
        length = max(1, len(beam.tokens) - self._prompt_len)
        return float(beam.cum_logprob / length**self.params.length_penalty)
