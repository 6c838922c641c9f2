import dataclasses
import io

import av
import numpy as np
import pytest
import torch
from fake_videos import picture, write_frames, write_video
from PIL import Image
from test_evaluation import PROTOCOL
from torchvision.transforms import functional as F

from latte_pl.data.folder import VideoFolder
from latte_pl.metrics.clips import RealClips, crop_and_resample, finished_clips, through_files, usable_videos
from latte_pl.metrics.lossy import jpeg_round_trip, mp4_round_trip


def drawn(num_frames=6, size=(32, 48), seed=0):
    return torch.from_numpy(np.stack([picture(n, size, seed) for n in range(num_frames)])).permute(0, 3, 1, 2)


def protocol(**values):
    given = {"num_frames": 4, "interval": 3, "height": 32, "width": 32, "resize": "centre-crop", "num_real": 3}
    return dataclasses.replace(PROTOCOL, **given | values)


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """A folder of three videos of 40, 12 and 11 frames."""
    folder = tmp_path_factory.mktemp("videos")
    for n, length in enumerate((40, 12, 11)):
        write_video(folder / f"{n}.mp4", length, seed=n)
    return folder


def open_videos(folder, size=32, num_frames=4, interval=3, **options):
    return VideoFolder(folder, size=size, num_frames=num_frames, interval=interval, **options)


def test_jpeg_round_trip_is_that_of_the_official_files():
    """The official code saves with ``q=95``, which PIL ignores, so the quality is 75."""
    video = drawn()
    expected = []
    for frame in video.permute(0, 2, 3, 1).numpy():
        file = io.BytesIO()
        Image.fromarray(frame).save(file, "JPEG", q=95)
        expected.append(np.asarray(Image.open(file)))
    found = jpeg_round_trip(video, 75)
    assert torch.equal(found.permute(0, 2, 3, 1), torch.from_numpy(np.stack(expected)))
    assert not torch.equal(found, jpeg_round_trip(video, 95))
    assert torch.equal(jpeg_round_trip(torch.stack([video, video]), 75)[1], found)


def difference(left, right):
    """Return the mean absolute difference of two clips in grey levels."""
    return (left.int() - right.int()).abs().float().mean()


