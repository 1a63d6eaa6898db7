"""A hub on loopback: the routes of huggingface_hub that create, commit, resolve and list need.

    python -m tests.standin_hub --seconds 300

It prints {"port": ...}, keeps everything in memory, wants the token `standin` of whoever writes or reads what is
private, and ends by itself after `--seconds`. Large files come by Git LFS, as the hub asks for it (and not by Xet:
HF_HUB_DISABLE_XET=1).
"""

import argparse
import asyncio
import base64
import hashlib
import json
import sys
from dataclasses import dataclass, field
from typing import Any

import yaml
from aiohttp import web

from pipeline.report.licences import KNOWN

TOKEN = "standin"
LARGE = (".safetensors", ".parquet", ".bin")


@dataclass
class Repository:
    """Its commits in order, each with all of its files."""

    kind: str
    name: str
    private: bool
    commits: list[tuple[str, dict[str, bytes]]] = field(default_factory=list)

    def commit(self, files: dict[str, bytes]) -> str:
        named = {path: hashlib.sha256(data).hexdigest() for path, data in files.items()}
        text = json.dumps([len(self.commits), named], sort_keys=True)
        oid = hashlib.sha1(text.encode()).hexdigest()
        self.commits.append((oid, files))
        return oid

    def at(self, revision: str) -> tuple[str, dict[str, bytes]]:
        if revision == "main":
            return self.commits[-1]
        for oid, files in self.commits:
            if oid == revision:
                return oid, files
        raise web.HTTPNotFound(headers={"X-Error-Code": "RevisionNotFound"})


def blob_of(path: str, data: bytes) -> dict[str, Any]:
    """What the hub says of a file."""
    oid = hashlib.sha1(f"blob {len(data)}\0".encode() + data).hexdigest()
    said = {"type": "file", "path": path, "size": len(data), "oid": oid}
    if path.endswith(LARGE):
        sha = hashlib.sha256(data).hexdigest()
        said["lfs"] = {"oid": sha, "size": len(data), "pointerSize": 134}
    return said


