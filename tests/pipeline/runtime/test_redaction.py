"""Secrets, as people plant them, in what is said."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.runtime import redaction

PLANTED = "Pl4nted.Secret"


@pytest.mark.parametrize(
    ("words", "left"),
    [
        (f"View run at: http://me:{PLANTED}@host:5000/#/runs/1", "View run at: http://host:5000/#/runs/1"),
        (f"https://{PLANTED}@github.com/a/b.git", "https://github.com/a/b.git"),
        (f"postgresql+psycopg2://u:{PLANTED}@db:5432/x", "postgresql+psycopg2://db:5432/x"),
        (f"http://u:p@{PLANTED}@host/x", "http://host/x"),
        (f"https://m.example/f?a=1&token={PLANTED}&b=2", "https://m.example/f?a=1&token=***&b=2"),
        (f"s3://b/k?X-Amz-Signature={PLANTED}", "s3://b/k?X-Amz-Signature=***"),
        (f"https://a.blob/x?sv=1&sig={PLANTED}", "https://a.blob/x?sv=1&sig=***"),
        (f"Authorization: Bearer {PLANTED}", "Authorization: Bearer ***"),
        (f"{{'uri': 'http://u:{PLANTED}@h'}}", "{'uri': 'http://h'}"),
        (f"tracking: me:{PLANTED}@host:5000 is no address", "tracking: host:5000 is no address"),
    ],
)
def test_a_secret_in_an_address_is_left_out(words: str, left: str) -> None:
    assert redaction.redact(words) == left


@pytest.mark.parametrize(
    "words",
    [
        "http://host:5000/@me/x", "user@host: 5 of 7", "https://h/x?step=3&monkey=1", "sqlite:////a/b@c/mlflow.db",
        "file:///we%3Fird/a@b", "git@host.example:a/b.git", "head:6379 (me@host)", "a.py:12: in f",
        "the basic block, bearer of news", "token 5", "models:/alexnet@champion",
    ],
)  # fmt: skip
def test_what_is_no_secret_stays(words: str) -> None:
    assert redaction.redact(words) == words


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("HF_TOKEN", PLANTED), ("AWS_SECRET_ACCESS_KEY", PLANTED), ("MLFLOW_TRACKING_PASSWORD", PLANTED),
        ("AWS_SESSION_TOKEN", PLANTED), ("KAGGLE_KEY", PLANTED), ("AZURE_STORAGE_ACCOUNT_KEY", PLANTED),
        ("MLFLOW_TRACKING_URI", f"http://u:{PLANTED}@h"), ("HTTPS_PROXY", f"http://u:{PLANTED}@proxy:1"),
        ("PGPASSWORD", PLANTED), ("MYSQL_PWD", PLANTED), ("SMTP_PASS", PLANTED), ("GITHUB_PAT", PLANTED),
        ("AZURE_STORAGE_CONNECTION_STRING", f"AccountName=me;AccountKey={PLANTED};EndpointSuffix=h"),
        ("SOME_DSN", f"mysql+pymysql://u:{PLANTED}@h/db"), ("PIP_INDEX_URL", f"https://{PLANTED}@h/simple"),
    ],
)  # fmt: skip
def test_a_secret_of_the_environment_is_hidden_wherever_it_stands(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    assert PLANTED not in redaction.redact(f"no {value} here, nor {PLANTED}.")


def test_what_is_no_secret_in_the_environment_is_no_word_to_hide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "training")
    monkeypatch.setenv("SHORT_TOKEN", "a")
    monkeypatch.setenv("EMPTY_TOKEN", "")
    monkeypatch.setenv("COMPASS", "training")
    monkeypatch.setenv("OLDPWD", "training")
    assert redaction.redact("training a network") == "training a network"


def test_a_quoted_password_is_hidden_in_both_spellings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://u:se%2Fcret%40pw@h")
    assert redaction.redact("se/cret@pw se%2Fcret%40pw") == "*** ***"


def test_a_token_with_an_end_of_line_behind_it_is_hidden_without(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", f"{PLANTED}\r\n")
    assert redaction.redact(f"value: '{PLANTED}\\r\\n'") == "value: '***\\r\\n'"


def test_a_password_with_a_slash_is_hidden_as_sqlalchemy_reads_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_DSN", f"postgresql://u:a/{PLANTED}@h/db")
    assert PLANTED not in redaction.redact(f"postgresql://u:a/{PLANTED}@h/db: no such database")


def test_an_address_from_a_file_is_hidden_from_then_on() -> None:
    redaction.hide_password("http://u:of-machine-yaml@h")
    assert redaction.redact("of-machine-yaml") == "***"


PROGRAM = """
import sys
from pipeline.runtime import redaction
with redaction.guarded():
    print("out http://u:Pl4nted.Secret@h/a")
    print("err", "http://u:Pl4nted.Secret@h/b", file=sys.stderr)
    raise RuntimeError("http://u:Pl4nted.Secret@h/c")
"""


def test_neither_stream_nor_a_traceback_has_it() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False, cwd=Path(__file__).parents[3]
    )
    assert done.stdout == "out http://h/a\n"
    assert "http://h/b" in done.stderr and "RuntimeError: http://h/c" in done.stderr
    assert PLANTED not in done.stdout + done.stderr


def test_the_stream_is_else_what_it_was() -> None:
    stream = io.StringIO()
    guarded = redaction.Redacted(stream)
    assert guarded.write("words") == 5
    guarded.writelines(["a", "b"])
    assert not guarded.isatty()
    assert stream.getvalue() == "wordsab"
