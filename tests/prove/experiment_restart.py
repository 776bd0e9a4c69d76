"""One experiment on live traffic, from two router replicas over HTTP and a notebook, across a restart of everything."""

import time
from collections.abc import Callable, Sequence
from typing import Any

import httpx
import yaml
from rich.console import Console

from forge_core.errors import ForgeError
from forge_core.experiments.ab_testing import ABTestManager
from forge_core.ledger import Ledger
from forge_core.settings import Settings, get_settings
from infra.local.prefect_api import FINAL, PrefectApi
from infra.local.stack import apply_environment, clean, down, up
from tests.prove.serving_ground import MODEL, Ground, settings_with_files

N_USERS = 400
NAME = "restart"


def run(only: Sequence[str] = ()) -> bool:
    """Run it on a stack of its own and tell whether everything held."""
    console = Console(highlight=False)
    settings = settings_with_files()
    _two_routers(settings)
    begun = time.monotonic()
    try:
        up(settings, quiet=True)
        apply_environment(settings)
        get_settings.cache_clear()
        ground = Ground(settings)
        versions = ground.make_versions((3, 30))
        ground.swap(versions[0])
        console.print(f"stack and versions {', '.join(versions)}: {time.monotonic() - begun:.0f} s")
        faults = _tell(ground, settings, versions, console)
    finally:
        clean(settings, quiet=True)
        get_settings.cache_clear()
    for fault in faults:
        console.print(f"[red]{fault}")
    console.print(f"{'[red]✘' if faults else '[green]✔'}[/] experiment ({time.monotonic() - begun:.0f} s)")
    return not faults


def _two_routers(settings: Settings) -> None:
    template = yaml.safe_load(settings.serve_file.read_text())
    next(a for a in template["applications"] if a["name"] == "router")["deployments"][0]["num_replicas"] = 2
    settings.serve_file.write_text(yaml.safe_dump(template, sort_keys=False))


class _Calls:
    """The API of the stack; each call has a connection of its own, so that both routers are asked."""

    def __init__(self, ground: Ground) -> None:
        self.url, self.bodies = ground.settings.api_url, ground.bodies

    def ask(self, method: str, path: str, **options: Any) -> Any:
        answer = httpx.request(method, self.url + path, trust_env=False, timeout=240.0, **options)
        if answer.status_code != 200:
            raise ForgeError(f"{method} {path}: {answer.status_code} {answer.text[:500]}")
        return answer.json()

    def predict(self, number: int) -> dict[str, Any]:
        body = self.bodies[number % len(self.bodies)]
        return self.ask("POST", f"/models/{MODEL}/predict", json=body, headers={"X-Forge-User": f"user{number}"})

    def verdict(self) -> dict[str, Any]:
        self.ask("GET", "/monitoring?flush=true")
        time.sleep(3.0)  # the other router ships what it holds by itself
        return self.ask("GET", f"/experiments/{NAME}")["verdict"]


