"""Where the token of the page comes from: the command line, a file that others cannot read, the environment."""

import pytest

from calib.errors import InputError
from edge.camera.camera_request import CameraRequest
from edge.cli import run
from edge.cli.camera import _with_token

TOKEN = "correct-horse"


@pytest.fixture
def secret(tmp_path):
    path = tmp_path / "token"
    path.write_text(f"{TOKEN}\r\nsecond line\n")
    path.chmod(0o600)
    return path


@pytest.fixture(autouse=True)
def _empty_environment(monkeypatch):
    monkeypatch.delenv("UFOVIT_TOKEN", raising=False)


def token(**options):
    return _with_token(CameraRequest("build", "synthetic://", **{"serve": "8080", **options})).token


def test_the_token_of_a_file_of_the_environment_and_of_the_command_line(secret, monkeypatch):
    assert token() is None
    assert token(token_file=secret) == TOKEN
    monkeypatch.setenv("UFOVIT_TOKEN", "from-the-environment")
    assert token() == "from-the-environment"
    assert token(token_file=secret) == TOKEN
    assert token(token="on-the-command-line") == "on-the-command-line"
    assert token(serve=None) is None, "without a page it is nobody's"
    monkeypatch.setenv("UFOVIT_TOKEN", "")
    assert token() is None


@pytest.mark.parametrize("content", [b"short", b"", b"\xff\xfe long enough", b"with a space", b"x" * 100_000])
def test_a_file_without_a_token_is_refused_by_its_name_and_not_repeated(secret, content):
    secret.write_bytes(content)
    with pytest.raises(InputError, match=str(secret)) as refused:
        token(token_file=secret)
    assert not content or content.decode(errors="replace") not in str(refused.value)


def test_the_environment_is_named(monkeypatch):
    monkeypatch.setenv("UFOVIT_TOKEN", "short")
    with pytest.raises(InputError, match="UFOVIT_TOKEN"):
        token()


def test_a_file_that_others_can_read_is_refused(secret, capsys):
    secret.chmod(0o640)
    assert run(["camera", "none", "--source", "synthetic://", "--serve", "0", "--token-file", str(secret)]) == 2
    error = capsys.readouterr().err
    assert "other users can read this secret" in error
    assert f"chmod 600 {secret}" in error


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"token": TOKEN, "token_file": "secret"}, "--token and --token-file exclude each other"),
        ({"token_file": "secret", "serve": None}, "--token-file is about the page"),
        ({"token_file": "missing"}, "file not found"),
        ({"token_file": "."}, "not a regular file"),
    ],
)
def test_options_that_will_not_do(secret, options, says):
    files = {name: secret.parent / value.replace("secret", "token") for name, value in options.items() if name == "token_file"}
    with pytest.raises(InputError, match=says):
        token(**{**options, **files})
