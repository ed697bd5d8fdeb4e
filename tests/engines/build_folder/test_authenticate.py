"""What may be deserialized: only bytes that were authenticated, only where they can run."""

import base64
import dataclasses
import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
from pem_keys import pem_pair

from calib.errors import InputError, MissingError
from calib.files import write_json
from engines.build_folder import safe_files
from engines.build_folder.authenticate import check_runs_here, read_authenticated
from engines.build_folder.folder import BuildFolder
from engines.build_folder.manifest import EngineManifest, EngineRecord, FileRecord, write_manifest
from engines.build_folder.step_record import StepRecord, write_record
from engines.layer_records import TensorInfo
from engines.precision_receipt import Receipt

PLAN = b"a serialized plan" * 100


@pytest.fixture(autouse=True)
def nothing_more_to_say(capsys):
    yield
    assert capsys.readouterr().err == ""


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "build"
    path.mkdir()
    (path / "engine.engine").write_bytes(PLAN)
    (path / "model.onnx").write_bytes(b"float")
    engine = EngineRecord(
        "engine.engine", hashlib.sha256(PLAN).hexdigest(), len(PLAN), "trt", "10.3.0", ("8.7",), device="Orin Nano"
    )
    manifest = EngineManifest(
        model="ufovit_t",
        precision="int8",
        target="orin-nano",
        task="classification",
        created="2026-11-22T14:00:00+00:00",
        checkpoint=None,
        onnx=FileRecord("model.onnx", hashlib.sha256(b"float").hexdigest()),
        qdq_onnx=None,
        calibration=None,
        engine=engine,
        input=TensorInfo("image", (-1, 3, 64, 64), "float32"),
        outputs=(TensorInfo("logits", (-1, 2), "float32"),),
        preprocess={"sha256": "e" * 64},
        labels=("a", "b"),
        receipt=Receipt(0.0, {}, {}, ()),
    )
    write_manifest(path, manifest)
    return path


def test_a_folder_and_an_engine_in_it(folder):
    for path in (folder, folder / "engine.engine"):
        assert read_authenticated(path) == (BuildFolder(folder).manifest, PLAN)


@pytest.mark.parametrize("position", [0, len(PLAN) // 2, len(PLAN) - 1])
def test_a_flip_is_refused_and_no_option_lets_it_through(folder, position):
    data = bytearray(PLAN)
    data[position] ^= 1
    (folder / "engine.engine").write_bytes(data)
    for path in (folder, folder / "engine.engine"):
        for unsafe in (False, True):
            with pytest.raises(InputError, match=r"engine\.engine"):
                read_authenticated(path, unsafe_no_manifest=unsafe)


@pytest.mark.parametrize("data", [b"", PLAN[:-1], PLAN + b"\0"])
def test_another_length_is_refused(folder, data):
    (folder / "engine.engine").write_bytes(data)
    with pytest.raises(InputError, match=r"engine\.engine"):
        read_authenticated(folder)


def test_each_file_is_opened_once(folder, monkeypatch):
    """So that nobody can put other bytes in its place between the check and the use."""
    real, opened = safe_files.opened, []

    def counted(path, **options):
        opened.append(path.name)
        return real(path, **options)

    monkeypatch.setattr(safe_files, "opened", counted)
    read_authenticated(folder)
    assert opened == ["manifest.json", "engine.engine"]


def test_without_a_manifest_only_the_unsafe_option_reads_it_and_says_so(folder, capsys):
    (folder / "manifest.json").unlink()
    for path in (folder, folder / "engine.engine"):
        with pytest.raises(InputError, match=r"(?s)engine\.engine.*--unsafe-no-manifest"):
            read_authenticated(path)
        assert read_authenticated(path, unsafe_no_manifest=True) == (None, PLAN)
        (sentence,) = capsys.readouterr().err.splitlines()
        assert sentence.startswith("UNSAFE")
        assert "engine.engine" in sentence
    (folder / "engine.onnx").write_bytes(b"onnx")
    with pytest.raises(InputError, match="several engines"):
        read_authenticated(folder, unsafe_no_manifest=True)


def test_it_says_so_on_stderr_alone(folder, capsys):
    (folder / "manifest.json").unlink()
    read_authenticated(folder, unsafe_no_manifest=True)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "UNSAFE" in captured.err


def test_nothing_there(folder, tmp_path):
    (tmp_path / "empty").mkdir()
    for path in (folder / "none.engine", tmp_path / "none"):
        with pytest.raises(InputError, match="no such build folder or engine"):
            read_authenticated(path, unsafe_no_manifest=True)
    with pytest.raises(InputError, match="holds no engine"):
        read_authenticated(tmp_path / "empty", unsafe_no_manifest=True)


def test_another_file_beside_the_manifest_is_not_the_engine(folder):
    (folder / "mine.engine").write_bytes(PLAN)
    for unsafe in (False, True):
        with pytest.raises(InputError, match=r"(?s)another engine.*mine\.engine.*allowed: engine\.engine"):
            read_authenticated(folder / "mine.engine", unsafe_no_manifest=unsafe)


@pytest.mark.parametrize("name", ["../engine.engine", "/etc/passwd", "sub/engine.engine", "", "..", "."])
def test_a_manifest_cannot_lead_out_of_the_folder(folder, name):
    (folder.parent / "engine.engine").write_bytes(PLAN)
    manifest = BuildFolder(folder).manifest
    write_manifest(folder, dataclasses.replace(manifest, engine=dataclasses.replace(manifest.engine, file=name)))
    with pytest.raises(InputError, match="outside its folder"):
        read_authenticated(folder)


def test_a_link_in_the_engines_place_is_refused(folder, tmp_path):
    (folder / "engine.engine").rename(tmp_path / "elsewhere")
    (folder / "engine.engine").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError, match=r"(?s)link.*engine\.engine"):
        read_authenticated(folder)
    (tmp_path / "linked").symlink_to(folder)  # a link to the whole folder is a folder
    (folder / "engine.engine").unlink()
    (folder / "engine.engine").write_bytes(PLAN)
    assert read_authenticated(tmp_path / "linked")[1] == PLAN


@pytest.mark.parametrize("broken", [b"", b"{", b"[]", b'{"schema_version": 9}', b"\xff", b"[" * 100_000])
def test_a_broken_manifest_is_not_taken_for_none(folder, broken):
    (folder / "manifest.json").write_bytes(broken)
    with pytest.raises(InputError, match=r"manifest\.json"):
        read_authenticated(folder, unsafe_no_manifest=True)


# --- signatures


@pytest.fixture
def signed(folder, tmp_path):
    """The folder, signed; the public keys of the signer and of somebody else."""
    pytest.importorskip("cryptography", reason="pip install 'ufovit-edge[sign]'")
    from engines.build_folder.signing import sign

    files = ("engine.engine", "manifest.json", "model.onnx")
    digests = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in files}
    write_record(folder, {"engine": StepRecord("0" * 64, digests)})
    pairs = [pem_pair(tmp_path, name) for name in ("ours", "theirs")]
    sign(folder, pairs[0][0])
    return folder, pairs


