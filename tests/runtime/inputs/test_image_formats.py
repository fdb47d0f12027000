"""Which files are opened as images at all, and how far: formats, kinds of files, sizes, frames, what is packed."""

from __future__ import annotations

import contextlib
import io
import os
import socket
import subprocess
import sys
import threading
import tracemalloc
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import EpsImagePlugin, Image, PngImagePlugin, XpmImagePlugin

from freeprompt.contract.errors import ImageError
from freeprompt.runtime.inputs import image_file as module
from freeprompt.runtime.inputs.image import open_image
from tests.runtime.inputs.test_image_fuzz import chunks_to_png, png_chunks

PICTURE = Image.fromarray(np.random.default_rng(3).integers(0, 256, (8, 12, 3)).astype(np.uint8))
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 100 100\n%%EndComments\nshowpage\n"
XPM = b'/* XPM */\nstatic char *x[] = {\n"1 1 1 1",\n"a c #ff0000",\n"a"\n};\n'


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


OTHERS = {
    "EPS": EPS,
    "XPM": XPM,
    "PDF": b"%PDF-1.7\n",
    "SVG": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    "HEIC": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic",
    "PSD": b"8BPS\0\1" + bytes(30),
    "ICO": encoded(PICTURE, "ICO"),
    "DDS": encoded(PICTURE, "DDS"),
    "not known": encoded(PICTURE, "TGA"),
    "damaged": encoded(PICTURE, "SGI"),
    "empty": b"",
}


