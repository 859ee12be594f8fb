"""The two pages of `ease open`, as text: a run at work, and a report with a search above it.

They are Python because an app that is published to Flower Hub has no HTML files.
"""

from __future__ import annotations

from pathlib import Path

from jinja2 import Template

from ease_flwr.audit.page import BEFORE_TABLES, TOP

SEARCH = """
<style>
#search form { display: flex; flex-wrap: wrap; gap: .5rem; align-items: end; }
#search label { display: grid; flex: 1 1 16rem; font-size: .85rem; color: var(--soft); }
#search input { font: inherit; padding: .4rem; width: 100%; min-width: 0; color: var(--ink); background: var(--paper); border: 1px solid var(--soft); border-radius: .3rem; }
#search button { font: inherit; color: var(--ink); background: none; border: 1px solid var(--soft); border-radius: .3rem; padding: .4rem .8rem; cursor: pointer; }
#search button.pair { padding: 0; border: 0; text-align: left; text-decoration: underline dotted; }
#search button.pair img { display: block; width: 5rem; height: 5rem; object-fit: cover; border-radius: .3rem; }
#search :focus-visible { outline: 3px solid var(--open); outline-offset: 2px; }
#offered, .found { display: grid; gap: .8rem; }
#offered { grid-template-columns: repeat(auto-fill, minmax(9rem, 1fr)); margin: 1rem 0; }
#found { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fit, minmax(15rem, 1fr)); }
.pairs { list-style: none; margin: 0; padding: 0; display: grid; gap: .6rem; }
.pairs li, #offered > div { display: grid; gap: .2rem; font-size: .85rem; align-content: start; min-width: 0; }
.pairs li { grid-template-columns: 5rem 1fr; gap: .6rem; border: 1px solid var(--line); border-radius: .4rem; padding: .4rem; }
.pairs li.rightone { border: 3px solid var(--good); }
.set { color: var(--soft); }
</style>
<section id="search" aria-labelledby="searchhead">
<h2 id="searchhead">Search with its models</h2>
<p>Type a caption, or choose a picture. Each column shows the five best of one model: <i>original</i> before forgetting, <i>unlearned</i> after it, <i>retrain</i> never trained on the forgotten pairs. After forgetting, <i>unlearned</i> should find what <i>retrain</i> finds.</p>
<form>
<label>Caption<input id="caption" name="caption" autocomplete="off"></label>
<button>Find pictures</button>
<label>Picture from this machine<input id="file" type="file" accept="image/*"></label>
</form>
<p id="said" role="status">The models are being loaded.</p>
<div id="found"></div>
<details id="more" open><summary>Pairs to begin with</summary><div id="offered"></div></details>
</section>
<script>
const byId = id => document.getElementById(id), element = (name, more = {}, ...inside) => { const e = Object.assign(document.createElement(name), more); e.append(...inside); return e; };
const pairOf = p => {
  const picture = element("button", { type: "button", className: "pair" }, element("img", { src: `pictures/${p.pair}`, alt: "" }));
  picture.setAttribute("aria-label", `find captions for the picture of: ${p.caption}`);
  picture.onclick = () => ask(`captions/${p.pair}`, {}, "Captions for the picture");
  const caption = element("button", { type: "button", className: "pair" }, p.caption);
  caption.setAttribute("aria-label", `find pictures for: ${p.caption}`);
  caption.onclick = () => { byId("caption").value = p.caption; pictures(); };
  const notes = [p.set, ...("similarity" in p ? [`cosine ${p.similarity.toFixed(2)}`] : []), ...(p.right ? ["right"] : [])];
  return [picture, element("div", {}, caption, element("div", { className: "set" }, notes.join(", ")))];
};
let latest = 0;
async function ask(path, how, head) {
  const mine = ++latest;
  byId("said").textContent = "Searching.";
  try {
    const answer = await fetch(path, how), body = await answer.json();
    if (mine !== latest) return;
    if (body.error) { byId("said").textContent = body.error; return; }
    byId("found").replaceChildren(...Object.entries(body.models).map(([model, found]) => element("section", {}, element("h3", {}, model),
      element("ol", { className: "pairs" }, ...found.map(p => element("li", { className: p.right ? "rightone" : "" }, ...pairOf(p)))))));
    byId("said").textContent = head + ":";
    byId("more").open = false;
  } catch { byId("said").textContent = "No answer: is `ease open` still running?"; }
}
const pictures = () => ask(`pictures?caption=${encodeURIComponent(byId("caption").value)}`, {}, `Pictures for "${byId("caption").value}"`);
document.querySelector("#search form").onsubmit = e => { e.preventDefault(); pictures(); };
byId("file").onchange = e => { const [file] = e.target.files; if (file) ask("captions", { method: "POST", body: file }, `Captions for ${file.name}`); };
async function offer() {
  const answer = await fetch("examples"), body = await answer.json();
  if (answer.status === 202) { setTimeout(offer, 1000); return; }
  byId("said").textContent = body.error ?? `Among ${body.count} test pairs of this machine.`;
  byId("offered").replaceChildren(...(body.pairs ?? []).map(p => element("div", {}, ...pairOf(p))));
}
if (!document.body.dataset.atWork) offer();
</script>
"""
"""A section that stands on its own, in a page with the colours of the report."""

