"""The search of a sweep: proposes points, is told how they do, and says which should end early. Records nothing."""

import itertools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.exact_json import to_json
from workbench.experiments.space import Range, SweepSettings, first_judgement, first_point, is_whole, resolved_axes

if TYPE_CHECKING:
    import optuna

_TRIES = 30  # at a point that was not proposed before
_MEDIAN_NEEDS = 4  # finished points, before the median of them means something


class Search:
    """The search of one sweep, in memory: proposes points, is told how they do, and says which should end early.

    What it proposes follows from the settings and from what it was told; a search that is given a sweep's points in their
    order goes on as if it had never been interrupted.
    """

    def __init__(self, settings: SweepSettings) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)  # one line for each trial otherwise
        self.settings = settings
        self._axes = resolved_axes(settings)
        self._outside = {
            key: {_inside(choice): choice for choice in axis} for key, axis in self._axes.items() if isinstance(axis, tuple)
        }
        self._distributions = {key: _distribution(settings, key, axis) for key, axis in self._axes.items()}
        self.study = optuna.create_study(
            direction="maximize" if settings.direction == "max" else "minimize", pruner=_pruner(settings, self._axes)
        )
        self._grid = list(itertools.product(*self._axes.values())) if settings.search == "grid" else []  # type: ignore[arg-type]
        self._trials: list[optuna.Trial] = []
        self._seen: set[str] = set()

    def propose(self) -> dict[str, Any] | None:
        """The values of the next point, which becomes part of the search; None where there is none left."""
        number = len(self._trials)
        if self.settings.search == "grid":
            return None if number == len(self._grid) else self.adopt(dict(zip(self._axes, self._grid[number], strict=True)))
        if number == self.settings.points:
            return None
        for attempt in range(_TRIES):
            self.study.sampler = self._sampler(number, attempt)
            trial = self.study.ask(self._distributions)
            parameters = {key: self._outside.get(key, {}).get(value, value) for key, value in trial.params.items()}
            parameters = {key: parameters[key] for key in self._axes}
            if to_json(parameters) not in self._seen:
                self._keep(trial, parameters)
                return parameters
            self._drop(trial)
        return self._first_unseen()

    def adopt(self, parameters: dict[str, Any]) -> dict[str, Any]:
        """Make a point part of the search as the next one."""
        self.study.enqueue_trial({key: _inside(value) for key, value in parameters.items()})
        self._keep(self.study.ask(self._distributions), parameters)
        return parameters

    def report(self, point: int, step: int, value: float) -> bool:
        """How a point does after `step` iterations; whether it should end early."""
        self._trials[point].report(value, step)
        return self._trials[point].should_prune()

    def tell(self, point: int, status: str, value: float | None) -> None:
        """How a point ended."""
        import optuna

        state = optuna.trial.TrialState
        if status == "done" and value is not None:
            self.study.tell(self._trials[point], value)
        else:
            self.study.tell(self._trials[point], state=state.PRUNED if status == "pruned" else state.FAIL)

    def importances(self) -> dict[str, float]:
        """How much of what tells good points from the others each axis explains; adds up to 1. Empty where points are few."""
        import optuna

        done = self.study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,))
        if len(self._axes) < 2 or len(done) < 8:
            return {}
        return dict(optuna.importance.get_param_importances(self.study))

    def _keep(self, trial: "optuna.Trial", parameters: dict[str, Any]) -> None:
        self._trials.append(trial)
        self._seen.add(to_json(parameters))

    def _drop(self, trial: "optuna.Trial") -> None:
        import optuna

        self.study.tell(trial, state=optuna.trial.TrialState.FAIL)

    def _sampler(self, number: int, attempt: int) -> "optuna.samplers.BaseSampler":
        """What draws one point: with a seed of its own, so that a resumed search draws the same."""
        import optuna

        seed = int(np.random.SeedSequence([self.settings.search_seed, number, attempt]).generate_state(1)[0])
        if self.settings.search == "random" or attempt > _TRIES // 2:
            return optuna.samplers.RandomSampler(seed=seed)
        return optuna.samplers.TPESampler(seed=seed, n_startup_trials=max(2, min(10, (self.settings.points or 0) // 3)))

    def _first_unseen(self) -> dict[str, Any] | None:
        """Of a space with few points, one that is left."""
        if not all(isinstance(axis, tuple) for axis in self._axes.values()):
            return None
        for point in itertools.product(*self._axes.values()):  # type: ignore[arg-type]
            parameters = dict(zip(self._axes, point, strict=True))
            if to_json(parameters) not in self._seen:
                return self.adopt(parameters)
        return None


def _inside(value: Any) -> Any:
    """A value as the search knows it: lists as text."""
    return to_json(value) if isinstance(value, list | tuple) else value


def _distribution(settings: SweepSettings, key: str, axis: tuple[Any, ...] | Range) -> Any:
    from optuna import distributions

    if isinstance(axis, tuple):
        return distributions.CategoricalDistribution(tuple(map(_inside, axis)))
    whole = is_whole(settings, key, axis)
    high = (axis.values(whole) or (axis.high,))[-1]  # where the last step ends
    if whole:
        return distributions.IntDistribution(int(axis.low), int(high), log=axis.log, step=int(axis.step or 1))
    return distributions.FloatDistribution(axis.low, high, log=axis.log, step=axis.step)


def _pruner(settings: SweepSettings, axes: Mapping[str, tuple[Any, ...] | Range]) -> Any:
    from optuna import pruners

    if settings.pruning == "none":
        return pruners.NopPruner()
    least = first_judgement(settings, settings.target.config(first_point(axes)))
    if settings.pruning == "median":
        return pruners.MedianPruner(n_startup_trials=_MEDIAN_NEEDS, n_warmup_steps=least)
    return pruners.SuccessiveHalvingPruner(min_resource=least, reduction_factor=settings.reduction)
