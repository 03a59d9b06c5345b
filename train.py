"""Train a model: ``python train.py experiment=otcfm network.width=128 seed=1``."""

from genflow.training.cli import main

if __name__ == "__main__":
    main()
