"""What a report shows of answers, confidence, classes and layers. Oracle: the same from `logits.npz`, written out here."""

from __future__ import annotations

import base64
import io
import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from html_page import Page
from PIL import Image
from report_folder import LABELS, Recipe, attribution, make_folder, photo, render

from calib.artifact import write_artifact
from calib.errors import InputError
from edge.drift.pictures import PICTURES_ARTIFACT
from engines.build_folder.folder import BuildFolder

EVIL = ("<script>alert(1)</script>", '"><img src=x onerror=alert(2)>', "</svg></style><script>", "{{ 7 * 7 }} & co", "e", "f")
Z95 = 1.959963984540054


def silent(_share: float) -> None:
    pass


def made(folder: Path, **changes: Any) -> tuple[dict[str, Any], dict[str, np.ndarray], str]:
    """The drift, the logits and the page of a recipe."""
    make_folder(folder, Recipe(**changes))
    with np.load(folder / "logits.npz") as stored:
        arrays = dict(stored)
    return json.loads((folder / "drift.json").read_text()), arrays, render(folder, silent)


@pytest.fixture(scope="module")
def failed(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], dict[str, np.ndarray], str]:
    return made(tmp_path_factory.mktemp("answers"), flips=30, better=5, nan_rows=1, labels=EVIL)


@pytest.fixture(scope="module")
def unlabelled(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], dict[str, np.ndarray], str]:
    return made(tmp_path_factory.mktemp("unlabelled"), flips=7, labelled=False)


def softmax(logits: np.ndarray) -> np.ndarray:
    return np.array(
        [[math.exp(v - max(row)) / sum(math.exp(u - max(row)) for u in row) for v in row] for row in logits.tolist()]
    )


def wilson(count: int, total: int) -> tuple[float, float]:
    """The two roots of (x - p)^2 = z^2 x (1 - x) / n."""
    a, b, c = 1 + Z95**2 / total, -(2 * count / total + Z95**2 / total), (count / total) ** 2
    root = math.sqrt(max(0.0, b * b - 4 * a * c))
    return (-b - root) / (2 * a), (-b + root) / (2 * a)


def newcombe(lost: int, won: int, total: int) -> tuple[float, float]:
    """Square-and-add on the two flip rates, with the correlation of two cells of a multinomial."""
    p, q = lost / total, won / total
    (low_p, high_p), (low_q, high_q) = wilson(lost, total), wilson(won, total)
    r = -math.sqrt(p * q / ((1 - p) * (1 - q)))
    low = p - q - math.sqrt((p - low_p) ** 2 - 2 * r * (p - low_p) * (high_q - q) + (high_q - q) ** 2)
    return low, p - q + math.sqrt((high_p - p) ** 2 - 2 * r * (high_p - p) * (q - low_q) + (q - low_q) ** 2)


def cards(html: str) -> list[tuple[str, bytes]]:
    """Text and picture of every card of the gallery."""
    found = re.findall(r'<li class="card">.*?</li>', html, flags=re.DOTALL)
    return [(Page(card).text, base64.b64decode(re.search(r"base64,([^\"]+)\"", card)[1])) for card in found]  # type: ignore[index]  # or it fails


def flips(arrays: dict[str, np.ndarray]) -> list[int]:
    """Images that turned from right to wrong or back, the worst first."""
    lost = {}
    for i, (before, after, label) in enumerate(zip(arrays["reference"], arrays["engine"], arrays["labels"], strict=True)):
        answer = int(after.argmax()) if np.isfinite(after).all() else -1
        if (before.argmax() == label) != (answer == label):
            sure = softmax(after[None])[0][label] if answer >= 0 else -1.0
            lost[i] = softmax(before[None])[0][label] - sure
    return sorted(lost, key=lambda i: -lost[i])


