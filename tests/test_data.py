"""Data are what they claim: labels, values, pixels, and options of images that a source has no use for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import onnxprune
from models.nets import Array, build, normal
from onnxprune import load
from onnxprune.calibration.calibration import calibrate
from onnxprune.calibration.presets import Preprocess
from onnxprune.calibration.read import read
from onnxprune.calibration.samples import Samples, squares, unused
from onnxprune.errors import OnnxPruneError, OptionError
from onnxprune.evaluation.metrics import Evaluator, default_metric
from onnxprune.runtime.classes import probabilities
from onnxprune.solvers.least_squares import Moments, Singular, match, solve_ridge
from test_calibration import PICTURE, RAW, VECTOR, folder, model, npy, npz_of, photo, png

CLASSES = load(build("y = MatMul(x, w)", "float[n,4]", "float[n,6]", w=normal(4, 6)))
WORDS = model("int64[N,7] ids")
X = normal(20, 4, seed=1).astype(np.float32)
IDS = np.arange(140).reshape(20, 7)
ONE_HOT = np.eye(6, dtype=np.float32)[np.arange(20) % 6]

# ---------------------------------------------------------------------------------------------------------------------
# Labels
# ---------------------------------------------------------------------------------------------------------------------

WRONG = {
    "too few": (np.arange(13), "labels: 13 for 20 samples"),
    "too many": (np.arange(21), "labels: 21 for 20 samples"),
    "a single one": (np.int64(3), "labels: 1 for 20 samples"),
    "of other samples": (np.zeros((13, 6)), "labels: 13 for 20 samples"),
}
UNUSABLE = {
    "one hot": (ONE_HOT, "labels: shape (20, 6) for 20 samples; expected one class per sample, (20); of one-hot labels "
                "argmax(1) makes it"),
    "of pixels": (np.zeros((20, 1, 8, 8), np.uint8), "labels: shape (20, 1, 8, 8) for 20 samples"),
    "no number": (np.where(np.arange(20) == 4, np.nan, 1.0), "found nan (sample 4)"),
    "a fraction": (np.where(np.arange(20) == 5, 0.5, 1.0), "found 0.5 (sample 5)"),
    "negative": (np.where(np.arange(20) == 6, -1, 1), "found -1 (sample 6)"),
    "ignored samples": (np.full(20, -100), "found -100 (sample 0)"),
    "too large to count": (np.full(20, 1e30), "found 1e+30"),
    "words": (np.array(["cat"] * 20), "found <U3"),
}  # fmt: skip


@pytest.mark.parametrize("key", ["labels", "y", "label"])
@pytest.mark.parametrize("name", WRONG)
def test_labels_of_another_count_are_refused(name: str, key: str, tmp_path: Path) -> None:
    labels, message = WRONG[name]
    for source in ({"x": X, key: labels}, npz_of(tmp_path / "x.npz", x=X, **{key: labels})):
        for option in ("--calibration", "--evaluate"):
            with pytest.raises(OptionError) as error:
                read(source, CLASSES, option=option)
            shown = message if key == "labels" else message.replace("labels", f"labels ({key})")
            assert shown in str(error.value) and str(error.value).startswith(option)
    with pytest.raises(OptionError, match=message[8:].split(";")[0]):
        read(X, CLASSES, labels=labels)


@pytest.mark.parametrize("name", UNUSABLE)
def test_labels_that_no_metric_can_use_are_refused_where_one_would(name: str) -> None:
    labels, message = UNUSABLE[name]
    found = read({"x": X, "labels": labels}, CLASSES)
    assert found.labels is None and "without its labels of shape" in found.description
    for ask in (lambda: default_metric(CLASSES, found), lambda: Evaluator(CLASSES, found, "agreement"),
                lambda: Evaluator(CLASSES, found, "top1"), lambda: read(X, CLASSES, labels=labels)):  # fmt: skip
        with pytest.raises(OptionError) as error:
            ask()
        assert message in str(error.value) and "\n" not in str(error.value)
    image = load(build("y = Relu(x)", "float[n,4]", "float[n,4]"))
    assert default_metric(image, read({"x": X, "labels": labels}, image)) == "mse"
    Evaluator(image, read({"x": X, "labels": labels}, image), "mse")


TOKENS = np.where(IDS % 3, IDS % 5, -100)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (TOKENS, ""),
        (np.where(TOKENS == 4, -7, TOKENS), "(-100 for tokens that do not count), found -7"),
        (TOKENS[:, :6], "shape (20, 6) for 20 samples; expected one class per sample, (20), or (20, 7), one per token"),
    ],
)
def test_labels_of_tokens(labels: Array, message: str) -> None:
    found = read({"ids": IDS, "labels": labels}, WORDS)
    assert message in found.misfit and (found.labels is None) == bool(message)
    if not message:
        np.testing.assert_array_equal(found.take([3]).labels, labels[[3]])


def test_labels_of_a_fixed_batch_are_counted_in_rows() -> None:
    net = model("float[4,3] x")
    found = read({"x": X[:, :3], "labels": np.arange(20)}, net)
    assert found.count == 5 and found.labels is None and found.misfit
    with pytest.raises(OptionError, match="labels: 19 for 5 samples"):
        read({"x": X[:, :3], "labels": np.arange(19)}, net)


# ---------------------------------------------------------------------------------------------------------------------
# Values
# ---------------------------------------------------------------------------------------------------------------------

HUGE = np.concatenate([np.zeros((4, 3), np.float32), np.full((1, 3), 1e30, np.float32)])
LAZY = Samples(lambda i: {"x": HUGE[i : i + 1]}, tuple(range(5)), "mine", lambda i: bytes([i]), None, True, 5)
SOURCES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "npz": (lambda p: npz_of(p / "x.npz", x=HUGE), "input x"),
    "npz of another name": (lambda p: npz_of(p / "x.npz", pixels=HUGE), "array pixels for input x"),
    "npy": (lambda p: folder(p, {"x.npy": npy(HUGE)}) / "x.npy", "input x"),
    "folder of npy": (lambda p: folder(p / "f", {f"{k}.npy": npy(x) for k, x in enumerate(HUGE)}), "4.npy: input x"),
    "iterable": (lambda p: iter(HUGE), "input x"),
    "array of float64": (lambda p: HUGE.astype(np.float64), "input x"),
    "Samples": (lambda p: LAZY, "sample 4: input x"),
}


@pytest.mark.parametrize("name", SOURCES)
def test_values_whose_squares_overflow_are_refused(name: str, tmp_path: Path) -> None:
    source, named = SOURCES[name]
    with pytest.raises(OptionError) as error:
        list(read(source(tmp_path), VECTOR).batches(2))
    assert f"{named} holds values up to 1e+30, whose squares overflow float32" in str(error.value)


def test_sums_over_the_samples_count() -> None:
    some = np.full((1, 3), 5e18, np.float32)
    assert squares(some) == pytest.approx(7.5e37, rel=1e-3) and squares(HUGE) == np.inf and squares(IDS) == 0
    assert read(np.repeat(some, 4, 0), VECTOR).count == 4
    for source in (np.repeat(some, 5, 0), replace(LAZY, load=lambda i: {"x": some})):
        with pytest.raises(OptionError, match="squares overflow"):
            list(read(source, VECTOR).batches(1))
    found = read(replace(LAZY, load=lambda i: {"x": some}, chosen=(0, 1), total=2), VECTOR)
    for _ in range(3):  # each is counted once
        list(found.take([1, 0]).batches(1))


@pytest.mark.parametrize(
    ("how", "message"),
    [
        (Preprocess(scale=1e25), "--scale 1e+25: must be within"),
        (Preprocess(std=(1e-30,)), "--std 1e-30: must be within"),
        (Preprocess(scale=1e18), "leaves what squares of float32 can hold"),
    ],
)
def test_pixels_stay_within_float32(how: Preprocess, message: str) -> None:
    with pytest.raises(OptionError) as error:
        read("synthetic", PICTURE, preprocess=how, samples=1)
    assert message in str(error.value)


def test_moments_of_rows_that_float32_cannot_square() -> None:
    x, w = normal(50, 3, seed=2), normal(3, 2, seed=3)
    plain, large, broken = Moments(), Moments(), Moments()
    plain.add(x.astype(np.float32), (x @ w).astype(np.float32))
    large.add((x * 1e25).astype(np.float32), (x @ w * 1e25).astype(np.float32))
    np.testing.assert_allclose(large.gram, plain.gram * 1e50, rtol=1e-4)
    np.testing.assert_allclose(solve_ridge(large, np.zeros((3, 2)), ridge=0.0).weight, w, rtol=1e-3)
    broken.add(np.where(x > 2, np.inf, x).astype(np.float32), (x @ w).astype(np.float32))
    for fit in (lambda: solve_ridge(broken, w, ridge=0.0), lambda: match(broken, w)):
        with pytest.raises(Singular, match="not finite"):
            fit()


def test_probabilities_of_no_numbers() -> None:
    p = probabilities(np.array([[np.inf, 0], [np.nan, 0], [-np.inf, 0], [0, 0]], np.float32))
    np.testing.assert_array_equal(p, [[np.nan] * 2, [np.nan] * 2, [0, 1], [0.5, 0.5]])


def test_one_sample_is_seen_and_held_out() -> None:
    assert calibrate(read(X[:1], CLASSES), CLASSES).split() == ([0], [0])


ODD = {
    "zeros": X * 0, "constant": X * 0 + 1, "large": X * 1e18, "tiny": X * np.float32(1e-42), "one": X[:1],
    "one large": np.where(np.arange(20)[:, None] == 3, X * 1e17, X),
}  # fmt: skip


@pytest.mark.parametrize("kind", ["float", "float16"])
@pytest.mark.parametrize("name", ODD)
def test_odd_data_end_in_a_model_or_in_one_line(name: str, kind: str) -> None:
    dtype = np.float16 if kind == "float16" else np.float32
    w: dict[str, Any] = {f"w{k}": normal(*s, seed=k).astype(dtype) for k, s in enumerate([(4, 8), (8, 8), (8, 5)])}
    net = build("a = MatMul(x, w0)\n b = Relu(a)\n c = MatMul(b, w1)\n d = Relu(c)\n y = MatMul(d, w2)",
                f"{kind}[n,4]", f"{kind}[n,5]", **w)  # fmt: skip
    for options in ({"channels": 0.25}, {"channels": 0.25, "recover": "mean-std"}, {"target_macs": "70%"}):
        try:
            onnxprune.prune(net, calibration=ODD[name], verify=False, measure=False, **options)
        except OnnxPruneError as error:
            assert "\n" not in str(error) and (name.endswith("large") or "target" in str(error)), error


# ---------------------------------------------------------------------------------------------------------------------
# Pixels
# ---------------------------------------------------------------------------------------------------------------------

LAYOUTS = ("NCHW", "NHWC", "CHW", "HWC")
PHOTOS = np.stack([photo(k, (9, 12, 3)) for k in range(4)])


def picture(layout: str, kind: str = "float") -> onnxprune.Model:
    return model(f"{kind}[{','.join({'N': 'N', 'C': '3', 'H': '9', 'W': '12'}[d] for d in layout)}] x")


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("last", [True, False], ids=["channels last", "its own layout"])
@pytest.mark.parametrize("how", [Preprocess(), Preprocess("imagenet"), Preprocess("caffe")], ids=str)
def test_pixels_of_arrays_are_those_of_files(how: Preprocess, last: bool, layout: str, tmp_path: Path) -> None:
    net = picture(layout)
    wanted = read(folder(tmp_path / "f", {f"{k}.png": png(p) for k, p in enumerate(PHOTOS)}), net, preprocess=how)
    x = PHOTOS if last or layout.endswith("HWC") else PHOTOS.transpose(0, 3, 1, 2)
    sources = (
        x, {"x": x}, iter(x), [p[None] for p in x] if layout[0] == "N" else list(x),
        npz_of(tmp_path / "x.npz", pixels=x), folder(tmp_path / "n", {f"{k}.npy": npy(p) for k, p in enumerate(x)}),
    )  # fmt: skip
    for source in sources:
        found = read(source, net, preprocess=how)
        assert (found.count, found.stackable) == (4, layout[0] == "N")
        for k in range(4):
            np.testing.assert_array_equal(found.feeds([k])["x"], wanted.feeds([k])["x"])
        said = wanted.description.split("crop 9x12, ")[1]
        assert found.description.startswith("4 images of") and found.description.endswith(said)
    np.testing.assert_array_equal(
        read(x.astype(np.float32), model(f"float[{','.join(map(str, ('N', *x.shape[1:])))}] x")).feeds([1])["x"][0],
        x[1],
    )


def test_pixels_of_a_fixed_batch_of_open_sizes_and_of_sizes_of_their_own() -> None:
    x = read(PHOTOS, model("float[2,3,9,12] x"), preprocess=RAW)
    assert x.count == 2 and x.description.startswith("4 images of an array: 9x12 RGB, NCHW, x of 0 to 255")
    np.testing.assert_array_equal(x.feeds([1])["x"], PHOTOS[2:].transpose(0, 3, 1, 2))
    net = model("float[N,3,H,W] x")
    free = read(PHOTOS, net, preprocess=RAW)
    assert "9x12 RGB" in free.description and "open" not in free.description
    np.testing.assert_array_equal(free.feeds([3])["x"], PHOTOS[3:].transpose(0, 3, 1, 2))
    own = read([PHOTOS[0], PHOTOS[1][:8]], net, preprocess=RAW)
    assert [b["x"].shape for b in own.batches(1)] == [(1, 3, 9, 12), (1, 3, 8, 12)]
    assert "sizes of their own RGB, NCHW" in own.description


def test_other_arrays_are_taken_as_they_are() -> None:
    small = np.minimum(PHOTOS, 127)
    for kind, x in (("uint8", PHOTOS), ("int8", small)):
        np.testing.assert_array_equal(read(x, picture("NHWC", kind)).feeds([2])["x"], x[2:3])
    np.testing.assert_array_equal(read(PHOTOS / 1.0, picture("NHWC")).feeds([2])["x"], PHOTOS[2:3])
    vector = read(np.full((2, 3), 7, np.uint8), VECTOR).feeds([0])["x"]
    assert vector.dtype == np.float32 and (vector == 7).all()


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (
            PHOTOS[:, 1:],
            "input x expects (?, 3, 9, 12) or (?, 9, 12, 3), with samples along the first axis, found (4, 8",
        ),
        ([PHOTOS[0], PHOTOS[1] / 255], "found float64 and uint8; give pixels (uint8) or numbers, not both"),
    ],
)
def test_pixels_that_do_not_fit(source: Any, message: str) -> None:
    with pytest.raises(OptionError) as error:
        read(source, picture("NCHW"))
    assert message in str(error.value)


# ---------------------------------------------------------------------------------------------------------------------
# Options without a use
# ---------------------------------------------------------------------------------------------------------------------

FLOATS = "--calibration holds arrays of float32, which are taken as they are"
PIXELS = "--calibration holds uint8 pixels in colour, of the size they go in"
FLAT = PHOTOS.astype(np.float32)
GREY = model("float[N,1,9,12] x")
OPTIONS: list[tuple[str, Any, Any, dict[str, Any], str]] = [
    (
        "floats, preset",
        picture("NHWC"),
        lambda p: FLAT,
        {"preset": "imagenet"},
        f"--preset imagenet: {FLOATS}; it is for",
    ),
    ("floats, mean", picture("NHWC"), lambda p: FLAT, {"mean": (1.0, 2.0, 3.0)}, f"--mean 1,2,3: {FLOATS}"),
    ("floats, crop", picture("NHWC"), lambda p: FLAT, {"crop": 8}, f"--crop 8: {FLOATS}"),
    ("floats, layout", picture("NHWC"), lambda p: FLAT, {"layout": "NHWC"}, f"--layout NHWC: {FLOATS}"),
    ("floats, scale", picture("NHWC"), lambda p: FLAT, {"scale": 0.5}, f"--scale 0.5: {FLOATS}"),
    ("ids", WORDS, lambda p: IDS, {"std": (2.0,)}, "--std 2: --calibration holds arrays of int64, which"),
    ("pixels, values", picture("NCHW"), lambda p: PHOTOS, {"preset": "tf", "std": (2.0,), "channel_order": "BGR"}, ""),
    ("pixels, layout", picture("NCHW"), lambda p: PHOTOS, {"layout": "NCHW"}, ""),
    ("pixels, size", picture("NCHW"), lambda p: PHOTOS, {"image_size": 40}, f"--image-size 40: {PIXELS}; it is for"),
    ("pixels, crop", model("float[N,3,H,W] x"), lambda p: PHOTOS, {"crop": 8}, f"--crop 8: {PIXELS}; it is for"),
    ("bytes", picture("NHWC", "uint8"), lambda p: PHOTOS, {"preset": "raw"}, "holds arrays of uint8, which are taken"),
    ("files", picture("NHWC"), lambda p: p, {"preset": "tf", "crop": 12, "image_size": 15, "channel_order": "RGB"}, ""),
    (
        "files, bytes",
        picture("NHWC", "uint8"),
        lambda p: p,
        {"scale": 2.0},
        "images for an input of uint8, which takes",
    ),
    (
        "files, grey",
        GREY,
        lambda p: p,
        {"channel_order": "RGB"},
        "--channel-order RGB: --calibration holds images, in grey",
    ),
    ("made up", picture("NCHW"), lambda p: "synthetic", {"preset": "tf"}, ""),
    (
        "made up, size",
        picture("NCHW"),
        lambda p: "synthetic",
        {"image_size": 40},
        "--image-size 40: the samples are made",
    ),
    ("made up, open size", model("float[N,3,H,W] x"), lambda p: "synthetic", {"crop": 40}, ""),
    ("made up, noise", VECTOR, lambda p: "synthetic", {"preset": "tf"}, "the samples are made up, noise, no images"),
]


@pytest.mark.parametrize("row", range(len(OPTIONS)), ids=[row[0] for row in OPTIONS])
def test_options_of_images_that_a_source_has_no_use_for(row: int, tmp_path: Path) -> None:
    _, net, source, options, message = OPTIONS[row]
    files = folder(tmp_path, {f"{k}.png": png(p) for k, p in enumerate(PHOTOS)})
    how = Preprocess(**options)
    found = read(source(files), net, preprocess=how, samples=2)
    said = unused(how, found)
    assert message in said if message else not said
    assert "\n" not in said and unused(Preprocess(), found) == ""
    both = unused(how, None, found, read(files, picture("NCHW"), preprocess=RAW))
    assert not both if row < 4 else True  # one source with a use for it is enough


def test_options_of_images_without_samples() -> None:
    assert unused(Preprocess("tf")) == (
        "--preset tf: no samples are read; it is for images in files and uint8 pixels that a floating input takes"
    )
    assert unused(Preprocess(), None) == ""


def test_random_crops_have_no_use_for_a_size(tmp_path: Path) -> None:
    files = folder(tmp_path, {f"{k}.png": png(p) for k, p in enumerate(PHOTOS)})
    how = Preprocess("raw", image_size=14)
    found = read(files, picture("NCHW"), preprocess=how, augment=True, samples=8)
    assert "augment" in found.uses and "--image-size 14: --calibration holds images, cut at random" in unused(
        how, found
    )
    with pytest.raises(
        OptionError, match="--augment crops and flips images in files; --calibration holds uint8 pixels"
    ):
        read(PHOTOS, picture("NCHW"), augment=True)
