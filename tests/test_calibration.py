"""Samples for a model: every kind of source, what is refused and how it is said, images, labels, made-up inputs."""

from __future__ import annotations

import io
import json
import sys
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import numpy_helper

from conftest import ROOT
from onnxprune.calibration import files, images
from onnxprune.calibration.guess import _moments, guess
from onnxprune.calibration.images import decode_image, image_format
from onnxprune.calibration.leaves import dead_leaves, pink
from onnxprune.calibration.pictures import BRIGHT, DARK, LEAVES, Pictures, information
from onnxprune.calibration.presets import PRESETS, Preprocess, looks_like_image
from onnxprune.calibration.read import read
from onnxprune.calibration.samples import spread
from onnxprune.calibration.strokes import strokes
from onnxprune.calibration.synthetic import coloured, synthetic
from onnxprune.errors import OptionError
from onnxprune.graph.io import Model, load
from onnxprune.graph.shapes import graph_inputs

RNG = np.random.default_rng(0)
RAW = Preprocess(preset="raw")


def model(*inputs: str) -> Model:
    """A model that hands its inputs on: `model("float[N,3] x")`."""
    nodes = "".join(f"y{k} = Identity ({i.split()[1]})\n" for k, i in enumerate(inputs))
    outputs = ", ".join(f"{i.split()[0].split('[')[0]} y{k}" for k, i in enumerate(inputs))
    text = f'<ir_version: 8, opset_import: ["" : 17]> agraph ({", ".join(inputs)}) => ({outputs}) {{ {nodes} }}'
    return load(onnx.parser.parse_model(text))


def conv(
    w: np.ndarray, norm: tuple[np.ndarray, np.ndarray] | None = None, before: str = "", kind: str = "float"
) -> Model:
    """Conv with weight `w` on `x`, after the node `before` (from x to z), with moments of a BatchNormalization."""
    n, c = w.shape[:2]
    start = "z" if before else "x"
    tail = (
        "h = Conv (" + start + ", w)\ny = " + ("BatchNormalization (h, one, zero, mean, var)" if norm else "Relu (h)")
    )
    text = (
        f'<ir_version: 8, opset_import: ["" : 17]> agraph ({kind}[N,{c},32,32] x) => (float[N,{n},30,30] y)'
        f" <float[{n},{c},3,3] w, float[{n}] one, float[{n}] zero, float[{n}] mean, float[{n}] var, float[1] k>"
        f" {{ {before}\n{tail} }}"
    )
    proto = onnx.parser.parse_model(text)
    mean, var = norm or (np.zeros(n), np.ones(n))
    values = {"w": w, "one": np.ones(n), "zero": np.zeros(n), "mean": mean, "var": var, "k": np.array([255.0])}
    del proto.graph.initializer[:]
    for name, value in values.items():
        proto.graph.initializer.append(numpy_helper.from_array(np.asarray(value, np.float32), name))
    return load(proto)


PICTURE = model("float[N,3,32,32] x")
VECTOR = model("float[N,3] x")
PAIR = model("float[N,2] a", "int64[N] b")


def png(pixels: np.ndarray, kind: str = "PNG") -> bytes:
    image = pytest.importorskip("PIL.Image", reason="images need pillow").fromarray(pixels)
    out = io.BytesIO()
    image.save(out, kind)
    return out.getvalue()


def photo(k: int, shape: Sequence[int] = (40, 50, 3)) -> np.ndarray:
    return np.random.default_rng(k).integers(0, 256, shape).astype(np.uint8)


