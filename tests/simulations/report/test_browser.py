"""The page in a real browser."""

from collections.abc import Callable
from pathlib import Path

from PIL import Image

from simulations.report.page import write_report
from tests.simulations.report.pages import BLUE, MAGENTA


def test_a_real_browser_shows_headings_pictures_and_plots_under_the_pages_own_policy(
    run: Path, tmp_path: Path, chromium: Callable[..., str]
) -> None:
    page = write_report(run)
    dom = chromium(page, "--dump-dom")
    headings = ("How well it does", "Training round by round", "Judged: 2-way 5-shot", "Sites", "Settings and how")
    assert all(f">{heading}" in dom for heading in headings)
    chromium(page, f"--screenshot={tmp_path / 'seen.png'}", "--window-size=1000,5000")
    with Image.open(tmp_path / "seen.png") as seen:
        colours = {colour: count for count, colour in seen.convert("RGB").getcolors(1 << 24) or []}
    shown = 4 * 54 * 54  # four pictures of 56 pixels a side with a border of one in two of them
    assert shown <= colours[MAGENTA] <= 4 * 56 * 56
    assert colours[BLUE] > 100


def test_a_phone_can_read_the_page_without_scrolling_sideways(
    run: Path, tmp_path: Path, chromium: Callable[..., str]
) -> None:
    html = write_report(run).read_text(encoding="utf-8")
    policy, head = html.index('<meta http-equiv="Content-Security-Policy"'), html.index('<meta name="viewport"')
    tell = "<script>onload = () => parent.postMessage([innerWidth, document.documentElement.scrollWidth], '*')</script>"
    (tmp_path / "told.html").write_text(html[:policy] + tell + html[head:], encoding="utf-8")
    phone = tmp_path / "phone.html"
    phone.write_text(
        "<script>onmessage = message => document.title = message.data.join()</script>"
        '<iframe src="told.html" style="width: 360px; height: 640px; border: 0"></iframe>'
    )
    assert "<title>360,360</title>" in chromium(phone, "--dump-dom", "--virtual-time-budget=2000")