class Hub:
    def __init__(self) -> None:
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.blobs: dict[str, bytes] = {}

    def application(self) -> web.Application:
        app = web.Application(client_max_size=2**30)
        api = r"/api/{kind:models|datasets}/{owner}/{name}"
        app.add_routes([
            web.post("/api/repos/create", self.create),
            web.post("/api/validate-yaml", self.validate),
            web.post(f"{api}/preupload/{{revision}}", self.preupload),
            web.post(f"{api}/commit/{{revision}}", self.commit),
            web.post(f"{api}/paths-info/{{revision}}", self.paths_info),
            web.get(f"{api}/tree/{{revision}}", self.tree),
            web.get(f"{api}/tree/{{revision}}/{{path:.*}}", self.tree),
            web.get(f"{api}/revision/{{revision}}", self.info),
            web.get(api, self.info),
            web.post(r"/{prefix:(datasets/)?}{owner}/{name}.git/info/lfs/objects/batch", self.batch),
            web.put("/lfs/{oid}", self.store),
            web.get(r"/{prefix:(datasets/)?}{owner}/{name}/resolve/{revision}/{path:.*}", self.resolve),
        ])  # fmt: skip
        return app

    def repository(self, request: web.Request, *, write: bool = False) -> Repository:
        """The one that a request is about; what is private does not exist for who has no token."""
        part = request.match_info
        kind = part.get("kind") or ("datasets" if part["prefix"] else "models")
        found = self.repositories.get((kind, f"{part['owner']}/{part['name']}"))
        known = request.headers.get("Authorization") == f"Bearer {TOKEN}"
        if write and not known:
            raise web.HTTPUnauthorized
        if found is None or (found.private and not known):
            raise web.HTTPUnauthorized(headers={"X-Error-Code": "RepoNotFound"})
        return found

    async def create(self, request: web.Request) -> web.Response:
        if request.headers.get("Authorization") != f"Bearer {TOKEN}":
            raise web.HTTPUnauthorized
        body = await request.json()
        name = f"{body['organization']}/{body['name']}" if body.get("organization") else body["name"]
        kind = f"{body.get('type') or 'model'}s"
        url = f"{request.url.origin()}/{'datasets/' if kind == 'datasets' else ''}{name}"
        if (kind, name) in self.repositories:
            return web.json_response({"url": url, "error": "it is there already"}, status=409)
        self.repositories[kind, name] = Repository(
            kind, name, body.get("private") or body.get("visibility") == "private"
        )
        self.repositories[kind, name].commit({})
        return web.json_response({"url": url, "name": name})

    async def validate(self, request: web.Request) -> web.Response:
        """What the hub says of a card before it takes it: its licence must be one that the hub knows."""
        body = await request.json()
        _, front, _ = body["content"].split("---\n", 2)
        facts = yaml.safe_load(front)
        known = {*KNOWN, "other", "unknown"}
        faults = (
            [] if facts.get("license", "other") in known else [f"license: {facts['license']} is not known"]
        )
        said = {"errors": [{"message": text} for text in faults], "warnings": []}
        return web.json_response(said, status=400 if faults else 200)

    async def preupload(self, request: web.Request) -> web.Response:
        self.repository(request, write=True)
        paths = [file["path"] for file in (await request.json())["files"]]
        modes = {path: "lfs" if path.endswith(LARGE) else "regular" for path in paths}
        files = [{"path": path, "uploadMode": mode, "shouldIgnore": False} for path, mode in modes.items()]
        return web.json_response({"files": files})

    async def batch(self, request: web.Request) -> web.Response:
        self.repository(request, write=True)
        objects = [
            {**wanted, "actions": {"upload": {"href": f"{request.url.origin()}/lfs/{wanted['oid']}"}}}
            for wanted in (await request.json())["objects"]
        ]
        return web.json_response({"transfer": "basic", "objects": objects})

    async def store(self, request: web.Request) -> web.Response:
        data = await request.read()
        if hashlib.sha256(data).hexdigest() != request.match_info["oid"]:
            raise web.HTTPBadRequest
        self.blobs[request.match_info["oid"]] = data
        return web.Response()

    async def commit(self, request: web.Request) -> web.Response:
        repository = self.repository(request, write=True)
        files = dict(repository.at("main")[1])
        for line in (await request.read()).splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                files[value["path"]] = self.blobs[value["oid"]]
            elif entry["key"] == "deletedFile":
                files.pop(value["path"], None)
        oid = repository.commit(files)
        return web.json_response(
            {"commitUrl": f"{request.url.origin()}/{repository.name}/commit/{oid}", "commitOid": oid}
        )

    async def info(self, request: web.Request) -> web.Response:
        repository = self.repository(request)
        oid, files = repository.at(request.match_info.get("revision", "main"))
        siblings = [{"rfilename": path} for path in files]
        facts = {"id": repository.name, "sha": oid, "private": repository.private, "siblings": siblings}
        return web.json_response(
            {**facts, "tags": [], "downloads": 0, "likes": 0, "disabled": False, "gated": False}
        )

    async def tree(self, request: web.Request) -> web.Response:
        """All files below a path; directories where only one level is asked for."""
        _, files = self.repository(request).at(request.match_info["revision"])
        base = request.match_info.get("path", "").strip("/")
        below = {path: data for path, data in files.items() if not base or path.startswith(f"{base}/")}
        if base and not below:
            raise web.HTTPNotFound(headers={"X-Error-Code": "EntryNotFound"})
        start = len(base) + 1 if base else 0
        whole = request.query.get("recursive", "false").lower() == "true"
        folders = {path[: start + path[start:].index("/")] for path in below if "/" in path[start:]}
        said = [blob_of(path, data) for path, data in below.items() if whole or "/" not in path[start:]]
        said += [{"type": "directory", "path": path, "oid": "0" * 40, "size": 0} for path in sorted(folders)]
        return web.json_response(said)

    async def paths_info(self, request: web.Request) -> web.Response:
        _, files = self.repository(request).at(request.match_info["revision"])
        form = await request.post()
        paths = form.getall("paths", []) if form else (await request.json())["paths"]
        said = [blob_of(str(path), files[str(path)]) for path in paths if path in files]
        for path in map(str, paths):
            if path not in files and any(file.startswith(f"{path}/") for file in files):
                said.append({"type": "directory", "path": path, "oid": "0" * 40, "size": 0})
        return web.json_response(said)

    async def resolve(self, request: web.Request) -> web.Response:
        oid, files = self.repository(request).at(request.match_info["revision"])
        path = request.match_info["path"]
        headers = {"X-Repo-Commit": oid}
        if path not in files:
            raise web.HTTPNotFound(headers={**headers, "X-Error-Code": "EntryNotFound"})
        said = blob_of(path, files[path])
        headers["ETag"] = f'"{said["lfs"]["oid"] if "lfs" in said else said["oid"]}"'
        if (wanted := request.http_range) and wanted.start is not None:
            return web.Response(body=files[path][wanted], headers=headers, status=206)
        return web.Response(body=files[path], headers=headers)


async def serve(seconds: float) -> None:
    runner = web.AppRunner(Hub().application())
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    print(json.dumps({"port": runner.addresses[0][1]}), flush=True)
    await asyncio.sleep(seconds)
    await runner.cleanup()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=300)
    asyncio.run(serve(parser.parse_args().seconds))
    sys.exit(0)
