"""An A/B test of releases as a service: routing, exposure log, outcomes, report.

    python examples/ab_server.py ROOT --experiment NAME --weights champion=0.9,challenger_1=0.1

ROOT is a run, its `checkpoints` folder or another folder with a `production` tier. Each arm is the release
that its alias names; one stat of the journal with each request notices a rollback without a restart, and the
users of an arm whose alias was removed go to the others. It listens on 127.0.0.1 only and has no
authentication: it is an example of the library, not a gateway.

    POST /predict   {"user_id": "ada", "image": [[[r, g, b], ...], ...]}, H x W x C of 0 to 255
    POST /outcome   {"user_id": "ada", "success": true}
    GET  /report    users and outcomes by arm, sample-ratio checks, comparisons, verdicts
    GET  /healthz   the releases that are served

An image has at most 128 x 128 pixels, a body 300 kB; slow clients are cut off (bounded_server.py). It needs
`pip install peakpoint[serve]` and ends with Ctrl-C.
"""

import argparse
import contextlib
import logging
import math
import sys
import threading
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from torch import nn

from peakpoint.base.errors import CheckpointError
from peakpoint.base.terminal import say_error, steady_output
from peakpoint.checkpointing.storage import aliases, journal, listing
from peakpoint.commands.arguments import a_path
from peakpoint.deployment.abtest import Log, Router, Rule, design, report, study
from peakpoint.deployment.inference import network

try:
    from bounded_server import serve
    from fastapi import FastAPI, HTTPException, Request, Response
    from fastapi.exceptions import RequestValidationError
    from fastapi.responses import JSONResponse
    from pydantic import BaseModel, ConfigDict, Field
except ImportError as missing:
    sys.exit(f"{missing.name} is not installed: pip install 'peakpoint[serve]'.")

HOST = "127.0.0.1"
LARGEST_SIDE = 128
LARGEST_BODY = 300_000  # bytes; the JSON of an image of 128 x 128 in colour has up to 280,000
RULE = Rule(alpha=0.05, planned=1000, least=100)

log = logging.getLogger("peakpoint")


@dataclass(frozen=True)
class Served:
    """A release in memory."""

    version: str
    model: nn.Module
    description: network.Description


@dataclass(frozen=True)
class Arms:
    """The releases served, by alias, with their router."""

    served: dict[str, Served]
    router: Router
    design: str


class Releases:
    """The releases that the aliases name, reloaded when the journal of aliases has changed."""

    def __init__(self, root: Path, experiment: str, weights: Mapping[str, float]) -> None:
        self._root, self._experiment, self._weights = root, experiment, weights
        self._lock = threading.Lock()
        self.problem: str | None = None
        Router(experiment, weights)  # a wrong weight is refused before anything loads
        unnamed = [alias for alias in weights if alias not in aliases.current(root)]
        if unnamed:
            raise CheckpointError(
                f"{root} names no release {unnamed[0]}: set the alias, or leave out its weight."
            )
        self._seen = self._stamp()
        self._arms = self._load({})

    def now(self) -> Arms:
        """Return the arms; the previous ones while another request loads, or if a release is damaged."""
        if self._stamp() != self._seen and self._lock.acquire(blocking=False):
            try:
                self._seen = self._stamp()  # first: a change while it loads is seen by the next request
                self._arms = self._load({s.version: s for s in self._arms.served.values()})
                self.problem = None
            except CheckpointError as error:
                self.problem = str(error)
                log.warning("The releases served stay as they were: %s", error)
            finally:
                self._lock.release()
        return self._arms

    def _stamp(self) -> tuple[int, ...]:
        with contextlib.suppress(OSError):
            found = (self._root / journal.JOURNAL).stat()
            return found.st_ino, found.st_size, found.st_mtime_ns
        return ()

    def _load(self, loaded: Mapping[str, Served]) -> Arms:
        current = aliases.current(self._root)
        versions = {alias: current[alias] for alias in self._weights if alias in current}
        router = Router(self._experiment, {alias: self._weights[alias] for alias in versions})
        files = {version: self._root / m.file for version, m in listing.by_version(self._root).items()}
        ready = dict(loaded)
        for alias, version in versions.items():
            if version not in files:
                raise CheckpointError(f"{alias} is {version}, which is not under {self._root}.")
            if version not in ready:
                ready[version] = Served(version, *network.rebuilt(*network.resolve(files[version])))
        served = {alias: ready[version] for alias, version in versions.items()}
        return Arms(served, router, design(router.shares, versions))


Byte = Annotated[int, Field(ge=0, le=255)]
Row = Annotated[list[list[Byte]], Field(min_length=1, max_length=LARGEST_SIDE)]
UserId = Annotated[str, Field(min_length=1, max_length=256)]


class Ask(BaseModel):
    """A user's image, H rows of W pixels."""

    model_config = ConfigDict(extra="forbid", strict=True)
    user_id: UserId
    image: list[Row] = Field(min_length=1, max_length=LARGEST_SIDE)


