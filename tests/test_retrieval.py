"""Recall from embeddings, by hand."""

import pytest
import torch
from ease_flwr.clients.judging import counts

from ease_flwr.exchange.judgement import SetCounts
from ease_flwr.model.retrieval import ranks


def everything(n):
    return torch.arange(n)


def hits(images, texts, owner, group, query):
    """What a client counts of these embeddings."""
    return counts(*ranks(images, texts, owner, group, query), gallery=len(images))


def counted(images, texts, i2t, t2i, gallery=1):
    return SetCounts(images=images, texts=texts, i2t=i2t, t2i=t2i, gallery=gallery)


def test_two_pairs_one_of_them_wrong():
    images = torch.tensor([[1.0, 0.0], [0.6, 0.8]])
    texts = torch.tensor([[0.8, 0.6], [1.0, 0.0]])  # similarities [[.8, 1], [.96, .6]]
    found = hits(images, texts, everything(2), torch.zeros(2, dtype=torch.long), everything(2))
    assert found == counted(2, 2, (0, 2, 2), (0, 2, 2), gallery=2)
    aligned = hits(images, images, everything(2), torch.zeros(2, dtype=torch.long), everything(2))
    assert aligned.percent()["r1"] == 100


def test_any_caption_of_the_image_is_a_hit_and_captions_do_not_compete_with_their_siblings():
    images = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    texts = torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.0, 1.0]])  # image 0: one wrong, one right caption; image 1: right
    owner = torch.tensor([0, 0, 1])
    found = hits(images, texts, owner, torch.zeros(2, dtype=torch.long), everything(2))
    assert found.i2t == (1, 2, 2)  # image 1 ties with the stray caption of image 0: the tie counts against it
    assert found.t2i == (2, 3, 3)
    assert (found.images, found.texts) == (2, 3)


def test_queries_meet_their_own_group_only():
    images = torch.eye(4)
    texts = torch.eye(4)[[1, 0, 2, 3]]
    group = torch.tensor([0, 1, 0, 1])  # the two mistaken pairs are in different groups
    found = hits(images, texts, everything(4), group, torch.tensor([2, 3]))
    assert found == counted(2, 2, (2, 2, 2), (2, 2, 2), gallery=4)
    assert hits(images, texts, everything(4), group, torch.tensor([0])).i2t[0] == 0


def test_a_constant_model_scores_as_chance_and_not_as_perfect():
    same = torch.ones(101, 1)
    found = hits(same, same, everything(101), torch.zeros(101, dtype=torch.long), everything(101))
    assert found.i2t == found.t2i == (0, 0, 0)


def test_counts_add_up():
    total = counted(1, 2, (1, 1, 1), (0, 1, 2)) + counted(3, 2, (0, 1, 3), (1, 1, 1))
    assert total == counted(4, 4, (1, 2, 4), (1, 2, 3))
    assert total.percent() == {
        "i2t": {"r1": 25, "r5": 50, "r10": 100},
        "t2i": {"r1": 25, "r5": 50, "r10": 75},
        "r1": pytest.approx(25),
    }


def test_similarities_go_along_where_they_are_asked_for():
    i2t, t2i = torch.tensor([1, 7]), torch.tensor([1, 1, 20])
    found = counts(i2t, t2i, 9, torch.tensor([0.5, -0.25]))
    assert (found.i2t, found.t2i, found.gallery) == ((1, 1, 2), (2, 2, 2), 9)
    assert found.similarity == (0.5, -0.25)
    assert counts(i2t, t2i, 9).similarity == ()
    with pytest.raises(ValueError, match="1 similarities of 2 pairs"):
        counts(i2t, t2i, 9, torch.tensor([0.5]))
