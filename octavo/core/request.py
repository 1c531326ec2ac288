"""The one form in which a request reaches the engine. Built only by `octavo.engine.intake`; trusted after it.

It crosses the process boundary as msgpack, so it holds plain data: token ids travel as little-endian int32 bytes.
"""

from __future__ import annotations

import struct

import msgspec
import numpy as np
import numpy.typing as npt

from octavo.core.params import SamplingParams
from octavo.core.pooling import PoolingParams

IntArray = npt.NDArray[np.int32]


class EngineRequest(msgspec.Struct, array_like=True):
    """A prompt and what to do with it; `params.n` sequences with the uids `uid … uid + n - 1` come of it."""

    uid: int  # chosen by the client of the engine, never reused while the engine lives
    prompt: bytes  # int32 token ids
    params: SamplingParams
    max_tokens: int  # tokens to generate at most, resolved against the context length
    stop_ids: list[int]  # EOS and stop_token_ids: any of them ends the answer
    bad_sequences: list[list[int]]  # bad_words as token ids
    priority: int = 0  # lower is served first; not under the policy fcfs
    salt: str = ""  # requests share cached prefixes only where their salts are equal
    adapter: str = ""  # likewise for the LoRA adapter whose KV this is
    stream: bool = True  # False: the tokens are sent once, when the sequence ends
    label: str = ""  # the client's request id, for the log
    thinking: list[int] = []  # the tokens that begin and end reasoning, where it has a budget
    tenant: str = ""  # whose it is, for the fair policy
    # Answers that an engine has died began: (index, int32 token ids so far) of those that are not over.
    resumed: list[tuple[int, bytes]] = []
    grammar: str = ""  # what the answer must match, as a checker passed it (octavo.grammar)
    pooling: PoolingParams | None = None  # what is wanted of the prompt, where nothing is generated
    token_types: bytes = b""  # uint8, one a token: which of two texts it is of; empty: all are of one

    def prompt_ids(self) -> IntArray:
        return np.frombuffer(self.prompt, dtype=np.int32)


def pack_ids(ids: list[int] | IntArray) -> bytes:
    """Token ids as the bytes that `EngineRequest.prompt` holds."""
    if isinstance(ids, list):
        return struct.pack(f"<{len(ids)}i", *ids)  # half the time of an array's
    return np.asarray(ids, dtype=np.int32).tobytes()
