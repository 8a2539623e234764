"""Liger's layers: put in one model, compared with the plain ones, refused by name where they cannot run."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from fourdthinker.backbones import liger
from fourdthinker.backbones.liger import use_liger
from fourdthinker.errors import ConfigError
from fourdthinker.objectives import dift_objective
from fourdthinker.samples import collate
from tests.e2e.training import samples
from tests.tiny import tiny_checkpoint

ops = pytest.importorskip("liger_kernel.ops")


class Called:
    """Liger's two functions in plain torch, which count their calls: its kernels need a GPU."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, wrong: float = 0.0) -> None:
        self.norms = self.products = 0

        def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float, *_: Any) -> torch.Tensor:
            self.norms += 1
            return F.rms_norm(x, weight.shape, weight, eps) + wrong

        def silu_mul(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
            self.products += 1
            return F.silu(gate) * up

        monkeypatch.setattr(ops, "LigerRMSNormFunction", type("N", (), {"apply": staticmethod(rms_norm)}))
        monkeypatch.setattr(ops, "LigerSiLUMulFunction", type("S", (), {"apply": staticmethod(silu_mul)}))
        monkeypatch.setattr(liger, "_problem", lambda device: None)


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"])
def test_every_layer_of_the_language_model_runs_by_liger(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint, called = tiny_checkpoint(family=family, layers=2), Called(monkeypatch)
    backbone, other = checkpoint.backbone, tiny_checkpoint(family=family, layers=2).backbone
    batch = collate(samples(checkpoint, 3), 0)

    def loss_of(model: Any) -> torch.Tensor:
        loss, _ = model(batch, lambda *a: dift_objective(*a, num_tokens=50.0, num_latents=8.0))
        loss.backward()
        return loss.detach()

    plain = loss_of(other)
    norms = 2 * 2 + 1 + (4 if family == "qwen3_vl" else 0)  # with those of queries and keys
    assert use_liger(backbone, required=True) == norms + 2
    called.norms = called.products = 0
    torch.testing.assert_close(loss_of(backbone), plain)
    assert (called.norms, called.products) == (norms, 2)
    loss_of(other)
    loss_of(tiny_checkpoint(family=family, layers=2).backbone)
    assert (called.norms, called.products) == (norms, 2), "other models stay as they are"
    copied = copy.deepcopy(backbone)
    with torch.no_grad():
        copied.hf.model.language_model.norm.weight.mul_(2)
    assert loss_of(copied) != plain, "a copy runs by its own weights"


def test_a_layer_that_differs_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    Called(monkeypatch, wrong=0.5)
    with pytest.raises(ConfigError, match=r"its RMSNorm differs .* set liger=false"):
        use_liger(tiny_checkpoint(layers=1).backbone, required=False)


def test_without_a_gpu_it_is_left_out_or_refused() -> None:
    backbone = tiny_checkpoint(layers=1).backbone
    assert use_liger(backbone, required=False) == 0
    with pytest.raises(ConfigError, match="liger is true, but its kernels need a GPU"):
        use_liger(backbone, required=True)
