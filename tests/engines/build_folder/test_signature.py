"""Signatures: the openssl command line and RFC 8032 are the oracles; whatever else is signed, changed or missing is refused."""

import base64
import hashlib
import json
import shutil
import subprocess
import sys
from datetime import datetime, timedelta, timezone

import pytest

pytest.importorskip("cryptography", reason="pip install 'ufovit-edge[sign]'")

from calib.errors import InputError, MissingError
from calib.files import sha256_file
from engines.build_folder.keys import fingerprint, load_private_key, load_public_key
from engines.build_folder.manifest import EngineManifest, EngineRecord, FileRecord, write_manifest
from engines.build_folder.signature import DOMAIN, read_signature, signature_path
from engines.build_folder.signing import check_signature, sign
from engines.build_folder.step_record import StepRecord, write_record
from engines.layer_records import TensorInfo
from engines.precision_receipt import Receipt

needs_openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="needs the openssl command line")


def openssl(*arguments, **options):
    return subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True, timeout=60, **options).stdout


def make_key(path, *options):
    """A private key by openssl, and its public key beside it."""
    openssl("genpkey", *(options or ("-algorithm", "ed25519")), "-out", path)
    path.chmod(0o600)
    public = path.with_suffix(".pub.pem")
    openssl("pkey", "-in", path, "-pubout", "-out", public)
    return path, public


@pytest.fixture(scope="session")
def keys(tmp_path_factory):
    """Two pairs of keys, as RFC 8410 lays them out in PEM, made from fixed seeds with base64 alone."""
    folder, pairs = tmp_path_factory.mktemp("keys"), []
    for seed, public in VECTORS:
        private_der = bytes.fromhex("302e020100300506032b657004220420" + seed)
        public_der = bytes.fromhex("302a300506032b6570032100" + public)
        files = folder / f"{public[:4]}.pem", folder / f"{public[:4]}.pub.pem"
        for path, der, what in zip(files, (private_der, public_der), ("PRIVATE KEY", "PUBLIC KEY"), strict=True):
            path.write_text(f"-----BEGIN {what}-----\n{base64.b64encode(der).decode()}\n-----END {what}-----\n")
            path.chmod(0o600)
        pairs.append(files)
    return pairs


VECTORS = (
    (
        "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60",
        "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
    ),
    (
        "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb",
        "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
    ),
)
"""Secret and public keys of RFC 8032, 7.1, tests 1 and 2."""
MESSAGES = (b"", b"\x72")
SIGNATURES = (
    "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b",
    "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00",
)


@pytest.fixture
def bundle(tmp_path):
    path = tmp_path / "model.bin"
    path.write_bytes(b"a bundle" * 1000)
    return path


@pytest.fixture
def folder(tmp_path):
    return make_folder(tmp_path / "build", b"plan")


def make_folder(path, plan):
    """A build folder that verifies: an engine, its graph, its manifest, a report, a record."""
    path.mkdir()
    for name, data in (("engine.engine", plan), ("model.onnx", b"float"), ("report.html", b"<html>")):
        (path / name).write_bytes(data)
    manifest = EngineManifest(
        model="ufovit_t",
        precision="fp32",
        target="rtx",
        task="classification",
        created="2026-11-22T14:00:00+00:00",
        checkpoint=None,
        onnx=FileRecord("model.onnx", sha256_file(path / "model.onnx")),
        qdq_onnx=None,
        calibration=None,
        engine=EngineRecord("engine.engine", sha256_file(path / "engine.engine"), len(plan), "trt_rtx", "1.7", ("8.0",)),
        input=TensorInfo("image", (-1, 3, 64, 64), "float32"),
        outputs=(TensorInfo("logits", (-1, 2), "float32"),),
        preprocess={"sha256": "e" * 64},
        labels=("a", "b"),
        receipt=Receipt(0.0, {}, {}, ()),
    )
    write_manifest(path, manifest)
    files = ("engine.engine", "model.onnx", "report.html", "manifest.json")
    write_record(path, {"engine": StepRecord("0" * 64, {name: sha256_file(path / name) for name in files})})
    return path


