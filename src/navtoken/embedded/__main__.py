"""Make the embedded pair: `python -m navtoken.embedded` writes data, tokenizer and weights from one seed.

Each part leaves its files in `--work` and is skipped where they exist; training resumes from its last checkpoint.
"""

import torch
import tyro

from navtoken.embedded.export import export
from navtoken.embedded.recipe import SHAPES, PairOptions
from navtoken.embedded.train import Trainer


def main(options: PairOptions) -> None:
    torch.set_num_threads(options.threads)
    for name in SHAPES:
        if options.model in ("all", name):
            Trainer(name, options).run()
    if options.model in ("all", "export"):
        export(options)


if __name__ == "__main__":
    main(tyro.cli(PairOptions, description=__doc__))
