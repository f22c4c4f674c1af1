"""A real server for the published SDK, one for each runtime that this host can run."""

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

import httpx
import pytest

BINARY = os.environ["STACYVM_BIN"]
API_KEY = "sdk-tests-0123456789abcdef0123456789abcdef"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Server:
    """`stacyvm serve` with a data directory of its own."""

    def __init__(self, provider: str, image: str):
        self.provider, self.image = provider, image
        self.data_dir = Path(tempfile.mkdtemp(prefix="stacyvm-sdk-"))
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(self.data_dir),
            "STACYVM_DATA_DIR": str(self.data_dir / "data"),
            "STACYVM_SERVER_HOST": "127.0.0.1",
            "STACYVM_SERVER_PORT": str(self.port),
            "STACYVM_PROVIDERS_DEFAULT": provider,
            "STACYVM_PROVIDERS_MOCK_ENABLED": "true",
            "STACYVM_AUTH_API_KEY": API_KEY,
            "STACYVM_SERVER_STREAM_HEARTBEAT": "200ms",
        }
        if provider == "docker":
            environment["STACYVM_PROVIDERS_DOCKER_SOCKET"] = os.environ["STACYVM_TEST_DOCKER_HOST"]
            environment["STACYVM_PROVIDERS_DOCKER_NETWORK_MODE"] = "none"

        self.log = open(self.data_dir / "server.log", "wb")
        self.process = subprocess.Popen(
            [BINARY, "serve"], env=environment, cwd=self.data_dir, stdout=self.log, stderr=self.log
        )
        self.wait_until_ready()

    def wait_until_ready(self):
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                break
            try:
                reply = httpx.get(f"{self.url}/api/v1/ready", headers={"X-API-Key": API_KEY}, timeout=2)
                if reply.status_code == 200:
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.05)
        log = (self.data_dir / "server.log").read_text(errors="replace")
        self.stop()
        pytest.fail(f"the server did not become ready:\n{log}")

    def stop(self):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait(5)
        self.log.close()
        shutil.rmtree(self.data_dir, ignore_errors=True)


# An engine of the tests' own (scripts/setup-test-host.sh); `make test` says when there is none.
IMAGES = {"native": "host", "mock": "host"}
if os.environ.get("STACYVM_TEST_DOCKER_HOST"):
    IMAGES["docker"] = "stacyvm-test/python:latest"


@pytest.fixture(scope="session", params=IMAGES)
def server(request):
    if request.param == "native" and os.geteuid() != 0:
        pytest.fail("the native runtime needs root: run the tests with sudo")
    running = Server(request.param, image=IMAGES[request.param])
    yield running
    left = httpx.get(f"{running.url}/api/v1/sandboxes", headers={"X-API-Key": API_KEY}).json()
    for sandbox in left:
        httpx.delete(f"{running.url}/api/v1/sandboxes/{sandbox['id']}", headers={"X-API-Key": API_KEY}, timeout=30)
    running.stop()
    assert left == [], "tests left sandboxes behind"


@pytest.fixture
def client(server):
    from stacyvm import Client

    with Client(server.url, api_key=API_KEY, user_id="sdk-user") as connected:
        yield connected


@pytest.fixture
def sandbox(client, server):
    with client.spawn(image=server.image, ttl="5m", metadata={"suite": "sdk"}) as spawned:
        yield spawned
