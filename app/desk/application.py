"""The web application inside the guard: Gradio at the root, and our few own pages before it."""

from __future__ import annotations

import json
import secrets
from pathlib import Path

import gradio as gr
from fastapi import FastAPI, Response
from fastapi.responses import PlainTextResponse

from app.desk.page import Page, page_head, page_style, page_theme
from app.desk.port import DeskWorker
from app.desk.uploads import Uploads

PROGRAM_FOLDER = Path(__file__).resolve().parents[2]
MANIFEST = {
    "name": "Longread",
    "short_name": "Longread",
    "start_url": "/",
    "display": "standalone",
    "background_color": "#fbfaf7",
    "theme_color": "#fbfaf7",
    "icons": [],
}
# Gradio's own words in the drop area, by its keys.
UPLOAD_WORDS = {
    "upload_text.drop_file": "Drop it here",
    "upload_text.click_to_upload": "Choose a file",
}
_NO_DOCS = {"docs_url": None, "redoc_url": None, "openapi_url": None}


def version() -> str:
    """The program's version: the newest heading of the change log, `(development)` without one."""
    try:
        text = (PROGRAM_FOLDER / "CHANGELOG.md").read_text(encoding="utf-8")
    except OSError:
        return "(development)"
    for line in text.splitlines():
        words = line.strip("#[] ").replace("]", " ").split()
        if line.startswith("## ") and words and words[0][:1].isdigit():
            return words[0]
    return "(development)"


def build_application(
    worker: DeskWorker, uploads: Uploads, *, port: int, max_file_bytes: int
) -> FastAPI:
    """Mount the page. `server.set_environment` must have run before this module is imported."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)

    @app.get("/manifest.json", include_in_schema=False)
    def manifest() -> Response:
        return Response(json.dumps(MANIFEST), media_type="application/manifest+json")

    @app.get("/source", include_in_schema=False)
    def source() -> PlainTextResponse:
        return PlainTextResponse(source_text())

    # An answer is made of text the document may have written: a class name that changes at every
    # launch keeps it from drawing chips that look verified.
    chip_class = f"lr-chip-{secrets.token_hex(4)}"
    page = Page(worker, uploads, version=version(), chip_class=chip_class)
    gr.mount_gradio_app(
        app,
        page.blocks,
        path="/",
        server_name="127.0.0.1",
        server_port=port,
        app_kwargs=dict(_NO_DOCS),
        footer_links=[],
        run_history=False,
        allowed_paths=[],
        show_error=False,
        max_file_size=max_file_bytes,
        ssr_mode=False,
        enable_monitoring=False,
        mcp_server=False,
        pwa=False,
        i18n=gr.I18n(en=UPLOAD_WORDS),
        theme=page_theme(),
        css=page_style(chip_class),
        head=page_head(),
    )
    return app


def source_text() -> str:
    """Where the source of this very program is, and its licence."""
    text = (
        "Longread is free software: you may use, study, share and change it under the terms of\n"
        "the GNU Affero General Public License, version 3 or later. There is no warranty.\n\n"
        "The program runs from its own source code. The complete source of this copy is in\n\n"
        f"    {PROGRAM_FOLDER}\n\n"
        "If you change it and let others use it over a network, offer them your changed source.\n"
    )
    licence = PROGRAM_FOLDER / "LICENSE"
    if licence.is_file():
        text += "\n" + "-" * 78 + "\n\n" + licence.read_text(encoding="utf-8", errors="replace")
    return text
