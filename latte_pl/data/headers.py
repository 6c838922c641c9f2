"""Whether a video file is complete: compare what its container declares with what the demuxer delivers."""

import os
from pathlib import Path

import av
from av.container import InputContainer
from av.packet import Packet
from av.video.stream import VideoStream


class Completeness:
    """Compare the header of a file with the packets that are read from it.

    The number of frames in a header is not the number of frames that a decoder shows. Edit lists hide frames of MP4 and
    MOV files that were cut without encoding, AVI counts dropped frames, IVF counts units of time, and MPEG-4 and VP8
    have packets that show nothing. Therefore packets are compared: with the sample table of MP4 and MOV, with the index
    of AVI, and in other containers with the duration.

    The comparison is tolerant because headers of complete files are inexact: real AVIs declare up to a few frames too
    many, and a duration is that of the longest stream and may be rounded or estimated. An interrupted copy or download
    lacks more than that. A truncated stream that declares nothing (MPEG, a cut ASF) cannot be detected if it ends
    between two frames; it is used as a shorter video.

    Args:
        path: The file.
        container: The opened file, before any packet is read.
        stream: The stream that is decoded.
    """

    def __init__(self, path: str | Path, container: InputContainer, stream: VideoStream) -> None:
        self._path, self._stream = path, stream
        # read now: PyAV returns freed memory once the container is closed
        self._format = container.format.name
        self._declared = stream.frames
        self._length = None if container.duration is None else container.duration / av.time_base
        rate = stream.average_rate or stream.base_rate
        self._slack = 2 / float(rate) if rate else 1.0  # seconds
        self._end = 0.0  # time in seconds at which the last packet ends
        self._delivered = self._shown = self._hollow = 0

    def add(self, packet: Packet) -> None:
        """Count a packet of any stream."""
        if packet.size and packet.pts is not None and packet.time_base is not None:
            first = packet.stream.start_time or 0
            self._end = max(self._end, float((packet.pts + (packet.duration or 0) - first) * packet.time_base))
        if packet.size and packet.stream.index == self._stream.index:
            self._delivered += 1
            self._shown += not packet.is_discard
            self._hollow += not any(memoryview(packet)[:64]) and not bytes(packet).strip(b"\0")

    def check(self, decoded: int) -> None:
        """Check that the file is complete, after its last packet.

        Args:
            decoded: Number of frames that were decoded.

        Raises:
            ValueError: The file contains clearly less than its container declares.
        """
        if decoded < self._shown and self._hollow:  # uncompressed black frames are zeros too, but they are shown
            raise ValueError(f"damaged: {self._hollow} of {self._delivered} packets contain only zeros")
        declared = 0
        if "mov" in self._format:
            declared = self._listed() if self._declared else 0  # fragmented files declare no frames
        elif self._format == "avi":
            declared = self._listed() if self._riff_is_complete() else self._declared
        if self._delivered < declared - max(3, declared // 50):
            raise ValueError(f"truncated: {self._delivered} of {declared} declared frames decode")
        if not declared and self._length is not None and self._end < 0.95 * self._length - self._slack:
            raise ValueError(f"truncated: {self._end:.2f} of {self._length:.2f} declared seconds are present")

    def _listed(self) -> int:
        """Return the number of packets that the demuxer knows of."""
        return sum(entry.size > 0 for entry in self._stream.index_entries)

    def _riff_is_complete(self) -> bool:
        """Whether an AVI is as long as its first chunk declares; recorders that were never closed declare nothing."""
        with open(self._path, "rb") as file:
            declared = int.from_bytes(file.read(8)[4:], "little")
        return 0 < declared < 0xFFFFFFFF and os.path.getsize(self._path) >= declared + 7  # the last byte is padding
