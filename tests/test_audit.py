"""The audit: its numbers by hand, and that it catches what it should in a small federation."""

import json
import re
import shutil
import subprocess

import numpy as np
import pytest
import torch
from flwr.app import Context, RecordDict
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import stats
from sklearn.metrics import roc_auc_score

from clients.ascent import Ascent
from clients.audit import MOST, Audit, linear_cka, separability
from clients.contrastive import Contrastive
from ease_flwr import data, server_app
from ease_flwr.audit import examination, figures, report, verdict
from ease_flwr.audit.examination import Measure, auc, kolmogorov_smirnov, measure, share_measure
from ease_flwr.config import AuditConfig, ConfigError, TrainConfig
from ease_flwr.exchange.federation import Federation
from ease_flwr.exchange.messages import Instruction
from ease_flwr.model import adapters
from ease_flwr.model.retrieval import count_hits, ranks
from ease_flwr.sweep import cells, comparison, shadows
from strategies.base import Setting, Unlearning
from tests.in_process_grid import InProcessGrid
from tests.small import RUN_CONFIG, SMALL, small_experiment
from tests.test_bilateral import Memory
from tests.test_run import play

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
    counts = count_hits(images, texts, owner, group, query)
    assert counts.i2t == tuple(int((i2t <= k).sum()) for k in (1, 5, 10))
    assert counts.t2i == tuple(int((t2i <= k).sum()) for k in (1, 5, 10))
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
    assert examination.wordings(np.array([1.0, 5, 1, 1]), np.array([7.0, 8])) == pytest.approx(
        [50, 0]
    )  # two captions a picture
    assert examination.wordings(np.array([1.0, 3, 1, 1]), np.array([7.0, 7, 8, -1])) == pytest.approx([50])  # one person twice
    assert examination.wordings(np.array([1.0, 3]), np.array([7.0, 8])) is None
    assert examination.wordings(nan, nan) is None


# ---- shadows -----------------------------------------------------------------------------------------------------------


def test_the_attack_by_shadows_finds_what_differs_and_nothing_else():
    rng = np.random.default_rng(0)
    level = rng.normal(0, 3, 40)
    one, other = (level + rng.normal(0, 1, (12, 40)) for _ in range(2))
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

    def run_cell(experiment, variant, seed, where, assignments):
        asked.append((variant.settings["evaluation.order_seed"], assignments))
        fake(where, len(asked) / 10)

    def fake(folder, shift):
        folder.mkdir(parents=True)
        levels = {"original": 0.1 + shift / 100, "unlearned": 2.0 + shift, "retrain": 2.1 + shift}
        found = {m: {"member_level": [x, x + 0.1]} for m, x in levels.items()}
        (folder / "audit.json").write_text(json.dumps({"scores": found}))
        (folder / "results.json").write_text(json.dumps({"schema": 1, "seed": 0}))

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


# ---- what it must catch ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(home):
    """A run without a hold phase, with everything needed to audit other models in its federation."""
    settings = {**SMALL, "hold.rounds": 0, "learn.rounds": 20, "data.test_repeats": 2, "audit.level": "full"}
    results = play(home / "run", set=" ".join(f"{k}={v}" for k, v in settings.items()))
    experiment = small_experiment(**{k: v for k, v in settings.items() if k not in SMALL or SMALL[k] != v})
    blocks = adapters.load(experiment.model, experiment.lora, experiment.seed).blocks
    thetas = {m: adapters.read(home / "run" / "adapters" / m, blocks) for m in results["models"]}
    run_config = {**RUN_CONFIG, "set": " ".join(f"{k}={v}" for k, v in settings.items())}
    world = data.load(experiment.data, experiment.seed)
    federation = Federation(InProcessGrid(3, run_config), experiment, world.clients, print)
    federation.roll_call()
    return home / "run", experiment, thetas, federation, blocks


def audited(run, **models):
    """Verdict on each of these models as if it were the unlearned one: question -> number -> answer."""
    _, experiment, thetas, federation, _ = run
    asked = {"retrain": thetas["retrain"], **models}
    answers = examination.examine(federation, asked, experiment.forget, "full")
    found = {}
    for name in models:
        numbers = {"unlearned": examination.numbers(answers[name], answers["retrain"]), "retrain": {}}
        numbers["retrain"] = examination.numbers(answers["retrain"], answers["retrain"])
        rows = verdict.verdict(numbers, AuditConfig())
        found[name] = {r.what: r for r in rows}
    return found


