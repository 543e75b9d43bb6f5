"""The report page in a real browser: nothing asked of the network, nothing said on the console, and all of it usable
by mouse, by keyboard, in both themes and on a phone."""

import colorsys
import itertools
import re
import shutil
from collections.abc import Callable, Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest

from gistnet.evaluation.probes.span_map import SpanMap
from gistnet.evaluation.records import BaselineName, MetricRecord
from gistnet.report.report import write_comparison, write_report
from gistnet.run_folder import SPAN_MAP_FILE
from tests.report.runs import HOSTILE, long_context_records, prose, records, write_run

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

CHROMIUM = shutil.which("chromium")
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium on this machine")
DOCUMENTS = [prose(0, 0), prose(0, 1), list(HOSTILE * 2)]
Open = Callable[..., Any]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        arguments = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments, timeout=180_000)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_run(tmp_path_factory.mktemp("runs") / "a run", documents=DOCUMENTS)
    write_report(folder)
    return folder


@pytest.fixture
def open_page(browser: Any) -> Iterator[Open]:
    """Opens a file; at the end the page must have said nothing and asked for nothing."""
    said: list[str] = []
    context = browser.new_context(reduced_motion="reduce")

    def open_file(path: Path, *, width: int = 1280, theme: str = "light") -> Any:
        page = context.new_page()
        page.set_default_timeout(120_000)
        page.emulate_media(color_scheme=theme)
        page.set_viewport_size({"width": width, "height": 900})
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: said.append(request.url) if request.url != path.as_uri() else None)
        page.goto(path.as_uri())
        page.wait_for_selector(".plot svg")
        return page

    yield open_file
    context.close()
    assert [line for line in said if not line.startswith("data:,")] == []


def chosen(page: Any) -> str:
    return str(page.locator(".panel h3").first.inner_text())


@needs_browser
def test_figures_stand_beside_their_baselines(run: Path, open_page: Open) -> None:
    page = open_page(run / "report.html")
    sentence = page.locator(".big").inner_text()
    assert re.findall(r"\d+ %", sentence) == ["37 %", "95 %", "33 %", "0 %"]  # 1 − 0.6 / 0.95, and 0.64 for 0.6
    assert "34–40" in sentence
    row = page.locator("#results tbody tr").first.inner_text()
    kl = MetricRecord.model_validate(next(r for r in records(0) if r.positions == "end" and r.name == "kl"))
    for value in (kl.value, *(kl.interval or ()), *kl.baselines.values()):
        assert f"{value:.3f}" in row
    assert {"Minimal pairs", "Attention entropy", "ΔNLL by offset", "Reconstruction by position"} <= {
        text.strip() for text in page.locator("#results h3").all_inner_texts()
    }
    page.locator("#results select").first.select_option("code")
    assert "0.720" in page.locator("#results tbody tr").first.inner_text()  # 1.2 of 0.6


@needs_browser
def test_a_span_opens_by_mouse_and_leads_to_its_neighbours(run: Path, open_page: Open) -> None:
    page = open_page(run / "report.html")
    document = SpanMap.read(run / SPAN_MAP_FILE).documents[0]
    page.locator(".text .span").nth(2).click()
    assert chosen(page) == "Span 3"
    losses = page.locator(".panel tbody tr").first.inner_text()
    for value in document.spans[2].delta_nll.values():
        assert f"{value:.3f}".replace("-", "−") in losses
    assert page.locator(".panel .tokens li").count() == 32
    assert page.locator(".panel .tokens .token").first.inner_text() == document.tokens[4 + 64].replace(" ", "·")
    for name in ("full", "gist", "drop"):
        shown = page.locator(f".panel .predictions .{name} .token").all_inner_texts()
        assert shown == [token.text.replace(" ", "·") for token in document.spans[2].next_tokens[name]]
    near = document.spans[2].nearest[0]
    page.locator(".panel .nearest button").first.click()
    assert chosen(page) == f"Span {near.span + 1}"
    assert page.locator(".document-head h3").inner_text() == f"library/document-{near.document}"
    before = page.locator(".text .span").first.evaluate("node => getComputedStyle(node).backgroundColor")
    page.get_by_text("gist − last token").click()
    after = page.locator(".text .span").first.evaluate("node => getComputedStyle(node).backgroundColor")
    assert before != after


