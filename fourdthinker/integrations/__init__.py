"""The model within other evaluation harnesses: lmms-eval and VLMEvalKit; trackers of experiments."""
