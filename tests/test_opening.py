"""The sentence of a report says what the rows of the verdict say, in every case, and no more."""

import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ease_flwr.audit import figures, opening, report, verdict
from ease_flwr.audit.intervals import Measure
from ease_flwr.audit.verdict import FORGOTTEN, KEPT, ONE_SIDED, STAYS, Beside
from ease_flwr.config import AuditConfig

NAN = math.nan
LIMITS = AuditConfig()
UNASKED = "not asked by this quick audit: relearning, cross-modal probes, linear probe"


def row(key, gap, low=None, high=None, question=FORGOTTEN, against="retrain"):
    """A row of the verdict: sure of a gap as it is, unless an interval is given."""
    model = "continued" if question == STAYS else "unlearned"
    limit = verdict.forgetting(LIMITS).get(key, 0.05 if key == "ulira" else 3.0)
    start = 0.5 if limit < 1 else 80.0
    found = Measure(start + gap, gap=gap, gap_low=gap if low is None else low, gap_high=gap if high is None else high)
    if key.startswith("distance"):
        found = Measure(gap, gap if low is None else low, gap if high is None else high)
    return verdict.row((question, key), Beside(model, (against,), {key: found}), limit, key not in ONE_SIDED)


def kept(*gaps, key="r1.retain", against="retrain_equal"):
    return row(key, *gaps, question=KEPT, against=against)


GONE = row("r1.forget", 0.5)
STAYED = kept(-0.5)
WIDE = (-9.0, 9.0)


def said(*rows, level="full"):
    return opening.text(opening.sentence(rows, level))


def heads(*rows):
    return [(p.head, p.tone) for p in opening.sentence(rows, "full")]


# ---- what is forgotten -----------------------------------------------------------------------------------------------------


def test_forgotten_and_kept():
    assert said(GONE, row("relearn.1", -2.0), STAYED) == (
        "Forgotten: 2 of 2 numbers within the limit of retraining; the rest is kept: R@1 of the retain set is 79.5 %, 0.5 "
        "points below retraining for as many rounds; 3 of 3 answers are sure."
    )


@pytest.mark.parametrize(
    ("rows", "head", "why", "tone"),
    [
        (
            [row("r1.forget", 12.3), GONE],
            "Too little forgotten",
            "1 of 2 numbers surely beyond its limit (R@1 of forget, 12.3 points above retraining)",
            "too",
        ),
        (
            [row("relearn.1", 21.0), row("membership.logistic", 0.07)],
            "Too little forgotten",
            "2 of 2 numbers surely beyond their limits (most of all R@1 after 1 step of learning it again, "
            "21.0 points above retraining)",
            "too",
        ),
        ([row("cross.text", -15.0), GONE], "Too much forgotten", "1 of 2 numbers surely beyond its limit ({})", "too"),
        (
            [row("r1.forget", 9.0), row("relearn.5", -40.0)],
            "Too little forgotten by some numbers, too much by others",
            "2 of 2 numbers surely beyond their limits (most of all R@1 after 5 steps of learning it again, "
            "40.0 points below retraining)",
            "too",
        ),
        (
            [row("distance.forget", 0.2), GONE],
            "Forgotten otherwise than by retraining",
            "1 of 2 numbers surely beyond its limit (distance of similarities, 0.200 from retraining)",
            "too",
        ),
        (
            [row("distance.forget", 0.2), row("r1.forget", -9.0)],
            "Too much forgotten",
            "2 of 2 numbers surely beyond their limits (most of all R@1 of forget, 9.0 points below retraining)",
            "too",
        ),
        (
            [row("r1.forget", 12.3), row("relearn.1", -12.0, -20.0, -1.0), row("relearn.5", 1.0, *WIDE)],
            "Too little forgotten",
            "1 of 3 numbers surely beyond its limit (R@1 of forget, 12.3 points above retraining), 1 more perhaps "
            "(R@1 after 1 step of learning it again, 12.0 points below retraining)",
            "too",
        ),
        (
            [row("r1.forget", 5.0, *WIDE), GONE],
            "Perhaps too little forgotten",
            "1 of 2 numbers perhaps beyond its limit (R@1 of forget, 5.0 points above retraining)",
            "not",
        ),
        (
            [row("people.forget_exclusive", -20.0, -40.0, 3.0)],
            "Perhaps too much forgotten",
            "1 of 1 number perhaps beyond its limit (R@1 of a single person or label, 20.0 points below retraining)",
            "not",
        ),
        (
            [row("r1.forget", 1.0, *WIDE), GONE, row("probe", 0.01)],
            "Forgotten, as far as can be told",
            "3 of 3 numbers within the limit of retraining, 2 of them surely",
            "not",
        ),
        (
            [row("r1.forget", 1.0, *WIDE), row("backdoor", 0.0, NAN, NAN)],
            "Perhaps forgotten",
            "2 of 2 numbers within the limit of retraining, none of them surely",
            "not",
        ),
        (
            [row("ulira", 0.3, against="chance"), GONE],
            "Too little forgotten",
            "1 of 2 numbers surely beyond its limit (the attack U-LiRA, 0.300 above chance)",
            "too",
        ),
    ],
)
def test_what_is_said_of_forgetting(rows, head, why, tone):
    first = opening.sentence([*rows, STAYED], "full")[0]
    assert (first.head, first.tone) == (head, tone)
    assert first.why == why.format("R@1 after the text tower alone has learnt it again, 15.0 points below retraining")


