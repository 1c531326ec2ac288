"""/v1/files and /v1/batches through the `openai` package, and what becomes of them when a server ends."""

from __future__ import annotations

import asyncio
import io
import json
import os
import stat
import time
from pathlib import Path
from typing import Any

import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo.core.config import EngineConfig
from octavo.core.errors import ConfigError, EngineError, RequestError, RequestTooLarge
from octavo.server.batch import lines
from octavo.server.batch.batches import read_done
from octavo.server.batch.files import Folder
from octavo.server.batch.multipart import Multipart
from octavo.server.batch.offline import run_batch
from octavo.server.config import ServerConfig
from tests.server.conftest import Running, StartServer, error_of, wait_for
from tests.server.fake_engine import FakeLLM

CHAT = "/v1/chat/completions"


def line(id: str, say: str, url: str = CHAT, **fields: Any) -> dict[str, Any]:
    body: dict[str, Any] = {"messages": [{"role": "user", "content": f"say:{say}"}]} if url == CHAT else {"prompt": say}
    return {"custom_id": id, "method": "POST", "url": url, "body": {**body, **fields}}


def upload(client: openai.OpenAI, rows: list[Any]) -> str:
    data = b"".join(json.dumps(row).encode() + b"\n" if not isinstance(row, bytes) else row for row in rows)
    return client.files.create(file=("in.jsonl", data), purpose="batch").id


def finished(client: openai.OpenAI, id: str, seconds: float = 10) -> Any:
    over = ("failed", "completed", "expired", "cancelled")
    wait_for(lambda: client.batches.retrieve(id).status in over, seconds)
    return client.batches.retrieve(id)


def results(client: openai.OpenAI, id: str) -> dict[str, Any]:
    found = [json.loads(row) for row in client.files.content(id).text.splitlines()]
    assert len({row["custom_id"] for row in found}) == len(found)
    return {row["custom_id"]: row for row in found}


def test_a_batch(server: Running) -> None:
    client = server.client()
    rows = [line(f"r{i}", f"answer {i}") for i in range(200)] + [line("bad", "x", temperature=-1)]
    rows += [line("stream", "x", stream=True)]
    batch = client.batches.create(
        input_file_id=upload(client, rows), endpoint=CHAT, completion_window="24h", metadata={"a": "b"}
    )
    assert batch.status == "validating" and batch.object == "batch" and batch.metadata == {"a": "b"}
    done = finished(client, batch.id)
    assert (done.status, done.request_counts.to_dict()) == ("completed", {"total": 202, "completed": 200, "failed": 2})
    good, bad = results(client, done.output_file_id), results(client, done.error_file_id)
    for i in range(200):
        response = good[f"r{i}"]["response"]
        assert response["status_code"] == 200 and good[f"r{i}"]["error"] is None
        assert response["body"]["choices"][0]["message"]["content"] == f"answer {i}"
    assert bad["bad"]["response"]["status_code"] == 400
    assert bad["bad"]["response"]["body"]["error"]["param"] == "temperature"
    assert bad["stream"]["response"]["body"]["error"]["param"] == "stream"
    assert batch.id in [found.id for found in client.batches.list()]


@pytest.mark.parametrize(
    ("rows", "code"),
    [
        ([b"\n"], "empty_file"),
        ([b"{\n"], "invalid_line"),
        ([line("a", "x"), line("a", "y")], "duplicate_custom_id"),
        ([line("a", "x", url="/v1/completions")], "mismatched_url"),
        ([{**line("a", "x"), "body": []}], "invalid_line"),
        ([{**line("a", "x"), "method": "GET"}], "invalid_line"),
        ([line("a", "x" * 9_000_000)], "invalid_line"),
    ],
)
def test_files_that_are_no_batch(server: Running, rows: list[Any], code: str) -> None:
    client = server.client()
    batch = client.batches.create(input_file_id=upload(client, rows), endpoint=CHAT, completion_window="24h")
    done = finished(client, batch.id)
    assert done.status == "failed"
    assert done.errors is not None and done.errors.data is not None and done.errors.data[0].code == code


