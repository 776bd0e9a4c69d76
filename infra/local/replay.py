"""History over HTTP, on event time: each hour's flights are predicted, labels follow when they became known."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import httpx
import pandas as pd

from forge_core.errors import ForgeError


@dataclass(frozen=True)
class Replayed:
    """What was sent."""

    predictions: int
    labels: int
    requests: int


def replay(
    api_url: str,
    rows: pd.DataFrame,
    *,
    features: list[str],
    key: str,
    time_column: str,
    label_time_column: str,
    target: str,
    labels_every_hours: int = 3,
    progress: Callable[[datetime, int], None] = lambda moment, sent: None,
) -> Replayed:
    """Send rows hour by hour to `/predict/batch` and their labels, late, to `/feedback`.

    Labels that became known after the last hour of `rows` are not sent: nobody knows them yet.
    """
    records = rows[features].astype(object).where(rows[features].notna(), None).to_dict("records")
    ids, labels = rows[key].tolist(), rows[target].astype(float).tolist()
    by_hour = rows.groupby(time_column, sort=True).indices
    by_label_time = rows[label_time_column].reset_index(drop=True).sort_values()
    order, moments = by_label_time.index.to_numpy(), by_label_time.reset_index(drop=True)
    sent = labelled = requests = 0
    with httpx.Client(base_url=api_url, timeout=60.0, trust_env=False) as client:

        def post(path: str, body: dict[str, Any], moment: datetime) -> None:
            answer = client.post(path, json=body, headers={"X-Forge-Event-Time": moment.isoformat()})
            if answer.status_code != 200:
                raise ForgeError(f"{path} answered {answer.status_code}: {answer.text[:300]}")

        for number, (hour, positions) in enumerate(by_hour.items()):
            moment = pd.Timestamp(hour).to_pydatetime()
            batch = {"records": [records[i] for i in positions], "request_ids": [ids[i] for i in positions]}
            post("/predict/batch", batch, moment)
            sent, requests = sent + len(positions), requests + 1
            if number % labels_every_hours == 0:
                known = int(moments.searchsorted(pd.Timestamp(hour), side="right"))
                if due := [{"request_id": ids[i], "label": labels[i]} for i in order[labelled:known]]:
                    post("/feedback", {"feedback": due}, moment)
                    labelled, requests = known, requests + 1
            progress(moment, sent)
        client.get("/monitoring", params={"flush": True}).raise_for_status()
    return Replayed(sent, labelled, requests)
