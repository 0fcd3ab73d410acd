"""What is trained on: batches of any source, labels that fit, samples of different shapes, several threads."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import onnxprune
from conftest import ROOT
from models.files import parse
from onnxprune.errors import OptionError
from onnxprune.evaluation.training_set import TrainingSet, training_set
from onnxprune.graph.arrays import Array
from onnxprune.graph.io import Model, load
from onnxprune.importance.score import gradient_scores
from onnxprune.importance.shown import by_training
from onnxprune.pipeline.train import train
from onnxprune.progress import silent
from onnxprune.runtime.classes import IGNORED
from onnxprune.runtime.session import Feeds, run
from onnxprune.training.losses import label_feeds, objective_of, teach
from onnxprune.training.step import Step

MODELS = ROOT / "models"
GRU = load(MODELS / "digits_gru.onnx")
RESNET = load(MODELS / "digits_resnet_bn.onnx")


def net(classes: int, channels: int = 3) -> Model:
    """Class scores of pictures of any number and size: channel means times a matrix."""
    weights = ",".join(str((k * k * k) % 3011 - 1500) for k in range(channels * classes))
    return load(
        parse(
            f"g (float[n,{channels},h,w] x) => (float[n,{classes}] y) <float[{channels},{classes}] w1 = {{{weights}}}> "
            "{ a = GlobalAveragePool(x) b = Flatten(a) y = MatMul(b, w1) }"
        )
    )


def pictures(folder: Path, count: int = 12) -> Path:
    rng = np.random.default_rng(0)
    for i in range(count):
        path = folder / f"class{i % 3}" / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (20, 20, 3), np.uint8)).save(path)
    return folder


def test_an_archive_gives_inputs_and_labels() -> None:
    found = training_set(RESNET, MODELS / "digits_heldout.npz")
    with np.load(MODELS / "digits_heldout.npz") as z:
        assert found.classes == RESNET.proto.graph.output[0].name and found.labels is not None
        assert np.array_equal(found.labels, z["labels"]) and found.labels.dtype == np.int64
        assert np.array_equal(found.feeds([3, 1])["image"], z["image"][[3, 1]])
        assert found.labels_of([3, 1]).tolist() == z["labels"][[3, 1]].tolist()
    assert found.most == found.count == 450


@pytest.mark.parametrize("zipped", [False, True])
def test_folders_and_zips_give_what_one_thread_gives(zipped: bool, tmp_path: Path) -> None:
    source = pictures(tmp_path / "train")
    if zipped:
        with zipfile.ZipFile(tmp_path / "train.zip", "w") as z:
            for f in source.rglob("*.png"):
                z.write(f, f.relative_to(source))
        source = tmp_path / "train.zip"
    found = training_set(net(3), source)
    assert found.labels is not None and found.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    several, alone = found.feeds(range(12))["x"], [found.samples.feeds([i])["x"] for i in range(12)]
    assert several.shape[0] == 12 and np.array_equal(several, np.concatenate(alone))


def test_labels_of_a_file_count_from_the_background(tmp_path: Path) -> None:
    x = np.random.default_rng(0).standard_normal((30, 3, 2, 2)).astype(np.float32)
    model = net(1001)
    best = (x.mean((2, 3)) @ model.weights["w1"]).argmax(1)
    kept = np.flatnonzero(best)
    np.save(tmp_path / "labels.npy", best[kept] - 1)
    found = training_set(model, x[kept], tmp_path / "labels.npy")
    assert found.labels is not None and found.labels.tolist() == best[kept].tolist()


def sequences() -> list[dict[str, Array]]:
    rng = np.random.default_rng(0)
    return [{"tokens": rng.integers(0, 5, (1, 4 + k % 3))} for k in range(10)]


def spoken() -> Model:
    return load(
        parse(
            "g (int64[n,t] tokens) => (float[n,4] y) <float[5,4] table = {1,2,3,4,5,4,3,2,1,0,1,0,1,2,0,4,3,5,1,2}, "
            "int64[1] axes = {1}> "
            "{ a = Gather<axis = 0>(table, tokens) y = ReduceMean<keepdims = 0>(a, axes) }"
        )
    )


def test_sequences_of_one_length_come_together() -> None:
    found = training_set(spoken(), sequences(), np.arange(10) % 4)
    batches = found.batches(3)
    assert sorted(i for b in batches for i in b) == list(range(10)) and max(map(len, batches)) == 3
    for b in batches:
        assert found.feeds(b)["tokens"].shape == (len(b), 4 + b[0] % 3)
        assert found.labels_of(b).tolist() == [i % 4 for i in b]


def by_token() -> Model:
    """Class scores of every token, by the token alone."""
    return load(
        parse(
            "g (int64[n,t] tokens) => (float[n,t,5] y) <float[5,3] table = {1,2,3,4,5,4,3,2,1,0,1,0,1,2,0}, "
            "float[3,5] w = {1,2,0,1,0,1,2,1,1,1,0,2,1,1,0}> { a = Gather<axis = 0>(table, tokens) y = MatMul(a, w) }"
        )
    )


def rows() -> list[Array]:
    """A label for every token of `sequences`, of which some do not count."""
    rng = np.random.default_rng(1)
    return [np.where(rng.random(4 + k % 3) < 0.3, IGNORED, rng.integers(0, 5, 4 + k % 3)) for k in range(10)]


def padded() -> Array:
    return np.array([np.pad(r, (0, 6 - len(r)), constant_values=IGNORED) for r in rows()])


def written(folder: Path) -> Path:
    """The sequences as .npy, their labels beside them in a folder."""
    for k, (feeds, row) in enumerate(zip(sequences(), rows(), strict=True)):
        for name, x in (("tokens", feeds["tokens"]), ("labels", row)):
            (folder / name).mkdir(exist_ok=True, parents=True)
            np.save(folder / name / f"{k}.npy", x)
    return folder


def json_of(folder: Path, labels: Any) -> Path:
    (folder / "labels.json").write_text(json.dumps(labels))
    return folder / "labels.json"


@pytest.mark.parametrize(
    "given",
    [
        lambda folder: (sequences(), rows()),
        lambda folder: (sequences(), padded()),
        lambda folder: ([{**f, "labels": r} for f, r in zip(sequences(), rows(), strict=True)], None),
        lambda folder: (written(folder), None),
        lambda folder: (written(folder) / "tokens", json_of(folder, [r.tolist() for r in rows()])),
        lambda folder: (
            written(folder) / "tokens", json_of(folder, {f"{k}.npy": r.tolist() for k, r in enumerate(rows())})
        ),
    ],
    ids=["rows", "padded", "feeds", "folder", "json", "json by name"],
)  # fmt: skip
def test_labels_of_tokens_are_as_long_as_their_sequences(given: Callable[[Path], Any], tmp_path: Path) -> None:
    found = training_set(by_token(), *given(tmp_path))
    assert found.labels is not None and found.labels.tolist() == padded().tolist()
    for part in (found, *found.split(3)):
        for b in part.batches(2):
            wanted = [rows()[part.samples.chosen[i]].tolist() for i in b]
            assert part.labels_of(b).tolist() == wanted and part.feeds(b)["tokens"].shape == (len(b), len(wanted[0]))


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([*rows()[:9], rows()[9][:3]], "sample 9 has 4 tokens and 3 labels; give one per token"),
        ([*rows()[:9], rows()[9][:0]], "sample 9 has 4 tokens and 0 labels; give one per token"),
        (np.where(padded() == IGNORED, 0, padded()), "sample 0 has 4 tokens and 6 labels; give one per token, -100"),
        (padded()[:, :5], r"shape \(10, 5\) for samples of 4 to 6 tokens; expected one class per token, \(10, 6\)"),
        ([*rows()[:9], np.full(4, -7)], r"\(-100 for tokens that do not count\), found -7 \(sample 9\)"),
        ([*rows()[:9], np.full(4, 5)], "labels go from 0 to 5, the model has 5 classes"),
        (rows()[:9], "9 for 10 samples"),
    ],
)
def test_labels_of_tokens_that_do_not_fit(labels: Any, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        training_set(by_token(), sequences(), labels)


def test_a_row_of_classes_per_labelled_token_needs_no_table_of_words() -> None:
    text = (
        "g (int64[n,t] tokens) => (float[n,t,2] y) <float[5,3] table = {1,2,3,4,5,4,3,2,1,0,1,0,1,2,0}, float[3,2] w = "
        "{1,2,0,1,0,1}> { a = Gather<axis = 0>(table, tokens) y = MatMul(a, w) }"
    )
    model, tags = load(parse(text)), [np.minimum(r, 1) for r in rows()]
    assert training_set(model, sequences()).classes == ""  # as hidden states may be
    found = training_set(model, sequences(), tags)
    assert found.classes == "y" and found.labels is not None and found.labels.max() == 1
    tokens = np.concatenate([f["tokens"] for f in sequences()[::3]])
    assert onnxprune.evaluate(model, tokens, labels=np.array(tags[::3])).metric == "loss"
    gates = onnxprune.analyze(model)
    scores, _ = gradient_scores(gates, gates.groups, by_training(found), "taylor", silent, absorbed=False)
    assert all(np.isfinite(s).all() and s.any() for s in scores.values()) and scores


@pytest.mark.parametrize("loss", ["kl", "cross-entropy:0.5,kl:0.5"])
def test_tokens_behind_the_end_do_not_count(loss: str) -> None:
    """Gradients of batches of one length, of padded ones, and of those in parts, against those of single samples."""
    model, other = by_token(), by_token()
    other.weights["w"] = np.asarray(other.weights["w"][:, ::-1] * np.float32(0.3))
    data = training_set(model, sequences(), rows())
    together = {
        "tokens": np.concatenate([np.pad(f["tokens"], ((0, 0), (0, 6 - f["tokens"].size))) for f in sequences()])
    }
    scores = run(other, together)
    objective = objective_of(other, scores, 10, loss=loss, labels=data.labels)

    any_length = Step(model, objective, together, fixed=False, threads=1)

    def gradient(feeds: Feeds, labels: Array, step: Step = any_length) -> Array:
        step.train(feeds, {**teach(objective.terms, run(other, feeds)), **label_feeds(objective, labels)})
        return step.gradients.copy()

    def alone(indices: Sequence[int]) -> Array:
        counts = [int((rows()[i] != IGNORED).sum()) for i in indices]
        each = [gradient(data.feeds([i]), data.labels_of([i])) * n for i, n in zip(indices, counts, strict=True)]
        return np.asarray(sum(each) / sum(counts))

    one_length = data.kinds[1].tolist()
    assert np.allclose(gradient(data.feeds(one_length), data.labels_of(one_length)), alone(one_length), atol=1e-6)
    whole = alone(range(10))
    assert np.abs(whole).max() > 0.02
    fixed, parted = (Step(model, objective, together, fixed=f, memory=1, threads=1) for f in (True, False))
    for step in (any_length, fixed, parted):
        assert np.allclose(gradient(together, padded(), step), whole, atol=1e-6)
    assert (fixed.part, parted.part) == (1, None)


def test_batches_of_any_length_keep_to_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Long sequences come in parts, short ones at once."""
    model, seen = by_token(), list[int]()

    def watched(of: Any, x: Feeds, y: Feeds) -> float:
        seen.append(len(x["tokens"]))
        return run_of(of, x, y)

    data = training_set(model, sequences(), rows())
    feeds = {n: np.repeat(x, 4, 0) for n, x in data.feeds([0]).items()}
    objective = objective_of(model, run(model, feeds), 4, loss="kl", labels=None)
    step = Step(model, objective, feeds, fixed=False, memory=4e3, threads=1)
    run_of = step._run
    monkeypatch.setattr(step, "_run", watched)
    for length in (3, 60):
        long = {n: np.resize(x, (4, length)) for n, x in feeds.items()}
        step.train(long, teach(objective.terms, run(model, long)))
    assert seen[0] == 4 and sum(seen[1:]) == 4 and len(seen) > 2