def _tell(ground: Ground, settings: Settings, versions: list[str], console: Console) -> list[str]:
    calls, faults = _Calls(ground), list[str]()

    def check(claim: str, holds: bool, found: Any = "") -> None:
        console.print(f"  {'✔' if holds else '✘'} {claim} {found}")
        if not holds:
            faults.append(f"{claim}: {found}")

    n_routers = len(ground.replicas("router"))
    check("two routers answer", n_routers == 2, n_routers)
    number = {"champion": versions[0], "challenger": versions[1]}
    definition = {
        "id": NAME,
        "variants": {name: {"model": MODEL, "version": version} for name, version in number.items()},
        "traffic_allocation": {"champion": 0.5, "challenger": 0.5},
        "live": True,
        "auto_start": True,
    }
    calls.ask("POST", "/experiments", json=definition)
    made = _until(lambda: calls.ask("GET", f"/experiments/{NAME}"), lambda e: e["status"] == "running", 300.0)
    check("the experiment runs", made["status"] == "running", made["status"])
    _wait_for_split(calls)
    first = {n: calls.predict(n) for n in range(N_USERS)}
    variants = {n: reply["variant"] for n, reply in first.items()}
    share = sum(v == "challenger" for v in variants.values()) / N_USERS
    check("half of the users meet the challenger", 0.4 < share < 0.6, f"{share:.3f}")
    wrong = [n for n, reply in first.items() if reply["model_version"] != number[reply["variant"]]]
    check("each variant is answered by its version", not wrong, wrong[:5])
    again = [n for n in range(N_USERS) if calls.predict(n)["variant"] != variants[n]]
    check("users meet the same variant again", not again, again[:5])
    sent = [{"user": f"user{n}"} for n in range(0, N_USERS, 4)] + [{"request_id": first[2]["request_id"]}]
    calls.ask("POST", f"/experiments/{NAME}/conversions", json={"conversions": sent})
    before = calls.verdict()
    check("every user is counted once", sum(before["users"].values()) == N_USERS, before["users"])
    converted = sum(round((c["mean"] or 0) * c["n"]) for c in before["variants"])
    check("conversions by user and by request join", converted == N_USERS // 4 + 1, converted)
    check("no mismatch", not before["mismatch"]["alarm"], f"e {before['mismatch']['e']:.3g}")

    manager = ABTestManager(Ledger(settings.ledger), storage=ground.storage)
    there = manager.results(NAME)
    check("a notebook reads the same verdict", there.users == before["users"], there.users)
    assigned = [n for n in range(N_USERS) if manager.get_variant(f"user{n}", NAME)[1] != variants[n]]
    check("a notebook assigns alike", not assigned, assigned[:5])

    down(settings, quiet=True)
    up(settings, quiet=True)
    console.print("  everything was restarted")
    _wait_for_split(calls)
    moved = [n for n in range(N_USERS) if calls.predict(n)["variant"] != variants[n]]
    check("after the restart users meet the same variant", not moved, moved[:5])
    repeated = calls.ask("POST", f"/experiments/{NAME}/conversions", json={"user": "user0"})
    check("what was counted before is known", repeated["recorded"][0]["reason"] == "twice", repeated["recorded"])
    after = calls.verdict()
    check("nothing was lost", after["users"] == before["users"], after["users"])

    state, artifacts = _look_by_flow(settings)
    check("the flow looks at it", state == "COMPLETED", state)
    check("and leaves text, table and picture", artifacts == {"markdown", "table", "image"}, artifacts)

    calls.ask("POST", f"/experiments/{NAME}/stop", json={"winner": "champion", "reason": "proven"})
    stopped = _until(lambda: calls.ask("GET", f"/experiments/{NAME}"), lambda e: e["status"] == "stopped", 300.0)
    check("it ends", (stopped["status"], stopped["winner"]) == ("stopped", "champion"), stopped["status"])
    replies = _until(lambda: [calls.predict(n) for n in range(40)], lambda r: not any("experiment" in x for x in r))
    live = {reply["model_version"] for reply in replies}
    check("the champion has all traffic again", live == {versions[0]}, live)
    return faults


def _look_by_flow(settings: Settings) -> tuple[str, set[str]]:
    """Return how the flow ended, and the kinds of what it left."""
    prefect = PrefectApi(settings.prefect_url)
    run = prefect.run(f"experiment/{MODEL}", {"model": MODEL})
    run = _until(
        lambda: prefect.call("GET", f"/flow_runs/{run['id']}"), lambda found: found["state_type"] in FINAL, 300.0
    )
    left = prefect.call("POST", "/artifacts/filter", {"flow_runs": {"id": {"any_": [run["id"]]}}})
    return run["state_type"], {artifact["type"] for artifact in left}


def _wait_for_split(calls: _Calls) -> None:
    """Return once both routers share the traffic out."""
    _until(lambda: [calls.predict(n) for n in range(12)], lambda r: all("experiment" in one for one in r))


def _until(ask: Callable[[], Any], enough: Callable[[Any], bool], seconds: float = 60.0) -> Any:
    deadline = time.monotonic() + seconds
    while not enough(found := ask()):
        if time.monotonic() > deadline:
            raise ForgeError(f"not so within {seconds:.0f} s: {str(found)[:500]}")
        time.sleep(0.5)
    return found


if __name__ == "__main__":
    raise SystemExit(0 if run() else 1)
