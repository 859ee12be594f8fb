"""The forget clients' objectives: losses by hand, and what they may not touch."""

import math

import numpy as np
import pytest
import torch
from ease_flwr.clients import mvi
from ease_flwr.clients.ascent import Ascent
from ease_flwr.clients.base import Batch
from ease_flwr.clients.ccu import RARE, inverse_contrast, separation
from ease_flwr.clients.cliperase import ClipErase
from ease_flwr.clients.contrastive import Contrastive
from ease_flwr.clients.guidance import match
from ease_flwr.clients.multidelete import decoupling
from ease_flwr.clients.npo import negative_preference
from ease_flwr.clients.uce import unlearning_cross_entropy
from ease_flwr.strategies import load

from ease_flwr import clients, data
from ease_flwr.config import ForgetSet, TrainConfig
from ease_flwr.exchange.messages import Forget, Learn
from ease_flwr.model import adapters
from tests.small import small_experiment
from tests.test_bilateral import Memory
from tests.test_objectives import angle

LEAVES = ForgetSet(scenario="client", targets=("client-0",))


def test_unlearning_cross_entropy_is_bounded():
    assert unlearning_cross_entropy(torch.tensor([0.0])).item() == pytest.approx(math.log(2))  # p = 1
    assert unlearning_cross_entropy(torch.tensor([math.log(2)])).item() == pytest.approx(-math.log(0.75))  # p = 1/2
    assert unlearning_cross_entropy(torch.tensor([50.0])).item() == pytest.approx(0, abs=1e-6)


def test_negative_preference_by_hand():
    before = torch.tensor([1.0, 2.0])
    assert negative_preference(before, before, 0.5).item() == pytest.approx(4 * math.log(2))
    # p / p_0 = e^-2: (2 / .5) log(1 + e^-1)
    assert negative_preference(before + 2, before, 0.5).item() == pytest.approx(4 * math.log(1 + math.exp(-1)))


def lonely(kind, f, g, f0=None, g0=None, **options):
    """A client whose batch has these embeddings, without a model."""
    client = kind.__new__(kind)
    client.options = kind.Options(**options)
    client.embed = lambda batch: (f, g)
    client.before = {"f0": f if f0 is None else f0, "g0": (g if g0 is None else g0)[:, None]}
    client.__class__ = type(kind.__name__, (kind,), {"scale": torch.tensor(1.0, dtype=torch.float64)})
    return client


FIRST_TWO = Batch(torch.tensor([0, 1]), torch.tensor([0, 0]))


def test_ascent_by_hand():
    f = g = torch.eye(2, dtype=torch.float64)  # each partner has 1, the other 0: cross-entropy log(1 + 1/e)
    loss = math.log(1 + math.exp(-1))
    assert lonely(Ascent, f, g, bound=0.0).loss(FIRST_TWO).item() == pytest.approx(math.log(2) - loss)
    assert lonely(Ascent, f, g, bound=0.1).loss(FIRST_TWO).item() == 0  # beyond its bound a pair is left alone


def test_cliperase_by_hand():
    f, g, f0, g0 = angle(0, 90), angle(60, 90), angle(0, 0), angle(60, 90)
    weights = {"forgetting": 2.0, "retention": 0.0, "consistency": 3.0}
    # similarities 1/2 and 1; the second image has turned by 90 degrees, a squared distance of 2
    expected = 2 * (0.5 + 1) / 2 + 3 * (0 + 2) / 2
    assert lonely(ClipErase, f, g, f0, g0, **weights).loss(FIRST_TWO).item() == pytest.approx(expected)


def test_decoupling_is_zero_where_pairs_are_like_strangers():
    f0, g0 = angle(0, 90), angle(0, 90)  # each other's partners have cosine 0
    assert decoupling(f0, g0, f0, g0).item() == pytest.approx(2)  # (1 - 0)^2 twice
    assert decoupling(f0, g0.flip(0), f0, g0).item() == pytest.approx(0)


