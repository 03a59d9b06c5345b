"""What snapshots of a population say of the parameters of its drift, and how surely."""

from genflow.population.bootstrap import Bootstrap, bootstrap, simulate
from genflow.population.mode import Mode
from genflow.population.model import PopulationModel
from genflow.population.moments import population_moments
from genflow.population.posterior import Draws, Posterior, laplace, nuts, svi

__all__ = [
    "Bootstrap", "Draws", "Mode", "PopulationModel", "Posterior", "bootstrap", "laplace", "nuts",
    "population_moments", "simulate", "svi",
]  # fmt: skip