def test_files(server: Running) -> None:
    client = server.client()
    data = os.urandom(300_000) + b"\r\n--" + b"\r\n"
    file = client.files.create(file=("../../n\x1bame", io.BytesIO(data)), purpose="batch")
    assert (file.bytes, file.purpose, file.status) == (len(data), "batch", "processed")
    assert client.files.content(file.id).read() == data
    assert client.files.retrieve(file.id).to_dict() == file.to_dict()
    folder = server.serving.app.folder.path
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in (folder / "files").iterdir()} == {0o600}
    second = client.files.create(file=("b", b"x"), purpose="batch")
    ours = [f.id for f in client.files.list(limit=1)]
    assert ours[0] == second.id and file.id in ours
    assert client.files.delete(file.id).deleted
    with pytest.raises(openai.NotFoundError):
        client.files.content(file.id)
    with pytest.raises(openai.BadRequestError):
        client.files.create(file=("b", b"x"), purpose="assistants")
    error_of(server.get("/v1/files/..%2f..%2flock"), 404, "not_found")
    error_of(server.post("/v1/files", b"x"), 400, "invalid_value", "file")


def test_a_full_folder(start_server: StartServer) -> None:
    server = start_server(max_data_bytes=1000)
    client = server.client()
    client.files.create(file=("a", b"x" * 900), purpose="batch")
    error_of(
        server.post("/v1/files", b"", headers={"content-type": "multipart/form-data; boundary=b"}),
        400,
        "invalid_value",
        "file",
    )
    for size in (200, 500_000):
        with pytest.raises(openai.APIStatusError) as caught:
            client.files.create(file=("a", b"x" * size), purpose="batch")
        assert caught.value.status_code == 413
    assert [path.name for path in server.serving.app.folder.path.glob("upload-*")] == []


def test_answers_that_have_no_room(start_server: StartServer) -> None:
    """What the answers of a batch take is bounded too: lines that come later are refused, not written."""
    rows = [line(f"r{i}", "a" * 50) for i in range(300)]
    size = sum(len(json.dumps(row)) + 1 for row in rows)
    client = start_server(max_data_bytes=size + 40_000).client()
    batch = client.batches.create(input_file_id=upload(client, rows), endpoint=CHAT, completion_window="24h")
    done = finished(client, batch.id)
    good, bad = results(client, done.output_file_id), results(client, done.error_file_id)
    assert done.status == "completed" and len(good) + len(bad) == 300 and len(good) > 50 and len(bad) > 50
    assert {result["error"]["code"] for result in bad.values()} == {"storage_full"}
    taken = client.files.retrieve(done.output_file_id).bytes  # type: ignore[arg-type]
    assert taken < 40_000 + 64 * 1000  # those that were being answered


def test_another_key_s_files(start_server: StartServer) -> None:
    server = start_server(api_key=("a", "b"))
    mine, theirs = server.client(api_key="a"), server.client(api_key="b")
    id = upload(mine, [line("a", "x")])
    batch = mine.batches.create(input_file_id=id, endpoint=CHAT, completion_window="24h")
    assert finished(mine, batch.id).status == "completed"
    for forbidden in (
        lambda: theirs.files.retrieve(id),
        lambda: theirs.files.content(id),
        lambda: theirs.files.delete(id),
        lambda: theirs.batches.retrieve(batch.id),
        lambda: theirs.batches.cancel(batch.id),
        lambda: theirs.batches.create(input_file_id=id, endpoint=CHAT, completion_window="24h"),
    ):
        with pytest.raises(openai.NotFoundError):
            forbidden()
    assert list(theirs.files.list()) == [] and list(theirs.batches.list()) == []


def test_cancel(start_server: StartServer) -> None:
    server = start_server(FakeLLM(delay=0.005))
    client = server.client()
    rows = [
        line("short", "x"),
        *(line(f"long{i}", "count", url=CHAT, messages=[{"role": "user", "content": "count"}]) for i in range(90)),
    ]
    batch = client.batches.create(input_file_id=upload(client, rows), endpoint=CHAT, completion_window="24h")
    wait_for(lambda: client.batches.retrieve(batch.id).request_counts.completed == 1)  # type: ignore[union-attr]
    assert client.batches.cancel(batch.id).status == "cancelling"
    done = finished(client, batch.id)
    assert done.status == "cancelled"
    assert set(results(client, done.output_file_id)) == {"short"}
    bad = results(client, done.error_file_id)
    assert len(bad) == 90 and bad["long7"]["error"]["code"] == "batch_cancelled"
    server.idle()


