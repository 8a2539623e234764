"""Reasoning for records: from the geometry alone, or by a language model whose text is checked."""

from fourdthinker.synth.narrate.endpoint import Endpoint, EndpointError, EndpointSettings, RefusedError
from fourdthinker.synth.narrate.limits import PICTURE, BudgetError
from fourdthinker.synth.narrate.model import (
    Job,
    Picture,
    RejectedError,
    narrate_by_model,
    narrate_many,
    scaled,
)
from fourdthinker.synth.narrate.template import narrate
from fourdthinker.synth.narrate.validate import fault

__all__ = [
    "PICTURE",
    "BudgetError",
    "Endpoint",
    "EndpointError",
    "EndpointSettings",
    "Job",
    "Picture",
    "RefusedError",
    "RejectedError",
    "fault",
    "narrate",
    "narrate_by_model",
    "narrate_many",
    "scaled",
]
