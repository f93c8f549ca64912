"""Poses of a camera, a stream or a video, frame by frame: camera.py BUNDLE SOURCE."""

import sys

import edgepose

bundle, uri = sys.argv[1:]
pipeline = edgepose.Pipeline(edgepose.load(bundle))
with edgepose.open_source(uri) as source:
    for result in edgepose.stream(source, pipeline):
        print(f"{result.frame.time_s:8.2f} s: {len(result.poses)} people")
