"""`accelerate launch -m navtoken.rlvr ...` and `torchrun -m navtoken.rlvr ...`: `navtoken train-rl` on every rank."""

import sys

from navtoken.cli import main

if __name__ == "__main__":
    sys.exit(main(["train-rl", *sys.argv[1:]]))
