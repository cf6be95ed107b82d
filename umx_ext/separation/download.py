"""Downloads that end in a whole, verified file or in one clear error, never in half a file.

A file is written to a temporary name in the cache folder, hashed while it arrives, and renamed when the hash is right.
Two processes that fetch the same file do not meet: each has its own temporary name, and renaming is atomic.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import secrets
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from umx_ext.errors import ModelError

__all__ = ["Progress", "cache_dir", "fetch", "hash_matches", "is_offline", "sha256_of"]

Progress = Callable[[str, int, int | None], None]
"""Called with the file's name, the bytes that have arrived, and how many there will be (None where unknown)."""

CHUNK_BYTES = 1 << 18
# A server that sends less than this has stalled, even if a byte now and then keeps the socket from timing out.
SLOWEST_BYTES_PER_S = 1024
# Ten times the largest file of the registry: a lying server can at most cost this much disk for a while.
LARGEST_BYTES = 1 << 30


class _TryAgain(Exception):
    """The attempt failed for a reason that may pass; the message is the reason."""


class _GiveUp(Exception):
    """The attempt failed for a reason that will not pass; the message is the reason."""


def cache_dir() -> Path:
    """Where downloads are kept: the folder `UMX_EXT_CACHE` names, else torch.hub's ``checkpoints``.

    torch.hub's own place is shared with other packages, so open-unmix's files may already be there.
    """
    named = os.environ.get("UMX_EXT_CACHE")
    if named:
        return Path(named).expanduser()
    import torch.hub

    return Path(torch.hub.get_dir()) / "checkpoints"


