"""Poses of one picture."""

import sys

import cv2

import edgepose

bundle, picture = sys.argv[1:]
poses = edgepose.load(bundle).estimate(cv2.imread(picture))
for keypoints, scores in zip(poses.keypoints_xy, poses.scores, strict=True):
    for joint, (x, y), score in zip(poses.skeleton_row.joints, keypoints, scores, strict=True):
        print(f"{joint:16} {x:7.1f} {y:7.1f} {score:.2f}")
