"""Parts of a video as MP4 files: pictures are copied where a key frame is near the start, else encoded again."""

from pathlib import Path

import av
from av.container import InputContainer, OutputContainer
from av.video.stream import VideoStream

from unloc.errors import VideoError, one_line
from unloc.files import replacing
from unloc.video.facts import open_stream

COPIED_FROM_SECONDS = 0.5  # a copied clip may begin so much earlier, at a key frame
COPIED_VIDEO = ("h264", "hevc", "av1", "vp9", "mpeg4")  # that MP4 holds and players take
COPIED_AUDIO = ("aac", "mp3", "ac3", "eac3", "opus")


def cut_clip(path: Path, start_seconds: float, end_seconds: float, out: Path) -> bool:
    """Write a part of a video, with its sound where MP4 can hold that; whether its pictures were copied. A copied clip
    begins up to half a second early and ends with pictures that its last ones need. Raises VideoError.
    """
    try:
        with open_stream(path) as (source, stream, clock_start), replacing(out, sync=False) as part:
            start, end = start_seconds + clock_start, end_seconds + clock_start
            key = _key_frame(source, stream, start)
            copies = key is not None and start - key <= COPIED_FROM_SECONDS and stream.codec.name in COPIED_VIDEO
            with av.open(str(part), "w", format="mp4") as target:
                begin = key if copies else start
                audio = next((one for one in source.streams.audio if one.codec.name in COPIED_AUDIO), None)
                sound = None if audio is None else (audio, target.add_stream_from_template(audio))
                if copies:
                    pictures = (stream, target.add_stream_from_template(stream))
                    _copy(source, target, begin, end, [pictures, *([sound] if sound else [])])
                else:
                    _encode(source, stream, target, begin, end)
                    if sound:
                        _copy(source, target, begin, end, [sound])
    except av.error.FFmpegError as error:
        raise VideoError(f"{path}: no clip from {start_seconds:.1f} s ({one_line(error)})") from None
    return copies


def _key_frame(source: InputContainer, stream: VideoStream, start: float) -> float | None:
    """The time of the last key frame up to the start, by the container's index; None where it is not known."""
    source.seek(int(start / stream.time_base), stream=stream)
    packet = next((one for one in source.demux(stream) if one.size), None)
    known = packet is not None and packet.is_keyframe and packet.pts is not None
    return float(packet.pts * stream.time_base) if known and packet.pts * stream.time_base <= start + 1e-6 else None


def _copy(source: InputContainer, target: OutputContainer, start: float, end: float, streams: list) -> None:
    """Copy packets as they are; pictures from a key frame on, also those after the end that earlier ones refer to."""
    first = streams[0][0]
    source.seek(int(start / first.time_base), stream=first)
    pairs, early, done = dict(streams), {stream: [] for stream, _ in streams}, set()
    for packet in source.demux(*pairs):
        stream = packet.stream
        if packet.pts is None or stream in done or packet.pts * stream.time_base < start - 1e-6:
            continue
        if packet.dts is None:  # Matroska states none for the first pictures: they count back from the first stated
            early[stream].append(packet)
            continue
        if packet.dts * stream.time_base >= end:
            done.add(stream)
            if len(done) == len(pairs):
                return
            continue
        waiting, early[stream], step = early[stream], [], max(1, packet.duration or 1)
        for number, one in enumerate(waiting):
            one.dts = min(packet.dts, *(item.pts for item in waiting)) - step * (len(waiting) - number)
        for one in (*waiting, packet):
            offset = round(start / stream.time_base)
            one.pts, one.dts, one.stream = one.pts - offset, one.dts - offset, pairs[stream]
            target.mux(one)


def _encode(source: InputContainer, stream: VideoStream, target: OutputContainer, start: float, end: float) -> None:
    """Decode and encode the pictures in H.264, at their own times."""
    encoded, first = None, 0.0
    source.seek(int(start / stream.time_base), stream=stream)
    for frame in source.decode(stream):
        seconds = 0.0 if frame.time is None else frame.time
        if seconds >= end:
            break
        if seconds < start - 1e-6:
            continue
        if encoded is None:
            first = seconds
            encoded = target.add_stream("libx264", rate=stream.average_rate or 25, options={"crf": "20"})
            encoded.width, encoded.height = frame.width // 2 * 2, frame.height // 2 * 2
            encoded.pix_fmt, encoded.codec_context.time_base = "yuv420p", stream.time_base
        frame = frame.reformat(encoded.width, encoded.height, "yuv420p")
        frame.pts, frame.time_base = round((seconds - first) / stream.time_base), stream.time_base
        frame.pict_type = av.video.frame.PictureType.NONE
        target.mux(encoded.encode(frame))
    if encoded is None:
        raise VideoError(f"{source.name}: no picture from {start:.1f} to {end:.1f} s")
    target.mux(encoded.encode())
