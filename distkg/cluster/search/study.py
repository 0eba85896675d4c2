"""Optuna side of a search: distributions, sampler, and parameter importance."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
from optuna.samplers import TPESampler

from distkg.search.space import Choice, Distribution, Space
from distkg.search.trials import Trial

LEAST_TRIALS = 4
"""Minimum number of ended trials for an importance: with fewer, the best quarter would be a single trial."""


def distributions(space: Space) -> dict[str, BaseDistribution]:
    """Return the space as Optuna distributions."""
    return {key: _distribution(distribution) for key, distribution in space.items()}


def make_sampler(seed: int, trials: int, *, parallel: bool) -> TPESampler:
    """Return a sampler of tree-structured Parzen estimators (Bergstra et al. 2011) with a random start of a third of
    ``trials``.

    With two objectives, it proposes configurations near those whose front covers most (MOTPE, Ozaki et al. 2020). With
    ``parallel`` trials, running trials count as bad ones, so that no two are alike.
    """
    return TPESampler(seed=seed, n_startup_trials=max(4, min(10, trials // 3)), constant_liar=parallel)


def importances(space: Space, trials: Sequence[Trial]) -> dict[str, float]:
    """Return the importance of each parameter for the best quarter of trials; shares sum to 1, most important first.

    The method is PED-ANOVA (Watanabe et al., IJCAI 2023, arXiv 2304.10255). Empty with fewer than four trials, and if
    all have the same value.
    """
    if len(trials) < LEAST_TRIALS or len({trial.value for trial in trials}) == 1:
        return {}
    quiet()
    study = optuna.create_study(direction="maximize")
    forms = distributions(space)
    for trial in trials:
        study.add_trial(optuna.trial.create_trial(params=trial.parameters, distributions=forms, value=trial.value))
    evaluator = PedAnovaImportanceEvaluator(target_quantile=0.25)
    return get_param_importances(study, evaluator=evaluator)


def quiet() -> None:
    """Limit Optuna and Ray Tune to warnings, because distkg prints the progress of a search."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    # Tune warns of missing result files, which it is configured not to write.
    logging.getLogger("ray.tune.analysis.experiment_analysis").setLevel(logging.ERROR)


def _distribution(distribution: Distribution) -> BaseDistribution:
    if isinstance(distribution, Choice):
        return CategoricalDistribution(distribution.values)
    if distribution.whole:
        return IntDistribution(int(distribution.low), int(distribution.high), log=distribution.log)
    return FloatDistribution(distribution.low, distribution.high, log=distribution.log)
