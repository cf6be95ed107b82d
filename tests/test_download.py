"""Downloads against a loopback server that serves well, badly, and not at all."""

from __future__ import annotations

import hashlib
import http.server
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from umx_ext.errors import ModelError
from umx_ext.separation import download
from umx_ext.separation.download import cache_dir, fetch, hash_matches, is_offline, sha256_of

BODY = bytes(range(256)) * 4096  # 1 MiB: several chunks
SHA256 = hashlib.sha256(BODY).hexdigest()
PATIENT = {"timeout_s": 20.0, "pause_s": 0.01}
QUICK = {"timeout_s": 0.4, "pause_s": 0.01}  # for servers that would otherwise be waited for


class Loopback:
    """An HTTP server on 127.0.0.1. The first part of a path says how it behaves; files are looked up by the last."""

    def __init__(self) -> None:
        self.files = {"model.bin": BODY}
        self.requests: list[str] = []
        self.released = threading.Event()  # lets stalled handlers end
        owner = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                owner.requests.append(self.path)
                _, behaviour, *_, name = self.path.split("/")
                try:
                    getattr(owner, behaviour)(self, owner.files.get(name, b""))
                except (BrokenPipeError, ConnectionResetError):
                    self.close_connection = True

            def log_message(self, *args: object) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True)
        self.thread.start()

    def url(self, behaviour: str, name: str = "model.bin") -> str:
        return f"http://127.0.0.1:{self.server.server_port}/{behaviour}/{name}"

    def close(self) -> None:
        self.released.set()
        self.server.shutdown()
        self.server.server_close()
        self.thread.join(5)

    @staticmethod
    def _head(handler: http.server.BaseHTTPRequestHandler, length: int | None, status: int = 200) -> None:
        handler.send_response(status)
        if length is not None:
            handler.send_header("Content-Length", str(length))
        handler.end_headers()

    def good(self, handler: http.server.BaseHTTPRequestHandler, body: bytes) -> None:
        self._head(handler, len(body))
        handler.wfile.write(body)

    def unsized(self, handler: http.server.BaseHTTPRequestHandler, body: bytes) -> None:
        self._head(handler, None)
        handler.wfile.write(body)

    def slow(self, handler: http.server.BaseHTTPRequestHandler, body: bytes) -> None:
        self._head(handler, len(body))
        for start in range(0, len(body), 1 << 16):
            handler.wfile.write(body[start : start + (1 << 16)])
            time.sleep(0.02)

    def lying(self, handler: http.server.BaseHTTPRequestHandler, body: bytes) -> None:
        self.good(handler, body[:-1] + b"?")

    def truncated(self, handler: http.server.BaseHTTPRequestHandler, body: bytes) -> None:
        self._head(handler, len(body))
        handler.wfile.write(body[: len(body) // 2])

    def stalled(self, handler: http.server.BaseHTTPRequestHandler, body: bytes) -> None:
        self._head(handler, len(body))
        handler.wfile.write(body[:1000])
        self.released.wait(20)

    def trickling(self, handler: http.server.BaseHTTPRequestHandler, body: bytes) -> None:
        self._head(handler, len(body))
        for index in range(200):
            handler.wfile.write(body[index : index + 1])
            if self.released.wait(0.1):
                return

    def silent(self, handler: http.server.BaseHTTPRequestHandler, body: bytes) -> None:
        self.released.wait(20)

    def missing(self, handler: http.server.BaseHTTPRequestHandler, body: bytes) -> None:
        handler.send_error(404)

    def broken(self, handler: http.server.BaseHTTPRequestHandler, body: bytes) -> None:
        handler.send_error(500)

    def flaky(self, handler: http.server.BaseHTTPRequestHandler, body: bytes) -> None:
        """Unavailable, then truncated, then good."""
        if len(self.requests) == 1:
            handler.send_error(503)
        elif len(self.requests) == 2:
            self.truncated(handler, body)
        else:
            self.good(handler, body)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Loopback]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.delenv("UMX_EXT_OFFLINE", raising=False)
    loopback = Loopback()
    yield loopback
    loopback.close()


def only_file(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_good_download_arrives_whole_and_reports_its_progress(server: Loopback, tmp_path: Path) -> None:
    seen: list[tuple[str, int, int | None]] = []
    path = fetch(
        server.url("good"), tmp_path / "new" / "model.bin", SHA256, progress=lambda *step: seen.append(step), **PATIENT
    )
    assert path.read_bytes() == BODY
    assert only_file(path.parent) == ["model.bin"]
    assert [name for name, _, _ in seen] == ["model.bin"] * len(seen)
    assert [done for _, done, _ in seen] == sorted({done for _, done, _ in seen})  # strictly rising
    assert seen[-1] == ("model.bin", len(BODY), len(BODY))


def test_a_file_of_unknown_length_arrives_whole(server: Loopback, tmp_path: Path) -> None:
    totals: set[int | None] = set()
    path = fetch(
        server.url("unsized"), tmp_path / "model.bin", SHA256[:8], progress=lambda _n, _d, t: totals.add(t), **PATIENT
    )
    assert path.read_bytes() == BODY
    assert totals == {None}


def test_a_downloaded_file_has_the_permissions_of_any_new_file(server: Loopback, tmp_path: Path) -> None:
    ordinary = tmp_path / "ordinary"
    ordinary.write_bytes(b"")
    path = fetch(server.url("good"), tmp_path / "model.bin", SHA256, **PATIENT)
    assert path.stat().st_mode == ordinary.stat().st_mode


def test_a_cached_file_is_not_asked_for_again_even_offline(server: Loopback, tmp_path: Path) -> None:
    (tmp_path / "model.bin").write_bytes(BODY)
    fetch(server.url("good"), tmp_path / "model.bin", SHA256, offline=True)
    fetch(server.url("good"), tmp_path / "model.bin", SHA256[:8].upper(), offline=False)
    assert server.requests == []


def test_a_damaged_cached_file_is_downloaded_again(server: Loopback, tmp_path: Path) -> None:
    path = tmp_path / "model.bin"
    path.write_bytes(BODY[:-1])
    fetch(server.url("good"), path, SHA256, **PATIENT)
    assert path.read_bytes() == BODY
    assert len(server.requests) == 1


def test_passing_troubles_are_tried_again(server: Loopback, tmp_path: Path) -> None:
    assert fetch(server.url("flaky"), tmp_path / "model.bin", SHA256, **PATIENT).read_bytes() == BODY
    assert len(server.requests) == 3


@pytest.mark.parametrize(
    ("behaviour", "says", "requests"),
    [
        ("lying", "which is not the expected one", 1),
        ("truncated", f"the connection ended after {len(BODY) // 2} of {len(BODY)} bytes, 3 times", 3),
        ("stalled", "the server was silent for 0.4 s after 1000 bytes, 3 times", 3),
        ("trickling", "bytes in", 3),
        ("silent", "the server was silent for 0.4 s, 3 times", 3),
        ("missing", "the server answered 404 Not Found", 1),
        ("broken", "the server answered 500 Internal Server Error, 3 times", 3),
    ],
)
def test_a_bad_server_leaves_one_clear_error_and_no_file(
    server: Loopback, tmp_path: Path, behaviour: str, says: str, requests: int
) -> None:
    url, path = server.url(behaviour), tmp_path / "model.bin"
    started = time.monotonic()
    with pytest.raises(ModelError) as caught:
        fetch(url, path, SHA256[:8], **(QUICK if behaviour in ("stalled", "trickling", "silent") else PATIENT))
    assert time.monotonic() - started < 10
    message = str(caught.value)
    assert says in message
    assert f"download {url} by hand to {path} (SHA-256 beginning with {SHA256[:8]})" in message
    assert "\n" not in message
    assert len(server.requests) == requests
    assert only_file(tmp_path) == []


def test_a_server_that_is_down_is_named_as_refusing(server: Loopback, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound but not listening: refuses
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/model.bin"
        with pytest.raises(ModelError, match=rf"could not download {url}: .*refused.*, 2 times; download .* by hand"):
            fetch(url, tmp_path / "model.bin", SHA256, attempts=2, **PATIENT)
    assert only_file(tmp_path) == []


def test_offline_says_so_and_touches_nothing(server: Loopback, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.bin"
    monkeypatch.setenv("UMX_EXT_OFFLINE", "1")
    with pytest.raises(
        ModelError, match="is not downloaded yet and the network is switched off; unset UMX_EXT_OFFLINE"
    ):
        fetch(server.url("good"), path, SHA256)
    path.write_bytes(b"damaged")
    with pytest.raises(ModelError, match="the cache has another hash"):
        fetch(server.url("good"), path, SHA256)
    assert path.read_bytes() == b"damaged"
    assert server.requests == []
    assert fetch(server.url("good"), path, SHA256, offline=False, **PATIENT).read_bytes() == BODY  # the parameter wins


def test_a_lie_does_not_replace_what_is_there(server: Loopback, tmp_path: Path) -> None:
    path = tmp_path / "model.bin"
    path.write_bytes(b"older")
    with pytest.raises(ModelError, match="not the expected one"):
        fetch(server.url("lying"), path, SHA256, **PATIENT)
    assert path.read_bytes() == b"older"
    assert only_file(tmp_path) == ["model.bin"]


def test_an_endless_file_is_given_up(server: Loopback, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "LARGEST_BYTES", len(BODY) // 2)
    with pytest.raises(ModelError, match=f"sent more than {len(BODY) // 2} bytes"):
        fetch(server.url("unsized"), tmp_path / "model.bin", SHA256, **PATIENT)
    assert only_file(tmp_path) == []


def test_an_interrupt_leaves_no_half_file(server: Loopback, tmp_path: Path) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch(server.url("good"), tmp_path / "model.bin", SHA256, progress=interrupt, **PATIENT)
    assert only_file(tmp_path) == []


def test_an_unwritable_folder_is_named(server: Loopback, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ModelError, match=r"cannot be written \(.*\), UMX_EXT_CACHE names another folder"):
        fetch(server.url("good"), tmp_path / "file" / "model.bin", SHA256, **PATIENT)
    assert server.requests == []


def test_a_full_disk_is_named_and_leaves_nothing(server: Loopback, tmp_path: Path) -> None:
    pytest.importorskip("resource", reason="file-size limits are POSIX")
    code = (
        "import resource, sys; from pathlib import Path; from umx_ext.separation.download import fetch\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "try: fetch(sys.argv[1], Path(sys.argv[2]), sys.argv[3], attempts=1)\n"
        "except Exception as error: print(type(error).__name__, error)\n"
    )
    out = subprocess.run(
        [sys.executable, "-c", code, server.url("good"), str(tmp_path / "model.bin"), SHA256],
        capture_output=True, text=True, timeout=60, env=with_package(),
    )  # fmt: skip
    assert out.stdout.startswith("ModelError could not download"), out.stderr
    assert "cannot be written (File too large)" in out.stdout
    assert only_file(tmp_path) == []


def test_processes_that_fetch_the_same_file_at_once_all_get_it_whole(server: Loopback, tmp_path: Path) -> None:
    path = tmp_path / "model.bin"
    path.write_bytes(b"damaged")  # so that all of them download
    code = (
        "import sys; from pathlib import Path; from umx_ext.separation.download import fetch, sha256_of\n"
        "assert sha256_of(fetch(sys.argv[1], Path(sys.argv[2]), sys.argv[3])) == sys.argv[3]\n"
    )
    command = [sys.executable, "-c", code, server.url("slow"), str(path), SHA256]
    processes = [subprocess.Popen(command, env=with_package()) for _ in range(3)]
    seen = set()
    while any(process.poll() is None for process in processes):
        seen.add(path.read_bytes())
        time.sleep(0.005)
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert seen <= {b"damaged", BODY}  # never half a file under the real name
    assert path.read_bytes() == BODY
    assert len(server.requests) > 1
    assert only_file(tmp_path) == ["model.bin"]


def with_package() -> dict[str, str]:
    root = str(Path(download.__file__).resolve().parents[2])
    return {**os.environ, "PYTHONPATH": root}


@pytest.mark.parametrize("url", ["file:///etc/hostname", "ftp://127.0.0.1/x", "model.bin"])
def test_only_http_is_fetched(tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("UMX_EXT_OFFLINE", raising=False)
    with pytest.raises(ModelError, match="expected an http or https URL"):
        fetch(url, tmp_path / "x", "00")


@pytest.mark.parametrize("value, offline", [("", False), ("0", False), ("no", False), ("1", True), ("true", True)])
def test_the_offline_variable_is_read_as_people_write_it(
    monkeypatch: pytest.MonkeyPatch, value: str, offline: bool
) -> None:
    monkeypatch.setenv("UMX_EXT_OFFLINE", value)
    assert is_offline() is offline


def test_hashes_are_compared_from_the_first_digit_on(tmp_path: Path) -> None:
    # SHA-256 of "abc": FIPS 180-2, appendix B.1.
    truth = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    (tmp_path / "abc").write_bytes(b"abc")
    assert sha256_of(tmp_path / "abc") == truth
    assert hash_matches(truth, truth)
    assert hash_matches(truth, "BA7816BF")
    assert not hash_matches(truth, "7816bf8f")
    assert not hash_matches(truth, "")


def test_the_cache_is_torch_hubs_unless_a_variable_names_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = pytest.importorskip("torch.hub")
    monkeypatch.delenv("UMX_EXT_CACHE", raising=False)
    assert cache_dir() == Path(hub.get_dir()) / "checkpoints"
    monkeypatch.setenv("UMX_EXT_CACHE", str(tmp_path))
    assert cache_dir() == tmp_path
