"""The options of `unloc extract`, each a sentence."""

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

ManifestFile = Annotated[Path, Argument(help="Manifest of `unloc data convert`: a file or a URL.")]
VideoFolder = Annotated[
    Path | None, Option("--videos", help="Folder with the video files, or a URL: s3://bucket/videos.")
]
Shards = Annotated[
    str | None, Option("--shards", help="Tar files with the videos instead: 'videos-{000..127}.tar' (unloc data pack).")
]
CacheFolder = Annotated[
    str, Option("--cache", "-c", help="Cache to write or to add to: a folder, or a URL: s3://bucket/cache.")
]
Tower = Annotated[str, Option("--tower", help="toy, or a model of open_clip: ViT-B-16.")]
Pretrained = Annotated[
    str | None,
    Option("--pretrained", help="open_clip's tag (openai), a weights file, or none: random weights for a smoke test."),
]
Like = Annotated[
    str | None,
    Option("--like", help="For a weights file: the tag whose activation and preprocessing it was trained with."),
]
Fps = Annotated[float | None, Option("--fps", help="Frames per second of video; 2 where --frames is not given.")]
Frames = Annotated[int | None, Option("--frames", help="Frames evenly over each video.")]
Workers = Annotated[int, Option("--workers", min=-1, help="Ray actors that decode; 0: no Ray; -1: one a core.")]
Encoders = Annotated[
    int | None, Option("--encoders", min=0, help="Ray actors that only encode; default: one a GPU, 0 without.")
]
Address = Annotated[str | None, Option("--address", help="Ray cluster to use: auto, or host:port.")]
Split = Annotated[str | None, Option("--split", help="Only this split.")]
Limit = Annotated[int, Option("--limit", min=0, help="Only the first N videos; 0: all.")]
Decoder = Annotated[str, Option("--decoder", help="auto, decord or pyav.")]
Dtype = Annotated[
    str, Option("--dtype", help="What the tower computes in: float32, bfloat16, or auto: bfloat16 where it is fast.")
]
TokenDtype = Annotated[str, Option("--token-dtype", help="How tokens are stored: float16, float32 or bfloat16.")]
Views = Annotated[str, Option("--views", help="Pictures of a frame, the first being centre: centre,flip,crop0,crop1.")]
FrameToken = Annotated[str, Option("--frame-token", help="cls: the class token; gap: the mean of the patches.")]
Projection = Annotated[bool, Option(help="Frame tokens behind CLIP's projection, or before it.")]
TextProjection = Annotated[bool, Option(help="Text tokens behind CLIP's projection, or before it.")]
LastK = Annotated[int, Option("--last-k", help="Frame tokens of the last K layers side by side.")]
Coverage = Annotated[float, Option("--coverage", min=0, max=1, help="Smallest share to be cached for exit code 0.")]
Timeout = Annotated[
    float,
    Option("--timeout", min=0.01, max=1e6, help="Longest seconds that a decoder may make no progress."),
]
Memory = Annotated[float, Option("--memory", min=0.05, max=1e6, help="Most GiB that decoding one video may take.")]
RecycleAfter = Annotated[int, Option("--recycle-after", min=1, help="Videos after which a decoder is replaced.")]
RecycleGrowth = Annotated[
    float, Option("--recycle-growth", min=0, max=1e6, help="GiB of growth after which it is replaced.")
]
ShardSize = Annotated[int, Option("--shard-size", min=1, help="Videos per shard.")]
AllowPartial = Annotated[bool, Option("--allow-partial", help="Take what decodes of broken files.")]
RetryFailed = Annotated[bool, Option("--retry-failed", help="Try failed videos again.")]
Refresh = Annotated[
    list[str] | None,
    Option("--refresh", help="Extract this cached video again; changed: all whose file has changed. Repeatable."),
]
Prompts = Annotated[bool, Option(help="Class names also in the 28 CLIP prompts.")]
Plan = Annotated[bool, Option("--plan", help="Try a few videos, tell what the whole would take, write nothing.")]
Json = Annotated[bool, Option("--json", help="Print the summary or the plan as JSON.")]
