"""Putting the parts together as the configuration says. The only place that knows every class."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path

from agent import config as settings
from agent.archive import Archive
from agent.calendar import Calendar
from agent.choice import Chooser
from agent.experience import Experience
from agent.feeds import Feeds
from agent.guards import Guards
from agent.incumbent import Incumbent
from agent.loop import Agent
from agent.outbox import Outbox
from agent.settlement import Settlement
from agent.sources import EVENTS, READINGS, Decoder, Source
from agent.sources.cric import decode
from agent.sources.downtimes import DowntimeList, DowntimesFile, DowntimesUrl
from agent.sources.elasticsearch import ElasticsearchSource
from agent.sources.files import FilesSource
from agent.sources.recorded import RecordedEvents, RecordedReadings
from agent.sources.simulated import SimulatedDowntimes, SimulatedSource
from agent.watch import Watch
from detectors.covers import Cover
from detectors.threshold import DynamicThreshold
from models.domain import ConfigError, Entity, GridmedicError
from models.forecaster import Forecaster
from models.measurements import Paths, SiteMap
from models.registry import default_model, load_model
from models.versions import Versions
from remedies.catalog import Catalog
from remedies.contract import BASELINE
from remedies.executors import ChildProcess, Executor, GridSpec
from remedies.policy import Limits
from remedies.runner import Runner
from storage.ledger import Ledger

REPLAY_PAGE = 2_000  # events of one pass


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """The agent that a daemon runs, and what stands beside it; `closing` closes all of it."""

    agent: Agent
    ledger: Ledger
    catalog: Catalog
    closing: ExitStack


def service(config: settings.Config) -> Service:
    """Everything that the configuration asks for. Raises the GridmedicError of whatever cannot be had."""
    config.state_dir.mkdir(parents=True, exist_ok=True)
    catalog = catalog_of(config)
    incumbent = None if config.forecast.pinned else Incumbent(versions(config))
    forecaster = incumbent.first() if incumbent else Forecaster.load(model_directory(config))
    with ExitStack() as stack:
        ledger = Ledger.open(config.ledger_url)
        stack.callback(ledger.close)
        agent = build(
            stack,
            ledger=ledger,
            catalog=catalog,
            events=sources(config, config.events, "events", EVENTS),
            measurements=sources(config, config.measurements, "measurements", READINGS),
            eyes=watch_by(forecaster, site_map_of(config), config.detection.alarm_budget),
            executor=ChildProcess(grid=grid_spec(config), deadline_s=config.remedies.deadline_s),
            limits=limits(config),
            page=config.poll.limit,
            acting=True,
            dry_run=config.grid.dry_run,
            bandit_file=config.state_dir / "bandit.vw",
            calendar=calendar(config),
            incumbent=incumbent,
            archive=archive(config) if retrains(config) else None,
        )
        return Service(agent=agent, ledger=ledger, catalog=catalog, closing=stack.pop_all())


def problems(config: settings.Config) -> list[str]:
    """What cannot be used of all that the configuration names. Nothing is connected to."""
    found: list[str] = []
    parts: tuple[tuple[str, Callable[[], object]], ...] = (
        ("", lambda: found.extend(catalog_of(config).problems)),
        ("site_map: ", lambda: site_map_of(config)),
        ("forecast.model: ", lambda: load_model(model_directory(config))),
        ("events: ", lambda: _try_out(sources(config, config.events, "events", EVENTS))),
        ("measurements: ", lambda: _try_out(sources(config, config.measurements, "measurements", READINGS))),
        *(("downtimes.lists: ", partial(_try_out_list, one)) for one in downtime_lists(config)),
    )
    for key, part in parts:
        try:
            part()
        except GridmedicError as error:
            found += f"{key}{error}".splitlines()
    return found


def _try_out(opened: Sequence[Source]) -> None:
    for source in opened:
        source.close()


def _try_out_list(listed: DowntimeList) -> None:
    """Read a list in a file; raise the GridmedicError of what in it cannot be used, a line for each downtime."""
    if isinstance(listed, DowntimesFile):
        refused = decode(listed.read(), where=listed.name, sites=SiteMap()).refusals
        if refused:
            raise ConfigError("\n".join(refusal.detail for refusal in refused))


def recorded(
    stack: ExitStack,
    files: Sequence[Path],
    *,
    measurements: Sequence[Path],
    site_map: Path | None,
    model: Path | None,
    state: Path,
) -> Agent:
    """An agent over recorded files that acts on nothing, with its ledger under `state`."""
    events = RecordedEvents(FilesSource(name="events", paths=files, decoder=EVENTS))
    readings = FilesSource(name="measurements", paths=measurements, decoder=READINGS)
    sites = SiteMap.load(site_map) if site_map else SiteMap()
    ledger = Ledger.open(f"sqlite:///{state / 'ledger.db'}")
    stack.callback(ledger.close)
    return build(
        stack,
        ledger=ledger,
        catalog=Catalog.load([]),
        events=[events],
        measurements=[RecordedReadings(readings, events)] if measurements else [],
        eyes=watch(model or default_model(), sites, settings.DetectionSettings().alarm_budget),
        executor=ChildProcess(),
        limits=Limits(),
        page=REPLAY_PAGE,
        acting=False,
        dry_run=True,
        bandit_file=None,
    )


def build(
    stack: ExitStack,
    *,
    ledger: Ledger,
    catalog: Catalog,
    events: Sequence[Source],
    measurements: Sequence[Source],
    eyes: Watch,
    executor: Executor,
    limits: Limits,
    page: int,
    acting: bool,
    dry_run: bool,
    bandit_file: Path | None,
    chooser: type[Chooser] = Chooser,
    calendar: Calendar | None = None,
    incumbent: Incumbent | None = None,
    archive: Archive | None = None,
) -> Agent:
    """An agent of these parts; `stack` closes what it opens. Not `acting`: decisions are recorded, and that is all.

    Without a `calendar` nothing is announced.
    """
    calendar = calendar or Calendar()
    for source in (*events, *measurements):
        stack.callback(source.close)
    with ledger.begin(write=False) as tx:
        experience = Experience(catalog.cards, tx, file=bandit_file)
    stack.callback(experience.close)
    runner, guards = Runner(executor), Guards(cards=catalog.cards, limits=limits, calendar=calendar)
    return Agent(
        ledger=ledger,
        events=events,
        measurements=measurements,
        watch=eyes,
        settlement=Settlement(
            ledger=ledger, cards=catalog.cards, runner=runner, guards=guards, experience=experience, dry_run=dry_run
        ),
        chooser=chooser(
            cards=catalog.cards,
            catalogue_hash=catalog.hash,
            runner=runner,
            guards=guards,
            experience=experience,
            acting=acting,
        ),
        outbox=Outbox(ledger=ledger, cards=catalog.cards, runner=runner) if acting else None,
        limit=page,
        calendar=calendar,
        feeds=Feeds([source.name for source in (*events, *measurements)], calendar),
        incumbent=incumbent,
        archive=archive,
    )


def watch(model: Path, site_map: SiteMap, alarm_budget: float) -> Watch:
    return watch_by(Forecaster.load(model), site_map, alarm_budget)


def watch_by(forecaster: Forecaster, site_map: SiteMap, alarm_budget: float) -> Watch:
    return Watch(
        forecaster=forecaster,
        threshold=DynamicThreshold(alarm_budget=alarm_budget),
        paths=Paths(site_map),
    )


def model_directory(config: settings.Config) -> Path:
    """The model that a daemon would begin with; raise ModelError if that cannot be told."""
    if config.forecast.pinned:
        return config.path(config.forecast.model)
    known = versions(config)
    return known.directory_of(known.in_service())


def versions(config: settings.Config) -> Versions:
    return Versions(config.state_dir / "models")


def archive(config: settings.Config) -> Archive:
    """Transfers that the ledger no longer keeps."""
    return Archive(config.state_dir / "transfers", days=config.forecast.retrain.window_days)


def retrains(config: settings.Config) -> bool:
    """Whether challengers are trained in service."""
    return config.forecast.retrain.enabled and not config.forecast.pinned


def site_map_of(config: settings.Config) -> SiteMap:
    return SiteMap.load(config.path(config.site_map)) if config.site_map else SiteMap()


def calendar(config: settings.Config) -> Calendar:
    """What is announced: by the lists that the configuration names, and its silences."""
    silences = [
        Cover(
            entity=Entity.parse(one.entity),
            start=one.begin.timestamp(),
            end=one.end.timestamp(),
            why=f"silence: {one.why}",
        )
        for one in config.silences
    ]
    every = timedelta(minutes=config.downtimes.every_min)
    return Calendar(downtime_lists(config), silences, every=every, sites=site_map_of(config))


def downtime_lists(config: settings.Config) -> list[DowntimeList]:
    """The lists of announced downtimes; where none are named, those of the simulated grids that are watched."""
    if config.downtimes.lists is None:
        urls = dict.fromkeys(entry.url for entry in config.events if isinstance(entry, settings.SimulatedSource))
        return [SimulatedDowntimes(url) for url in urls]
    return [
        DowntimesUrl(place) if "://" in place else DowntimesFile(config.path(place))
        for place in dict.fromkeys(config.downtimes.lists)
    ]


def limits(config: settings.Config) -> Limits:
    """The policy's limits as configured."""
    chosen = config.autonomy.model_dump()
    return Limits(autonomy=chosen.pop("enabled"), **chosen, disabled=frozenset(config.remedies.disabled))


