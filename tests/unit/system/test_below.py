"""Opening files of a folder that anybody may have written."""

from __future__ import annotations

import os
import socket

import pytest

from asys_bench.system.files.below import (
    MAX_DEPTH,
    MAX_DOCUMENT_BYTES,
    EntryKind,
    UnsafeFileError,
    is_file,
    is_folder,
    open_file,
    parse_json,
    read_file,
    read_json,
    real_folder,
    remove,
    rename,
    scan,
    walk,
)


@pytest.fixture
def run(tmp_path):
    """A folder, and one outside of it that nothing may reach."""
    inside, outside = tmp_path / "run", tmp_path / "outside"
    for folder in (inside / "sae" / "h", outside / "h"):
        folder.mkdir(parents=True)
        (folder / "file").write_bytes(b"bytes")
    return inside


def test_a_regular_file_is_read_and_written_in_place(run):
    path = run / "sae" / "h" / "file"
    assert read_file(path, 5, below=run) == b"bytes"
    fd = open_file(path, os.O_RDWR, below=run)
    os.ftruncate(fd, 2)
    os.close(fd)
    assert path.read_bytes() == b"by"


def test_the_trusted_folder_itself_may_be_reached_through_a_link(run, tmp_path):
    (tmp_path / "latest").symlink_to(run)
    assert read_file(tmp_path / "latest" / "sae" / "h" / "file", 5, below=tmp_path / "latest")


@pytest.mark.parametrize("where", ["last", "middle", "first"])
def test_a_link_anywhere_below_is_not_followed(run, tmp_path, where):
    if where == "last":
        (run / "sae" / "h" / "file").unlink()
        (run / "sae" / "h" / "file").symlink_to(tmp_path / "outside" / "h" / "file")
    elif where == "middle":
        os.rename(run / "sae" / "h", run / "sae" / "moved")
        (run / "sae" / "h").symlink_to(tmp_path / "outside" / "h")
    else:
        os.rename(run / "sae", run / "moved")
        (run / "sae").symlink_to(tmp_path / "outside")
    path = run / "sae" / "h" / "file"
    with pytest.raises(UnsafeFileError, match="symbolic link"):
        open_file(path, below=run)
    assert not is_file(path, below=run)
    if where != "last":
        for call in (lambda: remove(path, below=run), lambda: rename(path, "x", below=run),
                     lambda: scan(path.parent, below=run)):  # fmt: skip
            with pytest.raises(UnsafeFileError, match="symbolic link"):
                call()
        assert not is_folder(path.parent, below=run)
    assert (tmp_path / "outside" / "h" / "file").read_bytes() == b"bytes"


def test_upwards_and_elsewhere_is_refused(run, tmp_path):
    for path in (run / ".." / "outside" / "h" / "file", tmp_path / "outside" / "h" / "file"):
        with pytest.raises(UnsafeFileError):
            open_file(path, below=run)
    with pytest.raises(UnsafeFileError):
        remove(run / "sae" / "..", below=run)


@pytest.mark.timeout(120)
def test_what_would_block_or_act_when_opened_is_only_looked_at(run):
    os.mkfifo(run / "fifo")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(run / "socket"))
        (run / "zero").symlink_to("/dev/zero")
        for name, kind in (("fifo", "FIFO"), ("socket", "socket"), ("sae", "folder"),
                           ("zero", "symbolic link")):  # fmt: skip
            with pytest.raises(UnsafeFileError, match=f"is a {kind}, not a file"):
                read_file(run / name, 10, below=run)
    with pytest.raises(FileNotFoundError):
        open_file(run / "nothing", below=run)


def test_a_device_is_not_read(tmp_path):
    try:
        os.mknod(tmp_path / "zero", 0o600 | 0o020000, os.makedev(1, 5))
    except PermissionError:
        pytest.skip("only root makes device nodes")
    with pytest.raises(UnsafeFileError, match="is a device"):
        read_file(tmp_path / "zero", 10)


def test_files_that_are_too_large_or_full_of_holes_are_refused_before_they_are_read(run):
    path = run / "run.json"
    path.write_bytes(b"[]" + b" " * MAX_DOCUMENT_BYTES)
    with pytest.raises(UnsafeFileError, match=f"more than {MAX_DOCUMENT_BYTES} bytes"):
        read_json(path)
    os.truncate(path, 30 << 30)
    with pytest.raises(UnsafeFileError, match="file of holes: 32212254720 bytes"):
        open_file(path)


@pytest.mark.parametrize("levels", [MAX_DEPTH + 1, 500, 100_000])
def test_json_is_bounded_in_depth(levels):
    for left, right in (("[", "]"), ('{"a":', "}")):
        with pytest.raises(ValueError, match="nested deeper than 64"):
            parse_json(left * levels + "0" + right * levels)


def test_whole_numbers_that_no_float_is_near_are_refused():
    for digits in ("9" * 309, "-" + "9" * 308, "1" + "0" * 5000):
        with pytest.raises(ValueError, match=f"a whole number of {len(digits)} digits"):
            parse_json(f'{{"cosine": {digits}}}')
    assert parse_json(f"[{2**128}, {'9' * 308}, -1]")[0] == 2**128


def test_json_up_to_the_depth_is_read():
    assert parse_json("[" * MAX_DEPTH + "]" * MAX_DEPTH)
    assert parse_json(b'{"a": [1, {"b": null}]}') == {"a": [1, {"b": None}]}
    with pytest.raises(ValueError, match="utf-8"):
        parse_json(b'"\xff"')


def test_a_walk_names_links_and_special_files_and_enters_no_link(run, tmp_path):
    (run / "sae" / "loop").symlink_to(run)
    (run / "sae" / "away").symlink_to(tmp_path / "outside")
    os.mkfifo(run / "sae" / "h" / "fifo")
    found = [(entry.path.relative_to(run).as_posix(), entry.kind) for entry in walk(run)]
    assert found == [
        ("sae/away", EntryKind.LINK),
        ("sae/loop", EntryKind.LINK),
        ("sae/h/fifo", EntryKind.FIFO),
        ("sae/h/file", EntryKind.FILE),
    ]


def test_a_deep_tree_is_refused(tmp_path):
    tmp_path.joinpath(*["d"] * 20).mkdir(parents=True)
    with pytest.raises(UnsafeFileError, match="deeper than 16 folders"):
        list(walk(tmp_path))


def test_removing_a_tree_takes_its_links_and_not_what_they_point_at(run, tmp_path):
    (run / "sae" / "h" / "away").symlink_to(tmp_path / "outside")
    remove(run / "sae", below=run)
    assert not (run / "sae").exists()
    assert (tmp_path / "outside" / "h" / "file").read_bytes() == b"bytes"
    remove(run / "sae", below=run)
    (run / "link").symlink_to(tmp_path / "outside")
    remove(run / "link", below=run)
    assert not (run / "link").is_symlink()
    assert (tmp_path / "outside" / "h" / "file").exists()


def test_a_folder_is_real_or_an_error(run):
    assert real_folder(run, "sae", "h") == run / "sae" / "h"
    with pytest.raises(FileNotFoundError):
        real_folder(run, "sae", "gone")
    with pytest.raises(UnsafeFileError, match="is a file, not a folder"):
        real_folder(run, "sae", "h", "file")


def test_descriptors_are_closed(run):
    before = os.listdir("/proc/self/fd")
    for path in (run / "sae" / "h" / "file", run / "nothing", run / "sae"):
        try:
            os.close(open_file(path, below=run))
        except OSError:
            continue
    scan(run), list(walk(run))
    assert len(os.listdir("/proc/self/fd")) == len(before)
