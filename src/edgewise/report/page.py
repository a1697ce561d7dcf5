"""One HTML file that opens from disk: the headline, the pictures, every figure, and the data. No script, nothing remote."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from edgewise.report.curves import curves, target
from edgewise.report.look import CEILING, ORACLE, clean
from edgewise.report.svg import accuracy_svg, variables, waste_svg
from edgewise.report.words import ceiling, kind, main_row, premise, sentence, title

Row = Mapping[str, Any]

_MOST_TEXT = 10_000
"""Characters of one text in the data of a page."""
_MOST_DATA = 5_000_000
"""Bytes of the data of a page. What is longer stands in comparison.json."""
_SECONDS = {
    "select_s": "select",
    "signal_s": "verify",
    "rollout_s": "rollout",
    "reward_s": "score",
    "train_s": "train",
    "wall_s": "wall clock",
    "cpu_s": "CPU",
}
_PREMISE = {
    "v_mixed_corr": "V and the probability that the group is mixed",
    "v_mixed_corr_within_kind": "the same within one kind of task, median over kinds",
    "v_pass_corr": "V and the pass rate",
}


def write_page(comparison: Mapping[str, Any], path: Path) -> Path:
    """Write the report of a comparison as one self-contained HTML file.

    Args:
        comparison: What `edgewise.lab.compare.Comparison.as_json` returns. It may also hold a "title" (the kind of run), the
            "command" (text or a list of words) and "versions" (a mapping). All of it is embedded; NaN and infinity become null.
        path: The file to write.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(_page(comparison), encoding="utf-8")
    return path


