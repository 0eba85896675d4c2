"""A search as Optuna sees it: distributions, the sampler, and which parameters mattered."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
from optuna.samplers import TPESampler

from distkg.search.search_folder import Trial
from distkg.search.space import Choice, Distribution, Space

LEAST_TRIALS = 4
"""Below this many ended trials no importance is given: a quarter of them would be a single trial."""


def distributions(space: Space) -> dict[str, BaseDistribution]:
    """The space in Optuna's terms."""
    return {key: _distribution(distribution) for key, distribution in space.items()}


def make_sampler(seed: int, trials: int, *, parallel: bool) -> TPESampler:
    """Tree-structured Parzen estimators (Bergstra et al. 2011) after a random start of a third of ``trials``.

    With ``parallel`` trials, those under way count as bad ones, so that no two are alike.
    """
    return TPESampler(seed=seed, n_startup_trials=max(4, min(10, trials // 3)), constant_liar=parallel)


def importances(space: Space, trials: Sequence[Trial]) -> dict[str, float]:
    """Share of each parameter in what sets the best quarter of trials apart; sums to 1, most important first.

    PED-ANOVA (Watanabe et al., IJCAI 2023, arXiv 2304.10255). Empty with fewer than four trials, and where they
    are all alike.
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
    """Warnings only: what the operator reads comes from distkg."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    # Tune misses the result files that it was told not to write.
    logging.getLogger("ray.tune.analysis.experiment_analysis").setLevel(logging.ERROR)


def _distribution(distribution: Distribution) -> BaseDistribution:
    if isinstance(distribution, Choice):
        return CategoricalDistribution(distribution.values)
    if distribution.whole:
        return IntDistribution(int(distribution.low), int(distribution.high), log=distribution.log)
    return FloatDistribution(distribution.low, distribution.high, log=distribution.log)
