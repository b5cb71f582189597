"""What each task shows of a report, an old one too."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from zoo.data import Vocabulary
from zoo.reports.plots import NotDrawn, draw_each, plot_curves
from zoo.reports.sections import Curve, Figure, Gallery, Numbers, Table
from zoo.tasks import WINGS
from zoo.tasks.classification.page import write_mistakes
from zoo.tasks.scores_page import draw_confusion_matrix

WING = {wing.name: wing for wing in WINGS}

SCORES = {"precision": 0.5, "recall": 0.25, "f1-score": 1 / 3, "support": 4.0}
CLASSES = {
    "confusion_matrix": [[3, 1], [0, 2]],
    "classification_report": {"ham": SCORES, "spam": SCORES, "accuracy": 0.5, "macro avg": SCORES},
}
SHOWN_CLASSES = [
    Figure("Confusion matrix: rows are the true classes", "confusion_matrix.png", "plain"),
    Table(
        "Classes",
        ("class", "precision", "recall", "F1", "examples"),
        (("ham", "0.500", "0.250", "0.333", "4"), ("spam", "0.500", "0.250", "0.333", "4")),
    ),
]


def shown(task, report, folder):
    return list(WING[task].sections(report, folder))


def mistake(**fields):
    return {"index": 3, "label": "ham", "predicted": "spam", "probability": 0.987} | fields


def test_images_that_are_wrong_are_a_gallery(tmp_path):
    report = CLASSES | {"mistakes": [mistake(), mistake(label="x")]}
    items = (("mistakes/0.png", "spam 98.7%, is ham"), ("mistakes/1.png", "spam 98.7%, is x"))
    gallery = Gallery("Most confidently wrong", items)
    assert shown("classification", report, tmp_path) == [*SHOWN_CLASSES, gallery]
    assert shown("classification", CLASSES | {"mistakes": []}, tmp_path) == SHOWN_CLASSES


def test_texts_that_are_wrong_are_a_table(tmp_path):
    report = CLASSES | {"mistakes": [mistake(text="hello")]}
    columns = ("text", "is", "predicted", "probability")
    row = ("hello", "ham", "spam", "0.987")
    table = Table("Most confidently wrong", columns, (row,), prose=("text",))
    assert shown("text_classification", report, tmp_path) == [*SHOWN_CLASSES, table]


def test_a_language_model_shows_texts_and_a_recurrent_one_its_gradient(tmp_path):
    report = {"examples": [{"given": "a", "continued": "b"}]}
    columns = ("given", "continued")
    table = Table("Examples", columns, (("a", "b"),), prose=columns)
    assert shown("language_modelling", report, tmp_path) == [table]
    curve, numbers, last = shown(
        "language_modelling", report | {"gradient_by_distance": [0.5, 0.25, 0.125]}, tmp_path
    )
    assert isinstance(curve, Curve)
    assert (curve.values, curve.log) == ((0.5, 0.25, 0.125), True)
    assert numbers == Numbers((("gradient 2 steps back, relative to the largest", "2.5e-01"),))
    assert last == table


def test_the_others_show_what_they_have(tmp_path):
    assert shown("sequence_to_sequence", {}, tmp_path) == []
    assert shown("diffusion", {}, tmp_path) == []
    assert shown("forecasting", {}, tmp_path) == []
    (bands,) = shown("forecasting", {"bands": [{}]}, tmp_path)
    assert bands.file == "bands.png"
    (tmp_path / "samples").mkdir()
    for step in (10, 200, 30):
        (tmp_path / "samples" / f"validation-{step:08}.png").touch()
    newest = Figure("Samples", "samples/validation-00000200.png", "pixels")
    assert shown("diffusion", {}, tmp_path) == [newest]
    columns = ("said", "heard")
    table = Table("Examples", columns, (("one", "won"),), prose=columns)
    assert shown("transcription", {"examples": [{"said": "one", "heard": "won"}]}, tmp_path) == [
        table
    ]


def test_each_picture_that_is_shown_is_drawn(tmp_path):
    """From reports as ``json`` gives them back."""
    bands = [{"series": [1, 2], "quantiles": [[1, 2, 3]] * 2, "target": [2, 2], "naive": [1, 1]}]
    reports = {
        "classification": CLASSES | {"mistakes": [mistake(index=0), mistake(index=1)]},
        "text_classification": CLASSES | {"mistakes": [mistake(text="hello")]},
        "forecasting": {"bands": bands},
        "language_modelling": {"gradient_by_distance": [0.5, 0.25]},
    }
    images = [np.full((8, 8, 1), 200, np.uint8), np.full((8, 8, 3), -1, np.float32)]
    dataset = SimpleNamespace(open=lambda split: [{"image": image} for image in images])
    vocabularies = {"classes": Vocabulary(("ham", "spam"))}
    for task, report in reports.items():
        folder = tmp_path / task
        folder.mkdir()
        WING[task].draw(json.loads(json.dumps(report)), folder, vocabularies, dataset)
        for section in shown(task, report, folder):
            if isinstance(section, Figure):
                assert np.asarray(Image.open(folder / section.file)).std() > 0, section
            if isinstance(section, Gallery):
                pictures = [np.asarray(Image.open(folder / file)) for file, _ in section.items]
                assert [np.unique(picture).tolist() for picture in pictures] == [[200], [0]]
    assert (tmp_path / "language_modelling" / "gradient_by_distance.png").exists()


@pytest.mark.parametrize("classes", [1, 3, 61, 1000])
def test_a_confusion_matrix_of_many_classes_stays_a_picture(tmp_path, classes):
    path = tmp_path / "matrix.png"
    draw_confusion_matrix(path, np.eye(classes, dtype=int).tolist(), ["a"])
    assert max(Image.open(path).size) <= 120 * max(12, 3 + 0.4 * min(classes, 60))


def test_names_that_look_like_formulas_or_lack_glyphs_can_be_drawn(tmp_path):
    names = ["$0_to_$5", r"$\frac{$", "中文", "_x", "a" * 300, "\udce9", "line\nbreak"]
    draw_confusion_matrix(tmp_path / "matrix.png", np.eye(7, dtype=int).tolist(), names)
    assert np.asarray(Image.open(tmp_path / "matrix.png")).std() > 0


def test_classes_whose_names_the_font_lacks_show_their_numbers(tmp_path):
    """Boxes would look alike: the pictures of other names of that kind are the same."""
    pictures = []
    for names in (["中文", "b"], ["नमस्ते", "b"], ["0", "b"], ["c", "b"]):
        draw_confusion_matrix(tmp_path / "matrix.png", [[1, 2], [3, 4]], names)
        pictures.append((tmp_path / "matrix.png").read_bytes())
    assert pictures[0] == pictures[1] == pictures[2] != pictures[3]


@pytest.mark.parametrize("shape", [(0, 5, 3), (5, 0, 3), (0, 0, 1)])
def test_images_without_pixels_are_left_out(tmp_path, shape):
    images = [np.zeros(shape, np.uint8), np.zeros((2, 2, 3), np.uint8)]
    write_mistakes(tmp_path, images)
    assert [path.name for path in (tmp_path / "mistakes").iterdir()] == ["1.png"]


def test_a_report_without_scores_draws_nothing(tmp_path):
    vocabularies = {"classes": Vocabulary(("a", "b"), "classes")}
    for wing in WINGS:
        wing.draw({}, tmp_path, vocabularies, None)
        assert list(wing.sections({}, tmp_path)) == []
    assert list(tmp_path.iterdir()) == []


def test_a_picture_that_fails_keeps_no_other_from_being_drawn(tmp_path):
    (tmp_path / "old.png").write_bytes(b"of an earlier run")

    def fails(path):
        raise ValueError("too large")

    with pytest.raises(NotDrawn) as failed:
        draw_each(tmp_path, {"old.png": fails, "new.png": lambda path: path.write_text("drawn")})
    assert list(failed.value.failures) == ["old.png"]
    assert [path.name for path in tmp_path.iterdir()] == ["new.png"]


def test_many_metrics_make_a_picture_that_can_be_written(tmp_path):
    names = {f"metric_{number}": 1.0 for number in range(150)}
    records = [{"split": "validation", "step": step, **names} for step in (1, 2)]
    plot_curves(tmp_path / "curves.png", records)
    assert max(Image.open(tmp_path / "curves.png").size) < 2**16
