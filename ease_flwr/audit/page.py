"""The page of a report, a jinja2 template. It is Python because an app that is published to Flower Hub has no HTML files."""

TOP = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,">
<title>{{ title }}</title>
<style>
:root { color-scheme: light dark; --ink: #1c1f24; --soft: #5b6270; --paper: #fff; --line: #d8dce2; --good: #1d7a46; --bad: #b3372b; --open: #8a6100; }
@media (prefers-color-scheme: dark) { :root { --ink: #e7e9ec; --soft: #a3abb8; --paper: #15181c; --line: #343a44; --good: #5fc78d; --bad: #f08a7e; --open: #e2b354; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 62rem; padding: 1rem; font: 1rem/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); }
"""
"""Of every page, up to its own style: colours light, or dark where the reader's system is."""
BEFORE_TABLES = "<!-- what follows is for who wants to know more -->"
"""Stands in every report after its first screen; `ease open` has its search there."""

PAGE = (
    TOP
    + """h1 { font-size: 1.5rem; line-height: 1.2; } h2 { font-size: 1.2rem; margin-top: 2.2rem; } h3 { font-size: 1rem; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; font-size: .85rem; width: 100%; }
th, td { padding: .3rem .5rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th:first-child, td:first-child, .words { text-align: left; } .words { white-space: normal; min-width: 9rem; }
th[aria-sort] { cursor: pointer; text-decoration: underline dotted; }
.like { color: var(--good); } .too { color: var(--bad); } .not { color: var(--open); }
.sentence { font-size: 1.15rem; line-height: 1.45; } .three { display: grid; gap: 0 1.2rem; grid-template-columns: repeat(auto-fit, minmax(17rem, 1fr)); }
.three h2 { font-size: 1rem; margin: .3rem 0; } .three svg { display: block; width: 100%; max-width: 24rem; } .three figure { margin: .3rem 0; }
figure { margin: 1.2rem 0; break-inside: avoid; } figure svg { max-width: 100%; height: auto; } figcaption { color: var(--soft); font-size: .85rem; }
@media (max-width: 44rem) { .scroll svg { max-width: none; } }
.cards { display: grid; gap: .8rem; grid-template-columns: repeat(auto-fit, minmax(20rem, 1fr)); } @media (max-width: 24rem) { .cards { grid-template-columns: 1fr; } }
.card { border: 1px solid var(--line); border-radius: .5rem; padding: .6rem; break-inside: avoid; font-size: .8rem; min-width: 0; }
.pic { display: inline-block; width: 44px; height: 44px; background-size: cover; border-radius: 4px; margin: 1px; vertical-align: middle; outline: 2px solid transparent; }
.right { outline: 3px solid var(--good); } mark { background: none; color: var(--good); font-weight: 700; }
.row { display: grid; grid-template-columns: 5rem 1fr; align-items: center; } ol { margin: .1rem 0; padding-left: 1.2rem; }
{% for source in pictures %}.i{{ loop.index0 }}{background-image:url({{ source }})}
{% endfor %}
@media print { body { max-width: none; font-size: 10pt; } details { display: block; } }
</style>
</head>
<body>
<header>
<h1>{{ title }}</h1>
{% if forgotten %}<p>To be forgotten: {{ forgotten }}. {% if strangers %}Nobody has trained a model again without it: it stands beside strangers, which are pairs that nobody trained on.{% else %}Every number stands beside that of the retrained model, which was trained again without it.{% endif %}{% if cost %} Here {{ cost }}.{% endif %}</p>{% endif %}
</header>
<main>
{% if sentence %}
<p class="sentence">{% for part in sentence %}<b class="{{ part.tone }}">{{ part.head }}</b>{% if part.why %}: {{ part.why }}{% endif %}{{ "." if loop.last else "; " }}{% endfor %}</p>
<div class="three">
{% for d in first %}
<figure id="{{ d.name }}"><h2>{{ d.title }}</h2>{{ d.svg() | safe }}<figcaption>{{ d.reading }}</figcaption></figure>
{% endfor %}
</div>
{% endif %}
{{ before_tables | safe }}
{% if verdict %}
<h2>Verdict</h2>
<p>{{ head }}</p>
{% for headline, rows in verdict %}
<h3>{{ headline }}</h3>
<div class="scroll" tabindex="0" role="region" aria-label="{{ headline }}"><table>
<thead><tr><th>number</th><th class="words">answer</th><th>model</th><th>value</th><th>reference</th><th></th><th>difference (95 %)</th><th>s (cells)</th><th>limit</th></tr></thead>
<tbody>
{% for r in rows %}
{% set value, reference, difference, noise = shown(r) %}
<tr><td>{{ r.what }}</td><td class="words {{ "like" if r.answer is good else "not" if r.answer is unsure else "too" }}">{{ r.answer }}</td>
<td>{{ r.model }}</td><td>{{ value }}</td><td>{{ reference }}</td><td>{{ r.against }}</td><td>{{ difference }}</td><td>{{ noise }}</td><td>{{ r.threshold }}</td></tr>
{% endfor %}
</tbody></table></div>
{% endfor %}
<p>What each number asks, and what it cannot show, is in docs/audit.md; parameters alone never prove that something was left out.</p>
{% endif %}
{% if strangers %}
<h2>Three samples</h2>
<div class="scroll" tabindex="0" role="region" aria-label="Three samples"><table>
<thead><tr>{% for h in strangers.head %}<th>{{ h }}</th>{% endfor %}</tr></thead>
<tbody>{% for row in strangers.body %}<tr>{% for v in row %}<td>{{ v }}</td>{% endfor %}</tr>
{% endfor %}</tbody></table></div>
<p>What was forgotten, what is kept, and what nobody trained on, under each model; base is the model before any learning. {{ strangers.cannot }}</p>
{% endif %}
{% if models %}
<h2>Recall</h2>
<div class="scroll" tabindex="0" role="region" aria-label="Recall"><table>
<thead><tr><th>R@1 %</th>{% for s in sets %}<th>{{ s }}</th>{% endfor %}</tr></thead>
<tbody>{% for m, values in models.items() %}<tr><td>{{ m }}</td>{% for v in values %}<td>{{ "%.1f" | format(v) if v is not none else "" }}</td>{% endfor %}</tr>
{% endfor %}</tbody></table></div>
{% endif %}
{% if anchors %}
<h2>The three anchors</h2>
<div class="scroll" tabindex="0" role="region" aria-label="The three anchors"><table>
<thead><tr>{% for h in anchors_head %}<th{% if loop.last %} class="words"{% endif %}>{{ h }}</th>{% endfor %}</tr></thead>
<tbody>{% for a in anchors %}<tr><td>{{ a.anchor }}</td><td class="words">{{ a.number }}</td><td>{{ a.before }}</td><td>{{ a.after }}</td><td>{{ a.retrained }}</td><td class="words">{{ a.reading }}</td></tr>
{% endfor %}</tbody></table></div>
<p>By what forgotten knowledge comes back: before forgetting (original), after it (unlearned), and in the model trained again without it. docs/audit.md explains the numbers.</p>
{% endif %}
{% if costs %}
<h2>Cost</h2>
<div class="scroll" tabindex="0" role="region" aria-label="Cost"><table>
<thead><tr><th>phase</th><th>rounds</th><th>client steps</th><th>MB up</th><th>MB down</th><th>seconds</th><th>of the server</th><th>peak MB server</th><th>peak MB client</th></tr></thead>
<tbody>{% for phase, c in costs.items() %}<tr><td>{{ phase }}</td><td>{{ c.rounds }}</td><td>{{ c.client_steps }}</td>{% for v in (c.uplink_bytes / 1e6, c.downlink_bytes / 1e6, c.seconds, c.server_seconds, c.server_memory / 1e6, c.client_memory / 1e6) %}<td>{{ "%.1f" | format(v) }}</td>{% endfor %}</tr>
{% endfor %}</tbody></table></div>
<p>The update history that forgetting reads and the lock that it leaves take {{ "%.1f" | format(kept) }} MB on the server.</p>
{% endif %}
{% for request in decided %}
{% set of = " (" ~ request.id ~ ")" if decided | length > 1 else "" %}
{% macro number(v, f) %}{{ f | format(v) if v is not none else "" }}{% endmacro %}
<h2>What BKE did{{ of }}</h2>
<div class="scroll" tabindex="0" role="region" aria-label="BKE{{ of }}"><table>
<thead><tr><th>round</th><th>forget clients</th><th>took no step</th><th>pairs</th><th>exclusive pairs</th><th>share of the step</th><th>partner loss</th><th>goal</th></tr></thead>
<tbody>{% for r in request.bke_rounds %}<tr><td>{{ r.round }}</td><td>{{ r.clients }}</td><td>{{ r.idle }}</td><td>{{ r.pairs }}</td><td>{{ r.exclusive }}</td><td>{{ number(r.share, "%.2f") }}</td><td>{{ number(r.partner_loss, "%.2f") }}</td><td>{{ number(r.goal, "%.2f") }}</td></tr>
{% endfor %}</tbody></table></div>
<p>A forget client shortens its step until its exclusive pairs are at the goal. At share 0 BKE does nothing: they are at the goal, or past it, without a step. The numbers of each client are in metrics.jsonl.</p>
{% endfor %}
{% if sortable %}
<h2>Table</h2>
<p>Points of R@1, model minus retraining; ! is beyond the limit of the audit and worse. Mean over seeds. Choose a heading to sort by it.</p>
<div class="scroll" tabindex="0" role="region" aria-label="Methods"><table id="sortable">
<thead><tr>{% for h in sortable.head %}<th aria-sort="none" tabindex="0" scope="col">{{ h }}</th>{% endfor %}</tr></thead>
<tbody>{% for row in sortable.rows %}<tr>{% for v in row %}<td>{{ v }}</td>{% endfor %}</tr>
{% endfor %}</tbody></table></div>
<script>
for (const [i, th] of document.querySelectorAll("#sortable th").entries()) {
  const sort = () => {
    const up = th.getAttribute("aria-sort") !== "ascending", body = document.querySelector("#sortable tbody");
    const key = r => r.cells[i]?.textContent ?? "", number = r => parseFloat(key(r));
    const rows = [...body.rows].sort((a, b) => isNaN(number(a)) || isNaN(number(b)) ? key(a).localeCompare(key(b)) : number(a) - number(b));
    body.append(...(up ? rows : rows.reverse()));
    document.querySelectorAll("#sortable th").forEach(h => h.setAttribute("aria-sort", "none"));
    th.setAttribute("aria-sort", up ? "ascending" : "descending");
  };
  th.addEventListener("click", sort);
  th.addEventListener("keydown", e => { if (e.key === "Enter" || e.key === " ") { e.preventDefault(); sort(); } });
}
</script>
{% endif %}
<h2>Figures</h2>
{% for d in drawings %}
<figure id="{{ d.name }}"><h3>{{ d.title }}</h3><div class="scroll" tabindex="0" role="region" aria-label="{{ d.title }}">{{ d.svg() | safe }}</div><figcaption>{{ d.reading[0] | upper }}{{ d.reading[1:] }}.</figcaption></figure>
{% endfor %}
{% if cards %}
<h2>Look for yourself</h2>
<p>The five best answers of each model in the pair's own gallery; the right one is marked.</p>
<div class="cards">
{% for card in cards %}
<section class="card" aria-label="{{ card.set }}: {{ card.caption }}">
<h3>{{ card.set }}, {{ card.client }}</h3>
<p><span class="pic i{{ card.picture }}" role="img" aria-label="{{ card.caption }}"></span> {{ card.caption }}</p>
{% for model, found in card.images %}
<div class="row"><span>{{ model }}</span><span>{% for picture, right in found %}<span class="pic i{{ picture }}{{ " right" if right }}" role="img" aria-label="{{ "the right one" if right else "another" }}"></span>{% endfor %}</span></div>
{% endfor %}
<details><summary>captions for the picture</summary>
{% for model, found in card.captions %}
<div class="row"><span>{{ model }}</span><ol>{% for text, right in found %}<li>{% if right %}<mark>{{ text }}</mark>{% else %}{{ text }}{% endif %}</li>{% endfor %}</ol></div>
{% endfor %}
</details>
</section>
{% endfor %}
</div>
{% endif %}
{% if numbers %}
<h2>Every number of the audit</h2>
<div class="scroll" tabindex="0" role="region" aria-label="Every number"><table>
<thead><tr><th>number</th>{% for m in asked %}<th>{{ m }}</th>{% endfor %}</tr></thead>
<tbody>{% for name, cells in numbers.items() %}<tr><td>{{ name }}</td>{% for c in cells %}<td>{{ c }}</td>{% endfor %}</tr>
{% endfor %}</tbody></table></div>
{% endif %}
{% if left_out %}
<h2>Left out</h2>
<ul>
{% for line in left_out %}
<li>{{ line }}</li>
{% endfor %}
</ul>
{% endif %}
</main>
</body>
</html>
"""
)
