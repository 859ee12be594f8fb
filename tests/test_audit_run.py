"""The audit of whole runs: it catches what it should in a small federation, and its page shows all of it."""

import json
import re

import pytest
from ease_flwr.clients.ascent import Ascent
from ease_flwr.clients.audit import Audit
from ease_flwr.clients.contrastive import Contrastive
from ease_flwr.clients.probing import MOST
from ease_flwr.strategies.base import MethodContext
from ease_flwr.strategies.ordinary import Learning

from ease_flwr import data
from ease_flwr.audit import examination, figures, measures, opening, report, strangers, verdict
from ease_flwr.config import AuditConfig, ConfigError, TrainConfig
from ease_flwr.exchange import messages
from ease_flwr.exchange.federation import Federation
from ease_flwr.exchange.messages import Forget, Learn
from ease_flwr.exchange.roll_call import Wanted, roll_call
from ease_flwr.exchange.rounds import Plan, run_rounds
from ease_flwr.model import adapters
from tests.in_process_grid import InProcessGrid, at_once, submit
from tests.small import RUN_CONFIG, SMALL, small_experiment
from tests.test_audit import browse
from tests.test_bilateral import Memory
from tests.test_run import play

MEMBERS = {**SMALL, "data.exclusive": 12, "learn.rounds": 20}
"""As many members as the default run has: intervals are over members."""


@pytest.fixture(scope="module")
def run(home):
    """A run without a continuation, with everything needed to audit other models in its federation."""
    settings = {**MEMBERS, "continuation.rounds": 0, "audit.level": "full"}
    results = play(home / "run", set=" ".join(f"{k}={v}" for k, v in settings.items()))
    experiment = small_experiment(**settings)
    blocks = adapters.load(experiment.model, experiment.lora, experiment.seed).blocks
    thetas = {m: adapters.read(home / "run" / "adapters" / m, blocks) for m in results["models"]}
    return home / "run", experiment, thetas, federated(experiment, settings), blocks


def federated(experiment, settings):
    """The clients of an experiment in this process."""
    run_config = {**RUN_CONFIG, "set": " ".join(f"{k}={v}" for k, v in settings.items())}
    transport = at_once(InProcessGrid(3, run_config))
    roster = roll_call(transport, experiment, Wanted(data.load(experiment.data, experiment.seed).clients)).roster
    return Federation(transport, experiment, roster, print)


def forgotten(experiment):
    """What its runs forget."""
    return tuple(experiment.forget.forget_sets())


def audited(run, **models):
    """Verdict on each of these models as if it were the unlearned one: question -> number -> answer."""
    _, experiment, thetas, federation, _ = run
    asked = {"retrain": thetas["retrain"], **models}
    answers = examination.examine(federation, asked, forgotten(experiment), "full")
    own = {name: measures.estimates(said) for name, said in answers.items()}
    found = {}
    for name in models:
        numbers = measures.numbers(answers[name], own[name], [(answers["retrain"], own["retrain"])])
        rows = verdict.verdict([verdict.Beside("unlearned", ["retrain"], numbers)], AuditConfig(), "full")
        found[name] = {r.what: r for r in rows}
    return found


def retrained_again(run, order_seed):
    """Another retraining, with another order of data."""
    _, experiment, _, _, blocks = run
    evaluation = experiment.evaluation.model_copy(update={"order_seed": order_seed})
    experiment = experiment.model_copy(update={"evaluation": evaluation})
    federation = federated(experiment, {**MEMBERS, "evaluation.order_seed": order_seed})
    theta_0 = adapters.load(experiment.model, experiment.lora, experiment.seed).initial
    context = MethodContext(experiment, federation, "learn", theta_0, blocks, ("client-1", "client-2"))
    return run_rounds(federation, Learning(context), theta_0, Plan("learn", experiment.learn.rounds)).theta


