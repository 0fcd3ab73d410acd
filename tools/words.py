"""Sentences as numbers of words, as models/sst2_encoder.onnx reads them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

WORDS, SENTENCE = 3400, 48  # numbers of words, with 0 for padding and 1 for unknown ones; words of a sentence, at most


def labelled(path: Path) -> tuple[list[list[str]], list[int]]:
    """Sentences of a file of SST-2 as words, and whether each is positive."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return [line[:-2].split() for line in lines], [int(line[-1]) for line in lines]


def vocabulary(data: Path) -> dict[str, int]:
    """The most frequent words of the training part of SST-2, by number."""
    sentences, _ = labelled(data / "sst2_train.tsv")
    counts = Counter(word for words in sentences for word in words[:SENTENCE])
    ranked = sorted(counts, key=lambda word: (-counts[word], word))[: WORDS - 2]
    return {word: index + 2 for index, word in enumerate(ranked)}


def encoded(sentences: Sequence[Sequence[str]], ids: Mapping[str, int]) -> dict[str, np.ndarray]:
    """Inputs of the encoder, int64 `(sentences, SENTENCE)` each."""
    rows, mask = np.zeros((2, len(sentences), SENTENCE), np.int64)
    for row, on, words in zip(rows, mask, sentences, strict=True):
        words = words[:SENTENCE]
        row[: len(words)], on[: len(words)] = [ids.get(word, 1) for word in words], 1
    return {"input_ids": rows, "attention_mask": mask}


def wikitext(path: Path) -> list[list[str]]:
    """Sentences of WikiText in small letters, without headings."""
    lines = (line.strip() for line in path.read_text(encoding="utf-8").lower().splitlines())
    texts = (line.replace("<unk>", "unk") for line in lines if line and not line.startswith("="))
    return [s.split() for text in texts for s in re.split(r"(?<= \.) ", text)]


def speeches(path: Path) -> list[list[str]]:
    """What is said in one go in Shakespeare's plays, as words in small letters."""
    said = (block.partition(":\n")[2] for block in path.read_text(encoding="utf-8").lower().split("\n\n"))
    return [re.findall(r"[a-z]+|'[a-z]+|[.,;:!?]", text) for text in said if text.strip()]
