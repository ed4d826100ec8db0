"""MLflow's address as people type it: what is meant is taken, or the message says what to type."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from sqlalchemy.engine import make_url

from pipeline.doctor import preflight
from pipeline.runtime.machines import Machine
from pipeline.tracking import __main__ as program
from pipeline.tracking import addresses, runs


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("127.0.0.1:5000", "http://127.0.0.1:5000"),
        ("localhost:5000", "http://localhost:5000"),
        ("myhost:5000", "http://myhost:5000"),
        ("[::1]:5000", "http://[::1]:5000"),
        ("mlflow.example.com:443/team", "https://mlflow.example.com:443/team"),
        (" http://host:5000\n", "http://host:5000"),
        ("http://host:5000/#/experiments/3?searchFilter=", "http://host:5000"),
        ("https://me:word@host/x", "https://me:word@host/x"),
        ("databricks", "databricks"),
        ("databricks://profile", "databricks://profile"),
        ("databricks-uc://profile", "databricks-uc://profile"),
        ("postgresql+psycopg2://me:a#b@host/db", "postgresql+psycopg2://me:a#b@host/db"),
        ("mysql+pymysql://host:3306/db", "mysql+pymysql://host:3306/db"),
    ],
)
def test_what_is_meant_is_taken(typed: str, meant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert runs.address(Machine(tracking=typed)) == meant
    preflight._addresses(Machine(tracking=typed))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", typed)
    assert runs.address(Machine()) == meant


@pytest.mark.parametrize("typed", ["sqlite:a.db", "sqlite://a.db", "sqlite:///a.db", "a.db", "./a.db"])
def test_a_relative_database_is_below_the_working_copy(
    typed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    address = runs.address(Machine(tracking=typed))
    assert make_url(address).database == str(tmp_path / "a.db"), "as MLflow's own reader has it"


@pytest.mark.parametrize("typed", ["sqlite:{}/a.db", "sqlite:///{}/a.db", "{}/a.db"])
def test_an_absolute_database_is_where_it_says(typed: str, tmp_path: Path) -> None:
    address = runs.address(Machine(tracking=typed.format(tmp_path)))
    assert make_url(address).database == str(tmp_path / "a.db")


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        ("./mlruns", r"is a folder, which MLflow .* no longer takes; its runs can be moved: mlflow migrate-filestore"),
        ("mlruns", "is a folder"),
        ("file:///tmp/mlruns", "is a folder"),
        (r"C:\mlruns", "is a folder"),
        ("localhost", r"has no port. If it is a server, write http://localhost:5000\. Give a server"),
        ("mlflow.example.com", "has no port. If it is a server, write http://mlflow.example.com:5000"),
        ("//host:5000", "has no http: before it. Write http://host:5000"),
        ("http:/host:5000", "is no server's address. Write http://host:5000"),
        ("http//host:5000", "is no server's address. Write http://host:5000"),
        ("https:host", "is no server's address. Write https://host$"),
        ("http:///host:5000", "is no server's address. Write http://host:5000"),
        ("http://", "is no server's address. Write http://host:5000"),
        ("http://host:abc", "its port is not a number from 1 to 65535"),
        ("host:99999", "its port is not a number from 1 to 65535"),
        ("http://[::1", "its port is not a number"),
        (
            "htp://host",
            "is neither a server nor a database that MLflow knows: an address of one begins with http, https",
        ),
        ("s3://bucket/mlflow", "is neither a server nor a database"),
        ("me:Pl4nted.Secret@host:5000", "tracking: host:5000 is neither a server nor a database"),
        ("postgres://me:Pl4nted.Secret@host/db", "tracking: postgres://host/db is neither"),
        ("sqlite:", "is a database in memory"),
        ("sqlite://", "is a database in memory"),
    ],
)
def test_what_is_not_meant_is_told_with_what_to_type(typed: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("tracking", "MLFLOW_TRACKING_URI"):
        machine = Machine(tracking=typed) if name == "tracking" else Machine()
        monkeypatch.setenv("MLFLOW_TRACKING_URI", typed)
        with pytest.raises(ValueError, match=words) as caught:
            runs.address(machine)
        assert "Pl4nted" not in str(caught.value)
        assert "\n" not in str(caught.value)


def test_what_is_not_meant_is_told_before_the_first_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"^machine\.yaml: tracking: mlruns is a folder"):
        preflight._addresses(Machine(tracking="mlruns"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "mlruns")
    with pytest.raises(ValueError, match=r"^MLFLOW_TRACKING_URI: mlruns is a folder"):
        preflight._addresses(Machine())
    preflight._addresses(Machine(tracking="host:5000"))  # machine.yaml's goes before it


def test_three_slashes_where_four_are_meant_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("DVC_ROOT", str(tmp_path / "home"))
    with pytest.raises(ValueError, match=f"An absolute path has four slashes: sqlite:///{tmp_path}/a.db"):
        runs.address(Machine(tracking=f"sqlite://{tmp_path}/a.db"))


@pytest.fixture
def plugin(monkeypatch: pytest.MonkeyPatch) -> None:
    """A plugin of MLflow for addresses that begin with arn:."""

    class Plugin:
        name = "arn"

    monkeypatch.setattr(addresses.metadata, "entry_points", lambda group: [Plugin] * (group == "mlflow.tracking_store"))


@pytest.mark.usefixtures("plugin")
def test_an_address_of_a_plugin_is_left_to_it() -> None:
    assert addresses.parse("arn:aws:sagemaker:eu-west-1:1:mlflow-tracking-server/x").startswith("arn:")


@pytest.mark.usefixtures("plugin")
def test_the_pages_of_a_plugin_s_address_are_refused_without_its_password(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    monkeypatch.setenv("MLFLOW_BACKEND_STORE_URI", "")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "arn://me:Pl4nted.Secret@there/runs")
    monkeypatch.setattr(os, "execv", lambda *_: None)  # MLflow's server, which would print the address
    with pytest.raises(ValueError, match=r"arn://there/runs is neither a server nor a database") as caught:
        program.show(5000)
    assert "Pl4nted" not in str(caught.value)
