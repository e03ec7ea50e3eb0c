"""The page: every number of the tables in it, no request to anywhere, and words for what is missing."""

import html
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import pandas as pd
import pytest
from report_fakes import METHODS, SUBJECTS

from unimind.errors import InputError
from unimind.evaluation.measures import measure_of, ordered
from unimind.report import results
from unimind.report.page import report

VOID = {"meta", "link", "img", "br", "hr", "input"}


class Page(HTMLParser):
    """Text, tables (title, rows: label -> cells), attributes and headings of a page; fails on tags that do not match."""

    def __init__(self, content):
        super().__init__()
        self.open, self.tags, self.tables, self.text, self.title, self.heading = [], [], [], [], "", None
        self.feed(content)
        assert not self.open, f"not closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.tags.append((tag, attrs))
        if tag not in VOID:
            self.open.append(tag)
        if tag in ("h3", "summary"):
            self.title = ""
        if tag == "table":
            self.tables.append((self.title, []))
        if tag == "tr":
            self.tables[-1][1].append(("", []))
        if tag == "td":
            label, cells = self.tables[-1][1][-1]
            cells.append((attrs.get("data-value"), ""))

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, f"</{tag}> out of place"

    def handle_data(self, data):
        if "style" in self.open:
            return
        self.text.append(data)
        if self.open and self.open[-1] in ("h3", "summary"):
            self.title += data.strip()
        if "tr" in self.open and "th" in self.open:
            label, cells = self.tables[-1][1][-1]
            self.tables[-1][1][-1] = (f"{label} {data.strip()}".strip(), cells)
        if "td" in self.open:
            value, words = self.tables[-1][1][-1][1][-1]
            self.tables[-1][1][-1][1][-1] = (value, words + data.strip())

    def table(self, start):
        return next(rows for title, rows in self.tables if title.startswith(start) and len(rows) > 1)

    @property
    def words(self):
        return re.sub(r"\s+", " ", "".join(self.text).replace("\u00a0", " "))


@pytest.fixture(scope="module")
def read(page):
    return Page(page.read_text())


@pytest.fixture(scope="module")
def scores(fake):
    return pd.read_csv(fake.root / "tables/reconstruction.csv")


@pytest.mark.parametrize(
    ("title", "subject"),
    [
        ("Mean over 3 training subjects", "average:train"),
        *[(f"{subject}, {'new' if role == 'new' else 'training'}", subject) for subject, role in SUBJECTS.items()],
    ],
)
def test_every_methods_number_stands_in_its_subjects_table(read, scores, title, subject):
    rows = dict(read.table(title))
    names = ordered(scores.metric)
    own = scores[scores.subject == subject].set_index(["method", "metric"])
    for method in METHODS:
        for name, (exact, shown) in zip(names, rows[method], strict=True):
            entry = own.loc[(method, name)]
            assert float(exact) == pytest.approx(entry.value, rel=1e-5)
            value, low, high = (measure_of(name).shown(x) for x in (entry.value, entry.ci_low, entry.ci_high))
            assert shown == f"{value}[{low}, {high}]"
    for label, row in (
        ("Shuffled fMRI ridge", "shuffled:ridge"),
        ("Ceiling: true embedding", "embedding-ceiling"),
        ("Mean training image", "mean-training-image"),
    ):
        for name, (exact, _) in zip(names, rows[label], strict=True):
            assert float(exact) == pytest.approx(own.loc[(row, name)].value, rel=1e-5)


def test_what_the_body_is_worth_is_the_embedding_with_and_without_it(read, scores):
    bodies = [method for method in METHODS if method != "ridge"]
    rows = [(label, cells) for label, cells in read.table("What the body is worth") if label in bodies]
    assert [label for label, _ in rows] == 2 * bodies, "of training subjects, then of the new one"
    for number, (method, cells) in enumerate(rows):
        own = scores[scores.subject == ("average:train" if number < len(bodies) else "subj04")].set_index(["method", "metric"]).value
        expected = [own[row, name] for name in ("embedding_error", "identification") for row in (method, f"body-removed:{method}")]
        assert [float(exact) for exact, _ in cells] == pytest.approx(expected, rel=1e-5)