def folder(path: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    return path


def zipped(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as z:
        for name, data in files.items():
            z.writestr(name, data)
    return path


def npy(x: Any) -> bytes:
    out = io.BytesIO()
    np.save(out, np.asarray(x))
    return out.getvalue()


# ---------------------------------------------------------------------------------------------------------------------
# Arrays
# ---------------------------------------------------------------------------------------------------------------------

X = RNG.normal(size=(5, 3)).astype(np.float32)


def npz_of(path: Path, **arrays: Any) -> Path:
    np.savez(path, **arrays)
    return path


SOURCES: dict[str, Callable[[Path], Any]] = {
    "npz": lambda p: npz_of(p / "x.npz", x=X),
    "npz of any name": lambda p: npz_of(p / "x.npz", pixels=X),
    "npz of a row each": lambda p: npz_of(p / "x.npz", x=X[:, None]),
    "npz of float64": lambda p: npz_of(p / "x.npz", x=X.astype(np.float64)),
    "npy": lambda p: folder(p, {"x.npy": npy(X)}) / "x.npy",
    "folder of npy": lambda p: folder(p / "f", {f"{k}.npy": npy(x) for k, x in enumerate(X)}),
    "folder of npy with batch axes": lambda p: folder(p / "f", {f"{k}.npy": npy(x[None]) for k, x in enumerate(X)}),
    "zip of npy and junk": lambda p: zipped(
        p / "x.zip",
        {f"d/{k}.npy": npy(x) for k, x in enumerate(X)} | {"__MACOSX/0.npy": b"", "d/.DS_Store": b"", "d/n.txt": b""},
    ),
    "dict": lambda p: {"x": X},
    "array": lambda p: X,
    "iterable of arrays": lambda p: iter(X),
    "iterable of feeds": lambda p: ({"x": x[None]} for x in X),
    "iterable of batches": lambda p: [{"x": X[:2]}, {"x": X[2:]}],
    "Samples": lambda p: read(X, VECTOR),
}


@pytest.mark.parametrize("source", SOURCES)
def test_every_source_gives_the_same_samples(source: str, tmp_path: Path) -> None:
    found = read(SOURCES[source](tmp_path), VECTOR)
    assert (found.count, found.stackable, found.labels) == (5, True, None)
    assert found.feeds([1])["x"].dtype == np.float32
    np.testing.assert_array_equal(found.feeds([3, 1])["x"], X[[3, 1]])
    assert [b["x"].shape for b in found.batches(2)] == [(2, 3), (2, 3), (1, 3)]
    np.testing.assert_array_equal(np.concatenate([b["x"] for b in found.batches(3)]), X)
    assert found.digest == read(X, VECTOR).digest


def test_several_inputs(tmp_path: Path) -> None:
    a, b = RNG.normal(size=(4, 2)).astype(np.float32), np.arange(4, dtype=np.int32)
    files = {f"{n}/{k}.npy": npy(v[k : k + 1]) for n, v in (("a", a), ("b", b)) for k in range(4)}
    for source in (
        {"a": a, "b": b},
        npz_of(tmp_path / "x.npz", a=a, b=b),
        folder(tmp_path / "f", files),
        [{"a": a[k], "b": b[k : k + 1]} for k in range(4)],
    ):
        found = read(source, PAIR)
        feeds = found.feeds([2, 0])
        np.testing.assert_array_equal(feeds["a"], a[[2, 0]])
        np.testing.assert_array_equal(feeds["b"], b[[2, 0]])
        assert feeds["b"].dtype == np.int64
        assert found.digest == read({"a": a, "b": b.astype(np.int64)}, PAIR).digest


def test_fixed_batches_are_run_one_by_one() -> None:
    one = read(X, model("float[1,3] x"))
    assert (one.count, one.stackable) == (5, False)
    assert [b["x"].shape for b in one.batches(4)] == [(1, 3)] * 5
    two = read(X, model("float[2,3] x"))
    assert (two.count, two.stackable) == (2, False)
    np.testing.assert_array_equal(two.feeds([1])["x"], X[2:4])


def test_samples_of_different_lengths_are_run_one_by_one(tmp_path: Path) -> None:
    net = model("float[N,T] x")
    feeds = [np.ones((1, n), np.float32) for n in (3, 4, 3)]
    files = folder(tmp_path, {f"{k}.npy": npy(x) for k, x in enumerate(feeds)})
    for source in (feeds, files):
        found = read(source, net)
        assert (found.count, found.stackable) == (3, False)
        assert [b["x"].shape for b in found.batches(2)] == [(1, 3), (1, 4), (1, 3)]


def test_subset_is_spread_and_keeps_labels() -> None:
    assert spread(5, 3) == [0, 2, 4] and spread(3, 5) == [0, 1, 2] and spread(4, 1) == [0]
    found = read({"x": X, "labels": np.arange(5)}, VECTOR, samples=3)
    assert found.labels is not None and found.labels.tolist() == [0, 2, 4] and found.labels.dtype == np.int64
    np.testing.assert_array_equal(found.feeds(range(3))["x"], X[::2])
    assert found.description.startswith("3 of 5 samples")
    rest = found.spare(10)
    assert rest is not None and rest.chosen == (1, 3) and rest.labels is None
    assert found.take([2]).labels.tolist() == [4]  # type: ignore[union-attr]
    assert read(X, VECTOR).spare(1) is None


def test_digest_tells_data_apart(tmp_path: Path) -> None:
    base = read(X, VECTOR).digest
    assert len(base) == 64 and read(X.copy(), VECTOR).digest == base
    assert read(X[::-1], VECTOR).digest != base and read(X, VECTOR, samples=2).digest != base
    here, there = (npz_of(tmp_path / f"{n}.npz", x=X) for n in "ab")
    assert read(here, VECTOR).digest == read(there, VECTOR).digest


def test_casts() -> None:
    assert read(np.array([[1.0, 2, 3]]), model("int64[N,3] x")).feeds([0])["x"].tolist() == [[1, 2, 3]]
    assert read(X, model("float16[N,3] x")).feeds([0])["x"].dtype == np.float16
    assert read(np.array([[1, 2, 3]]), model("uint8[N,3] x")).feeds([0])["x"].dtype == np.uint8


def test_labels_of_another_kind_do_not_stop_calibration() -> None:
    found = read({"x": X, "labels": np.zeros((5, 3), np.uint8)}, VECTOR)
    assert found.labels is None and "without its labels of shape (5, 3)" in found.description


BAD: list[tuple[Model, Callable[[Path], Any], dict[str, Any], str]] = [
    (VECTOR, lambda p: p / "none", {}, "there is no such file or folder"),
    (VECTOR, lambda p: p, {}, "holds no image"),
    (VECTOR, lambda p: [], {}, "the iterable is empty"),
    (VECTOR, lambda p: 3, {}, "found int"),
    (VECTOR, lambda p: X[:0], {}, "there is no sample in it"),
    (VECTOR, lambda p: X, {"samples": 0}, "--samples 0: must be 1 or more"),
    (VECTOR, lambda p: X, {"augment": True}, "--augment"),
    (VECTOR, lambda p: X[:, :2], {}, "input x expects (?, 3), with samples along the first axis, found (5, 2)"),
    (VECTOR, lambda p: np.full((2, 3), np.nan), {}, "input x holds values that are not finite"),
    (VECTOR, lambda p: np.full((2, 3), 1e300), {}, "expects float32, found float64 whose values do not fit"),
    (VECTOR, lambda p: np.full((2, 3), 1j), {}, "expects float32, found complex128"),
    (model("int64[N,3] x"), lambda p: X, {}, "expects int64, found float32 whose values do not fit"),
    (model("uint8[N,3] x"), lambda p: np.full((2, 3), 256), {}, "expects uint8, found int64"),
    (model("float[8,3] x"), lambda p: X, {}, "expects (8, 3)"),
    (VECTOR, lambda p: {"x": X, "z": X}, {}, "the model has no input z; it has x"),
    (PAIR, lambda p: {"a": X[:, :2]}, {}, "no array for input b; found a"),
    (PAIR, lambda p: [{"a": X[:1, :2]}], {}, "feed 0 has no array for input b"),
    (PAIR, lambda p: {"a": X[:, :2], "b": np.arange(4)}, {}, "different numbers of samples: 5 of a, 4 of b"),
    (PAIR, lambda p: folder(p, {"x.npy": npy(X)}) / "x.npy", {}, "the model has 2 inputs; give a .npz"),
    (PAIR, lambda p: folder(p, {"a/0.npy": npy(X[0, :2])}), {}, "a sub-folder of .npy per input (a, b), found a"),
    (PAIR, lambda p: folder(p, {"a.png": png(photo(0))}), {}, "images are for models of one input"),
    (VECTOR, lambda p: folder(p, {"x.npz": b"no"}) / "x.npz", {}, "x.npz: expected a .npz archive"),
    (VECTOR, lambda p: folder(p, {"x.npy": b"no"}) / "x.npy", {}, "x.npy: cannot be read as a numpy file"),
    (VECTOR, lambda p: folder(p, {"x.npy": npy(X)[:-4]}) / "x.npy", {}, "x.npy: cannot be read as a numpy file"),
    (VECTOR, lambda p: folder(p, {"x.npy": npy([None])}) / "x.npy", {}, "cannot be read as a numpy file"),
    (VECTOR, lambda p: npz_of(p / "x.npz", x=np.array([None])), {}, "cannot be read as a numpy archive"),
    (VECTOR, lambda p: folder(p, {"0.npy": npy(X[0]), "1.npy": b"no"}), {}, "1.npy: cannot be read as a numpy file"),
    (VECTOR, lambda p: folder(p, {"x.zip": b"no"}) / "x.zip", {}, "x.zip: expected a folder or a .zip"),
    (VECTOR, lambda p: folder(p, {"x.png": png(photo(0)), "x.npy": npy(X)}), {}, "keep one kind"),
    (VECTOR, lambda p: folder(p, {"x.png": png(photo(0))}), {}, "input x of shape (?, 3) takes no images"),
    (PICTURE, lambda p: folder(p, {"x.png": b"no"}), {}, "x.png: cannot be read as an image"),
    (PICTURE, lambda p: folder(p, {"x.png": png(photo(0))[:-40]}), {}, "x.png: cannot be read as an image"),
    (PICTURE, lambda p: folder(p, {"x.png": png(photo(0))}), {"preprocess": Preprocess("torch")}, "--preset torch"),
    (PICTURE, lambda p: "synthetic", {"preprocess": Preprocess(image_size=16)}, "smaller than the crop of 32"),
    (PICTURE, lambda p: "synthetic", {"preprocess": Preprocess(crop=0)}, "--crop 0: must be 1 or more"),
    (
        PICTURE,
        lambda p: "synthetic",
        {"preprocess": Preprocess(mean=(1.0, 2.0))},
        "--mean 1,2: expected 1 or 3 numbers",
    ),
    (PICTURE, lambda p: "synthetic", {"preprocess": Preprocess(std=(0.0,))}, "--std 0: must not be zero"),
    (PICTURE, lambda p: "synthetic", {"preprocess": Preprocess(scale=np.inf)}, "--scale inf: must be finite"),
    (PICTURE, lambda p: "synthetic", {"preprocess": Preprocess(layout="NHWC")}, "in layout NHWC"),
    (PICTURE, lambda p: "synthetic", {"preprocess": Preprocess(layout="CHW")}, "--layout CHW: unknown"),
    (PICTURE, lambda p: "synthetic", {"preprocess": Preprocess(channel_order="rgb")}, "--channel-order rgb: unknown"),
    (model("float[N,?,?,?] x"), lambda p: folder(p, {"x.png": png(photo(0))}), {}, "say --layout NCHW or NHWC"),
    (VECTOR, lambda p: X, {"labels": np.arange(4)}, "labels: 4 for 5 samples; give one per sample"),
    (VECTOR, lambda p: X, {"labels": np.full(5, 0.5)}, "expected whole numbers"),
    (VECTOR, lambda p: X, {"labels": np.array(list("abcde"))}, "expected whole numbers"),
    (VECTOR, lambda p: X, {"labels": "none.txt"}, "--labels none.txt: cannot be read"),
]


@pytest.mark.parametrize("row", range(len(BAD)), ids=[row[3][:40] for row in BAD])
def test_what_does_not_fit_is_named(row: int, tmp_path: Path) -> None:
    net, source, options, message = BAD[row]
    with pytest.raises(OptionError) as error:
        found = read(source(tmp_path), net, **options)
        list(found.batches(1))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_archives_may_be_broken_inside_or_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = zipped(tmp_path / "x.zip", {"x.npy": npy(X[0])})
    data = bytearray(path.read_bytes())
    data[100] ^= 255
    path.write_bytes(data)
    with pytest.raises(OptionError, match=r"x.zip/x.npy: cannot be read"):
        list(read(path, VECTOR).batches(1))
    monkeypatch.setattr(files, "MEMBER", 8)
    for path in (npz_of(tmp_path / "y.npz", x=X), zipped(tmp_path / "y.zip", {"x.npy": npy(X)})):
        with pytest.raises(OptionError, match="bytes, more than 8"):
            read(path, VECTOR)


# ---------------------------------------------------------------------------------------------------------------------
# Images
# ---------------------------------------------------------------------------------------------------------------------


def test_images_are_found_and_resized(tmp_path: Path) -> None:
    files = {f"{k}.png": png(photo(k)) for k in range(3)} | {".x.png": b"", "notes.txt": b""}
    files["3.jpg"] = png(photo(3), "JPEG")
    found = read(folder(tmp_path / "f", files), PICTURE, preprocess=RAW)
    again = read(zipped(tmp_path / "f.zip", files | {"__MACOSX/0.png": b""}), PICTURE, preprocess=RAW)
    assert found.count == again.count == 4 and found.stackable and found.labels is None
    assert "shorter side to 37, crop 32x32, 32x32 RGB, NCHW, x of 0 to 255" in found.description
    assert "guessed" not in found.description and found.digest == again.digest
    assert found.feeds([0, 1])["x"].shape == (2, 3, 32, 32)
    np.testing.assert_array_equal(found.feeds([2])["x"], again.feeds([2])["x"])
    other = read(tmp_path / "f", PICTURE, preprocess=Preprocess("tf"))
    assert other.digest != found.digest
    np.testing.assert_allclose(other.feeds([0])["x"], found.feeds([0])["x"] / 127.5 - 1, atol=1e-5)


def test_the_middle_is_kept(tmp_path: Path) -> None:
    """Twice as wide as high, right half white: the border stays in the middle; the shorter side spans resize/crop."""
    pixels = np.zeros((64, 128, 3), np.uint8)
    pixels[:, 64:] = 255
    pixels[:4] = 128
    how = Preprocess("raw", image_size=32, crop=32)
    x = read(folder(tmp_path, {"x.png": png(pixels)}), PICTURE, preprocess=how).feeds([0])["x"][0, 0]
    assert (x[4:, :14] == 0).all() and (x[4:, 18:] == 255).all()
    assert x[0] == pytest.approx(128) and x[3] != pytest.approx(128)
    cut = read(tmp_path, PICTURE, preprocess=Preprocess("raw", image_size=40)).feeds([0])["x"][0, 0]
    assert cut[0, 0] == 0  # the upper tenth is cut off


HAND = {
    "imagenet": lambda p: (p / 255 - np.array([0.485, 0.456, 0.406])) / np.array([0.229, 0.224, 0.225]),
    "tf": lambda p: p / 127.5 - 1,
    "unit": lambda p: p / 255,
    "caffe": lambda p: p[..., ::-1] - np.array([103.939, 116.779, 123.68]),
    "raw": lambda p: p,
}


@pytest.mark.parametrize("layout", ("NCHW", "NHWC", "CHW", "HWC"))
@pytest.mark.parametrize("preset", PRESETS)
def test_presets_and_layouts(preset: str, layout: str, tmp_path: Path) -> None:
    pixels = photo(7, (9, 12, 3))
    dims = ",".join({"N": "N", "C": "3", "H": "9", "W": "12"}[d] for d in layout)
    found = read(folder(tmp_path, {"x.png": png(pixels)}), model(f"float[{dims}] x"), preprocess=Preprocess(preset))
    wanted = HAND[preset](pixels.astype(np.float64))
    wanted = wanted.transpose(2, 0, 1) if layout.endswith("CHW") else wanted
    x = found.feeds([0])["x"]
    np.testing.assert_allclose(x, wanted[None] if layout[0] == "N" else wanted, atol=1e-4)
    assert found.stackable == (layout[0] == "N")


def test_what_is_said_wins_over_the_preset() -> None:
    net, p = PICTURE, photo(1, (32, 32, 3))
    form = image_format(net, graph_inputs(net)[0], Preprocess("imagenet", mean=(0.5,), scale=1.0))
    np.testing.assert_allclose(form.normalise(p)[0, 1], (p[..., 1] - 0.5) / 0.224, rtol=1e-5)
    form = image_format(net, graph_inputs(net)[0], Preprocess("imagenet", channel_order="BGR"))
    np.testing.assert_allclose(form.normalise(p)[0, 0], (p[..., 2] / 255 - 0.406) / 0.225, atol=1e-5)
    assert "BGR" in form.description and "(x/255 - 0.406,0.456,0.485) / 0.225,0.224,0.229" in form.description


@pytest.mark.parametrize(("kind", "wanted"), [("uint8", lambda p: p), ("int8", lambda p: p - 128)])
def test_integers_take_pixels(kind: str, wanted: Callable[[np.ndarray], np.ndarray], tmp_path: Path) -> None:
    pixels = photo(2, (16, 16, 3))
    x = read(folder(tmp_path, {"x.png": png(pixels)}), model(f"{kind}[N,16,16,3] x")).feeds([0])["x"]
    assert x.dtype == kind
    np.testing.assert_array_equal(x[0], wanted(pixels.astype(int)))


def test_grey_transparent_half_and_open_sizes(tmp_path: Path) -> None:
    path = folder(tmp_path, {"x.png": png(photo(3, (16, 16, 3)))})
    grey = read(path, model("float16[N,1,16,16] x"), preprocess=RAW)
    assert "grey" in grey.description and grey.feeds([0])["x"].dtype == np.float16
    alpha = read(path, model("float[N,4,16,16] x"), preprocess=RAW).feeds([0])["x"]
    assert (alpha[:, 3] == 255).all()
    free = read(path, model("float[N,3,H,W] x"), preprocess=RAW)
    assert free.feeds([0])["x"].shape == (1, 3, 224, 224) and "the size is open" in free.description
    said = read(path, model("float[N,C,H,W] x"), preprocess=Preprocess("raw", image_size=20, crop=16, layout="NCHW"))
    assert said.feeds([0])["x"].shape == (1, 3, 16, 16) and "is open" not in said.description


def test_a_fixed_batch_of_images(tmp_path: Path) -> None:
    path = folder(tmp_path, {f"{c}/{k}.png": png(photo(k, (16, 16, 3))) for c in "ab" for k in range(3)})
    found = read(path, model("float[4,3,16,16] x"), preprocess=RAW)
    assert (found.count, found.stackable, found.labels) == (1, False, None)
    x = found.feeds([0])["x"]
    np.testing.assert_array_equal(x[3].transpose(1, 2, 0), photo(0, (16, 16, 3)))
    assert len(found.digest) == 64


def test_augmentation_is_seeded_and_fills_up(tmp_path: Path) -> None:
    path = folder(tmp_path, {f"{c}/{k}.png": png(photo(k)) for c in "ab" for k in range(2)})
    found = read(path, PICTURE, preprocess=RAW, augment=True, samples=10, seed=3)
    again = read(path, PICTURE, preprocess=RAW, augment=True, samples=10, seed=3)
    assert found.count == 10 and found.labels is not None
    assert found.labels.tolist() == [0, 0, 1, 1, 0, 0, 1, 1, 0, 0]
    np.testing.assert_array_equal(found.feeds(range(10))["x"], again.feeds(range(10))["x"])
    assert np.abs(found.feeds([0])["x"] - found.feeds([4])["x"]).max() > 0
    other = read(path, PICTURE, preprocess=RAW, augment=True, samples=10, seed=4)
    assert found.digest == again.digest != other.digest
    assert read(path, PICTURE, preprocess=RAW, augment=True).count == 4
    assert read(path, PICTURE, preprocess=RAW, augment=True, samples=6, labels=np.arange(4)).labels[4] == 0  # type: ignore[index]


def test_large_images_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = folder(tmp_path, {"x.png": png(photo(0))})
    monkeypatch.setattr(
        pytest.importorskip("PIL.Image", reason="images need pillow"), "MAX_IMAGE_PIXELS", 1500
    )  # a warning up to twice as many
    with pytest.raises(OptionError, match="DecompressionBombWarning"):
        read(path, PICTURE, preprocess=RAW).feeds([0])
    monkeypatch.setattr(images, "MAX_PIXELS", 1000)
    monkeypatch.setattr(pytest.importorskip("PIL.Image", reason="images need pillow"), "MAX_IMAGE_PIXELS", None)
    with pytest.raises(OptionError, match="50x40 pixels are more than 1000"):
        read(path, PICTURE, preprocess=RAW).feeds([0])


def test_pillow_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    form = image_format(PICTURE, graph_inputs(PICTURE)[0], RAW)
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(OptionError, match=r"a.png: images need pillow: pip install 'onnxprune\[images\]'"):
        decode_image(b"", "a.png", form, None)


# ---------------------------------------------------------------------------------------------------------------------
# Labels
# ---------------------------------------------------------------------------------------------------------------------

CLASSES = {
    "names": (["cat/1.png", "cat/2.png", "ant/9.png"], [0, 1, 1]),
    "numbers": (["7/1.png", "10/1.png"], [10, 7]),
    "below one folder": (["top/b/1.png", "top/a/1.png"], [0, 1]),
    "some outside": (["1.png", "a/1.png", "b/1.png"], None),
    "one class": (["a/1.png", "a/2.png"], None),
}


@pytest.mark.parametrize("case", CLASSES)
def test_folders_are_classes(case: str, tmp_path: Path) -> None:
    paths, wanted = CLASSES[case]
    data = png(photo(0, (32, 32, 3)))
    found = read(folder(tmp_path, dict.fromkeys(paths, data)), PICTURE, preprocess=RAW)
    assert (None if found.labels is None else found.labels.tolist()) == wanted


LABEL_FILES = {
    "l.npy": npy([4, 5, 6]),
    "l.txt": b"4\n5\n\n6\n",
    "h.csv": b"label\n4\n5\n6\n",
    "l.csv": b"file,label\n2.png,6\nd/0.png,4\n1.png,5\nother.png,1\n",
    "l.tsv": b"0.png\t4\n1.png\t5\n2.png\t6\n",
    "s.txt": b"0.png 4\n1.png 5\n2.png 6\n",
    "a.json": b"[4, 5, 6]",
    "d.json": json.dumps({"0.png": 4, "d/1.png": 5, "2.png": 6}).encode(),
}


@pytest.mark.parametrize("name", LABEL_FILES)
def test_label_files_are_matched_before_the_subset(name: str, tmp_path: Path) -> None:
    data = png(photo(0, (32, 32, 3)))
    path = folder(tmp_path / "f", {"d/0.png": data, "d/1.png": data, "d/2.png": data, "d/e/.x": b""})
    file = folder(tmp_path, {name: LABEL_FILES[name]}) / name
    found = read(path, PICTURE, preprocess=RAW, labels=file, samples=2)
    assert found.labels is not None and found.labels.tolist() == [4, 6]
    later = read(read(path, PICTURE, preprocess=RAW, samples=2), PICTURE, labels=np.array([1, 2]))
    assert later.labels is not None and later.labels.tolist() == [1, 2]


BAD_LABELS = {
    "few.txt": (b"4\n5\n", "2 for 3 samples; give one per sample"),
    "parts.json": (b"[4, 5.5, 6]", "expected whole numbers that count classes from 0, found 5.5 (sample 1)"),
    "missing.csv": (b"0.png,4\n", "no label for 1.png, 2.png"),
    "words.txt": (b"cat\ndog\ncow\n", "expected one whole number per line"),
    "bad.json": (b"{", "expected one whole number per line"),
    "binary.txt": (b"\xff\xfe\x00", "cannot be read"),
    "bad.npy": (b"no", "cannot be read as a numpy file"),
}


@pytest.mark.parametrize("name", BAD_LABELS)
def test_bad_label_files(name: str, tmp_path: Path) -> None:
    data, message = BAD_LABELS[name]
    path = folder(tmp_path / "f", {f"{k}.png": png(photo(0, (32, 32, 3))) for k in range(3)})
    with pytest.raises(OptionError) as error:
        read(path, PICTURE, preprocess=RAW, labels=folder(tmp_path, {name: data}) / name)
    assert message in str(error.value) and name in str(error.value)


def test_names_need_files(tmp_path: Path) -> None:
    file = folder(tmp_path, {"l.csv": b"a,1\n"}) / "l.csv"
    with pytest.raises(OptionError, match="names files, but --evaluate holds none"):
        read(X, VECTOR, labels=file, option="--evaluate")


# ---------------------------------------------------------------------------------------------------------------------
# Made-up inputs
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", (8, 32, 96))
def test_dead_leaves_look_like_photographs(side: int) -> None:
    net = model(f"float[N,{side},{side},3] x")
    x = read("synthetic", net, preprocess=RAW, samples=32).feeds(range(32))["x"]
    assert x.dtype == np.float32 and x.shape == (32, side, side, 3) and x.min() >= 0 and x.max() <= 255
    assert 20 < x.std() < 90 and x.std((1, 2)).min() > 0 and 60 < x.mean() < 190
    grey = x.mean(-1) - x.mean((1, 2, 3))[:, None, None]
    alike = (grey[:, 1:] * grey[:, :-1]).mean() / np.square(grey).mean()
    assert alike > (0.4 if side == 8 else 0.7)  # neighbours; of photographs 0.88 at 32 pixels, 0.94 at 96


def test_dead_leaves_of_a_seed_are_the_same() -> None:
    textures = [pink((20, 30), np.random.default_rng(k)) for k in range(3)]
    x, again = (dead_leaves((20, 30), np.random.default_rng(7), textures) for _ in range(2))
    assert x.shape == (20, 30, 3) and x.dtype == np.float32
    np.testing.assert_array_equal(x, again)


@pytest.mark.parametrize("dims", ("N,3,32,32", "N,32,40,3", "1,1,8,8", "2,4,16,16", "N,3,H,W"))
def test_synthetic_images(dims: str) -> None:
    net = model(f"float[{dims}] x")
    found = synthetic(net, {"x": (2, 3, 24, 16)} if "H" in dims else {}, RAW, 6, 5)
    again = read("synthetic", net, preprocess=RAW, samples=6, seed=5) if "H" not in dims else found
    x = found.feeds([3])["x"]
    sizes = dims.replace("N", "1").replace("H", "24").replace("W", "16")
    assert x.shape == tuple(map(int, sizes.split(","))) and 0 <= x.min() < x.max() <= 255
    np.testing.assert_array_equal(x, again.feeds([3])["x"])
    np.testing.assert_array_equal(x, found.feeds([3])["x"])
    before = found.feeds([0])["x"]  # painted after what follows it, and together with it
    np.testing.assert_array_equal(before, synthetic(net, {"x": before.shape}, RAW, 1, 5).feeds([0])["x"])
    assert found.digest == again.digest != synthetic(net, {}, RAW, 6, 6).digest
    assert found.stackable == dims.startswith("N") and found.count == 6
    assert np.abs(x - found.feeds([4])["x"]).max() > 0
    assert "made-up images" in found.description


@pytest.mark.parametrize("dark", (False, True))
def test_strokes(dark: bool) -> None:
    """A plain ground, of which strokes cover the smaller part, and nothing else."""
    x, again = (strokes((64, 48), np.random.default_rng(3), dark=dark) for _ in range(2))
    assert x.shape == (64, 48, 3) and x.dtype == np.float32 and x.min() >= 0 and x.max() <= 255
    np.testing.assert_array_equal(x, again)
    many = np.stack([strokes((64, 48), np.random.default_rng(k), dark=dark)[..., 0] for k in range(20)])
    many = 255 - many if dark else many
    ground = np.median(many[:, [0, -1]], (1, 2))
    assert (ground < 75).all()
    covered = (many > ground[:, None, None] + 60).mean((1, 2))
    assert (covered > 0.02).all() and 0.1 < covered.mean() < 0.5


def test_information() -> None:
    assert information(np.eye(4)) == pytest.approx(np.log(4))
    assert information(np.tile([0.7, 0.2, 0.1], (5, 1))) == pytest.approx(0, abs=1e-12)
    assert information(np.array([[1.0, 0], [0.5, 0.5]])) == pytest.approx(
        -0.75 * np.log(0.75) - 0.25 * np.log(0.25) - 0.5 * np.log(2)
    )


def turned(name: str) -> Model:
    """A classifier of models/ that takes the negative of what it was trained on."""
    proto = onnx.load(ROOT / "models" / f"{name}.onnx")
    for node in proto.graph.node:
        node.input[:] = ["negative" if i == "image" else i for i in node.input]
    proto.graph.initializer.append(numpy_helper.from_array(np.array(1, np.float32), "white"))
    proto.graph.node.insert(0, onnx.helper.make_node("Sub", ["white", "image"], ["negative"]))
    return load(proto)


def random_classifier() -> Model:
    """Ten classes of random weights."""
    proto = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[N,1,16,16] x) => (float[N,10] y) <float[256,10] w>'
        " { f = Flatten (x)\n y = MatMul (f, w) }"
    )
    w = np.random.default_rng(0).normal(0, 0.02, (256, 10)).astype(np.float32)
    proto.graph.initializer.append(numpy_helper.from_array(w, "w"))
    return load(proto)


