"""The audit: its numbers by hand, its answers in words, and attacks by shadows."""

import json
import re
import shutil
import subprocess

import numpy as np
import pytest
import torch
from ease_flwr.clients.judging import counts
from ease_flwr.clients.probing import by_member, enough, linear_cka, separating

from ease_flwr.audit import examination, figures, intervals, measures, report
from ease_flwr.config import ConfigError
from ease_flwr.data.pairs import EvaluationSet, Gallery, Pairs
from ease_flwr.exchange.answers import validated
from ease_flwr.exchange.examined import BATCH_SEEDS, Examination, ExaminedSet, MemberHits
from ease_flwr.model.retrieval import ranks
from ease_flwr.sweep import cells, comparison, shadows
from tests.small import RUN_CONFIG

# ---- numbers ----------------------------------------------------------------------------------------------------------


def test_ranks_and_counts_agree():
    rng = torch.Generator().manual_seed(0)
    images, texts = (torch.nn.functional.normalize(torch.randn(n, 5, generator=rng), dim=1) for n in (12, 24))
    owner, group, query = torch.arange(12).repeat_interleave(2), torch.arange(12) % 3, torch.tensor([1, 4, 5, 11])
    i2t, t2i = ranks(images, texts, owner, group, query)
    assert len(i2t) == 4
    assert len(t2i) == 8
    found = counts(i2t, t2i, len(images))
    assert found.i2t == tuple(int((i2t <= k).sum()) for k in (1, 5, 10))
    assert found.t2i == tuple(int((t2i <= k).sum()) for k in (1, 5, 10))
    # by hand: the second caption of picture 4 among all captions of its group, pictures 1, 4, 7, 10
    score = [float(images[i] @ texts[9]) for i in (1, 4, 7, 10)]
    assert t2i[3] == 1 + sum(s > score[1] for s in score)


def test_alignment_and_separability_laws():
    rng = torch.Generator().manual_seed(0)
    a = torch.randn(80, 6, generator=rng)
    turn = torch.linalg.qr(torch.randn(6, 6, generator=rng))[0]
    assert linear_cka(a, 3 * a @ turn + 1) == pytest.approx(1)  # a rotation, a scale, a shift change nothing
    assert linear_cka(a, torch.randn(80, 6, generator=rng)) < 0.3
    for same in (a[:1], a[:1].expand(7, 6)):  # one pair, or the same one again and again, is aligned with nothing
        assert linear_cka(same, same + 1) is None

    def separability(inside, outside):
        scores = [side.numpy() for side in separating(inside, outside)]
        return intervals.auc(*scores, tuple(np.full(len(s), -1.0) for s in scores)).value

    assert separability(a + 2, a[:40] - 2) == pytest.approx(1)
    assert 0.3 < separability(a[:40], a[40:]) < 0.7


def examined(*ranks, label=7.0, captions=1):
    """A client's queries in a set, all about one thing; each picture's captions have its rank."""
    n = len(ranks)
    texts = tuple(r for r in ranks for _ in range(captions))
    cosines = tuple(0.5 + 0.01 * i for i in range(n))
    return ExaminedSet(i2t=ranks, t2i=texts, captions=(captions,) * n, similarity=cosines, labels=(label,) * n)


def hits(label, of, before, after, stops=4):
    """Of one member, the same in every order of batches."""
    return MemberHits(label=label, of=(of, of), hits=(((before, before), *((after, after),) * stops),) * BATCH_SEEDS)


def test_wordings_by_hand():
    def spread(t2i, captions, labels):
        found = {"t2i": t2i, "captions": captions, "labels": labels}
        return measures.wordings({k: np.array(v, dtype=float) for k, v in found.items()})

    values, member = spread([1, 5, 1, 1], [2, 2], [7, 8])
    assert (values.tolist(), member.tolist()) == ([50, 0], [0, 1])
    assert spread([1, 5, 9, 1, 1], [3, 1, 1], [7, 8, 9])[0] == pytest.approx([100 * 2**0.5 / 3])  # one in three: sqrt(1/3 2/3)
    assert spread([1, 3, 1, 1], [1] * 4, [7, 7, 8, -1])[0] == pytest.approx([50])  # one person twice
    assert spread([1, 3], [1, 1], [7, 8]) is None
    assert spread([], [], []) is None


