"""What can happen to a small file on disk."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path


def _text(content: bytes) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(content)


def _cut(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def _zeroed(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def _twice(path: Path) -> None:
    text = path.read_text()
    first = next(iter(json.loads(text)))
    path.write_text("{" + f'"{first}": 1, ' + text.strip()[1:])


def _instead(make: Callable[[Path], object]) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        path.unlink()
        make(path)

    return damage


DAMAGE: dict[str, Callable[[Path], None]] = {
    "empty": _text(b""),
    "blank": _text(b" \n"),
    "cut": _cut,
    "zeroed": _zeroed,
    "garbage": _text(bytes(range(1, 200))),
    "latin": _text('{"name": "é"}'.encode("latin-1")),
    "utf-16": _text('{"name": "x"}'.encode("utf-16")),
    "list": _text(b"[1, 2]"),
    "null": _text(b"null"),
    "number": _text(b"3"),
    "nan": _text(b'{"name": NaN}'),
    "infinite": _text(b'{"name": 1e999}'),
    "long number": _text(b'{"name": ' + b"9" * 5000 + b"}"),
    "surrogate": _text(b'{"name": "\\ud800"}'),
    "deep": _text(b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
    "twice": _twice,
    "folder": _instead(Path.mkdir),
    "pipe": _instead(os.mkfifo),
    "link to nothing": _instead(lambda path: path.symlink_to("nowhere")),
    "ring of links": _instead(lambda path: path.symlink_to(path.name)),
}