def is_offline() -> bool:
    """Whether the environment variable `UMX_EXT_OFFLINE` forbids the network (anything but empty, 0, no, false)."""
    return os.environ.get("UMX_EXT_OFFLINE", "").strip().lower() not in ("", "0", "no", "false")


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, 64 hexadecimal digits.

    Raises:
        OSError: it cannot be read.
    """
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def hash_matches(actual: str, expected: str) -> bool:
    """Whether a SHA-256 begins with the expected one, of which often only the first 8 digits are known."""
    return bool(expected) and actual.lower().startswith(expected.lower())


def fetch(
    url: str,
    path: Path,
    sha256: str,
    *,
    progress: Progress | None = None,
    offline: bool | None = None,
    timeout_s: float = 30.0,
    attempts: int = 3,
    pause_s: float = 1.0,
) -> Path:
    """Return `path` once it holds the file of that URL with that hash; downloads only if it does not yet.

    A file that is there with another hash is downloaded again, and replaced only by one with the right hash.

    Args:
        url: http or https.
        path: where the file shall be; its folder is made.
        sha256: its SHA-256, or the first digits of it.
        progress: told about every piece that arrives.
        offline: True forbids the network; None asks `UMX_EXT_OFFLINE`.
        timeout_s: longest silence of the server, seconds.
        attempts: how often to try where the reason may pass (connection, stall, truncation, HTTP 408, 429, 5xx).
        pause_s: before the second attempt, seconds; doubled before each later one.

    Raises:
        ModelError: offline, no connection, stalled, truncated, HTTP error, wrong hash or unwritable folder. The
            message names the URL, where to put the file by hand, and the hash that it must have.
    """
    damaged = ""
    if path.is_file():
        try:
            if hash_matches(sha256_of(path), sha256):
                return path
        except OSError as error:
            raise ModelError(f"cannot read {path}: {error.strerror or error}; mend its permissions") from error
        damaged = f" ({path.name} in the cache has another hash)"
    by_hand = f"download {url} by hand to {path} (SHA-256 {_named(sha256)})"
    if is_offline() if offline is None else offline:
        raise ModelError(
            f"{path.name} is not downloaded yet{damaged} and the network is switched off; "
            f"unset UMX_EXT_OFFLINE, or {by_hand}"
        )
    if urllib.parse.urlsplit(url).scheme not in ("http", "https"):
        raise ModelError(f"expected an http or https URL, got {url!r}")

    for attempt in range(attempts):
        try:
            _download(url, path, sha256, progress, timeout_s)
            return path
        except _TryAgain as error:
            if attempt == attempts - 1:
                raise ModelError(f"could not download {url}: {error}, {attempts} times; {by_hand}") from error
            time.sleep(pause_s * 2**attempt)
        except _GiveUp as error:
            raise ModelError(f"could not download {url}: {error}; {by_hand}") from error
    raise ModelError(f"expected at least 1 attempt, got {attempts}")


def _named(sha256: str) -> str:
    return sha256 if len(sha256) == 64 else f"beginning with {sha256}"


def _download(url: str, path: Path, sha256: str, progress: Progress | None, timeout_s: float) -> None:
    # A name of our own, opened with "x", keeps the permissions that the user's umask gives; mkstemp's would not.
    part = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.part")
    try:
        with _writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            stream = part.open("xb")
        try:
            actual = _receive(url, stream, path, progress, timeout_s)
        finally:
            with _writing(path):  # after a failed write, closing tries it again
                stream.close()
        if not hash_matches(actual, sha256):
            raise _GiveUp(f"the file that came has the SHA-256 {actual}, which is not the expected one")
        with _writing(path):
            part.replace(path)
    finally:
        with suppress(OSError):
            part.unlink()


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise _GiveUp(f"{path.parent} cannot be written ({reason}), UMX_EXT_CACHE names another folder") from error


def _receive(url: str, stream: BinaryIO, path: Path, progress: Progress | None, timeout_s: float) -> str:
    """Write what the URL gives to `stream`, which becomes `path`; its SHA-256."""
    try:
        request = urllib.request.Request(url, headers={"User-Agent": "umx-ext", "Accept-Encoding": "identity"})
        response = urllib.request.urlopen(request, timeout=timeout_s)
    except urllib.error.HTTPError as error:
        error.close()
        passing = error.code in (408, 429) or error.code >= 500
        raise (_TryAgain if passing else _GiveUp)(f"the server answered {error.code} {error.reason}") from error
    except (OSError, http.client.HTTPException) as error:
        raise _TryAgain(_reason(error, timeout_s)) from error

    with response:
        length = response.headers.get("Content-Length", "")
        total = int(length) if length.isdigit() else None
        digest, received = hashlib.sha256(), 0
        window_start, window_bytes = time.monotonic(), 0
        while True:
            try:
                chunk = response.read1(CHUNK_BYTES)
            except (OSError, http.client.HTTPException) as error:
                raise _TryAgain(f"{_reason(error, timeout_s)} after {received} bytes") from error
            if not chunk:
                break
            received += len(chunk)
            if received > LARGEST_BYTES:
                raise _GiveUp(f"the server sent more than {LARGEST_BYTES} bytes")
            digest.update(chunk)
            with _writing(path):
                stream.write(chunk)
            if progress is not None:
                progress(path.name, received, total)
            window_bytes += len(chunk)
            if (elapsed := time.monotonic() - window_start) >= timeout_s:
                if window_bytes < SLOWEST_BYTES_PER_S * elapsed:
                    raise _TryAgain(f"the server sent {window_bytes} bytes in {elapsed:.0f} s")
                window_start, window_bytes = time.monotonic(), 0
    if total is not None and received != total:
        raise _TryAgain(f"the connection ended after {received} of {total} bytes")
    with _writing(path):
        stream.flush()  # here, where a full disk is told from a bad connection
    return digest.hexdigest()


def _reason(error: Exception, timeout_s: float) -> str:
    cause = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(cause, TimeoutError):
        return f"the server was silent for {timeout_s:g} s"
    if isinstance(cause, http.client.IncompleteRead):
        return "the connection ended early"
    return str(cause) or type(cause).__name__