def test_every_subjects_trials_and_pictures_stand_under_data(read, fake):
    rows = dict(read.table("What each subject brings"))
    overview = pd.read_csv(fake.overview, dtype={"subject": str})
    shown = overview.columns.drop(["dataset", "subject", "role"])
    for row in overview.to_dict("records"):
        label = f"{row['subject']} { {'train': 'trained on', 'new': 'new', 'unpaired': 'no pictures'}[row['role']] }"
        exact = [None if value is None else float(value) for value, _ in rows[label]]
        assert exact == [None if pd.isna(row[name]) else row[name] for name in shown]


@pytest.mark.parametrize(("title", "part", "names"), [
    ("Voxels by ROI", "rois", ["voxels", "dropped", "reliability", "noise_ceiling"]),
    ("Trials by session", "sessions", ["trials", "train", "validation", "test", "pictures", "repeated", "runs", "z"]),
])  # fmt: skip
def test_voxels_by_roi_and_trials_by_session_stand_under_data(read, fake, title, part, names):
    shown = [[None if value is None else float(value) for value, _ in cells] for _, cells in read.table(title) if cells]
    assert shown == [[row[name] for name in names] for file in fake.inspected for row in json.loads(file.read_text())[part]]


def test_the_first_words_are_the_tables_numbers(read, scores):
    mean = scores[(scores.subject == "average:train") & (scores.metric == "pixcorr")].set_index("method")
    new = scores[(scores.subject == "subj04") & (scores.metric == "pixcorr")].set_index("method")
    opening = read.words[read.words.index("From the fMRI") : read.words.index("Intervals and every other metric stand")]

    def said(row):
        return f"{row.value:.3f} [{row.ci_low:.3f}, {row.ci_high:.3f}]"

    assert "3 training subjects (subj01, subj02, subj03) and 1 new subject (subj04)" in opening
    for row in (*METHODS, "shuffled:unimind-convmixer", "embedding-ceiling"):
        assert said(mean.loc[row]) in opening
    for row in ("unimind-convmixer", "shuffled:unimind-convmixer", "ridge"):
        assert said(new.loc[row]) in opening
    assert "is that of the network behind Own CLIP, Identification and Embedding error" in opening and "PixCorr asks no network." in opening
    assert "apart in each of the 3 subjects" in opening and "ridge at" in opening and "(lower, p = 0.03)" in opening


def test_a_method_without_a_shared_model_is_not_said_to_have_one(fake, tmp_path):
    ridge = fake.study.model_copy(update={"methods": {"ridge": fake.study.methods["ridge"]}})
    report(ridge, fake.overview, fake.root / "tables", tmp_path, fake.metrics, fake.models, tmp_path / "report.html")
    words = Page((tmp_path / "report.html").read_text()).words
    assert "For the new subject, ridge reaches" in words and "shared model was" not in words


@pytest.fixture
def told(fake, scores, tmp_path):
    """The page of the fake study with its table changed, without figures."""

    def tell(rows, column, value):
        changed = scores.copy()
        changed.loc[rows, column] = value
        shutil.copytree(fake.root / "tables", tmp_path / "tables")
        changed.to_csv(tmp_path / "tables/reconstruction.csv", index=False)
        report(fake.study, fake.overview, tmp_path / "tables", tmp_path, fake.metrics, fake.models, tmp_path / "report.html")
        return Page((tmp_path / "report.html").read_text())

    return tell


def test_overlapping_intervals_are_said_to_overlap(told, scores):
    words = told((scores.subject == "subj02") & (scores.method == "shuffled:unimind-convmixer"), "ci_high", 0.99).words
    assert "overlap in subj02: there this score does not show that the brain is read" in words and "apart in each" not in words


