from __future__ import annotations

from datetime import UTC, datetime

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models import measurements
from models.domain import ConfigError
from models.events import RefusalReason, empty_events
from models.measurements import (
    PATH_COLUMNS,
    QUANTITIES,
    READING_COLUMNS,
    STANDING_COLUMNS,
    Paths,
    SiteMap,
    decode_readings,
    decode_readings_table,
    empty_readings,
    reading_keys,
)

NOW = datetime(2026, 1, 1, tzinfo=UTC)
T0 = 1_496_915_144
HOUR = 3600.0


def document(**changes):
    ends = {
        "src": "192.0.2.1",
        "dest": "2001:db8::2",
        "src_host": "ps.alpha.example.org",
        "dest_host": "ps.beta.example.org",
        "src_site": "ALPHA-SITE",
        "dest_site": "BETA",
        "src_VO": "ATLAS",
        "ipv6": False,
        "timestamp": T0 * 1000,
    }
    return {name: value for name, value in (ends | changes).items() if value is not ...}


def rows(*documents):
    readings, refusals = decode_readings(documents, now=NOW)
    assert not refusals
    return list(zip(readings["quantity"], readings["value"], strict=True))


def readings(*values):
    """Rows of (source, destination, quantity, value, at)."""
    table = pd.DataFrame(values, columns=["source_site", "destination_site", "quantity", "value", "at"])
    frame, refusals = decode_readings_table(table.assign(at=table["at"] + T0), now=NOW)
    assert not refusals
    return frame


def starting(*started, source="ALPHA_DATADISK", destination="BETA_SCRATCHDISK"):
    frame = pd.DataFrame({"source": source, "destination": destination, "started_at": np.array(started) + T0})
    return frame.astype({"source": "str", "destination": "str", "started_at": "float64"})


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"packet_loss": 0.02}, [("packet_loss", 0.02)]),
        ({"packet_loss": 0}, [("packet_loss", 0.0)]),
        ({"delay_mean": -3.5, "delay_median": 7, "delay_sd": 0.1}, [("delay_mean", -3.5), ("delay_sd", 0.1)]),
        ({"throughput": 940_000_000}, [("throughput", 9.4e8)]),
        ({"retransmits": 12}, [("retransmits", 12.0)]),
        ({"n_hops": 3, "rtts": [1, 2.5, 9.25], "destination_reached": True}, [("hops", 3.0), ("rtt", 9.25)]),
        ({"n_hops": 2, "rtts": [1, 2.5], "destination_reached": False}, [("hops", 2.0)]),
        ({"n_hops": 2, "rtts": []}, [("hops", 2.0)]),
    ],
)
def test_every_kind_of_document_is_read(fields, expected):
    assert rows(document(**fields)) == expected


def test_the_ends_and_the_time_are_kept():
    frame, _ = decode_readings([document(packet_loss=0.5)], now=NOW)
    assert tuple(frame.columns) == READING_COLUMNS
    assert frame.iloc[0].to_dict() == {
        "source_site": "ALPHA-SITE",
        "destination_site": "BETA",
        "source_host": "ps.alpha.example.org",
        "destination_host": "ps.beta.example.org",
        "quantity": "packet_loss",
        "value": 0.5,
        "at": float(T0),
    }


def test_the_camel_case_of_2017_is_read():
    old = {"srcSite": "A", "destSite": "B", "srcHost": "a", "destHost": "b", "timestamp": T0 * 1000, "packetLoss": 0.1}
    frame, _ = decode_readings([old], now=NOW)
    assert frame.loc[0, ["source_site", "destination_host", "value"]].tolist() == ["A", "b", 0.1]


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        (["x"], RefusalReason.NOT_AN_OBJECT),
        ({}, RefusalReason.NO_LINK),
        (document(src_site=None, src_host=None, src=None, packet_loss=0.1), RefusalReason.NO_LINK),
        (document(src_site="<b>", packet_loss=0.1), RefusalReason.BAD_NAME),
        (document(timestamp=None, packet_loss=0.1), RefusalReason.BAD_TIME),
        (document(timestamp="2031-01-01T00:00:00", packet_loss=0.1), RefusalReason.FROM_THE_FUTURE),
        (document(), RefusalReason.NO_VALUE),
        (document(packet_loss=1.5), RefusalReason.NO_VALUE),
        (document(packet_loss=float("nan")), RefusalReason.NO_VALUE),
        (document(throughput=-1), RefusalReason.NO_VALUE),
        (document(throughput=10**400), RefusalReason.NO_VALUE),
        (document(delay_mean="fast", delay_sd=True), RefusalReason.NO_VALUE),
    ],
)
def test_what_cannot_be_used_is_refused_with_its_reason(broken, reason):
    frame, refusals = decode_readings([broken, document(packet_loss=0.1)], now=NOW)
    assert [refusal.reason for refusal in refusals] == [reason]
    assert len(frame) == 1


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
FIELDS = st.sampled_from([*document(), "packet_loss", "delay_mean", "throughput", "rtts", "dst", "quantity", "value"])


