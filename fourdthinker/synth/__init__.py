"""Synthesis of reasoning records: rendered worlds, questions, options, narration."""
