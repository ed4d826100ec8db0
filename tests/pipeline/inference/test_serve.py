"""`alexnet serve`: a picture's bytes get five names over HTTP; what is no picture, too much or too slow is told so."""

from __future__ import annotations

import concurrent.futures
import contextlib
import http.client
import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import uvicorn
from torch import Tensor

from pipeline.inference import app, serve
from pipeline.inference.app import App
from pipeline.inference.predictor import Predictor, Views
from tests.pipeline.inference.servers import Row, check, running
from tests.pipeline.inference.test_predictor import model, original

ROOT = Path(__file__).parents[3]


class Slow(Predictor):
    """A network that waits until it may answer, and counts the pictures that it is asked about together."""

    def described(self, pictures: Sequence[Tensor], views: Views = 10) -> tuple[Tensor, Tensor]:
        self.asked.append((len(pictures), views))
        assert self.may.wait(20)
        if self.broken:
            return torch.full((len(pictures), 7), float("nan")), torch.empty(0, 0)
        return super().described(pictures, 1)


@pytest.fixture(scope="module")
def loaded() -> Slow:
    return Slow.load(model())


@pytest.fixture
def network(loaded: Slow) -> Iterator[Slow]:
    loaded.asked, loaded.may, loaded.broken = [], threading.Event(), False
    loaded.may.set()
    yield loaded
    loaded.may.set()


