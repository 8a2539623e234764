"""SAM 3 with random weights: names go in, a track of masks for each comes out, and the session is closed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from fourdthinker.errors import CheckpointError
from fourdthinker.synth.sam3 import Sam3, _scaled
from tests.tiny import tiny_tokenizer


def save(folder: Path) -> None:
    """A tiny model that takes anything for a thing."""
    from transformers import Sam3VideoConfig, Sam3VideoModel

    tokenizer = tiny_tokenizer()
    small = {"hidden_size": 128, "num_attention_heads": 4, "intermediate_size": 32}
    layer = {**small, "num_layers": 1}
    vision = {
        "backbone_config": {
            **small, "model_type": "sam3_vit_model", "num_hidden_layers": 2, "image_size": 56,
            "patch_size": 14, "window_size": 2, "global_attn_indexes": [1], "pretrain_image_size": 28,
        },
        "fpn_hidden_size": 128, "backbone_feature_sizes": [[16, 16], [8, 8], [4, 4]],
    }  # fmt: skip
    detector = {
        "vision_config": vision,
        "text_config": {
            **small, "vocab_size": len(tokenizer), "num_hidden_layers": 1, "projection_dim": 128,
            "max_position_embeddings": 32,
        },
        "geometry_encoder_config": layer, "detr_encoder_config": layer,
        "detr_decoder_config": {**layer, "num_queries": 4},
        "mask_decoder_config": {"hidden_size": 128, "num_attention_heads": 4},
    }  # fmt: skip
    tracker = {
        "image_size": 56,
        "vision_config": vision,
        "prompt_encoder_config": {"hidden_size": 128, "image_size": 56, "patch_size": 14},
        "mask_decoder_config": {
            "hidden_size": 128, "mlp_dim": 32, "num_attention_heads": 4, "iou_head_hidden_dim": 128,
        },
        "memory_attention_hidden_size": 128, "memory_attention_num_layers": 1,
        "memory_attention_feed_forward_hidden_size": 32, "memory_attention_rope_feat_sizes": [4, 4],
        "memory_encoder_hidden_size": 128, "memory_encoder_output_channels": 64,
        "mask_downsampler_embed_dim": 128, "memory_fuser_embed_dim": 128, "memory_fuser_intermediate_dim": 32,
    }  # fmt: skip
    config = Sam3VideoConfig(
        detector_config=detector, tracker_config=tracker, low_res_mask_size=16, score_threshold_detection=0.0,
        new_det_thresh=0.0, det_nms_thresh=0.0, fill_hole_area=0,
    )  # fmt: skip
    torch.manual_seed(0)
    Sam3VideoModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def test_named_things_are_followed(tmp_path: Path) -> None:
    save(tmp_path)
    model = Sam3(tmp_path)
    pixels = np.random.default_rng(0).integers(0, 255, (6, 40, 60, 3), np.uint8)
    found = model(pixels, 20.0, ["dog", "red ball"])
    assert found
    assert found.keys() <= {"dog", "red ball"}
    for segment in found.values():
        assert len(segment.masks) == 6
        assert all(segment.masks[k] is None for k in (1, 3, 5))  # ten frames a second are tracked
        seen = [mask for mask in segment.masks if mask is not None]
        assert seen
        assert all(mask.shape == (40, 60) and mask.dtype == bool for mask in seen)
        assert 0 < segment.score <= 1
    assert model(pixels, 20.0, ["dog", "red ball"]).keys() == found.keys()  # nothing is left of the first


def test_counters_follow_the_rate() -> None:
    assert [_scaled(frames, 10 / 30) for frames in (15, 8, 30, 1, 0, -1)] == [5, 3, 10, 1, 0, -1]


def test_a_folder_without_the_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no SAM 3 for videos"):
        Sam3(tmp_path)
