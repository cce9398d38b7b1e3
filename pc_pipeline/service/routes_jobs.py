"""Addresses of background work and of the service itself: jobs, simulations, health, models."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Request
from fastapi.responses import FileResponse, JSONResponse, Response

from pc_pipeline import __version__
from pc_pipeline.service.cascade import current_rows
from pc_pipeline.service.catalogue import can_simulate, deal_names, model_cards, scenario_names
from pc_pipeline.service.desk import JOB_ID, Desk, desk_of, problems, status_url
from pc_pipeline.service.downloads import send_file
from pc_pipeline.service.jobs import Job
from pc_pipeline.service.payloads import Health, JobAnswer, Models, Simulation, SimulationRequest
from pc_pipeline.service.problems import Problem
from pc_pipeline.service.shelf import SIMULATION_FILES

router = APIRouter()
JobId = Annotated[str, Path(pattern=JOB_ID, description="32 hexadecimal digits")]
_MEDIA = {
    "csv": "text/csv",
    "html": "text/html",
    "parquet": "application/vnd.apache.parquet",
    "xlsx": "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet",
}


@router.get("/health", response_model=Health, tags=["service"], responses=problems(), summary="Health")
def health(request: Request) -> Health:
    """Whether the service works; asks for no token and says nothing of any portfolio."""
    desk = desk_of(request)
    alive, free = desk.runner.alive(), desk.shelf.free_bytes()
    well = alive and free > desk.settings.min_free_bytes
    return Health(
        status="ok" if well else "degraded",
        version=__version__,
        workers=alive,
        jobs=desk.jobs.counts(),
        free_bytes=free,
    )


@router.get("/models", response_model=Models, tags=["service"], responses=problems(), summary="Models")
def models(request: Request) -> Models:
    """Stored models, scenarios and deals that the service computes with."""
    settings = desk_of(request).settings
    return Models(
        cascade_model=current_rows(settings.data_dir)[0],
        can_simulate=can_simulate(settings),
        models=model_cards(settings),
        scenarios=scenario_names(settings),
        deals=deal_names(settings),
    )


# ---- jobs ------------------------------------------------------------------------------------


def _job(desk: Desk, job_id: str, kind: str = "") -> Job:
    job = desk.jobs.get(job_id)
    if job is None or (kind and job.kind != kind):
        raise Problem(404, f"there is no such {kind or 'job'}")
    return job


@router.get(
    "/api/jobs/{job_id}",
    response_model=JobAnswer,
    tags=["jobs"],
    responses=problems(404),
    summary="State of a job",
)
def job_state(request: Request, job_id: JobId) -> JSONResponse:
    """How far a job is, what came of it, or why it failed."""
    desk = desk_of(request)
    return JSONResponse(desk.job_answer(_job(desk, job_id)))


@router.post(
    "/api/jobs/{job_id}/resume",
    status_code=202,
    response_model=JobAnswer,
    tags=["jobs"],
    responses=problems(404, 409),
    summary="Resume a failed job",
)
def resume(request: Request, job_id: JobId) -> JSONResponse:
    """Queue a failed job again; a generation goes on after its last whole piece."""
    desk = desk_of(request)
    job = _job(desk, job_id)
    queued = desk.jobs.resume(job_id) if job.can_resume else None
    if queued is None:
        raise Problem(409, "the job cannot be resumed", f"expected: a failed job that can; got: {job.state}")
    desk.runner.wake()
    return JSONResponse(desk.job_answer(queued), 202, {"Location": status_url(queued)})


@router.delete(
    "/api/jobs/{job_id}",
    response_model=JobAnswer,
    tags=["jobs"],
    responses=problems(404, 409),
    summary="Cancel a job",
)
def cancel(request: Request, job_id: JobId) -> JSONResponse:
    """Cancel a job that waits or runs; what it has written is removed."""
    desk = desk_of(request)
    job = _job(desk, job_id)
    cancelled = desk.jobs.cancel(job_id)
    if cancelled is None:
        raise Problem(409, "the job is over", f"got: {job.state}")
    if job.state == "queued":
        desk.shelf.drop_job_files(job_id)
    desk.waiters.release(job_id)
    return JSONResponse(desk.job_answer(cancelled))


# ---- simulations -----------------------------------------------------------------------------


def _simulation(desk: Desk, job: Job) -> dict[str, object]:
    files = job.result.get("files", [])
    place = f"/api/simulations/{job.id}/files/"
    return desk.job_answer(job) | {"files": {name: place + name for name in files}}


@router.post(
    "/api/simulations",
    status_code=202,
    response_model=Simulation,
    tags=["simulations"],
    responses=problems(404, 409, 429, 507),
    summary="Run a simulation",
)
def simulate(request: Request, body: SimulationRequest) -> JSONResponse:
    """Run a pool through a scenario and a deal, in the background.

    Needs trained models in the store (`make run` trains them); without them the answer is `409`.
    """
    desk = desk_of(request)
    settings = desk.settings
    if body.n_paths > settings.max_paths or body.n_months > settings.max_months:
        raise Problem(
            422,
            "too large a simulation",
            f"expected: at most {settings.max_paths} paths, {settings.max_months} months",
        )
    if body.scenario not in scenario_names(settings):
        raise Problem(404, "there is no such scenario", f"expected: {', '.join(scenario_names(settings))}")
    if body.deal and body.deal not in deal_names(settings):
        raise Problem(404, "there is no such deal", f"expected: {', '.join(deal_names(settings))}")
    if not can_simulate(settings):
        raise Problem(
            409, "the store has no trained models", "expected: `make run` on this data folder first"
        )
    if body.portfolio_id is not None:
        note = desk.shelf.portfolio(body.portfolio_id)
        if note is None:
            raise Problem(404, "there is no such portfolio")
        if note["kind"] != "loans":
            raise Problem(422, "only a loan tape can be simulated", "expected: a loan tape; got: borrowers")
    desk.need_room(80 * body.n_paths * body.n_months)
    job = desk.submit("simulation", body.portfolio_id or "", body.model_dump(mode="json"))
    return JSONResponse(_simulation(desk, job), 202, {"Location": status_url(job), "Retry-After": "1"})


@router.get(
    "/api/simulations/{job_id}",
    response_model=Simulation,
    tags=["simulations"],
    responses=problems(404),
    summary="State of a simulation",
)
def simulation_state(request: Request, job_id: JobId) -> JSONResponse:
    """How far a simulation is; when it is done, its measures with 95 % intervals, its classes, its files."""
    desk = desk_of(request)
    return JSONResponse(_simulation(desk, _job(desk, job_id, "simulation")))


@router.get(
    "/api/simulations/{job_id}/files/{name}",
    response_class=FileResponse,
    tags=["simulations"],
    responses={
        200: {
            "description": "the file",
            "content": {media: {"schema": {"type": "string"}} for media in _MEDIA.values()},
        },
        206: {"description": "a part of it (Range)"},
        **problems(404, 416),
    },
    summary="Download a result file",
)
def simulation_file(
    request: Request,
    job_id: JobId,
    name: Annotated[str, Path(max_length=100, description=", ".join(SIMULATION_FILES))],
) -> Response:
    """One of the files that a finished simulation lists."""
    desk = desk_of(request)
    job = _job(desk, job_id, "simulation")
    if name not in job.result.get("files", []):
        raise Problem(
            404, "there is no such file", f"expected: {', '.join(job.result.get('files', [])) or 'none yet'}"
        )
    path = desk.shelf.simulation_file(job_id, name)
    return send_file(request, path, _MEDIA[path.suffix[1:]], name)
