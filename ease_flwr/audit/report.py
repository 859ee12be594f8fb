"""One self-contained page about a run (or a comparison, see ease_flwr/sweep/comparison.py): no network, no file beside it.

The figures are matplotlib's, the page is the template of page.py. `write` also leaves each figure as SVG and PNG, with its
data as CSV, in the folder `figures`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ease_flwr import config
from ease_flwr.audit import anchors, figures, omitted, opening, strangers
from ease_flwr.audit.drawing import Drawing
from ease_flwr.audit.page import BEFORE_TABLES, PAGE
from ease_flwr.audit.references import of_others
from ease_flwr.audit.summary import cost_line, current_audit, read_results, read_run_config
from ease_flwr.audit.verdict import GOOD, HEAD, Row, digits, headline, read_rows, shown
from ease_flwr.config import ConfigError
from ease_flwr.exchange.judgement import SETS
from ease_flwr.store.files import read_object, write_text
from ease_flwr.store.layout import RunLayout

SHOWN_NUMBERS = (
    *("people", "wording", "backdoor", "distance", "correlation", "ks", "membership", "probe", "cka", "relearn", "cross"),
    *("swap", "median_rank"),
)


def read(folder: Path, name: str) -> dict[str, Any]:
    """JSON of a run. Raises ConfigError where it is missing or broken."""
    return read_object(folder / name, "a report needs it")


def of_run(folder: Path, pictures: bool = True) -> Path:
    """report.html of a run directory; returns its path. pictures: whether the run's world is at hand to look at."""
    results = read_results(folder)
    layout = RunLayout(folder)
    file, audit = current_audit(folder, results)
    if file is None:
        raise ConfigError(f"{folder}: no audit of its models: `ease audit {folder}` makes one, and a report needs it")
    try:
        every = [json.loads(line) for line in layout.metrics.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError) as error:
        raise ConfigError(f"{layout.metrics}: {error}: a report needs it") from None
    events = [e for e in every if not of_others(str(e.get("model", "")), results)]
    facts: dict[str, Any] = next((q for q in reversed(results["requests"]) if "blocks" in q), {})
    scores = audit["scores"]
    drawings = [
        figures.curves(events, read(folder, "experiment.json")["audit"]),
        figures.samples(audit.get("strangers") or {"models": {}}),
        figures.similarities(scores),
        figures.relearning(audit["numbers"]),
        figures.membership(scores),
        figures.excised(facts),
        figures.overlap(facts),
        figures.cost(results["cost"]),
    ]
    cards, sources = [], []
    if pictures:
        from ease_flwr.audit import look

        experiment, _ = config.from_run_config(read_run_config(folder))
        shown = look.Pictures()
        cards = look.look(folder, experiment, shown)
        sources = shown.sources
    blocks = [(read_rows(audit["verdict"]), audit["asked"])]
    if (folder / "ulira.json").is_file():
        ulira = read(folder, "ulira.json")
        blocks.append(([r for r in read_rows(ulira["verdict"]) if r.model == "unlearned"], ulira["asked"]))
    sets = [s for s in SETS if s in results["models"]["unlearned"]]
    page = {
        "title": f"{results['experiment']}, {results['strategy']}, seed {results['seed']}",
        "forgotten": _forgotten(results["forget"], len(results["requests"])),
        "sentence": opening.sentence([r for rows, _ in blocks for r in rows], audit["level"]),
        "first": opening.pictures(audit["numbers"], scores),
        "verdict": [b for rows, asked in blocks for b in _blocks(rows, asked)],
        "strangers": _strangers(audit),
        "anchors": anchors.lines(audit["anchors"], audit["level"]) if "anchors" in audit else [],
        "costs": results["cost"],
        "kept": sum(q["server_bytes"] for q in results["requests"]) / 1e6,
        "decided": [q for q in results["requests"] if "bke_rounds" in q],
        "sets": sets,
        "models": {m: [found.get(s, {}).get("r1") for s in sets] for m, found in results["models"].items()},
        "numbers": _numbers(audit["numbers"]),
        "left_out": omitted.lines({**results.get("left_out", {}), **audit.get("left_out", {})}),
        "asked": list(audit["numbers"]),
        "cost": cost_line(results).partition(": ")[2] if "retrain" in results["cost"] else "",
        "cards": cards,
        "pictures": sources,
    }
    return write(folder, page, [d for d in drawings if d])


def _forgotten(forget: dict[str, Any], requests: int) -> str:
    """What was asked: the first targets, the scenario, and in how many requests."""
    targets, more = forget["targets"][:8], len(forget["targets"]) - 8
    named = ", ".join(targets) + (f" and {more} more" if more > 0 else "")
    return f"{named} (scenario: {forget['scenario']}{f', {requests} requests' if requests > 1 else ''})"


def _blocks(rows: list[Row], asked: str) -> list[tuple[str, list[Row]]]:
    """Headline and lines of each question."""
    by_question = {q: [r for r in rows if r.question == q] for q in dict.fromkeys(r.question for r in rows)}
    return [(headline(q, found, asked), found) for q, found in by_question.items()]


def _strangers(audit: dict[str, Any]) -> dict[str, Any]:
    """Head and rows of the three-sample view, and what it cannot show; nothing where a retrained model is there."""
    if not (found := audit.get("strangers") or {}).get("models"):
        return {}
    return {
        "head": strangers.head(found),
        "body": strangers.body(found),
        "cannot": f"{strangers.CANNOT} {audit['reference_price']}",
    }


def _numbers(numbers: dict[str, dict[str, dict[str, float]]]) -> dict[str, list[str]]:
    """Rows of the table of all numbers: name -> a cell a model."""
    names = [k for k in numbers["unlearned"] if k.split(".")[0] in SHOWN_NUMBERS]
    return {k: [_cell(found.get(k)) for found in numbers.values()] for k in names}


def _cell(measure: dict[str, float] | None) -> str:
    if not measure or "value" not in measure:
        return ""
    n = digits(measure["value"])
    low_high = f" ({measure['low']:.{n}f} to {measure['high']:.{n}f})" if "low" in measure else ""
    return f"{measure['value']:.{n}f}{low_high}"


def write(folder: Path, page: dict[str, Any], drawings: list[Drawing]) -> Path:
    """The page, and its figures by themselves with their data."""
    from jinja2 import Environment, StrictUndefined

    beside = folder / "figures"
    beside.mkdir(exist_ok=True)
    for drawing in [*page.get("first", ()), *drawings]:
        drawing.save(beside)
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.tests |= {"unsure": lambda answer: str(answer).startswith("not sure"), "good": lambda answer: answer in GOOD}
    environment.globals |= {"shown": shown, "head": HEAD, "anchors_head": anchors.HEAD, "before_tables": BEFORE_TABLES}
    template = environment.from_string(PAGE)
    empty: dict[str, Any] = {"verdict": [], "models": {}, "numbers": {}, "cards": [], "pictures": [], "sortable": None}
    empty |= {"strangers": {}, "asked": [], "left_out": []}
    empty |= {"forgotten": "", "cost": "", "sets": [], "anchors": [], "costs": {}, "decided": [], "sentence": [], "first": []}
    text = template.render({**empty, **page}, drawings=drawings)
    out = folder / "report.html"
    write_text(out, text)
    return out
