"""Depth by a monocular model of transformers: Depth Anything, DPT, ZoeDepth, Depth Pro."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fourdthinker.errors import CheckpointError
from fourdthinker.files import PathLike

_METRIC = ("zoedepth", "depth_pro")
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # those that Depth Anything was trained with


class DepthModel:
    """A depth model, loaded once; its pictures are prepared here, because its processor needs torchvision."""

    def __init__(
        self, weights: PathLike, *, device: str | torch.device = "cpu", long_side: int = 518
    ) -> None:
        """Load a model.

        Args:
            weights: a folder with config.json and safetensors.
            device: where it runs.
            long_side: pixels of the longer side of what it sees.

        Raises:
            CheckpointError: the folder holds no depth model.
        """
        from transformers import AutoModelForDepthEstimation

        if not (Path(weights) / "config.json").is_file():
            raise CheckpointError(
                f"{weights}: no config.json; give the folder of a depth model of transformers"
            )
        try:
            model = AutoModelForDepthEstimation.from_pretrained(weights, local_files_only=True)
        except (OSError, ValueError, KeyError) as error:
            raise CheckpointError(
                f"{weights}: no depth model that transformers can load ({error})"
            ) from error
        self._model: Any = model.to(device).eval()
        self._long_side = long_side
        config = model.config
        self.metric = config.model_type in _METRIC or getattr(config, "depth_estimation_type", "") == "metric"
        backbone = getattr(config, "backbone_config", None)
        self._multiple = int(
            getattr(backbone, "patch_size", None) or getattr(config, "patch_size", None) or 16
        )

    @torch.inference_mode()
    def __call__(self, frames: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        """What the model says of each frame.

        Args:
            frames: uint8 [H, W, 3], RGB.

        Returns:
            float32 [T, H, W]: depth in metres for a metric model, else inverse depth of unknown scale and
            shift (`aligned` makes depth of it).
        """
        return np.stack([self._one(frame) for frame in frames])

    def _one(self, frame: NDArray[np.uint8]) -> NDArray[np.float32]:
        height, width = frame.shape[:2]
        scale = self._long_side / max(height, width)
        size = [max(round(side * scale / self._multiple), 1) * self._multiple for side in (height, width)]
        device = next(self._model.parameters()).device
        image = torch.from_numpy(frame).to(device).permute(2, 0, 1)[None].float() / 255
        image = torch.nn.functional.interpolate(image, size, mode="bicubic", antialias=True)
        mean, std = (image.new_tensor(v)[:, None, None] for v in (_MEAN, _STD))
        found = self._model(pixel_values=(image - mean) / std).predicted_depth
        found = torch.nn.functional.interpolate(
            found[:, None].float(), (height, width), mode="bilinear", align_corners=False
        )
        return found[0, 0].cpu().numpy()
