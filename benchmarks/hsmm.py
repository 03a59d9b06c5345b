"""Human skeletal-muscle myoblasts at 0, 24, 48 and 72 hours (Trapnell et al. 2014) as snapshots.

The counts are those of Debian's package ``r-bioc-hsmmsinglecell`` (Bioconductor's HSMMSingleCell), read
by ``pyreadr``, which is no dependency of genflow:

    apt-get download r-bioc-hsmmsinglecell && dpkg -x r-bioc-hsmmsinglecell_*.deb hsmm
    pip install pyreadr pandas
    python -m benchmarks.hsmm hsmm hsmm.npz
    python train.py experiment=mm_flow data=snapshots data.path=hsmm.npz data.heldout=[24.0] dim=5

The file holds ``x0`` to ``x3`` (69, 74, 79 and 49 cells), ``times`` in hours and ``variance``, the
share of each component. Nothing of it is kept in the repository.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

FILES = "HSMM_expr_matrix", "HSMM_sample_sheet"
CELLS, GENES = 10, 2000
"""A gene is kept if so many cells have it; the most variable of those enter the components."""


def find(folder: Path, name: str) -> Path:
    """The one ``.rda`` file of this name, anywhere below a folder."""
    found = sorted(folder.rglob(f"{name}.rda"))
    if not found:
        raise FileNotFoundError(
            f"there is no {name}.rda below '{folder}'; unpack Debian's r-bioc-hsmmsinglecell there "
            "with dpkg -x"
        )
    return found[0]


def read(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Expression ``(cells, genes)`` in FPKM, and the hours of each cell."""
    try:
        import pyreadr
    except ImportError as error:
        raise ImportError("reading .rda files needs pyreadr: pip install pyreadr pandas") from error
    matrix, sheet = (next(iter(pyreadr.read_r(str(find(folder, name))).values())) for name in FILES)
    return matrix.to_numpy(np.float64).T, sheet.loc[list(matrix.columns), "Hours"].to_numpy(np.float64)


def components(fpkm: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Principal components ``(cells, count)`` of log-expression, and the share of variance of each.

    FPKM are made to sum to the median total of a cell, then log(1 + value) is taken of the most
    variable genes. One number, the deviation of all coordinates, is what components are divided by.
    """
    kept = fpkm[:, (fpkm > 0).sum(0) >= CELLS]
    totals = kept.sum(1, keepdims=True)
    log = np.log1p(kept * np.median(totals) / totals)
    log = log[:, np.sort(np.argsort(-log.var(0), kind="stable")[:GENES])]
    left, values, right = np.linalg.svd(log - log.mean(0), full_matrices=False)
    # the sign of a component is free: let its largest loading be positive, on every machine
    largest = np.abs(right[:count]).argmax(1)
    signs = np.sign(right[np.arange(count), largest])
    x = left[:, :count] * values[:count] * signs
    return x / x.std(), values[:count] ** 2 / (values**2).sum()


def convert(folder: Path, out: Path, count: int) -> None:
    fpkm, hours = read(folder)
    x, share = components(fpkm, count)
    times = np.unique(hours)
    snapshots = {f"x{k}": x[hours == time] for k, time in enumerate(times)}
    out.parent.mkdir(parents=True, exist_ok=True)
    np.savez(out, **snapshots, times=times, variance=share)
    sizes = ", ".join(f"{len(v)} at {t:g} h" for t, v in zip(times, snapshots.values()))
    print(f"{out}: {count} components with {share.sum():.1%} of the variance; cells: {sizes}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="where the Debian package was unpacked")
    parser.add_argument("out", type=Path, help="the .npz file to write")
    parser.add_argument("--components", type=int, default=5)
    options = parser.parse_args()
    convert(options.folder, options.out, options.components)


if __name__ == "__main__":
    main()
