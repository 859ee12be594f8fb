"""What tests of a standing federation share: tiny runs in this process, copied and asked again."""

import shutil

from ease_flwr import launcher
from ease_flwr.config import ForgetConfig, ForgetRequest, ForgetSet
from ease_flwr.hosts.simulation import Where
from ease_flwr.launcher import Asked
from ease_flwr.store import queue
from ease_flwr.store.queue import Step
from tests.in_process_grid import InProcessGrid, submit
from tests.small import SMALL

SIMULATION = Where()


def copy(folder, to):
    """A run directory at another place."""
    return shutil.copytree(folder, to)


def leaves(*names):
    return ForgetConfig(targets=names)


def pairs(*targets):
    return ForgetConfig(scenario="sample", targets=targets)


def ask(run, forget, strategy="ease", *assignments, id=""):
    """`ease forget`."""
    return launcher.forget(run, Asked(forget, strategy, assignments, id), SIMULATION)


def enqueue(run, forget, strategy="ease", id="", **values):
    """A request on the queue, without doing it."""
    (asked,) = forget.forget_sets()
    request = ForgetRequest.of(ForgetSet(**asked.model_dump()), strategy, values, id)
    queue.append(run, Step(kind="forget", request=request))
    return request


class Death(BaseException):
    """Like kill -9: nothing is tidied up."""


class Mortal(InProcessGrid):
    """Dies when messages are sent for the n-th time."""

    def __init__(self, lives, *arguments):
        super().__init__(*arguments)
        self.lives = lives

    def push_messages(self, messages):
        self.lives -= 1
        if self.lives == 0:
            raise Death
        return super().push_messages(messages)


def die(run_config, lives):
    """True if it died before it was finished."""
    try:
        submit(run_config, Mortal(lives, SMALL["data.clients"], run_config))
    except Death:
        return True
    return False
