"""The three anchors: what a tower still holds, what lies along locked directions, what comes back."""

import numpy as np
import pytest

from clients.audit import Audit, Subject
from clients.contrastive import Contrastive
from ease_flwr import data
from ease_flwr.audit import examination, intervals, measures
from ease_flwr.config import TrainConfig
from ease_flwr.exchange import messages
from ease_flwr.exchange.answers import Examination, ExaminedSet, MemberHits
from ease_flwr.exchange.messages import Learn
from ease_flwr.model import adapters
from tests.small import small_experiment
from tests.test_bilateral import Memory

# ---- modality ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def halves():
    """A client, what it asks, adapters that know nothing, and by tower adapters whose other tower is still like that."""
    e = small_experiment()
    world, model = data.load(e.data, e.seed), adapters.load(e.model, e.lora, e.seed)
    learnt = {}
    for tower in ("visual", "text"):
        only = tuple(i for i, b in enumerate(model.blocks) if b.tower == tower)
        job = Learn(phase="learn", round=1, train=TrainConfig(epochs=8, batch=48), tensors=only)
        client = Contrastive(e, "client-0", world, Memory())
        learnt[tower] = client.fit([model.initial], {"instruction": job.model_dump_json()})[0][0]
    client = Audit(e, "client-0", world, Memory())
    forget = tuple(e.forget.forget_sets())
    asked = messages.Audit(forget=forget, train=e.learn)
    subject = Subject(client.data.train, client.data.evaluation("test", forget), asked, model.initial)
    return client, subject, model, learnt


def added(found):
    return sum(np.array(member.hits[0][0]) for member in found)


def test_the_tower_that_holds_the_pairs_is_the_one_whose_swap_brings_them_back(halves):
    """Into a model that knows nothing: of the tower that has learnt, all that its model finds; of the other, nothing new."""
    client, subject, model, learnt = halves
    asked = client._asked(subject.sets)
    nothing = client._hits(asked, model.initial).sum(0)
    for tower, other in (("visual", "text"), ("text", "visual")):
        whole = client._hits(asked, learnt[tower]).sum(0)
        swap = client.swapped(learnt[tower], subject)["swap"]
        assert added(swap[tower]).tolist() == whole.tolist()
        assert added(swap[other]).tolist() == nothing.tolist()
        assert whole.sum() > 2 * nothing.sum()
    assert sum(np.array(member.of) for member in swap["text"]).tolist() == [len(asked.query)] * 2  # all of it: none left out


def test_a_swapped_model_is_that_of_the_swapped_adapters(halves):
    client, subject, model, learnt = halves
    asked, edge = client._asked(subject.sets), next(b.start for b in model.blocks if b.tower == "text")
    there = Subject(subject.forgotten, subject.sets, subject.asked, learnt["text"])
    mixed = np.concatenate([learnt["visual"][:edge], learnt["text"][edge:]])
    swap = client.swapped(learnt["visual"], there)["swap"]
    assert added(swap["visual"]).tolist() == client._hits(asked, mixed).sum(0).tolist()
    assert client.swapped(model.initial, Subject(subject.forgotten, subject.sets, subject.asked, None)) == {}


def test_the_swap_is_told_by_part_of_what_was_forgotten():
    """Members 7 and 8, of whom 8 is told apart by a word; a single order of batches is no sample of orders."""

    def one(label, images, texts):
        return MemberHits(label=label, of=(4, 5), hits=(((images, texts),),))

    def ranks(*labels):
        n = len(labels)
        return ExaminedSet(i2t=(1,) * n, t2i=(1,) * n, captions=(1,) * n, similarity=(0.5,) * n, labels=labels)

    sets = {"forget_exclusive": ranks(7.0, 8.0), "forget_word": ranks(8.0)}
    swap = {"visual": (one(7.0, 0, 0), one(8.0, 1, 0)), "text": (one(7.0, 4, 5), one(8.0, 2, 0))}
    found = measures.estimates(examination.together([Examination(sets=sets, swap=swap)]))
    value = {key: e.value for key, e in found.items() if key.startswith("swap")}
    assert value == pytest.approx(
        {"swap.visual": 100 / 8 / 2, "swap.text": (75 + 50) / 2, "swap.visual.forget_word": 12.5, "swap.text.forget_word": 25}
    )
    assert found["swap.text"].units == 2
    low, high = intervals.compared(found["swap.text"]).low, intervals.compared(found["swap.text"]).high
    assert low < 62.5 < high
