"""`ufovit verify` and `ufovit sign` on finished builds: what is changed, added, taken away or put in another's place is named.

Oracles: hashlib for digests, the openssl command line for keys, a build that was left alone as the negative control.
"""

import hashlib
import json
import random
import shutil
import subprocess
import sys
from importlib.util import find_spec

import pytest
from run_once import make_once
from tiny_network import TINY
from tiny_project import build, make_project, sha256

from edge.cli import run
from edge.model.sizes import SIZES
from engines.build_folder.file_names import ARTIFACTS

pytestmark = pytest.mark.slow

TARGETS = ("cpu", "rtx")
CPU_FILES = (
    "steps.json", "model.onnx", "export.json", "golden.npz", "certificate.json", "xnorm.json", "model.folded.onnx",
    "model.refined.onnx", "calibration.json", "model.int8.onnx", "engine.onnx", "manifest.json", "drift.json", "logits.npz",
    "flips.npz", "report.html",
)  # fmt: skip
RTX_FILES = ("model.typed.onnx", "engine.engine", "fp16_plan.json", "speed.json")
FILES = {"cpu": CPU_FILES, "rtx": (*(f for f in CPU_FILES if f != "engine.onnx"), *RTX_FILES)}
CASES = [(target, file) for target in TARGETS for file in FILES[target]]
needs_openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="needs the openssl command line")
needs_cryptography = pytest.mark.skipif(find_spec("cryptography") is None, reason="pip install 'ufovit-edge[sign]'")


@pytest.fixture
def copy(built, rtx_built, tmp_path):
    """copy(target) -> a build folder that may be changed."""

    def make(target, name="build"):
        return shutil.copytree(built / "out" if target == "cpu" else rtx_built("int8"), tmp_path / name)

    return make


@pytest.fixture
def verify(capsys):
    """verify(path, *options) -> (exit code, what was printed, what was said on stderr)."""

    def call(path, *options):
        capsys.readouterr()
        code = run(["verify", str(path), *map(str, options)])
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        return code, captured.out, captured.err

    return call


def blamed(error):
    """The file that the error says it is about."""
    (where,) = (line.removeprefix("  where: ") for line in error.splitlines() if line.startswith("  where: "))
    return where.split(",")[0].rpartition("/")[2]


@pytest.mark.parametrize("target", TARGETS)
def test_a_build_verifies(copy, verify, target):
    folder = copy(target)
    before = {p.name: (p.stat().st_mtime_ns, sha256(p)) for p in folder.iterdir()}
    code, output, error = verify(folder)
    assert (code, error) == (0, "")
    assert table(output) == {name: (sha256(folder / name)[:16], "ok") for name in FILES[target]}
    assert f"{len(FILES[target])} files match their recorded digests" in " ".join(output.split())
    assert "not signed" in output
    assert {p.name: (p.stat().st_mtime_ns, sha256(p)) for p in folder.iterdir()} == before