def test_answers_of_clients_are_put_together_in_order_of_their_names():
    sides = {"member_labels": (7.0,), "stranger_labels": (7.0, -1.0)}
    first = Examination(
        sets={"forget_shared": examined(3), "forget_exclusive": examined(1, 2), "forget_unseen": examined(9)},
        member=((0.1, 0.2, 0.3, 0.4),),
        stranger=((0.5, 0.6, 0.7, 0.8), (0.0, 0.0, 0.0, 0.0)),
        relearn=(hits(7.0, 4, 0, 1),),
        cross={"text": (hits(7.0, 4, 1, 0, stops=0),)},
        probe=((0.75,), (0.5, 0.25)),
        cka={"forget": (0.5, 1.0)},
        backdoor=(True, False, False),
        **sides,
    )
    second = Examination(
        sets={"forget_exclusive": examined(4, label=8.0), "retain": examined(5)},
        relearn=(hits(7.0, 1, 1, 1), hits(8.0, 5, 1, 2)),
        cka={"forget": (1.0, 0.0)},
        backdoor=(True,),
    )
    found = examination.together([first, second])
    assert list(found.sets) == ["forget_exclusive", "forget_shared", "forget", "retain", "forget_unseen"]
    assert found.sets["forget"]["i2t"].tolist() == [1, 2, 4, 3]  # the exclusive ones of all clients come first
    assert found.sets["forget"]["labels"].tolist() == [7, 7, 8, 7]
    assert (found.member.shape, found.stranger.shape) == ((1, 4), (2, 4))
    assert [side.tolist() for side in found.sides] == [[7], [7, -1]]
    assert found.backdoor.tolist() == [1, 0, 0, 1]
    assert found.cka["forget"].tolist() == [0.75, 0.5]
    assert [side.tolist() for side in found.probe] == [[0.75], [0.5, 0.25]]
    numbers = measures.estimates(found)
    assert numbers["relearn.0"].value == pytest.approx(100 * (0 + 1 + 1) / 10)  # a label that two clients have is one member
    assert numbers["relearn.40"].value == pytest.approx(100 * (1 + 1 + 2) / 10)
    assert numbers["relearn.40"].units == 2
    assert numbers["cross.text"].value == 25
    assert numbers["backdoor"].value == 50


def test_unseen_words_are_judged_by_recall_alone():
    """forget_unseen has a gallery of its own: its pairs are not among those whose similarities are compared."""
    answers = examination.together([Examination(sets={s: examined(1, 2) for s in ("forget", "forget_unseen", "retain")})])
    own = measures.estimates(answers)
    found = measures.numbers(answers, own, [(answers, own)])
    assert {"r1.forget_unseen", "median_rank.forget_unseen"} <= set(found)
    for key in ("distance", "correlation", "ks"):
        assert {k for k in found if k.startswith(key)} == {f"{key}.forget", f"{key}.retain"}
    assert {k for k in found if k.startswith("people")} == {"people.forget"}
    assert {k for k in examination.scores(answers) if k.startswith("similarity")} == {"similarity.forget", "similarity.retain"}


def test_numbers_beside_two_retrainings_by_hand():
    """Beside the mean of both, distance to either, and whom the models differ most for."""

    def model(*ranks):
        sets = {"forget": ExaminedSet(i2t=ranks, t2i=ranks, captions=(1,) * 4, similarity=[r / 10 for r in ranks], labels=who)}
        answers = examination.together([Examination(sets=sets)])
        return answers, measures.estimates(answers)

    who = (7.0, 7.0, 8.0, 9.0)
    (ours, own), *references = model(1, 1, 1, 5), model(3, 1, 5, 5), model(3, 3, 5, 1)
    found = measures.numbers(ours, own, references)
    assert found["r1.forget"].gap == pytest.approx(75 - 25)
    assert found["distance.forget"].value == pytest.approx(((0.2 + 0.4) + (0.2 + 0.2 + 0.4 + 0.4)) / 4 / 2)
    assert found["people.forget"].gap == 100  # 8: found by us and by neither of the others
    assert np.isnan(found["people.forget"].low)  # of one picture
    swapped = measures.numbers(ours, own, references[::-1])
    assert swapped["r1.forget"] == found["r1.forget"]