@pytest.mark.slow
def test_interval_of_every_class(failed: tuple[dict[str, Any], dict[str, np.ndarray], str]) -> None:
    _, arrays, html = failed
    rows = {row[0]: row for row in Page(html).rows}
    engine = np.where(np.isfinite(arrays["engine"]).all(1), np.nan_to_num(arrays["engine"]).argmax(1), -1)
    for i, label in enumerate(EVIL):
        mine = arrays["labels"] == i
        right, still = arrays["reference"][mine].argmax(1) == i, engine[mine] == i
        low, high = newcombe(int((right & ~still).sum()), int((~right & still).sum()), int(mine.sum()))
        shown = [float(v) for v in rows[label][5].split(" to ")]
        assert shown == pytest.approx([-100 * high, -100 * low], abs=0.006), label
    assert len(re.findall(r'id="classes-class-\d+"', html)) == len(EVIL)


@pytest.mark.slow
def test_small_classes_are_marked_and_many_are_cut(tmp_path: Path) -> None:
    _, _, html = made(tmp_path, flips=60, images=480, labels=tuple(f"class {i}" for i in range(48)))
    assert len(re.findall(r'id="classes-class-\d+"', html)) == 40
    assert "The 40 of 48 classes that changed most." in Page(html).text
    (svg,) = re.findall(r'<svg[^>]*aria-label="change by class.*?</svg>', html, flags=re.DOTALL)
    bars = re.findall(r'id="classes-class-\d+">\s*<path[^>]*style="([^"]*)"', svg)
    assert len(bars) == 40
    assert all("stroke-opacity: 0.25" in style for style in bars), "ten images each: pale"
    (names,) = [texts for texts in Page(html).figures if "class 0 (10)" in texts]
    assert sum(text.endswith(" (10)") for text in names) == 40


def test_reliability_before_and_after(failed: tuple[dict[str, Any], dict[str, np.ndarray], str]) -> None:
    drift, arrays, html = failed
    page = Page(html)
    finite = np.isfinite(arrays["engine"]).all(1)
    labels, table = arrays["labels"][finite], {}
    for side in ("reference", "engine"):
        p = softmax(arrays[side][finite])
        sure, right, error = p.max(1), p.argmax(1) == labels, 0.0
        for i in range(10):
            inside = (sure >= i / 10) & ((sure < (i + 1) / 10) | (i == 9))
            if inside.any():
                error += inside.mean() * abs(sure[inside].mean() - right[inside].mean())
                table[side, f"{10 * i} to {10 * i + 10} %"] = (inside.sum(), sure[inside].mean(), right[inside].mean())
        exact, shown = page.data[f"reliability_{side}.ece"]
        assert float(exact) == pytest.approx(error, rel=1e-6) == drift[f"reliability_{side}"]["ece"]
        assert float(shown.removesuffix("%").strip()) == pytest.approx(100 * error, abs=0.006)
    rows = {row[0]: row[1:] for row in page.rows if re.fullmatch(r"\d+ to \d+ %", row[0])}
    assert rows.keys() == {name for _, name in table}
    for (side, name), expected in table.items():
        count, sure, right = rows[name][0 if side == "reference" else 3 :][:3]
        assert int(count.replace(",", "")) == expected[0]
        assert [float(v.removesuffix(" %")) for v in (sure, right)] == pytest.approx([100 * v for v in expected[1:]], abs=0.006)
    for column, side in enumerate(("reference", "engine")):
        assert len(re.findall(rf'id="reliability-sure-{column}-\d"', html)) == sum(s == side for s, _ in table)
    assert "calibration error (ECE)" in page.text


def test_gallery_shows_the_flips_the_worst_first(failed: tuple[dict[str, Any], dict[str, np.ndarray], str]) -> None:
    _, arrays, html = failed
    expected, shown = flips(arrays), cards(html)
    assert len(expected) == 35
    assert len(shown) == 24
    assert "35 images changed between a right and a wrong answer" in Page(html).by_id["flips-shown"]
    assert "no answer" in shown[0][0], "the image that got none is the worst"
    for index, (text, png) in zip(expected, shown, strict=False):
        pixels = np.asarray(Image.open(io.BytesIO(png)))
        np.testing.assert_array_equal(pixels, photo(index))
        label, before, after = arrays["labels"][index], arrays["reference"][index], arrays["engine"][index]
        words = " ".join(text.split())
        sure = f"{100 * softmax(before[None])[0].max():.1f} %"
        assert ("right → wrong" if before.argmax() == label else "wrong → right") in words
        assert f"is {EVIL[label]} before {EVIL[before.argmax()]} {sure} after" in words
        if np.isfinite(after).all():
            assert words.endswith(f"after {EVIL[after.argmax()]} {100 * softmax(after[None])[0].max():.1f} %")