@pytest.mark.parametrize("kind", OTHERS)
def test_another_format_is_refused_by_name_and_its_decoder_never_starts(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(*arguments: Any, **keywords: Any) -> None:
        pytest.fail("a decoder was started")

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", start)
    monkeypatch.setattr(EpsImagePlugin.EpsImageFile, "_open", start)
    monkeypatch.setattr(XpmImagePlugin.XpmImageFile, "_open", start)
    monkeypatch.setattr(subprocess, "Popen", start)
    path = tmp_path / "photo.png"
    path.write_bytes(OTHERS[kind])
    with pytest.raises(ImageError, match=rf"photo\.png: .*{kind}.*; pictures are read as PNG, JPEG, ") as raised:
        open_image(path)
    assert "\n" not in str(raised.value)
    with pytest.raises(ImageError, match=f"the image: .*{kind}.*; pictures are read as PNG"):
        open_image(io.BytesIO(OTHERS[kind]))


@pytest.mark.parametrize("data", [EPS, encoded(PICTURE, "TGA")], ids=["EPS", "TGA"])
def test_another_format_that_the_caller_opened_is_not_decoded_here(data: bytes) -> None:
    with Image.open(io.BytesIO(data)) as image:
        image.load = lambda *a, **k: pytest.fail("decoded")  # type: ignore[method-assign]
        with pytest.raises(ImageError, match=rf"{image.format}, not decoded yet; .*load\(\) it first"):
            open_image(image)


def test_another_format_that_the_caller_decoded_is_an_image() -> None:
    with Image.open(io.BytesIO(encoded(PICTURE, "TGA"))) as image:
        image.load()
        np.testing.assert_array_equal(np.asarray(open_image(image)), np.asarray(PICTURE))


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF", "BMP", "DIB", "PPM", "GIF", "JPEG", "MPO", "AVIF"])
def test_formats_that_are_taken_whatever_the_name(kind: str, tmp_path: Path) -> None:
    if kind not in ("MPO", *module.formats()):
        pytest.skip(f"the installed Pillow has no {kind}")
    second = {"save_all": True, "append_images": [PICTURE.rotate(180)]} if kind == "MPO" else {}
    lossless = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(PICTURE, kind, **second, **lossless)
    (tmp_path / "x.eps").write_bytes(data)
    with Image.open(io.BytesIO(data)) as image:
        want = np.asarray(image.convert("RGB"))
    for source in (tmp_path / "x.eps", io.BytesIO(data)):
        np.testing.assert_array_equal(np.asarray(open_image(source)), want)
    with (tmp_path / "x.eps").open("rb") as file:
        np.testing.assert_array_equal(np.asarray(open_image(file)), want)
        assert not file.closed, "it is the caller's"


def fifo(folder: Path) -> Path:
    os.mkfifo(folder / "x.png")
    return folder / "x.png"


def bound_socket(folder: Path) -> Path:
    listener = socket.socket(socket.AF_UNIX)
    path = folder / "x.png"
    listener.bind(str(path))
    listener.close()
    return path


def link_to_zero(folder: Path) -> Path:
    (folder / "x.png").symlink_to("/dev/zero")
    return folder / "x.png"


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX files")
@pytest.mark.parametrize(
    "make", [fifo, bound_socket, link_to_zero, lambda _: Path("/dev/zero"), lambda _: Path("/dev/null")]
)
def test_what_is_no_regular_file_is_refused_without_being_waited_for(
    make: Callable[[Path], Path], tmp_path: Path
) -> None:
    path, outcome = make(tmp_path), []

    def work() -> None:
        try:
            open_image(path)
        except ImageError as error:
            outcome.append(str(error))

    worker = threading.Thread(target=work, daemon=True)
    worker.start()
    worker.join(60)  # far beyond what a refusal takes; a FIFO without a writer would be waited for until the end
    assert not worker.is_alive()
    assert outcome and str(path) in outcome[0]
    assert "no regular file" in outcome[0] or "No such device" in outcome[0]


def test_the_size_of_a_file_is_bounded_before_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.png"
    data = encoded(PICTURE, "PNG")
    path.write_bytes(data)
    monkeypatch.setattr(module, "MAX_FILE_BYTES", len(data))
    assert open_image(path).size == PICTURE.size
    monkeypatch.setattr(Image, "open", lambda *a, **k: pytest.fail("opened"))
    with path.open("r+b") as file:
        file.truncate(len(data) + 1)
    with pytest.raises(ImageError, match=rf"x\.png: the file has {len(data) + 1} bytes, at most {len(data)}"):
        open_image(path)


def open_files() -> int:
    """0 where the system does not tell."""
    return len(list(Path("/proc/self/fd").iterdir())) if sys.platform == "linux" else 0


def test_no_file_stays_open(tmp_path: Path) -> None:
    (tmp_path / "good.png").write_bytes(encoded(PICTURE, "PNG"))
    (tmp_path / "bad.png").write_bytes(EPS)
    (tmp_path / "folder.png").mkdir()
    with warnings.catch_warnings():
        warnings.simplefilter("error", ResourceWarning)
        before = open_files()
        for _ in range(3):
            open_image(tmp_path / "good.png")
            for name in ("bad.png", "folder.png", "missing.png"):
                with pytest.raises(ImageError):
                    open_image(tmp_path / name)
        assert open_files() == before


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF", "MPO"])
def test_the_first_frame_alone(kind: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    options: dict[str, Any] = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    got = np.asarray(open_image(io.BytesIO(data))).astype(int)
    # JPEG's (MPO) red is a rounding away from it.
    assert np.abs(got - [255, 0, 0]).max() <= (2 if kind == "MPO" else 0)


def bomb(kind: bytes) -> bytes:
    """A PNG with a chunk of some kilobytes that would be 64 MB."""
    packer = zlib.compressobj(9)
    body = b"".join(packer.compress(bytes(1 << 20)) for _ in range(64)) + packer.flush()
    head = {
        b"zTXt": b"key\0\0",
        b"iTXt": b"key\0\1\0\0\0",
        b"iCCP": b"profile\0\0",
    }[kind]
    (header, *rest) = png_chunks(encoded(PICTURE, "PNG"))
    return chunks_to_png([header, (kind, head + body), *rest])


@pytest.mark.parametrize("kind", [b"zTXt", b"iTXt", b"iCCP"])
def test_what_is_packed_in_a_chunk_is_not_unpacked_without_bound(kind: bytes) -> None:
    data = bomb(kind)
    assert len(data) < 1 << 18
    tracemalloc.start()
    try:
        got = np.asarray(open_image(io.BytesIO(data)))
    except ImageError:
        pass
    else:
        np.testing.assert_array_equal(got, np.asarray(PICTURE))
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    # The library unpacks a megabyte (MAX_TEXT_CHUNK) and gives up; buffers that double and the file itself come on top.
    assert peak < 16 << 20


def test_many_texts_are_bounded_together() -> None:
    """Each below the bound of one chunk."""
    text = zlib.compress(bytes(PngImagePlugin.MAX_TEXT_CHUNK - 1), 9)
    (header, *rest) = png_chunks(encoded(PICTURE, "PNG"))
    many = [(b"zTXt", b"key%d\0\0" % n + text) for n in range(PngImagePlugin.MAX_TEXT_MEMORY // (1 << 20) + 2)]
    with pytest.raises(ImageError, match="text chunks"):
        open_image(io.BytesIO(chunks_to_png([header, *many, *rest])))
    assert open_image(io.BytesIO(chunks_to_png([header, *many[:3], *rest]))).size == PICTURE.size


def test_an_exif_block_of_any_size_is_an_image_or_an_error() -> None:
    """Offsets beyond its end, counts of billions, a directory that is its own next one."""
    entry = b"\x12\x01\x03\x00\x01\x00\x00\x00\x06\x00\x00\x00"
    huge = b"\x0e\x01\x02\x00\xff\xff\xff\xff\x08\x00\x00\x00"
    for entries, following in ((entry + huge, 8), (entry * 2000, 8), (huge * 3, 0xFFFFFFFF)):
        count = (len(entries) // 12).to_bytes(2, "little")
        block = b"Exif\0\0II*\0\x08\0\0\0" + count + entries + following.to_bytes(4, "little")
        data = encoded(PICTURE, "JPEG", exif=block)
        with contextlib.suppress(ImageError):
            assert open_image(io.BytesIO(data)).size in (PICTURE.size, PICTURE.size[::-1])


def test_threads_that_read_images_leave_the_processs_warnings_alone(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    path.write_bytes(encoded(PICTURE, "PNG"))
    before = list(warnings.filters)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        workers = [threading.Thread(target=lambda: [open_image(path) for _ in range(100)]) for _ in range(4)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    finally:
        sys.setswitchinterval(interval)
    assert list(warnings.filters) == before
