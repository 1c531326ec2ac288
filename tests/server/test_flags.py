"""Where the server listens and who may call: origins, TLS, Unix sockets; and flags from a file."""

from __future__ import annotations

import os
import signal
import socket
import ssl
import stat
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from octavo.core.errors import ConfigError
from octavo.server.config import ServerConfig
from octavo.server.serve import check_tls
from octavo.server.sockets import bind_unix
from tests.server.conftest import StartServer, error_of, wait_for

PAGE = {"Origin": "https://page.example"}


def test_pages_of_other_origins(start_server: StartServer) -> None:
    server = start_server(allowed_origins=("https://page.example", '["https://b.example"]'), api_key=("k",))
    asks = {
        **PAGE,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,content-type",
    }
    answer = httpx.request("OPTIONS", server.url + "/v1/completions", headers=asks)
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == "https://page.example"
    assert answer.headers["access-control-allow-headers"] == "authorization,content-type"
    assert "POST" in answer.headers["access-control-allow-methods"]
    key = {"Authorization": "Bearer k"}
    answer = server.complete(headers={**PAGE, **key})
    assert (
        answer.headers["access-control-allow-origin"] == "https://page.example" and answer.headers["vary"] == "origin"
    )
    refused = server.complete(headers=PAGE)
    error_of(refused, 401, "invalid_api_key")
    assert refused.headers["access-control-allow-origin"] == "https://page.example"
    for origin in ("https://evil.example", "https://page.example.evil", "null"):
        asks["Origin"] = origin
        other = httpx.request("OPTIONS", server.url + "/v1/completions", headers=asks)
        assert other.status_code == 401 and "access-control-allow-origin" not in other.headers
    assert "access-control-allow-origin" not in server.complete(headers=key).headers


def test_every_origin_and_none(start_server: StartServer) -> None:
    assert start_server(allowed_origins=("*",)).complete(headers=PAGE).headers["access-control-allow-origin"] == "*"
    assert "access-control-allow-origin" not in start_server().complete(headers=PAGE).headers


@pytest.mark.parametrize("origin", ["page.example", "https://a/", '["x"]', "[1]", "["])
def test_bad_origins(origin: str) -> None:
    with pytest.raises(ConfigError, match="allowed_origins"):
        ServerConfig(allowed_origins=(origin,))


def test_tls(start_server: StartServer, tmp_path: Path) -> None:
    (tmp_path / "key.pem").write_text(KEY)
    (tmp_path / "cert.pem").write_text(CERTIFICATE)
    files = {"ssl_keyfile": str(tmp_path / "key.pem"), "ssl_certfile": str(tmp_path / "cert.pem")}
    check_tls(ServerConfig(**files))
    trusted = ssl.create_default_context(cafile=files["ssl_certfile"])
    server = start_server(scheme="https", verify=trusted, **files)
    with httpx.Client(verify=trusted) as client:
        answer = client.post(server.url + "/v1/completions", json={"prompt": "say:x"})
    assert answer.json()["choices"][0]["text"] == "x"
    with pytest.raises(ConfigError, match="go together"):
        ServerConfig(ssl_keyfile="x")
    with pytest.raises(ConfigError, match="--ssl-certfile"):
        check_tls(ServerConfig(ssl_keyfile=files["ssl_keyfile"], ssl_certfile=str(tmp_path / "none.pem")))


PROGRAM = """
import sys
from octavo.core.config import EngineConfig
from octavo.server.config import ServerConfig
from octavo.server.serve import serve
from tests.server.fake_engine import FakeLLM

async def start(engine, server):
    return FakeLLM()

sys.exit(serve(EngineConfig(), ServerConfig(uds=sys.argv[1]), start))
"""


def test_a_unix_socket(tmp_path: Path) -> None:
    path = tmp_path / "octavo.sock"
    process = subprocess.Popen([sys.executable, "-c", PROGRAM, str(path)], stderr=subprocess.DEVNULL)
    try:
        wait_for(path.exists)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        client = httpx.Client(transport=httpx.HTTPTransport(uds=str(path)), base_url="http://localhost")
        wait_for(lambda: client.get("/readyz").status_code == 200)
        assert client.post("/v1/completions", json={"prompt": "say:x"}).json()["choices"][0]["text"] == "x"
        with pytest.raises(ConfigError, match="in use"):
            bind_unix(str(path))
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
        assert not path.exists()
    finally:
        process.kill()
        process.wait()


def test_a_socket_that_was_left_behind(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as old:
        old.bind(path)
    with bind_unix(path):
        assert os.path.exists(path)
    (tmp_path / "file").write_text("precious")
    with pytest.raises(ConfigError):
        bind_unix(str(tmp_path / "file"))
    assert (tmp_path / "file").read_text() == "precious"


# Made for these tests, and trusted by nobody else.
KEY = """\
-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgJfkWap27O0/ar8RA
ETlZj1ljlh/bNwFxHHa1sa2FYq6hRANCAASaA9tLOXguoXsfjbvy6n+oE1FFlCgI
LtKSXtGsR/jbJPbZSkacnlRHn1QbsPeCRyHbUlmzO0eKyC4UgA9IHAEn
-----END PRIVATE KEY-----
"""
CERTIFICATE = """\
-----BEGIN CERTIFICATE-----
MIIBkDCCATagAwIBAgIUKMSWUT2r4pGER0XEF2n3Odp33SAwCgYIKoZIzj0EAwIw
FDESMBAGA1UEAwwJMTI3LjAuMC4xMCAXDTI2MTEyMzA0NDIyNVoYDzIxMjYxMDMw
MDQ0MjI1WjAUMRIwEAYDVQQDDAkxMjcuMC4wLjEwWTATBgcqhkjOPQIBBggqhkjO
PQMBBwNCAASaA9tLOXguoXsfjbvy6n+oE1FFlCgILtKSXtGsR/jbJPbZSkacnlRH
n1QbsPeCRyHbUlmzO0eKyC4UgA9IHAEno2QwYjAdBgNVHQ4EFgQUEQOZxgCz4PDb
uH0cPJsY0EfCsEgwHwYDVR0jBBgwFoAUEQOZxgCz4PDbuH0cPJsY0EfCsEgwDwYD
VR0TAQH/BAUwAwEB/zAPBgNVHREECDAGhwR/AAABMAoGCCqGSM49BAMCA0gAMEUC
IDQRhgbPWSXT3ywhD9vTmdedJN7EtUBAti8G01Ewu3thAiEAkhmgFbmws12SYZsw
Bs8s5IAhHkaITe97T6SjmLLCf9s=
-----END CERTIFICATE-----
"""
