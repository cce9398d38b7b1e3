"""The application, put together. Not here: addresses (`routes_*`), the server process (`server`)."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from starlette.concurrency import run_in_threadpool

from pc_pipeline import __version__
from pc_pipeline.core.errors import StoreError
from pc_pipeline.service import docs_page, routes_cascade, routes_jobs, routes_portfolios
from pc_pipeline.service.desk import Desk
from pc_pipeline.service.guard import Guard
from pc_pipeline.service.jobs import JobStore
from pc_pipeline.service.payloads import ProblemDocument
from pc_pipeline.service.problems import add_handlers
from pc_pipeline.service.runner import ProcessRunner, Runner
from pc_pipeline.service.settings import ServiceSettings
from pc_pipeline.service.shelf import Shelf

DESCRIPTION = """Payment histories, portfolios and simulations over HTTP.

Errors are `application/problem+json`. Long work is queued and outlives a restart: ask for it at its
`status_url`. Figures and conventions are those of the pipeline; see its own documents.
"""


def create_app(settings: ServiceSettings | None = None, *, runner: Runner | None = None) -> FastAPI:
    """The service as an ASGI application.

    Args:
        settings: where state lies and what is refused; by default the folder `data` below the working folder.
        runner: what runs queued jobs; by default worker processes.

    The folder is taken when the application starts (one service a folder); jobs that were running when the
    last one died are queued again.
    """
    settings = settings or ServiceSettings()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        desk = await run_in_threadpool(open_desk, settings, runner or ProcessRunner())
        desk.waiters.open()
        app.state.desk = desk
        await run_in_threadpool(desk.runner.start, desk.jobs, settings, desk.waiters.release)
        try:
            yield
        finally:
            desk.waiters.release()
            await run_in_threadpool(desk.runner.stop, settings.stop_seconds)
            await run_in_threadpool(desk.close)

    app = FastAPI(
        title="pc_pipeline",
        version=__version__,
        description=DESCRIPTION,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    for routes in (routes_cascade, routes_portfolios, routes_jobs, docs_page):
        app.include_router(routes.router)
    add_handlers(app)
    app.add_middleware(Guard, settings=settings)
    app.openapi = lambda: _openapi(app, settings)  # type: ignore[method-assign]
    return app


def open_desk(settings: ServiceSettings, runner: Runner) -> Desk:
    """Take the folder, and put right what the last service left.

    Raises:
        ConfigError: another service runs on it. StoreError: its jobs cannot be opened.
    """
    shelf = Shelf(settings.service_dir)
    lock = shelf.lock()
    try:
        jobs = _open_jobs(shelf, settings)
        shelf.sweep(lambda job_id: _is_over(jobs, job_id))
    except BaseException:
        lock.close()
        raise
    return Desk(settings=settings, jobs=jobs, shelf=shelf, runner=runner, lock=lock)


def _open_jobs(shelf: Shelf, settings: ServiceSettings) -> JobStore:
    """The jobs, with what was running queued again.

    Raises:
        StoreError: the file is damaged, or cannot be written.
    """
    try:
        jobs = JobStore(shelf.jobs_file, settings.max_attempts)
        jobs.abandon()
    except sqlite3.Error as error:
        raise StoreError(
            "the service's jobs cannot be opened",
            expected="a SQLite file that can be written, and room on the disk",
            got=error,
            where=shelf.jobs_file,
        ) from error
    return jobs


def _is_over(jobs: JobStore, job_id: str) -> bool:
    job = jobs.get(job_id)
    return job is None or job.state in ("done", "cancelled")


def _openapi(app: FastAPI, settings: ServiceSettings) -> dict[str, Any]:
    """The schema, with this service's own limits, the problem document and, where there is one, the token."""
    if app.openapi_schema is None:
        schema = get_openapi(
            title=app.title, version=app.version, description=app.description, routes=app.routes
        )
        parts = schema.setdefault("components", {}).setdefault("schemas", {})
        parts["ProblemDocument"] = ProblemDocument.model_json_schema()
        for unused in ("HTTPValidationError", "ValidationError"):
            parts.pop(unused, None)
        limits = {"num_months": settings.max_months, "n_months": settings.max_months}
        for model in ("GenerateRequest", "SimulationRequest"):
            for name, value in (limits | {"n_paths": settings.max_paths}).items():
                if name in parts[model]["properties"]:
                    parts[model]["properties"][name]["maximum"] = value
        if settings.token:
            schema["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
            schema["security"] = [{"token": []}]
        app.openapi_schema = schema
    return app.openapi_schema