def test_nothing_is_loaded_from_anywhere(page, read):
    for tag, attributes in read.tags:
        assert tag not in ("script", "iframe", "object", "embed", "base")
        for name in ("src", "href", "srcset", "poster", "data"):
            if name in attributes:
                assert attributes[name].startswith(("data:", "#")), f"<{tag} {name}={attributes[name][:60]}>"
    style = re.search(r"<style>(.*?)</style>", page.read_text(), re.S).group(1)
    assert "url(" not in style and "@import" not in style


def test_pictures_have_words_and_contents_have_targets(read, drawn):
    pictures = [attributes for tag, attributes in read.tags if tag == "img"]
    assert len(pictures) == len(list(drawn.glob("*.png")))
    assert all(attributes["alt"] and attributes["src"].startswith("data:image/") for attributes in pictures)
    targets = {attributes["id"] for _, attributes in read.tags if "id" in attributes}
    links = {attributes["href"][1:] for tag, attributes in read.tags if tag == "a"}
    assert links <= targets and len(links) >= 10
    assert sum(tag == "figcaption" for tag, _ in read.tags) == len(pictures)


def test_warnings_stand_where_the_numbers_do(read):
    words = read.words
    assert "brains are simulated" in words and "must never be compared with numbers on NSD" in words
    assert words.index("must never be compared") < words.index("Mean over 3 training subjects")
    assert words.index("In SSIM the mean training image, one blur for every trial, beats every method here") < words.index("Mean over 3 training subjects")


def test_inception_score_of_few_pictures_is_warned_of(told, scores):
    assert "Inception Score from 30 pictures: unstable below 5000" in told(scores.metric == "mse", "metric", "inception_score").words


def test_protocol_networks_and_absent_metrics_are_told(read, fake):
    words = read.words
    assert "all 16 metrics files" in words and "study CLIP, 64-d" in words and "abababababababab" in words
    assert "weights inception_v3.pth not found in $UNIMIND_WEIGHTS" in words
    assert "picture_size: 64" in words, "the settings, every default written out"
    assert all(sentence in words for _, sentence in results.explained_controls(fake.study).values())


def test_recordings_are_called_what_they_are(fake, tmp_path):
    study = fake.study.model_copy(update={"signal": "spike counts"})
    report(study, fake.overview, fake.root / "tables", tmp_path, fake.metrics, fake.models, tmp_path / "report.html")
    words = Page((tmp_path / "report.html").read_text()).words.rsplit("How to cite", 1)[0]
    assert "From the spike counts of 3 training subjects" in words and "Shuffled spike counts" in words
    assert "shuffled fMRI" not in words and "the fMRI of" not in words


def test_bold_is_only_what_a_paired_test_made_sure(page):
    bold = re.findall(r"<td[^>]*title=\"([^\"]*)\"><strong>", page.read_text())
    assert len(bold) == 1 and bold[0].startswith("PixCorr: 0.7")


def test_rows_of_another_protocol_never_share_a_column(told, scores):
    found = told(scores.method.str.contains("ridge"), "protocol", "deadbeef")
    one, other = dict(found.table("Mean over 3 training subjects, protocol 1a2b")), dict(found.table("Mean over 3 training subjects, protocol dead"))
    assert "ridge" not in one and "ridge" in other and "mindvis" in one and "mindvis" not in other
    assert "Not all rows were made under the same protocol" in found.words


@pytest.mark.parametrize("protocol", ["0000", "ffff"])
def test_tables_of_several_protocols_stand_in_the_order_of_the_study_s_methods(told, scores, protocol):
    found = told(scores.method.str.contains("ridge"), "protocol", protocol)
    titles = [title for title, _ in found.tables if title.startswith("Mean over 3 training subjects, protocol")]
    assert protocol in titles[-1] and protocol not in titles[0]


