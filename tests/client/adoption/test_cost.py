"""What rounding a release costs, on real handwritten digits: judged as a site judges, after adaptation."""

from dataclasses import replace
from pathlib import Path

import pytest

from client.data.held import apart
from client.data.sites import open_site_data
from client.model import adapt_site
from common.learning.params import Params
from common.learning.threads import threads
from common.releases.artefact import Artefact
from common.releases.delta import cost_of, difference_of
from simulations.reference import centralised_reptile
from tests.client.small import settings_with

SETTINGS = settings_with(model__width=16, data__hold_back=0.3, inner__steps=3, run__rounds=40, outer__anneal=False)


@pytest.mark.parametrize("kind", ["int8", "bf16"])
def test_rounding_the_step_costs_at_most_a_point_of_accuracy(digit_sites: Path, kind: str) -> None:
    with threads(1):
        sites = {f"site-{n}": open_site_data(digit_sites, f"site-{n}", SETTINGS.data, None) for n in range(4)}
        every = [open_site_data(digit_sites, f"site-{n}", SETTINGS.data, None) for n in range(8)]
        before = centralised_reptile(sites, replace(SETTINGS, run=replace(SETTINGS.run, rounds=5)))
        after = centralised_reptile(sites, SETTINGS)
        rounded = difference_of(before, after, kind).applied_to(before)

        def judge(params: Params) -> float:
            checkpoint = Artefact(SETTINGS, params).checkpoint()
            judged = [
                adapt_site(checkpoint, *apart(data, share))[1].after for data in every for share in (0.2, 0.3, 0.4, 0.5)
            ]
            return sum(tally.correct for tally in judged) / sum(tally.total for tally in judged)

        cost = cost_of(judge, after, rounded)
    print(f"{kind}: {cost.exact:.4f} exact, {cost.rounded:.4f} rounded")
    assert cost.exact > 0.5
    assert cost.lost <= 0.01