def test_a_signature_is_asked_for(signed):
    folder, ((_, ours), (_, theirs)) = signed
    assert read_authenticated(folder, public_key=ours)[1] == PLAN
    with pytest.raises(InputError, match="signed with another key"):
        read_authenticated(folder, public_key=theirs)
    for name in ("model.onnx", "steps.json"):  # a device gets no more than engine, manifest and signature
        (folder / name).unlink()
    assert read_authenticated(folder / "engine.engine", public_key=ours)[1] == PLAN
    (folder / "signature.json").unlink()
    with pytest.raises(InputError, match="not signed"):
        read_authenticated(folder, public_key=ours)


def test_an_engine_and_manifest_that_fit_each_other_are_refused_unless_signed(signed):
    folder, ((_, ours), _) = signed
    evil, manifest = b"evil plan", BuildFolder(folder).manifest
    (folder / "steps.json").unlink()
    (folder / "engine.engine").write_bytes(evil)
    engine = dataclasses.replace(manifest.engine, sha256=hashlib.sha256(evil).hexdigest(), bytes=len(evil))
    write_manifest(folder, dataclasses.replace(manifest, engine=engine))
    assert read_authenticated(folder)[1] == evil, "nothing but a signature can tell"
    with pytest.raises(InputError, match=r"manifest\.json"):
        read_authenticated(folder, public_key=ours)
    (folder / "evil.engine").write_bytes(evil)  # nor may an engine be taken that was not signed at all
    write_manifest(folder, dataclasses.replace(manifest, engine=dataclasses.replace(engine, file="evil.engine")))
    with pytest.raises(InputError):
        read_authenticated(folder, public_key=ours)


@pytest.mark.parametrize("left_out", ["engine.engine", "manifest.json"])
def test_engine_and_manifest_must_both_be_signed(signed, left_out):
    from engines.build_folder.keys import load_private_key
    from engines.build_folder.signature import Signature

    folder, ((private, ours), _) = signed
    fields = json.loads((folder / "signature.json").read_text())
    del fields["files"][left_out], fields["schema_version"]
    signature = base64.b64encode(load_private_key(private).sign(Signature(**fields).message)).decode()
    write_json(folder / "signature.json", {"schema_version": 1, **fields, "signature": signature})
    with pytest.raises(InputError, match=rf"(?s)not listed in the signature.*{left_out}"):
        read_authenticated(folder, public_key=ours)


