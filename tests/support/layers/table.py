"""All cases."""

from tests.support.layers.case import LayerCase
from tests.support.layers.cases_activations import ACTIVATION_CASES
from tests.support.layers.cases_called_parts import CALLED_PART_CASES
from tests.support.layers.cases_distributions import DISTRIBUTION_CASES
from tests.support.layers.cases_experts import EXPERT_CASES
from tests.support.layers.cases_frozen import FROZEN_CASES
from tests.support.layers.cases_handed_on import HANDED_ON_CASES
from tests.support.layers.cases_inner_losses import INNER_LOSS_CASES
from tests.support.layers.cases_joined import JOINED_CASES
from tests.support.layers.cases_logits import LOGIT_CASES
from tests.support.layers.cases_masks import MASK_CASES
from tests.support.layers.cases_names import NAME_CASES
from tests.support.layers.cases_outputs import OUTPUT_CASES
from tests.support.layers.cases_overwriting import OVERWRITING_CASES
from tests.support.layers.cases_parts import PART_CASES
from tests.support.layers.cases_passes import PASS_CASES
from tests.support.layers.cases_places import PLACE_CASES
from tests.support.layers.cases_probabilities import PROBABILITY_CASES
from tests.support.layers.cases_tied import TIED_CASES
from tests.support.layers.cases_written_losses import WRITTEN_LOSS_CASES

CASES: list[LayerCase] = [
    *OUTPUT_CASES,
    *DISTRIBUTION_CASES,
    *PROBABILITY_CASES,
    *PART_CASES,
    *CALLED_PART_CASES,
    *INNER_LOSS_CASES,
    *WRITTEN_LOSS_CASES,
    *FROZEN_CASES,
    *LOGIT_CASES,
    *JOINED_CASES,
    *MASK_CASES,
    *OVERWRITING_CASES,
    *ACTIVATION_CASES,
    *PASS_CASES,
    *TIED_CASES,
    *EXPERT_CASES,
    *NAME_CASES,
    *HANDED_ON_CASES,
    *PLACE_CASES,
]
BY_NAME = {case.name: case for case in CASES}