@settings(max_examples=60, deadline=None)
@given(st.lists(ANYTHING | st.dictionaries(FIELDS, ANYTHING).map(lambda changes: document(**changes)), max_size=4))
def test_anything_that_json_can_hold_is_accounted_for(documents):
    frame, refusals = decode_readings(documents, now=NOW)
    per_document = [len(decode_readings([one], now=NOW)[0]) for one in documents]
    assert len(refusals) == per_document.count(0)
    assert len(frame) == sum(per_document)
    assert tuple(frame.columns) == READING_COLUMNS
    assert frame[["value", "at"]].notna().all(axis=None)
    paths = Paths()
    paths.absorb(frame)
    assert len(paths.attach(starting(0.0))) == 1


def test_no_documents_give_no_readings():
    frame, refusals = decode_readings([], now=NOW)
    assert refusals == []
    pd.testing.assert_frame_equal(frame, empty_readings())


def test_a_reading_has_one_key_in_two_documents():
    frame, _ = decode_readings([document(packet_loss=0.1), document(packet_loss=0.1), document(throughput=5)], now=NOW)
    keys = reading_keys(frame)
    assert keys[0] == keys[1] != keys[2]


@pytest.mark.realdata
def test_every_real_reading_is_used(real_data):
    table = pd.read_csv(real_data / "perfsonar_2016_site_pairs.csv.gz", dtype=str)
    frame, refusals = decode_readings_table(table, now=NOW)
    assert refusals == []
    counts = frame["quantity"].value_counts().to_dict()
    assert counts == {"packet_loss": 82182, "delay_mean": 81694, "delay_sd": 81694, "throughput": 1201}
    assert set(frame["quantity"]) <= set(QUANTITIES)
    assert (frame["source_host"] == "").all()
    pd.testing.assert_frame_equal(decode_readings_table(frame, now=NOW)[0], frame)
    some = table.head(200)
    from_documents, _ = decode_readings(some.astype(object).where(some.notna(), None).to_dict("records"), now=NOW)
    pd.testing.assert_frame_equal(from_documents, frame.head(len(from_documents)))


@pytest.fixture
def site_map(tmp_path):
    path = tmp_path / "sites.txt"
    path.write_text("# as registered, ATLAS\nALPHA-SITE ALPHA\nalpha-two\tALPHA-T2\n\nBETA,BETA-LCG2\nGAMMA GAMMA\n")
    return SiteMap.load(path)


@pytest.mark.parametrize(
    ("rse", "site"),
    [
        ("ALPHA_DATADISK", "ALPHA"),
        ("alpha_datadisk", "ALPHA"),
        ("ALPHA-T2_DATADISK", "ALPHA-T2"),
        ("ALPHA-T2", "ALPHA-T2"),
        ("ALPHA-T3-TEST_DATADISK", "ALPHA"),
        ("ALPHA2_DATADISK", "ALPHA2"),
        ("DELTA-LCG2_MCTAPE", "DELTA-LCG2"),
        ("DELTA", "DELTA"),
    ],
)
def test_an_rse_belongs_to_the_site_that_its_name_starts_with(site_map, rse, site):
    assert site_map.of_rse(rse) == site


def test_a_perfsonar_site_is_looked_up_without_regard_to_case(site_map):
    assert [site_map.of_site(name) for name in ("alpha-site", "ALPHA-TWO", "beta", "Alpha-T2", "Other")] == [
        "ALPHA",
        "ALPHA-T2",
        "BETA-LCG2",
        "ALPHA-T2",
        "Other",
    ]


def test_a_map_that_is_none_is_refused_with_its_line(tmp_path):
    path = tmp_path / "sites.txt"
    with pytest.raises(ConfigError, match="cannot be read"):
        SiteMap.load(path)
    path.write_text("A B\nA B C\n")
    with pytest.raises(ConfigError, match=r"line 2: 'A B C' is not two names"):
        SiteMap.load(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="cannot be read"):
        SiteMap.load(path)


