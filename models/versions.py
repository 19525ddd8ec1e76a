"""Versions of the forecaster in a directory: which there are, which is in service, and how that came to be.

Each version is a directory of its own that never changes. One small file says which is in service; it is replaced as a whole, so
whoever reads it, and whenever a writer dies, finds either what was or what is. The shipped model stands before all of them.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from enum import StrEnum
from pathlib import Path

from pydantic import AwareDatetime, BaseModel, ConfigDict, ValidationError

from models.domain import ModelError
from models.forecaster import Forecaster
from models.registry import MANIFEST, WEIGHTS, Manifest, default_model, load_model

IN_SERVICE, HISTORY, LOCK = "in-service.json", "history.jsonl", "lock"
SHIPPED = "shipped"  # what people call the model that no version has replaced

_NAME = re.compile(r"\d{8}T\d{6}Z-[0-9a-f]{8}")
_PART = ".part-"  # what is being written or removed
_REMEMBERED = 100  # versions that a rollback may go back over


class Standing(BaseModel):
    """Which version is in service (None: the shipped one), since when and why, and those before it, the last one last."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: str | None = None
    since: AwareDatetime | None = None
    why: str = "nothing was promoted yet"
    before: tuple[str | None, ...] = ()


class What(StrEnum):
    """What can befall versions: the first two change what is in service, the others are what a retraining ended with."""

    PROMOTED = "promoted"
    ROLLED_BACK = "rolled-back"
    SUCCEEDED = "succeeded"
    KEPT_OUT = "kept-out"
    SKIPPED = "skipped"
    FAILED = "failed"


PUT_INTO_SERVICE = frozenset({What.PROMOTED, What.ROLLED_BACK})


class Event(BaseModel):
    """One line of the history."""

    model_config = ConfigDict(frozen=True)

    at: AwareDatetime
    what: What
    version: str | None
    why: str


def called(version: str | None) -> str:
    """The name of a version as people write it."""
    return SHIPPED if version is None else version


