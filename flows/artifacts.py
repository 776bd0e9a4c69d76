"""What a run leaves to look at in the Prefect UI: tables and pictures."""

import base64
from collections.abc import Mapping, Sequence
from typing import Any

from prefect.artifacts import create_image_artifact, create_markdown_artifact, create_table_artifact


def slug(*parts: str) -> str:
    """Return an artifact key: lower-case letters, digits and dashes."""
    return "-".join("".join(c if c.isalnum() else "-" for c in part.lower()).strip("-") for part in parts)


def leave_table(key: str, rows: Sequence[Mapping[str, Any]], description: str) -> None:
    """Leave a table."""
    create_table_artifact(key=key, table=[dict(row) for row in rows], description=description)


def leave_text(key: str, markdown: str, description: str) -> None:
    """Leave a page of Markdown."""
    create_markdown_artifact(key=key, markdown=markdown, description=description)


def leave_picture(key: str, png: bytes, description: str) -> None:
    """Leave a picture; its bytes travel inside the artifact, so it stays readable without a file server."""
    create_image_artifact(
        key=key, image_url=f"data:image/png;base64,{base64.b64encode(png).decode()}", description=description
    )
