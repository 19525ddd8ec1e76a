from __future__ import annotations

import gzip
import json
import random
import shutil
import threading
from datetime import UTC, datetime, timedelta
from functools import partial
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from elasticsearch import Elasticsearch, helpers

from agent.sources import EVENTS, READINGS
from agent.sources.elasticsearch import ElasticsearchSource
from agent.sources.files import FilesSource
from models.domain import ConfigError, SourceError
from models.events import RefusalReason, event_keys
from models.measurements import decode_readings, reading_keys

NOW = datetime(2017, 7, 1, tzinfo=UTC)
START = datetime(2017, 6, 8, 9, tzinfo=UTC)
_opened = []


@pytest.fixture(autouse=True)
def _closed():
    yield
    while _opened:
        _opened.pop().close()


def opened(source):
    """Have a source closed when the test ends."""
    _opened.append(source)
    return source


def body(number, *, at):
    """A finished transfer that ended `at` seconds after START."""
    ended = START + timedelta(seconds=at)
    return {
        "request-id": f"{number:032x}",
        "src-rse": "ALPHA_DATADISK",
        "dst-rse": "BETA_DATADISK",
        "bytes": 10 + number,
        "reason": "",
        "activity": 'Analysis, "quoted"\nand broken',
        "submitted_at": f"{ended - timedelta(seconds=60):%Y-%m-%d %H:%M:%S}",
        "started_at": f"{ended - timedelta(seconds=30):%Y-%m-%d %H:%M:%S}",
        "transferred_at": f"{ended:%Y-%m-%d %H:%M:%S}",
    }


def nested(number, *, at):
    written = START + timedelta(seconds=at)
    return {"event_type": "transfer-done", "created_at": f"{written:%Y-%m-%d %H:%M:%S}", "payload": body(number, at=at)}


def drained(source, *, limit, cursor=None, now=NOW, restart=None):
    """Poll until caught up; return the pages. `restart` makes the source anew before each poll."""
    pages = []
    while True:
        source = restart() if restart else source
        page = source.poll(cursor, limit=limit, now=now)
        assert page.read <= limit
        pages.append(page)
        cursor = json.loads(json.dumps(page.cursor))  # as the ledger keeps it
        if page.caught_up:
            return pages


def rows_of(pages):
    return pd.concat([page.rows for page in pages], ignore_index=True)


def refusals_of(pages):
    return [refusal.reason for page in pages for refusal in page.refusals]


def write_csv(path, rows):
    pd.DataFrame(rows).to_csv(path, index=False)


def write_jsonl(path, documents):
    text = "".join(json.dumps(document) + "\n" for document in documents).encode()
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)


def write_parquet(path, rows):
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=7)
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(path.read_bytes()))


FILES = {
    "events.csv": lambda path: write_csv(path, [body(n, at=n) for n in range(40)]),
    "events.csv.gz": lambda path: write_csv(path, [body(n, at=n) for n in range(40)]),
    "events.jsonl": lambda path: write_jsonl(path, [nested(n, at=n) for n in range(40)]),
    "events.jsonl.gz": lambda path: write_jsonl(path, [nested(n, at=n) for n in range(40)]),
    "events.parquet": lambda path: write_parquet(path, [body(n, at=n) for n in range(40)]),
    "events.parquet.gz": lambda path: write_parquet(path, [body(n, at=n) for n in range(40)]),
    "nested.parquet": lambda path: write_parquet(path, [nested(n, at=n) for n in range(40)]),
}


def files(*paths, decoder=EVENTS):
    return opened(FilesSource(name="files", paths=paths, decoder=decoder))


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("limit", [3, 7, 40, 1000])
def test_every_kind_of_file_is_read_in_pages(tmp_path, name, limit):
    path = tmp_path / name
    FILES[name](path)
    whole = drained(files(path), limit=limit)
    restarted = drained(None, limit=limit, restart=lambda: files(path))
    for pages in (whole, restarted):
        events = rows_of(pages)
        assert refusals_of(pages) == []
        assert sum(page.read for page in pages) == 40
        assert events["request_id"].tolist() == [f"{n:032x}" for n in range(40)]
        assert events["bytes"].tolist() == [10.0 + n for n in range(40)]
        assert set(events["activity"]) == {'Analysis, "quoted"\nand broken'}
    assert drained(files(path), limit=limit, cursor=whole[-1].cursor)[0].read == 0


