"""genflow: probabilistic generative modelling and sampling from interchangeable parts.

>>> import genflow
>>> model = genflow.load("path.ckpt")  # doctest: +SKIP
>>> x = model.sample(1000)             # doctest: +SKIP

The parts live in one subpackage per role: ``interpolant``, ``coupling``, ``target``, ``time``,
``network``, ``source``, ``transform``, ``process``, ``solver``, ``distance``, ``model``, ``loss``
and ``data`` need torch alone; ``training`` adds Lightning and Hydra.
"""

from genflow.checkpoint import load, save
from genflow.specs import spec
from genflow.version import __version__

__all__ = ["__version__", "load", "save", "spec"]
