"""The status of the stack as a table for people."""

from rich.console import Console
from rich.table import Table

from forge_core.settings import Settings
from infra.local.status import StackStatus


def show(found: StackStatus, settings: Settings) -> int:
    """Print the stack's status and return its exit code: 0 all healthy, 1 not all, 3 not running."""
    console = Console(highlight=False)
    # A pipe has no width of its own: wide enough for addresses.
    console.width = max(console.width, 120)
    if not found.running:
        console.print(f"The stack in {settings.home.resolve()} does not run. Start it with `make up`.", soft_wrap=True)
        return 3
    table = Table(box=None, pad_edge=False)
    for name in ("member", "process", "health", "uptime", "memory", "restarts", "address"):
        numeric = name in {"process", "uptime", "memory", "restarts"}
        table.add_column(name, justify="right" if numeric else "left", overflow="fold", no_wrap=name == "member")
    for member in found.members:
        colour = "green" if member.health == "healthy" else "red"
        table.add_row(
            member.title,
            str(member.pid or "–"),
            f"[{colour}]{member.health}[/{colour}]",
            _duration(member.uptime_seconds),
            f"{member.memory_bytes / 1e6:.0f} MB",
            str(member.restarts),
            member.url,
        )
    console.print(table)
    console.print(f"Memory in all: {found.memory_bytes / 1e9:.2f} GB (shared pages counted once).")
    for name, state in sorted(found.applications.items()):
        console.print(f"  Serve application {name}: {state}")
    return 0 if found.healthy else 1


def _duration(seconds: float) -> str:
    hours, rest = divmod(int(seconds), 3600)
    minutes, left = divmod(rest, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {left:02d} s"
