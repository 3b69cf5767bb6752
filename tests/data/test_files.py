"""Files are replaced atomically: leftovers of killed writers are removed, links aren't followed."""

import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from data.files import open_plain, remove_leftovers, write_atomically

ROOT = Path(__file__).resolve().parents[2]

WRITER = f"""
import os, sys
sys.path.insert(0, {str(ROOT)!r})
from pathlib import Path
import data.files
data.files.os.fsync = lambda _: (print("writing", flush=True), sys.stdin.read())
data.files.write_atomically(Path(sys.argv[1]), b"content")
"""


def test_what_a_killed_writer_left_is_removed_and_what_a_living_one_writes_stays(tmp_path):
    path = tmp_path / "cache" / "vocab.txt"
    path.parent.mkdir()
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", WRITER, path], stdin=pipe, stdout=pipe) as writer:
        assert writer.stdout.readline() == b"writing\n"
        remove_leftovers(tmp_path, recursive=True)
        assert len(list(path.parent.iterdir())) == 1
        writer.send_signal(signal.SIGKILL)
    remove_leftovers(tmp_path)
    assert len(list(path.parent.iterdir())) == 1
    remove_leftovers(tmp_path, recursive=True)
    assert list(path.parent.iterdir()) == []


def test_writers_and_sweepers_at_once_lose_nothing(tmp_path):
    done = threading.Event()

    def sweep():
        while not done.is_set():
            remove_leftovers(tmp_path)

    sweeper = threading.Thread(target=sweep)
    sweeper.start()
    try:
        for number in range(300):
            write_atomically(tmp_path / "file", str(number).encode())
            assert (tmp_path / "file").read_bytes() == str(number).encode()
    finally:
        done.set()
        sweeper.join(60)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_only_our_temporary_files_are_removed(tmp_path):
    names = [".vocab.txt", "." + "a" * 32, "x." + "a" * 32, ".file." + "g" * 32]
    for name in names:
        (tmp_path / name).write_text("mine")
    (tmp_path / (".link." + "a" * 32)).symlink_to(tmp_path / names[0])
    (tmp_path / (".folder." + "a" * 32)).mkdir()
    remove_leftovers(tmp_path, recursive=True)
    assert len(list(tmp_path.iterdir())) == len(names) + 2


def test_a_link_is_replaced(tmp_path):
    victim, link = tmp_path / "victim", tmp_path / "link"
    victim.write_text("mine")
    link.symlink_to(victim)
    write_atomically(link, b"ours")
    assert victim.read_text() == "mine" and link.read_bytes() == b"ours" and not link.is_symlink()


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: path.symlink_to("/dev/zero")])
def test_only_regular_files_are_read(tmp_path, make):
    make(tmp_path / "path")
    with pytest.raises(OSError, match="not a regular file"):
        open_plain(tmp_path / "path")


@pytest.mark.parametrize("path", [".", "/", "..", "folder"])
def test_a_folder_is_not_written_over(tmp_path, monkeypatch, path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match=re.escape(path)):
        write_atomically(Path(path), b"content")
    assert list(tmp_path.rglob("*")) == [tmp_path / "folder"]