# ---- what is kept, and whether it stays so ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "head", "why", "tone"),
    [
        ([kept(2.0)], "the rest is kept", "82.0 %, 2.0 points above retraining for as many rounds", "like"),
        ([kept(-5.8)], "some of the rest is lost", "74.2 %, 5.8 points below retraining for as many rounds", "too"),
        ([kept(-5.8, -9, -1)], "some of the rest is perhaps lost", "74.2 %, 5.8 points below {}", "not"),
        ([kept(-1.0, -4, 1)], "the rest is perhaps kept", "79.0 %, 1.0 points below {}", "not"),
        ([kept(5.0, -4, 9)], "the rest is perhaps kept", "85.0 %, 5.0 points above {}", "not"),
        (
            [kept(-1.0, -4, 1), kept(1.0, key="r1.test")],
            "the rest is kept, as far as can be told",
            "79.0 %, 1.0 points below {}",
            "not",
        ),
        ([kept(-1.0, against="retrain")], "the rest is kept", "79.0 %, 1.0 points below retraining", "like"),
        ([kept(0.0, against="retrain"), kept(-4.0)], "some of the rest is lost", "76.0 %, 4.0 points below {}", "too"),
        (
            [kept(0.5), kept(-6.0, key="r1.forget_shared")],
            "some of the rest is lost",
            "80.5 %, 0.5 points above {} (beyond the limit: R@1 of forget_shared, 6.0 points below retraining)",
            "too",
        ),
        (
            [kept(-4.0), kept(-7.0, key="r1.neighbours"), kept(-6.0, key="r1.test")],
            "some of the rest is lost",
            "76.0 %, 4.0 points below {} (also beyond the limit: most of all R@1 of neighbours, 7.0 points below retraining)",
            "too",
        ),
        ([kept(0.5), kept(6.0, key="r1.forget_shared")], "the rest is kept", "80.5 %, 0.5 points above {}", "like"),
        ([kept(-0.04)], "the rest is kept", "80.0 %, as after {}", "like"),
        (  # what is lost is named, not what is kept beside the other reference
            [kept(-6.0, against="retrain"), kept(-0.5)],
            "some of the rest is lost",
            "74.0 %, 6.0 points below retraining",
            "too",
        ),
        (
            [kept(0.5), kept(-6.0, -20.0, 1.0, key="r1.test")],
            "some of the rest is perhaps lost",
            "80.5 %, 0.5 points above {} (perhaps beyond the limit: R@1 of test, 6.0 points below retraining)",
            "not",
        ),
        (
            [kept(0.5), kept(6.0, *WIDE, key="r1.forget_shared")],
            "the rest is kept, as far as can be told",
            "80.5 %, 0.5 points above {}",
            "not",
        ),
    ],
)
def test_what_is_said_of_the_rest(rows, head, why, tone):
    part = opening.sentence([GONE, *rows], "full")[1]
    assert (part.head, part.tone) == (head, tone)
    assert part.why == "R@1 of the retain set is " + why.format("retraining for as many rounds")


def test_what_is_said_of_going_on():
    stays = [row("r1.forget", 0.0, question=STAYS), row("r1.retain", 1.0, question=STAYS)]
    assert heads(GONE, STAYED, *stays)[2] == ("after going on it is like retraining", "like")
    better = [row("r1.retain", 9.0, question=STAYS), row("r1.forget_shared", 9.0, question=STAYS)]
    part = opening.sentence([GONE, STAYED, *better], "full")[2]
    assert (part.tone, part.why) == ("like", "none of 2 numbers is worse than its limit allows")  # 9 is beyond it, and no fault
    back = row("r1.forget", 14.0, question=STAYS)
    part = opening.sentence([GONE, STAYED, *stays, back], "full")[2]
    assert (part.head, part.tone) == ("after going on it is not like retraining", "too")
    assert part.why == "1 of 3 numbers surely beyond its limit (R@1 of forget, 14.0 points above retraining)"
    lost = row("r1.retain", -5.0, *WIDE, question=STAYS)
    assert heads(GONE, STAYED, *stays, lost)[2] == ("after going on it is perhaps not like retraining", "not")
    open_ = row("r1.test", -1.0, *WIDE, question=STAYS)
    assert heads(GONE, STAYED, *stays, open_)[2] == ("after going on it is like retraining, as far as can be told", "not")


