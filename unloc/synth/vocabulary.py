"""Colours, shapes and motions of the world, the classes made of them, and the tasks made of the classes.

A class is a look and a motion ("red circle rising"). Each shares its look with the class of the opposite motion, so one
frame never gives the class away, and every word of a class occurs in other classes as well.
"""

from dataclasses import dataclass

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (214, 38, 36),
    "yellow": (240, 205, 40),
    "green": (36, 158, 62),
    "blue": (36, 84, 214),
    "purple": (160, 48, 190),
    "black": (22, 22, 26),
}
SHAPES = ("circle", "square", "triangle", "star", "cross")
MOTIONS = ("rising", "falling", "moving left", "moving right", "growing", "shrinking", "blinking", "swinging")


@dataclass(frozen=True, slots=True, order=True)
class Action:
    """A look and a motion: what an event shows."""

    colour: str
    shape: str
    motion: str

    @property
    def look(self) -> tuple[str, str]:
        """Colour and shape: what one frame shows."""
        return self.colour, self.shape

    @property
    def name(self) -> str:
        """The class name: 'red circle rising'."""
        return f"{self.colour} {self.shape} {self.motion}"


def _actions(names: str) -> tuple[Action, ...]:
    return tuple(Action(*name.split(" ", 2)) for name in names.split(", "))


# A task is a fixed order of steps; every step belongs to one task (as in COIN).
TASKS: dict[str, tuple[Action, ...]] = {
    "LightTheLamp": _actions(
        "red circle rising, yellow triangle moving right, blue circle growing, red circle falling"
    ),
    "OpenTheGate": _actions(
        "blue square falling, purple circle moving left, green square shrinking, blue square rising"
    ),
    "SetTheSail": _actions(
        "green star rising, red cross moving left, purple triangle blinking, red cross moving right"
    ),
    "TurnTheMill": _actions(
        "black star growing, yellow triangle moving left, green star falling, black star shrinking"
    ),
    "WindTheClock": _actions(
        "purple circle moving right, blue circle shrinking, purple triangle swinging, green square growing"
    ),
}
STEP_ACTIONS = tuple(step for steps in TASKS.values() for step in steps)
# Classes that are no step of any task; they may overlap the steps.
SIDE_ACTIONS = _actions("yellow square blinking, yellow square swinging, black cross blinking, black cross swinging")
CLASS_ACTIONS = (*STEP_ACTIONS, *SIDE_ACTIONS)
ALL_ACTIONS = tuple(Action(colour, shape, motion) for colour in COLOURS for shape in SHAPES for motion in MOTIONS)
LOOKS = tuple((colour, shape) for colour in COLOURS for shape in SHAPES)
