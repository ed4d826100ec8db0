"""The app of the HTTP server: a picture's bytes → the names that a network gives it. `alexnet serve` runs it, and Ray Serve."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from alexnet.pictures import Undecodable
from pipeline.inference.predictor import LARGEST

if TYPE_CHECKING:
    from pipeline.inference.predictor import Guess, Predictor, Views

THROWN_AWAY = 4 * LARGEST
"""The most bytes that are read of a request that is refused."""

WAITING = 32
"""The most requests at once. Each holds the bytes of a picture, and then its pixels as the network is shown them."""

ARRIVAL = 20.0
"""Seconds in which a picture's bytes have to arrive."""

ANSWER = 30.0
"""Seconds in which a picture is decoded and answered."""

BATCH = 16
"""The most pictures that the network is asked about at once: as many as it takes in one forward pass on a CPU."""

DECODERS = min(4, os.cpu_count() or 1)
"""Pictures that are decoded at once; each may take a gigabyte (alexnet/limits.py)."""

OTHERS = ("multipart/form-data", "application/json")
"""What people send to other servers; here the body is the file itself."""

HELP = """\
POST a picture's bytes to /predict:     curl --data-binary @picture.jpg http://ADDRESS/predict
More names, or the centre view alone:   curl --data-binary @picture.jpg 'http://ADDRESS/predict?top=10&views=1'
Whether it is ready, and which network: curl http://ADDRESS/ready
"""


class Refused(Exception):  # noqa: N818 - the name is the verdict
    """A request that is not answered: the status, and why."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status = status


@dataclass(frozen=True, slots=True)
class Question:
    """A picture that waits for the network."""

    picture_CHW: torch.Tensor
    views: Views
    top: int
    answer: asyncio.Future[list[Guess]]


class App:
    """A network that answers HTTP requests; those that come while it computes are answered together."""

    def __init__(self, predictor: Predictor, where: str) -> None:
        """`where`: the network's name, for `/ready`."""
        self.predictor, self.where = predictor, where
        self._requests = 0
        self._questions: asyncio.Queue[Question] = asyncio.Queue()
        self._worker: asyncio.Task[None] | None = None
        self._decoders = ThreadPoolExecutor(DECODERS, "decoder")
        self._network = ThreadPoolExecutor(1, "network")

    def try_out(self) -> None:
        """Asks the network about a grey picture, so that the first request does not wait. `ValueError` if it is no answer."""
        side = self.predictor.preparation.side
        self.predictor.answer([torch.full((3, side, side), 128, dtype=torch.uint8)])

    async def respond(self, request: Request) -> Response:
        """The answer to any request."""
        try:
            match request.url.path, request.method:
                case "/predict", "POST":
                    return _json(200, await self._admitted(request))
                case "/ready", "GET" | "HEAD":
                    return _json(200, self._about())
                case "/", "GET" | "HEAD":
                    return Response(HELP.replace("ADDRESS", request.url.netloc), media_type="text/plain")
                case "/predict" | "/ready" | "/", _:
                    raise Refused(405, "POST a picture to /predict; GET /ready")
            raise Refused(404, "there are /predict, /ready and /")
        except Refused as refused:
            if refused.status != 408:
                await _throw_away(request)
            more = {"Retry-After": "1"} if refused.status == 503 else {}
            return _json(refused.status, {"error": str(refused)}, more)

    def _about(self) -> dict[str, Any]:
        classes, run = len(self.predictor.classes), self.predictor.fingerprint
        return {"ready": True, "model": self.where, "run": run, "classes": classes}

    async def _admitted(self, request: Request) -> dict[str, Any]:
        if self._requests >= WAITING:
            raise Refused(503, f"{WAITING} requests are being answered. Try again")
        self._requests += 1
        try:
            return await self._predict(request)
        finally:
            self._requests -= 1

    async def _predict(self, request: Request) -> dict[str, Any]:
        views, top = _asked(request)
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind in OTHERS:
            raise Refused(415, f"{kind}: send the file itself as the body: curl --data-binary @picture.jpg")
        try:
            data = await asyncio.wait_for(_body(request), ARRIVAL)
        except TimeoutError:
            raise Refused(408, f"the picture did not arrive within {ARRIVAL:g} s") from None
        except ClientDisconnect:
            raise Refused(400, "the connection ended before the picture did") from None
        if not data:
            raise Refused(400, "no body: send the file as the body: curl --data-binary @picture.jpg")
        try:
            guesses, warnings = await asyncio.wait_for(self._answer(data, views, top), ANSWER)
        except TimeoutError:
            raise Refused(503, f"no answer within {ANSWER:g} s. Try again") from None
        except Undecodable as error:
            raise Refused(400, f"this is no picture that can be read: {error}") from None
        except ValueError as error:
            raise Refused(500, f"the network gave no answer: {error}") from None
        return {"guesses": [asdict(guess) for guess in guesses], "warnings": warnings}

    async def _answer(self, data: bytes, views: Views, top: int) -> tuple[list[Guess], list[str]]:
        loop = asyncio.get_running_loop()
        picture_CHW, warnings = await loop.run_in_executor(self._decoders, self.predictor.see, data)
        if self._worker is None:
            self._worker = loop.create_task(self._work())
        question = Question(picture_CHW, views, top, loop.create_future())
        self._questions.put_nowait(question)
        return await question.answer, warnings

    async def _work(self) -> None:
        """Answers questions, as many together as wait when the network is free."""
        loop = asyncio.get_running_loop()
        while True:
            some = [await self._questions.get()]
            while len(some) < BATCH and not self._questions.empty():
                some.append(self._questions.get_nowait())
            for views in {each.views for each in some}:
                # an answer that is done was given up
                group = [each for each in some if each.views == views and not each.answer.done()]
                if not group:
                    continue
                try:
                    answers = await loop.run_in_executor(self._network, self._asked, group, views)
                except Exception as error:  # of the network: those who asked are told, and the server goes on
                    for each in group:
                        if not each.answer.done():
                            each.answer.set_exception(error)
                    continue
                for each, guesses in zip(group, answers, strict=True):
                    if not each.answer.done():
                        each.answer.set_result(guesses)

    def _asked(self, group: list[Question], views: Views) -> list[list[Guess]]:
        probabilities_BK, _ = self.predictor.described([each.picture_CHW for each in group], views)
        return [
            self.predictor.guesses(row_K[None], each.top)[0]
            for row_K, each in zip(probabilities_BK, group, strict=True)
        ]


