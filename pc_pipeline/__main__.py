"""The console command `pc`: runs (`orchestration`), deliveries (`ingest_commands`), `service`, the rest."""

from __future__ import annotations

import os
import sys


def main() -> None:
    """Run `pc`; an error the user can mend is printed without a traceback and exits with 1."""
    # Threads that wait should sleep: spinning ones cost a shared machine up to ten times the run.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

    from pc_pipeline.analysis_commands import add_analysis_commands
    from pc_pipeline.cli import app, print_error
    from pc_pipeline.core.errors import PcError
    from pc_pipeline.ingest_commands import add_ingest_commands
    from pc_pipeline.orchestration.commands import add_commands
    from pc_pipeline.service.commands import add_service_commands

    add_commands(app)
    add_ingest_commands(app)
    add_analysis_commands(app)
    add_service_commands(app)
    try:
        app()
    except PcError as error:
        print_error(error)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        sys.exit(130)


if __name__ == "__main__":
    main()
