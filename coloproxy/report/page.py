# SPDX-License-Identifier: Apache-2.0
"""The report as one HTML file that refers to nothing outside of itself."""

from __future__ import annotations

from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from coloproxy.report.view import View

__all__ = ["FILE_NAME", "render_html", "write_view"]

FILE_NAME = "report.html"


def clean(text: object) -> str:
    """Text without what HTML can't hold: control characters and lone surrogates of file names become U+FFFD."""
    return "".join(
        "\ufffd" if (c < " " and c not in "\t\n") or "\x7f" <= c <= "\x9f" or "\ud800" <= c <= "\udfff" else c
        for c in str(text)
    )


def render_html(view: View) -> str:
    """The page. Everything from outside is escaped; the only markup let through is our own SVG."""
    environment = Environment(
        loader=PackageLoader("coloproxy.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: clean(value) if type(value) is str else value,
    )
    return environment.get_template("page.html").render(view=view)


def write_view(view: View, directory: Path) -> Path:
    """Writes the page into `directory`, which is made if need be. Raises OSError.

    It holds clients' data, so only its owner may read it.
    """
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / FILE_NAME
    path.touch(mode=0o600)
    path.chmod(0o600)
    path.write_text(render_html(view), encoding="utf-8")
    return path
