"""The REST service: a thin door to what the rooms below do. `create_app()` builds it, `pc serve` runs it.

    settings   where it listens, what it refuses      jobs      state of background work (SQLite)
    app        the application, put together          runner    worker processes, watched and restarted
    routes_*   the addresses                          worker    one worker process: claims jobs, runs them
    payloads   what comes in and goes out             task_*    what each kind of job does
    guard      what every request meets first         shelf     folders and files of the service
    problems   errors as problem+json (faults)        desk      what every address works with
    docs_page  the documentation page                 server    uvicorn, with patience that ends
    downloads  files as answers
    cascade    the engine of payment sequences now    catalogue models, scenarios and deals by name

The process that answers requests loads no network: models run in workers. Not here: any model, any figure.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pc_pipeline.service.app import create_app
    from pc_pipeline.service.settings import ServiceSettings

__all__ = ["ServiceSettings", "create_app"]


def __getattr__(name: str) -> Any:
    # on first use: a worker process has no need of the web framework
    if name == "create_app":
        from pc_pipeline.service.app import create_app

        return create_app
    if name == "ServiceSettings":
        from pc_pipeline.service.settings import ServiceSettings

        return ServiceSettings
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