def test_guidance_is_zero_where_the_teacher_agrees():
    f, g, scale = angle(0, 40), angle(10, 80), torch.tensor(5.0, dtype=torch.float64)
    assert match(f, g, f, g, scale).item() == pytest.approx(0, abs=1e-12)
    assert match(f, g, f, g.flip(0), scale).item() > 0.1


def test_inverse_contrast_by_hand():
    keys, own = torch.eye(3, dtype=torch.float64), torch.tensor([[True, False, False]])

    def kl(p, u):
        return sum(a * math.log(a / b) for a, b in zip(p, u, strict=True))

    # a query like its own key: p = (e, 1, 1) / (e + 2), u = (r, 1, 1) / (r + 2)
    p, u = [x / (math.e + 2) for x in (math.e, 1, 1)], [x / (RARE + 2) for x in (RARE, 1, 1)]
    assert inverse_contrast(keys[:1], keys, own, 1.0).item() == pytest.approx(kl(p, u))
    away = torch.tensor([[math.log(RARE), 0, 0]], dtype=torch.float64)
    assert inverse_contrast(away, keys, own, 1.0).item() == pytest.approx(0, abs=1e-9)
    own = torch.tensor([[True, True, False]])  # the second key is of its class too
    u = [x / (2 * RARE + 1) for x in (RARE, RARE, 1)]
    assert inverse_contrast(keys[:1], keys, own, 1.0).item() == pytest.approx(kl(p, u))


def test_separation_by_hand_and_its_classes():
    others = angle(0, 90)
    alone, together = torch.tensor([-1, -1]), torch.tensor([3, 3])
    rest = math.log(math.e + 1 + math.exp(-1))  # e for itself, 1 for the other, 1/e for a forgotten image opposite
    forget = -others[:1]
    expected = (rest - 1 + math.log(math.e + 2) - 1) / 2  # from the second the forgotten one has cosine 0
    assert separation(others, others, forget, alone, 1.0).item() == pytest.approx(expected)
    nearer = separation(others, others, others[:1], alone, 1.0)
    assert nearer.item() > expected  # a forgotten image on a retained one costs more
    assert separation(others, others, forget, together, 1.0).item() == pytest.approx(expected + 0.5)  # half the mass each


def test_product_of_experts_by_hand_and_with_a_missing_modality():
    ones, zeros = torch.ones(1, 1), torch.zeros(1, 1)
    experts = [(2 * ones, zeros), (-1 * ones, zeros)]  # N(2, 1) and N(-1, 1)
    for present, mean, variance in (((1, 1), 1 / 3, 1 / 3), ((1, 0), 1.0, 1 / 2), ((0, 1), -0.5, 1 / 2), ((0, 0), 0.0, 1.0)):
        m, v = mvi.product_of_experts(experts, torch.tensor([present], dtype=torch.float32))
        assert m.item() == pytest.approx(mean)
        assert v.exp().item() == pytest.approx(variance)
    assert mvi.divergence((zeros, zeros)).item() == 0
    assert mvi.divergence((2 * ones, zeros)).item() == pytest.approx(2)


def world_of_factors(n=200, d=12, seed=0):
    """Image and text share a signal, and each has noise of its own."""
    rng = torch.Generator().manual_seed(seed)
    shared, own_f, own_g = (torch.randn(n, d, generator=rng) for _ in range(3))
    unit = torch.nn.functional.normalize
    return unit(shared + 0.7 * own_f, dim=1), unit(shared + 0.7 * own_g, dim=1)


