"""The comparison of simulated transfers with recorded ones; and how far the simulated grid is from them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from agent.realism import SAMPLE, Observed, compare, recorded, run, sample, table, write
from models.domain import SourceError
from models.events import empty_events
from models.measurements import empty_readings


def silent(_: str) -> None:
    pass


def transfers(rows: int = 1500, *, seed: int = 1, slow: float = 1.0, by_link: float = 1.0) -> pd.DataFrame:
    """Transfers on 40 links, each with a pace of its own if `by_link` is not 0."""
    draw = np.random.default_rng(seed)
    link = draw.integers(0, 40, rows) ** 2 // 40
    size = np.exp(draw.normal(17, 2, rows))
    pace = np.exp(by_link * np.random.default_rng(9).normal(0, 1, 40))[link]
    started = 1.5e9 + np.sort(draw.uniform(0, 3600, rows))
    frame = empty_events().reindex(range(rows))
    texts = frame.select_dtypes(exclude="number").columns
    frame[texts] = ""
    return frame.assign(
        type="transfer-done",
        source=pd.Series(link % 7).map("S{}_DATADISK".format).astype("str"),
        destination=pd.Series(link).map("D{}_DATADISK".format).astype("str"),
        bytes=np.round(size),
        submitted_at=started - np.round(draw.exponential(60, rows)),
        started_at=started,
        ended_at=started + slow * pace * (5 + size / 3e7) * np.exp(draw.normal(0, 0.3, rows)),
    )


def readings(values: list[float], source: str = "CERN-PROD", destination: str = "MWT2") -> pd.DataFrame:
    return pd.DataFrame(
        {
            "source_site": source, "destination_site": destination, "source_host": "", "destination_host": "",
            "quantity": "packet_loss", "value": values, "at": 1.5e9,
        }
    )  # fmt: skip


@pytest.fixture(scope="module")
def alike() -> dict[str, dict[str, dict[str, object]]]:
    one = Observed(transfers=transfers(SAMPLE), readings=readings([0.0, 0.0, 0.1]))
    other = Observed(transfers=transfers(4000, seed=2), readings=readings([0.0, 0.0, 0.1, 0.1], source="cern-prod"))
    return compare(one, other, seed=1, told=silent)


def test_what_is_alike_is_found_alike(alike):
    for name in ("log_duration", "log_bytes", "log_rate", "log_queue_delay"):
        assert alike["quantities"][name]["ks"] < 0.08
        assert set(alike["quantities"][name]["real"]) == {"q05", "q25", "q50", "q75", "q90", "q95", "q99"}
    structure = alike["structure"]
    for name in ("spearman_bytes_duration", "icc_link", "icc_source", "ten_busiest_links_share"):
        assert structure[name]["simulated"] == pytest.approx(structure[name]["real"], abs=0.12)
    assert structure["classifier_auc"]["simulated"] < 0.6
    assert structure["transfer_from_simulation"]["simulated"] < structure["transfer_from_simulation"]["real"]


def test_measurements_are_compared_between_the_sites_that_both_have(alike):
    loss = alike["quantities"]["perfsonar_loss"]
    assert loss["ks"] == pytest.approx(1 / 2 - 1 / 3)
    assert loss["real"]["q05"] == 0.0
    assert np.isnan(alike["quantities"]["perfsonar_delay"]["ks"])


def test_what_differs_is_found_to_differ():
    one = Observed(transfers=transfers(SAMPLE), readings=empty_readings())
    other = Observed(transfers=transfers(2500, seed=2, slow=6.0, by_link=0.0), readings=empty_readings())
    found = compare(one, other, seed=1, told=silent)
    assert found["quantities"]["log_duration"]["ks"] > 0.3
    assert found["quantities"]["log_bytes"]["ks"] < 0.08
    assert found["structure"]["classifier_auc"]["simulated"] > 0.8
    assert found["structure"]["icc_link"]["simulated"] < 0.1
    assert found["structure"]["icc_link"]["real"] > 0.5


def test_a_cut_is_as_large_as_the_recorded_one_and_in_order():
    cut = sample(transfers(5000), np.random.default_rng(1))
    assert len(cut) == SAMPLE
    assert cut["started_at"].is_monotonic_increasing
    assert len(sample(transfers(300), np.random.default_rng(1))) == 300


def test_the_report_is_written_and_shown(alike, tmp_path):
    write(alike, tmp_path / "out.json")
    written = json.loads((tmp_path / "out.json").read_text())
    assert set(written) == {"quantities", "structure"}
    assert written["quantities"]["perfsonar_delay"]["ks"] is None
    text = table(alike)
    for name in ("log_duration, real", "log_rate, simulated", "icc_link", "classifier_auc"):
        assert name in text


def test_data_that_is_not_there_is_named(tmp_path):
    with pytest.raises(SourceError, match=r"there is no 'rucio_transfer_done_2017-06-18\.csv'"):
        recorded(tmp_path)


@pytest.mark.slow
@pytest.mark.realdata
def test_the_simulated_grid_is_like_the_recorded_one(real_data: Path, tmp_path: Path):
    found = run(real_data, seed=1, report=tmp_path / "out.json", told=silent)
    for name in ("log_duration", "log_bytes", "log_rate"):
        assert found["quantities"][name]["ks"] <= 0.15, name
    structure = found["structure"]
    recorded_ones = {
        "spearman_bytes_duration": 0.62, "icc_link": 0.60, "icc_source": 0.34, "icc_destination": 0.39,
        "ten_busiest_links_share": 0.36, "links_once_share": 0.63,
    }  # fmt: skip
    for name, value in recorded_ones.items():
        assert structure[name]["real"] == pytest.approx(value, abs=0.006), name
        assert structure[name]["simulated"] == pytest.approx(value, abs=0.15), name
    told_apart = structure["classifier_auc"]
    assert told_apart["simulated"] <= told_apart["real"] + 0.03  # no more unlike than the recorded hour's two halves
    assert structure["transfer_from_simulation"]["simulated"] < structure["transfer_from_simulation"]["real"]
    assert (tmp_path / "out.json").exists()
