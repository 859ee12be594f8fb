"""What a client answers when it is audited: scores of its own pairs under several models, never pairs or embeddings.

Every probe asks all models the same question on the same pairs; what the numbers mean is decided on the server, beside those of
the retrained model (ease_flwr/audit/examination.py, docs/audit.md).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from ease_flwr.clients.contrastive import Contrastive
from ease_flwr.clients.locking import received
from ease_flwr.clients.probing import (
    augmented,
    by_member,
    captions_of,
    enough,
    linear_cka,
    numbered,
    separating,
    some,
    together,
)
from numpy.typing import NDArray

from ease_flwr.data.backdoor import Marked
from ease_flwr.data.pairs import EvaluationSet, Pairs, with_queries
from ease_flwr.exchange import messages
from ease_flwr.exchange.answers import as_json
from ease_flwr.exchange.examined import BATCH_SEEDS, CROSS_STEPS, MOST, STEPS, TWO, Examination, ExaminedSet, MemberHits
from ease_flwr.model.retrieval import partner_losses

if TYPE_CHECKING:
    from torch import Tensor

    from ease_flwr.model.lock import ForgetLock

FORGET_SETS = ("forget_exclusive", "forget_shared", "forget")
"""Sets about forgotten pairs that share a gallery with those of the retain set; forget_unseen has its own."""
FEATURES = ("cosine", "partner loss", "cosine of changed images", "spread of changed images")
"""By which membership is attacked; the partner loss is its cross-entropy among public pairs."""


SAMPLES = "three_samples"
"""What everybody is asked where there is no retrained model: pairs that are forgotten or kept, and strangers beside them."""


@dataclass(frozen=True)
class Subject:
    """What the probes are about: forgotten pairs, the client's sets, what was asked, the retrained model, the forget lock."""

    forgotten: Pairs
    sets: dict[str, EvaluationSet]
    asked: messages.Audit
    reference: NDArray[np.float32] | None
    lock: ForgetLock | None


Found = dict[str, Any]
"""Fields of an Examination."""


