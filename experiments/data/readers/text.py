"""Text files: a file is a document."""

from __future__ import annotations

import codecs
import io
from collections.abc import Iterator

from experiments.data.readers.compressed import BrokenError, blocks
from experiments.data.readers.documents import PIECE, Advance, Source, Text, cut_before


def read_text(source: Source, advance: Advance) -> Iterator[Text]:
    """The one document of a text file, in pieces if it is long; line breaks become newlines.

    Raises:
        DataError: It is not UTF-8, or packed and cut off.
    """
    held = ""
    for text in _decoded(source, advance):
        held += text
        while len(held) > PIECE:
            cut = cut_before(held, PIECE)
            yield Text(source.name, held[:cut], False)
            held = held[cut:]
    if held:
        yield Text(source.name, held)


def _decoded(source: Source, advance: Advance) -> Iterator[str]:
    decoder = io.IncrementalNewlineDecoder(codecs.getincrementaldecoder("utf-8")(), translate=True)
    line, taken = 1, 0
    try:
        for block in blocks(source, advance):
            yield _decode(decoder, block, source, line, taken, final=False)
            line, taken = line + block.count(b"\n"), taken + len(block)
        yield _decode(decoder, b"", source, line, taken, final=True)
    except BrokenError as error:
        raise source.error(f"{error}, in line {line} of the text") from error


def _decode(
    decoder: io.IncrementalNewlineDecoder,
    block: bytes,
    source: Source,
    line: int,
    taken: int,
    final: bool,
) -> str:
    try:
        return decoder.decode(block, final=final)
    except UnicodeDecodeError as error:
        before = error.object[: error.start]  # begins with what was left of the last block
        line += before.count(b"\n")
        place = taken + len(block) - len(error.object) + error.start
        raise source.error(
            f"is not UTF-8 in line {line} (byte {place:,}: {error.reason}); write it again as UTF-8"
        ) from error