def test_a_batch_outlives_its_engine_and_its_server(start_server: StartServer, tmp_path: Path) -> None:
    llm = FakeLLM(delay=0.02)
    server = start_server(llm, data_dir=str(tmp_path / "data"), api_key=("k",))
    client = server.client(api_key="k")
    rows = [line(f"r{i}", "a" * (1 + i)) for i in range(120)]
    batch = client.batches.create(input_file_id=upload(client, rows), endpoint=CHAT, completion_window="24h")
    wait_for(lambda: client.batches.retrieve(batch.id).request_counts.completed > 10)  # type: ignore[union-attr]
    with pytest.raises(ConfigError, match="another server"):
        Folder(str(tmp_path / "data"))
    server.stop()
    answered = read_done(tmp_path / "data" / "batches" / f"{batch.id}.good")
    assert 10 < len(answered) < 120
    again = start_server(FakeLLM(), data_dir=str(tmp_path / "data"), api_key=("k",))
    client = again.client(api_key="k")
    done = finished(client, batch.id)
    assert done.request_counts.to_dict() == {"total": 120, "completed": 120, "failed": 0}
    found = results(client, done.output_file_id)
    assert len(found) == 120
    assert found["r7"]["response"]["body"]["choices"][0]["message"]["content"] == "a" * 8


def test_a_line_that_was_cut(tmp_path: Path) -> None:
    path = tmp_path / "x.good"
    path.write_bytes(b'{"custom_id": "a"}\n{"custom_id": "b"}\n{"custom_id": "c"')
    assert read_done(path) == {"a", "b"}
    assert path.read_bytes() == b'{"custom_id": "a"}\n{"custom_id": "b"}\n'


def test_long_lines(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"ab\n" + b"x" * 100 + b"\n\ncd")
    assert [(n, data[:4]) for n, data in lines.read_lines(path, 10)] == [(1, b"ab\n"), (2, b"xxxx"), (4, b"cd")]


def form(boundary: bytes, parts: list[tuple[bytes, bytes]]) -> bytes:
    text = b"".join(
        b"--" + boundary + b'\r\nContent-Disposition: form-data; name="' + name + b'"\r\n\r\n' + value + b"\r\n"
        for name, value in parts
    )
    return text + b"--" + boundary + b"--\r\n"


@given(st.binary(max_size=300), st.lists(st.integers(1, 60)))
def test_a_form_in_any_pieces(data: bytes, cuts: list[int]) -> None:
    target = io.BytesIO()
    parser = Multipart(b'multipart/form-data; boundary="a-b"', target, 10_000)
    body = form(b"a-b", [(b"purpose", b"batch"), (b"file", data), (b"empty", b"")])
    if b"\r\n--a-b" in data:
        return
    for cut in cuts:
        parser.feed(body[:cut])
        body = body[cut:]
    parser.feed(body)
    parser.finish()
    assert (target.getvalue(), parser.size) == (data, len(data))
    assert parser.fields == {"purpose": "batch", "empty": ""}


@pytest.mark.parametrize(
    "body",
    [
        *(b"", b"--b", b"--b\r\n", b"x", b"--b--", b"--b\r\n\r\n\r\nx\r\n--b--", b"--b\r\n" + b"a" * 5000),
        form(b"b", [(b"file", b"x"), (b"file", b"y")]),
        form(b"b", [(b"field%d" % i, b"") for i in range(40)]),
        form(b"b", [(b"purpose", b"x" * 5000), (b"file", b"y")]),
        form(b"b", [(b"file", b"x")])[:-8],
    ],
)
def test_bad_forms(body: bytes) -> None:
    parser = Multipart(b"multipart/form-data; boundary=b", io.BytesIO(), 1000)
    with pytest.raises(RequestError):
        parser.feed(body)
        parser.finish()
    with pytest.raises(RequestTooLarge):
        Multipart(b"multipart/form-data; boundary=b", io.BytesIO(), 5).feed(form(b"b", [(b"file", b"too long")]))


