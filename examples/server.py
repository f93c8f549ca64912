"""Poses in an asyncio program, which goes on with its work meanwhile: server.py BUNDLE SOURCE."""

import asyncio
import sys

import edgepose


async def main(bundle: str, uri: str) -> None:
    pipeline = edgepose.Pipeline(edgepose.load(bundle))
    with edgepose.open_source(uri) as source:
        results = edgepose.stream(source, pipeline)
        while (result := await asyncio.to_thread(next, results, None)) is not None:
            print(result.frame.index, len(result.poses))


asyncio.run(main(*sys.argv[1:]))
