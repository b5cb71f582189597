"""The report page: one file that says what the report says, in a real browser too."""

import base64
import dataclasses
import io
import json
import os
import re
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import peers
import pytest
from PIL import Image

from zoo import cli
from zoo.reports.page import write_page
from zoo.reports.sections import Curve, Figure, Gallery, Numbers, Run, Table
from zoo.tasks import classification

EVIL = "<script>document.title='hit'</script>&\"'"


def make_run(folder, name="cat"):
    folder.mkdir(parents=True)
    scores = {"precision": 0.5, "recall": 0.25, "f1-score": 1 / 3, "support": 4.0}
    report = {
        "status": "finished", "platform": "cpu", "parameters": 1234, "steps": 20, "epochs": 1.5,
        "train_seconds": 3.2, "compile_seconds": 1.0, "examples_per_second": 10.0,
        "metrics": {"test": {"loss": 1.25, "accuracy": 0.5}}, "best": {"step": 10, "loss": 1.0},
        "confusion_matrix": [[4]],
        "classification_report": {name: scores, "accuracy": 0.5, "macro avg": scores},
        "mistakes": [{"index": 3, "label": name, "predicted": "dog", "probability": 0.987}],
        "parameter_table": [["fc", "kernel (3, 4)", 12]],
        "environment": {"jax": "0.10", "processor": name},
    }  # fmt: skip
    (folder / "report.json").write_text(json.dumps(report))
    (folder / "config.json").write_text(
        json.dumps({"task": {"name": "classification"}, "data": {"path": name}})
    )
    (folder / "metrics.jsonl").write_text('{"split": "validation", "step": 2, "loss": 1.0}\n')
    (folder / "mistakes").mkdir()
    wide = np.zeros((60, 1600, 3), np.uint8)
    for file in ("curves.png", "confusion_matrix.png", "mistakes/0.png"):
        Image.fromarray(wide).save(folder / file)
    return folder