FILES = ("engine.engine", "manifest.json", "model.onnx", "report.html", "steps.json")


def canonical(value):
    return (json.dumps(value, sort_keys=True, indent=2, ensure_ascii=False) + "\n").encode()


def message_of(path):
    """What is signed, rebuilt from the file with json alone."""
    fields = json.loads(path.read_text())
    signature = base64.b64decode(fields.pop("signature"))
    return b"ufovit-edge signature 1\n" + canonical(fields), signature


# --- oracles


@pytest.mark.parametrize("case", [0, 1])
def test_rfc_8032(keys, case):
    private, public = load_private_key(keys[case][0]), load_public_key(keys[case][1])
    expected = bytes.fromhex(SIGNATURES[case])
    assert private.sign(MESSAGES[case]) == expected
    public.verify(expected, MESSAGES[case])
    der = bytes.fromhex("302a300506032b6570032100" + VECTORS[case][1])
    assert fingerprint(public) == fingerprint(private.public_key()) == hashlib.sha256(der).hexdigest()


@needs_openssl
def test_openssl_verifies_what_we_sign(folder, bundle, tmp_path):
    private, public = make_key(tmp_path / "key.pem")
    for path in (folder, bundle):
        made = sign(path, private)
        message, signature = message_of(signature_path(path))
        (tmp_path / "message").write_bytes(message)
        (tmp_path / "raw").write_bytes(signature)
        check = ("pkeyutl", "-verify", "-pubin", "-inkey", public, "-rawin", "-sigfile", tmp_path / "raw")
        assert b"Verified Successfully" in openssl(*check, "-in", tmp_path / "message")
        der = openssl("pkey", "-pubin", "-in", public, "-outform", "DER")
        assert made.public_key == hashlib.sha256(der).hexdigest()
        (tmp_path / "message").write_bytes(message[1:])
        with pytest.raises(subprocess.CalledProcessError):
            openssl(*check, "-in", tmp_path / "message")


@needs_openssl
def test_we_verify_what_openssl_signs(folder, tmp_path):
    private, public = make_key(tmp_path / "key.pem")
    fields = {
        "schema_version": 1,
        "algorithm": "Ed25519",
        "public_key": hashlib.sha256(openssl("pkey", "-pubin", "-in", public, "-outform", "DER")).hexdigest(),
        "signed": "2026-11-22T14:00:00+00:00",
        "files": {name: sha256_file(folder / name) for name in FILES},
    }
    (tmp_path / "message").write_bytes(DOMAIN + canonical(fields))
    openssl("pkeyutl", "-sign", "-inkey", private, "-rawin", "-in", tmp_path / "message", "-out", tmp_path / "raw")
    signature = base64.b64encode((tmp_path / "raw").read_bytes()).decode()
    (folder / "signature.json").write_bytes(canonical({**fields, "signature": signature}))
    assert check_signature(folder, public).files == fields["files"]
    (tmp_path / "message").write_bytes(canonical(fields))  # without the domain in front
    openssl("pkeyutl", "-sign", "-inkey", private, "-rawin", "-in", tmp_path / "message", "-out", tmp_path / "raw")
    signature = base64.b64encode((tmp_path / "raw").read_bytes()).decode()
    (folder / "signature.json").write_bytes(canonical({**fields, "signature": signature}))
    with pytest.raises(InputError, match="is invalid"):
        check_signature(folder, public)


# --- what is signed


