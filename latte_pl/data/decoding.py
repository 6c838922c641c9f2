"""Read exact frames from compressed video without decoding the whole file.

Seeking by time is wrong on real files: AVI stores no presentation times, B-frames are stored out of display order, open
GOPs cannot be decoded from their keyframe alone, and damaged indexes point to the wrong place. Therefore `index_video`
decodes a file once in sequence. Then it decodes each group of pictures again, from a freshly opened file and a seek to
its keyframe. A keyframe becomes an entry point only if every frame up to the next entry point is identical to the
sequential decode. Frames without an entry point before them are decoded from the start of the file. Frame indices are
counted, never computed from times. A fast index trusts the container instead.
"""

import os
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fractions import Fraction
from itertools import chain, islice
from pathlib import Path
from typing import cast

import av
import numpy as np
from av.buffer import Buffer
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from numpy.typing import NDArray

from latte_pl.data.colour import RGBConverter
from latte_pl.data.contents import EntryPoint, VideoIndex
from latte_pl.data.headers import Completeness
from latte_pl.data.orientation import UPRIGHT, from_matrix, swaps_sides, upright
from latte_pl.data.transforms import Box

MIN_GROUP = 8  # frames between entry points; closer ones cost more to verify and store than they save in decoding
MAX_LEAD = 300  # frames that a seek may land too early before the entry point is rejected
BY_TIME = -1  # `EntryPoint.skip` in a fast index: drop frames until the time is that of the entry point
MAX_ASPECT = 4  # pixels are used as square if one side is stated to be more than this times as long as the other
HDR = {16: "PQ", 18: "HLG"}  # transfer characteristics of ITU-T H.273
PLANAR_8BIT = ("yuv420p", "yuvj420p", "yuv422p", "yuvj422p", "yuv444p", "yuvj444p", "gray")


def index_video(path: str | Path, fast: bool = False) -> VideoIndex:
    """Decode a file once, verify its entry points, and return its index.

    Args:
        path: The video file.
        fast: Read the number of frames and the keyframes from the container and decode only the first frame.

    Raises:
        ValueError: The file contains no decodable video or is damaged. The message states the reason without the path.
    """
    try:
        with _open(path) as container:
            return _index_fast(container) if fast else _index(path, container)
    except (av.error.FFmpegError, OSError) as error:
        raise ValueError(f"not a readable video ({error.strerror or error})") from error


def read_video(
    path: str | Path, index: VideoIndex, start: int, num_frames: int, interval: int = 1, box: Box | None = None
) -> NDArray[np.uint8]:
    """Decode the frames start, start + interval, ... of a file into one array (F, h, w, 3); see `iterate_video`."""
    return np.stack(list(iterate_video(path, index, start, num_frames, interval, box)))