def retrained_again(run, order_seed):
    """Another retraining, with another order of data."""
    _, experiment, _, _, blocks = run
    evaluation = experiment.evaluation.model_copy(update={"order_seed": order_seed})
    experiment = experiment.model_copy(update={"evaluation": evaluation})
    settings = {**SMALL, "learn.rounds": 20, "evaluation.order_seed": order_seed}
    run_config = {**RUN_CONFIG, "set": " ".join(f"{k}={v}" for k, v in settings.items())}
    world = data.load(experiment.data, experiment.seed)
    federation = Federation(InProcessGrid(3, run_config), experiment, world.clients, print)
    federation.roll_call()
    theta_0 = adapters.load(experiment.model, experiment.lora, experiment.seed).initial
    setting = Setting(experiment, federation, theta_0, blocks, ("client-1", "client-2"))
    theta, _ = Unlearning(setting, Unlearning.Params()).run("learn", theta_0, experiment.learn.rounds, lambda p: None)
    return theta


def trained(kind, run, **changes):
    """retrain, trained on by client-0 alone."""
    _, experiment, thetas, _, _ = run
    client = kind(experiment, "client-0", data.load(experiment.data, experiment.seed), Memory())
    job = Instruction(phase="x", round=1, **changes)
    return client.fit([thetas["retrain"]], {"instruction": job.model_dump_json(), "extras": []})[0][0]


@pytest.mark.slow
def test_the_audit_of_a_run_is_written_and_can_be_asked_again(run):
    folder, *_ = run
    found = json.loads((folder / "audit.json").read_text())
    assert found["level"] == "full"
    assert set(found["numbers"]) == {"original", "retrain", "retrain_equal", "unlearned"}
    one = found["numbers"]["unlearned"]
    wanted = {
        "r1.forget_exclusive",
        "r10.retain",
        "median_rank.forget",
        "ks.forget",
        "membership.logistic",
        "probe",
        "relearn.15",
    }
    assert wanted | {"cross.visual", "cka.forget.text", "people.forget_exclusive", "distance.forget"} <= set(one)
    results = json.loads((folder / "results.json").read_text())
    for name, sets in results["models"].items():
        for key, values in sets.items():
            assert found["numbers"][name][f"r1.{key}"]["value"] == pytest.approx(values["r1"], abs=1e-4)
    assert "### Forgotten like retraining?" in (folder / "audit.md").read_text()

    run_config = {
        **json.loads((folder / "run_config.json").read_text()),
        "run-dir": str(folder / "audit-full"),
        "audit": "full",
    }
    context = Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config=run_config)
    server_app.main(InProcessGrid(3, run_config), context)
    again = json.loads((folder / "audit-full" / "audit.json").read_text())
    assert again["numbers"] == found["numbers"]
    assert json.loads((folder / "audit-full" / "state.json").read_text())["status"] == "finished"

    adapter = folder / "adapters" / "unlearned" / "adapter_model.safetensors"
    whole = adapter.read_bytes()
    adapter.write_bytes((folder / "adapters" / "original" / "adapter_model.safetensors").read_bytes())
    run_config["run-dir"] = str(folder / "audit-quick")
    with pytest.raises(ConfigError, match=r"adapters/unlearned is not what results.json names: it was changed since"):
        server_app.main(InProcessGrid(3, run_config), context_of(run_config))
    adapter.write_bytes(whole[:100])
    run_config["run-dir"] = str(folder / "audit-other")
    with pytest.raises(ConfigError, match=r"adapter_model.safetensors: not the adapters of this experiment"):
        server_app.main(InProcessGrid(3, run_config), context_of(run_config))
    adapter.write_bytes(whole)


def context_of(run_config):
    return Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config=run_config)


@pytest.mark.slow
def test_an_untouched_model_has_not_forgotten(run):
    rows = audited(run, original=run[2]["original"])["original"]
    for what in ("r1.forget_exclusive", "r1.holdout", "relearn.1"):
        assert rows[what].answer == "too little forgotten"
    assert rows["distance.forget"].answer == "other than retraining"
    assert rows["r1.test"].answer in ("kept", "not sure: perhaps lost")


@pytest.mark.slow
def test_pairs_pushed_far_below_the_unseen_level_are_over_forgotten(run):
    """On from retraining, away from them."""
    pushed = trained(Ascent, run, train=TrainConfig(epochs=8, batch=48, lr=2e-3), forget=run[1].forget, options={"bound": 12.0})
    rows = audited(run, pushed=pushed)["pushed"]
    assert "too much forgotten" in {
        rows[w].answer for w in ("r1.forget_exclusive", "r1.forget", "relearn.1", "relearn.5", "relearn.15")
    }
    assert rows["distance.forget"].answer == "other than retraining"