async def start_fake(engine: Any, server: Any) -> FakeLLM:
    return FakeLLM()


def test_run_batch(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    rows = [line(f"r{i}", f"a{i}") for i in range(50)] + [
        {**line("d", ""), "url": "/v1/responses", "body": {"input": "say:kept by nobody"}},
        line("bad", "x", n=0),
        line("c", "say:text", url="/v1/completions"),
    ]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert run_batch(EngineConfig(), ServerConfig(log_level="error"), source, target, start_fake) == 0
    found = [json.loads(row) for row in target.read_text().splitlines()]
    assert [row["custom_id"] for row in found] == [row["custom_id"] for row in rows]
    assert found[7]["response"]["body"]["choices"][0]["message"]["content"] == "a7"
    assert found[-1]["response"]["body"]["choices"][0]["text"] == "text"
    assert found[-2]["response"]["status_code"] == 400
    assert found[-3]["response"]["body"]["output"][0]["content"][0]["text"] == "kept by nobody"
    assert "53 lines: 52 answered, 1 failed" in capsys.readouterr().err
    source.write_text('{"custom_id": "a"}\n')
    with pytest.raises(ConfigError, match="in.jsonl:1: "):
        run_batch(EngineConfig(), ServerConfig(), source, target, start_fake)
    with pytest.raises(ConfigError, match="no such file|No such file"):
        run_batch(EngineConfig(), ServerConfig(), tmp_path / "none", target, start_fake)


def test_run_batch_whose_engine_dies(tmp_path: Path) -> None:
    async def start(engine: Any, server: Any) -> FakeLLM:
        llm = FakeLLM(delay=0.01)
        asyncio.get_running_loop().call_later(0.2, llm.crash)
        return llm

    source = tmp_path / "in.jsonl"
    source.write_text(json.dumps(line("a", "", messages=[{"role": "user", "content": "count"}])))
    with pytest.raises(EngineError, match="the engine stopped"):
        run_batch(EngineConfig(), ServerConfig(log_level="error"), source, tmp_path / "out", start)


FORM = (
    b'--B\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
    b'--B\r\nContent-Disposition: form-data; name="expires_after[seconds]"\r\n\r\n%s\r\n'
    b'--B\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\nx\r\n--B--\r\n'
)


@pytest.mark.parametrize("given", [b"9" * 4000, b"000003600" + b"9" * 4000, "٣٦٠٠".encode(), b"3599", b"-1", b""])
def test_times_that_are_none(server: Running, given: bytes) -> None:
    before = server.serving.app.files.size
    answer = server.post("/v1/files", FORM % given, headers={"Content-Type": "multipart/form-data; boundary=B"})
    error_of(answer, 400, "invalid_value", "expires_after[seconds]")
    assert server.serving.app.files.size == before


@pytest.mark.parametrize("given", ["000000001" + "9" * 5000, "0", "-1", "x", "%C2%B2", ""])
def test_limits_that_are_none(server: Running, given: str) -> None:
    for path in ("/v1/files", "/v1/batches"):
        error_of(server.get(f"{path}?limit={given}"), 400, "invalid_value", "limit")


@pytest.mark.parametrize("times", [(1, 0), (3000, 30_000), (20, 300)])
def test_types_that_are_hard_to_match(server: Running, times: tuple[int, int]) -> None:
    type = b"multipart/form-data; " + b"boundary=a" * times[0] + b" " * times[1] + b"/\x80"
    answer = server.raw(b"POST /v1/files HTTP/1.1\r\nContent-Type: " + type + b"\r\nContent-Length: 1\r\n\r\nx")
    assert answer.startswith(b"HTTP/1.1 400") and b'"param":"file"' in answer


def test_uploads_at_the_same_time_share_the_room(start_server: StartServer) -> None:
    server = start_server(max_data_bytes=100_000)
    part = b'--B\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n' + b"x" * 80_000
    head = b"POST /v1/files HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=B\r\n"
    files = server.serving.app.files
    with server.connect() as first, server.connect() as second:
        first.sendall(head + b"Content-Length: 99000\r\n\r\n" + part)
        wait_for(lambda: files._coming > 70_000)
        second.sendall(head + b"Content-Length: 99000\r\n\r\n" + part)
        assert b'"storage_full"' in second.recv(65536)
    wait_for(lambda: files._coming == 0)
    assert files.size == 0 and not list(files.folder.path.glob("upload-*"))
    server.client().files.create(file=("a", b"x" * 80_000), purpose="batch")


def test_a_disk_that_takes_nothing(start_server: StartServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A clear error to who wanted something stored; a batch that cannot go on fails; then all is as before."""
    server = start_server(FakeLLM(delay=0.01))
    client = server.client()
    kept = client.files.create(file=("a", b"x"), purpose="batch")
    id = upload(client, [line(f"r{i}", "hello there") for i in range(300)])
    running = client.batches.create(input_file_id=id, endpoint=CHAT, completion_window="24h")
    wait_for(lambda: client.batches.retrieve(running.id).request_counts.completed > 10)
    full = OSError(28, "No space left on device")

    def refuse(*args: Any) -> Any:
        raise full

    with monkeypatch.context() as patch:
        for name in ("files.private", "batches.private", "batches.record"):
            patch.setattr(f"octavo.server.batch.{name}", refuse)
        answer = server.post("/v1/files", FORM % b"3600", headers={"Content-Type": "multipart/form-data; boundary=B"})
        assert answer.headers["retry-after"]
        error_of(answer, 503, "storage_unavailable")
        asked = {"input_file_id": id, "endpoint": CHAT, "completion_window": "24h"}
        error_of(server.post("/v1/batches", asked), 503, "storage_unavailable")
        failed = finished(client, running.id)
        assert failed.status == "failed" and failed.errors is not None and failed.errors.data is not None
        assert [error.code for error in failed.errors.data] == ["storage_unavailable"]
        assert server.chat().status_code == 200
        assert [found.id for found in client.batches.list()] == [running.id]
    assert {found.id for found in client.files.list()} == {kept.id, id}
    client.files.create(file=("b", b"x"), purpose="batch")
    again = client.batches.create(input_file_id=upload(client, [line("a", "x")]), endpoint=CHAT, completion_window="1h")
    assert finished(client, again.id).status == "completed"


def test_a_batch_that_is_cancelled_again(start_server: StartServer) -> None:
    server = start_server(FakeLLM(delay=0.01))
    client = server.client()
    id = upload(client, [line(f"r{i}", "hello there") for i in range(3000)])
    batch = client.batches.create(input_file_id=id, endpoint=CHAT, completion_window="24h")
    wait_for(lambda: client.batches.retrieve(batch.id).request_counts.completed > 10)
    for _ in range(5):
        answer = server.post(f"/v1/batches/{batch.id}/cancel", b"")
        assert answer.status_code == 200 or "is cancelled" in answer.text
    done = finished(client, batch.id)
    counts = done.request_counts
    assert done.status == "cancelled" and counts.completed + counts.failed == counts.total == 3000


def test_clocks_that_jump(start_server: StartServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """What lasts is kept by the wall's clock, what runs by another: an hour more or less ends no answer."""
    server = start_server(FakeLLM(delay=0.01))
    client = server.client()
    file = client.files.create(
        file=("a", b"x"), purpose="batch", expires_after={"anchor": "created_at", "seconds": 3600}
    )
    id = upload(client, [line(f"r{i}", "hello there") for i in range(100)])
    batch = client.batches.create(input_file_id=id, endpoint=CHAT, completion_window="24h")
    real, shift = time.time, [0.0]
    monkeypatch.setattr(time, "time", lambda: real() + shift[0])
    for shift[0] in (3000.0, -3600.0, 0.0):
        assert server.chat(stream=True, deadline_ms=20_000).text.endswith("data: [DONE]\n\n")
        assert client.files.retrieve(file.id).id == file.id
    assert finished(client, batch.id).status == "completed"
    shift[0] = 3700.0
    with pytest.raises(openai.NotFoundError):
        client.files.retrieve(file.id)
    assert server.serving.app.files.size == sum(found.bytes for found in client.files.list())
