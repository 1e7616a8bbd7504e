"""bqemulator, an independent emulator of BigQuery, as a process of its own for tests.

Run as `python tests/bigquery_server.py PORT`. It is made to do what the service is documented to do where it
does otherwise: an uploaded load has the id that it was given, and only once; WRITE_TRUNCATE takes the load's
schema and leaves the labels; an upload may be empty. DuckDB's spatial extension is not downloaded.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

START_S = 60.0


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """The address of a server that ends with the block; pinged first, since a client retries for minutes."""
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    environment = {**os.environ, "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1", "TMPDIR": str(folder)}
    with (folder / "bqemulator.log").open("wb") as log:
        child = subprocess.Popen(
            [sys.executable, __file__, str(port)], stdout=log, stderr=log, stdin=subprocess.DEVNULL,
            env=environment, cwd=folder,
        )  # fmt: skip
        try:
            end = time.monotonic() + START_S
            while not _answers(address):
                assert child.poll() is None, (folder / "bqemulator.log").read_text()[-2000:]
                assert time.monotonic() < end, "bqemulator did not start in time"
                time.sleep(0.1)
            yield address
        finally:
            child.terminate()
            with suppress(subprocess.TimeoutExpired):
                child.wait(10)
            child.kill()
            child.wait()


def _answers(address: str) -> bool:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"{address}/bigquery/v2/projects/ping/datasets", timeout=2):
            return True
    except (urllib.error.URLError, OSError):
        return False


def main(port: str) -> None:
    from bqemulator.storage.engine import DuckDBEngine

    DuckDBEngine._load_spatial = lambda self: None
    _keep_job_ids()
    _truncate_with_schema()
    _take_empty_uploads()
    from bqemulator.cli import main as run

    run(["start", "--rest-port", port, "--grpc-port", "0", "--log-level", "ERROR"])


def _keep_job_ids() -> None:
    from bqemulator.api.routes import upload
    from bqemulator.domain.errors import AlreadyExistsError

    read, load = upload._load_configuration_from_envelope, upload._run_load

    def configuration(envelope: dict[str, Any]) -> dict[str, Any]:
        return {**read(envelope), "jobReference": envelope.get("jobReference", {})}

    async def run_load(*, project_id: str, configuration: Any, media_path: str, ctx: Any) -> Any:
        plain = {name: value for name, value in configuration.items() if name != "jobReference"}
        job_id = configuration["jobReference"]["jobId"]
        if ctx.catalog.get_job(project_id, job_id) is not None:
            raise AlreadyExistsError(f"Already Exists: Job {project_id}:{job_id}")
        upload._new_job_id = lambda: job_id
        return await load(project_id=project_id, configuration=plain, media_path=media_path, ctx=ctx)

    upload._load_configuration_from_envelope = configuration
    upload._run_load = run_load


def _truncate_with_schema() -> None:
    from bqemulator.jobs import executor

    plain = executor._apply_load_write_disposition

    def apply(job: Any, ctx: Any) -> None:
        fields = (job.raw_config.get("schema") or {}).get("fields") or []
        table = ctx.catalog.get_table(job.project_id, job.dataset_id, job.table_id)
        if job.write_disposition != "WRITE_TRUNCATE" or not fields or table is None:
            plain(job, ctx)
            return
        ctx.engine.execute(f"DROP TABLE {job.target_ref}")
        schema = executor._build_explicit_schema(ctx, job.target_ref, fields)
        changed = {"schema_": schema, "last_modified_time": ctx.clock.now()}
        ctx.catalog.update_table(table.model_copy(update=changed))

    executor._apply_load_write_disposition = apply


def _take_empty_uploads() -> None:
    from bqemulator import server
    from bqemulator.jobs.upload_session_manager import UploadSessionManager as Sessions

    create, complete = server.create_app, Sessions._is_session_complete

    def is_complete(session: Any, last: int | None, total: int | None) -> bool:
        # Without a range there is no chunk: nothing was sent, and nothing is to come.
        return last is None or bool(complete(session, last, total))

    Sessions._is_session_complete = staticmethod(is_complete)

    def created(*args: Any, **named: Any) -> Any:
        app = create(*args, **named)

        async def entered(scope: Any, receive: Any, send: Any) -> None:
            if scope["type"] == "http":
                scope["headers"] = [
                    pair for pair in scope["headers"] if pair != (b"content-range", b"bytes */0")
                ]
            await app(scope, receive, send)

        return entered

    server.create_app = created


if __name__ == "__main__":
    main(sys.argv[1])
