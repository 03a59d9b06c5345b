"""What `import genflow.loss` costs beside `import torch`: medians of fresh interpreters, in turns.

    python -m benchmarks.imports

The ratio should be at most 1.15.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time


def seconds(statement: str) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", statement], check=True)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    rounds = parser.parse_args().rounds
    statements = ("import torch", "import genflow.loss")
    for statement in statements:  # warm the file cache
        seconds(statement)
    pairs = [tuple(map(seconds, statements)) for _ in range(rounds)]
    torch_only, ours = (statistics.median(side) for side in zip(*pairs))
    ratio = statistics.median(b / a for a, b in pairs)
    print(f"import torch {torch_only:.3f} s   import genflow.loss {ours:.3f} s   ratio {ratio:.3f}")


if __name__ == "__main__":
    main()