@pytest.fixture
def trained(fake, tmp_path):
    """A page of the fake study with other values of one validation term in the models at some places."""

    def make(values):
        shutil.copytree(fake.root / "models", tmp_path / "models")
        for place, (term, curve) in values.items():
            path = tmp_path / "models" / place / "losses.csv"
            table = pd.read_csv(path)
            rest = table[table.split == "train"]
            own = pd.DataFrame([(step, "validation", term, value) for step, value in curve.items()], columns=table.columns)
            pd.concat([rest, own]).to_csv(path, index=False)
        models = sorted(path.parent for path in (tmp_path / "models").rglob("config.json"))
        report(fake.study, fake.overview, fake.root / "tables", tmp_path, fake.metrics, models, tmp_path / "report.html")
        return Page((tmp_path / "report.html").read_text())

    return make


def test_alignment_that_added_nothing_is_said_first(trained):
    worse, better = ("embedding", {0: 0.5, 200: 0.7, 400: 0.6}), ("embedding", {0: 0.5, 200: 0.3, 400: 0.6})
    page = trained({"unimind-convmixer/align/drawings": worse, "unimind-vit/align/drawings": better})
    sentence = "Alignment trained unimind-convmixer and no step was better on validation pictures than the start"
    assert sentence in page.words and page.words.index(sentence) < page.words.index("Mean over 3 training subjects")
    kept = page.table("Weights that validation kept")
    exact = [[shown for _, shown in cells] for label, cells in kept if label.startswith("align")]
    assert exact == [["0", "400", "embedding", "0.5", "0.5"], ["200", "400", "embedding", "0.5", "0.3"]]


def test_alignment_that_helped_is_not_said_to_be_idle(read):
    assert "no step was better" not in read.words


def test_a_run_with_nothing_says_so(fake, tmp_path):
    for name in ("tables", "figures"):
        (tmp_path / name).mkdir()
    report(fake.study, fake.overview, tmp_path / "tables", tmp_path / "figures", [], [], tmp_path / "report.html")
    words = Page((tmp_path / "report.html").read_text()).words
    for sentence in (
        "no table of identification scores",
        "no picture grids",
        "no table of scores",
        "hold no controls",
        "no result for the new subject.",
        "no loss curves",
        "hold no protocol",
    ):
        assert sentence in words
    assert "nan" not in words.lower().split()


def test_text_of_the_study_is_text(fake, tmp_path):
    study = fake.study.model_copy(update={"title": "<script>alert(1)</script> & more"})
    report(study, fake.overview, fake.root / "tables", tmp_path, fake.metrics, fake.models, tmp_path / "report.html")
    assert "<script" not in (tmp_path / "report.html").read_text()


def test_a_picture_that_is_named_but_missing_is_an_error_of_one_line(fake, tmp_path):
    (tmp_path / "captions.json").write_text(json.dumps([{"file": "gone.png", "section": "results", "caption": "c", "alt": "a"}]))
    with pytest.raises(InputError, match="gone.png: named in"):
        report(fake.study, fake.overview, fake.root / "tables", tmp_path, fake.metrics, fake.models, tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


@pytest.mark.slow
@pytest.mark.parametrize("width", [1280, 400])
def test_no_sideways_scrolling_in_a_browser(page, tmp_path, width):
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if not chromium:
        pytest.skip("no chromium to open the page with")
    frame = (
        f"<!DOCTYPE html><iframe width={width} height=900 style='border:0' srcdoc='{html.escape(page.read_text())}' onload='"
        'document.title = this.contentDocument.documentElement.scrollWidth + " of " + this.contentWindow.innerWidth\'></iframe>'
    )
    (tmp_path / "frame.html").write_text(frame)
    command = [chromium, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}/profile", "--dump-dom", f"file://{tmp_path}/frame.html"]
    found = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    content, window = map(int, re.search(r"<title>(\d+) of (\d+)</title>", found).groups())
    assert content <= window == width
