"""A web server over a folder, run as a process: `python web_server.py FOLDER PORT`.

/files/NAME            the file, with byte ranges (aiohttp's own static files)
/slow/NAME             the same, whole, in small pieces with pauses
/flaky/N/CODE/NAME     the first N requests for NAME are answered with CODE, or cut off half-way for CODE 0
/signed/NAME?token=a-token      the file; 403 for another token
/count/NAME            how many times NAME was sent, as text
/api/datasets/..., /datasets/...   the calls that huggingface_hub's file system makes, for the dataset lab/set
"""

from __future__ import annotations

import asyncio
import hashlib
import sys
from collections import Counter
from pathlib import Path

from aiohttp import web

ROOT, PORT = Path(sys.argv[1]), int(sys.argv[2])
SEEN: Counter[str] = Counter()
SENT: Counter[str] = Counter()
COMMIT = "0" * 40


def found(name: str) -> Path:
    path = ROOT / name
    if not path.is_file():
        raise web.HTTPNotFound
    return path


async def files(request: web.Request) -> web.StreamResponse:
    name = request.match_info["name"]
    SENT[name] += request.method == "GET"
    return web.FileResponse(found(name))


async def slow(request: web.Request) -> web.StreamResponse:
    name = request.match_info["name"]
    data = found(name).read_bytes()
    if request.method == "HEAD" or not name.endswith(".tar"):
        return web.FileResponse(found(name))
    SENT[name] += 1
    answer = web.StreamResponse(headers={"Content-Length": str(len(data))})
    await answer.prepare(request)
    for at in range(0, len(data), 4096):
        await answer.write(data[at : at + 4096])
        await asyncio.sleep(0.1)
    return answer


async def flaky(request: web.Request) -> web.StreamResponse:
    times, code, name = (request.match_info[part] for part in ("times", "code", "name"))
    ident = f"{times}/{code}/{name}"
    SEEN[ident] += 1
    if SEEN[ident] > int(times):
        return web.FileResponse(found(name))
    if int(code):
        raise _status(int(code))
    data = found(name).read_bytes()
    answer = web.StreamResponse(headers={"Content-Length": str(len(data))})
    assert request.transport is not None
    if request.method == "GET":
        await answer.prepare(request)
        await answer.write(data[: len(data) // 2])
    request.transport.abort()
    return answer


def _status(code: int) -> web.HTTPException:
    error = type("Answer", (web.HTTPException,), {"status_code": code})(text="not now")
    assert isinstance(error, web.HTTPException)
    return error


async def signed(request: web.Request) -> web.StreamResponse:
    if request.query.get("token") != "a-token":
        raise web.HTTPForbidden
    return web.FileResponse(found(request.match_info["name"]))


async def count(request: web.Request) -> web.Response:
    return web.Response(text=str(SENT[request.match_info["name"]]))


def entry(path: Path) -> dict[str, object]:
    blob = hashlib.sha1(path.name.encode()).hexdigest()
    return {"type": "file", "oid": blob, "size": path.stat().st_size, "path": path.name}


async def hub_info(request: web.Request) -> web.Response:
    siblings = [{"rfilename": path.name} for path in sorted(ROOT.iterdir())]
    return web.json_response({"id": "lab/set", "_id": "1", "sha": COMMIT, "private": False, "siblings": siblings})


async def hub_paths(request: web.Request) -> web.Response:
    wanted = (
        (await request.post()).getall("paths")
        if "json" not in request.content_type
        else (await request.json())["paths"]
    )
    wanted = [wanted] if isinstance(wanted, str) else wanted
    return web.json_response([entry(ROOT / str(name)) for name in wanted if (ROOT / str(name)).is_file()])


async def hub_tree(request: web.Request) -> web.Response:
    return web.json_response([entry(path) for path in sorted(ROOT.iterdir())])


async def hub_resolve(request: web.Request) -> web.StreamResponse:
    path = found(request.match_info["name"])
    SENT[path.name] += request.method == "GET"
    return web.FileResponse(path, headers={"X-Repo-Commit": COMMIT, "ETag": '"1"'})


app = web.Application()
app.add_routes(
    [
        web.get("/files/{name}", files),
        web.get("/slow/{name}", slow),
        web.get("/flaky/{times}/{code}/{name}", flaky),
        web.get("/signed/{name}", signed),
        web.get("/count/{name}", count),
        web.get("/api/datasets/lab/set", hub_info),
        web.get("/api/datasets/lab/set/revision/{revision}", hub_info),
        web.post("/api/datasets/lab/set/paths-info/{revision}", hub_paths),
        web.get("/api/datasets/lab/set/tree/{revision}", hub_tree),
        web.get("/datasets/lab/set/resolve/{revision}/{name}", hub_resolve),
    ]
)
web.run_app(app, host="127.0.0.1", port=PORT, print=None)
