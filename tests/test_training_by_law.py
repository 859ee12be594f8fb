"""One step of a client: how far each adapter tensor moves, and what the forget lock takes back."""

import hashlib

import numpy as np
import pytest
import torch
from ease_flwr.clients.ascent import Ascent
from ease_flwr.clients.base import Batch
from ease_flwr.clients.bilateral import Bilateral
from ease_flwr.clients.contrastive import Contrastive
from ease_flwr.strategies.ease import BkeParams
from safetensors.torch import load, save

from ease_flwr import data
from ease_flwr.config import ForgetSet, TrainConfig
from ease_flwr.exchange.messages import Forget, Learn
from ease_flwr.model import adapters
from ease_flwr.model.lock import ForgetLock
from tests.small import small_experiment
from tests.test_bilateral import Memory

EVERYTHING = 10_000
"""Pairs in a batch: an epoch is one step."""


@pytest.fixture(scope="module")
def host():
    """An experiment, its world, its model, and adapters that have learnt a little, so that no factor is zero."""
    e = small_experiment()
    world, model = data.load(e.data, e.seed), adapters.load(e.model, e.lora, e.seed)
    client = Contrastive(e, "client-0", world, Memory())
    job = Learn(phase="learn", round=1, train=TrainConfig(epochs=2, batch=48))
    return e, world, model, client.fit([model.initial], {"instruction": job.model_dump_json()})[0][0]


LEAVES = ForgetSet(scenario="client", targets=("client-0",))
SOME = ForgetSet(scenario="sample", targets=("client-0/0:40",))


def forget(objective, lr, options, what=LEAVES):
    return Forget(
        phase="forget",
        round=1,
        objective=objective,
        train=TrainConfig(epochs=1, batch=EVERYTHING, lr=lr),
        forget=what,
        options=options,
    )


def moved(host, kind, job, **extras):
    """Of one step, (p,), before it is shortened."""
    e, world, _, theta = host
    client = kind(e, "client-0", world, Memory())
    client.finish = lambda start: {}
    sent = {"instruction": job.model_dump_json(), "extras": list(extras)}
    (after,), _, metrics = client.fit([theta, *extras.values()], sent)
    assert metrics["steps"] == 1
    return after - theta


@pytest.mark.parametrize("lr", [1e-3, 4e-3])
@pytest.mark.parametrize("who", ["learns", "ascends", "leaves by BKE", "stays and does BKE"])
def test_the_first_step_moves_every_tensor_of_both_towers_by_the_learning_rate(host, who, lr):
    """AdamW's first step is lr for each parameter with a gradient well above its epsilon, and never more."""
    model, theta = host[2:]
    bke = {"request": theta, "teacher": model.initial}
    job = {
        "learns": (Contrastive, Learn(phase="learn", round=1, train=TrainConfig(epochs=1, batch=EVERYTHING, lr=lr)), {}),
        "ascends": (Ascent, forget("ascent", lr, {"bound": 9.0}), {}),
        "leaves by BKE": (Bilateral, forget("bilateral", lr, BkeParams().options), bke),
        "stays and does BKE": (Bilateral, forget("bilateral", lr, BkeParams().options, SOME), {"request": theta}),
    }[who]
    step = np.abs(moved(host, *job[:2], **job[2]))
    for block in model.blocks:
        most = step[block.start : block.stop].max()
        assert 0.9 * lr < most < 1.01 * lr, block.name


@pytest.mark.parametrize("form", ["weight", "margin"])
def test_each_form_of_bke_pulls_at_both_towers(host, form):
    e, world, model, theta = host
    client = Bilateral(e, "client-0", world, Memory())
    options = {**BkeParams().options, "weight": 0, "margin": 0, form: 1}
    job = forget("bilateral", 1e-9, options)
    client.fit([theta, theta, model.initial], {"instruction": job.model_dump_json(), "extras": ["request", "teacher"]})
    model.set(theta)
    loss = client.loss(Batch(torch.arange(len(client.train)), torch.zeros(len(client.train), dtype=torch.long)))
    pulls = torch.autograd.grad(loss, model.parameters)
    for block, pull in zip(model.blocks, pulls, strict=True):
        assert pull.abs().max() > 0, block.name


def test_a_client_that_stays_holds_as_many_of_the_pairs_it_keeps_and_one_that_leaves_none(host):
    e, world, _, theta = host
    for what, held in ((SOME, 40), (LEAVES, 0)):
        client = Bilateral(e, "client-0", world, Memory())
        job = forget("bilateral", 1e-9, BkeParams().options, what)
        client.fit([theta, theta], {"instruction": job.model_dump_json(), "extras": ["request"]})
        assert client.stays == (held > 0)
        assert len(client.train) == len(client.forget) + held
        assert client.requested.tolist() == [True] * len(client.forget) + [False] * held
        assert client.exclusive[~client.requested].sum() == 0
        assert client.exclusive[client.requested].all()  # without a teacher


