"""Random walks through the masks of a grammar."""

from __future__ import annotations

import numpy as np

from octavo.grammar.vocabulary import Vocabulary

FREE_TOKENS, MOST_TOKENS = 40, 400


def walk(vocabulary: Vocabulary, source: str, rng: np.random.Generator, free_tokens: int = FREE_TOKENS) -> str | None:
    """A text that the masks allow, drawn at random; None if it has no end in sight."""
    matcher, written = vocabulary.matcher(source), []
    closing = {token for token, text in enumerate(vocabulary.tokens) if text in (b'"', b"}", b"]", b",", b"0", b":")}
    letters = {token for token, text in enumerate(vocabulary.tokens) if len(text) == 1 and 32 < text[0] < 127}
    for count in range(MOST_TOKENS):
        mask = np.zeros(vocabulary.words, np.int32)
        matcher.unsafe_compute_mask_ptr(mask.ctypes.data, mask.nbytes)
        assert not matcher.is_error(), matcher.get_error()
        if vocabulary.ends(matcher, mask):
            break
        allowed = np.flatnonzero(np.unpackbits(mask.view(np.uint8), bitorder="little"))
        if count > free_tokens:  # it is time to come to an end
            if matcher.is_accepting():
                break
            last = [token for token in allowed if token in closing]
            allowed = last or [token for token in allowed if token in letters] or allowed
        token = int(rng.choice(allowed))
        if token in vocabulary.eos_ids:
            break
        assert matcher.consume_token(token)
        written.append(vocabulary.tokens[token])
    else:
        return None
    return b"".join(written).decode()
