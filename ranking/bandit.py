"""The ranking: a contextual bandit that starts from the authors' priors and is a fold over the ledger's feedback rows.

Vowpal Wabbit estimates a cost per remedy and incident (`mtr`), and SquareCB turns the costs into probabilities. Everything
that it is taught goes through one chain of hashes, so that two bandits of the same hash rank alike.

Not thread-safe, not even to rank: one owner, the loop. The features are hashed into 2**18 weights, about 2 MB.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import structlog
import vowpalwabbit

from models.domain import ModelError, RemedyCard
from ranking import features
from ranking.features import Context
from ranking.reward import PRICES, Lesson

__all__ = ["Bandit", "Lesson", "Ranking"]

log = structlog.get_logger()

# Beside what the design starts from: no weights that remedies share (--ignore_linear, --noconstant), so that a rating moves
# the remedy that it is about and no other; and smaller steps without normalisation (--adaptive --invariant, -l), because
# with the defaults a single rating moves a cost all the way. docs/ranking.md has the measurements.
ARGUMENTS = (
    "--cb_explore_adf --squarecb --gamma_scale 100 --cb_type mtr -q ca --ignore_linear c --noconstant"
    " --adaptive --invariant -l 0.03 -b 18 --quiet"
)
# A lesson's weight is one over its propensity. Below this it weighs no more: a recommendation by a rare draw may count
# twice as much as another rating, not a hundred times.
MIN_PROPENSITY = 0.5
# One pseudo-example a remedy, with no context, repeated: it sets what the remedy costs before anything is known of the kind of incident,
# exactly and for all kinds. It weighs 1,000 ratings, so the weight it sets hardly moves; the ratings move the others.
PRIOR_PROPENSITY = 0.001
PRIOR_PASSES = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranking:
    """A slate in the order asked for: probabilities (sum 1, each > 0) and expected costs (0 helps .. 1)."""

    remedies: tuple[str, ...]
    probabilities: tuple[float, ...]
    expected_costs: tuple[float, ...]

    @property
    def best(self) -> int:
        """Index of the most probable remedy, which is the one of the lowest expected cost; by name where they are equal."""
        return min(range(len(self.remedies)), key=lambda i: (-self.probabilities[i], self.remedies[i]))


class Bandit:
    """Ranks remedies for an incident's context; learns from lessons in the order of their rows.

    `last_row` is the last feedback row that it contains, 0 at first. `hash` names everything that it was taught.
    """

    def __init__(self, cards: Mapping[str, RemedyCard]) -> None:
        self._cards = cards
        self._workspace: Any = vowpalwabbit.Workspace(ARGUMENTS)
        self.last_row = 0
        self.hash = _start()
        for lines in _priors(cards):
            self._workspace.learn(lines)
            self.hash = _chained(self.hash, lines)

    def rank(self, context: Context, remedies: Sequence[str]) -> Ranking:
        """Rank a slate of distinct remedies of the catalogue; the order in which they are given does not matter.

        Raises ValueError for an empty slate, a remedy that is named twice or unknown, and a context that is no context.
        """
        self._check(remedies)
        slate = sorted(remedies)
        parsed = self._workspace.parse(features.example(context, slate))
        try:
            probabilities = self._workspace.predict(parsed)
            # What `mtr` expects an action to cost stands in its parsed example; SquareCB made the probabilities from it.
            costs = [action.get_partial_prediction() for action in parsed[1:]]
        finally:
            self._workspace.finish_example(parsed)
        total = math.fsum(probabilities)
        if not all(map(math.isfinite, (*probabilities, *costs))) or not 0.99 < total < 1.01:
            raise ModelError(f"the bandit ranks {slate!r} as {probabilities!r}; delete its file, it will be rebuilt")
        place = {name: i for i, name in enumerate(slate)}
        return Ranking(
            remedies=tuple(remedies),
            probabilities=tuple(probabilities[place[name]] / total for name in remedies),
            expected_costs=tuple(min(1.0, max(0.0, costs[place[name]])) for name in remedies),
        )

    @staticmethod
    def draw(ranking: Ranking, key: str) -> int:
        """Draw an index by the ranking's probabilities; the same key and probabilities draw the same remedy always."""
        digest = hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=8, person=b"ranking.draw").digest()
        point = int.from_bytes(digest, "big") / 2**64
        by_name = sorted(range(len(ranking.remedies)), key=ranking.remedies.__getitem__)
        for index in by_name:
            point -= ranking.probabilities[index]
            if point < 0.0:
                return index
        return by_name[-1]  # the probabilities sum to a hair less than 1

    def learn(self, lessons: Iterable[Lesson]) -> None:
        """Learn from lessons in the order of their rows, each row once; ValueError for a row out of order."""
        for lesson in lessons:
            if lesson.feedback.row <= self.last_row:
                raise ValueError(
                    f"feedback row {lesson.feedback.row} comes after row {self.last_row} was learned;"
                    " give lessons in the order of their rows, each once"
                )
            lines = _taught(lesson)
            if lines:
                self._workspace.learn(lines)
                self.hash = _chained(self.hash, lines)
            self.last_row = lesson.feedback.row

    @classmethod
    def rebuild(cls, cards: Mapping[str, RemedyCard], lessons: Iterable[Lesson]) -> Self:
        """A bandit from the priors and all the lessons there are."""
        bandit = cls(cards)
        bandit.learn(lessons)
        return bandit

    @classmethod
    def restore(cls, path: Path, cards: Mapping[str, RemedyCard], lessons: Sequence[Lesson]) -> Self:
        """`rebuild`, sparing what the file at `path` contains already; rebuilt where the file does not fit them."""
        try:
            bandit = cls.load(path, cards)
        except ModelError as error:
            log.info("bandit-rebuilt", why=str(error))
            return cls.rebuild(cards, lessons)
        expected = _start()
        for lines in _priors(cards):
            expected = _chained(expected, lines)
        for lesson in lessons:
            if lesson.feedback.row <= bandit.last_row:
                expected = _chained(expected, _taught(lesson))
        if bandit.hash != expected:
            bandit.close()
            log.warning("bandit-rebuilt", why=f"{path} learned from other feedback than the ledger holds")
            return cls.rebuild(cards, lessons)
        bandit.learn(lesson for lesson in lessons if lesson.feedback.row > bandit.last_row)
        return bandit

    def save(self, path: Path) -> None:
        """Write the weights to `path` and what they are to `path` + `.json`; a crash in between leaves a file that is
        not loaded. Raises OSError where it cannot write.
        """
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as scratch:
            weights, sidecar = Path(scratch) / "weights", Path(scratch) / "sidecar"
            self._workspace.save(str(weights))
            about = {
                "last_row": self.last_row,
                "hash": self.hash,
                "catalogue": _catalogue(self._cards),
                "recipe": _start(),
                "weights": hashlib.blake2b(weights.read_bytes()).hexdigest(),
            }
            sidecar.write_text(json.dumps(about, indent=1))
            for file in (weights, sidecar):
                with file.open("rb") as handle:
                    os.fsync(handle.fileno())
            weights.replace(path)
            sidecar.replace(_sidecar(path))

    @classmethod
    def load(cls, path: Path, cards: Mapping[str, RemedyCard]) -> Self:
        """Read what `save` wrote. Raises ModelError for a file that is missing, broken, or of another catalogue."""
        about = _about(path)
        for name, value in (("recipe", _start()), ("catalogue", _catalogue(cards))):
            if about[name] != value:
                raise ModelError(f"{path} was made for another {name}; rebuild it from the ledger")
        bandit = cls(cards)
        bandit._workspace.finish()
        # The file holds every option; one that is given again would be taken as a second value.
        bandit._workspace = vowpalwabbit.Workspace(arg_list=["-i", str(path), "--quiet"])
        bandit.last_row, bandit.hash = about["last_row"], about["hash"]
        return bandit

    def close(self) -> None:
        """Free Vowpal Wabbit's memory; nothing may be asked afterwards. Twice is once."""
        self._workspace.finish()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _check(self, remedies: Sequence[str]) -> None:
        if not remedies:
            raise ValueError("there is no remedy to rank; a slate has one at least")
        for name in remedies:
            if name not in self._cards:
                raise ValueError(f"{name!r} is no remedy of the catalogue: {', '.join(sorted(self._cards))}")
        if len(set(remedies)) < len(remedies):
            raise ValueError(f"{list(remedies)!r} names a remedy twice; rank each once")


