"""A running emulator, the real SDK pointed at it, and short ways to say what tests say often."""

from __future__ import annotations

import json
import os
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from google import genai
from google.genai import types

from runner.emulator import faults
from runner.emulator.server import Server, serve

# Reading the certificate store for each client, once per transport, would take longer than most tests.
_NO_TLS = ssl.create_default_context()
MODEL = "gemini-3.5-flash-lite"


@pytest.fixture(autouse=True, scope="session")
def no_proxy() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NO_PROXY", "127.0.0.1,localhost")
        for name in ("GOOGLE_API_KEY", "GEMINI_API_KEY", "GOOGLE_GENAI_USE_VERTEXAI"):
            patch.delenv(name, raising=False)
        yield


class Driver:
    """The SDK's client and plain HTTP, both on one emulator."""

    model = MODEL

    def __init__(self, url: str, folder: Path, key: str = "k", version: str = "v1beta") -> None:
        self.url = url
        self.folder = folder
        self.client = genai.Client(
            api_key=key,
            vertexai=False,
            http_options=types.HttpOptions(
                base_url=url,
                api_version=version,
                timeout=20_000,
                client_args={"verify": _NO_TLS},
                async_client_args={"verify": _NO_TLS, "ssl": _NO_TLS},
            ),
        )

    def http(
        self, method: str, path: str, body: Any = None, *, key: str | None = "k", version: str = "v1beta"
    ) -> tuple[int, Any]:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.url}/{version}/{path}", data, method=method)
        if key is not None:
            request.add_header("x-goog-api-key", key)
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(request, timeout=20) as reply:
                text = reply.read()
                return reply.status, json.loads(text) if text[:1] == b"{" else text
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.loads(error.read())

    def upload(self, lines: list[Any] | bytes, name: str | None = None) -> types.File:
        data = (
            lines
            if isinstance(lines, bytes)
            else b"".join(json.dumps(line).encode() + b"\n" for line in lines)
        )
        path = self.folder / f"in-{os.urandom(4).hex()}.jsonl"
        path.write_bytes(data)
        config: dict[str, Any] = {"mime_type": "jsonl", "display_name": "shard"}
        return self.client.files.upload(file=str(path), config={**config, "name": name} if name else config)

    def create(self, lines: list[Any] | bytes, display_name: str = "job") -> str:
        file = self.upload(lines)
        job = self.client.batches.create(model=MODEL, src=file.name, config={"display_name": display_name})
        assert job.name
        return job.name

    def wait(self, name: str, timeout_s: float = 15) -> dict[str, Any]:
        """The operation, once it is done."""
        end = time.monotonic() + timeout_s
        while time.monotonic() < end:
            status, operation = self.http("GET", name)
            assert status == 200, operation
            if operation.get("done"):
                return dict(operation)
            time.sleep(0.01)
        raise AssertionError(f"{name} did not end")

    def output(self, operation: dict[str, Any]) -> bytes:
        return self.client.files.download(file=operation["metadata"]["output"]["responsesFile"])

    def run(self, lines: list[Any] | bytes) -> tuple[dict[str, Any], list[Any]]:
        """Operation and parsed output lines of a whole job."""
        operation = self.wait(self.create(lines))
        if "output" not in operation["metadata"]:
            return operation, []
        return operation, [json.loads(line) for line in self.output(operation).split(b"\n") if line]

    def close(self) -> None:
        self.client.close()


def make_line(key: str, text: str, **config: Any) -> dict[str, Any]:
    request: dict[str, Any] = {"contents": [{"role": "user", "parts": [{"text": text}]}]}
    if config:
        request["generationConfig"] = config
    return {"key": key, "request": request}


@pytest.fixture
def line() -> Callable[..., dict[str, Any]]:
    return make_line


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Driver]]:
    """Start an emulator in this process, with a fault plan given as a mapping."""
    servers: list[Server] = []
    drivers: list[Driver] = []

    def begin(plan: dict[str, Any] | None = None, folder: str = "emulator", **options: Any) -> Driver:
        loaded = None
        if plan is not None:
            path = tmp_path / "faults.json"
            path.write_text(json.dumps(plan))
            loaded = faults.load(path)
        server = serve(tmp_path / folder, 0, loaded)
        servers.append(server)
        driver = Driver(server.url, tmp_path, **options)
        drivers.append(driver)
        return driver

    yield begin
    for driver in drivers:
        driver.close()
    for server in servers:
        server.close()


@pytest.fixture
def emulator(start: Callable[..., Driver]) -> Driver:
    return start()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Driver]:
    """One emulator for many tests that leave no jobs behind."""
    folder = tmp_path_factory.mktemp("shared")
    server = serve(folder / "emulator", 0, None)
    driver = Driver(server.url, folder)
    yield driver
    driver.close()
    server.close()


@pytest.fixture
def driver_for(tmp_path: Path) -> Iterator[Callable[[str], Driver]]:
    """Point a driver at an emulator that runs in another process."""
    drivers: list[Driver] = []

    def point(url: str) -> Driver:
        drivers.append(Driver(url, tmp_path))
        return drivers[-1]

    yield point
    for driver in drivers:
        driver.close()
