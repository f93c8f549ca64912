"""Several people with ids, in space: people.py BUNDLE LIFTER DETECTOR.onnx SOURCE."""

import sys

import edgepose

bundle, lifter, detector, uri = sys.argv[1:]
pipeline = edgepose.Pipeline(
    edgepose.load(bundle), detector=edgepose.load_detector(detector), lifter=edgepose.load_lifter(lifter)
)
with edgepose.open_source(uri) as source:
    for result in edgepose.stream(source, pipeline):
        print(result.poses.track_ids, result.poses.keypoints_xyz)