def test_a_lone_engine_needs_a_signature_of_its_own(signed, capsys):
    from engines.build_folder.signing import sign

    folder, ((private, ours), (_, theirs)) = signed
    (folder / "manifest.json").unlink()
    engine = folder / "engine.engine"
    with pytest.raises(InputError, match="not signed"):
        read_authenticated(engine, public_key=ours, unsafe_no_manifest=True)
    sign(engine, private)
    assert read_authenticated(engine, public_key=ours, unsafe_no_manifest=True) == (None, PLAN)
    assert capsys.readouterr().err
    with pytest.raises(InputError, match="another key"):
        read_authenticated(engine, public_key=theirs, unsafe_no_manifest=True)
    with pytest.raises(InputError, match="--unsafe-no-manifest"):
        read_authenticated(engine, public_key=ours)
    engine.write_bytes(PLAN + b"\0")
    with pytest.raises(InputError, match=r"engine\.engine"):
        read_authenticated(engine, public_key=ours, unsafe_no_manifest=True)


# --- this machine


def runs(folder, version, capability, **changes):
    manifest = BuildFolder(folder).manifest
    changed = dataclasses.replace(manifest, engine=dataclasses.replace(manifest.engine, **changes))
    check_runs_here(changed, backend_version=version, compute_capability=capability)


@pytest.mark.parametrize(
    ("version", "capability", "changes"),
    [
        ("10.3.0", "8.7", {}),
        ("10.3.0", "8.9", {"compute_capabilities": ("8.6", "8.9")}),
        ("10.3.0", "8.9", {"hardware_compatibility": "ampere_plus"}),
        ("10.3.0", "12.0", {"hardware_compatibility": "ampere_plus"}),
        ("10.3.0", "8.0", {"hardware_compatibility": "ampere_plus"}),
        ("10.3.0", "8.7", {"hardware_compatibility": "same_compute_capability"}),
        ("10.16.1.11", "8.7", {"version_compatible": True}),
        ("10.3.0", "8.7", {"version_compatible": True}),
        ("", "", {"backend": "ort", "compute_capabilities": ()}),
    ],
)
def test_engines_that_run_here(folder, version, capability, changes):
    runs(folder, version, capability, **changes)


@pytest.mark.parametrize(
    ("version", "capability", "changes", "said"),
    [
        ("10.3.1", "8.7", {}, ("another release", "found: trt 10.3.1 here", "allowed: trt 10.3.0")),
        ("10.16.1", "8.7", {}, ("another release", "allowed: trt 10.3.0")),
        ("", "8.7", {}, ("another release", "of no version")),
        ("10.2.0", "8.7", {"version_compatible": True}, ("another release", "or later of the same major version")),
        ("9.9.0", "8.7", {"version_compatible": True}, ("another release",)),
        ("11.4.0", "8.7", {"version_compatible": True}, ("another release",)),
        ("newest", "8.7", {"version_compatible": True}, ("another release",)),
        ("10.3.0", "8.6", {}, ("another GPU", "found: compute capability 8.6", "8.7, built on Orin Nano")),
        ("10.3.0", "", {}, ("another GPU", "no GPU here")),
        ("10.3.0", "8.70", {}, ("another GPU",)),
        ("10.3.0", "7.5", {"hardware_compatibility": "ampere_plus"}, ("another GPU", "8.0 or newer")),
        ("10.3.0", "", {"hardware_compatibility": "ampere_plus"}, ("another GPU", "no GPU here")),
        ("10.3.0", "8.9", {"hardware_compatibility": "same_compute_capability"}, ("another GPU",)),
        ("10.3.0", "8.7", {"compute_capabilities": ()}, ("another GPU", "lists no GPU")),
        ("1.7.2", "8.7", {"backend": "trt_rtx", "backend_version": "1.7.1"}, ("another release", "trt_rtx 1.7.1")),
    ],
)
def test_engines_that_do_not(folder, version, capability, changes, said):
    with pytest.raises(MissingError) as caught:
        runs(folder, version, capability, **changes)
    for text in (*said, "engine.engine", "ufovit build ufovit_t int8 --target orin-nano"):
        assert text in str(caught.value)


def test_a_device_loads_it_with_the_standard_library_alone():
    program = (
        "import sys\n"
        "from engines.build_folder import authenticate, folder, verify, step_record, signature, signing\n"
        "heavy = {'numpy', 'onnx', 'torch', 'tensorrt', 'cryptography', 'cyclopts', 'rich', 'edge'} & set(sys.modules)\n"
        "sys.exit(str(sorted(heavy)) if heavy else 0)"
    )
    root = Path(__file__).parents[3]
    done = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
