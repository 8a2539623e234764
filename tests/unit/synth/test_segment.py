"""Masks by motion: what OpenCV cannot solve is no motion, and no error."""

from __future__ import annotations

import numpy as np
import pytest

from fourdthinker.synth.segment import _camera_model


def test_features_that_give_no_geometry_give_no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenCV 5 asserts in its refinement where no sample gave a model."""
    cv2 = pytest.importorskip("cv2", reason="OpenCV is not installed (extra synth)")

    def asserts(*arguments: object) -> None:
        raise cv2.error("(-215:Assertion failed) !model.empty() in function 'setModelParameters'")

    monkeypatch.setattr(cv2, "findFundamentalMat", asserts)
    points = np.random.default_rng(0).uniform(0, 200, (30, 2)).astype(np.float32)
    assert _camera_model(cv2, points, points[::-1].copy()) is None
