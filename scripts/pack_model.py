"""Pack runs of `scripts/train_model.py` into the package: scripts/pack_model.py SECOND COMMIT ... [--run ...]

SECOND is the folder in which `--network unet` made its runs, and the commits are the revisions whose trainers made
them, one after the other. `--run RUN COMMIT COMMIT` is the same for the two runs of the first network; without it the
first network stays what it is in the package.

Writes `umx_ext/weights/umx_ext.safetensors` (fp16, with the metadata that say where it comes from) and copies the logs
to `docs/`. Of RUN the averaged weights with the best median on the 14 validation songs are taken, and averaged with
those that its first run ended with; of SECOND those its last run ended with, or with --best those with the best median.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from train_model import CONVOLUTIONAL

from umx_ext.separation import pretrained
from umx_ext.training.export import chosen_of, export

ROOT = Path(__file__).resolve().parent.parent
TARGET = ROOT / "umx_ext" / "weights" / "umx_ext.safetensors"
SAID = ("commit", "first_run", "blend")  # of the first network, in the file's metadata


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("second", type=Path)
    parser.add_argument("second_commits", nargs="+", metavar="COMMIT")
    parser.add_argument("--run", nargs=3, metavar=("RUN", "FIRST_COMMIT", "COMMIT"))
    parser.add_argument("--second-precision", default="bf16", help="what `auto` was for SECOND, to be told in the file")
    parser.add_argument("--best", action="store_true", help="of SECOND the best validation instead of the end")
    parser.add_argument("--second-share", type=float, default=0.6, help="of the mask")
    parser.add_argument("--niter", type=int, default=1, help="iterations of the Wiener filter by default")
    parser.add_argument("--filter-power", type=float, default=0.5, help="exponent of the masks it starts from")
    parser.add_argument("--blend", type=float, default=0.8, help="share of the second of RUN's runs in its weights")
    arguments = parser.parse_args()
    if arguments.run:
        run, *commits = arguments.run
        first, said = trained(Path(run), commits, arguments.blend)
    else:
        first, said = packed()
    if len(arguments.second_commits) > len(CONVOLUTIONAL):
        parser.error(f"expected a commit for each of {', '.join(CONVOLUTIONAL)}, or for the first of them")
    runs = dict(zip(CONVOLUTIONAL, arguments.second_commits, strict=False))  # folder -> commit
    *before, last = runs
    second = chosen_of(arguments.second / last, last=not arguments.best)
    export(
        first,
        TARGET,
        niter=arguments.niter,
        filter_power=arguments.filter_power,
        second=second,
        second_share=arguments.second_share,
        metadata={
            **said,
            "second_commit": runs[last],
            "second_runs_before": json.dumps([origin(arguments.second / name, runs[name]) for name in before]),
            "second_precision": arguments.second_precision,
            "license": "research and non-commercial use; see LICENSE-WEIGHTS.txt",
        },
    )
    for name in runs:
        shutil.copyfile(arguments.second / name / "log.csv", ROOT / "docs" / f"training_log_{name}.csv")
    print(f"{TARGET} ({TARGET.stat().st_size / 2**20:.1f} MiB): steps {first['step']} and {second['step']}")


def trained(run: Path, commits: list[str], blend: float) -> tuple[dict[str, Any], dict[str, str]]:
    """The first network of a run's folder, as `export` takes it, and what to say of it."""
    before = torch.load(run / "first" / "last.pt", weights_only=True)
    chosen = chosen_of(run / "second")
    state = {
        name: torch.lerp(before["averaged"][name], values, blend) if values.is_floating_point() else values
        for name, values in chosen["state"].items()
    }
    for name in ("first", "second"):
        shutil.copyfile(run / name / "log.csv", ROOT / "docs" / f"training_log_{name}.csv")
    return chosen | {"state": state}, {
        "commit": commits[1],
        "first_run": json.dumps(origin(run / "first", commits[0])),
        "blend": f"{blend:g} of this run's weights, the rest of those the first run ended with",
    }


def origin(run: Path, commit: str) -> dict[str, Any]:
    """Of a run from whose end another went on."""
    before = torch.load(run / "last.pt", weights_only=True)
    identity = before["identity"]
    return {
        "commit": commit,
        "steps": before["step"],
        "schedule": before["schedule"],
        "options": identity["options"],
        "draws": identity["draws"],
    }


def packed() -> tuple[dict[str, Any], dict[str, str]]:
    """The same of the model that is in the package: its first network."""
    model, facts = pretrained.load(TARGET), pretrained.read_metadata(TARGET)
    (net,) = model.nets.values()
    chosen = {
        "config": model.config.of_first.to_dict(),
        "state": {name: values for name, values in net.state_dict().items() if not name.startswith("second.")},
        "data": facts["data_sha256"],
        "step": int(facts["steps"]),
        "options": json.loads(facts["options"]),
        "draws": json.loads(facts["draws"]),
        "initial": facts["initial"] != "random",
        "schedule": json.loads(facts["schedule"]),
        "sdr_db": float(facts["valid_sdr_db"]),
    }
    return chosen, {name: facts[name] for name in SAID}


if __name__ == "__main__":
    main()
