"""The same code on a GPU. Runs where there is one."""

import pytest
import torch

from client.settings import SiteSettings
from client.site import Site
from common.messages import Request
from common.plan import plan_for
from common.settings import Settings

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU that torch can use"),
]


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_a_site_with_a_gpu_sends_the_update_of_a_site_without(digit_sites: str, optimizer: str) -> None:
    """To rounding: float32 sums run in another order, so an update agrees to about 1e-3 of its length."""
    settings = Settings.from_flat(
        {
            "data.size": 8,
            "model.width": 16,
            "inner.optimizer": optimizer,
            "inner.learning-rate": 0.1 if optimizer == "sgd" else 1e-3,
            "inner.augment": "affine",
        }
    )
    plan = plan_for(settings)
    request = Request(
        1, plan.params.pack(plan.initial).numpy(), plan.slots.pack(plan.initial_slots).numpy(), judge=True
    )
    updates = [
        Site(SiteSettings("site-0", str(digit_sites), device=device), settings).train(request)
        for device in ("cpu", "cuda")
    ]
    cpu, gpu = (torch.tensor(update.delta) for update in updates)
    assert cpu.norm() > 0
    assert (cpu - gpu).norm() < 1e-3 * cpu.norm()