@needs_browser
def test_the_map_is_walked_with_the_keyboard(run: Path, open_page: Open) -> None:
    page = open_page(run / "report.html")
    page.locator(".text .span[tabindex='0']").focus()
    for key in ("ArrowRight", "ArrowRight", "ArrowLeft", "Enter"):
        page.keyboard.press(key)
    assert chosen(page) == "Span 2"
    page.keyboard.press("End")
    assert chosen(page) == "Span 9"  # the panel follows
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Close"
    page.keyboard.press("Escape")
    assert page.locator(".panel.open").count() == 0
    assert page.evaluate("document.activeElement.dataset.span") == "8"  # back where it was
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"
    assert page.locator(".text .span[tabindex='0']").count() == 1


@needs_browser
def test_hostile_text_is_shown_and_does_nothing(run: Path, open_page: Open) -> None:
    page = open_page(run / "report.html")
    page.locator(".overview button").nth(2).click()
    shown = page.locator(".text").inner_text()
    assert "</script><script>window.hacked = 1</script>" in shown
    assert "␛[31m" in shown
    assert r"\u202eright to left\u202c" in shown
    page.locator(".text .span").nth(1).click()
    assert page.evaluate("window.hacked") is None
    assert page.locator("#main img, #main script").count() == 0


@needs_browser
def test_names_are_shown_with_their_control_characters_escaped(tmp_path: Path, open_page: Open) -> None:
    page = open_page(write_report(write_run(tmp_path / "run\x1b[2J\u202e")))
    text = page.locator("body").inner_text()
    assert "run␛[2J\\u202e" in text
    assert not {"\x1b", "\u202e"} & set(page.content() + page.title())


@needs_browser
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_both_themes_fit_a_phone(run: Path, tmp_path: Path, open_page: Open, theme: str) -> None:
    bare = write_run(tmp_path / "bare", evaluated=False)
    for path in (run / "report.html", write_report(bare), write_comparison([run, bare], tmp_path / "both.html")):
        page = open_page(path, width=390, theme=theme)
        assert page.evaluate("document.documentElement.scrollWidth") == 390
        background = page.evaluate("getComputedStyle(document.body).backgroundColor")
        lightness = colorsys.rgb_to_hls(*(int(part) / 255 for part in re.findall(r"\d+", background)[:3]))[1]
        assert (lightness < 0.5) == (theme == "dark")
    page.locator("#theme").click()
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != background


@needs_browser
def test_a_chosen_span_stays_in_sight_on_a_phone(run: Path, open_page: Open) -> None:
    page = open_page(run / "report.html", width=390)
    page.locator(".text .span").nth(5).click()
    page.keyboard.press("ArrowRight")
    span, panel = page.locator(".span.chosen").bounding_box(), page.locator(".panel").bounding_box()
    assert 0 < span["y"] < panel["y"]
    assert panel["height"] <= 0.63 * 900


@needs_browser
def test_what_was_not_measured_names_its_command(tmp_path: Path, open_page: Open) -> None:
    page = open_page(write_report(write_run(tmp_path / "bare", evaluated=False)))
    for place in ("#results", "#map", "#overview"):
        assert page.locator(f"{place} .missing code").inner_text() == f"gistnet evaluate {tmp_path / 'bare'}"


@needs_browser
def test_a_release_names_no_command_that_would_add_to_it(tmp_path: Path, open_page: Open) -> None:
    folder = write_run(tmp_path / "released", evaluated=False)
    (folder / "held-out").mkdir()
    assert open_page(write_report(folder)).locator(".missing").count() == 0


