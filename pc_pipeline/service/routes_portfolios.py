"""Addresses of portfolios: upload, look, refused rows, erase."""

from __future__ import annotations

import os
import re
import shutil
import uuid
from pathlib import Path
from typing import Annotated, Final

from fastapi import APIRouter, File, Form, Request, UploadFile
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from starlette.concurrency import run_in_threadpool

from pc_pipeline.loans.ingest.files import KINDS
from pc_pipeline.service.desk import Desk, desk_of, problems, raise_failure, status_url
from pc_pipeline.service.jobs import Job
from pc_pipeline.service.payloads import Portfolio, PortfolioAccepted, PortfolioId
from pc_pipeline.service.problems import Problem
from pc_pipeline.service.shelf import check_portfolio_id

router = APIRouter(prefix="/api/portfolios", tags=["portfolios"])
MOST_FILES: Final = 8
MAPPING_NAME: Final = "mapping.yaml"
_MONTH: Final = r"^\d{4}-(0[1-9]|1[0-2])$"


@router.post(
    "",
    status_code=201,
    response_model=Portfolio,
    responses={202: {"model": PortfolioAccepted}, **problems(409, 415, 429, 507)},
    summary="Upload a portfolio",
)
async def upload(
    request: Request,
    files: Annotated[
        list[UploadFile],
        File(
            min_length=1,
            max_length=MOST_FILES,
            description="CSV, Parquet or XLSX; a tape and its panel together",
        ),
    ],
    portfolio_id: Annotated[PortfolioId | None, Form()] = None,
    replace: Annotated[bool, Form(description="take the place of a portfolio of this id")] = False,
    mapping: Annotated[
        UploadFile | None, File(description="YAML: your columns, units and codes to ours")
    ] = None,
    as_of: Annotated[
        str | None, Form(pattern=_MONTH, description="YYYY-MM; later months are refused")
    ] = None,
) -> JSONResponse:
    """Store a borrower file (loan_id or borrower_id and any of the ten features) or a loan tape in any format
    that the pipeline reads. Every row is checked like any other table; good rows are kept, bad rows lie in
    quarantine with their reason. Nothing of it is kept where no row is good (`422`).
    """
    desk = desk_of(request)
    portfolio_id = portfolio_id or f"PORT_{uuid.uuid4().hex[:16]}"
    job_id = uuid.uuid4().hex
    sent = [*files, *([mapping] if mapping else [])]
    names = _file_names([file.filename or "" for file in files]) + ([MAPPING_NAME] if mapping else [])
    await run_in_threadpool(_check, desk, portfolio_id, replace, sum(file.size or 0 for file in sent))
    await run_in_threadpool(_keep, desk.shelf.upload_folder(job_id), sent, names)
    asked = {"files": names, "as_of": as_of or "", "replace": replace}
    try:
        job = await run_in_threadpool(desk.submit, "portfolio", portfolio_id, asked, job_id)
    except BaseException:
        await run_in_threadpool(desk.shelf.drop_job_files, job_id)
        raise
    job = await desk.waiters.wait(desk.jobs, job, desk.settings.wait_seconds)
    raise_failure(job)
    return await run_in_threadpool(_stored, desk, portfolio_id, job)


def _check(desk: Desk, portfolio_id: str, replace: bool, n_bytes: int) -> None:
    if desk.shelf.portfolio(check_portfolio_id(portfolio_id)) is not None and not replace:
        raise Problem(409, "there is a portfolio of this id", "expected: another id, or replace=true")
    desk.need_room(3 * n_bytes)


def _file_names(given: list[str]) -> list[str]:
    """Names to keep uploads under: safe, distinct, with the suffix that says what they are.

    Raises:
        Problem: 415, a kind that is not read.
    """
    names: list[str] = []
    for number, name in enumerate(given):
        suffix = Path(name.replace("\\", "/")).suffix.lower()
        if suffix not in KINDS:
            raise Problem(415, "not a kind of file that is read here", f"expected: {', '.join(KINDS)}")
        stem = re.sub(r"[^A-Za-z0-9_-]+", "_", Path(name.replace("\\", "/")).stem)[:60].strip("_-") or "file"
        safe = f"{stem}{suffix}"
        names.append(safe if safe not in names else f"{stem}_{number}{suffix}")
    return names


def _keep(folder: Path, sent: list[UploadFile], names: list[str]) -> None:
    """Write uploads to disk, whole or not at all."""
    folder.mkdir(parents=True)
    try:
        for file, name in zip(sent, names, strict=True):
            with (folder / name).open("wb") as handle:
                shutil.copyfileobj(file.file, handle, 1 << 20)
                handle.flush()
                os.fsync(handle.fileno())
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _stored(desk: Desk, portfolio_id: str, job: Job) -> JSONResponse:
    note = desk.shelf.portfolio(portfolio_id) if job.state == "done" else None
    if note is None:
        waiting = PortfolioAccepted(
            portfolio_id=portfolio_id,
            job_id=job.id,
            status=job.state,  # type: ignore[arg-type]
            status_url=status_url(job),
        )
        headers = {"Location": status_url(job), "Retry-After": "1"}
        return JSONResponse(waiting.model_dump(mode="json"), 202, headers)
    place = {"Location": f"/api/portfolios/{portfolio_id}"}
    return JSONResponse(_shown(portfolio_id, note).model_dump(mode="json"), 201, place)


def _shown(portfolio_id: str, note: dict[str, object]) -> Portfolio:
    known = {name: note[name] for name in Portfolio.model_fields if name in note}
    return Portfolio.model_validate(
        {
            **known,
            "portfolio_id": portfolio_id,
            "quarantine_url": f"/api/portfolios/{portfolio_id}/quarantine.csv",
        }
    )


@router.get(
    "/{portfolio_id}", response_model=Portfolio, responses=problems(404), summary="Look at a portfolio"
)
def look(request: Request, portfolio_id: PortfolioId) -> Portfolio:
    """What was accepted and refused of a portfolio."""
    note = desk_of(request).shelf.portfolio(portfolio_id)
    if note is None:
        raise Problem(404, "there is no such portfolio")
    return _shown(portfolio_id, note)


@router.get(
    "/{portfolio_id}/quarantine.csv",
    response_class=PlainTextResponse,
    responses={
        200: {"description": "refused rows", "content": {"text/csv": {"schema": {"type": "string"}}}},
        **problems(404),
    },
    summary="Download refused rows",
)
def quarantine(request: Request, portfolio_id: PortfolioId) -> Response:
    """Every refused row as it came, with its place and the reason."""
    shelf = desk_of(request).shelf
    if shelf.portfolio(portfolio_id) is None:
        raise Problem(404, "there is no such portfolio")
    text = shelf.quarantine_csv(portfolio_id)
    headers = {"Content-Disposition": 'attachment; filename="quarantine.csv"'}
    return Response(text, media_type="text/csv", headers=headers)


@router.delete("/{portfolio_id}", status_code=204, responses=problems(404, 409), summary="Erase a portfolio")
def erase(request: Request, portfolio_id: PortfolioId) -> Response:
    """Erase a portfolio, its refused rows and its sequences, and what jobs kept of them."""
    desk = desk_of(request)
    if desk.shelf.portfolio(portfolio_id) is None:
        raise Problem(404, "there is no such portfolio")
    if desk.jobs.active(portfolio_id):
        raise Problem(409, "a job works on this portfolio", "expected: wait for it, or DELETE the job")
    desk.shelf.remove_portfolio(portfolio_id)
    desk.jobs.forget(portfolio_id)
    return Response(status_code=204)
