"""Pack a checkpoint of a training run into the package: python scripts/pack_model.py RUN COMMIT [--last]

Writes `umx_ext/weights/umx_ext.safetensors` (fp16, with the metadata that say where it comes from) and copies the
run's log to `docs/training_log.csv`. COMMIT is the revision whose trainer made the run. The averaged weights with the
best median on the 14 validation songs are taken, or with `--last` those of the end of the run.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
from pathlib import Path

import torch

from umx_ext.separation.config import Config
from umx_ext.separation.masknet import MaskNet
from umx_ext.separation.pretrained import save
from umx_ext.separation.separator import Separator

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("commit")
    parser.add_argument("--niter", type=int, default=0, help="iterations of the Wiener filter by default")
    parser.add_argument("--last", action="store_true", help="the end of the run instead of its best validation")
    arguments = parser.parse_args()
    if arguments.last:
        last = torch.load(arguments.run / "last.pt", weights_only=True)
        chosen = last["identity"] | {"step": last["step"], "schedule": last["schedule"], "state": last["averaged"]}
        chosen["sdr_db"] = last["log"][-1][2]
    else:
        chosen = torch.load(arguments.run / "best.pt", weights_only=True)
    config = dataclasses.replace(Config.from_dict(chosen["config"]), niter=arguments.niter)
    net = MaskNet(config)
    net.load_state_dict(chosen["state"])
    metadata = {
        "commit": arguments.commit,
        "data_sha256": chosen["data"],
        "steps": str(chosen["step"]),
        "seed": str(chosen["options"]["seed"]),
        "options": json.dumps(chosen["options"]),
        "schedule": json.dumps(chosen["schedule"]),
        "valid_vocals_sdr_db": f"{chosen['sdr_db']:.3f}",
        "license": "research and non-commercial use; see LICENSE-WEIGHTS.txt",
    }
    target = ROOT / "umx_ext" / "weights" / "umx_ext.safetensors"
    save(Separator(config, {"vocals": net}), target, metadata=metadata, half=True)
    shutil.copyfile(arguments.run / "log.csv", ROOT / "docs" / "training_log.csv")
    print(f"{target} ({target.stat().st_size / 2**20:.1f} MiB): step {chosen['step']}")


if __name__ == "__main__":
    main()