@needs_browser
def test_each_stage_has_curves_of_its_own(run: Path, open_page: Open) -> None:
    page = open_page(run / "report.html")
    kl = page.locator("#curves figure").first.locator(".key li").first
    assert kl.inner_text().split() == ["gist", "0.669"]  # 0.72 − 0.08 (1 − e⁻¹), at the end of the first
    page.locator("#curves").get_by_text("3 mixed").click()
    assert kl.inner_text().split() == ["gist", "0.844"]  # 0.92 − 0.08 (1 − e⁻³)
    assert page.locator("#curves h3:visible").all_inner_texts()[-1] == "Training loss"
    page.get_by_text("More curves").click()
    sync_api.expect(page.locator("#curves").get_by_text("Learning rate", exact=True)).to_be_visible()


@needs_browser
def test_no_table_is_cut_on_a_desk_and_no_text_is_small_on_a_phone(run: Path, open_page: Open) -> None:
    for width in (1440, 1024):
        assert open_page(run / "report.html", width=width).locator(".scroll.cut").count() == 0
    page = open_page(run / "report.html", width=390)
    page.locator(".text .span").nth(2).click()
    small = page.evaluate(
        """() => [...document.querySelectorAll("body *")]
            .filter((node) => [...node.childNodes].some((child) => child.nodeType === 3 && child.data.trim()))
            .filter((node) => node.getClientRects().length && parseFloat(getComputedStyle(node).fontSize) < 14)
            .map((node) => node.textContent)"""
    )
    assert small == []


@needs_browser
def test_a_large_map_is_walked_through_by_keyboard(tmp_path: Path, open_page: Open) -> None:
    run = write_run(tmp_path / "large", documents=[prose(0, n, spans=127) for n in range(16)])  # of 4,096 tokens
    page = open_page(write_report(run))
    assert page.locator(".cells i").count() == 16 * 127
    page.locator(".text .span").nth(60).click()
    page.evaluate(
        """() => {
            const right = () => new KeyboardEvent("keydown", { key: "ArrowRight", bubbles: true });
            for (let n = 0; n < 20; n++) document.activeElement.dispatchEvent(right());
        }"""
    )
    assert chosen(page) == "Span 81"


@needs_browser
def test_compared_runs_are_overlaid(run: Path, tmp_path: Path, open_page: Open) -> None:
    other = write_run(tmp_path / "other", seed=1)
    page = open_page(write_comparison([run, other], tmp_path / "both.html"))
    assert page.locator("h1").inner_text() == "2 runs compared"
    assert page.locator("#overview tbody tr").nth(3).inner_text().split()[:1] == ["KL"]
    assert page.locator("#curves figure").first.locator(".key li").all_inner_texts()[0].startswith("a run")
    assert "narrative.train.optimiser.learning_rate" in page.locator("#settings").inner_text()
    # Dropping the other's spans costs 5 % more: they are not the same spans.
    assert "different spans" in page.locator("#overview .warning").inner_text()
    again = write_run(tmp_path / "again", documents=DOCUMENTS)
    assert open_page(write_comparison([run, again], tmp_path / "same.html")).locator(".warning").count() == 0


@needs_browser
def test_long_contexts_are_drawn_by_budget_beside_their_baselines(tmp_path: Path, open_page: Open) -> None:
    page = open_page(write_report(write_run(tmp_path / "long", more=long_context_records())))
    section = page.locator("#long-context")
    assert {"NLL by budget", "Recovered by budget", "Gain over truncating, by kind of token", "Retrieval"} <= {
        text.strip() for text in section.locator("h3").all_inner_texts()
    }
    nll = section.locator("figure").first
    assert nll.locator(".plot text.tick").all_text_contents()[-5:] == ["1/2", "1/4", "1/8", "1/16", "1/32"]
    assert nll.locator(".plot path.series").count() == 5 and nll.locator(".plot path.band").count() == 1
    nll.locator("summary").click()
    sync_api.expect(nll.locator("tbody tr")).to_have_count(5)  # the table is written when it is first opened
    rows = [row.split() for row in nll.locator("tbody tr").all_inner_texts()]
    # At 1/8 with positions "end", which the run was trained with: 3.08 truncated, and 0.013 below it.
    assert rows[2] == ["1/8", "3.0670", "2.9500", "3.0800", "3.1100", "3.4800"]
    recovered = section.locator("figure").nth(1)
    recovered.locator("summary").click()
    sync_api.expect(recovered.locator("tbody tr")).to_have_count(4)  # nothing was lost at 1/2
    assert "0.1000" in recovered.locator("tbody tr").nth(1).inner_text()  # 0.013 of 0.13
    assert section.locator("figure.dots").last.locator(".value b").first.inner_text() == "0.275"
    section.get_by_text("center", exact=True).click()
    nll.locator("summary").click()
    sync_api.expect(nll.locator("tbody tr").nth(2)).to_contain_text("3.0700")
    assert section.get_by_text("Multiple choice", exact=True).count() == 0  # asked under "end" alone