def trained(kind, run, job):
    """retrain, trained on by client-0 alone."""
    _, experiment, thetas, _, _ = run
    client = kind(experiment, "client-0", data.load(experiment.data, experiment.seed), Memory())
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
    submit(run_config)
    again = json.loads((folder / "audit-full" / "audit.json").read_text())
    assert again["numbers"] == found["numbers"]
    assert json.loads((folder / "audit-full" / "state.json").read_text())["status"] == "finished"

    adapter = folder / "adapters" / "unlearned" / "adapter_model.safetensors"
    whole = adapter.read_bytes()
    adapter.write_bytes((folder / "adapters" / "original" / "adapter_model.safetensors").read_bytes())
    run_config["run-dir"] = str(folder / "audit-quick")
    with pytest.raises(ConfigError, match=r"adapters/unlearned is not what results.json names: it was changed since"):
        submit(run_config)
    adapter.write_bytes(whole[:100])
    run_config["run-dir"] = str(folder / "audit-other")
    with pytest.raises(ConfigError, match=r"adapter_model.safetensors: not the adapters of this experiment"):
        submit(run_config)
    adapter.write_bytes(whole)


@pytest.mark.slow
def test_an_untouched_model_has_not_forgotten(run):
    rows = audited(run, original=run[2]["original"])["original"]
    asked = ("r1.forget_exclusive", "r1.forget_unseen", "relearn.1")
    assert all("too little forgotten" in rows[what].answer for what in asked), {what: rows[what] for what in asked}
    assert "too little forgotten" in {rows[what].answer for what in asked}
    assert rows["distance.forget"].answer == "other than retraining"
    assert rows["distance.forget"].value > 1.5 * rows["distance.forget"].threshold
    assert rows["r1.test"].answer == "kept" or rows["r1.test"].answer.startswith("not sure")


@pytest.mark.slow
def test_pairs_pushed_far_below_unseen_ones_are_over_forgotten(run):
    """On from retraining, away from them."""
    plan, (forget,) = TrainConfig(epochs=8, batch=48, lr=2e-3), forgotten(run[1])
    pushed = trained(Ascent, run, Forget(phase="x", round=1, train=plan, forget=forget, options={"bound": 12.0}))
    rows = audited(run, pushed=pushed)["pushed"]
    asked = [rows[w] for w in ("r1.forget_exclusive", "r1.forget", "relearn.1", "relearn.5", "relearn.15")]
    assert any(row.gap < -row.threshold for row in asked)
    assert any("too much forgotten" in row.answer for row in asked)
    assert not any("too little forgotten" in row.answer and "perhaps" in row.answer for row in asked if row.gap < 0)
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
    assert rows["cross.text"].answer.startswith(("too little forgotten", "not sure: perhaps too little forgotten"))


@pytest.mark.slow
def test_a_mark_is_found_where_it_was_learnt_and_nowhere_else(home):
    settings = {
        **SMALL,
        "continuation.rounds": 0,
        "learn.rounds": 20,
        "audit.level": "quick",
        "data.backdoor.clients": "client-0",
    }
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
    sets = client.data.evaluation("test", forgotten(experiment))
    near = client._neighbours(sets, client.data.train)
    people = near.gallery.pairs.about
    gone = {n for s in ("forget_exclusive", "forget_shared") for n in people[sets[s].query]}
    assert len(near.query) == min(MOST, len(people) - sum(len(sets[s].query) for s in ("forget_exclusive", "forget_shared")))
    assert not gone & set(people[near.query])
    job = messages.Audit(train=experiment.learn, forget=forgotten(experiment))
    sent = {"instruction": job.model_dump_json(), "models": ["retrain"]}
    said = json.loads(client.evaluate([thetas["retrain"]], sent)[2]["answer"])
    assert len(said["retrain"]["sets"]["neighbours"]["i2t"]) == len(near.query)


@pytest.mark.slow
def test_a_model_that_memorised_its_pairs_fails_membership(run):
    memorised = trained(Contrastive, run, Learn(phase="x", round=1, train=TrainConfig(epochs=60, batch=48, lr=5e-3)))
    rows = audited(run, memorised=memorised)["memorised"]
    assert rows["membership.logistic"].answer.startswith(("too little forgotten", "not sure: perhaps too little forgotten"))
    assert rows["membership.logistic"].value > 0.6


@pytest.mark.slow
def test_another_retraining_is_like_retraining(run):
    """Intervals are of 95 %: one answer in twenty may be wrong."""
    answers = []
    for order in (7, 8):
        answers += [row.answer for row in audited(run, again=retrained_again(run, order))["again"].values()]
    wrong = [a for a in answers if not a.startswith(("like retraining", "kept", "not sure", "above"))]
    assert len(answers) > 26
    assert len(wrong) <= len(answers) / 20, wrong