class Outcome(BaseModel):
    """Whether the answer served the user."""

    model_config = ConfigDict(extra="forbid", strict=True)
    user_id: UserId
    success: bool


def answer(served: Served, image: list[list[list[int]]]) -> tuple[str, float]:
    """Return the most probable class of an image and its probability. Raises CheckpointError."""
    description, channels = served.description, served.description.image_shape[0]
    if len({len(row) for row in image}) != 1 or {len(pixel) for row in image for pixel in row} != {channels}:
        raise CheckpointError(f"image must be rows of equal length, with {channels} values in each pixel.")
    with torch.inference_mode():
        logits = served.model(network.prepare(torch.tensor([image], dtype=torch.uint8), description))
        probability, label = logits.softmax(1).max(1)
    return description.classes[int(label)], float(probability)


def build(releases: Releases, users: Log) -> FastAPI:
    """Return the service over releases and a log."""
    app = FastAPI(title="Peakpoint A/B example", docs_url=None, redoc_url=None)

    @app.exception_handler(CheckpointError)
    def refused(request: Request, error: CheckpointError) -> Response:
        # A GET takes no values that could be wrong; missing releases are a problem of /healthz alone.
        log_failed = request.method == "GET" or isinstance(error.__cause__, OSError)
        return JSONResponse({"detail": str(error)}, 503 if log_failed else 422)

    @app.exception_handler(RequestValidationError)
    def malformed(_: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"][1:]) or "the body"
        return JSONResponse({"detail": f"{where}: {first['msg']}."}, 422)

    @app.middleware("http")
    async def bounded(request: Request, go_on: Callable[[Request], Awaitable[Response]]) -> Response:
        length = request.headers.get("content-length", "")  # h11 reads no more than this
        if request.method == "POST" and not length.isdecimal():
            return JSONResponse({"detail": "Send the body with its Content-Length."}, 411)
        if request.method == "POST" and int(length) > LARGEST_BODY:
            return JSONResponse({"detail": f"The body is larger than {LARGEST_BODY} bytes."}, 413)
        return await go_on(request)

    @app.post("/predict")
    def predict(ask: Ask) -> dict[str, Any]:
        arms = releases.now()
        alias = arms.router.route(ask.user_id)
        served = arms.served[alias]
        label, probability = answer(served, ask.image)
        if not math.isfinite(probability):
            raise HTTPException(500, f"{alias} {served.version} gives NaN for this image: roll it back.")
        users.exposed(ask.user_id, alias, served.version, arms.design)
        return {"alias": alias, "version": served.version, "label": label, "probability": probability}

    @app.post("/outcome")
    def outcome(came: Outcome) -> dict[str, bool]:
        users.outcome(came.user_id, came.success)
        return {"recorded": True}

    @app.get("/report")
    def reported() -> dict[str, Any]:
        arms, found = releases.now(), study(users.path, users.experiment)
        return report(found, arms.design, arms.router.shares, RULE, binary=True).plain()

    @app.get("/healthz")
    def health() -> dict[str, Any]:
        served = releases.now().served
        versions = {alias: each.version for alias, each in served.items()}
        return {"serving": versions, "problem": releases.problem}

    return app


def parsed(text: str) -> dict[str, float]:
    """Return the weights in `champion=0.9,challenger_1=0.1`. Raises CheckpointError."""
    weights = {}
    for part in text.split(","):
        alias, _, weight = part.partition("=")
        if alias in weights:
            raise CheckpointError(f"--weights names {alias} twice.")
        try:
            weights[alias] = float(weight)
        except ValueError:
            raise CheckpointError(f"--weights: {part!r} is not of the form champion=0.9.") from None
    return weights


def main(arguments: list[str] | None = None) -> None:
    """Serve until interrupted."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("root", type=a_path, help="a run, or a folder with releases")
    parser.add_argument("--experiment", required=True, help="routing depends on this name")
    parser.add_argument("--weights", required=True, help="champion=0.9,challenger_1=0.1")
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one (default)")
    parser.add_argument("--log", type=a_path, default=Path("exposures.jsonl"), help="appended to")
    parser.add_argument("--hash-users", action="store_true", help="store no user id")
    parser.add_argument("--timeout", type=float, default=20, help="seconds for a request and its answer (20)")
    given = parser.parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    try:
        torch.set_num_threads(1)  # requests run side by side
        root = listing.checkpoint_root(given.root)
        releases = Releases(root, given.experiment, parsed(given.weights))
        users = Log(given.log, given.experiment, hash_users=given.hash_users)
        serve(build(releases, users), HOST, given.port, timeout_s=given.timeout)
    except (CheckpointError, OSError) as error:
        say_error(str(error))
        sys.exit(1)


if __name__ == "__main__":
    with steady_output(), contextlib.suppress(KeyboardInterrupt):
        main()
