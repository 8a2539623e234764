"""What a question's text alone says about its answer: solvers without eyes, beside chance."""

from fourdthinker.audit.items import Item, QuestionFile, read_questions, write_without
from fourdthinker.audit.run import FEWEST, Audit, Line, audit, prune

__all__ = [
    "FEWEST",
    "Audit",
    "Item",
    "Line",
    "QuestionFile",
    "audit",
    "prune",
    "read_questions",
    "write_without",
]