def test_several_files_are_read_one_after_the_other(tmp_path):
    paths = [tmp_path / name for name in FILES]
    for path in paths:
        FILES[path.name](path)
    pages = drained(files(*paths), limit=16)
    assert sum(page.read for page in pages) == 40 * len(FILES)
    assert len(set(event_keys(rows_of(pages)).tolist())) == 40
    assert [page.caught_up for page in pages] == [False] * (len(pages) - 1) + [True]


def test_files_may_come_and_go_between_two_polls(tmp_path):
    first, second, third = (tmp_path / f"{name}.jsonl" for name in "abc")
    for number, path in enumerate((first, second, third)):
        write_jsonl(path, [nested(100 * number + n, at=n) for n in range(5)])
    page = files(second).poll(None, limit=3, now=NOW)
    pages = [page, *drained(files(first, second, third), limit=3, cursor=page.cursor)]
    assert sorted(rows_of(pages)["bytes"] - 10) == [n + 100 * k for k in range(3) for n in range(5)]
    assert drained(files(third), limit=3, cursor=pages[-1].cursor)[0].read == 0


def test_a_page_is_sorted_by_time_and_stable(tmp_path):
    path = tmp_path / "events.jsonl"
    write_jsonl(path, [nested(n, at=at) for n, at in enumerate([5, 1, 5, 0, 1])])
    (page,) = drained(files(path), limit=10)
    assert (page.rows["bytes"] - 10).tolist() == [3, 1, 4, 0, 2]


def test_a_broken_line_is_one_refusal(tmp_path):
    path = tmp_path / "events.jsonl"
    good = [json.dumps(nested(n, at=n)) for n in range(4)]
    lines = [good[0], '{"event_type": "transfer-', "", good[1], "[" * 100_000, "17", "\ud800", good[2], good[3][:-1]]
    path.write_bytes("\n".join(lines).encode("utf-8", "surrogatepass"))
    for limit in (1, 2, 100):
        pages = drained(files(path), limit=limit)
        assert sum(page.read for page in pages) == 8
        assert len(rows_of(pages)) == 3
        assert sorted(refusals_of(pages)) == [RefusalReason.BROKEN_LINE] * 4 + [RefusalReason.NOT_AN_OBJECT]
    details = [refusal.detail for page in pages for refusal in page.refusals]
    assert details[0].startswith("line 2 is not JSON")


def test_a_broken_record_of_a_table_is_one_refusal(tmp_path):
    path = tmp_path / "events.csv"
    write_csv(path, [body(n, at=n) | {"activity": "x"} for n in range(3)])
    header, *rows = path.read_text().splitlines()
    swallowed = '"' + "x" * 200_000 + '"'
    path.write_text(
        "\n".join(
            [header, rows[0], "a,b", "", rows[1] + ",one,more", swallowed, rows[2].replace("10", "-7", 1), rows[2]]
        )
    )
    pages = drained(files(path), limit=2)
    assert len(rows_of(pages)) >= 3
    assert refusals_of(pages).count(RefusalReason.BROKEN_LINE) == 3
    assert sum(page.read for page in pages) == len(rows_of(pages)) + len(refusals_of(pages))


def test_a_line_without_end_does_not_fill_the_memory(tmp_path, monkeypatch):
    monkeypatch.setattr("agent.sources.formats._LONGEST_LINE", 1000)
    path = tmp_path / "events.jsonl"
    path.write_text(f"{json.dumps(nested(1, at=1))}\n{'x' * 10_500}\n{json.dumps(nested(2, at=2))}\n")
    pages = drained(files(path), limit=10)
    assert refusals_of(pages) == [RefusalReason.BROKEN_LINE]
    assert len(rows_of(pages)) == 2


def test_blank_cells_and_a_byte_order_mark_are_nothing(tmp_path):
    path = tmp_path / "events.csv"
    write_csv(path, [body(1, at=1) | {"reason": "None", "previous-request-id": "nan"}])
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    event = rows_of(drained(files(path), limit=10)).iloc[0]
    assert (event["type"], event["reason"], event["previous_request_id"]) == ("transfer-done", "", "")


def test_an_empty_file_of_lines_holds_nothing(tmp_path):
    path = tmp_path / "events.jsonl"
    path.touch()
    (page,) = drained(files(path), limit=10)
    assert (page.read, len(page.rows), page.caught_up) == (0, 0, True)


PNG = b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR" + bytes(range(256)) * 20