def create(app: App) -> Starlette:
    """The app as ASGI has it."""
    return Starlette(routes=[Route("/{path:path}", app.respond, methods=["GET", "POST", "PUT", "DELETE", "PATCH"])])


def _asked(request: Request) -> tuple[Views, int]:
    """`views` and `top` of a request's query."""
    query = dict(request.query_params)
    views, top = query.pop("views", "10"), query.pop("top", "5")
    if query:
        raise Refused(400, f"the query has {', '.join(sorted(query))}; there are top and views")
    if views not in ("10", "1"):
        raise Refused(400, f"views has to be 10 or 1, is {views}")
    if not (top.isascii() and top.isdigit() and 1 <= int(top[:9]) <= 10**6):
        raise Refused(400, f"top has to be a whole number of at least 1, is {top[:20]}")
    return 10 if views == "10" else 1, int(top[:9])


async def _body(request: Request) -> bytes:
    """The body, read no further than its limit."""
    length = request.headers.get("content-length", "")
    too_large = Refused(413, f"a picture has at most {LARGEST:,} bytes")
    if length.isascii() and length.isdigit() and int(length[:20]) > LARGEST:
        raise too_large
    pieces, count = [], 0
    async for piece in request.stream():
        count += len(piece)
        if count > LARGEST:
            raise too_large
        pieces.append(piece)
    return b"".join(pieces)


async def _throw_away(request: Request) -> None:
    """Reads what is left of a body that is refused: many clients read no answer before they have sent all."""
    if request.headers.get("expect"):  # such a client waits, and sends nothing
        return
    count = 0
    # RuntimeError: all was read
    with contextlib.suppress(RuntimeError, ClientDisconnect, TimeoutError):
        async with asyncio.timeout(ARRIVAL):
            async for piece in request.stream():
                count += len(piece)
                if count > THROWN_AWAY:
                    return


def _json(status: int, words: dict[str, Any], headers: dict[str, str] | None = None) -> Response:
    # ASCII, since a terminal may show it: names are from data
    text = json.dumps(words, indent=1) + "\n"
    return Response(text, status, headers, media_type="application/json")
