"""Hooks of the documentation's site (mkdocs.yml): reference pages, and links that lead out of docs/."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[1]
REFERENCE = ROOT / "build" / "reference"
_LINK = re.compile(r"\[([^\]]+)\]\((\.\./[^)#\s]+)(?:#[^)\s]*)?\)")


def on_files(files: Any, config: Any) -> Any:
    """Adds what `mmbert components reference` made."""
    for path in sorted(REFERENCE.glob("*.md")):
        files.append(File.generated(config, f"reference/{path.name}", content=path.read_text("utf-8")))
    return files


def on_page_markdown(markdown: str, *, page: Any, config: Any, **_: Any) -> str:
    """A link to a file of the repository becomes its path: the site has no copy of it."""
    folder = Path(config.docs_dir, page.file.src_uri).parent

    def named(found: re.Match[str]) -> str:
        text, target = found[1], (folder / found[2]).resolve()
        if target.is_relative_to(Path(config.docs_dir)):
            return found[0]
        if not target.exists():
            raise PluginError(f"{page.file.src_uri}: the link to {found[2]} leads nowhere")
        path = str(target.relative_to(ROOT))
        return f"`{path}`" if text.strip("`/") in path else f"{text} (`{path}`)"

    return _LINK.sub(named, markdown)