def test_sequences_of_different_lengths_are_trained_by_the_labels_of_their_tokens(tmp_path: Path) -> None:
    model, source = by_token(), written(tmp_path / "data")
    labels = [(f["tokens"][0] + 1) % 5 for f in sequences()]  # the next token
    done = train(
        model,
        source / "tokens",
        tmp_path / "out.onnx",
        train_labels=labels,
        tune="60steps",
        learning_rate=0.1,
        batch_size=2,
    )
    held = done.report["held_out"]
    assert held["after"] < 0.3 * held["before"] and held["accuracy"][-1] > held["accuracy"][0]
    out = run(load(tmp_path / "out.onnx"), sequences()[2])["y"]
    assert (out.argmax(2) == labels[2]).mean() > 0.8


def test_what_is_held_out_is_not_trained_on() -> None:
    whole = training_set(spoken(), sequences(), np.arange(10) % 4)
    seen, unseen = whole.split(5, 100)
    assert (seen.count, unseen.count) == (8, 2)
    assert set(seen.samples.chosen).isdisjoint(unseen.samples.chosen)
    for part in (seen, unseen):
        assert part.labels is not None and part.labels.tolist() == [i % 4 for i in part.samples.chosen]
        assert sorted(i for b in part.batches(4) for i in b) == list(range(part.count))
        assert {part.feeds(b)["tokens"].shape[1] for b in part.batches(4)} == {4 + i % 3 for i in part.samples.chosen}


