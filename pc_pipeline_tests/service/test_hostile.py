"""Clients that mean harm, or cannot help it: tokens, paths, sizes, slowness, other pages."""

from __future__ import annotations

import contextlib
import json
import logging
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from pc_pipeline.core.errors import ConfigError
from pc_pipeline.service.settings import ServiceSettings, read_token
from pc_pipeline_tests.service.harness import Served, borrower_csv, quick_settings, serving, upload, wait_for

TOKEN = "a-token-of-enough-letters"
GENERATE = "/api/fintech/generate-payment-sequences"


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A service with a token and little patience."""
    settings = quick_settings(
        tmp_path_factory.mktemp("guarded") / "data",
        token=TOKEN,
        header_seconds=0.6,
        idle_seconds=0.6,
        write_seconds=0.6,
        upload_bytes=2 << 20,
        json_bytes=1 << 16,
    )
    with serving(settings) as running:
        yield running


# ---- who -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "Bearer",
        f"Basic {TOKEN}",
        f"Bearer {TOKEN}x",
        f"Bearer {TOKEN[:-1]}",
        "Bearer ünï",
    ],
)
def test_no_token_no_answer(guarded: Served, header: str | None) -> None:
    guarded.client.headers.pop("Authorization", None)  # other tests leave theirs
    headers = {} if header is None else {"Authorization": header.encode()}
    for method, path in [
        ("GET", "/models"),
        ("POST", GENERATE),
        ("GET", "/nowhere"),
        ("DELETE", "/api/portfolios/x"),
    ]:
        answer = guarded.client.request(method, path, headers=headers)  # type: ignore[arg-type]
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"].startswith("Bearer")
        assert answer.headers["content-type"] == "application/problem+json"


def test_the_token_opens_and_health_and_docs_need_none(guarded: Served) -> None:
    assert guarded.client.get("/models", headers={"Authorization": f"Bearer {TOKEN}"}).status_code == 200
    for path in ("/health", "/docs", "/docs/start.js", "/openapi.json"):
        assert guarded.client.get(path).status_code == 200
    assert guarded.client.get("/openapi.json").json()["security"] == [{"token": []}]


def test_an_open_address_needs_a_token(tmp_path: Path) -> None:
    for host in ("0.0.0.0", "::", "192.0.2.1", "example.org"):
        with pytest.raises(ConfigError, match="open to the network"):
            ServiceSettings(host=host)
        assert ServiceSettings(host=host, token=TOKEN).host == host
    with pytest.raises(ConfigError, match="not a usable token"):
        ServiceSettings(token="short")
    assert TOKEN not in repr(ServiceSettings(token=TOKEN))
    file = tmp_path / "token"
    file.write_text(TOKEN + "\n")
    assert read_token({"PC_SERVE_TOKEN": "other"}, file) == TOKEN
    assert read_token({"PC_SERVE_TOKEN": TOKEN}, None) == TOKEN
    with pytest.raises(ConfigError, match="token file"):
        read_token({}, tmp_path / "none")


def test_other_pages_and_other_names_are_refused(served: Served) -> None:
    form = {"files": {"files": ("b.csv", borrower_csv(1))}}
    from_elsewhere = served.client.post("/api/portfolios", headers={"Origin": "https://evil.example"}, **form)
    assert from_elsewhere.status_code == 403
    assert served.client.get("/models", headers={"Origin": "null"}).status_code == 403
    assert served.client.get("/models", headers={"Origin": served.url}).status_code == 200
    rebound = served.client.get("/models", headers={"Host": f"evil.example:{served.port}"})
    assert rebound.status_code == 421
    preflight = served.client.options(
        GENERATE, headers={"Origin": served.url, "Access-Control-Request-Method": "POST"}
    )
    assert preflight.status_code == 405
    assert "access-control-allow-origin" not in preflight.headers


# ---- where -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "portfolio_id",
    [
        "..",
        "../..",
        "..%2f..%2fetc",
        "%2e%2e",
        "%2e%2e%2f",
        ".",
        "a/../b",
        "a%00",
        "a%0a",
        "%c3%bc",
        "x" * 65,
        "~",
        "C:",
    ],
)
def test_ids_never_leave_their_folder(served: Served, portfolio_id: str) -> None:
    for path in (
        f"/api/fintech/download/{portfolio_id}/payment_sequences.csv",
        f"/api/portfolios/{portfolio_id}",
        f"/api/portfolios/{portfolio_id}/quarantine.csv",
        f"/api/jobs/{portfolio_id}",
        f"/api/simulations/{portfolio_id}/files/report.html",
        f"/api/simulations/{'0' * 32}/files/{portfolio_id}",
        f"/docs/{portfolio_id}",
    ):
        with served.connect() as bare:  # a client library would tidy the path
            bare.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
            head = _read_all(bare)
        status = int(head.split(b" ", 2)[1])
        assert status in (404, 405, 422) or (status == 200 and path.startswith("/docs/")), (path, head[:200])


# ---- how much --------------------------------------------------------------------------------


def test_large_bodies_are_refused_stated_or_not(served: Served) -> None:
    big = b"x" * (100 << 20)
    stated = served.client.post(GENERATE, content=big, headers={"Content-Type": "application/json"})
    assert stated.status_code == 413

    def pieces() -> Iterator[bytes]:
        for _ in range(100):
            yield b" " * (1 << 20)

    chunked = served.client.post(GENERATE, content=pieces(), headers={"Content-Type": "application/json"})
    assert chunked.status_code == 413
    assert served.client.get("/health").status_code == 200


def test_large_uploads_are_refused(guarded: Served) -> None:
    guarded.client.headers["Authorization"] = f"Bearer {TOKEN}"
    assert upload(guarded.client, "big", b"x" * (3 << 20)).status_code == 413
    assert upload(guarded.client, "fits", borrower_csv(10_000)).status_code == 201


@pytest.mark.parametrize(
    "body",
    [
        b'{"portfolio_id": "SYNTH_x", "num_months": NaN}',
        b'{"portfolio_id": "SYNTH_x", "num_months": Infinity}',
        b'{"portfolio_id": "SYNTH_x", "num_months": 1e400}',
        b'{"portfolio_id": "SYNTH_x", "num_months": ' + b"9" * 5000 + b"}",
        b'{"portfolio_id": "SYNTH_x", "num_months": 1e-400}',
        b'{"portfolio_id": ["SYNTH_x"]}',
        b'{"portfolio_id": null}',
        b'{"portfolio_id": "\\ud800"}',
        b'{"portfolio_id": "SYNTH_x", "start_date": 1e308}',
        b"[" * 50_000,
        b"[" * 2000 + b"]" * 2000,
        b'"text"',
        b"null",
        b"",
        b"\xff\xfe\x00",
        b'{"portfolio_id": "a"}{"portfolio_id": "b"}',
    ],
)
def test_odd_json_is_refused(served: Served, body: bytes) -> None:
    answer = served.client.post(GENERATE, content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code in (400, 422), answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    json.loads(answer.text, parse_constant=lambda word: pytest.fail(f"{word} in an answer"))
    assert "Traceback" not in answer.text


# ---- how slowly ------------------------------------------------------------------------------


def _read_all(bare: socket.socket) -> bytes:
    bare.settimeout(10.0)
    found = b""
    while True:
        try:
            piece = bare.recv(65536)
        except ConnectionResetError:
            return found
        if not piece:
            return found
        found += piece


def test_slow_headers_end(guarded: Served) -> None:
    begun = time.monotonic()
    with guarded.connect() as silent, guarded.connect() as slow, guarded.connect() as blank:
        slow.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n")
        for _ in range(8):  # a header now and then keeps no connection open
            time.sleep(0.1)
            for bare, drip in ((slow, b"X-Drip: 1\r\n"), (blank, b"\r\n")):
                with contextlib.suppress(OSError):
                    bare.sendall(drip)
        for bare in (silent, slow, blank):
            assert b" 200 " not in _read_all(bare)[:16]
    assert time.monotonic() - begun < 5.0
    assert guarded.client.get("/health").status_code == 200


def test_slow_bodies_end(guarded: Served) -> None:
    with guarded.connect() as slow:
        slow.sendall(
            f"POST {GENERATE} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {TOKEN}\r\n"
            "Content-Type: application/json\r\nContent-Length: 60\r\n\r\n{".encode()
        )
        answer = _read_all(slow)
    assert b" 408 " in answer.split(b"\r\n")[0]
    assert b"application/problem+json" in answer


def test_endless_headers_end(guarded: Served) -> None:
    with guarded.connect() as endless:
        endless.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n")
        with contextlib.suppress(OSError):
            for _ in range(40):
                endless.sendall(b"X-Long: " + b"a" * 8000 + b"\r\n")
                time.sleep(0.005)
        assert b" 200 " not in _read_all(endless)[:16]


def test_a_reader_who_does_not_read_is_dropped(guarded: Served) -> None:
    guarded.client.headers["Authorization"] = f"Bearer {TOKEN}"
    guarded.client.post(GENERATE, json={"portfolio_id": "SYNTH_slow", "num_months": 36}).raise_for_status()
    with guarded.connect() as lazy:
        lazy.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        lazy.sendall(
            "GET /api/fintech/download/SYNTH_slow/payment_sequences.csv HTTP/1.1\r\n"
            f"Host: localhost\r\nAuthorization: Bearer {TOKEN}\r\n\r\n".encode()
        )
        connections = guarded.server.server_state.connections
        wait_for(lambda: any(one.flow.write_paused for one in connections))
        held = next(one for one in connections if one.flow.write_paused)
        wait_for(lambda: held not in connections, 3.0)


def test_garbage_is_400(guarded: Served) -> None:
    for noise in (b"\x16\x03\x01\x02\x00" * 20, b"GET\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"\x00" * 100):
        with guarded.connect() as bare:
            bare.sendall(noise)
            assert _read_all(bare)[:12] in (b"HTTP/1.1 400", b"HTTP/1.1 408", b"")


# ---- what is told ----------------------------------------------------------------------------


def test_errors_are_problem_documents_with_the_request_number(served: Served) -> None:
    for method, path, status in [
        ("GET", "/nowhere", 404),
        ("PUT", "/models", 405),
        ("GET", "/api/jobs/" + "0" * 32, 404),
        ("GET", "/api/fintech/cascade-probabilities/rich", 422),
    ]:
        answer = served.client.request(method, path)
        assert answer.status_code == status
        assert answer.headers["content-type"] == "application/problem+json"
        document = answer.json()
        assert document["status"] == status
        assert document["instance"] == f"urn:uuid:{answer.headers['x-request-id']}"
        if status == 405:
            assert answer.headers["allow"] == "GET"
    two = served.client.put("/api/portfolios/x")
    assert (two.status_code, two.headers["allow"]) == (405, "DELETE, GET")


def test_the_log_holds_no_id_no_query_no_client(served: Served, caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("pc_pipeline.service.access")
    logger.addHandler(caplog.handler)
    logger.setLevel(logging.INFO)
    try:
        answer = served.client.get(
            "/api/portfolios/Jane_Doe_1980?name=Jane", headers={"X-Request-ID": "Jane"}
        )
    finally:
        logger.removeHandler(caplog.handler)
    assert answer.status_code == 404
    lines = [json.loads(record.message) for record in caplog.records]
    assert lines[-1]["route"] == "/api/portfolios/{portfolio_id}"
    assert lines[-1]["request"] == answer.headers["x-request-id"]
    assert "Jane" not in caplog.text
    assert "127.0.0.1" not in caplog.text


def test_a_defect_tells_nothing(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("secret words")

    monkeypatch.setattr(served.desk.jobs, "counts", broken)
    answer = served.client.get("/health")
    assert answer.status_code == 500
    assert answer.headers["content-type"] == "application/problem+json"
    assert "secret" not in answer.text


def test_headers_of_every_answer(served: Served) -> None:
    for path in ("/health", "/nowhere", "/docs"):
        headers = served.client.get(path).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert "default-src 'none'" in headers["content-security-policy"]
        assert "server" not in headers


def test_requests_in_hand_are_bounded(tmp_path: Path) -> None:
    with serving(quick_settings(tmp_path / "data", max_requests=2)) as served:
        served.runner.hold.set()
        with httpx.Client(base_url=served.url) as client:
            waiting = [served.connect() for _ in range(2)]
            for bare in waiting:
                body = b'{"portfolio_id": "SYNTH_x"}'
                bare.sendall(
                    f"POST {GENERATE} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                    f"Content-Length: {len(body)}\r\n\r\n".encode()
                    + body
                )
            time.sleep(0.3)
            answer = client.get("/health")
            assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
            for bare in waiting:
                bare.close()
