"""This machine's settings: none needed, every key checked, and where things lie."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.runtime import machines
from pipeline.runtime.machines import Machine
from pipeline.runtime.params import ParamsError

EXAMPLE = Path(__file__).parents[3] / "machine.example.yaml"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("ALEXNET_MACHINE", "DVC_ROOT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refusal(here: Path, text: str) -> str:
    (here / "machine.yaml").write_text(text)
    with pytest.raises(ParamsError) as caught:
        machines.read()
    assert str(here / "machine.yaml") in str(caught.value)
    return str(caught.value)


def test_without_a_file_everything_is_auto(here: Path) -> None:
    settings = machines.read()
    assert settings == Machine()
    assert machines.store(settings) == here / "data/store"
    assert machines.runs(settings) == here / "runs"
    assert machines.shared(settings) is None


def test_the_file_in_the_working_copy_is_read_and_the_rest_stays_auto(here: Path) -> None:
    (here / "machine.yaml").write_text("workers: 3\ndevices: cpu\n")
    assert machines.read() == Machine(workers=3, devices="cpu")


def test_the_environment_names_another_file(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (here / "machine.yaml").write_text("workers: 3\n")
    (here / "other.yaml").write_text("workers: 5\n")
    monkeypatch.setenv("ALEXNET_MACHINE", str(here / "other.yaml"))
    assert machines.read().workers == 5


def test_a_file_that_the_environment_names_has_to_be_there(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALEXNET_MACHINE", str(here / "absent.yaml"))
    with pytest.raises(ParamsError, match=r"absent\.yaml: no such file"):
        machines.read()


def test_an_experiment_in_a_copy_uses_the_working_copy_that_lasts(
    here: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    (here / "machine.yaml").write_text("workers: 3\n")
    monkeypatch.setenv("DVC_ROOT", str(here))
    monkeypatch.chdir(tmp_path_factory.mktemp("copy"))
    settings = machines.read()
    assert settings.workers == 3
    assert machines.home() == here
    assert machines.store(settings) == here / "data/store"
    assert machines.runs(settings) == here / "runs"


def test_the_storage_takes_runs_and_the_store_may_lie_anywhere(here: Path) -> None:
    settings = Machine(storage="/everywhere", store="/disk/archives")
    assert machines.runs(settings) == Path("/everywhere/runs")
    assert machines.shared(settings) == Path("/everywhere")
    assert machines.store(settings) == Path("/disk/archives")
    assert machines.store(Machine(store="archives")) == here / "archives"


def test_an_unknown_key_is_named_with_the_file_and_the_nearest(here: Path) -> None:
    assert "wrokers: unknown key (its value: 3), did you mean 'workers'?" in refusal(here, "wrokers: 3\n")


@pytest.mark.parametrize(
    "text",
    [
        "tracking_token: hidden-one",
        "aws_secret_access_key: hidden-one",
        "tracking: [http://me:hidden-one@host]",
        "mirrors: https://me:hidden-one@host/x?code=hidden-one",
        'mirrors: {"https://a": "me:hidden-one@host/x"}',
        'mirrors: {"https://a": "htps://me:hidden-one@host/x?code=hidden-one"}',
        '"https://a": "https://host/x?code=hidden-one"',
        "ray_adress: me:hidden-one@head:6379",
    ],
)
def test_a_secret_in_a_wrong_place_is_refused_and_not_repeated(here: Path, text: str) -> None:
    assert "hidden-one" not in refusal(here, text)


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("mirrors: {https://a: ftp://b}\n", "mirrors: the mirror of https://a has to begin with http:// or https://"),
        ("storage: shared/alexnet\n", "storage has to be an absolute path"),
        ("storage: .\n", "storage has to be an absolute path"),
        ("workers: 0\n", "workers has to be at least 1, is 0"),
        ("devices: -1\n", "devices has to be at least 1, is -1"),
        ("checkpoint_steps: 0\n", "checkpoint_steps has to be at least 1, is 0"),
        ("workers: many\n", "workers"),
        ("workers: true\n", "workers"),
        ('workers: "3"\n', "workers"),
        ("placement: column\n", "placement"),
        ("ray_address: 6379\n", "ray_address"),
        ("[workers, 3]\n", "has to be a mapping"),
    ],
)
def test_what_cannot_be_is_refused_with_file_and_key(here: Path, text: str, word: str) -> None:
    assert word in refusal(here, text)


def test_the_example_is_read(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALEXNET_MACHINE", str(EXAMPLE))
    assert isinstance(machines.read(), Machine)
