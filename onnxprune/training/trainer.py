"""Training as a caller from Python drives it: step by step, with state that can be saved and put back.

trainer = onnxprune.Trainer("model.onnx", "train/", steps=1000, init=0)
start = trainer.state()
trainer.train()
trainer.evaluate()      # {'loss': 0.31, 'accuracy': 0.92}
onnxprune.save(trainer.export(), "trained.onnx")
trainer.restore(start)  # the first step again
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from onnxprune.calibration.augment import parse as parse_augment
from onnxprune.calibration.presets import Preprocess
from onnxprune.errors import OnnxPruneError, OptionError
from onnxprune.evaluation.training_set import TrainingSet, training_set
from onnxprune.graph.arrays import Array
from onnxprune.graph.io import Model, load
from onnxprune.options import declared, in_python, read_keywords
from onnxprune.progress import Steps
from onnxprune.training.initial import initial, with_weights
from onnxprune.training.losses import DISTIL, NO_LABELS
from onnxprune.training.masking import NONE, learning_of
from onnxprune.training.masking import OPTIONS as MASKS
from onnxprune.training.options import OWN, Training, amount
from onnxprune.training.tune import LOOKS, Settings, Tell, prepared

SETTLING = 8  # batches whose statistics are averaged
FROM_SCRATCH = {"adam": 1e-3, "adamw": 1e-3, "sgd": 0.05}  # rates of weights that were never trained


class Trainer:
    """A model, the samples that it is trained on, and where the training stands.

    notes: what the user should know; model: as training began, with new weights where these were asked for.
    """

    def __init__(
        self,
        source: Any,
        train: Any,
        labels: Any = None,
        *,
        steps: str | float = 10,
        init: int | Model | None = None,
        original: Any = None,
        preprocess: Preprocess | None = None,
        augment: Any = False,
        cache: Path | str | None = None,
        seed: int = 0,
        threads: int = 0,
        looks: int = LOOKS,
        **options: Any,
    ) -> None:
        """source: as `load` takes it; train, labels: as --train and --train-labels, or a `TrainingSet`.

        steps: how much in all, as --tune has it: epochs, "500steps" or "5min"; init: seed of new weights, or a model of
        the same graph that has them (both: weights that were never trained); original: the model whose outputs are
        trained towards by losses without labels, by default `source` as it came; cache: a folder that keeps the state;
        looks: at what is held out, at most; options: loss, learning_rate, batch_size, optimizer, momentum,
        weight_decay, schedule, warmup, and those of masks that are learned (learn_masks, sparsity, heads, ...), as of
        the command. Raises `UserError` where it cannot be trained.
        """
        with _in_python():
            read, pictures = _read(options), parse_augment(augment)
            given = load(source)
            loss = read.get("loss")
            any_labels = callable(loss) or isinstance(loss, Path)
            if not isinstance(train, TrainingSet):
                train = training_set(given, train, labels, preprocess=preprocess, seed=seed, any_labels=any_labels)
            if train.labels is None and loss is None and original is None:
                raise OptionError(NO_LABELS)
            self.notes: list[str] = []
            self.model = given
            if isinstance(init, Model):
                self.model = with_weights(given, init)
            elif init is not None:
                fresh = initial(given, init)
                self.model, self.notes = fresh.model, [*fresh.notes]
            optimizer = read.get("optimizer", "adam")
            rate = read.get("learning_rate")
            masks = learning_of(read, optimizer, init is not None)
            if rate is None and init is not None:
                rate = FROM_SCRATCH[optimizer] if masks is None or masks.row.moves != NONE else masks.rate
            self.settings = Settings(
                *amount(steps), batch=read.get("batch_size", Settings.batch), rate=rate, optimizer=optimizer,
                momentum=read.get("momentum", Settings.momentum), decay=read.get("weight_decay", Settings.decay),
                schedule=read.get("schedule", Settings.schedule), warmup=read.get("warmup"), loss=loss,
                augment=pictures or None, seed=seed, threads=threads, looks=looks,
                masks=masks,
            )  # fmt: skip
            self.seen, self.unseen = train.split()
            self._stack = ExitStack()
            self.run = prepared(
                given if original is None else load(original), self.model, self.seen, self.unseen, self.settings,
                self._stack, cache=None if cache is None else Path(cache),
                distil=0.0 if original is None else DISTIL, by_batch=init is not None,
            )  # fmt: skip
            self.notes += [] if self.run.masks is None else self.run.masks.notes
            self.steps = self.run.steps(self.seen.count / self.run.batch)
            self.resumed = self.run.resumed

    # going on

    def step(self, count: int = 1) -> float:
        """Take so many steps; the loss of the last batch."""
        for _ in range(count):
            self.run.advance(self.steps)
        return self.run.last

    def train(self, progress: Steps = lambda done, total: None, tell: Tell = lambda line: None) -> None:
        """All steps that are left. The average of the weights that is best on the samples held out is kept, also where
        a `KeyboardInterrupt` comes; progress, tell: get the steps, and a line at every look."""
        self.run.train(self.steps, progress, tell)

    # where it stands

    @property
    def position(self) -> int:
        """Steps that were taken."""
        return self.run.position

    @property
    def weights(self) -> dict[str, Array]:
        """Name -> float32 weights as they are now; what is written into them counts."""
        return {name: self.run.step.layout.view(self.run.step.weights, name) for name in self.run.step.trained}

    def settle(self, batches: int = SETTLING) -> None:
        """Let statistics of normalisations be the mean of those of some batches; weights stay as they are."""
        self._refuse_masks("settle")
        for k in range(batches if self.run.step.statistics else 0):
            self.run.step.train(*self.run.draw(k))
            self.run.step.settle(1 / (k + 1))
        self.run.begin({n: self.run.step.layout.view(self.run.step.weights, n) for n in self.run.step.layout.places})

    def mask(self, masks: Mapping[str, Array]) -> None:
        """Make weights zero, which stay so. masks: name -> bool in the shape of the weight, False for a zero."""
        self._refuse_masks("mask")
        run, layout = self.run, self.run.step.layout
        for name, kept in masks.items():
            for buffer in (run.step.weights, run.average, run.before, run.chosen, run.first):
                layout.view(buffer, name)[~kept] = 0
            layout.view(run.step.free, name)[~kept] = False
        run.step.followed = False

    def state(self) -> dict[str, Array]:
        """Weights, optimizer, averages, masks, position and the seed of the order: random numbers depend on these."""
        return self.run.state()

    def begin(self, model: Model) -> None:
        """Train on from the weights of a model of the same graph, at the step where this training stands."""
        self._refuse_masks("begin")
        self.run.begin(self.run.step.form.read(model))

    def reorder(self, seed: int) -> None:
        """Draw samples, and change them, by another seed from the next step on, as another training would."""
        self.run.batches.reorder(seed)

    def restore(self, state: Mapping[str, Array]) -> None:
        """Go on from a state of this training. Raises `UserError` for one of another model or optimizer."""
        self.run.restore(state)

    def evaluate(self, which: str = "weights") -> dict[str, float]:
        """Mean loss on the samples held out and, with labels, the accuracy; which: as of `export`."""
        loss, share = self.run.measured(self._buffer(which))
        return {"loss": loss, **({"accuracy": share[0]} if share else {})}

    def export(self, which: str = "best") -> Model:
        """The model with the weights that were best, or the `average`, or as they are now (`weights`)."""
        return self.run.step.written(self.model, self._buffer(which))

    @property
    def masks(self) -> dict[str, dict[str, int]]:
        """Of masks that are learned, by layer or group: size, left and came_back, in weights or units; {} without."""
        return {} if self.run.masks is None else self.run.masks.counts()

    def _refuse_masks(self, what: str) -> None:
        """Raises `OptionError` for what knows nothing of weights behind a mask."""
        if self.run.masks is not None:
            raise OptionError(
                f"{what}() has no meaning with learn_masks: weights behind a mask are kept beside the others"
            )

    def _buffer(self, which: str) -> Array:
        buffers = {"best": self.run.chosen, "average": self.run.average, "weights": self.run.step.weights}
        if which not in buffers:
            raise OptionError(f"which={which!r}: expected {', '.join(buffers)}")
        return buffers[which]


def _read(options: Mapping[str, Any]) -> dict[str, Any]:
    try:
        return read_keywords("Trainer", [*(o for o in declared(Training) if o.name in OWN), *MASKS], options)
    except ValueError as e:
        raise OptionError(str(e)) from None


@contextmanager
def _in_python() -> Iterator[None]:
    """Errors in the words of a caller from Python."""
    try:
        yield
    except OnnxPruneError as e:
        renamed = {"train_labels": "labels", "tune": "steps"}
        known = [replace(o, name=renamed.get(o.name, o.name)) for o in (*declared(Training), *MASKS)]
        raise type(e)(in_python(str(e), known)) from e
