"""What a question's text alone says about its answer: solvers without eyes, beside chance."""

from fourdthinker.audit.items import Item, QuestionFile, read_questions, write_without
from fourdthinker.audit.run import Audit, Line, audit, prune

__all__ = ["Audit", "Item", "Line", "QuestionFile", "audit", "prune", "read_questions", "write_without"]