KINDS: dict[str, tuple[Callable[[], Model], str]] = {
    "writing": (lambda: load(ROOT / "models" / "digits_resnet_folded.onnx"), BRIGHT),
    "its negative": (lambda: turned("digits_resnet_folded"), DARK),
    "no classes": (lambda: load(ROOT / "models" / "digits_unet.onnx"), LEAVES),
    "nothing learned": (random_classifier, LEAVES),
}


@pytest.mark.parametrize("name", KINDS)
def test_a_classifier_says_which_images_suit_it(name: str) -> None:
    make, family = KINDS[name]
    found = read("synthetic", make(), preprocess=Preprocess("unit"), samples=64)
    assert f"({LEAVES})" in found.description if family == LEAVES else family in found.description


def test_images_of_a_family_stand_beside_dead_leaves() -> None:
    """Both among any part of the samples, also every other one."""
    form = image_format(PICTURE, graph_inputs(PICTURE)[0], RAW)
    pictures, plain = Pictures(form, 1), Pictures(form, 1)
    for family in (LEAVES, BRIGHT):
        pictures.of(family, 0)
    pictures.choose(BRIGHT)
    families = [pictures.family_at(i) for i in range(64)]
    for part in (families[::2], families[1::2], families[:16]):
        assert set(part) == {LEAVES, BRIGHT}
    for i in range(8):
        assert np.array_equal(pictures(i), plain(i)) == (families[i] == LEAVES)
        np.testing.assert_array_equal(pictures(i), plain.of(families[i], i))
    assert all(pictures.family_at(i) == family for family, i in pictures.kept)  # nothing else takes memory


