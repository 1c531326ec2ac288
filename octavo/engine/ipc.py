"""What crosses between the front and the engine process: msgpack of fixed schemas in length-prefixed frames.

They speak over a socket pair that only the two of them ever hold: it has no name that another process could
connect to, and either side sees at once when the other is gone.
"""

from __future__ import annotations

import msgspec

from octavo.core.child import frame
from octavo.core.config import EngineConfig
from octavo.core.outputs import StepOutputs
from octavo.core.picture import Picture
from octavo.core.request import EngineRequest
from octavo.engine.build import EngineInfo


class Start(msgspec.Struct, array_like=True):
    """The first frame to the engine process."""

    config: EngineConfig
    folder: str
    log_level: str = "info"
    log_format: str = "text"
    # Descriptors of memory that the front holds too, and reads when the process has died.
    progress: int = -1
    log: int = -1
    stacks: int = -1


class Add(msgspec.Struct, tag="add", array_like=True):
    requests: list[EngineRequest]


class Abort(msgspec.Struct, tag="abort", array_like=True):
    uids: list[int]


class ExpectGrammar(msgspec.Struct, tag="grammar", array_like=True):
    """A request with a grammar will come: what follows it can be started while the grammar is checked."""


class Look(msgspec.Struct, tag="look", array_like=True):
    """Somebody watches: asks for one `Seen`."""


class Seen(msgspec.Struct, tag="seen", array_like=True):
    picture: Picture


class Ready(msgspec.Struct, tag="ready", array_like=True):
    info: EngineInfo


class Step(msgspec.Struct, tag="step", array_like=True):
    outputs: StepOutputs


class Failed(msgspec.Struct, tag="failed", array_like=True):
    """The engine cannot start, or go on. `message` is for the log and for whoever started it."""

    message: str
    config: bool  # the configuration is at fault, not the engine


ToEngine = Add | Abort | ExpectGrammar | Look
FromEngine = Ready | Step | Seen | Failed


class Codec:
    """Encodes any message, decodes those of one direction."""

    def __init__(self) -> None:
        self._encoder = msgspec.msgpack.Encoder()
        self.to_engine = msgspec.msgpack.Decoder(ToEngine)
        self.from_engine = msgspec.msgpack.Decoder(FromEngine)

    def frame(self, message: Start | ToEngine | FromEngine) -> bytes:
        return frame(self._encoder.encode(message))