@pytest.mark.parametrize(
    ("name", "content", "what"),
    [
        ("absent.csv", None, "No such file"),
        ("events.txt", b"{}", "does not say what it is"),
        ("events.parquet.gz", gzip.compress(b"PAR1", mtime=0), "cannot be read"),
        ("events.parquet.gz", b"PAR1", "not compressed"),
        ("events.csv", PNG, "binary file"),
        ("events.jsonl", PNG, "binary file"),
        ("events.parquet", PNG, "is no Parquet file"),
        ("events.parquet", b"", "is no Parquet file"),
        ("events.parquet", b"PAR1" + bytes(100), "cannot be read"),
        ("events.csv", b"PAR1" + bytes(100), "is a Parquet file"),
        ("events.csv.gz", b"a,b\n1,2\n", "not compressed"),
        ("events.csv", gzip.compress(b"a,b\n", mtime=0), "is gzip"),
        ("events.jsonl.gz", gzip.compress(b"{}\n" * 50_000, mtime=0)[:12], "cannot be read"),
        ("events.csv", b"", "holds no transfer events"),
        ("events.csv", b"name,type\nx,y\n", "holds no transfer events"),
        ("events.jsonl", b"src-rse,dst-rse\nA,B\n", "no file of JSON lines"),
        ("events.jsonl", b'[\n{"event_type": 1},\n2]', "no file of JSON lines"),
        ("events.jsonl", "{}\n".encode("utf-16"), "binary file"),
    ],
)
def test_a_file_that_is_not_what_its_name_says_is_an_error_with_a_cure(tmp_path, name, content, what):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    source = files(path)
    for _ in range(2):
        with pytest.raises(SourceError, match=what) as raised:
            source.poll(None, limit=10, now=NOW)
        assert str(path) in str(raised.value)
        assert ";" in str(raised.value)


def test_a_directory_is_an_error(tmp_path):
    (tmp_path / "events.csv").mkdir()
    with pytest.raises(SourceError, match="cannot be read"):
        files(tmp_path / "events.csv").poll(None, limit=10, now=NOW)


def test_a_file_that_breaks_off_gives_what_it_has_and_then_an_error(tmp_path):
    path = tmp_path / "events.jsonl.gz"
    generator = random.Random(1)
    write_jsonl(path, [nested(generator.getrandbits(120), at=n) for n in range(3000)])
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    source, page = files(path), None
    pages = []
    with pytest.raises(SourceError, match=r"is cut or damaged after record \d+ .*fetch it again"):
        pages.extend(iter(lambda: source.poll(pages[-1].cursor if pages else None, limit=100, now=NOW), page))
    assert 500 < sum(page.read for page in pages) < 3000
    assert not any(page.caught_up for page in pages)
    with pytest.raises(SourceError, match="cut or damaged"):
        files(path).poll(pages[-1].cursor, limit=100, now=NOW)


@pytest.mark.realdata
def test_the_real_files_are_accounted_for(real_data):
    paths = [real_data / "rucio_transfer_done_2017-06-18.csv", real_data / "rucio_events_2017-06-08.jsonl"]
    pages = drained(files(*paths), limit=500)
    assert sum(page.read for page in pages) == 1355
    assert len(rows_of(pages)) == 1352
    assert refusals_of(pages) == [RefusalReason.UNKNOWN_TYPE] * 3
    pages = drained(files(real_data / "perfsonar_2016_site_pairs.csv.gz", decoder=READINGS), limit=10_000)
    assert sum(page.read for page in pages) == 83_643
    assert len(rows_of(pages)) == 246_771
    assert refusals_of(pages) == []


@pytest.mark.realdata
def test_the_real_files_hold_the_same_in_every_form(real_data, tmp_path):
    source = real_data / "rucio_transfer_done_2017-06-18.csv"
    with source.open("rb") as plain, gzip.open(tmp_path / "a.csv.gz", "wb") as packed:
        shutil.copyfileobj(plain, packed)
    table = pd.read_csv(source)
    table.to_parquet(tmp_path / "a.parquet", row_group_size=500)
    table.to_json(tmp_path / "a.jsonl", orient="records", lines=True)
    expected = rows_of(drained(files(source), limit=400))
    for name in ("a.csv.gz", "a.parquet", "a.jsonl"):
        pd.testing.assert_frame_equal(rows_of(drained(files(tmp_path / name), limit=333)), expected)


DATE = {"type": "date", "format": "strict_date_optional_time||yyyy-MM-dd HH:mm:ss||epoch_millis"}
TIMES = {
    "created_at": DATE,
    "@timestamp": DATE,
    "timestamp": DATE,
    "metadata": {"properties": {"timestamp": {"type": "long"}}},
    "word": {"type": "keyword"},
}


