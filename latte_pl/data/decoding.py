"""Frame-exact windows of compressed video: prove once where a file can be entered, then decode only what a clip needs.

Seeking by time is wrong on real files: AVI stores no presentation times, B-frames are displayed out of order, open
GOPs cannot be decoded from their keyframe alone, and damaged indexes point elsewhere. So `index_video` decodes a file
once in sequence and then, from a fresh container per keyframe, decodes each group of pictures again: a keyframe becomes
an entry point only when every frame up to the next one comes out identical. What cannot be proven is decoded from the
beginning. Frame numbers are counted, never computed from times.
"""

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream
from numpy.typing import NDArray

MIN_GROUP = 8  # frames between entry points: closer ones save less decoding than their proof and storage cost
MAX_LEAD = 300  # frames that a seek may land early before the entry point is given up
PLANAR_8BIT = ("yuv420p", "yuvj420p", "yuv422p", "yuvj422p", "yuv444p", "yuvj444p", "gray")
Box = tuple[int, int, int, int]
"""Top, left, height and width of a crop, in pixels of the upright frame."""


class EntryPoint(NamedTuple):
    """A place where decoding may start: seek to ``timestamp``, drop ``skip`` frames, the next one is ``frame``."""

    frame: int
    timestamp: int
    skip: int


@dataclass(frozen=True)
class VideoIndex:
    """What one sequential decode showed of a file.

    Attributes:
        num_frames: Frames that really decode.
        height: Height in pixels, upright.
        width: Width in pixels, upright.
        rotation: Counterclockwise quarter turns that make the stored picture upright.
        fps: Average frame rate, 0 when the file does not tell.
        entries: Proven entry points in order of frame; frame 0 needs none.
    """

    num_frames: int
    height: int
    width: int
    rotation: int
    fps: float
    entries: tuple[EntryPoint, ...]


def index_video(path: str | Path) -> VideoIndex:
    """Decode a file once, prove its entry points, and return its index.

    Raises:
        ValueError: When the file holds no decodable video or is damaged; the message is the reason alone.
    """
    try:
        with _opened(path) as container:
            return _index(path, container)
    except (av.error.FFmpegError, OSError) as error:
        raise ValueError(f"not a readable video ({error.strerror or error})") from error


def read_video(
    path: str | Path, index: VideoIndex, start: int, num_frames: int, interval: int = 1, box: Box | None = None
) -> NDArray[np.uint8]:
    """Decode the frames start, start + interval, ... of a file, from the last entry point before them.

    Args:
        path: The file that ``index`` was made from.
        index: Its index.
        start: First frame, in [0, index.num_frames).
        num_frames: Number of frames F.
        interval: Distance between them, in frames of the file.
        box: The part of the upright frame to return; None for all of it.

    Returns:
        RGB pixels (F, h, w, 3), equal to those of a sequential decode of the whole file.

    Raises:
        ValueError: When the window leaves the video, or the file no longer decodes as indexed.
    """
    last = start + (num_frames - 1) * interval
    if num_frames < 1 or interval < 1 or start < 0 or last >= index.num_frames:
        raise ValueError(f"frames {start} to {last} were asked of {path}, which has {index.num_frames}")
    box = box or (0, 0, index.height, index.width)
    clip = np.empty((num_frames, box[2], box[3], 3), dtype=np.uint8)
    entry = max((e for e in index.entries if e.frame <= start), default=EntryPoint(0, 0, 0))
    reformatter = VideoReformatter()  # one scaler for all frames: setting one up costs six conversions
    filled = 0
    try:
        with _opened(path) as container:
            frames = _frames(container, entry.timestamp if entry.frame else None)
            for number, frame in enumerate(frames, entry.frame - entry.skip):
                if number >= start and (number - start) % interval == 0:
                    _copy_rgb(reformatter, frame, index, box, clip[filled])
                    filled += 1
                if number == last:
                    break
    except (av.error.FFmpegError, OSError) as error:
        raise ValueError(f"{path} no longer decodes ({error.strerror or error}); run `latte data check`") from error
    if filled < num_frames:
        raise ValueError(f"{path} ended after {filled} of {num_frames} frames of a clip; run `latte data check`")
    return clip


