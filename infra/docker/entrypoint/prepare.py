"""`prepare`: the databases and buckets that the other containers need, made where they are not there yet."""

import argparse
import sys
import time
from collections.abc import Sequence

from forge_core.errors import ServiceUnavailable
from forge_core.settings import Settings
from infra.kubernetes.databases import make_databases

_PATIENCE_SECONDS = 120.0


def prepare(settings: Settings, options: Sequence[str]) -> int:
    """Make what is asked for and return the exit code.

    PostgreSQL is found by libpq's variables (PGHOST, PGUSER, PGPASSWORD), S3 by those of AWS.
    """
    parser = argparse.ArgumentParser(prog="python -m infra.docker.entrypoint prepare", description=__doc__)
    parser.add_argument("--databases", nargs="*", default=[], help="names of PostgreSQL databases")
    parser.add_argument("--buckets", nargs="*", default=[], help="names of S3 buckets")
    chosen = parser.parse_args(options)
    made = make_databases(chosen.databases) if chosen.databases else []
    made += make_buckets(chosen.buckets) if chosen.buckets else []
    sys.stdout.write(f"made: {', '.join(made) or 'nothing, all was there'}\n")
    return 0


def make_buckets(names: Sequence[str], *, patience: float = _PATIENCE_SECONDS) -> list[str]:
    """Make buckets and return those that were not there.

    Raises
    ------
    ServiceUnavailable
        The server did not answer within `patience` seconds, or refused.
    """
    import s3fs
    from botocore.exceptions import BotoCoreError

    deadline = time.monotonic() + patience
    while True:
        try:
            store = s3fs.S3FileSystem(skip_instance_cache=True)
            missing = [name for name in names if not store.exists(name)]
            for name in missing:
                store.mkdir(name)
            return missing
        except (OSError, BotoCoreError) as error:
            if time.monotonic() > deadline:
                raise ServiceUnavailable(
                    f"expected an S3 server (AWS_ENDPOINT_URL) within {patience:.0f} s, found: {error}"
                ) from error
            time.sleep(2.0)