def iterate_video(
    path: str | Path, index: VideoIndex, start: int, num_frames: int, interval: int = 1, box: Box | None = None
) -> Iterator[NDArray[np.uint8]]:
    """Decode the frames start, start + interval, ... of a file, from the last entry point before ``start`` on.

    Args:
        path: The video file.
        index: Index of the file, from `index_video`.
        start: First frame, in [0, index.num_frames).
        num_frames: Number of frames F.
        interval: Distance between two frames of the clip, in frames of the file.
        box: Crop of the upright frame; None returns the whole frame.

    Yields:
        F pictures (h, w, 3) uint8 in RGB, equal to those of a sequential decode of the whole file.

    Raises:
        ValueError: The frames are outside of the video, or the file no longer decodes as indexed.
    """
    last = start + (num_frames - 1) * interval
    if num_frames < 1 or interval < 1 or start < 0 or last >= index.num_frames:
        raise ValueError(f"frames {start} to {last} are outside of {path}, which has {index.num_frames} frames")
    height, width = (index.width, index.height) if swaps_sides(index.orientation) else (index.height, index.width)
    top, left, h, w = box or (0, 0, index.height, index.width)
    convert, filled = RGBConverter(), 0
    try:
        for position, frame in _frames_from(path, [entry for entry in index.entries if entry.frame <= start]):
            if position >= start and (position - start) % interval == 0:
                # frames of another size are scaled to that of the first
                picture = upright(convert(frame, width, height), index.orientation)
                yield picture[top : top + h, left : left + w]
                filled += 1
            if position == last:
                return
    except (av.error.FFmpegError, OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ValueError(f"{path} can no longer be decoded ({reason}); run `latte data check`") from error
    raise ValueError(f"{path} ends after {filled} of the {num_frames} frames of a clip; run `latte data check`")


def _open(path: str | Path) -> InputContainer:
    # absolute, since FFmpeg would open the relative path 12:30.mp4 with a protocol named 12
    return av.open(os.path.abspath(path), metadata_errors="ignore")


def _video_stream(container: InputContainer) -> VideoStream:
    """Return the stream to decode; FFmpeg ranks album covers and the like last."""
    if not container.streams.video:
        raise ValueError("no video stream")
    stream = container.streams.best("video")
    assert isinstance(stream, VideoStream)
    if stream.codec_context is None:
        raise ValueError("no decoder for the video stream")
    stream.thread_type = "NONE"  # one thread per loader process: decoder threads deadlock in forked processes
    stream.codec_context.thread_count = 1
    return stream


def _frames(container: InputContainer, timestamp: int | None = None) -> Iterator[VideoFrame]:
    """Yield decoded frames in display order, from the start of the file or after a seek to ``timestamp``."""
    stream = _video_stream(container)
    if timestamp is not None:
        container.seek(timestamp, stream=stream, backward=True, any_frame=False)
    for packet in container.demux(stream):
        yield from packet.decode()


def _frames_from(path: str | Path, entries: Sequence[EntryPoint]) -> Iterator[tuple[int, VideoFrame]]:
    """Yield frame indices and frames from the last of the entry points on.

    In a fast index, which is not verified, containers that search another time are asked for the entry point before;
    if that fails too, the file is decoded from its start.

    Raises:
        ValueError: A frame is corrupt.
    """
    if entries and entries[-1].skip != BY_TIME:
        frame, timestamp, skip = entries[-1]
        with _open(path) as container:
            yield from enumerate(_frames(container, timestamp), frame - skip)
        return
    for target in reversed(entries[-2:]):
        position, time, _ = entries[-1]
        with _open(path) as container:
            frames = _frames(container, target.timestamp)
            first = next((f for f in islice(frames, MAX_LEAD) if f.pts is not None and f.pts >= time), None)
            if first is not None and first.pts == time:
                yield from _intact(chain((first,), frames), position)
                return
    with _open(path) as container:
        yield from _intact(_frames(container))


def _intact(frames: Iterable[VideoFrame], first: int = 0) -> Iterator[tuple[int, VideoFrame]]:
    """Yield frame indices, from ``first`` on, and frames that the decoder has not marked as corrupt."""
    for position, frame in enumerate(frames, first):
        if frame.is_corrupt:
            raise ValueError(f"frame {position} is corrupt")
        yield position, frame


class Properties:
    """Collect what reading needs to know about the frames of a video.

    Args:
        stream: The stream that is decoded.
    """

    def __init__(self, stream: VideoStream) -> None:
        # read now: PyAV returns freed memory once the container is closed
        self._fps = float(stream.average_rate or 0)
        aspect = stream.sample_aspect_ratio
        self._aspect = aspect if aspect and 1 / MAX_ASPECT <= aspect <= MAX_ASPECT else Fraction(1)
        self._transfer = self._fields = self._count = 0
        self._orientation = UPRIGHT
        self._shape: tuple[int, int] | None = None
        self._converted: set[tuple[object, ...]] = set()  # kinds of frames that are known to convert
        self._resized = False
        self.palette = False
        self.convert = RGBConverter()

    @property
    def empty(self) -> bool:
        """Whether there was no frame yet."""
        return self._shape is None

    def add(self, frame: VideoFrame) -> None:
        """Collect the properties of a frame, and convert it if it is the first of its kind.

        Raises:
            ValueError: The pixel format cannot be converted.
        """
        if self._shape is None:
            matrix = cast(Mapping[str, Buffer], frame.side_data).get("DISPLAYMATRIX")
            self._orientation = from_matrix(bytes(matrix) if matrix else b"")
            self._shape, self._transfer = (frame.height, frame.width), frame.color_trc
            self.palette = frame.format.name == "pal8"
        kind = (frame.format.name, frame.width, frame.height, frame.colorspace, frame.color_range)
        if kind not in self._converted:
            self.convert(frame, self._shape[1], self._shape[0])
            self._converted.add(kind)
            self._resized |= (frame.height, frame.width) != self._shape
        self._count += 1
        self._fields += frame.interlaced_frame

    def index(self, num_frames: int, entries: tuple[EntryPoint, ...]) -> VideoIndex:
        """Return the index of the video.

        Raises:
            ValueError: There was no frame.
        """
        if self._shape is None:
            raise ValueError("no frame can be decoded")
        height, width = self._shape[::-1] if swaps_sides(self._orientation) else self._shape
        aspect = 1 / self._aspect if swaps_sides(self._orientation) else self._aspect
        notes = [*self.convert.notes]
        if self._aspect != 1:
            notes.append(f"the pixels have the aspect ratio {self._aspect.numerator}:{self._aspect.denominator}")
        if self._resized:
            notes.append(f"the resolution changes, all frames are scaled to {width} x {height} pixels")
        if self._fields > self._count // 2:
            notes.append("the video is interlaced, its fields are not separated")
        if self._transfer in HDR:
            notes.append(f"the video is HDR ({HDR[self._transfer]}), its brightness is not mapped")
        return VideoIndex(num_frames, height, width, self._orientation, self._fps, entries, tuple(notes), float(aspect))


def _index(path: str | Path, container: InputContainer) -> VideoIndex:
    stream = _video_stream(container)
    complete, properties = Completeness(path, container, stream), Properties(stream)
    digest = _Digest(properties.convert)
    keyframes: list[tuple[int | None, int | None]] = []
    times: list[int | None] = []
    digests: list[int] = []
    flagged: list[int] = []  # frame indices that the decoder reports as keyframes
    damaged, corrupt, total = 0, 0, 0
    for packet in container.demux():
        complete.add(packet)
        if packet.stream.index != stream.index:
            continue
        if packet.size:
            total += 1
            if packet.is_keyframe:
                keyframes.append((packet.pts, packet.dts))
        try:
            frames = packet.decode()
        except av.error.FFmpegError:
            damaged += 1
            continue
        for frame in frames:
            assert isinstance(frame, VideoFrame)
            properties.add(frame)
            if frame.key_frame:
                flagged.append(len(times))
            corrupt += frame.is_corrupt
            times.append(frame.pts)
            digests.append(digest(frame))
    if damaged:
        raise ValueError(f"damaged: {damaged} of {total} packets cannot be decoded")
    if properties.empty:
        raise ValueError("no frame can be decoded")
    if corrupt:
        raise ValueError(f"damaged: {corrupt} of {len(times)} frames are corrupt")
    complete.check(len(times))
    candidates = _candidates(keyframes, times, flagged)
    return properties.index(len(times), _verified(path, candidates, times, digests))


def _index_fast(container: InputContainer) -> VideoIndex:
    """Return the index that the container states: packets are frames, in the order of their presentation times."""
    stream = _video_stream(container)
    properties = Properties(stream)
    times: list[int | None] = []
    keyframes: list[int | None] = []
    first: int | None = None
    for packet in container.demux(stream):
        if packet.size and not packet.is_discard:
            times.append(packet.pts)
            if packet.is_keyframe:
                keyframes.append(packet.pts)
        if properties.empty:
            for frame in packet.decode()[:1]:
                properties.add(frame)
                # what is shown before the first frame that decodes needs a keyframe that is not in the file
                first = frame.pts
    if first is not None:
        times = [time for time in times if time is None or time >= first]
    positions = {time: position for position, time in enumerate(sorted(t for t in times if t is not None))}
    entries: list[EntryPoint] = []
    # without distinct times the order of the frames is unknown, and after a seek FFmpeg has no palette
    if len(positions) == len(times) and not properties.palette:
        for time in keyframes:
            if time in positions and positions[time] - (entries[-1].frame if entries else 0) >= MIN_GROUP:
                entries.append(EntryPoint(positions[time], time, BY_TIME))
    return properties.index(len(times), tuple(entries))


def _candidates(
    keyframes: Sequence[tuple[int | None, int | None]], times: Sequence[int | None], flagged: Sequence[int]
) -> list[tuple[int, list[int]]]:
    """Return possible entry points, at least `MIN_GROUP` frames apart, as pairs of a frame and timestamps to try.

    The right timestamp depends on the container: some containers search presentation times, some search decoding times,
    and some land after the requested time, so that the keyframe before has to be requested.
    """
    frame_at = {time: position for position, time in enumerate(times) if time is not None}
    by_order = len(flagged) == len(keyframes)  # for packets without presentation times, as in AVI
    chosen: list[tuple[int, list[int]]] = []
    before: list[int] = []
    for rank, (pts, dts) in enumerate(keyframes):
        position = frame_at.get(pts) if pts is not None else flagged[rank] if by_order else None
        own = [t for t in dict.fromkeys((pts, dts)) if t is not None]
        if position is None or not own:
            continue
        if position - (chosen[-1][0] if chosen else 0) >= MIN_GROUP:
            chosen.append((position, own + before[:1]))
        before = own
    return chosen


def _verified(
    path: str | Path, candidates: Sequence[tuple[int, list[int]]], times: Sequence[int | None], digests: Sequence[int]
) -> tuple[EntryPoint, ...]:
    """Return the candidates from which all frames up to the next entry point equal the sequential decode."""
    ends = [position for position, _ in candidates[1:]] + [len(digests)]
    entries: list[EntryPoint] = []
    for (position, timestamps), end in zip(candidates, ends):
        tries: list[EntryPoint] = []
        for timestamp in timestamps:
            skip = _enter(path, position, timestamp, end, times, digests)
            if skip is not None:
                tries.append(EntryPoint(position, timestamp, skip))
            if skip == 0:
                break
        if tries:
            entries.append(min(tries, key=lambda e: e.skip))
    if len(entries) == len(candidates):
        return tuple(entries)
    # some candidates failed, so the groups of the others are longer: verify them again, last to first, because an entry
    # point that fails now leaves its frames to the one before it
    verified: list[EntryPoint] = []
    for entry in reversed(entries):
        end = verified[-1].frame if verified else len(digests)
        if _enter(path, entry.frame, entry.timestamp, end, times, digests) == entry.skip:
            verified.append(entry)
    return tuple(reversed(verified))


def _enter(
    path: str | Path, position: int, timestamp: int, end: int, times: Sequence[int | None], digests: Sequence[int]
) -> int | None:
    """Seek to a timestamp and compare the frames from ``position`` to ``end`` with the sequential decode.

    Returns:
        How many frames are decoded before frame ``position``; None if any frame differs.
    """
    skip: int | None = None
    digest = _Digest()
    try:
        with _open(path) as container:  # opened again: a container that was read before knows where its frames are
            for count, frame in enumerate(_frames(container, timestamp)):
                if skip is None:
                    if frame.pts == times[position] and digest(frame) == digests[position]:
                        skip = count
                    elif count >= MAX_LEAD:
                        return None
                    else:
                        continue
                elif digest(frame) != digests[position]:
                    return None
                position += 1
                if position == end:
                    return skip
    except (av.error.FFmpegError, OSError, ValueError):
        return None
    return None


class _Digest:
    """Compute checksums of the visible pixels of frames."""

    def __init__(self, convert: RGBConverter | None = None) -> None:
        self._convert = convert or RGBConverter()

    def __call__(self, frame: VideoFrame) -> int:
        total = zlib.crc32(f"{frame.height}x{frame.width}".encode())
        if frame.format.name not in PLANAR_8BIT:
            return zlib.crc32(self._convert(frame, frame.width, frame.height).tobytes(), total)
        for plane in frame.planes:
            rows = np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)
            total = zlib.crc32(rows[: plane.height, : plane.width].tobytes(), total)
        return total
