"""The look of report.html: one style sheet, in the page itself."""

STYLE = """
:root { color-scheme: light dark; --ink: #1d2530; --muted: #5f6975; --line: #e3e7ec; --gain: #15724f; --loss: #b04330;
  --page: #f6f7f9; --card: #fff; --code: #38424e; --badge: #fff; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6eaef; --muted: #a3adb9; --line: #333c47; --gain: #5fd3a4; --loss: #f09a86; --page: #12161b;
    --card: #1b2129; --code: #c5cdd6; --badge: #10261d; }
  figure img { background: #fff; border-radius: 6px; padding: 8px; }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); line-height: 1.5;
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, Helvetica, Arial, sans-serif; }
main { max-width: 1240px; margin: 0 auto; padding: 40px 20px 64px; }
h1 { font-size: 30px; line-height: 1.2; letter-spacing: -0.02em; margin: 0 0 6px; }
h2 { font-size: 21px; letter-spacing: -0.01em; margin: 0 0 16px; }
h3 { font-size: 16px; margin: 28px 0 4px; }
p { margin: 0; max-width: 75ch; }
header p, .muted { color: var(--muted); }
.muted { font-size: 13px; max-width: none; }
.label { color: var(--muted); font-size: 12px; font-weight: 600; letter-spacing: 0.04em; text-transform: uppercase; }
.gain { color: var(--gain); font-weight: 600; }
.loss { color: var(--loss); font-weight: 600; }
section, .tile { background: var(--card); border: 1px solid var(--line); border-radius: 12px; padding: 24px; }
section { margin-top: 20px; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(240px, 1fr)); gap: 20px; margin-top: 24px; }
.figure { font-size: 44px; font-weight: 650; letter-spacing: -0.03em; line-height: 1.15; }
.figure small { font-size: 14px; font-weight: 400; letter-spacing: 0; color: var(--muted); margin-left: 8px; }
.scroll { overflow-x: auto; margin: 0 -24px 10px; padding: 0 24px; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; font-size: 14px; }
th, td { padding: 9px 9px; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--line); }
thead th { color: var(--muted); font-size: 12px; font-weight: 600; padding-top: 0; white-space: normal;
  line-height: 1.3; vertical-align: bottom; }
tr > :first-child { text-align: left; padding-left: 0; background: var(--card); position: sticky; left: -24px; }
tbody th { font-weight: 500; }
tbody th div { display: flex; gap: 9px; align-items: baseline; }
tbody th i { flex: none; width: 9px; height: 9px; border-radius: 50%; }
th small { display: block; font-weight: 400; white-space: normal; max-width: 26ch; line-height: 1.3; }
small { color: var(--muted); font-size: 12px; }
td small { display: block; font-weight: 400; line-height: 1.2; }
td:last-child, thead th:last-child { padding-right: 0; }
.range { width: 16%; min-width: 90px; }
.track { display: block; position: relative; height: 14px;
  background: linear-gradient(var(--line), var(--line)) 0 50% / 100% 1px no-repeat; }
.track span { position: absolute; top: 5px; height: 4px; border-radius: 2px; opacity: 0.45; }
.track b { position: absolute; top: 2px; width: 10px; height: 10px; margin-left: -5px; border-radius: 50%; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 420px), 1fr)); gap: 24px;
  margin-top: 20px; }
figure { margin: 0; }
figcaption { font-size: 14px; font-weight: 600; margin-bottom: 8px; }
figure img { width: 100%; height: auto; display: block; }
article { display: grid; grid-template-columns: 150px 1fr; gap: 20px; padding: 18px 0;
  border-top: 1px solid var(--line); }
h3 + article { border-top: 0; }
article blockquote { margin: 2px 0 6px; font-size: 15px; line-height: 1.35; overflow-wrap: anywhere; }
article .query img { width: 100%; border-radius: 6px; display: block; margin: 4px 0 6px;
  border: 1px solid var(--line); }
.pictures { display: grid; grid-template-columns: repeat(8, 1fr); gap: 8px; margin: 3px 0 12px; }
.pictures span { position: relative; display: block; border-radius: 6px; border: 1px solid var(--line);
  overflow: hidden; }
.pictures img { width: 100%; aspect-ratio: 1; display: block; }
.pictures .relevant { border-color: var(--gain); box-shadow: 0 0 0 2px var(--gain); }
.pictures .relevant::after { content: "✓"; position: absolute; right: 0; bottom: 0; background: var(--gain);
  color: var(--badge); font-size: 11px; line-height: 1; padding: 3px 4px; border-top-left-radius: 6px; }
ul.muted { margin: 8px 0; padding-left: 18px; }
ul.muted b { font-weight: 600; }
details { margin-top: 14px; }
details .scroll { margin-top: 12px; }
details summary { cursor: pointer; font-weight: 600; }
pre { overflow-x: auto; font-size: 12px; line-height: 1.45; margin: 14px 0 0; color: var(--code); }
@media (max-width: 640px) {
  main { padding: 24px 12px 48px; }
  section, .tile { padding: 18px 16px; }
  .tiles { gap: 12px; }
  .scroll { margin: 0 -16px 10px; padding: 0 16px; }
  tr > :first-child { left: -16px; max-width: 132px; white-space: normal; padding-right: 8px; }
  article { grid-template-columns: 1fr; gap: 10px; }
  article .query img { width: 120px; }
  .range { min-width: 84px; }
  .pictures { grid-template-columns: repeat(4, 1fr); }
}
@page { size: A4; margin: 14mm; }
@media print {
  :root { color-scheme: light; --ink: #1d2530; --muted: #5f6975; --line: #e3e7ec; --gain: #15724f; --loss: #b04330;
    --page: #fff; --card: #fff; --code: #38424e; --badge: #fff; }
  main { max-width: none; padding: 0; }
  section, .tile { padding: 12px 0; border: 0; }
  article, figure, .tile { break-inside: avoid; }
  .scroll { overflow: visible; margin: 0 0 10px; padding: 0; }
  table { font-size: 9px; }
  th, td { padding: 4px 3px; white-space: normal; }
  thead th, th small, td small, small { font-size: 8px; }
  tr > :first-child { position: static; }
  .range { display: none; }
  .figures { grid-template-columns: 1fr 1fr; }
}
"""
