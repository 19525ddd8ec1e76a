"""A trained forecaster on disk: a directory with `weights.npz` and the `manifest.json` that says what it is."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from models.domain import ModelError
from models.features import FEATURES_VERSION

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
MANIFEST, WEIGHTS = "manifest.json", "weights.npz"

Weights = Mapping[str, NDArray[np.float32]]


class TrainingData(BaseModel):
    """What a forecaster was trained on."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    transfers: int = Field(description="finished transfers used, those held out included")
    links: int
    first_start: float = Field(description="seconds since 1970-01-01 UTC")
    last_end: float
    hash: str = Field(description="of the rows used, in order")


class Manifest(BaseModel):
    """What a forecaster is, what it learnt from, and how good it was on transfers that it had not seen."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    features_version: int
    quantiles: tuple[float, ...] = QUANTILES
    units: Annotated[int, Field(gt=0, description="of the LSTM")]
    code_version: str
    parent: str | None = Field(default=None, description="weights_hash of the model that training went on from")
    seed: int
    epochs: int = Field(description="passes over the data until the best one")
    data: TrainingData
    metrics: Mapping[str, Mapping[str, float]] = Field(
        description="of model, constant and link_median on the held-out last part of the data, before it was learnt from, too"
    )
    calibration: Mapping[str, float] = Field(
        description="surprise (models.metrics.surprise) that a share of the held-out transfers stayed below, by share"
    )
    weights_hash: str


def default_model() -> Path:
    """The directory of the model that ships with this package."""
    return Path(__file__).parent / "default"


def code_version() -> str:
    """Return the version of this package as installed, `unknown` when it runs uninstalled."""
    try:
        return metadata.version("gridmedic")
    except metadata.PackageNotFoundError:
        return "unknown"


def save_model(directory: Path, manifest: Manifest, weights: Weights) -> Manifest:
    """Write a model; the manifest comes last, so that one without the other is noticed. Return it as written."""
    directory.mkdir(parents=True, exist_ok=True)
    unfinished = directory / f"{WEIGHTS}.part"
    with unfinished.open("wb") as file:
        np.savez(file, **{name: array.astype(np.float32) for name, array in weights.items()})  # type: ignore[arg-type]  # numpy types its own option, not the names
    written = manifest.model_copy(update={"weights_hash": _hash(unfinished)})
    unfinished.replace(directory / WEIGHTS)
    unfinished = directory / f"{MANIFEST}.part"
    unfinished.write_text(written.model_dump_json(indent=2) + "\n", encoding="utf-8")
    unfinished.replace(directory / MANIFEST)
    return written


def load_model(directory: Path) -> tuple[Manifest, dict[str, NDArray[np.float32]]]:
    """Read a model; raise ModelError naming the file and the cure if it cannot be used by this version."""
    manifest = _read_manifest(directory / MANIFEST)
    path = directory / WEIGHTS
    try:
        if _hash(path) != manifest.weights_hash:
            raise ModelError(
                f"{path} is not the file that {MANIFEST} describes; train again, or copy both files together"
            )
        with np.load(path, allow_pickle=False) as archive:
            return manifest, {name: archive[name].astype(np.float32) for name in archive.files}
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise ModelError(
            f"{path} cannot be read ({error}); train again with `gridmedic train --out {directory}`"
        ) from error


def _read_manifest(path: Path) -> Manifest:
    cure = f"train one with `gridmedic train --out {path.parent}`, or leave the setting out to use the one that ships"
    try:
        manifest = Manifest.model_validate_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ModelError(f"{path} does not exist, so {path.parent} holds no forecaster; {cure}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(f"{path} cannot be read ({error}); {cure}") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the whole file"
        raise ModelError(f"{path} is not a forecaster's manifest ({where}: {first['msg']}); {cure}") from error
    if manifest.features_version != FEATURES_VERSION:
        raise ModelError(
            f"{path} is of features version {manifest.features_version!r}, this gridmedic has {FEATURES_VERSION!r}; {cure}"
        )
    if manifest.quantiles != QUANTILES:
        raise ModelError(f"{path} forecasts the quantiles {manifest.quantiles!r} instead of {QUANTILES!r}; {cure}")
    return manifest


def _hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
