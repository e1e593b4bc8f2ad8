"""An HTTP service over models: TensorFlow Serving's interface, JSON, a page."""

import asyncio
import dataclasses
import functools
import hmac
import json
import pathlib
import socket
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Protocol

import fastapi
import numpy as np
import prometheus_client
import pydantic
import tensorflow as tf
import uvicorn
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import FileResponse, JSONResponse, Response
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException

import recsys
from recsys.command_line import printable
from recsys.errors import InputError
from recsys.ids import FIRST_ITEM_INDEX
from recsys.serving.batching import predictions
from recsys.serving.live import (
    Asked,
    Folder,
    LiveModel,
    NotFoundError,
    UserLog,
    read_asked,
)

PAGE = pathlib.Path(__file__).parent / "page"
# What anyone may fetch: the page has no data of its own.
_OPEN = ("/", "/docs", "/health", "/ready", "/openapi.json")
_HEADERS = [
    # The page needs nothing from elsewhere, and cannot send anything there.
    (b"content-security-policy", b"default-src 'self'; img-src 'self' data:"),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-cache"),
]
_App = Callable[..., Any]


@dataclasses.dataclass(frozen=True)
class Limits:
    """What a request may ask for; more is an error 4xx.

    Attributes:
        body: Bytes of a body.
        history: Items of a history, and ids of a list.
        k: Items of an answer.
        seconds: Until it is answered.
    """

    body: int = 2**20
    history: int = 1000
    k: int = 500
    seconds: float = 10.0

    def check(self, **sizes: int) -> None:
        """Raises InputError if a size is over its limit."""
        for name, size in sizes.items():
            is_count = name in ("k", "limit")
            most = self.k if is_count else self.history
            if size > most:
                raise InputError(
                    f"`{name}` must be at most {most:,}"
                    f"{' long' * (not is_count)}. Received: {size:,}"
                )


Id = pydantic.StrictStr | pydantic.StrictInt
Features = dict[str, Any] | None
Model = Annotated[
    str | None,
    fastapi.Query(description="Name of a model. Default: the first."),
]
Count = Annotated[int, fastapi.Query(ge=1, description="How many, at most.")]