@pytest.mark.slow
def test_a_flip_to_the_better_is_shown_as_one(tmp_path: Path) -> None:
    _, arrays, html = made(tmp_path, flips=2, better=3)
    texts = [" ".join(text.split()) for text, _ in cards(html)]
    assert [text.split(" is ")[0] for text in texts] == ["right → wrong"] * 2 + ["wrong → right"] * 3
    assert len(flips(arrays)) == 5


@pytest.mark.slow
def test_without_flips_a_sentence(tmp_path: Path) -> None:
    _, _, html = made(tmp_path)
    assert cards(html) == []
    assert "no image to show" in Page(html).by_id["no-flips"]
    assert len(BuildFolder(tmp_path).read(PICTURES_ARTIFACT).indices) == 0
    (tmp_path / "flips.npz").unlink()
    assert "no image to show" in Page(render(tmp_path, silent)).by_id["no-flips"]


@pytest.mark.slow
def test_flips_without_pictures_are_reported(tmp_path: Path) -> None:
    make_folder(tmp_path, Recipe(flips=3))
    (tmp_path / "flips.npz").unlink()
    assert "3 answers flipped, but no pictures" in Page(render(tmp_path, silent)).by_id["no-pictures"]


def test_all_numbers_are_those_of_the_json(failed: tuple[dict[str, Any], dict[str, np.ndarray], str]) -> None:
    drift, arrays, html = failed
    page = Page(html)
    for key in ("kl_mean", "kl_max", "max_abs", "cosine_mean", "margin_shift_mean", "confidence_reference"):
        assert float(page.data[f"distance.{key}"][0]) == drift["distance"][key]
    assert float(page.data["mcnemar_p"][0]) == drift["mcnemar_p"]
    order = np.argsort(-arrays["reference"], axis=1)[:, :5]
    top5 = float((order == arrays["labels"][:, None]).any(1).mean())
    assert float(page.data["top5_reference"][0]) == pytest.approx(top5)
    assert page.by_id["not-compared"].split("\n")[1:-1] == list(drift["not_compared"])
    (row,) = [row for row in page.rows if row[0] == "changed answers"]
    ends = wilson(round((1 - drift["agreement"]) * drift["images"]), drift["images"])
    assert row[2] == f"{100 * (1 - drift['agreement']):.2f} [{100 * ends[0]:.2f}, {100 * ends[1]:.2f}]"


def test_unlabelled_images_are_judged_by_changed_answers(unlabelled: tuple[dict[str, Any], dict[str, np.ndarray], str]) -> None:
    drift, arrays, html = unlabelled
    page = Page(html)
    assert drift["judged_by"] == "agreement"
    assert "labels" not in arrays
    assert page.by_id["verdict"] == "INCONCLUSIVE"
    assert "no labels" in page.by_id["unlabelled"]
    assert any("changed answers" in text for figure in page.figures for text in figure)
    for key in ("changed_interval.low_points", "changed_interval.high_points"):
        assert float(page.data[key][0]) == drift["changed_interval"][key.split(".")[1]]
    assert not {"top1_reference", "drop_points", "interval.low_points", "mcnemar_p"} & set(page.data)
    for absent in ("Did some classes suffer more?", "Is its confidence still honest?", "confusion", "right → wrong", "True"):
        assert absent not in page.text, absent
    changed = np.flatnonzero(arrays["reference"].argmax(1) != arrays["engine"].argmax(1))
    pictures = [np.asarray(Image.open(io.BytesIO(png))).tobytes() for _, png in cards(html)]
    assert sorted(pictures) == sorted(photo(i).tobytes() for i in changed)
    assert "without labels" in page.text


