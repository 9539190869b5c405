"""Images as shards: what is read, how it is addressed, and what is refused."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from experiments.data.batches import DataConfig
from experiments.data.image_config import ImageConfig
from experiments.data.images import ImageData, images_sha256
from experiments.data.shards import DataError, cache_folder
from tests.support.image_folder import CLASSES, SIDE, image, png, write_folder

pytest.importorskip("PIL", reason="needs the extra vision")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is imported into the user's cache."""
    monkeypatch.setenv("LOWBIT_CACHE", str(tmp_path / "cache"))


def config(path: Path | str, **keys: object) -> DataConfig:
    """`data=images` of a path, in 8 x 8 grey pixels."""
    image_keys = {"size": SIDE, "channels": 1, **keys}
    shape = ImageConfig(**image_keys)  # type: ignore[arg-type]
    return DataConfig("images", str(path), seq_len=1, max_epochs=100, image=shape)


def pixels(data: ImageData, batches: list[tuple[Tensor, Tensor]]) -> dict[bytes, str]:
    """The bytes of each image, normalisation undone, with the name of its class."""
    found = {}
    for images, classes in batches:
        raw = ((images * 0.5 + 0.5) * 255).round().byte()
        found |= {i.numpy().tobytes(): data.classes[c] for i, c in zip(raw, classes, strict=True)}
    return found


def write_parquet(path: Path, numbers: range, words: bool = False, as_struct: bool = True) -> None:
    """Images and classes as the Hugging Face hub ships them."""
    import pyarrow as pa
    from pyarrow import parquet

    kinds = [(kind, number) for number in numbers for kind in CLASSES]
    data = [png(image(*pair)) for pair in kinds]
    table = {
        "image": [{"bytes": d, "path": "x.png"} if as_struct else d for d in data],
        "label": [kind if words else CLASSES.index(kind) for kind, _ in kinds],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pa.table(table), path)


def test_a_folder_by_class_is_read_pixel_by_pixel(tmp_path: Path) -> None:
    data = ImageData(config(write_folder(tmp_path / "mine")))
    assert (data.classes, data.count, len(data.validation)) == (CLASSES, 72, 18)
    trained = pixels(data, [data.batch(step, 12, seed=3) for step in range(6)])
    assert trained == {image(kind, n).tobytes(): kind for kind in CLASSES for n in range(24)}
    scored = pixels(data, list(data.validation_batches(5)))
    assert scored == {image(kind, n).tobytes(): kind for kind in CLASSES for n in range(24, 30)}


@pytest.mark.parametrize("as_struct", [True, False])
@pytest.mark.parametrize("words", [True, False])
def test_parquet_holds_the_same_images(tmp_path: Path, words: bool, as_struct: bool) -> None:
    for part, numbers in (("train", range(24)), ("validation", range(24, 30))):
        file = tmp_path / "hub" / "data" / f"{part}-00000-of-00001.parquet"
        write_parquet(file, numbers, words, as_struct)
    data = ImageData(config(tmp_path / "hub"))
    folder = ImageData(config(write_folder(tmp_path / "mine")))
    assert data.classes == (CLASSES if words else ("0", "1", "2"))
    for numbers in (folder, data):
        found = pixels(numbers, [numbers.batch(step, 12, seed=3) for step in range(6)])
        assert {p: str(numbers.classes.index(c)) for p, c in found.items()} == {
            image(k, n).tobytes(): str(CLASSES.index(k)) for k in CLASSES for n in range(24)
        }