def test_synthetic_of_several_kinds() -> None:
    net = model("float[N,3,16,16] image", "float[N,64] sound", "int64[N,4] ids", "bool[N,2] mask", "uint8[N,3,8,8] raw")
    found = read("synthetic", net, preprocess=Preprocess("tf"), samples=4)
    feeds = found.feeds([0, 1, 2])
    assert {k: v.shape[0] for k, v in feeds.items()} == dict.fromkeys(("image", "sound", "ids", "mask", "raw"), 3)
    assert feeds["image"].min() >= -1 and feeds["image"].max() <= 1 and feeds["mask"].all()
    assert feeds["raw"].dtype == np.uint8 and feeds["raw"].max() > 1
    assert np.abs(feeds["sound"][0] - feeds["sound"][1]).max() > 0
    assert "dead leaves" in found.description and "coloured noise" in found.description


def test_synthetic_integers_stay_in_the_table() -> None:
    proto = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> g (int64[N,6] i) => (float[N,6,2] y) <float[5,2] w = '
        "{0,1,2,3,4,5,6,7,8,9}> { y = Gather <axis = 0> (w, i) }"
    )
    ids = read("synthetic", load(proto), samples=40).feeds(range(40))["i"]
    assert ids.min() == 0 and ids.max() == 4 and ids.dtype == np.int64