FOLLOWED = (
    TOP
    + """h1 { font-size: 1.5rem; line-height: 1.2; overflow-wrap: anywhere; } h2 { font-size: 1.2rem; margin-top: 2rem; } h3 { font-size: 1rem; }
progress { width: 100%; height: 1rem; }
dl { display: grid; gap: .6rem; grid-template-columns: repeat(auto-fill, minmax(9rem, 1fr)); margin: 1rem 0; }
dl div { border: 1px solid var(--line); border-radius: .5rem; padding: .5rem; } dt { color: var(--soft); font-size: .85rem; } dd { margin: 0; font-size: 1.2rem; overflow-wrap: anywhere; }
#charts { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fit, minmax(16rem, 1fr)); }
svg { width: 100%; height: auto; } svg text { fill: currentColor; font-size: 11px; }
pre { overflow-x: auto; font-size: .8rem; border: 1px solid var(--line); border-radius: .5rem; padding: .6rem; }
</style>
</head>
<body data-at-work="yes">
<header><h1>{{ title }}</h1><p id="status" role="status">Reading.</p></header>
<main>
<progress id="bar" max="1" value="0" aria-label="Rounds of this phase"></progress>
<dl id="now"></dl>
<div id="charts"></div>
<h2>Last lines</h2>
<pre id="log" tabindex="0"></pre>
<div id="later" hidden>{{ search | safe }}</div>
</main>
<script>
const told = { submitted: "Starting.", running: "At work.", finished: "Finished.", failed: "Stopped", "": "Nothing is known of it yet." };
const time = s => s < 90 ? `${Math.round(s)} s` : `${Math.round(s / 60)} min`;
const mark = (name, attributes, ...inside) => { const e = document.createElementNS("http://www.w3.org/2000/svg", name); for (const [k, v] of Object.entries(attributes)) e.setAttribute(k, v); e.append(...inside); return e; };
const dashes = ["", "6 3", "2 3", "8 3 2 3"];
function chart(head, lines, top) {
  const names = Object.keys(lines), all = Object.values(lines).flat(), right = Math.max(1, ...all.map(p => p[0]));
  const high = top ?? Math.max(0, ...all.map(p => p[1])), low = top ? 0 : Math.min(0, ...all.map(p => p[1])), base = 124 + 13 * Math.ceil(names.length / 2);
  const x = v => 34 + 260 * v / right, y = v => base - 105 * (v - low) / (high - low || 1), round = v => v.toFixed(top ? 0 : 2);
  const drawn = mark("svg", { viewBox: `0 0 300 ${base + 18}`, role: "img", "aria-label": head + ": " + names.map(n => n + " " + lines[n].at(-1)[1].toFixed(2)).join(", ") });
  drawn.append(mark("path", { d: `M34 ${base - 105}V${base}H294`, fill: "none", stroke: "currentColor" }), mark("text", { x: 30, y: base - 97, "text-anchor": "end" }, round(high)),
    mark("text", { x: 30, y: base, "text-anchor": "end" }, round(low)), mark("text", { x: 294, y: base + 14, "text-anchor": "end" }, "round " + right));
  names.forEach((n, i) => {
    const style = { fill: "none", stroke: "currentColor", "stroke-width": 1.6, "stroke-dasharray": dashes[i % 4] }, left = 34 + 134 * (i % 2), line = 11 + 13 * Math.floor(i / 2);
    drawn.append(mark("path", { d: `M${left} ${line - 4}h22`, ...style }), mark("text", { x: left + 26, y: line }, n), mark("polyline", { points: lines[n].map(p => x(p[0]) + "," + y(p[1])).join(" "), ...style }),
      ...lines[n].map(p => mark("circle", { cx: x(p[0]), cy: y(p[1]), r: 2.2, fill: "currentColor" })));
  });
  return element("figure", { style: "margin: 0" }, element("figcaption", {}, head), drawn);
}
async function follow() {
  let s;
  try { s = await (await fetch("situation")).json(); } catch { byId("status").textContent = "No answer: is `ease open` still running?"; setTimeout(follow, 3000); return; }
  if (s.over && s.report) { location.reload(); return; }
  const r = s.round, at = byId("status");
  at.textContent = s.error ? `${told.failed}: ${s.error}` : s.silent ? `No word for ${time(s.silent)}. If it was killed, \\`ease resume\\` goes on with it.` : s.over ? "Finished. There is no report yet: `ease report` writes one where the run has an audit." : told[s.status] ?? s.status;
  byId("bar").value = r.last ? r.round / r.last : 0;
  const facts = r.last ? { phase: r.model, round: `${r.round} of ${r.last}`, loss: r.loss.toFixed(3), clients: `${r.answered} of ${r.asked}`, took: time(r.seconds), "ETA of the phase": time(r.eta) } : {};
  const recall = Object.entries(s.recall).filter(([set]) => set === "retain" || set === ("forget_exclusive" in s.recall ? "forget_exclusive" : "forget"));
  for (const [set, models] of recall) { const last = Object.entries(models).at(-1); facts[`R@1 ${set} (${last[0]})`] = last[1].at(-1)[1].toFixed(1) + " %"; }
  byId("now").replaceChildren(...Object.entries(facts).map(([k, v]) => element("div", {}, element("dt", {}, k), element("dd", {}, v))));
  byId("charts").replaceChildren(...(Object.keys(s.loss).length ? [chart("Loss, mean of the clients", s.loss)] : []), ...recall.map(([set, lines]) => chart(`R@1 % of validation pairs: ${set}`, lines, 100)));
  byId("log").textContent = s.log.join("\\n") + (s.table ? "\\n\\n" + s.table : "");
  if (s.over && byId("later").hidden) { byId("later").hidden = false; offer(); }
  setTimeout(follow, 1000);
}
follow();
</script>
</body>
</html>
"""
)


def followed(folder: Path) -> str:
    """The page of a run at work, or of one without a report."""
    page: str = Template(FOLLOWED, autoescape=True).render(title=folder.name, search=SEARCH)
    return page


def reported(report: str) -> str:
    """A report with the search between its first screen and its tables."""
    return report.replace(BEFORE_TABLES, f"{SEARCH}{BEFORE_TABLES}", 1)