def embedded(comparison: Mapping[str, Any]) -> str:
    """The comparison as JSON that cannot end the element it stands in; without what would make the page too large."""
    plain = _finite(comparison)
    text = json.dumps(plain, separators=(",", ":"), allow_nan=False)
    if len(text) > _MOST_DATA:
        sizes = {name: len(json.dumps(value)) for name, value in plain.items()}
        long = [name for name, size in sizes.items() if size > _MOST_DATA // 20]
        kept = {name: value for name, value in plain.items() if name not in long}
        text = json.dumps(kept | {"left_out": {name: f"{sizes[name]:,} bytes" for name in long}}, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {_finite(str(name)): _finite(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    if isinstance(value, str) and len(value) > _MOST_TEXT:
        return f"{value[:_MOST_TEXT]}… ({len(value) - _MOST_TEXT:,} more characters)"
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _page(comparison: Mapping[str, Any]) -> str:
    light, dark = variables(comparison)
    style = _STYLE.replace("/*light*/", light).replace("/*dark*/", dark)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{_html(title(comparison))} · edgewise</title>
<style>{style}</style>
</head>
<body>
<main>
{_head(comparison)}
<figure>
<h2>Accuracy against generated responses</h2>
<div class="wide">{accuracy_svg(comparison)}</div>
<figcaption>{_accuracy_caption(comparison)}</figcaption>
</figure>
<figure>
<h2>What the generated groups were good for</h2>
<div class="wide">{waste_svg(comparison)}</div>
<figcaption>Share of all generated groups. Only a mixed group, one that holds a pass and a fail, teaches; the others were
generated in vain.</figcaption>
</figure>
{_tables(comparison)}
{_premise(comparison)}
{_definitions(comparison)}
{_origin(comparison)}
</main>
<script type="application/json" id="comparison">{embedded(comparison)}</script>
</body>
</html>
"""


def _head(comparison: Mapping[str, Any]) -> str:
    first = main_row(comparison)
    rows = [row for row in comparison["summary"] if row is not first and row["method"] != comparison["reference"]]
    others = "".join(f"<li>{_html(sentence(row, comparison))}</li>" for row in rows)
    told = ceiling(comparison)
    others += f"<li>{_html(told, 10_000)}</li>" if told else ""
    return f"""<header>
<p class="kind">edgewise · {_html(kind(comparison))}</p>
<h1>{_html(sentence(first, comparison) if first else title(comparison))}</h1>
{f"<ul>{others}</ul>" if others else ""}
</header>"""


def _accuracy_caption(comparison: Mapping[str, Any]) -> str:
    drawn, bar = curves(comparison), target(comparison)
    parts = [f"{kind(comparison)[:1].upper()}{kind(comparison)[1:]}."]
    counts = sorted({curve.seeds for curve in drawn})
    if counts == [1]:
        parts.append("One seed a method (thin lines).")
    elif counts:
        many = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
        parts.append(f"Lines are means over {many} seeds; bands reach from the lowest seed to the highest.")
    if bar is not None:
        parts.append(
            f"Dashed: the final accuracy of {clean(comparison['reference'])}, mean over its seeds; a dot marks where a "
            "method's mean first meets it. The ratios beside the lines are paired seed by seed and may differ a little from it."
        )
    if any(curve.method == ORACLE for curve in drawn):
        parts.append(f"{ORACLE} is the {CEILING}.")
    return _html(" ".join(parts), 2_000)


def _tables(comparison: Mapping[str, Any]) -> str:
    reference = clean(comparison["reference"])
    reached = _table(
        "What it reached",
        ["method", "seeds", "final accuracy", "best accuracy", f"fewer responses to {reference}'s final", "fewer seconds to it",
         "seeds that never reached it", "share of the oracle's saving"],
        [
            [
                _html(row["method"]),
                _number(len(row["seeds"]), "d"),
                _number(row["final"], ".3f"),
                _number(row["best"], ".3f"),
                _interval(row["fewer_responses"], row["never_reached"]),
                _interval(row["fewer_seconds"], row["never_reached"]),
                _number(row["never_reached"], "d"),
                _number(row["share_of_oracle"], ".0%"),
            ]
            for row in comparison["summary"]
        ],
    )  # fmt: skip
    spent = _table(
        "What it spent (mean over seeds; times in seconds)",
        ["method", "steps", "generated responses", "tokens", "all fail", "mixed", "all pass",
         *_SECONDS.values()],
        [
            [
                _html(row["method"]),
                _number(row["steps"], ",.0f"),
                _number(row["responses"], ",.0f"),
                _number(row["tokens"], ",.0f"),
                *(_number(row[name], ".1%") for name in ("all_fail_share", "mixed_share", "all_pass_share")),
                *(_number(row["seconds"][name], ",.1f") for name in _SECONDS),
            ]
            for row in comparison["summary"]
        ],
    )  # fmt: skip
    return f"<section><h2>All figures</h2>{reached}{spent}</section>"


def _table(caption: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """`rows` hold HTML, the first cell of each names the row."""
    named = f"<caption>{_html(caption)}</caption>" if caption else ""
    titles = "".join(f'<th scope="col">{_html(text)}</th>' for text in header)
    body = "".join(f'<tr><th scope="row">{row[0]}</th>{"".join(f"<td>{cell}</td>" for cell in row[1:])}</tr>' for row in rows)
    return f'<div class="wide"><table>{named}<thead><tr>{titles}</tr></thead><tbody>{body}</tbody></table></div>'


def _premise(comparison: Mapping[str, Any]) -> str:
    found: Mapping[str, float] = comparison.get("premise") or {}
    if not found:
        return ""
    rows = [[_html(words), _number(found.get(name), "+.2f")] for name, words in _PREMISE.items()]
    said = f"<p>{_html(' '.join(premise(comparison)), 2_000)}</p>"
    table = _table("", ["Spearman rank correlation of", "mean over evaluations"], rows)
    return f"""<section class="narrow"><h2>Does prompt entropy find the learning edge here?</h2>
<p>HIVE's second stage prefers prompts of high entropy V. That pays where high V means a group of mixed results.</p>
{table}{said}</section>"""


def _definitions(comparison: Mapping[str, Any]) -> str:
    reference = clean(comparison["reference"])
    how = (
        "the exact probability of the right answer on held-out prompts, from one teacher-forced pass, so without sampling noise"
        if comparison.get("exact")
        else "share of held-out prompts answered rightly, one answer without sampling each"
    )
    terms = {
        "generated responses": "every rollout the policy produced, also those of groups that were thrown away.",
        "held-out accuracy": f"{how}; mean over prompts. Final: at the end of the budget. Best: of all evaluations.",
        "fewer responses": (
            f"responses that {reference} needed to reach its own final accuracy, divided by what the method needed to reach "
            "the same accuracy, linear between evaluations. Seeds are paired, the ratio is their geometric mean, in brackets "
            "the 95 % bootstrap interval over pairs (up to three pairs: the range). Above 1 the method needed fewer. A seed "
            "that never got there counts with its whole budget; the ratio then is an upper bound, marked ≤."
        ),
        "fewer seconds": "the same in CPU seconds, without evaluation. None for the oracle: its time is that of its knowledge.",
        "mixed, all fail, all pass": "shares of generated groups, by their results. Only mixed groups carry a gradient.",
        "share of the oracle's saving": "with a ratio s of fewer responses: (1 − 1/s) / (1 − 1/s of the oracle).",
        "select, verify, rollout, score, train": (
            "seconds for choosing and bookkeeping, for the signals a method asks the model for, for generation, for rewards, "
            "and for everything else of a step. Sums over the run, mean over seeds."
        ),
    }
    items = "".join(f"<dt>{_html(term)}</dt><dd>{_html(text, 2_000)}</dd>" for term, text in terms.items())
    return f'<section class="narrow"><h2>How the figures are defined</h2><dl>{items}</dl></section>'


def _origin(comparison: Mapping[str, Any]) -> str:
    command, versions = comparison.get("command"), comparison.get("versions")
    parts = []
    if command:
        words = command if isinstance(command, str) else shlex.join(str(word) for word in command)
        parts.append(f"<pre>{_html(words, 10_000)}</pre>")
    if versions:
        parts.append(f"<p>{_html(' · '.join(f'{name} {version}' for name, version in versions.items()))}</p>")
    parts.append("<p>The data behind this page stands in its last element, <code>#comparison</code>, as JSON.</p>")
    return f'<section class="narrow"><h2>Where it comes from</h2>{"".join(parts)}</section>'


def _number(value: float | None, form: str) -> str:
    """The value as people read it, beside the value as it is."""
    if value is None or not math.isfinite(value):
        return "–"
    shown = f"{value:{form}}".replace("%", " %").replace("-", "−")
    return f'<data value="{value!r}">{shown}</data>'


def _interval(values: Sequence[float | None] | None, never: int) -> str:
    if values is None or values[0] is None:
        return "–"
    ratio = f"{'≤ ' if never else ''}{_number(values[0], '.2f')}×"
    if values[1] is None or values[2] is None:
        return ratio
    return f"{ratio} <small>[{_number(values[1], '.2f')}, {_number(values[2], '.2f')}]</small>"


def _html(text: object, most: int = 1_000) -> str:
    return escape(clean(text, most))


_STYLE = """
:root{color-scheme:light dark;--page:#fff;--ink:#1c1c1e;--soft:#5f6368;--faint:#e3e5e8;--panel:#f6f7f8;/*light*/}
@media screen and (prefers-color-scheme:dark){
:root{--page:#141517;--ink:#ececee;--soft:#a6abb2;--faint:#2f3237;--panel:#1d1f22;/*dark*/}}
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--ink);font:16px/1.55 system-ui,"Segoe UI",Roboto,Helvetica,Arial,sans-serif}
main{max-width:1100px;margin:0 auto;padding:40px 28px 64px}
h1{font-size:clamp(1.3rem,3vw,1.75rem);line-height:1.3;font-weight:650;margin:.35em 0 .6em;letter-spacing:-.008em;
max-width:30em;text-wrap:pretty;overflow-wrap:anywhere}
h2{font-size:1.2rem;margin:0 0 .7em}
header{margin-bottom:40px}
header p,header li,.narrow p,.narrow dl{max-width:46em;overflow-wrap:anywhere}
header ul{padding-left:1.2em;color:var(--soft)}
header li{margin:.25em 0}
.kind{color:var(--soft);margin:0;font-size:.95rem}
figure,section{margin:0 0 48px}
figcaption{color:var(--soft);font-size:.9rem;margin-top:10px;max-width:56em}
.wide{overflow-x:auto}
svg{display:block;width:100%;min-width:640px;height:auto;font-family:inherit}
text{fill:var(--soft);font-size:13px}
.name{font-size:13.5px}.mid{text-anchor:middle}.end{text-anchor:end}
.label{font-size:15px;font-weight:650}.tag{font-size:12.5px}.rowname{font-size:14.5px;fill:var(--ink)}
.share{font-size:13.5px}.strong{font-weight:650}
.barname{fill:var(--ink);font-size:12.5px;paint-order:stroke;stroke:var(--page);stroke-width:4px;stroke-linejoin:round}
.grid{stroke:var(--faint);fill:none}.axis{stroke:var(--soft);fill:none}
.line{fill:none;stroke-width:2.6;stroke-linejoin:round;stroke-linecap:round}.thin{stroke-width:1.5}
.dashed{stroke-dasharray:7 5;stroke-linecap:butt}
.band{opacity:.15}.bar{stroke:var(--ink);stroke-width:1.2;stroke-dasharray:3 3;fill:none}
.drop{stroke-width:1.2;opacity:.7;fill:none}.dot{stroke:var(--page);stroke-width:1.5}
.leader{fill:none;stroke-dasharray:1 2;opacity:.7}
table{border-collapse:collapse;font-size:.86rem;font-variant-numeric:tabular-nums;margin-bottom:24px;min-width:60%}
caption{text-align:left;font-weight:600;padding-bottom:6px}
th,td{padding:6px 10px;text-align:right;border-bottom:1px solid var(--faint);vertical-align:bottom}
td{white-space:nowrap}
thead th{color:var(--soft);font-weight:500;line-height:1.3;border-bottom-color:var(--soft)}
th:first-child{text-align:left;padding-left:0;max-width:22em;overflow-wrap:break-word}
tbody th{font-weight:600}
small{color:var(--soft);font-size:inherit}
.narrow tbody th{font-weight:400}
dt{font-weight:600;margin-top:.8em}dd{margin:0;color:var(--soft)}
pre{background:var(--panel);padding:12px 14px;border-radius:6px;white-space:pre-wrap;overflow-wrap:anywhere;font-size:.88rem}
@media print{
@page{margin:14mm}
body{font-size:10.5pt}main{max-width:none;padding:0}
figure,table,.narrow{break-inside:avoid}h2{break-after:avoid}
.wide{overflow:visible}svg{min-width:0}table{font-size:7.6pt}th,td{padding:3px 5px}
svg,pre{print-color-adjust:exact;-webkit-print-color-adjust:exact}}
"""