# ---- the client's half of the forget lock ----------------------------------------------------------------------------------


def under(lock, host, round=1, epochs=1, lr=5e-3):
    """Adapters after some steps of learning under a lock (None: without)."""
    e, world, _, theta = host
    client = Contrastive(e, "client-1", world, Memory())
    job = Learn(phase="continuation", round=round, train=TrainConfig(epochs=epochs, batch=EVERYTHING, lr=lr))
    return fitted(client, theta, job, lock)[0]


def fitted(client, theta, job, lock):
    """Adapters after this job under a lock (None: without), and the metrics."""
    arrays, extras = [theta], []
    if lock:
        packed = np.frombuffer(save(lock.tensors(half=True)), dtype=np.uint8)
        job = job.model_copy(update={"lock": hashlib.sha256(packed.tobytes()).hexdigest()})
        arrays, extras = [theta, packed], ["lock"]
    (after,), _, metrics = client.fit(arrays, {"instruction": job.model_dump_json(), "extras": extras})
    return after, metrics


def locked(host, *rules):
    """Three directions in the first tensor of each tower, held where the adapters are."""
    _, _, model, theta = host
    first = [next(b for b in model.blocks if b.tower == tower) for tower in ("visual", "text")]
    draw = torch.Generator().manual_seed(0)
    bases = [torch.linalg.qr(torch.randn(b.size, 3, generator=draw))[0] for b in first]
    lock = ForgetLock.around(torch.from_numpy(theta), [b.start for b in first], bases, *rules)
    return ForgetLock.from_tensors(load(save(lock.tensors(half=True))))  # as it arrives


def test_a_client_takes_its_proximal_step(host):
    """z becomes z / (1 + lr lambda): with lr .005 and lambda 200 one half."""
    lock = locked(host, 200.0)
    free, held = under(None, host), under(lock, host)
    far, near = (lock.drift(torch.from_numpy(t)) for t in (free, held))
    assert far.abs().min() > 1e-4
    assert torch.allclose(near, far / 2, atol=2e-3 * float(far.abs().max()))
    rest = np.ones(len(free), bool)
    for start, basis in zip(lock.starts, lock.bases, strict=True):
        rest[start : start + len(basis)] = False
    assert np.array_equal(free[rest], held[rest])


def test_the_steps_of_a_locked_client_stay_within_the_bound(host):
    """||z|| <= G / lambda after any number of steps, where ||U^T u|| <= G. Adam's direction has no entry beyond 3 here."""
    lock = locked(host, 50_000.0)
    size = max(len(b) for b in lock.bases)
    bound = 3 * np.sqrt(size * len(lock.bases)) / lock.strength
    drift = float(lock.drift(torch.from_numpy(under(lock, host, epochs=6))).norm())
    assert 0 < drift <= bound
    assert float(lock.drift(torch.from_numpy(under(None, host, epochs=6))).norm()) > bound


@pytest.mark.parametrize("strength", [30.0, 3000.0])
def test_the_drift_of_a_locked_client_stays_within_the_bound_of_its_own_largest_push(host, strength):
    """||z_n|| <= min(n lr G, G / lambda), G as the client reports it. One step moves just lr G / (1 + lr lambda)."""
    e, world, _, theta = host
    lock, lr = locked(host, strength), 5e-3
    begin = float(lock.drift(torch.from_numpy(theta)).norm())  # not quite zero: the directions came in half precision
    for epochs in (1, 2, 9):
        job = Learn(phase="continuation", round=1, train=TrainConfig(epochs=epochs, batch=EVERYTHING, lr=lr))
        after, metrics = fitted(Contrastive(e, "client-1", world, Memory()), theta, job, lock)
        push, drift = metrics["lock_push"], float(lock.drift(torch.from_numpy(after)).norm())
        assert metrics["steps"] == epochs
        assert 0 < drift <= min(epochs * lr * push, push / strength)
        if epochs == 1:
            assert drift == pytest.approx(lr * push / (1 + lr * strength), abs=begin)
            assert begin < drift / 5
    _, metrics = fitted(Contrastive(e, "client-1", world, Memory()), theta, job, None)
    assert "lock_push" not in metrics


def test_a_lock_fades_with_the_rounds_of_the_continuation(host):
    lock = locked(host, 600.0, 1.0, 1)  # half as strong after every round
    far = lock.drift(torch.from_numpy(under(None, host, round=2)))
    near = lock.drift(torch.from_numpy(under(lock, host, round=2)))
    assert torch.allclose(near, far / 2.5, atol=2e-3 * float(far.abs().max()))  # lr .005 x 300
