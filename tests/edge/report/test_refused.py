"""Folders that the report refuses, each damaged in one way. Oracle: the undamaged folder, which has a report."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gate_builds import record
from html_page import Page
from network_certificates import add_certificate
from report_folder import Recipe, make_folder, photo, render

from calib.errors import InputError
from calib.files import sha256_file
from edge.drift.pictures import write_pictures
from edge.stability.network_certificate import NETWORK_ARTIFACT
from engines.build_folder.folder import BuildFolder


def silent(_share: float) -> None:
    pass


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_folder(tmp_path / "build", Recipe())


@pytest.fixture(scope="module")
def certified(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_folder(tmp_path_factory.mktemp("certified"), Recipe())
    add_certificate(folder)
    return folder


def _edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def _certify(folder: Path, **changes: Any) -> None:
    """Change the certificate and record it as if it belonged here."""
    _edit(folder / "xnorm.json", **changes)
    _edit(folder / "manifest.json", xnorm={"file": "xnorm.json", "sha256": sha256_file(folder / "xnorm.json")})


def _drop(path: Path, field: str) -> None:
    value = json.loads(path.read_text())
    del value[field]
    path.write_text(json.dumps(value))


def _tensor(**changes: Any) -> Callable[[Any], None]:
    return lambda fields: fields["tensors"][0].update(changes)


CONTRADICTIONS: dict[str, tuple[Callable[[Any], Any], str]] = {
    "nothing": (lambda _fields: None, ""),
    "a bound below an observation": (_tensor(observed_max=301.0), "reached 301, and is bounded by 300"),
    "a site worse than the network": (
        lambda f: f["sites"][8]["verdicts"]["fp16"].update(verdict="unstable"),
        "blocks.2/Add is unstable, the network stable",
    ),
    "a repair that found nothing wrong": (lambda f: f.update(verdict_before="stable"), "is unstable, the network stable"),
    "no verdict on a site": (lambda f: f["sites"][8]["verdicts"].pop("bf16"), "no verdict on blocks.2/Add"),
    "a proof that is not listed": (_tensor(certified_max=None), "6 proven of 10 judged of 11 tensors, 5 of 10 listed"),
    "tensors that are not listed": (lambda f: f["tensors"].pop(), "10 judged of 11 tensors, 5 of 9 listed"),
    "more judged than stored": (lambda f: f["coverage"].update(stored=9), "10 judged of 9"),
    "no precision": (lambda f: f.update(precisions=[]), "precisions none"),
    "an unknown precision": (lambda f: f.update(precisions=["fp8"]), "precisions fp8"),
    "another graph": (lambda f: f.update(onnx_sha256="8" * 64), "different builds"),
    "another repaired graph": (lambda f: f.update(repaired_onnx_sha256="8" * 64), "different builds"),
    "no repaired graph": (lambda f: f.update(repaired_onnx_sha256=None), "different builds"),
    "an unknown kind": (lambda f: f["sites"][0].update(kind="magic"), "malformed"),
    "an unknown verdict": (lambda f: f.update(verdict="fine"), "malformed"),
    "a field that is missing": (lambda f: f.pop("tensors"), "malformed"),
    "an infinite bound": (_tensor(certified_max=float("inf")), "not a finite number"),
}


@pytest.mark.parametrize("what", CONTRADICTIONS)
def test_a_certificate_that_contradicts_itself_is_refused_though_it_is_recorded(certified: Path, what: str) -> None:
    change, said = CONTRADICTIONS[what]
    path = certified / "certificate.json"
    before = path.read_text()
    fields = json.loads(before)
    change(fields)
    path.write_text(json.dumps(fields))
    record(certified)
    try:
        if not said:
            assert BuildFolder(certified).read(NETWORK_ARTIFACT).verdict == "stable"
            return
        with pytest.raises(InputError) as caught:
            BuildFolder(certified).read(NETWORK_ARTIFACT)
        assert said in str(caught.value)
        assert "next: ufovit " in str(caught.value)
    finally:
        path.write_text(before)


SPOILERS = {
    "drift.json is missing": lambda f: (f / "drift.json").unlink(),
    "drift.json is cut": lambda f: (f / "drift.json").write_text((f / "drift.json").read_text()[:200]),
    "drift.json lacks a field": lambda f: _drop(f / "drift.json", "agreement"),
    "drift.json has a text for a number": lambda f: _edit(f / "drift.json", drop_points="0.1"),
    "drift.json has an unknown verdict": lambda f: _edit(f / "drift.json", verdict="fine"),
    "drift.json counts other answers": lambda f: _edit(f / "drift.json", flips={"right_to_wrong": 1, "wrong_to_right": 0}),
    "drift.json is of another engine": lambda f: _edit(
        f / "drift.json", engine={"file": "model.int8.onnx", "sha256": "5" * 64, "ran_on": "x"}
    ),
    "drift.json has other preprocessing": lambda f: _edit(f / "drift.json", preprocess_sha256="6" * 64),
    "export.json is of another graph": lambda f: _edit(f / "export.json", onnx_sha256="7" * 64),
    "calibration.json was edited": lambda f: _edit(f / "calibration.json", images=513),
    "xnorm.json was edited": lambda f: _edit(f / "xnorm.json", images=385),
    "xnorm.json is missing": lambda f: (f / "xnorm.json").unlink(),
    "xnorm.json is of another graph": lambda f: _certify(f, onnx_sha256="8" * 64),
    "xnorm.json leads to another graph": lambda f: _certify(f, folded_onnx_sha256="8" * 64),
    "xnorm.json leads to no graph": lambda f: _certify(f, folded_onnx_sha256=None),
    "the folded graph was replaced": lambda f: (f / "model.folded.onnx").write_bytes(b"another"),
    "the engine was replaced": lambda f: (f / "engine.engine").write_bytes(b"another"),
    "manifest.json is missing": lambda f: (f / "manifest.json").unlink(),
    "manifest.json lacks a label": lambda f: _edit(f / "manifest.json", labels=["a", "b", "c"]),
    "logits.npz is missing": lambda f: (f / "logits.npz").unlink(),
    "logits.npz is not an archive": lambda f: (f / "logits.npz").write_bytes(b"PK\x03\x04 no"),
    "flips.npz is not an archive": lambda f: (f / "flips.npz").write_bytes(b"PK\x03\x04 no"),
    "flips.npz shows another image": lambda f: write_pictures(f / "flips.npz", np.array([0]), photo),
    "flips.npz lies about its sizes": lambda f: np.savez(
        f / "flips.npz", indices=np.array([0]), shapes=np.array([[4, 4]]), pixels=np.zeros(3, np.uint8)
    ),
    "logits.npz lacks the labels": lambda f: np.savez(
        f / "logits.npz", reference=np.ones((2000, 4)), engine=np.ones((2000, 4))
    ),
    "logits.npz lacks an array": lambda f: np.savez(f / "logits.npz", reference=np.zeros((2, 4)), labels=np.zeros(2, int)),
}


@pytest.mark.parametrize("what", SPOILERS)
def test_an_inconsistent_folder_is_refused(folder: Path, what: str) -> None:
    SPOILERS[what](folder)
    with pytest.raises(InputError) as caught:
        render(folder, silent)
    assert caught.value.exit_code == 2
    assert "next: ufovit " in str(caught.value)


def test_a_certificate_recorded_again_is_accepted(folder: Path) -> None:
    """The refusals above are those of what was changed, not of the change."""
    _certify(folder, images=385)
    assert Page(render(folder, silent)).data["xnorm.images"] == ("385", "385")
