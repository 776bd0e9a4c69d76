"""The Python blocks of README and docs run as they stand; those that need a live model must at least import."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"(?:<!-- (?P<needs>[^>]*) -->\n)?```python\n(?P<code>.*?)```", re.DOTALL)
NEEDS = "needs a live model"


def blocks(page: Path) -> list[tuple[str, str]]:
    """Return (what it needs, code) of a page's Python blocks."""
    return [(match["needs"] or "", match["code"]) for match in BLOCK.finditer(page.read_text())]


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page)], ids=lambda page: page.name)
def test_a_page_runs_from_top_to_bottom(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for needs, code in blocks(page):
        if needs == NEEDS:
            imports = [node for node in ast.parse(code).body if isinstance(node, ast.Import | ast.ImportFrom)]
            code = "\n".join(ast.unparse(node) for node in imports)
        exec(compile(code, str(page), "exec"), names)