class _Body(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(
        extra="forbid", use_attribute_docstrings=True
    )


class Event(_Body, extra="allow"):
    """An item of a history, with what else the model reads of the event."""

    item: Id
    """The id or the title."""


class History(_Body):
    """A history, and what else the model reads."""

    history: list[Id | Event] = []
    """Ids or titles, oldest first."""
    user: Features = None
    """Features of the user."""
    context: Features = None
    """Features of the request."""

    def known(self) -> tuple[list[Any], Features, Features]:
        """Returns the parts as `read_asked` takes them."""
        history = [
            each.model_dump() if isinstance(each, Event) else each
            for each in self.history
        ]
        return history, self.user, self.context


class Explain(History):
    """An item whose score is explained by a history."""

    item: Id
    """Its id or title."""


class Recommend(History):
    """What to recommend, and after which history."""

    k: Annotated[pydantic.StrictInt, pydantic.Field(ge=1)] = 10
    """How many items, at most."""
    exclude_history: pydantic.StrictBool = True
    """Whether items of the history are excluded."""
    items: list[Id] = []
    """Ids of the only items to recommend; none for all."""
    exclude: list[Id] = []
    """Ids of items that are not recommended."""
    where: pydantic.StrictStr | None = pydantic.Field(
        None, examples=["genres has Comedy and year >= 1990"]
    )
    """A condition on the items' columns."""
    at_most: dict[str, pydantic.StrictInt] = pydantic.Field(
        {}, examples=[{"genres": 3}]
    )
    """By column, how many items may have the same value."""
    diversity: Annotated[float, pydantic.Field(strict=True, ge=0, le=1)] = 0.0
    """How much similar items are avoided."""
    explain: pydantic.StrictBool = False
    """Whether each item gets its influences."""


# What `LiveModel.request` reads besides the history.
_OPTIONS = (
    Recommend.model_fields.keys() - History.model_fields.keys() - {"explain"}
)


class Predict(pydantic.BaseModel):
    """A request in the form of TensorFlow Serving."""

    model_config = pydantic.ConfigDict(
        json_schema_extra={
            "example": {
                "signature_name": "recommend",
                "instances": [{"history": ["1"], "exclude": [""], "k": 3}],
            }
        }
    )
    signature_name: str | None = None
    instances: list[Any] | None = None
    inputs: Any = None


class Item(pydantic.BaseModel):
    """An item and its columns."""

    item_id: str
    title: str
    metadata: dict[str, Any]


class Influence(pydantic.BaseModel):
    """How an item of the history changed a score."""

    item_id: str
    title: str
    change: float


class Listed(Item):
    """An item of a list."""

    score: float
    influences: list[Influence] | None = None


class Answer(pydantic.BaseModel):
    """A list, best first."""

    model: str
    version: int
    items: list[Listed]
    unknown: list[str] = []
    notes: list[str] = []


class Next(Item):
    """What a user did next, and its expected rank, from 1."""

    rank: float


class User(pydantic.BaseModel):
    """A user's history, oldest first, and what was held out from training.

    Items newer than the model are counted only.
    """

    user_id: str
    length: int
    history: list[Item]
    held_out: str
    next: list[Next]
    num_unknown: int


class Point(Item):
    """An item on the map, between -1 and 1 on either axis."""

    x: float
    y: float


class About(pydantic.BaseModel):
    """A model that is served."""

    name: str
    version: int
    kind: str
    num_items: int | None
    max_history_length: int | None
    columns: dict[str, str]
    has_users: bool


class Error(pydantic.BaseModel):
    """What was wrong, where, what was expected and what was received."""

    error: str


class _State(Protocol):
    folders: Mapping[str, Folder]
    limits: Limits
    has_users: bool


def _state(request: fastapi.Request) -> _State:
    return request.app.state


def _named(request: fastapi.Request, name: str | None) -> LiveModel:
    """Returns a model: the newest of now, for all of the request."""
    folders = _state(request).folders
    folder = folders.get(next(iter(folders)) if name is None else name)
    if folder is None:
        raise NotFoundError(
            f"the model must be one of {', '.join(folders)}. Received: {name!r}"
        )
    return folder.model


async def _live(request: fastapi.Request, model: Model = None) -> LiveModel:
    return _named(request, model)


Live = Annotated[LiveModel, fastapi.Depends(_live)]
router = fastapi.APIRouter()


def _answer(live: LiveModel, items: list[dict], **others: Any) -> Response:
    version = live.place.version
    return JSONResponse(
        {"model": live.name, "version": version, "items": items, **others}
    )


@router.post("/api/recommend", response_model=Answer)
async def recommend(
    asked: Recommend, live: Live, request: fastapi.Request
) -> Response:
    """Recommends items after a history, which may be empty."""
    _state(request).limits.check(
        history=len(asked.history),
        k=asked.k,
        items=len(asked.items),
        exclude=len(asked.exclude),
    )
    options = {name: getattr(asked, name) for name in _OPTIONS}
    read = functools.partial(live.request, *asked.known(), **options)
    # Conditions take a while on many items.
    is_slow = asked.where or asked.at_most or asked.items or asked.exclude
    found = await asyncio.to_thread(read) if is_slow else read()
    items = await live.recommend(found)
    if not isinstance(found, Asked):
        return _answer(live, items)
    if asked.explain and items:
        indices = live.items.vocabulary.encode([e["item_id"] for e in items])
        explained = await asyncio.to_thread(
            live.recommender.explain_indices, found.items, indices, found.side
        )
        for item, influences in zip(items, explained, strict=True):
            item["influences"] = list(map(dataclasses.asdict, influences))
    return _answer(
        live,
        items,
        unknown=found.unknown,
        notes=[*found.rules.notes, *found.notes],
    )


@router.get("/api/similar", response_model=Answer)
def similar(
    item: str, live: Live, request: fastapi.Request, k: Count = 10
) -> Response:
    """Finds the items whose vectors are most similar, by their cosine."""
    _state(request).limits.check(k=k)
    return _answer(live, live.similar(item, k))


@router.post("/api/explain", response_model=list[Influence])
def explain(asked: Explain, live: Live, request: fastapi.Request) -> Response:
    """Computes how each item of a history changes the score of an item."""
    _state(request).limits.check(history=len(asked.history))
    read = read_asked(live.recommender, *asked.known())
    index = live.find(str(asked.item))
    [found] = live.recommender.explain_indices(
        read.items, np.array([index]), read.side
    )
    return JSONResponse(list(map(dataclasses.asdict, found)))


@router.get("/api/search", response_model=list[Item])
def search(
    live: Live, request: fastapi.Request, q: str = "", limit: Count = 10
) -> Response:
    """Finds items by what somebody types: parts of a title, or an id."""
    _state(request).limits.check(limit=limit)
    if len(q) > 200:
        raise InputError(f"`q` must be at most 200 long. Received: {len(q)}")
    return JSONResponse(live.items.about(live.items.search(q, limit)))


@router.get("/api/items/{item_id:path}", response_model=Item)
def item(item_id: str, live: Live) -> Response:
    """Describes an item, given by its id or title."""
    return JSONResponse(live.items.about([live.find(item_id)])[0])


@router.get("/api/map", response_model=list[Point])
def item_map(
    live: Live, request: fastapi.Request, limit: Count = 500
) -> Response:
    """Places the most popular items on a map: close means similar."""
    _state(request).limits.check(limit=limit)
    indices, points = live.items.points(limit)
    return JSONResponse(
        [
            {**about, "x": x, "y": y}
            for about, (x, y) in zip(
                live.items.about(indices), points.tolist(), strict=True
            )
        ]
    )


def _users(live: LiveModel, request: fastapi.Request) -> UserLog:
    if not _state(request).has_users:
        raise NotFoundError(
            "this server does not show users of the log (--users)"
        )
    return live.users


@router.get("/api/users", response_model=list[dict[str, Any]])
def users(
    live: Live, request: fastapi.Request, q: str = "", limit: Count = 10
) -> Response:
    """Finds users of the log by the beginning of their ids."""
    _state(request).limits.check(limit=limit)
    return JSONResponse(_users(live, request).search(q, limit))


@router.get("/api/users/{user_id:path}", response_model=User)
def user(user_id: str, live: Live, request: fastapi.Request) -> Response:
    """Shows a user's history, and where the model ranked what came next."""
    log = _users(live, request)
    history, targets, ranks = log.show(user_id)
    about = live.items.about
    known = history[history >= FIRST_ITEM_INDEX]
    after = targets >= FIRST_ITEM_INDEX
    num_unknown = len(history) - len(known) + int((~after).sum())
    ranked = zip(about(targets[after]), ranks[after].tolist(), strict=True)
    return JSONResponse(
        {
            "user_id": user_id,
            "length": len(history),
            "history": about(known[-_state(request).limits.history :]),
            "held_out": log.part,
            "next": [{**each, "rank": rank} for each, rank in ranked],
            "num_unknown": num_unknown,
        }
    )


@router.get("/api/models", response_model=list[About])
def models(request: fastapi.Request) -> Response:
    """Lists the models, the default one first."""
    found = []
    for folder in _state(request).folders.values():
        live = folder.model
        is_export = live.place.saved_model is not None
        catalog = live.catalog
        length = None if is_export else live.recommender.max_history_length
        found.append(
            {
                "name": live.name,
                "version": live.place.version,
                "kind": "export" if is_export else "workdir",
                "num_items": catalog and catalog.vocabulary.num_items,
                "max_history_length": length,
                "columns": catalog.columns if catalog else {},
                "has_users": _state(request).has_users and not is_export,
            }
        )
    return JSONResponse(found)


@router.post("/v1/models/{name}:predict", response_model=dict[str, Any])
async def predict(
    asked: Predict, name: str, request: fastapi.Request
) -> Response:
    """Answers as TensorFlow Serving does; see docs/serving.md."""
    live = _named(request, name)
    call = live.signatures.read(asked.model_dump())
    limits, columns = _state(request).limits, call.columns
    limits.check(
        k=max(columns.get("k", [1])),
        **{n: c.shape[1] for n, c in columns.items() if c.ndim > 1},
    )
    if call.num_rows > live.predict.max_rows:
        raise InputError(
            f"a request must have at most {live.predict.max_rows} rows. "
            f"Received: {call.num_rows:,}"
        )
    try:
        return JSONResponse(predictions(call, await live.predict(call)))
    except tf.errors.InvalidArgumentError as error:
        raise InputError(error.message.partition("\n")[0]) from error


@router.get("/v1/models/{name}", response_model=dict[str, Any])
async def model_status(name: str, request: fastapi.Request) -> Response:
    """Returns the state of a model as TensorFlow Serving does."""
    status = {
        "version": str(_named(request, name).place.version),
        "state": "AVAILABLE",
        "status": {"error_code": "OK", "error_message": ""},
    }
    return JSONResponse({"model_version_status": [status]})


@router.get("/", include_in_schema=False)
def index() -> FileResponse:
    """Returns the page."""
    return FileResponse(PAGE / "index.html")


@router.get("/docs", include_in_schema=False)
def docs() -> FileResponse:
    """Returns the page that shows the interface."""
    return FileResponse(PAGE / "docs.html")


@router.get("/health")
@router.get("/ready")
async def health() -> dict[str, str]:
    """Answers as soon as the models are loaded."""
    return {"status": "ok"}


def make_app(
    folders: Mapping[str, Folder],
    limits: Limits,
    *,
    token: str | None = None,
    origins: Sequence[str] = (),
    has_users: bool = True,
    log: Callable[[str], None] | None = None,
    metrics: "Metrics | None" = None,
) -> _App:
    """Makes the service, an ASGI application.

    Args:
        folders: The models by name; the first is the default.
        limits: What a request may ask for.
        token: What `Authorization: Bearer` must carry, except for the page
            itself and `/health`; None for nothing.
        origins: Other origins whose pages may use the service.
        has_users: Whether users of the log are shown.
        log: Gets a line per request.
        metrics: Counts requests. Default: others than the process's.
    """
    app = fastapi.FastAPI(
        title="recsys",
        version=recsys.__version__,
        docs_url=None,  # It would load its scripts from elsewhere.
        redoc_url=None,
        responses={"4XX": {"model": Error, "description": "A mistake."}},
    )
    app.state.folders, app.state.limits = folders, limits
    app.state.has_users = has_users
    app.include_router(router)
    app.mount("/page", StaticFiles(directory=PAGE))
    metrics = metrics or Metrics(folders)
    app.add_api_route("/metrics", metrics.text, include_in_schema=False)
    for kind in (InputError, HTTPException, RequestValidationError, Exception):
        app.add_exception_handler(kind, _as_json)
    _complete(app.openapi(), folders, limits)
    guard = _Guard(app, limits, token, log, metrics)
    if not origins:
        return guard
    return CORSMiddleware(
        guard,
        allow_origins=list(origins),
        allow_methods=["GET", "POST"],
        allow_headers=["Authorization", "Content-Type"],
    )


def run(app: _App, listening: socket.socket, max_seconds: int) -> None:
    """Serves until a signal ends the process.

    Args:
        app: What `make_app` returned.
        listening: Where connections come in.
        max_seconds: How long requests may then take to be answered.
    """
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        server_header=False,
        # Longer than the pools of clients and proxies keep connections.
        timeout_keep_alive=75,
        timeout_graceful_shutdown=max_seconds,
    )
    uvicorn.Server(config).run([listening])


