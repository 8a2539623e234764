"""Raw video in, reasoning data out: geometry, motion, questions, options and narration."""
