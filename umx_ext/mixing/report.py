"""What `umx_ext.mixing.vocal.plan` measured and decided, as values that go into JSON."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from umx_ext.mixing.compression import Compression
from umx_ext.mixing.masking import Equalisation
from umx_ext.mixing.settings import Settings
from umx_ext.mixing.tempo import Reverberation
from umx_ext.mixing.tone import Tone

__all__ = ["Balance", "Input", "Master", "Report"]


@dataclass(frozen=True)
class Input:
    """A track as it came.

    Attributes:
        peak_db: dBFS, None for silence; of the track without its offset, if it has one.
        lufs: integrated loudness as stereo, None for silence; measured at a peak of -1 dBFS.
        offset: mean of the samples, full scale 1.0.
        clipped_samples: samples in runs of three and more at the highest peak: where a converter ran out of range.
    """

    peak_db: float | None
    lufs: float | None
    offset: float
    clipped_samples: int


@dataclass(frozen=True)
class Balance:
    """Loudness of the two tracks before the mix's own gain. Integrated, as stereo, in LUFS; None for silence.

    Attributes:
        wanted_lu: loudness of the vocal minus that of the backing, as set.
        vocal_before_lufs: of the vocal at the end of its chain, ahead of the fader.
        vocal_gain_db: the fader.
        vocal_lufs, backing_lufs: what is mixed.
        difference_lu: their difference.
    """

    wanted_lu: float
    vocal_before_lufs: float | None
    vocal_gain_db: float
    vocal_lufs: float | None
    backing_lufs: float | None
    difference_lu: float | None


@dataclass(frozen=True)
class Master:
    """The mix and its gain.

    Attributes:
        before_lufs, before_true_peak_db: of the sum, ahead of the gain; None for silence.
        gain_db: for both tracks alike.
        lufs, true_peak_db: of the mix.
        wanted_lufs, most_true_peak_db: as set.
        limited_by: which of the two settings decided the gain: "lufs", "true_peak", or "" (neither: no gain).
    """

    before_lufs: float | None
    before_true_peak_db: float | None
    gain_db: float
    lufs: float | None
    true_peak_db: float | None
    wanted_lufs: float | None
    most_true_peak_db: float
    limited_by: str


@dataclass(frozen=True)
class Report:
    """What `plan` measured and decided, stage by stage; the same for the same input.

    Attributes:
        settings: what it was asked for.
        highpass_hz: of the filter at the head of the vocal's chain, None without one.
        notes: what a person should know, in sentences.
    """

    sample_rate: int
    duration_s: float
    settings: Settings
    vocals: Input
    accompaniment: Input
    highpass_hz: float | None
    tone: Tone
    equalisation: Equalisation
    compression: Compression
    reverb: Reverberation
    balance: Balance
    master: Master
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain and JSON-ready, rounded to 5 decimals; what could not be measured is None."""
        return _plain({**dataclasses.asdict(self), "settings": self.settings.to_dict()})


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(member) for name, member in value.items()}
    if isinstance(value, (tuple, list)):
        return [_plain(member) for member in value]
    if isinstance(value, float):
        return round(value, 5) + 0.0 if math.isfinite(value) else None
    return value
