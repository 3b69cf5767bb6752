"""Files that are there whole or not at all."""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Mapping
from pathlib import Path


def write_together(folder: Path, contents: Mapping[str, str]) -> None:
    """Writes texts by file name: all of them under other names first, then each takes its place at once."""
    folder.mkdir(parents=True, exist_ok=True)
    written: dict[Path, Path] = {}
    try:
        for name, content in contents.items():
            temporary = folder / f".{name}.{uuid.uuid4().hex}"
            written[temporary] = folder / name
            with temporary.open("x", encoding="utf-8", newline="\n") as stream:
                stream.write(content)
                stream.flush()
                os.fsync(stream.fileno())
        for temporary, path in written.items():
            temporary.replace(path)
    except BaseException as error:
        for temporary, path in written.items():
            if isinstance(error, OSError) and error.filename is None and temporary.exists():
                error.filename = str(path)
            with contextlib.suppress(OSError):
                temporary.unlink()
        raise