def grid_spec(config: settings.Config) -> GridSpec:
    """How a remedy's process opens the grid."""
    return GridSpec(factory="agent.grid:open_grid", settings=config.grid.model_dump(mode="json"))


def catalog_of(config: settings.Config) -> Catalog:
    """The remedies that are configured; raise ConfigError with a line for each problem of their names."""
    outside, disabled, wrong = config.remedies.outside, config.remedies.disabled, []
    try:
        catalog = Catalog.load(outside)
    except ConfigError as error:
        wrong.append(str(error))
        catalog = Catalog.load()
    if BASELINE in disabled:
        wrong.append(f"remedies.disabled: {BASELINE!r} cannot be disabled: it is what every other remedy must beat")
    unknown = sorted(set(disabled).difference(catalog.cards, outside))
    if unknown:
        listed, known = ", ".join(map(repr, unknown)), ", ".join(sorted(catalog.cards))
        wrong.append(f"remedies.disabled: there is no remedy {listed}; known: {known}")
    if wrong:
        raise ConfigError("\n".join(wrong))
    return catalog


def sources(
    config: settings.Config, chosen: Sequence[settings.SourceSettings], what: str, decoder: Decoder
) -> list[Source]:
    """The sources of events or of measurements, each with a name of its own: its cursor's in the ledger."""
    return [_source(config, entry, f"{what}-{place}-{entry.kind}", decoder) for place, entry in enumerate(chosen)]


