"""Databases: a SQLAlchemy URL with a table or a query, read through a cursor in a read-only transaction."""

import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pandas as pd
import sqlalchemy as sa
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError, SQLAlchemyError

from forge_core.data.batches import BATCH_ROWS, Source, check_names, hide_secrets, typed_frame
from forge_core.data.coercion import Kind
from forge_core.errors import (
    ConfigurationError,
    DataNotFound,
    EmptyData,
    ForgeError,
    ServiceUnavailable,
    UnreadableData,
)

DIALECTS = (
    "sqlite", "postgresql", "postgres", "mysql", "mariadb", "mssql", "oracle", "duckdb", "snowflake", "redshift",
    "bigquery", "clickhouse", "cockroachdb", "databricks", "trino",
)  # fmt: skip
# Where SQLAlchemy's own switch does not do it: how a session is told to write nothing.
_READ_ONLY = {"sqlite": "PRAGMA query_only = ON", "mysql": "SET SESSION TRANSACTION READ ONLY"}
_REFUSED = ("authentication", "password", "access denied", "permission denied", "not authorized", "login failed")
_ABSENT = ("does not exist", "unknown database", "unable to open database file")


def open_sql(address: str, options: Mapping[str, Any]) -> "SqlSource":
    """Return the source in a table or query: `postgresql://user@host/db?table=sales.orders`, or as options.

    Raises
    ------
    ConfigurationError
        Neither table nor query, or both; an unknown option; a URL or dialect that cannot be used.
    """
    if unknown := sorted(set(options) - {"table", "query"}):
        raise ConfigurationError(f"databases have no option {', '.join(unknown)}; known: table, query")
    try:
        url = make_url(address)
    except ArgumentError:
        raise ConfigurationError(
            f"expected a database's URL (dialect://user:password@host:port/name), found {hide_secrets(address)}"
        ) from None
    named = {name: url.query[name] for name in ("table", "query") if name in url.query}
    chosen = {**named, **options}
    if len(chosen) != 1 or not all(isinstance(v, str) and v.strip() for v in chosen.values()):
        raise ConfigurationError(
            f"expected one table=… or one query=… for {hide_secrets(url.render_as_string())}, "
            f"found {', '.join(chosen) or 'neither'}"
        )
    return SqlSource(url.difference_update_query(["table", "query"]), **chosen)


