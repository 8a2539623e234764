"""The style sheet of a report. Colours are variables, so that page and charts follow light and dark."""

CSS = """
:root {
  color-scheme: light dark;
  --ink: #1c2024; --soft: #5b6470; --faint: #6d7681; --line: #e3e6ea; --paper: #ffffff; --page: #f5f6f8;
  --accent: #3b5bdb; --good: #1f7a4d; --good-soft: #e2f5ea; --bad: #b3362b; --bad-soft: #fdeae7;
  --latent: #7a3fb8; --latent-soft: #f1e8fb;
}
@media (prefers-color-scheme: dark) {
  :root {
    --ink: #e6e9ed; --soft: #a3acb8; --faint: #8a939e; --line: #2b3139; --paper: #181c21; --page: #101316;
    --accent: #8ea6ff; --good: #69cf9a; --good-soft: #173325; --bad: #f08d82; --bad-soft: #3c1d1a;
    --latent: #c59bf2; --latent-soft: #2e2140;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--page); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "DejaVu Sans", sans-serif;
}
main { max-width: 1080px; margin: 0 auto; padding: 40px 20px 80px; }
header { margin-bottom: 28px; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0; letter-spacing: -0.015em; }
h2 { font-size: 1.25rem; margin: 44px 0 14px; letter-spacing: -0.01em; }
h3 { font-size: 1rem; margin: 0 0 10px; }
p { margin: 0 0 10px; max-width: 74ch; }
.soft, figcaption, caption { color: var(--soft); }
.small { font-size: 0.875rem; }
.lead { font-size: 1.08rem; max-width: 68ch; }
.lead + .card { margin-top: 20px; }
.card {
  background: var(--paper); border: 1px solid var(--line); border-radius: 12px; padding: 20px;
  margin: 0 0 16px;
}
.card > p { max-width: none; }
.card > :last-child { margin-bottom: 0; }
.scroll { overflow-x: auto; }

table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
caption { text-align: left; font-size: 0.875rem; padding-bottom: 8px; }
th, td { padding: 8px 12px; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
th:last-child, td:last-child { padding-right: 0; }
thead th { font-weight: 600; font-size: 0.8125rem; color: var(--soft); }
tbody th { font-weight: 500; }
tbody tr:last-child th, tbody tr:last-child td { border-bottom: 0; }
tr.baseline th, tr.baseline td { color: var(--soft); }
td.strong { font-weight: 650; }
.gain { color: var(--good); }
.loss { color: var(--bad); }

.curves {
  display: grid; grid-template-columns: repeat(auto-fill, minmax(280px, 1fr)); gap: 14px; margin: 0 0 8px;
}
.curves figure {
  margin: 0; background: var(--paper); border: 1px solid var(--line); border-radius: 12px;
  padding: 12px 14px 8px;
}
.curves figcaption {
  font-size: 0.8125rem; display: flex; justify-content: space-between; margin-bottom: 6px;
}
.curves figcaption b { color: var(--ink); font-weight: 600; }
svg {
  display: block; width: 100%; height: auto; font: 11px system-ui, "Noto Sans", "DejaVu Sans", sans-serif;
}
svg.intervals { min-width: 600px; margin-bottom: 8px; }
svg text { fill: var(--faint); font-variant-numeric: tabular-nums; }
svg .grid { stroke: var(--line); stroke-width: 1; }
svg polyline { fill: none; stroke-linejoin: round; stroke-linecap: round; }
svg .raw { stroke: var(--accent); stroke-width: 1; opacity: 0.28; }
svg .curve { stroke: var(--accent); stroke-width: 2; }
svg .whisker { stroke: var(--accent); stroke-width: 6; stroke-linecap: round; opacity: 0.28; }
svg .dot { fill: var(--accent); }
svg .mark { fill: var(--paper); stroke: var(--accent); stroke-width: 1.75; }
svg .name { fill: var(--ink); font-size: 13px; }
svg .value { fill: var(--ink); font-size: 13px; font-weight: 600; }
svg line.reference { stroke: var(--faint); stroke-dasharray: 3 4; }
svg text.reference { fill: var(--soft); }
details { margin: 6px 0 22px; }
summary { cursor: pointer; color: var(--soft); font-size: 0.875rem; padding: 4px 0; }
:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; border-radius: 4px; }

.strip { display: flex; gap: 6px; overflow-x: auto; padding-bottom: 6px; margin: 0 0 12px; }
.strip img {
  flex: 1 1 0; min-width: 84px; max-width: 220px; height: auto; align-self: flex-start; border-radius: 6px;
  background: var(--line);
}
.strip img.tiny { image-rendering: pixelated; }
.options { list-style: none; margin: 0 0 14px; padding: 0; display: flex; flex-wrap: wrap; gap: 6px; }
.options li { border: 1px solid var(--line); border-radius: 8px; padding: 2px 10px; font-size: 0.875rem; }
.options li.right {
  border-color: var(--good); background: var(--good-soft); color: var(--good); font-weight: 600;
}
.rows { display: grid; grid-template-columns: repeat(auto-fill, minmax(235px, 1fr)); gap: 12px; }
.row { border: 1px solid var(--line); border-radius: 10px; padding: 12px; font-size: 0.875rem; min-width: 0; }
.score {
  display: flex; align-items: center; gap: 8px; margin-bottom: 8px; white-space: nowrap;
  font-variant-numeric: tabular-nums;
}
.chip { border-radius: 999px; padding: 1px 9px; font-weight: 600; background: var(--line); }
.chip.gain { background: var(--good-soft); }
.chip.loss { background: var(--bad-soft); }
.bar {
  flex: 1; height: 6px; border-radius: 3px; background: var(--line); position: relative; min-width: 30px;
}
.bar i { position: absolute; top: 0; bottom: 0; border-radius: 3px; }
.bar i.gain { background: var(--good); }
.bar i.loss { background: var(--bad); }
.text { white-space: pre-wrap; overflow-wrap: anywhere; max-height: 22em; overflow-y: auto; margin: 0; }
.imagery {
  background: var(--latent-soft); color: var(--latent); border-radius: 6px; padding: 1px 7px;
  font-weight: 600;
  white-space: nowrap; font-size: 0.8125rem;
}
.tag { color: var(--faint); }
.parts { color: var(--soft); font-size: 0.8125rem; margin: 8px 0 0; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 4px 18px; margin: 0; font-size: 0.875rem; }
dt { color: var(--soft); }
dl details { margin: 0; }
dl summary { padding: 0; }
pre { overflow-x: auto; font-size: 0.8125rem; margin: 6px 0 0; }
dd { margin: 0; overflow-wrap: anywhere; font-variant-numeric: tabular-nums; }
footer { margin-top: 48px; color: var(--faint); font-size: 0.8125rem; }
@media print {
  body { background: #fff; }
  .card, .curves figure, .row { break-inside: avoid; }
  .text { max-height: none; }
}
"""
