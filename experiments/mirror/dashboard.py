"""The console script `lowbit-dashboard`: a study's W&B workspace and report, written and pushed.

Both carry names derived from the study's, so that a second push finds the views of the first.
Pushed with two GraphQL operations of W&B's own client: its library for reports lists all projects
of a user for each push and gives a report a new name with each.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from experiments.mirror import tracking
from experiments.mirror.sync import NO_KEY, server
from fitting.entry import options as typed
from fitting.entry.errors import Failure, UsageError, first_line
from fitting.entry.options import command, listed, option, seconds
from fitting.files.atomic import write_atomic

if TYPE_CHECKING:  # it takes a second to import
    from experiments.mirror.panels import Logged, View


@dataclass(frozen=True)
class Options:
    """Options of `lowbit-dashboard`."""

    study: str = option("", "folder below runs", "NAME")
    runs: str = option("runs", "folder of all studies' results")
    entity: str = option(
        "", "push: whose project; default WANDB_ENTITY, else that of the key", "NAME"
    )
    project: str = option("", "push: its name; default that of the runs (tracking.project)", "NAME")
    timeout: float = option(20.0, "push: seconds for each answer of the server", read=seconds)


HELP = """\
lowbit-dashboard: what a study's runs logged, as a W&B workspace and a W&B report.

  lowbit-dashboard study=demo                 write both to runs/demo/dashboard; needs no server
  lowbit-dashboard push study=demo            create them on the server, or bring them up to date
  lowbit-dashboard push study=demo entity=my-team project=low-bits
  WANDB_BASE_URL=http://wandb.lab:8080 lowbit-dashboard push study=demo

Runs get to the server with `lowbit-sync study=demo`.  A push replaces what was changed by hand in
the two it made before, and nothing else.  Log in once with `wandb login`, or set WANDB_API_KEY.
Without a server, `wandb leet runs/demo/dashboard/wandb` shows all runs in the terminal.

Exit code: 0 done, 1 the server did not take it, 2 a wrong request or no key.

""" + listed(Options)
FOLDER, LEET = "dashboard", "wandb"
FILES = {"project-view": "workspace.json", "runs": "report.json"}
_FIND = """
query DashboardView($entity: String!, $project: String!, $type: String!, $name: String!) {
  project(entityName: $entity, name: $project) {
    allViews(viewType: $type, viewName: $name) { edges { node { id } } }
  }
}
"""
_UPSERT = """
mutation DashboardUpsert($id: ID, $entityName: String, $projectName: String, $type: String,
    $name: String, $displayName: String, $description: String, $spec: String!) {
  upsertView(input: {id: $id, entityName: $entityName, projectName: $projectName, type: $type,
      name: $name, displayName: $displayName, description: $description, spec: $spec,
      createdUsing: WANDB_SDK}) {
    view { id }
    inserted
  }
}
"""


class PushError(Failure):
    """A refusal of the server; one line that says why."""


def main() -> None:
    """Entry point of `lowbit-dashboard`."""
    command("lowbit-dashboard", HELP, run)


def run(arguments: Sequence[str]) -> None:
    """Do what the arguments say.

    Raises:
        UsageError: They make no sense, or there is no key to push with.
        PushError: The server did not take it.
    """
    options, to_push = parse(arguments)
    folder = Path(options.runs, options.study)
    from experiments.mirror.panels import read_logged, report, workspace

    try:
        logged = read_logged(folder)
    except (OSError, ValueError) as error:
        raise UsageError(str(error)) from error
    views = [workspace(logged), report(logged)]
    for view in views:
        print(write(view, folder / FOLDER))
    if logged.without_columns:
        print(
            f"{logged.without_columns} of {len(logged.runs)} runs were logged by an older version, "
            "without E, M, bits, N and D: they are in no group and have no such columns"
        )
    if not to_push:
        print(f"\nOn a W&B server: lowbit-sync {_words(options)}, then")
        print(f"  lowbit-dashboard push {_words(options)}")
        count = f"{len(logged.runs)} runs"
        if len(logged.files) > len(logged.runs):
            count += f" in {len(logged.files)} attempts"
        print(f"In this terminal, without one ({count}; h: help, q: quit):")
        print(f"  wandb leet {link(logged.files, folder / FOLDER / LEET)}")
        return
    project = options.project or _project(logged)
    for said in push(views, options.entity, project, options.timeout):
        print(said, flush=True)


def parse(arguments: Sequence[str]) -> tuple[Options, bool]:
    """The options as typed, and whether the word push was; raises as `run` does."""
    words = [word for word in arguments if word != "push"]
    options = typed.parse(Options, words, "push")
    if not options.study:
        raise UsageError("study: missing; give study=<name>")
    return options, "push" in arguments


def write(view: View, folder: Path) -> str:
    """Write one of the two views; returns the line to print for it."""
    folder.mkdir(exist_ok=True)
    path = folder / FILES[view.kind]
    write_atomic(view.to_json(), path)
    return f"{path}: {len(list(view.panels()))} panels, {view.title!r}"


def link(files: Sequence[Path], folder: Path) -> Path:
    """Make a folder with all runs of a study side by side: `wandb leet` looks into one folder only.

    Args:
        files: W&B's, `<run>/wandb/<attempt>/run-<id>.wandb`.
        folder: For links to the attempts; links of an earlier time are replaced.
    """
    folder.mkdir(exist_ok=True)
    for old in folder.iterdir():
        if old.is_symlink():
            old.unlink(missing_ok=True)
    for file in files:
        attempt = file.absolute().parent
        with contextlib.suppress(FileExistsError):
            (folder / attempt.name).symlink_to(os.path.relpath(attempt, folder.absolute()))
    return folder


def push(views: Sequence[View], entity: str, project: str, timeout: float) -> list[str]:
    """Create the views in a project, or replace those of an earlier push.

    Args:
        views: Workspace and report.
        entity: Whose project; "": W&B's default.
        project: Its name.
        timeout: Seconds for each answer of the server.

    Returns:
        A line for each, with its address.

    Raises:
        UsageError: No key.
        PushError: No answer, a refused key, no such project.
    """
    url = server()
    try:
        api = _connect(timeout, url)
        entity = entity or api.settings["entity"] or _default_entity(api, url)
        said = []
        for view in views:
            where = {"entity": entity, "project": project}
            wanted = where | {"type": view.kind, "name": view.name}
            found = _ask(api, url, _FIND, wanted)["project"]
            if found is None:
                raise PushError(
                    f"there is no project {entity}/{project} on {url}, or none that you may see: "
                    "lowbit-sync makes it with the first run"
                )
            nodes = [edge["node"] for edge in found["allViews"]["edges"]]
            variables = _variables(view, entity, project, nodes)
            made = _ask(api, url, _UPSERT, variables)["upsertView"]["view"]
            address = _address(api, view, entity, project, made["id"])
            said.append(f"{'updated' if nodes else 'created'}  {address}")
        return said
    finally:
        tracking.shut_down()


def _connect(timeout: float, url: str) -> Any:
    """W&B's client, its key accepted."""
    import wandb

    # Before anything else, or W&B says whose key it found, and asks for one on a terminal.
    wandb.setup(wandb.Settings(silent=True, console="off"))
    try:
        return wandb.Api(timeout=timeout)  # type: ignore[arg-type]
    except wandb.errors.UsageError as error:
        raise UsageError(NO_KEY) from error
    except wandb.Error as error:
        raise _explained(error, url) from error


