"""Who runs beside whom after crashes."""

from __future__ import annotations

from octavo.core.params import SamplingParams
from octavo.core.request import EngineRequest, pack_ids
from octavo.engine.gate import Gate, Suspects
from octavo.engine.outputs import RequestState


def state(uid: int, prompt: int) -> RequestState:
    params = SamplingParams(detokenize=False)
    request = EngineRequest(uid, pack_ids([prompt]), params, 16, [], [])
    return RequestState(str(uid), request, None, None, 0.0)  # type: ignore[arg-type]


def test_who_was_named_twice_runs_alone():
    suspects, sent = Suspects(), []
    gate = Gate(suspects, lambda states: sent.append([each.request.uid for each in states]))
    first, second, suspect, other = (state(uid, uid) for uid in range(1, 5))
    gate.submit([first, second])
    for _ in range(2):
        suspects.suspect([suspect])
    gate.submit([suspect])
    gate.submit([other])
    assert sent == [[1, 2]]
    gate.leave(first)
    gate.leave(second)
    assert sent == [[1, 2], [3]]
    gate.leave(suspect)
    assert sent == [[1, 2], [3], [4]]


def test_a_suspect_that_leaves_before_its_turn():
    suspects, sent = Suspects(), []
    gate = Gate(suspects, lambda states: sent.append([each.request.uid for each in states]))
    running, suspect, other = state(1, 1), state(2, 2), state(3, 3)
    gate.submit([running])
    for _ in range(2):
        suspects.suspect([suspect])
    gate.submit([suspect, other])
    gate.leave(suspect)
    assert sent == [[1], [3]]


def test_a_fingerprint_is_of_prompt_and_parameters():
    suspects = Suspects()
    suspects.suspect([state(1, 5), state(9, 5)])
    assert suspects.crashes(state(2, 5)) == 1 and suspects.crashes(state(3, 6)) == 0
    assert suspects.fingerprint(state(1, 5)) != Suspects().fingerprint(state(1, 5))
    suspects.clear(state(4, 5))
    assert suspects.crashes(state(2, 5)) == 0