def test_of_one_parquet_file_every_twentieth_row_is_scored(tmp_path: Path) -> None:
    write_parquet(tmp_path / "all.parquet", range(30))
    data = ImageData(config(tmp_path / "all.parquet"))
    assert (data.count, len(data.validation)) == (86, 4)
    [(images, classes)] = data.validation_batches(10)
    rows = [row for row in range(90) if row % 20 == 19]
    assert classes.tolist() == [row % 3 for row in rows]
    expected = torch.from_numpy(np.stack([image(CLASSES[r % 3], r // 3) for r in rows]))
    assert torch.equal(images[:, 0], (expected.float() / 255 - 0.5) / 0.5)


def test_batches_are_functions_of_seed_and_step(tmp_path: Path) -> None:
    data = ImageData(config(write_folder(tmp_path / "mine")))
    whole = [data.batch(step, 8, seed=1)[0] for step in range(18)]
    for step in (0, 7, 17):
        halves = [data.batch(step, 8, seed=1, rank=rank, world=2)[0] for rank in range(2)]
        assert torch.equal(torch.cat(halves), whole[step])
    first, second = torch.cat(whole[:9]), torch.cat(whole[9:])
    assert not torch.equal(first, second), "another epoch has another order"
    assert torch.equal(first.flatten(1).sum(1).sort()[0], second.flatten(1).sum(1).sort()[0])
    assert not torch.equal(data.batch(0, 8, seed=2)[0], whole[0])


def test_colours_are_normalised_by_channel(tmp_path: Path) -> None:
    from PIL import Image

    place = write_folder(tmp_path / "mine")
    wide = Image.new("RGB", (20, 10), (255, 0, 51))
    wide.save(place / "val" / "bars" / "000.png")
    keys = {"channels": 3, "mean": [0.5, 0.0, 0.2], "std": [0.5, 1.0, 0.1]}
    data = ImageData(config(place, **keys))
    image_, label = next(iter(data.validation_batches(1)))
    assert (image_.shape, label.item()) == ((1, 3, SIDE, SIDE), 0)
    assert torch.allclose(image_[0, :, 0, 0], torch.tensor([1.0, 0.0, 0.0]), atol=1e-6)


def test_the_identity_is_that_of_the_content(tmp_path: Path) -> None:
    place = write_folder(tmp_path / "mine")
    first = images_sha256(config(place))
    shutil.move(place, tmp_path / "elsewhere")
    assert images_sha256(config(tmp_path / "elsewhere")) == first
    file = tmp_path / "elsewhere" / "train" / "bars" / "000.png"
    file.write_bytes(png(image("stripes", 0)))
    assert images_sha256(config(tmp_path / "elsewhere")) != first


def test_digits_are_those_of_scikit_learn() -> None:
    datasets = pytest.importorskip("sklearn.datasets", reason="needs the extra vision")
    held = datasets.load_digits()
    data = ImageData(DataConfig("digits", seq_len=1, max_epochs=3, image=ImageConfig(mean=[0.0])))
    assert data.label == "digits-ca703985210d"
    images, classes = zip(*data.validation_batches(100), strict=True)
    assert torch.cat(classes).tolist() == held.target[4::5].tolist()
    values = torch.cat(images)[:, 0] / 2 * 16  # std 0.5
    assert torch.equal(values.round(), torch.from_numpy(held.images[4::5]).float())
    seen = torch.cat([data.batch(step, 719, 0)[1] for step in range(2)])
    rest = np.delete(held.target, np.s_[4::5])
    assert torch.bincount(seen).tolist() == np.bincount(rest).tolist()
    large = ImageData(DataConfig("digits", seq_len=1, image=ImageConfig(size=16)))
    doubled = next(iter(large.validation_batches(2)))[0]
    assert torch.equal(doubled[:, :, 1::2, ::2], (torch.cat(images)[:2] - 1.0))


def test_damage_is_found(tmp_path: Path) -> None:
    place = config(write_folder(tmp_path / "mine"))
    ImageData(place)
    [shard] = cache_folder().glob("imported/*/train-0000.bin")
    content = bytearray(shard.read_bytes())
    content[5] ^= 1
    shard.write_bytes(content)
    with pytest.raises(DataError, match="train-0000.bin has sha256 .* and it is made again"):
        ImageData(place)


def broken(place: Path, what: str) -> DataConfig:
    """An image folder, or Parquet, with something wrong."""
    if what == "nothing":
        return config(place / "nowhere")
    if what == "text":
        (place / "a.txt").write_text("a")
        return config(place / "a.txt")
    if what in ("column", "label", "float", "bytes"):
        import pyarrow as pa
        from pyarrow import parquet

        file = place / "one.parquet"
        if what == "float":
            parquet.write_table(pa.table({"image": [b"1"], "label": [0.5]}), file)
        elif what == "bytes":
            parquet.write_table(pa.table({"image": ["x.png"], "label": [0]}), file)
        else:
            write_parquet(file, range(30))
        return config(file, **({what: "other"} if what in ("column", "label") else {}))
    folder = write_folder(place / "mine")
    if what == "file":
        (folder / "train" / "bars" / "003.png").write_bytes(b"no image")
    elif what == "val":
        shutil.rmtree(folder / "val")
    elif what == "train":
        shutil.rmtree(folder / "train")
    elif what == "empty":
        shutil.rmtree(folder / "val")
        (folder / "val").mkdir()
    elif what == "class":
        (folder / "val" / "bars").rename(folder / "val" / "dots")
    elif what == "size":
        return config(folder, size=0)
    return config(folder)


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("nothing", "no such file or folder"),
        ("text", "must be a folder of images by class, or Parquet"),
        (
            "column",
            "data.image.column=other: .* has no such column; it has image, label",
        ),
        ("label", "data.image.label=other: .*one.parquet has no such column"),
        ("float", "row 1 of .*one.parquet: label=0.5 is no class"),
        ("bytes", "row 1 of .*one.parquet: image holds str, not the bytes of an image"),
        ("file", "train/bars/003.png: not an image that Pillow reads"),
        ("val", "has train/ and no val/ to be scored"),
        ("train", "has no folder train/ with a folder of images for every class"),
        ("empty", "val has no images in folders by class"),
        ("class", "dots is a class of the scored images alone"),
        ("size", "data.image.size=0: must be the pixels of a side"),
    ],
)
def test_what_cannot_be_read_is_said_in_one_line(tmp_path: Path, what: str, said: str) -> None:
    with pytest.raises(DataError, match=said) as error:
        ImageData(broken(tmp_path, what))
    assert "\n" not in str(error.value)
    assert not list((cache_folder() / "imported").glob("[!.]*")) if what == "file" else True


def test_few_images_and_many_epochs_are_refused(tmp_path: Path) -> None:
    data = ImageData(config(write_folder(tmp_path / "mine")))
    with pytest.raises(DataError, match="batch_size=100: must be at most 72, the training ex"):
        data.check(1, 100)
    with pytest.raises(DataError, match="data.max_epochs=100: .* set data.max_epochs=112"):
        data.check(1_000, 8)
