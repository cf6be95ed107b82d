"""Judges of distance: how loudly should one sound sit against another so that the blend is natural?

A judge answers with one of three words, which mean loudness and not metres: ``far`` (noticeably quieter than the base),
``same`` (about equally loud), ``close`` (noticeably louder). The question is not symmetric.

`StaticJudge` looks the pair up in a table. `LLMJudge` asks a language model, which stays outside this package: it is
any callable that takes a chat and returns the answer. With a server that speaks the usual protocol, for example::

    def ask(chat):
        body = {"model": "llama-3.2-1b-instruct", "messages": chat, "max_tokens": MAX_NEW_TOKENS, "temperature": 0}
        request = urllib.request.Request(URL, json.dumps(body).encode(), {"Content-Type": "application/json"})
        with urllib.request.urlopen(request) as reply:
            return json.load(reply)["choices"][0]["message"]["content"]

    judge = LLMJudge(ask, cache="distances.json")
"""

from __future__ import annotations

import json
import math
import os
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np

from umx_ext.codecs.formats import shown
from umx_ext.errors import OutputError, UsageError

__all__ = ["LABELS", "MAX_NEW_TOKENS", "MUSIC_TABLE", "DistanceJudge", "LLMJudge", "StaticJudge", "chat", "parse_label"]

LABELS = ("far", "same", "close")
MAX_NEW_TOKENS = 4  # an answer is one word; ask the model for no more, and decode greedily

# With the vocals as base: the class whose centre (-7.5, 0 or +7.5 dB) is nearest to the loudness that these stems have
# beside the vocals in MUSDB18's excerpts (drums -3.6, bass -4.4, other -1.5 LU). The drums stand at the border: over
# the training songs alone they have -4.3 LU (docs/remix_statistics.json), which is nearer to "far".
MUSIC_TABLE = {("vocals", "drums"): "same", ("vocals", "bass"): "far", ("vocals", "other"): "same"}

SYSTEM = (
    "You judge how loudly a candidate sound should sit against a base sound so that the blend is natural. "
    "Answer with exactly one word. far: the candidate is noticeably quieter than the base. "
    "same: both are about equally loud. close: the candidate is noticeably louder than the base."
)
# (base, candidate, answer)
FEW_SHOTS = (
    ("relaxed music", "human speech", "close"),
    ("a child laughs", "a woman speaks", "same"),
    ("birds chirp", "a branch sways in the wild", "far"),
)
SYNONYMS = {
    "far": (
        "far", "farther", "distant", "distance", "remote", "away", "background", "behind", "faint", "quiet", "quieter",
        "soft", "softer", "low", "lower", "weak", "subtle", "barely",
    ),
    "same": (
        "same", "equal", "equally", "similar", "balanced", "even", "alike", "identical", "matching", "comparable",
        "medium", "neutral", "together",
    ),
    "close": (
        "close", "closer", "near", "nearby", "front", "foreground", "forward", "loud", "louder", "prominent", "strong",
        "high", "higher", "dominant", "beside",
    ),
}  # fmt: skip

Encoder = Callable[[Sequence[str]], Sequence[Sequence[float]]]


class DistanceJudge(Protocol):
    """Whatever answers `judge`."""

    def judge(self, base_caption: str, candidate_caption: str) -> str:
        """``"far"``, ``"same"`` or ``"close"``: how the candidate should sit against the base."""
        ...


@dataclass(frozen=True)
class StaticJudge:
    """Looks pairs up; the table that comes with it is for the stems of MUSDB18, vocals first.

    Attributes:
        table: (base caption, candidate caption) -> label.
        default: the answer to pairs that are not in it.

    >>> StaticJudge().judge("vocals", "bass")
    'far'
    """

    table: Mapping[tuple[str, str], str] = field(default_factory=lambda: dict(MUSIC_TABLE))
    default: str = "same"

    def __post_init__(self) -> None:
        for label in (self.default, *self.table.values()):
            if label not in LABELS:
                raise UsageError(f"no distance {label!r}; known: {', '.join(LABELS)}")

    def judge(self, base_caption: str, candidate_caption: str) -> str:
        return self.table.get((base_caption, candidate_caption), self.default)


