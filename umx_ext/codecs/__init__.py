"""Decoders, encoders and tags behind `umx_ext.audio`: numpy blocks of shape (samples, channels), float32.

libsndfile (through soundfile) does what it can do exactly; FFmpeg's libraries (through PyAV, imported only when
needed) do the rest. Nothing here checks arguments; `audio` does.
"""
