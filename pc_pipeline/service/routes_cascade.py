"""Addresses of the payment cascade: generate, probabilities, download."""

from __future__ import annotations

from typing import Annotated, Any, Final

from fastapi import APIRouter, Header, Path, Request
from fastapi.responses import FileResponse, JSONResponse, Response
from starlette.concurrency import run_in_threadpool

from pc_pipeline.service.cascade import current_rows
from pc_pipeline.service.desk import Desk, desk_of, problems, raise_failure, status_url
from pc_pipeline.service.downloads import send_file
from pc_pipeline.service.jobs import Job
from pc_pipeline.service.payloads import Generated, GenerateRequest, PortfolioId, Status, Transitions
from pc_pipeline.service.problems import Problem
from pc_pipeline.service.shelf import GENERATED_BORROWERS, is_generated_id

router = APIRouter(prefix="/api/fintech", tags=["payment cascade"])
BYTES_A_RECORD: Final = 110  # of CSV, rather more than less
_YEARS: Final = (1970, 2149)


@router.post(
    "/generate-payment-sequences",
    response_model=Generated,
    responses={202: {"model": Generated}, **problems(404, 409, 429, 507)},
    summary="Generate payment sequences",
)
async def generate(
    request: Request,
    body: GenerateRequest,
    prefer: Annotated[str, Header(description="respond-async: answer 202 at once")] = "",
) -> JSONResponse:
    """Generate a payment history for every borrower of a portfolio and keep it as a file.

    The answer waits for the file (`200`); where that takes longer than the service waits, or with the header
    `Prefer: respond-async`, it is `202` with the address of the job. The same request gives the same file.
    A `portfolio_id` that begins with `SYNTH_` and was not uploaded names a generated portfolio of 10,000
    borrowers.
    """
    desk = desk_of(request)
    borrowers = await run_in_threadpool(_check, desk, body)
    asked = body.model_dump(mode="json")
    job = await run_in_threadpool(desk.submit, "sequences", body.portfolio_id, asked)
    if "respond-async" not in prefer.lower():
        job = await desk.waiters.wait(desk.jobs, job, desk.settings.wait_seconds)
    raise_failure(job)
    answer = _answer(body, job, borrowers)
    done = job.state == "done"
    headers = {} if done else {"Location": status_url(job), "Retry-After": "1"}
    return JSONResponse(answer.model_dump(mode="json"), 200 if done else 202, headers)


def _check(desk: Desk, body: GenerateRequest) -> int:
    """Borrowers of the portfolio; refuses what is over a limit."""
    settings = desk.settings
    if body.num_months > settings.max_months:
        raise Problem(422, "too many months", f"expected: at most {settings.max_months}")
    if body.start_date is not None and not _YEARS[0] <= body.start_date.year <= _YEARS[1]:
        raise Problem(422, "a start outside the calendar", f"expected: years {_YEARS[0]}-{_YEARS[1]}")
    note = desk.shelf.portfolio(body.portfolio_id)
    if note is None and not is_generated_id(body.portfolio_id):
        raise Problem(
            404, "there is no such portfolio", "expected: an id that POST /api/portfolios gave, or SYNTH_..."
        )
    borrowers = int(note["borrowers"]) if note else GENERATED_BORROWERS
    records = borrowers * body.num_months
    if records > settings.max_records:
        raise Problem(
            422,
            "too many records",
            f"expected: at most {settings.max_records}; got: {borrowers} borrowers, {body.num_months} months",
        )
    desk.need_room(records * BYTES_A_RECORD)
    return borrowers


def _answer(body: GenerateRequest, job: Job, borrowers: int) -> Generated:
    made = job.result
    sequences = int(made.get("sequences_generated", borrowers))
    return Generated(
        portfolio_id=body.portfolio_id,
        sequences_generated=sequences,
        total_records=int(made.get("total_records", sequences * body.num_months)),
        months_per_sequence=body.num_months,
        cascade_model=made.get("cascade_model"),
        download_url=f"/api/fintech/download/{body.portfolio_id}/payment_sequences.csv",
        job_id=job.id,
        status=job.state,  # type: ignore[arg-type]
        progress=job.progress,
        status_url=status_url(job),
        note=made.get("note") or None,
    )


@router.get(
    "/cascade-probabilities/{status}",
    response_model=Transitions,
    responses=problems(404),
    summary="Get transition probabilities",
)
async def probabilities(
    request: Request,
    status: Annotated[Status, Path(description="current payment status")],
    use_lstm: bool = True,
) -> Transitions:
    """P(next month's status | this month's), of the engine that generates now: the trained LSTM's first-order
    row, or the statistical matrix where there is none (or `use_lstm=false`)."""
    engine, rows = current_rows(desk_of(request).settings.data_dir, use_lstm)
    return Transitions(current_status=status, transitions=rows[status], cascade_model=engine)


@router.get(
    "/download/{portfolio_id}/payment_sequences.csv",
    response_class=FileResponse,
    responses={
        200: {"description": "the file", "content": {"text/csv": {"schema": {"type": "string"}}}},
        206: {"description": "a part of it (Range)"},
        **problems(404, 409, 416),
    },
    summary="Download payment sequences as CSV",
)
def download_csv(request: Request, portfolio_id: PortfolioId) -> Response:
    """The generated histories: loan_id, borrower_id, month, payment_status, payment_amount,
    principal_remaining, days_past_due, payment_date. Ranges are served: a broken download can go on."""
    return _download(request, portfolio_id, "csv", "text/csv")


@router.get(
    "/download/{portfolio_id}/payment_sequences.parquet",
    response_class=FileResponse,
    responses={
        200: {
            "description": "the file",
            "content": {"application/vnd.apache.parquet": {"schema": {"type": "string", "format": "binary"}}},
        },
        206: {"description": "a part of it (Range)"},
        **problems(404, 409, 416),
    },
    summary="Download payment sequences as Parquet",
)
def download_parquet(request: Request, portfolio_id: PortfolioId) -> Response:
    """The same rows, typed; there when the request asked for `parquet`."""
    return _download(request, portfolio_id, "parquet", "application/vnd.apache.parquet")


@router.head("/download/{portfolio_id}/payment_sequences.csv", include_in_schema=False)
def head_csv(request: Request, portfolio_id: PortfolioId) -> Response:
    """Size of the CSV."""
    return _download(request, portfolio_id, "csv", "text/csv")


def _download(request: Request, portfolio_id: str, kind: str, media_type: str) -> Response:
    desk = desk_of(request)
    path = desk.shelf.sequences_file(portfolio_id, kind)
    if path is not None:
        return send_file(request, path, media_type, f"payment_sequences.{kind}")
    active: list[Any] = [job for job in desk.jobs.active(portfolio_id) if job.kind == "sequences"]
    if active:
        raise Problem(
            409,
            "the sequences are being generated",
            headers={"Retry-After": "2"},
            status_url=status_url(active[-1]),
        )
    raise Problem(404, "no sequences of this portfolio", "expected: POST generate-payment-sequences first")