@needs_browser
def test_without_long_contexts_there_is_no_such_section(run: Path, open_page: Open) -> None:
    assert open_page(run / "report.html").locator("#long-context").count() == 0


@needs_browser
def test_long_contexts_fit_a_phone(tmp_path: Path, open_page: Open) -> None:
    page = open_page(write_report(write_run(tmp_path / "long", more=long_context_records())), width=390)
    assert page.evaluate("document.documentElement.scrollWidth") == 390


# Colours --------------------------------------------------------------------------------------------------------------

# How the cones of other eyes mix linear RGB, from Machado, Oliveira & Fernandes (2009), severity 1.0.
VISION = {
    "any": np.eye(3),
    "protan": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deutan": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritan": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}


def linear(colour: str) -> np.ndarray:
    encoded = np.array([int(colour[at : at + 2], 16) for at in (1, 3, 5)]) / 255
    return np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)


def oklab(rgb: np.ndarray) -> np.ndarray:
    """Ottosson (2020): a space in which distance is about what is seen."""
    to_cones = [[0.4122, 0.5363, 0.0514], [0.2119, 0.6807, 0.1074], [0.0883, 0.2817, 0.6300]]
    to_lab = [[0.2105, 0.7936, -0.0041], [1.9780, -2.4286, 0.4506], [0.0259, 0.7828, -0.8087]]
    return np.array(to_lab) @ np.cbrt(np.array(to_cones) @ np.clip(rgb, 0, 1))


def contrast(one: str, other: str) -> float:
    """WCAG 2.2: (L1 + 0.05) / (L2 + 0.05)."""
    dark, light = sorted(float(linear(colour) @ [0.2126, 0.7152, 0.0722]) for colour in (one, other))
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_series_can_be_told_apart_and_seen(theme: int) -> None:
    style = files("gistnet.report").joinpath("page", "style.css").read_text(encoding="utf-8")
    pairs = re.findall(r"--([\w-]+): light-dark\((#\w{6}), (#\w{6})\)", style)
    colours = {name: values[theme] for name, *values in pairs}
    looks = files("gistnet.report").joinpath("page", "looks.js").read_text(encoding="utf-8")
    listed = re.search(r"const LOOKS = \{\n(.*?)\n\};", looks, re.DOTALL)
    assert listed is not None
    borrowed = dict(re.findall(r"^  (\w+): \{(.*)\},$", listed[1], re.MULTILINE))
    assert borrowed.keys() == set(get_args(BaselineName))
    # `full` is never in a chart with those; the others that are left have a colour of another series.
    series = [name for name, look in borrowed.items() if "colour:" not in look and name != "full"]
    assert len(series) >= 6
    for eye in VISION.values():
        seen = {name: oklab(np.array(eye) @ linear(colours[name])) for name in series}
        assert min(np.linalg.norm(seen[a] - seen[b]) for a, b in itertools.combinations(series, 2)) > 0.09
    for ground in ("page", "surface"):
        assert min(contrast(colours[name], colours[ground]) for name in series) > 3  # WCAG 1.4.11, graphics
        assert min(contrast(colours[name], colours[ground]) for name in ("ink", "muted")) > 4.5  # 1.4.3, text
    for shade in ("cost", "gain"):
        assert contrast(colours["ink"], colours[shade]) > 4.5  # text on the deepest shade
