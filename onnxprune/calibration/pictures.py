"""Made-up images in the format of one input: families of them, painted on demand, and which of them suit a model.

Dead leaves are opaque shapes of all sizes that cover each other, as objects do (Lee, Mumford and Huang 2001); with
textures, shading, stripes and noise their statistics come near enough to photographs for a network's second moments
(compare Baradad et al. 2021, Learning to See by Looking at Noise). Strokes are for models of writing and drawings.

A classifier tells images of the kind that it was trained on apart, and others not: its predictions are sure of each
image and differ between images. That is the mutual information of image and predicted class, the entropy of the mean
prediction less the mean entropy, whose exponential is the Inception score (Salimans et al. 2016).
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from onnxprune.calibration.images import CACHED, ImageFormat
from onnxprune.calibration.leaves import TEXTURES, averaged, dead_leaves, fineness, pink
from onnxprune.calibration.strokes import strokes
from onnxprune.graph.arrays import Array, Float
from onnxprune.graph.io import Model
from onnxprune.graph.ort import ORT_ERRORS
from onnxprune.runtime.classes import classifier_output, probabilities
from onnxprune.runtime.session import Feeds, session

AHEAD = 16  # runs whose images are painted at once, on all cores
LEAVES, BRIGHT, DARK = "dead leaves", "bright strokes on dark ground", "dark strokes on bright ground"
PROBES = (16, 48)  # runs of each family by which one is chosen: most models show with few that none is
SURER = 1.5  # factor by which a family must say more than dead leaves,
MORE = 0.1  # and by how much, of the most that it could say
SHARE = 0.5  # of the images that are of the family chosen; the others are dead leaves


class Pictures:
    """Index -> the images of one run, normalised, the same for the same seed.

    family: dead leaves, or which images stand beside them.
    """

    def __init__(self, form: ImageFormat, seed: int) -> None:
        self.form, self.seed, self.family = form, seed, LEAVES
        self.fine = fineness((form.height, form.width))
        self.shape = (form.height * self.fine, form.width * self.fine)
        self.textures: list[Array] = []
        self.kept: dict[tuple[str, int], Array] = {}

    @property
    def description(self) -> str:
        """What is painted, for the report."""
        if self.family == LEAVES:
            return f"made-up images ({LEAVES}), {self.form.description}"
        why = "which this model tells apart better"
        return f"made-up images ({LEAVES} and, {why}, {self.family}), {self.form.description}"

    def __call__(self, i: int) -> Array:
        return self.of(self.family_at(i), i)

    def family_at(self, i: int) -> str:
        """Which family the images of one run are of."""
        other = self.family != LEAVES and np.random.default_rng([self.seed, 4, i]).random() < SHARE
        return self.family if other else LEAVES

    def of(self, family: str, i: int) -> Array:
        """Images of a family for one run, whatever family was chosen."""
        if (family, i) in self.kept:
            return self._normalised(self.kept[family, i])
        each = self.form.batch * self.form.height * self.form.width * self.form.channels
        room = CACHED // each - len(self.kept)
        # likely to be asked for next: before one is chosen, of every family all
        likely = [k for k in range(i + 1, i + AHEAD) if self.family == LEAVES or self.family_at(k) == family]
        ahead = [i, *(k for k in likely if (family, k) not in self.kept)][: max(1, room)]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            if family == LEAVES and not self.textures:
                self.textures.extend(pool.map(self._texture, range(TEXTURES)))
            images = dict(zip(ahead, pool.map(lambda k: self._painted(family, k), ahead), strict=True))
        if room > 0:
            self.kept.update({(family, k): x for k, x in images.items()})
        return self._normalised(images[i])

    def choose(self, family: str) -> None:
        """Take images of a family, and forget those that nobody will ask for."""
        self.family = family
        self.kept = {(f, i): x for (f, i), x in self.kept.items() if f == self.family_at(i)}

    def _texture(self, k: int) -> Array:
        return pink(self.shape, np.random.default_rng([self.seed, 1, k]))

    def _painted(self, family: str, i: int) -> Array:
        return np.stack([self._pixels(family, i * self.form.batch + k) for k in range(self.form.batch)])

    def _pixels(self, family: str, i: int) -> Array:
        if family == LEAVES:
            x = dead_leaves(self.shape, np.random.default_rng([self.seed, 2, i]), self.textures)
        else:
            x = strokes(self.shape, np.random.default_rng([self.seed, 5, i]), dark=family == DARK)
        x = averaged(x, self.fine)
        if self.form.channels == 1:
            x = x.mean(2, keepdims=True)
        elif self.form.channels == 4:
            x = np.concatenate([x, np.full((self.form.height, self.form.width, 1), 255, np.float32)], 2)
        return np.asarray(np.rint(x), np.uint8)

    def _normalised(self, images: Array) -> Array:
        return np.concatenate([self.form.normalise(x) for x in images])


def suited(model: Model, pictures: Pictures, feeds: Callable[[str, int], Feeds]) -> str:
    """The family that a classifier tells apart far better than dead leaves; those for any other model.

    feeds: of one run with images of a family.
    """
    rows: dict[str, list[Array]] = {LEAVES: [], BRIGHT: [], DARK: []}
    best = LEAVES
    try:
        with session(model) as s:
            names = [o.name for o in s.get_outputs()]
            outputs = dict(zip(names, s.run(None, feeds(LEAVES, 0)), strict=True))
            chosen = classifier_output(model, outputs, pictures.form.batch)
            if not chosen:
                return LEAVES
            for start, stop in itertools.pairwise((0, *PROBES)):
                for family, each in rows.items():
                    each += [probabilities(s.run([chosen], feeds(family, i))[0]) for i in range(start, stop)]
                known = {family: information(np.concatenate(each)) for family, each in rows.items()}
                best = max(known, key=lambda family: known[family])
                gain = MORE * np.log(rows[best][0].shape[1])
                if not known[best] >= max(SURER * known[LEAVES], known[LEAVES] + gain):
                    return LEAVES
    except ORT_ERRORS:
        return LEAVES  # whoever runs the model on them says why it does not run
    return best


def information(p: Float) -> float:
    """Mutual information in nats of sample and class, of predictions `(n, classes)`."""
    mean = p.mean(0)
    return float(_entropy(mean) - _entropy(p).mean())


def _entropy(p: Float) -> Float:
    return np.asarray(-(p * np.log(np.maximum(p, 1e-30))).sum(-1))