@pytest.mark.parametrize("shape", ((), (3,), (1, 16000), (2, 40, 100)))
def test_coloured_noise(shape: tuple[int, ...]) -> None:
    x = np.stack([coloured(shape, np.random.default_rng(k)) for k in range(20)])
    assert x.shape == (20, *shape) and x.dtype == np.float32 and np.isfinite(x).all()
    assert abs(x.mean()) < 0.6 and 0.2 < x.std() < 2


LOOKS = {
    "float[N,3,32,32] x": True,
    "uint8[1,32,32,1] x": True,
    "float[N,3,H,W] x": True,
    "float[N,3,4,4] x": False,
    "float[N,7,32,32] x": False,
    "int64[N,3,32,32] x": False,
    "float[3,32,32] x": False,
}


@pytest.mark.parametrize("text", LOOKS)
def test_looks_like_image(text: str) -> None:
    assert looks_like_image(graph_inputs(model(text))[0]) == LOOKS[text]


# ---------------------------------------------------------------------------------------------------------------------
# Guessing
# ---------------------------------------------------------------------------------------------------------------------

W = (
    np.random.default_rng(4).normal(size=(24, 3, 3, 3)) * 0.3
    + np.random.default_rng(5).normal(size=(24, 3, 1, 1)) * 0.1
)