def _default_entity(api: Any, url: str) -> str:
    import wandb

    try:
        entity: str | None = api.default_entity
    except wandb.Error as error:
        raise _explained(error, url) from error
    if not entity:
        raise UsageError("entity=: this key belongs to no entity; whose project is it?")
    return entity


def _ask(api: Any, url: str, query: str, variables: dict[str, Any]) -> dict[str, Any]:
    import wandb
    from wandb_workspaces._graphql import execute_graphql

    try:
        answer: dict[str, Any] = execute_graphql(api, query, variables)
    except wandb.Error as error:
        raise _explained(error, url) from error
    return answer


def _explained(error: Exception, url: str) -> PushError:
    reason = first_line(error)
    if re.search(r"error 40[13]", reason):
        return PushError(f"{url} refuses the key: log in again with `wandb login`")
    if "in time" in reason:
        return PushError(f"{url} does not answer; nothing was lost, try again")
    return PushError(reason)


def _variables(
    view: View, entity: str, project: str, nodes: Sequence[dict[str, str]]
) -> dict[str, Any]:
    variables = {
        "entityName": entity,
        "projectName": project,
        "type": view.kind,
        "name": view.name,
        "displayName": view.title,
        "description": view.description,
        "spec": json.dumps(view.spec, ensure_ascii=False),
    }
    return variables | ({"id": nodes[0]["id"]} if nodes else {})


def _address(api: Any, view: View, entity: str, project: str, identity: str) -> str:
    """Address of a view's page."""
    from wandb_workspaces._graphql import get_app_url

    page = f"{get_app_url(api).rstrip('/')}/{quote(entity)}/{quote(project)}"
    if view.kind == "project-view":
        return f"{page}?nw={view.name.removeprefix('nw-').removesuffix('-v')}"
    title = re.sub(r"\W+", "-", view.title, flags=re.ASCII).strip("-")
    return f"{page}/reports/{title}--{identity.rstrip('=')}"


def _project(logged: Logged) -> str:
    if len(logged.projects) > 1:
        names = " and ".join(sorted(logged.projects))
        raise UsageError(f"project=: the runs were logged to {names}; which one?")
    [project] = logged.projects
    return project


def _words(options: Options) -> str:
    runs = f" runs={options.runs}" if options.runs != "runs" else ""
    return f"study={options.study}{runs}"
