"""`python -m ease_flwr.hosts.door FOLDER ADDRESS`: what a host has in place of Flower's SuperExec.

Flower's own starts a program for whatever kind of task the server asks for, and that program imports the bundle it is sent.
This one takes messages for a ClientApp only, and starts a process of its own for each. There the bundle is looked at
(hosts/pinned.py) before anything of it is unpacked. The app is then always ease_flwr.client_app of a pinned bundle, whatever
name, version or hash the server gives to it. What is not pinned is answered with one line.
"""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from importlib import import_module
from pathlib import Path
from typing import Any

from flwr.app import Context, Error, Message
from flwr.clientapp.utils import get_load_client_app_fn
from flwr.proto.runtime_pb2 import AcquireTaskRequest
from flwr.supercore.constant import TaskType
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor, SuperExecAuthHttpInterceptor
from flwr.supercore.retry import make_simple_http_retry_invoker
from flwr.supercore.runtime import RuntimeHttpClient

from ease_flwr.exchange.transport import RAISED
from ease_flwr.hosts import owners_log, pinned
from ease_flwr.hosts.settings import DOOR_KEY

APP = "ease_flwr.client_app:app"
SECONDS = 1.0
"""Between two questions for a message."""
REPLACED = {"install_from_fab", "get_load_client_app_fn"}
"""What Flower's own program for a message calls by name, and what is put in the place of it here."""
Answer = Callable[[Message, Context], Message]


class Door:
    """Lets in one bundle, for one message."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.why = "no code has come with this message"
        self.folder = Path()

    def receive(self, fab: bytes, **_: Any) -> None:
        """In place of install_from_fab: look at a bundle; unpack it where it may run."""
        try:
            self.why = pinned.refusal(self.home, fab)
            if not self.why:
                self.folder = pinned.unpacked(self.home, fab)
        except Exception as error:
            traceback.print_exc()
            self.why = (
                f"this host cannot tell whether its owner has pinned this code ({type(error).__name__}): its log says why"
            )

    def loader(self, **_: Any) -> Callable[..., Answer]:
        """In place of get_load_client_app_fn: what loads the app; its arguments are what the server calls it."""
        return lambda *_: self.refuse if self.why else self.load()

    def refuse(self, message: Message, context: Context) -> Message:
        """The answer where no app is loaded."""
        print(f"ease_flwr: {self.why}", file=sys.stderr, flush=True)
        what = {"message": secrets.token_hex(8), "asked": "code", "run": str(message.metadata.run_id), "refused": self.why}
        owners_log.write(self.home, datetime.now().astimezone(), what)
        return Message(Error(RAISED, self.why), reply_to=message)

    def load(self) -> Answer:
        """The app of the bundle that was let in, and none of the modules of this program."""
        for name in [n for n in sys.modules if n.split(".")[0] == "ease_flwr"]:
            del sys.modules[name]
        app = get_load_client_app_fn(APP, str(self.folder), False)("", "", "")

        def answered(message: Message, context: Context) -> Message:
            try:
                return app(message, context)
            except Exception as error:  # what comes from outside of our app; Flower would send its text
                traceback.print_exc()
                return Message(Error(RAISED, type(error).__name__), reply_to=message)

        return answered


def answer(home: Path) -> None:
    """Be Flower's program for one message, with a door in it. RuntimeError: this version of Flower is built in another way."""
    flower = import_module("flwr.supernode.runtime.run_clientapp")
    if REPLACED - set(flower.run_clientapp.__code__.co_names):
        raise RuntimeError(
            "no message is answered: this version of Flower loads code in a way that hosts/door.py does not know"
        )
    door = Door(home)
    vars(flower).update(install_from_fab=door.receive, get_load_client_app_fn=door.loader)
    import_module("flwr.supernode.cli").flwr_clientapp()


def serve(home: Path, address: str) -> None:
    """Ask the SuperNode for messages, and start a process for each, until this one is ended."""
    method = "/flwr.proto.Runtime/AcquireTask"
    client = RuntimeHttpClient.from_server_address(
        server_address=address,
        insecure=True,
        root_certificates=None,
        interceptors=[
            RuntimeVersionHttpInterceptor(component_name="SuperExec"),
            SuperExecAuthHttpInterceptor(master_secret=(home / DOOR_KEY).read_bytes(), protected_methods=(method,)),
        ],
        retry_invoker=make_simple_http_retry_invoker(),
    )
    started = list[subprocess.Popen[str]]()
    while True:
        got = client.AcquireTask(AcquireTaskRequest(supported_task_types=[TaskType.CLIENT_APP]))
        if got.HasField("task") and got.token and got.task.type == TaskType.CLIENT_APP:
            command = [sys.executable, "-P", "-m", "ease_flwr.hosts.door", str(home), "--runtime-api-address", address]
            command += ["--insecure", "--parent-pid", str(os.getpid())]
            process = subprocess.Popen(command, stdin=subprocess.PIPE, text=True)
            started.append(process)
            assert process.stdin is not None
            with suppress(BrokenPipeError), process.stdin as token:  # it may have ended: then its message is lost
                token.write(got.token)
        started = [p for p in started if p.poll() is None]
        time.sleep(SECONDS)


if __name__ == "__main__":
    folder, *words = sys.argv[1:]
    if len(words) == 1:
        serve(Path(folder), words[0])
    sys.argv[1:] = [*words, "--token", sys.stdin.readline()]  # every account of a machine can read how programs were called
    answer(Path(folder))
