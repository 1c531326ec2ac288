"""The web console's files and the state that it draws, without a browser."""

from __future__ import annotations

import asyncio
import base64
import re

import numpy as np
import pytest

from octavo.core.config import CacheConfig, SchedulerConfig
from octavo.core.errors import EngineUnavailable
from octavo.core.params import SamplingParams
from octavo.core.picture import MAX_CELLS, Pace, Picture
from octavo.core.request import EngineRequest, pack_ids
from octavo.engine.views import Views
from octavo.scheduler.picture import take_picture
from octavo.scheduler.scheduler import Scheduler
from octavo.server.pages import FOLDER
from tests.server.conftest import Running, StartServer, error_of, wait_for
from tests.server.fake_engine import FakeLLM

STATE = "/v1/octavo/state"


def test_files(server: Running) -> None:
    index = server.get("/")
    assert index.headers["content-type"] == "text/html; charset=utf-8"
    parts = re.findall(r'(?:href|src)="(?!#)([^"]+)"', index.text)
    assert "console/app.js" in parts and "console/style.css" in parts and "console/favicon.svg" in parts
    modules = re.findall(r'from "\./([\w-]+\.js)"', "".join(file.read_text() for file in FOLDER.glob("*.js")))
    for path in {*parts, *(f"console/{name}" for name in modules)}:
        answer = server.get(f"/{path}")
        assert answer.status_code == 200 and answer.text, path
        assert answer.headers["x-content-type-options"] == "nosniff"
        policy = answer.headers["content-security-policy"]
        assert policy.startswith("default-src 'self';") and "unsafe" not in policy
    # Nothing that the policy would refuse, and nothing from elsewhere.
    assert not re.search(r"<script(?![^>]*src=)|<style|\sstyle=|\son\w+=", index.text)
    for file in FOLDER.iterdir():
        text = file.read_text().replace("http://www.w3.org/", "")
        assert "http://" not in text and "https://" not in text and "innerHTML" not in text, file


def test_a_browser_keeps_them(server: Running) -> None:
    first = server.get("/console/app.js")
    assert first.headers["cache-control"] == "no-cache"
    again = server.get("/console/app.js", headers={"If-None-Match": f'"x", W/{first.headers["etag"]}'})
    assert again.status_code == 304 and not again.content
    assert server.get("/console/app.js", headers={"If-None-Match": '"x"'}).status_code == 200
    error_of(server.get("/console/../app.py"), 404, "not_found")
    error_of(server.post("/", {}), 405, "method_not_allowed")


def test_who_may_see_what(start_server: StartServer) -> None:
    server = start_server(api_key=("k",))
    assert server.get("/").status_code == 200
    error_of(server.get(STATE), 401, "invalid_api_key")
    assert server.get(STATE, headers={"Authorization": "Bearer k"}).json()["engine"] == "ready"
    assert start_server(console=False).get("/").status_code == 404


def test_what_it_says_without_an_engine(start_server: StartServer) -> None:
    assert start_server(loading=True).get(STATE).json()["engine"] == "loading"
    server = start_server()
    found = server.get(STATE).json()
    assert found["model"] == "fake" and found["picture"]["map"]["cells"] == 100
    assert isinstance(server.llm, FakeLLM)
    server.call(server.llm.crash)
    wait_for(lambda: server.get(STATE).json()["engine"] == "restarting")
    assert server.get(STATE).json()["picture"] is None


def make_scheduler(num_blocks: int) -> Scheduler:
    cache = CacheConfig(num_blocks=num_blocks, block_size=4, max_rows=8, max_model_len=128)
    return Scheduler(SchedulerConfig(max_tokens_per_step=4096), cache)


def request(uid: int, ids: list[int]) -> EngineRequest:
    return EngineRequest(uid, pack_ids(ids), SamplingParams(max_tokens=8), 8, [], [], label=f"r{uid}", tenant="1")


def column(picture: Picture, name: str, kind: str) -> np.ndarray:
    return np.frombuffer(getattr(picture.map, name), kind)


@pytest.mark.parametrize("num_blocks", [64, 10_001])
def test_the_map_adds_up(num_blocks: int) -> None:
    scheduler = make_scheduler(num_blocks)
    scheduler.add(request(1, list(range(21))))
    scheduler.add(request(2, [7] * 30))
    scheduler.schedule()
    scheduler.cache.publish(0, scheduler.rows.owned(0).hashes, 20)
    scheduler.add(request(3, [*range(16), 99, 98]))
    scheduler.schedule()
    scheduler.abort([2])
    picture = take_picture(scheduler, Pace())
    assert [(each.id, each.key, each.prompt_tokens, each.cached_tokens) for each in picture.running] == [
        ("r1", "1", 21, 0),
        ("r3", "1", 18, 16),
    ]
    held, cached, holders = (
        column(picture, "held", "<u2"),
        column(picture, "cached", "<u2"),
        column(picture, "holders", "u1"),
    )
    span = picture.map.span
    assert picture.map.cells == len(held) == -(-num_blocks // span) <= MAX_CELLS
    assert (held.sum(), cached.sum()) == (picture.held_blocks, picture.cached_blocks)
    assert picture.free_blocks + picture.held_blocks + picture.cached_blocks == num_blocks
    assert holders.max() == 2
    first, third = (np.frombuffer(each.cells, "<u2") for each in picture.running)
    assert set(first) | set(third) == set(np.flatnonzero(held))
    owner = column(picture, "owner", "<i2")
    assert set(np.flatnonzero(owner >= 0)) == set(np.flatnonzero(held))
    if span == 1:
        assert list(first[:4]) == list(third[:4]) and (holders[first[:4]] == 2).all()
        fill = column(picture, "fill", "u1")
        assert list(fill[first]) == [255] * 5 + [255 * 2 // 4] and fill[third[4]] == 255 * 2 // 4

    scheduler.abort([1, 3])
    left = take_picture(scheduler, Pace())
    assert left.running == [] and left.held_blocks == 0 and left.cached_blocks == 5
    assert column(left, "cached", "<u2").sum() == 5 and not column(left, "held", "<u2").any()


def test_one_picture_for_all_who_ask() -> None:
    picture = take_picture(make_scheduler(8), Pace())

    async def watch() -> None:
        views, asked = Views(), []
        watchers = [asyncio.create_task(views.get(lambda: asked.append(1))) for _ in range(3)]
        await asyncio.sleep(0)
        views.show(picture)
        assert await asyncio.gather(*watchers) == [picture] * 3 and asked == [1]
        assert await views.get(lambda: asked.append(1)) is picture and asked == [1]
        views.lose(EngineUnavailable("gone"))
        late = asyncio.create_task(views.get(lambda: asked.append(1)))
        await asyncio.sleep(0)
        views.lose(EngineUnavailable("gone"))
        with pytest.raises(EngineUnavailable):
            await late
        assert asked == [1, 1]

    asyncio.run(watch())


def test_bytes_are_base64(server: Running) -> None:
    found = server.get(STATE).json()["picture"]["map"]
    assert len(base64.b64decode(found["held"])) == 2 * found["cells"]
