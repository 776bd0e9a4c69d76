"""What a split costs: throughput with one live against without, in turns on one running stack.

Both variants of the split are the champion, so that nothing differs but the assignment of each request and what the
log keeps of it. (A canary takes batches of its own, and costs what smaller batches cost.)
"""

import tempfile
from pathlib import Path
from statistics import median

from forge_core.deployment.routing import read_state
from forge_core.deployment.routing_table import Split
from forge_core.deployment.serve_client import get_serve_client
from forge_core.deployment.splits import drop_split, put_split
from forge_core.experiments.assignment import segments_of
from forge_core.ledger import Ledger
from tests.benchmarks.bench_serving import SECONDS, WARM
from tests.benchmarks.serving_load import Load, measure, need_wrk, write_bodies
from tests.benchmarks.serving_ours import Ours, one_row
from tests.benchmarks.serving_work import bring_live

CONNECTIONS = 64
TURNS = 6
_MODEL = "forest"


def cost() -> dict[str, float]:
    """Return the share of throughput that a live split costs, the requests/s of both, and how many requests failed.

    Each turn measures with and without, in changing order; the cost is the median of the turns' own.
    """
    need_wrk()
    with tempfile.TemporaryDirectory(prefix="forge-cost-") as name:
        folder = Path(name)
        ours = Ours(folder)
        try:
            ours.start()
            served = bring_live(ours.settings, _MODEL, folder)
            bodies = write_bodies(folder / "bodies", [one_row([record]) for record in served.records])
            measure(ours.url, "/predict", bodies, CONNECTIONS, WARM)
            turns = [_turn(ours, bodies, split_first=number % 2 == 1) for number in range(TURNS)]
        finally:
            ours.clean()
    return {
        "cost": median(1 - split.per_second / plain.per_second for plain, split in turns),
        "requests/s without": median(plain.per_second for plain, _ in turns),
        "requests/s with a split": median(split.per_second for _, split in turns),
        "failed": float(sum(load.errors for turn in turns for load in turn)),
    }


def _turn(ours: Ours, bodies: Path, *, split_first: bool) -> tuple[Load, Load]:
    found = {}
    for split in (True, False) if split_first else (False, True):
        _share_out(ours, split)
        measure(ours.url, "/predict", bodies, CONNECTIONS, 1.0)
        found[split] = measure(ours.url, "/predict", bodies, CONNECTIONS, SECONDS)
        print(f"{'a split' if split else 'no split':<10} {found[split].told()}", flush=True)
    return found[False], found[True]


def _share_out(ours: Ours, live: bool) -> None:
    ledger, serve = Ledger(ours.settings.ledger), get_serve_client(ours.settings)
    champion = read_state(ledger)[1]["models"][_MODEL]["champion"]
    split: Split = {
        "id": "experiment:cost",
        "salt": "cost",
        "key": "user",
        "variants": {"control": champion, "treatment": champion},
        "segments": list(segments_of({"control": 0.5, "treatment": 0.5})),
    }
    if live:
        put_split(ledger, _MODEL, split)
    else:
        drop_split(ledger, _MODEL, split["id"])
    serve.reconcile(ledger)


if __name__ == "__main__":
    print(cost())
