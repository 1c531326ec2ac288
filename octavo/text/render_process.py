"""A process that renders chats: `python -m octavo.text.render_process FD`. See `octavo.text.renderer`."""

from __future__ import annotations

import json
import resource
import socket
import sys

import msgspec

from octavo.core import guard
from octavo.core.child import MAX_FRAME, bound_memory, die_with_parent, frame, read_frame
from octavo.core.errors import RequestError
from octavo.text.chat import ChatTemplate
from octavo.text.renderer import Chat, Rendered

MOST_BYTES = 512 << 20  # beside what it is when it starts


def render(template: ChatTemplate, data: bytearray) -> bytes:
    """The answer's frame."""
    try:
        chat = msgspec.json.decode(data, type=Chat)
        text = template.render(**{name: getattr(chat, name) for name in chat.__struct_fields__})
        found = msgspec.msgpack.encode(Rendered(text))
        if len(found) > MAX_FRAME:
            raise RequestError("the chat template was stopped: its output becomes too long", "messages")
    except RequestError as error:
        found = _refusal(error.message, error.param, error.code)
    except UnicodeEncodeError:
        found = _refusal("the chat template prints half a character")
    except RecursionError:
        found = _refusal("messages are nested too deeply")
    return frame(found)


def _refusal(message: str, param: str | None = "messages", code: str = RequestError.code) -> bytes:
    return msgspec.msgpack.encode(Rendered("", message.encode(errors="replace").decode(), param, code))


def main() -> int:
    sock = socket.socket(fileno=int(sys.argv[1]))
    die_with_parent(sock)
    guard.install()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    data = read_frame(sock)
    if data is None:
        return 1
    template = ChatTemplate(*json.loads(data))
    sock.sendall(frame(b""))
    bound_memory(MOST_BYTES)
    while (data := read_frame(sock)) is not None:
        sock.sendall(render(template, data))
    return 0


if __name__ == "__main__":
    sys.exit(main())
