"""The page of a report in a real browser: Debian's chromium, driven headless."""

import shutil

import pytest

from pgolf.report.report import main

from .fake_runs import fake_config, fake_run

CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed (Debian: apt-get install chromium)")
NAMES = [f"recipe{number}" for number in range(10)]


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """The page about thirty runs: ten recipes, three seeds."""
    folder = tmp_path_factory.mktemp("runs")
    for place, name in enumerate(NAMES):
        for seed in (42, 0, 1234):
            config = fake_config(seed, name=name, optim={"matrix": {"lr": 0.02 + place / 1000}})
            bpb = 1.2 + ((7 * place) % 10) / 100 + seed / 1e6
            fake_run(folder / f"{name}-seed{seed}", seed=seed, bpb=bpb, name=name, config=config)
    main([str(folder), "--out", str(folder / "report")])
    return folder / "report" / "report.html"


@pytest.fixture(scope="module")
def opened(report):
    """(page, what the console and the network complained about)."""
    api = pytest.importorskip("playwright.sync_api")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1300, "height": 1000})
        complaints, requested = [], []
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on(
            "request",
            lambda request: None if request.url.startswith(("file:", "data:")) else complaints.append(request.url),
        )
        page.goto(report.as_uri())
        complaints += [url for url in requested if not url.startswith(("file:", "data:"))]
        yield page, complaints
        browser.close()


def column(page, title: str, place: int) -> list[str]:
    """The texts of one column of the table under a heading."""
    rows = page.locator(f"h3:text-is('{title}') ~ .scroll >> nth=0").locator("tbody tr")
    return [rows.nth(row).locator("td").nth(place).inner_text() for row in range(rows.count())]


def test_thirty_runs_stay_below_three_megabytes(report):
    assert report.stat().st_size < 3_000_000


def test_it_renders_without_a_complaint(opened):
    page, complaints = opened
    assert page.title().startswith("pgolf")
    assert page.locator("svg").count() == 1
    widths = page.evaluate("Array.from(document.images).map(image => image.complete && image.naturalWidth)")
    assert widths and all(widths)
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    assert complaints == []


def test_a_click_on_a_heading_sorts_up_and_down(opened):
    page, complaints = opened
    heading = page.locator("th", has_text="final BPB").first
    title = "Runs"
    place = heading.evaluate("cell => cell.cellIndex")
    before = column(page, title, place)
    heading.click()
    assert column(page, title, place) == sorted(before, key=float) != before
    heading.click()
    assert column(page, title, place) == sorted(before, key=float, reverse=True)
    assert heading.get_attribute("aria-sort") == "descending"
    assert complaints == []


def test_a_box_hides_the_lines_of_its_run_also_after_sorting(opened):
    page, complaints = opened
    row = page.locator("tr", has=page.locator("td", has_text="recipe3-seed0"))
    number = row.locator("input.run").get_attribute("value")
    lines = page.locator(f'[id$="-run-{number}"]')
    assert lines.count() == 3 and all(lines.nth(place).is_visible() for place in range(3))
    row.locator("input.run").uncheck()
    assert not any(lines.nth(place).is_visible() for place in range(3))
    others = page.locator('[id^="step-run-"]')
    assert sum(others.nth(place).is_visible() for place in range(others.count())) == 29
    page.locator("button", has_text="show none").click()
    assert page.locator('[id^="step-run-"]:visible').count() == 0
    page.locator("button", has_text="show all").click()
    assert page.locator('[id^="step-run-"]:visible').count() == 30
    assert complaints == []
