"""Which parameters a trial gets: Optuna's samplers behind Ray Tune's searcher.

Trial n depends on the seed, on n and on the results told so far. The first ten are drawn at random, each from a seed
of its own: they are the same whichever trial ends first, and after a crash.
"""

import logging
from collections.abc import Mapping
from typing import Any

import numpy as np
import optuna
from optuna.trial import TrialState, create_trial
from ray.tune.search import Searcher
from ray.tune.search.optuna import OptunaSearch
from ray.tune.search.sample import Domain

from forge_core.errors import ConfigurationError
from forge_core.training.trials import WHOLE

logger = logging.getLogger(__name__)

RANDOM_TRIALS = 10


def distributions_of(space: Mapping[str, Any]) -> dict[str, Any]:
    """Return Optuna's distributions of a search space of Ray Tune.

    Raises
    ------
    ConfigurationError
        When the space is empty, or an entry is no domain (`tune.uniform`, `tune.choice`, …).
    """
    if not space:
        raise ConfigurationError("expected a search space, found an empty one; name a parameter and its domain")
    if strange := [name for name, domain in space.items() if not isinstance(domain, Domain)]:
        raise ConfigurationError(
            f"expected a domain of ray.tune (uniform, loguniform, randint, choice) for {', '.join(strange)}, "
            f"found {space[strange[0]]!r}; put constants into `fixed`"
        )
    try:
        return dict(OptunaSearch.convert_search_space(dict(space)))
    except ValueError as error:
        raise ConfigurationError(f"expected a search space that Optuna can draw from, found: {error}") from error


class Sampler(Searcher):
    """Draws parameters for the trial numbers that are still to do.

    Parameters
    ----------
    distributions : mapping
        As `distributions_of` gives them; empty for a single trial without parameters.
    todo : sequence of int
        Numbers of the trials to run, ascending.
    done : sequence of mappings
        Records of earlier trials (`hyperparameters`, `value`, `state`), which the sampler learns from.
    first : mapping, optional
        Parameters of trial 0, as far as they lie in the space.
    """

    def __init__(
        self,
        distributions: Mapping[str, Any],
        mode: str,
        seed: int,
        todo: list[int],
        done: list[dict[str, Any]],
        first: Mapping[str, Any],
    ) -> None:
        super().__init__(metric="objective", mode=mode)
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._distributions, self._seed, self._first = dict(distributions), seed, dict(first)
        self._todo = list(todo)
        self._running: dict[str, Any] = {}
        self._study = optuna.create_study(direction="minimize" if mode == "min" else "maximize")
        for record in done if distributions else []:
            stopped = record["state"] == "stopped"
            self._study.add_trial(
                create_trial(
                    state=TrialState.PRUNED if stopped else TrialState.COMPLETE,
                    value=record["value"],
                    params=record["hyperparameters"],
                    distributions=self._distributions,
                    intermediate_values={s["thirds"]: s["value"] for s in record["stages"]},
                )
            )

    def suggest(self, trial_id: str) -> dict[str, Any] | str:
        """Return the next number with its parameters."""
        if not self._todo:
            return str(Searcher.FINISHED)
        number = self._todo.pop(0)
        if not self._distributions:
            return {"number": number, "parameters": {}}
        seed = int(np.random.SeedSequence([self._seed, number]).generate_state(1)[0])
        random = number < RANDOM_TRIALS
        self._study.sampler = (
            optuna.samplers.RandomSampler(seed=seed) if random else optuna.samplers.TPESampler(seed=seed)
        )
        if number == 0 and (first := self._usable(self._first)):
            self._study.enqueue_trial(first)
        trial = self._running[trial_id] = self._study.ask(self._distributions)
        return {"number": number, "parameters": dict(trial.params)}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Tell the study how the trial ended."""
        trial = self._running.pop(trial_id, None)
        if trial is None:
            return
        if error or not result or not np.isfinite(result["objective"]):
            self._study.tell(trial, state=TrialState.FAIL)
        elif result["thirds"] < WHOLE:
            for stage in result["stages"]:
                trial.report(stage["value"], stage["thirds"])
            self._study.tell(trial, state=TrialState.PRUNED)
        else:
            self._study.tell(trial, result["objective"])

    def _usable(self, first: Mapping[str, Any]) -> dict[str, Any]:
        known = {name: value for name, value in first.items() if name in self._distributions}
        inside = {name: v for name, v in known.items() if self._holds(name, v)}
        if outside := sorted(set(known) - set(inside)):
            logger.warning("start_from outside of the search space, drawn instead: %s", ", ".join(outside))
        return inside

    def _holds(self, name: str, value: Any) -> bool:
        distribution = self._distributions[name]
        if hasattr(distribution, "choices"):
            return value in distribution.choices
        return isinstance(value, int | float) and distribution.low <= value <= distribution.high

    def save(self, checkpoint_path: str) -> None:
        """Do nothing: a search is resumed from its own journal, never from a pickle."""

    def restore(self, checkpoint_path: str) -> None:
        """Do nothing, as `save`."""
