"""A data set's files on Hugging Face's Hub: `huggingface_hub` lists them, over this project's own bounded requests.

The library makes the addresses, follows the pages and knows the Hub's errors. It has no time limit on an answer, none on its
size or on the pauses that a server asks for, sends the token to whatever server the next page is said to be on, and fetches
files into a cache in the home folder. So its requests are made by `web.page`, and the files are fetched by `fetch`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

import httpx2
from huggingface_hub import HfApi, constants, errors, hf_hub_url, is_offline_mode, set_client_factory
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils._http import default_client_factory

from pipeline.runtime import web
from pipeline.runtime.fetch import Remote

PAGES = 10_000
"""The most pages of a file list, each of up to a thousand files."""

KEPT = ("Link", "X-Error-Code", "X-Error-Message")
"""Headers of an answer that the library reads."""


def listed(hub: str, dataset: str, revision: str, folder: str, token: str | None) -> Iterator[tuple[str, Remote]]:
    """Yields path and address of the Parquet files below a folder ("" for the whole set), with size and sha256 if known.

    `hub`: the Hub's address. The token is sent to no other server. Raises `ValueError` if the Hub refuses, or answers with
    something else than a list of files; `OSError` after too many failures.
    """
    where = f"{web.shown(hub)}: {dataset} at {revision}"
    if is_offline_mode():
        raise ValueError(
            f"{where}: files are missing, and HF_HUB_OFFLINE is set. Unset it, or set source.complete: false"
        )
    constants.HF_HUB_DISABLE_TELEMETRY = True  # else it fetches a list to the home folder, and reports what it runs in
    api = HfApi(endpoint=hub, token=token or False)
    with _bounded(hub, where):
        try:
            for entry in api.list_repo_tree(
                dataset, folder or None, recursive=True, revision=revision, repo_type="dataset"
            ):
                if isinstance(entry, RepoFile) and str(entry.path).endswith(".parquet"):
                    url = hf_hub_url(dataset, entry.path, repo_type="dataset", revision=revision, endpoint=hub)
                    yield (
                        entry.path,
                        Remote(url=url, bytes=_size(entry), sha256=entry.lfs.sha256 if entry.lfs else None),
                    )
        except errors.HFValidationError as error:
            raise ValueError(f"{where}: {error}. Correct params.yaml: source.dataset") from None
        except errors.HfHubHTTPError as error:
            raise ValueError(_refusal(error, where, dataset, revision, folder)) from None
        except (KeyError, TypeError, AttributeError):
            raise ValueError(f"{where}: the Hub answers with something else than a list of files") from None


def _size(entry: RepoFile) -> int | None:
    return entry.size if isinstance(entry.size, int) and entry.size >= 0 else None


def _refusal(error: errors.HfHubHTTPError, where: str, dataset: str, revision: str, folder: str) -> str:
    """What the Hub's refusal means, and what to do."""
    said = f"{where}: answered {error.response.status_code}: "
    login = "put the token of an account that may read it into HF_TOKEN"
    match error:
        case errors.GatedRepoError():
            return f"{said}its terms have to be accepted: do so on the page of {dataset}, and {login}"
        case errors.RevisionNotFoundError():
            return f"{said}it has no revision '{revision}'. Correct params.yaml: source.revision"
        case errors.RemoteEntryNotFoundError():
            return f"{said}it has no folder '{folder}'. Correct params.yaml: source.config"
        case errors.RepositoryNotFoundError():
            return f"{said}there is no such data set (params.yaml: source.dataset), or a login is needed: then {login}"
    if error.response.status_code in (401, 403):
        return f"{said}it wants a login, or refuses yours: {login}"
    return f"{said}HF_ENDPOINT or, in machine.yaml, mirrors can say where else to ask"


@contextmanager
def _bounded(hub: str, where: str) -> Iterator[None]:
    """Lets the library's requests go through `_Transport` in the block."""
    set_client_factory(lambda: httpx2.Client(transport=_Transport(hub, where), base_url=hub, trust_env=False))
    try:
        yield
    finally:
        set_client_factory(default_client_factory)


class _Transport(httpx2.BaseTransport):
    """Answers the library's requests by `web.page`: to one server, at most `PAGES` of them."""

    def __init__(self, hub: str, where: str) -> None:
        self._servers = {urlsplit(url)[:2] for url in (hub, web.mirrored(hub))}
        self._where = where
        self._pages = 0

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        """The answer to a request; `ValueError` if it goes to another server, is one too many, or brings no list."""
        url = str(request.url)
        self._pages += 1
        if self._pages > PAGES:
            raise ValueError(f"{self._where}: a list of more than {PAGES:,} pages")
        if urlsplit(url)[:2] not in self._servers:
            raise ValueError(f"{self._where}: the next page is said to be at {web.shown(url)}, another server")
        sent = {name: request.headers[name] for name in ("Authorization", "User-Agent") if name in request.headers}
        status, headers, body = web.page(url, sent)
        if status == 200 and not _is_list(body):
            raise ValueError(f"{web.shown(url)}: answers with something else than a list")
        kept = {name: headers[name] for name in KEPT if name in headers}
        return httpx2.Response(status, headers=kept, content=body, request=request)


def _is_list(body: bytes) -> bool:
    try:
        entries = json.loads(body)
    except (ValueError, RecursionError):
        return False
    return isinstance(entries, list) and all(isinstance(entry, dict) for entry in entries)
