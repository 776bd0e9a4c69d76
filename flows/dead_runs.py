"""Flow runs whose process was killed stay "Running" on the server; this marks them Crashed."""

import asyncio
import socket

import psutil
from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterState, FlowRunFilterStateType
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.states import Crashed


async def crash_dead_runs() -> list[str]:
    """Mark runs of this machine whose process is gone Crashed and return their names."""
    unfinished = FlowRunFilter(
        state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.RUNNING, StateType.CANCELLING]))
    )
    async with get_client() as client:
        runs = await client.read_flow_runs(flow_run_filter=unfinished, limit=200)
        return [run.name for run in runs if _is_dead(run) and await _crash(client, run)]


async def _crash(client: PrefectClient, run: FlowRun) -> bool:
    await client.set_flow_run_state(run.id, Crashed(message="its process was killed"), force=True)
    return True


def _is_dead(run: FlowRun) -> bool:
    # `1234` or `host:1234`, by Prefect's release; only the local pool's are processes of this machine.
    host, _, pid = (run.infrastructure_pid or "").rpartition(":")
    if run.work_pool_name != "local" or host not in {"", socket.gethostname()} or not pid.isdigit():
        return False
    try:
        # An orphan that nobody collects stays a zombie, which a signal still reaches.
        return bool(psutil.Process(int(pid)).status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


if __name__ == "__main__":
    asyncio.run(crash_dead_runs())
