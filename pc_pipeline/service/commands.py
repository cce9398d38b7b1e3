"""The command `pc serve`. `__main__` puts it on `pc`. Not here: the server (`server`)."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from pc_pipeline.service.settings import MIB, ServiceSettings, read_token


def serve_command(
    host: Annotated[
        str, typer.Option(help="Address to listen on; another than loopback needs a token.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port.", min=0, max=65535)] = 8000,
    data: Annotated[Path, typer.Option("--data", help="Folder of the store.", envvar="PC_DATA")] = Path(
        "data"
    ),
    deals: Annotated[Path, typer.Option(help="Folder of the deals that may be named.")] = Path("data/deals"),
    token_file: Annotated[
        Path | None, typer.Option(help="File with the token that clients must send; or PC_SERVE_TOKEN.")
    ] = None,
    host_name: Annotated[
        list[str] | None, typer.Option(help="A further name clients call the service by; may be repeated.")
    ] = None,
    workers: Annotated[
        int, typer.Option(help="Generation and simulation jobs at a time.", min=1, max=64)
    ] = 1,
    max_queued: Annotated[int, typer.Option(help="Jobs that may wait.", min=0)] = 1000,
    max_months: Annotated[int, typer.Option(help="Longest sequence or horizon.", min=1, max=600)] = 360,
    max_borrowers: Annotated[int, typer.Option(help="Most rows of a portfolio.", min=1)] = 1_000_000,
    max_records: Annotated[int, typer.Option(help="Most rows of a result file.", min=1)] = 50_000_000,
    max_upload_mib: Annotated[int, typer.Option(help="Largest upload, MiB.", min=1)] = 256,
    wait_seconds: Annotated[float, typer.Option(help="A request waits so long for its job.", min=0)] = 30.0,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.", envvar="PC_DEVICE")] = "auto",
    log_file: Annotated[Path | None, typer.Option(help="Log here, not to the screen.")] = None,
) -> None:
    """Serve payment sequences, portfolios and simulations over HTTP, until Ctrl-C."""
    settings = ServiceSettings(
        data_dir=data.expanduser().resolve(),
        deals_dir=deals.expanduser().resolve(),
        host=host,
        port=port,
        token=read_token(os.environ, token_file),
        host_names=tuple(host_name or ()),
        workers=workers,
        max_queued=max_queued,
        max_months=max_months,
        max_borrowers=max_borrowers,
        max_records=max_records,
        upload_bytes=max_upload_mib * MIB,
        wait_seconds=wait_seconds,
        device=device,
    )
    from pc_pipeline.service.server import serve  # the web framework, for this command alone

    shown = f"[{host}]" if ":" in host else host
    lock = "with a token" if settings.token else "without a token: anyone on this machine may ask"
    typer.echo(f"http://{shown}:{port}/docs  (data: {settings.data_dir}; {lock}; Ctrl-C stops)", err=True)
    if not serve(settings, log_file):
        raise typer.Exit(3)


def add_service_commands(app: typer.Typer) -> None:
    """Put the command on `pc`."""
    app.command("serve")(serve_command)
