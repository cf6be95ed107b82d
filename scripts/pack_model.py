"""Pack a checkpoint of a training run into the package: python scripts/pack_model.py RUN COMMIT [--last]

Writes `umx_ext/weights/umx_ext.safetensors` (fp16, with the metadata that say where it comes from) and copies the
run's log to `docs/training_log.csv`. COMMIT is the revision whose trainer made the run. The averaged weights with the
best median on the 14 validation songs are taken, or with `--last` those of the end of the run.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from umx_ext.training.export import chosen_of, export

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("commit")
    parser.add_argument("--niter", type=int, default=0, help="iterations of the Wiener filter by default")
    parser.add_argument("--filter-power", type=float, default=1.0, help="exponent of the masks it starts from")
    parser.add_argument("--last", action="store_true", help="the end of the run instead of its best validation")
    arguments = parser.parse_args()
    chosen = chosen_of(arguments.run, last=arguments.last)
    target = ROOT / "umx_ext" / "weights" / "umx_ext.safetensors"
    license_ = "research and non-commercial use; see LICENSE-WEIGHTS.txt"
    export(
        chosen,
        target,
        niter=arguments.niter,
        filter_power=arguments.filter_power,
        metadata={"commit": arguments.commit, "license": license_},
    )
    shutil.copyfile(arguments.run / "log.csv", ROOT / "docs" / "training_log.csv")
    print(f"{target} ({target.stat().st_size / 2**20:.1f} MiB): step {chosen['step']}")


if __name__ == "__main__":
    main()
