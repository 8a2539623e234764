"""What a question's text alone says about its answer: solvers without eyes, beside chance."""

from fourdthinker.audit.question_files import ChoiceQuestion, QuestionFile, read_questions, write_without
from fourdthinker.audit.run import FEWEST, Audit, SolverLine, audit, prune

__all__ = [
    "FEWEST",
    "Audit",
    "ChoiceQuestion",
    "QuestionFile",
    "SolverLine",
    "audit",
    "prune",
    "read_questions",
    "write_without",
]