class Page(HTMLParser):
    """Collects what a page shows, and every address that it names."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.texts, self.addresses = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.addresses += [v for k, v in attributes if k in ("src", "href", "srcset", "action")]

    def handle_data(self, data):
        self.texts.append(data.strip())


def as_run(folder, name, *sections):
    report = json.loads((folder / "report.json").read_text())
    return Run(
        name, folder, report, sections or tuple(classification.WING.sections(report, folder))
    )


def written(tmp_path, name="cat"):
    run = as_run(make_run(tmp_path / "run", name), name)
    write_page(tmp_path / "report.html", [run])
    return (tmp_path / "report.html").read_text(encoding="utf-8")


def test_it_says_what_the_report_says(tmp_path):
    page = Page(written(tmp_path))
    shown = page.texts
    assert shown[shown.index("test accuracy") + 1] == "0.5000"
    assert shown[shown.index("parameters") + 1] == "1,234"
    row = len(shown) - 1 - shown[::-1].index("0.333")
    cells = [text for text in shown[row - 8 : row + 3] if text]
    assert cells[-5:] == ["cat", "0.500", "0.250", "0.333", "4"]
    assert "macro avg" not in shown
    assert "dog 98.7%, is cat" in shown
    assert "kernel (3, 4)" in shown


def test_it_needs_nothing_from_elsewhere_and_runs_nothing(tmp_path):
    text = written(tmp_path)
    page = Page(text)
    assert "script" not in page.tags
    assert "link" not in page.tags
    assert page.addresses
    assert all(address.startswith("data:image/png;base64,") for address in page.addresses)
    assert "@import" not in text
    assert "url(" not in text


def test_everything_is_escaped(tmp_path):
    text = written(tmp_path, EVIL.replace("/", "-"))
    assert "script" not in Page(text).tags
    assert "&lt;script&gt;" in text


def browser():
    """The command of headless Chromium; where there is none the test skips, in CI it fails."""
    found = shutil.which("chromium") or shutil.which("chromium-browser")
    if not found:
        peers.absent(
            "Chromium is not installed: `apt-get install chromium`, or run ./test.sh as root"
        )
    return found


def in_browser(folder, *options):
    """Opens the page, with the script that tells its sizes, and returns the rendered document."""
    command = [
        browser(), "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic",
        "--no-first-run", "--disable-background-networking", "--disable-component-update",
        "--disable-sync", "--disable-dev-shm-usage", f"--user-data-dir={folder / 'profile'}",
        *options,
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return done.stdout


MEASURE = """<script>addEventListener('load', () => {
  const style = getComputedStyle(document.body);
  const broken = [...document.images].filter(image => !image.naturalWidth).length;
  const sizes = {page: document.documentElement.scrollWidth, window: innerWidth,
    back: style.backgroundColor, front: style.color, broken};
  document.body.insertAdjacentHTML('beforeend', '<pre id=m>' + JSON.stringify(sizes) + '</pre>');
});</script>"""


@pytest.mark.parametrize("dark", [False, True])
def test_a_browser_shows_it_in_a_narrow_window_in_light_and_dark(tmp_path, dark):
    text = written(tmp_path, EVIL.replace("/", "-"))
    # Chromium's windows are 500 pixels wide at least: a frame is as narrow as a phone.
    (tmp_path / "page.html").write_text(text.replace("</body>", MEASURE + "</body>"))
    frame = '<iframe id=f src="page.html" width="360" height="800"></iframe>'
    copy = """<script>f.onload = () => setTimeout(() => {
      document.body.append(f.contentDocument.getElementById('m').textContent);
      document.title += f.contentDocument.title == 'hit' ? 'hit' : 'safe'; }, 300);</script>"""
    (tmp_path / "frame.html").write_text(f"<title></title><body>{frame}{copy}</body>")
    document = in_browser(
        tmp_path, "--allow-file-access-from-files", "--virtual-time-budget=3000", "--dump-dom",
        *(("--force-dark-mode", "--blink-settings=preferredColorScheme=0") if dark else ()),
        f"file://{tmp_path / 'frame.html'}",
    )  # fmt: skip
    found = re.search(r"\{.*?\}", document[document.index("</script>") :])
    assert found, document
    measured = json.loads(found[0].replace("&quot;", '"'))
    assert measured["broken"] == 0
    assert measured["window"] == 360
    assert measured["page"] <= 360, "something is wider than the window"
    dark_back = sum(map(int, re.findall(r"\d+", measured["back"])[:3])) < 3 * 100
    light_front = sum(map(int, re.findall(r"\d+", measured["front"])[:3])) > 3 * 150
    assert (dark_back, light_front) == (dark, dark)
    assert "<title>safe</title>" in document


def test_several_runs_are_side_by_side(tmp_path):
    runs = [make_run(tmp_path / name, name) for name in ("cat", "cow")]
    out = tmp_path / "both.html"
    cli.main(["report", *map(str, runs), "--out", str(out)])
    page = Page(out.read_text(encoding="utf-8"))
    begin = page.texts.index("Side by side")
    cells = [text for text in page.texts[begin + 1 :] if text]
    assert cells[:5] == ["cat", "cow", "test loss", "1.2500", "1.2500"]


def test_sections_of_any_task_are_shown_in_their_order(tmp_path):
    folder = make_run(tmp_path / "run")
    sections = (
        Table("Notes", ("what", "said"), (("one", "long text"), ("two", "")), prose=("said",)),
        Numbers((("wells drilled", "7"),)),
        Curve("Depth over time", "days", "metres", (1.0, 2.5, 4.0)),
        Gallery("Cores", (("mistakes/0.png", "sand"), ("confusion_matrix.png", "clay"))),
        Figure("Map", "mistakes/0.png", "pixels"),
    )
    write_page(tmp_path / "report.html", [as_run(folder, "wells", *sections)])
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    titles = ["wells drilled", "Curves", "Notes", "Depth over time", "Cores", "sand", "clay", "Map"]
    shown = [found for found in page.texts if found in titles]
    assert shown == titles
    assert page.texts[page.texts.index("wells drilled") + 1] == "7"
    # The curves, a curve of the page's own, two cores and the map.
    assert len(page.addresses) == 5
    pictures = [base64.b64decode(address.partition(",")[2]) for address in page.addresses]
    assert pictures[0] == (folder / "curves.png").read_bytes()
    assert pictures[4] == (folder / "mistakes" / "0.png").read_bytes()
    assert np.asarray(Image.open(io.BytesIO(pictures[1]))).std() > 0
    assert '<td class="text">long text</td>' in text
    assert '<figure class="pixels">' in text


def test_every_text_of_every_section_is_escaped(tmp_path):
    folder = make_run(tmp_path / "run")
    sections = (
        Table(EVIL, (EVIL, "b"), ((EVIL, EVIL),), prose=(EVIL,)),
        Numbers(((EVIL, EVIL),)),
        Curve(EVIL, EVIL, EVIL, (1.0, 2.0)),
        Gallery(EVIL, (("mistakes/0.png", EVIL), (f"mistakes/{EVIL}", EVIL))),
        Figure(EVIL, "curves.png"),
    )
    runs = [as_run(folder, EVIL, *sections), as_run(make_run(tmp_path / "b"), EVIL + "2")]
    write_page(
        tmp_path / "report.html",
        runs,
        comparison={EVIL: [EVIL, EVIL]},
        figures=[(EVIL, folder / "curves.png")],
    )
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    assert "script" not in page.tags
    assert all(address.startswith("data:image/png;base64,") for address in page.addresses)
    assert EVIL in page.texts


def test_a_picture_that_is_missing_is_named(tmp_path):
    folder = make_run(tmp_path / "run")
    (folder / "confusion_matrix.png").unlink()
    write_page(tmp_path / "report.html", [as_run(folder, "cat")])
    page = Page((tmp_path / "report.html").read_text())
    title = "Confusion matrix: rows are the true classes"
    assert f"{title} (confusion_matrix.png is missing)" in page.texts
    assert len(page.addresses) == 2


def test_a_name_that_is_not_unicode_breaks_no_page(tmp_path):
    name = os.fsdecode(b"caf\xe9")
    folder = make_run(tmp_path / name, name="cat")
    write_page(tmp_path / "report.html", [as_run(folder, name, Numbers(((name, name),)))])
    assert "caf?" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_validation_at_the_end_stands_beside_the_test(tmp_path):
    folder = make_run(tmp_path / "run")
    run = as_run(folder, "cat")
    metrics = {"test": {"loss": 1.25}, "validation": {"loss": 1.5, "perplexity": 123.456}}
    write_page(
        tmp_path / "report.html",
        [dataclasses.replace(run, report=run.report | {"metrics": metrics})],
    )
    shown = Page((tmp_path / "report.html").read_text()).texts
    assert shown[shown.index("test loss") + 1] == "1.2500"
    assert shown[shown.index("validation loss") + 1] == "1.5000"
    assert shown[shown.index("validation perplexity") + 1] == "123.46"


def test_sections_that_cannot_be_shown_say_so():
    with pytest.raises(ValueError, match="Figure.kind='wide' must be chart, pixels or plain"):
        Figure("a", "a.png", "wide")
    with pytest.raises(ValueError, match=r"Table 'a': \('x',\) needs 2 texts"):
        Table("a", ("b", "c"), (("x",),))
