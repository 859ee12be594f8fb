"""The audit: its numbers by hand, its answers in words, and attacks by shadows."""

import json
import re
import shutil
import subprocess

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import stats
from sklearn.metrics import roc_auc_score

from clients.audit import linear_cka, separability
from clients.judging import counts
from ease_flwr.audit import examination, report, verdict
from ease_flwr.audit.examination import Measure, auc, kolmogorov_smirnov, measure, share_measure
from ease_flwr.config import ConfigError
from ease_flwr.exchange.answers import Examination, ExaminedSet
from ease_flwr.model.retrieval import ranks
from ease_flwr.sweep import cells, comparison, shadows
from tests.small import RUN_CONFIG

# ---- numbers ----------------------------------------------------------------------------------------------------------

scores = hnp.arrays(np.float64, st.integers(2, 30), elements=st.integers(-3, 3).map(float))


@given(scores, scores)
def test_auc_is_that_of_scikit_learn(a, b):
    truth = np.repeat([1, 0], [len(a), len(b)])
    assert auc(a, b) == pytest.approx(roc_auc_score(truth, np.concatenate([a, b])))


@given(scores, scores)
def test_distance_of_distributions_is_that_of_scipy(a, b):
    assert kolmogorov_smirnov(a, b) == pytest.approx(stats.ks_2samp(a, b, method="asymp").statistic)


def test_measures_by_hand():
    same = measure(np.full(50, 3.0), np.full(50, 1.0))
    assert (same.value, same.low, same.high, same.gap, same.gap_low, same.gap_high) == (3, 3, 3, 2, 2, 2)
    coin = measure(np.tile([0.0, 100.0], 200), np.tile([100.0, 0.0], 200))
    assert coin.low == pytest.approx(45, abs=1.5)  # 1.96 * 50 / sqrt(400) = 4.9
    assert coin.gap == 0
    assert coin.gap_high == pytest.approx(9.8, abs=1.5)
    share = share_measure(20, 100, 40)
    assert (share.value, share.gap) == (20, -20)
    assert share.high == pytest.approx(20 + 196 * 0.04)
    assert share.gap_high == pytest.approx(-20 + 196 * (0.0016 + 0.0024) ** 0.5)


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
    assert separability(a + 2, a[:40] - 2) == pytest.approx(1)
    assert 0.3 < separability(a[:40], a[40:]) < 0.7


def test_wordings_by_hand():
    nan = np.array([])
    two_captions_each = examination.wordings(np.array([1.0, 5, 1, 1]), np.array([7.0, 8]))
    assert two_captions_each == pytest.approx([50, 0])
    assert examination.wordings(np.array([1.0, 3, 1, 1]), np.array([7.0, 7, 8, -1])) == pytest.approx([50])  # one person twice
    assert examination.wordings(np.array([1.0, 3]), np.array([7.0, 8])) is None
    assert examination.wordings(nan, nan) is None


def examined(*ranks, label=7.0):
    """A client's queries in a set, all about one thing."""
    n = len(ranks)
    return ExaminedSet(i2t=ranks, t2i=ranks, similarity=(0.5,) * n, labels=(label,) * n)


def test_answers_of_clients_are_put_together_in_order_of_their_names():
    first = Examination(
        sets={"forget_shared": examined(3), "forget_exclusive": examined(1, 2), "forget_unseen": examined(9)},
        member=((0.1, 0.2, 0.3, 0.4),),
        stranger=((0.5, 0.6, 0.7, 0.8), (0.0, 0.0, 0.0, 0.0)),
        relearn=(4, 0, 1),
        cross={"text": (4, 1)},
        probe=0.75,
        cka={"forget": (0.5, 1.0)},
        backdoor=(3, 1),
    )
    second = Examination(
        sets={"forget_exclusive": examined(4, label=8.0), "retain": examined(5)},
        relearn=(2, 1, 2),
        cka={"forget": (1.0, 0.0)},
        backdoor=(1, 1),
    )
    found = examination.together([first, second])
    assert list(found.ranks) == ["forget_exclusive", "forget_shared", "forget", "retain", "forget_unseen"]
    assert found.ranks["forget"][0].tolist() == [1, 2, 4, 3]  # the exclusive ones of all clients come first
    assert found.labels["forget"].tolist() == [7, 7, 8, 7]
    assert (found.member.shape, found.stranger.shape) == ((1, 4), (2, 4))
    assert (found.relearn.tolist(), found.backdoor.tolist()) == ([6, 1, 3], [4, 2])
    assert {k: v.tolist() for k, v in (found.cross | found.cka).items()} == {"text": [4, 1], "forget": [0.75, 0.5]}
    assert found.probe.tolist() == [0.75]