def against_strangers(run, name):
    """What is said of this model of the run where nobody has retrained: the sentence, all rows, the three-sample view."""
    _, experiment, thetas, federation, _ = run
    asked = {"original": thetas["original"], "unlearned": thetas[name]}
    asked[strangers.BASE] = adapters.load(experiment.model, experiment.lora, experiment.seed).initial
    answers = examination.examine(federation, asked, forgotten(experiment), "full")
    own, sampled = ({m: of(a) for m, a in answers.items()} for of in (measures.estimates, strangers.samples))
    rows = strangers.rows(own, sampled, AuditConfig())
    return opening.sentence(rows, "full")[0], {r.what: r for r in rows}, strangers.view(sampled)


@pytest.mark.slow
def test_law_the_original_has_not_forgotten(run):
    said, rows, view = against_strangers(run, "original")
    assert (said.head, said.tone) == ("Not forgotten", "too")
    assert {rows[what].answer for what in ("membership.cosine", "membership.changed", "r1.forget")} == {"not forgotten"}
    assert view["way"]["unlearned"] == {kind: {"value": 0, "low": 0, "high": 0} for kind in ("similarity", "r1")}
    assert (found := view["models"]["original"])["r1.forget"]["value"] > found["r1.strangers"]["value"] + 30
    assert abs(found["similarity.forget"]["value"] - found["similarity.retain"]["value"]) < 0.1


@pytest.mark.slow
def test_law_who_never_saw_them_is_like_strangers(run):
    """Few answers about a dozen people can be sure; none may be a fault."""
    said, rows, view = against_strangers(run, "retrain")
    assert "not forgotten" not in {r.answer for r in rows.values()}
    assert said.head.lower().startswith(("like strangers", "perhaps like strangers")), (said, rows)
    assert all(share["low"] <= 1 <= share["high"] and share["value"] > 0.7 for share in view["way"]["unlearned"].values())


# ---- the page ------------------------------------------------------------------------------------------------------------

FIGURES = {"recall", "similarity", "relearning", "membership", "excised", "overlap", "cost"}
FIRST = {"first-forget", "first-retain", "first-again"}


@pytest.fixture(scope="module")
def page(run):
    return report.of_run(run[0])


@pytest.mark.slow
def test_the_report_is_one_file_with_every_figure(run, page):
    text = page.read_text()
    links = re.findall(r"""(?:src|href|url)\s*[=(]\s*["']?([^"')\s>]+)""", text)
    assert links.count("data:,") == 1  # no icon is asked for
    assert all(link.startswith(("data:image/png;base64,", "#")) for link in links if link != "data:,")
    assert set(re.findall(r'<figure id="([\w-]+)">', text)) == FIGURES | FIRST
    assert text.count('<svg role="img" aria-label="') == len(FIGURES | FIRST)
    assert figures.INK not in text
    for name in FIGURES | FIRST:
        for ending in ("svg", "png", "csv"):
            assert (run[0] / "figures" / f"{name}.{ending}").stat().st_size > 20
    head, *rows = (run[0] / "figures" / "relearning.csv").read_text().splitlines()
    assert head == "model,steps,r1,low,high"
    assert len(rows) == 3 * 5
    assert text.count('<section class="card"') == 24
    asked = json.loads((run[0] / "audit.json").read_text())["asked"]
    assert asked.startswith("full audit; noise s ")
    assert text.count(f"answers say so ({asked})") == 2 * 2  # both questions: over the table, and as its name
    without = report.of_run(run[0], pictures=False).read_text()
    assert 'class="pic' not in without
    page.write_text(text)


@pytest.mark.slow
@pytest.mark.parametrize("width", [380, 1200])
def test_the_page_fits_its_window_and_says_nothing_in_the_console(page, tmp_path, width):
    framed = tmp_path / "framed.html"  # headless windows have a least width: a frame has not
    framed.write_text(page.read_text().replace("<body>", f'<body style="width:{width}px;max-width:{width}px">'))
    title, said = browse(framed, tmp_path, max(width, 500), "document.title = document.body.scrollWidth")
    assert int(title) <= width
    assert not said
