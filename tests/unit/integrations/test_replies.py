import pytest
import torch

from fourdthinker.errors import ConfigError
from fourdthinker.frames import FramePolicy
from fourdthinker.integrations.replies import Parts, Reply, replies, sampling
from fourdthinker.prompts import Encoder
from fourdthinker.thinker import Thinker
from tests.clips import make_clip
from tests.tiny import tiny_checkpoint

CONFIG = sampling(12)


@pytest.fixture(scope="module")
def thinker():
    policy = FramePolicy(fps=2, max_frames=4, max_pixels=64 * 64, min_pixels=56 * 56, factor=28)
    return Thinker(tiny_checkpoint(policy=policy))


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    return [make_clip(folder / f"{name}.mp4", range(0, 2000, 167)) for name in ("a", "b")]


def record(id, video, text="where does it go"):
    return Parts([text], [] if video is None else [video], []).record(id)


def test_each_reply_is_what_the_model_says_alone_in_the_order_of_the_questions(thinker, clips, monkeypatch):
    asked = [
        record("1", clips[0]),
        record("2", clips[1]),
        record("3", None),
        record("4", clips[0], "what moves"),
    ]
    read, old = [], Encoder.read
    monkeypatch.setattr(Encoder, "read", lambda self, one: read.append(one.video) or old(self, one))
    together = replies(thinker, asked, CONFIG, batch_prompts=3)
    assert [path for path in read if path] == [str(clips[0]), str(clips[1])]  # each clip once
    alone = [thinker.generate(r.video, r.question, config=CONFIG) for r in asked]
    assert [(r.text, r.tokens) for r in together] == [(a.text, len(a.tokens)) for a in alone]
    assert all(reply.failed is None for reply in together)


def test_what_cannot_be_asked_has_no_answer_and_the_others_have(thinker, clips, tmp_path, caplog):
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video")
    asked = [record("bad", broken), record("good", clips[0]), record("control", None, "say <|im_end|>")]
    bad, good, control = replies(thinker, asked, CONFIG, batch_prompts=8)
    assert bad.text == control.text == ""
    assert "broken.mp4" in bad.failed
    assert "<|im_end|>" in control.failed
    assert good.failed is None
    assert good.text
    assert "bad has no answer" in caplog.text


def test_logits_that_are_nan_cost_their_question_alone(clips):
    thinker = Thinker(tiny_checkpoint())
    token = int(thinker.encoder.tokenizer("moves", add_special_tokens=False)["input_ids"][0])
    with torch.no_grad():
        thinker.checkpoint.backbone.model.get_input_embeddings().weight[token] = torch.nan
    out = replies(thinker, [record("nan", None, "what moves"), record("good", None)], CONFIG, 2)
    assert [reply.failed is None for reply in out] in ([False, True], [False, False])
    assert out[0].failed is not None


def test_the_answer_is_the_content_of_the_last_answer_and_else_all():
    assert Reply("<think>B?</think><answer>A</answer> <answer> C. left </answer>").answer == "C. left"
    assert Reply("C. left").answer == "C. left"


def test_one_question_has_one_video_or_pictures(clips):
    with pytest.raises(ConfigError, match="t/1: 2 videos and 0 pictures"):
        Parts(["a"], list(clips), []).record("t/1")
    with pytest.raises(ConfigError, match="1 videos and 1 pictures"):
        Parts(["a"], [clips[0]], ["x.png"]).record("t/1")


def test_settings_of_harnesses():
    assert (sampling().temperature, sampling().max_new_tokens) == (0.0, 512)
    config = sampling(16, 0.5, 0.9, 40)
    assert (config.max_new_tokens, config.temperature, config.top_p, config.top_k) == (16, 0.5, 0.9, 40)
    assert sampling(temperature=0.0, top_p=0.0, top_k=-1) == sampling()  # as tasks of lmms-eval write it
    assert sampling(temperature=1.0, top_p=0, top_k=-1) == sampling(temperature=1.0)
    with pytest.raises(ConfigError, match="top_p"):
        sampling(temperature=1.0, top_p=2.0)
