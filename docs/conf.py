"""The site: Sphinx reads README.md, docs/ and studies/ where they are, and adds what is made from the code.

Run:    make docs
Writes: docs/_build/html/, which needs no network to be read

A page says where text from the code goes in with a line `<!-- from the code: parameters -->`.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path

from sphinx.application import Sphinx

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

project = "AlexNet, reproducibly"
extensions = ["myst_parser", "sphinx.ext.autodoc"]
root_doc = "docs/index"
source_suffix = {".md": "markdown"}
# a data store may be a link to a large folder elsewhere, and Sphinx follows links: only these are looked into
PAGES = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs", "studies")
exclude_patterns = [name for name in sorted(each.name for each in ROOT.iterdir()) if name not in PAGES] + [
    "docs/_build"
]

myst_heading_anchors = 3

default_role = "code"
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True

html_theme = "furo"
html_title = project
html_extra_path = ["site"]
html_static_path, html_css_files = ["static"], ["phone.css"]
html_copy_source = False
html_show_copyright = False
html_last_updated_fmt = None
pygments_style, pygments_dark_style = "default", "monokai"

PLACE = re.compile(r"^<!-- from the code: (\w+) -->$", re.M)


def made(name: str) -> str:
    """The text that stands for a place on a page."""
    from docs import commands, modules, parameters

    makers: dict[str, Callable[[], str]] = {
        "parameters": parameters.text,
        "commands": commands.text,
        "modules": modules.text,
    }
    return makers[name]()


def completed(_app: Sphinx, page: str, source: list[str]) -> None:
    """Fills a page's places, and lets a link to a folder, as GitHub reads it, lead to the folder's README.md."""
    folder = (ROOT / page).parent

    def read(link: re.Match[str]) -> str:
        return f"]({link[1]}README.md)" if (folder / link[1] / "README.md").is_file() else link[0]

    if page == "studies/README":
        source[0] += "\n```{toctree}\n:hidden:\n:glob:\n\n*/README\n```\n"
    elif page.startswith("studies/") and not page.endswith("/README"):
        source[0] = f"---\norphan: true\n---\n{source[0]}"  # tables, which their study links to
    source[0] = PLACE.sub(lambda place: made(place[1]), re.sub(r"\]\(([^)#:]+/)\)", read, source[0]))


def escaped(_app: Sphinx, _what: str, _name: str, _of: object, _options: object, lines: list[str]) -> None:
    """A docstring is plain text with `code`, not reStructuredText: |x| is an absolute value, no substitution."""
    lines[:] = [line.replace("|", "\\|").replace("*", "\\*") for line in lines]


def always(app: Sphinx, *_: object) -> list[str]:
    """The pages with text from the code are read anew each time."""
    return [
        page for page in app.env.found_docs if PLACE.search(Path(app.env.doc2path(page)).read_text(encoding="utf-8"))
    ]


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.connect("source-read", completed)
    app.connect("autodoc-process-docstring", escaped)
    app.connect("env-get-outdated", always)
