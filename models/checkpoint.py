"""Where a training stands, in memory and on disk, so that one that is broken off can go on."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Arrays = Mapping[str, NDArray[Any]]


@dataclass(kw_only=True)
class Course:
    """How far a training has come: epochs that are over, blocks of the next one, and the best weights so far."""

    epoch: int = 0
    block: int = 0
    turn: int = 0  # steps down the gradient
    loss: float = np.nan  # of what was held out, after the last epoch
    best_loss: float = np.inf
    best_epoch: int = 0
    best: Arrays = field(default_factory=dict)

    def judge(self, loss: float, weights: Arrays) -> None:
        """End an epoch with that held-out loss."""
        self.epoch, self.block, self.loss = self.epoch + 1, 0, loss
        if loss < self.best_loss:
            self.best_loss, self.best_epoch, self.best = loss, self.epoch, weights

    @property
    def told(self) -> str:
        return f"held-out pinball {self.loss:.4f}, best {self.best_loss:.4f}" if self.epoch else ""


_NUMBERS = ("epoch", "block", "turn", "loss", "best_loss", "best_epoch")
_READABLE = (OSError, ValueError, KeyError, zipfile.BadZipFile)


class Checkpoint:
    """A file that holds a course and whatever arrays go with it. `mark` says of which training: another's is not taken."""

    def __init__(self, path: Path, *, mark: str) -> None:
        self._path = path
        self._mark = mark

    def save(self, course: Course, arrays: Arrays) -> None:
        numbers = {f"course.{name}": np.array(getattr(course, name)) for name in _NUMBERS}
        best = {f"best.{name}": array for name, array in course.best.items()}
        unfinished = self._path.with_suffix(".part")
        with unfinished.open("wb") as file:
            np.savez(file, mark=np.array(self._mark), **numbers, **best, **arrays)  # type: ignore[arg-type]  # numpy types its own option, not the names
        unfinished.replace(self._path)

    def load(self) -> tuple[Course, dict[str, NDArray[Any]]] | None:
        """Return what was saved; None where nothing was, or what was is of another training or damaged."""
        try:
            with np.load(self._path, allow_pickle=False) as archive:
                arrays = {name: archive[name] for name in archive.files}
            if str(arrays.pop("mark")) != self._mark:
                return None
            course = Course(**{name: arrays.pop(f"course.{name}").item() for name in _NUMBERS})
        except _READABLE:
            return None
        course.best = {
            name.removeprefix("best."): arrays.pop(name) for name in list(arrays) if name.startswith("best.")
        }
        return course, arrays
