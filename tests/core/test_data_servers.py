"""Sources behind a server: the same rows from databases, S3 and the web, and words for what is wrong with them."""

from collections.abc import Iterator
from pathlib import Path

import fsspec
import pandas as pd
import pytest
import requests

from forge_core.data.batches import BATCH_ROWS
from forge_core.data.ingest import ingest
from forge_core.data.sources import open_source
from forge_core.errors import (
    ConfigurationError,
    DataNotFound,
    EmptyData,
    SchemaViolation,
    ServiceUnavailable,
    UnreadableData,
)
from forge_core.policy import DataPolicy
from forge_core.storage import Storage
from tests.servers import http_server, postgres_server, s3_server
from tests.source_rows import CONTRACT, gathered, into_database, made_rows, same, write


@pytest.fixture(scope="module")
def rows() -> pd.DataFrame:
    return made_rows()


@pytest.fixture(scope="module")
def postgres() -> Iterator[str]:
    with postgres_server() as url:
        yield url


def test_a_database_gives_the_same_rows_by_table_and_by_query(tmp_path: Path, rows: pd.DataFrame) -> None:
    url = f"sqlite:///{tmp_path}/rows.db"
    into_database(rows.assign(moment=rows["moment"].dt.tz_localize(None)), url, "my rows")
    same(gathered(url, table="my rows"), rows)
    same(gathered(f"{url}?table=my+rows"), rows)
    same(gathered(url, query="SELECT * FROM \"my rows\" WHERE word LIKE '%' OR word IS NULL"), rows)


@pytest.mark.postgres
def test_postgresql_gives_the_same_rows(postgres: str, rows: pd.DataFrame) -> None:
    driver = postgres.replace("postgresql:", "postgresql+psycopg:")
    into_database(rows, driver, "rows")
    same(gathered(postgres, table="rows"), rows)
    same(gathered(postgres, table="public.rows"), rows)
    same(gathered(postgres, query="SELECT * FROM rows WHERE word LIKE '%' OR word IS NULL"), rows)


@pytest.mark.postgres
def test_postgresql_types_keep_their_gaps(postgres: str) -> None:
    query = (
        "SELECT * FROM (VALUES (1::bigint, 1.5::numeric, true, date '2024-01-02', '{\"a\": [1, 2]}'::jsonb, 'x'), "
        "(NULL, NULL, NULL, NULL, NULL, NULL)) AS t(i, d, b, day, j, w)"
    )
    (batch,) = open_source(postgres, query=query).batches()
    assert [str(t) for t in batch.dtypes] == ["Int64", "float64", "boolean", "datetime64[s]", "str", "str"]
    assert batch["j"].iloc[0] == '{"a":[1,2]}'


@pytest.mark.postgres
def test_postgresql_says_what_is_wrong_and_never_the_password(postgres: str) -> None:
    secret = postgres.replace("postgres@", "postgres:hunter2@")
    assert "hunter2" not in open_source(secret, table="x").address
    cases: list[tuple[str, dict[str, str], type[Exception], str]] = [
        (
            secret,
            {"table": "nothing"},
            DataNotFound,
            r"the table nothing at postgresql://postgres:\*\*\*@.*name its schema",
        ),
        (secret, {"query": "SELECT nothing"}, UnreadableData, 'column "nothing" does not exist'),
        (secret, {"query": "CREATE TABLE written (a int)"}, UnreadableData, "cannot be read"),
        (secret, {"query": "SELECT 1 AS a, 2 AS a"}, SchemaViolation, "found a more than once"),
        (secret, {"query": "SELECT 1 AS a WHERE false"}, EmptyData, "expected rows at postgresql"),
        (
            secret.replace("/postgres", "/absent").replace("/absent:", "/postgres:"),
            {"table": "t"},
            DataNotFound,
            "absent",
        ),
        ("postgresql://me:hunter2@127.0.0.1:1/db", {"table": "t"}, ServiceUnavailable, "is the server up"),
    ]
    for url, options, kind, words in cases:
        with pytest.raises(kind, match=words) as caught:
            list(open_source(url, **options).batches())
        assert "hunter2" not in str(caught.value) + repr(caught.value.__dict__)


@pytest.mark.postgres
def test_a_long_table_comes_in_batches_and_may_be_read_again(postgres: str) -> None:
    source = open_source(
        postgres, query=f"SELECT i, i * 0.5 AS half FROM generate_series(1, {2 * BATCH_ROWS + 5}) AS i"
    )
    for _ in range(2):
        assert [len(batch) for batch in source.batches()] == [BATCH_ROWS, BATCH_ROWS, 5]
    first = next(source.batches())
    assert first["half"].dtype == "float64"