def test_a_signed_folder(folder, keys):
    made = sign(folder, keys[0][0])
    assert made.files == {name: sha256_file(folder / name) for name in FILES}
    assert made.algorithm == "Ed25519"
    assert abs(datetime.fromisoformat(made.signed) - datetime.now(timezone.utc)) < timedelta(minutes=5)
    assert check_signature(folder, keys[0][1]) == made
    assert set(json.loads((folder / "signature.json").read_text())) == {
        "schema_version", "algorithm", "public_key", "signed", "files", "signature",
    }  # fmt: skip
    assert sign(folder, keys[1][0]).public_key != made.public_key, "signing again replaces the signature"
    assert check_signature(folder, keys[1][1])


def test_a_signed_file(bundle, keys):
    made = sign(bundle, keys[0][0])
    assert made.files == {"model.bin": sha256_file(bundle)}
    assert check_signature(bundle, keys[0][1]) == made
    renamed = bundle.rename(bundle.with_name("other.bin"))
    shutil.copy(bundle.with_name("model.bin.sig"), bundle.with_name("other.bin.sig"))
    with pytest.raises(InputError, match=r"(?s)not listed in the signature.*other\.bin"):
        check_signature(renamed, keys[0][1])


def test_a_folder_that_does_not_verify_is_not_signed(folder, keys):
    (folder / "report.html").write_bytes(b"<html>better")
    with pytest.raises(InputError, match=r"report\.html"):
        sign(folder, keys[0][0])
    assert not (folder / "signature.json").exists()