def _opened(path: str | Path) -> InputContainer:
    return av.open(str(path), metadata_errors="ignore")


def _video_stream(container: InputContainer) -> VideoStream:
    """Return the stream to decode; album covers and the like come last."""
    if not container.streams.video:
        raise ValueError("no video stream")
    stream = container.streams.best("video")
    assert isinstance(stream, VideoStream)
    if stream.codec_context is None:
        raise ValueError("no decoder for its video stream")
    stream.thread_type = "NONE"  # one thread per loader process; decoder threads dead-lock in forked workers
    stream.codec_context.thread_count = 1
    return stream


def _frames(container: InputContainer, timestamp: int | None = None) -> Iterator[VideoFrame]:
    """Yield decoded frames in display order, from the beginning or after a seek."""
    stream = _video_stream(container)
    if timestamp is not None:
        container.seek(timestamp, stream=stream, backward=True, any_frame=False)
    for packet in container.demux(stream):
        yield from packet.decode()


def _index(path: str | Path, container: InputContainer) -> VideoIndex:
    stream = _video_stream(container)
    # read while the container is open: PyAV answers with freed memory afterwards
    declared, length = stream.frames, container.duration
    fps = float(stream.average_rate or 0)
    keyframes: list[tuple[int | None, int | None]] = []
    times: list[int | None] = []
    digests: list[int] = []
    flagged: list[int] = []  # display positions of intra frames that the decoder calls keyframes
    shape: tuple[int, int] | None = None
    turns, end, damaged, corrupt, total = 0, 0.0, 0, 0, 0
    digest = _Digest()
    for packet in container.demux():
        if packet.size and packet.pts is not None and packet.time_base is not None:
            first = packet.stream.start_time or 0
            end = max(end, float((packet.pts + (packet.duration or 0) - first) * packet.time_base))
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
            if shape is None:
                shape, turns = (frame.height, frame.width), round(frame.rotation / 90) % 4
            if frame.key_frame:
                flagged.append(len(times))
            corrupt += frame.is_corrupt
            times.append(frame.pts)
            digests.append(digest(frame))
    if damaged:
        raise ValueError(f"damaged: {damaged} of {total} packets cannot be decoded")
    if shape is None:
        raise ValueError("no frame can be decoded")
    if corrupt:
        raise ValueError(f"damaged: {corrupt} of {len(times)} frames are corrupt")
    _refuse_truncated(len(times), declared, end, None if length is None else length / av.time_base, fps)
    candidates = _candidates(keyframes, times, flagged)
    height, width = shape if turns % 2 == 0 else shape[::-1]
    return VideoIndex(len(times), height, width, turns, fps, _prove(path, candidates, times, digests))


