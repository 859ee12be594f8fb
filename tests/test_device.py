"""A training step never leaves the device. Shown without a GPU: fake tensors know their device, and mixing two of them raises.

A copy to the CPU or a number that the host reads (`item`) would make it wait for the device; both are counted.
"""

from collections import Counter
from dataclasses import replace
from hashlib import sha256
from types import SimpleNamespace

import numpy as np
import pytest
import safetensors.torch
import torch
from ease_flwr.clients.audit import Audit
from ease_flwr.clients.base import Batch
from ease_flwr.clients.encoding import Encoded
from ease_flwr.clients.forgetting import Forgetting
from ease_flwr.clients.locking import Held
from open_clip.model import CLIP
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from ease_flwr import clients
from ease_flwr.config import LoraConfig, halves, load
from ease_flwr.exchange.messages import Learn
from ease_flwr.model import adapters, backbone, retrieval
from ease_flwr.model.lock import ForgetLock
from tests.test_towers import TEXT, VISION

N, BATCH, CAPTIONS = 12, 6, 2
aten = torch.ops.aten


class Watch(TorchDispatchMode):
    """Counts what makes the host wait."""

    def __init__(self):
        super().__init__()
        self.seen = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is aten._local_scalar_dense.default:
            self.seen["item"] += 1
        source = next((a for a in args if isinstance(a, torch.Tensor)), None)
        to = kwargs.get("device")
        if func is aten._to_copy.default and source.device.type == "cuda" and to is not None and to.type == "cpu":
            self.seen["to cpu"] += 1
        if func is aten.copy_.default and args[0].device.type == "cpu" and args[1].device.type == "cuda":
            self.seen["to cpu"] += 1
        if func in (aten.nonzero.default, aten._unique2.default) and source.device.type == "cuda":
            self.seen["size read"] += 1
        return func(*args, **kwargs)


@pytest.fixture
def fake(monkeypatch):
    """A client's adapted model on a GPU that is not there. Patched is what needs a driver, or the numbers in a tensor."""
    monkeypatch.setattr(adapters, "device_of", lambda _: torch.device("cuda"))
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: self)
    monkeypatch.setattr(torch.nn.Module, "to", lambda self, *_, **__: self)  # all of it is made where it belongs
    monkeypatch.setattr(adapters, "_try_out", lambda *_: None)  # a step backwards needs the driver
    monkeypatch.setattr(adapters.towers, "without_padding", lambda tokens: tokens)  # reads tokens, on the CPU
    monkeypatch.setattr(adapters.towers, "_replace", lambda model, name, shorter, *_: replaced(model, name, shorter))
    peft_model = adapters.peft.get_peft_model

    def made_there(*arguments):
        with torch.device("cuda"):
            return peft_model(*arguments)

    monkeypatch.setattr(adapters.peft, "get_peft_model", made_there)
    with FakeTensorMode(allow_non_fake_inputs=True):
        with torch.device("cuda"):
            model = CLIP(embed_dim=24, vision_cfg=VISION, text_cfg=TEXT).eval().requires_grad_(False)
        base = backbone.Backbone(model, None, 32, (0, 0, 0), (1, 1, 1), {})
        yield adapters.attach(base, LoraConfig(rank=2, targets=("attn", "c_fc")), 0)


def replaced(model, name, shorter):
    """As towers._replace, without the trial, whose outcome fake tensors do not know."""
    setattr(model, name, shorter.__get__(model))
    return True


def on_gpu(*shape):
    return torch.nn.functional.normalize(torch.randn(*shape, device="cuda"), dim=-1)


def client_of(kind, model):
    """A client of an objective in the middle of its training, with its batch."""
    experiment = load("personas", {})
    client = object.__new__(type("Here", (kind,), {"model": model}))
    client.experiment, client.name = experiment, "client-0"
    images, tokens = torch.randn(N, 3, 32, 32), torch.randint(1, 49, (N, CAPTIONS, 12))
    client.train = client.kept = client.forget = client.others = client.public = Encoded(images, tokens)
    client.mates, client.batch = np.random.default_rng(0), BATCH
    client.random = torch.Generator().manual_seed(0)
    if issubclass(kind, Forgetting):
        client.options = OPTIONS.get(kind.__name__, SimpleNamespace())
        single = {"f0": on_gpu(N, 24), "others_f0": on_gpu(N, 24), "f1": on_gpu(N, 24)}
        multiple = {"g0": on_gpu(N, CAPTIONS, 24), "others_g0": on_gpu(N, CAPTIONS, 24), "g1": on_gpu(N, CAPTIONS, 24)}
        numbers = {"target": torch.rand(N, CAPTIONS, device="cuda"), "margin": torch.rand(N, CAPTIONS, device="cuda")}
        client.before = {**single, **multiple, **numbers}
        client.labels = client.others_labels = torch.zeros(N, dtype=torch.long, device="cuda")
        client.teacher_f, client.teacher_g = on_gpu(N, 24), on_gpu(N, CAPTIONS, 24)
        client.words = client.model.clip.token_embedding
        client.centre = client.own = torch.zeros_like(model.theta)
    return client, Batch(torch.arange(BATCH), torch.zeros(BATCH, dtype=torch.long))


