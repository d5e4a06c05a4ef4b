"""The last sections of every report: configuration, times and versions."""

import json
import os
import platform
import time
from collections.abc import Mapping
from importlib import metadata
from typing import Any

from emu_jax.reporting.page import Section, details, facts_table

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


def about_sections(*, config: Mapping[str, Any] | None = None, facts: Mapping[str, str] | None = None) -> list[Section]:
    """Return the sections of the configuration and of versions, which follow `facts` such as times and memory."""
    versions = details("Versions", facts_table(installed_versions()), is_open=not facts)
    return [
        Section("Configuration", _config_tables(config or {})),
        Section("Times and versions" if facts else "Versions", facts_table(facts or {}) + versions),
    ]


def installed_versions() -> dict[str, str]:
    """Return the versions of Python and of the main libraries, and the machine. Starts no device."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    found = {"Python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found | {"Machine": f"{platform.system()} {platform.machine()}, {cores} cores"}


def footer() -> str:
    """Return the line at the end of a page, with the present date."""
    return f"Written by emu_jax on {time.strftime('%d %B %Y, %H:%M')}."


def _config_tables(config: Mapping[str, Any]) -> str:
    """Return one folded table per group of fields."""
    scalars = {name: value for name, value in config.items() if not isinstance(value, Mapping)}
    groups = {"Run": scalars} | {name: value for name, value in config.items() if isinstance(value, Mapping)}
    return "".join(
        details(name.capitalize(), facts_table(_flatten(fields))) for name, fields in groups.items() if fields
    )


def _flatten(fields: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for name, value in fields.items():
        if isinstance(value, Mapping) and value:
            flat |= _flatten(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value if isinstance(value, str) else json.dumps(value, default=str)
    return flat
