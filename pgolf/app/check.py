"""Refuse a command line before any work: every problem of every job, as sentences."""

import json
import re
from typing import Any

from pgolf.app.compose import Job
from pgolf.app.explain import Refusal
from pgolf.app.schema import NO_VALUE, Problem, check, value_at
from pgolf.app.signature import TargetProblem, closest, did_you_mean, is_node, locate, signature_of
from pgolf.digest import config_hash, is_absent
from pgolf.errors import ConfigError

_sound: set[str] = set()
"""Hashes of the configurations in which this process has found no problem: jobs are looked at before the first of them
begins, and each again when it begins, by then perhaps in another process."""


def require_valid(jobs: list[Job], *, all_read: bool = True) -> None:
    """Raise ConfigError with every problem of every job, and where there is none, with `all_read`, every setting that
    nothing reads; a problem that jobs share is told once."""
    problems: dict[str, None] = {}
    seen = set(_sound)
    for job in jobs:
        alike = {"seed": 0} if type(job.config.get("seed")) is int else {}  # a right seed changes nothing here
        key = config_hash(job.config | alike)
        if job.refusals or key not in seen:
            found = problems_of(job)
            problems.update(dict.fromkeys(found))
            seen.add(key)
            if not found:
                _sound.add(key)
    if all_read and not problems:
        from pgolf.app.unread import unread

        problems.update(dict.fromkeys(unread(jobs)))
    if problems:
        raise ConfigError(list(problems))


def require_composed(jobs: list[Job]) -> None:
    """Raise ConfigError with what Hydra refused; what it composes is not checked."""
    problems = [_refusal(refusal, job) for job in jobs for refusal in job.refusals]
    if problems:
        raise ConfigError(problems)


def problems_of(job: Job) -> list[str]:
    """The problems of one job: what Hydra, the signatures and the constructors refuse."""
    sentences = [_refusal(refusal, job) for refusal in job.refusals]
    if not job.config:
        return sentences
    unresolved = [Problem(key, NO_VALUE, message) for key, message in job.unresolved]
    silent = {problem.key for problem in unresolved}
    found = unresolved + [problem for problem in check(job.config) if problem.key not in silent]
    if not any(problem.key.partition(".")[0] in ("seed", "paths") for problem in found):
        from pgolf.app.dry import dry_build

        found += dry_build(job.config, frozenset(problem.key.partition(".")[0] for problem in found))
    return sentences + [_sentence(problem, job) for problem in found]


def _sentence(problem: Problem, job: Job) -> str:
    if problem.value is NO_VALUE:
        origin = job.origins.find(problem.key) or job.origins.find_nearest(problem.key.rpartition(".")[0])
        return f"{problem.key} is missing{_in_brackets(origin)}: {problem.message}"
    if is_node(problem.value):
        return f"{problem.key}: {problem.message}{_in_brackets(_settings(problem, job))}"
    return f"{_setting(problem.key, problem.value, job)}: {problem.message}"


def _setting(key: str, value: Any, job: Job) -> str:
    text = json.dumps(value) if isinstance(value, bool | None | list | dict) else value
    return f"{key} = {text}{_in_brackets(job.origins.find_nearest(key))}"


def _settings(problem: Problem, job: Job) -> str:
    """The settings that a constructor's complaint mentions by name, in its node or in one above."""
    found = []
    for word in dict.fromkeys(re.findall(r"[A-Za-z_]+", problem.message)):
        above = problem.key
        while above:
            node = value_at(job.config, above)
            if isinstance(node, dict) and word in node and not isinstance(node[word], dict):
                found.append(_setting(f"{above}.{word}", node[word], job))
                break
            above = above.rpartition(".")[0]
    return "; ".join(found) or job.origins.find_nearest(problem.key)


def _in_brackets(text: str) -> str:
    return f" ({text})" if text else ""


def _refusal(refusal: Refusal, job: Job) -> str:
    if refusal.unknown is None:
        return refusal.sentence
    key, config = refusal.unknown.replace("/", "."), job.config
    parent, above = _deepest(config, key)
    prefix = f"{above}." if above else ""
    name, dot, rest = key.removeprefix(prefix).partition(".")
    if is_absent(parent):
        return f"{refusal.sentence}: {above} is absent. {advice(job, above)}"
    if is_node(parent) and name in _arguments(parent):
        takes = f"no file sets it, but {parent['_target_']} takes it"
        return f"{refusal.sentence}: {takes}. Write +{refusal.override}"
    names = [one for one in parent if not str(one).startswith("_")] if isinstance(parent, dict) else []
    names += _arguments(parent)
    close = closest(name, names)
    mended = [f"{prefix}{one}{dot}{rest}" for one in close] or _same_end(key, config)
    accepted = f" {above or 'The configuration'} has {', '.join(sorted(set(names)))}" if names else ""
    return f"{refusal.sentence}{did_you_mean(mended) or '.'}{accepted}"


def advice(job: Job, part: str) -> str:
    """How to choose something for an absent part: with the options of its group, or where it has none, of one with the
    same last name (model.mup follows optim/mup)."""
    last = part.rpartition(".")[2]
    for key in [part, *(one for one in _keys(job.config) if one.rpartition(".")[2] == last)]:
        group = key.replace(".", "/")
        if options := [one for one in job.options(group) if one != "none"]:
            follows = "" if key == part else f", which {part} follows"
            return f"Choose a part with {group}={'|'.join(options)}{follows}"
    return "No group of options is for it: give it a node with a _target_"


def _same_end(key: str, config: dict[str, Any]) -> list[str]:
    """The keys, anywhere, whose last name is close to the last name of `key`."""
    keys = _keys(config)
    close = closest(key.rpartition(".")[2], [one.rpartition(".")[2] for one in keys])
    return [one for one in keys if one.rpartition(".")[2] in close][:3]


def _deepest(config: dict[str, Any], key: str) -> tuple[Any, str]:
    """The deepest existing node above a key, and its dotted key."""
    node: Any = config
    above: list[str] = []
    for name in key.split(".")[:-1]:
        if not isinstance(node, dict) or name not in node:
            break
        node, above = node[name], [*above, name]
    return node, ".".join(above)


def _arguments(node: Any) -> list[str]:
    if not is_node(node):
        return []
    try:
        return list(signature_of(locate(node["_target_"])).arguments)
    except TargetProblem:
        return []


def _keys(node: Any, prefix: str = "") -> list[str]:
    if not isinstance(node, dict):
        return []
    keys = []
    for name, child in node.items():
        if name.startswith("_"):
            continue
        keys += [f"{prefix}{name}", *_keys(child, f"{prefix}{name}.")]
    return keys
