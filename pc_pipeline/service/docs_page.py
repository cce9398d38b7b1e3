"""The documentation page: Swagger UI from files of an installed package, so that it works without internet.

Here: /docs and its three files. Not here: the schema itself (`app`). The page holds no inline script, so
the content policy of every answer holds for it too.
"""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import Final

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse, Response

from pc_pipeline.service.problems import Problem

router = APIRouter(include_in_schema=False)
_KINDS: Final = {
    "swagger-ui-bundle.js": "text/javascript",
    "swagger-ui.css": "text/css",
    "start.js": "text/javascript",
    "page.css": "text/css",
}
_PAGE: Final = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>pc_pipeline · API</title>
<link rel="icon" href="data:,">
<link rel="stylesheet" href="docs/swagger-ui.css">
<link rel="stylesheet" href="docs/page.css">
</head>
<body>
<div id="swagger-ui"></div>
<script src="docs/swagger-ui-bundle.js"></script>
<script src="docs/start.js"></script>
</body>
</html>
"""
_START: Final = """SwaggerUIBundle({
  url: 'openapi.json', dom_id: '#swagger-ui', deepLinking: true, defaultModelsExpandDepth: 0,
  docExpansion: 'list', displayRequestDuration: true, validatorUrl: null, tryItOutEnabled: true,
  presets: [SwaggerUIBundle.presets.apis, SwaggerUIBundle.SwaggerUIStandalonePreset].filter(Boolean)
});
"""
_STYLE: Final = """body { margin: 0; background: #fafafa; }
.swagger-ui .wrapper { max-width: 1100px; }
.swagger-ui .markdown code, .swagger-ui .renderedMarkdown code { padding: 1px 4px; font-size: 12px; }
.swagger-ui .body-param textarea.body-param__text { min-height: 140px; height: 140px; }
"""


@router.get("/docs")
def docs(request: Request) -> HTMLResponse:
    """The page."""
    return HTMLResponse(_PAGE)


@router.get("/docs/{name}")
def docs_file(name: str) -> Response:
    """One of its files."""
    if name not in _KINDS:
        raise Problem(404, "there is no such file")
    headers = {"Cache-Control": "public, max-age=3600"}
    return Response(_content(name), media_type=_KINDS[name], headers=headers)


@cache
def _content(name: str) -> bytes:
    own = {"start.js": _START, "page.css": _STYLE}
    if name in own:
        return own[name].encode()
    return (files("fastapi_offline") / "static" / name).read_bytes()