def _complete(
    schema: Any, folders: Mapping[str, Folder], limits: Limits
) -> None:
    """Adds limits, names of models and an item to the description."""
    for name in ("Recommend", "Explain"):
        found = schema["components"]["schemas"][name]["properties"]
        for key, value in found.items():
            if value.get("type") == "array":
                value["maxItems"] = limits.history
            elif key == "k":
                value["maximum"] = limits.k
    catalog = next(iter(folders.values())).model.catalog
    for operations in schema["paths"].values():
        for operation in operations.values():
            for each in operation.get("parameters", ()):
                if each["name"] in ("name", "model"):
                    each["schema"] = {"type": "string", "enum": [*folders]}
                elif each["name"] in ("k", "limit"):
                    each["schema"]["maximum"] = limits.k
                elif each["name"] in ("item", "item_id") and catalog:
                    each["example"] = catalog.vocabulary.item_ids[0]


class Metrics:
    """What Prometheus fetches."""

    def __init__(self, folders: Mapping[str, Folder]) -> None:
        self._folders = folders
        self._registry = prometheus_client.CollectorRegistry()
        make: dict[str, Any] = {"registry": self._registry}
        prometheus_client.ProcessCollector(**make)
        self.requests = prometheus_client.Counter(
            "recsys_requests", "Requests.", ["path", "status"], **make
        )
        self.seconds = prometheus_client.Histogram(
            "recsys_request_seconds",
            "Time to answer.",
            ["path"],
            buckets=[0.001 * 2**n for n in range(14)],
            **make,
        )
        self.in_progress = prometheus_client.Gauge(
            "recsys_requests_in_progress", "Requests being answered.", **make
        )
        self.batch = prometheus_client.Histogram(
            "recsys_batch_requests",
            "Requests answered by one call of a model.",
            buckets=[1, 2, 4, 8, 16, 32, 64],
            **make,
        )
        self._models = {
            name: prometheus_client.Gauge(
                f"recsys_model_{name}", text, ["model"], **make
            )
            for name, text in (
                ("version", "Version of the model that answers."),
                ("swaps", "How many times a new model replaced it."),
                ("refused", "New models that could not be loaded."),
            )
        }

    async def text(self) -> Response:
        """Returns all figures."""
        for name, folder in self._folders.items():
            values = (
                folder.model.place.version,
                folder.num_swaps,
                folder.num_refused,
            )
            for gauge, value in zip(self._models.values(), values, strict=True):
                gauge.labels(name).set(value)
        return Response(
            prometheus_client.generate_latest(self._registry),
            media_type=prometheus_client.CONTENT_TYPE_LATEST,
        )