@pytest.fixture(scope="session")
def client(elasticsearch_url):
    client = Elasticsearch(elasticsearch_url)
    yield client
    client.close()


@pytest.fixture
def index(client, request):
    """The name of an index of the test's own; `name-*` finds it."""
    name = "".join(letter if letter.isalnum() else "_" for letter in request.node.name.lower()) + "-2017.06.08"
    client.indices.create(
        index=name, settings={"number_of_replicas": 0}, mappings={"dynamic": False, "properties": TIMES}
    )
    yield name
    client.indices.delete(index=name)


def put(client, index, documents):
    helpers.bulk(client, ({"_index": index, "_source": document} for document in documents))
    client.indices.refresh(index=index)


def server_source(url, index, **changes):
    settings = {"name": "es", "url": url, "index": index, "time_field": "created_at", "decoder": EVENTS}
    return opened(ElasticsearchSource(**(settings | changes)))


pytest_elasticsearch = pytest.mark.elasticsearch


@pytest_elasticsearch
def test_all_documents_come_in_the_order_of_their_times(client, elasticsearch_url, index):
    times = list(range(500))
    random.Random(5).shuffle(times)
    put(client, index, [nested(n, at=at) for n, at in enumerate(times)])
    source = server_source(elasticsearch_url, index.replace("08", "*"))
    pages = drained(source, limit=37)
    events = rows_of(pages)
    assert sum(page.read for page in pages) == 500
    assert events["created_at"].is_monotonic_increasing
    assert len(set(event_keys(events).tolist())) == 500


