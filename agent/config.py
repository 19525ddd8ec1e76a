"""The configuration: `config.yaml`, checked as a whole, with every problem named by its key path."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import quote, urlsplit

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from agent.desk.text import clean
from models import yamlfile
from models.domain import BlastRadius, ConfigError, Entity, EntityKind, Safety
from ranking.reward import AUTONOMY

DEFAULT_PATH = Path("config.yaml")
LEDGER_PASSWORD = "GRIDMEDIC_LEDGER_PASSWORD"  # noqa: S105 - the variable's name, not a password
ELASTICSEARCH_API_KEY = "GRIDMEDIC_ELASTICSEARCH_API_KEY"
ELASTICSEARCH_PASSWORD = "GRIDMEDIC_ELASTICSEARCH_PASSWORD"  # noqa: S105 - the variable's name, not a password
SLACK_BOT_TOKEN = "SLACK_BOT_TOKEN"  # noqa: S105 - the variable's name, not a token
SLACK_APP_TOKEN = "SLACK_APP_TOKEN"  # noqa: S105 - the variable's name, not a token

_NO_SETTING = "there is no such setting; see config.yaml for those that there are"
_SECRET_KEY = re.compile(r"(?i)(password|passwd|secret|token|api_?key|credential)")
_SECRET_VALUE = re.compile(r"^(xox[abprs]-|xapp-)|://[^/@\s:]+:[^/@\s]+@")


def operator_name(name: str) -> str:
    """Return `name` if the ledger may know somebody by it; raise ValueError if not."""
    if not name or clean(name, 60) != name:
        raise ValueError("an operator's name is one line of 1 to 60 characters that can be seen")
    if name.casefold() == AUTONOMY:
        raise ValueError(f"{AUTONOMY!r} stands for choices that no operator made; take another name")
    return name


def _http_url(url: str) -> str:
    try:
        parts = urlsplit(url)
        whole = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port is not None
    except ValueError:
        whole = False
    if not whole:
        raise ValueError("a URL has a scheme, a host and a port, as http://127.0.0.1:8850 has")
    return url


def _entity(text: str) -> str:
    entity = Entity.parse(text)
    if entity.kind in {EntityKind.LINK, EntityKind.NETWORK} and not all((entity.link.source, entity.link.destination)):
        raise ValueError(f"it needs two ends, written {entity.kind}:A>B")
    return text


def _list_of_downtimes(place: str) -> str:
    if "://" in place:
        try:
            parts = urlsplit(place)
            whole = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
        except ValueError:
            whole = False
        if not whole:
            raise ValueError(
                "a list of downtimes is a file's path, or a URL that begins with http:// or https:// and a host"
            )
    return place


def _utc(moment: datetime) -> datetime:
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)


OperatorName = Annotated[str, AfterValidator(operator_name)]
HttpUrl = Annotated[str, AfterValidator(_http_url)]
Word = Annotated[str, Field(min_length=1)]
EntityText = Annotated[str, AfterValidator(_entity)]
ListOfDowntimes = Annotated[Word, AfterValidator(_list_of_downtimes)]
Moment = Annotated[datetime, AfterValidator(_utc)]  # in UTC where it names no zone


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class GridSettings(_Section):
    kind: Literal["simulated"] = "simulated"
    url: HttpUrl = "http://127.0.0.1:8850"
    dry_run: bool = False
    scenario: Word = "demo"


class SimulatedSource(_Section):
    kind: Literal["simulated"]
    url: HttpUrl = "http://127.0.0.1:8850"


class FilesSource(_Section):
    kind: Literal["files"]
    paths: Annotated[list[Word], Field(min_length=1)]


class ElasticsearchSource(_Section):
    kind: Literal["elasticsearch"]
    url: HttpUrl
    index: Word
    time_field: Word = "@timestamp"
    user: str | None = None
    ca_certs: str | None = None
    overlap_s: Annotated[float, Field(ge=0, le=86_400)] = 600.0
    lookback_h: Annotated[float, Field(gt=0)] = 24.0


SourceSettings = Annotated[SimulatedSource | FilesSource | ElasticsearchSource, Field(discriminator="kind")]


class DowntimeSettings(_Section):
    lists: list[ListOfDowntimes] | None = None
    every_min: Annotated[float, Field(gt=0, le=1440)] = 10.0


class Silence(_Section):
    entity: EntityText
    begin: Annotated[Moment, Field(alias="from")]
    end: Annotated[Moment, Field(alias="to")]
    why: Word

    @model_validator(mode="after")
    def _ends_after_it_begins(self) -> Self:
        if not self.begin < self.end:
            raise ValueError(f"a silence ends after it begins; it is from {self.begin} to {self.end}")
        return self


class PollSettings(_Section):
    every_s: Annotated[float, Field(gt=0, le=3600)] = 5.0
    limit: Annotated[int, Field(ge=1, le=200_000)] = 5_000


class RetrainSettings(_Section):
    enabled: bool = True
    at: Annotated[str, Field(pattern=r"^([01]\d|2[0-3]):[0-5]\d$")] = "03:00"
    window_days: Annotated[float, Field(gt=0, le=366)] = 14.0
    keep_versions: Annotated[int, Field(ge=1)] = 10
    deadline_h: Annotated[float, Field(gt=0, le=48)] = 6.0


class ForecastSettings(_Section):
    model: str = "default"
    retrain: RetrainSettings = RetrainSettings()

    @property
    def pinned(self) -> bool:
        """Whether the model is named, so that nothing is promoted over it."""
        return self.model != "default"


class DetectionSettings(_Section):
    alarm_budget: Annotated[float, Field(gt=0, lt=0.5)] = 0.001


class RemedySettings(_Section):
    outside: list[str] = []
    disabled: list[str] = []
    deadline_s: Annotated[float, Field(gt=0, le=3600)] = 60.0


class AutonomySettings(_Section):
    enabled: bool = False
    safety_cap: Safety = Safety.REVERSIBLE
    blast_radius_cap: BlastRadius = BlastRadius.LINK
    min_trust: Annotated[float, Field(ge=0, le=1)] = 0.8
    min_confidence: Annotated[float, Field(ge=0, le=1)] = 0.7
    max_actions_per_hour: Annotated[int, Field(ge=0)] = 10
    max_targets: Annotated[int, Field(ge=1)] = 20
    ineffective_before: Annotated[int, Field(ge=1)] = 2


class ConsoleSettings(_Section):
    enabled: bool = True
    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=1, le=65535)] = 8860
    operator: OperatorName = "operator"


class SlackSettings(_Section):
    channel: str = "#grid-operations"
    operators: dict[Word, OperatorName] = {}


class DeskSettings(_Section):
    console: ConsoleSettings = ConsoleSettings()
    slack: SlackSettings = SlackSettings()


class LogSettings(_Section):
    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["text", "json"] = "text"


class Config(_Section):
    """Everything that can be set; `base` is the directory that relative paths start at."""

    base: Path = Field(default=Path(), exclude=True)
    state: Path = Path("var")
    ledger: str = "sqlite:///var/ledger.db"
    grid: GridSettings = GridSettings()
    events: Annotated[list[SourceSettings], Field(min_length=1)] = [SimulatedSource(kind="simulated")]
    measurements: list[SourceSettings] = [SimulatedSource(kind="simulated")]
    site_map: Path | None = None
    downtimes: DowntimeSettings = DowntimeSettings()
    silences: list[Silence] = []
    poll: PollSettings = PollSettings()
    forecast: ForecastSettings = ForecastSettings()
    detection: DetectionSettings = DetectionSettings()
    remedies: RemedySettings = RemedySettings()
    autonomy: AutonomySettings = AutonomySettings()
    desk: DeskSettings = DeskSettings()
    log: LogSettings = LogSettings()

    def path(self, path: Path | str) -> Path:
        return self.base / path

    @property
    def state_dir(self) -> Path:
        return self.path(self.state)

    @property
    def ledger_url(self) -> str:
        """The ledger's URL with an absolute path (SQLite) or with the password from the environment (PostgreSQL)."""
        if self.ledger.startswith("sqlite:///"):
            return f"sqlite:///{self.path(self.ledger.removeprefix('sqlite:///')).absolute()}"
        password = os.environ.get(LEDGER_PASSWORD)
        parts = urlsplit(self.ledger)
        if password is None or "@" not in parts.netloc:
            return self.ledger
        user, _, host = parts.netloc.rpartition("@")
        return parts._replace(netloc=f"{user}:{quote(password, safe='')}@{host}").geturl()