def _source(config: settings.Config, entry: settings.SourceSettings, name: str, decoder: Decoder) -> Source:
    match entry:
        case settings.SimulatedSource():
            return SimulatedSource(name=name, url=entry.url, decoder=decoder)
        case settings.FilesSource():
            return FilesSource(name=name, paths=_expanded(config, entry.paths), decoder=decoder)
        case settings.ElasticsearchSource():
            return ElasticsearchSource(
                name=name,
                url=entry.url,
                index=entry.index,
                time_field=entry.time_field,
                decoder=decoder,
                api_key=os.environ.get(settings.ELASTICSEARCH_API_KEY),
                basic_auth=_basic_auth(entry.user),
                ca_certs=entry.ca_certs,
                overlap=timedelta(seconds=entry.overlap_s),
                lookback=timedelta(hours=entry.lookback_h),
            )


def _basic_auth(user: str | None) -> tuple[str, str] | None:
    if user is None:
        return None
    password = os.environ.get(settings.ELASTICSEARCH_PASSWORD)
    if password is None:
        raise ConfigError(
            f"a source names the user {user!r}, but {settings.ELASTICSEARCH_PASSWORD} is not in the environment"
        )
    return user, password


def _expanded(config: settings.Config, patterns: Sequence[str]) -> list[Path]:
    """Files of paths and patterns, in order; a pattern that finds nothing now may find something later."""
    found: list[Path] = []
    for pattern in patterns:
        path = config.path(pattern)
        wild = any(mark in pattern for mark in "*?[")
        found += sorted(Path(path.anchor or ".").glob(str(path.relative_to(path.anchor or ".")))) if wild else [path]
    return found