@pytest.mark.realdata
def test_the_real_map_places_most_real_storage_elements(real_data):
    sites = SiteMap.load(real_data / "rse_site_mapping_2017.txt")
    rses = (real_data / "atlas_rses_2017.txt").read_text().split()
    assert sites.of_rse("AUSTRALIA-ATLAS_DATADISK") == sites.of_site("AUSTRALIA-ATLAS") == "Australia-ATLAS"
    assert sites.of_rse("CERN-PROD_DATADISK") == sites.of_site("CERN-PROD") == "CERN-PROD"
    assert len({sites.of_rse(rse) for rse in rses}) < len(rses) / 4


def test_a_path_shows_the_last_reading_strictly_before_the_start():
    paths = Paths()
    paths.absorb(readings(("ALPHA", "BETA", "packet_loss", 0.1, 10), ("ALPHA", "BETA", "packet_loss", 0.2, 20)))
    loss = paths.attach(starting(9, 10, 10.5, 20, 20.001, 20.002))["path_loss"]
    assert np.array_equal(loss, [np.nan, np.nan, 0.1, 0.1, 0.2, 0.2], equal_nan=True)


def test_readings_grow_old():
    paths = Paths()
    paths.absorb(
        readings(
            ("ALPHA", "BETA", "packet_loss", 0.1, 0),
            ("ALPHA", "BETA", "delay_mean", 5, 0),
            ("ALPHA", "BETA", "throughput", 1e9, 0),
        )
    )
    attached = paths.attach(starting(6 * HOUR, 6 * HOUR + 1, 7 * 24 * HOUR, 7 * 24 * HOUR + 1))
    assert attached["path_loss"].notna().tolist() == [True, False, False, False]
    assert attached["path_delay_ms"].notna().tolist() == [True, False, False, False]
    assert attached["path_throughput_bps"].notna().tolist() == [True, True, True, False]


def test_a_negative_delay_is_no_delay_and_outdates_the_one_before():
    paths = Paths()
    paths.absorb(readings(("ALPHA", "BETA", "delay_mean", 5, 0), ("ALPHA", "BETA", "delay_mean", -5, 10)))
    assert paths.attach(starting(5, 15))["path_delay_ms"].isna().tolist() == [False, True]


def test_a_path_has_a_direction_and_transfers_that_did_not_start_none():
    paths = Paths()
    paths.absorb(readings(("ALPHA", "BETA", "packet_loss", 0.1, 0)))
    there = paths.attach(starting(5, np.nan))
    back = paths.attach(starting(5, source="BETA_DATADISK", destination="ALPHA_DATADISK"))
    assert np.array_equal(there["path_loss"], [0.1, np.nan], equal_nan=True)
    assert back[list(PATH_COLUMNS)].isna().all(axis=None)
    assert len(paths.attach(empty_events())) == 0


def delays(there, back, *, at=(0.0, 0.0)):
    """Paths with a delay in each direction, None for none."""
    paths, pair = Paths(), [("ALPHA", "BETA", there, at[0]), ("BETA", "ALPHA", back, at[1])]
    paths.absorb(readings(*((a, b, "delay_mean", value, when) for a, b, value, when in pair if value is not None)))
    return paths


@pytest.mark.parametrize(
    ("there", "back", "rtt"),
    [
        (20.0, 22.0, 42.0),
        (-40.0, 82.0, 42.0),  # a clock that is 61 ms off
        (141.0, -99.0, 42.0),
        (-40.0, 30.0, np.nan),  # clocks that moved between the two
        (20.0, None, 40.0),
        (None, 30.0, 60.0),
        (5_000.0, None, 400.0),  # a clock, and no route
        (-5.0, None, np.nan),
        (None, None, np.nan),
    ],
)
def test_the_round_trip_is_told_by_clocks_that_are_off(there, back, rtt):
    standing = delays(there, back).standing(starting(60.0))
    np.testing.assert_equal(standing["path_rtt_ms"], [rtt])
    assert np.isnan(standing["path_rtt_age_s"]).tolist() == [np.isnan(rtt)]


def test_a_round_trip_is_as_old_as_the_older_of_its_delays():
    standing = delays(20.0, 22.0, at=(0.0, 50.0)).standing(starting(60.0, 6 * HOUR + 10))
    assert standing["path_rtt_age_s"].tolist() == [60.0, 6 * HOUR - 40.0]
    assert standing["path_rtt_ms"].tolist() == [42.0, 44.0]  # the delay there holds no longer
    assert standing["path_delay_ms"][0] == 20.0