def test_mp4_round_trip_is_that_of_a_file(tmp_path):
    video = drawn(16)
    with av.open(str(tmp_path / "0.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=8, options={"crf": "5", "threads": "1"})
        stream.height, stream.width, stream.pix_fmt = 32, 48, "yuv420p"
        for frame in video.permute(0, 2, 3, 1).numpy():
            rgb = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
            container.mux(stream.encode(rgb.reformat(format="yuv420p", interpolation="BICUBIC")))
        container.mux(stream.encode(None))
    written = VideoFolder(tmp_path, size=(32, 48), num_frames=16, interval=1).read(0, 16, 1, None)
    found = mp4_round_trip(video, 5)
    error = difference(found, video)
    assert (
        difference(found, written) < error / 10
    )  # mostly 0; on one machine the encoder rounded some blocks differently
    assert 0 < error < difference(mp4_round_trip(video, 30), video)


def test_clips_that_an_mp4_file_would_rescale_raise():
    with pytest.raises(ValueError, match="24 x 48 pixels cannot go through the MP4 file"):
        mp4_round_trip(drawn(size=(24, 48)), 5)


@pytest.mark.parametrize("size", [(135, 176), (176, 135), (64, 64), (33, 40), (240, 320)])
def test_crop_and_filter_are_those_of_the_official_conversion(size):
    image = Image.fromarray(picture(0, size))
    side = min(size)
    expected = F.resize(F.center_crop(image, [side, side]), 64, interpolation=F.InterpolationMode.LANCZOS)
    assert np.array_equal(crop_and_resample([np.asarray(image)], (64, 64))[0].permute(1, 2, 0).numpy(), expected)


def test_starts_are_uniform_and_never_flipped(videos):
    """The official tool draws starts up to the last one that fits: 0 to n - 46 for 16 frames at interval 3."""
    dataset = open_videos(videos, flip=True)
    counts = [0, 0, 0]  # a clip spans 10 of 12 frames
    for seed in range(60):
        clips = RealClips(dataset, protocol(real_seed=seed))
        found = clips[clips.videos.index(1)]
        (start,) = (n for n in range(3) if torch.equal(found, clips.clip(1, n)))
        counts[start] += 1
    assert min(counts) > 8


def test_half_of_the_clips_are_flipped_on_request(videos):
    dataset = open_videos(videos)
    flipped = []
    for seed in range(40):
        plain, other = (RealClips(dataset, protocol(real_seed=seed, flip=flip))[0] for flip in (False, True))
        assert torch.equal(other, plain) or torch.equal(other, plain.flip(-1))
        flipped.append(not torch.equal(other, plain))
    assert 10 < sum(flipped) < 30


def test_short_videos_are_not_used(videos):
    dataset = open_videos(videos)
    assert usable_videos(dataset, {}) == [0, 1, 2]
    assert usable_videos(dataset, {"min_video_frames": 12}) == [0, 1]
    with pytest.raises(ValueError, match="2 videos with 12 frames or more"):
        RealClips(dataset, protocol(min_video_frames=12))
    assert sorted(RealClips(dataset, protocol(min_video_frames=12, num_real=2)).videos) == [0, 1]


def test_lanczos_and_jpeg_are_applied_to_the_pictures_of_the_files(videos):
    dataset = open_videos(videos)
    found = RealClips(dataset, protocol(view="first", resample="lanczos", jpeg_quality=75, num_real=1))
    pictures = list(dataset.pictures(found.videos[0], 0, 4, 3))
    assert pictures[0].shape == (48, 64, 3)
    assert torch.equal(found[0], jpeg_round_trip(crop_and_resample(pictures, (32, 32)), 75))


def test_reading_by_time_takes_the_nearest_frames(tmp_path):
    write_video(tmp_path / "a" / "0.mp4", 40)  # 25 frames a second
    write_video(tmp_path / "b" / "0.mp4", 20, times=[80 * n for n in range(20)])  # 12.5
    clips = []
    for name in "ab":
        dataset = open_videos(tmp_path / name, num_frames=1, interval=1)
        (clip,) = finished_clips(dataset, protocol(fps=6.25), [0])
        clips.append((dataset, clip))
    assert torch.equal(clips[0][1], clips[0][0].frames(0, 0, 4, 4))
    assert torch.equal(clips[1][1], clips[1][0].frames(0, 0, 4, 2))
    (uneven,) = finished_clips(clips[0][0], protocol(fps=10), [0])  # frames 0, 2.5, 5, 7.5
    assert torch.equal(uneven, clips[0][0].frames(0, 0, 9)[[0, 3, 5, 8]])
    assert usable_videos(clips[1][0], {"fps": 2, "num_frames": 4}) == [0]
    assert usable_videos(clips[1][0], {"fps": 1.8, "num_frames": 4}) == []


def test_frames_without_a_rate_cannot_be_read_by_time(tmp_path):
    write_frames(tmp_path / "0")
    dataset = open_videos(tmp_path)
    with pytest.raises(ValueError, match="0 states no frame rate, so it cannot be read by time"):
        next(finished_clips(dataset, protocol(fps=8), [0]))


def test_samples_go_through_the_files_of_the_protocol():
    video = torch.stack([drawn(4), drawn(4, seed=1)])
    codec = "mp4 h264 yuv420p crf 5"
    model = protocol(generated_codec=codec, jpeg_quality=75)
    expected = torch.stack([jpeg_round_trip(mp4_round_trip(clip, 5), 75) for clip in video])
    assert torch.equal(through_files(model, video), expected)
    files = protocol(generated_codec=codec, weights="files")
    assert through_files(files, video) is video  # finished videos have been through their own files