def test_no_labels_are_no_labels() -> None:
    found = training_set(RESNET, MODELS / "digits_calibration.npz")
    assert found.labels is None and found.count == 300


X = np.random.default_rng(0).standard_normal((6, 3, 2, 2)).astype(np.float32)


@pytest.mark.parametrize(
    ("model", "source", "labels", "message"),
    [
        (net(3), X, np.arange(5) % 3, "--train: labels: 5 for 6 samples"),
        (net(3), X, np.arange(6), "--train: labels go from 0 to 5, the model has 3 classes"),
        (net(3), {"x": X, "labels": np.full(6, -1)}, None, "labels: expected whole numbers that count classes from 0"),
        (net(3), X, "none.npy", "--train-labels none.npy: cannot be read"),
        (net(1), X, np.zeros(6, int), "--train-labels: the model has no output with a row of class scores"),
        (net(3), X[:0], None, "--train: there is no sample in it"),
    ],
)
def test_labels_that_do_not_fit(model: Model, source: Any, labels: Any, message: str) -> None:
    with pytest.raises(OptionError, match=message) as e:
        training_set(model, source, labels)
    assert "\n" not in str(e.value)


def test_one_sample_cannot_be_split() -> None:
    one: TrainingSet = training_set(net(3), X[:1])
    with pytest.raises(OptionError, match="two samples or more"):
        one.split(8, 10)