def _refuse_truncated(decoded: int, declared: int, end: float, length: float | None, fps: float) -> None:
    """Compare with the header, leaving room for what writers of whole files get wrong.

    Real AVIs declare up to a few frames more than they hold; a duration counts the longest stream and may be rounded
    or estimated. A file that a copy or a download cut short misses more. Streams that declare nothing (MPEG, a cut
    ASF) and break between two frames leave no trace; what remains is a shorter video.
    """
    if decoded < declared - max(3, declared // 50):
        raise ValueError(f"truncated: {decoded} of {declared} declared frames decode")
    slack = 2 / fps if fps else 1.0
    if declared <= 0 and length is not None and end < 0.95 * length - slack:
        raise ValueError(f"truncated: {end:.2f} of {length:.2f} declared seconds are there")


def _candidates(
    keyframes: Sequence[tuple[int | None, int | None]], times: Sequence[int | None], flagged: Sequence[int]
) -> list[tuple[int, list[int]]]:
    """Pair display positions, at least `MIN_GROUP` frames apart, with timestamps that a seek may need.

    Which one does depends on the container: some search presentation times, some decoding times, and some land behind
    what they were asked for, where the keyframe before is the one to ask for.
    """
    place = {time: number for number, time in enumerate(times) if time is not None}
    by_order = len(flagged) == len(keyframes)  # AVI: packets without presentation times
    chosen: list[tuple[int, list[int]]] = []
    before: list[int] = []
    for rank, (pts, dts) in enumerate(keyframes):
        number = place.get(pts) if pts is not None else flagged[rank] if by_order else None
        own = [t for t in dict.fromkeys((pts, dts)) if t is not None]
        if number is None or not own:
            continue
        if number - (chosen[-1][0] if chosen else 0) >= MIN_GROUP:
            chosen.append((number, own + before[:1]))
        before = own
    return chosen


def _prove(
    path: str | Path, candidates: Sequence[tuple[int, list[int]]], times: Sequence[int | None], digests: Sequence[int]
) -> tuple[EntryPoint, ...]:
    """Return the candidates from which everything up to the next entry point equals the sequential decode."""
    ends = [number for number, _ in candidates[1:]] + [len(digests)]
    entries: list[EntryPoint] = []
    for (number, timestamps), end in zip(candidates, ends):
        tries: list[EntryPoint] = []
        for timestamp in timestamps:
            skip = _enter(path, number, timestamp, end, times, digests)
            if skip is not None:
                tries.append(EntryPoint(number, timestamp, skip))
            if skip == 0:
                break
        if tries:
            entries.append(min(tries, key=lambda e: e.skip))
    if len(entries) == len(candidates):
        return tuple(entries)
    # without some of them the groups are longer: what each survivor must cover is proven anew, last to first, so that
    # one that fails passes its frames on to the entry point before it
    proven: list[EntryPoint] = []
    for entry in reversed(entries):
        end = proven[-1].frame if proven else len(digests)
        if _enter(path, entry.frame, entry.timestamp, end, times, digests) == entry.skip:
            proven.append(entry)
    return tuple(reversed(proven))


def _enter(
    path: str | Path, number: int, timestamp: int, end: int, times: Sequence[int | None], digests: Sequence[int]
) -> int | None:
    """Seek, and return how many frames come before the wanted one; None unless all up to ``end`` are as they were."""
    skip: int | None = None
    digest = _Digest()
    try:
        with _opened(path) as container:  # fresh: a container that was read before has learnt where its frames are
            for count, frame in enumerate(_frames(container, timestamp)):
                if skip is None:
                    if frame.pts == times[number] and digest(frame) == digests[number]:
                        skip = count
                    elif count >= MAX_LEAD:
                        return None
                    else:
                        continue
                elif digest(frame) != digests[number]:
                    return None
                number += 1
                if number == end:
                    return skip
    except (av.error.FFmpegError, OSError, ValueError):
        return None
    return None


class _Digest:
    """Checksum of a frame's visible pixels."""

    def __init__(self) -> None:
        self._reformatter = VideoReformatter()

    def __call__(self, frame: VideoFrame) -> int:
        if frame.format.name not in PLANAR_8BIT:
            frame = self._reformatter.reformat(frame, format="rgb24", threads=1)
        pixel = 3 if frame.format.name == "rgb24" else 1
        total = zlib.crc32(f"{frame.height}x{frame.width}".encode())
        for plane in frame.planes:
            rows = np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)
            total = zlib.crc32(rows[: plane.height, : plane.width * pixel].tobytes(), total)
        return total


def _copy_rgb(
    reformatter: VideoReformatter, frame: VideoFrame, index: VideoIndex, box: Box, out: NDArray[np.uint8]
) -> None:
    """Convert one frame and copy its box; a stream that changes its size midway is scaled to its first frame's."""
    height, width = (index.height, index.width) if index.rotation % 2 == 0 else (index.width, index.height)
    rgb = reformatter.reformat(frame, width=width, height=height, format="rgb24", threads=1)
    rows = np.frombuffer(memoryview(rgb.planes[0]), np.uint8).reshape(height, -1)[:, : 3 * width]
    upright = np.rot90(rows.reshape(height, width, 3), index.rotation)
    top, left, h, w = box
    out[...] = upright[top : top + h, left : left + w]
