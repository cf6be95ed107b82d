"""Every number that mixing a vocal take over a backing track depends on, and two sets of them: `PRESETS`.

Where the numbers come from:

- ``poster`` is the rule-based chain of a published comparison of vocal mixing systems, as far as its numbers are known.
  Its own: the loudness range of 16.36 LU and the vocal 1.77 LU below the backing, means of 21 936 clips of 30 s whose
  vocals were separated by a network (leakage in the pauses widens that range: most dry takes stay below it, and are
  not compressed). Attack, release and knee are those of FxNorm-automix's vocals (Martinez Ramirez et al., ISMIR 2022).
  The rest of the reverberation are the defaults of the IEM FdnReverb plug-in, whose parameters it has. Not its own, but
  common practice: half of a masked band's excess is corrected, by 6 dB down and 3 dB up at most; reverberation 12 LU
  below the dry vocal, 3 LU drier than listeners like best in Pestana and Reiss ("Intelligent audio production
  strategies informed by best practices", AES 53rd conference, 2014), since too much is worse than too little; 2.5, 1.7
  and 0.9 s at 60, 120 and 180 beats a minute, two to four beats.
- ``studio``, the default, keeps the balance and what brings mixes of damaged vocals nearer to the original ones, on
  songs that no result is reported for (MUSDB18's validation songs, MIR-1K's training singers). That is the correction
  of the tone, the equaliser against masking (little), and compression to 5 LU in the windows that are sung through:
  the median of 79 dry takes of MIR-1K's training singers. High-pass and reverberation did not come nearer, and are off.
  The judge cannot know better: vocals of records carry their reverberation already, and have no rumble. A dry take in
  a song that is not dry wants ``reverb=True``, one with rumble ``highpass_hz=80``.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from umx_ext.errors import UsageError
from umx_ext.mixing.effect import check_fields, choice, fields_from, number

__all__ = ["PRESETS", "Settings"]

_SWITCHES = ("tone", "equalise", "compress", "reverb")


@dataclass(frozen=True)
class Settings:
    """What `umx_ext.mixing.vocal.plan` aims for. Each field is checked; a value out of range is a UsageError.

    The defaults are the preset ``studio`` (see `PRESETS` for where its numbers come from).

    Attributes:
        highpass_hz: 10 to 500 Hz, second-order high-pass at the head of the vocal's chain; None for none.
        tone: whether octaves of the take that are probably coloured are corrected (`umx_ext.mixing.tone`).
        tone_colour_db: how much an octave of a take is coloured, as a standard deviation: the larger, the nearer the
            take is brought to the mean vocal. 5.8 dB is that of a random equaliser of +-15 dB in four octaves of nine.
        tone_share, most_tone_cut_db, most_tone_boost_db: share of the colouring that is corrected, and at most how
            much.
        equalise: whether bands in which vocal and backing hide each other are moved (`umx_ext.mixing.masking`).
        rank_threshold: 1 to 9, how many of a track's strongest octave bands count as essential to it.
        cut_share, most_cut_db: share of the excess that is cut from the vocal where it hides the backing, and at most
            how much.
        boost_share, most_boost_db: the same where the backing hides the vocal.
        least_db: moves smaller than this are left out, here and in the tone.
        most_moves: so many bands are moved at most, the largest moves first.
        target: "vocals", or "both": the backing is cut, too, where a band is essential to both tracks and the backing
            is more than `backing_least_db` above the vocal, by `backing_cut_share` of the excess and at most
            `backing_most_cut_db`.
        compress: whether the take's loudness range is brought down to `lra_target_lu`.
        lra_domain: "ebu" counts all 3-s windows (EBU Tech 3342), "active" those that are sung through.
        lra_tolerance_lu: how near to the target is near enough.
        least_take_s: shorter takes are not compressed; their loudness range says little.
        search_s: of a longer take the compressor is sought on the loudest stretch of so many seconds; None: on all.
        ratios: tried in this order, each above 1.
        singing_reduction_db: a compressor that turns the singing down by more than this on average is not considered;
            what is missing to the target then stays. 8 dB is our choice: beyond it a voice sounds flat.
        attack_ms, release_ms, knee_db: of the compressor, see `umx_ext.mixing.dynamics.Compressor`.
        reverb: whether reverberation is added.
        reverb_lu: loudness of the reverberation relative to the dry vocal.
        bpm: tempo of the song, 20 to 400; None: it is estimated from the backing.
        slow_t60_s, fast_t60_s: reverberation time at 60 and at 180 beats a minute, linear between and constant beyond.
        room_size, fade_in_s, low_*, high_*, engine, seed: see `umx_ext.mixing.reverb.Reverb`.
        vocal_db: loudness of the finished vocal minus that of the backing, in LU (a difference of loudness: the same
            number as the fader's dB).
        lufs: loudness of the mix; None leaves the backing at its own level.
        true_peak_db: the mix's true peak never exceeds this; where it is at odds with `lufs`, it wins.
    """

    highpass_hz: float | None = number(None, 10, 500, "Hz", optional=True)

    tone: bool = True
    tone_colour_db: float = number(5.8, 0, 30, "dB")
    tone_share: float = number(1.0, 0, 1)
    most_tone_cut_db: float = number(9.0, 0, 24, "dB")
    most_tone_boost_db: float = number(6.0, 0, 24, "dB")

    equalise: bool = True
    rank_threshold: int = number(4, 1, 9, whole=True)
    cut_share: float = number(0.5, 0, 1)
    most_cut_db: float = number(6.0, 0, 24, "dB")
    boost_share: float = number(0.5, 0, 1)
    most_boost_db: float = number(3.0, 0, 24, "dB")
    least_db: float = number(0.5, 0, 24, "dB")
    most_moves: int = number(4, 0, 9, whole=True)
    target: str = choice("vocals", "vocals", "both")
    backing_cut_share: float = number(0.25, 0, 1)
    backing_most_cut_db: float = number(3.0, 0, 24, "dB")
    backing_least_db: float = number(3.0, 0, 24, "dB")

    compress: bool = True
    lra_target_lu: float = number(5.0, 0, 60, "LU")
    lra_domain: str = choice("active", "ebu", "active")
    lra_tolerance_lu: float = number(0.5, 0.01, 10, "LU")
    least_take_s: float = number(20.0, 0, 3600, "s")
    search_s: float | None = number(120.0, 10, 36000, "s", optional=True)
    ratios: tuple[float, ...] = (2.0, 3.0, 4.0, 6.0, 8.0)
    singing_reduction_db: float = number(8.0, 0, 100, "dB")
    attack_ms: float = number(7.5, 0, 1000, "ms")
    release_ms: float = number(400.0, 0, 10000, "ms")
    knee_db: float = number(6.0, 0, 40, "dB")

    reverb: bool = False
    reverb_lu: float = number(-12.0, -60, 12, "LU")
    bpm: float | None = number(None, 20, 400, "beats a minute", optional=True)
    slow_t60_s: float = number(2.5, 0.1, 9, "s")
    fast_t60_s: float = number(0.9, 0.1, 9, "s")
    room_size: float = number(20.0, 1, 30)
    fade_in_s: float = number(0.0, 0, 8.9, "s")
    low_cut_hz: float = number(100.0, 20, 20000, "Hz")
    low_gain_db_per_s: float = number(1.0, -80, 6, "dB/s")
    low_q: float = number(0.5, 0.01, 0.9)
    high_cut_hz: float = number(2000.0, 20, 20000, "Hz")
    high_gain_db_per_s: float = number(-10.0, -80, 4, "dB/s")
    high_q: float = number(0.5, 0.01, 0.9)
    engine: str = choice("fdn", "fdn", "noise")
    seed: int = number(0, 0, 2**32 - 1, whole=True)

    vocal_db: float = number(-1.77, -60, 60, "LU")
    lufs: float | None = number(None, -70, 0, "LUFS", optional=True)
    true_peak_db: float = number(-1.0, -60, 0, "dBTP")

    def __post_init__(self) -> None:
        check_fields(self, "settings")
        for name in _SWITCHES:
            if not isinstance(getattr(self, name), bool):
                raise UsageError(f"settings: expected {name} to be true or false, got {getattr(self, name)!r}")
        ratios = self.ratios
        if (
            isinstance(ratios, str)
            or not isinstance(ratios, Sequence)
            or not 1 <= len(ratios) <= 32
            or not all(_is_ratio(ratio) for ratio in ratios)
        ):
            raise UsageError(f"settings: expected ratios to be 1 to 32 numbers above 1, at most 1000, got {ratios!r}")
        object.__setattr__(self, "ratios", tuple(float(ratio) for ratio in ratios))
        if self.fade_in_s >= min(self.slow_t60_s, self.fast_t60_s):
            raise UsageError(
                f"settings: expected fade_in_s ({self.fade_in_s:g} s) below slow_t60_s and fast_t60_s "
                f"({self.slow_t60_s:g} and {self.fast_t60_s:g} s)"
            )

    def to_dict(self) -> dict[str, Any]:
        """Plain and JSON-ready; `from_dict` is its inverse."""
        return {**dataclasses.asdict(self), "ratios": list(self.ratios)}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Settings:
        """Rebuild from a mapping; fields that are missing keep their defaults (those of ``studio``).

        Raises:
            UsageError: not a mapping, a field that does not exist, or a value outside its range.
        """
        return fields_from(cls, fields, "settings")


def _is_ratio(value: Any) -> bool:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and math.isfinite(value) and 1 < value <= 1000


# Sources: see the module's docstring.
PRESETS: dict[str, Settings] = {
    "studio": Settings(),
    "poster": Settings(
        highpass_hz=None,
        tone=False,
        equalise=True,
        compress=True,
        lra_target_lu=16.36,
        lra_domain="ebu",
        least_take_s=0.0,
        singing_reduction_db=100.0,
        reverb=True,
        reverb_lu=-12.0,
        vocal_db=-1.77,
    ),
}