@pytest.mark.parametrize(("target", "name"), CASES)
def test_one_flipped_byte_is_refused_naming_its_file(copy, verify, target, name):
    path = copy(target) / name
    good, rng = path.read_bytes(), random.Random(f"{target} {name}")
    for position in (0, len(good) // 2, len(good) - 1, rng.randrange(len(good)), rng.randrange(len(good))):
        data = bytearray(good)
        data[position] ^= 1 << rng.randrange(8)
        path.write_bytes(data)
        code, output, error = verify(path.parent)
        assert (code, blamed(error)) == (2, name), (position, error)
        assert statuses(output)[name] != "ok"
        assert {status for file, status in statuses(output).items() if file != name} == {"ok"}, "no other file is blamed"
    path.write_bytes(good)
    assert verify(path.parent)[0] == 0


def table(output):
    """File -> (digest, status); a status may go on in further rows."""
    told = {}
    for line in output.splitlines():
        if line.startswith("│"):
            name, *cells = (cell.strip() for cell in line.strip("│").split("│"))
            last = name or list(told)[-1]
            told[last] = cells if name else [" ".join(pair).strip() for pair in zip(told[last], cells, strict=True)]
    return {name: tuple(cells) for name, cells in told.items()}


def statuses(output):
    return {name: status for name, (_, status) in table(output).items()}


@pytest.mark.parametrize(("target", "name"), CASES)
def test_a_file_of_another_length_or_none_or_a_link_is_refused(copy, verify, target, name):
    path = copy(target) / name
    good = path.read_bytes()
    elsewhere = path.parent.parent / "elsewhere"
    elsewhere.write_bytes(good)
    for change in (
        lambda: path.write_bytes(good[:-1]),
        lambda: path.write_bytes(good + b"\0"),
        lambda: path.write_bytes(b""),
        path.unlink,
        lambda: path.symlink_to(elsewhere),  # the right bytes, but the owner of the link's target may change them
        lambda: (path.unlink(), path.mkdir()),
    ):
        change()
        code, _, error = verify(path.parent)
        assert (code, blamed(error)) == (2, name), error


def test_swapped_files_are_refused(copy, verify):
    folder = copy("cpu")
    a, b, aside = folder / "model.onnx", folder / "model.int8.onnx", folder / "aside"
    a.rename(aside)
    b.rename(a)
    aside.rename(b)
    code, output, error = verify(folder)
    assert (code, blamed(error)) == (2, "model.onnx")
    assert [name for name, status in statuses(output).items() if status != "ok"] == ["model.onnx", "model.int8.onnx"]


@pytest.mark.parametrize("name", sorted({*ARTIFACTS} - {*CPU_FILES} - {"signature.json"}))
def test_an_added_artifact_is_refused(copy, verify, name):
    folder = copy("cpu")
    (folder / name).write_bytes(b"from nowhere")
    code, _, error = verify(folder)
    assert (code, blamed(error)) == (2, name)
    assert "unexpected file" in error


@pytest.fixture(scope="module")
def stranger(tmp_path_factory, make_network):
    """A finished build of another checkpoint."""

    def make(folder):
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(SIZES, TINY.name, TINY)
            assert build(make_project(folder, make_network(7), TINY, seed=1)) == 0

    return make_once(tmp_path_factory, "stranger", make) / "out"


@pytest.mark.parametrize("name", ["drift.json", "xnorm.json", "calibration.json", "export.json", "engine.onnx"])
def test_a_file_of_another_build_is_refused(copy, verify, name, stranger):
    """The file is a true one; only that it lies in this folder is wrong."""
    folder = copy("cpu")
    shutil.copy(stranger / name, folder / name)
    code, _, error = verify(folder)
    assert (code, blamed(error)) == (2, name)
    forge(folder, name)  # and though the records were made to fit
    code, _, error = verify(folder)
    if name == "engine.onnx":
        assert (code, blamed(error)) == (2, "drift.json"), "it speaks of the engine that was there"
    else:
        assert (code, blamed(error)) == (2, name)
        assert "artifacts of different builds" in error


def forge(folder, name):
    """Write the digest of a changed file wherever it is recorded, with json and hashlib alone."""
    digest = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    manifest = json.loads((folder / "manifest.json").read_text())
    for record in manifest.values():
        if isinstance(record, dict) and record.get("file") == name:
            record["sha256"] = digest
    (folder / "manifest.json").write_bytes(canonical(manifest))
    record = json.loads((folder / "steps.json").read_text())
    for step in record["steps"].values():
        for file in step["writes"]:
            step["writes"][file] = hashlib.sha256((folder / file).read_bytes()).hexdigest()
    del record["seal"]
    record["seal"] = hashlib.sha256(canonical(record)).hexdigest()
    (folder / "steps.json").write_bytes(canonical(record))


def canonical(value):
    return (json.dumps(value, sort_keys=True, indent=2, ensure_ascii=False) + "\n").encode()


@pytest.mark.parametrize("name", ["../out/model.onnx", "/etc/passwd", ".."])
def test_a_manifest_that_names_a_path_is_refused(copy, verify, name):
    folder = copy("cpu")
    fields = json.loads((folder / "manifest.json").read_text())
    fields["onnx"]["file"] = name
    (folder / "manifest.json").write_bytes(canonical(fields))
    forge(folder, "manifest.json")
    code, _, error = verify(folder)
    assert (code, blamed(error)) == (2, "manifest.json")
    assert "outside its folder" in error


def test_a_build_that_did_not_finish_has_no_verdict(copy, verify):
    folder = copy("cpu")
    for name in ("drift.json", "logits.npz", "flips.npz", "report.html"):
        (folder / name).unlink()
    record = json.loads((folder / "steps.json").read_text())
    del record["steps"]["drift"], record["steps"]["report"]
    (folder / "steps.json").write_bytes(canonical(record))
    forge(folder, "manifest.json")
    code, output, _ = verify(folder)
    assert code == 0
    assert "no verdict on accuracy" in output


def test_a_device_has_the_engine_and_its_manifest(copy, verify):
    folder = copy("cpu")
    for path in folder.iterdir():
        if path.name not in ("engine.onnx", "manifest.json"):
            path.unlink()
    code, _, error = verify(folder)
    assert (code, blamed(error)) == (2, "steps.json")
    assert verify(folder, "--partial")[0] == 0
    (folder / "engine.onnx").write_bytes(b"another")
    assert blamed(verify(folder, "--partial")[2]) == "engine.onnx"


def test_nothing_to_verify(tmp_path, verify):
    assert verify(tmp_path / "none")[0] == 2
    code, _, error = verify(tmp_path)
    assert code == 2
    assert "ufovit build" in error


def test_the_next_build_makes_good_what_was_changed(project, verify):
    folder = project / "out"
    engine = folder / "engine.onnx"
    engine.write_bytes(engine.read_bytes() + b"\0")
    assert verify(folder)[0] == 2
    assert build(project) == 0
    assert verify(folder)[0] == 0


def test_a_name_that_looks_like_markup(copy, verify):
    folder = copy("cpu", "build[bold]")
    code, output, _ = verify(folder)
    assert code == 0
    assert str(folder) in output.replace("\n", "")


# --- signatures


@pytest.fixture
def keys(tmp_path):
    """(private, public), twice, made as the messages say."""
    if shutil.which("openssl") is None or find_spec("cryptography") is None:
        pytest.skip("needs openssl and the extra sign")
    pairs = []
    for name in ("ours", "theirs"):
        key, public = tmp_path / f"{name}.pem", tmp_path / f"{name}.pub.pem"
        subprocess.run(["openssl", "genpkey", "-algorithm", "ed25519", "-out", key], check=True, capture_output=True)
        key.chmod(0o600)
        subprocess.run(["openssl", "pkey", "-in", key, "-pubout", "-out", public], check=True, capture_output=True)
        pairs.append((key, public))
    return pairs


def sign(path, key, *options):
    return run(["sign", str(path), "--key", str(key), *map(str, options)])


@pytest.mark.parametrize("target", TARGETS)
def test_a_signed_build(copy, verify, keys, target, capsys):
    (key, public), (_, other) = keys
    folder = copy(target)
    assert sign(folder, key) == 0
    assert f"{len(FILES[target])} files signed" in capsys.readouterr().out.replace("\n", "")
    assert set(json.loads((folder / "signature.json").read_text())["files"]) == set(FILES[target])
    code, output, _ = verify(folder, "--require-signature", public)
    assert code == 0
    assert "; signed 20" in output
    assert "the signature was not checked" in verify(folder)[1]
    code, output, error = verify(folder, "--require-signature", other)
    assert (code, blamed(error)) == (2, "signature.json")
    assert "signed with another key" in error


@pytest.mark.parametrize(("target", "name"), [*CASES, ("cpu", "signature.json")])
def test_one_flipped_byte_of_a_signed_build_is_refused_naming_its_file(copy, verify, keys, target, name):
    (key, public), _ = keys
    path = copy(target) / name
    assert sign(path.parent, key) == 0
    good, rng = path.read_bytes(), random.Random(f"{target} {name}")
    for position in (0, len(good) // 2, len(good) - 1, rng.randrange(len(good))):
        data = bytearray(good)
        data[position] ^= 1 << rng.randrange(8)
        path.write_bytes(data)
        code, _, error = verify(path.parent, "--require-signature", public)
        assert (code, blamed(error)) == (2, name), (position, error)


def test_a_forgery_that_fits_is_refused_by_the_signature_alone(copy, verify, keys):
    (key, public), _ = keys
    folder = copy("cpu")
    assert sign(folder, key) == 0
    report = folder / "report.html"
    report.write_bytes(report.read_bytes().replace(b"PASS", b"pass"))
    forge(folder, "report.html")
    assert verify(folder)[0] == 0, "a writer of the whole folder can make it consistent"
    code, _, error = verify(folder, "--require-signature", public)
    assert (code, blamed(error)) == (2, "report.html")


def test_the_signature_of_another_build_is_refused(copy, verify, keys, stranger, tmp_path):
    (key, public), _ = keys
    folder, other = copy("cpu"), shutil.copytree(stranger, tmp_path / "stranger")
    assert sign(other, key) == 0
    shutil.copy(other / "signature.json", folder / "signature.json")
    code, _, error = verify(folder, "--require-signature", public)
    assert code == 2
    assert blamed(error) == "calibration.json", "the first that differs, by name"


def test_a_file_added_after_signing_is_refused(copy, verify, keys):
    (key, public), _ = keys
    folder = copy("cpu")
    assert sign(folder, key) == 0
    (folder / "engine.engine").write_bytes(b"a second engine")
    code, _, error = verify(folder, "--require-signature", public)
    assert (code, blamed(error)) == (2, "engine.engine")
    assert "added after the signature" in error


def test_a_build_drops_the_signature_of_what_it_changes(project, verify, keys, capsys):
    (key, public), _ = keys
    folder = project / "out"
    assert sign(folder, key) == 0
    assert build(project) == 0
    assert verify(folder, "--require-signature", public)[0] == 0, "nothing changed"
    assert build(project, "--max-drop", "30") == 0
    assert not (folder / "signature.json").exists()
    code, _, error = verify(folder, "--require-signature", public)
    assert code == 2
    assert f"ufovit sign {folder} --key" in error


def test_a_build_that_does_not_verify_is_not_signed(copy, keys, capsys):
    folder = copy("cpu")
    (folder / "drift.json").write_text("{}")
    assert sign(folder, keys[0][0]) == 2
    assert blamed(capsys.readouterr().err) == "drift.json"
    assert not (folder / "signature.json").exists()


def test_keys_that_cannot_sign(copy, keys, tmp_path, capsys):
    folder = copy("cpu")
    assert sign(folder, tmp_path / "none.pem") == 2
    assert "openssl genpkey -algorithm ed25519" in capsys.readouterr().err
    keys[0][0].chmod(0o644)
    assert sign(folder, keys[0][0]) == 2
    assert "chmod 600" in capsys.readouterr().err
    assert not (folder / "signature.json").exists()


def test_without_cryptography(copy, tmp_path, capsys, monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "cryptography"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "cryptography", None)
    folder = copy("cpu")
    assert run(["verify", str(folder)]) == 0, "digests need no library"
    for arguments in (["sign", "--key", "key.pem"], ["verify", "--require-signature", "key.pub.pem"]):
        assert run([arguments[0], str(folder), *arguments[1:]]) == 4
        assert "pip install 'ufovit-edge[sign]'" in capsys.readouterr().err


# --- bundles


@pytest.fixture
def bundle(tmp_path):
    """A bundle whose members are what they should be by name and digest; nobody looks into them here."""
    from engines.build_folder.bundle_format import GOLDEN, PIXELS, SHAPES, BundleInfo, write_bundle
    from engines.build_folder.manifest import FileRecord
    from engines.layer_records import GraphFacts, TensorInfo

    members = {
        name: name.encode() * 50 for name in ("manifest.json", "model.onnx", PIXELS, SHAPES, "labels.npy", "logits.npy", GOLDEN)
    }
    info = BundleInfo(
        model="ufovit_tiny",
        precision="fp32",
        graph="model.onnx",
        facts=GraphFacts((), (), TensorInfo("image", (-1, 3, 32, 32), "float32"), (TensorInfo("logits", (-1, 5), "float32"),)),
        batch=(1, 1, 8),
        int8_floor=None,
        budget_points=0.5,
        random_weights=False,
        reference=FileRecord("model.onnx", "0" * 64),
        reference_ran_on="ONNX Runtime, CPU",
        data="test",
        data_sha256="0" * 64,
        members={},
    )
    write_bundle(tmp_path / "tiny.ufovit", info, members)
    return tmp_path / "tiny.ufovit"


def test_a_bundle_verifies_and_a_flip_in_it_does_not(bundle, verify):
    code, output, error = verify(bundle)
    assert (code, error) == (0, "")
    told = table(output)
    assert told["tiny.ufovit"] == (sha256(bundle)[:16], "ok")
    assert told["model.onnx"] == (hashlib.sha256(b"model.onnx" * 50).hexdigest()[:16], "ok")
    good, rng = bundle.read_bytes(), random.Random(1)
    for position in (0, len(good) // 2, len(good) - 1, *(rng.randrange(len(good)) for _ in range(20))):
        data = bytearray(good)
        data[position] ^= 1 << rng.randrange(8)
        bundle.write_bytes(data)
        code, _, error = verify(bundle)
        assert code == 2, position
        assert str(bundle) in error


def test_a_signed_bundle(bundle, verify, keys, capsys):
    (key, public), (_, other) = keys
    assert sign(bundle, key) == 0
    assert "1 file signed" in capsys.readouterr().out
    assert verify(bundle, "--require-signature", public)[0] == 0
    assert "signed with another key" in verify(bundle, "--require-signature", other)[2]
    data = bytearray(bundle.read_bytes())
    data[len(data) // 2] ^= 1
    bundle.write_bytes(data)
    assert verify(bundle, "--require-signature", public)[0] == 2
    assert sign(bundle, key) == 2, "a bundle that does not verify is not signed"