@dataclass(frozen=True)
class LLMJudge:
    """Asks a language model, once for each pair.

    Attributes:
        generate: takes the chat of `chat` and returns the model's answer. It should decode greedily and stop after
            `MAX_NEW_TOKENS`.
        cache: a JSON file, ``{base: {candidate: label}}``, that answers are kept in and read from; made when it is not
            there. None keeps them in memory. Answers of another model belong into another file.
        encode: a text encoder, texts -> vectors, to understand answers without any of the three words by their
            meaning; None compares letters.

    Raises:
        UsageError: the cache file holds something else, or the model did not answer with text.
        OutputError: the cache cannot be written.
    """

    generate: Callable[[list[dict[str, str]]], str]
    cache: Path | str | None = None
    encode: Encoder | None = None
    _known: dict[str, dict[str, str]] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        self._known.update(_read(self.cache))

    def judge(self, base_caption: str, candidate_caption: str) -> str:
        known = self._known.get(base_caption, {}).get(candidate_caption)
        if known is not None:
            return known
        answer = self.generate(chat(base_caption, candidate_caption))
        if not isinstance(answer, str):
            raise UsageError(f"the language model's callable must return text, it returned {type(answer).__name__}")
        label = parse_label(answer, self.encode)
        # Another process may have added to the file: what is there stays.
        for base, labels in _read(self.cache).items():
            self._known.setdefault(base, {}).update(labels)
        self._known.setdefault(base_caption, {})[candidate_caption] = label
        if self.cache is not None:
            _write(Path(self.cache), self._known)
        return label


def chat(base_caption: str, candidate_caption: str) -> list[dict[str, str]]:
    """The question as a chat: one system message, three answered examples, the pair."""

    def question(base: str, candidate: str) -> dict[str, str]:
        return {"role": "user", "content": f"base: {base}\ncandidate: {candidate}"}

    messages = [{"role": "system", "content": SYSTEM}]
    for base, candidate, answer in FEW_SHOTS:
        messages += [question(base, candidate), {"role": "assistant", "content": answer}]
    return [*messages, question(base_caption, candidate_caption)]


def parse_label(answer: str, encode: Encoder | None = None) -> str:
    """One of the three labels, whatever the answer was.

    The first of the three words that stands in it, case and punctuation aside. Without any: the label with the most
    similar synonym, by the cosine of character-trigram counts of each word, or of `encode`'s vectors of the whole
    answer. Where nothing is similar: ``"same"``.

    >>> parse_label("*Close*."), parse_label("in the distance"), parse_label("")
    ('close', 'far', 'same')
    """
    words = re.sub(r"[^\w\s]|_", " ", answer.lower()).split()
    for word in words:
        if word in LABELS:
            return word
    if not words:
        return "same"
    if encode is None:
        trigrams = [_trigrams(word) for word in words]
        scores = {
            label: max(_cosine(one, _trigrams(synonym)) for synonym in synonyms for one in trigrams)
            for label, synonyms in SYNONYMS.items()
        }
    else:
        texts = [" ".join(words), *(synonym for synonyms in SYNONYMS.values() for synonym in synonyms)]
        vectors = np.asarray(encode(texts), dtype=np.float64)
        lengths = np.maximum(np.linalg.norm(vectors, axis=1), 1e-30)
        similar = iter((vectors[1:] @ vectors[0] / lengths[1:] / lengths[0]).tolist())
        scores = {label: max(next(similar) for _ in synonyms) for label, synonyms in SYNONYMS.items()}
    best = max(scores.values())
    return "same" if not best > 0 or scores["same"] == best else max(scores, key=scores.__getitem__)


def _trigrams(word: str) -> Counter[str]:
    padded = f" {word} "
    return Counter(padded[first : first + 3] for first in range(len(padded) - 2))


def _cosine(one: Counter[str], other: Counter[str]) -> float:
    product = sum(count * other[gram] for gram, count in one.items())
    return product / math.sqrt(sum(c * c for c in one.values()) * sum(c * c for c in other.values()))


def _read(path: Path | str | None) -> dict[str, dict[str, str]]:
    if path is None or not Path(path).exists():
        return {}
    try:
        known = json.loads(Path(path).read_text(encoding="utf-8"))
        good = all(label in LABELS for labels in known.values() for label in labels.values())
    except (OSError, ValueError, AttributeError, TypeError):
        good = False
    if not good:
        raise UsageError(
            f"{shown(Path(path))} is not a file of distances ({{base: {{candidate: far, same or close}}}}); delete it "
            f"or name another one"
        )
    return known


def _write(path: Path, known: Mapping[str, Mapping[str, str]]) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(json.dumps(known, indent=1, ensure_ascii=False, sort_keys=True) + "\n", encoding="utf-8")
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise OutputError(f"{shown(path)} cannot be written ({error.strerror}); name another cache file") from error
