"""Masks of named things by SAM 3, through transformers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fourdthinker.errors import CheckpointError
from fourdthinker.synth.segment import MaskTrack

_MOST_FPS = 10.0  # that are tracked; frames between have no mask
_TRAINED_FPS = 30.0  # that its counters of frames are set for
_MOST_THINGS = 16  # that are tracked at once
_WORDS = 32  # tokens of a name, as it was trained
_COUNTERS = (
    "hotstart_delay",
    "hotstart_unmatch_thresh",
    "hotstart_dup_thresh",
    "init_trk_keep_alive",
    "max_trk_keep_alive",
    "recondition_every_nth_frame",
)


class Sam3:
    """SAM 3 for videos, loaded once; pictures are prepared here, because its processor needs torchvision."""

    def __init__(self, weights: Path, *, device: str = "cpu") -> None:
        """Load a model.

        Args:
            weights: a folder with config.json, safetensors and a tokenizer.
            device: where it runs.

        Raises:
            CheckpointError: the folder holds no SAM 3 for videos.
        """
        from transformers import AutoTokenizer, Sam3VideoModel

        try:
            self._model: Any = Sam3VideoModel.from_pretrained(weights, local_files_only=True)
            self._tokenizer: Any = AutoTokenizer.from_pretrained(weights, local_files_only=True)
        except (OSError, ValueError, KeyError) as error:
            raise CheckpointError(
                f"{weights}: no SAM 3 for videos that transformers can load ({error}); give the folder of "
                "facebook/sam3 or one like it"
            ) from error
        self._model = self._model.to(device).eval()
        self._model.max_num_objects = min(_MOST_THINGS, self._model.max_num_objects)
        self._counters = {name: getattr(self._model, name) for name in _COUNTERS}

    def __call__(self, pixels: NDArray[np.uint8], fps: float, names: Sequence[str]) -> dict[str, MaskTrack]:
        """Follow the best thing of each name through a clip.

        Args:
            pixels: uint8 [T, H, W, 3].
            fps: frames a second.
            names: noun phrases.

        Returns:
            Name -> its segment, without those that are not found; `score` is the mean over the tracked frames
            of what the detector and the tracker give it.
        """
        step = max(1, math.ceil(fps / _MOST_FPS - 1e-6))
        for name, value in self._counters.items():
            setattr(self._model, name, _scaled(value, fps / step / _TRAINED_FPS))
        frames = range(0, len(pixels), step)
        found: dict[int, dict[int, tuple[NDArray[np.bool_], float]]] = {}
        session = self._session(pixels[::step], names)
        try:
            for out in self._model.propagate_in_video_iterator(session):
                hidden = session.hotstart_removed_obj_ids | set(out.suppressed_obj_ids or ())
                for thing in set(out.obj_id_to_mask) - hidden:
                    mask = _enlarged(out.obj_id_to_mask[thing], pixels.shape[1:3])
                    sure = float(out.obj_id_to_score[thing])
                    if mask.any():
                        found.setdefault(thing, {})[frames[out.frame_idx]] = mask, sure
            owners = dict(session.obj_id_to_prompt_id)
            prompts = dict(session.prompts)
        finally:
            session.reset_inference_session()
        best: dict[str, MaskTrack] = {}
        for thing, masks in found.items():
            name = prompts[owners[thing]]
            score = sum(sure for _, sure in masks.values()) / len(frames)
            if name not in best or score > best[name].score:
                kept = tuple(masks[k][0] if k in masks else None for k in range(len(pixels)))
                best[name] = MaskTrack(kept, round(score, 4))
        return best

    def _session(self, pixels: NDArray[np.uint8], names: Sequence[str]) -> Any:
        from transformers.models.sam3_video.modeling_sam3_video import Sam3VideoInferenceSession

        device, dtype = self._model.device, self._model.dtype
        side = self._model.config.image_size
        height, width = pixels.shape[1:3]
        video = torch.from_numpy(pixels).permute(0, 3, 1, 2)
        small = torch.nn.functional.interpolate(
            video.float(), (side, side), mode="bilinear", align_corners=False, antialias=True
        )
        session = Sam3VideoInferenceSession(
            video=small / 127.5 - 1,
            video_height=height,
            video_width=width,
            inference_device=device,
            inference_state_device=device,
            video_storage_device="cpu",
            dtype=dtype,
        )
        for name in names:
            prompt = session.add_prompt(name)
            words = self._tokenizer(
                name, return_tensors="pt", padding="max_length", max_length=_WORDS, truncation=True
            )
            session.prompt_input_ids[prompt] = words.input_ids.to(device)
            session.prompt_attention_masks[prompt] = words.attention_mask.to(device)
        return session


def _scaled(frames: int, share: float) -> int:
    """A number of frames at another rate; 0 turns something off, and stays."""
    return max(1, round(frames * share)) if frames > 0 else frames


def _enlarged(logits: torch.Tensor, size: tuple[int, ...]) -> NDArray[np.bool_]:
    large = torch.nn.functional.interpolate(
        logits[None].float(), size[:2], mode="bilinear", align_corners=False
    )
    return (large[0, 0] > 0).cpu().numpy()


@cache
def sam3(weights: Path) -> Sam3:
    """The model of a folder, one in each process."""
    return Sam3(weights, device="cuda" if torch.cuda.is_available() else "cpu")
