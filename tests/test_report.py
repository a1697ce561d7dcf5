"""The pictures and the page: nothing remote, the same numbers as the summary, and sentences that stay true."""

from __future__ import annotations

import json
import re
import struct
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgewise.report.curves import curves, target
from edgewise.report.look import colours, spread
from edgewise.report.page import write_page
from edgewise.report.picture import draw_accuracy, draw_waste
from edgewise.report.words import premise, sentence, tag, title

HOSTILE = "</script><img src=https://example.org/x onerror=alert(1)>\u202e$x_{\n\ud800"


def row(method: str, seeds: int, ratio: list[float | None] | None, never: int = 0, final: float = 0.4) -> dict[str, Any]:
    return {
        "method": method,
        "seeds": list(range(seeds)),
        "steps": 101.0,
        "responses": 60_123.0,
        "tokens": 421_337.5,
        "seconds": {
            "select_s": 0.41, "signal_s": 6.12, "rollout_s": 61.3, "reward_s": 1.24, "train_s": 44.5, "wall_s": 114.0,
            "cpu_s": 1112.6,
        },
        "mixed_share": 0.3612,
        "all_pass_share": 0.0211,
        "all_fail_share": 0.6177,
        "final": final,
        "best": final + 0.0123,
        "fewer_responses": ratio,
        "fewer_seconds": None if method == "oracle" else ratio,
        "never_reached": never,
        "share_of_oracle": None if ratio is None else 0.44,
    }  # fmt: skip


def comparison(*rows: dict[str, Any], reference: str = "dapo") -> dict[str, Any]:
    """As `Comparison.as_json` gives it; every curve rises straight from .3 at 0 to its final at 60,000 (+ 100 a seed)."""
    lines = [
        {
            "method": r["method"],
            "seed": seed,
            "points": [
                {"step": i, "responses": x, "held_out": 0.3 + (r["final"] - 0.3) * i / 10, "tokens": x, "wall_s": x, "cpu_s": x}
                for i, x in enumerate(np.linspace(0, 60_000 + 100 * seed, 11).astype(int).tolist())
            ],
        }
        for r in rows
        for seed in r["seeds"]
    ]
    targets = {str(seed): r["final"] for r in rows if r["method"] == reference for seed in r["seeds"]}
    return {
        "reference": reference,
        "targets": targets,
        "exact": True,
        "summary": list(rows),
        "premise": {"v_pass_corr": -0.74, "v_mixed_corr": -0.64, "v_mixed_corr_within_kind": 0.01},
        "curves": lines,
    }


def usual(seeds: int = 5) -> dict[str, Any]:
    limits: list[float | None] = [None, None] if seeds == 1 else [1.3, 1.5]
    return comparison(
        row("hive", seeds, [1.4, *limits], final=0.44),
        row("greso", seeds, [0.8, *limits], never=seeds, final=0.38),
        row("dapo", seeds, [1.0, *limits], final=0.4),
        row("oracle", seeds, [2.5, *limits], final=0.5),
    )


CASES = {
    "five seeds": usual(),
    "one seed": usual(1),
    "no oracle": comparison(row("hive", 3, [1.1, 0.9, 1.2], final=0.41), row("dapo", 3, [1.0, 1.0, 1.0])),
    "nobody reached": comparison(row("hive", 5, [0.7, 0.6, 0.8], never=5, final=0.31), row("dapo", 5, [1.0, 1.0, 1.0])),
    "no ratio": comparison(row("hive", 2, None), row("dapo", 2, None)),
    "reference did not run": comparison(row("hive", 2, None), row("greso", 2, None)),
    "reference alone": comparison(row("dapo", 2, [1.0, 1.0, 1.0])),
    "only the start": comparison(row("hive", 1, None, final=0.3), row("dapo", 1, None, final=0.3)),
    "hostile": comparison(row(HOSTILE, 2, [1.4, 1.3, 1.5], final=0.44), row("dapo", 2, [1.0, 1.0, 1.0]))
    | {"title": HOSTILE, "command": ["edgewise", HOSTILE], "versions": {HOSTILE: HOSTILE}},
    "hostile reference": comparison(row("hive", 2, [1.4, 1.3, 1.5]), row(HOSTILE, 2, None), reference=HOSTILE),
    "many methods": comparison(*(row(f"method {i}", 2, [1.0, 0.9, 1.1]) for i in range(15)), row("dapo", 2, [1.0, 1.0, 1.0])),
    "no premise": usual() | {"premise": {}, "exact": False},
}


