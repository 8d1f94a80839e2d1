"""Downloads, from a server on this machine: checked, whole or absent, begun again, and made once by many."""

import gzip
import hashlib
import io
import pickle
import tarfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from torchvision import datasets

from datamodules import CIFAR10, MNIST, published

IMAGES = np.random.default_rng(0).integers(256, size=(10, 28, 28), dtype=np.uint8)
PHOTOGRAPHS = np.random.default_rng(0).integers(256, size=(10, 3072), dtype=np.uint8)


class Server(ThreadingHTTPServer):
    """Serves files from memory, counts what is asked for, and on request breaks off in the midst of an answer."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.break_off = False

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_HEAD(self) -> None:
        content = self.server.files[self.path[1:]]
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()

    def do_GET(self) -> None:
        self.do_HEAD()
        if self.headers["Method"] == "HEAD":  # how torchvision asks where an address leads
            return
        self.server.asked.append(self.path[1:])
        content = self.server.files[self.path[1:]]
        self.wfile.write(content[: len(content) // 2] if self.server.break_off else content)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server():
    with Server() as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def mnist(server, monkeypatch) -> Server:
    """Serves MNIST's four archives, with ten images in each set."""
    resources = []
    for prefix in ("train", "t10k"):
        for name, array in (("images-idx3", IMAGES), ("labels-idx1", np.arange(10, dtype=np.uint8))):
            header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">i4").tobytes()
            archive = f"{prefix}-{name}-ubyte.gz"
            server.files[archive] = gzip.compress(header + array.tobytes())
            resources.append((archive, hashlib.md5(server.files[archive]).hexdigest()))
    monkeypatch.setattr(datasets.MNIST, "mirrors", [server.url])
    monkeypatch.setattr(datasets.MNIST, "resources", resources)
    return server


@pytest.fixture
def cifar10(server, monkeypatch) -> Server:
    """Serves CIFAR-10's archive, with ten images in each of its files."""
    listed = {}
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for name in [name for name, _ in datasets.CIFAR10.train_list + datasets.CIFAR10.test_list] + ["batches.meta"]:
            content = pickle.dumps({"data": PHOTOGRAPHS, "labels": [*range(10)], "label_names": ["x"] * 10})
            info = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
            listed[name] = hashlib.md5(content).hexdigest()
    server.files["cifar.tar.gz"] = packed.getvalue()
    monkeypatch.setattr(datasets.CIFAR10, "url", f"{server.url}cifar.tar.gz")
    monkeypatch.setattr(datasets.CIFAR10, "tgz_md5", hashlib.md5(packed.getvalue()).hexdigest())
    for which in ("train_list", "test_list"):
        monkeypatch.setattr(datasets.CIFAR10, which, [[n, listed[n]] for n, _ in getattr(datasets.CIFAR10, which)])
    monkeypatch.setattr(datasets.CIFAR10, "meta", datasets.CIFAR10.meta | {"md5": listed["batches.meta"]})
    return server


def visible(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir() if not path.name.startswith("."))


def whole(root: Path) -> bool:
    """Whether MNIST is all there, as it was served."""
    data = MNIST(str(root))
    data.setup()
    return all(np.array_equal(data.load(train)[0][:, 0], IMAGES) for train in (True, False))