@pytest.mark.parametrize("preset", PRESETS)
def test_guess_by_recorded_moments(preset: str) -> None:
    """Moments as photographs give them, known but for a fifth."""
    net = conv(W, _moments(W, PRESETS[preset]))
    mean, var = _moments(W, PRESETS[preset])
    noisy = conv(W, (mean + 0.2 * np.sqrt(var) * RNG.normal(size=24), var * np.exp(0.2 * RNG.normal(size=24))))
    assert guess(net, graph_inputs(net)[0]) == preset
    assert guess(noisy, graph_inputs(noisy)[0]) == preset


@pytest.mark.parametrize(("scale", "wanted"), [(1.0, "imagenet"), (0.5, "imagenet"), (4.0, "unit"), (1 / 60, "caffe")])
def test_guess_by_deviation(scale: float, wanted: str) -> None:
    deviation = float(np.sqrt(np.median(_moments(W, PRESETS["imagenet"])[1])))
    net = conv(W * scale / deviation)
    assert guess(net, graph_inputs(net)[0]) == wanted


def test_guess_where_the_model_normalises() -> None:
    inside = conv(W, before="z = Div (x, k)")
    assert guess(inside, graph_inputs(inside)[0]) == "raw"
    padded = conv(W, _moments(W, PRESETS["tf"]), before="z = Identity (x)")
    assert guess(padded, graph_inputs(padded)[0]) == "tf"
    whole = conv(W, before="z = Cast <to = 1> (x)", kind="uint8")
    assert guess(whole, graph_inputs(whole)[0]) == "raw"
    assert guess(PICTURE, graph_inputs(PICTURE)[0]) == "unit"


def test_a_guess_is_said() -> None:
    net = conv(W, _moments(W, PRESETS["imagenet"]))
    said = read("synthetic", net, samples=2).description
    assert "normalisation guessed: imagenet (give --mean/--std/--scale or a --preset to be sure)" in said


REAL = {
    "mobilenetv2_100_224_imagenet": {"tf"},
    "mobilenetv1_075_192_imagenet": {"tf"},
    "resnet20_cifar10": {"imagenet"},
    "resnet56_cifar10": {"imagenet"},
    "mlptiny_resnet8_cifar10": {"raw"},
    "mlptiny_vww96": {"unit"},
}


@pytest.mark.parametrize("name", REAL)
def test_guess_of_real_models(name: str, shared: Path) -> None:
    path = shared / "models" / f"{name}.onnx"
    if not path.exists():
        pytest.skip(f"../shared lacks {name}")
    net = load(path)
    assert guess(net, graph_inputs(net)[0]) in REAL[name]