@pytest_elasticsearch
@pytest.mark.parametrize("restarts", [False, True])
def test_late_and_repeated_documents_between_polls_come_once_each(client, elasticsearch_url, index, restarts):
    generator = random.Random(11)
    made, cursor, seen, delivered = 0, None, set(), 0
    source = server_source(elasticsearch_url, index, overlap=timedelta(minutes=10))
    for step in range(25):
        written = []
        for _ in range(generator.randrange(60)):
            late = generator.choice([0, 0, 0, generator.randrange(580)])
            written.append(nested(made, at=step * 100 + generator.randrange(20) - late))
            made += 1
        repeated = generator.sample(written, k=len(written) // 5)
        put(client, index, written + repeated)
        for _ in range(generator.randrange(4)):
            page = source.poll(cursor, limit=25, now=NOW)
            delivered += page.read
            keys = event_keys(page.rows).tolist()
            if generator.random() < 0.2:  # the transaction failed: the cursor stays
                continue
            seen.update(keys)
            cursor = json.loads(json.dumps(page.cursor))
            if restarts and generator.random() < 0.5:
                source = server_source(elasticsearch_url, index, overlap=timedelta(minutes=10))
    for _ in range(2):  # one sweep may have begun before the last documents came
        pages = drained(source, limit=25, cursor=cursor)
        seen.update(event_keys(rows_of(pages)).tolist())
        cursor = pages[-1].cursor
    assert len(seen) == made
    assert sum(page.read for page in drained(source, limit=25, cursor=cursor)) == 0


@pytest_elasticsearch
def test_documents_are_delivered_once_while_nothing_goes_wrong(client, elasticsearch_url, index):
    source = server_source(elasticsearch_url, index)
    put(
        client, index, [nested(n, at=n) for n in range(30)] + [{"created_at": "2017-06-08 09:00:01", "event_type": "x"}]
    )
    first = drained(source, limit=10)
    assert (sum(page.read for page in first), len(refusals_of(first))) == (31, 1)
    again = drained(source, limit=10, cursor=first[-1].cursor)
    assert (sum(page.read for page in again), len(refusals_of(again))) == (0, 0)
    put(client, index, [nested(99, at=3)])
    late = drained(source, limit=10, cursor=again[-1].cursor)
    assert rows_of(late)["bytes"].tolist() == [109.0]
    failed = drained(source, limit=10, cursor=again[-1].cursor)  # what used the late one was rolled back
    assert 109.0 in rows_of(failed)["bytes"].tolist()


@pytest_elasticsearch
def test_many_documents_of_one_moment_do_not_stop_the_paging(client, elasticsearch_url, index):
    put(client, index, [nested(n, at=7) for n in range(2500)] + [nested(9999, at=8)])
    pages = drained(None, limit=100, restart=lambda: server_source(elasticsearch_url, index))
    keys = event_keys(rows_of(pages)).tolist()
    assert len(keys) == len(set(keys)) == 2501


@pytest_elasticsearch
def test_a_lost_point_in_time_loses_no_document(client, elasticsearch_url, index):
    put(client, index, [nested(n, at=n) for n in range(300)])
    source, cursor, seen = server_source(elasticsearch_url, index), None, set()
    for step in range(40):
        page = source.poll(cursor, limit=20, now=NOW)
        seen.update(event_keys(page.rows).tolist())
        cursor = dict(page.cursor)
        if cursor["pit"] and step % 3 == 0:
            client.close_point_in_time(id=cursor["pit"])
            put(client, index, [nested(1000 + step, at=max(0, step * 20 - 200))])
    assert len(seen) == client.count(index=index)["count"]
    assert client.count(index=index)["count"] > 303


@pytest_elasticsearch
def test_what_came_late_before_a_point_in_time_was_lost_is_found_by_the_next_sweep(client, elasticsearch_url, index):
    put(client, index, [nested(n, at=10 * n) for n in range(200)])
    source = server_source(elasticsearch_url, index, overlap=timedelta(minutes=10))
    page = source.poll(None, limit=190, now=NOW)
    client.close_point_in_time(id=page.cursor["pit"])
    put(client, index, [nested(1000, at=1420), *[nested(2000 + n, at=2000 + 10 * n) for n in range(60)]])
    first = drained(source, limit=190, cursor=page.cursor)
    second = drained(source, limit=190, cursor=first[-1].cursor)
    assert 1010.0 not in rows_of(first)["bytes"].tolist()
    assert rows_of(second)["bytes"].tolist() == [1010.0]


@pytest_elasticsearch
def test_a_document_from_the_future_does_not_hide_what_comes_before_it(client, elasticsearch_url, index):
    put(client, index, [nested(1, at=1), nested(2, at=10 * 365 * 86400)])
    source, now = server_source(elasticsearch_url, index), START + timedelta(minutes=1)
    first = drained(source, limit=10, now=now)
    assert refusals_of(first) == [RefusalReason.FROM_THE_FUTURE]
    put(client, index, [nested(3, at=50)])
    second = drained(source, limit=10, cursor=first[-1].cursor, now=now)
    assert rows_of(second)["bytes"].tolist() == [13.0]
    assert refusals_of(second) == []


@pytest_elasticsearch
@pytest.mark.parametrize("spelling", ["nested", "flat", "monit"])
def test_the_three_spellings_are_read(client, elasticsearch_url, index, spelling):
    document, time_field = nested(1, at=1), "created_at"
    if spelling == "nested":
        document, time_field = document | {"@timestamp": "2017-06-08T09:00:02.500Z"}, "@timestamp"
    elif spelling == "flat":
        document = document["payload"] | {"created_at": document["created_at"], "event_type": "transfer-done"}
    else:
        times = {"tf_submitted_at": 1496912341, "tf_started_at": 1496912371, "tf_transferred_at": 1496912401}
        plain = {
            name.replace("-", "_"): value for name, value in document["payload"].items() if not name.endswith("_at")
        }
        document = {"data": plain | times | {"event_type": "transfer-done"}, "metadata": {"timestamp": 1496912401000}}
        time_field = "metadata.timestamp"
    put(client, index, [document])
    pages = drained(server_source(elasticsearch_url, index, time_field=time_field), limit=5)
    event = rows_of(pages).iloc[0]
    assert (event["source"], event["duration"], event["created_at"]) == ("ALPHA_DATADISK", 30.0, START.timestamp() + 1)


@pytest_elasticsearch
def test_measurements_are_read(client, elasticsearch_url, index):
    documents = [
        {
            "src_host": "a.example.org",
            "dest_host": "b.example.org",
            "src_site": "ALPHA",
            "dest_site": "BETA" if n % 3 else None,
            "timestamp": int(START.timestamp() * 1000) + n * 60_000,
            **({"packet_loss": n / 100} if n % 2 else {"throughput": n * 1e6}),
        }
        for n in range(60)
    ]
    put(client, index, documents)
    source = server_source(elasticsearch_url, index, time_field="timestamp", decoder=READINGS)
    pages = drained(source, limit=11)
    expected, _ = decode_readings(documents, now=NOW)
    pd.testing.assert_frame_equal(rows_of(pages), expected)
    assert len(set(reading_keys(expected).tolist())) == 60


@pytest_elasticsearch
def test_the_first_poll_looks_back_as_far_as_it_is_told(client, elasticsearch_url, index):
    put(client, index, [nested(n, at=n * 3600) for n in range(10)])
    source = server_source(elasticsearch_url, index, lookback=timedelta(hours=3), overlap=timedelta(0))
    pages = drained(source, limit=100, now=START + timedelta(hours=9, minutes=1))
    assert (rows_of(pages)["bytes"] - 10).tolist() == [7, 8, 9]


@pytest_elasticsearch
@pytest.mark.realdata
def test_real_messages_are_accounted_for(client, elasticsearch_url, index, real_data):
    lines = (real_data / "rucio_events_2017-06-08.jsonl").read_text().splitlines()
    put(client, index, [json.loads(line) for line in lines])
    pages = drained(server_source(elasticsearch_url, index), limit=50)
    assert sum(page.read for page in pages) == 155
    assert (len(rows_of(pages)), len(refusals_of(pages))) == (152, 3)


@pytest_elasticsearch
@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"index": "nothing-of-that-name"}, "no such index"),
        ({"index": "nothing-of-that-name-*"}, "there is no index of this name"),
        ({"time_field": "transferred_on"}, "'transferred_on' a date in this index"),
        ({"time_field": "word"}, "'word' a date in this index"),
    ],
)
def test_a_wrong_index_or_field_is_an_error_with_a_cure(client, elasticsearch_url, index, changes, what):
    put(client, index, [nested(1, at=1)])
    source = server_source(elasticsearch_url, **({"index": index} | changes))
    with pytest.raises(SourceError, match=what) as raised:
        source.poll(None, limit=10, now=NOW)
    assert elasticsearch_url in str(raised.value)


