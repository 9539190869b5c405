"""As much of a W&B server as `wandb.init`, `wandb sync` and saved views need, on loopback.

It keeps what it is sent, as W&B does: history lines by their number, the last summary, config.
"""

from __future__ import annotations

import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any

KEY = "5ec4e7" * 6 + "5ec4"
"""A made-up key of the right form: 40 characters that stand in no honest file."""


@dataclass
class StoredRun:
    """One run as the server has it."""

    name: str
    group: str = ""
    job_type: str = ""
    project: str = ""
    tags: list[str] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)
    lines: dict[int, dict[str, Any]] = field(default_factory=dict)
    """History: line number -> row."""
    summary: dict[str, Any] = field(default_factory=dict)
    exit_code: int | None = None

    @property
    def history(self) -> list[dict[str, Any]]:
        """Rows in the order of their lines."""
        return [self.lines[number] for number in sorted(self.lines)]

    def rows(self) -> list[dict[str, Any]]:
        """The history as it was logged: without W&B's own columns."""
        return [{k: v for k, v in r.items() if not k.startswith("_")} for r in self.history]


@dataclass
class StoredView:
    """One workspace or report as the server has it."""

    id: str
    entity: str
    project: str
    kind: str
    name: str
    title: str = ""
    description: str = ""
    spec: dict[str, Any] = field(default_factory=dict)


