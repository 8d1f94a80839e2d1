"""Image files are read once and in order; what is broken is named; what is unfinished is never taken for whole."""

import errno
import io
import os
import resource
import signal
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import functional as TF

from datamodules import store
from datamodules.store import Entry, read_entries, read_image

COUNT, WIDTH, HEIGHT = 12, 14, 10


def pixels(seed: int, width: int = WIDTH, height: int = HEIGHT) -> np.ndarray:
    return np.random.default_rng(seed).integers(256, size=(height, width, 3), dtype=np.uint8)


@pytest.fixture
def entries(tmp_path) -> list[Entry]:
    (tmp_path / "images").mkdir()
    found = [Entry(tmp_path / "images" / f"{number:02}.png") for number in range(COUNT)]
    for number, entry in enumerate(found):
        Image.fromarray(pixels(number)).save(entry.path)
    return found


@pytest.fixture
def read(tmp_path):
    """Reads whole images at 6 by 6, in colour, with a cache of the test's own; arguments change that."""
    given = {"size": 6, "channels": 3, "title": "signs", "cache": tmp_path / "cache", "square": False}
    return lambda entries, **changes: read_entries(entries, **given | changes)


@pytest.fixture
def opened(monkeypatch) -> list[Path]:
    """Every file that Pillow is asked to open, in a list that grows."""
    files: list[Path] = []
    original = Image.open
    monkeypatch.setattr(Image, "open", lambda file: (files.append(file), original(file))[1])
    return files


def spoil(entry: Entry) -> None:
    """Other bytes in the same place, of the same length and time."""
    status = entry.path.stat()
    entry.path.write_bytes(bytes(status.st_size))
    os.utime(entry.path, ns=(status.st_atime_ns, status.st_mtime_ns))


def scaled(number: int, size: int = 6) -> torch.Tensor:
    return TF.pil_to_tensor(TF.resize(Image.fromarray(pixels(number)), [size, size]))


class TestReading:
    def test_every_image_is_there_in_order(self, entries, read) -> None:
        images, kept = read(entries)
        assert images.dtype == torch.uint8
        assert images.equal(torch.stack([scaled(number) for number in range(COUNT)]))
        assert kept.equal(torch.arange(COUNT))

    def test_grey_as_pillow_sees_it(self, entries, read) -> None:
        images, _ = read(entries, size=HEIGHT, channels=1, square=True)
        left = (WIDTH - HEIGHT) // 2
        for number, image in enumerate(images):
            grey = np.array(Image.fromarray(pixels(number)).convert("L"))
            assert np.array_equal(image[0], grey[:, left : left + HEIGHT])

    @given(*(st.integers(-2, edge + 2) for edge in (WIDTH, HEIGHT, WIDTH, HEIGHT)))
    @settings(deadline=None)
    def test_a_box_is_cut_out_or_refused(self, tmp_path_factory, x1, y1, x2, y2) -> None:
        path = tmp_path_factory.getbasetemp() / "boxed.png"
        Image.fromarray(pixels(0)).save(path)
        entry = Entry(path, (x1, y1, x2, y2))
        if not (0 <= x1 < x2 <= WIDTH and 0 <= y1 < y2 <= HEIGHT):
            with pytest.raises(ValueError, match=rf"boxed\.png: its box .*{x1}, {y1}, {x2}, {y2}.*14 by 10 pixels"):
                read_image(entry, 5, 3, square=False)
            return
        part = pixels(0)[y1:y2, x1:x2]
        if part.shape == (5, 5, 3):
            expected = torch.from_numpy(part).permute(2, 0, 1)
        else:
            expected = TF.pil_to_tensor(TF.resize(Image.fromarray(part), [5, 5]))
        assert read_image(entry, 5, 3, square=False).equal(expected)

    @given(st.data())
    @settings(deadline=None, max_examples=150)
    def test_whatever_the_bytes_the_file_is_named_or_read(self, tmp_path_factory, data) -> None:
        path = tmp_path_factory.getbasetemp() / "fuzzed"
        whole = io.BytesIO()
        Image.fromarray(pixels(0)).save(whole, data.draw(st.sampled_from(["png", "jpeg", "bmp", "webp", "ppm"])))
        content = bytearray(whole.getvalue())
        for position in data.draw(st.lists(st.integers(0, len(content) - 1), max_size=6)):
            content[position] = data.draw(st.integers(0, 255))
        path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
        try:
            assert read_image(Entry(path), 4, 3).shape == (3, 4, 4)
        except ValueError as error:
            assert str(error).startswith(f"{path}: ")  # noqa: PT017 - either outcome is right

    def test_nothing_to_read_is_refused(self, read) -> None:
        with pytest.raises(ValueError, match="signs holds no images"):
            read([])