@pytest.mark.parametrize(("flips", "verdict"), [(0, "PASS"), (100, "FAIL")])
def test_unlabelled_verdicts(tmp_path: Path, flips: int, verdict: str) -> None:
    _, _, html = made(tmp_path, flips=flips, labelled=False)
    page = Page(html)
    assert page.by_id["verdict"] == verdict
    assert ("labelled images" in page.text) == (verdict == "FAIL")


@pytest.mark.slow
def test_random_weights_show_no_answers(tmp_path: Path) -> None:
    _, _, html = made(tmp_path, flips=20, random_weights=True)
    assert cards(html) == []
    for absent in ("Is its confidence still honest?", "Did some classes suffer more?", "The images themselves"):
        assert absent not in html


def test_names_cannot_break_out(failed: tuple[dict[str, Any], dict[str, np.ndarray], str]) -> None:
    page = Page(failed[2])
    assert "script" not in {tag for tag, _ in page.tags}
    assert not [a for _, attributes in page.tags for a in attributes if a.startswith("on")]
    assert all(str(a["src"]).startswith("data:image/png;base64,") for tag, a in page.tags if tag == "img")
    assert "{{ 7 * 7 }}" in page.text
    alts = [str(a["aria-label"]) for tag, a in page.tags if tag == "svg"]
    assert all(alts)
    assert any(EVIL[1] in alt for alt in alts), "told to a person who cannot see it, as text"


@pytest.mark.slow
def test_layers_of_the_attribution(tmp_path: Path) -> None:
    make_folder(tmp_path, Recipe(flips=100))
    assert "--attribute" in Page(render(tmp_path, silent)).by_id["no-attribution"]
    write_artifact(tmp_path / "attribution.json", attribution(tmp_path))
    page, told = Page(render(tmp_path, silent)), json.loads((tmp_path / "attribution.json").read_text())
    assert page.by_id["attribution"] == told["sentence"]
    assert told["culprits"][0]["found"] in page.by_id["culprits"]
    worst = sorted(told["layers"], key=lambda layer: layer["introduced_db"])
    shown = [row for row in page.rows if row[0].startswith("blocks.") and len(row) == 5 and row[1] in ("int8", "fp16")]
    assert [row[0] for row in shown] == [layer["name"] for layer in worst]
    assert [float(row[2]) for row in shown] == [layer["introduced_db"] for layer in worst]
    (alt,) = [str(a["aria-label"]) for tag, a in page.tags if tag == "svg" and "layers from input" in str(a["aria-label"])]
    assert f"blamed: {worst[0]['name']}" in alt
    assert "attribution.json" in page.text
    for trial in told["costliest"]:
        name = "all of these" if trial["isolated_db"] is None else ", ".join(trial["layers"])
        (row,) = [row for row in page.rows if row[0] == name and len(row) == 4]
        assert row[2] == f"{trial['gain_db']:+.1f} ± {trial['uncertainty_db']:.1f}"
        assert row[3] == ("yes" if trial["confirmed"] else "no")


@pytest.mark.parametrize("which", ["reference", "judged", "unreadable"])
def test_an_attribution_of_another_build_is_refused(tmp_path: Path, which: str) -> None:
    make_folder(tmp_path, Recipe())
    told = attribution(tmp_path)
    path = tmp_path / "attribution.json"
    if which == "unreadable":
        path.write_text("{}")
    else:
        write_artifact(path, replace(told, **{which: replace(getattr(told, which), sha256="9" * 64)}))
    with pytest.raises(InputError, match=r"attribution\.json"):
        render(tmp_path, silent)


def test_labels_are_those_of_the_page(failed: tuple[dict[str, Any], dict[str, np.ndarray], str]) -> None:
    """Negative control of the gallery's oracle: with the classes rotated by one, no card matches."""
    _, arrays, html = failed
    turned = {**arrays, "labels": (arrays["labels"] + 1) % len(EVIL)}
    assert flips(turned) != flips(arrays)
    assert LABELS[0] not in html