def _priors(cards: Mapping[str, RemedyCard]) -> Iterator[list[str]]:
    """Pseudo-examples from which the first ranking follows the authors."""
    for _ in range(PRIOR_PASSES):
        for name, card in sorted(cards.items()):
            yield features.example({}, [name], (1.0 - card.prior, PRIOR_PROPENSITY))


def _taught(lesson: Lesson) -> list[str]:
    """What Vowpal Wabbit is given for a lesson; nothing for one that teaches nothing.

    Only the remedy that the feedback is about: `mtr` would scale the step by the mean size of slates, and learn nothing
    more from the others.
    """
    cost = lesson.cost
    if cost is None:
        return []
    probability = 1.0 if lesson.feedback.propensity is None else max(MIN_PROPENSITY, lesson.feedback.propensity)
    return features.example(lesson.context, [lesson.remedy], (cost, probability))


def _start() -> str:
    """Hash of how a bandit is taught: the same code taught the same rows is the same bandit."""
    prices = [f"{source} {value} {price.cost}" for (source, value), price in PRICES.items()]
    return _digest("\n".join([vowpalwabbit.__version__, ARGUMENTS, f"features {features.VERSION}", *prices]))


def _chained(chain: str, lines: Sequence[str]) -> str:
    return _digest("\n".join([chain, *lines])) if lines else chain


def _catalogue(cards: Mapping[str, RemedyCard]) -> str:
    """Hash of what the bandit takes from the catalogue."""
    return _digest(json.dumps([(name, card.prior) for name, card in sorted(cards.items())]))


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _sidecar(path: Path) -> Path:
    return path.with_name(path.name + ".json")


def _about(path: Path) -> dict[str, Any]:
    """Read the sidecar and hold the weights against it."""
    try:
        about = json.loads(_sidecar(path).read_text())
        weights = hashlib.blake2b(path.read_bytes()).hexdigest()
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read ({error}); rebuild it from the ledger") from error
    words = ("hash", "catalogue", "recipe", "weights")
    if (
        not isinstance(about, dict)
        or not all(isinstance(about.get(name), str) for name in words)
        or type(about.get("last_row")) is not int
    ):
        raise ModelError(f"{_sidecar(path)} does not say what {path.name} is; rebuild it from the ledger")
    if about["weights"] != weights:
        raise ModelError(f"{path} is not the file that {_sidecar(path).name} describes; rebuild it from the ledger")
    return about