class WandbServer:
    """`with WandbServer() as server:` listens on `server.url` until the block ends.

    Args:
        status: HTTP status of every answer.
        stream_status: HTTP status of what a file stream is answered: the rows of a run.
        delay: Seconds before every answer.
        stall: File streams get no answer before the block ends.

    Attributes:
        runs: What arrived, by run id.
        views: Workspaces and reports, by the server's own id.
        requests: Operation or path of every request.
    """

    def __init__(
        self, status: int = 200, stream_status: int = 200, delay: float = 0.0, stall: bool = False
    ) -> None:
        self.status, self.stream_status = status, stream_status
        self.delay, self.stall = delay, stall
        self.runs: dict[str, StoredRun] = {}
        self.views: dict[str, StoredView] = {}
        self.requests: list[str] = []
        self.ended = threading.Event()
        self._lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                status, reply = outer.answer(self.path, body)
                data = json.dumps(reply).encode()
                try:
                    self.send_response(status)
                    self.send_header("Content-Type", "application/json")
                    self.send_header("Content-Length", str(len(data)))
                    self.end_headers()
                    self.wfile.write(data)
                except OSError:
                    pass  # whoever asked is gone

            do_GET = do_POST = do_PUT = do_PATCH = _answer

            def log_message(self, format: str, *args: Any) -> None:
                pass

        class Quiet(ThreadingHTTPServer):
            daemon_threads = True
            block_on_close = False

            def handle_error(self, request: Any, client_address: Any) -> None:
                pass  # a client that hangs up is no news

        self._http = Quiet(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._http.server_port}"

    def __enter__(self) -> WandbServer:
        threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.ended.set()
        self._http.shutdown()
        self._http.server_close()

    def answer(self, path: str, body: bytes) -> tuple[int, dict[str, Any]]:
        """Status and JSON for one request."""
        streams = path.endswith("/file_stream")
        request = json.loads(body) if body.startswith(b"{") else {}
        name = request.get("operationName") or path
        with self._lock:
            self.requests.append(name)
        self.ended.wait(3600 if self.stall and streams else self.delay)
        status = max(self.status, self.stream_status) if streams else self.status
        if status != 200:
            return status, {"error": "the test wants it so"}
        with self._lock:
            if streams:
                return 200, self._stream(path, request)
            if path.startswith("/graphql"):
                return 200, {"data": self._graphql(request)}
        return 200, {}

    def _graphql(self, request: dict[str, Any]) -> dict[str, Any]:
        query, given = request["query"], request.get("variables") or {}
        if "upsertView(" in query:
            return {"upsertView": self._upsert_view(given)}
        if "allViews(" in query:
            return {"project": self._views(given)}
        if "mutation UpsertBucket" in query:
            return {"upsertBucket": self._upsert(given)}
        if "query RunResumeStatus" in query:
            return self._resume_status(given["name"])
        if "CreateRunFiles" in query:
            files = [{"name": f, "uploadUrl": f"{self.url}/upload/{f}"} for f in given["files"]]
            return {"createRunFiles": {"runID": "1", "uploadHeaders": [], "files": files}}
        if "Viewer" in query or "viewer" in query:
            viewer = {"id": "1", "entity": "me", "username": "me", "flags": "{}"}
            return {"viewer": viewer | {"teams": {"edges": []}}}
        return {}

    def _upsert(self, given: dict[str, Any]) -> dict[str, Any]:
        name = given.get("name") or ""
        inserted = name not in self.runs
        run = self.runs.setdefault(name, StoredRun(name))
        run.group = given.get("groupName") or run.group
        run.job_type = given.get("jobType") or run.job_type
        run.project = given.get("project") or run.project
        run.tags = given.get("tags") or run.tags
        run.config |= json.loads(given.get("config") or "{}")
        project = {"name": run.project, "entity": {"name": "me"}}
        bucket = {"id": name, "name": name, "displayName": name, "project": project}
        return {"bucket": bucket | {"historyLineCount": len(run.lines)}, "inserted": inserted}

    def _views(self, given: dict[str, Any]) -> dict[str, Any] | None:
        """Those of one kind and name in a project; a project is there once it has a run."""
        if given["entity"] != "me" or given["project"] not in {
            r.project for r in self.runs.values()
        }:
            return None
        wanted = (given["entity"], given["project"], given["type"], given["name"])
        found = [v for v in self.views.values() if (v.entity, v.project, v.kind, v.name) == wanted]
        return {"allViews": {"edges": [{"node": {"id": view.id}} for view in found]}}

    def _upsert_view(self, given: dict[str, Any]) -> dict[str, Any]:
        """With an id that view is replaced; without, another is made, whatever its name."""
        inserted = not given.get("id")
        number = f"Vmlldzo{len(self.views) + 1}=" if inserted else given["id"]
        if inserted:
            place = (given["entityName"], given["projectName"], given["type"], given["name"])
            self.views[number] = StoredView(number, *place)
        view = self.views[number]
        view.title, view.description = given["displayName"], given["description"]
        view.spec = json.loads(given["spec"])
        return {"view": {"id": number, "name": view.name}, "inserted": inserted}

    def _resume_status(self, name: str) -> dict[str, Any]:
        project = {"id": "1", "name": "lowbit-scaling", "entity": {"id": "1", "name": "me"}}
        run = self.runs.get(name)
        if run is None:
            return {"model": project | {"bucket": None}}
        tail = json.dumps([json.dumps(row) for row in run.history[-1:]])
        bucket = {
            "id": name,
            "name": name,
            "summaryMetrics": json.dumps(run.summary),
            "displayName": name,
            "logLineCount": 0,
            "historyLineCount": len(run.lines),
            "eventsLineCount": 0,
            "historyTail": tail,
            "eventsTail": "[]",
            "config": json.dumps(run.config),
            "tags": run.tags,
            "wandbConfig": json.dumps({"t": 1}),
        }
        return {"model": project | {"bucket": bucket}}

    def _stream(self, path: str, request: dict[str, Any]) -> dict[str, Any]:
        match = re.search(r"/([^/]+)/file_stream$", path)
        assert match
        run = self.runs.setdefault(match[1], StoredRun(match[1]))
        for file, chunk in (request.get("files") or {}).items():
            rows = [json.loads(line) for line in chunk["content"] or []]
            if file == "wandb-history.jsonl":
                run.lines |= {chunk["offset"] + k: row for k, row in enumerate(rows)}
            elif file == "wandb-summary.json" and rows:
                run.summary = rows[-1]
        if request.get("complete"):
            run.exit_code = request["exitcode"]
        return {"exitcode": None, "limits": {}}