class Audit(Contrastive):
    """Answers `evaluate` with all models at once: parameters are one vector a model, config names them in `models`."""

    def evaluate(self, parameters: list[NDArray[Any]], config: dict[str, Any]) -> tuple[float, int, dict[str, Any]]:
        """An Examination (exchange/examined.py) of every model, as JSON under `answer`.

        Who has forgotten pairs is also asked the probes that the instruction names, and judges the set "neighbours": what
        looks most like these pairs in their gallery and is not to be forgotten.
        """
        asked: messages.Audit = messages.read_instruction(config)
        models = dict(zip(config["models"], parameters, strict=True))
        extras = {"lock": models.pop("lock")} if "lock" in models else {}
        lock = received(asked.lock, extras, self.state) if asked.lock else None
        sets = self.data.evaluation(asked.split, asked.forget)
        forgotten = self._forgotten(self.named(asked.forget)) if any(s in sets for s in FORGET_SETS) else None
        if forgotten is not None:
            sets["neighbours"] = self._neighbours(sets, forgotten)
        samples = with_queries(self._samples(sets, asked.split)) if SAMPLES in asked.probes else {}
        judged = with_queries(sets)
        said: dict[str, Examination] = {}
        for name, theta in models.items():
            self.model.set(theta)
            found: Found = {"sets": {s: self.examined(chosen, theta) for s, chosen in judged.items()}}
            found["samples"] = {s: self.examined(chosen, theta) for s, chosen in samples.items()}
            if isinstance(self.world, Marked) and "test" in judged:
                found["backdoor"] = self._backdoor(self.world, sets["test"], theta)
            if forgotten is not None:
                subject = Subject(forgotten, sets, asked, models.get("retrain"), lock)
                for probe in (p for p in asked.probes if p != SAMPLES):
                    found |= getattr(self, probe)(theta, subject)
            said[name] = Examination.model_validate(found)
        return 0.0, sum(len(s.query) for s in judged.values()), {"answer": as_json(said)}

    def examined(self, chosen: EvaluationSet, theta: NDArray[np.float32]) -> ExaminedSet:
        """Ranks and similarities on a set, query by query."""
        i2t, t2i, similarity = self.judged(chosen, theta)
        pairs = chosen.gallery.pairs
        return ExaminedSet(
            i2t=tuple(i2t.tolist()),
            t2i=tuple(t2i.tolist()),
            captions=tuple(captions_of(chosen).tolist()),
            similarity=tuple(similarity.tolist()),
            labels=numbered(pairs, chosen.query),
        )

    # ---- probes of what is forgotten: (theta, subject) -> fields of an Examination ---------------------------------------

    def membership(self, theta: NDArray[np.float32], subject: Subject) -> Found:
        """Features by which a pair that was trained on might be told from one like it that was not."""
        inside, outside, labels = self._both_sides(subject)
        both = {"member": inside, "stranger": outside}
        return labels | {k: self._features(pairs, theta, subject.asked.train.batch).tolist() for k, pairs in both.items()}

    def linear_probe(self, theta: NDArray[np.float32], subject: Subject) -> Found:
        """Cross-validated scores of a linear classifier on frozen embeddings (image and text side by side), of TWO or more."""
        *both, labels = self._both_sides(subject)
        if min(map(len, both)) < TWO:
            return labels
        inside, outside = (torch.cat(self._first(pairs, theta), 1).cpu() for pairs in both)
        return labels | {"probe": [side.tolist() for side in separating(inside, outside)]}

    def relearning(self, theta: NDArray[np.float32], subject: Subject) -> Found:
        """Hits on what is forgotten before, and after some steps of, learning it again, and how far the first step leads along
        locked directions. Pairs are learnt from each other: of fewer than TWO nothing is."""
        if len(subject.forgotten) < TWO:
            return {}
        asked = enough(self._asked(subject.sets))
        before = self._hits(asked, theta)
        hits, regained = [], list[float]()
        for seed in range(BATCH_SEEDS):
            after = self._learn(theta, subject, STEPS, seed)
            hits.append([before, *(self._hits(asked, m) for m in after)])
            if subject.lock:
                regained.append(subject.lock.energy(torch.from_numpy(after[0] - theta)))
        return {"relearn": by_member(asked, np.array(hits)), "regained": regained}

    def cross_modal(self, theta: NDArray[np.float32], subject: Subject) -> Found:
        """Hits after learning the forgotten pairs again with one tower while the other stays as it is; see `relearning`."""
        if len(subject.forgotten) < TWO:
            return {}
        asked = enough(self._asked(subject.sets))
        out: dict[str, list[MemberHits]] = {}
        for tower in ("visual", "text"):
            only = tuple(i for i, b in enumerate(self.model.blocks) if b.tower == tower)
            after = [self._learn(theta, subject, (CROSS_STEPS,), seed, only) for seed in range(BATCH_SEEDS)]
            out[tower] = by_member(asked, np.array([[self._hits(asked, m) for m in found] for found in after]))
        return {"cross": out}

    def swapped(self, theta: NDArray[np.float32], subject: Subject) -> Found:
        """Hits on what is forgotten of one tower of this model beside the other of the retrained one: which tower holds it?"""
        asked, there = self._asked(subject.sets), subject.reference
        if there is None:
            return {}
        both = {"visual": (theta, there), "text": (there, theta)}
        return {"swap": {tower: by_member(asked, self._hits(asked, *mixed)[None, None]) for tower, mixed in both.items()}}

    def alignment(self, theta: NDArray[np.float32], subject: Subject) -> Found:
        """Linear CKA of embeddings to the retrained model's, on forgotten and on public pairs, where they differ."""
        out: dict[str, list[float | None]] = {}
        if subject.reference is None:
            return {}
        for name, pairs in (("forget", some(subject.forgotten, 2)), ("public", self.world.unseen())):
            ours, theirs = self._first(pairs, theta), self._first(pairs, subject.reference)
            both = [linear_cka(a, b) for a, b in zip(ours, theirs, strict=True)]
            out |= {} if None in both else {name: both}
        return {"cka": out}

    def _forgotten(self, gone: NDArray[np.bool_]) -> Pairs:
        """Pairs about something; where labels are missing from all, all of them."""
        pairs = self.data.train.take(np.flatnonzero(gone))
        named = np.flatnonzero(pairs.about != "")
        return pairs.take(named) if len(named) else pairs

    # ---- means -----------------------------------------------------------------------------------------------------

    def _first(self, pairs: Pairs, theta: NDArray[np.float32]) -> tuple[Tensor, Tensor]:
        self.model.set(theta)
        f, g = self.embedded_first(pairs, theta)
        return f, g[:, 0]

    def _neighbours(self, sets: dict[str, EvaluationSet], forgotten: Pairs) -> EvaluationSet:
        """Queries about other things whose pictures are, for the model before learning, nearest to a forgotten one: in the
        gallery of what is forgotten, or where nothing else is there, among the test pairs."""
        asked = [sets[name] for name in FORGET_SETS if name in sets]
        others = [part for chosen in asked for part in (chosen.query, chosen.apart)]
        own = np.setdiff1d(np.arange(len(asked[0].gallery.pairs)), np.concatenate(others))
        among = EvaluationSet(asked[0].gallery, own) if len(own) else sets["test"]
        images = self._first(among.gallery.pairs, self.model.initial)[0][torch.from_numpy(among.query)]
        near = (images @ self._first(forgotten, self.model.initial)[0].T).amax(1)
        best = near.topk(min(MOST, len(near))).indices.sort().values.cpu().numpy()
        return EvaluationSet(among.gallery, among.query[best])

    def _backdoor(self, world: Marked, test: EvaluationSet, theta: NDArray[np.float32]) -> list[bool]:
        """Of each marked test picture, whether it finds the sentence of the mark before every caption of its gallery."""
        f, sentence = self._first(world.shown(test), theta)
        _, captions, _ = self.embedded(test.gallery.pairs, theta)
        own = (f * sentence).sum(1)
        found: list[bool] = (own > (f @ captions.T).amax(1)).tolist()
        return found

    def _features(self, pairs: Pairs, theta: NDArray[np.float32], batch: int) -> Tensor:
        """(n, 4): cosine, cross-entropy among public pairs, mean and spread of the cosine under slight changes of the image."""
        f, g = self._first(pairs, theta)
        public_f, public_g = self._first(self.world.unseen(), theta)
        own, public = (f, g[:, None]), (public_f, public_g[:, None])
        loss = partner_losses(own, public, self.scale, batch, np.random.default_rng(0))[:, 0]
        moved = torch.stack([(self._first(changed, theta)[0] * g).sum(1) for changed in augmented(pairs)], 1)
        return torch.stack([(f * g).sum(1), loss, moved.mean(1), moved.std(1)], 1)

    def _strangers(self, asked: messages.Audit) -> Pairs:
        """Pairs like the forgotten ones that nobody trained on; the same object for all models, so they are encoded once."""
        if not hasattr(self, "_unseen"):
            self._unseen = self.data.never_trained(asked.split, asked.forget)
        return self._unseen

    def _unknown(self, split: str) -> tuple[Pairs, EvaluationSet]:
        """See ClientData.strangers; the same objects for all models."""
        if not hasattr(self, "_strange"):
            self._strange = self.data.strangers(split)
        return self._strange

    def _samples(self, sets: dict[str, EvaluationSet], split: str) -> dict[str, EvaluationSet]:
        """Forgotten pairs and strangers beside them, and kept pairs, where there are such; each in a gallery with strangers."""
        out: dict[str, EvaluationSet] = {}
        strangers = self._unknown(split)[1]
        if any(s in sets for s in FORGET_SETS):
            out["forget"], out["strangers"] = together(self._asked(sets), strangers)
        if "retain" in sets:
            out["retain"] = together(sets["retain"], strangers)[0]
        return out

    def _asked(self, sets: dict[str, EvaluationSet]) -> EvaluationSet:
        """What is learnt again is judged on what only this client knew, if that is split off."""
        return next(sets[s] for s in ("forget_exclusive", "forget", "forget_shared") if s in sets)

    def _both_sides(self, subject: Subject) -> tuple[Pairs, Pairs, Found]:
        """Forgotten pairs, pairs that nobody trained on, and the labels of both: pairs like them, which the retrained model is
        asked about too; where there is none, strangers."""
        beside = self._unknown(subject.asked.split)[0] if subject.reference is None else self._strangers(subject.asked)
        inside, outside = some(subject.forgotten, 0), some(beside, 0)
        return inside, outside, {"member_labels": numbered(inside), "stranger_labels": numbered(outside)}

    def _hits(
        self, chosen: EvaluationSet, theta: NDArray[np.float32], text: NDArray[np.float32] | None = None
    ) -> NDArray[np.int64]:
        """Of each image query, whether its partner is found first, and how many of its captions find it first, (n, 2).

        text: see `judged`.
        """
        self.model.set(theta)
        i2t, t2i, _ = self.judged(chosen, theta, text)
        owner = np.repeat(np.arange(len(chosen.query)), captions_of(chosen))
        found = np.bincount(owner, (t2i == 1).cpu().numpy(), len(chosen.query))
        return np.stack([(i2t == 1).cpu().numpy(), found], 1).astype(np.int64)

    def _learn(
        self,
        theta: NDArray[np.float32],
        subject: Subject,
        stops: tuple[int, ...],
        seed: int,
        tensors: tuple[int, ...] = (),
    ) -> list[NDArray[np.float32]]:
        """Adapters after so many steps of InfoNCE on these pairs, with these tensors or all; batches do not depend on theta."""
        self.model.set(theta)
        self._free(tensors)
        self.train = self.encode(subject.forgotten)
        found = []
        plan = subject.asked.train.model_copy(update={"epochs": stops[-1]})  # an epoch is a step at least
        for step, _ in enumerate(self._descend(plan, np.random.default_rng(3 + seed)), 1):
            if step in stops:
                found.append(self.model.get())
            if step == stops[-1]:
                break
        return found