class SqlSource(Source):
    """A table, or the rows a query gives; see `open_sql` and `forge_core.data.batches.Source`.

    Parameters
    ----------
    url : sqlalchemy URL
        `postgresql://` is read with psycopg.
    table : str, optional
        Its name, with its schema before a dot where it needs one.
    query : str, optional
        One statement that gives rows, in the database's own SQL.
    """

    def __init__(self, url: URL, *, table: str | None = None, query: str | None = None) -> None:
        self._url, self._table, self._query = url, table, query
        what = {"table": table} if table else {"query": query or ""}
        shown = url.update_query_dict(what).render_as_string(hide_password=True)
        self.address = hide_secrets(shown)

    def batches(self, kinds: Mapping[str, Kind] | None = None) -> Iterator[pd.DataFrame]:
        """Give the rows in the order of the database.

        Raises
        ------
        DataNotFound, EmptyData, UnreadableData
            There is no such database or table; no row; the database refuses, in its own words.
        SchemaViolation
            The query names a column twice.
        ServiceUnavailable
            When the server does not answer.
        """
        n_rows = 0
        with self._connection() as connection:
            statement = self._query or self._select(connection)
            try:
                result = connection.exec_driver_sql(statement)
                if not result.returns_rows:
                    raise UnreadableData(f"expected a query that gives rows at {self.address}; begin it with SELECT")
                names = check_names(result.keys(), self.address)
                for rows in result.partitions(BATCH_ROWS):
                    n_rows += len(rows)
                    yield typed_frame(names, rows)
            except SQLAlchemyError as error:
                raise self._explained(error, connecting=False) from error
        if not n_rows:
            raise EmptyData(f"expected rows at {self.address}, found none", context={"address": self.address})

    @contextmanager
    def _connection(self) -> Iterator[sa.Connection]:
        engine = self._engine()
        try:
            try:
                connection = engine.connect().execution_options(
                    stream_results=True, yield_per=BATCH_ROWS, no_parameters=True, **self._driver_options(engine)
                )
                if statement := _READ_ONLY.get(engine.dialect.name):
                    connection.exec_driver_sql(statement)
                    connection.commit()
            except SQLAlchemyError as error:
                raise self._explained(error, connecting=True) from error
            try:
                yield connection
            finally:
                # Where the caller left early, the garbage collector may have closed it already.
                with suppress(SQLAlchemyError):
                    connection.close()
        finally:
            engine.dispose()

    def _driver_options(self, engine: sa.Engine) -> dict[str, Any]:
        return {"postgresql_readonly": True} if engine.dialect.name == "postgresql" else {}

    def _engine(self) -> sa.Engine:
        url, arguments = self._url, {}
        if url.drivername in ("postgresql", "postgres"):
            url = url.set(drivername="postgresql+psycopg")
        if url.drivername == "postgresql+psycopg" and "connect_timeout" not in url.query:
            arguments["connect_timeout"] = 20
        if url.get_backend_name() == "sqlite":
            # SQLite would make a file that is not there; batches may be read in another thread than this one.
            self._check_file(url)
            arguments["check_same_thread"] = False
        try:
            return sa.create_engine(url, poolclass=sa.NullPool, connect_args=arguments)
        except (NoSuchModuleError, ImportError) as error:
            raise ConfigurationError(
                f"reading {self.address} needs a SQLAlchemy dialect and driver that are not installed ({error}); "
                f"install the package for {url.drivername}"
            ) from error
        except (SQLAlchemyError, ValueError, TypeError) as error:
            raise ConfigurationError(f"cannot use {self.address}: {self._scrub(str(error))}") from None

    def _check_file(self, url: URL) -> None:
        name = url.database or ""
        if name and not name.startswith((":memory:", "file:")) and not Path(name).is_file():
            raise DataNotFound(f"no database at {self.address}; correct the path, or put the file there")

    def _select(self, connection: sa.Connection) -> str:
        assert self._table is not None
        try:
            inspector = sa.inspect(connection)
            schema, _, name = self._table.rpartition(".")
            for where, table in ((None, self._table), (schema or None, name)):
                if inspector.has_table(table, schema=where):
                    return f"SELECT * FROM {_quoted(connection, table, where)}"
            found = sorted([*inspector.get_table_names(schema or None), *inspector.get_view_names(schema or None)])
        except SQLAlchemyError as error:
            raise self._explained(error, connecting=False) from error
        there = f"{', '.join(found[:10])}{', …' if len(found) > 10 else ''}" or "no tables"
        raise DataNotFound(
            f"expected the table {self._table} at {self.address}, found {there}; correct its name, or name its schema "
            "(schema.table)",
            context={"address": self.address, "tables": found[:10]},
        )

    def _explained(self, error: SQLAlchemyError, *, connecting: bool) -> ForgeError:
        own = self._scrub(str(getattr(error, "orig", None) or error))
        context = {"address": self.address}
        lower = own.lower()
        if connecting and any(words in lower for words in _ABSENT):
            return DataNotFound(f"no database at {self.address}: {own}", context=context)
        broken = isinstance(error, DBAPIError) and error.connection_invalidated
        locked = isinstance(getattr(error, "orig", None), sqlite3.OperationalError) and "locked" in lower
        unreadable = any(words in lower for words in (*_REFUSED, "not a database"))
        if (connecting and not unreadable) or broken or locked:
            return ServiceUnavailable(f"cannot reach {self.address}: {own}; is the server up?", context=context)
        return UnreadableData(
            f"{self.address} cannot be read: {own}; correct the query, or ask for the right to read it", context=context
        )

    def _scrub(self, text: str) -> str:
        password = self._url.password
        plain = text.replace(str(password), "***") if password else text
        return hide_secrets(" ".join(plain.split()))[:400]


def _quoted(connection: sa.Connection, table: str, schema: str | None) -> str:
    quote = connection.dialect.identifier_preparer.quote_identifier
    return f"{quote(schema)}.{quote(table)}" if schema else quote(table)
