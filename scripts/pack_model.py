"""Pack runs of `scripts/train_model.py` into the package: scripts/pack_model.py RUN FIRST_COMMIT COMMIT SECOND COMMIT

RUN is the folder of one, SECOND that of one with `--network openunmix`: the two networks become a pair. The commits are
the revisions whose trainer made RUN's first run, its second, and both of SECOND. Writes
`umx_ext/weights/umx_ext.safetensors` (fp16, with the metadata that say where it comes from) and copies the logs to
`docs/`. Of RUN the averaged weights with the best median on the 14 validation songs are taken, or with `--last` those
of the end of its second run, and averaged with those that its first run ended with; of SECOND those it ended with.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import torch

from umx_ext.training.export import chosen_of, export

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("first_commit")
    parser.add_argument("commit")
    parser.add_argument("second", type=Path)
    parser.add_argument("second_commit")
    parser.add_argument("--second-share", type=float, default=0.3, help="of the mask")
    parser.add_argument("--niter", type=int, default=1, help="iterations of the Wiener filter by default")
    parser.add_argument("--filter-power", type=float, default=0.5, help="exponent of the masks it starts from")
    parser.add_argument("--blend", type=float, default=0.8, help="share of the second run's weights")
    parser.add_argument("--last", action="store_true", help="the end of the run instead of its best validation")
    arguments = parser.parse_args()
    first = torch.load(arguments.run / "first" / "last.pt", weights_only=True)
    before = {
        "commit": arguments.first_commit,
        "steps": first["step"],
        "schedule": first["schedule"],
        "options": first["identity"]["options"],
    }
    chosen = chosen_of(arguments.run / "second", last=arguments.last)
    state = {
        name: torch.lerp(first["averaged"][name], values, arguments.blend) if values.is_floating_point() else values
        for name, values in chosen["state"].items()
    }
    target = ROOT / "umx_ext" / "weights" / "umx_ext.safetensors"
    export(
        chosen | {"state": state},
        target,
        niter=arguments.niter,
        filter_power=arguments.filter_power,
        second=chosen_of(arguments.second / "second", last=True),
        second_share=arguments.second_share,
        metadata={
            "commit": arguments.commit,
            "second_commit": arguments.second_commit,
            "first_run": json.dumps(before),
            "blend": f"{arguments.blend:g} of this run's weights, the rest of those the first run ended with",
            "license": "research and non-commercial use; see LICENSE-WEIGHTS.txt",
        },
    )
    for name in ("first", "second"):
        shutil.copyfile(arguments.run / name / "log.csv", ROOT / "docs" / f"training_log_{name}.csv")
        log = ROOT / "docs" / f"training_log_openunmix_{name}.csv"
        shutil.copyfile(arguments.second / name / "log.csv", log)
    print(f"{target} ({target.stat().st_size / 2**20:.1f} MiB): step {chosen['step']}")


if __name__ == "__main__":
    main()
