"""The local server of `ease open`: it listens on loopback alone, and answers who has the token of its address."""

from __future__ import annotations

import atexit
import contextlib
import os
import secrets
import socket
import sys
import tempfile
import threading
import webbrowser
from collections.abc import Callable
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Mount, Route

from ease_flwr import config
from ease_flwr.audit.summary import read_run_config
from ease_flwr.config import ConfigError
from ease_flwr.data import pictures
from ease_flwr.following import finished, fresh_report, situation
from ease_flwr.launcher import pictured
from ease_flwr.store.layout import RunLayout, no_run
from ease_flwr.web.pages import followed, reported
from ease_flwr.web.search import Own, Search, Started

LOOPBACK = "127.0.0.1"
LARGEST = 20_000_000
"""Bytes of a picture that is searched with."""
HEADERS = {
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "default-src 'none'; img-src 'self' data:; style-src 'unsafe-inline'; "
    "script-src 'unsafe-inline'; connect-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'",
}


class Page:
    """What the server answers about one run."""

    def __init__(self, folder: Path, own: Own) -> None:
        self.folder = folder
        self.own = own
        self.searches: dict[int, Started] = {}
        """By the age of the results that their models are of."""
        self.one = threading.Lock()

    def search(self) -> Started | None:
        """The search with the models that there are now, begun where it is not; None before a run has results."""
        if not finished(self.folder):
            return None
        age = RunLayout(self.folder).results.stat().st_mtime_ns
        with self.one:
            if age not in self.searches:
                self.searches = {age: Started(lambda: Search(self.folder, self.own))}
            return self.searches[age]

    def index(self, request: Request) -> Response:
        """The run at work, or its report."""
        if not (finished(self.folder) and fresh_report(self.folder)):
            return HTMLResponse(followed(self.folder), headers=HEADERS)
        return HTMLResponse(reported(RunLayout(self.folder).report.read_text(encoding="utf-8")), headers=HEADERS)

    def situation(self, request: Request) -> Response:
        return _json(situation(self.folder))

    def examples(self, request: Request) -> Response:
        """What one may begin a search with; 202 while models are being loaded."""
        return self._found(lambda made: {"pairs": made.examples(), "count": len(made.gallery.sets)})

    def picture(self, request: Request) -> Response:
        made = self._made()
        number = request.path_params["number"]
        if made is None or number >= len(made.gallery.sets):
            return _json({"error": "no such picture"}, 404)
        return Response(made.png(number), media_type="image/png", headers=HEADERS)

    def pictures_for(self, request: Request) -> Response:
        """For a caption: the best pictures of each model."""
        caption = request.query_params.get("caption", "").strip()
        if not caption:
            return _json({"error": "type a caption"}, 400)
        return self._found(lambda made: {"models": made.pictures(caption)})

    def captions_for(self, request: Request) -> Response:
        """For a picture of the gallery: the best captions of each model."""
        number = request.path_params["number"]
        made = self._made()
        if made and number >= len(made.gallery.sets):
            return _json({"error": "no such picture"}, 404)
        return self._found(lambda made: {"models": made.captions(number)})

    async def captions_for_file(self, request: Request) -> Response:
        """For a picture that is sent: the best captions of each model."""
        body = b""
        async for part in request.stream():
            body += part
            if len(body) > LARGEST:
                return _json({"error": f"the file has more than {LARGEST // 1_000_000} MB"}, 413)
        try:
            picture = await run_in_threadpool(pictures.opened, body)
        except config.DataError as error:
            return _json({"error": f"not a picture: {error}"}, 400)
        return await run_in_threadpool(self._found, lambda made: {"models": made.captions(picture)})

    def _made(self) -> Search | None:
        started = self.search()
        return started.made if started else None

    def _found(self, ask: Callable[[Search], dict[str, Any]]) -> Response:
        """What a search answers; 202 while its models are being loaded."""
        started = self.search()
        if started is None:
            return _json({"error": "a search needs a run that has finished"}, 409)
        if started.error:
            return _json({"error": started.error}, 409)
        if started.made is None:
            return _json({"error": "the models are being loaded"}, 202)
        try:
            return _json(ask(started.made))
        except ValueError as error:  # of a tokenizer that does not know a word
            return _json({"error": " ".join(str(error).split())}, 400)


def _json(content: Any, status: int = 200) -> Response:
    return JSONResponse(content, status, HEADERS)


def application(folder: Path, token: str, own: Own) -> Starlette:
    """The page of a run below /TOKEN/; everything else is not found, and another Host is refused."""
    page = Page(folder, own)
    routes = [
        Route("/", page.index),
        Route("/situation", page.situation),
        Route("/examples", page.examples),
        Route("/pictures", page.pictures_for),
        Route("/pictures/{number:int}", page.picture),
        Route("/captions/{number:int}", page.captions_for),
        Route("/captions", page.captions_for_file, methods=["POST"]),
    ]
    ours = Middleware(TrustedHostMiddleware, allowed_hosts=[LOOPBACK, "localhost"])
    return Starlette(routes=[Mount(f"/{token}", routes=routes)], middleware=[ours])


def _open(address: str) -> None:
    """In the user's browser, by a file: arguments of a program can be read by everybody on the machine."""
    descriptor, name = tempfile.mkstemp(suffix=".html", prefix="ease-open-")
    with os.fdopen(descriptor, "w") as f:
        f.write(f'<meta http-equiv="refresh" content="0; url={address}">')
    atexit.register(Path(name).unlink, missing_ok=True)
    webbrowser.open(Path(name).as_uri())


def uvicorn_server(app: Starlette) -> uvicorn.Server:
    """Of HTTP alone, silent unless something is wrong."""
    return uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False, lifespan="off", ws="none"))


def serve(folder: Path, own: Own, port: int, browser: bool) -> None:
    """Serve until it is interrupted.  port: 0 is any free one.  browser: open one, where there is a screen.

    Raises ConfigError where there is no run, or the port is in use.
    """
    if not RunLayout(folder).state.is_file():
        raise no_run(folder)
    try:
        listening = socket.create_server((LOOPBACK, port))
    except OSError as error:
        raise ConfigError(f"--port {port}: {os.strerror(error.errno or 0)}: give another, or 0 for any free one") from None
    if finished(folder) and not fresh_report(folder):
        experiment, _ = config.from_run_config(read_run_config(folder))
        pictured(folder, 0, experiment.data.kind != "folder")
    token = secrets.token_urlsafe(16)
    address = f"http://{LOOPBACK}:{listening.getsockname()[1]}/{token}/"
    print(f"{address}\nCtrl-C ends it", flush=True)
    if browser and (sys.platform == "darwin" or "DISPLAY" in os.environ or "WAYLAND_DISPLAY" in os.environ):
        _open(address)
    with contextlib.suppress(KeyboardInterrupt):
        uvicorn_server(application(folder, token, own)).run([listening])