class TestOnce:
    def test_the_second_time_no_file_is_opened(self, entries, read, opened) -> None:
        first, _ = read(entries)
        assert sorted(opened) == [entry.path for entry in entries]
        for entry in entries:
            spoil(entry)
        again, kept = read(entries)
        assert len(opened) == COUNT
        assert again.equal(first)
        assert kept.equal(torch.arange(COUNT))

    @pytest.mark.parametrize(
        "change",
        [("size", 7), ("channels", 1), ("square", True), ("cache", "elsewhere")],
        ids=lambda change: change[0],
    )
    def test_another_argument_reads_anew(self, tmp_path, entries, read, opened, monkeypatch, change) -> None:
        monkeypatch.chdir(tmp_path)
        read(entries)
        read(entries, **dict([change]))
        assert len(opened) == 2 * COUNT

    @pytest.mark.parametrize("what", ["time", "content", "box", "order", "path", "version"])
    def test_another_file_reads_anew(self, entries, read, opened, monkeypatch, what) -> None:
        read(entries)
        if what == "time":
            os.utime(entries[3].path, ns=(0, 1))
        elif what == "content":
            Image.fromarray(pixels(99, 20)).save(entries[3].path)
        elif what == "box":
            entries[3] = Entry(entries[3].path, (0, 0, 5, 5))
        elif what == "order":
            entries = entries[::-1]
        elif what == "path":
            entries[3] = Entry(entries[3].path.rename(entries[3].path.with_name("other.png")))
        else:
            monkeypatch.setattr(store, "VERSION", -1)
        read(entries)
        assert len(opened) == 2 * COUNT

    def test_the_cache_is_where_it_was_put(self, tmp_path, entries, read, monkeypatch) -> None:
        monkeypatch.setenv("HOME", str(tmp_path / "home"))
        monkeypatch.setenv("TEMPERED_CACHE", str(tmp_path / "named"))
        read(entries, cache=None)
        assert (tmp_path / "named").is_dir()
        assert not (tmp_path / "home").exists()
        monkeypatch.delenv("TEMPERED_CACHE")
        read(entries, cache=None)
        assert (tmp_path / "home" / ".cache" / "tempered").is_dir()
        assert sorted(path.name for path in (tmp_path / "images").iterdir()) == [entry.path.name for entry in entries]

    def test_an_altered_cache_is_refused(self, tmp_path, entries, read) -> None:
        read(entries)
        (file,) = (tmp_path / "cache").glob("*/images")
        file.write_bytes(file.read_bytes()[:-1])
        with pytest.raises(ValueError, match=rf"{file} is not as it was written: remove the folder {file.parent}"):
            read(entries)


class TestMapped:
    def test_beyond_the_bound_a_file_is_mapped_and_never_written(self, tmp_path, entries, read, monkeypatch) -> None:
        expected, _ = read(entries)
        monkeypatch.setattr(store, "IN_MEMORY", expected.nbytes - 1)
        (file,) = (tmp_path / "cache").glob("*/images")
        before = file.read_bytes()
        mapped, _ = read(entries)
        assert mapped.equal(expected)
        assert str(file) in Path("/proc/self/maps").read_text()
        mapped.zero_()
        assert file.read_bytes() == before
        assert read(entries)[0].equal(expected)

    def test_the_bound_itself_fits(self, entries, read, monkeypatch) -> None:
        monkeypatch.setattr(store, "IN_MEMORY", COUNT * 3 * 6 * 6)
        images, _ = read(entries)
        assert store.fits(images)
        assert not store.fits(torch.cat([images, images[:1]]))