@pytest.mark.parametrize("name", FILES)
def test_a_changed_file_is_refused_by_name(folder, keys, name):
    sign(folder, keys[0][0])
    good = (folder / name).read_bytes()
    for position in {0, len(good) // 2, len(good) - 1}:
        data = bytearray(good)
        data[position] ^= 1
        (folder / name).write_bytes(data)
        refused(folder, keys[0][1], name)
    for data in (good[:-1], b"", good + b"\n"):
        (folder / name).write_bytes(data)
        refused(folder, keys[0][1], name)
    (folder / name).unlink()
    refused(folder, keys[0][1], name)
    (folder / name).symlink_to("/etc/passwd")
    refused(folder, keys[0][1], name)


def refused(path, public, name, said=None):
    with pytest.raises(InputError, match=said) as caught:
        check_signature(path, public)
    where = next(line for line in str(caught.value).splitlines() if line.startswith("  where: "))
    assert where == f"  where: {path / name}", str(caught.value)


def test_an_added_artifact_is_refused_by_name(folder, keys):
    sign(folder, keys[0][0])
    (folder / "notes.txt").write_text("no artifact")
    check_signature(folder, keys[0][1])
    for name in ("drift.json", "engine.onnx", "model.typed.onnx", "logits.npz"):
        (folder / name).write_bytes(b"added")
        refused(folder, keys[0][1], name, "added after the signature")
        (folder / name).unlink()


@pytest.mark.slow
def test_every_flip_in_the_signature_is_refused(folder, keys):
    sign(folder, keys[0][0])
    path = folder / "signature.json"
    good = path.read_bytes()
    for position in range(len(good)):
        data = bytearray(good)
        data[position] ^= 1 << position % 8
        path.write_bytes(data)
        refused(folder, keys[0][1], "signature.json")


@pytest.mark.parametrize(
    "change",
    [
        {"signed": "2030-01-01T00:00:00+00:00"},
        {"algorithm": "none"},
        {"signature": ""},
        {"signature": base64.b64encode(bytes(64)).decode()},
        {"signature": base64.b64encode(bytes(63)).decode()},
        {"files": {}},
        {"files": {"../engine.engine": "0" * 64}},
        {"comment": "an unknown field"},
        {"schema_version": 2},
        {"public_key": "0" * 64},
    ],
    ids=str,
)
def test_a_changed_signature_is_refused(folder, keys, change):
    sign(folder, keys[0][0])
    path = folder / "signature.json"
    path.write_bytes(canonical({**json.loads(path.read_text()), **change}))
    refused(folder, keys[0][1], "signature.json")


def test_the_same_signature_in_other_bytes_is_refused(folder, keys):
    sign(folder, keys[0][0])
    path = folder / "signature.json"
    fields = json.loads(path.read_text())
    text = fields["signature"]
    twin = text[:-3] + chr(ord(text[-3]) + 1) + "=="  # the last digit holds four bits that base64 does not use
    assert base64.b64decode(twin) == base64.b64decode(text)
    for data in (json.dumps(fields, sort_keys=True).encode(), canonical({**fields, "signature": twin})):
        path.write_bytes(data)
        refused(folder, keys[0][1], "signature.json", "malformed signature")


def test_a_signed_path_is_refused(folder, keys):
    """Even the owner of the key cannot make us read outside the folder."""
    private = load_private_key(keys[0][0])
    fields = {
        "schema_version": 1, "algorithm": "Ed25519", "public_key": fingerprint(private.public_key()),
        "signed": "2026-11-22T14:00:00+00:00", "files": {"../secret": "0" * 64},
    }  # fmt: skip
    signature = base64.b64encode(private.sign(DOMAIN + canonical(fields))).decode()
    (folder / "signature.json").write_bytes(canonical({**fields, "signature": signature}))
    refused(folder, keys[0][1], "signature.json", "outside its folder")


def test_the_signature_of_another_key(folder, keys):
    sign(folder, keys[1][0])
    refused(folder, keys[0][1], "signature.json", "signed with another key")
    path = folder / "signature.json"  # and with the other key's name put into it
    fingerprint_of_first = fingerprint(load_public_key(keys[0][1]))
    path.write_bytes(canonical({**json.loads(path.read_text()), "public_key": fingerprint_of_first}))
    refused(folder, keys[0][1], "signature.json", "is invalid")


def test_the_signature_of_another_build(folder, keys, tmp_path):
    other = make_folder(tmp_path / "other", b"another plan")
    sign(other, keys[0][0])
    shutil.copy(other / "signature.json", folder / "signature.json")
    refused(folder, keys[0][1], "engine.engine", "does not match its recorded digest")


def test_the_signature_of_a_folder_is_none_of_a_file(folder, keys):
    sign(folder, keys[0][0])
    shutil.copy(folder / "signature.json", folder / "engine.engine.sig")
    with pytest.raises(InputError, match="signature of a folder beside a single file"):
        check_signature(folder / "engine.engine", keys[0][1])


def test_an_unsigned_folder_names_the_command(folder, bundle, keys):
    for path in (folder, bundle):
        with pytest.raises(InputError, match=rf"(?s)not signed.*ufovit sign {path} --key"):
            read_signature(path, keys[0][1])


# --- keys


def test_a_missing_key_names_the_commands_that_make_one(bundle, tmp_path):
    with pytest.raises(InputError) as caught:
        sign(bundle, tmp_path / "none.pem")
    assert "openssl genpkey -algorithm ed25519 -out key.pem" in str(caught.value)
    assert "openssl pkey -in key.pem -pubout -out key.pub.pem" in str(caught.value)
    with pytest.raises(InputError, match=r"openssl pkey -in key\.pem -pubout"):
        check_signature(bundle, tmp_path / "none.pem")


@needs_openssl
def test_the_commands_that_are_named_make_keys_that_work(bundle, tmp_path):
    with pytest.raises(InputError) as caught:
        sign(bundle, tmp_path / "none.pem")
    (commands,) = (line.removeprefix("  next: ") for line in str(caught.value).splitlines() if line.startswith("  next: "))
    subprocess.run(commands, shell=True, check=True, cwd=tmp_path, timeout=60)
    sign(bundle, tmp_path / "key.pem")
    check_signature(bundle, tmp_path / "key.pub.pem")


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o620, 0o610])
def test_a_key_that_others_can_read_is_refused(bundle, keys, tmp_path, mode):
    key = tmp_path / "key.pem"
    shutil.copy(keys[0][0], key)
    key.chmod(mode)
    with pytest.raises(InputError, match=rf"(?s)mode {mode:04o}.*chmod 600 {key}"):
        sign(bundle, key)
    assert not signature_path(bundle).exists()
    for private in (0o600, 0o400):
        key.chmod(private)
        sign(bundle, key)


