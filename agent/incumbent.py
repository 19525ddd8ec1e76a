"""The version of the forecaster that is in service: the one at hand, and another as soon as that was promoted."""

from __future__ import annotations

import structlog

from models.domain import ModelError
from models.forecaster import Forecaster
from models.versions import Standing, Versions, called

log = structlog.get_logger()


class Incumbent:
    """Follows what the versions' directory says is in service."""

    def __init__(self, versions: Versions) -> None:
        self._versions = versions
        self._seen: Standing | str = Standing()  # what was said last, or what was wrong with it
        self._version: str | None = None

    def first(self) -> Forecaster:
        """Load what is in service; raise ModelError if it cannot be: there is none at hand to go on with."""
        standing = self._versions.standing()
        forecaster = Forecaster.load(self._versions.directory_of(standing.version))
        self._seen, self._version = standing, standing.version
        return forecaster

    def successor(self) -> Forecaster | None:
        """Load what is in service by now if that is not the one at hand; None if it is, or if it cannot be loaded.

        What cannot be loaded is said once, and not tried again before another is put into service.
        """
        said = self._said()
        if said == self._seen:
            return None
        self._seen = said
        if isinstance(said, str):
            self._complain(said)
            return None
        if said.version == self._version:
            return None
        try:
            forecaster = Forecaster.load(self._versions.directory_of(said.version))
        except ModelError as error:
            self._complain(str(error))
            return None
        log.info("model-swapped", version=called(said.version), before=called(self._version), why=said.why)
        self._version = said.version
        return forecaster

    def _said(self) -> Standing | str:
        try:
            return self._versions.standing()
        except ModelError as error:
            return str(error)

    def _complain(self, error: str) -> None:
        log.error(
            "model-unusable",
            error=error,
            at_hand=called(self._version),
            cure="the version at hand stays in service; put another in its place by `gridmedic models rollback` or `promote`",
        )
