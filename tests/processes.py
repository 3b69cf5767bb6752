"""What tests know of processes: their state, the children of one, and a port for those that meet."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path


def state(number: int) -> str:
    """The letter of proc(5): "Z" for one that ended and whose parent hasn't looked yet; "" for none."""
    with contextlib.suppress(OSError):
        # The command before may have blanks and brackets.
        return Path(f"/proc/{number}/stat").read_text(errors="replace").rpartition(")")[2].split()[0]
    return ""


def is_alive(number: int) -> bool:
    return state(number) not in ("", "Z")


def children_of(number: int) -> list[int]:
    """The living children of all threads of a process; [] where the kernel doesn't list them."""
    found = []
    for thread in Path(f"/proc/{number}/task").glob("*/children"):
        with contextlib.suppress(OSError):  # it has just ended
            found += [int(child) for child in thread.read_text().split()]
    return [child for child in found if is_alive(child)]


def command_of(number: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{number}/cmdline").read_text(errors="replace").replace("\0", " ").strip()
    return ""


@contextlib.contextmanager
def held_port() -> Iterator[int]:
    """A port of this host for a server of the test, which must set SO_REUSEADDR, as torch does.

    A bound socket that doesn't listen keeps the port from everybody else: from those that ask for any port,
    and from connections. A port that was only found free may be taken before the server starts.
    """
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind(("127.0.0.1", 0))
        yield holder.getsockname()[1]