def test_how_well_a_path_is_known():
    """Held against what the columns are said to be, reading by reading."""
    draw = np.random.default_rng(5)
    at = np.round(np.sort(draw.uniform(0, 3 * 86_400, 400)), 3)
    quantity = draw.choice(["packet_loss", "throughput"], 400)
    value = np.where(quantity == "packet_loss", draw.random(400), 1e9 * draw.random(400))
    frame = readings(*(("ALPHA", "BETA", *one) for one in zip(quantity, value, at, strict=True)))
    paths = Paths()
    for start in range(0, 400, 23):
        paths.absorb(frame.iloc[start : start + 23])
    moments = np.concatenate([draw.uniform(0, 12 * 86_400, 60), at[::20]])
    standing = paths.standing(starting(*moments))
    for name, what, holds_s, recent_s in (
        ("path_loss", "packet_loss", 6 * HOUR, HOUR),
        ("path_throughput", "throughput", 7 * 86_400, 86_400),
    ):
        own, values = at[quantity == what], value[quantity == what]
        for row, moment in enumerate(moments):
            earlier = np.flatnonzero((own < moment) & (moment - own <= holds_s))
            recent = earlier[moment - own[earlier] <= recent_s]
            used = recent if len(recent) else earlier[-1:]
            expected = (
                values[used].mean() if len(used) else np.nan,
                len(used),
                moment - own[earlier[-1]] if len(earlier) else np.nan,
            )
            found = [standing[f"{name}_{part}"][row] for part in ("recent", "count", "age_s")]
            np.testing.assert_allclose(found, expected, atol=2e-3, rtol=1e-6)


def test_a_path_that_nobody_measured_has_no_readings():
    standing = delays(20.0, 22.0).standing(starting(60.0, source="GAMMA_DATADISK"))
    assert set(standing) == {*PATH_COLUMNS, *STANDING_COLUMNS}
    for name, values in standing.items():
        np.testing.assert_equal(values, [0.0 if name.endswith("_count") else np.nan])


def test_late_and_repeated_readings_come_to_the_same():
    generator = np.random.default_rng(3)
    sites = ["ALPHA", "BETA", "GAMMA"]
    frame = readings(
        *(
            (*generator.choice(sites, 2), generator.choice(["packet_loss", "delay_mean"]), generator.random(), second)
            for second in range(300)
        )
    )
    events = pd.concat(
        [
            starting(*generator.uniform(0, 400, 40), source=f"{a}_DATADISK", destination=f"{b}_X")
            for a in sites
            for b in sites
        ],
        ignore_index=True,
    )
    once, pieces = Paths(), Paths()
    once.absorb(frame)
    shuffled = frame.sample(frac=1, random_state=1)
    for start in range(0, 300, 37):
        pieces.absorb(shuffled.iloc[start : start + 60])
    expected = once.attach(events)
    assert expected["path_loss"].notna().sum() > 100
    pd.testing.assert_frame_equal(pieces.attach(events), expected)
    pd.testing.assert_frame_equal(pd.DataFrame(pieces.standing(events)), pd.DataFrame(once.standing(events)))


def test_the_site_of_a_host_is_learnt_from_other_documents(site_map):
    told = document(throughput=5)
    untold = document(packet_loss=0.3, src_site=None, dest_site=None)
    paths = Paths(site_map)
    paths.absorb(decode_readings([untold], now=NOW)[0])
    assert paths.attach(starting(5, destination="BETA-LCG2_DATADISK"))["path_loss"].isna().all()
    frame, _ = decode_readings([told, untold], now=NOW)
    assert paths.locate(frame)["source_site"].tolist() == ["ALPHA", "ALPHA"]
    paths.absorb(frame)
    assert paths.attach(starting(5, destination="BETA-LCG2_DATADISK"))["path_loss"].tolist() == [0.3]


def test_a_reset_forgets():
    paths = Paths()
    paths.absorb(readings(("ALPHA", "BETA", "packet_loss", 0.1, 0)))
    paths.reset()
    assert paths.attach(starting(5))["path_loss"].isna().all()


def test_memory_is_bounded_and_the_newest_stay(monkeypatch):
    monkeypatch.setattr(measurements, "_MOST_READINGS", 50)
    monkeypatch.setattr(measurements, "_MOST_HOSTS", 5)
    paths = Paths()
    for second in range(0, 1000, 20):
        paths.absorb(readings(*((f"S{second + i}", "BETA", "packet_loss", 0.5, second + i) for i in range(20))))
        hosts = [document(src_host=f"h{second + i}", packet_loss=0.1) for i in range(20)]
        paths.absorb(decode_readings(hosts, now=NOW)[0])
    table = paths._tables["path_loss"]
    assert len(table) <= 110
    assert len(paths._codes) <= 110
    assert len(paths._hosts) <= 5
    assert paths.attach(starting(1000, source="S999_DATADISK"))["path_loss"].tolist() == [0.5]
    assert paths.attach(starting(1000, source="S10_DATADISK"))["path_loss"].isna().all()