class TestBroken:
    @pytest.fixture
    def spoilt(self, entries) -> list[int]:
        positions = [1, 4, 5, 9]
        for position in positions:
            entries[position].path.write_bytes(entries[position].path.read_bytes()[: 40 * position])
        return positions

    def test_refused_with_the_first_few_and_the_count(self, entries, read, spoilt) -> None:
        with pytest.raises(ValueError, match=r"^4 of the 12 images of signs cannot be read: ") as caught:
            read(entries)
        message = str(caught.value)
        assert all(f"{number:02}.png: " in message for number in (1, 4, 5))
        assert "09.png" not in message
        assert "and 1 more. Convert, replace or remove them, or skip them (broken: skip)" in message
        assert "\n" not in message

    def test_skipped_with_a_warning_and_the_others_kept(self, entries, read, spoilt, opened) -> None:
        kept_ones = [number for number in range(COUNT) if number not in spoilt]
        for _ in range(2):  # from the files, and from the cache
            with pytest.warns(UserWarning, match=r"4 of the 12 images of signs .*01\.png: .*They are skipped"):
                images, kept = read(entries, broken="skip")
            assert kept.tolist() == kept_ones
            assert images.equal(torch.stack([scaled(number) for number in kept_ones]))
        assert len(opened) == COUNT
        with pytest.raises(ValueError, match="4 of the 12"):
            read(entries)
        assert len(opened) == COUNT

    def test_mended_images_are_read(self, entries, read, spoilt) -> None:
        with pytest.raises(ValueError, match="4 of the 12"):
            read(entries)
        for number in spoilt:
            Image.fromarray(pixels(number)).save(entries[number].path)
        assert read(entries)[0].equal(torch.stack([scaled(number) for number in range(COUNT)]))

    def test_nothing_left_is_refused_even_so(self, entries, read, spoilt) -> None:
        with pytest.raises(ValueError, match="4 of the 4 images"):
            read([entries[position] for position in spoilt], broken="skip")

    def test_a_disk_that_fails_is_not_taken_for_a_broken_image(self, tmp_path, entries, read, monkeypatch) -> None:
        def fail(file):
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(file))

        with monkeypatch.context() as patch:
            patch.setattr(Image, "open", fail)
            with pytest.raises(OSError, match=r"00\.png"):
                read(entries, broken="skip")
        assert not list((tmp_path / "cache").glob("[!.]*"))
        assert len(read(entries)[1]) == COUNT

    def test_a_missing_file_is_named(self, entries, read) -> None:
        entries[2].path.unlink()
        with pytest.raises(FileNotFoundError, match=r"02\.png"):
            read(entries, broken="skip")


class TestTogether:
    def test_what_an_interrupted_reading_leaves_is_never_taken_for_whole(
        self, tmp_path, entries, read, opened, monkeypatch
    ) -> None:
        original = Image.open

        def interrupt(file):
            if file == entries[7].path:
                raise KeyboardInterrupt
            return original(file)

        with monkeypatch.context() as patch:
            patch.setattr(Image, "open", interrupt)
            with pytest.raises(KeyboardInterrupt):
                read(entries)
        (left,) = (tmp_path / "cache").glob(".*.unfinished")
        assert 0 < (left / "images").stat().st_size < COUNT * 3 * 6 * 6
        assert not list((tmp_path / "cache").glob("[!.]*"))
        assert read(entries)[0].equal(torch.stack([scaled(number) for number in range(COUNT)]))
        assert not left.exists()

    def test_of_two_at_once_one_reads(self, entries, read, opened) -> None:
        found = []
        threads = [threading.Thread(target=lambda: found.append(read(entries)[0])) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(opened) == COUNT
        assert all(images.equal(torch.stack([scaled(number) for number in range(COUNT)])) for images in found)
        assert len(found) == 4


def test_a_cache_that_takes_no_more_says_what_to_do_and_keeps_nothing(entries, read, tmp_path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300, before[1]))
    try:
        with pytest.raises(OSError, match=r"The cache .*cache cannot be written .*TEMPERED_CACHE"):
            read(entries)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert not list((tmp_path / "cache").rglob("images"))
    assert len(read(entries)[0]) == COUNT