@pytest.mark.s3
def test_s3_gives_the_same_rows_and_says_what_is_wrong(
    tmp_path: Path, rows: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    with s3_server(monkeypatch, "forge-rows"):
        fs = fsspec.filesystem("s3")
        for i, name in enumerate(["a.parquet", "b.parquet"]):
            fs.put_file(str(write(rows.iloc[i::2], tmp_path / name)), f"forge-rows/parts/{name}")
        for name in ("r.csv.gz", "r.xlsx"):
            fs.put_file(str(write(rows, tmp_path / name)), f"forge-rows/{name}")
            same(gathered(f"s3://forge-rows/{name}"), rows)
        for address in ("s3://forge-rows/parts/", "s3://forge-rows/parts", "s3://forge-rows/parts/*.parquet"):
            same(gathered(address), rows)
        before = open_source("s3://forge-rows/r.csv.gz").fingerprint()
        fs.put_file(str(write(rows.iloc[1:], tmp_path / "r.csv.gz")), "forge-rows/r.csv.gz")
        assert before is not None and open_source("s3://forge-rows/r.csv.gz").fingerprint() != before
        for address in ("s3://forge-rows/no.csv", "s3://no-such-bucket/no.csv", "s3://forge-rows/none/"):
            with pytest.raises(DataNotFound, match=address):
                list(open_source(address).batches())
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.delenv(name)
        monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        fs.clear_instance_cache()
        with pytest.raises(UnreadableData, match=r"s3://forge-rows/r\.csv\.gz may not be read.*AWS_ACCESS_KEY_ID"):
            list(open_source("s3://forge-rows/r.csv.gz").batches())


@pytest.mark.slow
def test_a_web_server_gives_the_same_rows_and_says_what_is_wrong(tmp_path: Path, rows: pd.DataFrame) -> None:
    for name in ("r.csv.gz", "r.parquet"):
        write(rows, tmp_path / name)
    (tmp_path / "download").write_bytes((tmp_path / "r.parquet").read_bytes())
    with http_server(tmp_path) as url:
        same(gathered(f"{url}/r.csv.gz"), rows)
        same(gathered(f"{url}/r.parquet?when=now"), rows)
        same(gathered(f"{url}/download", format="parquet"), rows)
        assert (
            open_source(f"{url}/r.parquet").fingerprint() == open_source(f"{url}/r.parquet").fingerprint() is not None
        )
        for address, kind, words in [
            ("none.csv", DataNotFound, r"no file at .*none\.csv"),
            ("refused/r.csv", UnreadableData, "may not be read"),
            ("broken/r.csv", ServiceUnavailable, "cannot reach"),
        ]:
            with pytest.raises(kind, match=words):
                list(open_source(f"{url}/{address}").batches())
        with pytest.raises(ConfigurationError, match="give format="):
            open_source(f"{url}/download")
    with pytest.raises(ServiceUnavailable, match="cannot reach"):
        list(open_source(f"{url}/r.csv.gz").batches())


def test_a_download_is_made_once_and_goes_with_its_source(tmp_path: Path, rows: pd.DataFrame) -> None:
    write(rows, tmp_path / "r.csv")
    with http_server(tmp_path) as url:
        source = open_source(f"{url}/r.csv")
        first = pd.concat(source.batches())
    pd.testing.assert_frame_equal(pd.concat(source.batches()), first)  # the server is away by now
    copy = Path(source._files[0].path)  # type: ignore[attr-defined]
    assert copy.is_file()
    del source
    assert not copy.exists()


@pytest.mark.postgres
@pytest.mark.s3
def test_the_same_rows_from_csv_parquet_s3_and_postgresql_are_one_dataset_version(
    tmp_path: Path, postgres: str, rows: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "contract.yaml").write_text(CONTRACT.to_yaml())
    policy = DataPolicy(source="-", target="sure", contract=str(tmp_path / "contract.yaml"))
    shuffled = rows.sample(frac=1, random_state=0)
    into_database(shuffled, postgres.replace("postgresql:", "postgresql+psycopg:"), "shuffled")
    with s3_server(monkeypatch, "forge-rows"):
        fsspec.filesystem("s3").put_file(str(write(shuffled, tmp_path / "s.jsonl.gz")), "forge-rows/s.jsonl.gz")
        addresses = {
            "CSV": str(write(rows, tmp_path / "r.csv")),
            "Parquet": str(write(shuffled, tmp_path / "r.parquet")),
            "PostgreSQL": f"{postgres}?table=shuffled",
            "S3": "s3://forge-rows/s.jsonl.gz",
        }
        ids = {
            name: ingest(Storage(f"{tmp_path}/{name}"), address, policy).version.id
            for name, address in addresses.items()
        }
    print(ids)
    assert len(set(ids.values())) == 1


@pytest.mark.s3
def test_s3_without_the_right_to_read_is_told_and_is_not_called_missing(
    tmp_path: Path, rows: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    with s3_server(monkeypatch, "forge-rows") as endpoint:
        fs = fsspec.filesystem("s3")
        fs.put_file(str(write(rows, tmp_path / "r.csv")), "forge-rows/r.csv")
        try:
            requests.post(f"{endpoint}/moto-api/reset-auth", data="0", timeout=10)
            fs.clear_instance_cache()
            for address in ("s3://forge-rows/r.csv", "s3://forge-rows/"):
                with pytest.raises(UnreadableData, match=f"{address} may not be read"):
                    list(open_source(address).batches())
        finally:
            requests.post(f"{endpoint}/moto-api/reset-auth", data="inf", timeout=10)
