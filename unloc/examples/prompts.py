"""The 28 prompts that CLIP was published with for Kinetics (UnLoc §4.2: prompt ensembling)."""

_FORMS = ("a photo of", "a photo of a person", "a photo of a person using", "a photo of a person doing")
_MORE = ("a photo of a person during", "a photo of a person performing", "a photo of a person practicing")
_MEDIA = ("a photo", "a video", "a example", "a demonstration")
KINETICS_PROMPTS = tuple(
    f"{medium}{form.removeprefix('a photo')} {{}}." for form in _FORMS + _MORE for medium in _MEDIA
)


def prompted(class_name: str) -> list[str]:
    """A class name in all 28 prompts, underscores read as blanks."""
    return [prompt.format(class_name.replace("_", " ")) for prompt in KINETICS_PROMPTS]
