"""Our separation against open-unmix 1.3.0, in turn: scripts/bench_separate.py SONG [--demucs]

SONG is tiled or cut to four minutes of 44.1 kHz stereo. Each run is a process of its own with two threads: it loads the
model, reads a WAV with soundfile, separates it and writes float WAVs; on our side that is the command itself. Time
counts from after the imports to the last file written; memory is the peak resident set of the whole process. Needs the
extra `research`. Writes `docs/speed.json` and the tables.

Weights are random and the same on both sides. Our network with a mel branch as well, which open-unmix does not have,
stands beside open-unmix's own job and beside a floor that is computed. Three others do something else: nothing at all,
which is to read the WAV and to write it twice (or four times), that floor, and with --demucs HTDemucs at the size of
its released model, once (its four stems take minutes; `pip install demucs`). Its weights are random too, which does
not change its speed.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

SECONDS, RATE, THREADS = 240, 44100, 2
TITLES = {
    "open-unmix": "open-unmix 1.3.0",
    "umx_ext": "umx_ext",
    "umx_ext whole": "umx_ext --no-split",
    "umx_ext exact": "umx_ext --exact --no-split",
    "umx_ext wiener": "umx_ext --exact --no-split --accompaniment wiener",
    "nothing": "nothing: read the WAV, write it out",
    "floor": "the floor",
    "demucs": "demucs, HTDemucs",
}
WITH_MEL = "karaoke, linear + mel"  # beside open-unmix's, which has the linear branch alone
STEMS = {"karaoke": ["vocals"], WITH_MEL: ["vocals"], "four stems": ["vocals", "drums", "bass", "other"]}
MODELS = {"karaoke": "1", WITH_MEL: "mel", "four stems": "4"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("song", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--demucs", action="store_true", help="HTDemucs as well, one run")
    parser.add_argument("--child", nargs=3, metavar=("SYSTEM", "JOB", "FOLDER"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        system, job, folder = arguments.child
        if system == "open-unmix":
            open_unmix(STEMS[job], arguments.song, Path(folder))
        elif system == "nothing":
            nothing(STEMS[job], arguments.song, Path(folder))
        elif system == "floor":
            floor(STEMS[job], arguments.song, Path(folder), MODELS[job])
        elif system == "demucs":
            demucs(arguments.song, Path(folder))
        else:
            options = TITLES[system].split()[1:]
            if len(STEMS[job]) > 1:  # the filter's own estimates, as open-unmix writes them; `other` would be the rest
                options += ["--accompaniment", "wiener"]
            ours(MODELS[job], arguments.song, Path(folder), options)
        return

    import soundfile
    import torch
    from tables import machine, publish, render

    from umx_ext import audio

    with tempfile.TemporaryDirectory() as folder:
        song = Path(folder, "song.wav")
        waveform, rate = audio.read(arguments.song)
        waveform = audio.resample(waveform, rate, RATE)[:2]
        waveform = waveform.repeat(2 // len(waveform), math.ceil(SECONDS * RATE / waveform.shape[-1]))
        soundfile.write(song, waveform[:, : SECONDS * RATE].mT.numpy(), RATE, subtype="PCM_16")
        mixture = torch.from_numpy(soundfile.read(song, dtype="float32")[0]).mT
        write_models(Path(folder))
        rows, detail = [], {}
        common = ["open-unmix", "umx_ext", "umx_ext whole", "umx_ext exact"]
        for job, systems in {
            "karaoke": [*common, "umx_ext wiener", "nothing"],
            WITH_MEL: [*common, "floor"],
            "four stems": [*common, "nothing", *["demucs"] * arguments.demucs],
        }.items():
            results: dict[str, list[dict[str, float]]] = {system: [] for system in systems}
            for turn in range(arguments.rounds):
                for system in systems:
                    if system == "demucs" and turn:
                        continue
                    target = Path(folder, job, system)
                    shutil.rmtree(target, ignore_errors=True)  # to replace a file takes longer than to write it
                    target.mkdir(parents=True)
                    results[system].append(run(arguments.song, system, job, song, target))
                    print(f"{job} {turn + 1}/{arguments.rounds} {system}: {results[system][-1]}", file=sys.stderr)
            for system in systems:
                seconds = [result["seconds"] for result in results[system]]
                peak = statistics.median(result["peak_mb"] for result in results[system])
                pairs = zip(results[system], results["open-unmix"], strict=False)  # Demucs runs once
                ratios = [theirs["seconds"] / its["seconds"] for its, theirs in pairs]
                apart = ""
                if system.startswith("umx_ext") and job != WITH_MEL:
                    own, other = Path(folder, job, system), Path(folder, job, "open-unmix")
                    names = [f"{stem}.wav" for stem in compared(job, system)]
                    apart = f"{max(difference_db(own / name, other / name, mixture) for name in names):.0f}"
                speed = statistics.median(ratios)
                rows.append(
                    [
                        job,
                        TITLES[system],
                        f"{statistics.median(seconds):.1f} ({min(seconds):.1f} to {max(seconds):.1f})",
                        "1"
                        if system == "open-unmix"
                        else f"**{speed:.1f}x**"
                        if system.startswith("umx_ext")
                        else f"{speed:.{2 * (speed < 1)}f}x",
                        f"{peak:.0f}",
                        apart,
                    ]
                )
            detail[job] = results
    table = {
        "columns": ["job", "system", "seconds", "speed", "peak memory, MB", "difference from open-unmix, dB"],
        "rows": rows,
        "note": f"Four minutes of stereo at 44.1 kHz, random weights of open-unmix's size, the same where the "
        f"networks are, {THREADS} threads, "
        f"{arguments.rounds} runs each in turn (of Demucs, which has weights of its own, one); seconds are medians "
        "(range), speed is the median ratio of paired runs, "
        "memory the peak of the whole process, the difference the RMS of the stems' difference beside the mixture's. "
        "The floor is what exact float32 cannot do without: all products of the network at the rate that this machine "
        "has for large matrices, by torch or by our loops, one transform there and one back, reading and writing. "
        f"{machine()}.",
        "runs": detail,
    }
    print(render(table))
    publish("speed", table)


def run(original: Path, system: str, job: str, song: Path, folder: Path) -> dict[str, float]:
    command = [sys.executable, __file__, str(song), "--child", system, job, str(folder)]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return json.loads(output.splitlines()[-1])


def difference_db(ours: Path, theirs: Path, mixture) -> float:
    import soundfile
    import torch

    first, second = (torch.from_numpy(soundfile.read(path, dtype="float32")[0]).mT for path in (ours, theirs))
    return 10 * math.log10(float((first - second).square().mean() / mixture.square().mean()) + 1e-30)


def report(started: float) -> None:
    seconds = time.perf_counter() - started
    # Not getrusage: its peak includes what the process was before it became this program, a copy of its parent.
    status = Path("/proc/self/status").read_text()
    peak_mb = int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) / 1024
    print(json.dumps({"seconds": round(seconds, 3), "peak_mb": round(peak_mb, 1)}))


def weights(stem: str) -> dict:
    """Random but the same on both sides, under open-unmix's names and shapes: normalised layers, working masks."""
    import torch

    generator = torch.Generator().manual_seed(len(stem) + ord(stem[0]))

    def normal(*shape: int, scale: float) -> torch.Tensor:
        return scale * torch.randn(*shape, generator=generator)

    hidden, bins, wide = 512, 2049, 1487
    state = {"input_mean": normal(wide, scale=0.1), "input_scale": 1 + normal(wide, scale=0.1)}
    state |= {"output_scale": 1 + normal(bins, scale=0.1), "output_mean": 1 + normal(bins, scale=0.1)}
    sizes = {"1": (2 * wide, hidden), "2": (2 * hidden, hidden), "3": (hidden, 2 * bins)}
    for number, (inputs, outputs) in sizes.items():
        state[f"fc{number}.weight"] = normal(outputs, inputs, scale=inputs**-0.5)
        state[f"bn{number}.weight"] = 1 + normal(outputs, scale=0.1)
        state[f"bn{number}.bias"] = normal(outputs, scale=0.1)
        state[f"bn{number}.running_mean"] = normal(outputs, scale=0.1)
        state[f"bn{number}.running_var"] = 1 + normal(outputs, scale=0.1).abs()
    for layer in range(3):
        for way in ("", "_reverse"):
            for part in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
                inputs = () if "bias" in part else (hidden,) if "ih" in part else (hidden // 2,)
                shape = (4 * hidden // 2, *inputs)
                state[f"lstm.{part}_l{layer}{way}"] = normal(*shape, scale=0.05)
    return state


def open_unmix(stems: list[str], song: Path, folder: Path) -> None:
    import soundfile
    import torch
    from openunmix import model, utils

    torch.set_num_threads(THREADS)
    started = time.perf_counter()
    nets = {}
    for stem in stems:
        nets[stem] = model.OpenUnmix(nb_bins=2049, nb_channels=2, hidden_size=512, max_bin=1487)
        nets[stem].load_state_dict(torch.load(song.with_name(f"{stem}.pth"), weights_only=True), strict=False)
    separator = model.Separator(nets, niter=1, residual=len(stems) == 1, sample_rate=RATE, n_fft=4096, n_hop=1024)
    separator.freeze()
    waveform, rate = soundfile.read(song, dtype="float32", always_2d=True)
    with torch.no_grad():
        tensor = utils.preprocess(torch.from_numpy(waveform.T.copy()), rate, separator.sample_rate)
        estimates = separator.to_dict(separator(tensor))
    for name, estimate in estimates.items():
        name = "accompaniment" if name == "residual" else name
        soundfile.write(folder / f"{name}.wav", estimate[0].T.numpy(), rate, subtype="FLOAT")
    report(started)


def ours(model: str, song: Path, folder: Path, options: list[str]) -> None:
    from umx_ext import cli

    cli.collect_seldom()  # this and what follows as the command does when it starts
    cli.share_one_heap()
    cli.wait_asleep()

    import torch

    import umx_ext.commands.separate
    from umx_ext import audio
    from umx_ext.separation import engine, pretrained

    imported = (umx_ext.commands.separate, audio, engine, pretrained)  # which the command would do when it needs them
    assert all(imported)
    torch.set_num_threads(THREADS)
    started = time.perf_counter()
    path = str(song.with_name(f"{model}.safetensors"))
    code = cli.main(
        [
            *("separate", str(song), "-n", path, "--float32", "-q", "--if-exists", "overwrite"),
            *("--out", str(folder), "--filename", "{stem}.{ext}", *options),
        ]
    )
    assert code == 0, code
    report(started)


def nothing(stems: list[str], song: Path, folder: Path, *, said: bool = True) -> None:
    """What reading and writing take: the song itself under the names of the stems."""
    import soundfile

    started = time.perf_counter()
    waveform, rate = soundfile.read(song, dtype="float32", always_2d=True)
    for name in [*stems, "accompaniment"] if len(stems) == 1 else stems:
        soundfile.write(folder / f"{name}.wav", waveform, rate, subtype="FLOAT")
    if said:
        report(started)


def floor(stems: list[str], song: Path, folder: Path, model: str) -> None:
    """What the job cannot do without: products at the rate of large matrices, two transforms, reading and writing."""
    import torch

    from umx_ext.separation import dense, pretrained

    torch.set_num_threads(THREADS)
    separator = pretrained.load(str(song.with_name(f"{model}.safetensors")))
    weights = sum(values.numel() for values in separator.nets.parameters() if values.dim() == 2)  # once a frame each
    config, frames = separator.config, SECONDS * RATE // separator.config.hop + 1
    matrix = torch.randn(2048, 2048)
    laid_out = dense.Matrix(matrix)

    def together() -> None:
        list(pool.map(laid_out.product, [matrix] * THREADS))

    with ThreadPoolExecutor(THREADS) as pool:  # torch's own products take all threads, these one each
        rate = 2 * len(matrix) ** 3 * max(1 / best(lambda: matrix @ matrix), THREADS / best(together))
    signal = torch.randn(32, config.channels, config.n_fft)
    spectrum = torch.fft.rfft(signal)
    transforms = best(lambda: torch.fft.rfft(signal)) + len(stems) * best(lambda: torch.fft.irfft(spectrum))
    started = time.perf_counter()
    nothing(stems, song, folder, said=False)
    report(started - 2 * weights * frames / rate - transforms * frames / len(signal))


def best(work) -> float:  # type: ignore[no-untyped-def]
    """Seconds of the quickest of some runs."""
    seconds = []
    for _ in range(30):
        started = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def demucs(song: Path, folder: Path) -> None:
    from fractions import Fraction

    import soundfile
    import torch
    from demucs.apply import apply_model
    from demucs.htdemucs import HTDemucs

    torch.set_num_threads(THREADS)
    started = time.perf_counter()
    stems = STEMS["four stems"]
    model = HTDemucs(sources=stems, bottom_channels=512, dconv_mode=3, segment=Fraction(39, 5)).eval()
    waveform, rate = soundfile.read(song, dtype="float32", always_2d=True)
    estimates = apply_model(model, torch.from_numpy(waveform.T.copy())[None], shifts=0, overlap=0.25)[0]
    for name, estimate in zip(stems, estimates, strict=True):
        soundfile.write(folder / f"{name}.wav", estimate.T.numpy(), rate, subtype="FLOAT")
    report(started)


def write_models(folder: Path) -> None:
    """The same weights in both formats."""
    import torch

    from umx_ext.separation.config import Config
    from umx_ext.separation.masknet import from_openunmix_state
    from umx_ext.separation.pretrained import save
    from umx_ext.separation.separator import Separator

    torch.manual_seed(0)
    with_mel = Config(stems=tuple(STEMS[WITH_MEL]), branches=("linear", "mel"))
    save(Separator(with_mel), folder / f"{MODELS[WITH_MEL]}.safetensors", metadata={}, half=False)
    for job in ("karaoke", "four stems"):
        stems = STEMS[job]
        separator = Separator(Config(stems=tuple(stems)))
        for stem, net in separator.nets.items():
            torch.save(weights(stem), folder / f"{stem}.pth")
            net.load_state_dict(from_openunmix_state(weights(stem)), strict=False)
        save(separator, folder / f"{MODELS[job]}.safetensors", metadata={}, half=False)


def compared(job: str, system: str) -> list[str]:
    """Stems that are the same thing on both sides; mixture minus vocals is not the filter's accompaniment."""
    return [*STEMS[job], "accompaniment"] if system == "umx_ext wiener" else STEMS[job]


if __name__ == "__main__":
    main()
