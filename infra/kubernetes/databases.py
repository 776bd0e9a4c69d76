"""`python -m infra.kubernetes.databases NAME …`: make the PostgreSQL databases that are not there yet.

Runs in a pod before the server that needs them. Host, user and password are libpq's own: PGHOST, PGUSER, PGPASSWORD.
"""

import re
import sys
import time
from collections.abc import Sequence

import psycopg
import psycopg.sql

from forge_core.errors import ForgeError, ServiceUnavailable


def make_databases(names: Sequence[str], *, patience: float = 120.0, maintenance: str = "postgres") -> list[str]:
    """Make databases and return those that were not there.

    Parameters
    ----------
    names : sequence of str
        Lower-case letters, digits and underscores.
    patience : float
        Seconds that the server may take until it lets us in.
    maintenance : str
        The database that is there from the start.

    Raises
    ------
    ServiceUnavailable
        The server does not answer, or refuses; ends with its words.
    """
    if wrong := [name for name in names if not re.fullmatch(r"[a-z_][a-z0-9_]*", name)]:
        raise ValueError(f"expected names of lower-case letters, digits and underscores, found {', '.join(wrong)}")
    deadline = time.monotonic() + patience
    while True:
        try:
            with psycopg.connect(dbname=maintenance, autocommit=True, connect_timeout=5) as connection:
                return [name for name in names if _make(connection, name)]
        except psycopg.OperationalError as error:
            if time.monotonic() > deadline:
                raise ServiceUnavailable(
                    f"expected PostgreSQL at PGHOST within {patience:.0f} s, found: {str(error).strip()}; "
                    "see the ConfigMap forge-place and the Secret forge-environment"
                ) from error
            time.sleep(2.0)


def _make(connection: psycopg.Connection, name: str) -> bool:
    if connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", (name,)).fetchone():
        return False
    try:
        connection.execute(psycopg.sql.SQL("CREATE DATABASE {}").format(psycopg.sql.Identifier(name)))
    except (psycopg.errors.DuplicateDatabase, psycopg.errors.UniqueViolation):
        return False  # another pod was faster
    return True


def main(names: Sequence[str]) -> int:
    """Make the databases and return the exit code."""
    try:
        made = make_databases(names)
    except (ForgeError, ValueError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    sys.stdout.write(f"made: {', '.join(made) or 'none, all were there'}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