@needs_openssl
@pytest.mark.parametrize(
    "options",
    [
        ("-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"),
        ("-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"),
        ("-algorithm", "ED448"),
        ("-algorithm", "X25519"),
    ],
    ids=lambda options: options[1],
)
def test_another_kind_of_key_is_refused(bundle, keys, tmp_path, options):
    private, public = make_key(tmp_path / "key.pem", *options)
    with pytest.raises(InputError, match=r"(?s)not an Ed25519 key.*openssl genpkey -algorithm ed25519") as caught:
        sign(bundle, private)
    assert f"{options[1]} key".lower() in str(caught.value).lower()
    sign(bundle, keys[0][0])
    with pytest.raises(InputError, match="not an Ed25519 key"):
        check_signature(bundle, public)


def test_public_and_private_keys_are_not_taken_for_each_other(bundle, keys):
    private, public = keys[0]
    with pytest.raises(InputError, match="public key cannot sign"):
        sign(bundle, public)
    sign(bundle, private)
    with pytest.raises(InputError, match=r"(?s)found a private key.*openssl pkey -in key\.pem -pubout"):
        check_signature(bundle, private)


@pytest.mark.parametrize(
    "content", [b"", b"hello", b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", b"\xff\x00"]
)
def test_what_is_no_key_is_refused(bundle, tmp_path, content):
    key = tmp_path / "key.pem"
    key.write_bytes(content)
    key.chmod(0o600)
    with pytest.raises(InputError, match=r"(?s)not a PEM key.*openssl genpkey"):
        sign(bundle, key)
    key.write_bytes(content.replace(b"PRIVATE", b"PUBLIC"))
    with pytest.raises(InputError, match=r"(?s)not a PEM key.*openssl pkey"):
        check_signature(bundle, key)


@needs_openssl
def test_an_encrypted_key_opens_with_its_passphrase_file(bundle, keys, tmp_path):
    plain, encrypted, phrase = tmp_path / "plain.pem", tmp_path / "key.pem", tmp_path / "phrase"
    shutil.copy(keys[0][0], plain)
    openssl("pkey", "-in", plain, "-aes256", "-passout", "pass:correct horse", "-out", encrypted)
    phrase.write_text("correct horse\n")
    for path in (encrypted, phrase):
        path.chmod(0o600)
    sign(bundle, encrypted, passphrase_file=phrase)
    check_signature(bundle, keys[0][1])
    signature_path(bundle).unlink()
    with pytest.raises(InputError, match="--passphrase-file"):
        sign(bundle, encrypted)
    with pytest.raises(InputError, match="--passphrase-file"):
        sign(bundle, keys[0][0], passphrase_file=phrase)
    phrase.write_text("wrong horse\n")
    with pytest.raises(InputError, match="wrong passphrase"):
        sign(bundle, encrypted, passphrase_file=phrase)
    phrase.chmod(0o644)
    with pytest.raises(InputError, match="chmod 600"):
        sign(bundle, encrypted, passphrase_file=phrase)
    with pytest.raises(InputError, match="file not found"):
        sign(bundle, encrypted, passphrase_file=tmp_path / "none")
    assert not signature_path(bundle).exists()


def test_without_cryptography_the_extra_is_named(bundle, keys, monkeypatch):
    sign(bundle, keys[0][0])
    for name in [name for name in sys.modules if name.split(".")[0] == "cryptography"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "cryptography", None)
    for action in (lambda: sign(bundle, keys[0][0]), lambda: check_signature(bundle, keys[0][1])):
        with pytest.raises(MissingError, match=r"pip install 'ufovit-edge\[sign\]'"):
            action()