@pytest.mark.slow
def test_a_model_whose_text_tower_alone_was_changed_is_caught_by_the_probe(run):
    """The images still lie where the client put them: text alone learns the pairs again at once."""
    _, _, thetas, _, blocks = run
    half = thetas["original"].copy()
    for b in blocks:
        if b.tower == "text":
            half[b.start : b.stop] = thetas["retrain"][b.start : b.stop]
    rows = audited(run, half=half)["half"]
    assert rows["cross.text"].gap > 5
    assert rows["cross.text"].answer in ("too little forgotten", "not sure: perhaps too little forgotten")


@pytest.mark.slow
def test_a_mark_is_found_where_it_was_learnt_and_nowhere_else(home):
    settings = {**SMALL, "hold.rounds": 0, "learn.rounds": 20, "audit.level": "quick", "data.backdoor.clients": "client-0"}
    play(home / "marked", set=" ".join(f"{k}={v}" for k, v in settings.items()))
    found = json.loads((home / "marked" / "audit.json").read_text())
    mark = {m: numbers["backdoor"]["value"] for m, numbers in found["numbers"].items()}
    assert mark["original"] > 30
    assert mark["retrain"] < 3
    assert "backdoor" in {row["what"] for row in found["verdict"]}


@pytest.mark.slow
def test_neighbours_look_like_what_is_forgotten_and_are_not(run):
    _, experiment, thetas, _, _ = run
    client = Audit(experiment, "client-0", data.load(experiment.data, experiment.seed), Memory())
    sets = client.data.evaluation("test", experiment.forget)
    near = client._neighbours(sets, client.data.train)
    people = near.gallery.pairs.about
    forgotten = {n for s in ("forget_exclusive", "forget_shared") for n in people[sets[s].query]}
    assert len(near.query) == min(MOST, len(people) - sum(len(sets[s].query) for s in ("forget_exclusive", "forget_shared")))
    assert not forgotten & set(people[near.query])
    job = Instruction(phase="x", round=0, objective="audit", train=experiment.learn, forget=experiment.forget)
    sent = {"instruction": job.model_dump_json(), "models": ["retrain"]}
    said = client.evaluate([thetas["retrain"]], sent)[2]
    assert len(said["retrain/ranks.neighbours.i2t"]) == len(near.query)


@pytest.mark.slow
def test_a_model_that_memorised_its_pairs_fails_membership(run):
    memorised = trained(Contrastive, run, train=TrainConfig(epochs=60, batch=48, lr=5e-3))
    rows = audited(run, memorised=memorised)["memorised"]
    assert rows["membership.logistic"].answer.endswith("too little forgotten")
    assert rows["membership.logistic"].value > 0.6


@pytest.mark.slow
def test_another_retraining_is_like_retraining(run):
    rows = audited(run, again=retrained_again(run, 7))["again"]
    assert not {w: r for w, r in rows.items() if not r.answer.startswith(("like retraining", "kept", "not sure", "above"))}


# ---- the page ------------------------------------------------------------------------------------------------------------

FIGURES = {"recall", "similarity", "relearning", "membership", "spectrum", "overlap", "excised", "cost"}


@pytest.fixture(scope="module")
def page(run):
    return report.of_run(run[0])


@pytest.mark.slow
def test_the_report_is_one_file_with_every_figure(run, page):
    text = page.read_text()
    links = re.findall(r"""(?:src|href|url)\s*[=(]\s*["']?([^"')\s>]+)""", text)
    assert all(link.startswith(("data:image/png;base64,", "#")) for link in links)
    assert set(re.findall(r'<figure id="(\w+)">', text)) == FIGURES
    assert text.count('<svg role="img" aria-label="') == len(FIGURES)
    assert figures.INK not in text
    for name in FIGURES:
        for ending in ("svg", "png", "csv"):
            assert (run[0] / "figures" / f"{name}.{ending}").stat().st_size > 20
    head, *rows = (run[0] / "figures" / "relearning.csv").read_text().splitlines()
    assert head == "model,steps,r1,low,high"
    assert len(rows) == 3 * 5
    assert text.count('<section class="card"') == 24
    assert "answers say so" in text
    without = report.of_run(run[0], pictures=False).read_text()
    assert 'class="pic' not in without
    page.write_text(text)


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


@pytest.mark.slow
@pytest.mark.parametrize("width", [380, 1200])
def test_the_page_fits_its_window_and_says_nothing_in_the_console(page, tmp_path, width):
    framed = tmp_path / "framed.html"  # headless windows have a least width: a frame has not
    framed.write_text(page.read_text().replace("<body>", f'<body style="width:{width}px;max-width:{width}px">'))
    title, said = browse(framed, tmp_path, max(width, 500), "document.title = document.body.scrollWidth")
    assert int(title) <= width
    assert not said


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
