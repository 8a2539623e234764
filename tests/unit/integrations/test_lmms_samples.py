import json

from fourdthinker.evaluate import AnsweredQuestion, EvalResult
from fourdthinker.integrations.lmms_samples import write_lmms_samples
from fourdthinker.records import Record

OPTIONS = {"A": "left", "B": "right"}


def test_a_line_for_each_question_with_texts_answers_and_score(tmp_path):
    said = "<answer>A</answer>"
    questions = (
        AnsweredQuestion("a", "t", "a.mp4", OPTIONS, "A", ("A", None), "A", (said, "no"), said),
        AnsweredQuestion("b", "", "b.mp4", {}, "2", failed="b.mp4: no such file"),
    )
    records = [
        Record("rl", "a", "where", options=OPTIONS, where="a", video="a.mp4", answer="A"),
        Record("rl", "b", "how far", where="b", video="b.mp4", answer="2"),
    ]
    result = EvalResult("model", questions, 2, True, {"n": 2}, 3.0)
    path = write_lmms_samples(tmp_path / "lmms_eval", "my data/x", result, records)
    assert path.name == "eval_samples_my_data_x.jsonl"
    first, second = (json.loads(line) for line in path.read_text().splitlines())
    assert first["resps"] == [["<answer>A</answer>", "no", "<answer>A</answer>"]]
    assert first["filtered_resps"] == ["A", "", "A"]
    assert first["score"] == 0.5, "of the samples, as the score in the results"
    assert (first["doc_id"], first["target"], first["doc"]["video"]) == (0, "A", "a.mp4")
    assert (second["score"], second["failed"]) == (0.0, "b.mp4: no such file")
    summary = json.loads((tmp_path / "lmms_eval" / "eval_results.json").read_text())
    assert summary["results"]["my_data_x"]["score,none"] == result.summary()["accuracy"] == 0.25
    assert summary["n-samples"]["my_data_x"] == {"original": 2, "effective": 2}