LOCK = ForgetLock((3,), (torch.eye(20, 2),), (torch.zeros(2),), 1.0, 0.5)
OPTIONS = {
    "Ascent": SimpleNamespace(bound=0.0),
    "Bilateral": SimpleNamespace(way=0.5, sides="both", weight=1.0, margin=1.0),
    "Ccu": SimpleNamespace(temperature=0.1, inverse=1.0, retention=1.0, separation=1.0),
    "ClipErase": SimpleNamespace(forgetting=1.0, retention=1.0, consistency=1.0),
    "Lip": SimpleNamespace(sigma=0.1),
    "MultiDelete": SimpleNamespace(decouple=1.0, fused=1.0, single=1.0),
    "Mvi": SimpleNamespace(temperature=0.1, locality=1.0),
    "Npo": SimpleNamespace(beta=0.1),
}
OBJECTIVES = [name for name in halves.names("clients") if name != "audit"]


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_loss_of_every_objective_stays_on_the_device(fake, name):
    client, batch = client_of(clients.load(name), fake)
    with Watch() as watch:
        loss = client.loss(batch)
    assert loss.device.type == "cuda"
    assert loss.shape == ()
    assert not watch.seen


def test_an_embedding_that_goes_through_the_cpu_is_caught(fake, monkeypatch):
    """The mutant that this file is for: it raises where devices are mixed, or is counted."""
    client, batch = client_of(clients.load("contrastive"), fake)
    whole = type(fake).embed_images
    monkeypatch.setattr(type(fake), "embed_images", lambda self, x: whole(self, x).cpu())
    with pytest.raises(RuntimeError, match=r"two different devices|same device"):
        client.loss(batch)
    monkeypatch.setattr(type(fake), "embed_images", lambda self, x: whole(self, x).cpu().to("cuda"))
    with Watch() as watch:
        client.loss(batch)
    assert watch.seen == {"to cpu": 1}


def test_a_number_that_the_host_reads_is_caught(fake):
    client, batch = client_of(clients.load("contrastive"), fake)
    with Watch() as watch, pytest.raises(Exception, match=r"item|DataDependent|local_scalar"):
        client.loss(batch).item()
    assert watch.seen["item"] == 1


def test_lock_proximal_term_and_ball_stay_on_the_device(fake):
    lock = LOCK.on(fake.device)
    held = Held(lock, fake.theta, 0.1)
    with Watch() as watch:
        held.stepped()
        held.stepped()
        fake.theta.copy_(lock.take_back(fake.theta))
    assert fake.theta.device.type == held.most.device.type == "cuda"
    assert not watch.seen


def test_what_a_client_keeps_comes_back_to_the_device(fake, monkeypatch):
    """The forget lock, and embeddings of the time of the request."""
    client, _ = client_of(clients.load("npo"), fake)
    client.state = SimpleNamespace(save=lambda *_: None, load=lambda _: np.ones((2, 3), np.float32))
    assert client._remembered("f0").device.type == "cuda"
    monkeypatch.setattr(safetensors.torch, "load", lambda _: {})  # reads bytes, which fake tensors have not
    monkeypatch.setattr(ForgetLock, "from_tensors", lambda _: LOCK)
    packed = np.arange(3, dtype=np.uint8)
    told = Learn(phase="continuation", round=1, train=client.experiment.learn, lock=sha256(packed.tobytes()).hexdigest())
    held = client._held(told, {"lock": packed})
    assert {t.device.type for t in (*held.lock.bases, *held.lock.anchors, held.before, held.most)} == {"cuda"}


@pytest.mark.parametrize("micro", [0, 2])
def test_probes_embed_and_score_on_the_device(fake, micro):
    """Embeddings and the cross-entropy of the partner: what the probes of the audit compute of a batch."""
    client, batch = client_of(Audit, replace(fake, micro=micro))
    with Watch() as watch:
        f, g = client.embed(batch)
        loss = retrieval.partner_cross_entropy(f, g, f, g, client.scale)
        found = retrieval.partner_losses((f, g[:, None]), (f, g[:, None]), client.scale, 3, np.random.default_rng(0))
    assert {x.device.type for x in (f, g, loss, found)} == {"cuda"}
    assert not watch.seen
