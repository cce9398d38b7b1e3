"""Folders and files of the service: portfolios, their sequences, uploads, simulation results.

    <data>/service/jobs.sqlite
    <data>/service/uploads/<job>/...                    what was sent, until it has been read
    <data>/service/portfolios/<id>/portfolio.json       swapped in last; names the version's folder
    <data>/service/portfolios/<id>/<version>/*.parquet  borrowers, loans, panel, recoveries, quarantine
    <data>/service/portfolios/<id>/sequences.json       swapped in last; names the files
    <data>/service/portfolios/<id>/sequences-<job>.csv
    <data>/service/partial/<job>.csv                    being written; a resumed job goes on with it
    <data>/service/simulations/<job>/*

A file that a note names never changes; a new one takes another name and the note is swapped. So a download
that has begun ends as it began. Not here: who may ask for what (`guard`), state of jobs (`jobs`).
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

import polars as pl

from pc_pipeline.core.errors import ConfigError, StoreError
from pc_pipeline.core.store import replace_file
from pc_pipeline.loans.payment_records import neutralise

PORTFOLIO_ID: Final = r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$"
SIMULATION_FILES: Final = (
    "pool_report.csv",
    "tranche_report.csv",
    "cash_flow_report.csv",
    "tranche_balance_report.csv",
    "simulations.parquet",
    "report.html",
    "report.xlsx",
)
GENERATED_PREFIX: Final = "SYNTH_"
GENERATED_BORROWERS: Final = 10_000
_ID: Final = re.compile(PORTFOLIO_ID, re.ASCII)
_NOTE, _SEQUENCES = "portfolio.json", "sequences.json"


def check_portfolio_id(name: str) -> str:
    """The id, if it can be a folder name that never leaves its place.

    Raises:
        ConfigError: otherwise.
    """
    if not _ID.fullmatch(name) or name.endswith("\n"):
        raise ConfigError(
            "not a portfolio id", expected="1 to 64 of A-Z a-z 0-9 _ -, the first a letter or digit"
        )
    return name


def is_generated_id(portfolio_id: str) -> bool:
    """Whether an id that was not uploaded names a generated portfolio."""
    return portfolio_id.startswith(GENERATED_PREFIX)


def csv_text(frame: pl.DataFrame) -> str:
    """A frame as CSV; text that a spreadsheet would run as a formula gets a leading quote."""
    text = [name for name, kind in frame.schema.items() if kind == pl.String]
    return frame.with_columns(neutralise(pl.col(name)) for name in text).write_csv()


@dataclass(frozen=True, slots=True)
class Shelf:
    """Paths below one service folder, and the notes that say which files count."""

    root: Path

    @property
    def jobs_file(self) -> Path:
        """The SQLite file of jobs."""
        return self.root / "jobs.sqlite"

    def lock(self) -> IO[bytes]:
        """Hold the folder for one service; released when the handle is closed or the process dies.

        Raises:
            ConfigError: another service holds it.
        """
        self.root.mkdir(parents=True, exist_ok=True)
        handle = (self.root / "lock").open("ab")
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            handle.close()
            raise ConfigError(
                "another service runs on this folder", expected="one service a folder", got=self.root
            ) from None
        return handle

    def free_bytes(self) -> int:
        """Room left on the disk."""
        self.root.mkdir(parents=True, exist_ok=True)
        return shutil.disk_usage(self.root).free

    def sweep(self, is_over: Callable[[str], bool]) -> None:
        """Remove what a killed service left: temporary files, files of jobs that are over or unknown."""
        for path in self.root.rglob(".tmp-*"):
            path.unlink(missing_ok=True)
        for name in ("uploads", "partial"):
            folder = self.root / name
            for path in folder.iterdir() if folder.is_dir() else ():
                if is_over(path.stem):
                    self.drop_job_files(path.stem)

    def quarantine_csv(self, portfolio_id: str) -> str:
        """Refused rows of a portfolio as CSV text."""
        frame = pl.read_parquet(self.table_path(portfolio_id, "quarantine"))
        return csv_text(frame)

    # ---- portfolios --------------------------------------------------------------------------

    def portfolio_folder(self, portfolio_id: str) -> Path:
        """A portfolio's folder; the id is checked."""
        return self.root / "portfolios" / check_portfolio_id(portfolio_id)

    def portfolio(self, portfolio_id: str) -> dict[str, Any] | None:
        """The note of a portfolio, None if there is none."""
        return _read_note(self.portfolio_folder(portfolio_id) / _NOTE)

    def table_path(self, portfolio_id: str, table: str) -> Path:
        """Parquet file of one table of a portfolio's current version.

        Raises:
            StoreError: there is no such portfolio, or it has no such table.
        """
        note = self.portfolio(portfolio_id)
        if note is None or table not in note["tables"]:
            known = sorted(note["tables"]) if note else "no such portfolio"
            raise StoreError(f"the portfolio has no {table}", expected=table, got=known)
        return self.portfolio_folder(portfolio_id) / str(note["version"]) / f"{table}.parquet"

    def keep_portfolio(
        self, portfolio_id: str, version: str, tables: Mapping[str, Any], note: Mapping[str, Any]
    ) -> None:
        """Write a version's tables, then swap its note in; earlier versions and their sequences go."""
        folder = self.portfolio_folder(portfolio_id)
        for name, frame in tables.items():
            with replace_file(folder / version / f"{name}.parquet") as temporary:
                frame.write_parquet(temporary, compression="zstd")
        _write_note(folder / _NOTE, {**note, "version": version, "tables": sorted(tables)})
        (folder / _SEQUENCES).unlink(missing_ok=True)
        for path in folder.iterdir():
            if path.is_dir() and path.name != version:
                shutil.rmtree(path, ignore_errors=True)
            elif path.name.startswith("sequences-"):
                path.unlink(missing_ok=True)

    def remove_portfolio(self, portfolio_id: str) -> None:
        """Erase a portfolio and its sequences; the note goes first, so no reader finds half of it."""
        folder = self.portfolio_folder(portfolio_id)
        (folder / _NOTE).unlink(missing_ok=True)
        shutil.rmtree(folder, ignore_errors=True)

    # ---- sequences ---------------------------------------------------------------------------

    def sequences(self, portfolio_id: str) -> dict[str, Any] | None:
        """The note of a portfolio's generated sequences, None before there are any."""
        return _read_note(self.portfolio_folder(portfolio_id) / _SEQUENCES)

    def partial(self, job_id: str) -> Path:
        """The file that a generation job writes."""
        folder = self.root / "partial"
        folder.mkdir(parents=True, exist_ok=True)
        return folder / f"{job_id}.csv"

    def keep_sequences(self, portfolio_id: str, job_id: str, note: Mapping[str, Any]) -> None:
        """Put a finished CSV (and its Parquet twin, if any) in place; the previous ones stay one round."""
        folder = self.portfolio_folder(portfolio_id)
        previous = self.sequences(portfolio_id)
        files = {}
        for suffix in (".csv", ".parquet"):
            source = self.partial(job_id).with_suffix(suffix)
            if source.exists():
                with source.open("rb") as handle:
                    os.fsync(handle.fileno())
                name = f"sequences-{job_id}{suffix}"
                os.replace(source, folder / name)
                files[suffix.removeprefix(".")] = name
        _write_note(folder / _SEQUENCES, {**note, "job_id": job_id, "files": files})
        keep = {*files.values(), *(previous or {}).get("files", {}).values()}
        for path in folder.glob("sequences-*"):
            if path.name not in keep:
                path.unlink(missing_ok=True)

    def sequences_file(self, portfolio_id: str, kind: str) -> Path | None:
        """The current file of a kind ('csv', 'parquet'), None before there is one."""
        note = self.sequences(portfolio_id)
        name = (note or {}).get("files", {}).get(kind)
        path = self.portfolio_folder(portfolio_id) / str(name)
        return path if name and path.is_file() else None

    # ---- uploads and simulations -------------------------------------------------------------

    def upload_folder(self, job_id: str) -> Path:
        """Where the files of one upload lie until they have been read."""
        return self.root / "uploads" / job_id

    def drop_job_files(self, job_id: str) -> None:
        """Remove what a job that is over left: its upload and its unfinished files."""
        shutil.rmtree(self.upload_folder(job_id), ignore_errors=True)
        for suffix in (".csv", ".parquet"):
            self.partial(job_id).with_suffix(suffix).unlink(missing_ok=True)

    def simulation_file(self, job_id: str, name: str) -> Path:
        """Path of one result file of a simulation.

        Raises:
            ConfigError: no simulation writes a file of that name.
        """
        if name not in SIMULATION_FILES or not re.fullmatch(r"[0-9a-f]{32}", job_id):
            raise ConfigError("no such result file", expected=", ".join(SIMULATION_FILES))
        return self.root / "simulations" / job_id / name


def _read_note(path: Path) -> dict[str, Any] | None:
    try:
        note = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    return dict(note)


def _write_note(path: Path, note: Mapping[str, Any]) -> None:
    with replace_file(path) as temporary:
        temporary.write_text(json.dumps(note, indent=1, sort_keys=True), encoding="utf-8")