class TestMNIST:
    def test_downloaded_once(self, tmp_path, mnist) -> None:
        for _ in range(2):
            MNIST(str(tmp_path / "new" / "data")).prepare_data()
        assert sorted(mnist.asked) == sorted(mnist.files)
        assert whole(tmp_path / "new" / "data")
        assert visible(tmp_path / "new" / "data") == ["MNIST"]
        assert not list((tmp_path / "new" / "data").glob(".*.unfinished"))

    def test_a_download_that_broke_off_is_begun_again(self, tmp_path, mnist) -> None:
        mnist.break_off = True
        with pytest.raises(ConnectionError, match=r"Could not download MNIST to .*MNIST/raw"):
            MNIST(str(tmp_path)).prepare_data()
        assert visible(tmp_path) == []
        mnist.break_off = False
        MNIST(str(tmp_path)).prepare_data()
        assert whole(tmp_path)

    def test_an_archive_with_another_checksum_is_refused(self, tmp_path, mnist) -> None:
        mnist.files["t10k-images-idx3-ubyte.gz"] = mnist.files["train-labels-idx1-ubyte.gz"]
        with pytest.raises(ConnectionError, match=r"Could not download MNIST"):
            MNIST(str(tmp_path)).prepare_data()
        assert visible(tmp_path) == []

    def test_unpacking_that_was_killed_is_begun_again(self, tmp_path, mnist, monkeypatch) -> None:
        unpack = datasets.mnist.download_and_extract_archive

        def stopped(url, download_root, filename, md5) -> None:
            unpack(url, download_root, filename=filename, md5=md5)
            (Path(download_root) / filename.removesuffix(".gz")).write_bytes(b"")
            if filename == mnist_files[-1]:
                raise KeyboardInterrupt

        mnist_files = list(mnist.files)
        with monkeypatch.context() as patch:
            patch.setattr(datasets.mnist, "download_and_extract_archive", stopped)
            with pytest.raises(KeyboardInterrupt):
                MNIST(str(tmp_path)).prepare_data()
        left = list((tmp_path / ".MNIST.unfinished" / "MNIST" / "raw").glob("*-ubyte"))
        assert [file.read_bytes() for file in left] == [b""] * 4  # which is whole in torchvision's eyes
        assert visible(tmp_path) == []
        MNIST(str(tmp_path)).prepare_data()
        assert whole(tmp_path)
        assert not (tmp_path / ".MNIST.unfinished").exists()

    def test_many_at_once_download_once(self, tmp_path, mnist) -> None:
        failed = []

        def prepare() -> None:
            try:
                MNIST(str(tmp_path)).prepare_data()
            except Exception as error:
                failed.append(error)

        threads = [threading.Thread(target=prepare) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failed
        assert sorted(mnist.asked) == sorted(mnist.files)
        assert whole(tmp_path)

    def test_what_lies_in_the_folder_stays(self, tmp_path, mnist) -> None:
        (tmp_path / "MNIST").mkdir()
        (tmp_path / "MNIST" / "notes.txt").write_text("mine")
        MNIST(str(tmp_path)).prepare_data()
        assert (tmp_path / "MNIST" / "notes.txt").read_text() == "mine"
        assert whole(tmp_path)

    def test_a_folder_that_cannot_be_written_needs_no_lock(self, tmp_path, mnist, monkeypatch) -> None:
        MNIST(str(tmp_path)).prepare_data()
        monkeypatch.setattr(published, "FileLock", lambda path: pytest.fail("locked"))
        monkeypatch.setattr("os.access", lambda path, mode: False)
        MNIST(str(tmp_path)).prepare_data()

    def test_home_is_expanded(self, tmp_path, mnist, monkeypatch) -> None:
        monkeypatch.setenv("HOME", str(tmp_path))
        MNIST("~/data").prepare_data()
        assert whole(tmp_path / "data")


class TestCIFAR10:
    def test_downloaded_once(self, tmp_path, cifar10) -> None:
        for _ in range(2):
            data = CIFAR10(str(tmp_path))
            data.prepare_data()
        assert cifar10.asked == ["cifar.tar.gz"]
        assert visible(tmp_path) == ["cifar-10-batches-py"]
        assert np.array_equal(data.load(False)[0].flatten(1), PHOTOGRAPHS)

    def test_an_unpacked_file_that_is_damaged_is_replaced(self, tmp_path, cifar10) -> None:
        CIFAR10(str(tmp_path)).prepare_data()
        (tmp_path / "cifar-10-batches-py" / "test_batch").write_bytes(b"cut")
        CIFAR10(str(tmp_path)).prepare_data()
        assert np.array_equal(CIFAR10(str(tmp_path)).load(False)[0].flatten(1), PHOTOGRAPHS)
