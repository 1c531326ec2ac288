"""What crosses between the front and the engine process: msgpack of fixed schemas in length-prefixed frames.

They speak over a socket pair that only the two of them ever hold: it has no name that another process could
connect to, and either side sees at once when the other is gone. A frame is 4 bytes of length, then the message.
"""

from __future__ import annotations

import socket
import struct

import msgspec

from octavo.core.config import EngineConfig
from octavo.core.outputs import StepOutputs
from octavo.core.request import EngineRequest
from octavo.engine.build import EngineInfo

MAX_FRAME = 64 << 20  # a batch of 256 prompts of 64k tokens; more is an error of ours
HEADER = struct.Struct("<I")


class Start(msgspec.Struct, array_like=True):
    """The first frame to the engine process."""

    config: EngineConfig
    folder: str
    log_level: str = "info"
    log_format: str = "text"


class Add(msgspec.Struct, tag="add", array_like=True):
    requests: list[EngineRequest]


class Abort(msgspec.Struct, tag="abort", array_like=True):
    uids: list[int]


class Ready(msgspec.Struct, tag="ready", array_like=True):
    info: EngineInfo


class Step(msgspec.Struct, tag="step", array_like=True):
    outputs: StepOutputs


class Failed(msgspec.Struct, tag="failed", array_like=True):
    """The engine cannot start, or go on. `message` is for the log and for whoever started it."""

    message: str
    config: bool  # the configuration is at fault, not the engine


ToEngine = Add | Abort
FromEngine = Ready | Step | Failed


class Codec:
    """Encodes any message, decodes those of one direction."""

    def __init__(self) -> None:
        self._encoder = msgspec.msgpack.Encoder()
        self.to_engine = msgspec.msgpack.Decoder(ToEngine)
        self.from_engine = msgspec.msgpack.Decoder(FromEngine)

    def frame(self, message: Start | ToEngine | FromEngine) -> bytes:
        data = self._encoder.encode(message)
        assert len(data) <= MAX_FRAME, "a frame is larger than the limit"
        return HEADER.pack(len(data)) + data


def read_frame(sock: socket.socket) -> bytearray | None:
    """The next frame, or None when the other side is gone."""
    header = _read(sock, HEADER.size)
    if header is None:
        return None
    (size,) = HEADER.unpack(header)
    if size > MAX_FRAME:
        return None
    return _read(sock, size)


def _read(sock: socket.socket, size: int) -> bytearray | None:
    data = bytearray(size)
    view = memoryview(data)
    while view:
        count = sock.recv_into(view)
        if count == 0:
            return None
        view = view[count:]
    return data
