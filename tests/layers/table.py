"""All cases."""

from tests.layers.case import LayerCase
from tests.layers.cases_distributions import DISTRIBUTION_CASES
from tests.layers.cases_logits import LOGIT_CASES
from tests.layers.cases_outputs import OUTPUT_CASES

CASES: list[LayerCase] = [
    *OUTPUT_CASES,
    *DISTRIBUTION_CASES,
    *LOGIT_CASES,
]
BY_NAME = {case.name: case for case in CASES}