class Page(HTMLParser):
    """What a browser would find."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.data = ""
        self.style = ""
        self.text = ""
        self.values: dict[str, list[list[float]]] = {}
        self._row = ""
        self._in_row_title = False
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        found = dict(attrs)
        if tag == "th" and found.get("scope") == "row":
            self._in_row_title, self._row = True, ""
        elif tag == "data":
            self.values[self._row][-1].append(float(found["value"] or "nan"))

    def handle_endtag(self, tag: str) -> None:
        if tag == "th" and self._in_row_title:
            self._in_row_title = False
            self.values.setdefault(self._row, []).append([])

    def handle_data(self, data: str) -> None:
        if self.lasttag == "script" and not self.data:
            self.data = data
        elif self.lasttag == "style":
            self.style += data
        else:
            self.text += data
        if self._in_row_title:
            self._row += data


def png_size(path: Path) -> tuple[int, int]:
    head = path.read_bytes()[:24]
    assert head[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", head[16:24])
    return width, height


@pytest.mark.parametrize("name", CASES)
def test_the_page_stands_alone_and_holds_the_input(name: str, tmp_path: Path) -> None:
    path = write_page(CASES[name], tmp_path / "new" / "page.html")
    assert path.stat().st_size < 1_000_000
    page = Page(path.read_text(encoding="utf-8"))
    assert json.loads(page.data) == CASES[name]
    assert page.tags.count("script") == 1
    assert not {"img", "link", "iframe", "object", "embed", "base", "use", "image", "foreignobject"} & set(page.tags)
    names = {attribute for _, attribute, _ in page.attributes}
    assert not {"src", "href", "xlink:href", "srcset", "action", "data", "background"} & names
    assert not [name for name in names if name.startswith("on")]
    assert "url(" not in page.style
    assert "@import" not in page.style
    assert [value for tag, attribute, value in page.attributes if "://" in value] == []
    assert "nan" not in page.text.lower().split()


@pytest.mark.parametrize("name", CASES)
def test_the_pictures_are_png_of_the_promised_size(name: str, tmp_path: Path) -> None:
    assert png_size(draw_accuracy(CASES[name], tmp_path / "new" / "accuracy.png")) == (1200, 700)
    assert png_size(draw_waste(CASES[name], tmp_path / "new" / "waste.png"))[0] == 1200


def test_hostile_texts_stay_texts(tmp_path: Path) -> None:
    text = write_page(CASES["hostile"], tmp_path / "page.html").read_text(encoding="utf-8")
    page = Page(text)
    assert "<img" not in text
    assert text.count("</script>") == 1
    assert page.text.count("</script><img src=https://example.org/x onerror=alert(1)>") >= 5
    assert "\u202e" not in text


def test_the_table_shows_the_numbers_of_the_summary(tmp_path: Path) -> None:
    given = usual()
    page = Page(write_page(given, tmp_path / "page.html").read_text(encoding="utf-8"))
    for own in given["summary"]:
        reached, spent = page.values[own["method"]]
        wanted = [
            5,
            own["final"],
            own["best"],
            *own["fewer_responses"],
            *(own["fewer_seconds"] or []),
            own["never_reached"],
            0.44,
        ]
        assert reached == wanted
        shares = [own["all_fail_share"], own["mixed_share"], own["all_pass_share"]]
        assert spent == [own["steps"], own["responses"], own["tokens"], *shares, *own["seconds"].values()]
    assert "61.8 %" in page.text
    assert "1,112.6" in page.text
    premises = [values[0][0] for name, values in page.values.items() if name.startswith(("V and", "the same"))]
    assert premises == [-0.64, 0.01, -0.74]


def test_numbers_that_json_lacks_become_null(tmp_path: Path) -> None:
    given = usual()
    given["summary"][0]["best"] = float("nan")
    given["summary"][0]["tokens"] = float("inf")
    page = Page(write_page(given, tmp_path / "page.html").read_text(encoding="utf-8"))
    data = json.loads(page.data, parse_constant=pytest.fail)
    assert data["summary"][0]["best"] is None
    assert data["summary"][0]["tokens"] is None


def test_every_picture_has_words_for_those_who_do_not_see_it(tmp_path: Path) -> None:
    text = write_page(usual(), tmp_path / "page.html").read_text(encoding="utf-8")
    assert text.count("<svg") == text.count('role="img"') == text.count("aria-labelledby=") == 2
    for name in re.findall(r'aria-labelledby="(\S+) (\S+)"', text):
        assert all(f'id="{own}"' in text for own in name)
    assert "Dashed line: final accuracy of dapo, 0.400. oracle is the ceiling" in text


# -- sentences ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("own", "wanted"),
    [
        (
            row("hive", 5, [1.4, 1.3, 1.5]),
            "hive needed 1.40× fewer generated responses than dapo to reach dapo's final held-out accuracy of 0.400 "
            "(5 seeds, 95 % interval 1.30–1.50).",
        ),
        (
            row("hive", 5, [0.8, 0.5, 0.9]),
            "hive needed 1.25× as many generated responses as dapo to reach dapo's final held-out accuracy of 0.400 "
            "(5 seeds, 95 % interval 1.11–2.00).",
        ),
        (
            row("hive", 3, [1.05, 0.9, 1.2]),
            "hive needed 1.05× fewer generated responses than dapo to reach dapo's final held-out accuracy of 0.400 "
            "(3 seeds, range 0.90–1.20). The interval includes 1: no clear difference.",
        ),
        (
            row("hive", 1, [1.4, None, None]),
            "hive needed 1.40× fewer generated responses than dapo to reach dapo's final held-out accuracy of 0.400 "
            "(1 seed, so no interval).",
        ),
        (
            row("hive", 5, [0.8, 0.5, 0.9], never=2),
            "hive reached dapo's final held-out accuracy of 0.400 with 3 of 5 seeds only; with the whole budget counted for "
            "the others it needed at least 1.25× as many generated responses as dapo (5 seeds, 95 % interval 1.11–2.00).",
        ),
        (
            row("hive", 5, [0.8, 0.5, 0.9], never=5, final=0.38),
            "hive never reached dapo's final held-out accuracy of 0.400 with any of 5 seeds; it ended at 0.380 after 60,123 "
            "generated responses.",
        ),
        (
            row("hive", 2, None),
            "For hive there is no ratio: dapo's final held-out accuracy of 0.400 was met before any response was spent, or was "
            "no better than the start; it ended at 0.400 after 60,123 generated responses.",
        ),
    ],
)
def test_the_headline_says_what_happened(own: dict[str, Any], wanted: str, tmp_path: Path) -> None:
    given = comparison(own, row("dapo", len(own["seeds"]), [1.0, 1.0, 1.0]))
    assert sentence(own, given) == wanted
    assert wanted in Page(write_page(given, tmp_path / "page.html").read_text(encoding="utf-8")).text


def test_titles_and_tags_by_case() -> None:
    given = usual()
    assert title(given) == "hive needed 1.40× fewer generated responses to reach dapo's final accuracy"
    said = [tag(own, given) for own in given["summary"]]
    assert said == ["0.440, 1.40× fewer", "0.380, never reached the bar", "0.400, sets the bar", "0.500, 2.50× fewer"]
    assert title(CASES["nobody reached"]) == "hive never reached dapo's final accuracy"
    assert title(CASES["no oracle"]).endswith("(no clear difference)")
    assert title(CASES["reference did not run"]) == "hive ended at a held-out accuracy of 0.400"
    assert "as dapo did not run" in sentence(CASES["no ratio"]["summary"][0], CASES["no ratio"] | {"targets": {}})


def test_the_premise_is_read_by_its_sign() -> None:
    def said(mixed: float, passed: float) -> str:
        return " ".join(premise({"premise": {"v_mixed_corr": mixed, "v_pass_corr": passed}}))

    assert "the opposite of what HIVE" in said(-0.64, -0.74)
    assert "High V meant hard" in said(-0.64, -0.74)
    assert "as HIVE's stage 2 assumes" in said(0.5, 0.4)
    assert "High V meant easy" in said(0.5, 0.4)
    assert "next to nothing" in said(0.02, 0.0)
    assert premise({}) == []


# -- lines -------------------------------------------------------------------------------------------------------------


def test_the_mean_line_by_hand() -> None:
    points = {0: [(0, 0.2), (100, 0.4), (200, 0.4)], 1: [(0, 0.2), (50, 0.4), (220, 0.5)]}
    given = {
        "curves": [
            {"method": "hive", "seed": seed, "points": [{"responses": x, "held_out": y} for x, y in own]}
            for seed, own in points.items()
        ],
        "targets": {"0": 0.3, "1": 0.4},
    }
    (curve,) = curves(given)
    assert curve.responses.tolist() == [0, 50, 100, 200, 210]
    assert curve.mean[:2] == pytest.approx([0.2, 0.35])  # at 50: .3 and .4
    assert curve.mean[-1] == pytest.approx(0.45)  # the mean of the two ends
    assert (curve.low[1], curve.high[1]) == pytest.approx((0.3, 0.4))
    assert target(given) == pytest.approx(0.35)
    assert curve.first_reach(0.275) == pytest.approx(25)
    assert curve.first_reach(0.35) == pytest.approx(50)
    assert curve.first_reach(0.2) == 0
    assert curve.first_reach(0.46) is None


def test_a_method_keeps_its_colour_whoever_runs_beside_it() -> None:
    assert colours(["a", "hive", "b"])["hive"] == colours(["hive"])["hive"]
    found = colours(["hive", "greso", "dapo", "uniform", "oracle", *"abcdef"])
    assert len(set(found.values())) == 11


def test_labels_keep_their_distance_and_their_order() -> None:
    wanted = np.random.default_rng(0).normal(0.5, 0.2, size=9).tolist()
    places = np.array(spread(wanted, 0.1, 0.0, 1.0))
    assert np.argsort(places).tolist() == np.argsort(wanted).tolist()
    assert np.diff(np.sort(places)).min() > 0.1 - 1e-9
    assert places.min() >= 0.0
    assert places.max() <= 1.0
    assert np.diff(np.sort(spread([0.5] * 30, 0.1, 0.0, 1.0))) == pytest.approx(1 / 29)
    assert spread([0.2, 0.8], 0.1, 0.0, 1.0) == [0.2, 0.8]


def test_the_report_imports_without_matplotlib() -> None:
    program = "import sys, edgewise.report.page, edgewise.report.picture; print('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout == "False\n"


# -- whatever a name is --------------------------------------------------------------------------------------------------

NAMES = {
    "end of the script": "</script><script>alert(1)</script>",
    "end of the style": "</style><script>alert(1)</script>",
    "an image": "<img src=x onerror=alert(1)>",
    "an attribute": '" onload="alert(1)" x=\'',
    "a comment": "<!-- <script> -->",
    "character data": "]]><script>alert(1)</script><![CDATA[",
    "an entity": "&lt;script&gt;&#60;img&#62;&amp;",
    "svg": "</title></text></svg><svg onload=alert(1)>",
    "separators": "a\u2028b\u2029c\x85d\r\ne",
    "right to left": "\u202egnp.evil\u2066\u200f",
    "a NUL": "a\x00b\x1b[31mc\x07",
    "half a surrogate pair": "a\ud800b\udfff",
    "mathematics": "$\\frac{x}{$_{^",
    "a link": "javascript:alert(1) https://example.org/x",
    "a path": "../../../../tmp/x",
    "ten megabytes": "<script>" * 1_250_000,
}


def whole(name: str) -> dict[str, Any]:
    """A comparison in which everything that can be text is `name`, or has it in it."""
    arms = [row(f"{name} {i}", 2, [1.4, 1.3, 1.5], final=0.44) for i in range(2)] + [row(name, 2, [1.0, 1.0, 1.0])]
    texts = {"title": name, "command": ["edgewise", name], "versions": {name: name}, "settings": {name: {name: [name]}}}
    return comparison(*arms, reference=name) | texts


class Tree(HTMLParser):
    """The elements of a page with the names of their attributes, as they open and close."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=False)
        self.events: list[tuple[str, ...]] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        kept = [f"{name}={value}" if name in ("style", "class", "id", "type") else name for name, value in attrs]
        self.events.append(("<", tag, *kept))

    def handle_endtag(self, tag: str) -> None:
        self.events.append((">", tag))

    def handle_comment(self, data: str) -> None:
        self.events.append(("comment", data))

    def handle_decl(self, decl: str) -> None:
        self.events.append(("declaration", decl))

    def unknown_decl(self, data: str) -> None:
        self.events.append(("unknown", data))

    def handle_pi(self, data: str) -> None:
        self.events.append(("instruction", data))