# ---- what was not asked ----------------------------------------------------------------------------------------------------


def test_a_quick_audit_says_what_it_does_not_ask():
    assert said(GONE, STAYED, row("r1.test", 0.0, *WIDE, question=KEPT), level="quick").endswith(
        f"; 2 of 3 answers are sure: {UNASKED}."
    )


def test_who_is_not_there_cannot_judge():
    """The client that left does not answer any more: nothing is said of what it knew."""
    assert said(STAYED) == (
        "Whether it is forgotten is not known: nobody is left who could judge it; the rest is kept: R@1 of the retain set is "
        "79.5 %, 0.5 points below retraining for as many rounds; 1 of 1 answers are sure."
    )


def test_without_a_row_nothing_is_known():
    assert said() == "Whether it is forgotten is not known: nobody has judged it."


def test_the_page_begins_with_it(tmp_path):
    found = [row("r1.forget", 12.3), STAYED]
    pictures = opening.pictures({m: {"r1.forget": {"value": 9.0}} for m in figures.THREE}, {"unlearned": {}})
    page = {"title": "a run", "sentence": opening.sentence(found, "full"), "first": pictures}
    text = report.write(tmp_path, page, []).read_text()
    sentence = re.search(r'<p class="sentence">(.*?)</p>', text).group(1)
    assert sentence.startswith('<b class="too">Too little forgotten</b>: ')
    assert re.sub("<.*?>", "", sentence) == said(*found)
    assert text.index('class="sentence"') < text.index('<figure id="first-forget">') < text.index("<h2>Figures")
    assert (tmp_path / "figures" / "first-forget.csv").read_text().splitlines()[:2] == ["model,r1,low,high", "original,9.0,,"]


def test_the_figures_have_their_targets_and_intervals():
    def r1(value):
        return {"value": value, "low": value - 4, "high": value + 2}

    numbers = {"original": 79.0, "unlearned": 80.0, "retrain": 83.0, "retrain_equal": 86.0}
    numbers = {m: {"r1.forget": r1(v - 70), "r1.retain": r1(v)} for m, v in numbers.items()}
    forget, retain = opening.pictures(numbers, {"unlearned": {}})
    for drawing, target in ((forget, 13.0), (retain, 86.0)):
        (ax,) = drawing.figure.axes
        assert [line.get_xdata() for line in ax.lines if line.get_linestyle() == "--"] == [[target, target]]
    values = {row[0]: row[1:] for row in retain.data[1]}
    assert values["unlearned"] == [80.0, 76.0, 82.0]
    whiskers = [segment[:, 0].tolist() for c in retain.figure.axes[0].collections for segment in c.get_segments()]
    assert [76.0, 82.0] in whiskers


# ---- laws ------------------------------------------------------------------------------------------------------------------

KEYS = [*verdict.forgetting(LIMITS), "ulira"]
gaps = st.floats(-60, 60)
rows = st.builds(
    lambda key, gap, below, above, question: row(key, gap, gap - below, gap + above, question),
    st.sampled_from([*KEYS, "r1.forget_shared", *ONE_SIDED]),
    gaps,
    st.floats(0, 40),
    st.floats(0, 40),
    st.sampled_from([FORGOTTEN, KEPT, STAYS]),
)


@given(st.lists(rows, min_size=1, max_size=12))
def test_it_is_never_better_than_the_rows(found):
    """Law: a part is good where all its rows are, bad where one is surely bad, and open otherwise; all are counted once."""
    parts = opening.sentence(found, "full")
    asked = [q for q in (FORGOTTEN, KEPT, STAYS) if any(r.question == q for r in found)]
    told = parts[FORGOTTEN not in asked : -1]
    for question, part in zip(asked, told, strict=True):
        answers = [r.answer for r in found if r.question == question]
        unsure = [a.startswith("not sure") for a in answers]
        good = [a in (*verdict.GOOD, "above") for a in answers]
        bad = [not u and not g for u, g in zip(unsure, good, strict=True)]
        assert part.tone == ("too" if any(bad) else "like" if all(good) else "not")
    sure = sum(not r.answer.startswith("not sure") for r in found)
    assert parts[-1].head == f"{sure} of {len(found)} answers are sure"


@pytest.mark.parametrize("key", KEYS)
def test_every_number_of_the_verdict_has_words(key):
    words = opening.words(key)
    assert words
    assert "." not in words
