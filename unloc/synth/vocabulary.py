"""What there is in the world: colours, shapes, motions, the classes made of them, and the tasks made of the classes.

A class is an appearance and a motion ("red circle rising"). Every class shares its appearance with the class of the
opposite motion, so one frame never tells the class. All words of a class occur in other classes as well.
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
    """An appearance and a motion: what an event shows."""

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


def _action(name: str) -> Action:
    colour, shape, motion = name.split(" ", 2)
    return Action(colour, shape, motion)


# A task is a fixed order of steps; every step belongs to one task (as in COIN).
TASKS: dict[str, tuple[Action, ...]] = {
    task: tuple(map(_action, steps))
    for task, steps in {
        "LightTheLamp": (
            "red circle rising",
            "yellow triangle moving right",
            "blue circle growing",
            "red circle falling",
        ),
        "OpenTheGate": (
            "blue square falling",
            "purple circle moving left",
            "green square shrinking",
            "blue square rising",
        ),
        "SetTheSail": (
            "green star rising",
            "red cross moving left",
            "purple triangle blinking",
            "red cross moving right",
        ),
        "TurnTheMill": (
            "black star growing",
            "yellow triangle moving left",
            "green star falling",
            "black star shrinking",
        ),
        "WindTheClock": (
            "purple circle moving right",
            "blue circle shrinking",
            "purple triangle swinging",
            "green square growing",
        ),
    }.items()
}
STEP_ACTIONS = tuple(step for steps in TASKS.values() for step in steps)
# Classes that are no step of any task: they happen beside the steps and may overlap them.
SIDE_ACTIONS = tuple(
    _action(f"{look} {motion}") for look in ("yellow square", "black cross") for motion in ("blinking", "swinging")
)
CLASS_ACTIONS = (*STEP_ACTIONS, *SIDE_ACTIONS)
ALL_ACTIONS = tuple(Action(colour, shape, motion) for colour in COLOURS for shape in SHAPES for motion in MOTIONS)
LOOKS = tuple((colour, shape) for colour in COLOURS for shape in SHAPES)
