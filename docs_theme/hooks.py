"""What MkDocs does not do by itself: links to files outside of docs/.

In a checkout a link such as `../examples/fine_tuning.py` leads to the file.
Here every such file becomes a page of the site, and the links lead there.
"""

from __future__ import annotations

import json
import pathlib
import posixpath
import re
from typing import Any

from mkdocs.structure.files import File, Files

_LINK = re.compile(r"\]\(((?:\.\./)+[^)#\s]+)\)")
_ROOT = pathlib.Path(__file__).resolve().parents[1]
_LANGUAGES = {".py": "python", ".yml": "yaml", ".sh": "sh"}


def on_files(files: Files, config: Any) -> Files:
    """Adds a page for every file outside of docs/ that a page links to."""
    for file in list(files.documentation_pages()):
        for link in _LINK.findall(file.content_string):
            path = _path(file, link)
            page = f"repository/{path}.md"
            if path and page not in files.src_uris:
                files.append(
                    File.generated(config, page, content=_content(path))
                )
    return files


def on_page_markdown(
    markdown: str, page: Any, config: Any, files: Files
) -> str:
    """Points links to files outside of docs/ at their pages."""

    def replaced(match: re.Match[str]) -> str:
        path = _path(page.file, match[1])
        if not path:
            return match[0]
        start = posixpath.dirname(page.file.src_uri) or "."
        return f"]({posixpath.relpath(f'repository/{path}.md', start)})"

    return _LINK.sub(replaced, markdown)


def _path(file: File, link: str) -> str:
    """Returns the path in the repository; "" for a page of docs/."""
    folder = posixpath.join("docs", posixpath.dirname(file.src_uri))
    path = posixpath.normpath(posixpath.join(folder, link))
    return "" if path.startswith("docs/") else path


def _content(path: str) -> str:
    """Returns a file of the repository as Markdown."""
    source = _ROOT / path
    if source.is_dir():
        names = sorted(each.name for each in source.iterdir() if each.is_file())
        return f"# {path}\n\n" + "".join(f"- `{name}`\n" for name in names)
    text = source.read_text("utf-8")
    if source.suffix == ".md":
        return re.sub(r"\]\((?!https?:)[^)]*\)", "]", text)
    if source.suffix == ".ipynb":
        return f"# {source.name}\n\n" + "".join(
            map(_cell, json.loads(text)["cells"])
        )
    language = _LANGUAGES.get(source.suffix, "text")
    return f"# {source.name}\n\n````{language}\n{text}\n````\n"


def _cell(cell: dict[str, Any]) -> str:
    """Returns a cell of a notebook, with what it printed."""
    source = "".join(cell["source"])
    if cell["cell_type"] == "markdown":
        return re.sub(r"(?m)^#", "##", source) + "\n\n"
    printed = ""
    for output in cell["outputs"]:
        data = output.get("data", {}).get("text/plain", [])
        printed += "".join(output.get("text", data)).rstrip("\n") + "\n"
    shown = f"````text\n{printed}````\n\n" if printed.strip() else ""
    return f"````python\n{source}\n````\n\n{shown}"