def _as_json(request: fastapi.Request, error: Exception) -> Response:
    """Returns what the client may know of an error."""
    status, text = 500, "the server failed; its log has the details"
    headers = None
    if isinstance(error, RequestValidationError):
        first, status = error.errors()[0], 400
        if first["type"] == "json_invalid":
            text = f"a body must be JSON. Received: {first['ctx']['error']}"
        else:
            where = ".".join(map(str, first["loc"][1:])) or first["loc"][0]
            received = json.dumps(first.get("input"), default=str)[:99]
            text = f"`{where}`: {first['msg']}. Received: {received}"
    elif isinstance(error, InputError):
        status = 404 if isinstance(error, NotFoundError) else 400
        text = str(error)
    elif isinstance(error, HTTPException):
        status, text, headers = error.status_code, error.detail, error.headers
    return JSONResponse({"error": text}, status, headers)


class _RefusedError(Exception):
    """A request is refused with a status and a text."""


class _Guard:
    """Limits, checks, counts and logs the requests to an application."""

    def __init__(
        self,
        app: _App,
        limits: Limits,
        token: str | None,
        log: Callable[[str], None] | None,
        metrics: Metrics,
    ) -> None:
        self._app, self._limits, self._log = app, limits, log
        self._token = None if token is None else f"Bearer {token}".encode()
        self._metrics = metrics

    async def __call__(self, scope: Any, receive: _App, send: _App) -> None:
        """Answers a request."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        begin, status = time.perf_counter(), 0

        async def send_on(message: Any) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], *_HEADERS]
            await send(message)

        self._metrics.in_progress.inc()
        refused: tuple[int, str] | None = None
        try:
            async with asyncio.timeout(self._limits.seconds):
                self._check_token(scope)
                body = await self._body(scope, receive)
                await self._app(scope, body, send_on)
        except _RefusedError as error:
            refused = error.args
        except TimeoutError:
            seconds = self._limits.seconds
            refused = 408, f"a request may take {seconds:g} s. This took longer"
        except Exception:
            # The client has its answer, without what follows.
            traceback.print_exc(file=sys.stderr)
        self._metrics.in_progress.dec()
        if refused is not None and not status:
            headers = (
                {"WWW-Authenticate": "Bearer"} if refused[0] == 401 else None
            )
            answer = JSONResponse({"error": refused[1]}, refused[0], headers)
            await answer(scope, receive, send_on)
        seconds = time.perf_counter() - begin
        route = getattr(scope.get("route"), "path", "other")
        self._metrics.requests.labels(route, status).inc()
        self._metrics.seconds.labels(route).observe(seconds)
        if self._log is not None:
            client = (scope.get("client") or ["-"])[0]
            self._log(
                f"{time.strftime('%Y-%m-%dT%H:%M:%S%z')} {client} "
                f"{scope['method']} {printable(scope['path'])} {status} "
                f"{1000 * seconds:.1f} ms"
            )

    def _check_token(self, scope: dict) -> None:
        path = scope["path"]
        if self._token is None or path in _OPEN or path.startswith("/page/"):
            return
        given = dict(scope["headers"]).get(b"authorization", b"")
        if not hmac.compare_digest(given, self._token):
            raise _RefusedError(
                401, "a token is needed: Authorization: Bearer …"
            )

    async def _body(self, scope: dict, receive: _App) -> _App:
        """Reads the body; returns what gives it to the application."""
        body, is_more = b"", scope["method"] == "POST"
        while is_more:
            message = await receive()
            body += message.get("body", b"")
            is_more = message.get("more_body", False)
            if len(body) > self._limits.body:
                raise _RefusedError(
                    413, f"a body may have {self._limits.body:,} bytes"
                )
        # JSON, whatever it is said to be, as TensorFlow Serving takes it.
        json_type = (b"content-type", b"application/json")
        others = [h for h in scope["headers"] if h[0] != b"content-type"]
        scope["headers"] = [*others, json_type]
        messages = [{"type": "http.request", "body": body, "more_body": False}]

        async def give() -> dict:
            return messages.pop() if messages else await receive()

        return give
