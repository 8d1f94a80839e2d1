"""All benchmarks: ``python -m benchmarks``, or ``--quick`` for the one that CI runs, which times nothing to rely on."""

import argparse
from collections.abc import Sequence
from importlib import import_module

HERE = ("pipeline", "interpret")  # run on the processor, whatever the device of the others
# What each is called with in a quick run: enough to pass every line of it, no more.
QUICK = {
    "training": ("--quick",),
    "shares": ("--quick",),
    "epoch": ("--quick",),
    "cache": ("--pairs", "cnn", "--batch", "4", "--rounds", "1", "--steps", "2"),
    "pipeline": ("--images", "512", "--rounds", "1"),
    "attacks": ("--quick", "--only", "PGD-20", "--rounds", "1"),
    "interpret": ("--networks", "cnn", "--images", "4", "--rounds", "1"),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small networks and batches, one round: a minute or two")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help=f"of all but {' and '.join(HERE)}")
    options = parser.parse_args(arguments)
    for name, words in QUICK.items():
        device = () if name in HERE else ("--device", options.device)
        import_module(f"benchmarks.{name}").main([*(words if options.quick else ()), *device])


if __name__ == "__main__":
    main()