def load(path: Path | None = None) -> Config:
    """Read the configuration; raise ConfigError that lists all problems by key path. No path: `config.yaml`."""
    where = path or DEFAULT_PATH
    content, unread = read(where)
    return parse(content, base=where.parent, where=str(where), unread=unread)


def read(where: Path) -> tuple[Mapping[str, Any], list[str]]:
    """What the file holds, not yet checked, and what in it cannot be read; raise ConfigError if that is no settings by name."""
    try:
        text = where.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{where} does not exist; name the file with --config, or copy config.yaml here") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{where} cannot be read: {error}; give a readable UTF-8 YAML file") from None
    try:
        content, problems = yamlfile.read(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{where} is not YAML: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise ConfigError(f"{where} is nested too deeply; see config.yaml for what settings look like") from None
    if content is None:
        content = {}
    if not isinstance(content, dict):
        raise ConfigError(f"{where} holds a {type(content).__name__} where settings by name are expected")
    return content, [_without_secret(problem) for problem in problems]


def parse(content: Mapping[str, Any], *, base: Path, where: str, unread: Sequence[str] = ()) -> Config:
    """Check settings that were read from `where`; raise ConfigError with one line for each problem, the `unread` ones too."""
    config, problems = checked(content, base=base, unread=unread)
    if problems:
        raise complaint(problems, where=where)
    return config


def checked(content: Mapping[str, Any], *, base: Path, unread: Sequence[str] = ()) -> tuple[Config, list[str]]:
    """The configuration, with the default for whole sections that are unsound, and every problem by key path.

    Of what was `unread` in the file nothing else is said.
    """
    try:
        problems = [*unread, *_secrets(content, ())]
    except RecursionError:
        return Config(base=base), ["settings are nested too deeply, or hold themselves"]
    told = {_path(problem) for problem in unread}
    named = {str(key): value for key, value in content.items()}
    if "base" in named:
        problems.append(f"base: {_NO_SETTING}")
    try:
        config = Config.model_validate({**named, "base": base})
    except ValidationError as error:
        problems += [line for line in map(_line, error.errors()) if _path(line) not in told]
        unsound = {entry["loc"][0] for entry in error.errors()}
        sound = {key: value for key, value in named.items() if key not in unsound}
        config = Config.model_validate({**sound, "base": base})
    return config, problems + _impossible(config)


def _path(problem: str) -> str:
    return problem.partition(": ")[0]


def _without_secret(problem: str) -> str:
    """The same without the value, where its key may name a secret."""
    return problem.partition(" (it is ")[0] if _SECRET_KEY.search(_path(problem)) else problem


def complaint(problems: Sequence[str], *, where: str) -> ConfigError:
    listed = "\n".join(f"  {problem}" for problem in problems)
    return ConfigError(f"{where} has {len(problems)} problem{'s' if len(problems) > 1 else ''}:\n{listed}")


def _line(entry: Any) -> str:  # noqa: ANN401 - pydantic's ErrorDetails is a TypedDict of Any
    # A discriminated union puts its tag into the path; the reader knows it as the list's entry alone.
    kinds = {"simulated", "files", "elasticsearch"}
    path = ".".join(str(part) for part in entry["loc"] if part not in kinds)
    message = entry["msg"].removeprefix("Value error, ")
    if entry["type"] == "extra_forbidden":
        return f"{path}: {_NO_SETTING}"
    value = entry.get("input")
    hidden = isinstance(value, (dict, list)) or _SECRET_VALUE.search(str(value)) or _SECRET_KEY.search(path)
    shown = "" if hidden else f" (it is {value!r})"
    return f"{path}: {message}{shown}"


def _secrets(value: object, path: tuple[str, ...]) -> Iterator[str]:
    """Secrets that stand in the file. The value itself is not repeated: the message may end up in a log."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            if _SECRET_KEY.search(str(key)):
                yield f"{'.'.join((*path, str(key)))}: secrets come from the environment, not from this file"
            else:
                yield from _secrets(inner, (*path, str(key)))
    elif isinstance(value, list):
        for place, inner in enumerate(value):
            yield from _secrets(inner, (*path, str(place)))
    elif isinstance(value, str) and _SECRET_VALUE.search(value):
        yield f"{'.'.join(path)}: this holds a secret; leave it out and set it in the environment"


def _can_be_split(url: str) -> bool:
    try:
        urlsplit(url)
    except ValueError:
        return False
    return True


def _impossible(config: Config) -> list[str]:
    problems = []
    if config.desk.console.host not in {"127.0.0.1", "::1", "localhost"}:
        problems.append(
            f"desk.console.host: {config.desk.console.host!r} is not a loopback address; the console has no login of its own"
        )
    if not config.ledger.startswith(("sqlite:///", "postgresql+psycopg://")):
        problems.append("ledger: its address must begin with sqlite:/// or postgresql+psycopg://")
    elif not _can_be_split(config.ledger):
        problems.append("ledger: this is no address; write postgresql+psycopg://user@host:port/database")
    if config.autonomy.safety_cap is Safety.DESTRUCTIVE:
        problems.append("autonomy.safety_cap: destructive remedies always ask; use disruptive at the most")
    if config.state_dir.exists() and not config.state_dir.is_dir():
        problems.append(f"state: {str(config.state)!r} is not a directory")
    return problems
