"""digits and MNIST: the right arrays, from the right place, and nothing that fails its checksum."""

from __future__ import annotations

import gzip
import hashlib
import os
import socket
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import numpy as np
import pytest

import gradflow as gf
from gradflow import errors
from gradflow.data import datasets

IMAGES = np.random.default_rng(0).integers(0, 256, (8, 28, 28), dtype=np.uint8)
LABELS = np.array([5, 0, 4, 1, 9, 2, 1, 3], dtype=np.uint8)


def idx(array: np.ndarray) -> bytes:  # type: ignore[type-arg]
    return bytes((0, 0, 8, array.ndim)) + np.array(array.shape, dtype=">u4").tobytes() + array.tobytes()


FILES = {
    "train-images-idx3-ubyte": idx(IMAGES[:6]),
    "train-labels-idx1-ubyte": idx(LABELS[:6]),
    "t10k-images-idx3-ubyte": idx(IMAGES[6:]),
    "t10k-labels-idx1-ubyte": idx(LABELS[6:]),
}
TRAIN_LABELS = "train-labels-idx1-ubyte"


class Mirror:
    """A web server on this machine; ``files`` is what it offers, ``asked`` what it was asked for."""

    def __init__(self) -> None:
        self.files = {f"/{name}.gz": gzip.compress(content) for name, content in FILES.items()}
        self.asked: list[str] = []
        self.cut = 0  # bytes that it promises and does not send
        mirror = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                mirror.asked.append(self.path)
                content = mirror.files.get(self.path)
                if content is None:
                    self.send_error(404)
                    return
                self.send_response(200)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content[: len(content) - mirror.cut])

            def log_message(self, *_: object) -> None:
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """MNIST is the eight images above, its mirrors are none, and the user's folders are this test's."""
    monkeypatch.setattr(datasets, "_MNIST", {name: hashlib.sha256(data).hexdigest() for name, data in FILES.items()})
    monkeypatch.setattr(datasets, "_VALIDATION", 2)
    monkeypatch.setattr(datasets, "MIRRORS", ())
    monkeypatch.delenv("GRADFLOW_DATA_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def mirror(small: None) -> Iterator[Mirror]:
    made = Mirror()
    yield made
    made.close()


@pytest.fixture
def dead(small: None) -> str:
    """The address of a server that is down."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}/"


@pytest.fixture
def own(small: None, tmp_path: Path) -> Path:
    folder = tmp_path / "own"
    (folder / "mnist").mkdir(parents=True)
    return folder


@pytest.fixture
def cache(small: None, tmp_path: Path) -> Path:
    return tmp_path / "cache" / "gradflow" / "mnist"


def put(folder: Path, *, compressed: bool = True, **changed: bytes) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in FILES.items():
        content = changed.get(name.partition("-idx")[0].replace("-", "_"), content)
        (folder / (f"{name}.gz" if compressed else name)).write_bytes(gzip.compress(content) if compressed else content)


def check(split: datasets.Split) -> None:
    """Assert that ``split`` is the eight images above."""
    assert [len(part.labels) for part in split] == [4, 2, 2]
    images, labels = (np.concatenate([part[i] for part in split]) for i in range(2))
    assert (images.shape, images.dtype, labels.dtype) == ((8, 784), np.float32, np.int64)
    np.testing.assert_array_equal(images, IMAGES.reshape(8, 784) / np.float32(255))
    np.testing.assert_array_equal(labels, LABELS)


# ------------------------------------------------------------------------------------------------ where files are found
@pytest.mark.parametrize("below", ["", "mnist"])
@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize("place", ["own", "cache"])
def test_files_are_found(
    place: str, compressed: bool, below: str, own: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if place == "own":
        monkeypatch.setenv("GRADFLOW_DATA_DIR", f" {own} ")
    put({"own": own, "cache": cache.parent}[place] / below, compressed=compressed)
    check(datasets.mnist())


def test_own_files_go_first(own: Path, cache: Path, mirror: Mirror, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets, "MIRRORS", (mirror.url,))
    monkeypatch.setenv("GRADFLOW_DATA_DIR", str(own))
    put(own)
    put(cache, train_labels=b"corrupt, but never looked at")
    check(datasets.mnist())
    assert not mirror.asked


def test_an_incomplete_own_folder_is_completed_from_elsewhere(
    own: Path, cache: Path, mirror: Mirror, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets, "MIRRORS", (mirror.url,))
    monkeypatch.setenv("GRADFLOW_DATA_DIR", str(own))
    put(own)
    (own / f"{TRAIN_LABELS}.gz").unlink()
    check(datasets.mnist())
    assert mirror.asked == [f"/{TRAIN_LABELS}.gz"]
    assert [path.name for path in cache.iterdir()] == [f"{TRAIN_LABELS}.gz"]
    assert not (own / f"{TRAIN_LABELS}.gz").exists()


@pytest.mark.usefixtures("small")
def test_the_cache_without_xdg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    put(tmp_path / ".cache" / "gradflow" / "mnist")
    for unset in ("", "relative/paths/do/not/count"):
        monkeypatch.setenv("XDG_CACHE_HOME", unset)
        check(datasets.mnist())


def test_images_that_keep_their_shape(cache: Path) -> None:
    put(cache)
    split = datasets.mnist(flatten=False)
    assert split.train.images.shape == (4, 28, 28)
    np.testing.assert_array_equal(split.test.images, IMAGES[6:] / np.float32(255))


@pytest.mark.usefixtures("small")
def test_a_folder_that_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRADFLOW_DATA_DIR", "/no/such/folder")
    with pytest.raises(errors.DataError, match="GRADFLOW_DATA_DIR=/no/such/folder is not a folder"):
        datasets.mnist()


# ------------------------------------------------------------------------------------------------------------- fetching
def test_files_are_fetched_once(cache: Path, mirror: Mirror, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets, "MIRRORS", (mirror.url,))
    check(datasets.mnist())
    assert sorted(mirror.asked) == sorted(mirror.files)
    assert sorted(path.name for path in cache.iterdir()) == sorted(f"{name}.gz" for name in FILES)
    check(datasets.mnist())
    assert len(mirror.asked) == len(FILES)


@pytest.mark.parametrize("tqdm", [True, False])
def test_the_progress_bar_is_optional(
    tqdm: bool, mirror: Mirror, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if tqdm:
        pytest.importorskip("tqdm")
    else:
        monkeypatch.setitem(sys.modules, "tqdm", None)
    monkeypatch.setattr(datasets, "MIRRORS", (mirror.url,))
    check(datasets.mnist())
    assert capsys.readouterr() == ("", "")  # no terminal, no bar


def test_the_next_mirror_is_tried(cache: Path, dead: str, mirror: Mirror, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets, "MIRRORS", (dead, f"{mirror.url}lost/", mirror.url))
    check(datasets.mnist())
    assert len(mirror.asked) == 2 * len(FILES)


@pytest.mark.parametrize("fault", ["truncated", "cut", "wrong", "html"])
def test_a_bad_download_is_not_kept(fault: str, cache: Path, mirror: Mirror, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets, "MIRRORS", (mirror.url,))
    key = f"/{TRAIN_LABELS}.gz"
    if fault == "cut":
        mirror.cut = 5
    else:
        good = mirror.files[key]
        wrong = gzip.compress(FILES[TRAIN_LABELS][:-1] + b"\1")
        mirror.files[key] = {"truncated": good[:-6], "wrong": wrong, "html": b"<html>Sign in</html>"}[fault]
    told = {"truncated": "decompressed", "cut": "decompressed", "wrong": "SHA-256", "html": "SHA-256"}[fault]
    with pytest.raises(errors.DataError, match=rf"127\.0\.0\.1.*{told}"):
        datasets.mnist()
    assert not (cache / f"{TRAIN_LABELS}.gz").exists()
    assert not list(cache.glob(".*"))


def test_one_error_names_both_ways_out(cache: Path, dead: str, mirror: Mirror, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets, "MIRRORS", (dead, f"{mirror.url}lost/"))
    with pytest.raises(errors.DataError) as caught:
        datasets.mnist()
    text = str(caught.value)
    assert "GRADFLOW_DATA_DIR is not set" in text
    assert dead in text
    assert "HTTP Error 404" in text
    assert "export GRADFLOW_DATA_DIR=" in text
    assert f"put these files into {cache}, or run once with a network" in text
    assert all(f"{name}.gz" in text for name in FILES)


@pytest.mark.usefixtures("small")
def test_a_server_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets, "_TIMEOUT", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setattr(datasets, "MIRRORS", (f"http://127.0.0.1:{silent.getsockname()[1]}/",))
        with pytest.raises(errors.DataError, match="timed out"):
            datasets.mnist()


@pytest.mark.usefixtures("small")
def test_a_server_that_talks_nonsense(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(1000)
                connection.sendall(b"220 mail.example.org ESMTP\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        monkeypatch.setattr(datasets, "MIRRORS", (f"http://127.0.0.1:{server.getsockname()[1]}/",))
        with pytest.raises(errors.DataError, match="BadStatusLine"):
            datasets.mnist()
        thread.join()


def test_a_cache_that_cannot_be_written(cache: Path, mirror: Mirror, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets, "MIRRORS", (mirror.url,))
    cache.parent.mkdir(parents=True)
    cache.write_text("a file where the folder should be")
    with pytest.warns(UserWarning, match="fetched again next time"):
        check(datasets.mnist())


# -------------------------------------------------------------------------------------------------------- corrupt files
CORRUPT = {
    "flipped": gzip.compress(FILES[TRAIN_LABELS][:-1] + b"\7"),
    "truncated": gzip.compress(FILES[TRAIN_LABELS])[:-4],
    "damaged": gzip.compress(FILES[TRAIN_LABELS])[:-8] + b"\0" * 8,
    "no-gzip": b"<html>",
    "empty": b"",
}


@pytest.mark.parametrize("fault", CORRUPT)
def test_a_corrupt_own_file_is_named_and_kept(
    fault: str, own: Path, mirror: Mirror, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets, "MIRRORS", (mirror.url,))
    monkeypatch.setenv("GRADFLOW_DATA_DIR", str(own))
    put(own / "mnist")
    path = own / "mnist" / f"{TRAIN_LABELS}.gz"
    path.write_bytes(CORRUPT[fault])
    with pytest.raises(errors.DataError, match=rf"{TRAIN_LABELS}\.gz is not the MNIST file it should be") as caught:
        datasets.mnist()
    assert str(path) in str(caught.value)
    assert path.read_bytes() == CORRUPT[fault]
    assert not mirror.asked


@pytest.mark.parametrize("fault", CORRUPT)
def test_a_corrupt_cached_file_is_named_and_fetched_again(
    fault: str, cache: Path, mirror: Mirror, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets, "MIRRORS", (mirror.url,))
    put(cache)
    path = cache / f"{TRAIN_LABELS}.gz"
    path.write_bytes(CORRUPT[fault])
    with pytest.warns(UserWarning, match=rf"{TRAIN_LABELS}\.gz is corrupt") as caught:
        check(datasets.mnist())
    assert caught[0].filename == __file__.replace(".pyc", ".py")
    assert mirror.asked == [f"/{TRAIN_LABELS}.gz"]
    check(datasets.mnist())  # mended, so without a warning
    assert len(mirror.asked) == 1


def test_a_corrupt_cached_file_without_a_network(cache: Path, dead: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets, "MIRRORS", (dead,))
    put(cache, train_labels=FILES[TRAIN_LABELS][:-1])
    with pytest.raises(errors.DataError, match=rf"{TRAIN_LABELS}\.gz is corrupt.*SHA-256"):
        datasets.mnist()
    assert (cache / f"{TRAIN_LABELS}.gz").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (FILES["train-images-idx3-ubyte"], "does not begin as an IDX file"),
        (b"\0\0\x0d\1" + FILES[TRAIN_LABELS][4:], "does not begin as an IDX file"),
        (b"\1" + FILES[TRAIN_LABELS][1:], "does not begin as an IDX file"),
        (b"\0\0\x08\1\0", "does not begin as an IDX file"),
        (FILES[TRAIN_LABELS] + b"\0", r"shape is \(6,\), and has 7 values"),
        (FILES[TRAIN_LABELS][:-1], r"shape is \(6,\), and has 5 values"),
        (b"\0\0\x08\1\xff\xff\xff\xff", r"shape is \(4294967295,\), and has 0 values"),
    ],
)
def test_the_parser_is_strict(content: bytes, message: str, own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(datasets._MNIST, TRAIN_LABELS, hashlib.sha256(content).hexdigest())
    monkeypatch.setenv("GRADFLOW_DATA_DIR", str(own))
    put(own, train_labels=content)
    with pytest.raises(errors.DataError, match=message):
        datasets.mnist()


# ------------------------------------------------------------------------------------------------------------ real data
def real_folder() -> Path | None:
    for text in (os.environ.get("GRADFLOW_DATA_DIR", ""), Path(__file__).parents[2] / "shared" / "data"):
        if str(text).strip() and (Path(text) / "mnist").is_dir():
            return Path(text)
    return None


@pytest.mark.skipif(real_folder() is None, reason="no MNIST in GRADFLOW_DATA_DIR")
def test_the_real_mnist(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRADFLOW_DATA_DIR", str(real_folder()))
    split = gf.datasets.mnist()
    assert [part.images.shape for part in split] == [(50_000, 784), (10_000, 784), (10_000, 784)]
    assert [part.labels.shape for part in split] == [(50_000,), (10_000,), (10_000,)]
    assert all(part.images.dtype == np.float32 and part.labels.dtype == np.int64 for part in split)
    assert split.train.labels[:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]
    assert split.test.labels[:10].tolist() == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]
    assert (split.train.images.min(), split.train.images.max()) == (0, 1)
    mean = np.concatenate([split.train.images, split.validation.images]).mean(dtype=np.float64)
    assert round(mean, 4) == 0.1307  # of the 60,000, as everybody's normalisation of MNIST has it
    x, y = next(iter(gf.data.DataLoader(gf.data.TensorDataset(*split.validation), 128)))
    assert (x.shape, x.dtype, y.shape) == ((128, 784), gf.float32, (128,))


def test_digits() -> None:
    sklearn = pytest.importorskip("sklearn.datasets")
    split = gf.datasets.digits()
    assert [part.images.shape for part in split] == [(1437, 64), (180, 64), (180, 64)]
    assert all(part.images.dtype == np.float32 and part.labels.dtype == np.int64 for part in split)
    images, labels = sklearn.load_digits(return_X_y=True)
    together = [
        (*image.tolist(), label) for part in split for image, label in zip(part.images * 16, part.labels, strict=True)
    ]
    assert sorted(together) == sorted((*image.tolist(), label) for image, label in zip(images, labels, strict=True))
    whole = np.bincount(labels, minlength=10)
    for part, share in zip(split, (0.8, 0.1, 0.1), strict=True):
        assert np.abs(np.bincount(part.labels, minlength=10) - share * whole).max() <= 1


def test_digits_split_by_seed() -> None:
    pytest.importorskip("sklearn")
    one, same, other = (gf.datasets.digits(seed=seed) for seed in (0, 0, 1))
    assert all(np.array_equal(a.images, b.images) for a, b in zip(one, same, strict=True))
    assert not np.array_equal(one.test.images, other.test.images)
    square = gf.datasets.digits(flatten=False)
    assert square.train.images.shape == (1437, 8, 8)
    np.testing.assert_array_equal(square.train.images.reshape(-1, 64), one.train.images)


def test_digits_leave_the_global_stream_alone() -> None:
    pytest.importorskip("sklearn")
    gf.manual_seed(0)
    expected = gf.random.uniform((3,)).tolist()
    gf.manual_seed(0)
    gf.datasets.digits()
    assert gf.random.uniform((3,)).tolist() == expected


def test_digits_without_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(errors.MissingDependencyError, match=r'pip install "gradflow\[examples\]"'):
        datasets.digits()
