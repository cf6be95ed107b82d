"""Tags and cover pictures, read and written by FFmpeg; the sound is copied packet by packet."""

from __future__ import annotations

import base64
import io
import os
import secrets
import shutil
import struct
from collections.abc import Mapping
from contextlib import suppress

from umx_ext.codecs.decode import open_source
from umx_ext.codecs.files import discard
from umx_ext.codecs.formats import open_av, pyav, shown
from umx_ext.errors import OutputError

TAGS = ("title", "artist", "album", "album_artist", "composer", "date", "genre", "track", "comment", "copyright")


def read_tags(path: str) -> tuple[dict[str, str], bytes | None]:
    """The tags named in `TAGS` and the cover's bytes (JPEG or PNG); nothing where FFmpeg cannot open the file."""
    if _is_bare_wav(path):
        return {}, None
    av = pyav("reading tags")
    try:
        with open_av(path) as container:
            found = dict(container.metadata)
            for stream in container.streams.audio[:1]:  # Ogg keeps them there
                found.update(stream.metadata)
            cover = None
            for stream in container.streams.video:
                if stream.disposition & av.stream.Disposition.attached_pic and cover is None:
                    cover = next((bytes(packet) for packet in container.demux(stream) if packet.size), None)
    except (av.FFmpegError, OSError, ValueError):
        return {}, None
    lower = {key.lower(): value for key, value in found.items()}
    return {key: lower[key] for key in TAGS if lower.get(key)}, cover if mime(cover) else None


def _is_bare_wav(path: str) -> bool:
    """Whether a WAV file has no chunk that could hold tags: then FFmpeg, slow to load, need not be asked."""
    with suppress(OSError), open(path, "rb") as file:
        head = file.read(12)
        if head[:4] != b"RIFF" or head[8:] != b"WAVE":
            return False
        while len(chunk := file.read(8)) == 8:
            name, size = struct.unpack("<4sI", chunk)
            if name not in (b"fmt ", b"fact", b"PEAK", b"JUNK", b"data"):
                return False
            file.seek(size + size % 2, os.SEEK_CUR)
        return True
    return False


def mime(cover: bytes | None) -> str | None:
    if cover is None:
        return None
    return {b"\xff\xd8": "image/jpeg", b"\x89P": "image/png"}.get(cover[:2])


def write_tags(path: str, target: str, name: str, tags: Mapping[str, str], cover: bytes | None) -> str | None:
    """Copy the sound of `path` (format `name`), packet by packet, to the new file `target` with these tags; they
    replace the old ones. Returns what could not be kept, in words."""
    kept = {key: " ".join(value.split("\0")) for key, value in tags.items() if key in TAGS and value}
    before = open_source(path, 0)
    before.close()
    av = pyav("writing tags")
    options = {"m4a": {"movie_timescale": str(before.sample_rate)}, "wav": {"rf64": "auto"}}.get(name, {})
    container = {"m4a": "mp4"}.get(name, name)
    with open_av(path) as source, open_av(target, "w", format=container, options=options) as output:
        sound = source.streams.audio[0]
        copy = output.add_stream_from_template(sound)
        output.metadata.update(kept)
        if name in ("ogg", "opus"):
            copy.metadata.update(kept)
            if cover:
                copy.metadata["METADATA_BLOCK_PICTURE"] = base64.b64encode(_flac_picture(cover)).decode()
        elif cover and name != "wav":
            with av.open(io.BytesIO(cover)) as image:
                frame = image.streams.video[0]
                picture = output.add_stream_from_template(frame)
                picture.disposition = av.stream.Disposition.attached_pic
                packet = next(image.demux(frame))
                packet.stream = picture
                output.mux(packet)
        for packet in source.demux(sound):
            if packet.dts is not None:
                packet.stream = copy
                output.mux(packet)
    # Of a few hundred samples (one Ogg page, one MP3 frame) FFmpeg does not keep the exact length.
    after = open_source(target, 0)
    after.close()
    if (before.samples, before.sample_rate, before.channels) == (after.samples, after.sample_rate, after.channels):
        return "wav holds no cover" if cover and name == "wav" else None
    shutil.copyfile(path, target)
    return f"tags left out: so short a file cannot have them in {name} and keep its length"


def replace_tags(path: str, name: str, tags: Mapping[str, str], cover: bytes | None) -> str | None:
    """`write_tags` in place, by way of a temporary file beside it; OutputError when that fails."""
    leftovers = [os.path.join(os.path.dirname(os.path.abspath(path)), f".{secrets.token_hex(8)}.part")]
    try:
        lost = write_tags(path, leftovers[0], name, tags, cover)
        os.replace(leftovers[0], path)
    except OSError as error:
        reason = error.strerror or error
        raise OutputError(f"{shown(path)} cannot be given its tags ({reason}); free space there") from error
    finally:
        discard(leftovers, [])
    return lost


def _flac_picture(cover: bytes) -> bytes:
    """METADATA_BLOCK_PICTURE of RFC 9639, section 8.8: a front cover, sizes left for the reader to find."""
    kind = (mime(cover) or "").encode()
    return struct.pack(">2I", 3, len(kind)) + kind + struct.pack(">6I", 0, 0, 0, 0, 0, len(cover)) + cover