def test_unseen_words_are_judged_by_recall_alone():
    """forget_unseen has a gallery of its own: its pairs are not among those whose similarities are compared."""
    answers = examination.together([Examination(sets={s: examined(1, 2) for s in ("forget", "forget_unseen", "retain")})])
    found = examination.numbers(answers, answers)
    assert {"r1.forget_unseen", "median_rank.forget_unseen"} <= set(found)
    for key in ("distance", "correlation", "ks"):
        assert {k for k in found if k.startswith(key)} == {f"{key}.forget", f"{key}.retain"}
    assert {k for k in found if k.startswith("people")} == {"people.forget"}
    assert {k for k in examination.scores(answers) if k.startswith("similarity")} == {"similarity.forget", "similarity.retain"}


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

    def run_cell(experiment, variant, seed, where, assignments, family):
        asked.append((variant.settings["evaluation.order_seed"], assignments))
        fake(where, len(asked) / 10)

    def fake(folder, shift):
        folder.mkdir(parents=True)
        losses = {"original": 0.1 + shift / 100, "unlearned": 2.0 + shift, "retrain": 2.1 + shift}
        found = {m: {"member_partner_loss": [x, x + 0.1]} for m, x in losses.items()}
        (folder / "audit.json").write_text(json.dumps({"scores": found}))
        (folder / "results.json").write_text(json.dumps({"schema": 2, "seed": 0}))

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
    assert "| ulira | original | 1.000 | 0.500 | 0.500 (0.500 to 0.500) | 0.05 | too little forgotten |" in text
    assert json.loads((tmp_path / "run" / "ulira.json").read_text())["shadows"] == 4
    (tmp_path / "run" / "audit.json").unlink()
    with pytest.raises(ConfigError, match=r"audit.json: .*: shadows need the quick audit of a run"):
        shadows.attack(tmp_path / "run", 4, print)


# ---- answers in words -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gap", "low", "high", "answer"),
    [
        (1.0, -1.0, 2.0, "like retraining"),
        (9.0, 5.0, 12.0, "too little forgotten"),
        (-9.0, -12.0, -5.0, "too much forgotten"),
        (2.0, -1.0, 5.0, "not sure: perhaps too little forgotten"),
        (-2.0, -5.0, 1.0, "not sure: perhaps too much forgotten"),
    ],
)
def test_forgetting_too_much_is_a_fault_too(gap, low, high, answer):
    found = Measure(10 + gap, gap=gap, gap_low=low, gap_high=high)
    row = verdict.row(verdict.FORGOTTEN, "r1.forget", "unlearned", found, 3.0, two_sided=True)
    assert row.answer == answer
    assert row.reference == pytest.approx(10)


@pytest.mark.parametrize(
    ("low", "high", "answer"), [(-1, 9, "kept"), (-9, -5, "lost"), (-5, -1, "not sure: perhaps lost"), (5, 9, "kept")]
)
def test_keeping_more_is_no_fault(low, high, answer):
    found = Measure(50, gap=(low + high) / 2, gap_low=low, gap_high=high)
    assert verdict.row(verdict.KEPT, "r1.retain", "unlearned", found, 3.0, two_sided=False).answer == answer


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
    with pytest.raises(ConfigError, match=r"no readable results.json there"):
        report.of_run(tmp_path)
    (tmp_path / "comparison.json").write_text("{")
    with pytest.raises(ConfigError, match=r"comparison.json: Expecting .*: a report needs it"):
        comparison.report(tmp_path)
