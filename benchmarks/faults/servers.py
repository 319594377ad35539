"""A fake server of Weights & Biases or MLflow that answers some requests and then fails, in a separate process.

    python benchmarks/faults/servers.py wandb die 9      # prints its port, answers 9 requests, and exits

It stores nothing, and answers what a client needs to continue. Then it does one of `FAILURES`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

FAILURES = ("die", "hang", "slow", "error")
SLOW = 0.4  # seconds per answer
WANDB, MLFLOW = "wandb", "mlflow"


class Handler(BaseHTTPRequestHandler):
    """Answers a request, or fails."""

    protocol_version = "HTTP/1.1"
    server: Any  # a Server

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing."""

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        failing = self.server.fails()
        if failing == "die":
            os._exit(0)
        if failing == "hang":
            time.sleep(3600)
        if failing == "slow":
            time.sleep(SLOW)
        code, found = (503, {}) if failing == "error" else self.server.say(self.path, body)
        content = json.dumps(found).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    do_HEAD = do_GET = do_POST = do_PUT = do_PATCH = _answer


class Server(ThreadingHTTPServer):
    """Answers ``after`` requests, then fails in the way ``failure``."""

    daemon_threads = True

    def __init__(self, kind: str, failure: str, after: int) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.say = self._wandb if kind == WANDB else self._mlflow
        self._failure, self._left, self._lock = failure, after, threading.Lock()

    def fails(self) -> str | None:
        """Count a request, and return the failure if it gets no answer."""
        with self._lock:
            self._left -= 1
            return self._failure if self._left < 0 else None

    def handle_error(self, request: object, client_address: object) -> None:
        """Ignore a client that has gone."""

    def _wandb(self, path: str, body: bytes) -> tuple[int, dict[str, Any]]:
        if path != "/graphql":
            return 200, {}
        given = json.loads(body).get("variables") or {}
        project = {"id": "P", "name": "tests", "entity": {"id": "E", "name": "me"}}
        bucket = {"id": "B", "name": given.get("name") or "r", "displayName": "tiny", "config": "{}"}
        address = f"http://127.0.0.1:{self.server_port}"
        files = [{"name": name, "uploadUrl": f"{address}/file/{name}"} for name in given.get("files") or []]
        known = {
            "viewer": {"id": "V", "entity": "me", "username": "me", "flags": "{}", "teams": {"edges": []}},
            "serverInfo": {"features": [], "latestLocalVersionInfo": None},
            "upsertBucket": {"bucket": bucket | {"project": project, "historyLineCount": 0}, "inserted": True},
            "createRunFiles": {"runID": "B", "uploadHeaders": [], "files": files},
            "model": {"bucket": None},
            "entity": None,
        }
        return 200, {"data": known}

    def _mlflow(self, path: str, body: bytes) -> tuple[int, dict[str, Any]]:
        place = os.environ["ARTIFACTS"]
        experiment = {"experiment_id": "1", "name": "quintet", "artifact_location": place, "lifecycle_stage": "active"}
        info = {"run_id": "r", "run_uuid": "r", "experiment_id": "1", "status": "RUNNING", "artifact_uri": place}
        info |= {"user_id": "me", "start_time": 1, "lifecycle_stage": "active", "run_name": "tiny"}
        run = {"info": info, "data": {"metrics": [], "params": [], "tags": []}, "inputs": {}}
        return 200, {"experiment": experiment, "experiment_id": "1", "run": run, "run_info": info}


@contextmanager
def failing_server(kind: str, failure: str, after: int, artifacts: str) -> Iterator[str]:
    """Yield the address of such a server; MLflow's clients store their artifacts in ``artifacts``."""
    line = [sys.executable, __file__, kind, failure, str(after)]
    process = subprocess.Popen(line, stdout=subprocess.PIPE, text=True, env=os.environ | {"ARTIFACTS": artifacts})
    assert process.stdout is not None
    try:
        yield f"http://127.0.0.1:{int(process.stdout.readline())}"
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def main() -> None:
    """Serve until the failure, or until killed."""
    kind, failure, after = sys.argv[1:]
    server = Server(kind, failure, int(after))
    print(server.server_port, flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