def test_five_captions_a_picture_make_no_more_than_all():
    """Every image and every caption finds its partner: 100 %, not 300 %."""
    found = examination.together([Examination(sets={"forget": examined(1, 1, 1, captions=5)})])
    assert measures.estimates(found)["r1.forget"].value == 100
    pairs = Pairs(np.zeros((4, 2, 2, 3), np.uint8), (("a", "b", "c", "d", "e"),) * 4, ("x", "x", "", ""))
    chosen = EvaluationSet(Gallery.single(pairs), np.arange(4))
    one = np.array([[1, 5], [0, 4], [1, 5], [1, 0]])
    x, *alone = by_member(chosen, np.broadcast_to(one, (BATCH_SEEDS, 1, 4, 2)))
    assert (x.of, x.hits[0]) == ((2, 10), ((1, 9),))
    assert [(h.label, h.of, h.hits[3]) for h in alone] == [(-1, (1, 5), ((1, 5),)), (-1, (1, 5), ((1, 0),))]
    probed = examination.together([Examination(sets={}, cross={"text": (x, *alone)})])
    assert measures.estimates(probed)["cross.text"].value == pytest.approx((100 * 3 / 4 + 100 * 14 / 20) / 2)


def test_probes_are_judged_on_enough_groups_and_no_more():
    labels = tuple("ab" * 20)
    group = np.arange(40) // 4  # each group has two of either
    pairs = Pairs(np.zeros((40, 1, 1, 3), np.uint8), tuple((f"{i}",) for i in range(40)), labels)
    chosen = EvaluationSet(Gallery(pairs, group), np.arange(40)[::-1][::2][::-1])  # every b
    some = enough(chosen)
    assert some.gallery.pairs.labels == labels[:20]  # five groups have ten
    assert [some.gallery.pairs.captions[i] for i in some.query] == [(f"{i}",) for i in range(1, 20, 2)]
    single = EvaluationSet(Gallery.single(pairs), chosen.query)
    assert enough(single) is single


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"label": 1.0, "of": [2, 2], "hits": [[[3, 0]]]}, "3 and 0 hits of 2 image and 2 text queries"),
        ({"label": 1.0, "of": [2, 2], "hits": [[[0, 0]]]}, "a probe without 5 counts in each of 4 orders of batches"),
    ],
)
def test_a_share_above_all_is_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        validated(Examination, {"sets": {}, "relearn": [wrong]})


def test_answers_that_do_not_fit_together_are_refused():
    with pytest.raises(ValueError, match="1 image queries with 2 captions and 1 text queries"):
        ExaminedSet(i2t=(1,), t2i=(1,), captions=(2,), similarity=(0.5,), labels=(1.0,))
    with pytest.raises(ValueError, match="probe: 1 and 1 rows for 1 and 0 labels"):
        Examination(sets={}, probe=((0.5,), (0.5,)), member_labels=(1.0,))


# ---- shadows -----------------------------------------------------------------------------------------------------------


def test_the_attack_by_shadows_finds_what_differs_and_nothing_else():
    rng = np.random.default_rng(0)
    each = rng.normal(0, 3, 40)
    one, other = (each + rng.normal(0, 1, (12, 40)) for _ in range(2))
    same = shadows.measure(one, other)
    assert same.gap_low < 0 < same.gap_high
    assert abs(same.value - 0.5) < 0.08
    found = shadows.measure(one + 1, other)  # one standard deviation apart: the ideal AUC is Phi(1 / sqrt(2)) = .76
    assert found.value == pytest.approx(0.76, abs=0.05)
    assert found.gap_low > 0.1
    # by hand: equal deviations, a score halfway between the means says nothing
    known, unknown = np.array([[1.0], [3.0]]), np.array([[-1.0], [1.0]])
    assert shadows.ratio(np.array([[1.0]]), known, unknown)[0, 0] == pytest.approx(0)
    assert shadows.ratio(np.array([[2.0]]), known, unknown)[0, 0] == pytest.approx((2**2 - 0) / 2 / 2)


