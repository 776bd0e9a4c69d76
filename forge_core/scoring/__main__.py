"""Batch scoring at a terminal.

python -m forge_core.scoring flights rows/ --version 7 --output scores/ --keep order_id
"""

import argparse
import logging
import os
import sys

from forge_core.errors import ForgeError
from forge_core.scoring.batch import score_dataset
from forge_core.scoring.report import scoring_table
from forge_core.settings import get_settings
from forge_core.storage import Storage
from forge_core.tracking.registry import Registry


def main(arguments: list[str] | None = None) -> int:
    """Score as the command line says and return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m forge_core.scoring", description="Score every row of a Parquet data set; again to go on."
    )
    parser.add_argument("model")
    parser.add_argument("source", help="ds-… id, or path, folder, pattern or URL of Parquet files")
    parser.add_argument("--version", default="champion", help="number or alias (default: champion)")
    parser.add_argument("--output", help="URL of the output's folder (default: scores/ID at the storage)")
    parser.add_argument("--keep", default="", help="columns to carry along, with commas between")
    parser.add_argument("--workers", type=int, help="processes (default: one a core)")
    chosen = parser.parse_args(arguments)
    settings = get_settings()
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    try:
        registry = Registry(settings.mlflow_url)
        version = registry.resolve(chosen.model, chosen.version)
        with registry.open(version) as folder:
            scoring = score_dataset(
                Storage(settings.storage), chosen.source, folder, model=chosen.model, version=version.version,
                output=chosen.output, keep=[name for name in chosen.keep.split(",") if name],
                workers=chosen.workers, address=os.environ.get("RAY_ADDRESS"), progress=_show,
            )  # fmt: skip
    except ForgeError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    sys.stdout.writelines(f"{row['what']}: {row['value']}\n" for row in scoring_table(scoring))
    return 0


def _show(done: int, total: int) -> None:
    sys.stdout.write(f"{done:,} of {total:,} rows\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
