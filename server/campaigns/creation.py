"""A campaign asked for: which sites, which settings, and the model that it starts from."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from common.cli import read_settings
from common.errors import CampaignError, DeployError, SettingsError
from common.settings import Settings, Value
from common.trust.names import checked_name
from server.campaigns.campaign import FAILED, read_campaign
from server.campaigns.gate import LEAST_JUDGES
from server.enrolment.registry import Registry, read_registry
from server.home import FederationHome
from server.service.control import superlink_address
from server.service.runs import RECORD, RunRecord, ask_for_run, read_run
from server.service.status import introductions

INITIAL = "champion.safetensors"
"""In a campaign's folder: the release that it starts from, as a checkpoint."""

STEP_SIZE = 0.3
"""Of the outer steps: few gentle rounds, since old classes suffer from large ones and a new class hardly gains."""


@dataclass(frozen=True)
class Choice:
    """Which sites an operator wants; each of what is given must hold."""

    sites: tuple[str, ...] = ()
    label: str = ""
    has_class: str = ""
    device: str = ""
    """How its device begins: 'cuda' takes 'cuda:1' too."""


@dataclass(frozen=True)
class Wanted:
    """What an operator asks for."""

    name: str
    new_class: str
    description: str
    sites: tuple[str, ...]
    canary: tuple[str, ...]
    values: Mapping[str, Value]
    """Settings that the command's own options change."""
    assignments: Sequence[str]
    """``key=value`` words, which come last."""


def chosen_sites(choice: Choice, registry: Registry, said: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the enrolled sites that an operator wants, by name.

    Args:
        said: site -> what it last said about itself.

    Raises:
        SettingsError: if a named site is not enrolled, or fewer than 2 are left.
    """
    check_enrolled(choice.sites, registry)
    found = [
        name
        for name, site in sorted(registry.sites.items())
        if (not choice.sites or name in choice.sites)
        and (not choice.label or choice.label in site.labels)
        and (not choice.has_class or choice.has_class in said.get(name, {}).get("classes", {}))
        and (not choice.device or str(said.get(name, {}).get("device", "")).startswith(choice.device))
    ]
    _check_number(found)
    return tuple(found)


def check_enrolled(sites: Sequence[str], registry: Registry) -> None:
    """Raises SettingsError if a site is not enrolled."""
    if unknown := sorted(set(sites) - registry.sites.keys()):
        enrolled = ", ".join(sorted(registry.sites)) or "none"
        raise SettingsError(f"site {unknown[0]!r} is not enrolled; enrolled are: {enrolled}")


def campaign_settings(agreed: Settings, wanted: Wanted, release: int, initial: str) -> Settings:
    """Return the settings of a campaign's run.

    Args:
        agreed: those of the federation.
        release: number of the release that it starts from; 0: there is none yet.
        initial: path of that release as a checkpoint; empty: there is none.

    Raises:
        SettingsError: if nothing could come of it.
    """
    values: dict[str, Value] = {
        "campaign.class": wanted.new_class,
        "campaign.description": wanted.description,
        "campaign.sites": ",".join(wanted.sites),
        "campaign.canary": ",".join(wanted.canary),
        "campaign.release": release,
        "run.rounds": 3,
        "run.resume": True,
        "outer.sites-per-round": 0,
        "outer.class-tables": True,
        "outer.meta-step-size": STEP_SIZE,
        "inner.learning-rate": agreed.adaptation.learning_rate,
        "judge.every": 0,
        "judge.held-out": 0,
        **({"model.initial": initial} if initial else {}),
        **wanted.values,
    }
    settings = read_settings(None, wanted.assignments, agreed.with_values(values))
    names, outer = settings.campaign.site_names, settings.outer
    _check_number(names)
    if not settings.campaign.class_.strip() or not settings.campaign.class_.isprintable():
        raise SettingsError("--class is empty or holds control characters; give the name that sites label it by")
    if not settings.campaign.description.isprintable():
        raise SettingsError("the description holds control characters; write it in one line of plain text")
    if not settings.data.hold_back:
        raise SettingsError(
            "data.hold-back is 0 in the settings that sites agreed to, so that they hold nothing back to judge by; set "
            "it, such as data.hold-back = 0.2, and send the sites new kits"
        )
    if settings.model.head != "prototype":
        raise SettingsError(
            f"model.head is {settings.model.head!r}, which has no place for another class; campaigns need 'prototype'"
        )
    return settings.with_values(
        {
            "outer.join-sites": max(LEAST_JUDGES, math.ceil(outer.quorum * len(names))),
            "outer.failed-rounds": min(outer.failed_rounds, settings.run.rounds),
        }
    )


def begin_campaign(home: FederationHome, choice: Choice, wanted: Wanted) -> RunRecord:
    """Choose the sites of a campaign and put it in the queue of the server's runs.

    Args:
        wanted: in place of its sites come those that are chosen.

    Raises:
        DeployError: if the server does not run, or there is a run of its name.
        ReleaseError, SettingsError, TrustError: like ``ask_for_campaign``, or if a site that is named is not enrolled.
    """
    agreed = read_settings(home.path / home.config().settings, [])
    registry = read_registry(home.registry_file)
    chosen = chosen_sites(choice, registry, introductions(home))
    check_enrolled(wanted.canary, registry)
    superlink_address(home)
    return ask_for_campaign(home, agreed, replace(wanted, sites=chosen))


def resume_campaign(home: FederationHome, name: str) -> RunRecord:
    """Put a campaign that was stopped, or could not go on, in the queue again.

    Raises:
        CampaignError: if it has failed.
        DeployError: if the server does not run, or the campaign is under way.
    """
    folder = home.runs / checked_name(name, "run")
    record, campaign = read_run(folder), read_campaign(folder)
    if campaign is not None and campaign.phase == FAILED:
        raise CampaignError(f"the campaign has failed: {campaign.reason}; begin another one")
    superlink_address(home)
    return ask_for_run(home, name, Settings.from_flat(dict(record.settings)))


def ask_for_campaign(home: FederationHome, agreed: Settings, wanted: Wanted) -> RunRecord:
    """Put a campaign in the queue of runs.

    Raises:
        DeployError: if there is a run of its name.
        ReleaseError: if the federation has no place for releases yet, or the present one cannot be read.
        SettingsError: if nothing could come of it.
    """
    from server.campaigns.releases import champion_number, write_champion  # here, because they import torch

    folder = home.runs / checked_name(wanted.name, "run")
    if (folder / RECORD).exists():
        raise DeployError(
            f"there is a run {wanted.name!r} already; take another name, or have it go on with "
            f"'fedreptile-server campaign resume {wanted.name}'"
        )
    number = champion_number(home)
    path = folder / INITIAL
    settings = campaign_settings(agreed, wanted, number, str(path) if number else "")
    if number:
        folder.mkdir(parents=True, exist_ok=True)
        write_champion(home, number, path)
    return ask_for_run(home, wanted.name, settings)


def _check_number(sites: Sequence[str]) -> None:
    if len(sites) < LEAST_JUDGES:
        raise SettingsError(
            f"a campaign needs at least {LEAST_JUDGES} sites, so that nothing is one site's update alone, and "
            f"{len(sites)} is chosen ({', '.join(sites) or 'none'}); choose more"
        )