class Versions:
    """The versions in a directory. Several processes may use it at once: writers take turns, readers wait for nobody."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def names(self) -> list[str]:
        """Every version that is there as a whole, the oldest first."""
        try:
            found = [path.name for path in self.directory.iterdir() if _NAME.fullmatch(path.name)]
        except FileNotFoundError:
            return []
        except OSError as error:
            raise ModelError(f"{self.directory} cannot be read ({error.strerror}); correct its rights") from error
        return sorted(found)

    def directory_of(self, version: str | None) -> Path:
        """The directory to load a version from; None is the shipped one."""
        return default_model() if version is None else self.directory / version

    def manifest(self, version: str | None) -> Manifest:
        """Raise ModelError naming file and cure if the version cannot be used."""
        return load_model(self.directory_of(version))[0]

    def standing(self) -> Standing:
        """What is in service; raise ModelError if the file that says so was tampered with."""
        path = self.directory / IN_SERVICE
        cure = "say anew which it is by `gridmedic models promote VERSION`"
        try:
            return Standing.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            return Standing()
        except ValidationError as error:
            raise ModelError(
                f"{path} does not say which version is in service ({error.errors()[0]['msg']}); {cure}"
            ) from error
        except OSError as error:
            raise ModelError(f"{path} cannot be read ({error.strerror}); correct its rights, or {cure}") from error

    def in_service(self) -> str | None:
        """The version in service; None is the shipped one."""
        return self.standing().version

    def add(self, trained: Path, *, at: datetime) -> str:
        """Take a copy of a trained model in, and return its name; weights that are here already are not taken twice.

        Raise ModelError if it cannot be used by this gridmedic.
        """
        with self._writing():
            part = self.directory / f"{_PART}incoming"
            part.mkdir()
            for file in (WEIGHTS, MANIFEST):
                _copy(trained / file, part / file)
            made = Forecaster.load(part).manifest.weights_hash  # what is checked is what will be loaded
            for name in self.names():
                if self._weights(name) == made:
                    return name
            name = f"{at:%Y%m%dT%H%M%SZ}-{made[:8]}"
            part.rename(self.directory / name)
            _settle(self.directory)
        return name

    def promote(self, version: str | None, *, why: str, at: datetime, instead_of: Standing | None = None) -> None:
        """Put a version into service; None is the shipped one.

        Raise ModelError, and leave what is in service, if the version cannot be used, or if by now another is in service than
        the caller saw (`instead_of`).
        """
        with self._writing():
            try:
                standing: Standing | None = self.standing()
            except ModelError:  # this is how to mend it
                standing = None
            if instead_of is not None and standing != instead_of:
                raise ModelError(
                    "another version came into service meanwhile; compare with that one before you promote"
                )
            self._check(version)
            if standing is not None and standing.version == version:
                return
            before = () if standing is None else (*standing.before, standing.version)[-_REMEMBERED:]
            self._put(Standing(version=version, since=at, why=why, before=before), What.PROMOTED)

    def rollback(self, *, why: str, at: datetime) -> str | None:
        """Put the version before the one in service back, and return it; again goes further back. None is the shipped one.

        Raise ModelError, and leave what is in service, if there is none before it, or if that cannot be used.
        """
        with self._writing():
            standing = self.standing()
            there = {None, *self.names()}
            before = [version for version in standing.before if version in there]
            if not before:
                raise ModelError(
                    f"{self.directory}: nothing was in service before {called(standing.version)}; "
                    "`gridmedic models list` shows what can be promoted"
                )
            version = before.pop()
            self._check(version)
            self._put(Standing(version=version, since=at, why=why, before=tuple(before)), What.ROLLED_BACK)
        return version

    def record(self, event: Event) -> None:
        """Add to the history."""
        with self._writing():
            self._append(event)

    def history(self) -> list[Event]:
        """All that befell, the oldest first; lines that a crash or a full disk cut short are left out."""
        try:
            lines = (self.directory / HISTORY).read_bytes().splitlines()
        except OSError:
            return []
        events = []
        for line in lines:
            try:
                events.append(Event.model_validate_json(line))
            except ValidationError:
                continue
        return events

    def prune(self, *, keep: int) -> list[str]:
        """Remove all but the newest versions, the one in service and the one before it; return those that went."""
        with self._writing():
            names, standing = self.names(), self.standing()
            before = [version for version in standing.before if version in names]
            kept = {*names[len(names) - keep :], standing.version, *before[-1:]}
            gone = [name for name in names if name not in kept]
            for name in gone:
                (self.directory / name).rename(self.directory / f"{_PART}{name}")
            self._sweep()
        return gone

    def _weights(self, version: str) -> str | None:
        """The hash of a version's weights; None if it cannot be used."""
        try:
            return self.manifest(version).weights_hash
        except ModelError:
            return None

    def _check(self, version: str | None) -> None:
        if version is not None and not (_NAME.fullmatch(version) and (self.directory / version).is_dir()):
            known = ", ".join([SHIPPED, *self.names()])
            raise ModelError(f"{self.directory} has no version {version!r}; it has {known}")
        Forecaster.load(self.directory_of(version))

    def _put(self, standing: Standing, what: What) -> None:
        part = self.directory / f"{_PART}{IN_SERVICE}"
        with part.open("w", encoding="utf-8") as file:
            file.write(standing.model_dump_json(indent=1) + "\n")
            file.flush()
            os.fsync(file.fileno())
        part.replace(self.directory / IN_SERVICE)
        _settle(self.directory)
        assert standing.since is not None  # noqa: S101 - both callers say when
        self._append(Event(at=standing.since, what=what, version=standing.version, why=standing.why))

    def _append(self, event: Event) -> None:
        """Add a line; should the last one be torn, that stays a line of its own."""
        with (self.directory / HISTORY).open("ab+") as file:
            torn = file.tell() and (file.seek(-1, os.SEEK_END), file.read(1))[1] != b"\n"
            file.write((b"\n" if torn else b"") + event.model_dump_json().encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Be the only writer, and say what is wrong if the disk is."""
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            with (self.directory / LOCK).open("a") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                self._sweep()
                yield
        except OSError as error:
            raise ModelError(
                f"{self.directory} cannot be written ({error.strerror or error}); see to its rights and to space on its disk"
            ) from error

    def _sweep(self) -> None:
        """Remove what a writer that died has left; who holds the lock knows that nobody is at it."""
        for path in self.directory.glob(f"{_PART}*"):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()


def _copy(source: Path, target: Path) -> None:
    try:
        content = source.read_bytes()
    except OSError as error:
        raise ModelError(
            f"{source} cannot be read ({error.strerror}); name a directory that `gridmedic train --out` has written"
        ) from error
    with target.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _settle(directory: Path) -> None:
    """Have the names in a directory survive a loss of power."""
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