def test_variational_factors_reconstruct_and_are_decoupled():
    f, g = world_of_factors()
    model, penalty = mvi.fit((f, g), k=4, steps=200, beta=0.01, decouple=1.0, seed=0)
    coupled = mvi.fit((f, g), k=4, steps=200, beta=0.01, decouple=0.0, seed=0)[1]
    assert penalty[1] < 0.2 * coupled[1]
    z_c, _ = model.consistent(f, g, torch.ones(len(f), 2))
    (z_v, _), (z_t, _) = model.specific(f, g)
    again = model.decode(z_c, z_v, z_t)
    assert (again[0] * f).sum(1).mean() > 0.5
    assert (again[0] * f.roll(1, 0)).sum(1).mean() < 0.2


def test_edited_targets_differ_in_the_consistent_factor_only():
    f, g = world_of_factors()
    model, _ = mvi.fit((f, g), k=4, steps=50, beta=0.01, decouple=0.1, seed=0)
    z_c, _ = model.consistent(f, g, torch.ones(len(f), 2))
    same = mvi.edited(model, f, g, z_c)
    (z_v, _), (z_t, _) = model.specific(f, g)
    for a, b in zip(same, model.decode(z_c, z_v, z_t), strict=True):
        assert torch.equal(a, b)  # with its own z_c nothing is edited
    one, other = mvi.edited(model, f, g, torch.zeros_like(z_c)), mvi.edited(model, g, f, torch.zeros_like(z_c))
    assert not torch.allclose(one[0], same[0], atol=1e-2)
    assert not torch.allclose(one[0], other[0], atol=1e-2)  # but what is its own stays in it


def test_editing_loss_by_hand():
    now = angle(0.0)
    assert mvi.editing_loss(now, now, [angle(90.0), angle(180.0)], 1.0).item() == pytest.approx(
        math.log(math.e + 1 + math.exp(-1)) - 1
    )


OBJECTIVES = ("ascent", "npo", "uce", "multidelete", "cliperase", "ccu", "mvi", "lip")
STRATEGY = {"uce": "fedosd"}


@pytest.fixture(scope="module")
def trained():
    e = small_experiment()
    world = data.load(e.data, e.seed)
    theta = adapters.load(e.model, e.lora, e.seed).initial
    learn = Learn(phase="learn", round=1, train=TrainConfig(epochs=12, batch=48))
    known = Contrastive(e, "client-0", world, Memory()).fit([theta], {"instruction": learn.model_dump_json()})[0][0]
    return e, world, known


def forget(trained, name, memory, round=1, snapshot=True, **options):
    e, world, known = trained
    strategy = load(STRATEGY.get(name, name))
    own = strategy.Params().model_dump()
    shared = {"rounds", "lr_end", "lr", "epochs", "batch"}
    told = {k: v for k, v in own.items() if k not in shared} if name not in STRATEGY else {}
    train = TrainConfig(epochs=2, batch=48, lr=1e-3)
    job = Forget(phase="forget", round=round, objective=name, train=train, forget=LEAVES, options={**told, **options})
    client = clients.load(name)(e, "client-0", world, memory)
    arrays, extras = ([known, known], ["request"]) if snapshot else ([known], [])
    (after,), _, metrics = client.fit(arrays, {"instruction": job.model_dump_json(), "extras": extras})
    return client, after, metrics


def partner_loss(client, theta):
    from ease_flwr.model.retrieval import partner_losses

    pairs, public = (client.embed_all(theta, p, most=1) for p in (client.forget, client.public))
    return partner_losses(pairs, public, client.scale, 48, np.random.default_rng(0)).mean().item()


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_makes_the_pairs_match_less(trained, name):
    memory = Memory()
    client, after, metrics = forget(trained, name, memory)
    assert partner_loss(client, after) > partner_loss(client, trained[2]) + {"lip": 0.02, "ccu": 0.05}.get(name, 0.2)
    assert np.isfinite(metrics["loss"])
    if client.remembers:
        again, *_ = forget(trained, name, memory, round=2, snapshot=False)
        assert all(torch.equal(again.before[k], client.before[k]) for k in client.remembers)
        with pytest.raises(ValueError, match="snapshot of the request is missing here"):
            forget(trained, name, Memory(), snapshot=False)