@pytest.mark.parametrize("name", NAMES)
def test_whatever_a_name_is_the_page_has_the_same_elements(name: str, tmp_path: Path) -> None:
    given = whole(NAMES[name])
    text = write_page(given, tmp_path / "page.html").read_text(encoding="utf-8")
    plain = write_page(whole("harmless"), tmp_path / "plain.html").read_text(encoding="utf-8")
    assert Tree(text).events == Tree(plain).events
    assert len(text) < 1_000_000
    data = text.rpartition('<script type="application/json" id="comparison">')[2].partition("</script>")[0]
    assert not set("<>&\u2028\u2029\x00") & set(data)
    assert data.isascii()
    found = json.loads(data)
    if name == "ten megabytes":
        assert found["title"] == NAMES[name][:10_000] + "… (9,990,000 more characters)"
    else:
        assert found == given
    assert not [c for c in text.replace("\n", "") if not c.isprintable()]


@pytest.mark.parametrize("name", ["mathematics", "a NUL", "half a surrogate pair", "ten megabytes"])
def test_whatever_a_name_is_the_pictures_are_drawn(name: str, tmp_path: Path) -> None:
    given = whole(NAMES[name])
    assert png_size(draw_accuracy(given, tmp_path / "a.png")) == (1200, 700)
    assert png_size(draw_waste(given, tmp_path / "w.png"))[0] == 1200


def test_a_page_of_a_hundred_thousand_prompts_stays_small(tmp_path: Path) -> None:
    """What is too long stays out of the page's data, which say so; figures and pictures are whole."""
    given = usual() | {"prompts": {f"prompt {i}": {"pass_rate": i / 100_000, "text": "x" * 100} for i in range(100_000)}}
    path = write_page(given, tmp_path / "page.html")
    assert path.stat().st_size < 5_500_000
    page = Page(path.read_text(encoding="utf-8"))
    data = json.loads(page.data)
    assert data["summary"] == given["summary"]
    assert "prompts" not in data
    assert list(data["left_out"]) == ["prompts"]