@contextlib.contextmanager
def serving(predictor: Predictor) -> Iterator[tuple[str, int]]:
    """The app on a port of loopback, in a thread."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        config = uvicorn.Config(app.create(App(predictor, "here")), log_level="critical", timeout_graceful_shutdown=1)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, args=([listening],))
        thread.start()
        try:
            yield listening.getsockname()
        finally:
            server.should_exit = True
            thread.join(20)
            assert not thread.is_alive()


def ask(
    address: tuple[str, int], body: Any = b"", path: str = "/predict", method: str = "POST", **headers: str
) -> tuple[int, Any, http.client.HTTPMessage]:
    connection = http.client.HTTPConnection(*address, timeout=30)
    with contextlib.closing(connection):
        connection.request(method, path, body, {name.replace("_", "-"): word for name, word in headers.items()})
        answer = connection.getresponse()
        data = answer.read()
        return answer.status, json.loads(data) if data.startswith(b"{") else data, answer.msg


def test_what_is_no_good_request_is_told_why(network: Slow) -> None:
    data = original(0)
    with serving(network) as address:
        for status, why, got in (
            (400, "no known format of pictures: 5 bytes", ask(address, b"hello")),
            (400, "this is no picture that can be read: damaged", ask(address, data[:2000])),
            (400, "no body: send the file", ask(address)),
            (400, "top has to be a whole number of at least 1, is 0", ask(address, data, "/predict?top=0")),
            (400, "is -1", ask(address, data, "/predict?top=-1")),
            (400, "views has to be 10 or 1, is 5", ask(address, data, "/predict?views=5")),
            (400, "the query has model; there are top and views", ask(address, data, "/predict?model=/etc/passwd")),
            (404, "there are /predict", ask(address, data, "/invocations")),
            (405, "POST a picture to /predict", ask(address, path="/predict", method="GET")),
            (405, "POST a picture to /predict", ask(address, b"", "/ready", "DELETE")),
            (
                415,
                "send the file itself as the body",
                ask(address, data, Content_Type="multipart/form-data; boundary=a"),
            ),
            (415, "application/json: send the file itself", ask(address, b"{}", Content_Type="Application/JSON")),
            (413, "a picture has at most 33,554,432 bytes", ask(address, bytes(app.LARGEST + 1))),
            (413, "a picture has at most", ask(address, b"", Content_Length="9999999999", Expect="100-continue")),
            (413, "a picture has at most", ask(address, iter([bytes(2**20)] * 33))),
        ):
            assert got[0] == status, got
            assert why in got[1]["error"]
    assert network.asked == []


def test_a_picture_gets_names_and_the_paths_say_what_there_is(network: Slow) -> None:
    with serving(network) as address:
        for kind in ({}, {"Content_Type": "image/jpeg"}, {"Content_Type": "application/x-www-form-urlencoded"}):
            status, answer, _ = ask(address, original(0), **kind)
            assert status == 200
            assert [*answer["guesses"][0]] == ["wnid", "name", "probability"]
            assert len(answer["guesses"]) == 5
        assert len(ask(address, original(0), "/predict?top=2&views=1")[1]["guesses"]) == 2
        assert len(ask(address, original(0), "/predict?top=100")[1]["guesses"]) == 7
        ready = ask(address, path="/ready", method="GET")
        assert ready[:2] == (200, {"ready": True, "model": "here", "run": "f" * 16, "classes": 7})
        line = f"curl --data-binary @picture.jpg http://127.0.0.1:{address[1]}/predict"
        assert line.encode() in ask(address, path="/", method="GET")[1]
    assert network.asked == [(1, 10)] * 3 + [(1, 1), (1, 10)]


@pytest.mark.slow
def test_requests_that_come_while_the_network_computes_are_answered_together(network: Slow) -> None:
    network.may.clear()
    with serving(network) as address, concurrent.futures.ThreadPoolExecutor(30) as clients:
        first = clients.submit(ask, address, original(0))
        wait_for(lambda: len(network.asked) == 1)
        more = [clients.submit(ask, address, original(number % 9), f"/predict?top={number}") for number in range(1, 30)]
        time.sleep(1)
        network.may.set()
        assert first.result()[0] == 200
        answers = [each.result()[1]["guesses"] for each in more]
    assert [len(each) for each in answers] == [min(7, number) for number in range(1, 30)]
    expected = [network.answer([network.prepare(original(number))], 1, 1)[0][0].wnid for number in range(9)]
    assert [each[0]["wnid"] for each in answers] == [expected[number % 9] for number in range(1, 30)]
    assert max(count for count, _ in network.asked[:10]) == app.BATCH
    assert len(network.asked) < 10 + 9


def test_more_requests_than_there_is_room_for_are_told_to_come_again(
    network: Slow, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app, "WAITING", 2)
    network.may.clear()
    with serving(network) as address, concurrent.futures.ThreadPoolExecutor(2) as clients:
        some = [clients.submit(ask, address, original(0)) for _ in range(2)]
        wait_for(lambda: network.asked)
        time.sleep(0.2)
        status, answer, headers = ask(address, original(0))
        assert (status, headers["Retry-After"]) == (503, "1")
        assert "2 requests are being answered. Try again" in answer["error"]
        network.may.set()
        assert [each.result()[0] for each in some] == [200, 200]
        assert ask(address, original(0))[0] == 200


@pytest.mark.slow
def test_what_is_too_slow_is_told_so_and_the_next_request_is_answered(
    network: Slow, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app, "ARRIVAL", 0.2)
    monkeypatch.setattr(app, "ANSWER", 0.5)
    with serving(network) as address:
        with socket.create_connection(address) as slow:
            slow.sendall(b"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\nabc")
            assert b" 408 " in slow.recv(1000)
        with socket.create_connection(address) as gone:
            gone.sendall(b"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\nabc")
        network.may.clear()
        status, answer, headers = ask(address, original(0))
        assert (status, headers["Retry-After"]) == (503, "1")
        assert "no answer within 0.5 s" in answer["error"]
        assert ask(address, original(0))[0] == 503, "it waits behind the first"
        network.may.set()
        monkeypatch.setattr(app, "ANSWER", 20)
        assert ask(address, original(0))[0] == 200
    assert len(network.asked) == 2, "also about a picture that nobody waits for any more"


def test_a_network_that_answers_no_numbers_is_found_out_before_it_is_served(network: Slow) -> None:
    network.broken = True
    with pytest.raises(ValueError, match="NaN"):
        App(network, "here").try_out()
    with serving(network) as address:
        status, answer, _ = ask(address, original(0))
        assert status == 500
        assert "the network gave no answer: the network answers with no numbers (NaN)" in answer["error"]


def wait_for(what: Any) -> None:
    for _ in range(400):
        if what():
            return
        time.sleep(0.05)
    raise AssertionError("it did not happen")


def test_a_busy_port_and_an_address_of_another_machine_are_said_before_the_network_is_read() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(
            OSError, match=rf"port {port} of 127\.0\.0\.1 cannot be used .* --port {port + 1}, or --port 0"
        ):
            serve.main("none.pt", "127.0.0.1", port)
    with pytest.raises(OSError, match=r"port 0 of 192\.0\.2\.1 cannot be used"):
        serve.main("none.pt", "192.0.2.1", 0)
    with pytest.raises(OSError, match=r"none\.pt: no such file"):
        serve.main("none.pt", "127.0.0.1", 0)


@pytest.mark.parametrize(
    ("host", "alone"),
    [("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("a.b", False)],
)
def test_only_loopback_is_this_machine_alone(host: str, alone: bool) -> None:
    assert serve._is_loopback(host) is alone


@pytest.mark.slow
def test_curl_of_a_jpeg_gets_five_names_as_evaluate_gives_them(
    originals: list[bytes], tested: list[Row], tmp_path: Path
) -> None:
    (tmp_path / "model.pt").write_bytes(model())
    command = [sys.executable, "-m", "pipeline", "serve", "--port", "0", "--model", str(tmp_path / "model.pt")]
    for number, data in enumerate(originals):
        (tmp_path / f"{number}.jpg").write_bytes(data)
    with running(command, tmp_path, where=ROOT) as (process, log):
        wait_for(lambda: "curl" in log.read_text() or process.poll() is not None)
        url = re.findall(r"http://127\.0\.0\.1:\d+", log.read_text())[0]
        sockets = psutil.Process(process.pid).net_connections()
        assert {each.laddr.ip for each in sockets if each.status == "LISTEN"} == {"127.0.0.1"}

        def curl(number: int) -> Row:
            words = ["curl", "-sS", "--noproxy", "*", "--data-binary", f"@{tmp_path}/{number}.jpg", f"{url}/predict"]
            done = subprocess.run(words, capture_output=True, check=True, timeout=60)
            guesses = json.loads(done.stdout)["guesses"]
            return {key: [guess[key] for guess in guesses] for key in ("wnid", "name", "probability")}

        check([curl(number) for number in range(len(originals))], tested)
        with concurrent.futures.ThreadPoolExecutor(32) as clients:
            check(list(clients.map(curl, range(32))), tested[:32])
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 128 + signal.SIGTERM
        assert log.read_text().endswith("serve: stopped\n")
        assert "Traceback" not in log.read_text()