def test_ccu_changes_nothing_in_the_text_tower(trained):
    client, after, _ = forget(trained, "ccu", Memory())
    moved = after - trained[2]
    text = np.concatenate([moved[b.start : b.stop] for b in client.model.blocks if b.tower == "text"])
    visual = np.concatenate([moved[b.start : b.stop] for b in client.model.blocks if b.tower == "visual"])
    assert not text.any()
    assert visual.any()
    # the next client of the process trains both towers again
    npo = forget(trained, "npo", Memory())[1] - trained[2]
    assert np.concatenate([npo[b.start : b.stop] for b in client.model.blocks if b.tower == "text"]).any()


@pytest.mark.parametrize("part", ["inverse", "retention", "separation"])
def test_each_part_of_ccu_can_be_switched_off(trained, part):
    whole = forget(trained, "ccu", Memory())[1]
    assert not np.array_equal(forget(trained, "ccu", Memory(), **{part: 0.0})[1], whole)


def test_projected_ascent_stays_in_its_ball_and_stops(trained):
    e, world, known = trained
    client = clients.load("projected_ascent")(e, "client-0", world, Memory())

    def climb(radius, limit):
        options = {"radius": radius, "limit": limit}
        train = TrainConfig(epochs=2, batch=48, lr=1e-3)
        job = Forget(phase="forget", round=1, objective="projected_ascent", train=train, forget=LEAVES, options=options)
        sent = {"instruction": job.model_dump_json(), "extras": ["centre", "own"]}
        (after,), _, metrics = client.fit([known, known, known], sent)
        return float(np.linalg.norm(after - known)), metrics["steps"]

    free, steps = climb(1e9, 1e9)
    inside, all_steps = climb(free / 2, 1e9)
    assert inside == pytest.approx(free / 2, rel=1e-3)
    assert all_steps == steps
    stopped, fewer = climb(1e9, (free / 4) ** 2)
    assert fewer < steps
    assert free / 4 < stopped < free


def test_representations_are_the_leading_directions_of_gradients(trained):
    e, world, known = trained
    client = clients.load("representations")(e, "client-1", world, Memory())
    job = Learn(phase="forget", round=1, train=TrainConfig(epochs=1, batch=48), options={"noise": 0.0})
    vector = client.fit([known], {"instruction": job.model_dump_json()})[0][0]
    for block, gradients in zip(client.model.blocks, client.gradients, strict=True):
        rows = vector[block.start : block.stop].reshape(block.shape[0], -1)
        if "lora_B" in block.name:
            assert not rows.any()
            continue
        strengths = np.linalg.norm(rows, axis=1)
        assert (np.diff(strengths) <= 1e-6).all()
        assert np.allclose(rows @ rows.T, np.diag(strengths**2), atol=1e-5 * strengths[0] ** 2)
        total = sum(float((g**2).sum()) for g in gradients)
        assert 0.2 * total < float((strengths**2).sum()) <= total * 1.001


def test_only_chosen_tensors_are_trained(trained):
    e, world, known = trained
    client = Contrastive(e, "client-1", world, Memory())
    job = Learn(phase="forget", round=1, train=TrainConfig(epochs=1, batch=48), tensors=(1, 4))
    moved = client.fit([known], {"instruction": job.model_dump_json()})[0][0] - known
    changed = [i for i, b in enumerate(client.model.blocks) if moved[b.start : b.stop].any()]
    assert changed == [1, 4]


def test_proximal_term_holds_clients_near(trained):
    e, world, known = trained
    client = Contrastive(e, "client-1", world, Memory())
    far, near = (
        np.linalg.norm(
            client.fit(
                [known],
                {
                    "instruction": Learn(
                        phase="x", round=1, train=TrainConfig(epochs=2, batch=48), proximal=mu
                    ).model_dump_json()
                },
            )[0][0]
            - known
        )
        for mu in (0.0, 10.0)
    )
    assert near < 0.7 * far