@pytest_elasticsearch
def test_https_where_http_is_spoken_is_an_error_with_a_cure(elasticsearch_url):
    source = server_source(elasticsearch_url.replace("http:", "https:"), "x")
    with pytest.raises(SourceError, match="correct http or https"):
        source.poll(None, limit=10, now=NOW)


def test_an_unreachable_server_is_an_error_with_a_cure():
    source = server_source("http://127.0.0.1:9", "x")
    with pytest.raises(SourceError, match=r"http://127.0.0.1:9 .*does not answer .*check that it runs"):
        source.poll(None, limit=10, now=NOW)


@pytest.mark.parametrize(
    ("credentials", "sent"),
    [
        ({}, None),
        ({"api_key": "c2VjcmV0"}, "ApiKey c2VjcmV0"),
        ({"basic_auth": ("reader", "word")}, "Basic cmVhZGVyOndvcmQ="),
    ],
)
def test_credentials_are_sent_and_never_shown(guarded, credentials, sent):
    url, seen = guarded
    with pytest.raises(SourceError, match=r"refuses us .*set the credentials in the environment") as raised:
        server_source(url, "x", **credentials).poll(None, limit=10, now=NOW)
    assert set(seen) == {sent}
    assert not sent or sent.split()[1] not in str(raised.value)


def test_a_server_that_is_no_elasticsearch_is_an_error_with_a_cure(web_page):
    source = server_source(web_page, "x")
    with pytest.raises(SourceError, match="what answers is no Elasticsearch"):
        source.poll(None, limit=10, now=NOW)


@pytest.mark.parametrize("url", ["elsewhere", "http://127.0.0.1", "http://user:word@127.0.0.1:9200"])
def test_a_url_that_cannot_be_one_is_refused_at_once(url):
    with pytest.raises(ConfigError, match="source 'es'"):
        server_source(url, "x")


def test_certificates_that_are_not_there_are_refused_at_once(tmp_path):
    with pytest.raises(ConfigError, match=r"nowhere\.pem"):
        server_source("https://127.0.0.1:9200", "x", ca_certs=str(tmp_path / "nowhere.pem"))


def serving(handler):
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def web_page(tmp_path):
    """A web server that knows nothing of Elasticsearch."""

    class Web(SimpleHTTPRequestHandler):
        def do_POST(self):
            self.do_GET()

        def log_message(self, *_):
            pass

    yield from serving(partial(Web, directory=str(tmp_path)))


@pytest.fixture
def guarded():
    """A server that refuses everybody, and the credentials that it was sent."""
    seen = []

    class Guard(BaseHTTPRequestHandler):
        def do_POST(self):
            seen.append(self.headers.get("Authorization"))
            answer = json.dumps({"error": {"type": "security_exception", "reason": "no"}, "status": 401}).encode()
            self.send_response(401)
            self.send_header("X-Elastic-Product", "Elasticsearch")
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_):
            pass

    for url in serving(Guard):
        yield url, seen