def test_shadows_are_the_run_again_in_another_order(tmp_path, monkeypatch):
    asked = []

    def run_cell(sweep, variant, seed, where, family):
        asked.append((variant.settings["evaluation.order_seed"], sweep.assignments))
        assert (variant.settings["learn.rounds"], variant.settings["learn.patience"]) == (7, 0)  # as many as the run had
        fake(where, len(asked) / 10)

    def fake(folder, shift):
        folder.mkdir(parents=True)
        losses = {"original": 0.1 + shift / 100, "unlearned": 2.0 + shift, "retrain": 2.1 + shift}
        found = {m: {"member_partner_loss": [x, x + 0.1]} for m, x in losses.items()}
        (folder / "audit.json").write_text(json.dumps({"scores": found}))
        (folder / "results.json").write_text(json.dumps({"schema": 2, "seed": 0, "learning": {"rounds": 7}}))

    monkeypatch.setattr(cells, "_run_cell", run_cell)
    fake(tmp_path / "run", 0.2)
    with pytest.raises(ConfigError, match=r"run_config.json: .*No such file.*: it is needed to ask about this run again"):
        shadows.attack(tmp_path / "run", 4, print)
    (tmp_path / "run" / "run_config.json").write_text(json.dumps(RUN_CONFIG))
    with pytest.raises(ConfigError, match=r"--shadows 2: an attacker needs at least 3"):
        shadows.attack(tmp_path / "run", 2, print)
    text = shadows.attack(tmp_path / "run", 4, print)
    assert [order for order, _ in asked] == [1000, 1001, 1002, 1003]
    assert set(asked[0][1]) == set(RUN_CONFIG["set"].split())
    assert "| ulira | original | 1.000 | 0.500 (chance) | +0.500 ! (+0.500 to +0.500) | - | 0.05 | too little" in text
    assert json.loads((tmp_path / "run" / "ulira.json").read_text())["shadows"] == 4
    nobody, one = ({"unlearned": {"member_partner_loss": of}} for of in ([], [1.0]))
    for left, why in ((nobody, "nobody judged what was forgotten"), (one, "'retrain': shadows need the quick audit of a run")):
        (tmp_path / "run" / "audit.json").write_text(json.dumps({"scores": left}))
        with pytest.raises(ConfigError, match=rf"audit.json: .*{why}"):
            shadows.attack(tmp_path / "run", 4, print)
    assert len(asked) == 4  # before anything is trained


# ---- pages without a run ---------------------------------------------------------------------------------------------------


def browse(page, tmp_path, width, script):
    """What `script` leaves in the title of the page, and what the console said."""
    copy = tmp_path / "page.html"
    copy.write_text(page.read_text().replace("</body>", f"<script>{script}</script></body>"))
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if not chromium:
        pytest.skip("no chromium on this machine")
    command = [chromium, "--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    command += ["--force-device-scale-factor=1", "--enable-logging=stderr", f"--window-size={width},900", "--dump-dom"]
    done = subprocess.run([*command, copy.as_uri()], capture_output=True, text=True, timeout=120, check=True)
    said = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return re.search(r"<title>(.*?)</title>", done.stdout, re.DOTALL).group(1), said


def test_further_retrainings_are_no_curve_of_their_own():
    """Of several requests too, whose phases have a number behind a dash; *retrain_equal* goes on from the first."""
    names = ("learn", "retrain", "retrain_2", "retrain-2", "retrain_2-2", "retrain_equal-2", "unlearn")
    events = [{"model": m, "rounds_in_all": i, "validation": {"retain": 50.0}} for i, m in enumerate(names)]
    _, rows = figures.curves([*events, {"elapsed": 1.0}], {"recall": 5.0, "retained": 5.0}).data
    assert [(who, x) for _, who, x, _ in rows] == [("this run", 0), ("this run", 6), *(("retrained", x) for x in (1, 3, 5))]


@pytest.mark.slow
def test_the_table_of_a_comparison_sorts(tmp_path):
    def cell(seed, value):
        models = {m: {s: {"r1": v} for s in ("forget", "retain", "test")} for m, v in (("retrain", 10.0), ("unlearned", value))}
        return {"seed": seed, "models": {"original": models["retrain"], **models}, "gaps": {"pair_similarity": 0.1}}

    found = {"own": {"ease": {"0": cell(0, 12.0)}, "npo": {"0": cell(0, 3.0)}, "lost": {"0": {"failed": "failed: full"}}}}
    (tmp_path / "comparison.json").write_text(json.dumps(found))
    page = comparison.report(tmp_path)
    assert (tmp_path / "figures" / "frontier.csv").read_text().splitlines()[1] == "own,ease,0,2.0,2.0"
    assert "failed: full" in page.read_text()
    click = "document.querySelectorAll('#sortable th')[2].click();"
    order = "document.title = [...document.querySelectorAll('#sortable tbody tr')].map(r => r.cells[1].textContent).join(' ')"
    (tmp_path / "b").mkdir()
    title, said = browse(page, tmp_path / "b", 900, click + order)
    assert title.index("npo") < title.index("ease")
    assert not said


def test_a_report_needs_its_files(tmp_path):
    with pytest.raises(ConfigError, match=r"no run there: give the folder of one"):
        report.of_run(tmp_path)
    (tmp_path / "comparison.json").write_text("{")
    with pytest.raises(ConfigError, match=r"comparison.json: Expecting .*: a report needs it"):
        comparison.report(tmp_path)
